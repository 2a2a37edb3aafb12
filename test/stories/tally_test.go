package stories

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// tally is a container that appends 1, 2, 3, ... to files on volumes, line by line,
// and says each number when all files have it on disk. So a copy is right when its
// file is 1 to some k, and holds all that was said before its snapshot.
type tally struct {
	counter
	c    cluster
	node *lab.Node
	run  *lab.Follower
}

const tallyScript = `i=0
while i=$((i+1)); do
	for dir in /tally/*; do echo $i | dd of=$dir/tally oflag=append conv=notrunc,fsync 2>/dev/null || exit 1; done
	echo $i
	%s
done`

// tally begins to count on volumes of a node. pause is a command between two
// numbers, such as "usleep 100000".
func (c cluster) tally(n *lab.Node, pause string, volumes ...string) *tally {
	c.Helper()
	var mounts strings.Builder
	for _, v := range volumes {
		fmt.Fprintf(&mounts, "--mount type=volume,volume-driver=flocker,src=%[1]s,dst=/tally/%[1]s ", v)
	}
	t := &tally{c: c, node: n}
	t.run = n.Follow(fmt.Sprintf("exec docker run --rm --name tally %s %s sh -c %s 2>&1",
		mounts.String(), busyboxImage, lab.Quote(fmt.Sprintf(tallyScript, pause))), t.line)
	t.wait(c, 1)
	return t
}

// pause stops the container where it is, resume lets it go on.
func (t *tally) pause()  { t.c.Helper(); t.node.Docker("pause", "tally") }
func (t *tally) resume() { t.c.Helper(); t.node.Docker("unpause", "tally") }

// stop ends it; last is then what was said.
func (t *tally) stop() {
	t.c.Helper()
	t.node.Docker("rm", "-f", "tally")
	t.run.Wait()
}

// tallied reads how far the file on a snapshot has got. A gap in it is an error.
func tallied(n *lab.Node, dataset, snapshot string) (int64, error) {
	out, err := n.Try(fmt.Sprintf(`set -e
dir=$(mktemp -d)
mount -t zfs %s@%s $dir
trap 'umount $dir; rmdir $dir' EXIT
awk '$0 != NR { print "line " NR " is " $0; bad = 1; exit } END { if (!bad) print NR }' $dir/data/tally`, dataset, snapshot))
	if err != nil {
		return 0, err
	}
	k, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %s@%s does not count: %s", n, dataset, snapshot, out)
	}
	return k, nil
}

// checkTally compares what all nodes hold: one count, at least what was said.
func (t *tally) checkTally(v api.Volume, nodes ...*lab.Node) {
	t.c.Helper()
	least := t.last()
	var all []int64
	for _, n := range nodes {
		newest, _, err := newestSeq(n, copyOf(v))
		if err != nil {
			t.c.Fatal(err)
		}
		k, err := tallied(n, copyOf(v), newest)
		if err != nil {
			t.c.Fatal(err)
		}
		all = append(all, k)
	}
	for i, k := range all {
		if k != all[0] || k < least || k > least+1 {
			t.c.Fatalf("%s: %s counts to %d, want %d as on %s and as was said (%d)", v.Name, nodes[i], k, all[0], nodes[0], least)
		}
	}
	t.c.Logf("    %s counts to %d on %d nodes; %d was said", v.Name, all[0], len(nodes), least)
}
