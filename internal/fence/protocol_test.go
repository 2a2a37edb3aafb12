package fence

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
)

const boot = "0d2e8f5a-0000-4000-8000-000000000001"

// service is a fencer that answers on a socket, on a clock that stands.
type service struct {
	*Fencer
	stop func()
}

func standing() (bootTime, wall lease.Moment) { return lease.Moment(time.Minute), 0 }

func serve(t *testing.T, dir string) service {
	t.Helper()
	f := newFencer(slog.New(slog.NewTextHandler(t.Output(), nil)), filepath.Join(dir, "fence.json"), boot, standing, &fakeMachine{}, &fakeMachine{})
	f.version = "1.2"
	l, err := Listen(filepath.Join(dir, "fence.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Serve(ctx, l, nil) }()
	stop := func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	return service{f, stop}
}

func someLease(no uint64, until time.Duration) Lease {
	return Lease{No: no, Boot: boot, Round: 1, Until: lease.Moment(until), Fence: 5 * time.Second, Root: "tank/flocker"}
}

// heard calls a function when something has come.
type heard struct {
	net.Conn
	what func()
}

func (h heard) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	h.what()
	return n, err
}

// Both ends may be restarted; what was said holds.
func TestClient(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, dir)
	c := Dial(filepath.Join(dir, "fence.sock"))
	defer c.Close()
	if st, err := c.Status(t.Context()); err != nil || st.State != PhaseIdle || st.Boot != boot || st.Version != "1.2" {
		t.Errorf("at first: %+v, %v", st, err)
	}
	st, err := c.Arm(t.Context(), someLease(3, 70*time.Second))
	if err != nil || st.State != PhaseArmed || st.Saved != (lease.Saved{No: 3, Until: lease.Moment(70 * time.Second), Begun: true}) {
		t.Errorf("armed: %+v, %v", st, err)
	}

	s.stop()
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "flockd-fence") {
		t.Errorf("without a fencer: %v", err)
	}
	s = serve(t, dir)
	if again, err := c.Status(t.Context()); err != nil || again.Lease != st.Lease || again.State != PhaseArmed {
		t.Errorf("after a restart: %+v, %v; want the same lease", again, err)
	}
	// The connection of now is not the one of the next fencer, and that is no error.
	s.stop()
	s = serve(t, dir)
	if st, err := c.Arm(t.Context(), someLease(3, 72*time.Second)); err != nil || st.Lease.Until != lease.Moment(72*time.Second) {
		t.Errorf("armed again: %+v, %v", st, err)
	}

	if _, err := c.Arm(t.Context(), Lease{No: 4, Boot: "another", Until: 1, Fence: 1, Root: "tank/flocker"}); err == nil || !strings.Contains(err.Error(), "boot") {
		t.Errorf("a lease of another boot: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	waiting := Dial(filepath.Join(dir, "fence.sock"))
	defer waiting.Close()
	dial, answers := waiting.dial, 0
	waiting.dial = func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx)
		return heard{conn, func() {
			if answers++; answers == 3 {
				cancel()
			}
		}}, err
	}
	// Nothing here stops writers, so it is never done, however often it asks.
	if st, err := waiting.Fence(ctx, 3, "the pool does not answer"); !errors.Is(err, context.Canceled) || answers != 3 || st.State != PhaseFencing || st.Reason != "the pool does not answer" {
		t.Errorf("fence: %+v, %v", st, err)
	}
	if _, err := c.Disarm(t.Context()); err == nil || !strings.Contains(err.Error(), "still being stopped") {
		t.Errorf("disarmed while fencing: %v", err)
	}
	if err := c.Forget(t.Context(), []string{"c0ffee"}); err != nil {
		t.Error(err)
	}
	s.stop()
}

func TestServerRefuses(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, dir)
	defer s.stop()
	conn, err := net.Dial("unix", filepath.Join(dir, "fence.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, line := range []string{"{\n", `{"do":"dance"}` + "\n", `{"do":"arm"}` + "\n"} {
		if _, err := conn.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		n, err := conn.Read(b)
		if err != nil || !strings.Contains(string(b[:n]), `"error":`) || !strings.Contains(string(b[:n]), `"state":"idle"`) {
			t.Errorf("%q is answered by %q, %v", line, b[:n], err)
		}
	}
}

// Whom the fencer does not know it does not listen to.
func TestServerAllows(t *testing.T) {
	f := newFencer(slog.New(slog.DiscardHandler), filepath.Join(t.TempDir(), "fence.json"), boot, standing, &fakeMachine{}, &fakeMachine{})
	socket := filepath.Join(t.TempDir(), "fence.sock")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Serve(ctx, l, func(net.Conn) error { return errors.New("a stranger") }) }()
	if st, err := Dial(socket).Status(t.Context()); err == nil {
		t.Errorf("a stranger is told %+v", st)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
