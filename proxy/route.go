package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"
)

// Route is a port that every node listens on, and that leads to one server, wherever it
// runs. Fields that only tell who the owner is and where may be out of date: see Node.
type Route struct {
	ID     string // unique in the cluster; it never changes its meaning
	Volume string // that the server uses, to be shown
	Listen uint16 // on every address of every node
	Port   uint16 // of the container, to be shown
	Mode   Mode
	// Hosts are the names that clients ask for whom the route is for, in mode HTTP or TLS, in
	// lower case; *.example.org is for all with one label more that no route on the port has
	// itself. None: it is for whomever no other is for. Routes on one port differ in them.
	Hosts []string `json:",omitempty"`
	// Postgres may be set with that mode.
	Postgres *RoutePostgres `json:",omitempty"`
	// Announce says to the server whose connection it is, by the PROXY protocol, which a
	// server has to expect. It holds for connections to the server from now on.
	Announce Announce `json:",omitempty"`
	Limits   Limits

	Owner     string // the node whose door is the only way to the server
	OwnerAddr string // host:port where the proxy of that node listens for the others
	Epoch     uint64 // of the volume: of two that name owners, the higher is right
	// Server is where the server is, as ip:port. It matters only at the owner. Empty:
	// there is none now, and connections wait for it.
	Server string `json:",omitempty"`
}

// Name is the first of its names, by which it is told from others on its port.
func (r Route) Name() string {
	if len(r.Hosts) == 0 {
		return ""
	}
	return r.Hosts[0]
}

func (r Route) place() place { return place{Owner: r.Owner, Addr: r.OwnerAddr, Epoch: r.Epoch} }

// RoutePostgres says which PostgresOptions a route has. What is secret of them is in files
// of each node: see Options.Secrets.
type RoutePostgres struct {
	TLS     bool `json:",omitempty"` // tls.crt and tls.key are shown to clients that ask for TLS
	PassTLS bool `json:",omitempty"`
	Auth    bool `json:",omitempty"` // passwords are verified as auth-user, by auth-password
}

// gate makes the gate that a node's clients of the route get to.
func (r Route) gate(options PostgresOptions, dial Dialer, log *slog.Logger) (*Gate, error) {
	if r.Mode != Postgres {
		return NewGate(r.Mode, dial, r.Limits, log)
	}
	return NewPostgresGate(options, dial, r.Limits, log)
}

// Announce is a version of the PROXY protocol, or none.
type Announce string

// The versions.
const (
	AnnounceNone Announce = ""
	AnnounceV1   Announce = "v1"
	AnnounceV2   Announce = "v2"
)

// Validate says what is wrong with a route by itself.
func (r Route) Validate() error {
	switch {
	case r.ID == "":
		return fmt.Errorf("a route without an ID")
	case r.Listen == 0:
		return fmt.Errorf("route %s: it has no port to listen on", r.ID)
	case r.Mode.protocol() == nil:
		return fmt.Errorf("route %s: mode %q is not known; there are: http, postgres, redis, tcp, tls", r.ID, r.Mode)
	case len(r.Hosts) > 0 && r.Mode != HTTP && r.Mode != TLS:
		return fmt.Errorf("route %s: clients of mode %s do not say which name they want", r.ID, r.Mode)
	case r.Postgres != nil && r.Mode != Postgres:
		return fmt.Errorf("route %s: it has options of PostgreSQL in mode %s", r.ID, r.Mode)
	case r.Postgres != nil && r.Postgres.PassTLS && (r.Postgres.TLS || r.Postgres.Auth):
		return fmt.Errorf("route %s: TLS is passed to the server, so that there is nothing for the gate to read", r.ID)
	case !slices.Contains([]Announce{AnnounceNone, AnnounceV1, AnnounceV2}, r.Announce):
		return fmt.Errorf("route %s: the PROXY protocol has the versions v1 and v2, not %q", r.ID, r.Announce)
	case r.Announce != AnnounceNone && (r.Mode == Redis || r.Mode == Postgres):
		return fmt.Errorf("route %s: servers of mode %s do not read the PROXY protocol", r.ID, r.Mode)
	}
	if r.Server != "" {
		if _, _, err := net.SplitHostPort(r.Server); err != nil {
			return fmt.Errorf("route %s: the server's address: %w", r.ID, err)
		}
	}
	return nil
}

