package replicate

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// Assignment is what this node should do for one volume, derived from the
// replicated state by the agent.
type Assignment struct {
	Volume volume.ID
	Epoch  volume.Epoch
	// Role is RolePrimary or RoleReplica.
	Role volume.Role
	// Primary is whom a replica accepts streams from at this epoch.
	Primary volume.NodeID
	// Replicas, on the primary, are whom to send to.
	Replicas []volume.NodeID
	// Interval between snapshots while data changes; 0: volume.DefaultInterval.
	Interval time.Duration
	// Properties of ZFS for the dataset that a seed makes.
	Properties map[string]string
	// Snapshots to take by the clock, on the primary, and to keep, on both sides.
	Snapshots volume.SnapshotPolicy
	// Frozen, on the primary, stops snapshots by cadence: a handoff or a removal is
	// under way. What is there is still sent, and Flush and Sync still work.
	Frozen bool
	// Line is where the volume was last rolled back; zero: never. A replica that has what was
	// undone says so of what it sets aside.
	Line volume.Line
	// Stay are the guids of snapshots that a volume is just being made of, or its first copy
	// here: they are not pruned. Its clone pins it from then on.
	Stay []uint64
	// Origin is what the volume was made a clone of; the zero one: of nothing. A first copy of it
	// here needs no more than what it has beyond that.
	Origin Origin
}

// Origin is a snapshot of another volume.
type Origin struct {
	Volume volume.ID
	GUID   uint64
	// Here says that this node is to have a copy of that volume, whether or not one is assigned
	// in this moment: what is received may hang on it, and must not hold it up any more when
	// this ends.
	Here bool
}

func (a Assignment) interval() time.Duration {
	if a.Interval <= 0 {
		return volume.DefaultInterval
	}
	return a.Interval
}

// Pool is what the engine needs of zfs.System, whose contracts hold here. That it
// cannot destroy or force a dataset is on purpose.
type Pool interface {
	Datasets(ctx context.Context, root string) ([]zfs.Dataset, error)
	Dataset(ctx context.Context, name string) (zfs.Dataset, error)
	Snapshots(ctx context.Context, root string, recursive bool) ([]zfs.Snapshot, error)
	SnapshotsNamed(ctx context.Context, names []string) ([]zfs.Snapshot, error)
	Bookmarks(ctx context.Context, root string, recursive bool) ([]zfs.Bookmark, error)

	CreateFilesystem(ctx context.Context, name string, props map[string]string) error
	SetProperties(ctx context.Context, name string, props map[string]string) error
	Inherit(ctx context.Context, name, prop string) error
	Rename(ctx context.Context, from, to string) error
	Clone(ctx context.Context, snapshot, name string, props map[string]string) error
	Promote(ctx context.Context, name string) error

	Snapshot(ctx context.Context, names []string, props map[string]string) error
	Take(ctx context.Context, names []string) (taken []zfs.Snapshot, failed map[string]error, err error)
	Prune(ctx context.Context, reqs []zfs.PruneRequest) (failed map[string]error, err error)
	DestroyBookmark(ctx context.Context, bookmark string) error

	Send(ctx context.Context, req zfs.SendRequest, w io.Writer) error
	Receive(ctx context.Context, req zfs.ReceiveRequest, r io.Reader) error
	AbortReceive(ctx context.Context, name string) error
	DecodeToken(ctx context.Context, token string) (zfs.ResumeToken, error)
	EstimateSend(ctx context.Context, req zfs.SendRequest) (int64, error)
}

// Dirty counts what is written to mounted datasets as it happens. ZFS's own
// `written` lags by up to a transaction group (5 s); a counter that moved says that
// a snapshot is worth taking now. It is a hint only: a dataset that is missing, or
// a change it does not count, is still found by `written`. Kstats is the real one.
type Dirty interface {
	// Counters by dataset name. Only their change means something.
	Counters(ctx context.Context) (map[string]uint64, error)
}

// Limit bounds what one node sends to others. Nodes with the same Group share it.
// The zero value is no limit.
type Limit struct {
	Group string // such as the other zone
	Bytes int64  // a second; 0: no limit
}

