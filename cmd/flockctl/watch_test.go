package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/api/apitest"
	"github.com/flocker-io/flocker/internal/volume"
)

func TestWatch(t *testing.T) {
	bad, late, left, failed := errors.New("bad"), errors.New("late"), errors.New("left"), errors.New("failed")
	away := volume.Errorf(volume.CodeUnavailable, "flockd is being restarted")
	slow := volume.Errorf(volume.CodeTimeout, "no answer")
	leaderless := volume.Errorf(volume.CodeNoQuorum, "nobody leads")
	denied := volume.Errorf(volume.CodeDenied, "not you")
	for _, tt := range []struct {
		name      string
		looks     []error // what each look says; nil: a step further
		most      time.Duration
		interrupt time.Duration
		first     bool
		ended     error // how it ends after three steps
		want      error
		at        int           // how far it was
		took      time.Duration // a look takes no time
		lines     string
	}{
		{name: "it goes well", at: 3, took: 3 * time.Second, lines: "step 0|step 1|step 2|step 3|"},
		{name: "it fails", ended: failed, want: failed, at: 3, took: 3 * time.Second, lines: "step 0|step 1|step 2|step 3|"},
		{name: "flockd is away", looks: []error{nil, away, slow}, at: 3, took: 5 * time.Second, lines: "step 0|step 1|step 2|step 3|"},
		{name: "nobody leads", looks: []error{leaderless}, at: 3, took: 4 * time.Second, lines: "step 0|step 1|step 2|step 3|"},
		{name: "it is refused", looks: []error{nil, denied}, want: denied, at: 1, took: 2 * time.Second, lines: "step 0|step 1|"},
		{name: "a bug", looks: []error{bad}, want: bad, at: 0, took: time.Second, lines: "step 0|"},
		{name: "too long", most: 1500 * time.Millisecond, want: late, at: 1, took: 1500 * time.Millisecond, lines: "step 0|step 1|"},
		{name: "interrupted", interrupt: 2500 * time.Millisecond, most: time.Hour, want: left, at: 2, took: 2500 * time.Millisecond, lines: "step 0|step 1|step 2|"},
		{name: "begun by the first look", first: true, at: 3, took: 2 * time.Second, lines: "step 1|step 2|step 3|"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out strings.Builder
				a := &app{world: world{stderr: &out, now: time.Now}, timeout: defaultTimeout}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.interrupt > 0 {
					time.AfterFunc(tt.interrupt, cancel)
				}
				began := time.Now()
				at, err := watch(ctx, a, 0, watched[int]{
					pause: time.Second, most: tt.most, first: tt.first,
					line: func(n int) string { return fmt.Sprintf("step %d", n) },
					over: func(n int) (bool, error) { return n == 3, tt.ended },
					look: func(_ context.Context, n int) (int, error) {
						if len(tt.looks) > 0 {
							err := tt.looks[0]
							tt.looks = tt.looks[1:]
							if err != nil {
								return -1, err
							}
						}
						return n + 1, nil
					},
					late: func(int) error { return late },
					left: func(ctx context.Context, n int) (int, error) {
						if ctx.Err() != nil {
							t.Error("who is interrupted cannot do anything about it any more")
						}
						return n, left
					},
				})
				lines := strings.ReplaceAll(out.String(), "\n", "|")
				if at != tt.at || err != tt.want || time.Since(began) != tt.took || lines != tt.lines {
					t.Errorf("got %d, %v after %s, with %q; want %d, %v after %s, with %q", at, err, time.Since(began), lines, tt.at, tt.want, tt.took, tt.lines)
				}
			})
		})
	}
}

