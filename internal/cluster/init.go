package cluster

import (
	"context"
	"encoding/json"
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
	// IfNew makes Init succeed, and do nothing, on a node that is in a cluster.
	IfNew bool
}

// InitResult is the cluster made, or found.
type InitResult struct {
	ClusterID string
	Node      volume.NodeID
	// Existed says that IfNew found the node in a cluster; then there is no token.
	Existed bool
	// Token lets other nodes join, for DefaultTokenTTL. It cannot be read again.
	Token   string
	Expires time.Time
}

// Init makes the identity of a new cluster and of its first node, on disk. Open and
// Run then bring it to life: the cluster exists when State().Cluster() is not nil,
// which Wait can wait for. A crash in between loses nothing: before node.json is
// written the next Init starts anew; after that Run finishes the work.
func Init(_ context.Context, cfg Config, req InitRequest) (InitResult, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return InitResult{}, err
	}
	switch rec, err := loadRecord(cfg.Disk); {
	case err == nil && req.IfNew:
		return InitResult{ClusterID: rec.Cluster, Node: rec.Node, Existed: true}, nil
	case err == nil:
		return InitResult{}, volume.Errorf(volume.CodeConflict, "this node is a member of cluster %s already", rec.Cluster)
	case !errors.Is(err, ErrNoCluster):
		return InitResult{}, err
	}
	if err := checkFresh(cfg.Disk); err != nil {
		return InitResult{}, err
	}
	node, err := newNode(cfg, req.Name, req.Zone, req.Advertise, req.GossipAdvertise)
	if err != nil {
		return InitResult{}, err
	}

	// The CA, this node's certificate, and the CA's key under its seal.
	now := time.Now()
	clusterID := string(volume.NewNodeID()) // 128 random bits, too
	ca, err := transport.NewAuthority(clusterID, now)
	if err != nil {
		return InitResult{}, err
	}
	caKey, err := ca.KeyPEM()
	if err != nil {
		return InitResult{}, err
	}
	sealKey := newSealKey()
	sealed, err := seal(sealKey, clusterID, caKey)
	if err != nil {
		return InitResult{}, err
	}
	node.ID = volume.NewNodeID()
	key, err := transport.NewKey()
	if err != nil {
		return InitResult{}, err
	}
	if node.KeyHash, err = transport.KeyHash(key); err != nil {
		return InitResult{}, err
	}
	csr, err := transport.NewRequest(key)
	if err != nil {
		return InitResult{}, err
	}
	cert, err := ca.Issue(csr, clusterID, node.ID, now)
	if err != nil {
		return InitResult{}, err
	}
	digest, err := transport.DigestRoot(ca.CertPEM())
	if err != nil {
		return InitResult{}, err
	}

	// What Run commits.
	token, text := NewToken(digest, now, 0, 0)
	token.Note = "made by init"
	node.Joined = now
	commands := []state.Command{
		state.InitCluster{
			Cluster: state.Cluster{
				ID: clusterID, Created: now, CACert: ca.CertPEM(), CAKey: sealed,
				GossipKeys: [][]byte{newSealKey()}, // as long, as random
			},
			Node: node,
		},
		state.CreateToken{Token: token},
	}
	var first initFile
	for _, cmd := range commands {
		b, err := state.Encode(state.Envelope{Request: string(volume.NewNodeID()), At: now, Command: cmd})
		if err != nil {
			return InitResult{}, err
		}
		first.Commands = append(first.Commands, b)
	}
	err = writeAll(cfg.Disk,
		file{fileKey, key}, file{fileCert, cert}, file{fileRoot, ca.CertPEM()}, file{fileSeal, sealKey},
		file{fileInit, first},
		file{fileNode, record{Node: node.ID, Cluster: clusterID, Name: node.Name}},
	)
	if err != nil {
		return InitResult{}, err
	}
	return InitResult{ClusterID: clusterID, Node: node.ID, Token: text, Expires: token.Expires}, nil
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

// initFile is init.json: the first entries of the log. They have request IDs, so
// proposing them twice is harmless.
type initFile struct {
	Commands []json.RawMessage `json:"commands"`
}

// finishInit proposes what Init has prepared, once this node leads itself.
func (c *Cluster) finishInit(ctx context.Context) {
	var first initFile
	err := readJSON(c.disk, fileInit, &first)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		c.fail(err)
		return
	}
	c.Lead(ctx, func(ctx context.Context) error {
		for _, b := range first.Commands {
			e, err := state.Decode(b)
			if err != nil {
				return err
			}
			res, err := c.Propose(ctx, e)
			if err != nil {
				return err
			}
			if res.Err != nil && res.Err.Code != volume.CodeConflict {
				return res.Err
			}
		}
		return c.disk.Remove(fileInit)
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
