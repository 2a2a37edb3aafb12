package placement

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// Cluster is what the Controller needs of the node that leads.
type Cluster interface {
	// State is the newest state applied here. It never blocks.
	State() *state.State
	// Reports are the newest reports by node, as this leader received them; the
	// map belongs to the caller, the reports do not. It never blocks.
	Reports() map[volume.NodeID]Heard
	// Propose blocks until cmd is applied or refused; a refusal by a precondition
	// is a *volume.Error. When ctx ends it may still be applied.
	Propose(ctx context.Context, cmd state.Command) error
}

// Controller is the leader's loop: it compares what the cluster has agreed on with
// what nodes report, and proposes what Decide says. It keeps nothing that a new
// leader would miss: what it remembers is only how long something has been so.
type Controller struct {
	Cluster Cluster
	// Wake tells of a new state or report; signals may be merged. Nil: only Every.
	Wake <-chan struct{}
	Log  *slog.Logger // nil: slog.Default()
	// Now is the clock that Heard.At was read from; nil: time.Now.
	Now func() time.Time

	// Every is the longest time between two looks, for what only time brings about;
	// 0: 5 s. Gap is the shortest, and Batch the most commands of one look, so that
	// the loop never crowds out its users' commands; 0: 500 ms and 32.
	Every time.Duration
	Gap   time.Duration
	Batch int
	// Settle is how long Run waits before its first look; 0: ReportFresh.
	Settle time.Duration

	memory     Memory
	complained map[complaint]string // last error by command, so that each is logged once
}

type complaint struct {
	command string
	volume  volume.ID
}

// Run decides and proposes until ctx ends, which is when leadership does, and
// returns the cause. Before its first look it waits until reports of all members
// could have come in: deciding with half of them would put replicas on the few
// nodes that happened to be early. It waits so again when it has not run for long, as
// on a machine that was suspended or whose clock has jumped: the silence was its own
// then, not that of others.
// A Controller runs once at a time.
func (c *Controller) Run(ctx context.Context) error {
	c.complained, c.memory = make(map[complaint]string), Memory{}
	settle := orDefault(c.Settle, ReportFresh)
	if !sleep(ctx, settle) {
		return context.Cause(ctx)
	}
	every := orDefault(c.Every, 5*time.Second)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for last := c.now(); ; {
		if c.now().Sub(last) > every+settle && !sleep(ctx, settle) {
			return context.Cause(ctx)
		}
		last = c.now()
		c.look(ctx)
		if !sleep(ctx, orDefault(c.Gap, 500*time.Millisecond)) {
			return context.Cause(ctx)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.Wake:
		case <-tick.C:
		}
	}
}

func (c *Controller) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

// look decides once and proposes what comes out.
func (c *Controller) look(ctx context.Context) {
	cmds, next := Decide(NewView(c.Cluster.State(), c.Cluster.Reports(), c.now()), c.memory)
	c.memory = next
	if most := orDefault(c.Batch, 32); len(cmds) > most {
		cmds = cmds[:most]
	}
	wanted := make(map[complaint]bool, len(cmds))
	for _, cmd := range cmds {
		if ctx.Err() != nil {
			return
		}
		key := complaint{fmt.Sprintf("%T", cmd), subject(cmd)}
		wanted[key] = true
		c.note(ctx, key, c.Cluster.Propose(ctx, cmd))
	}
	for key := range c.complained {
		if !wanted[key] {
			delete(c.complained, key)
		}
	}
}

// note logs what became of a proposal, a repeated error only once.
func (c *Controller) note(ctx context.Context, key complaint, err error) {
	log := c.Log
	if log == nil {
		log = slog.Default()
	}
	switch {
	case err == nil:
		delete(c.complained, key)
		log.Info("placement changed", "command", key.command, "volume", key.volume)
	case ctx.Err() != nil: // no longer leading: not ours to complain about
	case c.complained[key] != err.Error():
		c.complained[key] = err.Error()
		log.Warn("placement change refused", "command", key.command, "volume", key.volume, "err", err)
	}
}

// sleep waits for d; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func orDefault[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}
