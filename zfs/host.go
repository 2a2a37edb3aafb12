package zfs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// UserProperties are the user properties that the engine keeps on datasets.
var UserProperties = []string{
	"flocker:volume", "flocker:epoch", "flocker:released", "flocker:name",
	"flocker:aside", "flocker:trashed", "flocker:subdir", "flocker:line", "flocker:restore", "flocker:import",
}

// SnapshotProperties are those that it keeps on snapshots. A copy may have thousands: each
// one more is a line of each in every listing.
var SnapshotProperties = []string{"flocker:prepared"}

// Options of a Host. The zero value is good.
type Options struct {
	// UserProperties are read into Dataset.User; zfs must be asked for each by name. Nil:
	// UserProperties of this package. Into Snapshot.User go SnapshotProperties.
	UserProperties []string
	// Observe is told of every command after it has ended, and of the system call that an
	// unmount is where it can be (kernel-unmount): for metrics, and for counting commands. It
	// is called from many goroutines.
	Observe func(op string, argv []string, took time.Duration, err error)
	// Ahead has the next command for channel programs (Take, Prune, SnapshotsNamed)
	// started before it is needed, while they follow one another within seconds. Then
	// Close must be called.
	Ahead bool
}

// Host is ZFS on this machine: System by running the commands zfs and zpool found
// in PATH. It keeps nothing but Capabilities and, if told to, a few commands ready.
//
// What goes through go-zfs and what through the runner of this package is said at
// gozfs.go.
type Host struct {
	options Options
	ahead   *ahead
	kernel  kernel

	mu           sync.Mutex
	capabilities *Capabilities
	paces        map[paceOf]pace
	rests        map[string]time.Time // of a pool: until when no program prunes
}

var _ System = (*Host)(nil)

// New returns the Host. It runs nothing.
func New(o Options) *Host {
	if o.UserProperties == nil {
		o.UserProperties = UserProperties
	}
	return &Host{options: o, ahead: newAhead(o.Ahead), kernel: newKernel(), paces: map[paceOf]pace{}, rests: map[string]time.Time{}}
}

// argMax bounds the names in one command line: well below the 2 MiB that Linux
// gives arguments and environment together, and argOne below its 128 KiB for one.
const (
	argMax = 1 << 20
	argOne = 100 << 10
)

// busyFor is how long Unmount goes on while ZFS says busy; busyPause is between.
const (
	busyFor   = 100 * time.Millisecond
	busyPause = 20 * time.Millisecond
)

// Capabilities implements System.
func (h *Host) Capabilities(ctx context.Context) (Capabilities, error) {
	h.mu.Lock()
	known := h.capabilities
	h.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	c, err := h.Versions(ctx)
	if err != nil {
		return Capabilities{}, err
	}
	h.mu.Lock()
	h.capabilities = &c
	h.mu.Unlock()
	return c, nil
}

// Pool implements System.
func (h *Host) Pool(ctx context.Context, name string) (Pool, error) {
	if err := checkPool("pool", name); err != nil {
		return Pool{}, err
	}
	argv := []string{"zpool", "get", "-Hp", "-o", "name,property,value,source",
		"guid,size,allocated,free,health,readonly,bootfs", name}
	out, err := h.run(ctx, command{op: "pool", argv: argv})
	if err != nil {
		return Pool{}, err
	}
	p, err := parsePool(out)
	if err != nil {
		return Pool{}, &Error{Op: "pool", Args: argv, Err: err}
	}
	return p, nil
}

