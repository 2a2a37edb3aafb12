package stories

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// createOn makes a volume by Docker, as a user does.
func createOn(n *lab.Node, name string, options ...string) (string, error) {
	args := []string{"volume", "create", "-d", "flocker"}
	for _, o := range options {
		args = append(args, "-o", o)
	}
	return n.TryDocker(append(args, name)...)
}

// waitList waits until flockctl and Docker on every node list exactly these volumes.
func (c cluster) waitList(want ...string) {
	c.Helper()
	slices.Sort(want)
	c.Until(fmt.Sprintf("every node to list %d volumes", len(want)), later, func() error {
		for _, n := range c.Nodes() {
			vs, err := n.Volumes()
			if err != nil {
				return err
			}
			var got []string
			for _, v := range vs {
				got = append(got, v.Name)
			}
			slices.Sort(got)
			byDocker, err := n.DockerVolumes()
			if err != nil {
				return err
			}
			slices.Sort(byDocker)
			if !slices.Equal(got, want) || !slices.Equal(byDocker, want) {
				return fmt.Errorf("%s: flockctl lists %v, docker %v, want %v", n, got, byDocker, want)
			}
		}
		return nil
	})
}

// Each node makes a volume, the next one inspects it, the one after removes it.
func TestVolumesFromEveryNode(t *testing.T) {
	c := start(t)
	nodes := c.Nodes()
	var names []string
	c.Step("every node makes one", func() {
		for i, n := range nodes {
			name := "made-on-" + n.Name
			names = append(names, name)
			if _, err := createOn(n, name, "replicas=2", "size=100M"); err != nil {
				t.Fatal(err)
			}
			v, _ := c.waitVolume(nodes[(i+1)%3], name, "ok", healthy)
			if v.Primary.Name != n.Name {
				t.Errorf("%s was made on %s, its primary is %s", name, n, v.Primary)
			}
			// A prefix of the ID is as good as the name.
			if byID, err := nodes[(i+2)%3].Volume(string(v.ID)[:8]); err != nil || byID.ID != v.ID {
				t.Errorf("inspect by %.8s: %v, %v", v.ID, byID.Name, err)
			}
		}
		c.waitList(names...)
	})
	c.Step("another node removes each, by docker or flockctl", func() {
		nodes[2].Docker("volume", "rm", names[0])
		nodes[0].Flockctl("volume", "rm", "--yes", names[1])
		nodes[1].Flockctl("rm", "--yes", names[2])
		c.waitList()
	})
	c.Step("all of them are in the trash, and come back", func() {
		trash, err := lab.Ask[[]api.Volume](c.n1, "volume", "list", "--trash")
		if err != nil || len(trash) != 3 {
			t.Fatalf("trash: %d volumes, %v", len(trash), err)
		}
		for i, name := range names {
			nodes[i].Flockctl("volume", "undelete", name)
		}
		c.waitList(names...)
		for _, name := range names {
			c.waitVolume(c.n1, name, "ok", healthy)
		}
	})
}

// A name is one volume: the same options give the one that is there, others a
// conflict.
func TestSameName(t *testing.T) {
	c := start(t)
	c.n1.Flockctl("volume", "create", "--size", "100M", "--replicas", "2", "twice")
	first, _ := c.waitVolume(c.n2, "twice", "ok", healthy)

	c.n2.Flockctl("volume", "create", "--size", "102400k", "--replicas", "2", "twice")
	if again, err := c.n2.Volume("twice"); err != nil || again.ID != first.ID || again.Epoch != first.Epoch {
		t.Errorf("made again with the same options: %v, %v; want ID %s", again.ID, err, first.ID)
	}
	c.refuse("the same name with another size", func() (string, error) {
		return c.n3.TryFlockctl("volume", "create", "--size", "200M", "--replicas", "2", "twice")
	}, "exit code 4", "twice", "exists")
	if now, err := c.n3.Volume("twice"); err != nil || now.ID != first.ID || now.Spec.Size != 100<<20 {
		t.Errorf("after the conflict: %+v, %v", now.Spec, err)
	}
	// Docker asks whether the name is there before it makes one, and then takes that.
	if _, err := createOn(c.n3, "twice", "size=200M"); err != nil {
		t.Errorf("docker volume create of a name that is there: %v", err)
	}
	c.waitList("twice")
}

