package plugin

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"sync"
	"time"

	protocol "github.com/docker/go-plugins-helpers/volume"

	"github.com/flocker-io/flocker/internal/volume"
)

// How long a call may take. Docker waits 120 s for Mount and Create and 60 s for the
// others, and takes whatever comes later for a failure: then nobody unmounts.
const (
	SlowBudget = 100 * time.Second // Mount, Create
	FastBudget = 50 * time.Second

	// answerSlack is what a backend gets after its context has ended, to undo what it
	// did and say why. After that Docker is answered without it.
	answerSlack = 5 * time.Second
)

// Driver answers Docker's calls from a Backend. It is the protocol's Driver, which
// knows no contexts: every call gets its own, with a budget and a request ID.
type Driver struct {
	backend Backend
	log     *slog.Logger
	observe func(Call)
	slow    time.Duration
	fast    time.Duration

	ctx context.Context // ends when calls are to be given up

	// calls is how many are under way, also those that Docker no longer waits for. No
	// WaitGroup, since one may begin while Wait waits.
	mu    sync.Mutex
	calls int
	idle  sync.Cond // on mu
}

var _ protocol.Driver = (*Driver)(nil)

// NewDriver makes the driver that Plugin serves; tests and simulated engines use it
// without a socket. Calls are given up when ctx ends. observe may be nil.
func NewDriver(ctx context.Context, backend Backend, log *slog.Logger, observe func(Call)) *Driver {
	if observe == nil {
		observe = func(Call) {}
	}
	d := &Driver{backend: backend, log: log, observe: observe, slow: SlowBudget, fast: FastBudget, ctx: ctx}
	d.idle.L = &d.mu
	return d
}

// Wait returns when no call is under way.
func (d *Driver) Wait() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.calls > 0 {
		d.idle.Wait()
	}
}

// count notes the beginning or end of a call.
func (d *Driver) count(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls += n
	d.idle.Broadcast()
}

// Call is one call that was answered.
type Call struct {
	Method  string // "Mount"
	Volume  string
	MountID string
	Request string // ID of this call, as in the log and in ctx
	Took    time.Duration
	Err     error // as Docker was told
}

// Code of the answer, for metrics: "ok", a volume.Code, or "internal".
func (c Call) Code() string {
	if c.Err == nil {
		return "ok"
	}
	if code := volume.CodeOf(c.Err); code != "" {
		return string(code)
	}
	return "internal"
}

func (c Call) String() string {
	s := fmt.Sprintf("%s %q in %s", c.Method, c.Volume, c.Took.Round(time.Millisecond))
	if c.Err != nil {
		s += ": " + c.Err.Error()
	}
	return s
}

type requestKey struct{}

// RequestID is the ID of the call that ctx belongs to, "" outside of one. It goes
// with the work through the cluster, so that one call can be followed in all logs.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

// Create makes a volume. Volumes that nobody named are made without replicas, unless
// the options say otherwise: they come and go with their container.
func (d *Driver) Create(r *protocol.CreateRequest) error {
	return d.do("Create", r.Name, "", d.slow, func(ctx context.Context) error {
		if err := volume.ValidateName(r.Name); err != nil {
			return err
		}
		opts := r.Options
		if _, ok := opts[volume.FromOption]; ok {
			return d.backend.Clone(ctx, r.Name, opts) // what is not given is as the original's
		}
		if volume.IsAnonymous(r.Name) && opts["replicas"] == "" && opts["profile"] == "" {
			opts = map[string]string{"replicas": "0"}
			maps.Copy(opts, r.Options)
		}
		spec, err := volume.ParseOptions(opts)
		if err != nil {
			return err
		}
		return d.backend.Create(ctx, r.Name, spec)
	})
}

// Remove puts a volume into the trash.
func (d *Driver) Remove(r *protocol.RemoveRequest) error {
	return d.do("Remove", r.Name, "", d.fast, func(ctx context.Context) error {
		return d.backend.Remove(ctx, r.Name)
	})
}

