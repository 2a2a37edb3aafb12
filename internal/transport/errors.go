package transport

import (
	"errors"
	"fmt"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// ErrForeignCluster means that the peer is a node of another cluster.
var ErrForeignCluster = errors.New("the peer is no member of this cluster")

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

// ClockError means that a certificate is not valid now, by this machine's clock.
type ClockError struct {
	Now, NotBefore, NotAfter time.Time
}

func (e *ClockError) Error() string {
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	if e.Now.Before(e.NotBefore) {
		return fmt.Sprintf("the peer's certificate is valid from %s, but the clock of this machine says %s: one of the two clocks is wrong by at least %s",
			stamp(e.NotBefore), stamp(e.Now), e.NotBefore.Sub(e.Now).Round(time.Second))
	}
	return fmt.Sprintf("the peer's certificate expired at %s, %s ago by the clock of this machine (%s): either this clock is wrong, or the peer was off for long and is about to renew",
		stamp(e.NotAfter), e.Now.Sub(e.NotAfter).Round(time.Second), stamp(e.Now))
}
