package replicate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flocker-io/flocker/zfs"
)

// poolsVariable names an empty directory on a machine with ZFS, where the pools of
// TestRealLinks may lie. The lab sets it.
const poolsVariable = "FLOCKER_LINK_POOLS"

// realDisk is ZFS on this machine. Datasets and snapshots are mounted by the system
// call alone, so that no property has to be changed for it.
type realDisk struct {
	*zfs.Host
	dir string
}

// mounted mounts a dataset or snapshot, lets f use it, and unmounts it.
func (d realDisk) mounted(name string, flags uintptr, options string, f func(dir string) error) error {
	dir, err := os.MkdirTemp(d.dir, "mnt")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := syscall.Mount(name, dir, "zfs", flags, options); err != nil {
		return fmt.Errorf("mount %s: %w", name, err)
	}
	err = f(dir)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if busy := syscall.Unmount(dir, 0); busy == nil || time.Now().After(deadline) {
			return errors.Join(err, busy)
		}
	}
}

func (d realDisk) WriteFile(dataset, file string, data []byte) error {
	return d.mounted(dataset, 0, "rw", func(dir string) error {
		f, err := os.Create(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		_, err = f.Write(data)
		return errors.Join(err, f.Sync(), f.Close())
	})
}

// content is the snapshot that stands for a name: itself, or a dataset's newest, which
// has all that is in its head when nothing was written since. That is asked first: a
// snapshot that is taken in between has it too, while one listed before might not.
func (d realDisk) content(name string) (string, error) {
	if strings.Contains(name, "@") {
		return name, nil
	}
	ds, err := d.Dataset(context.Background(), name)
	if err == nil && ds.Written > 0 {
		err = fmt.Errorf("%s was written to since its newest snapshot", name)
	}
	if err != nil {
		return "", err
	}
	list, err := d.Snapshots(context.Background(), name, false)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("%s has no snapshot", name)
	}
	if err != nil {
		return "", err
	}
	return list[len(list)-1].FullName(), nil
}

func (d realDisk) ReadFile(name, file string) (data []byte, err error) {
	if name, err = d.content(name); err != nil {
		return nil, err
	}
	return data, d.mounted(name, syscall.MS_RDONLY, "", func(dir string) error {
		data, err = os.ReadFile(filepath.Join(dir, file))
		return err
	})
}

// Checksum covers names and bytes of all files.
func (d realDisk) Checksum(name string) (string, error) {
	name, err := d.content(name)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	err = d.mounted(name, syscall.MS_RDONLY, "", func(dir string) error {
		entries, err := os.ReadDir(dir) // in order
		for _, e := range entries {
			data, readErr := os.ReadFile(filepath.Join(dir, e.Name()))
			err = errors.Join(err, readErr)
			fmt.Fprintf(sum, "%q %d\n", e.Name(), len(data))
			sum.Write(data)
		}
		return err
	})
	return hex.EncodeToString(sum.Sum(nil))[:32], err
}

// realStage makes a stage of two file-backed pools, which every test finds empty.
type realStage struct {
	disk  realDisk
	pools []string
}

// poolSize is small enough to be filled.
const poolSize = 256 << 20

func newRealStage(t *testing.T, dir string) *realStage {
	s := &realStage{disk: realDisk{zfs.New(zfs.Options{}), dir}}
	for _, name := range []string{"a", "b"} {
		pool := fmt.Sprintf("link%s%08x", name, rand.Uint32())
		if err := s.disk.CreateFilePool(t.Context(), pool, filepath.Join(dir, pool+".img"), poolSize); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if out, err := exec.Command("zpool", "destroy", "-f", pool).CombinedOutput(); err != nil {
				t.Errorf("cleaning up: %v: %s", err, out)
			}
		})
		s.pools = append(s.pools, pool)
	}
	return s
}

// on is the stage of real pools: each case is a test of its own.
func (s *realStage) on(t *testing.T, what string, f func(w *world)) {
	t.Run(what, func(t *testing.T) { s.play(t, f) })
}

