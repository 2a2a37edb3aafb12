package replicate

import (
	"context"
	"errors"
	"net"

	"github.com/flocker-io/flocker/internal/volume"
)

// Engine replicates the volumes of one node.
type Engine struct {
	cfg    Config
	logCtx context.Context
}

// New returns an engine that does nothing until Run.
func New(cfg Config) *Engine {
	return &Engine{cfg: cfg.withDefaults(), logCtx: context.Background()}
}

var errTODO = errors.New("not built yet")

// Run works until ctx ends and joins everything it started.
func (e *Engine) Run(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }

// Assign replaces the whole table of what this node should do. It does not block
// and may be called with the same table any number of times.
func (e *Engine) Assign(all []Assignment) {}

// ServeConn is the receiving side of one connection from peer, whose identity the
// caller has verified. It returns when the connection or ctx ends, and closes conn.
func (e *Engine) ServeConn(ctx context.Context, conn net.Conn, peer volume.NodeID) error {
	return errTODO
}

// Links of a volume whose primary this node is, in the order of its replicas.
func (e *Engine) Links(id volume.ID) []volume.LinkStatus { return nil }

// Positions are the newest complete engine snapshots of every copy on this node,
// from memory; zero for a copy without one. It is nil until the disk has been read.
func (e *Engine) Positions() map[volume.ID]volume.Position { return nil }

// Flush takes a snapshot of a volume now and returns when the replica `to` has
// acknowledged exactly it; with to "" as soon as it is taken.
func (e *Engine) Flush(ctx context.Context, id volume.ID, to volume.NodeID) (volume.Position, error) {
	return volume.Position{}, errTODO
}

// Sync takes a snapshot of a volume now and returns when all its replicas have it.
func (e *Engine) Sync(ctx context.Context, id volume.ID) error { return errTODO }

// Refresh reads one volume's copy from disk again and wakes its links: for a caller
// that has just taken or destroyed a user snapshot. It does not wait.
func (e *Engine) Refresh(id volume.ID) {}

// Settle returns when no stream older than the current assignment is being
// received for the volume and nothing half received is left: before a promotion.
func (e *Engine) Settle(ctx context.Context, id volume.ID) error { return errTODO }