// CreateFilePool implements System.
func (h *Host) CreateFilePool(ctx context.Context, pool, path string, size int64) error {
	if err := checkPool("create-pool", pool); err != nil {
		return err
	}
	if !strings.HasPrefix(path, "/") || size < 64<<20 {
		return invalid("create-pool", "want an absolute path and at least 64 MiB")
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		e := &Error{Op: "create-pool", Err: err}
		if errors.Is(err, os.ErrExist) {
			e.Kind = ErrExists
		}
		return e
	}
	err = errors.Join(file.Truncate(size), file.Sync(), file.Close())
	if err == nil {
		argv := []string{"zpool", "create", "-o", "ashift=12", "-O", "compression=lz4", "-O", "atime=off",
			"-O", "canmount=off", "-O", "mountpoint=none", pool, path}
		_, err = h.run(ctx, command{op: "create-pool", argv: argv})
	} else {
		err = &Error{Op: "create-pool", Err: err}
	}
	if err == nil {
		return nil
	}
	// The file is ours and new. It goes, unless the pool is there after all.
	if _, poolErr := h.Pool(context.WithoutCancel(ctx), pool); errors.Is(poolErr, ErrNotFound) || errors.Is(err, ErrExists) {
		os.Remove(path)
	}
	return err
}

// ImportPool implements System.
func (h *Host) ImportPool(ctx context.Context, pool, dir string) error {
	if err := checkPool("import-pool", pool); err != nil {
		return err
	}
	if !strings.HasPrefix(dir, "/") {
		return invalid("import-pool", "want an absolute path")
	}
	_, err := h.Pool(ctx, pool)
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	_, err = h.run(ctx, command{op: "import-pool", argv: []string{"zpool", "import", "-d", dir, "-N", pool}})
	return err
}

// Datasets implements System.
func (h *Host) Datasets(ctx context.Context, root string) ([]Dataset, error) {
	return h.datasets(ctx, "datasets", root, "-r", "-t", "filesystem,volume")
}

// Dataset implements System.
func (h *Host) Dataset(ctx context.Context, name string) (Dataset, error) {
	list, err := h.datasets(ctx, "dataset", name, "-t", "filesystem")
	if err != nil {
		return Dataset{}, err
	}
	if len(list) != 1 {
		return Dataset{}, &Error{Op: "dataset", Err: fmt.Errorf("zfs printed %d filesystems for %s", len(list), name)}
	}
	return list[0], nil
}

func (h *Host) datasets(ctx context.Context, op, root string, flags ...string) ([]Dataset, error) {
	if err := CheckDataset(root); err != nil {
		return nil, &Error{Op: op, Kind: ErrInvalid, Err: err}
	}
	argv := slices.Concat([]string{"zfs", "get", "-Hp"}, flags,
		[]string{"-o", "name,property,value,source", props(datasetProps, h.options.UserProperties), root})
	out, err := h.run(ctx, command{op: op, argv: argv})
	if err != nil {
		return nil, err
	}
	list, err := parseDatasets(out)
	if err != nil {
		return nil, &Error{Op: op, Args: argv, Err: err}
	}
	return list, nil
}

// Properties implements System.
func (h *Host) Properties(ctx context.Context, name string, props []string) (map[string]Property, error) {
	errs := []error{CheckDataset(name)}
	for _, p := range props {
		errs = append(errs, checkKey(p))
	}
	if err := check("properties", errs...); err != nil {
		return nil, err
	}
	argv := []string{"zfs", "get", "-Hp", "-t", "filesystem,volume", "-o", "name,property,value,source", strings.Join(props, ","), name}
	out, err := h.run(ctx, command{op: "properties", argv: argv})
	if err != nil {
		return nil, err
	}
	rows, err := parseRows(out)
	if err != nil {
		return nil, &Error{Op: "properties", Args: argv, Err: err}
	}
	found := map[string]Property{}
	for _, r := range rows {
		if r.value != "-" {
			found[r.prop] = Property{Value: r.value, Own: r.own()}
		}
	}
	return found, nil
}

// Delegated implements System.
func (h *Host) Delegated(ctx context.Context, name string) ([]string, error) {
	if err := check("delegated", CheckDataset(name)); err != nil {
		return nil, err
	}
	argv := []string{"zfs", "allow", name}
	out, err := h.run(ctx, command{op: "delegated", argv: argv})
	if err != nil {
		return nil, err
	}
	list, err := parseDelegated(out, name)
	if err != nil {
		return nil, &Error{Op: "delegated", Args: argv, Err: err}
	}
	return list, nil
}

func props(native, user []string) string { return strings.Join(slices.Concat(native, user), ",") }

