package api

import (
	"context"
	"net/http"

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
