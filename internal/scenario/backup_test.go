package scenario

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// streamOf is a snapshot as a node sends it, and what it said of it.
func streamOf(t *testing.T, w *World, m *Machine, req api.BrowseRequest) (*api.Browsed, []byte) {
	t.Helper()
	req.As = api.AsStream
	b, err := m.API().Browse(w.ctx(), "pg", req)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(b.Body)
	if err = errors.Join(err, b.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return b, got
}

// A volume is backed up from a replica, removed, and made again of the streams, on another
// node. What is cut, damaged or not what it was said to be is no volume, and what was whole
// before it is gone on with.
func TestBackupStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 3)
		defer w.Close()
		w.Script(`
			cluster
			create n1 pg replicas=1 snapshots=none
			run n1 web pg
			write n1 pg a one
			await pg ok
			snapshot n1 first pg
			write n1 pg a two
			write n1 pg b three
			await pg ok
			snapshot n1 second pg
			write n1 pg a four
			await pg ok`)
		n1, n3 := w.Machine("n1"), w.Machine("n3")
		v, err := n1.API().Volume(w.ctx(), "pg")
		if err != nil {
			t.Fatal(err)
		}
		from := w.Machine(v.Replicas[0].Node.Name)
		w.Script("on " + from.Name + " pg second")

		full, one := streamOf(t, w, from, api.BrowseRequest{Snapshot: "first"})
		if full.Node.Name != from.Name || full.SinceGUID != 0 {
			t.Fatalf("got %+v", full)
		}
		inc, two := streamOf(t, w, from, api.BrowseRequest{Snapshot: "second", Bases: []uint64{7, full.GUID}})
		if inc.SinceGUID != full.GUID || inc.Since != "@first" || len(two) == 0 {
			t.Fatalf("got %+v", inc)
		}
		// By its guid, also when it comes from elsewhere, and never on what comes after it.
		far, again := streamOf(t, w, n1, api.BrowseRequest{GUID: inc.GUID, Bases: []uint64{inc.GUID, full.GUID}})
		if far.GUID != inc.GUID || far.SinceGUID != full.GUID || len(again) != len(two) {
			t.Fatalf("got %+v", far)
		}
		// All copies were asked, and none has what it takes. A copy that cannot be asked may have it.
		without := func(want volume.Code, req api.BrowseRequest) {
			t.Helper()
			req.As = api.AsStream
			if _, err := n1.API().Browse(w.ctx(), "pg", req); volume.CodeOf(err) != want {
				t.Errorf("%+v: %v; want %s", req, err, want)
			}
		}
		without(volume.CodeConflict, api.BrowseRequest{Snapshot: "second", Bases: []uint64{7}})
		without(volume.CodeConflict, api.BrowseRequest{Snapshot: "first", Bases: []uint64{inc.GUID}})
		without(volume.CodeNotFound, api.BrowseRequest{GUID: 7})

		// A name comes back as that of another snapshot.
		w.Script(`
			drop n1 pg first
			write n1 pg a five
			snapshot n1 first pg
			await pg ok`)
		later, three := streamOf(t, w, n1, api.BrowseRequest{Snapshot: "first", Bases: []uint64{inc.GUID}})
		if later.GUID == full.GUID || later.SinceGUID != inc.GUID {
			t.Fatalf("got %+v", later)
		}

		const id = "00000000000000aa"
		begin := api.BeginRestoreRequest{ID: id, Name: "back", GUIDs: []uint64{full.GUID, inc.GUID, later.GUID}, Bytes: int64(len(one) + len(two) + len(three))}
		have := func(want int) {
			t.Helper()
			if s, err := n3.API().BeginRestore(w.ctx(), begin); err != nil || s.Have != want {
				t.Fatalf("have %+v, %v; want %d", s, err, want)
			}
		}
		receive := func(guid, base uint64, r io.Reader) error {
			return n3.API().ReceiveRestore(w.ctx(), id, api.ReceiveRequest{GUID: guid, Base: base}, r)
		}
		finish := func(guid uint64) error {
			_, err := n3.API().FinishRestore(w.ctx(), id, api.FinishRestoreRequest{Name: "back", GUID: guid, Options: map[string]string{"replicas": "1", "snapshots": "none"}})
			return err
		}
		refused := func(code volume.Code, err error) {
			t.Helper()
			if volume.CodeOf(err) != code {
				t.Errorf("%v, want %s", err, code)
			}
		}
		_, err = n3.API().BeginRestore(w.ctx(), api.BeginRestoreRequest{ID: id, Name: "pg", GUIDs: begin.GUIDs})
		refused(volume.CodeConflict, err)
		_, err = n3.API().BeginRestore(w.ctx(), api.BeginRestoreRequest{ID: id, Name: "back", GUIDs: begin.GUIDs, Bytes: 1 << 60})
		refused(volume.CodeRefused, err)
		have(0)
		refused(volume.CodeConflict, finish(inc.GUID))
		refused(volume.CodeConflict, receive(inc.GUID, full.GUID, bytes.NewReader(two)))
		refused(volume.CodeRefused, receive(inc.GUID, 0, bytes.NewReader(one)))
		refused(volume.CodeRefused, receive(inc.GUID, 0, bytes.NewReader(two)))
		refused(volume.CodeRefused, receive(full.GUID, 0, strings.NewReader(strings.Repeat("no stream", 100))))
		refused(volume.CodeInvalid, receive(full.GUID, 0, strings.NewReader("short")))
		refused(volume.CodeUnavailable, receive(full.GUID, 0, bytes.NewReader(one[:len(one)-1])))
		refused(volume.CodeUnavailable, receive(full.GUID, 0, io.MultiReader(bytes.NewReader(one[:len(one)-1]), iotest.ErrReader(errors.New("damaged")))))
		have(0)
		if err := receive(full.GUID, 0, bytes.NewReader(one)); err != nil {
			t.Fatal(err)
		}
		have(1)
		bad := bytes.Clone(two)
		bad[len(bad)-1] ^= 1
		refused(volume.CodeUnavailable, receive(inc.GUID, full.GUID, bytes.NewReader(bad)))
		refused(volume.CodeConflict, receive(full.GUID, 0, bytes.NewReader(one)))
		refused(volume.CodeConflict, finish(inc.GUID))
		have(1)
		if err := receive(inc.GUID, full.GUID, bytes.NewReader(two)); err != nil {
			t.Fatal(err)
		}
		have(2)
		if err := receive(later.GUID, inc.GUID, bytes.NewReader(three)); err != nil {
			t.Fatal(err)
		}
		have(3)
		refused(volume.CodeConflict, finish(inc.GUID))
		if _, err := n3.API().Volume(w.ctx(), "back"); volume.CodeOf(err) != volume.CodeNotFound {
			t.Errorf("a volume before it was made: %v", err)
		}
		w.Script(`
			stop n1 web
			unmounted pg
			remove n2 pg`)
		if err := finish(later.GUID); err != nil {
			t.Fatal(err)
		}
		w.Script(`
			primary back n3
			await back ok
			run n3 look back
			has n3 back a five
			has n3 back b three
			asides n3`)
		if err := n3.API().DropRestore(w.ctx(), id); err != nil {
			t.Error(err)
		}
		w.Script("has n3 back a five")
	})
}

