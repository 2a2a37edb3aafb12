package zfs

import (
	"context"
	"io"
	"time"
)

// System is everything this package offers, as one list: *Host (real commands)
// and *zfsfake.Host implement it and zfstest checks both. Users declare the few
// methods they need for themselves; they do not depend on System.
//
// All methods may be called from many goroutines. Every method blocks until the
// commands it runs have ended; when ctx ends, they are stopped and the error
// wraps context.Cause(ctx). After any error the state of the disk is unknown: the
// caller reads it again. Errors are *Error, and errors.Is finds their kind.
type System interface {
	// Capabilities of the userland and module, detected once.
	Capabilities(ctx context.Context) (Capabilities, error)

	// Pool by name; ErrNotFound when it is not imported.
	Pool(ctx context.Context, name string) (Pool, error)
	// CreateFilePool makes a pool on one sparse file (created, mode 0600; an
	// existing file is refused with ErrExists) of size bytes. Its root dataset is
	// not mountable; what is below it inherits mountpoint none, lz4 and atime off.
	CreateFilePool(ctx context.Context, pool, path string, size int64) error
	// ImportPool brings back a pool whose files lie in dir and which nothing has
	// imported since boot; ErrNotFound when there is none, no error when it is here.
	ImportPool(ctx context.Context, pool, dir string) error

	// Datasets lists root and every filesystem and volume below it, in one command, root
	// first. ErrNotFound when root does not exist.
	Datasets(ctx context.Context, root string) ([]Dataset, error)
	// Dataset is the filesystem named.
	Dataset(ctx context.Context, name string) (Dataset, error)
	// Properties are these properties of a filesystem or a volume of ZFS, by name; one
	// that has no value there is not among them. Sizes are bytes, 0 for none.
	Properties(ctx context.Context, name string, props []string) (map[string]Property, error)
	// Delegated is what users and groups were allowed to do with a filesystem by itself (zfs allow),
	// in the words of zfs; nothing of what they may do because of what is above it.
	Delegated(ctx context.Context, name string) ([]string, error)
	// Snapshots lists the snapshots of root, and of everything below it when
	// recursive, in one command, each dataset's in the order they were taken.
	Snapshots(ctx context.Context, root string, recursive bool) ([]Snapshot, error)
	// SnapshotsNamed lists exactly these (full names), without their user properties and
	// a thousand in one command: for a caller that knows what it has just taken. By
	// dataset, each's in the order they were taken, and each once; one that does not exist is
	// just not among them, and neither is one whose dataset or pool does not exist. Any
	// other trouble with any of them is an error.
	SnapshotsNamed(ctx context.Context, names []string) ([]Snapshot, error)
	// Bookmarks likewise as Snapshots.
	Bookmarks(ctx context.Context, root string, recursive bool) ([]Bookmark, error)

	// CreateFilesystem makes an unmounted filesystem (create -u) with these
	// properties; ErrExists when there is one. Its parent must exist.
	CreateFilesystem(ctx context.Context, name string, props map[string]string) error
	// SetProperties sets all of them in one command.
	SetProperties(ctx context.Context, name string, props map[string]string) error
	// Inherit drops the local value of a property; none there is no error.
	Inherit(ctx context.Context, name, prop string) error
	// Rename a filesystem (unmounted) or a snapshot.
	Rename(ctx context.Context, from, to string) error
	// Clone a snapshot into a new, unmounted filesystem with these properties.
	Clone(ctx context.Context, snapshot, name string, props map[string]string) error
	// Promote a clone, so that its origin depends on it and not the reverse.
	Promote(ctx context.Context, name string) error

	// Snapshot takes all of them (full names, "pool/fs@snap") in one command; those
	// in one pool are in one transaction group. Props are user properties. When one
	// name is refused (its dataset is missing, or it exists) none is taken and
	// Error.Names has at least the first that was refused. Two of one dataset in one
	// call are ErrInvalid. Only a list too long for one command line (about
	// 20,000 names) is taken in several steps; then the first ones may be taken.
	Snapshot(ctx context.Context, names []string, props map[string]string) error
	// Take takes snapshots of any number of datasets (full names), a thousand in one
	// command and one transaction group, and says what it took, as a listing would right
	// after it. Every one stands for itself: those that could not be taken are in failed,
	// by full name, with their kind (ErrNotFound, ErrExists, ErrNoSpace, ErrBusy). Two of
	// one dataset in one call are ErrInvalid. With err, some may have been taken and be in
	// neither.
	Take(ctx context.Context, names []string) (taken []Snapshot, failed map[string]error, err error)
	// Bookmark makes bookmark (full name, "pool/fs#mark") of snapshot; again is no error.
	Bookmark(ctx context.Context, snapshot, bookmark string) error
	// Hold and Release are idempotent: a hold that is there, or one that is gone
	// (with its snapshot or without), is no error. Hold on a missing snapshot is
	// ErrNotFound.
	Hold(ctx context.Context, tag, snapshot string) error
	Release(ctx context.Context, tag, snapshot string) error

	// DestroySnapshots destroys the named snapshots of one dataset in one command
	// (the comma form). One that is already gone is no error. A held one, or one
	// with clones, gives ErrBusy or ErrHasClones, and it and perhaps others remain.
	// ErrNotFound when the dataset itself does not exist.
	DestroySnapshots(ctx context.Context, dataset string, snaps []string) error
	// Prune destroys snapshots of any number of datasets, up to PruneBatch in one command
	// and one transaction group, of aged ones PruneAged, where the pool is quick with them;
	// where it is not, it also pauses between commands. Each first leaves a bookmark when it
	// is asked for. Every one stands for itself: those that cannot go are in failed, by full
	// name, with their kind (ErrBusy, ErrHasClones; ErrInvalid for a name that cannot be; ErrExists
	// when another snapshot has the bookmark's name), and one that is gone is no failure. With err, which ones went
	// is unknown. All of them in one pool or not, mounted or not.
	Prune(ctx context.Context, reqs []PruneRequest) (failed map[string]error, err error)
	// DestroyBookmark destroys one; one that is gone is no error.
	DestroyBookmark(ctx context.Context, bookmark string) error
	// Destroy a filesystem together with its snapshots and what is below it (-r),
	// never with clones that live elsewhere: those give ErrHasClones. One that is gone
	// is no error. A filesystem and its snapshots go together or stay, also when it is
	// mounted and in use (ErrBusy). With others below it this is not so: one that must
	// stay saves neither its neighbours nor the snapshots of what is above it.
	Destroy(ctx context.Context, name string) error

	// Mount a filesystem at its mountpoint property. With write, the temporary
	// option rw overrides readonly=on for this mount alone. ErrExists when mounted,
	// ErrInvalid when it has no mountpoint or canmount is off.
	Mount(ctx context.Context, name string, write bool) error
	// Unmount plainly, never forced: ErrBusy while something uses it (after trying
	// again for a tenth of a second, since ZFS is busy for a moment after its last
	// user has gone). One that is not mounted is no error.
	Unmount(ctx context.Context, name string) error

	// MountSnapshot mounts a snapshot (full name) read-only at dir, an empty directory;
	// what is in it is neither run nor a device nor with rights of its owner there. As
	// long as it is mounted it cannot be destroyed (ErrBusy). ErrNotFound: no such
	// snapshot.
	MountSnapshot(ctx context.Context, snapshot, dir string) error
	// UnmountSnapshot ends that at once. What is open in it can be read on, and the
	// snapshot cannot be destroyed until all of it is closed, or its process has ended.
	// Nothing mounted at dir is no error.
	UnmountSnapshot(ctx context.Context, dir string) error

	// Send writes a stream to w until it ends. When w is an *os.File, or has one
	// (method File, as *net.TCPConn), the child writes to it directly: the
	// connection is given away, its deadlines do not work any more, and ending ctx
	// shuts it down. Any other w is written by a goroutine that is joined before Send
	// returns. If it is blocked in w.Write when ctx ends, it is freed by
	// w.SetWriteDeadline where there is one; without one Send returns a second later
	// and w may be written until the caller closes it.
	// ErrNotFound: no such snapshot. ErrNoBase: From is not there, or not before it.
	Send(ctx context.Context, req SendRequest, w io.Writer) error
	// Receive reads one stream from r and returns when it is applied and durable and
	// r has ended. It owns r: what follows the stream is read and thrown away, so
	// the caller frames the stream (half-close, chunks) and r gives EOF at its end.
	// When it fails it returns without reading on. Files and blocked ends as for Send
	// (a file's end is not waited for), with SetReadDeadline.
	//
	// An interrupted or damaged stream leaves Dataset.ResumeToken and fails with
	// ErrInterrupted when the receive was resumable and far enough to be worth it;
	// else nothing is left and it is ErrBadStream. An increment that is there by GUID
	// is swallowed without error. ErrExists: full stream, or one with an Origin, onto a dataset.
	// ErrNotFound: increment onto none. ErrDiverged, ErrNoBase. ErrBusy: another receive is under
	// way, the dataset holds an interrupted one, or it is mounted and in use.
	Receive(ctx context.Context, req ReceiveRequest, r io.Reader) error
	// AbortReceive throws the state of an interrupted receive away (receive -A), and
	// with a full stream's the whole dataset. None there is no error.
	AbortReceive(ctx context.Context, name string) error
	// DecodeToken asks zfs what a resume token stands for (send -nvt), without
	// sending. ErrBadToken when it is garbled or what it names is gone here.
	DecodeToken(ctx context.Context, token string) (ResumeToken, error)
	// EstimateSend is how many bytes Send would write, as zfs guesses (send -nvP).
	// For display, never for decisions.
	EstimateSend(ctx context.Context, req SendRequest) (int64, error)
}

