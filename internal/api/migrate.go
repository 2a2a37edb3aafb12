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
	// MaxPauseSeconds is what clients may wait for besides the stop and the start of the
	// containers, by what is predicted just before: above it nothing is stopped, and the
	// migration fails. At most 110, since a move has an end. 0: DefaultMaxPause, or, with Force,
	// however long it takes.
	MaxPauseSeconds float64 `json:"max_pause_seconds,omitempty"`
	Force           bool    `json:"force,omitempty"`
}

// DefaultMaxPause is when clients begin to give up who were not told to wait for longer.
const DefaultMaxPause = time.Second

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
	// Phase is the same for programs; "" before and after. Round of pre-copy, of at most
	// Rounds, is under way. LeftBytes are still to be sent of what is being sent; 0: nothing
	// is, or it is not known. SentBytes of TotalBytes, which is an estimate, have been, of late Rate
	// of them a second; a TotalBytes of 0 is as before, or a node with an older version.
	Phase     volume.MovePhase `json:"phase,omitempty"`
	Round     int              `json:"round,omitempty"`
	Rounds    int              `json:"rounds,omitempty"`
	LeftBytes int64            `json:"left_bytes,omitempty"`
	// A first copy may consist of several streams; these are the bytes of all.
	SentBytes  int64 `json:"sent_bytes,omitempty"`
	TotalBytes int64 `json:"total_bytes,omitempty"`
	Rate       int64 `json:"rate,omitempty"`
	// Containers go along, and With are the names of other volumes, which they need.
	Containers []string `json:"containers"`
	With       []string `json:"with"`
	// Services are those of a Swarm whose tasks go along: Swarm stops and starts them.
	Services []string `json:"services,omitempty"`
	// Notes, of a dry run, are what its clients would notice, in sentences; of the answer to a
	// request what of it is not kept.
	Notes []string `json:"notes,omitempty"`
	// Reason is why it failed.
	Reason string    `json:"reason,omitempty"`
	Began  time.Time `json:"began,omitzero"`
	Ended  time.Time `json:"ended,omitzero"`
	// StoppedSeconds is for how long the containers did not run, at most: from the order to
	// stop them until the leader knew that they run again. 0: none went along.
	StoppedSeconds float64 `json:"stopped_seconds,omitempty"`
	// PredictedSeconds, until the volume has arrived, is how long clients would wait besides
	// the stop and the start of the containers, as the last copies have shown it. 0: not known.
	PredictedSeconds float64 `json:"predicted_seconds,omitempty"`
	// PausedSeconds is how long the clients of its routes waited, from the pause at the old
	// node until the server at the new one was open to them. 0: it has no routes, or it is
	// not known. Times are what it consisted of.
	PausedSeconds float64    `json:"paused_seconds,omitempty"`
	Times         *MoveTimes `json:"times,omitempty"`
	// Index of the state that this is from.
	Index uint64 `json:"index,omitempty"`
}

// MoveTimes are the parts of a move with containers, in seconds.
type MoveTimes struct {
	Park    float64 `json:"park"`    // until all clients were at a quiet point
	Stop    float64 `json:"stop"`    // of the containers
	Unmount float64 `json:"unmount"` // of the volume
	Copy    float64 `json:"copy"`    // of what was written last
	// Start is the rest of the pause: until a server was open to them. 0 without routes.
	Start float64 `json:"start,omitempty"`
	// What Start consisted of, one after the other: until the new node had heard of the handoff,
	// had taken the dataset over, had mounted it, its engine had started the containers, a server
	// answered, and the routes led there. Absent from a cluster with an older node.
	Commit   float64 `json:"commit,omitempty"`
	Takeover float64 `json:"takeover,omitempty"`
	Mount    float64 `json:"mount,omitempty"`
	Run      float64 `json:"run,omitempty"`
	Ready    float64 `json:"ready,omitempty"`
	Open     float64 `json:"open,omitempty"`
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
