package stories

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// The number of replicas changes under a writer; a replica that is destroyed is made
// anew, and one that somebody wrote to is set aside, kept, and made right.
func TestRepair(t *testing.T) {
	c := start(t)
	if _, err := createOn(c.n1, "v", "size=1G", "replicas=1"); err != nil {
		t.Fatal(err)
	}
	w := c.tally(c.n1, "usleep 50000", "v")
	v, _ := c.waitVolume(c.n1, "v", "ok with one replica", healthy)
	dataset := copyOf(v)
	first, second := c.n2, c.n3
	if v.Replicas[0].Node.Name == c.n3.Name {
		first, second = second, first
	}

	c.Step("one replica more: while its first copy is under way, flockctl replication says so, how far it is and when it will be there", func() {
		c.n1.Sh("docker exec tally sh -c 'dd if=/dev/urandom of=/tally/v/bulk bs=64k count=192 2>&1 && sync'")
		c.Wan(second, "4mbit", 5*time.Millisecond)
		c.n2.Flockctl("volume", "set", "v", "replicas=2")
		row := regexp.MustCompile(`(?m)^v +` + second.Name + ` +local +seeding +.*\[[#.]{10}\] +\d+% \S+ of \S+, \S+ left`)
		c.Until("a row of flockctl replication like "+row.String(), soon, func() error {
			out, err := c.n1.TryFlockctl("replication", "v")
			if err != nil {
				return err
			}
			line := row.FindString(out)
			if line == "" {
				return fmt.Errorf("it shows\n%s", out)
			}
			t.Logf("    %s", line)
			return nil
		})
		c.Lan(second)
		v, _ = c.waitVolume(c.n1, "v", "ok with two replicas", func(v api.Volume) error {
			if len(v.Replicas) != 2 {
				return fmt.Errorf("%d replicas", len(v.Replicas))
			}
			return healthy(v)
		})
		c.verify(v, 3)
	})

	c.Step("a replica's dataset is destroyed: it is seeded anew", func() {
		before := identity(first, dataset)
		first.Sh("zfs destroy -r " + dataset)
		c.Until("another dataset on "+first.Name, later, func() error {
			out, err := first.Try("zfs get -H -p -o value guid,createtxg " + dataset)
			if err == nil && strings.Join(strings.Fields(out), "/") == before {
				err = fmt.Errorf("it is the old one")
			}
			return err
		})
		c.waitVolume(c.n1, "v", "ok again", healthy)
		c.verify(v, 3)
	})

	c.Step("a replica's pool is destroyed and made anew, under a running flockd: it is seeded anew", func() {
		const runs = "systemctl show -p MainPID,NRestarts,InvocationID flockd"
		before, flockd := identity(first, dataset), first.Sh(runs)
		// A stream that is just coming keeps the pool busy.
		c.Until("the pool of "+first.Name+" to be destroyed", soon, func() error {
			_, err := first.Try("zpool destroy tank")
			return err
		})
		first.Sh("/usr/local/sbin/lab-pool") // as at the first boot
		c.Until("another dataset on "+first.Name, later, func() error {
			out, err := first.Try("zfs get -H -p -o value guid,createtxg " + dataset)
			if err == nil && strings.Join(strings.Fields(out), "/") == before {
				err = fmt.Errorf("it is the old one")
			}
			return err
		})
		c.waitVolume(c.n1, "v", "ok again", healthy)
		c.verify(v, 3)
		if after := first.Sh(runs); after != flockd {
			t.Errorf("flockd did not run throughout: it was %s, and is %s", flockd, after)
		}
	})

	// sneak writes to the replica behind flocker's back, and waits until that is set aside
	// and the replica is right again.
	sneak := func(text string) api.Aside {
		w.pause() // zfs refuses to mount a dataset in the moment of an increment
		c.waitSettled(c.n1, first, v)
		first.Sh("zfs set readonly=off " + dataset + " && mkdir -p /mnt/sneak && mount -t zfs -o zfsutil " + dataset + " /mnt/sneak && " +
			"echo " + text + " >/mnt/sneak/data/sneaked && sync && umount /mnt/sneak && zfs set readonly=on " + dataset)
		w.resume()
		var asides api.Asides
		c.Until("a copy set aside on "+first.Name, later, func() (err error) {
			asides, err = lab.Ask[api.Asides](c.n3, "aside", "list")
			if err == nil && (len(asides.Asides) != 1 || asides.Asides[0].Node.Name != first.Name || asides.Asides[0].VolumeName != "v") {
				err = fmt.Errorf("flockctl aside list: %+v", asides.Asides)
			}
			return err
		})
		c.waitVolume(c.n1, "v", "ok again", healthy)
		c.verify(v, 3)
		return asides.Asides[0]
	}
	c.Step("somebody writes to a replica: that is set aside, the replica is right again, and what was written becomes a volume", func() {
		aside := sneak("mine")
		c.n1.Flockctl("aside", "restore", "-o", "replicas=1", aside.Name, "mine")
		c.waitVolume(c.n2, "mine", "ok on "+first.Name, func(v api.Volume) error {
			if v.Primary.Name != first.Name {
				return fmt.Errorf("its primary is %s", v.Primary)
			}
			return healthy(v)
		})
		got := first.Sh("docker run --rm --mount type=volume,volume-driver=flocker,src=mine,dst=/d " + busyboxImage + " cat /d/sneaked")
		if got != "mine" {
			t.Errorf("the volume made of the set-aside copy holds %q", got)
		}
	})
	c.Step("once more, and that is let go", func() {
		aside := sneak("nothing")
		c.n2.Flockctl("aside", "remove", "--yes", aside.Name)
		c.Until("nothing set aside on "+first.Name, later, func() error {
			out, err := first.Try("zfs list -H -o name -d 1 tank/flocker-aside | tail -n +2")
			if err == nil && strings.TrimSpace(out) != "" {
				err = fmt.Errorf("it has %s", out)
			}
			return err
		})
		c.verify(v, 3)
	})

	c.Step("one replica less: its copy goes, the others stay right", func() {
		c.n3.Flockctl("volume", "set", "v", "replicas=1")
		v, _ = c.waitVolume(c.n1, "v", "ok with one replica", func(v api.Volume) error {
			if len(v.Replicas) != 1 {
				return fmt.Errorf("%d replicas", len(v.Replicas))
			}
			return healthy(v)
		})
		kept, dropped := c.n2, c.n3
		if v.Replicas[0].Node.Name == c.n3.Name {
			kept, dropped = c.n3, c.n2
		}
		c.Until("no copy on "+dropped.Name, later, func() error {
			if _, err := dropped.Try("zfs list " + dataset); err == nil {
				return fmt.Errorf("%s is there", dataset)
			}
			return nil
		})
		w.stop()
		c.waitVolume(c.n1, "v", "ok", healthy)
		c.waitSettled(c.n1, kept, v)
		w.checkTally(v, c.n1, kept)
		c.verify(v, 2)
	})
}

