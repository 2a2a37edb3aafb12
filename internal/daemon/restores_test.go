package daemon

import (
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs"
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