// Snapshots implements System.
func (h *Host) Snapshots(ctx context.Context, root string, recursive bool) ([]Snapshot, error) {
	if err := CheckDataset(root); err != nil {
		return nil, &Error{Op: "snapshots", Kind: ErrInvalid, Err: err}
	}
	argv := slices.Concat([]string{"zfs", "get", "-Hp"}, depth(recursive),
		[]string{"-t", "snapshot", "-o", "name,property,value,source", props(snapshotProps, SnapshotProperties), root})
	out, err := h.run(ctx, command{op: "snapshots", argv: argv})
	if err != nil {
		return nil, err
	}
	list, err := parseSnapshots(out)
	if err != nil {
		return nil, &Error{Op: "snapshots", Args: argv, Err: err}
	}
	return list, nil
}

// Bookmarks implements System.
func (h *Host) Bookmarks(ctx context.Context, root string, recursive bool) ([]Bookmark, error) {
	if err := CheckDataset(root); err != nil {
		return nil, &Error{Op: "bookmarks", Kind: ErrInvalid, Err: err}
	}
	argv := slices.Concat([]string{"zfs", "list", "-Hp"}, depth(recursive),
		[]string{"-t", "bookmark", "-o", "name,guid,createtxg,creation", root})
	out, err := h.run(ctx, command{op: "bookmarks", argv: argv})
	if err != nil {
		return nil, err
	}
	list, err := parseBookmarks(out)
	if err != nil {
		return nil, &Error{Op: "bookmarks", Args: argv, Err: err}
	}
	return list, nil
}

func depth(recursive bool) []string {
	if recursive {
		return []string{"-r"}
	}
	return []string{"-d", "1"}
}

// CreateFilesystem implements System.
func (h *Host) CreateFilesystem(ctx context.Context, name string, props map[string]string) error {
	if err := check("create", CheckDataset(name), checkProps(props)); err != nil {
		return err
	}
	argv := slices.Concat([]string{"zfs", "create", "-u"}, options(props), []string{name})
	_, err := h.run(ctx, command{op: "create", argv: argv})
	return err
}

// SetProperties implements System.
func (h *Host) SetProperties(ctx context.Context, name string, props map[string]string) error {
	if err := check("set", checkAny(name), checkProps(props)); err != nil {
		return err
	}
	if len(props) == 0 {
		return nil
	}
	argv := []string{"zfs", "set"}
	for _, key := range slices.Sorted(maps.Keys(props)) {
		argv = append(argv, key+"="+props[key])
	}
	_, err := h.run(ctx, command{op: "set", argv: append(argv, name)})
	return err
}

// Inherit implements System.
func (h *Host) Inherit(ctx context.Context, name, prop string) error {
	if err := check("inherit", checkAny(name), checkKey(prop)); err != nil {
		return err
	}
	_, err := h.run(ctx, command{op: "inherit", argv: []string{"zfs", "inherit", prop, name}})
	return err
}

// Clone implements System. Without a canmount among props it is noauto, so that
// zfs does not mount the clone at once.
func (h *Host) Clone(ctx context.Context, snapshot, name string, props map[string]string) error {
	if err := check("clone", CheckSnapshot(snapshot), CheckDataset(name), checkProps(props)); err != nil {
		return err
	}
	props = maps.Clone(props)
	if props == nil {
		props = map[string]string{}
	}
	if v := props["canmount"]; v == "" || v == "on" {
		props["canmount"] = "noauto"
	}
	argv := slices.Concat([]string{"zfs", "clone"}, options(props), []string{snapshot, name})
	_, err := h.run(ctx, command{op: "clone", argv: argv})
	return err
}

// Promote implements System.
func (h *Host) Promote(ctx context.Context, name string) error {
	if err := check("promote", CheckDataset(name)); err != nil {
		return err
	}
	_, err := h.run(ctx, command{op: "promote", argv: []string{"zfs", "promote", name}})
	return err
}