// A replica's node that stays away is replaced: another node gets a copy while the volume
// is written to, and what the lost one had goes only when it is back and not needed.
func TestReplaced(t *testing.T) {
	c := start(t)
	c.n1.Flockctl("settings", "set", "replica-replace-after=1m")
	if _, err := createOn(c.n1, "v", "size=1G", "replicas=1"); err != nil {
		t.Fatal(err)
	}
	w := c.tally(c.n1, "usleep 50000", "v")
	v, _ := c.waitVolume(c.n1, "v", "ok with one replica", healthy)
	dataset := copyOf(v)
	lost, other := c.n2, c.n3
	if v.Replicas[0].Node.Name == other.Name {
		lost, other = other, lost
	}

	c.Step("the replica's node loses power: the third gets a copy, and until it has it nobody says ok", func() {
		cut := time.Now()
		c.Cut(lost)
		v, _ = c.waitVolume(c.n1, "v", "ok on "+other.Name, func(v api.Volume) error {
			there := slices.ContainsFunc(v.Replicas, func(r api.Replica) bool { return r.Node.Name == other.Name })
			if v.Health == api.HealthOK && !there && time.Since(cut) > soon {
				t.Errorf("ok is said while its only replica is on %s, which has no power: %+v", lost, v.Replicas)
			}
			if !there {
				return fmt.Errorf("%s: %s; replicas %+v", v.Health, v.Reason, v.Replicas)
			}
			return healthy(v)
		})
		c.Logf("    %.1fs after the power was cut", time.Since(cut).Seconds())
		c.verify(v, 2)
	})
	c.Step("it comes back: its copy is not needed any more, and goes", func() {
		c.Boot(lost)
		c.Until("no copy on "+lost.Name, later, func() error {
			if _, err := lost.Try("zfs list tank >/dev/null && ! zfs list " + dataset); err != nil {
				return fmt.Errorf("%s is there: %w", dataset, err)
			}
			return nil
		})
		w.stop()
		c.waitVolume(c.n1, "v", "ok", healthy)
		c.waitSettled(c.n1, other, v)
		w.checkTally(v, c.n1, other)
	})
}

// verify has flocker compare all copies, and wants so many of them to be equal.
func (c cluster) verify(v api.Volume, copies int) {
	c.Helper()
	reps, err := lab.Ask[[]api.VerifyReply](c.n1, "volume", "verify", v.Name)
	if err != nil {
		c.Fatal(err)
	}
	if r := reps[0]; len(reps) != 1 || r.Differ || r.Unread || len(r.Copies) != copies {
		c.Fatalf("volume verify: %+v, want %d equal copies", reps, copies)
	}
	c.Logf("    %d copies of %s are equal, says volume verify", copies, reps[0].Snapshot)
}