// What is thrown away, or was left for long, is gone, and only that.
func TestRestoreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 1)
		defer w.Close()
		w.Script(`
			cluster
			create n1 pg replicas=0 snapshots=none
			run n1 web pg
			write n1 pg a one
			snapshot n1 first pg`)
		n1 := w.Machine("n1")
		full, one := streamOf(t, w, n1, api.BrowseRequest{Snapshot: "first"})
		begin := func(id string, want int) {
			t.Helper()
			s, err := n1.API().BeginRestore(w.ctx(), api.BeginRestoreRequest{ID: id, Name: "back", GUIDs: []uint64{full.GUID}})
			if err != nil || s.Have != want {
				t.Fatalf("%s: have %+v, %v; want %d", id, s, err, want)
			}
		}
		receive := func(id string) {
			t.Helper()
			begin(id, 0)
			if err := n1.API().ReceiveRestore(w.ctx(), id, api.ReceiveRequest{GUID: full.GUID}, bytes.NewReader(one)); err != nil {
				t.Fatal(err)
			}
			begin(id, 1)
		}
		const a, b = "00000000000000aa", "00000000000000bb"
		receive(a)
		if err := n1.API().DropRestore(w.ctx(), a); err != nil {
			t.Fatal(err)
		}
		begin(a, 0)
		receive(a)
		receive(b)
		begin(a, 1)
		last := map[string]string{"flocker:restore": time.Now().Add(-8 * 24 * time.Hour).UTC().Format(time.RFC3339)}
		if err := n1.ZFS.SetProperties(w.ctx(), Pool+"/flocker-restore/"+a, last); err != nil {
			t.Fatal(err)
		}
		begin(b, 1) // which sweeps
		begin(a, 0)
		w.Script("has n1 pg a one")
	})
}

