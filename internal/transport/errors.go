package transport

import (
	"errors"
	"fmt"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// The texts name both sides, since they are read on either.

// ErrForeignCluster means that the peer is a node of another cluster.
var ErrForeignCluster = errors.New("foreign cluster")

// ErrWrongRoot means that no certificate of the peer has the digest expected.
var ErrWrongRoot = errors.New("the peer's cluster is not the one that this token is for")

// WrongNodeError means that another node than the one meant answers at an address:
// the address was given to another machine, or the address book is stale.
type WrongNodeError struct {
	Addr      string
	Want, Got volume.NodeID
}

func (e *WrongNodeError) Error() string {
	return fmt.Sprintf("node %s answers at %s, where node %s should be", e.Got.Short(), e.Addr, e.Want.Short())
}

// ClockError means that the certificate of a node is not valid now, by the clock of
// the one that judges it.
type ClockError struct {
	Node                     volume.NodeID
	Judge                    string
	Now, NotBefore, NotAfter time.Time
}

func (e *ClockError) Error() string {
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	if e.Now.Before(e.NotBefore) {
		return fmt.Sprintf("the certificate of node %s is valid from %s, but the clock of %s says %s: one of the two clocks is wrong by at least %s",
			e.Node.Short(), stamp(e.NotBefore), e.Judge, stamp(e.Now), e.NotBefore.Sub(e.Now).Round(time.Second))
	}
	return fmt.Sprintf("the certificate of node %s expired at %s, %s ago by the clock of %s (%s): either that clock is wrong, or the node was off for long and is about to renew its certificate",
		e.Node.Short(), stamp(e.NotAfter), e.Now.Sub(e.NotAfter).Round(time.Second), e.Judge, stamp(e.Now))
}
