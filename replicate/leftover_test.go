package replicate

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// A seed that is begun while the datasets are being listed is not forgotten by that
// listing, but by the next.
func TestSeedBegunDuringListing(t *testing.T) {
	e := New(Config{Node: "a", Root: "tank/flocker"})
	since := e.changes
	e.leaves(testVol)
	e.noteDatasets(nil, since, time.Now())
	if !e.leftover[testVol] {
		t.Error("the seed is forgotten")
	}
	e.noteDatasets(nil, e.changes, time.Now())
	if e.leftover[testVol] || len(e.begun) > 0 {
		t.Error("what no listing shows is remembered for ever")
	}
}

// Where the last listing had nothing of a volume, that there is no copy costs two small
// commands; where it had, or is old, or the pool may be gone, that is not taken for granted.
func TestNoCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := newBusy(t, 2)
		here, never := b.ids[0], volume.ID("00000000000000ff")
		if err := b.engine.tick(ctx); err != nil {
			t.Fatal(err)
		}
		look := func(what string, id volume.ID, listings int, want error) {
			t.Helper()
			b.commands()
			s, err := b.engine.look(ctx, id, false)
			if s.exists || !errors.Is(err, want) {
				t.Errorf("%s: exists %v, %v; want %v", what, s.exists, err, want)
			}
			if got := b.commands()["datasets"]; got != listings {
				t.Errorf("%s: %d listings, want %d", what, got, listings)
			}
		}
		look("never there", never, 0, nil)
		if err := b.host.Destroy(ctx, b.engine.cfg.dataset(here)); err != nil {
			t.Fatal(err)
		}
		look("there before", here, 1, nil)
		look("no more", here, 0, nil)

		// It comes back by another's hand, and zfs does not find it by its name.
		if err := b.host.CreateFilesystem(ctx, b.engine.cfg.dataset(here), nil); err != nil {
			t.Fatal(err)
		}
		if err := b.engine.survey(ctx); err != nil {
			t.Fatal(err)
		}
		hidden := b.host.Fail("dataset", b.engine.cfg.dataset(here), 0, &zfs.Error{Op: "dataset", Kind: zfs.ErrNotFound})
		for range 2 {
			b.commands()
			if _, err := b.engine.look(ctx, here, false); err == nil || b.commands()["datasets"] != 1 {
				t.Errorf("a copy that zfs lists and does not find: %v, want an error by a listing", err)
			}
		}
		hidden()

		time.Sleep(2*maxTick + time.Second)
		look("never there, by a listing of long ago", never, 1, nil)
		if err := b.engine.tick(ctx); err != nil {
			t.Fatal(err)
		}
		gone := b.host.Fail("dataset", "", 0, &zfs.Error{Op: "dataset", Kind: zfs.ErrNotFound})
		defer gone()
		look("the pool is gone", never, 0, zfs.ErrNotFound)
	})
}

// Where a listing takes longer than two ticks, what it told is believed until the next one but one: looks of their own
// for all volumes in between would make listings take longer yet.
func TestListingsThatTakeLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := newBusy(t, 2)
		here, never := b.ids[0], volume.ID("00000000000000ff")
		remembered := func(what string, want bool) {
			t.Helper()
			b.commands()
			if _, ok := b.engine.remembered(here, time.Now()); ok != want {
				t.Errorf("%s: a copy is remembered: %v", what, ok)
			}
			listings := 1
			if want {
				listings = 0
			}
			if _, err := b.engine.look(ctx, never, false); err != nil || b.commands()["datasets"] != listings {
				t.Errorf("%s: that there is no copy is not found out by %d listings, %v", what, listings, err)
			}
		}
		if err := b.engine.tick(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2*maxTick + time.Second)
		remembered("a quick listing of 31 s ago", false)

		const takes = 40 * time.Second
		quick := b.host.Slow("datasets", testRoot, takes)
		if err := b.engine.tick(ctx); err != nil {
			t.Fatal(err)
		}
		quick()
		time.Sleep(time.Minute) // the next one begins; this one was asked for 40 s earlier
		remembered("as the next listing begins", true)
		time.Sleep(takes)
		remembered("as it ends", true)
		time.Sleep(time.Minute + time.Second)
		remembered("when two should have ended", false)
	})
}

