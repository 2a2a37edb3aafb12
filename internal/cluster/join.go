package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
)

// JoinRequest makes this node a member of a cluster that exists.
type JoinRequest struct {
	Token string
	Peers []string // addresses of members; one is enough
	Name  string
	Zone  volume.Zone // "": volume.DefaultZone
	// Advertise and GossipAdvertise are where other nodes reach this one; empty ones
	// are taken from the Config. An Advertise without a host (":4523") gets the
	// address that this machine reaches the member from.
	Advertise, GossipAdvertise string
	// Witness nodes have no pool: they vote, and hold no volumes.
	Witness bool
	// LeaseNo is the number of the last lease that this machine's fencer knows of, from an
	// earlier membership; 0: none.
	LeaseNo uint64
	// IfNew makes Join succeed on a node that is in a cluster: it opens that.
	IfNew bool
	// Wait goes on trying while no member answers, until ctx ends.
	Wait bool
}

// Messages of the operation "join".
type (
	joinMessage struct {
		TokenID string     `json:"token_id"`
		Secret  string     `json:"secret"`
		Node    state.Node `json:"node"`
		CSR     []byte     `json:"csr"`
	}
	joinAnswer struct {
		Cert       []byte `json:"cert"`
		Peers      []peer `json:"peers"`
		Generation uint32 `json:"generation,omitempty"`
	}
)

// joinPatience is how long Join waits for a cluster that is there and has no leader
// at the moment.
const joinPatience = 20 * time.Second

// Join asks a member to be let in, writes the membership to disk and opens it; Run
// brings it to life. The machine knows the cluster by the token's digest before it says
// the token's secret. A join that failed half-way, on either side, is repeated with
// the same identity and does no harm. A node that was left behind by a recovery joins as
// the one that it was, one that was removed as a new one.
func Join(ctx context.Context, cfg Config, req JoinRequest) (*Cluster, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	retired, err := loadRetired(cfg.Disk)
	switch {
	case err != nil:
		return nil, err
	case retired != nil && req.IfNew:
		return nil, retired // people took it out; no script brings it back
	case retired != nil:
	default:
		if err := checkNew(cfg, req.IfNew); errors.Is(err, errIsMember) {
			return Open(cfg)
		} else if err != nil {
			return nil, err
		}
	}
	token, err := ParseToken(req.Token)
	if err != nil {
		return nil, err
	}
	if len(req.Peers) == 0 {
		return nil, volume.Errorf(volume.CodeInvalid, "no address of a member to ask").WithHint("use --peer HOST:PORT")
	}
	who, err := loadPending(cfg.Disk, retired == ErrLeftBehind)
	if err != nil {
		return nil, err
	}
	j := &joiner{cfg: cfg, req: req, token: token, who: who}
	srv, answer, err := j.run(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := transport.NewIdentity(answer.Cert, who.Key, srv.RootPEM); err != nil {
		return nil, fmt.Errorf("the certificate that the cluster gave cannot be used: %w", err)
	}
	if retired != nil {
		if err := forgetLog(cfg.Disk); err != nil {
			return nil, fmt.Errorf("removing the log of the time before: %w", err)
		}
	}
	err = writeAll(cfg.Disk,
		file{fileKey, who.Key}, file{fileCert, answer.Cert}, file{fileRoot, srv.RootPEM},
		file{fileNode, record{Node: who.Node, Cluster: srv.Cluster, Name: req.Name, Generation: answer.Generation, Peers: answer.Peers}},
	)
	if err != nil {
		return nil, err
	}
	if err := cfg.Disk.Remove(fileRetired); err != nil {
		return nil, err
	}
	if err := cfg.Disk.Remove(filePending); err != nil {
		cfg.Log.Warn("cannot remove a file that is no longer needed", "file", filePending, "err", err)
	}
	return Open(cfg)
}

// loadPending makes the identity of a join, or reads that of the last try, or, for one who
// comes back, that of the member it was.
func loadPending(d Disk, back bool) (pending, error) {
	var p pending
	if back {
		rec, err := loadRecord(d)
		if err != nil {
			return p, err
		}
		p.Node = rec.Node
		p.Key, err = d.Read(fileKey)
		return p, err
	}
	err := readJSON(d, filePending, &p)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return p, err
	}
	if p.Key, err = transport.NewKey(); err != nil {
		return p, err
	}
	p.Node = volume.NewNodeID()
	return p, writeAll(d, file{filePending, p})
}

// joiner is one Join under way.
type joiner struct {
	cfg   Config
	req   JoinRequest
	token Token
	who   pending
}

// run asks one member after the other, follows them to the leader, and comes again
// while the cluster says "not now".
func (j *joiner) run(ctx context.Context) (transport.Server, joinAnswer, error) {
	var firstNotNow time.Time
	for {
		var lastErr error
		for _, addr := range j.req.Peers {
			srv, answer, err := j.ask(ctx, addr)
			var moved *redirect
			if errors.As(err, &moved) {
				srv, answer, err = j.ask(ctx, moved.to.Addr)
			}
			if err == nil {
				return srv, answer, nil
			}
			lastErr = err
			if final(err) {
				return srv, answer, err
			}
		}
		// Nobody could answer. A member that was there asks for patience; one that
		// was not is only waited for when the user said so.
		code := volume.CodeOf(lastErr)
		notNow := code == volume.CodeNoQuorum || code == volume.CodeUnavailable || code == volume.CodeTimeout
		if notNow && firstNotNow.IsZero() {
			firstNotNow = time.Now()
		}
		if !j.req.Wait && (!notNow || time.Since(firstNotNow) > joinPatience) {
			return transport.Server{}, joinAnswer{}, lastErr
		}
		if !sleep(ctx, time.Second) {
			return transport.Server{}, joinAnswer{}, fmt.Errorf("%w; the last try: %w", context.Cause(ctx), lastErr)
		}
	}
}

