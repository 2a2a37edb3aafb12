package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/volume"
)

const (
	// snapHookPatience is a little more than the container itself gives a hook: what was
	// done before is then over when what is done after begins.
	snapHookPatience = container.SnapshotHookLimit + 3*time.Second
	// takePatience is how long containers stand still, at most, for the snapshot itself: of a pool
	// that hangs none comes.
	takePatience = 30 * time.Second
	// debtPause is the first pause after what is done after a snapshot has failed, debtMost
	// the longest.
	debtPause = 5 * time.Second
	debtMost  = time.Minute
	// lastTry is how long flockd, when it stops, gives what is still to be done.
	lastTry = 5 * time.Second
)

// snapHooks has containers get ready for snapshots of people, and go on after them.
//
// What is done after is a debt from before the first command runs: it is paid whatever
// becomes of the snapshot and of who asked for it, and tried until it succeeds or the
// container does not run any more. Nothing of that is written down. A flockd that was
// stopped in between would not know of it, so each one begins with the debts of all
// containers here, and has them once more when a command that the one before has left running
// is over: what lets a container go on must do no harm to one that does.
//
// A container gets ready for one snapshot at a time. Else the end of one would let it go on
// while another is being taken.
type snapHooks struct {
	engine container.Engine
	id     func(name string) (volume.ID, bool)
	log    *slog.Logger
	wake   chan struct{}
	jobs   sync.WaitGroup

	mu      sync.Mutex
	busy    map[string]bool  // containers, by ID, that get ready or go on
	owed    map[string]*debt // by container
	changed chan struct{}    // closed at the next change of busy and owed
}

// debt is what is to be done in a container after a snapshot.
type debt struct {
	of    hooked
	tried chan struct{} // closed after the first try
	err   error         // of the last one
	next  time.Time
	pause time.Duration
}

// hooked is a container with something to do before or after a snapshot.
type hooked struct {
	id, name  string
	pre, post container.SnapshotHook
}

func (d *debt) untried() bool {
	if d == nil {
		return false
	}
	select {
	case <-d.tried:
		return false
	default:
		return true
	}
}

func newSnapHooks(engine container.Engine, id func(string) (volume.ID, bool), log *slog.Logger) *snapHooks {
	return &snapHooks{
		engine: engine, id: id, log: log, wake: make(chan struct{}, 1),
		busy: map[string]bool{}, owed: map[string]*debt{}, changed: make(chan struct{}),
	}
}

// planSnapHooks are the containers that have something to do around a snapshot of these
// volumes (nil: of any), by their names. One that has processes which cannot be asked just
// now, as when it is paused, is one of them: nobody can say that it is ready.
func planSnapHooks(users []container.Use, id func(name string) (volume.ID, bool), of []volume.ID) (out []hooked) {
	for _, u := range users {
		h := hooked{id: u.Container, name: u.Name, pre: container.PreSnapshotOf(u.Labels), post: container.PostSnapshotOf(u.Labels)}
		uses := slices.ContainsFunc(u.Volumes, func(m container.Mount) bool {
			v, ok := id(m.Volume)
			return of == nil || ok && slices.Contains(of, v)
		})
		if uses && u.State.Live() && (h.pre.Command != nil || h.post.Command != nil) {
			out = append(out, h)
		}
	}
	slices.SortFunc(out, func(a, b hooked) int { return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.id, b.id)) })
	return out
}

// around calls take between what the containers of these volumes do before and after it,
// with the names of those that got ready. It returns what went wrong after, too, in
// sentences; who asked and does not wait any more is not told.
func (h *snapHooks) around(ctx context.Context, of []volume.ID, take func(ctx context.Context, ready []string) error) (ready, after []string, err error) {
	users, err := h.users(ctx)
	if err != nil {
		return nil, nil, noSnapshot(fmt.Sprintf("nobody knows whether containers have to get ready for it: the container engine cannot be asked: %v", err))
	}
	with := planSnapHooks(users, h.id, of)
	if len(with) == 0 {
		return nil, nil, take(ctx, nil)
	}
	if err := h.claim(ctx, with); err != nil {
		return nil, nil, err
	}
	debts := h.owe(with)
	failed := h.before(ctx, with)
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case len(failed) > 0:
		err = noSnapshot(strings.Join(failed, "; "))
	default:
		for _, c := range with {
			if c.pre.Command != nil {
				ready = append(ready, c.name)
			}
		}
		tctx, cancel := context.WithTimeoutCause(ctx, takePatience, volume.Errorf(volume.CodeTimeout, "it was not there after %s, and containers stood still for it", takePatience).
			WithHint("flockctl snapshot list shows whether it came after all"))
		err = take(tctx, ready)
		cancel()
	}
	h.release(with)
	for _, d := range debts {
		select {
		case <-d.tried:
			if text := h.failure(d); text != "" {
				after = append(after, text)
			}
		case <-ctx.Done():
		}
	}
	return ready, after, err
}

