package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// A dataset that was there before flocker becomes a volume where it is. What is to be is in
// the state: a volume in PhaseCreating whose Adopt is the dataset, which has a slash in it, as
// no set-aside copy has. Its primary's agent renames the dataset to where volumes are. Before
// that nothing about it is changed, but for a note of what it was like, which nothing obeys;
// so until the rename it is only not mounted any more. After it, everything is done again
// until it is as every volume's, or, if the volume is given up, undone by the note.

// propImport is that note, see importNote.
const propImport = "flocker:import"

// isDataset says that what a volume is made of is somebody's dataset, and no set-aside copy.
func isDataset(adopt string) bool { return strings.Contains(adopt, "/") }

// Importable is what is known of a dataset that is to become a volume.
type Importable struct {
	Dataset   zfs.Dataset
	Below     []string // other datasets
	Snapshots []zfs.Snapshot
	Props     map[string]zfs.Property
	// Above is what it will inherit where volumes are.
	Above map[string]zfs.Property
	// Encrypted says that the volumes of this node are encrypted.
	Encrypted bool
	Bookmarks []zfs.Bookmark
	Delegated []string // see zfs.System
	BootFS    string   // of the pool
	// Refers are who would use it when it is started the next time, for people.
	Refers []string
	// Users are processes that have it in use, for people.
	Users []string
}

// sized are properties that flocker sets to none, but for refquota.
var sized = []string{"refquota", "quota", "reservation", "refreservation"}

// inheritable are properties whose value a dataset may have from what it is in, and with it lose
// when it is renamed.
func inheritable() []string {
	return append(volume.Properties(), "checksum", "dedup", "devices", "exec", "setuid")
}

// importProps are those that are asked for.
func importProps() []string {
	return slices.Concat([]string{"canmount", "readonly", "mountpoint", "sharenfs", "sharesmb", "zoned"}, sized, inheritable())
}

// MayImport refuses a dataset by its name alone.
func (l Layout) MayImport(name string) error {
	pool, _, below := strings.Cut(name, "/")
	switch {
	case zfs.CheckDataset(name) != nil:
		return volume.Errorf(volume.CodeInvalid, "%.200q is not the name of a dataset", name).WithHint("like tank/pgdata")
	case pool != l.Pool:
		return volume.Errorf(volume.CodeRefused, "%s is not in %s, the pool that flocker uses on this node", name, l.Pool).
			WithHint("a dataset stays in its pool when it becomes a volume: zfs send and zfs receive bring it there first")
	case !below:
		return volume.Errorf(volume.CodeRefused, "%s is a whole pool, with flocker's own datasets in it", name).
			WithHint("move what is in it to a dataset of its own")
	}
	for _, own := range []string{l.Root(), l.Trash(), l.Aside(), l.Restores()} {
		if name == own || strings.HasPrefix(name, own+"/") {
			return volume.Errorf(volume.CodeRefused, "%s is flocker's own already", name).
				WithHint("flockctl volume list and flockctl trash list show what there is")
		}
	}
	return nil
}