// A look may hang: it has the time that any call has, and what ends it is then the end of that
// alone, or of the watching, and no failure of the look.
func TestWatchHangingLook(t *testing.T) {
	late, left := errors.New("late"), errors.New("left")
	for _, tt := range []struct {
		name      string
		most      time.Duration
		interrupt time.Duration
		hangs     int // so many looks
		want      error
		at        int
		took      time.Duration
	}{
		{name: "once", hangs: 1, at: 3, took: defaultTimeout + 4*time.Second},
		{name: "until it has taken too long", most: 5 * time.Second, hangs: 9, want: late, took: 5 * time.Second},
		{name: "until who watches goes", interrupt: 5 * time.Second, hangs: 9, want: left, took: 5 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &app{world: world{stderr: io.Discard, now: time.Now}, timeout: defaultTimeout}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.interrupt > 0 {
					time.AfterFunc(tt.interrupt, cancel)
				}
				began := time.Now()
				at, err := watch(ctx, a, 0, watched[int]{
					pause: time.Second, most: tt.most,
					line: func(n int) string { return fmt.Sprint(n) },
					over: func(n int) (bool, error) { return n == 3, nil },
					look: func(ctx context.Context, n int) (int, error) {
						if tt.hangs--; tt.hangs < 0 {
							return n + 1, nil
						}
						<-ctx.Done()
						if errors.Is(ctx.Err(), context.DeadlineExceeded) {
							return 0, volume.Errorf(volume.CodeTimeout, "no answer")
						}
						return 0, ctx.Err() // as a client says it that is told to stop
					},
					late: func(int) error { return late },
					left: func(_ context.Context, n int) (int, error) { return n, left },
				})
				if at != tt.at || err != tt.want || time.Since(began) != tt.took {
					t.Errorf("got %d, %v after %s; want %d, %v after %s", at, err, time.Since(began), tt.at, tt.want, tt.took)
				}
			})
		})
	}
}

// What is said at the end is not written behind a line that shows how far it was.
func TestWatchClearsItsLine(t *testing.T) {
	for _, interrupted := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var out strings.Builder
			a := &app{world: world{stderr: &out, now: time.Now, progress: true}, timeout: defaultTimeout}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			w := watched[int]{
				pause: time.Second, most: time.Minute,
				line: func(int) string { return "under way" },
				over: func(int) (bool, error) { return false, nil },
				look: func(context.Context, int) (int, error) { return 0, nil },
				late: func(int) error { out.WriteString("it takes too long"); return nil },
				left: func(context.Context, int) (int, error) { out.WriteString("it goes on"); return 0, nil },
			}
			want := "\r\x1b[Kunder way\r\x1b[Kit takes too long"
			if interrupted {
				time.AfterFunc(1500*time.Millisecond, cancel)
				want = "\r\x1b[Kunder way\r\x1b[Kit goes on"
			}
			if _, err := watch(ctx, a, 0, w); err != nil || out.String() != want {
				t.Errorf("%q, %v; want %q", out.String(), err, want)
			}
		})
	}
}

// Who has given a time watches for that, others as long as the command says.
func TestWatchFor(t *testing.T) {
	if got := (&app{patient: true, timeout: time.Second}).watchFor(time.Hour); got != time.Hour {
		t.Errorf("without --timeout: %s", got)
	}
	if got := (&app{timeout: time.Second}).watchFor(time.Hour); got != time.Second {
		t.Errorf("with --timeout 1s: %s", got)
	}
}

