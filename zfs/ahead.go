package zfs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A zfs command spends most of its time on getting ready: it opens the kernel's device
// and reads what properties and features there are. Only then does it read its standard
// input, a channel program or a stream to receive. So while commands with the same
// arguments follow one another, the next one is started ahead, and whoever comes with a
// program or a stream finds it ready.
//
//	claim ──> (it gets its input, runs, ends, is reaped) ──> due ──> keep ──┬──> claimed
//	                                                                        └──> idle for aheadFor, dead, or closing: killed
//
// It is started when nothing of what it helps is under way: on its way it takes locks in
// the kernel that other commands need. What takes a snapshot is followed by what sends it,
// so it is after that, and after what receives one, that those are started which are due.
//
// It knows its pool or dataset by name alone, as any command does, and asks the kernel for
// it only when it has read a program, or the first record of a stream: what was exported,
// renamed, destroyed or made again meanwhile makes no difference. It is given one input
// and ends with it. Once any of that is handed over, how the command ended is the outcome,
// and nothing else gets the same input.

const (
	// aheadFor is how long a command waits for its input, and how soon commands must
	// follow one another to be worth one that waits.
	aheadFor = 5 * time.Second
	// aheadStreams is how many commands wait for streams at most: each is for one dataset,
	// and of those there may be thousands.
	aheadStreams = 8
	// aheadMost bounds a program that is handed over: a pipe takes it whole, whatever the
	// command does. With a longer one the start does not matter.
	aheadMost = 32 << 10
	// aheadNice lets it get ready beside other work, a tenth of whose time it gets: what
	// is running now must not wait for the next. Lower still, it could keep for long what
	// it locks in the kernel on the way.
	aheadNice = 10
)

// place is where a command can wait: its arguments.
type place string

func placeOf(argv []string) place { return place(strings.Join(argv, "\x00")) }

// ahead are the commands that wait, at most one in a place. It starts none unless on.
type ahead struct {
	mu      sync.Mutex
	on      bool
	idle    time.Duration // aheadFor
	places  map[place]*waiting
	closing chan struct{}
	keepers sync.WaitGroup
}

// waiting is what ahead knows of a place.
type waiting struct {
	argv    []string
	last    time.Time // a command ended then
	stream  bool      // that a stream is what commands here wait for
	due     bool      // another is worth it
	kept    bool      // a command is getting ready, or waits
	standby *standby  // that waits; nil while it is being started
}

// standby is one command that waits for its input.
type standby struct {
	child   *child
	stdin   *os.File
	nice    int           // of this process, which it has once it is to run
	claimed chan struct{} // closed when somebody has taken it: that one ends and joins it
}

func newAhead(on bool) *ahead {
	return &ahead{on: on, idle: aheadFor, places: map[place]*waiting{}, closing: make(chan struct{})}
}

// Close ends the commands that Options.Ahead has started and returns when they have
// ended. Host goes on to work, without any.
func (h *Host) Close() {
	h.ahead.stop()
	h.ahead.keepers.Wait()
}

// claim is the command with these arguments that waits, or nil. Whoever gets one ends it.
func (a *ahead) claim(argv []string) *standby {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.places[placeOf(argv)]
	if w == nil || w.standby == nil {
		return nil
	}
	s := w.standby
	w.standby, w.kept = nil, false
	close(s.claimed)
	return s
}

// ended is called when a command has ended well. Another with the same arguments is due,
// if they follow one another so soon that it is worth it.
func (a *ahead) ended(argv []string, stream bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.on {
		return
	}
	now := time.Now()
	maps.DeleteFunc(a.places, func(_ place, w *waiting) bool { return !w.kept && now.Sub(w.last) >= aheadFor })
	w := a.places[placeOf(argv)]
	if w == nil {
		a.places[placeOf(argv)] = &waiting{argv: argv, last: now, stream: stream}
		return
	}
	w.last, w.due = now, true
}