// Refusal says why a dataset cannot become a volume; nil when it can.
func (f Importable) Refusal() error {
	d := f.Dataset
	refuse := func(format string, args ...any) *volume.Error {
		return volume.Errorf(volume.CodeRefused, "%s "+format, append([]any{d.Name}, args...)...)
	}
	for _, s := range f.Snapshots {
		_, _, engine := volume.ParseSnapshotName(s.Name)
		_, _, scheduled := volume.ParseScheduledName(s.Name)
		switch {
		case engine || scheduled:
			return refuse("has a snapshot %s, which is called like one of flocker's that come and go", s.Name).WithHint("give it another name: zfs rename %s %s@kept", s.FullName(), d.Name)
		case len(s.Clones) > 0:
			return refuse("has a clone, %s: the volume could never be removed", s.Clones[0]).WithHint("zfs promote %s makes that independent", s.Clones[0])
		case s.UserRefs > 0:
			return refuse("has a snapshot %s with a hold: the volume could never be removed", s.Name).WithHint("zfs holds %s says whose, and zfs release ends it; what replicates it by another program is to be stopped first", s.FullName())
		}
	}
	for _, b := range f.Bookmarks {
		if strings.HasPrefix(b.Name, "flk-") {
			return refuse("has a bookmark #%s, which is called like one of flocker's", b.Name).WithHint("zfs destroy %s", b.FullName())
		}
	}
	var was, inherit []string // what an earlier life with flocker has left
	for _, p := range slices.Sorted(maps.Keys(d.User)) {
		if strings.HasPrefix(p, "flocker:") && p != propImport && d.User[p] != "" {
			was, inherit = append(was, p), append(inherit, fmt.Sprintf("zfs inherit %s %s", p, d.Name))
		}
	}
	set := func(prop string) bool { v := f.Props[prop].Value; return v != "" && v != "off" }
	switch {
	case d.Volume:
		return refuse("is a block device, and volumes are file systems").WithHint("copy what is in it into a volume")
	case d.Encryption != "" && d.Encryption != "off":
		return refuse("is encrypted, and flocker replicates nothing that is").WithHint("copy its files into a volume; encrypt the disks below the pools instead")
	case f.Encrypted:
		return refuse("is not encrypted, and the volumes here are").WithHint("copy its files into a volume")
	case len(f.Below) > 0:
		return refuse("has other datasets in it: %s", enumerate(f.Below)).WithHint("a volume is one dataset: import these first, or zfs rename them away")
	case d.Name == f.BootFS, d.Mountpoint == "/":
		return refuse("is what a machine boots from (bootfs, or mountpoint=/)").WithHint("copy what is in it into a volume")
	case len(was) > 0:
		return refuse("was a volume of flocker, as %s says", strings.Join(was, ", ")).WithHint("if it is to be one with all that is in it, and not only its directory data: %s", strings.Join(inherit, "; "))
	case d.Origin != "":
		return refuse("is a clone of %s", d.Origin).WithHint("zfs promote %s makes it independent", d.Name)
	case d.ResumeToken != "":
		return refuse("holds what was received in part").WithHint("finish that, or zfs receive -A %s", d.Name)
	case set("zoned"):
		return refuse("is managed from within a container (zoned)").WithHint("zfs unzone, and zfs set zoned=off %s", d.Name)
	case set("sharenfs"), set("sharesmb"):
		return refuse("is shared with other machines (sharenfs, sharesmb), which may be using it").WithHint("when nobody does: zfs set sharenfs=off sharesmb=off %s", d.Name)
	case d.Mountpoint == "legacy":
		return refuse("is mounted by something else than ZFS, by its name (mountpoint=legacy): a hand, /etc/fstab, a manager of containers").
			WithHint("when nothing does that any more: umount it, and zfs set mountpoint=none %s", d.Name)
	case len(f.Delegated) > 0:
		return refuse("may be changed by users to whom that was delegated: %s", enumerate(f.Delegated)).WithHint("zfs unallow takes it back; zfs allow %s shows it", d.Name)
	case len(f.Users) > 0:
		return f.inUse()
	case len(f.Refers) > 0:
		return refuse("will be used again by its old name or path: %s", enumerate(f.Refers)).
			WithHint("take it out there, and remove the container: what is started by that would find an empty directory, or keep the machine from booting")
	}
	return nil
}

// inUse says who uses it.
func (f Importable) inUse() *volume.Error {
	return volume.Errorf(volume.CodeRefused, "%s is in use by %s", f.Dataset.Name, enumerate(f.Users)).
		WithHint("stop what uses it, and take it out of its configuration: the files will be those of a volume")
}

