package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// ErrNoRoute says that the proxy has no such route, or that this node does not own it.
var ErrNoRoute = errors.New("this node does not own such a route")

// request is what is said to a proxy through its socket, as the body of a POST whose path
// says what is to be done.
type request struct {
	Route  string        `json:",omitempty"`
	Event  time.Duration `json:",omitempty"`
	Wait   time.Duration `json:",omitempty"` // how long Quiet may take; 0: as long as the caller is there
	Server string        `json:",omitempty"`
	Config *Config       `json:",omitempty"`
}

// reply is what it answers.
type reply struct {
	Error   string    `json:",omitempty"`
	NoRoute bool      `json:",omitempty"` // the error is ErrNoRoute
	Busy    []Session `json:",omitempty"` // the error is Busy
	Status  *Status   `json:",omitempty"`
}

// maxRequest is more than thousands of routes need.
const maxRequest = 64 << 20

// Handler serves a controller to Clients.
func Handler(c Controller) http.Handler {
	mux := http.NewServeMux()
	handle := func(what string, do func(ctx context.Context, r request) (*Status, error)) {
		mux.HandleFunc("POST /"+what, func(w http.ResponseWriter, req *http.Request) {
			var r request
			err := json.NewDecoder(http.MaxBytesReader(w, req.Body, maxRequest)).Decode(&r)
			var out reply
			if err == nil {
				out.Status, err = do(req.Context(), r)
			}
			if err != nil {
				out.Error = err.Error()
				out.NoRoute = errors.Is(err, ErrNoRoute)
				if busy := (*Busy)(nil); errors.As(err, &busy) {
					out.Busy = busy.Sessions
				}
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(out) // whoever asked has gone if this fails
		})
	}
	handle("apply", func(ctx context.Context, r request) (*Status, error) {
		if r.Config == nil {
			return nil, errors.New("there is no configuration in the request")
		}
		return nil, c.Apply(ctx, *r.Config)
	})
	handle("pause", func(ctx context.Context, r request) (*Status, error) { return nil, c.Pause(ctx, r.Route, r.Event) })
	handle("quiet", func(ctx context.Context, r request) (*Status, error) {
		if r.Wait > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, r.Wait)
			defer cancel()
		}
		return nil, c.Quiet(ctx, r.Route)
	})
	handle("cut", func(ctx context.Context, r request) (*Status, error) { return nil, c.Cut(ctx, r.Route) })
	handle("resume", func(ctx context.Context, r request) (*Status, error) { return nil, c.Resume(ctx, r.Route, r.Server) })
	handle("status", func(ctx context.Context, r request) (*Status, error) {
		s, err := c.Status(ctx)
		return &s, err
	})
	return mux
}

// Client asks the proxy of its machine. Its methods may be called concurrently; they
// connect by themselves, also to a proxy that was restarted.
type Client struct{ http http.Client }

// Dial makes the client of a proxy's socket. It does not connect yet.
func Dial(socket string) *Client {
	return &Client{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: 2,
		IdleConnTimeout:     30 * time.Second,
	}}}
}

// Apply implements Controller.
func (c *Client) Apply(ctx context.Context, config Config) error {
	_, err := c.ask(ctx, "apply", request{Config: &config})
	return err
}

// Pause implements Controller.
func (c *Client) Pause(ctx context.Context, route string, event time.Duration) error {
	_, err := c.ask(ctx, "pause", request{Route: route, Event: event})
	return err
}

// Quiet implements Controller. The proxy is given a little less time than ctx has, so that
// it can say who is busy.
func (c *Client) Quiet(ctx context.Context, route string) error {
	r := request{Route: route}
	if until, ok := ctx.Deadline(); ok {
		left := time.Until(until)
		r.Wait = max(left-min(left/4, 50*time.Millisecond), 1)
	}
	_, err := c.ask(ctx, "quiet", r)
	return err
}

// Cut implements Controller.
func (c *Client) Cut(ctx context.Context, route string) error {
	_, err := c.ask(ctx, "cut", request{Route: route})
	return err
}

// Resume implements Controller.
func (c *Client) Resume(ctx context.Context, route, server string) error {
	_, err := c.ask(ctx, "resume", request{Route: route, Server: server})
	return err
}

// Status implements Controller.
func (c *Client) Status(ctx context.Context) (Status, error) {
	r, err := c.ask(ctx, "status", request{})
	if err != nil || r.Status == nil {
		return Status{}, err
	}
	return *r.Status, nil
}

// Close ends idle connections; the client may be used on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) ask(ctx context.Context, what string, r request) (reply, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return reply{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://proxy/"+what, bytes.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	// All requests may be repeated: this lets the transport do so when it finds that the
	// proxy was restarted since.
	req.Header["Idempotency-Key"] = nil
	res, err := c.http.Do(req)
	if err != nil {
		return reply{}, fmt.Errorf("the proxy does not answer (is flockd-proxy running?): %w", err)
	}
	defer func() { _, _ = io.Copy(io.Discard, res.Body); _ = res.Body.Close() }()
	var out reply
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
		return reply{}, fmt.Errorf("the proxy's answer (%s) is not understood: %w", res.Status, err)
	}
	switch {
	case out.NoRoute:
		return out, fmt.Errorf("route %s: %w", r.Route, ErrNoRoute)
	case len(out.Busy) > 0:
		return out, &Busy{Sessions: out.Busy}
	case out.Error != "":
		return out, errors.New(out.Error)
	}
	return out, nil
}
