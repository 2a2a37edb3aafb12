package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// asked is a controller that notes what it is asked.
type asked struct {
	calls []string
	err   error
	conf  Config
	wait  time.Duration // that Quiet had
}

func (a *asked) note(format string, args ...any) error {
	a.calls = append(a.calls, fmt.Sprintf(format, args...))
	return a.err
}
func (a *asked) Apply(_ context.Context, c Config) error { a.conf = c; return a.note("apply") }
func (a *asked) Pause(_ context.Context, r string, e time.Duration) error {
	return a.note("pause %s %s", r, e)
}
func (a *asked) Quiet(ctx context.Context, r string) error {
	if until, ok := ctx.Deadline(); ok {
		a.wait = time.Until(until)
	}
	return a.note("quiet %s", r)
}
func (a *asked) Cut(_ context.Context, r string) error       { return a.note("cut %s", r) }
func (a *asked) Resume(_ context.Context, r, s string) error { return a.note("resume %s %s", r, s) }
func (a *asked) Status(context.Context) (Status, error) {
	return Status{Node: "n1", Version: "1.2", Routes: []RouteStatus{{ID: "r1", Sessions: 3}}}, a.note("status")
}

// What a client asks for through a socket is what the controller is asked, and what that
// answers comes back as what it was.
func TestControl(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "p.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	a := &asked{}
	srv := &http.Server{Handler: Handler(a)}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	c := Dial(socket)
	t.Cleanup(func() { c.Close(); _ = srv.Close(); <-served })
	var controller Controller = c

	conf := Config{Node: "n1", Members: []string{"n2"}, Routes: []Route{{
		ID: "r1", Listen: 80, Mode: HTTP, Owner: "n2", OwnerAddr: "h:1", Epoch: 7, Limits: Limits{Request: time.Second}, Announce: AnnounceV2}}}
	ctx := t.Context()
	quiet, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, do := range []func() error{
		func() error { return controller.Apply(ctx, conf) },
		func() error { return controller.Pause(ctx, "r1", time.Minute) },
		func() error { return controller.Quiet(quiet, "r1") },
		func() error { return controller.Cut(ctx, "r1") },
		func() error { return controller.Resume(ctx, "r1", "10.0.0.1:80") },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := controller.Status(ctx); err != nil || s.Node != "n1" || s.Version != "1.2" || s.Routes[0].Sessions != 3 {
		t.Errorf("status: %+v, %v", s, err)
	}
	want := []string{"apply", "pause r1 1m0s", "quiet r1", "cut r1", "resume r1 10.0.0.1:80", "status"}
	if !reflect.DeepEqual(a.calls, want) || !reflect.DeepEqual(a.conf, conf) {
		t.Errorf("asked for %q with %+v; want %q with %+v", a.calls, a.conf, want, conf)
	}

	// Who is busy is to be said before nobody listens any more.
	if a.wait <= 0 || a.wait > time.Minute-50*time.Millisecond {
		t.Errorf("quiet had %s", a.wait)
	}

	a.err = &Busy{Sessions: []Session{{Client: "c", Busy: "a transaction is open"}}}
	var busy *Busy
	if err := controller.Pause(ctx, "r1", 0); !errors.As(err, &busy) || busy.Sessions[0].Client != "c" {
		t.Errorf("who is busy: %v", err)
	}
	a.err = fmt.Errorf("it is so: %w", ErrNoRoute)
	if err := controller.Cut(ctx, "r9"); !errors.Is(err, ErrNoRoute) {
		t.Errorf("an unknown route: %v", err)
	}
	a.err = errors.New("such and such")
	if err := controller.Resume(ctx, "r1", ""); err == nil || err.Error() != "such and such" {
		t.Errorf("another error: %v", err)
	}
}

func TestConfigValidate(t *testing.T) {
	ok := Route{ID: "r", Listen: 1, Mode: TCP}
	for _, c := range []struct {
		name string
		make func(r *Route)
		good bool
	}{
		{"whole", func(*Route) {}, true},
		{"no ID", func(r *Route) { r.ID = "" }, false},
		{"no port", func(r *Route) { r.Listen = 0 }, false},
		{"no such mode", func(r *Route) { r.Mode = "mysql" }, false},
		{"options of another mode", func(r *Route) { r.Postgres = &RoutePostgres{} }, false},
		{"PostgreSQL's options", func(r *Route) { r.Mode, r.Postgres = Postgres, &RoutePostgres{TLS: true, Auth: true} }, true},
		{"TLS with the gate and with the server", func(r *Route) { r.Mode, r.Postgres = Postgres, &RoutePostgres{TLS: true, PassTLS: true} }, false},
		{"passwords within TLS with the server", func(r *Route) { r.Mode, r.Postgres = Postgres, &RoutePostgres{Auth: true, PassTLS: true} }, false},
		{"no such PROXY protocol", func(r *Route) { r.Announce = "v3" }, false},
		{"the PROXY protocol", func(r *Route) { r.Announce = AnnounceV2 }, true},
		{"the PROXY protocol to Redis", func(r *Route) { r.Mode, r.Announce = Redis, AnnounceV1 }, false},
		{"the PROXY protocol to PostgreSQL", func(r *Route) { r.Mode, r.Announce = Postgres, AnnounceV2 }, false},
		{"a server without a port", func(r *Route) { r.Server = "10.0.0.1" }, false},
		{"a server", func(r *Route) { r.Server = "10.0.0.1:80" }, true},
	} {
		r := ok
		c.make(&r)
		if err := (Config{Node: "n", Routes: []Route{r}}).Validate(); (err == nil) != c.good {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if (Config{Routes: []Route{ok}}).Validate() == nil || (Config{Node: "n", Routes: []Route{ok, ok}}).Validate() == nil {
		t.Error("a configuration without a node, or with a route twice, passes")
	}
}