// enumerate names the first few.
func enumerate(names []string) string {
	const most = 3
	if more := len(names) - most; more > 0 {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(names, ", ")
}

// Options are what the volume has because the dataset has it.
func (f Importable) Options() map[string]string {
	own := map[string]string{}
	for _, name := range volume.Properties() {
		if p := f.Props[name]; p.Own {
			own[name] = p.Value
		}
	}
	opts := volume.Carried(own)
	if f.Dataset.RefQuota >= volume.MinSize {
		opts["size"] = fmt.Sprint(f.Dataset.RefQuota)
	}
	return opts
}

// Steps are what becomes of the dataset, for people.
func (f Importable) Steps(l Layout) []string {
	d := f.Dataset
	var steps, cleared []string
	if d.Mounted {
		steps = append(steps, "unmount it from "+d.Mountpoint)
	}
	steps = append(steps, fmt.Sprintf("rename it to %s/ID", l.Root()))
	for _, p := range sized {
		if v := f.Props[p]; v.Own && v.Value != "0" && (p != "refquota" || f.Dataset.RefQuota < volume.MinSize) {
			cleared = append(cleared, p+"="+v.Value)
		}
	}
	if len(cleared) > 0 {
		steps = append(steps, "clear "+strings.Join(cleared, ", "))
	}
	own, kept := map[string]string{}, []string{}
	for _, p := range volume.Properties() {
		if v := f.Props[p]; v.Own {
			own[p] = v.Value
		}
	}
	carried := volume.Carried(own)
	for _, p := range slices.Sorted(maps.Keys(own)) {
		if carried["zfs."+p] == "" {
			kept = append(kept, p+"="+own[p])
		}
	}
	if len(kept) > 0 {
		steps = append(steps, "leave "+strings.Join(kept, ", ")+" as it is, on this node alone: volumes cannot have it, and the replicas will not")
	}
	var lost []string
	for _, p := range inheritable() {
		v, will := f.Props[p], f.Above[p].Value
		if !v.Own && v.Value != "" && will != "" && v.Value != will {
			lost = append(lost, fmt.Sprintf("%s=%s becomes %s", p, v.Value, will))
		}
	}
	if len(lost) > 0 {
		steps = append(steps, "inherit from "+l.Root()+" what it inherits now from where it is, where no option says otherwise: "+strings.Join(lost, ", "))
	}
	return append(steps, fmt.Sprintf("set readonly=on canmount=noauto sharenfs=off sharesmb=off mountpoint=%s/ID, as of every volume; its primary mounts it writable", l.MountBase))
}

// LookImport looks at a dataset that is to become a volume of this node. It changes nothing.
func (a *Agent) LookImport(ctx context.Context, name string) (f Importable, err error) {
	if err := a.layout.MayImport(name); err != nil {
		return f, err
	}
	list, err := a.zfs.Datasets(ctx, name)
	if errors.Is(err, zfs.ErrNotFound) {
		return f, volume.Errorf(volume.CodeNotFound, "there is no dataset %s on %s", name, a.name()).WithHint("zfs list shows there what there is; --node says which node's is meant")
	}
	if err != nil {
		return f, err
	}
	if len(list) == 0 || list[0].Name != name {
		return f, fmt.Errorf("asking zfs for %s: it succeeded, and did not name it", name)
	}
	f.Dataset = list[0]
	for _, d := range list[1:] {
		f.Below = append(f.Below, d.Name)
	}
	if f.Dataset.Volume {
		return f, nil
	}
	if f.Snapshots, err = a.zfs.Snapshots(ctx, name, false); err != nil {
		return f, err
	}
	if f.Bookmarks, err = a.zfs.Bookmarks(ctx, name, false); err != nil {
		return f, err
	}
	if f.Delegated, err = a.zfs.Delegated(ctx, name); err != nil {
		return f, err
	}
	if f.Props, err = a.zfs.Properties(ctx, name, importProps()); err != nil {
		return f, err
	}
	root, err := a.zfs.Dataset(ctx, a.layout.Root())
	if err != nil {
		return f, err
	}
	if f.Above, err = a.zfs.Properties(ctx, root.Name, inheritable()); err != nil {
		return f, err
	}
	f.Encrypted = root.Encryption != "" && root.Encryption != "off"
	pool, err := a.zfs.Pool(ctx, a.layout.Pool)
	if err != nil {
		return f, err
	}
	f.BootFS = pool.BootFS
	if f.Users, err = a.usersOf(f.Dataset); err != nil {
		return f, err
	}
	f.Refers, err = a.refersTo(ctx, f.Dataset)
	return f, err
}

// Bind is a path of this machine that something uses when it is started.
type Bind struct {
	Path string
	By   string // for people
}

// refersTo are who would use a dataset by its name, or by the place where it is mounted, if they
// were started.
func (a *Agent) refersTo(ctx context.Context, d zfs.Dataset) ([]string, error) {
	at := ""
	if strings.HasPrefix(d.Mountpoint, "/") {
		at = d.Mountpoint
	}
	var binds []Bind
	var list []string
	var err error
	if at != "" && a.bound != nil {
		binds, err = a.bound(ctx)
	}
	if err == nil {
		list, err = a.files.Refers(d.Name, at, binds)
	}
	if err != nil {
		return nil, fmt.Errorf("looking for what uses %s when it is started: %w", d.Name, err)
	}
	return list, nil
}

// usersOf are who has a dataset in use, wherever it is mounted.
func (a *Agent) usersOf(d zfs.Dataset) (users []string, err error) {
	at := ""
	if d.Mounted {
		at = d.Mountpoint
		if users, err = a.files.Users(at); err != nil {
			return nil, fmt.Errorf("looking for who uses %s: %w", d.Name, err)
		}
	}
	// Elsewhere: a container has a mount of its own.
	if err := a.files.Unused(d.Name, at); err != nil {
		users = append(users, strings.TrimPrefix(err.Error(), "still mounted by "))
	}
	return users, nil
}

// importNote is what a dataset was like: the values that it had itself, "" for those that it
// inherited, and whether it was mounted.
type importNote struct {
	From    string            `json:"from"`
	Volume  volume.ID         `json:"volume,omitempty"` // that it was to be
	Mounted bool              `json:"mounted,omitempty"`
	Was     map[string]string `json:"was"`
}

// noteOf is the note of a dataset that is to get these properties.
func noteOf(f Importable, props map[string]string) (string, error) {
	n := importNote{From: f.Dataset.Name, Volume: volume.ID(props[propVolume]), Mounted: f.Dataset.Mounted, Was: map[string]string{}}
	// A try that was cut short may have unmounted it.
	var before importNote
	if json.Unmarshal([]byte(f.Dataset.User[propImport]), &before) == nil && before.From == n.From {
		n.Mounted = n.Mounted || before.Mounted
	}
	for name := range props {
		if strings.Contains(name, ":") {
			continue
		}
		n.Was[name] = ""
		if p := f.Props[name]; p.Own {
			n.Was[name] = p.Value
		}
	}
	text, err := json.Marshal(n)
	return string(text), err
}

// undo is what makes a dataset as it was: properties to set, and such to inherit. Those that
// say how large it is and whether it is mounted cannot be inherited.
func (n importNote) undo() (set map[string]string, inherit []string) {
	set = map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(n.Was)) {
		was := n.Was[name]
		switch {
		case slices.Contains(sized, name) && (was == "" || was == "0"):
			set[name] = "none"
		case name == "canmount" && was == "":
			set[name] = "on"
		case was == "":
			inherit = append(inherit, name)
		default:
			set[name] = was
		}
	}
	return set, inherit
}

