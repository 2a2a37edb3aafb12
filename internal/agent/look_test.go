package agent

import (
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// A look without a reason is content with what others have listed since the last look;
// a look with one, or when nobody has, reads the disk.
func TestLookAtListings(t *testing.T) {
	a, host, _, _ := quiet(t)
	var list []zfs.Dataset
	var began time.Time
	a.listed = func() ([]zfs.Dataset, time.Time) { return list, began }
	look := func(what string, fresh bool, commands int, want volume.ID) {
		t.Helper()
		host.ResetCommands()
		got, err := a.observe(t.Context(), fresh)
		must(t, err)
		a.trashAt = time.Now() // it is listed by other rules
		if _, ok := got.Copies[want]; len(got.Copies) != 1 || !ok {
			t.Errorf("%s: saw %v, want %s", what, got.Copies, want)
		}
		if n := host.Commands()["datasets"]; n != commands {
			t.Errorf("%s: %d listings, want %d", what, n, commands)
		}
	}
	must(t, host.CreateFilesystem(t.Context(), "tank/flocker/"+string(vol1), nil))
	a.trashAt = time.Now()
	look("nobody lists", false, 1, vol1)

	list, began = []zfs.Dataset{{Name: "tank/flocker/" + string(vol2), GUID: 1}}, a.lookedAt.Add(-time.Second)
	look("a listing of before the last look", false, 1, vol1)
	began = time.Now()
	look("a newer one", false, 0, vol2)
	look("the same again", false, 1, vol1)
	began = time.Now()
	look("a newer one, with a reason", true, 1, vol1)
}
