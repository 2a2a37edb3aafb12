// Package zfstest is the suite that both faces of zfs.System must pass: the real
// Host, in the lab, and zfsfake. What it asserts is the contract of zfs.System,
// found out on OpenZFS 2.3; where the two may differ, it asserts what both allow.
//
// It is called only by tests.
package zfstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/zfs"
)

// Env is what one test gets: two hosts (or two parts of one that never look at each
// other) that can only meet through streams.
type Env struct {
	A, B Side
	// NewPool tests pool creation when it is not nil: CreateFilePool and ImportPool
	// on A with this free pool name and this path of a file that is not there;
	// export takes the pool away without destroying it, destroy ends it.
	NewPool func(t *testing.T) (name, path string, export, destroy func())
}

// Side is one host.
type Side struct {
	ZFS zfs.System
	// Root is an empty filesystem with mountpoint none, in pool Pool.
	Root, Pool string
	// Mountpoint is where the filesystem of this name may be mounted.
	Mountpoint func(dataset string) string
	// Write, Remove and Read a file of a mounted filesystem; Write and Sync it.
	Write  func(dataset, file string, data []byte) error
	Remove func(dataset, file string) error
	Read   func(dataset, file string) ([]byte, error)
	Files  func(dataset string) ([]string, error)
	// Open opens the snapshot that is mounted at dir, until close.
	Open func(snapshot, dir string) (close func(), err error)
	// Look reads a file of the snapshot that is mounted at dir.
	Look func(snapshot, dir, file string) ([]byte, error)
	// CreateVolume makes a block device of this name, which System cannot.
	CreateVolume func(name string) error
	// Send is zfs send with these arguments, which System has no way to ask for; nil where
	// there is no such command.
	Send func(args ...string) ([]byte, error)
	// Full has the next Prune put as many snapshots into a program as it ever does, whatever it has
	// learnt of the pool; nil where there are no programs.
	Full func()
	// Use holds a file of the mounted filesystem open until release.
	Use func(dataset, file string) (release func(), err error)
}

// world is one running test.
type world struct {
	*testing.T
	ctx  context.Context
	a, b host
}

type host struct {
	Side
	t *testing.T
}

func newWorld(t *testing.T, env Env) *world {
	return &world{T: t, ctx: t.Context(), a: host{env.A, t}, b: host{env.B, t}}
}

// volumeProps are what flockd gives every volume on disk.
func (h host) volumeProps(name string) map[string]string {
	return map[string]string{"canmount": "noauto", "readonly": "on", "sharenfs": "off", "sharesmb": "off", "mountpoint": h.Mountpoint(name)}
}

// name of a filesystem of this side.
func (h host) name(short string) string { return h.Root + "/" + short }

// create makes a volume-like filesystem and says its full name.
func (h host) create(short string) string {
	h.t.Helper()
	name := h.name(short)
	h.must(h.ZFS.CreateFilesystem(h.t.Context(), name, h.volumeProps(name)))
	return name
}

// mounted is create, mounted writable.
func (h host) mounted(short string) string {
	h.t.Helper()
	name := h.create(short)
	h.must(h.ZFS.Mount(h.t.Context(), name, true))
	return name
}

func (h host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h host) write(dataset, file string, data []byte) {
	h.t.Helper()
	h.must(h.Write(dataset, file, data))
}

// snap takes a snapshot and gives its description.
func (h host) snap(dataset, name string) zfs.Snapshot {
	h.t.Helper()
	h.must(h.ZFS.Snapshot(h.t.Context(), []string{dataset + "@" + name}, nil))
	return h.snapshot(dataset, name)
}

func (h host) snapshot(dataset, name string) zfs.Snapshot {
	h.t.Helper()
	list := h.snapshots(dataset)
	i := slices.IndexFunc(list, func(s zfs.Snapshot) bool { return s.Name == name })
	if i < 0 {
		h.t.Fatalf("snapshot %s@%s is not listed", dataset, name)
	}
	return list[i]
}

