package bench

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// A thousand snapshots listed, beside one zfs list of the same with the same columns. They are taken as anybody takes
// one, through flockd, each with something written since the one before; all of them have to be in the list, and on the replica.
func TestSnapshots(t *testing.T) {
	b := start(t, 2)
	count := setting("BENCH_SNAPSHOTS", 1000)
	dataset, dir := b.volume("shots", "--interval", "1h")

	var names []string
	for i := range count {
		names = append(names, fmt.Sprintf("s%04d", i+1))
	}
	b.timed(fmt.Sprintf(`for i in $(seq -f %%04g %d); do
		echo $i >>%s/file
		curl --silent --show-error --fail --unix-socket /run/flocker/flockd.sock -d '{"volumes":["shots"],"name":"s'$i'"}' http://flockd/v1/snapshots
	done`, count, dir))
	b.n1.Flockctl("volume", "sync", "--timeout", "30m", "shots") // a thousand streams, where machines are emulated
	if there := b.n2.Lines("zfs list -H -d 1 -t snapshot -o name -s createtxg " + dataset); !holdsAll(there, dataset+"@", names) {
		t.Fatalf("the replica has %d snapshots, and not all of %d", len(there), count)
	}

	var byHand, listed []float64
	for range setting("BENCH_ROUNDS", 3) {
		byHand = append(byHand, b.timed("zfs list -H -p -d 1 -t snapshot -o name,guid,creation,used,referenced,written "+dataset))
		listed = append(listed, b.timed("flockctl snapshot list shots"))
		if there := b.n1.Lines("flockctl snapshot list -q shots"); !slices.Equal(there, prefixed("shots@", names)) {
			t.Fatalf("%d of %d snapshots are listed", len(there), count)
		}
	}
	alone := b.timed("flockctl version -q")
	b.row(fmt.Sprintf("%d snapshots of a volume listed", count), fmt.Sprintf("%.2f s, of which starting flockctl takes %.2f s; `zfs list` of them %.2f s (%.2f)",
		median(listed), alone, median(byHand), median(listed)/median(byHand)), "", "", "")
}

func prefixed(prefix string, names []string) (out []string) {
	for _, name := range names {
		out = append(out, prefix+name)
	}
	return out
}

// holdsAll tells whether a listing has all of these names, whatever else it has.
func holdsAll(list []string, prefix string, names []string) bool {
	there := map[string]bool{}
	for _, line := range list {
		there[strings.TrimPrefix(line, prefix)] = true
	}
	return !slices.ContainsFunc(names, func(name string) bool { return !there[name] })
}
