package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/api/apitest"
	"github.com/flocker-io/flocker/internal/volume"
)

// lookAt is what top sees of a fake.
func lookAt(t *testing.T, f *apitest.Fake, l *topLooker) cluster {
	t.Helper()
	return lookAtThe(t, apitest.Now, f, l)
}

func lookAtThe(t *testing.T, now time.Time, f *apitest.Fake, l *topLooker) cluster {
	t.Helper()
	in := apitest.NewListener()
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	log := slog.New(slog.DiscardHandler)
	serving.Go(func() { api.ServeLocal(ctx, in, api.NewHandler(f, nil, log), log) })
	defer serving.Wait()
	defer stop()
	c := api.NewClient(in.Dial)
	defer c.Close()
	s, err := l.look(t.Context(), c, now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Pictures are in testdata/top.golden. UPDATE=1 writes them.
func TestTopLines(t *testing.T) {
	const file = "testdata/top.golden"
	fake := lookAt(t, apitest.Cluster(), &topLooker{})
	moving := fake
	moving.moves = []api.Migration{
		{Name: "uploads", From: apitest.Alpha, To: apitest.Beta, State: api.MigrationRunning, Why: "node beta has part in another move"},
		{Name: "pgdata", From: apitest.Alpha, To: apitest.Gamma, State: api.MigrationRunning, Doing: "moving to gamma: pre-copy round 1 of at most 8, 12MiB left"},
		{Name: "a", From: apitest.Alpha, To: apitest.Beta, State: api.MigrationDone, PausedSeconds: 0.43},
		{Name: "b", From: apitest.Alpha, To: apitest.Beta, State: api.MigrationDone},
		{Name: "c", From: apitest.Alpha, To: apitest.Beta, State: api.MigrationFailed, Reason: "called off by its user"},
	}
	many := fake
	many.volumes = nil
	for i := range 30 {
		seconds := float64(i % 7)
		many.volumes = append(many.volumes, api.Volume{ID: volume.ID(fmt.Sprintf("%016x", i)), Name: fmt.Sprintf("v%02d", i), Health: api.HealthLagging, AsOf: apitest.Now,
			Data: int64(i) << 20, Primary: apitest.Alpha, Replicas: []api.Replica{{Node: apitest.Beta, State: volume.LinkLagging, LagSeconds: &seconds, Rate: 1 << 20}}})
	}
	hostile := fake
	hostile.status.Problems = []string{"node \x1b[2J has\ntwo lines"}
	hostile.volumes = []api.Volume{{ID: "0b5e55ed00000009", Name: "x", Health: api.HealthOK, Primary: apitest.Alpha,
		Holders: []api.Holder{{Holder: volume.Holder{Name: "a\x1b[2Jb\nc"}, Node: apitest.Alpha}}}}
	stale := fake
	stale.stale = "flockd is not running on this node"
	troubled := fake
	troubled.status.Quorum, troubled.status.Leader = false, api.NodeRef{}
	troubled.status.Problems = []string{"one", "two", "three", "four", "five"}

	var b strings.Builder
	for _, tt := range []struct {
		name          string
		s             cluster
		order         topOrder
		width, height int
	}{
		{"whole", fake, byLag, 0, 0},
		{"by name", fake, byName, 0, 0},
		{"by size", fake, bySize, 0, 0},
		{"moves", moving, byLag, 0, 0},
		{"narrow", fake, byLag, 40, 0},
		{"low", fake, byLag, 0, 12},
		{"very low", fake, byLag, 0, 3},
		{"many in a small terminal", many, byLag, 79, 24},
		{"names that tell a terminal what to do", hostile, byLag, 0, 0},
		{"of before", stale, byLag, 0, 0},
		{"never answered", cluster{stale: "flockd is not running on this node"}, byLag, 0, 0},
		{"trouble", troubled, byLag, 0, 9},
		{"in no cluster", lookAt(t, apitest.New(), &topLooker{}), byLag, 0, 0},
		{"removed", lookAt(t, apitest.Retired("this node was removed from the cluster: join again"), &topLooker{}), byLag, 0, 0},
	} {
		lines := topLines(tt.s, tt.order, tt.width, tt.height, apitest.Now)
		if tt.height > 0 && len(lines) > tt.height {
			t.Errorf("%s: %d lines, at most %d fit", tt.name, len(lines), tt.height)
		}
		fmt.Fprintf(&b, "=== %s\n", tt.name)
		for _, l := range lines {
			fmt.Fprintf(&b, "%s|\n", l)
		}
	}
	want, err := os.ReadFile(file)
	if os.Getenv("UPDATE") != "" {
		err = os.WriteFile(file, []byte(b.String()), 0o644)
		want = []byte(b.String())
	}
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the pictures are not those in %s; UPDATE=1 writes them:\n%s", file, b.String())
	}
}

// A migration is found by the event of its beginning, and asked about until it is over; then how it ended
// is shown for a while.
func TestTopMoves(t *testing.T) {
	f, l := apitest.Cluster(), &topLooker{}
	if s := lookAt(t, f, l); len(s.moves) > 0 {
		t.Errorf("moves before any: %v", s.moves)
	}
	if _, err := f.MigrateVolume(t.Context(), "uploads", api.MigrateRequest{To: "beta"}); err != nil {
		t.Fatal(err)
	}
	f.EmitOf("volume.migrating", "0b5e55ed00000002", "uploads", "volume uploads goes to beta")
	f.EmitOf("volume.migrating", "5c4a7c0000000003", "scratch", "one that nobody knows of any more")
	if s := lookAt(t, f, l); len(s.moves) != 1 || s.moves[0].Name != "uploads" {
		t.Errorf("moves while one is under way: %v", s.moves)
	}
	for after, want := range map[time.Duration]int{0: 1, moveStays: 1, moveStays + 1: 0} {
		l := &topLooker{again: true, seen: l.seen, moving: slices.Clone(l.moving), ended: slices.Clone(l.ended)}
		if after > 0 {
			l.moving, l.ended = nil, []endedMove{{api.Migration{Name: "uploads", State: api.MigrationDone}, apitest.Now}}
		}
		if s := lookAtThe(t, apitest.Now.Add(after), f, l); len(s.moves) != want || want > 0 && s.moves[0].State != api.MigrationDone {
			t.Errorf("moves %s after its end: %v", after, s.moves)
		}
	}
	// One that is over when it is looked at for the first time may be of last year.
	if s := lookAt(t, f, &topLooker{}); len(s.moves) > 0 {
		t.Errorf("moves of before: %v", s.moves)
	}
	var asked []any
	for _, c := range f.Calls() {
		if c.Method == "Migration" {
			asked = append(asked, c.Args[0])
		}
	}
	// Until it was over, and whether the other one is; then by who looks for the first time.
	if want := []any{"0b5e55ed00000002", "5c4a7c0000000003", "0b5e55ed00000002", "0b5e55ed00000002", "5c4a7c0000000003"}; !slices.Equal(asked, want) {
		t.Errorf("asked about %v, want %v", asked, want)
	}
}

// paper is a screen of a test.
type paper struct {
	keys  chan byte
	drawn chan []string
}

func (p *paper) Keys() <-chan byte   { return p.keys }
func (p *paper) Size() (int, int)    { return 0, 0 }
func (p *paper) Draw(lines []string) { p.drawn <- lines }

func TestTopLoop(t *testing.T) {
	down := volume.Errorf(volume.CodeUnavailable, "flockd is being restarted")
	synctest.Test(t, func(t *testing.T) {
		p := &paper{make(chan byte), make(chan []string)}
		answers, resized, moves := make(chan error), make(chan os.Signal), make(chan struct{})
		var moving []api.Migration // written only while nobody looks
		a := &app{world: world{now: time.Now}, patient: true, timeout: defaultTimeout}
		done := make(chan error, 1)
		go func() {
			done <- a.top(t.Context(), p, resized, moves, byLag, 3*time.Second, func(ctx context.Context) (cluster, error) {
				select {
				case err := <-answers:
					return cluster{status: api.ClusterStatus{Initialized: true, Quorum: true}, moves: moving}, err
				case <-ctx.Done():
					return cluster{}, ctx.Err()
				}
			})
		}()
		answers <- nil
		if got := <-p.drawn; !strings.Contains(got[0], "quorum") {
			t.Errorf("drawn: %q", got)
		}
		began := time.Now()
		answers <- down // the next look
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("looks again after %s, want 3s", took)
		}
		if got := <-p.drawn; !strings.Contains(got[1], "flockd is being restarted") {
			t.Errorf("drawn while flockd is away: %q", got)
		}
		began = time.Now()
		p.keys <- 'n'
		<-p.drawn
		resized <- syscall.SIGWINCH
		<-p.drawn
		if took := time.Since(began); took != 0 {
			t.Errorf("drawn %s after a key and another size, want at once", took)
		}
		// Something begins to move: it looks at once, then more often until it is over, and at once when that is.
		for _, tt := range []struct {
			what   string
			news   bool
			moving []api.Migration
			want   time.Duration
		}{
			{"it begins", true, []api.Migration{{State: api.MigrationRunning}}, 0},
			{"it goes on", false, []api.Migration{{State: api.MigrationRunning}}, leastPause},
			{"it ends", true, []api.Migration{{State: api.MigrationDone}}, 0},
		} {
			began = time.Now()
			moving = tt.moving
			if tt.news {
				moves <- struct{}{}
			}
			answers <- nil
			if took := time.Since(began); took != tt.want {
				t.Errorf("%s: looks after %s, want %s", tt.what, took, tt.want)
			}
			<-p.drawn
		}
		// What is said while it looks is not lost.
		synctest.Wait()
		moving = nil
		began = time.Now()
		time.Sleep(leastPause) // of when it still went on
		synctest.Wait()        // it looks
		moves <- struct{}{}
		answers <- nil
		<-p.drawn
		answers <- nil
		<-p.drawn
		if took := time.Since(began); took != leastPause {
			t.Errorf("told while it looks, it looks again after %s", took)
		}
		p.keys <- 'q'
		if err := <-done; err != nil {
			t.Errorf("it ended with %v", err)
		}
	})
	for _, tt := range []struct {
		name string
		end  func(cancel func(), answers chan error)
		want error
	}{
		{"interrupted", func(cancel func(), _ chan error) { cancel() }, nil},
		{"refused", func(_ func(), answers chan error) { answers <- errNot }, errNot},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			answers := make(chan error)
			a := &app{world: world{now: time.Now}, timeout: defaultTimeout}
			done := make(chan error, 1)
			go func() {
				done <- a.top(ctx, &paper{}, nil, nil, byLag, topPause, func(ctx context.Context) (cluster, error) {
					select {
					case err := <-answers:
						return cluster{}, err
					case <-ctx.Done():
						return cluster{}, ctx.Err()
					}
				})
			}()
			tt.end(cancel, answers)
			if err := <-done; !errors.Is(err, tt.want) {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
			}
			cancel()
		})
	}
}

