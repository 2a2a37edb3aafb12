package api

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// FailoverRequest asks for another primary of a volume that has lost its own.
type FailoverRequest struct {
	// To is a ref of the node that shall be the primary; "": the one with the best copy.
	To string `json:"to,omitempty"`
	// AcceptLoss goes on though more may be lost than the volume's options allow.
	AcceptLoss bool `json:"accept_loss,omitempty"`
	// ConfirmFenced names the primary, and says on the caller's word that it is off and
	// stays off until it is told otherwise. Nothing else may be proving that.
	ConfirmFenced string `json:"confirm_fenced,omitempty"`
}

// PromiseRequest asks a node to take nothing of these volumes below these epochs any
// more, once it has applied Index.
type PromiseRequest struct {
	Index   uint64       `json:"index"`
	Volumes []PromiseFor `json:"volumes"`
}

// PromiseFor is one volume of a PromiseRequest.
type PromiseFor struct {
	ID    volume.ID    `json:"id"`
	Epoch volume.Epoch `json:"epoch"`
}

// PromiseReply has an answer for each volume, in the order asked.
type PromiseReply struct {
	Answers []PromiseAnswer `json:"answers"`
}

// PromiseAnswer is a promise or, with Error, none: then the copy may hold anything.
type PromiseAnswer struct {
	ID      volume.ID      `json:"id"`
	Promise volume.Promise `json:"promise"`
	Error   string         `json:"error,omitempty"`
	// Reading, with Error: the node goes on reading, and answers when it is asked again.
	Reading bool `json:"reading,omitempty"`
}

// FailoverVolume implements Backend.
func (c *Client) FailoverVolume(ctx context.Context, ref string, req FailoverRequest) (v Volume, err error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return v, err
	}
	return v, c.call(ctx, request{method: "POST", path: path + "/failover", in: req, out: &v, repeatable: true})
}

// Promise implements Peer.
func (c *Client) Promise(ctx context.Context, req PromiseRequest) (rep PromiseReply, err error) {
	return rep, c.call(ctx, request{method: "POST", path: "/v1/peer/promise", in: req, out: &rep, repeatable: true})
}

func failoverRoutes(b Backend) []route {
	return []route{
		{"POST", "/v1/volumes/{ref}/failover", anyone, strict(func(r *http.Request, req FailoverRequest) (any, error) {
			return b.FailoverVolume(r.Context(), r.PathValue("ref"), req)
		})},
	}
}

func failoverPeerRoutes(p Peer) []route {
	return []route{
		{"POST", "/v1/peer/promise", peers, lenient(func(r *http.Request, req PromiseRequest) (any, error) {
			for _, v := range req.Volumes {
				if _, err := volume.ParseID(string(v.ID)); err != nil {
					return nil, volume.Errorf(volume.CodeInvalid, "%v", err)
				}
			}
			rep, err := p.Promise(r.Context(), req)
			rep.Answers = notNil(rep.Answers)
			return rep, err
		})},
	}
}

// LastFailover is how a volume came to another primary without the one before, and what
// may be missing since.
type LastFailover struct {
	From NodeRef   `json:"from"`
	To   NodeRef   `json:"to"`
	At   time.Time `json:"at"`
	// Start is the newest snapshot that the new primary had. CompleteAsOf is the time up to
	// which it provably had all, by the clock of the old one; zero: not known.
	Start        volume.Position `json:"start"`
	CompleteAsOf time.Time       `json:"complete_as_of,omitzero"`
	// LossSeconds is the most that may be missing, counted back from when the old primary
	// was last heard of; nil: nobody can bound it. LossBytes is about how much that is; nil:
	// not known.
	LossSeconds *float64 `json:"loss_seconds"`
	LossBytes   *int64   `json:"loss_bytes"`
}

// Lost says in words what may be missing.
func (f LastFailover) Lost() string {
	switch {
	case f.LossSeconds == nil:
		return "nobody can say how much may be missing"
	case *f.LossSeconds == 0:
		return "nothing that was heard of is missing"
	}
	amount := "how many bytes is not known"
	if f.LossBytes != nil {
		amount = "about " + volume.RoughSize(*f.LossBytes)
	}
	return fmt.Sprintf("the last %s may be missing, %s", volume.RoughDuration(time.Duration(*f.LossSeconds*float64(time.Second))), amount)
}
