package zfstest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/flocker-io/flocker/zfs"
)

func testHost(w *world, _ Env) {
	c, err := w.a.ZFS.Capabilities(w.ctx)
	w.a.must(err)
	if c.Major < 2 || c.Userland == "" || c.Kernel == "" {
		w.Errorf("capabilities: %+v", c)
	}
	p, err := w.a.ZFS.Pool(w.ctx, w.a.Pool)
	w.a.must(err)
	if p.Name != w.a.Pool || p.GUID == 0 || p.Health != "ONLINE" || p.ReadOnly || p.Size < 1<<20 || p.Free <= 0 || p.Free > p.Size {
		w.Errorf("pool: %+v", p)
	}
	if p.BootFS != "" {
		w.Errorf("it boots from %s", p.BootFS)
	}
	if list, err := w.a.ZFS.Delegated(w.ctx, w.a.Root); err != nil || len(list) != 0 {
		w.Errorf("delegated are %q, %v", list, err)
	}
	_, err = w.a.ZFS.Delegated(w.ctx, w.a.name("nope"))
	w.wantKind("what is delegated of none", err, zfs.ErrNotFound)
	_, err = w.a.ZFS.Pool(w.ctx, "nosuchpool")
	w.wantKind("missing pool", err, zfs.ErrNotFound)
}

func testNewPool(w *world, env Env) {
	if env.NewPool == nil {
		w.Skip("this environment makes no pools")
	}
	name, path, export, destroy := env.NewPool(w.T)
	defer destroy()
	z := w.a.ZFS
	w.a.must(z.CreateFilePool(w.ctx, name, path, 128<<20))
	p, err := z.Pool(w.ctx, name)
	w.a.must(err)
	if p.Health != "ONLINE" || p.Size < 64<<20 || p.Size > 128<<20 {
		w.Errorf("new pool: %+v", p)
	}
	if d := w.a.dataset(name); d.Mountpoint != "none" || d.CanMount != "off" || d.Mounted {
		w.Errorf("root of the new pool: %+v", d)
	}
	w.wantKind("same pool again", z.CreateFilePool(w.ctx, name, path+"2", 128<<20), zfs.ErrExists)
	w.wantKind("same file again", z.CreateFilePool(w.ctx, name+"2", path, 128<<20), zfs.ErrExists)
	w.wantKind("too small", z.CreateFilePool(w.ctx, name+"2", path+"2", 1<<20), zfs.ErrInvalid)

	w.a.must(z.CreateFilesystem(w.ctx, name+"/a", nil))
	dir := path[:strings.LastIndex(path, "/")]
	w.a.must(z.ImportPool(w.ctx, name, dir)) // it is here
	a := name + "/a"
	for i := range 3 { // so soon one after the other that a Host may have prepared a fourth
		_, _, err := z.Take(w.ctx, []string{fmt.Sprint(a, "@", i)})
		w.a.must(err)
		list, err := z.SnapshotsNamed(w.ctx, []string{fmt.Sprint(a, "@", i)})
		if err != nil || len(list) != 1 {
			w.Errorf("snapshot %d: %v, %v", i, list, err)
		}
	}
	export()
	_, err = z.Pool(w.ctx, name)
	w.wantKind("exported pool", err, zfs.ErrNotFound)
	_, _, err = z.Take(w.ctx, []string{a + "@3"})
	w.wantKind("snapshot in an exported pool", err, zfs.ErrNotFound)
	if list, err := z.SnapshotsNamed(w.ctx, []string{a + "@0"}); err != nil || len(list) > 0 {
		w.Errorf("snapshots of an exported pool: %v, %v", list, err)
	}
	w.wantKind("import of none", z.ImportPool(w.ctx, name+"2", dir), zfs.ErrNotFound)
	w.a.must(z.ImportPool(w.ctx, name, dir))
	w.a.dataset(a)
	_, failed, err := z.Take(w.ctx, []string{a + "@3"})
	if err != nil || len(failed) > 0 || w.a.names(a) != "0 1 2 3" {
		w.Errorf("after the import: %v, %v; snapshots %s", failed, err, w.a.names(a))
	}
}

