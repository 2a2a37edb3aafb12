package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/terminal"
	"github.com/flocker-io/flocker/internal/volume"
)

// Whatever takes long shows how far it is: on a terminal in a line, or some, that come and go, in a
// pipe in lines one after the other. It is quiet with --quiet and --json.

// watched is something that goes on in the cluster, whoever looks at it.
type watched[T any] struct {
	pause time.Duration // between two looks
	most  time.Duration // how long it is watched; 0: as long as it takes
	// first: before it was looked at nothing goes on, so that is done at once.
	first bool
	line  func(T) string
	// step is line for what goes on in phases; nil: it does not.
	step func(T) step
	// over says that it is, and how it ended.
	over func(T) (bool, error)
	look func(context.Context, T) (T, error)
	// late is the error when it took longer than most, and left when a person wants to watch no
	// longer; left may still do something about it.
	late func(T) error
	left func(context.Context, T) (T, error)
}

// watch shows how something goes on until it is over, and returns it as it was seen last. That
// flockd cannot be asked, as when it starts anew, ends nothing: what is watched goes on without it.
func watch[T any](ctx context.Context, a *app, now T, w watched[T]) (T, error) {
	wctx, cancel := ctx, context.CancelFunc(func() {})
	if w.most > 0 {
		wctx, cancel = context.WithTimeout(ctx, w.most)
	}
	defer cancel()
	p := a.newProgress()
	defer p.end()
	for {
		pause := w.pause
		if w.first {
			w.first, pause = false, 0
		} else {
			p.step(w.at(now))
		}
		if over, err := w.over(now); over {
			return now, err
		}
		select {
		case <-wctx.Done():
			p.end()
			if ctx.Err() == nil {
				return now, w.late(now)
			}
			return w.left(context.WithoutCancel(ctx), now)
		case <-time.After(pause):
		}
		next, err := timed(a, wctx, func(ctx context.Context) (T, error) { return w.look(ctx, now) })
		switch code := volume.CodeOf(err); {
		case err == nil:
			now = next
		case code == volume.CodeUnavailable, code == volume.CodeTimeout, code == volume.CodeNoQuorum, wctx.Err() != nil:
		default:
			return now, err
		}
	}
}

func (w watched[T]) at(now T) step {
	if w.step != nil {
		return w.step(now)
	}
	return step{text: w.line(now)}
}

// watchFor is how long somebody who gave no --timeout watches.
func (a *app) watchFor(patience time.Duration) time.Duration {
	if a.patient {
		return patience
	}
	return a.timeout
}

// step is where something is that goes on in phases.
type step struct {
	// phase that it is in: its line stays on a terminal when it is over, and the next one's stands
	// below. "": none of which anything should stay.
	phase string
	what  string // what stays of it
	// counts says that text changes with each look, which is nothing to tell a pipe each time.
	counts bool
	text   string
}

// progressLine is one line of progress.
type progressLine struct {
	a     *app
	shown string
	at    step      // whose line that is
	began time.Time // its phase
	said  time.Time
}

func (a *app) newProgress() *progressLine { return &progressLine{a: a} }

// show shows a line, if it is another one than the last, in place of that where there is a terminal.
func (p *progressLine) show(text string) { p.step(step{text: text}) }

// step shows where something is, in the same way within a phase.
func (p *progressLine) step(s step) {
	if s.text == "" || s.text == p.shown || p.a.asJSON || p.a.quiet {
		return
	}
	if s.phase != p.at.phase {
		p.end()
	}
	if s.phase != "" {
		now := p.a.now()
		if p.at.phase == "" {
			p.began = now
		} else if !p.a.progress && s.counts && s.what == p.at.what && now.Sub(p.said) < meanwhileEvery*meanwhileLines {
			return
		}
		p.said = now
	}
	p.at, p.shown = s, s.text
	if !p.a.progress {
		p.a.say("%s\n", strings.ReplaceAll(s.text, "\n", " "))
		return
	}
	fmt.Fprintf(p.a.stderr, "\r\x1b[K%s", p.a.fitting(s.text))
}