func (s *realStage) play(t *testing.T, f func(w *world)) {
	w := &world{TB: t, real: true, nodes: map[string]*node{}, cut: map[string]bool{}}
	for i, name := range []string{"a", "b"} {
		w.add(name, s.pools[i], s.disk)
	}
	for _, n := range w.nodes {
		n.start()
	}
	defer func() {
		w.stopAll()
		s.wipe(t)
	}()
	f(w)
	w.stopAll()
	w.check()
}

// wipe empties the pools: clones first, which what was set aside is.
func (s *realStage) wipe(t *testing.T) {
	for _, pool := range s.pools {
		for _, root := range []string{"/flocker-aside", "/filler", "/flocker"} {
			if err := s.disk.Destroy(context.Background(), pool+root); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The tests of links once more, on real pools: fewer of each, since every command
// takes its time there. It is built like every test and run by the lab, on a node.
func TestRealLinks(t *testing.T) {
	dir := os.Getenv(poolsVariable)
	if dir == "" {
		t.Skipf("run by the lab, on a node with ZFS (%s is not set)", poolsVariable)
	}
	s := newRealStage(t, dir)
	data := blob(rand.New(rand.NewPCG(1, 1)), 2<<20)

	cut := cutting{kind: kindIncremental, way: "receiver"}
	s.on(t, "increment cut at the receiver", func(w *world) { cut.series(w, data, 1, 1<<4, 1<<8, 1<<12, 1<<16, 1<<20) })
	s.bad(t, kindIncremental, data)
	for _, l := range liars {
		if l.half || l.name == "of a lower epoch" {
			s.on(t, "a sender "+l.name, l.run)
		}
	}
	s.on(t, "increments killed", func(w *world) { killAgainAndAgain(w, "b", true) })
	s.on(t, "a user's snapshot is removed everywhere", realPrune)
	for _, story := range crashStories {
		if story.name == "fork" {
			s.on(t, story.name, func(w *world) { story.strike(w, "b", 1<<20, false, killed) })
		}
	}
	s.on(t, "full pool", realNoSpace)
}

// bad sends every bad stream of a kind.
func (s *realStage) bad(t *testing.T, kind, data string) {
	var fit []badStream
	for _, b := range badStreams {
		if !b.good && (b.kind == "" || b.kind == kind) {
			fit = append(fit, b)
		}
	}
	twice := badStreams[slices.IndexFunc(badStreams, func(b badStream) bool { return b.good })]
	s.on(t, kind+" streams that are bad", func(w *world) { sendBad(w, kind, data[:600<<10], append(fit, twice)...) })
}

// TestRealCuts is what TestRealLinks has no time for, on real pools: bad first copies; each kind of stream
// cut after any power of two bytes up to its size, either way, alone and with flockd killed
// on either machine; and flockd killed at one command after the other of either. Where it
// takes longer than realTime it ends with what it has, and says so. The powers are
// shuffled, so that others are reached another time.
func TestRealCuts(t *testing.T) {
	dir := os.Getenv(poolsVariable)
	if dir == "" {
		t.Skipf("run by the lab, on a node with ZFS (%s is not set)", poolsVariable)
	}
	s := newRealStage(t, dir)
	began := time.Now()
	s.bad(t, kindFull, blob(rand.New(rand.NewPCG(1, 1)), 2<<20))
	for _, who := range []string{"a", "b"} {
		s.on(t, "seed killed on "+who, func(w *world) { killAgainAndAgain(w, who, false) })
		s.on(t, "increments killed on "+who, func(w *world) { killAgainAndAgain(w, who, true) })
	}
	const size = 2 << 20
	rounds, all := cutRounds(t, s.on, size, func() bool { return time.Since(began) < realTime })
	t.Logf("%d of %d powers of two were cut at, in %s", rounds, all, time.Since(began).Round(time.Second))
	if rounds < 3 {
		t.Errorf("there was time for %d of %d powers only", rounds, all)
	}
}

// realTime is after which TestRealCuts begins no further power.
const realTime = 25 * time.Minute

// series cuts one stream again and again, each time after more bytes.
func (c cutting) series(w *world, data string, at ...int) {
	a, b := w.node("a"), w.node("b")
	a.create()
	a.write("f", "one")
	if c.kind == kindIncremental {
		w.assign(1, "a", "b")
		w.waitFor("seeded", w.inSync("a", "b"))
	}
	before := b.guids()
	w.cutAt(c.way, at...)
	if c.kind == kindFull {
		a.write("g", data)
		w.assign(1, "a", "b")
	} else {
		a.writeWhole("g", data)
	}
	partial := false
	for _, n := range at {
		w.waitFor(fmt.Sprintf("cut after %d bytes", n), func() bool { return w.isCut() || w.inSync("a", "b")() })
		if !w.isCut() {
			break // that side says less
		}
		w.waitFor("at rest", w.atRest("b"))
		after := b.guids()
		if !slices.Equal(after[:min(len(after), len(before))], before) || len(after) > len(before)+1 {
			w.Fatalf("after %d bytes: the copy had %v, now %v", n, before, after)
		}
		w.check()
		partial = w.partial("b")
		w.partition("a", "b", false)
		a.tryNow()
	}
	w.mu.Lock()
	w.wrap = nil // what was not said so far is not cut any more
	w.mu.Unlock()
	w.partition("a", "b", false)
	w.waitFor("in sync", w.inSync("a", "b"))
	if partial && a.streams(kindResume) == 0 {
		w.Error("what was kept of the stream was not resumed")
	}
	if c.way == "sender" && !partial {
		w.Error("nothing was kept of a megabyte")
	}
	w.tidy()
}

// realPrune removes a user's snapshot, which goes on both sides at once and leaves a
// bookmark on the primary.
func realPrune(w *world) {
	a, b, ctx := w.node("a"), w.node("b"), context.Background()
	a.create()
	w.assign(1, "a", "b")
	w.waitFor("seeded", w.inSync("a", "b"))
	w.userSnapshot("kept")
	w.userSnapshot("removed")
	a.write("f", "two")
	w.waitFor("in sync", func() bool { return w.inSync("a", "b")() && has(b, "kept") && has(b, "removed") })
	w.must(a.eng().RemoveSnapshot(ctx, testVol, "removed"))
	a.write("f", "three")
	w.waitFor("removed", func() bool { return w.inSync("a", "b")() && !has(a, "removed") && !has(b, "removed") })
	marks, err := a.disk.Bookmarks(ctx, a.dataset(), false)
	w.must(err)
	if len(marks) != 1 || marks[0].Name != "flk-removed-removed" || !has(a, "kept") || !has(b, "kept") {
		w.Errorf("bookmarks %v", marks)
	}
	w.tidy()
}

// A replica whose pool is full says so, keeps what it has and goes on when there is
// space; the primary is not touched by it.
func realNoSpace(w *world) {
	a, b, ctx := w.node("a"), w.node("b"), context.Background()
	a.create()
	a.write("f", "one")
	w.assign(1, "a", "b")
	w.waitFor("in sync", w.inSync("a", "b"))
	root, err := b.disk.Dataset(ctx, b.pool)
	w.must(err)
	filler := b.pool + "/filler"
	w.must(b.disk.CreateFilesystem(ctx, filler, map[string]string{"refreservation": fmt.Sprint(root.Available - 4<<20)}))
	a.write("big", blob(rand.New(rand.NewPCG(4, 4)), 16<<20))
	w.waitFor("refused for lack of space", func() bool {
		l := a.link("b")
		return strings.Contains(l.Error, "space") && l.State != "in-sync"
	})
	before := b.guids()
	a.write("g", "goes on")
	w.must(b.disk.Destroy(ctx, filler))
	w.waitFor("in sync", w.inSync("a", "b"))
	if after := b.guids(); len(after) <= len(before) {
		w.Errorf("the replica had %v, now %v", before, after)
	}
	if n := a.streams(kindFull); n != 1 {
		w.Errorf("%d full streams", n)
	}
	w.tidy()
}