func (h host) snapshots(dataset string) []zfs.Snapshot {
	h.t.Helper()
	list, err := h.ZFS.Snapshots(h.t.Context(), dataset, false)
	h.must(err)
	return list
}

// names of the snapshots of a dataset, oldest first.
func (h host) names(dataset string) string {
	h.t.Helper()
	var names []string
	for _, s := range h.snapshots(dataset) {
		names = append(names, s.Name)
	}
	return strings.Join(names, " ")
}

func (h host) dataset(name string) zfs.Dataset {
	h.t.Helper()
	d, err := h.ZFS.Dataset(h.t.Context(), name)
	h.must(err)
	return d
}

func (h host) exists(name string) bool {
	h.t.Helper()
	_, err := h.ZFS.Dataset(h.t.Context(), name)
	if err != nil && !errors.Is(err, zfs.ErrNotFound) {
		h.t.Fatal(err)
	}
	return err == nil
}

// stream is what sending from (a short name with its mark, "" for full) to
// dataset@to gives.
func (h host) stream(dataset, from, to string) []byte {
	h.t.Helper()
	req := zfs.SendRequest{Snapshot: dataset + "@" + to}
	if from != "" {
		req.From = dataset + from
	}
	return h.send(req)
}

func (h host) send(req zfs.SendRequest) []byte {
	h.t.Helper()
	var buf bytes.Buffer
	h.must(h.ZFS.Send(h.t.Context(), req, &buf))
	return buf.Bytes()
}

func (h host) receive(dataset string, stream []byte, resumable bool) error {
	req := zfs.ReceiveRequest{Dataset: dataset, Resumable: resumable}
	return h.ZFS.Receive(h.t.Context(), req, onlyReader{bytes.NewReader(stream)})
}

// onlyReader hides everything but Read.
type onlyReader struct{ io.Reader }

// content is all files of a dataset, read while it is mounted (read-only if it was not).
func (h host) content(dataset string) map[string]string {
	h.t.Helper()
	if !h.dataset(dataset).Mounted {
		h.must(h.ZFS.SetProperties(h.t.Context(), dataset, h.volumeProps(dataset)))
		h.must(h.ZFS.Mount(h.t.Context(), dataset, false))
		defer func() { h.must(h.ZFS.Unmount(h.t.Context(), dataset)) }()
	}
	files, err := h.Files(dataset)
	h.must(err)
	all := map[string]string{}
	for _, file := range files {
		data, err := h.Read(dataset, file)
		h.must(err)
		all[file] = string(data)
	}
	return all
}

func (w *world) sameContent(got, want map[string]string) {
	w.Helper()
	if maps.Equal(got, want) {
		return
	}
	for file, data := range want {
		if got[file] != data {
			w.Errorf("file %s: %d bytes that are not the %d of the source", file, len(got[file]), len(data))
		}
	}
	for file := range got {
		if _, ok := want[file]; !ok {
			w.Errorf("file %s is not in the source", file)
		}
	}
}

// wantKind fails unless err is one of these kinds.
func (w *world) wantKind(what string, err error, kinds ...error) {
	w.Helper()
	for _, kind := range kinds {
		if errors.Is(err, kind) {
			var e *zfs.Error
			if !errors.As(err, &e) || e.Op == "" {
				w.Errorf("%s: error is not an *Error with Op: %#v", what, err)
			}
			return
		}
	}
	w.Errorf("%s: got %v, want %q", what, err, kinds)
}

// data is n bytes that no compression shrinks, the same for the same seed.
func data(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	return b
}

// soon tries until cond holds: real ZFS lets go of some things a moment later.
func (w *world) soon(what string, cond func() bool) {
	w.Helper()
	for began := time.Now(); !cond(); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			w.Fatalf("gave up waiting until %s", what)
		}
	}
}

func names(ds []zfs.Dataset) string {
	var list []string
	for _, d := range ds {
		list = append(list, d.Name)
	}
	return strings.Join(list, " ")
}

func ok(err error) string {
	if err == nil {
		return "ok"
	}
	return fmt.Sprint(err)
}
