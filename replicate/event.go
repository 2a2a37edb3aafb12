package replicate

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Event is a fact about replication on this node. Logs, metrics and tests listen
// to the same ones; String is for people.
type Event interface {
	String() string
	// attrs and level are how the log shows it.
	attrs() []any
	level() slog.Level
}

// SnapshotsTaken says that one command took snapshots of these volumes, how long
// that took, and how long it took to list them then.
type SnapshotsTaken struct {
	Kind    string // KindEngine, KindScheduled or KindUser
	Volumes []volume.ID
	Took    time.Duration
	Listed  time.Duration
}

// Ticked says that the cadence loop went round once: how many datasets it listed,
// of how many volumes it took the engine's snapshots, how long the listing took and
// how long all of it, scheduled snapshots included.
type Ticked struct {
	Datasets, Taken int
	Listed, Took    time.Duration
}

// StreamEnded says how one stream to a replica went. Kind is "full", "clone" (a clone's
// first, on what it was made of), "incremental" or "resume". Err nil: the replica holds the snapshot, verified.
type StreamEnded struct {
	Volume  volume.ID
	Replica volume.NodeID
	Kind    string
	To      string // snapshot's name
	Bytes   int64
	Took    time.Duration
	Err     error
}

// Offered says that a replica has answered an offer, how long after it was made.
type Offered struct {
	Volume  volume.ID
	Replica volume.NodeID
	Took    time.Duration
}

// Acknowledged says that a replica has answered a whole stream, good or bad, how long after
// the last of it was out.
type Acknowledged struct {
	Volume  volume.ID
	Replica volume.NodeID
	Took    time.Duration
}

// LineChanged says that streams to a node are compressed from now on, because the way there
// is slow, or are not any more.
type LineChanged struct {
	Replica    volume.NodeID
	Compresses bool
}

// SnapshotPassed says that a snapshot taken by hand is not on a replica and does not come
// there: its name is too long, or it was found Late, when the replica had a newer one
// already. What it holds is in the next one that is there.
type SnapshotPassed struct {
	Volume  volume.ID
	Replica volume.NodeID
	Name    string
	Late    bool
}

// LinkChanged says that a link began to fail, fails for another reason, or works
// again (Err nil). It is not repeated for every retry.
type LinkChanged struct {
	Volume  volume.ID
	Replica volume.NodeID
	State   volume.LinkState
	Err     error
}

// Throttled says how long streams to a replica have waited for the bandwidth limit
// since the last one. It comes at most once a minute for each replica.
type Throttled struct {
	Replica volume.NodeID
	Waited  time.Duration // all streams together
}

// Received says how one stream from a primary went.
type Received struct {
	Volume  volume.ID
	Primary volume.NodeID
	To      string
	Bytes   int64
	Took    time.Duration
	Err     error
}

// SetAside says that a copy went its own way and is kept under another name.
type SetAside struct {
	Volume  volume.ID
	Dataset string // where it is now
	Common  bool   // the history shared with the primary stayed
	Reason  string
}

// Pruned says what was destroyed in one pass over the copies of this node, by
// retention or by people.
type Pruned struct {
	Copies    int
	Snapshots int
	Bookmarks int
	Took      time.Duration
}

// PoolFailed says that the pool cannot be asked, or obeyed, and PoolRecovered that
// it can again. Meanwhile nothing is concluded from what is not seen.
type PoolFailed struct {
	Op  string
	Err error
}

// PoolRecovered ends a PoolFailed.
type PoolRecovered struct{ Op string }

func (e SnapshotsTaken) String() string {
	return fmt.Sprintf("took %d snapshots (%s) in %v", len(e.Volumes), e.Kind, e.Took)
}

func (e Ticked) String() string {
	return fmt.Sprintf("tick over %d datasets took %v", e.Datasets, e.Took)
}

func (e StreamEnded) String() string {
	s := fmt.Sprintf("%s stream of %s to %s up to %s: %d bytes in %v", e.Kind, e.Volume, e.Replica.Short(), e.To, e.Bytes, e.Took)
	return withError(s, e.Err)
}

func (e Offered) String() string {
	return fmt.Sprintf("%s answered an offer of %s after %v", e.Replica.Short(), e.Volume, e.Took)
}

func (e Acknowledged) String() string {
	return fmt.Sprintf("%s answered a stream of %s after %v", e.Replica.Short(), e.Volume, e.Took)
}

func (e LineChanged) String() string {
	if e.Compresses {
		return fmt.Sprintf("the line to %s is slow: streams are compressed", e.Replica.Short())
	}
	return fmt.Sprintf("streams to %s are not compressed any more: the line is fast enough, or it gained nothing", e.Replica.Short())
}

func (e SnapshotPassed) String() string {
	if e.Late {
		return fmt.Sprintf("snapshot %s of %s does not go to %s: it was taken by hand, and found when a newer one was there",
			e.Name, e.Volume, e.Replica.Short())
	}
	return fmt.Sprintf("snapshot %s of %s does not go to %s: a name longer than %d bytes may not fit there",
		e.Name, e.Volume, e.Replica.Short(), volume.MaxSnapshotName)
}

func (e LinkChanged) String() string {
	return withError(fmt.Sprintf("link of %s to %s is %s", e.Volume, e.Replica.Short(), e.State), e.Err)
}

func (e Throttled) String() string {
	return fmt.Sprintf("streams to %s waited %v for the bandwidth limit", e.Replica.Short(), e.Waited)
}