func testBadNames(w *world, _ Env) {
	long := w.a.Root + "/" + strings.Repeat("x", 250)
	z := w.a.ZFS
	for _, bad := range []string{
		"", "/", w.a.Root + "/", "/" + w.a.Root, "-r", w.a.Root + "/-x", w.a.Root + "/a b", w.a.Root + "/a;b",
		w.a.Root + "/a,b", w.a.Root + "/a%b", w.a.Root + "/ä", w.a.Root + "/a\nb", w.a.Root + "/a\x00", w.a.Root + "/..",
		w.a.Root + "//a", w.a.Root + "/a@b", w.a.Root + "/a#b", long,
	} {
		_, err := z.Dataset(w.ctx, bad)
		w.wantKind("dataset "+bad, err, zfs.ErrInvalid)
		w.wantKind("create "+bad, z.CreateFilesystem(w.ctx, bad, nil), zfs.ErrInvalid)
		w.wantKind("destroy "+bad, z.Destroy(w.ctx, bad), zfs.ErrInvalid)
		w.wantKind("mount "+bad, z.Mount(w.ctx, bad, false), zfs.ErrInvalid)
		w.wantKind("snapshot "+bad, z.Snapshot(w.ctx, []string{bad + "@a"}, nil), zfs.ErrInvalid)
		w.wantKind("receive "+bad, z.Receive(w.ctx, zfs.ReceiveRequest{Dataset: bad}, strings.NewReader("")), zfs.ErrInvalid)
	}
	fs := w.a.create("a")
	for _, bad := range []string{"", "a,b", "a\tb", "..", "a%", "a@b", "a/b", strings.Repeat("x", 300)} {
		w.wantKind("snapshot @"+bad, z.Snapshot(w.ctx, []string{fs + "@" + bad}, nil), zfs.ErrInvalid)
		w.wantKind("hold tag "+bad, z.Hold(w.ctx, bad, fs+"@a"), zfs.ErrInvalid)
		w.wantKind("destroy @"+bad, z.DestroySnapshots(w.ctx, fs, []string{bad}), zfs.ErrInvalid)
		w.wantKind("send @"+bad, z.Send(w.ctx, zfs.SendRequest{Snapshot: fs + "@" + bad}, new(strings.Builder)), zfs.ErrInvalid)
	}
	for _, bad := range []string{"-a", "a b"} {
		w.wantKind("hold tag "+bad, z.Hold(w.ctx, bad, fs+"@a"), zfs.ErrInvalid)
	}
	w.wantKind("property name", z.SetProperties(w.ctx, fs, map[string]string{"-o": "x"}), zfs.ErrInvalid)
	w.wantKind("property value", z.SetProperties(w.ctx, fs, map[string]string{"flocker:name": "a\tb"}), zfs.ErrInvalid)
	w.wantKind("the pool itself", z.Destroy(w.ctx, w.a.Pool), zfs.ErrInvalid)

	// The longest and oddest names that are good.
	fill := w.a.Root + "/"
	longest := fill + strings.Repeat("x", 200-len(fill))
	w.a.must(z.CreateFilesystem(w.ctx, longest, nil))
	w.a.must(z.Snapshot(w.ctx, []string{longest + "@" + strings.Repeat("y", 54)}, nil))
	odd := w.a.name("A-b_c.d:e")
	w.a.must(z.CreateFilesystem(w.ctx, odd, nil))
	w.a.must(z.Snapshot(w.ctx, []string{odd + "@..."}, nil))
}

