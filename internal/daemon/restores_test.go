package daemon

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/agent"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// A restore leaves some of the pool free, with all that is to come of others.
func TestRoom(t *testing.T) {
	const gib = 1 << 30
	p := zfs.Pool{Size: 100 * gib, Free: 50 * gib}
	for _, tc := range []struct {
		bytes, others int64
		ok            bool
	}{
		{0, 0, true},
		{45 * gib, 0, true},
		{45*gib + 1, 0, false},
		{25 * gib, 20 * gib, true},
		{25*gib + 1, 20 * gib, false},
	} {
		if err := room(p, tc.bytes, tc.others); (err == nil) != tc.ok || err != nil && volume.CodeOf(err) != volume.CodeRefused {
			t.Errorf("%d and %d others: %v", tc.bytes, tc.others, err)
		}
	}
	if room(zfs.Pool{Size: 100 * gib, Free: 5*gib - 1}, 0, 0) == nil {
		t.Error("there is room below what is kept")
	}
	var r restores
	r.came("a", 5) // of one that this flockd never heard of
	r.expect("a", 10)
	r.expect("b", 20)
	r.take("a")
	r.take("b")
	r.came("b", 5)
	if got := r.others("a"); got != 15 {
		t.Errorf("%d are to come of others, want 15", got)
	}
	r.give("b")
	if got := r.others("a"); got != 0 {
		t.Errorf("%d are to come of who is at it no more", got)
	}
}

// What a stream begins from is before what it is of, also where both are of the same second.
func TestBaseOf(t *testing.T) {
	at := time.Unix(1e9, 0)
	list := []replicate.Snapshot{{Name: "one", GUID: 1, CreateTXG: 10, Taken: at}, {Name: "two", GUID: 2, CreateTXG: 20, Taken: at}, {Name: "three", GUID: 3, CreateTXG: 30, Taken: at}}
	marks := []zfs.Bookmark{{Name: "zero", GUID: 9, CreateTXG: 5, Creation: at}, {Name: "mid", GUID: 8, CreateTXG: 25, Creation: at}, {Name: "two", GUID: 2, CreateTXG: 20, Creation: at}}
	for _, tc := range []struct {
		bases []uint64
		want  string
	}{
		{[]uint64{1}, "@one"},
		{[]uint64{9, 1}, "#zero"},
		{[]uint64{8, 1}, "@one"}, // the bookmark is of what came later
		{[]uint64{8}, ""},
		{[]uint64{2}, ""},
		{[]uint64{3, 7}, ""},
		{nil, ""},
	} {
		if got, _ := baseOf(list, marks, list[1], tc.bases); got != tc.want {
			t.Errorf("of %d: %q, want %q", tc.bases, got, tc.want)
		}
	}
}

// What was left by a restore goes in time, also where nothing is restored any more, and only that.
func TestRestoresSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := zfsfake.New(zfsfake.Options{Seed: 1, Pool: "tank"})
		m := &member{zfs: z, layout: agent.Layout{Pool: "tank"}, log: slog.New(slog.DiscardHandler), now: time.Now}
		at := func(d time.Duration) map[string]string {
			return map[string]string{propRestore: time.Now().Add(d).UTC().Format(time.RFC3339)}
		}
		for name, props := range map[string]map[string]string{"": nil, "/old": at(-restoreKeep), "/new": at(0), "/another": nil} {
			if err := z.CreateFilesystem(t.Context(), m.layout.Restores(), nil); err != nil && !errors.Is(err, zfs.ErrExists) {
				t.Fatal(err)
			}
			if name != "" {
				if err := z.CreateFilesystem(t.Context(), m.layout.Restores()+name, props); err != nil {
					t.Fatal(err)
				}
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		var swept sync.WaitGroup
		swept.Go(func() {
			if err := m.sweepRestoresLater(ctx); err != nil {
				t.Error(err)
			}
		})
		left := func(want ...string) {
			t.Helper()
			list, err := z.Datasets(t.Context(), m.layout.Restores())
			var got []string
			for _, d := range list {
				if name, ok := strings.CutPrefix(d.Name, m.layout.Restores()+"/"); ok {
					got = append(got, name)
				}
			}
			slices.Sort(got)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("left are %q, %v, want %q", got, err, want)
			}
		}
		left("another", "new", "old")
		time.Sleep(restoreSweep + time.Minute)
		left("another", "new")
		time.Sleep(restoreKeep)
		left("another")
		stop()
		swept.Wait()
	})
}
