package cluster

import (
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"github.com/flocker-io/flocker/internal/state"
)

// fsm lets Raft run state.Apply. Raft calls Apply, Snapshot and Restore one at a
// time.
type fsm struct {
	state *state.State
	// publish shows a new state to the rest of the node, before the proposer gets
	// its answer.
	publish func(*state.State)
	// fatal stops the node.
	fatal func(error)
	// broken is set by an entry that this version cannot apply. From then on nothing
	// is applied and no snapshot is taken: the entry stays in the log for the version
	// that knows it.
	broken error
}

// Apply answers a state.Result, or an error when the node must stop.
func (f *fsm) Apply(l *raft.Log) any {
	if f.broken != nil {
		return f.broken
	}
	e, err := state.Decode(l.Data)
	if err != nil {
		f.broken = fmt.Errorf("log entry %d: %w", l.Index, err)
		f.fatal(f.broken)
		return f.broken
	}
	next, res := state.Apply(f.state, l.Index, e)
	f.state = next
	f.publish(next)
	return res
}

func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.broken != nil {
		return nil, f.broken
	}
	return fsmSnapshot{f.state}, nil
}

func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	s, err := state.Unmarshal(r)
	if err != nil {
		f.broken = err
		f.fatal(err)
		return err
	}
	f.state = s
	f.publish(s)
	return nil
}

// fsmSnapshot is an immutable state, so it needs no copy.
type fsmSnapshot struct{ s *state.State }

func (f fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := f.s.Marshal(sink); err != nil {
		sink.Cancel()
		return err
	}
	return sink.Close()
}

func (fsmSnapshot) Release() {}