// adoptDataset makes the volume's dataset of somebody's. Done again after a crash, it goes on.
// The caller holds the lock of the volume.
func (a *Agent) adoptDataset(ctx context.Context, v *state.Volume, props map[string]string) error {
	abort := func(err error) error {
		return a.propose(ctx, state.AbortCreate{ID: v.ID, Epoch: v.Epoch, Reason: err.Error()})
	}
	if now := a.cluster.State().Volume(v.ID); now == nil || now.Phase != state.PhaseCreating {
		return nil // given up while this waited
	}
	free, err := a.locks.lock(ctx, volume.ID(v.Adopt))
	if err != nil {
		return err
	}
	defer free()
	a.mu.Lock()
	delete(a.returned, v.ID)
	a.mu.Unlock()
	props = maps.Clone(props)
	for _, name := range sized {
		if name != "refquota" {
			props[name] = "none"
		}
	}
	to := a.layout.Dataset(v.ID)
	d, err := a.zfs.Dataset(ctx, to)
	switch {
	case errors.Is(err, zfs.ErrNotFound):
		err := a.takeDataset(ctx, v.Adopt, to, props)
		if code := volume.CodeOf(err); code == volume.CodeRefused || code == volume.CodeNotFound || code == volume.CodeInvalid || permanent(err) {
			return abort(err)
		}
		if err != nil {
			return err
		}
	case err != nil:
		return err
	case d.Mounted:
		// The machine has started again, and mounted it where it was; or this was cut short
		// when it had mounted it.
		if err := a.unmountIdle(ctx, d); err != nil {
			return err
		}
	}
	// By itself first: to set a mountpoint mounts what may be mounted.
	first := map[string]string{"canmount": props["canmount"], "readonly": props["readonly"]}
	err = a.zfs.SetProperties(ctx, to, first)
	if err == nil {
		// What is in it would be mounted below the new place, and keep that from being removed.
		_, err = a.alone(ctx, v)
	}
	if err == nil {
		// Or mounts it anew at the new place, if it was mounted where it was meanwhile.
		a.cover(v)
		err = a.zfs.SetProperties(ctx, to, props)
	}
	if permanent(err) || errors.Is(err, errNotAlone) {
		return abort(err)
	}
	if err != nil {
		return err
	}
	// What its user synced just before a loss of power may be in its intent log only.
	if err := a.replay(ctx, v.ID); err != nil {
		return err
	}
	d, err = a.alone(ctx, v)
	if errors.Is(err, errNotAlone) {
		return abort(err)
	}
	if err != nil {
		return err
	}
	a.noteMade(v.ID, copyOf(d))
	return a.propose(ctx, state.ConfirmCreate{ID: v.ID, Epoch: v.Epoch})
}

