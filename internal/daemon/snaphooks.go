package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
)

const (
	// snapHookPatience is a little more than the container itself gives a hook: what was
	// done before is then over when what is done after begins.
	snapHookPatience = container.SnapshotHookLimit + 3*time.Second
	// takePatience is how long containers stand still, at most, for the snapshot itself: of a pool
	// that hangs none comes. lateWord is how long after that its refusal is waited for, which says
	// more than that the time is over.
	takePatience = 30 * time.Second
	lateWord     = 3 * time.Second
	// debtPause is the first pause after what is done after a snapshot has failed, debtMost
	// the longest.
	debtPause = 5 * time.Second
	debtMost  = time.Minute
	// lastTry is how long flockd, when it stops, gives what is still to be done.
	lastTry = 5 * time.Second
	// stopPatience is how long a container that is to be stopped for a move may still stand
	// still for a snapshot, and stopBar how long after that it gets ready for no other one: it
	// is stopped by then, or stays.
	stopPatience = snapHookPatience + lastTry
	stopBar      = time.Minute
	// recallPatience is how long after the start of flockd a container may come to run in which
	// the one before left something undone: after a boot they do when their volumes are there.
	recallPatience = 10 * time.Minute
)

// fileSnapHooks has the IDs of the containers that are as they were made ready for a snapshot, or
// may be.
const fileSnapHooks = "snapshot-hooks.json"

// noteDisk keeps files of a node, as cluster.Disk.
type noteDisk interface {
	Read(name string) ([]byte, error)
	Write(name string, data []byte) error
}

// snapHooks has containers get ready for snapshots of people, and go on after them.
//
// What is done after is a debt from before the first command runs: it is paid whatever
// becomes of the snapshot and of who asked for it, and tried until it succeeds or the
// container does not run any more. It is written down before that command runs, too: a flockd that
// is killed in between leaves its debts to the next, which pays them at once, and once more when a
// command that the one before has left running is over. Where nothing is written down at all, as
// by a version that did not, each container here may be owed something; what cannot be done in
// those is tried twice, since most likely there was nothing to do.
//
// The end of a wait for a command is not the command's end. So who asks and goes away does
// not end what containers get ready with: that is waited for, and then let go. Where nobody
// knows when a command ended, what is done after it is done at once, and again when the
// command must be over.
//
// A container gets ready for one snapshot at a time. Else the end of one would let it go on
// while another is being taken.
type snapHooks struct {
	engine container.Engine
	disk   noteDisk
	id     func(name string) (volume.ID, bool)
	log    *slog.Logger
	wake   chan struct{}
	jobs   sync.WaitGroup

	mu      sync.Mutex
	busy    map[string]bool      // containers, by ID, that get ready or go on
	owed    map[string]*debt     // by container
	barred  map[string]time.Time // containers that are about to be stopped, until when that holds
	changed chan struct{}        // closed at the next change of busy and owed
	left    map[string]bool      // containers, by ID, that the flockd before this one has noted, and that have not been seen to run
	guess   bool                 // it has noted nothing, and any may be owed something
	asked   bool                 // the engine was asked for those
	ending  bool                 // no job begins any more
	quit    chan struct{}        // closed then

	noting sync.Mutex
	noted  []string // what is written down; nil: nobody knows. With noting.
}

// debt is what is to be done in a container after a snapshot.
type debt struct {
	of    hooked
	tried chan struct{} // closed after the first try
	bad   hookFailure   // of the last one
	next  time.Time
	pause time.Duration
	// until is when what is done before is over for sure, and what was done after and nobody
	// could wait for; what is done after is done once more then.
	until time.Time
	guess bool // there may be none
}

// hooked is a container with something to do before or after a snapshot.
type hooked struct {
	id, name  string
	volumes   []volume.ID // of those that are asked for
	since     string      // which run of it this is, see container.Captured
	pre, post container.SnapshotHook
}

// hookFailure says how a hook failed, in a sentence that anybody may read. Not everybody may
// read what it said last, which only who asked for the snapshot is told. The zero value: it
// did not fail.
type hookFailure struct{ text, said string }

func (f hookFailure) full() string {
	if f.said == "" {
		return f.text
	}
	return f.text + ": " + f.said
}

// unsettled says that something which belongs to a snapshot may be going on in the container, or
// begin: another one would be disturbed by it.
func (d *debt) unsettled(now time.Time) bool { return d.untried() || d != nil && now.Before(d.until) }

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