// final says that asking again, or somebody else, would not help.
func final(err error) bool {
	switch volume.CodeOf(err) {
	case volume.CodeDenied, volume.CodeConflict, volume.CodeInvalid, volume.CodeRefused:
		return true
	}
	return false
}

func (j *joiner) ask(ctx context.Context, addr string) (transport.Server, joinAnswer, error) {
	var answer joinAnswer
	conn, srv, err := transport.DialJoin(ctx, j.cfg.DialFunc, addr, j.token.Root)
	if errors.Is(err, transport.ErrWrongRoot) {
		return srv, answer, volume.Errorf(volume.CodeDenied, "the node at %s is of another cluster than the join token", addr)
	}
	var clock *transport.ClockError
	if errors.As(err, &clock) {
		return srv, answer, &volume.Error{Code: volume.CodeRefused, Message: err.Error(), Hint: "set the clock of this machine (chrony or systemd-timesyncd keeps it right)"}
	}
	if err != nil {
		return srv, answer, err
	}
	node, err := newNode(j.cfg, j.req.Name, j.req.Zone,
		fillHost(j.req.Advertise, j.cfg.Advertise, conn.LocalAddr()),
		fillHost(j.req.GossipAdvertise, j.cfg.GossipAdvertise, conn.LocalAddr()))
	if err != nil {
		conn.Close()
		return srv, answer, err
	}
	node.ID, node.Witness, node.Lease.No = j.who.Node, j.req.Witness, j.req.LeaseNo
	csr, err := transport.NewRequest(j.who.Key)
	if err != nil {
		conn.Close()
		return srv, answer, err
	}
	err = call(ctx, conn, "join", joinMessage{
		TokenID: j.token.ID, Secret: j.token.Secret, Node: node, CSR: csr,
	}, &answer)
	return srv, answer, err
}

// fillHost completes an address that has only a port with the host that this machine
// is known by on the way to the member.
func fillHost(addr, fallback string, local net.Addr) string {
	if addr == "" {
		addr = fallback
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host != "" {
		return addr
	}
	if host, _, err = net.SplitHostPort(local.String()); err != nil {
		return addr
	}
	return net.JoinHostPort(host, port)
}

// handleJoin lets a machine in. Only the leader does, since only it can count a
// token's uses; the others say where the leader is.
func (c *Cluster) handleJoin(ctx context.Context, _ volume.NodeID, body json.RawMessage) (any, error) {
	var m joinMessage
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "join: %v", err)
	}
	// The newest state, so that a token made a moment ago is known here.
	if _, err := c.Barrier(ctx); err != nil {
		return nil, err
	}
	if err := checkSecret(c.State().Token(m.TokenID), m.Secret); err != nil {
		c.log.Warn("refused a join", "name", m.Node.Name, "addr", m.Node.Addr, "err", err)
		return nil, err
	}
	node := state.Node{
		ID: m.Node.ID, Name: m.Node.Name, Zone: m.Node.Zone, Addr: m.Node.Addr, GossipAddr: m.Node.GossipAddr,
		Witness: m.Node.Witness, Availability: state.Active, Joined: time.Now(),
		Lease: state.Lease{No: m.Node.Lease.No},
	}
	if _, err := volume.ParseNodeID(string(node.ID)); err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "join: %v", err)
	}
	if err := checkNames(node.Name, node.Zone); err != nil {
		return nil, err
	}
	if err := checkAddr("advertised", node.Addr); err != nil {
		return nil, err
	}
	if node.GossipAddr != "" { // a node without gossip has none
		if err := checkAddr("advertised gossip", node.GossipAddr); err != nil {
			return nil, err
		}
	}
	var err error
	if node.KeyHash, err = transport.RequestKeyHash(m.CSR); err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "join: %v", err)
	}
	ca, err := c.authority()
	if err != nil {
		return nil, err
	}

	// Listed first, certificate second: whoever has a certificate is, or was, listed.
	res, err := c.Propose(ctx, state.Envelope{
		Request: string(volume.NewNodeID()), At: node.Joined, Command: state.AddNode{Node: node, Token: m.TokenID},
	})
	if err != nil {
		return nil, err
	}
	if res.Err != nil {
		c.log.Warn("refused a join", "name", node.Name, "addr", node.Addr, "err", res.Err)
		return nil, res.Err
	}
	cert, err := ca.Issue(m.CSR, c.record.Cluster, node.ID, time.Now(), c.cfg.certLife)
	if err != nil {
		return nil, err
	}
	c.log.Info("a node joined", "joined", node.ID.Short(), "name", node.Name, "zone", node.Zone, "addr", node.Addr)
	answer := joinAnswer{Cert: cert, Generation: c.record.Generation}
	for n := range c.State().Nodes() {
		if n.ID != node.ID && !n.Lost {
			answer.Peers = append(answer.Peers, peer{Node: n.ID, Addr: n.Addr})
		}
	}
	return answer, nil
}

// authority opens the CA.
func (c *Cluster) authority() (*transport.Authority, error) {
	unavailable := func(format string, args ...any) error {
		return volume.Errorf(volume.CodeUnavailable, "this node cannot sign certificates: "+format, args...)
	}
	key, err := c.disk.Read(fileSeal)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, unavailable("it does not have the cluster's seal")
	}
	if err != nil {
		return nil, unavailable("%v", err)
	}
	cl := c.State().Cluster()
	if cl == nil {
		return nil, unavailable("it has no state yet")
	}
	pem, err := unseal(key, cl.ID, cl.CAKey)
	if err != nil {
		return nil, unavailable("%v", err)
	}
	return transport.LoadAuthority(cl.CACert, pem)
}
