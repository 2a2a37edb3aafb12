package api

import (
	_ "embed"
	"math"
	"net/http"
	"slices"

	"github.com/flocker-io/flocker/internal/volume"
)

// access says who may use a route.
type access int

const (
	anyone access = iota // the administrator here, or a node that forwards for its own
	local                // the administrator here
	peers                // other nodes
)

// Body limits. A report of a node with ten thousand volumes is some megabytes.
const (
	maxBody     = 1 << 20
	maxPeerBody = 64 << 20
)

type route struct {
	method, path string
	who          access
	// serve returns the reply, nil for none.
	serve func(*http.Request) (any, error)
}

func (rt route) bodyLimit() int64 {
	if rt.path == receivePath {
		return math.MaxInt64 // it is not held
	}
	if rt.who == peers {
		return maxPeerBody
	}
	return maxBody
}

//go:embed openapi.yaml
var openAPI []byte

// Replies and requests that are only wrappers: a list is a field, so that more can
// be said beside it later.
type (
	nodesReply struct {
		Nodes []Node `json:"nodes"`
	}
	volumesReply struct {
		Volumes []Volume `json:"volumes"`
	}
	tokensReply struct {
		Tokens []Token `json:"tokens"`
	}
	eventsReply struct {
		Events []Event `json:"events"`
	}

	reportRequest struct {
		Report volume.Report            `json:"report"`
		Have   map[volume.NodeID]uint64 `json:"have,omitempty"`
	}
	proposeRequest struct {
		Envelope []byte `json:"envelope"`
	}
	barrierReply struct {
		Index uint64 `json:"index"`
	}
	acquireRequest struct {
		Volume volume.ID     `json:"volume"`
		Node   volume.NodeID `json:"node"`
	}
	unlabelRequest struct {
		Volume  volume.ID `json:"volume"`
		Attempt string    `json:"attempt"`
	}
)

