package api

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// MigrateRequest has a volume, with the containers that run on it and follow it, moved to
// another node.
type MigrateRequest struct {
	// To is a ref of the node; "": the best one that has copies of all already.
	To string `json:"to,omitempty"`
	// DryRun only says what would be done.
	DryRun bool `json:"dry_run,omitempty"`
}

// MigrationState is where a migration is.
type MigrationState string

// The states.
const (
	MigrationPlanned MigrationState = "planned" // a dry run
	MigrationRunning MigrationState = "running"
	MigrationDone    MigrationState = "done"
	MigrationFailed  MigrationState = "failed" // all is where it was, and Reason says why
)

// Migration is how far one is.
type Migration struct {
	ID     string         `json:"id,omitempty"` // "" of a dry run
	Volume volume.ID      `json:"volume"`
	Name   string         `json:"name"`
	From   NodeRef        `json:"from"`
	To     NodeRef        `json:"to"`
	State  MigrationState `json:"state"`
	// Arrived: the volume is on To, and what is left is to start the containers there. It
	// cannot be called off any more; if they do not start it goes back by itself.
	Arrived bool `json:"arrived,omitempty"`
	// Doing says in words what is under way. When nothing is, Why says what it waits for.
	Doing string `json:"doing,omitempty"`
	Why   string `json:"why,omitempty"`
	// Containers go along, and With are the names of other volumes, which they need.
	Containers []string `json:"containers"`
	With       []string `json:"with"`
	// Notes, of a dry run, are what its clients would notice, in sentences.
	Notes []string `json:"notes,omitempty"`
	// Reason is why it failed.
	Reason string    `json:"reason,omitempty"`
	Began  time.Time `json:"began,omitzero"`
	Ended  time.Time `json:"ended,omitzero"`
	// StoppedSeconds is for how long the containers did not run, at most: from the order to
	// stop them until the leader knew that they run again. 0: none went along.
	StoppedSeconds float64 `json:"stopped_seconds,omitempty"`
	// Index of the state that this is from.
	Index uint64 `json:"index,omitempty"`
}

// MigrateVolume implements Backend.
func (c *Client) MigrateVolume(ctx context.Context, ref string, req MigrateRequest) (m Migration, err error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return m, err
	}
	return m, c.call(ctx, request{method: "POST", path: path + "/migrate", in: req, out: &m, repeatable: true})
}

// Migration implements Backend.
func (c *Client) Migration(ctx context.Context, ref, id string) (m Migration, err error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return m, err
	}
	return m, c.call(ctx, request{method: "GET", path: path + "/migrate", query: url.Values{"id": {id}}, out: &m})
}

// AbortMigration implements Backend.
func (c *Client) AbortMigration(ctx context.Context, ref, id string) (m Migration, err error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return m, err
	}
	return m, c.call(ctx, request{method: "DELETE", path: path + "/migrate", query: url.Values{"id": {id}}, out: &m, repeatable: true})
}

func migrateRoutes(b Backend) []route {
	reply := func(m Migration, err error) (any, error) {
		m.Containers, m.With = notNil(m.Containers), notNil(m.With)
		return m, err
	}
	byID := func(serve func(ctx context.Context, ref, id string) (Migration, error)) func(*http.Request) (any, error) {
		return func(r *http.Request) (any, error) {
			q, err := query(r, "id")
			if err == nil {
				err = noBody(r)
			}
			if err != nil {
				return nil, err
			}
			return reply(serve(r.Context(), r.PathValue("ref"), q["id"]))
		}
	}
	return []route{
		{"POST", "/v1/volumes/{ref}/migrate", anyone, strict(func(r *http.Request, req MigrateRequest) (any, error) {
			return reply(b.MigrateVolume(r.Context(), r.PathValue("ref"), req))
		})},
		{"GET", "/v1/volumes/{ref}/migrate", anyone, byID(func(ctx context.Context, ref, id string) (Migration, error) { return b.Migration(ctx, ref, id) })},
		{"DELETE", "/v1/volumes/{ref}/migrate", anyone, byID(func(ctx context.Context, ref, id string) (Migration, error) { return b.AbortMigration(ctx, ref, id) })},
	}
}