func newSnapHooks(engine container.Engine, disk noteDisk, id func(string) (volume.ID, bool), log *slog.Logger) *snapHooks {
	return &snapHooks{
		engine: engine, disk: disk, id: id, log: log, wake: make(chan struct{}, 1),
		busy: map[string]bool{}, owed: map[string]*debt{}, barred: map[string]time.Time{}, left: map[string]bool{},
		changed: make(chan struct{}), quit: make(chan struct{}),
	}
}

// planSnapHooks are the containers that have something to do around a snapshot of these
// volumes (nil: of any), by their names. One that has processes which cannot be asked just
// now, as when it is paused, is one of them: nobody can say that it is ready. Of unknown nobody
// can say whether they are: they use a volume that this node does not know, as when it has not
// heard yet of one that was just made.
func planSnapHooks(users []container.Use, id func(name string) (volume.ID, bool), of []volume.ID) (out []hooked, unknown []string) {
	for _, u := range users {
		strange := ""
		h := hooked{id: u.Container, name: u.Name, pre: container.PreSnapshotOf(u.Labels), post: container.PostSnapshotOf(u.Labels)}
		uses := of == nil && len(u.Volumes) > 0
		for _, m := range u.Volumes {
			if v, ok := id(m.Volume); !ok {
				strange = m.Volume
			} else if slices.Contains(of, v) {
				uses, h.volumes = true, append(h.volumes, v)
			}
		}
		switch {
		case !u.State.Live() || h.pre.Command == nil && h.post.Command == nil:
		case uses:
			out = append(out, h)
		case strange != "":
			unknown = append(unknown, fmt.Sprintf("container %s uses %q, which this node does not know", u.Name, strange))
		}
	}
	slices.Sort(unknown)
	slices.SortFunc(out, func(a, b hooked) int { return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.id, b.id)) })
	return out, unknown
}

// around calls take between what the containers of these volumes do before and after it,
// with those that got ready. It returns what went wrong after, too, in sentences; who asked
// and does not wait any more is not told. When the time of ctx is over take is not waited for any
// more, and the containers go on: zfs in a pool that hangs cannot be ended. Whatever it still does
// must not count on them.
func (h *snapHooks) around(ctx context.Context, of []volume.ID, take func(ctx context.Context, ready []replicate.Prepared) error) (names, after []string, err error) {
	with, err := h.claimAll(ctx, of)
	if err != nil {
		return nil, nil, err
	}
	if len(with) == 0 {
		return nil, nil, take(ctx, nil)
	}
	if err := h.note(); err != nil {
		h.release(with)
		return nil, nil, noSnapshot(fmt.Sprintf("should flockd be killed, the next one would not know that containers got ready for it: %v", err))
	}
	debts := h.owe(with)
	over := make(chan []string, 1)
	if !h.begin(func() { over <- h.before(with) }) {
		h.release(with)
		return nil, nil, stopping()
	}
	var failed []string
	select {
	case failed = <-over:
	case <-ctx.Done():
		last := func() { <-over; h.release(with) }
		if !h.begin(last) {
			last() // nothing is waited for any more
		}
		return nil, nil, context.Cause(ctx)
	}
	if ctx.Err() == nil && len(failed) == 0 {
		failed = h.others(ctx, of, with)
	}
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case len(failed) > 0:
		err = noSnapshot(strings.Join(failed, "; "))
	default:
		var ready []replicate.Prepared
		for _, c := range with {
			if c.pre.Command != nil {
				names = append(names, c.name)
				ready = append(ready, replicate.Prepared{Container: c.name, Volumes: c.volumes})
			}
		}
		err = h.shoot(ctx, func(ctx context.Context) error { return take(ctx, ready) })
	}
	h.release(with)
	for _, d := range debts {
		select {
		case <-d.tried:
			if bad := h.failure(d); bad.text != "" {
				after = append(after, bad.full())
			}
		case <-ctx.Done():
		}
	}
	return names, after, err
}

// shoot calls take and waits for it as long as containers may stand still.
func (h *snapHooks) shoot(ctx context.Context, take func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, takePatience, volume.Errorf(volume.CodeTimeout, "it was not there after %s, and containers stood still for it", takePatience).
		WithHint("flockctl snapshot list shows whether it came after all"))
	taken := make(chan error, 1)
	if !h.begin(func() { defer cancel(); taken <- take(ctx) }) {
		cancel()
		return stopping()
	}
	select {
	case err := <-taken:
		return err
	case <-ctx.Done():
	}
	late := time.NewTimer(lateWord)
	defer late.Stop()
	select {
	case err := <-taken:
		return err
	case <-late.C:
		return context.Cause(ctx)
	}
}

