package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
)

// ErrNoCluster means that this node belongs to no cluster yet: Init or Join first.
var ErrNoCluster error = &volume.Error{
	Code: volume.CodeNotInit, Message: "this node belongs to no cluster",
	Hint: "run `flockctl init` to make one, or `flockctl join` with the line that init printed on another node",
}

// record is the file node.json: this node is a member of that cluster. It is written
// last, so that whatever it needs is there when it is.
type record struct {
	Node    volume.NodeID `json:"node"`
	Cluster string        `json:"cluster"`
	Name    string        `json:"name"` // as of joining; the state has the present one
	// Generation counts the recoveries of the cluster. Nodes of different ones share no
	// Raft log: see streamLayer.
	Generation uint32 `json:"generation,omitempty"`
	// Peers are the members at the time of joining: the address book until the
	// first state has arrived.
	Peers []peer `json:"peers,omitempty"`
}

// peer is where a member is.
type peer struct {
	Node volume.NodeID `json:"node"`
	Addr string        `json:"addr"`
}

// pending is the file pending.json: an identity that asks to be let in. A join that
// is tried again asks with the same one.
type pending struct {
	Node volume.NodeID `json:"node"`
	Key  []byte        `json:"key"` // PEM
}

// loadRecord is ErrNoCluster when there is none.
func loadRecord(d Disk) (record, error) {
	var r record
	err := readJSON(d, fileNode, &r)
	if errors.Is(err, fs.ErrNotExist) {
		return r, ErrNoCluster
	}
	if err != nil {
		return r, err
	}
	if _, err := volume.ParseNodeID(string(r.Node)); err != nil || r.Cluster == "" {
		return r, fmt.Errorf("%s is damaged", fileNode)
	}
	return r, nil
}

// LoadIdentity reads who the node of a directory is, for a process beside the daemon. The
// error is ErrNoCluster while it is no member of any.
func LoadIdentity(d Disk) (*transport.Identity, error) {
	r, err := loadRecord(d)
	if err != nil {
		return nil, err
	}
	return loadIdentity(d, r)
}

// loadIdentity reads key, certificate and root.
func loadIdentity(d Disk, r record) (*transport.Identity, error) {
	var pems [3][]byte
	for i, name := range []string{fileCert, fileKey, fileRoot} {
		b, err := d.Read(name)
		if err != nil {
			return nil, fmt.Errorf("reading this node's identity: %w", err)
		}
		pems[i] = b
	}
	id, err := transport.NewIdentity(pems[0], pems[1], pems[2])
	if err != nil {
		return nil, fmt.Errorf("reading this node's identity: %w", err)
	}
	if id.Node() != r.Node || id.Cluster() != r.Cluster {
		return nil, fmt.Errorf("the certificate is for node %s of cluster %s, but %s says node %s of cluster %s",
			id.Node(), id.Cluster(), fileNode, r.Node, r.Cluster)
	}
	return id, nil
}

// checkFresh refuses a directory that has a Raft log but no node.json: what is left
// of a node that was taken apart by hand. A new identity must not get an old log.
func checkFresh(d Disk) error {
	has, err := d.HasRaft()
	if err != nil {
		return err
	}
	if has {
		return volume.Errorf(volume.CodeRefused, "the state directory has a Raft log but no %s", fileNode).
			WithHint("it is left over from another cluster: move the directory away and try again")
	}
	return nil
}

// file is a name and its content: bytes as they are, anything else as JSON.
type file struct {
	name    string
	content any
}

// writeAll writes files in order and stops at the first error.
func writeAll(d Disk, files ...file) error {
	for _, f := range files {
		data, ok := f.content.([]byte)
		if !ok {
			var err error
			if data, err = json.MarshalIndent(f.content, "", "  "); err != nil {
				return err
			}
		}
		if err := d.Write(f.name, data); err != nil {
			return fmt.Errorf("writing %s: %w", f.name, err)
		}
	}
	return nil
}

func readJSON(d Disk, name string, v any) error {
	b, err := d.Read(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	return nil
}