// Config of an Engine. The first five fields are required.
type Config struct {
	Node      volume.NodeID
	ClusterID string
	// Root is "<pool>/flocker"; a volume's dataset is Root/<volume id>.
	Root string
	Pool Pool
	// Dial opens a stream connection, full duplex, to a peer whose identity has been
	// verified. The engine closes it.
	Dial func(ctx context.Context, to volume.NodeID) (net.Conn, error)

	// Limit is how much may be sent to a node; nil: as much as there is. It is asked
	// often and must not block.
	Limit func(to volume.NodeID) Limit

	// Held are the guids of a volume's snapshots that are not to be destroyed, on whatever
	// node; nil: none. It is asked often and must not block.
	Held func(volume.ID) []uint64

	// Clock is the time that a set-aside copy is marked with, and so long after which it
	// is destroyed; zero when there is none to trust: then it stays until somebody
	// removes it. Nil: the machine's.
	Clock func() time.Time

	// Wall is the clock of what is told to other nodes: of the times up to which a replica
	// holds everything. It must be that of this node's reports, and may be set forward and
	// back. Nil: the machine's.
	Wall func() time.Time

	Dirty   Dirty        // nil: `written` alone tells what is due
	Log     *slog.Logger // nil: nothing is logged
	Observe func(Event)  // nil: nobody listens. Called without locks; must not block.

	// Sends is how many streams run at once; the first short and the first long one to
	// each replica run even beyond that, and so does what somebody waits for; 0: 8.
	Sends           int
	SendsPerReplica int // streams at once to one replica, and one that somebody waits for; 0: 4
	Receives        int // streams at once into this pool, of which a quarter are not first copies; 0: 8
	// Stall is how long a peer may be silent, and a fifth of how long a stream may
	// make no progress in bytes, before it is broken off; 0: one minute. Nothing
	// limits how long a stream takes.
	Stall time.Duration
	// Settle is how long after a write `written` surely shows it; 0: ten seconds.
	Settle time.Duration
	// List is how often zfs is asked what was written, where Dirty tells of writes in
	// between; 0: five seconds. With so many datasets that an answer takes more than a
	// fifth of that, it is asked less often, at least once a minute.
	List time.Duration
	// Verify is how often an idle replica is asked what it holds; 0: one minute.
	Verify time.Duration
	// Audit is how often all is read from disk again; 0: five minutes.
	Audit time.Duration
	// Away is how long a replica may be unreachable before it holds up nothing any more;
	// 0: thirty seconds.
	Away time.Duration
	// Replace is how long a replica may be unreachable before another node gets its copy.
	// Until then all copies keep what it stands on as snapshots, so that it may become the
	// primary and the others go back to it; after that only as bookmarks. Nil: ten
	// minutes. It is asked often and must not block.
	Replace func() time.Duration
}

func (c Config) withDefaults() Config {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Wall == nil {
		c.Wall = time.Now
	}
	setDefault(&c.Sends, 8)
	setDefault(&c.SendsPerReplica, 4)
	setDefault(&c.Receives, 8)
	setDefault(&c.Stall, time.Minute)
	setDefault(&c.Settle, 10*time.Second)
	setDefault(&c.List, 5*time.Second)
	setDefault(&c.Verify, time.Minute)
	setDefault(&c.Audit, 5*time.Minute)
	setDefault(&c.Away, 30*time.Second)
	if c.Replace == nil {
		c.Replace = func() time.Duration { return 10 * time.Minute }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Observe == nil {
		c.Observe = func(Event) {}
	}
	return c
}

func setDefault[T int | time.Duration](field *T, value T) {
	if *field <= 0 {
		*field = value
	}
}

// Properties that the engine sets and reads.
const (
	propVolume   = "flocker:volume"
	propEpoch    = "flocker:epoch"
	propAside    = "flocker:aside"    // of a copy set aside: when, and why
	propLine     = "flocker:line"     // of a copy that is known to be on a volume.Line: its Mark
	propPrepared = "flocker:prepared" // of a snapshot: each Prepared as name:id:id, with commas between
)

// dataset is where a volume's copy lives.
func (c Config) dataset(id volume.ID) string { return c.Root + "/" + string(id) }

// seed is where a first full copy is received, until it is complete. The epoch
// stands in the name because properties of a half received dataset cannot be
// relied on.
func (c Config) seed(id volume.ID, epoch volume.Epoch) string {
	return fmt.Sprintf("%s/%s-seed-%s", c.Root, id, epoch)
}

// fork is what a diverged copy's live part is called while it changes places.
func (c Config) fork(id volume.ID) string { return c.Root + "/" + string(id) + "-fork" }

// asideRoot is where diverged copies are kept, and aside one of them.
func (c Config) asideRoot() string {
	pool, _, _ := strings.Cut(c.Root, "/")
	return pool + "/flocker-aside"
}

func (c Config) aside(id volume.ID, epoch volume.Epoch, n int) string {
	return fmt.Sprintf("%s/%s-%s-%d", c.asideRoot(), id, epoch, n)
}

// kind of a dataset below Root, by its name.
type kind int

const (
	kindOther kind = iota
	kindCopy
	kindSeed
	kindFork
)

// parse says what the dataset called name is.
func (c Config) parse(name string) (k kind, id volume.ID, epoch volume.Epoch) {
	rest, ok := strings.CutPrefix(name, c.Root+"/")
	if !ok || len(rest) < 16 {
		return kindOther, "", 0
	}
	id, err := volume.ParseID(rest[:16])
	if err != nil {
		return kindOther, "", 0
	}
	switch suffix := rest[16:]; {
	case suffix == "":
		return kindCopy, id, 0
	case suffix == "-fork":
		return kindFork, id, 0
	case strings.HasPrefix(suffix, "-seed-"):
		if epoch, err := volume.ParseEpoch(suffix[len("-seed-"):]); err == nil {
			return kindSeed, id, epoch
		}
	}
	return kindOther, "", 0
}