func stopping() error {
	return volume.Errorf(volume.CodeUnavailable, "no snapshot was taken: flockd is being stopped").WithHint("try again")
}

// begin runs f as a job of its own, unless flockd is being stopped.
func (h *snapHooks) begin(f func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ending {
		h.jobs.Go(f)
	}
	return !h.ending
}

// claimAll claims the containers that have something to do around a snapshot of these
// volumes. They are looked for again once they are claimed: that may have taken minutes.
func (h *snapHooks) claimAll(ctx context.Context, of []volume.ID) ([]hooked, error) {
	for {
		with, err := h.plan(ctx, of)
		if err != nil || len(with) == 0 {
			return nil, err
		}
		if err := h.claim(ctx, with); err != nil {
			return nil, err
		}
		now, err := h.plan(ctx, of)
		same := slices.EqualFunc(with, now, func(a, b hooked) bool { return a.id == b.id })
		if err == nil && same {
			return now, nil
		}
		h.release(with)
		if err != nil {
			return nil, err
		}
	}
}

// plan asks the engine for planSnapHooks, and for which runs these are.
func (h *snapHooks) plan(ctx context.Context, of []volume.ID) ([]hooked, error) {
	users, err := h.users(ctx)
	if err != nil {
		return nil, unasked(err)
	}
	with, unknown := planSnapHooks(users, h.id, of)
	if len(unknown) > 0 {
		return nil, noSnapshot("nobody knows whether these have to get ready for it: " + strings.Join(unknown, "; "))
	}
	for i := range with {
		c, err := h.inspect(ctx, with[i].id)
		if err != nil && !errors.Is(err, container.ErrNotFound) {
			return nil, unasked(err)
		}
		with[i].since = c.Since
	}
	return with, nil
}

func unasked(err error) error {
	return noSnapshot(fmt.Sprintf("nobody knows whether containers have to get ready for it: the container engine cannot be asked: %v", err))
}

// others says which containers are not what they were when these got ready: what got ready
// then is gone, or something writes that did not get ready.
func (h *snapHooks) others(ctx context.Context, of []volume.ID, with []hooked) (out []string) {
	now, err := h.plan(ctx, of)
	if err != nil {
		return []string{"nobody knows whether containers that got ready still are: " + err.Error()}
	}
	find := func(in []hooked, c hooked) bool {
		return slices.ContainsFunc(in, func(o hooked) bool { return o.id == c.id && o.since == c.since })
	}
	for _, c := range with {
		if !find(now, c) {
			out = append(out, fmt.Sprintf("container %s ended or was started again while it was got ready for", c.name))
		}
	}
	for _, c := range now {
		if !slices.ContainsFunc(with, func(o hooked) bool { return o.id == c.id }) {
			out = append(out, fmt.Sprintf("container %s was started while others got ready", c.name))
		}
	}
	return out
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

// before has all get ready, at the same time, and says of those that did not why. Only the
// end of flockd ends its waiting: see snapHooks.
func (h *snapHooks) before(with []hooked) (failed []string) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	texts := make([]string, len(with))
	var all sync.WaitGroup
	for i, c := range with {
		if c.pre.Command != nil {
			all.Go(func() {
				began := time.Now()
				bad, ended := h.do(ctx, c, c.pre)
				if texts[i] = bad.full(); !ended {
					h.linger(c.id, began.Add(snapHookPatience))
				}
			})
		}
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-h.quit:
		cancel()
		<-done
	}
	return slices.DeleteFunc(texts, func(t string) bool { return t == "" })
}

// linger notes that what is done before may go on in a container until then.
func (h *snapHooks) linger(id string, until time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.owed[id]; d != nil {
		d.until = until
	}
}

// do runs one hook. It says how it failed, and whether it has ended, which one that could
// not be waited for may not have.
func (h *snapHooks) do(ctx context.Context, c hooked, hook container.SnapshotHook) (bad hookFailure, ended bool) {
	ctx, cancel := context.WithTimeout(ctx, snapHookPatience)
	defer cancel()
	began := time.Now()
	said, err := h.engine.Exec(ctx, c.id, hook.Command)
	took := time.Since(began)
	if err == nil {
		h.log.Info("a container has done what it does around a snapshot", "container", c.name, "label", hook.Label, "took", took.Round(time.Millisecond))
		return hookFailure{}, true
	}
	var exit *container.ExitError
	return snapHookFailed(c.name, hook, said, err, took), errors.As(err, &exit) || errors.As(err, &container.NotBegun{})
}

