package cluster

import (
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
)

// Recovery is what Recover has found, and does.
type Recovery struct {
	Node    volume.NodeID
	Cluster string
	// Voters of the log, by whom nothing can be agreed on any more.
	Voters []volume.NodeID
	// Index is the last entry of the log: of several survivors the one with the highest
	// knows most.
	Index uint64
	// NewCA: this node cannot open the key of the cluster's CA, so it makes another.
	NewCA bool
	// Was is the cluster as this node knows it, Next what it goes on with.
	Was, Next *state.State
}

// Recover makes the cluster anew from this node alone, which must not run. While the log
// is locked approve is asked; its error ends all, and nothing is changed. The other nodes
// are left behind: see state.Recover for what becomes of the volumes.
//
// Of several survivors one recovers and the others join it again: two that recover are
// two clusters, each of which believes to be the only one.
//
// A crash on the way leaves a node that finds no leader, and doing it again completes it, or
// one that is recovered, of which Recover says that it is its only voter.
func Recover(cfg Config, at time.Time, approve func(Recovery) error) (Recovery, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return Recovery{}, err
	}
	rec, err := loadRecord(cfg.Disk)
	if err != nil {
		return Recovery{}, err
	}
	switch why, err := loadRetired(cfg.Disk); {
	case err != nil:
		return Recovery{}, err
	case why != nil:
		return Recovery{}, fmt.Errorf("no cluster can be recovered from this node: %w", why)
	}
	stores, err := cfg.Disk.OpenRaft(raftLogger(cfg.Log))
	if err != nil {
		return Recovery{}, fmt.Errorf("%w; stop flockd first", err)
	}
	defer stores.Close()
	r, rep, err := planRecovery(cfg, rec, stores, at)
	if err != nil {
		return r, err
	}
	if err := approve(r); err != nil {
		return r, err
	}

	// From here on nobody of the time before is listened to. Then what this node answers
	// from before Raft has spoken goes, and last the log is replaced.
	rec.Generation = r.Next.Cluster().Generation
	files := append(rep.files, file{fileNode, rec})
	if err := writeAll(cfg.Disk, files...); err != nil {
		return r, err
	}
	if err := cfg.Disk.Remove(fileCache); err != nil {
		return r, err
	}
	f := &recovering{fsm: newOfflineFSM(), becomes: rep.apply}
	if err := recoverRaft(cfg, rec, stores, f); err != nil {
		return r, fmt.Errorf("replacing the Raft log: %w; try again", err)
	}
	return r, nil
}

// replacement is how the state of before becomes the next one, and files that go with it.
type replacement struct {
	files []file
	apply func(*state.State) (*state.State, error)
}

// planRecovery reads everything and changes nothing.
func planRecovery(cfg Config, rec record, stores *Stores, at time.Time) (Recovery, replacement, error) {
	r := Recovery{Node: rec.Node, Cluster: rec.Cluster}
	conf, err := raft.GetConfiguration(recoveryConfig(cfg, rec), newOfflineFSM(), stores.Logs, stores.Stable, stores.Snapshots, recoveryTransport(rec))
	if err != nil {
		return r, replacement{}, fmt.Errorf("reading the Raft log: %w", err)
	}
	for _, s := range conf.Servers {
		if s.Suffrage == raft.Voter {
			r.Voters = append(r.Voters, volume.NodeID(s.ID))
		}
	}
	if len(r.Voters) == 1 && r.Voters[0] == rec.Node {
		return r, replacement{}, volume.Errorf(volume.CodeRefused, "this node is the only voter: its cluster has lost no quorum").
			WithHint("start flockd; other nodes that are lost are removed with `flockctl node remove NODE --dead`")
	}
	dry := *stores
	dry.Logs, dry.Snapshots = keptLogs{stores.Logs}, keptSnapshots{stores.Snapshots, raft.NewDiscardSnapshotStore()}
	read := &recovering{fsm: newOfflineFSM(), becomes: func(s *state.State) (*state.State, error) { return s, nil }}
	if err := recoverRaft(cfg, rec, &dry, read); err != nil {
		return r, replacement{}, fmt.Errorf("reading the Raft log: %w", err)
	}
	if r.Was = read.state; r.Was.Cluster() == nil {
		return r, replacement{}, volume.Errorf(volume.CodeRefused, "this node never had a state of its cluster, so nothing can be recovered from it").
			WithHint("choose another survivor")
	}
	if r.Index, err = stores.Logs.LastIndex(); err != nil {
		return r, replacement{}, err
	}
	r.Index = max(r.Index, r.Was.Index)

	next := state.Recovery{Survivor: rec.Node, At: at}
	var rep replacement
	key, err := cfg.Disk.Read(fileSeal)
	if err == nil {
		_, err = unseal(key, rec.Cluster, r.Was.Cluster().CAKey)
	}
	if r.NewCA = err != nil; r.NewCA {
		if rep.files, err = newCA(cfg, rec, at, &next); err != nil {
			return r, rep, err
		}
	}
	rep.apply = func(s *state.State) (*state.State, error) { return state.Recover(s, next) }
	r.Next, err = rep.apply(r.Was)
	return r, rep, err
}