// Capabilities of the installed OpenZFS.
type Capabilities struct {
	Userland string // "2.3.2-2~bpo12+2"
	Kernel   string
	Major    int
	Minor    int
	// CorrectiveReceive, BlockCloning and the like are added when something uses them.
}

// Pool is one imported pool. Sizes in bytes.
type Pool struct {
	Name     string
	GUID     uint64
	Size     int64
	Alloc    int64
	Free     int64
	Health   string // ONLINE, DEGRADED, FAULTED, OFFLINE, REMOVED, UNAVAIL, SUSPENDED
	ReadOnly bool
	BootFS   string // what the machine boots from; ""
}

// Dataset is one filesystem or, in a listing, a volume of ZFS. Sizes in bytes.
type Dataset struct {
	Name        string
	Volume      bool // a block device; somebody else's, since flocker makes filesystems only
	GUID        uint64
	CreateTXG   uint64
	Used        int64
	Available   int64
	Referenced  int64
	Written     int64 // since the newest snapshot; lags unflushed data by up to a txg
	RefQuota    int64 // 0: none
	Origin      string
	Mountpoint  string
	Mounted     bool
	ReadOnly    bool // the property on disk; a temporary rw mount does not show here
	Writable    bool // mounted now, in the mount namespace of this process, and writable there
	CanMount    string
	Encryption  string // "off" when plain
	ResumeToken string // of an interrupted receive; ""
	// User properties that are set on this dataset itself (not inherited).
	User map[string]string
}