func testFilesystems(w *world, _ Env) {
	z := w.a.ZFS
	// On the way down: name order, root first.
	for _, short := range []string{"b", "a", "a/c", "a-b"} {
		w.a.must(z.CreateFilesystem(w.ctx, w.a.name(short), map[string]string{"flocker:volume": short}))
	}
	list, err := z.Datasets(w.ctx, w.a.Root)
	w.a.must(err)
	r := w.a.Root
	if list[0].Name != r {
		w.Errorf("datasets begin with %s", list[0].Name)
	}
	have := map[string]zfs.Dataset{}
	guids := map[uint64]bool{}
	for _, d := range list {
		have[d.Name] = d
		guids[d.GUID] = true
	}
	if len(list) != 5 || len(guids) != 5 {
		w.Errorf("datasets: %s", names(list))
	}
	c := have[r+"/a/c"]
	if c.User["flocker:volume"] != "a/c" || len(c.User) != 1 {
		w.Errorf("user properties of a/c: %v", c.User)
	}
	if c.Mounted || c.Writable || c.Mountpoint != "none" || c.ReadOnly || c.CanMount != "on" || c.Encryption != "off" ||
		c.ResumeToken != "" || c.Origin != "" || c.RefQuota != 0 {
		w.Errorf("new filesystem: %+v", c)
	}
	if c.Used <= 0 || c.Referenced <= 0 || c.Available <= 0 || c.Written <= 0 || c.CreateTXG == 0 {
		w.Errorf("figures of a new filesystem: %+v", c)
	}
	if one := w.a.dataset(r + "/a/c"); one.GUID != c.GUID || one.CreateTXG != c.CreateTXG || one.User["flocker:volume"] != "a/c" {
		w.Errorf("dataset gives %+v, datasets %+v", one, c)
	}
	if sub, err := z.Datasets(w.ctx, r+"/a"); err != nil || names(sub) != r+"/a "+r+"/a/c" {
		w.Errorf("datasets below a: %s, %v", names(sub), err)
	}

	_, err = z.Dataset(w.ctx, w.a.name("nope"))
	w.wantKind("missing dataset", err, zfs.ErrNotFound)
	_, err = z.Datasets(w.ctx, w.a.name("nope"))
	w.wantKind("missing root", err, zfs.ErrNotFound)
	_, err = z.Datasets(w.ctx, "nosuchpool/a")
	w.wantKind("missing pool", err, zfs.ErrNotFound)
	_, err = z.Snapshots(w.ctx, w.a.name("nope"), true)
	w.wantKind("snapshots of a missing dataset", err, zfs.ErrNotFound)
	_, err = z.Bookmarks(w.ctx, w.a.name("nope"), true)
	w.wantKind("bookmarks of a missing dataset", err, zfs.ErrNotFound)
	w.wantKind("create again", z.CreateFilesystem(w.ctx, r+"/a", nil), zfs.ErrExists)
	w.wantKind("create without parent", z.CreateFilesystem(w.ctx, r+"/x/y", nil), zfs.ErrNotFound)
	w.wantKind("create with nonsense", z.CreateFilesystem(w.ctx, r+"/x", map[string]string{"nonsense": "1"}), zfs.ErrInvalid)
	if w.a.exists(r + "/x") {
		w.Error("a refused filesystem is there")
	}
}

