package stories

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/test/lab"
)

// copyOf is a volume's dataset on the nodes of the lab.
func copyOf(v api.Volume) string { return "tank/flocker/" + string(v.ID) }

// snapshots of a dataset, oldest first: name to guid and the order of names.
func snapshots(n *lab.Node, dataset string) (order []string, guids map[string]string, err error) {
	out, err := n.Try("zfs list -H -d 1 -t snapshot -o name,guid -s createtxg " + dataset)
	if err != nil {
		return nil, nil, err
	}
	guids = map[string]string{}
	for line := range strings.Lines(out) {
		full, guid, _ := strings.Cut(strings.TrimSpace(line), "\t")
		_, name, _ := strings.Cut(full, "@")
		order = append(order, name)
		guids[name] = guid
	}
	return order, guids, nil
}

// newestSeq is the sequence of the newest engine snapshot of a copy, 0 for none.
func newestSeq(n *lab.Node, dataset string) (name string, seq uint64, err error) {
	order, _, err := snapshots(n, dataset)
	for _, s := range slices.Backward(order) {
		if _, seq, ok := volume.ParseSnapshotName(s); ok {
			return s, seq, nil
		}
	}
	return "", 0, err
}

// identity of a copy: it stays as long as the dataset is only added to, and changes
// when it is received anew.
func identity(n *lab.Node, dataset string) string {
	return strings.Join(n.Lines("zfs get -H -p -o value guid,createtxg "+dataset), "/")
}

// content of a snapshot: a checksum over all names, owners, times and bytes.
func content(n *lab.Node, dataset, snapshot string) (string, error) {
	dir := "/mnt/check-" + strconv.Itoa(rand.IntN(1e9))
	out, err := n.Try(fmt.Sprintf(`set -e
mkdir -p %[1]s
mount -t zfs %[2]s@%[3]s %[1]s
trap 'umount %[1]s; rmdir %[1]s' EXIT
tar -C %[1]s --sort=name --numeric-owner -cf - . | sha256sum | cut -d' ' -f1`, dir, dataset, snapshot))
	return strings.TrimSpace(out), err
}

// checkEqual compares all copies of a volume byte by byte, at the newest snapshot
// that all of them have.
func (c cluster) checkEqual(v api.Volume) {
	c.Helper()
	nodes, dataset := c.Nodes(), copyOf(v)
	c.Until("a snapshot of "+v.Name+" that can be read on all nodes", later, func() error {
		var common map[string]string
		var order []string
		for _, n := range nodes {
			names, guids, err := snapshots(n, dataset)
			if err != nil {
				return err
			}
			if common == nil {
				common, order = guids, names
				continue
			}
			maps.DeleteFunc(common, func(name, guid string) bool { return guids[name] != guid })
		}
		order = slices.DeleteFunc(order, func(name string) bool { return common[name] == "" })
		if len(order) == 0 {
			return fmt.Errorf("no snapshot with one guid on all nodes")
		}
		newest := order[len(order)-1]
		sums := make([]string, len(nodes))
		if err := lab.Parallel(len(nodes), func(i int) (err error) {
			sums[i], err = content(nodes[i], dataset, newest)
			return err
		}); err != nil {
			return err // pruned in between, perhaps
		}
		if slices.Sort(sums); sums[0] != sums[len(sums)-1] {
			c.Fatalf("volume %s: snapshot %s has one guid and different content: %v", v.Name, newest, sums)
		}
		c.Logf("    %s@%s is equal on %d nodes: sha256 %.16s", v.Name, newest, len(nodes), sums[0])
		return nil
	})
}

// waitSnapshotAfter waits until a replica holds a snapshot that the primary took
// after this call, and returns how long that took.
func (c cluster) waitSnapshotAfter(v api.Volume, primary, replica *lab.Node) time.Duration {
	c.Helper()
	_, now, err := newestSeq(primary, copyOf(v))
	if err != nil {
		c.Fatal(err)
	}
	// The one after `now` may have begun before this call; the next has not.
	return c.Until(fmt.Sprintf("snapshot %d of %s on %s", now+1, v.Name, replica), later, func() error {
		_, got, err := newestSeq(replica, copyOf(v))
		if err == nil && got < now+1 {
			err = fmt.Errorf("%d is its newest", got)
		}
		return err
	})
}