var errNot = errors.New("not that")

// It wakes top for migrations that begin or end from now on, also after flockd was away.
func TestTopNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := make(chan []api.Event)
		var asked []uint64
		moves := make(chan struct{}, 1)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			topNews(ctx, func(ctx context.Context, q api.EventsQuery) ([]api.Event, error) {
				asked = append(asked, q.After)
				select {
				case es := <-answers:
					if es == nil {
						return nil, errNot
					}
					return es, nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}, moves)
		}()
		for i, tt := range []struct {
			kinds string // "": it cannot be asked
			news  bool
		}{{"volume.migrating volume.migrated", false}, {"", false}, {"node.joined volume.moved", false}, {"node.joined volume.migrating", true}, {"volume.migrated volume.migrating", true}, {"volume.migration-ended", true}} {
			var es []api.Event
			for _, kind := range strings.Fields(tt.kinds) {
				es = append(es, api.Event{Seq: uint64((i+1)*10 + len(es)), Kind: kind})
			}
			answers <- es
			time.Sleep(time.Second)
			synctest.Wait()
			if (len(moves) == 1) != tt.news {
				t.Errorf("%s: told %v, want %v", tt.kinds, len(moves) == 1, tt.news)
			}
			for len(moves) > 0 {
				<-moves
			}
		}
		cancel()
		<-done
		if want := []uint64{0, 11, 11, 31, 41, 51, 60}; !slices.Equal(asked, want) {
			t.Errorf("asked for what is after %v, want %v", asked, want)
		}
	})
}