// end takes the line away; of a phase it says how long that was.
func (p *progressLine) end() {
	switch {
	case !p.a.progress || p.shown == "":
	case p.at.phase == "":
		fmt.Fprint(p.a.stderr, "\r\x1b[K")
	default:
		text := p.at.what
		if d := p.a.now().Sub(p.began); d >= time.Second {
			text += ", for " + age(d)
		}
		fmt.Fprintf(p.a.stderr, "\r\x1b[K%s\n", terminal.Visible(text))
	}
	p.at, p.shown = step{}, ""
}

// fitting is a line that does not go on in the next one of the terminal, which would stay.
func (a *app) fitting(line string) string {
	line = terminal.Visible(line)
	if a.width == nil {
		return line
	}
	return cutLine(line, max(0, a.width()-1))
}

// What waits for one call asks how far it is each second, and without a terminal it says so each
// tenth time.
const (
	meanwhileEvery = time.Second
	meanwhileLines = 10
)

// meanwhile shows until stop what lines says; nothing while it says nothing.
func (a *app) meanwhile(ctx context.Context, lines func(context.Context) []string) (stop func()) {
	if a.quiet || a.asJSON {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	all.Go(func() {
		defer a.draw(nil)
		tick := time.NewTicker(meanwhileEvery)
		defer tick.Stop()
		shown := ""
		for n := 1; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if !a.progress && n%meanwhileLines != 0 {
				continue
			}
			now := lines(ctx)
			if len(now) == 0 || ctx.Err() != nil {
				continue
			}
			if a.progress {
				a.draw(now)
			} else if text := strings.Join(now, "; "); text != shown {
				a.say("%s\n", text)
				shown = text
			}
		}
	})
	return func() { cancel(); all.Wait() }
}

// draw has lines come in place of those that are drawn; none: these go.
func (a *app) draw(lines []string) {
	a.drawing.Lock()
	defer a.drawing.Unlock()
	a.undraw()
	if len(lines) == 0 {
		a.drawn = nil
		return
	}
	a.drawn = &picture{w: a.stderr, fit: a.fitting}
	a.drawn.draw(lines)
}

// waiting shows for how long something has been going on of which nothing else is known.
func (a *app) waiting(ctx context.Context, what string) (stop func()) {
	began := a.now()
	return a.meanwhile(ctx, func(context.Context) []string {
		return []string{fmt.Sprintf("%s, for %s", what, age(a.now().Sub(began)))}
	})
}

// meter shows how much is done of something whose size is known, or guessed.
type meter struct {
	done, before atomic.Int64
	stop         func()
}

// meter begins one of so many bytes; 0: nobody knows how many they will be.
func (a *app) meter(ctx context.Context, what string, total int64) *meter {
	p, began := &meter{}, a.now()
	p.stop = a.meanwhile(ctx, func(context.Context) []string {
		return []string{what + ": " + far(p.done.Load(), p.before.Load(), total, a.now().Sub(began))}
	})
	return p
}

func (p *meter) more(n int64) { p.done.Add(n) }

func (p *meter) at(n int64) { p.done.Store(n) }

// skip counts what was done before, which says nothing of how fast the rest goes.
func (p *meter) skip(n int64) { p.before.Add(n); p.done.Add(n) }

// end takes it away.
func (p *meter) end() { p.stop() }

// far is how far something is after a time, how fast it goes, and how long it will take. Some of it was
// done before.
func far(done, before, total int64, took time.Duration) string {
	text := size(done)
	if total > 0 {
		text = bar(done, max(done, total))
	}
	if took < time.Second {
		return text
	}
	perSecond := int64(float64(done-before) / took.Seconds())
	text += fmt.Sprintf(", %s/s", size(perSecond))
	if left, ok := timeLeft(total-done, float64(perSecond)); ok {
		text += ", " + left + " left"
	}
	return text
}

// making shows what becomes of a volume that is being made.
func (a *app) making(ctx context.Context, name string) (stop func()) {
	began := a.now()
	return a.meanwhile(ctx, func(ctx context.Context) []string {
		v, err := a.client.Volume(ctx, name)
		if err != nil || v.Phase != "creating" && v.Health != api.HealthCreating {
			return []string{fmt.Sprintf("%s: waiting for %s", name, age(a.now().Sub(began)))}
		}
		return []string{fmt.Sprintf("%s: %s on %s, for %s", name, because(string(v.Health), v.Reason), v.Primary, age(a.now().Sub(began)))}
	})
}

// counted counts what is read through it.
type counted struct {
	io.Reader
	bytes atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.bytes.Add(int64(n))
	return n, err
}