func testProperties(w *world, _ Env) {
	z := w.a.ZFS
	fs := w.a.create("a")
	child := w.a.create("a/b")
	w.a.must(z.SetProperties(w.ctx, fs, map[string]string{
		"flocker:epoch": "0000000000000001", "flocker:name": "two words = 1, 'quoted'", "refquota": "67108864",
	}))
	d := w.a.dataset(fs)
	if d.User["flocker:epoch"] != "0000000000000001" || d.User["flocker:name"] != "two words = 1, 'quoted'" || d.RefQuota != 64<<20 || !d.ReadOnly {
		w.Errorf("after set: %+v", d)
	}
	if d.Available > 64<<20 {
		w.Errorf("available %d is more than refquota", d.Available)
	}
	if c := w.a.dataset(child); len(c.User) != 0 || c.RefQuota != 0 {
		w.Errorf("the child got what it must not inherit: %+v", c)
	}
	w.a.must(z.SetProperties(w.ctx, fs, map[string]string{"flocker:epoch": "0000000000000002", "refquota": "none"}))
	w.a.must(z.Inherit(w.ctx, fs, "flocker:name"))
	w.a.must(z.Inherit(w.ctx, fs, "flocker:name"))
	w.a.must(z.Inherit(w.ctx, fs, "flocker:released"))
	w.a.must(z.SetProperties(w.ctx, fs, nil))
	if d := w.a.dataset(fs); d.User["flocker:epoch"] != "0000000000000002" || len(d.User) != 1 || d.RefQuota != 0 {
		w.Errorf("after inherit: %+v", d)
	}
	// Of what nobody asks for nothing is told, though it is there.
	w.a.must(z.SetProperties(w.ctx, fs, map[string]string{"flocker:unasked": "1"}))
	if d := w.a.dataset(fs); len(d.User) != 1 {
		w.Errorf("properties that were not asked for are told: %v", d.User)
	}
	w.a.must(z.Inherit(w.ctx, fs, "flocker:unasked"))
	// The parent's mountpoint none comes back, as does readonly=off.
	w.a.must(z.Inherit(w.ctx, child, "mountpoint"))
	w.a.must(z.Inherit(w.ctx, fs, "mountpoint"))
	w.a.must(z.Inherit(w.ctx, fs, "readonly"))
	if d := w.a.dataset(fs); d.Mountpoint != "none" || d.ReadOnly {
		w.Errorf("after inherit: %+v", d)
	}
	w.a.must(z.Inherit(w.ctx, child, "readonly"))
	w.a.must(z.SetProperties(w.ctx, fs, map[string]string{"readonly": "on"}))
	if c := w.a.dataset(child); !c.ReadOnly {
		w.Errorf("readonly is not inherited: %+v", c)
	}

	w.a.must(z.SetProperties(w.ctx, fs, map[string]string{"quota": "1073741824", "compression": "zstd"}))
	got, err := z.Properties(w.ctx, fs, []string{"quota", "reservation", "compression", "sharenfs", "sharesmb", "zoned", "readonly", "flocker:epoch"})
	w.a.must(err)
	for name, want := range map[string]zfs.Property{
		"quota": {Value: "1073741824", Own: true}, "reservation": {Value: "0"}, "compression": {Value: "zstd", Own: true},
		"sharenfs": {Value: "off", Own: true}, "sharesmb": {Value: "off", Own: true}, "zoned": {Value: "off"}, "readonly": {Value: "on", Own: true}, "flocker:epoch": {Value: "0000000000000002", Own: true},
	} {
		if got[name] != want {
			w.Errorf("property %s: %+v, want %+v", name, got[name], want)
		}
	}
	got, err = z.Properties(w.ctx, child, []string{"quota", "compression"})
	w.a.must(err)
	if got["quota"] != (zfs.Property{Value: "0"}) || got["compression"] != (zfs.Property{Value: "zstd"}) {
		w.Errorf("properties of what is below: %+v", got)
	}
	w.a.must(z.SetProperties(w.ctx, fs, map[string]string{"quota": "none"}))
	_, err = z.Properties(w.ctx, fs, []string{"nonsense"})
	w.wantKind("properties that are none", err, zfs.ErrInvalid)
	_, err = z.Properties(w.ctx, w.a.name("nope"), []string{"quota"})
	w.wantKind("properties of none", err, zfs.ErrNotFound)

	w.wantKind("unknown property", z.SetProperties(w.ctx, fs, map[string]string{"nonsense": "1"}), zfs.ErrInvalid)
	w.wantKind("bad value", z.SetProperties(w.ctx, fs, map[string]string{"readonly": "maybe"}), zfs.ErrInvalid)
	w.wantKind("quota below use", z.SetProperties(w.ctx, fs, map[string]string{"refquota": "1024"}), zfs.ErrInvalid)
	w.wantKind("one bad of two", z.SetProperties(w.ctx, fs, map[string]string{"flocker:epoch": "3", "readonly": "maybe"}), zfs.ErrInvalid)
	if d := w.a.dataset(fs); d.User["flocker:epoch"] != "0000000000000002" {
		w.Error("a refused set has set something")
	}
	w.wantKind("inherit quota", z.Inherit(w.ctx, fs, "refquota"), zfs.ErrInvalid)
	w.wantKind("inherit unknown", z.Inherit(w.ctx, fs, "nonsense"), zfs.ErrInvalid)
	w.wantKind("set on none", z.SetProperties(w.ctx, w.a.name("nope"), map[string]string{"flocker:epoch": "1"}), zfs.ErrNotFound)
	w.wantKind("inherit on none", z.Inherit(w.ctx, w.a.name("nope"), "flocker:epoch"), zfs.ErrNotFound)
}