// pty is a terminal and what is at its other end.
func pty(t *testing.T) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("there are no terminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("there are no terminals here: %v", err)
	}
	t.Cleanup(func() { terminal.Close() })
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}); err != nil {
		t.Fatal(err)
	}
	return master, terminal
}

func termios(t *testing.T, f *os.File) unix.Termios {
	t.Helper()
	s, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *s
}

// terminalReader reads what comes out of a terminal.
type terminalReader struct {
	mu   sync.Mutex
	text strings.Builder
	news chan struct{}
}

func readTerminal(t *testing.T, f *os.File) *terminalReader {
	r := &terminalReader{news: make(chan struct{}, 1)}
	var reading sync.WaitGroup
	reading.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := f.Read(buf)
			r.mu.Lock()
			r.text.Write(buf[:n])
			r.mu.Unlock()
			select {
			case r.news <- struct{}{}:
			default:
			}
			if err != nil {
				return // EIO: nobody has the terminal open any more
			}
		}
	})
	t.Cleanup(reading.Wait)
	return r
}

func (r *terminalReader) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

func (r *terminalReader) wait(t *testing.T, what string) {
	t.Helper()
	late := time.After(time.Minute)
	for !strings.Contains(r.String(), what) {
		select {
		case <-r.news:
		case <-late:
			t.Fatalf("waited a minute for %q: %q", what, r.String())
		}
	}
}

