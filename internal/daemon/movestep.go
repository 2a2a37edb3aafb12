package daemon

import (
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// movingNow is what is being done for an attempt to move a volume.
type movingNow struct {
	attempt string
	step    volume.MoveStep
}

// tellStep has those who watch a move know what is being done for it.
func (f *follower) tellStep(id volume.ID, attempt string, step volume.MoveStep) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := movingNow{attempt, step}
	if f.steps[id] == now {
		return
	}
	if f.steps == nil {
		f.steps = map[volume.ID]movingNow{}
	}
	f.steps[id] = now
	f.m.reportSoon()
}

// reportSteps adds to a report what is being done for the moves that are under way, and
// forgets those that are not. The caller has the lock.
func (f *follower) reportSteps(s *state.State, rep *volume.Report) {
	for id, now := range f.steps {
		if v := s.Volume(id); v == nil || v.Pending == nil || v.Pending.Attempt != now.attempt {
			delete(f.steps, id)
		}
	}
	for i := range rep.Volumes {
		rep.Volumes[i].Moving = f.steps[rep.Volumes[i].Volume].step
	}
}

// reportSoon has the leader hear of this node before its next report is due.
func (m *member) reportSoon() {
	select {
	case m.hasty <- struct{}{}:
	default:
	}
}