var errNotAlone = errors.New("there is another dataset")

// alone is a dataset that was renamed to a volume's. One that was made in it since the last look is an
// error: it is back where it was when this one is.
func (a *Agent) alone(ctx context.Context, v *state.Volume) (zfs.Dataset, error) {
	name := a.layout.Dataset(v.ID)
	list, err := a.zfs.Datasets(ctx, name)
	switch {
	case err != nil:
		return zfs.Dataset{}, err
	case len(list) == 0 || list[0].Name != name:
		return zfs.Dataset{}, fmt.Errorf("asking zfs for %s: it succeeded, and did not name it", name)
	case len(list) > 1:
		return zfs.Dataset{}, fmt.Errorf("%w in %s, %s", errNotAlone, v.Adopt, v.Adopt+strings.TrimPrefix(list[1].Name, name))
	}
	return list[0], nil
}

// unmountIdle unmounts a dataset that nobody uses.
func (a *Agent) unmountIdle(ctx context.Context, d zfs.Dataset) error {
	users, err := a.usersOf(d)
	if err == nil && len(users) > 0 {
		err = Importable{Dataset: d, Users: users}.inUse()
	}
	if err != nil {
		return err
	}
	return a.zfs.Unmount(ctx, d.Name)
}

// takeDataset renames somebody's dataset to a volume's, if it may be. It may have changed since
// the volume was asked for.
func (a *Agent) takeDataset(ctx context.Context, from, to string, props map[string]string) error {
	f, err := a.LookImport(ctx, from)
	if err == nil {
		err = f.Refusal()
	}
	if err != nil {
		return err
	}
	note, err := noteOf(f, props)
	if err != nil {
		return err
	}
	if err := a.zfs.SetProperties(ctx, from, map[string]string{propImport: note}); err != nil {
		return err
	}
	if f.Dataset.Mounted {
		err = a.zfs.Unmount(ctx, from)
		if errors.Is(err, zfs.ErrBusy) {
			if f.Users, err = a.usersOf(f.Dataset); err != nil || len(f.Users) == 0 {
				f.Users = []string{"something that has files of it open"}
			}
			return f.inUse()
		}
	}
	if err == nil {
		// A container may have got a mount of its own meanwhile.
		if f.Users, err = a.usersOf(zfs.Dataset{Name: from}); err == nil && len(f.Users) > 0 {
			err = f.inUse()
		}
	}
	if err == nil {
		err = a.renameOnce(ctx, from, to)
	}
	if err == nil || !f.Dataset.Mounted {
		return err
	}
	if merr := a.zfs.Mount(context.WithoutCancel(ctx), from, false); merr != nil && !errors.Is(merr, zfs.ErrExists) {
		a.log.Warn("a dataset that is no volume yet cannot be mounted again where it was", "dataset", from, "err", merr)
	}
	return err
}

// renameOnce renames somebody's dataset. One that stays where it was is not tried again: it would be
// unmounted each time.
func (a *Agent) renameOnce(ctx context.Context, from, to string) error {
	err := a.zfs.Rename(ctx, from, to)
	if err == nil {
		return nil
	}
	if _, gone := a.zfs.Dataset(ctx, from); gone != nil {
		return err // or nobody knows, as when flockd ends
	}
	return volume.Errorf(volume.CodeRefused, "%s cannot be renamed: %v", from, err)
}