func noSnapshot(why string) error {
	return volume.Errorf(volume.CodeRefused, "no snapshot was taken: %s", why).
		WithHint("--no-hooks takes it without, as a loss of power would leave the data")
}

func (h *snapHooks) users(ctx context.Context) ([]container.Use, error) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	return h.engine.Users(ctx)
}

// before has all get ready, at the same time, and says of those that did not why.
func (h *snapHooks) before(ctx context.Context, with []hooked) (failed []string) {
	texts := make([]string, len(with))
	var all sync.WaitGroup
	for i, c := range with {
		if c.pre.Command != nil {
			all.Go(func() { texts[i] = h.do(ctx, c, c.pre) })
		}
	}
	all.Wait()
	return slices.DeleteFunc(texts, func(t string) bool { return t == "" })
}

// do runs one hook and says how it failed; "" when it did not.
func (h *snapHooks) do(ctx context.Context, c hooked, hook container.SnapshotHook) string {
	ctx, cancel := context.WithTimeout(ctx, snapHookPatience)
	defer cancel()
	began := time.Now()
	said, err := h.engine.Exec(ctx, c.id, hook.Command)
	took := time.Since(began)
	if err == nil {
		h.log.Info("a container has done what it does around a snapshot", "container", c.name, "label", hook.Label, "took", took.Round(time.Millisecond))
		return ""
	}
	return snapHookFailed(c.name, hook, said, err, took)
}

// snapHookFailed is a sentence with all that is known: which container, what it ran, how that
// ended and what it said last.
func snapHookFailed(name string, hook container.SnapshotHook, said string, err error, took time.Duration) string {
	text := fmt.Sprintf("container %s: its %s (%s) ", name, hook.Label, sentence(hook.Name, 100))
	var exit *container.ExitError
	if errors.As(err, &exit) {
		said = cmp.Or(exit.Said, said)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), exit != nil && took >= container.SnapshotHookLimit:
		text += fmt.Sprintf("did not end within %s", container.SnapshotHookLimit)
	case exit != nil:
		text += fmt.Sprintf("ended with code %d", exit.Code)
	default:
		return text + "cannot be run: " + sentence(err.Error(), maxHookError)
	}
	if last := lastLine(said); last != "" {
		text += ": " + last
	}
	return text
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return sentence(text[strings.LastIndex(text, "\n")+1:], maxHookError)
}

// sentence is at most n bytes of a text as it may stand in a sentence, and on a terminal.
func sentence(text string, n int) string {
	printable := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
	return head(strings.Join(strings.Fields(printable), " "), n)
}

// claim waits until none of these containers is busy for another snapshot, and what is done
// after that was tried.
func (h *snapHooks) claim(ctx context.Context, with []hooked) error {
	for {
		h.mu.Lock()
		i := slices.IndexFunc(with, func(c hooked) bool { return h.busy[c.id] || h.owed[c.id].untried() })
		if i < 0 {
			for _, c := range with {
				h.busy[c.id] = true
			}
		}
		changed := h.changed
		h.mu.Unlock()
		if i < 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return volume.Errorf(volume.CodeTimeout, "no snapshot was taken: container %s was busy with what is done around another one", with[i].name).WithHint("try again")
		}
	}
}

// release lets the containers go: what is owed to them is paid.
func (h *snapHooks) release(with []hooked) {
	h.mu.Lock()
	for _, c := range with {
		delete(h.busy, c.id)
	}
	h.tell()
	h.mu.Unlock()
	h.ring()
}