func (e Received) String() string {
	s := fmt.Sprintf("received %s of %s from %s: %d bytes in %v", e.To, e.Volume, e.Primary.Short(), e.Bytes, e.Took)
	return withError(s, e.Err)
}

func (e SetAside) String() string {
	return fmt.Sprintf("copy of %s set aside as %s: %s", e.Volume, e.Dataset, e.Reason)
}

func (e Pruned) String() string {
	return fmt.Sprintf("pruned %d snapshots and %d bookmarks of %d copies in %v", e.Snapshots, e.Bookmarks, e.Copies, e.Took)
}

func (e PoolFailed) String() string { return fmt.Sprintf("%s: %v", e.Op, e.Err) }

func (e PoolRecovered) String() string { return e.Op + ": works again" }

func withError(s string, err error) string {
	if err != nil {
		return s + ": " + err.Error()
	}
	return s
}

func (e SnapshotsTaken) attrs() []any {
	return []any{"kind", e.Kind, "volumes", len(e.Volumes), "took", e.Took, "listed", e.Listed}
}
func (e Ticked) attrs() []any {
	return []any{"datasets", e.Datasets, "taken", e.Taken, "listed", e.Listed, "took", e.Took}
}
func (e StreamEnded) attrs() []any {
	return []any{"volume", e.Volume, "replica", e.Replica.Short(), "kind", e.Kind, "to", e.To, "bytes", e.Bytes, "took", e.Took, "err", e.Err}
}
func (e Offered) attrs() []any {
	return []any{"volume", e.Volume, "replica", e.Replica.Short(), "took", e.Took}
}
func (e Acknowledged) attrs() []any {
	return []any{"volume", e.Volume, "replica", e.Replica.Short(), "took", e.Took}
}
func (e LineChanged) attrs() []any {
	return []any{"replica", e.Replica.Short(), "compresses", e.Compresses}
}
func (e SnapshotPassed) attrs() []any {
	reason := fmt.Sprintf("its name is longer than %d bytes", volume.MaxSnapshotName)
	if e.Late {
		reason = "it was taken by hand, and found when a newer one was there"
	}
	return []any{"volume", e.Volume, "replica", e.Replica.Short(), "snapshot", e.Name, "reason", reason}
}
func (e LinkChanged) attrs() []any {
	return []any{"volume", e.Volume, "replica", e.Replica.Short(), "state", e.State, "err", e.Err}
}
func (e Throttled) attrs() []any {
	return []any{"replica", e.Replica.Short(), "waited", e.Waited}
}
func (e Received) attrs() []any {
	return []any{"volume", e.Volume, "primary", e.Primary.Short(), "to", e.To, "bytes", e.Bytes, "took", e.Took, "err", e.Err}
}
func (e SetAside) attrs() []any {
	return []any{"volume", e.Volume, "dataset", e.Dataset, "common", e.Common, "reason", e.Reason}
}
func (e Pruned) attrs() []any {
	return []any{"copies", e.Copies, "snapshots", e.Snapshots, "bookmarks", e.Bookmarks, "took", e.Took}
}
func (e PoolFailed) attrs() []any    { return []any{"op", e.Op, "err", e.Err} }
func (e PoolRecovered) attrs() []any { return []any{"op", e.Op} }

func (SnapshotsTaken) level() slog.Level { return slog.LevelDebug }
func (Ticked) level() slog.Level         { return slog.LevelDebug - 4 } // one a second
func (StreamEnded) level() slog.Level    { return slog.LevelDebug }
func (Offered) level() slog.Level        { return slog.LevelDebug - 4 } // several a second
func (Acknowledged) level() slog.Level   { return slog.LevelDebug - 4 }
func (LineChanged) level() slog.Level    { return slog.LevelInfo }
func (SnapshotPassed) level() slog.Level { return slog.LevelWarn }
func (e LinkChanged) level() slog.Level {
	var busy *busyError
	if e.Err != nil && !errors.As(e.Err, &busy) {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}
func (Throttled) level() slog.Level     { return slog.LevelDebug }
func (Received) level() slog.Level      { return slog.LevelDebug }
func (SetAside) level() slog.Level      { return slog.LevelWarn }
func (Pruned) level() slog.Level        { return slog.LevelDebug }
func (PoolFailed) level() slog.Level    { return slog.LevelWarn }
func (PoolRecovered) level() slog.Level { return slog.LevelInfo }

// emit tells everybody. It is called without locks.
func (e *Engine) emit(ev Event) {
	if e.cfg.Log.Enabled(e.logCtx, ev.level()) {
		e.cfg.Log.Log(e.logCtx, ev.level(), kindOfEvent(ev), ev.attrs()...)
	}
	e.cfg.Observe(ev)
}

// kindOfEvent is the constant message of the log line.
func kindOfEvent(ev Event) string {
	switch ev.(type) {
	case SnapshotsTaken:
		return "snapshots taken"
	case Ticked:
		return "ticked"
	case StreamEnded:
		return "stream ended"
	case Offered:
		return "offer answered"
	case Acknowledged:
		return "stream answered"
	case LineChanged:
		return "line changed"
	case SnapshotPassed:
		return "snapshot does not go to a replica"
	case LinkChanged:
		return "link changed"
	case Throttled:
		return "streams throttled"
	case Received:
		return "stream received"
	case SetAside:
		return "copy set aside"
	case Pruned:
		return "pruned"
	case PoolFailed:
		return "pool failed"
	case PoolRecovered:
		return "pool recovered"
	}
	return "event"
}