// What is encrypted says so by a property, which replication goes by, whether its key is
// loaded or not; what is sent of it is not raw unless somebody asks for that. And a new
// copy of anything is refused below it: our streams may hold embedded data.
func testEncrypted(w *world, _ Env) {
	z := w.a.ZFS
	key := filepath.Join(w.TempDir(), "key")
	w.a.must(os.WriteFile(key, data(1, 32), 0o600))
	vault, plain := w.a.name("vault"), w.a.mounted("plain")
	w.a.must(z.CreateFilesystem(w.ctx, vault, map[string]string{"encryption": "on", "keyformat": "raw", "keylocation": "file://" + key}))
	inner := w.a.mounted("vault/v")
	list, err := z.Datasets(w.ctx, w.a.Root)
	w.a.must(err)
	want := map[string]string{w.a.Root: "off", vault: "aes-256-gcm", inner: "aes-256-gcm", plain: "off"}
	for _, d := range list {
		if d.Encryption != want[d.Name] {
			w.Errorf("%s in a list: encryption %q, want %q", d.Name, d.Encryption, want[d.Name])
		}
		if one := w.a.dataset(d.Name); one.Encryption != want[d.Name] {
			w.Errorf("%s: encryption %q, want %q", d.Name, one.Encryption, want[d.Name])
		}
	}
	if len(list) != len(want) {
		w.Errorf("datasets: %s", names(list))
	}
	w.wantKind("decrypt by a property", z.SetProperties(w.ctx, inner, map[string]string{"encryption": "off"}), zfs.ErrInvalid)

	w.a.write(inner, "f", data(2, 100_000))
	w.a.snap(inner, "1")
	if h, err := zfs.ParseStreamHeader(w.a.stream(inner, "", "1")); err != nil || h.Raw {
		w.Errorf("a stream of it says %+v, %v", h, err)
	}
	if w.a.Send != nil { // the fake sends none
		raw, err := w.a.Send("-w", inner+"@1")
		w.a.must(err)
		if h, err := zfs.ParseStreamHeader(raw); err != nil || !h.Raw {
			w.Errorf("a raw stream says %+v, %v", h, err)
		}
	}

	w.a.write(plain, "f", data(3, 100_000))
	w.a.snap(plain, "1")
	copied := w.a.name("vault/copy")
	// Some releases take it for a stream of a newer kind.
	w.wantKind("a copy below it", w.a.receive(copied, w.a.stream(plain, "", "1"), true), zfs.ErrBadToken, zfs.ErrUnsupported)
	if w.a.exists(copied) {
		w.Error("a refused copy is there")
	}
}

func testMount(w *world, _ Env) {
	z := w.a.ZFS
	fs := w.a.create("a")
	if err := w.a.Write(fs, "f", []byte("x")); err == nil {
		w.Error("could write into an unmounted filesystem")
	}
	// Writable for one mount, read-only on disk.
	w.a.must(z.Mount(w.ctx, fs, true))
	if d := w.a.dataset(fs); !d.Mounted || !d.Writable || !d.ReadOnly || d.Mountpoint != w.a.Mountpoint(fs) {
		w.Errorf("mounted writable: %+v", d)
	}
	w.a.write(fs, "f", []byte("one"))
	w.wantKind("mount again", z.Mount(w.ctx, fs, true), zfs.ErrExists)
	w.a.must(z.Unmount(w.ctx, fs))
	w.a.must(z.Unmount(w.ctx, fs))
	if d := w.a.dataset(fs); d.Mounted || d.Writable || !d.ReadOnly {
		w.Errorf("unmounted: %+v", d)
	}
	// A plain mount stays read-only.
	w.a.must(z.Mount(w.ctx, fs, false))
	if d := w.a.dataset(fs); !d.Mounted || d.Writable || !d.ReadOnly {
		w.Errorf("mounted plainly: %+v", d)
	}
	if got, err := w.a.Read(fs, "f"); err != nil || string(got) != "one" {
		w.Errorf("read: %q, %v", got, err)
	}
	if err := w.a.Write(fs, "f", []byte("two")); !errors.Is(err, syscall.EROFS) {
		w.Errorf("write to a read-only mount: %v, want EROFS", err)
	}
	w.a.must(z.Unmount(w.ctx, fs))

	w.wantKind("mount none", z.Mount(w.ctx, w.a.name("nope"), false), zfs.ErrNotFound)
	w.wantKind("unmount none", z.Unmount(w.ctx, w.a.name("nope")), zfs.ErrNotFound)
	plain := w.a.name("b")
	w.a.must(z.CreateFilesystem(w.ctx, plain, nil))
	w.wantKind("no mountpoint", z.Mount(w.ctx, plain, false), zfs.ErrInvalid)
	w.a.must(z.SetProperties(w.ctx, fs, map[string]string{"canmount": "off"}))
	w.wantKind("canmount off", z.Mount(w.ctx, fs, false), zfs.ErrInvalid)
}

