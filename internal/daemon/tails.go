package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"slices"
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
	tellEach(ctx, func() (news []fact) {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, e := range m.asides {
			news = append(news, fact{grave: true, what: path.Base(e.Dataset), tell: func() *state.Tell { return m.asideNews(e) }})
		}
		for _, t := range m.tells {
			news = append(news, fact{what: t.Message, tell: func() *state.Tell { return &t }})
		}
		m.asides, m.tells = nil, nil
		return news
	}, m.asided, m.propose, m.log)
	return nil
}

// fact is something that is to be in the events.
type fact struct {
	what string
	// grave: data may be lost, or missed. It is told before what is not, and goes on being tried
	// as long as it is not denied: what refuses it, as an older node does, may change.
	grave bool
	// tell is how it is told now; nil: there is nothing left to tell.
	tell func() *state.Tell

	tries int
	again time.Time // not before
}

// before says which of two facts is tried first: one that was tried less, so that none which
// cannot be told keeps another one back, and then a grave one.
func (f fact) before(g fact) bool {
	if f.tries != g.tries {
		return f.tries < g.tries
	}
	return f.grave && !g.grave
}

// tellEach puts facts into the events until ctx ends, one at a time, each tried again until it is
// there or refused for good. News are those that came up since it was called last; bell rings
// when there are some.
func tellEach(ctx context.Context, news func() []fact, bell <-chan struct{}, propose func(context.Context, state.Command) (state.Result, error), log *slog.Logger) {
	var open []fact
	for {
		open = append(open, news()...)
		now, next := time.Now(), time.Duration(-1)
		best := -1
		for i, f := range open {
			switch wait := f.again.Sub(now); {
			case wait > 0 && (next < 0 || wait < next):
				next = wait
			case wait <= 0 && (best < 0 || f.before(open[best])):
				best = i
			}
		}
		if best >= 0 {
			f := &open[best]
			if f.try(ctx, propose, log) {
				open = slices.Delete(open, best, best+1)
			} else {
				f.tries, f.again = f.tries+1, time.Now().Add(tellAgain)
			}
			if ctx.Err() != nil {
				return
			}
			continue
		}
		timer := time.NewTimer(max(next, 0))
		due := timer.C
		if next < 0 {
			due = nil // nothing is left
		}
		select {
		case <-ctx.Done():
		case <-bell:
		case <-due:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// try says that there is nothing left to do about a fact.
func (f *fact) try(ctx context.Context, propose func(context.Context, state.Command) (state.Result, error), log *slog.Logger) (done bool) {
	t := f.tell()
	if t == nil {
		return true
	}
	cctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err := propose(cctx, *t)
	switch code := volume.CodeOf(err); {
	case err == nil:
		return true
	case code == volume.CodeDenied || !f.grave && (code == volume.CodeRefused || code == volume.CodeInvalid || code == volume.CodeNotFound):
		log.Warn("something is not in the events: it was refused", "kind", t.Kind, "what", f.what, "err", err)
		return true
	case ctx.Err() == nil:
		log.Debug("something is not told of yet", "kind", t.Kind, "what", f.what, "err", err)
	}
	return false
}

// asideNews is what to tell of a set-aside copy; nil when its volume is no more.
func (m *member) asideNews(e replicate.SetAside) *state.Tell {
	s := m.cluster.State()
	v := s.Volume(e.Volume)
	if v == nil || !v.Live() {
		return nil
	}
	name, primary := path.Base(e.Dataset), "nobody"
	if line := v.Line(); !line.IsZero() && e.Reason == replicate.Undone(line) {
		return &state.Tell{Volume: v.ID, Kind: state.VolumeAside, Node: m.self,
			Message: fmt.Sprintf("volume %s: what the rollback to its snapshot %s has undone on %s is kept as %s: see flockctl aside list", v.Name, line.Snapshot, s.NodeName(m.self), name)}
	}
	if p := v.Placement.Primary; p != "" {
		primary = s.NodeName(p)
	}
	return &state.Tell{Volume: v.ID, Kind: state.VolumeAside, Node: m.self,
		Message: fmt.Sprintf("volume %s: the copy on %s was not like that of its primary %s (%s); what was there is kept as %s: see flockctl aside list",
			v.Name, s.NodeName(m.self), primary, e.Reason, name)}
}
