package cluster

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
)

// InitRequest makes a cluster of this node alone.
type InitRequest struct {
	Name string
	Zone volume.Zone // "": volume.DefaultZone
	// Advertise and GossipAdvertise are where other nodes reach this one; empty ones
	// are taken from the Config.
	Advertise, GossipAdvertise string
	// Settings that the cluster begins with.
	Settings state.Settings
	// IfNew makes Init succeed on a node that is in a cluster: it opens that.
	IfNew bool
}

// Init makes the identity of a new cluster and of its first node, on disk, and opens
// it; Run brings it to life. A crash in between loses nothing: before node.json is
// written the next Init starts anew; after that Run finishes the work.
func Init(_ context.Context, cfg Config, req InitRequest) (*Cluster, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if why, err := loadRetired(cfg.Disk); err != nil || why != nil {
		return nil, cmp.Or(err, why)
	}
	if err := checkNew(cfg, req.IfNew); errors.Is(err, errIsMember) {
		return Open(cfg)
	} else if err != nil {
		return nil, err
	}
	if err := writeInit(cfg, req); err != nil {
		return nil, err
	}
	return Open(cfg)
}

// errIsMember means that there is nothing to do.
var errIsMember = errors.New("this node is a member already")

// checkNew refuses to make a member of a node that is one; errIsMember says that
// this is fine with the caller.
func checkNew(cfg Config, ifNew bool) error {
	rec, err := loadRecord(cfg.Disk)
	switch {
	case errors.Is(err, ErrNoCluster):
		return checkFresh(cfg.Disk)
	case err != nil:
		return err
	case ifNew:
		return errIsMember
	}
	return volume.Errorf(volume.CodeConflict, "this node is a member of cluster %s already", rec.Cluster).
		WithHint("a node leaves its cluster only by being removed from it")
}

// writeInit makes the files of the first member.
func writeInit(cfg Config, req InitRequest) error {
	node, err := newNode(cfg, req.Name, req.Zone, req.Advertise, req.GossipAdvertise)
	if err != nil {
		return err
	}

	// The CA, this node's certificate, and the CA's key under its seal.
	now := time.Now()
	clusterID := string(volume.NewNodeID()) // 128 random bits, too
	ca, err := transport.NewAuthority(clusterID, now)
	if err != nil {
		return err
	}
	caKey, err := ca.KeyPEM()
	if err != nil {
		return err
	}
	sealKey := newSealKey()
	sealed, err := seal(sealKey, clusterID, caKey)
	if err != nil {
		return err
	}
	node.ID = volume.NewNodeID()
	key, err := transport.NewKey()
	if err != nil {
		return err
	}
	if node.KeyHash, err = transport.KeyHash(key); err != nil {
		return err
	}
	csr, err := transport.NewRequest(key)
	if err != nil {
		return err
	}
	cert, err := ca.Issue(csr, clusterID, node.ID, now, cfg.certLife)
	if err != nil {
		return err
	}

	// What Run commits.
	node.Joined = now
	first, err := state.Encode(state.Envelope{Request: string(volume.NewNodeID()), At: now, Command: state.InitCluster{
		Cluster: state.Cluster{
			ID: clusterID, Created: now, CACert: ca.CertPEM(), CAKey: sealed,
			GossipKeys: [][]byte{newSealKey()}, // as long, as random
			Settings:   req.Settings,
		},
		Node: node,
	}})
	if err != nil {
		return err
	}
	return writeAll(cfg.Disk,
		file{fileKey, key}, file{fileCert, cert}, file{fileRoot, ca.CertPEM()}, file{fileSeal, sealKey},
		file{fileInit, first},
		file{fileNode, record{Node: node.ID, Cluster: clusterID, Name: node.Name}},
	)
}

// newNode checks what the user said of the node.
func newNode(cfg Config, name string, zone volume.Zone, addr, gossip string) (state.Node, error) {
	if zone == "" {
		zone = volume.DefaultZone
	}
	if err := checkNames(name, zone); err != nil {
		return state.Node{}, err
	}
	if addr == "" {
		addr = cfg.Advertise
	}
	if gossip == "" {
		gossip = cfg.GossipAdvertise
	}
	if err := checkAddr("advertised", addr); err != nil {
		return state.Node{}, err
	}
	if gossip != "" {
		if err := checkAddr("advertised gossip", gossip); err != nil {
			return state.Node{}, err
		}
	}
	return state.Node{Name: name, Zone: zone, Addr: addr, GossipAddr: gossip, Availability: state.Active}, nil
}

// finishInit proposes what Init has prepared, once this node leads itself. The
// command has a request ID, so proposing it twice is harmless.
func (c *Cluster) finishInit(ctx context.Context) {
	b, err := c.disk.Read(fileInit)
	if errors.Is(err, fs.ErrNotExist) {
		close(c.initialised)
		return
	}
	if err != nil {
		c.fail(err)
		return
	}
	ctx, done := context.WithCancel(ctx)
	defer done()
	c.Lead(ctx, func(ctx context.Context) error {
		e, err := state.Decode(b)
		if err != nil {
			return err
		}
		if _, err := c.propose(ctx, e); err != nil {
			return err
		}
		if err := c.disk.Remove(fileInit); err != nil {
			return err
		}
		close(c.initialised)
		done()
		return nil
	})
}

// NewToken makes a token for this cluster: the record to propose with
// state.CreateToken, and the text for the joiner. A ttl of 0 is DefaultTokenTTL,
// maxUses 0 any number.
func (c *Cluster) NewToken(now time.Time, ttl time.Duration, maxUses int) (state.Token, string, error) {
	digest, err := transport.DigestRoot(c.id.RootPEM())
	if err != nil {
		return state.Token{}, "", err
	}
	t, text := NewToken(digest, now, ttl, maxUses)
	return t, text, nil
}