// next starts what is due. It is called when commands have ended that none is to be in
// the way of.
func (a *ahead) next() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.on {
		return
	}
	streams := 0
	for _, w := range a.places {
		if w.kept && w.stream {
			streams++
		}
	}
	for _, w := range a.places {
		if !w.due || w.kept || w.stream && streams >= aheadStreams {
			continue
		}
		if w.stream {
			streams++
		}
		w.due, w.kept = false, true
		a.keepers.Go(func() { a.keep(w) })
	}
}

// keep starts a command and sees to its end, unless somebody claims it.
func (a *ahead) keep(w *waiting) {
	s, err := prepare(w.argv)
	if err != nil {
		// Whoever needs the command will hear why it cannot be started.
		a.mu.Lock()
		w.kept = false
		a.mu.Unlock()
		return
	}
	a.mu.Lock()
	w.standby = s
	a.mu.Unlock()

	idle := time.NewTimer(a.idle)
	defer idle.Stop()
	select {
	case <-s.claimed:
		return
	case <-s.child.ended:
	case <-idle.C:
	case <-a.closing:
	}
	a.mu.Lock()
	mine := w.standby == s
	if mine {
		w.standby, w.kept = nil, false
	}
	a.mu.Unlock()
	if mine {
		s.quit()
	}
}

// stop ends what waits, and has nothing more started.
func (a *ahead) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.on {
		a.on = false
		close(a.closing)
	}
}

// prepare starts a command that waits for its input.
func prepare(argv []string) (*standby, error) {
	nice, err := commandNice()
	if err != nil {
		return nil, err
	}
	r, w, err := streamPipe()
	if err != nil {
		return nil, err
	}
	ch, err := start(command{op: "ahead", argv: argv, stdin: r})
	r.Close()
	if err != nil {
		w.Close()
		return nil, err
	}
	s := &standby{child: ch, stdin: w, nice: nice, claimed: make(chan struct{})}
	if err := s.prioritize(max(s.nice, aheadNice)); err != nil {
		s.quit()
		return nil, err
	}
	return s, nil
}

func (s *standby) prioritize(nice int) error {
	return s.child.prioritize(nice)
}

// ready says that a command which was claimed lives and has our priority. One that does
// not is gone, and another is to be run in its place.
func (h *Host) ready(s *standby) bool {
	select {
	case <-s.child.ended:
		s.quit()
		return false
	default:
	}
	err := s.prioritize(s.nice)
	if err == nil {
		return true
	}
	if !errors.Is(err, syscall.ESRCH) {
		h.ahead.stop() // one that stays behind everything else is worse than none
	}
	s.quit()
	return false
}

// hand gives a command its program and waits for its end as run does. begun says that
// the command may have got some of it; otherwise it is gone, and the program is still
// to be run.
func (h *Host) hand(ctx context.Context, s *standby, c command) (out []byte, begun bool, err error) {
	if ctx.Err() != nil || len(c.input) > aheadMost {
		s.quit()
		return nil, false, nil
	}
	if !h.ready(s) {
		return nil, false, nil
	}
	began := time.Now()
	n, err := s.stdin.WriteString(c.input)
	if n == 0 {
		s.quit() // it has died
		return nil, false, nil
	}
	defer h.observed(c, began, &err)
	s.child.op = c.op
	if err == nil {
		err = s.stdin.Close()
	}
	if err != nil {
		s.quit()
		return nil, true, &Error{Op: c.op, Args: c.argv, Err: fmt.Errorf("handing over the program: %w", err)}
	}
	out, err = s.child.end(ctx)
	return out, true, err
}

// quit ends a command that is not to run anything more. Its standard input stays open
// until it is gone: at the end of that it would run what it has, be it nothing.
func (s *standby) quit() {
	signal(s.child.cmd, syscall.SIGKILL)
	<-s.child.ended
	s.stdin.Close()
}
