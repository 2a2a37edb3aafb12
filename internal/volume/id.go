package volume

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// ID names one volume for ever. It is the last part of the dataset's name, so it
// never changes when the user renames the volume. 16 lower-case hex digits.
type ID string

// NewID returns a random ID.
func NewID() ID { return ID(randomHex(8)) }

// ParseID accepts exactly what NewID makes.
func ParseID(s string) (ID, error) {
	if len(s) != 16 || !isLowerHex(s) {
		return "", fmt.Errorf("volume id %q: want 16 lower-case hex digits", s)
	}
	return ID(s), nil
}

// NodeID names one member of the cluster for ever. It is made together with the
// node's Raft directory and never reused: a node that lost its directory comes
// back as another one. 32 lower-case hex digits.
type NodeID string

// NewNodeID returns a random NodeID.
func NewNodeID() NodeID { return NodeID(randomHex(16)) }

// ParseNodeID accepts exactly what NewNodeID makes.
func ParseNodeID(s string) (NodeID, error) {
	if len(s) != 32 || !isLowerHex(s) {
		return "", fmt.Errorf("node id %q: want 32 lower-case hex digits", s)
	}
	return NodeID(s), nil
}

// Short is the first eight digits, enough for people and logs.
func (n NodeID) Short() string { return string(n[:min(8, len(n))]) }

// Zone is the failure domain a node stands in. Without a label it is DefaultZone.
type Zone string

// DefaultZone is where nodes without a zone label are.
const DefaultZone Zone = "default"

// Epoch counts the changes of primary of one volume and is its fencing token: a
// copy never accepts a stream of a lower epoch than one it has seen. The upper
// half is the cluster's generation, which only a disaster recovery raises, so a
// recovery that lost the last log entries can never hand out an epoch twice.
type Epoch uint64

// NewEpoch joins a generation and a counter.
func NewEpoch(generation, counter uint32) Epoch {
	return Epoch(uint64(generation)<<32 | uint64(counter))
}

// Next is the epoch after e, in the same generation.
func (e Epoch) Next() Epoch { return e + 1 }

// String is the fixed-width form used in snapshot names and dataset properties;
// it sorts as the number does.
func (e Epoch) String() string { return fmt.Sprintf("%016x", uint64(e)) }

// ParseEpoch reads what String wrote.
func ParseEpoch(s string) (Epoch, error) {
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) != 16 {
		return 0, fmt.Errorf("epoch %q: want 16 hex digits", s)
	}
	return Epoch(v), nil
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand since Go 1.24)
	return hex.EncodeToString(b)
}

func isLowerHex(s string) bool {
	return strings.Trim(s, "0123456789abcdef") == ""
}