// Mount makes a volume usable here.
func (d *Driver) Mount(r *protocol.MountRequest) (*protocol.MountResponse, error) {
	// The answer is only read when the backend gave it in time: see do.
	var path string
	err := d.do("Mount", r.Name, r.ID, d.slow, func(ctx context.Context) (err error) {
		p, err := d.backend.Mount(ctx, r.Name, r.ID)
		if err == nil {
			path = p
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &protocol.MountResponse{Mountpoint: path}, nil
}

// Unmount takes a Mount back.
func (d *Driver) Unmount(r *protocol.UnmountRequest) error {
	return d.do("Unmount", r.Name, r.ID, d.fast, func(ctx context.Context) error {
		return d.backend.Unmount(ctx, r.Name, r.ID)
	})
}

// Get describes a volume. Docker asks it before everything else, and an error means
// to Docker that the volume is gone.
func (d *Driver) Get(r *protocol.GetRequest) (*protocol.GetResponse, error) {
	if r.Name == "" {
		// At its start the engine asks for volumes whose name it lost. No news.
		return nil, errNoVolume(r.Name)
	}
	var out *protocol.Volume
	err := d.do("Get", r.Name, "", d.fast, func(ctx context.Context) error {
		info, ok := d.backend.Get(ctx, r.Name)
		if !ok {
			return errNoVolume(r.Name)
		}
		out = describe(info)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &protocol.GetResponse{Volume: out}, nil
}

// List describes all volumes.
func (d *Driver) List() (*protocol.ListResponse, error) {
	var out []*protocol.Volume
	err := d.do("List", "", "", d.fast, func(context.Context) error {
		for _, info := range d.backend.List() {
			v := describe(info)
			v.Status = nil // Docker shows it for one volume only
			out = append(out, v)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &protocol.ListResponse{Volumes: out}, nil
}

// Path is where a volume is mounted; Docker asks when Get gave no mountpoint.
func (d *Driver) Path(r *protocol.PathRequest) (*protocol.PathResponse, error) {
	var path string
	err := d.do("Path", r.Name, "", d.fast, func(ctx context.Context) error {
		info, ok := d.backend.Get(ctx, r.Name)
		if !ok {
			return errNoVolume(r.Name)
		}
		path = info.Mountpoint
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &protocol.PathResponse{Mountpoint: path}, nil
}

// Capabilities say that a volume of one name is the same volume on every node. The
// engine keeps the answer until it is restarted.
func (d *Driver) Capabilities() *protocol.CapabilitiesResponse {
	return &protocol.CapabilitiesResponse{Capabilities: protocol.Capability{Scope: "global"}}
}

func describe(info Info) *protocol.Volume {
	v := &protocol.Volume{Name: info.Name, Mountpoint: info.Mountpoint, Status: info.Status}
	if !info.Created.IsZero() {
		v.CreatedAt = info.Created.UTC().Format(time.RFC3339)
	}
	return v
}

func errNoVolume(name string) error {
	return volume.Errorf(volume.CodeNotFound, "no such volume: %s", name)
}

// do runs one call within its budget, logs it once and words its error for Docker.
// It returns when f does or when Docker would not wait any longer; f then goes on
// alone, and what it leaves behind is found by the next reconciliation of mounts.
func (d *Driver) do(method, vol, mountID string, budget time.Duration, f func(context.Context) error) error {
	call := Call{Method: method, Volume: vol, MountID: mountID, Request: newRequestID()}
	began := time.Now()

	err := error(nil)
	if vol == "" && method != "List" {
		err = volume.Errorf(volume.CodeInvalid, "%s: the request names no volume", method)
	} else {
		ctx, cancel := context.WithTimeout(context.WithValue(d.ctx, requestKey{}, call.Request), budget)
		answer := make(chan error, 1)
		d.count(+1)
		go func(call Call) {
			defer d.count(-1)
			defer cancel()
			answer <- d.guard(call, func() error { return f(ctx) })
		}(call)
		tooLate := time.NewTimer(budget + answerSlack)
		defer tooLate.Stop()
		select {
		case err = <-answer:
		case <-tooLate.C:
			err = context.DeadlineExceeded
		}
	}

	call.Took = time.Since(began)
	call.Err = d.word(call, budget, err)
	d.report(call)
	return call.Err
}

// guard turns a panic into an error: without it the connection would break, and
// Docker would repeat the call with an empty body.
func (d *Driver) guard(call Call, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			d.log.Error("plugin call panicked", "method", call.Method, "volume", call.Volume,
				"request", call.Request, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("flockd has a bug here: %v", p)
		}
	}()
	return f()
}

// word makes the error that Docker shows. Refusals are complete sentences already;
// for the rest it is said where to look.
func (d *Driver) word(call Call, budget time.Duration, err error) error {
	var refusal *volume.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refusal):
		return err
	case d.ctx.Err() != nil:
		return volume.Errorf(volume.CodeUnavailable, "%s of volume %s: flockd is stopping", call.Method, call.Volume).
			WithHint("try again when it runs")
	case errors.Is(err, context.DeadlineExceeded):
		return volume.Errorf(volume.CodeTimeout, "%s of volume %s is not done after %s", call.Method, call.Volume, budget).
			WithHint("it may still happen: look at `flockctl volume inspect %s` and try again", call.Volume)
	}
	return fmt.Errorf("%s of volume %s: %w (request %s in flockd's log)", call.Method, call.Volume, err, call.Request)
}

// report logs and counts a call. What Docker asks all the time, and names that do
// not exist yet, are no news.
func (d *Driver) report(call Call) {
	level := slog.LevelInfo
	switch {
	case call.Code() == "internal":
		level = slog.LevelError
	case call.Method == "Get" || call.Method == "List" || call.Method == "Path":
		level = slog.LevelDebug
	case call.Err != nil:
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{
		slog.String("method", call.Method), slog.String("volume", call.Volume),
		slog.String("request", call.Request), slog.Duration("took", call.Took),
	}
	if call.MountID != "" {
		attrs = append(attrs, slog.String("mount", call.MountID))
	}
	if call.Err != nil {
		attrs = append(attrs, slog.String("error", call.Err.Error()))
	}
	d.log.LogAttrs(d.ctx, level, "plugin call", attrs...)
	d.observe(call)
}

func newRequestID() string {
	b := make([]byte, 8)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