// The real program on a real terminal: it draws, follows the terminal's size, and leaves it as it was.
func TestTopOnATerminal(t *testing.T) {
	newWitness(t)
	for _, end := range []struct{ name, keys string }{{"q", "q"}, {"Ctrl-C", "\x03"}} {
		t.Run(end.name, func(t *testing.T) {
			master, terminal := pty(t)
			was := termios(t, terminal)
			c := exec.Command("flockctl", "top")
			c.Stdin, c.Stdout, c.Stderr = terminal, terminal, terminal
			c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			out := readTerminal(t, master)
			out.wait(t, "pgdata")
			if now := termios(t, terminal); now.Lflag&(unix.ICANON|unix.ECHO) != 0 {
				t.Error("keys are not read one by one, or are shown")
			}
			// 6 lines: no room for links.
			if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 6, Col: 30}); err != nil {
				t.Fatal(err)
			}
			out.wait(t, "... and 2 more")
			if _, err := master.WriteString("n" + end.keys); err != nil {
				t.Fatal(err)
			}
			if err := c.Wait(); err != nil {
				t.Errorf("it ended with %v", err)
			}
			if now := termios(t, terminal); now != was {
				t.Errorf("the terminal is set so:\n%+v\nit was so:\n%+v", now, was)
			}
			out.wait(t, screenEnd)
			terminal.Close() // the last one: its reader ends
		})
	}
}

// Whatever happens on a screen, the terminal is as it was.
func TestScreenAfterAPanic(t *testing.T) {
	master, terminal := pty(t)
	out := readTerminal(t, master)
	was := termios(t, terminal)
	func() {
		defer func() {
			if p := recover(); p != "a bug" {
				t.Errorf("recovered %v", p)
			}
		}()
		onScreen(terminal, terminal, func(s *screen) error {
			if termios(t, terminal) == was {
				t.Error("the terminal is not set")
			}
			panic("a bug")
		})
	}()
	if now := termios(t, terminal); now != was {
		t.Errorf("the terminal is set so:\n%+v\nit was so:\n%+v", now, was)
	}
	out.wait(t, screenEnd)
	// Unread keys, and a terminal that is not one.
	if _, err := master.WriteString("xyz\n"); err != nil {
		t.Fatal(err)
	}
	if err := onScreen(terminal, terminal, func(s *screen) error {
		if key := <-s.Keys(); key != 'x' {
			t.Errorf("the key is %q", key)
		}
		return errNot
	}); err != errNot {
		t.Errorf("got %v", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := onScreen(null, null, func(*screen) error { return nil }); err == nil {
		t.Error("no error of what is no terminal")
	}
	terminal.Close()
}