// snapHookFailed says which container, which of its labels, how that ended and what it said
// last. What the label says is left out: such commands have passwords in them.
func snapHookFailed(name string, hook container.SnapshotHook, said string, err error, took time.Duration) hookFailure {
	text := fmt.Sprintf("container %s: its %s ", name, hook.Label)
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
		return hookFailure{text: text + "cannot be run: " + sentence(err.Error(), maxHookError)}
	}
	return hookFailure{text, lastLine(said)}
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

// claim waits until none of these containers is busy for another snapshot, what is done
// after that was tried, and nothing of it may still go on.
func (h *snapHooks) claim(ctx context.Context, with []hooked) error {
	for {
		h.mu.Lock()
		now := time.Now()
		maps.DeleteFunc(h.barred, func(_ string, until time.Time) bool { return !until.After(now) })
		if i := slices.IndexFunc(with, func(c hooked) bool { return !h.barred[c.id].IsZero() }); i >= 0 {
			h.mu.Unlock()
			return volume.Errorf(volume.CodeUnavailable, "no snapshot was taken: container %s is about to be stopped, for a move or a rollback", with[i].name).WithHint("try again when that is over")
		}
		i := slices.IndexFunc(with, func(c hooked) bool {
			return !h.asked || h.left[c.id] || h.busy[c.id] || h.owed[c.id].unsettled(now)
		})
		again := time.Hour
		for _, c := range with {
			if d := h.owed[c.id]; i < 0 {
				h.busy[c.id] = true
			} else if d != nil && now.Before(d.until) {
				again = min(again, d.until.Sub(now))
			}
		}
		changed := h.changed
		h.mu.Unlock()
		if i < 0 {
			return nil
		}
		later := time.NewTimer(again)
		select {
		case <-changed:
			later.Stop()
		case <-later.C:
		case <-ctx.Done():
			later.Stop()
			return volume.Errorf(volume.CodeTimeout, "no snapshot was taken: container %s was busy with what is done around another one", with[i].name).WithHint("try again")
		}
	}
}

// letGo waits until containers that are about to be stopped do not stand still for a snapshot,
// for one that does neither obeys nor answers what is done before its stop. They get ready
// for no other one meanwhile. It does not wait for ever.
func (h *snapHooks) letGo(ctx context.Context, ids []string) {
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	for {
		h.mu.Lock()
		waits := false
		for _, id := range ids {
			h.barred[id] = time.Now().Add(stopBar)
			waits = waits || h.busy[id] || h.owed[id].untried()
		}
		changed := h.changed
		h.mu.Unlock()
		if !waits {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			h.log.Warn("containers are stopped while they may stand still for a snapshot", "err", context.Cause(ctx))
			return
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
			if was := h.owed[c.id]; was != nil {
				d.until = was.until
			}
			h.owed[c.id] = d
			debts = append(debts, d)
		}
	}
	return debts
}

func (h *snapHooks) failure(d *debt) hookFailure {
	h.mu.Lock()
	defer h.mu.Unlock()
	return d.bad
}