// newCA is for a survivor that was never a voter, and cannot sign for anybody. Those who
// join again get to know the new root from their token.
func newCA(cfg Config, rec record, at time.Time, next *state.Recovery) ([]file, error) {
	id, err := loadIdentity(cfg.Disk, rec)
	if err != nil {
		return nil, err
	}
	csr, err := id.Request()
	if err != nil {
		return nil, err
	}
	ca, err := transport.NewAuthority(rec.Cluster, at)
	if err != nil {
		return nil, err
	}
	caKey, err := ca.KeyPEM()
	if err != nil {
		return nil, err
	}
	cert, err := ca.Issue(csr, rec.Cluster, rec.Node, at, cfg.certLife)
	if err != nil {
		return nil, err
	}
	sealKey := newSealKey()
	next.CACert = ca.CertPEM()
	if next.CAKey, err = seal(sealKey, rec.Cluster, caKey); err != nil {
		return nil, err
	}
	return []file{{fileSeal, sealKey}, {fileRoot, ca.CertPEM()}, {fileCert, cert}}, nil
}

// recoverRaft makes a snapshot of what f becomes, with this node as the only member, and
// drops the log.
func recoverRaft(cfg Config, rec record, stores *Stores, f raft.FSM) error {
	t := recoveryTransport(rec)
	self := raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(rec.Node), Address: t.LocalAddr()}
	return raft.RecoverCluster(recoveryConfig(cfg, rec), f, stores.Logs, stores.Stable, stores.Snapshots, t,
		raft.Configuration{Servers: []raft.Server{self}})
}

func recoveryConfig(cfg Config, rec record) *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(rec.Node)
	conf.Logger = raftLogger(cfg.Log)
	return conf
}

// recoveryTransport connects to nobody: to Raft a node's address is its ID.
func recoveryTransport(rec record) raft.Transport {
	_, t := raft.NewInmemTransport(raft.ServerAddress(rec.Node))
	return t
}

func newOfflineFSM() *fsm {
	return &fsm{state: state.New(), publish: func(*state.State) {}, fatal: func(error) {}}
}

// recovering is an fsm whose snapshot is of another state.
type recovering struct {
	*fsm
	becomes func(*state.State) (*state.State, error)
}

func (r *recovering) Snapshot() (raft.FSMSnapshot, error) {
	if r.broken != nil {
		return nil, r.broken
	}
	s, err := r.becomes(r.state)
	return fsmSnapshot{s}, err
}

// keptLogs and keptSnapshots let Raft read and change nothing.
type keptLogs struct{ raft.LogStore }

func (keptLogs) DeleteRange(uint64, uint64) error { return nil }

type keptSnapshots struct {
	raft.SnapshotStore
	nowhere raft.SnapshotStore
}

func (k keptSnapshots) Create(v raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, t raft.Transport) (raft.SnapshotSink, error) {
	return k.nowhere.Create(v, index, term, conf, confIndex, t)
}
