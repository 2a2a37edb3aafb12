package cluster

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

const (
	// rejoinEvery heals what serf does not by itself: after a long cut both sides
	// have forgotten each other.
	rejoinEvery = 10 * time.Second
	rejoinPeers = 5 // asked at a time
	// gossipDial bounds a join of a peer that does not answer.
	gossipDial = 3 * time.Second
)

// serfGossip is Gossip with hashicorp/serf, in one pool for all zones.
type serfGossip struct {
	self      volume.NodeID
	cluster   string
	version   string
	listen    string
	advertise string
	log       *slog.Logger

	mu     sync.Mutex
	health map[volume.NodeID]Health
}

// newGossip is nothing without an address to listen on.
func newGossip(cfg Config, rec record, log *slog.Logger) Gossip {
	if cfg.GossipListen == "" {
		return NoGossip{}
	}
	return &serfGossip{
		self: rec.Node, cluster: rec.Cluster, version: cfg.Version, listen: cfg.GossipListen,
		advertise: cfg.GossipAdvertise, log: log.With("part", "gossip"), health: map[volume.NodeID]Health{},
	}
}

// Health of a node.
func (g *serfGossip) Health(id volume.NodeID) Health {
	g.mu.Lock()
	defer g.mu.Unlock()
	if h, ok := g.health[id]; ok {
		return h
	}
	return Unknown
}

// Run gossips until ctx ends. What fails is logged and tried again: a node without
// gossip works.
func (g *serfGossip) Run(ctx context.Context, c *Cluster) {
	for {
		s, err := c.Wait(ctx, func(s *state.State) bool {
			return s.Cluster() != nil && len(s.Cluster().GossipKeys) > 0 && s.Node(g.self) != nil
		})
		if err != nil {
			return
		}
		if err := g.run(ctx, c, s); err != nil {
			g.log.Error("gossip does not work; nodes that die are noticed later", "err", err)
		}
		if !sleep(ctx, rejoinEvery) {
			return
		}
	}
}

// run one serf until ctx ends.
func (g *serfGossip) run(ctx context.Context, c *Cluster, s *state.State) error {
	events := make(chan serf.Event, 64)
	conf, err := g.config(s, events)
	if err != nil {
		return err
	}
	node, err := serf.Create(conf)
	if err != nil {
		return err
	}
	// serf blocks when its events are not taken, so they are until it has stopped.
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { g.watch(events, node.ShutdownCh()) })
	defer node.Shutdown()
	defer context.AfterFunc(ctx, func() { node.Shutdown() })()

	ticker := time.NewTicker(rejoinEvery)
	defer ticker.Stop()
	g.rejoin(node, s)
	for {
		changed := c.Changed()
		if cl := c.State().Cluster(); cl != nil {
			g.setKeys(conf.MemberlistConfig.Keyring, cl.GossipKeys)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-node.ShutdownCh():
			return fmt.Errorf("serf has stopped by itself")
		case <-ticker.C:
			g.rejoin(node, c.State())
		case <-changed:
		}
	}
}

func (g *serfGossip) config(s *state.State, events chan<- serf.Event) (*serf.Config, error) {
	logger := log.New(lineWriter{g.log}, "", 0)
	ml := memberlist.DefaultLANConfig()
	ml.Logger = logger
	ml.TCPTimeout = gossipDial
	ml.Label = g.cluster
	var err error
	if ml.BindAddr, ml.BindPort, err = splitIP(g.listen); err != nil {
		return nil, err
	}
	advertise := g.advertise
	if advertise == "" {
		advertise = s.Node(g.self).GossipAddr
	}
	if advertise != "" {
		if ml.AdvertiseAddr, ml.AdvertisePort, err = splitIP(advertise); err != nil {
			return nil, err
		}
	}
	keys := s.Cluster().GossipKeys
	if ml.Keyring, err = memberlist.NewKeyring(keys, keys[0]); err != nil {
		return nil, err
	}
	self := s.Node(g.self)
	conf := serf.DefaultConfig()
	conf.Init()
	conf.NodeName = string(g.self)
	conf.Tags = map[string]string{"cluster": g.cluster, "name": self.Name, "zone": string(self.Zone), "version": g.version}
	conf.EventCh = events
	conf.MemberlistConfig = ml
	conf.Logger = logger
	conf.Merge = sameCluster(g.cluster)
	conf.DisableCoordinates = true
	// A vote on who may keep a name could be lost to a forger; IDs do not collide.
	conf.EnableNameConflictResolution = false
	return conf, nil
}

// splitIP resolves what memberlist takes as numbers only.
func splitIP(addr string) (ip string, port int, err error) {
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return "", 0, fmt.Errorf("gossip address %q: %w", addr, err)
	}
	if a.IP == nil {
		return "0.0.0.0", a.Port, nil
	}
	return a.IP.String(), a.Port, nil
}

// watch takes serf's events.
func (g *serfGossip) watch(events <-chan serf.Event, stopped <-chan struct{}) {
	for {
		select {
		case <-stopped:
			g.mu.Lock()
			clear(g.health)
			g.mu.Unlock()
			return
		case e := <-events:
			m, ok := e.(serf.MemberEvent)
			if !ok {
				continue
			}
			for _, member := range m.Members {
				g.note(volume.NodeID(member.Name), m.Type)
			}
		}
	}
}

func (g *serfGossip) note(id volume.NodeID, what serf.EventType) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch what {
	case serf.EventMemberJoin, serf.EventMemberUpdate:
		g.health[id] = Alive
	case serf.EventMemberFailed, serf.EventMemberLeave:
		g.health[id] = Dead
	case serf.EventMemberReap:
		delete(g.health, id)
	}
}

// rejoin some members that gossip does not know to be alive.
func (g *serfGossip) rejoin(node *serf.Serf, s *state.State) {
	var addrs []string
	for n := range s.Nodes() {
		if n.ID != g.self && n.GossipAddr != "" && g.Health(n.ID) != Alive {
			addrs = append(addrs, n.GossipAddr)
		}
	}
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	addrs = addrs[:min(len(addrs), rejoinPeers)]
	if len(addrs) == 0 {
		return
	}
	if _, err := node.Join(addrs, true); err != nil {
		g.log.Debug("gossip cannot reach some members", "addrs", addrs, "err", err)
	}
}

// setKeys makes the ring hold exactly keys, the first one in use.
func (g *serfGossip) setKeys(ring *memberlist.Keyring, keys [][]byte) {
	if len(keys) == 0 {
		return
	}
	for _, k := range keys {
		if err := ring.AddKey(k); err != nil {
			g.log.Error("cannot use a gossip key", "err", err)
			return
		}
	}
	if bytes.Equal(ring.GetPrimaryKey(), keys[0]) && len(ring.GetKeys()) == len(keys) {
		return
	}
	if err := ring.UseKey(keys[0]); err != nil {
		g.log.Error("cannot use a gossip key", "err", err)
		return
	}
	for _, k := range slices.Clone(ring.GetKeys()) {
		if !slices.ContainsFunc(keys, func(w []byte) bool { return bytes.Equal(w, k) }) {
			ring.RemoveKey(k)
		}
	}
}

// sameCluster refuses members of other clusters that somehow have our key.
type sameCluster string

// NotifyMerge implements serf.MergeDelegate.
func (c sameCluster) NotifyMerge(members []*serf.Member) error {
	for _, m := range members {
		if got := m.Tags["cluster"]; got != string(c) {
			return fmt.Errorf("gossip of cluster %q at %s", got, net.JoinHostPort(m.Addr.String(), strconv.Itoa(int(m.Port))))
		}
	}
	return nil
}
