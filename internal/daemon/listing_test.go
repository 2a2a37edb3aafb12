package daemon

import (
	"testing"
	"time"

	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// The agent gets the newest listing that did not fail, with the time it began.
func TestListings(t *testing.T) {
	host := zfsfake.New(zfsfake.Options{Seed: 1, Pool: "tank"})
	l := &listings{Pool: host, root: "tank/flocker"}
	list := func(root string, want int) (before time.Time) {
		t.Helper()
		before = time.Now()
		got, err := l.Datasets(t.Context(), root)
		if want < 0 && err == nil || want >= 0 && (err != nil || len(got) != want) {
			t.Fatalf("%s: %v, %v", root, got, err)
		}
		return before
	}
	if got, began := l.newest(); got != nil || !began.IsZero() {
		t.Errorf("before any: %v, %v", got, began)
	}
	list("tank", 1)
	list("tank/flocker", -1)
	if got, began := l.newest(); got != nil || !began.IsZero() {
		t.Errorf("of others, or failed: %v, %v", got, began)
	}
	if err := host.CreateFilesystem(t.Context(), "tank/flocker", nil); err != nil {
		t.Fatal(err)
	}
	before := list("tank/flocker", 1)
	got, began := l.newest()
	if len(got) != 1 || began.Before(before) || began.After(time.Now()) {
		t.Errorf("listed: %v, %v", got, began)
	}
	host.Fail("datasets", "tank/flocker", 1, zfsfake.ErrInjected)
	list("tank/flocker", -1)
	if again, at := l.newest(); len(again) != 1 || !at.Equal(began) {
		t.Errorf("after one that failed: %v, %v", again, at)
	}
}