// tell wakes who waits for a change. The caller holds mu.
func (h *snapHooks) tell() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *snapHooks) ring() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// owe notes what is to be done after. A debt from before that could not be paid yet is made
// good by the same.
func (h *snapHooks) owe(with []hooked) (debts []*debt) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range with {
		if c.post.Command != nil {
			d := &debt{of: c, tried: make(chan struct{})}
			h.owed[c.id] = d
			debts = append(debts, d)
		}
	}
	return debts
}

func (h *snapHooks) failure(d *debt) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.err == nil {
		return ""
	}
	return d.err.Error()
}

// run pays what is owed until ctx ends.
func (h *snapHooks) run(ctx context.Context) error {
	// A try that has begun goes on for a moment when flockd stops.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	recalls := []time.Time{time.Now(), time.Now().Add(snapHookPatience)}
	for ctx.Err() == nil {
		if len(recalls) > 0 && !time.Now().Before(recalls[0]) {
			if h.recall(ctx) {
				recalls = recalls[1:]
			} else {
				recalls[0] = time.Now().Add(debtPause)
			}
		}
		soonest := h.pay(work, time.Now())
		if len(recalls) > 0 {
			soonest = min(soonest, time.Until(recalls[0]))
		}
		due := time.NewTimer(soonest)
		select {
		case <-h.wake:
		case <-due.C:
		case <-ctx.Done():
		}
		due.Stop()
	}
	late := time.AfterFunc(lastTry, cancel)
	defer late.Stop()
	// What is being got ready for a snapshot is given up now, and then owed.
	for work.Err() == nil && h.untried() {
		h.pay(work, time.Now())
		select {
		case <-h.wake:
		case <-work.Done():
		}
	}
	h.jobs.Wait()
	return nil
}

func (h *snapHooks) untried() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.owed {
		if d.untried() {
			return true
		}
	}
	return false
}

// recall notes as owed what a flockd before this one may not have come to. It says whether
// the engine could be asked.
func (h *snapHooks) recall(ctx context.Context) bool {
	users, err := h.users(ctx)
	if err != nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range planSnapHooks(users, h.id, nil) {
		// Who gets ready already has its debt.
		if c.post.Command != nil && h.owed[c.id] == nil && !h.busy[c.id] {
			h.owed[c.id] = &debt{of: c, tried: make(chan struct{})}
		}
	}
	return true
}

// pay begins to pay what is due, and says in how long something else is.
func (h *snapHooks) pay(ctx context.Context, now time.Time) (soonest time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	soonest = time.Hour
	for id, d := range h.owed {
		switch left := d.next.Sub(now); {
		case h.busy[id]: // whoever is at it rings
		case left > 0:
			soonest = min(soonest, left)
		default:
			h.busy[id] = true
			h.jobs.Go(func() { h.settle(ctx, d) })
		}
	}
	return soonest
}

// settle tries once to pay a debt.
func (h *snapHooks) settle(ctx context.Context, d *debt) {
	text := ""
	if h.runs(ctx, d.of.id) {
		text = h.do(ctx, d.of, d.of.post)
	}
	h.mu.Lock()
	if text == "" {
		d.err = nil
		delete(h.owed, d.of.id)
	} else {
		if d.err == nil || d.err.Error() != text {
			h.log.Warn("a container has not done what it does after a snapshot", "container", d.of.name, "problem", text)
		}
		d.err = errors.New(text)
		d.pause = min(max(2*d.pause, debtPause), debtMost)
		d.next = time.Now().Add(d.pause)
	}
	if d.untried() {
		close(d.tried)
	}
	h.mu.Unlock()
	h.release([]hooked{d.of})
}

// runs says that a container may have processes: only what is known to have none has
// nothing left of what was done before the snapshot.
func (h *snapHooks) runs(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, followInspect)
	defer cancel()
	c, err := h.engine.Inspect(ctx, id)
	if errors.Is(err, container.ErrNotFound) {
		return false
	}
	return err != nil || c.State.Live()
}

// problems says what is still to be done after snapshots and was tried.
func (h *snapHooks) problems() (out []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.owed {
		if d.err != nil {
			out = append(out, d.err.Error()+"; it may still be as it was made ready for a snapshot, and it is tried again")
		}
	}
	slices.Sort(out)
	return out
}
