package agent

import (
	"maps"
	"math"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// A listing costs ZFS something for every dataset, so one at each new state would make the
// thousandth volume cost a thousand times the first. Most states ask nothing of the disk,
// and of what they do ask, making a dataset tells by itself what is there afterwards. For
// those the loop remembers its last look.

// made is a dataset that this node has made, as it was read by itself then.
type made struct {
	copy Copy
	at   time.Time // when it had been made
}

// tells says that an action leaves nothing on the disk that a.made does not tell.
func (act Action) tells() bool { return act.Do == StepCreate || act.Do == StepConfirm }

// taken is a dataset that this node has given all that a primary needs, and nothing else since.
type taken struct {
	epoch volume.Epoch
	size  int64
	at    time.Time
}

// takenFor is how long that is believed: the containers of a move are started at once.
const takenFor = time.Minute

// noteTaken notes it. The caller holds the volume's lock.
func (a *Agent) noteTaken(v *state.Volume) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.taken[v.ID] = taken{v.Epoch, v.Spec.Size, time.Now()}
}

// isTaken says that nothing has to be done before a volume is mounted here. The caller holds the
// volume's lock.
func (a *Agent) isTaken(v *state.Volume) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, ok := a.taken[v.ID]
	return ok && t.epoch == v.Epoch && t.size == v.Spec.Size && time.Since(t.at) < takenFor
}

// seenCopy is what the last look has shown of a volume's copy.
func (a *Agent) seenCopy(id volume.ID) (Copy, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c, ok := a.actual.Copies[id]
	return c, ok && !c.Logged
}

// hushFor is how old the last look may be while clients wait for a volume to be given up here: each
// container that ends is a reason to look, and a look is what this machine does slowest just then.
const hushFor = 3 * time.Second

// hushing has the loop look less often for what the engine does until what it returns is called, which
// may be twice. What was put off is looked at then.
func (a *Agent) hushing() (over func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hushed++
	is := true
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if !is {
			return
		}
		is = false
		if a.hushed--; a.hushed == 0 && a.putOff {
			a.Stir()
		}
	}
}

// looksLater says how much later it is early enough to look for what the engine has done; 0: now.
func (a *Agent) looksLater(now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.hushed == 0 || a.seen.IsZero() {
		return 0
	}
	later := max(hushFor-now.Sub(a.lookedAt), 0)
	a.putOff = a.putOff || later > 0
	return later
}

// dueFor is how long a look without a reason is put off for steps that are due. The loop is deaf while it
// looks: for seconds where there are very many datasets, or the engine is slow.
const dueFor = 20 * time.Second

// due says that this node is to give a volume up, or is told to take one over, in a moment: clients wait
// for it. They do while one is elected, too, but that may last, and after a promise it takes a look to
// know once more what is here.
func due(s *state.State, self volume.NodeID) bool {
	for v := range s.Volumes() {
		if v.Phase == state.PhaseMoving && (v.Placement.Primary == self || v.Pending.To == self) {
			return true
		}
	}
	return false
}

// routineLater says how much later it is early enough to look without a reason while steps are
// due: not after a failed one is to be tried again.
func (a *Agent) routineLater(now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	later := min(a.poll, dueFor-now.Sub(a.lookedAt))
	for _, f := range a.failed {
		later = min(later, f.again.Sub(now))
	}
	return later
}

// begins and ended note what makes a look out of date. The caller holds mu.
func (a *Agent) begins(act Action) {
	delete(a.taken, act.Volume)
	if !act.tells() {
		delete(a.made, act.Volume)
		a.acting++
		a.actedAt = time.Now()
	}
}

func (a *Agent) ended(act Action) {
	if !act.tells() {
		a.acting--
		a.actedAt = time.Now()
	}
}

// changing notes that a copy is mounted, or brought back, by somebody else than the loop,
// until what it returns is called.
func (a *Agent) changing(id volume.ID) (done func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.made, id)
	delete(a.taken, id)
	a.acting++
	a.actedAt = time.Now()
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.acting--
		a.actedAt = time.Now()
	}
}

// noteMade adds a dataset that was just made to what is seen.
func (a *Agent) noteMade(id volume.ID, c Copy) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.made[id] = made{copy: c, at: time.Now()}
	if a.actual.Copies != nil { // the loop reads the old one without mu
		a.actual.Copies = maps.Clone(a.actual.Copies)
		a.actual.Copies[id] = c
	}
}

// addMade adds to what a listing shows the datasets that were made since it began. The
// caller holds mu.
func (a *Agent) addMade(got Actual) {
	for id, m := range a.made {
		if m.at.Before(a.lookedAt) {
			delete(a.made, id)
		} else if _, listed := got.Copies[id]; !listed {
			got.Copies[id] = m.copy
		}
	}
}

// tell makes the loop decide again soon. Never blocks.
func (a *Agent) tell() { ring(a.news) }

// remembered is what the last look has shown, and who uses what. ok is false when it is
// time to look again, or when this node has changed, or is changing, more since than a.made
// tells; known is true where only the time is up. A look that was put off for steps that are due is not made for these after all.
func (a *Agent) remembered(now time.Time) (got Actual, holders map[volume.ID][]volume.Holder, ok, known bool) {
	age := a.listEvery()
	if a.excused {
		age = max(age, dueFor)
	}
	ok, known = a.undisturbed(now, age), a.undisturbed(now, math.MaxInt64)
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.actual, a.holders, ok && !a.seen.IsZero(), known && !a.seen.IsZero()
}

// undisturbed says that the last listing is not older than that, and that nothing that this node
// does has put it out of date, but for what a.made tells.
func (a *Agent) undisturbed(now time.Time, age time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return now.Sub(a.lookedAt) < age && a.acting == 0 && a.actedAt.Before(a.lookedAt)
}

// suffices says that a state can be obeyed, by these actions, without another look than the
// one that showed got: that there is nothing to do, or only what zfs refuses where it is
// done already, or what reads by itself what is there, and that nothing is missing which may be
// there by now.
func suffices(s *state.State, got Actual, self volume.NodeID, actions []Action) bool {
	looks := func(act Action) bool { // is begun by a look alone
		return !act.tells() && !(act.Do == StepPromote && mustSettle(s.Volume(act.Volume), got.Copies[act.Volume]))
	}
	if slices.ContainsFunc(actions, looks) || got.NoTrash && trashMatters(s, got, self) {
		return false
	}
	for v := range s.Volumes() {
		role := v.Placement.Role(self)
		_, exists := got.Copies[v.ID]
		_, trashed := got.Trash[v.ID]
		// A first copy may have come in, and what this node is asked for hang on it.
		if role != volume.RoleNone && !exists && !trashed && v.Phase != state.PhaseCreating && !(role == volume.RoleReplica && v.Live()) {
			return false
		}
	}
	return true
}