// Config is all that a node's proxy is told. Each one takes the place of the last.
type Config struct {
	Node    string   // this one
	Members []string // nodes that may connect to this one
	Routes  []Route
	// Waiting bounds the clients of all routes together, in place of Options.Waiting; 0: that.
	Waiting int `json:",omitempty"`
}

// Validate says what is wrong with it. Ports, or names there, that two routes want are no error here: the
// second one is not listened on, and says so in its status.
func (c Config) Validate() error {
	if c.Node == "" {
		return fmt.Errorf("the configuration does not say which node this is")
	}
	seen := make(map[string]bool)
	for _, r := range c.Routes {
		if err := r.Validate(); err != nil {
			return err
		}
		if seen[r.ID] {
			return fmt.Errorf("route %s is there twice", r.ID)
		}
		seen[r.ID] = true
	}
	return nil
}

// Controller is what may be asked of a node's proxy, by its flockd: a Client asks through
// a socket. Pause, Quiet, Cut and Resume are for the routes that this node owns; they are
// safe to repeat.
type Controller interface {
	// Apply takes a whole configuration. Sessions of routes that stay are not touched, but
	// for those that still have a connection to an owner that is none any more. What cannot be done for one route, such as to listen on a port
	// that is taken, is told by its status and tried again.
	Apply(ctx context.Context, c Config) error
	// Pause keeps everything new from the server: no connection to it is made from now on,
	// and those that clients of any node have are let go as soon as nothing is outstanding
	// on them. What waits longer than event, all in all, is refused; 0 means the route's
	// limit. The pause itself ends by Resume, or when another node owns the route. It
	// outlasts a restart of the proxy.
	Pause(ctx context.Context, route string, event time.Duration) error
	// Quiet waits until the server has not one connection through the proxy, and all that
	// it answered has been delivered. When ctx ends first the error is a *Busy.
	Quiet(ctx context.Context, route string) error
	// Cut ends the connections that keep a paused route from being quiet.
	Cut(ctx context.Context, route string) error
	// Resume lets everything go on, towards server, or where it went before if it is "".
	Resume(ctx context.Context, route, server string) error
	Status(ctx context.Context) (Status, error)
}

// Status is what a node's proxy does.
type Status struct {
	Node    string
	Process int  // its PID
	Hosts   bool `json:",omitempty"` // it tells several routes on one port apart
	// Version of the program that runs; "" where it does not say.
	Version string `json:",omitempty"`
	Routes  []RouteStatus
}

// RouteStatus is what it does for a route: for clients that came to this node and, at the
// owner, for the server.
type RouteStatus struct {
	ID       string
	Listen   uint16
	Name     string `json:",omitempty"` // the first of Route.Hosts
	Mode     Mode
	Epoch    uint64
	Owner    string // as this node knows it: not always the newest
	Sessions int    // of clients of this node
	Parked   int
	Held     int       // with a request that waits
	HeldEver int64     // requests, and new connections, that a pause kept waiting since the process began
	Pinned   []Session `json:",omitempty"` // that cannot be moved
	Busy     []Session `json:",omitempty"` // that are not to be moved at this moment, though a pause wants it
	Paused   time.Time `json:",omitzero"`  // since when; zero if it is not

	// At the owner.
	Server string `json:",omitempty"`
	Nodes  int    `json:",omitempty"` // whose clients may connect to the server
	Open   int    `json:",omitempty"` // connections to the server

	Problem string `json:",omitempty"` // such as that it cannot listen
}

// Route finds the status of a route; ok is false if there is none.
func (s Status) Route(id string) (r RouteStatus, ok bool) {
	i := slices.IndexFunc(s.Routes, func(r RouteStatus) bool { return r.ID == id })
	if i < 0 {
		return r, false
	}
	return s.Routes[i], true
}