func testMountInUse(w *world, _ Env) {
	z := w.a.ZFS
	fs := w.a.mounted("a")
	w.a.write(fs, "f", []byte("one"))
	w.a.snap(fs, "1")
	release, err := w.a.Use(fs, "f")
	w.a.must(err)
	w.wantKind("unmount in use", z.Unmount(w.ctx, fs), zfs.ErrBusy)
	w.wantKind("destroy in use", z.Destroy(w.ctx, fs), zfs.ErrBusy)
	w.wantKind("rename in use", z.Rename(w.ctx, fs, w.a.name("b")), zfs.ErrBusy)
	if d := w.a.dataset(fs); !d.Mounted || !d.Writable {
		w.Errorf("after refusals: %+v", d)
	}
	if got := w.a.names(fs); got != "1" {
		w.Errorf("snapshots after refusals: %q", got)
	}
	release()
	w.a.must(z.Unmount(w.ctx, fs))
}

func testMountSnapshot(w *world, _ Env) {
	z := w.a.ZFS
	fs := w.a.mounted("a")
	w.a.write(fs, "f", []byte("one"))
	w.a.snap(fs, "1")
	w.a.write(fs, "f", []byte("two"))
	snap, dir := fs+"@1", w.TempDir()
	w.a.must(z.MountSnapshot(w.ctx, snap, dir))
	if got, err := w.a.Look(snap, dir, "f"); err != nil || string(got) != "one" {
		w.Errorf("in the mounted snapshot: %q, %v", got, err)
	}
	// It stays as long as somebody looks, whatever else goes on.
	w.wantKind("destroy while mounted", z.DestroySnapshots(w.ctx, fs, []string{"1"}), zfs.ErrBusy)
	failed, err := z.Prune(w.ctx, []zfs.PruneRequest{{Snapshot: snap}})
	w.a.must(err)
	w.wantKind("prune while mounted", failed[snap], zfs.ErrBusy)
	w.a.snap(fs, "2")
	clone := w.a.name("k")
	w.a.must(z.Clone(w.ctx, fs+"@2", clone, nil))
	w.wantKind("promote over one that is mounted", z.Promote(w.ctx, clone), zfs.ErrBusy)

	// It is let go of by whoever has it open last, wherever it is mounted.
	done, err := w.a.Open(snap, dir)
	w.a.must(err)
	w.a.must(z.UnmountSnapshot(w.ctx, dir))
	w.a.must(z.UnmountSnapshot(w.ctx, dir))
	w.wantKind("destroy while open", z.DestroySnapshots(w.ctx, fs, []string{"1"}), zfs.ErrBusy)
	w.wantKind("promote over one that is open", z.Promote(w.ctx, clone), zfs.ErrBusy)
	done()
	w.a.must(z.Promote(w.ctx, clone))
	w.a.must(z.Promote(w.ctx, fs))
	w.a.must(z.Destroy(w.ctx, clone))
	w.wantKind("mount none", z.MountSnapshot(w.ctx, fs+"@nope", dir), zfs.ErrNotFound)
	w.a.must(z.DestroySnapshots(w.ctx, fs, []string{"1"}))
}

func testRefquota(w *world, _ Env) {
	z := w.a.ZFS
	fs := w.a.mounted("a")
	w.a.must(z.SetProperties(w.ctx, fs, map[string]string{"refquota": "2097152"}))
	w.a.write(fs, "one", data(1, 1<<20))
	err := w.a.Write(fs, "two", data(2, 4<<20))
	if !errors.Is(err, syscall.EDQUOT) && !errors.Is(err, syscall.ENOSPC) {
		w.Errorf("write past refquota: %v", err)
	}
	w.a.must(w.a.Remove(fs, "one"))
	w.a.must(z.SetProperties(w.ctx, fs, map[string]string{"refquota": "none"}))
	w.a.write(fs, "two", data(2, 4<<20))
}