// returnDataset makes a volume that was given up the dataset again that it was, and says so when
// that is done: until then the volume is not forgotten. There may be nothing to do. Done again
// after a crash, it goes on. The caller holds the lock, so nothing makes a volume of it any more.
func (a *Agent) returnDataset(ctx context.Context, v *state.Volume) error {
	free, err := a.locks.lock(ctx, volume.ID(v.Adopt))
	if err != nil {
		return err
	}
	defer free()
	d, err := a.zfs.Dataset(ctx, a.layout.Dataset(v.ID))
	if err == nil {
		if err := a.renameBack(ctx, v, d); err != nil {
			return err
		}
	} else if !errors.Is(err, zfs.ErrNotFound) {
		return err
	}
	if err := a.mountBack(ctx, v); err != nil {
		return err
	}
	// In a pool that is not there nothing is found either.
	if _, err := a.zfs.Dataset(ctx, a.layout.Root()); err != nil {
		return fmt.Errorf("looking for what is left of volume %q: %w", v.Name, err)
	}
	a.uncoverOf(v)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.returned[v.ID] = true
	return nil
}

// elsewhere is what the dataset of a volume that was given up is called when it cannot have its
// name back.
func (l Layout) elsewhere(v *state.Volume) string {
	return l.Pool + "/" + path.Base(v.Adopt) + "-" + string(v.ID)
}

// renameBack gives a dataset its properties and its name back. The note stays.
func (a *Agent) renameBack(ctx context.Context, v *state.Volume, d zfs.Dataset) error {
	ds := d.Name
	var n importNote
	if err := json.Unmarshal([]byte(d.User[propImport]), &n); err != nil {
		return fmt.Errorf("%s was %s, and its property %s does not say any more what it was like: rename it by hand (%w)", ds, v.Adopt, propImport, err)
	}
	if d.Mounted {
		if err := a.unmountIdle(ctx, d); err != nil {
			return err
		}
	}
	set, inherit := n.undo()
	last := set["canmount"] // until the rest is as it was, nothing mounts it
	delete(set, "canmount")
	if err := a.zfs.SetProperties(ctx, ds, set); err != nil {
		return err
	}
	for _, name := range append(inherit, propVolume, propEpoch, volume.Subdir) {
		if err := a.zfs.Inherit(ctx, ds, name); err != nil {
			return err
		}
	}
	if last != "" {
		if err := a.zfs.SetProperties(ctx, ds, map[string]string{"canmount": last}); err != nil {
			return err
		}
	}
	to := v.Adopt
	err := a.zfs.Rename(ctx, ds, to)
	if errors.Is(err, zfs.ErrExists) || errors.Is(err, zfs.ErrNotFound) {
		// Its name was given to another one, or what it stood in is gone.
		to = a.layout.elsewhere(v)
		err = a.zfs.Rename(ctx, ds, to)
	}
	if err != nil {
		return err
	}
	a.log.Info("a dataset that was to be a volume is what it was again", "dataset", to, "name", v.Name)
	return nil
}

// mountBack mounts a dataset that has its name, or never lost it, where its note says that it was
// mounted, and removes the note. One that was noted for another volume is that one's.
func (a *Agent) mountBack(ctx context.Context, v *state.Volume) error {
	for _, name := range []string{v.Adopt, a.layout.elsewhere(v)} {
		d, err := a.zfs.Dataset(ctx, name)
		if errors.Is(err, zfs.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		var n importNote
		if json.Unmarshal([]byte(d.User[propImport]), &n) != nil || n.From != v.Adopt || n.Volume != v.ID {
			continue
		}
		if n.Mounted && !d.Mounted && d.CanMount != "off" && strings.HasPrefix(d.Mountpoint, "/") {
			if err := a.zfs.Mount(ctx, name, false); err != nil && !errors.Is(err, zfs.ErrExists) {
				return fmt.Errorf("mounting %s again, of which volume %q was to be made: %w", name, v.Name, err)
			}
		}
		if err := a.zfs.Inherit(ctx, name, propImport); err != nil {
			return err
		}
	}
	return nil
}