// Snapshot implements System.
func (h *Host) Snapshot(ctx context.Context, names []string, props map[string]string) error {
	errs := []error{checkProps(props)}
	byPool := map[string][]string{}
	for _, name := range names {
		errs = append(errs, CheckSnapshot(name))
		byPool[poolOf(name)] = append(byPool[poolOf(name)], name)
	}
	for key := range props {
		if !isUserProperty(key) {
			errs = append(errs, invalid("snapshot", "property "+key+" is not a user property"))
		}
	}
	if err := check("snapshot", errs...); err != nil {
		return err
	}
	for _, pool := range slices.Sorted(maps.Keys(byPool)) {
		for batch := range batches(byPool[pool], argMax) {
			argv := slices.Concat([]string{"zfs", "snapshot"}, options(props), batch)
			if _, err := h.run(ctx, command{op: "snapshot", argv: argv}); err != nil {
				return blameSnapshots(err, batch)
			}
		}
	}
	return nil
}

// blameSnapshots turns a dataset that zfs could not open into the snapshots of it
// that were asked for.
func blameSnapshots(err error, asked []string) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	var names []string
	for _, name := range asked {
		dataset, _, _ := strings.Cut(name, "@")
		if slices.Contains(e.Names, name) || slices.Contains(e.Names, dataset) {
			names = append(names, name)
		}
	}
	e.Names = names
	return err
}

// batches splits names so that each part fits into max bytes of arguments.
func batches(names []string, max int) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		for len(names) > 0 {
			n, size := 0, 0
			for n < len(names) && (n == 0 || size+len(names[n])+9 <= max) {
				size += len(names[n]) + 9 // its end and its pointer
				n++
			}
			if !yield(names[:n]) {
				return
			}
			names = names[n:]
		}
	}
}

// Bookmark implements System. On "exists" it compares GUIDs: the same is success.
func (h *Host) Bookmark(ctx context.Context, snapshot, bookmark string) error {
	if err := check("bookmark", CheckSnapshot(snapshot), CheckBookmark(bookmark)); err != nil {
		return err
	}
	_, err := h.run(ctx, command{op: "bookmark", argv: []string{"zfs", "bookmark", snapshot, bookmark}})
	if !errors.Is(err, ErrExists) {
		return err
	}
	argv := []string{"zfs", "get", "-Hp", "-o", "name,property,value,source", "guid", snapshot, bookmark}
	out, getErr := h.run(ctx, command{op: "bookmark", argv: argv})
	if getErr != nil {
		return getErr
	}
	rows, parseErr := parseRows(out)
	if parseErr == nil && len(rows) == 2 && rows[0].value == rows[1].value {
		return nil
	}
	return err
}

// Hold implements System.
func (h *Host) Hold(ctx context.Context, tag, snapshot string) error {
	if err := check("hold", checkTag(tag), CheckSnapshot(snapshot)); err != nil {
		return err
	}
	_, err := h.run(ctx, command{op: "hold", argv: []string{"zfs", "hold", tag, snapshot}})
	return unless(err, ErrExists)
}

// Release implements System.
func (h *Host) Release(ctx context.Context, tag, snapshot string) error {
	if err := check("release", checkTag(tag), CheckSnapshot(snapshot)); err != nil {
		return err
	}
	_, err := h.run(ctx, command{op: "release", argv: []string{"zfs", "release", tag, snapshot}})
	var e *Error
	if errors.As(err, &e) && strings.Contains(e.Stderr, "no such tag") {
		return nil
	}
	return unless(err, ErrNotFound)
}

