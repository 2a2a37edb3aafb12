package doctor

import (
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Facts are what one node has found out about itself and from where it stands. What is nil, or
// empty where that cannot be, was not found out: Unknown says why, or the node's version does
// not look there. They are for people and for Examine, so fields may come and go.
type Facts struct {
	Node    volume.NodeID `json:"node,omitempty"` // "" in no cluster
	Version string        `json:"version"`
	// Began and Ended are when it was asked and when it answered, by its own wall clock: with
	// the same two moments of the asker they say how far the clocks are apart.
	Began time.Time `json:"began"`
	Ended time.Time `json:"ended"`
	// Applied is the index of the newest state that it knew when it had looked.
	Applied uint64    `json:"applied,omitempty"`
	Unknown []Unknown `json:"unknown,omitempty"`

	ZFS         *ZFS         `json:"zfs,omitempty"`
	Pool        *Pool        `json:"pool,omitempty"`
	Clock       *Clock       `json:"clock,omitempty"`
	Ports       []Port       `json:"ports,omitempty"`
	Peers       []Peer       `json:"peers,omitempty"`
	Mount       *Mount       `json:"mount,omitempty"`
	Engine      *Engine      `json:"engine,omitempty"`
	Datasets    []Dataset    `json:"datasets"` // nil: they were not listed; empty: there are none
	Certificate *Certificate `json:"certificate,omitempty"`
	Fencing     *Fencing     `json:"fencing,omitempty"`
	Timers      *Timers      `json:"timers,omitempty"`
}

// Unknown is what could not be found out.
type Unknown struct {
	Check string `json:"check"`
	Why   string `json:"why"`
}

// ZFS has the versions of the commands and of the kernel's module.
type ZFS struct {
	Userland string `json:"userland"`
	Module   string `json:"module"`
}

// Pool is the node's pool. Features are the words of zpool by the name of each: active, enabled
// or disabled.
type Pool struct {
	Name     string            `json:"name"`
	Health   string            `json:"health"`
	ReadOnly bool              `json:"read_only,omitempty"`
	Size     int64             `json:"size"`
	Free     int64             `json:"free"`
	Features map[string]string `json:"features,omitempty"`
}

// Clock is what the kernel tells the time by.
type Clock struct {
	Source    string   `json:"source"`
	Available []string `json:"available,omitempty"`
}

// Port is one of those that flocker needs on a node: tcp, udp, or the path of a unix socket.
type Port struct {
	For     string `json:"for"`
	Network string `json:"network"`
	Address string `json:"address"`
	// Unit is the service that listens there.
	Unit string `json:"unit"`
	// Held: somebody listens. Ours: it is a process of flocker; By names it otherwise, if
	// that is known.
	Held bool   `json:"held"`
	Ours bool   `json:"ours"`
	By   string `json:"by,omitempty"`
}

// Peer is another node as this one reaches it. Raft is why a connection as Raft makes it failed, ""
// when it did not. Gossip is what gossip says of its life; "" where nobody gossips.
type Peer struct {
	Node   volume.NodeID `json:"node"`
	Addr   string        `json:"addr"`
	Raft   string        `json:"raft,omitempty"`
	Gossip string        `json:"gossip,omitempty"`
}

// Mount is the mount that the volumes' root stands on.
type Mount struct {
	Dir    string `json:"dir"`
	On     string `json:"on"`
	Shared bool   `json:"shared"`
}

// Engine is the container engine of the node. Error is why it does not answer.
type Engine struct {
	Version     string   `json:"version,omitempty"`
	LiveRestore bool     `json:"live_restore,omitempty"`
	Drivers     []string `json:"drivers,omitempty"` // of volumes, as it lists them
	// Shadows are its own volumes that have the names of volumes of the cluster.
	Shadows []string `json:"shadows,omitempty"`
	Error   string   `json:"error,omitempty"`
}

// Dataset is one below the root of the volumes' datasets. Users are those that are known to use it
// where it is mounted; nil: that is not known.
type Dataset struct {
	Name    string    `json:"name"`
	Volume  volume.ID `json:"volume,omitempty"` // "" when the name is no volume's
	Used    int64     `json:"used"`
	Mounted bool      `json:"mounted,omitempty"`
	Users   *int      `json:"users,omitempty"`
	// Partial says that it holds a receive that was broken off.
	Partial bool `json:"partial,omitempty"`
}

// Certificate of the node.
type Certificate struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// Fencing is how surely the node's writers are stopped; Problem is what its fencer says is wrong.
type Fencing struct {
	Safety  volume.Safety `json:"safety,omitempty"` // "": no fencer runs
	Problem string        `json:"problem,omitempty"`
}

// Timers of the node. Unfit is why they do not go with the lease.
type Timers struct {
	Report time.Duration `json:"report"`
	Raft   time.Duration `json:"raft"` // the longest that an election may begin late
	Unfit  string        `json:"unfit,omitempty"`
}

// Cluster is what the node that asks knows of the whole.
type Cluster struct {
	// Why it is in no cluster, or not any more; "" when it is in one.
	None   string
	Quorum bool
	// Proven: a leader has confirmed, after the nodes had answered, that Volumes are of the newest
	// state. Applied is its index.
	Proven   bool
	Applied  uint64
	Failover string // the mode
	Volumes  map[volume.ID]Volume
}

// Volume is what the findings need of one.
type Volume struct {
	Name    string
	Primary volume.NodeID
	Copies  []volume.NodeID // the primary's too
	Live    bool
	// Moving: its primary, or where its copies are, changed while the nodes were asked.
	Moving bool
}

// Node is a member and what it answered.
type Node struct {
	ID      volume.NodeID
	Name    string
	Witness bool
	Facts   *Facts
	// Error is why there are no Facts. Old: it answers, and its version cannot be examined.
	Error string
	Old   bool
	// Ahead is how far its clock is before the asker's, give or take Unsure.
	Ahead, Unsure time.Duration
}

// Ahead is how far the clock of a node is before the asker's, from when it was asked and when it
// answered (sent, back: the asker's clock; came, went: the node's), and how wrong that may be. That is
// half of the time that the two ways took: the way there may have taken all of it, or none.
func Ahead(sent, came, went, back time.Time) (ahead, unsure time.Duration) {
	there, here := came.Sub(sent), back.Sub(went)
	return (there - here) / 2, max(0, there+here) / 2
}