// routes is the whole API; openapi.yaml describes the same in words.
func routes(b Backend, p Peer) []route {
	rs := []route{
		{"GET", "/v1/openapi.yaml", anyone, func(r *http.Request) (any, error) {
			return raw{"application/yaml", openAPI}, nil
		}},
		{"GET", "/v1/version", anyone, plain(func(r *http.Request) (any, error) { return b.Version(r.Context()) })},
		{"GET", "/v1/status", anyone, plain(func(r *http.Request) (any, error) { return b.Status(r.Context()) })},

		{"POST", "/v1/init", local, strict(func(r *http.Request, req InitRequest) (any, error) { return b.Init(r.Context(), req) })},
		{"POST", "/v1/join", local, strict(func(r *http.Request, req JoinRequest) (any, error) { return b.Join(r.Context(), req) })},

		{"GET", "/v1/nodes", anyone, plain(func(r *http.Request) (any, error) {
			ns, err := b.Nodes(r.Context())
			return nodesReply{notNil(ns)}, err
		})},
		{"GET", "/v1/nodes/{ref}", anyone, plain(func(r *http.Request) (any, error) { return b.Node(r.Context(), r.PathValue("ref")) })},
		{"PATCH", "/v1/nodes/{ref}", anyone, strict(func(r *http.Request, req LabelRequest) (any, error) {
			return b.LabelNode(r.Context(), r.PathValue("ref"), req)
		})},

		{"GET", "/v1/volumes", anyone, func(r *http.Request) (any, error) {
			q, err := query(r, "trash")
			if err != nil {
				return nil, err
			}
			trash, err := q.boolean("trash")
			if err != nil {
				return nil, err
			}
			vs, err := b.Volumes(r.Context(), VolumesQuery{Trash: trash})
			return volumesReply{notNil(vs)}, err
		}},
		{"POST", "/v1/volumes", anyone, strict(func(r *http.Request, req CreateVolumeRequest) (any, error) {
			return b.CreateVolume(r.Context(), req)
		})},
		{"GET", "/v1/volumes/{ref}", anyone, plain(func(r *http.Request) (any, error) { return b.Volume(r.Context(), r.PathValue("ref")) })},
		{"PATCH", "/v1/volumes/{ref}", anyone, strict(func(r *http.Request, req UpdateVolumeRequest) (any, error) {
			rep, err := b.UpdateVolume(r.Context(), r.PathValue("ref"), req)
			rep.Changes = notNil(rep.Changes)
			return rep, err
		})},
		{"DELETE", "/v1/volumes/{ref}", anyone, func(r *http.Request) (any, error) {
			q, err := query(r, "request")
			if err != nil {
				return nil, err
			}
			if err := noBody(r); err != nil {
				return nil, err
			}
			return nil, b.RemoveVolume(r.Context(), r.PathValue("ref"), RemoveVolumeRequest{Request: q["request"]})
		}},
		{"POST", "/v1/volumes/{ref}/undelete", anyone, strict(func(r *http.Request, req UndeleteRequest) (any, error) {
			return b.UndeleteVolume(r.Context(), r.PathValue("ref"), req)
		})},
		{"POST", "/v1/volumes/{ref}/purge", anyone, plain(func(r *http.Request) (any, error) {
			return nil, b.PurgeVolume(r.Context(), r.PathValue("ref"))
		})},

		{"GET", "/v1/tokens", anyone, plain(func(r *http.Request) (any, error) {
			ts, err := b.Tokens(r.Context())
			return tokensReply{notNil(ts)}, err
		})},
		{"POST", "/v1/tokens", anyone, strict(func(r *http.Request, req TokenRequest) (any, error) { return b.CreateToken(r.Context(), req) })},
		{"DELETE", "/v1/tokens/{id}", anyone, plain(func(r *http.Request) (any, error) { return nil, b.RevokeToken(r.Context(), r.PathValue("id")) })},

		{"GET", "/v1/events", anyone, func(r *http.Request) (any, error) {
			q, err := query(r, "after", "wait")
			if err != nil {
				return nil, err
			}
			after, err := q.number("after")
			if err != nil {
				return nil, err
			}
			wait, err := q.duration("wait", MaxEventsWait)
			if err != nil {
				return nil, err
			}
			es, err := b.Events(r.Context(), EventsQuery{After: after, Wait: wait})
			return eventsReply{notNil(es)}, err
		}},
	}
	rs = slices.Concat(rs, copiesRoutes(b), failoverRoutes(b), migrateRoutes(b), rebalanceRoutes(b), snapshotRoutes(b), rollbackRoutes(b), browseRoutes(b), asideRoutes(b), restoreRoutes(b), importRoutes(b), containerRoutes(b), proxyRoutes(b), settingsRoutes(b), drainRoutes(b), doctorRoutes(b), diagnosticsRoutes(b))
	if p == nil {
		return rs
	}
	rs = append(append(rs, failoverPeerRoutes(p)...), proxyPeerRoutes(p)...)
	rs = append(append(rs, append(browsePeerRoutes(p), cloneRoute(p), importableRoute(p))...), snapshotPeerRoutes(p)...)
	return append(append(rs, copiesPeerRoutes(p)...),
		beatRoute(p),
		route{"POST", "/v1/peer/report", peers, lenient(func(r *http.Request, req reportRequest) (any, error) {
			// A node speaks for itself only.
			if from, _ := Caller(r.Context()); from != req.Report.Node {
				return nil, volume.Errorf(volume.CodeDenied, "node %s reports as node %s", from.Short(), req.Report.Node.Short())
			}
			return p.Report(r.Context(), req.Report, req.Have)
		})},
		route{"POST", "/v1/peer/propose", peers, lenient(func(r *http.Request, req proposeRequest) (any, error) {
			return p.Propose(r.Context(), req.Envelope)
		})},
		route{"POST", "/v1/peer/barrier", peers, plain(func(r *http.Request) (any, error) {
			i, err := p.Barrier(r.Context())
			return barrierReply{i}, err
		})},
		route{"POST", "/v1/peer/acquire", peers, lenient(func(r *http.Request, req acquireRequest) (any, error) {
			if _, err := volume.ParseID(string(req.Volume)); err != nil {
				return nil, volume.Errorf(volume.CodeInvalid, "%v", err)
			}
			if _, err := volume.ParseNodeID(string(req.Node)); err != nil {
				return nil, volume.Errorf(volume.CodeInvalid, "%v", err)
			}
			return nil, p.Acquire(r.Context(), req.Volume, req.Node)
		})},
		route{"POST", "/v1/peer/unlabel", peers, lenient(func(r *http.Request, req unlabelRequest) (any, error) {
			if _, err := volume.ParseID(string(req.Volume)); err != nil {
				return nil, volume.Errorf(volume.CodeInvalid, "%v", err)
			}
			return nil, p.Unlabel(r.Context(), req.Volume, req.Attempt)
		})},
	)
}

// plain is a route without parameters and body.
func plain(serve func(*http.Request) (any, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		if _, err := query(r); err != nil {
			return nil, err
		}
		if err := noBody(r); err != nil {
			return nil, err
		}
		return serve(r)
	}
}

// strict is a route with a JSON body that is read strictly.
func strict[T any](serve func(*http.Request, T) (any, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		if _, err := query(r); err != nil {
			return nil, err
		}
		req, err := decodeStrict[T](r.Body)
		if err != nil {
			return nil, err
		}
		return serve(r, req)
	}
}

// lenient is a route with a JSON body from another node.
func lenient[T any](serve func(*http.Request, T) (any, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		req, err := decodeLenient[T](r.Body)
		if err != nil {
			return nil, err
		}
		return serve(r, req)
	}
}

// notNil makes an empty list of none, so that it is [] in JSON and not null.
func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
