package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"time"

	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
)

// Default ports.
const (
	DefaultPort       = 4523 // TCP: everything between nodes
	DefaultGossipPort = 4524 // TCP and UDP: serf
)

// Config is what a node needs to be a member. Only Dir (or Disk) and Listen have no
// default.
type Config struct {
	// Dir holds the node's key, its certificate and the Raft log. It must not be on
	// the pool that flocker manages: a suspended pool would stop the control plane,
	// and a rollback of the log would break Raft's promises.
	Dir string
	// Disk replaces Dir, in tests.
	Disk Disk

	// Listen is the address of the mTLS port, "host:port"; GossipListen that of
	// serf. An empty GossipListen turns gossip off.
	Listen, GossipListen string
	// Advertise and GossipAdvertise are the addresses where other nodes reach this
	// one. When they are not what the cluster has on record, Run tells it. Empty
	// ones change nothing.
	Advertise, GossipAdvertise string

	// ListenFunc and DialFunc replace TCP, in tests.
	ListenFunc func(ctx context.Context, network, addr string) (net.Listener, error)
	DialFunc   transport.DialFunc
	// Gossip replaces serf, in tests.
	Gossip Gossip

	Timing Timing
	// certLife is the life of the certificates that this node signs; 0: 90 days.
	certLife time.Duration

	Version string       // of flockd, shown to the others
	Log     *slog.Logger // nil: slog.Default()
}

// Timing are the control plane's clocks. Zero fields take the default.
type Timing struct {
	Heartbeat   time.Duration // 1.5 s: a follower without contact for so long calls an election
	Election    time.Duration // 1.5 s
	LeaderLease time.Duration // 1 s: a leader without contact to a majority for so long steps down
	// Commit (50 ms) bounds, doubled, how long a follower is behind the leader while
	// little happens. It costs one RPC per follower and interval.
	Commit time.Duration

	Stable    time.Duration // 30 s: alive without a break before a node may become a voter
	DeadAfter time.Duration // 60 s: dead without a break before a voter is replaced
	Reconcile time.Duration // 1 s: the leader compares the voters with what they should be
	Retry     time.Duration // 5 s: between attempts at what failed

	// Canary is how long one write to Dir may take (5 s). A leader whose disk hangs
	// stays leader for ever and commits nothing, so past this it gives up.
	Canary time.Duration
}

func (t Timing) withDefaults() Timing {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&t.Heartbeat, 1500*time.Millisecond)
	def(&t.Election, 1500*time.Millisecond)
	def(&t.LeaderLease, time.Second)
	def(&t.Commit, 50*time.Millisecond)
	def(&t.Stable, 30*time.Second)
	def(&t.DeadAfter, 60*time.Second)
	def(&t.Reconcile, time.Second)
	def(&t.Retry, 5*time.Second)
	def(&t.Canary, 5*time.Second)
	return t
}

// ElectionTime is how long it takes at most, but for votes that are split again and
// again, until a new leader is known after one was lost: a follower waits for twice the
// heartbeat, an election lasts twice its timeout.
func (t Timing) ElectionTime() time.Duration {
	t = t.withDefaults()
	return 2 * (t.Heartbeat + t.Election)
}

// Validate checks what raft would refuse later, with less to say about it.
func (t Timing) Validate() error {
	t = t.withDefaults()
	switch {
	case t.LeaderLease > t.Heartbeat:
		return fmt.Errorf("timing: the leader lease (%s) must not be longer than the heartbeat (%s)", t.LeaderLease, t.Heartbeat)
	case t.Election < t.Heartbeat:
		return fmt.Errorf("timing: the election timeout (%s) must not be shorter than the heartbeat (%s)", t.Election, t.Heartbeat)
	}
	return nil
}

func (c Config) withDefaults() (Config, error) {
	if err := c.Timing.Validate(); err != nil {
		return c, err
	}
	c.Timing = c.Timing.withDefaults()
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Disk == nil {
		if c.Dir == "" {
			return c, errors.New("cluster: no directory for the node's state")
		}
		c.Disk = DirDisk(c.Dir)
	}
	if c.ListenFunc == nil {
		c.ListenFunc = (&net.ListenConfig{}).Listen
	}
	if c.DialFunc == nil {
		c.DialFunc = (&net.Dialer{}).DialContext
	}
	return c, nil
}

var nodeName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$`)

// checkNames refuses names that would be hard to tell apart or to type.
func checkNames(name string, zone volume.Zone) *volume.Error {
	if !nodeName.MatchString(name) {
		return volume.Errorf(volume.CodeInvalid, "node name %q: want up to 64 letters, digits, dots, dashes and underscores", name)
	}
	if !nodeName.MatchString(string(zone)) {
		return volume.Errorf(volume.CodeInvalid, "zone %q: want up to 64 letters, digits, dots, dashes and underscores", zone)
	}
	return nil
}

// checkAddr refuses an address that others could not dial.
func checkAddr(what, addr string) *volume.Error {
	host, port, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	if err != nil || host == "" || port == "" || port == "0" || ip != nil && ip.IsUnspecified() {
		return volume.Errorf(volume.CodeInvalid, "%s address %q: want host:port that other nodes can reach", what, addr)
	}
	return nil
}