// After the loss of a node each of its volumes is promised: that costs no listing of all of them each time, unless
// it is not known what there is.
func TestPromiseListsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := newBusy(t, 3)
		b.round(t, 1)
		promise := func(what string, id volume.ID, listings int) {
			t.Helper()
			b.commands()
			p, err := b.engine.Promise(ctx, id, 2, volume.Line{})
			if err != nil || !p.Exists || p.Newest.Seq != 1 {
				t.Errorf("%s: %+v, %v", what, p, err)
			}
			if got := b.commands()["datasets"]; got != listings {
				t.Errorf("%s: %d listings, want %d", what, got, listings)
			}
		}
		promise("as ever", b.ids[0], 0)
		time.Sleep(time.Hour)
		promise("an hour after the last listing", b.ids[1], 0)
		b.host.Fail("datasets", testRoot, 1, zfsfake.ErrInjected)
		if err := b.engine.tick(ctx); err == nil {
			t.Fatal("the pool could be asked")
		}
		promise("where the last listing failed", b.ids[2], 1)
		b.engine.mu.Lock()
		b.engine.leaves(b.ids[0])
		b.engine.mu.Unlock()
		promise("where there may be a seed", b.ids[0], 1)
	})
}

// Clients wait for SettledCopy, and so it asks little; what a set-aside that was cut short or a first copy
// left beside the copy is brought to its end before it answers all the same.
func TestSettledCopyBesideLeftovers(t *testing.T) {
	for name, leave := range map[string]func(ctx context.Context, b *busy, ds, snap string) (left string, err error){
		"nothing": func(context.Context, *busy, string, string) (string, error) { return "", nil },
		"a fork": func(ctx context.Context, b *busy, ds, snap string) (string, error) {
			left := b.engine.cfg.fork(b.ids[0])
			return left, b.host.Clone(ctx, ds+"@"+snap, left, nil)
		},
		"a seed of an older epoch": func(ctx context.Context, b *busy, _, _ string) (string, error) {
			left := b.engine.cfg.seed(b.ids[0], 1)
			return left, errors.Join(b.host.CreateFilesystem(ctx, left, nil), b.host.Snapshot(ctx, []string{left + "@" + volume.Position{Epoch: 1, Seq: 1}.SnapshotName()}, nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				b := newBusy(t, 1)
				b.round(t, 1)
				id := b.ids[0]
				ds := b.engine.cfg.dataset(id)
				snaps, err := b.host.Snapshots(ctx, ds, false)
				if err != nil || len(snaps) == 0 {
					t.Fatal(snaps, err)
				}
				want := snaps[len(snaps)-1]
				if err := b.host.Unmount(ctx, ds); err != nil {
					t.Fatal(err)
				}
				left, err := leave(ctx, b, ds, want.Name)
				if err != nil {
					t.Fatal(err)
				}
				// It is listed, and could not be brought to its end.
				busy := b.host.Fail("dataset", ds, 0, zfs.ErrBusy)
				err = b.engine.survey(ctx)
				busy()
				if err != nil {
					t.Fatal(err)
				}

				b.commands()
				d, guids, err := b.engine.SettledCopy(ctx, id, volume.Position{GUID: want.GUID})
				if err != nil || d.Name != ds || !guids[want.GUID] {
					t.Fatalf("the copy is %+v with %v, %v; want it with %d", d, guids, err, want.GUID)
				}
				if got := b.commands(); (got["datasets"] > 0) != (left != "") {
					t.Errorf("it took %v", got)
				}
				if left == "" {
					return
				}
				if d, err := b.host.Dataset(ctx, left); !errors.Is(err, zfs.ErrNotFound) {
					t.Errorf("beside the copy there is still %+v, %v", d, err)
				}
			})
		})
	}
}