// run pays what is owed until ctx ends.
func (h *snapHooks) run(ctx context.Context) error {
	// A try that has begun goes on for a moment when flockd stops.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	h.load()
	began, recall := time.Now(), time.Now() // zero: nothing is left to recall
	for ctx.Err() == nil {
		if !recall.IsZero() && !time.Now().Before(recall) {
			if recall = time.Now().Add(debtPause); h.recall(ctx, time.Since(began) > recallPatience) {
				recall = time.Time{}
			}
		}
		soonest := h.pay(work, time.Now())
		if !recall.IsZero() {
			soonest = min(soonest, time.Until(recall))
		}
		due := time.NewTimer(soonest)
		select {
		case <-h.wake:
		case <-due.C:
		case <-ctx.Done():
		}
		due.Stop()
	}
	h.mu.Lock()
	h.ending = true
	h.mu.Unlock()
	close(h.quit)
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

// load reads what the flockd before this one has noted.
func (h *snapHooks) load() {
	var ids []string
	b, err := h.disk.Read(fileSnapHooks)
	if err == nil {
		err = json.Unmarshal(b, &ids)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.log.Error("what is to be done after snapshots may be lost, and is done in all containers", "err", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guess = err != nil
	for _, id := range ids {
		h.left[id] = true
	}
}

// note writes down which containers are claimed for a snapshot, or owed what is done after one. It
// comes before the first command in them.
func (h *snapHooks) note() error {
	h.noting.Lock()
	defer h.noting.Unlock()
	h.mu.Lock()
	all := map[string]bool{}
	maps.Copy(all, h.left)
	maps.Copy(all, h.busy)
	for id := range h.owed {
		all[id] = true
	}
	h.mu.Unlock()
	ids := append([]string{}, slices.Sorted(maps.Keys(all))...)
	if h.noted != nil && slices.Equal(ids, h.noted) {
		return nil
	}
	h.noted = nil
	b, err := json.Marshal(ids)
	if err == nil {
		err = h.disk.Write(fileSnapHooks, b)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", fileSnapHooks, err)
	}
	h.noted = ids
	return nil
}

// recall makes debts of what a flockd before this one has noted and may not have come to. It is
// called again until done. At last, what has not come to run by then is given up.
func (h *snapHooks) recall(ctx context.Context, last bool) (done bool) {
	users, err := h.users(ctx)
	if err != nil {
		return false
	}
	h.mu.Lock()
	until := time.Now().Add(snapHookPatience)
	all, _ := planSnapHooks(users, h.id, nil)
	for _, c := range all {
		if c.post.Command != nil && (h.guess || h.left[c.id]) && h.owed[c.id] == nil {
			h.owed[c.id] = &debt{of: c, tried: make(chan struct{}), until: until, guess: h.guess}
		}
		delete(h.left, c.id)
	}
	maps.DeleteFunc(h.left, func(id string, _ bool) bool {
		return last || !slices.ContainsFunc(users, func(u container.Use) bool { return u.Container == id })
	})
	h.asked, h.guess = true, false
	done = len(h.left) == 0
	h.tell()
	h.mu.Unlock()
	h.noteLater()
	return done
}

// noteLater is note where what is written down already does no harm: at worst, something is done
// once more.
func (h *snapHooks) noteLater() {
	if err := h.note(); err != nil {
		h.log.Error("what was done after a snapshot is done again by the next flockd", "err", err)
	}
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
	var bad hookFailure
	runs := h.runs(ctx, d.of.id)
	ended, began := true, time.Now()
	if runs {
		bad, ended = h.do(ctx, d.of, d.of.post)
	}
	h.mu.Lock()
	if over := began.Add(snapHookPatience); !ended && d.until.Before(over) {
		d.until = over
	}
	switch {
	case !runs && d.untried() && d.of.pre.Command != nil:
		// Its processes stand still no more, but what they left in a file may have others do so.
		d.bad = hookFailure{text: fmt.Sprintf("container %s ended before its %s; what it left in its volumes for the snapshot is still there", d.of.name, d.of.post.Label)}
		h.log.Warn("a container has not done what it does after a snapshot", "container", d.of.name, "problem", d.bad.text)
		delete(h.owed, d.of.id)
	case bad.text == "" && runs && time.Now().Before(d.until):
		d.bad, d.pause, d.next = hookFailure{}, 0, d.until
	case bad.text == "":
		d.bad = hookFailure{}
		delete(h.owed, d.of.id)
	case d.guess && !time.Now().Before(d.until):
		h.log.Warn("what a container does after a snapshot has failed; most likely there was none", "container", d.of.name, "problem", bad.text)
		delete(h.owed, d.of.id)
	default:
		if d.bad.text != bad.text {
			h.log.Warn("a container has not done what it does after a snapshot", "container", d.of.name, "problem", bad.text)
		}
		d.bad = bad
		d.pause = min(max(2*d.pause, debtPause), debtMost)
		d.next = time.Now().Add(d.pause)
	}
	if d.untried() {
		close(d.tried)
	}
	h.mu.Unlock()
	h.release([]hooked{d.of})
	h.noteLater()
}

// runs says that a container may have processes: only what is known to have none has
// nothing left of what was done before the snapshot.
func (h *snapHooks) runs(ctx context.Context, id string) bool {
	c, err := h.inspect(ctx, id)
	if errors.Is(err, container.ErrNotFound) {
		return false
	}
	return err != nil || c.State.Live()
}

func (h *snapHooks) inspect(ctx context.Context, id string) (container.Captured, error) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	return h.engine.Inspect(ctx, id)
}

// problems says what is still to be done after snapshots and was tried.
func (h *snapHooks) problems() (out []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.owed {
		if d.bad.text != "" && !d.guess {
			out = append(out, d.bad.text+"; it may still be as it was made ready for a snapshot, and it is tried again")
		}
	}
	slices.Sort(out)
	return out
}
