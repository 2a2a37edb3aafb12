package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// BeginRestoreRequest begins to make a volume of streams.
type BeginRestoreRequest struct {
	// ID is chosen by the caller, like that of a volume; the same again goes on with what
	// was received.
	ID    string   `json:"id"`
	Name  string   `json:"name"`  // of the volume that it will be
	GUIDs []uint64 `json:"guids"` // of the snapshots that the streams make, in order
	Bytes int64    `json:"bytes"` // about how much they are
	// Options are those that the volume will have: what is wrong with them is said before
	// anything was sent.
	Options map[string]string `json:"options,omitempty"`
}

// RestoreState is how far that is.
type RestoreState struct {
	Have int `json:"have"` // how many of the snapshots are there
}

// ReceiveRequest announces a stream.
type ReceiveRequest struct {
	GUID uint64 // of the snapshot that it makes
	Base uint64 // 0: it is a full one
}

// FinishRestoreRequest makes the volume.
type FinishRestoreRequest struct {
	Name    string            `json:"name"`
	GUID    uint64            `json:"guid,string"` // of the last snapshot
	Options map[string]string `json:"options,omitempty"`
}

// BeginRestore implements Backend.
func (c *Client) BeginRestore(ctx context.Context, req BeginRestoreRequest) (s RestoreState, err error) {
	return s, c.call(ctx, request{method: "POST", path: "/v1/restores", in: req, out: &s, repeatable: true})
}

// ReceiveRestore implements Backend. A stream that ends with another error than io.EOF is
// cut off there, and nothing of it counts.
func (c *Client) ReceiveRestore(ctx context.Context, id string, req ReceiveRequest, stream io.Reader) error {
	path, err := at("/v1/restores/", "restore", id)
	if err != nil {
		return err
	}
	query := url.Values{"guid": {strconv.FormatUint(req.GUID, 10)}}
	if req.Base != 0 {
		query.Set("base", strconv.FormatUint(req.Base, 10))
	}
	return c.call(ctx, request{method: "POST", path: path + "/receive", query: query, body: io.NopCloser(stream)})
}

// FinishRestore implements Backend.
func (c *Client) FinishRestore(ctx context.Context, id string, req FinishRestoreRequest) (v Volume, err error) {
	path, err := at("/v1/restores/", "restore", id)
	if err != nil {
		return v, err
	}
	return v, c.call(ctx, request{method: "POST", path: path + "/finish", in: req, out: &v, repeatable: true})
}

// DropRestore implements Backend.
func (c *Client) DropRestore(ctx context.Context, id string) error {
	path, err := at("/v1/restores/", "restore", id)
	if err != nil {
		return err
	}
	return c.call(ctx, request{method: "DELETE", path: path, repeatable: true})
}

const receivePath = "/v1/restores/{id}/receive"

// patientBody is a stream of which something has to come from time to time: who sends it may
// have been stopped, or hang, and what receives it would keep its place for ever.
type patientBody struct {
	io.ReadCloser
	deadline func(time.Time) error

	mu    sync.Mutex
	ended bool // by SetReadDeadline
}

func (b *patientBody) wait(t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ended {
		_ = b.deadline(t) // what cannot have one ends with its connection
	}
}

func (b *patientBody) Read(p []byte) (int, error) {
	b.wait(time.Now().Add(streamIdle))
	n, err := b.ReadCloser.Read(p)
	if err == nil {
		return n, nil
	}
	b.wait(time.Time{}) // the server goes on to look whether the connection is there
	b.mu.Lock()
	ended := b.ended
	b.mu.Unlock()
	if errors.Is(err, os.ErrDeadlineExceeded) && !ended {
		err = volume.Errorf(volume.CodeUnavailable, "nothing came for %s", streamIdle)
	}
	return n, err
}

// refused has the server not wait for ever for the rest of what is not taken, before it answers.
func (b *patientBody) refused() {
	_ = b.SetReadDeadline(time.Now().Add(restFor)) // as in wait
}

// restFor is how long the rest of a stream may take that is not taken.
const restFor = 10 * time.Second

// SetReadDeadline ends a Read.
func (b *patientBody) SetReadDeadline(t time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = !t.IsZero()
	return b.deadline(t)
}

func restoreRoutes(b Backend) []route {
	valid := func(id string) error {
		if _, err := volume.ParseID(id); err != nil {
			return volume.Errorf(volume.CodeInvalid, "the id of a restore: %v", err)
		}
		return nil
	}
	return []route{
		{"POST", "/v1/restores", local, strict(func(r *http.Request, req BeginRestoreRequest) (any, error) {
			if err := valid(req.ID); err != nil {
				return nil, err
			}
			return b.BeginRestore(r.Context(), req)
		})},
		{"POST", receivePath, local, func(r *http.Request) (any, error) {
			q, err := query(r, "guid", "base")
			if err != nil {
				return nil, err
			}
			var req ReceiveRequest
			if req.GUID, err = q.number("guid"); err != nil {
				return nil, err
			}
			if req.Base, err = q.number("base"); err != nil {
				return nil, err
			}
			if req.GUID == 0 {
				return nil, volume.Errorf(volume.CodeInvalid, "which snapshot the stream makes is not said: guid is missing")
			}
			id := r.PathValue("id")
			if err := valid(id); err != nil {
				return nil, err
			}
			return nil, b.ReceiveRestore(r.Context(), id, req, r.Body)
		}},
		{"POST", "/v1/restores/{id}/finish", local, strict(func(r *http.Request, req FinishRestoreRequest) (any, error) {
			if err := valid(r.PathValue("id")); err != nil {
				return nil, err
			}
			return b.FinishRestore(r.Context(), r.PathValue("id"), req)
		})},
		{"DELETE", "/v1/restores/{id}", local, plain(func(r *http.Request) (any, error) {
			if err := valid(r.PathValue("id")); err != nil {
				return nil, err
			}
			return nil, b.DropRestore(r.Context(), r.PathValue("id"))
		})},
	}
}