// Ten volumes from each node at once, and one name from all of them.
func TestThirtyAtOnce(t *testing.T) {
	c := start(t)
	nodes := c.Nodes()
	want := []string{"of-all"}
	c.Step("31 names from three nodes at once", func() {
		err := lab.Parallel(len(nodes), func(i int) error {
			_, err := nodes[i].Try(fmt.Sprintf(`pids=
for i in $(seq 10); do docker volume create -d flocker -o size=50M -o replicas=1 v-%[1]s-$i >/dev/null & pids="$pids $!"; done
docker volume create -d flocker -o size=50M -o replicas=1 of-all >/dev/null & pids="$pids $!"
for pid in $pids; do wait $pid || exit; done`, nodes[i].Name))
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	for _, n := range nodes {
		for i := range 10 {
			want = append(want, fmt.Sprintf("v-%s-%d", n.Name, i+1))
		}
	}
	c.waitList(want...)
	c.Step("every node tells the same of them, and all become ok", func() {
		c.Until("31 healthy volumes, the same ones on every node", later, func() error {
			seen := map[string]string{}
			for _, n := range nodes {
				vs, err := n.Volumes()
				if err != nil {
					return err
				}
				for _, v := range vs {
					if err := healthy(v); err != nil {
						return fmt.Errorf("%s: %s: %w", n, v.Name, err)
					}
					is := fmt.Sprint(v.ID, v.Primary.Name, v.Epoch)
					if seen[v.Name] != "" && seen[v.Name] != is {
						return fmt.Errorf("%s is %s on one node and %s on %s", v.Name, seen[v.Name], is, n)
					}
					seen[v.Name] = is
				}
			}
			return nil
		})
	})
	c.Step("there is one dataset for each copy, no more", func() {
		total := 0
		for _, n := range nodes {
			count, err := strconv.Atoi(n.Sh("zfs list -H -d 1 -o name tank/flocker | tail -n +2 | wc -l"))
			if err != nil {
				t.Fatal(err)
			}
			total += count
		}
		if total != 2*len(want) {
			t.Errorf("%d datasets, want %d", total, 2*len(want))
		}
	})
}

func TestNames(t *testing.T) {
	c := start(t)
	long := strings.Repeat("x", 255)
	c.Step("names of 1 and 255 characters", func() {
		for _, name := range []string{"a", long, "A.b_c-9"} {
			if _, err := createOn(c.n1, name, "replicas=1"); err != nil {
				t.Error(err)
			}
			c.n2.Sh("docker run --rm --mount type=volume,volume-driver=flocker,src=" + name + ",dst=/d " + busyboxImage + " sh -c 'echo hello >/d/file && cat /d/file'")
		}
		c.waitList("a", long, "A.b_c-9")
	})
	c.Step("names that are refused with a reason", func() {
		for _, test := range []struct{ name, reason string }{
			{long + "x", "256"},
			{"-dash", "'-'"},
			{".hidden", "'.'"},
			{"a b", "' '"},
			{"a/b", "/"},
			{"ä", "'ä'"},
			{"tab\there", `'\t'`},
			{"x@y", "'@'"},
		} {
			// The -- ends Docker's own options.
			c.refuse("docker: "+test.name[:min(len(test.name), 20)], func() (string, error) {
				return c.n1.TryDocker("volume", "create", "-d", "flocker", "--", test.name)
			}, test.reason)
			c.refuse("flockctl: "+test.name[:min(len(test.name), 20)], func() (string, error) {
				return c.n2.TryFlockctl("volume", "create", "--", test.name)
			}, "exit code 2", test.reason)
		}
		c.waitList("a", long, "A.b_c-9")
	})
}

func TestBadOptions(t *testing.T) {
	c := start(t)
	for _, test := range []struct {
		option string
		words  []string
	}{
		{"size=banana", []string{"size", "banana"}},
		{"size=-1G", []string{"size"}},
		{"size=1X", []string{"size"}},
		{"size=0", []string{"size"}},
		{"size=99999999999999999999G", []string{"size"}},
		{"size=", []string{"size"}},
		{"Size=1G", []string{"Size", "size"}},
		{"replicas=-1", []string{"replicas"}},
		{"replicas=two", []string{"replicas", "two"}},
		{"replicas=1000", []string{"replicas"}},
		{"interval=1ns", []string{"interval"}},
		{"interval=soon", []string{"interval", "soon"}},
		{"failover=maybe", []string{"failover", "auto"}},
		{"profile=fastest", []string{"profile", "database"}},
		{"zfs.mountpoint=/etc", []string{"mountpoint"}},
		{"zfs.readonly=off", []string{"readonly"}},
		{"zfs.recordsize=3", []string{"recordsize"}},
		{"uid=root", []string{"uid"}},
		{"mode=999", []string{"mode"}},
		{"strict=perhaps", []string{"strict"}},
		{"colour=green", []string{"colour", "size", "replicas"}},
	} {
		c.refuse(test.option, func() (string, error) { return createOn(c.n1, "bad", test.option) }, test.words...)
	}
	c.refuse("strict with too few nodes", func() (string, error) { return createOn(c.n2, "bad", "strict=true", "replicas=5") }, "replica")
	c.waitList()
	for _, n := range c.Nodes() {
		if left := n.Sh("zfs list -H -d 1 -o name tank/flocker 2>/dev/null | tail -n +2"); left != "" {
			t.Errorf("datasets on %s: %s", n, left)
		}
	}
}

// With fewer nodes than copies asked for, a volume is made and called degraded.
func TestTooFewNodes(t *testing.T) {
	c := start(t)
	if _, err := createOn(c.n1, "wide", "replicas=4"); err != nil {
		t.Fatal(err)
	}
	c.waitVolume(c.n2, "wide", "degraded with two replicas that follow", func(v api.Volume) error {
		if v.Health != api.HealthDegraded || !strings.Contains(v.Reason, "2 of 4") || len(v.Replicas) != 2 {
			return fmt.Errorf("%s: %s, %v", v.Health, v.Reason, states(v))
		}
		return nil
	})
}

// A volume ends at its size, with ENOSPC, and what was written before is everywhere.
func TestSizeReached(t *testing.T) {
	c := start(t)
	const size = 64 << 20
	if _, err := createOn(c.n1, "small", "size=64M", "replicas=2", "zfs.compression=off"); err != nil {
		t.Fatal(err)
	}
	c.checkFull(c.n1, "small", size)
	v, _ := c.waitVolume(c.n1, "small", "ok", healthy)
	c.waitQuiet(v, c.n1)
	c.checkEqual(v)
}

// checkFull fills an empty volume: it ends at its size with ENOSPC.
func (c cluster) checkFull(n *lab.Node, name string, size int64) {
	c.Helper()
	out, err := n.Try("docker run --rm --mount type=volume,volume-driver=flocker,src=" + name + ",dst=/d " + busyboxImage +
		fmt.Sprintf(" sh -c 'dd if=/dev/urandom of=/d/fill bs=64k count=%d 2>&1; sync; wc -c </d/fill'", 4*size>>16))
	if err != nil {
		c.Fatal(err)
	}
	if !strings.Contains(out, "No space left") && !strings.Contains(out, "quota") {
		c.Errorf("dd was not stopped for want of space: %s", out)
	}
	words := strings.Fields(out)
	got, err := strconv.ParseInt(words[len(words)-1], 10, 64)
	if err != nil || got < size*95/100 || got > size*101/100 {
		c.Errorf("%d bytes fit into a volume of %d (%v)", got, size, err)
	}
	c.Logf("    %d bytes fit into a volume of %d", got, size)
}

// waitQuiet waits until the replicas hold everything that the primary holds.
func (c cluster) waitQuiet(v api.Volume, primary *lab.Node) {
	c.Helper()
	c.Until("nothing of "+v.Name+" that is not on all nodes", later, func() error {
		newest, seq, err := newestSeq(primary, copyOf(v))
		if err != nil {
			return err
		}
		if written := primary.Sh("zfs get -H -p -o value written " + copyOf(v)); written != "0" {
			return fmt.Errorf("%s bytes were written after %s", written, newest)
		}
		for _, n := range c.Nodes() {
			_, got, err := newestSeq(n, copyOf(v))
			if err != nil {
				return err
			}
			if got != seq {
				return fmt.Errorf("%s holds %d, the primary %d", n, got, seq)
			}
		}
		return nil
	})
}
