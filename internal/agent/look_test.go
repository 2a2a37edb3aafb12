package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// A look without a reason is content with what others have listed since the last look, and
// with the last listing itself for as long as listings take little of the time; a look with
// one, or after this node has changed something, reads the disk.
func TestLookAtListings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, host, _, _ := quiet(t)
		var list []zfs.Dataset
		var began time.Time
		a.listed = func() ([]zfs.Dataset, time.Time) { return list, began }
		look := func(what string, after time.Duration, fresh bool, commands int, want volume.ID) {
			t.Helper()
			time.Sleep(after)
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
		time.Sleep(time.Second)
		look("nobody lists", 0, false, 1, vol1)

		list, began = []zfs.Dataset{{Name: "tank/flocker/" + string(vol2), GUID: 1}}, a.lookedAt.Add(-time.Second)
		look("a listing of before the last look", a.poll, false, 1, vol1)
		look("soon after", a.poll-time.Second, false, 0, vol1)
		began = time.Now()
		look("a newer one", 0, false, 0, vol2)
		look("the same again", time.Second, false, 0, vol2)
		look("the same, too old", a.poll, false, 1, vol1)
		began = time.Now()
		look("a newer one, with a reason", 0, true, 1, vol1)

		time.Sleep(time.Second)
		a.changing(vol1)()
		look("this node has done something", time.Second, false, 1, vol1)
		look("and nothing since", time.Second, false, 0, vol1)

		slow := host.Slow("datasets", "", 3*time.Second)
		look("a listing takes long", a.poll, false, 1, vol1)
		slow()
		look("so it does for longer", 20*time.Second, false, 0, vol1)
		look("but not for ever", 5*time.Second, false, 1, vol1)
	})
}
