package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
)

// A zfs command spends most of its time on getting ready: it opens the kernel's device
// and reads what properties and features there are. Only then does it read a channel
// program from its standard input. So while programs are run in a pool one soon after
// the other, the command for the next one is started ahead, and whoever comes with a
// program finds it ready.
//
//	claim ──> hand ──> (it runs, ends, is reaped) ──> next ──> keep ──┬──> claimed
//	                                                                  └──> idle for aheadFor, dead, or closing: killed
//
// It knows its pool by name alone, as any command does, and asks the kernel for it once
// more with the program: one that was exported, or imported again, meanwhile makes no
// difference. It is given one program and ends with it. Once any of a program is handed
// over, how it ended is how the program did, and nothing else runs that program.

const (
	// aheadFor is how long a command waits for a program, and how soon programs must
	// follow one another to be worth one that waits.
	aheadFor = 5 * time.Second
	// aheadMost bounds a program that is handed over: a pipe takes it whole, whatever the
	// command does. With a longer one the start does not matter.
	aheadMost = 32 << 10
	// aheadNice lets it get ready beside other work, a tenth of whose time it gets: what
	// is running now must not wait for the next. Lower still, it could keep for long what
	// it locks in the kernel on the way.
	aheadNice = 10
)

// place is where a command can wait: for programs of one kind in one pool.
type place struct {
	pool  string
	reads bool
}

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
	last    time.Time // a program ended then
	kept    bool      // a command is getting ready, or waits
	standby *standby  // that waits; nil while it is being started
}

// standby is one command that waits for its program.
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

// claim is the command that waits in a place, or nil. Whoever gets one ends it.
func (a *ahead) claim(at place) *standby {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.places[at]
	if w == nil || w.standby == nil {
		return nil
	}
	s := w.standby
	w.standby, w.kept = nil, false
	close(s.claimed)
	return s
}

// next is called when a program has run well. It has another command made ready, if
// they follow one another so soon that it is worth it.
func (a *ahead) next(at place, argv []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.on {
		return
	}
	w := a.places[at]
	if w == nil {
		w = &waiting{}
		a.places[at] = w
	}
	now := time.Now()
	soon := !w.last.IsZero() && now.Sub(w.last) < aheadFor
	w.last = now
	if soon && !w.kept {
		w.kept = true
		a.keepers.Go(func() { a.keep(w, argv) })
	}
}

// keep starts a command and sees to its end, unless somebody claims it.
func (a *ahead) keep(w *waiting, argv []string) {
	s, err := prepare(argv)
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

// prepare starts a command that waits for its program.
func prepare(argv []string) (*standby, error) {
	own, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	ch, err := start(command{op: "ahead", argv: argv, stdin: r})
	r.Close()
	if err != nil {
		w.Close()
		return nil, err
	}
	s := &standby{child: ch, stdin: w, nice: 20 - own, claimed: make(chan struct{})} // the kernel tells 20 less it
	if err := s.prioritize(max(s.nice, aheadNice)); err != nil {
		s.quit()
		return nil, err
	}
	return s, nil
}

func (s *standby) prioritize(nice int) error {
	return syscall.Setpriority(syscall.PRIO_PROCESS, s.child.cmd.Process.Pid, nice)
}

// hand gives a command its program and waits for its end as run does. begun says that
// the command may have got some of it; otherwise it is gone, and the program is still
// to be run.
func (h *Host) hand(ctx context.Context, s *standby, c command) (out []byte, begun bool, err error) {
	if ctx.Err() != nil || len(c.input) > aheadMost {
		s.quit()
		return nil, false, nil
	}
	if err := s.prioritize(s.nice); err != nil {
		if !errors.Is(err, syscall.ESRCH) {
			h.ahead.stop() // one that stays behind everything else is worse than none
		}
		s.quit()
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