// What would fail at the end is refused at the beginning, and what goes wrong on the way leaves
// nothing that is in the way of the next try.
func TestRestoreTroubles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 1)
		defer w.Close()
		w.Script(`
			cluster
			create n1 pg replicas=0 snapshots=none
			run n1 web pg
			write n1 pg a one
			snapshot n1 first pg`)
		n1 := w.Machine("n1")
		full, one := streamOf(t, w, n1, api.BrowseRequest{Snapshot: "first"})
		const id, other = "00000000000000aa", "00000000000000bb"
		at := func(id string) string { return Pool + "/flocker-restore/" + id }
		opts := map[string]string{"replicas": "0", "snapshots": "none"}
		begin := func(bytes int64, opts map[string]string) (api.RestoreState, error) {
			return n1.API().BeginRestore(w.ctx(), api.BeginRestoreRequest{ID: id, Name: "back", GUIDs: []uint64{full.GUID}, Bytes: bytes, Options: opts})
		}
		must := func(s api.RestoreState, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		refused := func(code volume.Code, words string, err error) {
			t.Helper()
			if volume.CodeOf(err) != code || !strings.Contains(err.Error(), words) {
				t.Errorf("%v; want %s and %q", err, code, words)
			}
		}
		receive := func(r io.Reader) error {
			return n1.API().ReceiveRestore(w.ctx(), id, api.ReceiveRequest{GUID: full.GUID}, r)
		}
		finish := func(id, name string) (api.Volume, error) {
			return n1.API().FinishRestore(w.ctx(), id, api.FinishRestoreRequest{Name: name, GUID: full.GUID, Options: opts})
		}

		for _, bad := range []map[string]string{{"size": "1Q"}, {"nonsense": "1"}, {"prefer": "nobody"}, {"strict": "true", "replicas": "3"}} {
			if _, err := begin(1, bad); err == nil || volume.CodeOf(err) == "" {
				t.Errorf("%v: %v", bad, err)
			}
		}

		// A pool is not filled to its end, by what was announced or by anybody meanwhile.
		pool, err := n1.ZFS.Pool(w.ctx(), Pool)
		if err != nil {
			t.Fatal(err)
		}
		_, err = begin(pool.Free-pool.Size/100, opts)
		refused(volume.CodeRefused, "are kept free", err)
		must(begin(int64(len(one)), opts))
		r, pipe := io.Pipe()
		got := make(chan error)
		go func() { got <- receive(r) }()
		if _, err := pipe.Write(one[:len(one)-1]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it is being received
		n1.ZFS.SetCapacity(Pool, pool.Alloc+pool.Alloc/100)
		refused(volume.CodeRefused, "before it is full", <-got)
		pipe.Close()
		n1.ZFS.SetCapacity(Pool, pool.Size)

		// What was left without a snapshot goes, unless somebody else has put it there.
		parent := map[string]string{"mountpoint": "none", "canmount": "off"}
		if err := n1.ZFS.CreateFilesystem(w.ctx(), Pool+"/flocker-restore", parent); err != nil && !errors.Is(err, zfs.ErrExists) {
			t.Fatal(err)
		}
		if err := n1.ZFS.CreateFilesystem(w.ctx(), at(id), parent); err != nil {
			t.Fatal(err)
		}
		_, err = begin(1, opts)
		refused(volume.CodeConflict, "is in the way", err)
		if err := n1.ZFS.SetProperties(w.ctx(), at(id), map[string]string{"flocker:restore": time.Now().UTC().Format(time.RFC3339)}); err != nil {
			t.Fatal(err)
		}
		must(begin(1, opts))
		if err := receive(bytes.NewReader(one)); err != nil {
			t.Fatal(err)
		}
		// Also what goes on has to have room.
		n1.ZFS.SetCapacity(Pool, pool.Alloc+pool.Alloc/100)
		_, err = n1.API().BeginRestore(w.ctx(), api.BeginRestoreRequest{ID: id, Name: "back", GUIDs: []uint64{full.GUID, 7}, Bytes: 1 << 30, Options: opts})
		refused(volume.CodeRefused, "are kept free", err)
		n1.ZFS.SetCapacity(Pool, pool.Size)

		// A power cut just before it gets its new name leaves what is known, and goes in the end.
		n1.ZFS.Fail("rename", "flocker-restore", 1, zfsfake.ErrInjected)
		if _, err := finish(id, "back"); err == nil {
			t.Error("it was renamed")
		}
		d, err := n1.ZFS.Dataset(w.ctx(), at(id))
		if err != nil || d.User["flocker:restore"] == "" {
			t.Errorf("%v, %v", d.User, err)
		}
		if err := n1.ZFS.SetProperties(w.ctx(), at(id), map[string]string{"flocker:restore": time.Now().Add(-8 * 24 * time.Hour).UTC().Format(time.RFC3339)}); err != nil {
			t.Fatal(err)
		}
		if _, err := n1.API().BeginRestore(w.ctx(), api.BeginRestoreRequest{ID: other, Name: "another", GUIDs: []uint64{full.GUID}, Options: opts}); err != nil { // which sweeps
			t.Fatal(err)
		}
		if _, err := n1.ZFS.Dataset(w.ctx(), at(id)); !errors.Is(err, zfs.ErrNotFound) {
			t.Errorf("after a week: %v", err)
		}

		must(begin(1, opts))
		if err := receive(bytes.NewReader(one)); err != nil {
			t.Fatal(err)
		}
		made, err := finish(id, "back")
		if err != nil {
			t.Fatal(err)
		}
		if again, err := finish(id, "back"); err != nil || again.ID != made.ID {
			t.Errorf("asked once more, it is %s, %v; it was %s", again.ID, err, made.ID)
		}
		_, err = begin(1, opts)
		refused(volume.CodeConflict, "of this very backup", err)

		// Another one under that name is here when it is refused, and is told how it becomes a volume.
		if err := n1.API().ReceiveRestore(w.ctx(), other, api.ReceiveRequest{GUID: full.GUID}, bytes.NewReader(one)); err != nil {
			t.Fatal(err)
		}
		_, err = finish(other, "back")
		refused(volume.CodeConflict, "back", err)
		var e *volume.Error
		if !errors.As(err, &e) || !strings.Contains(e.Hint, "flockctl aside restore "+other) {
			t.Errorf("%v", err)
		}
		d, err = n1.ZFS.Dataset(w.ctx(), Pool+"/flocker/"+string(made.ID))
		if err != nil || d.User["flocker:restore"] != id {
			t.Errorf("%v, %v", d.User, err)
		}

		// So it is by a flockd that was started since.
		w.Script(`
			quit n1
			flockd n1`)
		w.Await("n1 knows its volumes", func() bool {
			v, err := n1.API().Volume(w.ctx(), "back")
			return err == nil && v.Health == api.HealthOK
		})
		if again, err := finish(id, "back"); err != nil || again.ID != made.ID {
			t.Errorf("asked once more after a restart, it is %s, %v; it was %s", again.ID, err, made.ID)
		}
		_, err = begin(1, opts)
		refused(volume.CodeConflict, "of this very backup", err)
		_, err = n1.API().BeginRestore(w.ctx(), api.BeginRestoreRequest{ID: other, Name: "back", GUIDs: []uint64{full.GUID}, Options: opts})
		refused(volume.CodeConflict, "there is a volume", err)
	})
}
