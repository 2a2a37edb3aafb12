package api

import (
	"context"
	"net/http"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/volume"
)

// BeatRequest keeps a node's lease alive, or asks for one. It is small and travels
// apart from reports, so that nothing bulky delays it.
type BeatRequest struct {
	Node  volume.NodeID `json:"node"`
	Round uint64        `json:"round"` // of failover, as the node knows it
	Beat  lease.Beat    `json:"beat"`
	// Safety is how surely the node stops its writers.
	Safety volume.Safety `json:"safety,omitempty"`
	// Problem says why the node can hold no lease at present: such a beat renews nothing.
	Problem string `json:"problem,omitempty"`
	// At is the node's own time, as in its reports: with a lease that runs it proves that
	// something may have been written so late.
	At time.Time `json:"at,omitzero"`
}

// BeatReply answers it.
type BeatReply struct {
	// Answered says that the lease runs on, counted from before the beat was sent.
	Answered bool `json:"answered"`
}

// Beat implements Peer.
func (c *Client) Beat(ctx context.Context, req BeatRequest) (rep BeatReply, err error) {
	return rep, c.call(ctx, request{method: "POST", path: "/v1/peer/beat", in: req, out: &rep, repeatable: true})
}

func beatRoute(p Peer) route {
	return route{"POST", "/v1/peer/beat", peers, lenient(func(r *http.Request, req BeatRequest) (any, error) {
		// A node speaks for itself only.
		if from, _ := Caller(r.Context()); from != req.Node {
			return nil, volume.Errorf(volume.CodeDenied, "node %s sends the beat of node %s", from.Short(), req.Node.Short())
		}
		return p.Beat(r.Context(), req)
	})}
}