func testDestroy(w *world, _ Env) {
	z := w.a.ZFS
	fs := w.a.create("a")
	w.a.create("a/b")
	w.a.snap(fs, "1")
	w.a.snap(fs+"/b", "1")
	w.a.must(z.Bookmark(w.ctx, fs+"@1", fs+"#1"))
	// A clone elsewhere protects all of it.
	other := w.a.name("c")
	w.a.must(z.Clone(w.ctx, fs+"/b@1", other, nil))
	w.wantKind("destroy with a clone elsewhere", z.Destroy(w.ctx, fs), zfs.ErrHasClones)
	w.a.dataset(fs)
	w.a.snapshot(fs+"/b", "1")
	w.a.must(z.Destroy(w.ctx, other))
	w.a.must(z.Hold(w.ctx, "keep", fs+"@1"))
	w.wantKind("destroy with a hold", z.Destroy(w.ctx, fs), zfs.ErrBusy)
	w.a.snapshot(fs, "1")
	w.a.must(z.Release(w.ctx, "keep", fs+"@1"))
	// One below that must stay keeps what is above it.
	if !w.a.exists(fs + "/b") {
		w.a.create("a/b")
		w.a.snap(fs+"/b", "1")
	}
	w.a.must(z.Hold(w.ctx, "keep", fs+"/b@1"))
	w.wantKind("destroy with a hold below", z.Destroy(w.ctx, fs), zfs.ErrBusy)
	w.a.snapshot(fs+"/b", "1")
	w.Logf("with a hold below, above is left: %s", w.a.names(fs))
	w.a.must(z.Release(w.ctx, "keep", fs+"/b@1"))
	// Mounted but unused goes.
	w.a.must(z.Mount(w.ctx, fs, true))
	w.a.must(z.Destroy(w.ctx, fs))
	if w.a.exists(fs) || w.a.exists(fs+"/b") {
		w.Error("it is still there")
	}
	w.a.must(z.Destroy(w.ctx, fs))
}

// Block devices that somebody makes below a filesystem are listed with it, and go along
// where it goes.
func testVolumes(w *world, _ Env) {
	z := w.a.ZFS
	fs := w.a.create("a")
	w.a.must(w.a.CreateVolume(fs + "/v"))
	list, err := z.Datasets(w.ctx, fs)
	w.a.must(err)
	if got := names(list); got != fs+" "+fs+"/v" {
		w.Fatalf("datasets: %s", got)
	}
	if v := list[1]; list[0].Volume || !v.Volume || v.GUID == 0 || v.Mounted || v.Writable || v.Mountpoint != "" || v.CanMount != "" || v.RefQuota != 0 {
		w.Errorf("a filesystem %+v, and in it a volume %+v", list[0], v)
	}
	if d, err := z.Dataset(w.ctx, fs+"/v"); err == nil {
		w.Errorf("a volume is called a filesystem: %+v", d)
	}
	if z.Mount(w.ctx, fs+"/v", true) == nil {
		w.Error("a volume is mounted")
	}
	to := w.a.name("b")
	w.a.must(z.Rename(w.ctx, fs, to))
	list, err = z.Datasets(w.ctx, to)
	w.a.must(err)
	if got := names(list); got != to+" "+to+"/v" {
		w.Errorf("renamed: %s", got)
	}
	w.a.must(z.Destroy(w.ctx, to))
	if list, err := z.Datasets(w.ctx, to); !errors.Is(err, zfs.ErrNotFound) {
		w.Errorf("destroyed: %s, %v", names(list), err)
	}
}

