package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
)

// tellAgain is the time between two attempts to put a fact into the events.
const tellAgain = 5 * time.Second

// noteAside remembers that a copy on this node was set aside, for tellAsides.
func (m *member) noteAside(e replicate.SetAside) {
	m.mu.Lock()
	m.asides = append(m.asides, e)
	m.mu.Unlock()
	ring(m.asided)
}

// tell has tellAsides put a fact of this node into the events, as soon as there is a leader
// for that.
func (m *member) tell(t state.Tell) {
	t.Node = m.self
	m.mu.Lock()
	m.tells = append(m.tells, t)
	m.mu.Unlock()
	ring(m.asided)
}

// tellAsides puts every copy that is set aside here into the events of the cluster, so
// that nobody learns only by looking that something was written which is not in the
// volume any more, and what else is to be told. What was not told before the process ends
// is still listed: set-aside copies, and ports that a container was made without.
func (m *member) tellAsides(ctx context.Context) error {
	for {
		select {
		case <-m.asided:
		case <-ctx.Done():
			return nil
		}
		m.mu.Lock()
		news, tells := m.asides, m.tells
		m.asides, m.tells = nil, nil
		m.mu.Unlock()
		tellEach(ctx, tells, m.propose, m.log)
		for _, e := range news {
			for ctx.Err() == nil && !m.tellAside(ctx, e) {
				pause(ctx, tellAgain)
			}
		}
	}
}

// tellEach puts facts into the events, each tried again until it is there or refused for good.
func tellEach(ctx context.Context, tells []state.Tell, propose func(context.Context, state.Command) (state.Result, error), log *slog.Logger) {
	for _, t := range tells {
		for ctx.Err() == nil {
			cctx, cancel := context.WithTimeout(ctx, askTimeout)
			_, err := propose(cctx, t)
			cancel()
			code := volume.CodeOf(err)
			if err == nil || code == volume.CodeDenied || code == volume.CodeRefused || code == volume.CodeInvalid || code == volume.CodeNotFound {
				break
			}
			log.Debug("something is not told of yet", "kind", t.Kind, "what", t.Message, "err", err)
			pause(ctx, tellAgain)
		}
	}
}

// tellAside says that there is nothing left to do about e.
func (m *member) tellAside(ctx context.Context, e replicate.SetAside) (done bool) {
	s := m.cluster.State()
	v := s.Volume(e.Volume)
	if v == nil || !v.Live() {
		return true
	}
	name, primary := path.Base(e.Dataset), "nobody"
	if p := v.Placement.Primary; p != "" {
		primary = s.NodeName(p)
	}
	cctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err := m.propose(cctx, state.Tell{Volume: v.ID, Kind: state.VolumeAside, Node: m.self,
		Message: fmt.Sprintf("volume %s: the copy on %s was not like that of its primary %s (%s); what was there is kept as %s: see flockctl aside list",
			v.Name, s.NodeName(m.self), primary, e.Reason, name)})
	if err != nil && ctx.Err() == nil {
		m.log.Debug("a set-aside copy is not told of yet", "aside", name, "err", err)
	}
	return err == nil || volume.CodeOf(err) == volume.CodeDenied
}