func TestProgressLine(t *testing.T) {
	show := func(w world, quiet bool) string {
		var out strings.Builder
		w.stderr = &out
		p := (&app{world: w, quiet: quiet}).newProgress()
		p.end()
		p.show("")
		p.show("a long line")
		p.show("a long line")
		p.show("two\x1b[2J")
		p.end()
		p.end()
		return out.String()
	}
	narrow := func() int { return 8 }
	for _, tt := range []struct {
		name  string
		w     world
		quiet bool
		want  string
	}{
		{"pipe", world{width: narrow}, false, "a long line\ntwo\\x1b[2J\n"},
		{"terminal", world{progress: true}, false, "\r\x1b[Ka long line\r\x1b[Ktwo\\x1b[2J\r\x1b[K"},
		{"narrow terminal", world{progress: true, width: narrow}, false, "\r\x1b[Ka long \r\x1b[Ktwo\\x1b\r\x1b[K"},
		{"quiet", world{progress: true}, true, ""},
	} {
		if got := show(tt.w, tt.quiet); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// What waits for one call says how far it is: on a terminal each second, else each ten.
func TestMeanwhile(t *testing.T) {
	for _, tt := range []struct {
		name string
		w    world
		json bool
		want string
	}{
		{"pipe", world{}, false, "step 10; of 25\nstep 20; of 25\n"},
		{"terminal", world{progress: true}, false, "step 24\nof 25\r\x1b[A\x1b[Jstep 25\nof 25\r\x1b[A\x1b[J"},
		{"for programs", world{progress: true}, true, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			var out strings.Builder
			tt.w.stderr = &out
			a, n := &app{world: tt.w, asJSON: tt.json}, 0
			began := time.Now()
			stop := a.meanwhile(t.Context(), func(context.Context) []string {
				n = int(time.Since(began) / time.Second)
				return []string{fmt.Sprintf("step %d", n), "of 25"}
			})
			time.Sleep(25*time.Second + time.Millisecond)
			stop()
			if got := out.String(); got != tt.want && !(tt.w.progress && !tt.json && strings.HasSuffix(got, tt.want)) {
				t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
			}
		})
	}
}

// The same is not said twice, nothing is said of nothing, and nothing once it is over.
func TestMeanwhileSaysWhatIsNew(t *testing.T) {
	for _, tt := range []struct {
		name string
		w    world
		says func(second int) []string
		want string
	}{
		{"the same in a pipe", world{}, func(n int) []string { return []string{fmt.Sprint("part ", n/25)} }, "part 0\npart 1\n"},
		{"nothing in a pipe", world{}, func(n int) []string {
			if n == 20 {
				return nil
			}
			return []string{"step"}
		}, "step\n"},
		{"nothing on a terminal", world{progress: true}, func(int) []string { return nil }, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			var out strings.Builder
			tt.w.stderr = &out
			began := time.Now()
			stop := (&app{world: tt.w}).meanwhile(t.Context(), func(context.Context) []string { return tt.says(int(time.Since(began) / time.Second)) })
			time.Sleep(45 * time.Second)
			stop()
			if out.String() != tt.want {
				t.Errorf("%s: %q, want %q", tt.name, out.String(), tt.want)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		stop := (&app{world: world{stderr: &out, progress: true}}).meanwhile(t.Context(), func(ctx context.Context) []string {
			<-ctx.Done()
			return []string{"too late"}
		})
		time.Sleep(5 * time.Second)
		stop()
		if out.String() != "" {
			t.Errorf("after its end: %q", out.String())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		stop := (&app{world: world{stderr: &out, progress: true}, quiet: true}).meanwhile(t.Context(), func(context.Context) []string { t.Error("it is asked for nobody"); return nil })
		time.Sleep(15 * time.Second)
		stop()
	})
}

// What reads or writes so many bytes says how many it has: as a bar on a terminal, and in a pipe in
// lines, each ten seconds.
func TestMeter(t *testing.T) {
	for _, tt := range []struct {
		name  string
		w     world
		total int64
		json  bool
		quiet bool
		want  string // on a terminal: the end of it
	}{
		{"pipe", world{}, 4 << 30, false, false, "pgdata: [##........] 24% 1000MiB of 4GiB, 100MiB/s, 30s left\n" +
			"pgdata: [####......] 48% 2GiB of 4GiB, 100MiB/s, 20s left\n"},
		{"a pipe, and nobody knows how much", world{}, 0, false, false, "pgdata: 1000MiB, 100MiB/s\npgdata: 2GiB, 100MiB/s\n"},
		{"a pipe, and more than was thought", world{}, 1 << 30, false, false, "pgdata: [#########.] 97% 1000MiB of 1GiB, 100MiB/s, 0s left\n" +
			"pgdata: [##########] 100% 2GiB of 2GiB, 100MiB/s\n"},
		{"terminal", world{progress: true}, 4 << 30, false, false, "\r\x1b[Jpgdata: [######....] 61% 2.4GiB of 4GiB, 100MiB/s, 15s left\r\x1b[J"},
		{"for programs", world{progress: true}, 4 << 30, true, false, ""},
		{"quiet", world{}, 4 << 30, false, true, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			var out strings.Builder
			tt.w.stderr, tt.w.now = &out, time.Now
			p := (&app{world: tt.w, asJSON: tt.json, quiet: tt.quiet}).meter(t.Context(), "pgdata", tt.total)
			for range 25 { // between two looks, so that each is at the same number
				time.Sleep(time.Second / 2)
				p.more(100 << 20)
				time.Sleep(time.Second / 2)
			}
			time.Sleep(time.Millisecond)
			p.end()
			p.end()
			time.Sleep(time.Minute)
			if got := out.String(); got != tt.want && !(tt.w.progress && tt.want != "" && strings.HasSuffix(got, tt.want)) {
				t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
			}
		})
	}
}

func TestFar(t *testing.T) {
	for _, tt := range []struct {
		done, before, total int64
		took                time.Duration
		want                string
	}{
		{0, 0, 0, 0, "0B"},
		{0, 0, 4096, time.Hour, "[..........]  0% 0B of 4KiB, 0B/s"},
		{1024, 0, 4096, time.Second / 2, "[##........] 25% 1KiB of 4KiB"},
		{1024, 0, 4096, 2 * time.Second, "[##........] 25% 1KiB of 4KiB, 512B/s, 6s left"},
		{2048, 1024, 4096, 2 * time.Second, "[#####.....] 50% 2KiB of 4KiB, 512B/s, 4s left"},
		{1024, 1024, 4096, 2 * time.Second, "[##........] 25% 1KiB of 4KiB, 0B/s"},
		{4096, 0, 4096, 2 * time.Second, "[##########] 100% 4KiB of 4KiB, 2KiB/s"},
		{8192, 0, 4096, 2 * time.Second, "[##########] 100% 8KiB of 8KiB, 4KiB/s"},
	} {
		if got := far(tt.done, tt.before, tt.total, tt.took); got != tt.want {
			t.Errorf("far(%d, %d, %d, %s) = %q, want %q", tt.done, tt.before, tt.total, tt.took, got, tt.want)
		}
	}
}

// What is said, or printed where stdout is the same terminal, stands above what comes and goes there,
// and never behind it.
func TestSaidMeanwhile(t *testing.T) {
	both := func(do func(*app)) (out string) {
		synctest.Test(t, func(t *testing.T) {
			var screen strings.Builder
			a := &app{world: world{stdout: &screen, stderr: &screen, progress: true, screen: true, now: time.Now}}
			stop := a.waiting(t.Context(), "waiting")
			time.Sleep(1500 * time.Millisecond)
			do(a)
			time.Sleep(time.Second)
			stop()
			out = screen.String()
		})
		return out
	}
	const want = "waiting, for 1s\r\x1b[Jtext\nwaiting, for 2s\r\x1b[J"
	if got := both(func(a *app) { a.say("text\n") }); got != want {
		t.Errorf("said: %q, want %q", got, want)
	}
	printed := both(func(a *app) {
		if err := a.printing(func() error { _, err := fmt.Fprintln(a.stdout, "text"); return err }); err != nil {
			t.Error(err)
		}
	})
	if printed != want {
		t.Errorf("printed: %q, want %q", printed, want)
	}
}

// Who waits for one call sees what it waits for.
func TestWaitsAreShown(t *testing.T) {
	fake := apitest.Cluster()
	fake.SetVolume(api.Volume{ID: "5eed000000000009", Name: "new", Phase: "creating", Health: api.HealthCreating, Reason: "its dataset is being made", Primary: apitest.Alpha})
	if err := fake.Lose("uploads"); err != nil {
		t.Fatal(err)
	}
	l := apitest.NewListener()
	serving, end := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	log := slog.New(slog.DiscardHandler)
	wg.Go(func() { api.ServeLocal(serving, l, api.NewHandler(fake, nil, log), log) })
	defer wg.Wait()
	defer end()
	for want, show := range map[string]func(*app) func(){
		"new: creating: its dataset is being made on alpha, for 0s": func(a *app) func() { return a.making(t.Context(), "new") },
		"other: waiting for 0s": func(a *app) func() { return a.making(t.Context(), "other") },
		"uploads: unavailable: getting another primary: its copies are being asked": func(a *app) func() { return a.showElecting(t.Context(), "uploads") },
	} {
		out := &spotter{text: want, found: make(chan struct{})}
		a := &app{world: world{stderr: out, progress: true, now: func() time.Time { return apitest.Now }}, client: api.NewClient(l.Dial)}
		stop := show(a)
		select {
		case <-out.found:
		case <-time.After(time.Minute):
			t.Errorf("not shown within a minute: %s", want)
		}
		stop()
		a.client.Close()
		if !strings.HasSuffix(out.String(), "\r\x1b[J") {
			t.Errorf("something stays on the terminal: %q", out.String())
		}
	}
}
