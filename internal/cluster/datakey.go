package cluster

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// The specs of containers stand in the replicated state, since a node that takes a
// container over cannot ask the one that is lost. They hold passwords, and every
// member has the state, witnesses too. So they are sealed with a data key that is not
// in the state: the file data.key of the nodes with a pool, who get it from one another
// over mTLS. The state names the key by its ID.
//
// What this is worth: neither the API nor a log, a snapshot, or anything on a witness
// shows what is in a spec. Root on a node with a pool can read it, as it can read the
// containers that run there.

// DataKey seals what only nodes with a pool may read.
type DataKey struct{ key []byte }

// ErrNoDataKey means that this node does not have the key that the state names.
var ErrNoDataKey = errors.New("this node does not have the cluster's data key yet")

// ID names the key without giving it away.
func (k DataKey) ID() string {
	if len(k.key) == 0 {
		return ""
	}
	sum := sha256.Sum256(append([]byte("flocker data key\n"), k.key...))
	return hex.EncodeToString(sum[:8])
}

// dataScope keeps what is sealed here from being taken for something else.
func dataScope(clusterID string) string { return clusterID + "\ndata" }

// Seal encrypts for one cluster.
func (k DataKey) Seal(clusterID string, plain []byte) ([]byte, error) {
	return seal(k.key, dataScope(clusterID), plain)
}

// Open is the inverse of Seal.
func (k DataKey) Open(clusterID string, sealed []byte) ([]byte, error) {
	plain, err := unseal(k.key, dataScope(clusterID), sealed)
	if err != nil {
		return nil, fmt.Errorf("opening what the data key %s has sealed: %w", k.ID(), err)
	}
	return plain, nil
}

// Hash tells whether two texts are the same to those who do not have the key, who must
// not be able to try out passwords on it.
func (k DataKey) Hash(plain []byte) string {
	h := hmac.New(sha256.New, k.key)
	h.Write(plain)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// ParseDataKey reads a key of a test or a file.
func ParseDataKey(b []byte) (DataKey, error) {
	if len(b) != sealKeyBytes {
		return DataKey{}, errors.New("the data key has the wrong length")
	}
	return DataKey{key: b}, nil
}

// DataKey is the one that the state names. The error is ErrNoDataKey when this node
// does not have it.
func (c *Cluster) DataKey() (DataKey, error) {
	k, err := c.savedDataKey()
	if err != nil {
		return DataKey{}, err
	}
	if cl := c.State().Cluster(); cl == nil || k.ID() == "" || cl.DataKey != k.ID() {
		return DataKey{}, ErrNoDataKey
	}
	return k, nil
}

// savedDataKey is what is in the file; the zero value when there is none.
func (c *Cluster) savedDataKey() (DataKey, error) {
	b, err := c.disk.Read(fileData)
	if errors.Is(err, fs.ErrNotExist) {
		return DataKey{}, nil
	}
	if err != nil {
		return DataKey{}, err
	}
	return ParseDataKey(b)
}

// MakeDataKey keeps a new key, unless there is one that the state has not named yet, and
// returns the ID by which it can become the cluster's.
func (c *Cluster) MakeDataKey() (id string, err error) {
	k, err := c.savedDataKey()
	if err != nil {
		return "", err
	}
	cl := c.State().Cluster()
	if k.ID() != "" && (cl == nil || cl.DataKey == "") {
		return k.ID(), nil
	}
	k = DataKey{key: newSealKey()}
	return k.ID(), c.disk.Write(fileData, k.key)
}

// FetchDataKey asks another node for the key that the state names. found is false when
// that node does not have it either.
func (c *Cluster) FetchDataKey(ctx context.Context, from volume.NodeID) (found bool, err error) {
	var m dataKeyMessage
	if err := c.ask(ctx, from, "data-key", empty{}, &m); err != nil {
		return false, err
	}
	cl := c.State().Cluster()
	if len(m.Key) == 0 || cl == nil {
		return false, nil
	}
	k, err := ParseDataKey(m.Key)
	if err != nil || k.ID() != cl.DataKey {
		return false, err // that of another time
	}
	return true, c.disk.Write(fileData, k.key)
}

// dataKeyMessage answers the operation "data-key"; without a key when there is none.
type dataKeyMessage struct {
	Key []byte `json:"key,omitempty"`
}

// handleDataKey gives the key to members that have a pool.
func (c *Cluster) handleDataKey(_ context.Context, from volume.NodeID, _ json.RawMessage) (any, error) {
	if !MayHaveData(c.State().Node(from)) {
		return nil, volume.Errorf(volume.CodeDenied, "the data key is for members with a pool")
	}
	k, err := c.savedDataKey()
	return dataKeyMessage{Key: k.key}, err
}

// MayHaveData says that a node may read what users keep. A nil node is no member.
func MayHaveData(n *state.Node) bool { return n != nil && !n.Removed && !n.Witness }