// DestroySnapshots implements System.
func (h *Host) DestroySnapshots(ctx context.Context, dataset string, snaps []string) error {
	errs := []error{CheckDataset(dataset)}
	for _, s := range snaps {
		errs = append(errs, CheckSnapshot(dataset+"@"+s))
	}
	if err := check("destroy-snapshots", errs...); err != nil {
		return err
	}
	for batch := range batches(snaps, argOne) {
		argv := []string{"zfs", "destroy", dataset + "@" + strings.Join(batch, ",")}
		_, err := h.run(ctx, command{op: "destroy-snapshots", argv: argv})
		// None of them is there: done. A missing dataset says "does not exist".
		var e *Error
		if errors.As(err, &e) && strings.Contains(e.Stderr, "could not find any snapshots") {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Mount implements System.
func (h *Host) Mount(ctx context.Context, name string, write bool) error {
	if err := check("mount", CheckDataset(name)); err != nil {
		return err
	}
	argv := []string{"zfs", "mount", name}
	if write {
		argv = []string{"zfs", "mount", "-o", "rw", name}
	}
	_, err := h.run(ctx, command{op: "mount", argv: argv})
	return err
}

// Unmount implements System.
func (h *Host) Unmount(ctx context.Context, name string) error {
	if err := check("unmount", CheckDataset(name)); err != nil {
		return err
	}
	if h.unmountByKernel(name) {
		return nil
	}
	return h.unmount(ctx, command{op: "unmount", argv: []string{"zfs", "unmount", name}}, "not currently mounted")
}

// unmount goes on for a moment while what is to be unmounted is busy. Not mounted,
// which the command says in these words, is no error.
func (h *Host) unmount(ctx context.Context, c command, not ...string) error {
	began := time.Now()
	for {
		_, err := h.run(ctx, c)
		var e *Error
		if errors.As(err, &e) && slices.ContainsFunc(not, func(text string) bool { return strings.Contains(e.Stderr, text) }) {
			return nil
		}
		if !errors.Is(err, ErrBusy) || time.Since(began) > busyFor {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(busyPause):
		}
	}
}

// MountSnapshot implements System. zfs mount does not mount snapshots; the mount
// command does, wherever one wants.
func (h *Host) MountSnapshot(ctx context.Context, snapshot, dir string) error {
	if err := check("mount-snapshot", CheckSnapshot(snapshot), checkDir(dir)); err != nil {
		return err
	}
	_, err := h.run(ctx, command{op: "mount-snapshot", argv: []string{"mount", "-t", "zfs", "-o", "ro,nosuid,nodev,noexec", snapshot, dir}})
	return err
}

// UnmountSnapshot implements System.
func (h *Host) UnmountSnapshot(ctx context.Context, dir string) error {
	if err := check("unmount-snapshot", checkDir(dir)); err != nil {
		return err
	}
	return h.unmount(ctx, command{op: "unmount-snapshot", argv: []string{"umount", "-l", dir}}, "not mounted", "no mount point specified")
}

// AbortReceive implements System.
func (h *Host) AbortReceive(ctx context.Context, name string) error {
	if err := check("abort-receive", CheckDataset(name)); err != nil {
		return err
	}
	_, err := h.run(ctx, command{op: "abort-receive", argv: []string{"zfs", "receive", "-A", name}})
	var e *Error
	if errors.As(err, &e) && strings.Contains(e.Stderr, "does not have any resumable receive state") {
		return nil
	}
	return unless(err, ErrNotFound)
}

// options are properties as zfs takes them, sorted so that a command is the same
// every time.
func options(props map[string]string) []string {
	var argv []string
	for _, key := range slices.Sorted(maps.Keys(props)) {
		argv = append(argv, "-o", key+"="+props[key])
	}
	return argv
}

// check turns the first complaint into the error of op.
func check(op string, errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return &Error{Op: op, Kind: ErrInvalid, Err: err}
		}
	}
	return nil
}

func checkPool(op, name string) error {
	err := CheckDataset(name)
	if err == nil && strings.Contains(name, "/") {
		err = invalid(op, name+" is not a pool's name")
	}
	return check(op, err)
}

func checkAny(name string) error {
	if strings.Contains(name, "@") {
		return CheckSnapshot(name)
	}
	return CheckDataset(name)
}

func checkProps(props map[string]string) error {
	for key, value := range props {
		if err := CheckProperty(key, value); err != nil {
			return err
		}
	}
	return nil
}

func invalid(op, msg string) error {
	return &Error{Op: op, Kind: ErrInvalid, Err: errors.New(msg)}
}

// unless is err, or nil when err is of this kind.
func unless(err, kind error) error {
	if errors.Is(err, kind) {
		return nil
	}
	return err
}