// Property is one value of a dataset. Own says that it was set on the dataset itself, and is
// neither inherited nor the default.
type Property struct {
	Value string
	Own   bool
}

// Snapshot of a filesystem. User holds what was set on the snapshot itself.
type Snapshot struct {
	Dataset    string
	Name       string // after the @
	GUID       uint64
	CreateTXG  uint64
	Creation   time.Time
	Used       int64
	Referenced int64
	Written    int64 // since the snapshot before
	UserRefs   int   // holds
	Clones     []string
	User       map[string]string
}

// FullName is dataset@name.
func (s Snapshot) FullName() string { return s.Dataset + "@" + s.Name }

// Bookmark of a snapshot that may be gone: good as a base to send from.
type Bookmark struct {
	Dataset   string
	Name      string // after the #
	GUID      uint64 // of the snapshot it was made of
	CreateTXG uint64
	Creation  time.Time
}

// FullName is dataset#name.
func (b Bookmark) FullName() string { return b.Dataset + "#" + b.Name }

// SendRequest says what to send. Flags -L -e -c are always used, so that they
// stay the same for the life of a pair; -p and -R never.
type SendRequest struct {
	// Snapshot is the full name to send; ignored with Token.
	Snapshot string
	// From is the base's full name, snapshot or bookmark; "" for a full stream.
	From string
	// Token resumes an interrupted stream; it carries its own flags.
	Token string
}

// ReceiveRequest says where a stream goes. Receive uses -u (never mounted) and
// never -F.
type ReceiveRequest struct {
	// Dataset to receive into. For a full stream and with an Origin it must not exist; for
	// an increment it must.
	Dataset string
	// Origin is a snapshot here (full name) that the stream is an increment on: Dataset is
	// made a clone of it (-o origin), whatever the stream says it hangs on there. It must be the
	// very snapshot, by its GUID, else the error is ErrNoBase or ErrNotFound. When the rest of
	// such a stream is received it changes nothing, and spares zfs looking for it. "": none.
	Origin string
	// Resumable keeps the state of an interrupted receive (-s).
	Resumable bool
	// Properties to set on a new dataset (-o); only where the stream makes one. One that ZFS
	// knows but will not take here (a refquota below the size) is left out without an
	// error: read it again where it matters. A refquota does not refuse a stream.
	Properties map[string]string
}

// ResumeToken is what zfs says a token stands for.
type ResumeToken struct {
	ToName   string // full snapshot name on the sender
	ToGUID   uint64
	FromGUID uint64 // 0: full
	Bytes    int64  // received so far
}