func testClonePromote(w *world, _ Env) {
	z := w.a.ZFS
	fs := w.a.mounted("a")
	for _, n := range []string{"1", "2", "3"} {
		w.a.write(fs, "f"+n, []byte(n))
		w.a.snap(fs, n)
	}
	for _, n := range []string{"1", "2", "3"} {
		w.a.must(z.Bookmark(w.ctx, fs+"@"+n, fs+"#m"+n))
	}
	w.a.must(z.Hold(w.ctx, "keep", fs+"@1"))
	one := w.a.snapshot(fs, "1")
	clone := w.a.name("k")
	w.a.must(z.Clone(w.ctx, fs+"@2", clone, map[string]string{"flocker:volume": "k"}))
	d := w.a.dataset(clone)
	if d.Origin != fs+"@2" || d.Mounted || d.User["flocker:volume"] != "k" || d.CanMount != "noauto" || d.Mountpoint != "none" {
		w.Errorf("clone: %+v", d)
	}
	if s := w.a.snapshot(fs, "2"); len(s.Clones) != 1 || s.Clones[0] != clone {
		w.Errorf("clones of the origin: %v", s.Clones)
	}
	w.sameContent(w.a.content(clone), map[string]string{"f1": "1", "f2": "2"})
	w.wantKind("destroy the origin", z.DestroySnapshots(w.ctx, fs, []string{"2"}), zfs.ErrHasClones)
	w.wantKind("clone again", z.Clone(w.ctx, fs+"@2", clone, nil), zfs.ErrExists)
	w.wantKind("clone of nothing", z.Clone(w.ctx, fs+"@nope", w.a.name("x"), nil), zfs.ErrNotFound)
	w.wantKind("clone without parent", z.Clone(w.ctx, fs+"@2", w.a.name("x/y"), nil), zfs.ErrNotFound)
	w.wantKind("promote no clone", z.Promote(w.ctx, fs), zfs.ErrInvalid)
	w.wantKind("promote nothing", z.Promote(w.ctx, w.a.name("x")), zfs.ErrNotFound)

	w.a.snap(clone, "1") // in the way
	w.wantKind("promote over a name", z.Promote(w.ctx, clone), zfs.ErrExists)
	w.a.must(z.DestroySnapshots(w.ctx, clone, []string{"1"}))
	w.a.must(z.Promote(w.ctx, clone))
	if got := w.a.names(clone) + " | " + w.a.names(fs); got != "1 2 | 3" {
		w.Errorf("snapshots after promote: %s", got)
	}
	if d := w.a.dataset(fs); d.Origin != clone+"@2" || !d.Mounted || !d.Writable {
		w.Errorf("old filesystem after promote: %+v", d)
	}
	if s := w.a.snapshot(clone, "1"); s.GUID != one.GUID || s.UserRefs != 1 {
		w.Errorf("moved snapshot: %+v, was %+v", s, one)
	}
	// The bookmarks of what moved have moved too.
	marks := func(name string) string {
		list, err := z.Bookmarks(w.ctx, name, false)
		w.a.must(err)
		var s []string
		for _, b := range list {
			s = append(s, b.Name)
		}
		return strings.Join(s, " ")
	}
	if got := marks(clone) + " | " + marks(fs); got != "m1 m2 | m3" {
		w.Errorf("bookmarks after promote: %s", got)
	}
	w.a.must(z.Release(w.ctx, "keep", clone+"@1"))
	w.a.must(z.Destroy(w.ctx, fs))
	w.a.must(z.Destroy(w.ctx, clone))
}

func testRename(w *world, _ Env) {
	z := w.a.ZFS
	fs := w.a.create("a")
	w.a.create("a/c")
	s := w.a.snap(fs, "1")
	guid := w.a.dataset(fs).GUID
	w.a.must(z.CreateFilesystem(w.ctx, w.a.name("x"), nil))
	w.a.must(z.Rename(w.ctx, fs, w.a.name("x/b")))
	if w.a.exists(fs) || !w.a.exists(w.a.name("x/b/c")) || w.a.dataset(w.a.name("x/b")).GUID != guid {
		w.Error("rename of a filesystem")
	}
	fs = w.a.name("x/b")
	w.a.must(z.Rename(w.ctx, fs+"@1", fs+"@one"))
	if got := w.a.snapshot(fs, "one"); got.GUID != s.GUID {
		w.Errorf("renamed snapshot: %+v, was %+v", got, s)
	}
	w.a.snap(fs, "2")
	w.wantKind("rename none", z.Rename(w.ctx, w.a.name("nope"), w.a.name("y")), zfs.ErrNotFound)
	w.wantKind("rename onto another", z.Rename(w.ctx, fs, w.a.name("x")), zfs.ErrExists)
	w.wantKind("rename without parent", z.Rename(w.ctx, fs, w.a.name("y/y")), zfs.ErrNotFound)
	w.wantKind("snapshot onto another", z.Rename(w.ctx, fs+"@one", fs+"@2"), zfs.ErrExists)
	w.wantKind("snapshot that is none", z.Rename(w.ctx, fs+"@nope", fs+"@3"), zfs.ErrNotFound)
	w.wantKind("snapshot to filesystem", z.Rename(w.ctx, fs+"@one", w.a.name("z")), zfs.ErrInvalid)
}
