package stories

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/test/lab"
)

// replicaOn is a volume's replica on a node.
func replicaOn(v api.Volume, n *lab.Node) (api.Replica, error) {
	for _, r := range v.Replicas {
		if r.Node.Name == n.Name {
			return r, nil
		}
	}
	return api.Replica{}, fmt.Errorf("%s has no replica on %s: %v", v.Name, n, states(v))
}

// inSync is a replica that has acknowledged the newest snapshot.
func inSync(n *lab.Node) func(api.Volume) error {
	return func(v api.Volume) error {
		r, err := replicaOn(v, n)
		if err == nil && r.State != volume.LinkInSync {
			err = fmt.Errorf("%s is %s: %s", n, r.State, r.Error)
		}
		return err
	}
}

// neverOK asks for a volume until done says so, and fails when a replica's copy is
// called good meanwhile. done must not be true at once. With stays, the replica's state is
// that from when it is first said of one that is not reached, and no other, and then surely is said.
func (c cluster) neverOK(on, replica *lab.Node, name, what string, stays volume.LinkState, done func() error) {
	c.Helper()
	said, settled := map[string]int{}, stays == ""
	c.Until(what, later, func() error {
		v, err := on.Volume(name)
		if err != nil {
			return err
		}
		r, err := replicaOn(v, replica)
		if err != nil {
			return err
		}
		if v.Health != api.HealthLagging && v.Health != api.HealthDegraded || r.State == volume.LinkInSync {
			c.Fatalf("%s is behind, and status says %s (%s), its replica %s", replica, v.Health, v.Reason, r.State)
		}
		said[fmt.Sprintf("%s, replica %s", v.Health, r.State)]++
		// Before the first exchange has failed, a listing that takes long may let it be "sending" again.
		settled = settled || r.State == stays && r.FailingSeconds > 0
		if settled && stays != "" && r.State != stays {
			c.Fatalf("%s was %s, is reached no more than before, and is %s now: %s (said: %v)", replica, stays, r.State, r.Error, said)
		}
		if err := done(); err != nil {
			return err
		}
		if !settled {
			return fmt.Errorf("%s is %s, failing for %.0fs: want %s", replica, r.State, r.FailingSeconds, stays)
		}
		return nil
	})
	c.Logf("    said meanwhile: %v", said)
}

// sent counts the streams that a node has sent and that were acknowledged, and those of
// them that were increments.
func (c cluster) sent(n *lab.Node) (all, increments float64) {
	c.Helper()
	const streams, sent, ok = "flocker_streams_total", `direction="sent"`, `result="ok"`
	return c.metric(n, streams, sent, ok), c.metric(n, streams, sent, ok, `kind="incremental"`)
}

// A replica that nobody reaches falls behind while writing goes on, status says so
// all the while, and one increment brings it back, though retention keeps a single
// snapshot and has destroyed what it stands on.
func TestCoreReplication(t *testing.T) {
	c := start(t)
	primary, away := c.n1, c.n3
	// As short as can be: what is shown here is a replica that is gone for longer. All three
	// nodes have a copy, so none gets another.
	const replaceAfter = time.Minute
	primary.Flockctl("settings", "set", "replica-replace-after=1m")
	if _, err := createOn(primary, "steady", "size=1G", "replicas=2", "snapshots=1h:1"); err != nil {
		t.Fatal(err)
	}
	w := c.tally(primary, "usleep 50000", "steady")
	v, _ := c.waitVolume(primary, "steady", "ok with two replicas", healthy)
	dataset := copyOf(v)

	c.Step("n3 is cut off under writes: status never says ok, and its base is kept as a bookmark alone", func() {
		c.Partition(away, c.n1, c.n2)
		name, seq, err := newestSeq(away, dataset)
		if err != nil {
			t.Fatal(err)
		}
		c.waitVolume(primary, "steady", "not ok", func(v api.Volume) error {
			if v.Health == api.HealthOK {
				return fmt.Errorf("ok, with n3 cut off: %v", states(v))
			}
			return nil
		})
		least, begin := w.last()+100, time.Now()
		c.neverOK(primary, away, "steady", "much to be written for longer than replica-replace-after, and a bookmark in the place of "+name, volume.LinkLagging, func() error {
			if got, gone := w.last(), time.Since(begin); got < least || gone < replaceAfter {
				return fmt.Errorf("%d is written in %s, want %d in more than %s", got, gone.Round(time.Second), least, replaceAfter)
			}
			_, now, err := newestSeq(primary, dataset)
			if err != nil {
				return err
			}
			if now < seq+15 {
				return fmt.Errorf("the primary is at %d, n3 at %d", now, seq)
			}
			out, err := primary.Try("zfs list -H -o name -d 1 -t snapshot,bookmark " + dataset)
			if err == nil && (!strings.Contains(out, "#"+name) || strings.Contains(out, "@"+name)) {
				err = fmt.Errorf("%s has %s", primary, strings.ReplaceAll(out, "\n", " "))
			}
			return err
		})
	})

	c.Step("it returns: one increment, and all hold the same count", func() {
		before := identity(away, dataset)
		w.pause()
		c.waitVolume(primary, "steady", "n2 in sync", inSync(c.n2))
		c.waitSettled(primary, c.n2, v)
		newest, _, err := newestSeq(primary, dataset)
		if err != nil {
			t.Fatal(err)
		}
		had, _, err := snapshots(away, dataset)
		if err != nil {
			t.Fatal(err)
		}
		all, increments := c.sent(primary)
		c.Heal()
		_, took := c.waitVolume(primary, "steady", "ok again", healthy)
		c.waitQuiet(v, primary)
		allAfter, incrementsAfter := c.sent(primary)
		came, _, err := snapshots(away, dataset)
		if err != nil {
			t.Fatal(err)
		}
		came = slices.DeleteFunc(came, func(name string) bool { return slices.Contains(had, name) })
		if allAfter != all+1 || incrementsAfter != increments+1 {
			t.Errorf("%v streams were sent for n3 to catch up, %v of them increments, and brought it %q; want one increment, to %s",
				allAfter-all, incrementsAfter-increments, came, newest)
		}
		// What was on its way when the line was cut may arrive late: the base of that increment.
		if len(came) == 0 || came[len(came)-1] != newest || len(came) > 2 {
			t.Errorf("n3 has got %q, want %s, and at most one that was on its way before", came, newest)
		}
		if identity(away, dataset) != before {
			t.Errorf("n3's copy was made anew")
		}
		c.Logf("    ok %.1fs after the partition", took.Seconds())
		w.checkTally(v, c.Nodes()...)
	})

	c.Step("volume sync returns when all that was written before it is everywhere", func() {
		w.resume()
		w.wait(c, 20)
		before := w.last()
		began := time.Now()
		primary.Flockctl("volume", "sync", "steady")
		c.Logf("    volume sync took %.1fs", time.Since(began).Seconds())
		for _, n := range []*lab.Node{c.n2, c.n3} {
			newest, _, err := newestSeq(n, dataset)
			if err != nil {
				t.Fatal(err)
			}
			k, err := tallied(n, dataset, newest)
			if err != nil {
				t.Fatal(err)
			}
			if k < before {
				t.Errorf("after volume sync %s counts to %d, %d was written before", n, k, before)
			}
		}
	})

	c.Step("copies are equal, and one scheduled snapshot is kept", func() {
		w.stop()
		c.waitVolume(primary, "steady", "ok", healthy)
		c.waitQuiet(v, primary)
		w.checkTally(v, c.Nodes()...)
		c.checkEqual(v)
		for _, n := range c.Nodes() {
			if names := n.Lines("zfs list -H -o name -d 1 -t snapshot " + dataset + " | grep -c @auto- || true"); names[0] != "1" {
				t.Errorf("%s keeps %s scheduled snapshots, want 1", n, names[0])
			}
		}
	})
}

// waitSettled waits until a replica holds all that was written on the primary, where
// nobody writes any more: no snapshot follows. `written` alone does not tell: zfs adds to it
// when a transaction group ends, and the snapshot of what was written last is a tick late.
// So the primary must have proven, by its own count of writes too, that the replica has
// everything up to a moment well after this call.
func (c cluster) waitSettled(primary, replica *lab.Node, v api.Volume) {
	c.Helper()
	const well = 5 * time.Second
	began := time.Now()
	c.Until("nothing of "+v.Name+" that is not on "+replica.Name, later, func() error {
		_, want, err := newestSeq(primary, copyOf(v))
		if err != nil {
			return err
		}
		_, got, err := newestSeq(replica, copyOf(v))
		if err != nil {
			return err
		}
		written, err := primary.Try("zfs get -H -p -o value written " + copyOf(v))
		if err == nil && (got != want || written != "0") {
			err = fmt.Errorf("%s holds %d, the primary %d and %s bytes more", replica, got, want, written)
		}
		if err != nil {
			return err
		}
		now, err := primary.Volume(v.Name)
		if err != nil {
			return err
		}
		r, err := replicaOn(now, replica)
		if err == nil && (r.LagSeconds == nil || *r.LagSeconds > (time.Since(began)-well).Seconds()) {
			err = fmt.Errorf("%s is known to hold what was written until %s ago", replica, show(r.LagSeconds))
		}
		return err
	})
}

// A replica whose pool is full is behind and says why; the primary, its writer and
// the other replica do not notice. With space again it goes on by itself.
func TestReplicaPoolFull(t *testing.T) {
	c := start(t)
	primary, full := c.n1, c.n3
	if _, err := createOn(primary, "v", "size=1G", "replicas=2"); err != nil {
		t.Fatal(err)
	}
	w := c.tally(primary, "usleep 50000", "v")
	v, _ := c.waitVolume(primary, "v", "ok with two replicas", healthy)
	before := identity(full, copyOf(v))

	c.Step("n3's pool fills up: status says why, everything else goes on", func() {
		// Reserved space is as good as used space, and takes no time to write.
		full.Sh("zfs create -o canmount=off -o refreservation=$(($(zfs get -H -p -o value available tank) - 32*1024*1024)) tank/ballast")
		primary.Sh("docker exec tally sh -c 'dd if=/dev/urandom of=/tally/v/bulk bs=64k count=1600 2>&1 && sync'")
		c.waitVolume(primary, "v", "n3 out of space", func(v api.Volume) error {
			r, err := replicaOn(v, full)
			if err == nil && !strings.Contains(r.Error, "space") {
				err = fmt.Errorf("n3 is %s: %q", r.State, r.Error)
			}
			return err
		})
		least := w.last() + 100
		_, seq, err := newestSeq(c.n2, copyOf(v))
		if err != nil {
			t.Fatal(err)
		}
		c.neverOK(primary, full, "v", "the writer and n2 to go on", "", func() error {
			_, now, err := newestSeq(c.n2, copyOf(v))
			if err != nil {
				return err
			}
			if got := w.last(); got < least || now < seq+5 {
				return fmt.Errorf("%d is written, want %d; n2 is at %d, want %d", got, least, now, seq+5)
			}
			return nil
		})
	})
	c.Step("with space it goes on by itself, and all is equal", func() {
		full.Sh("zfs destroy tank/ballast")
		_, took := c.waitVolume(primary, "v", "ok again", healthy)
		c.Logf("    ok %.1fs after there was space", took.Seconds())
		w.stop()
		c.waitQuiet(v, primary)
		w.checkTally(v, c.Nodes()...)
		c.checkEqual(v)
		if identity(full, copyOf(v)) != before {
			t.Errorf("n3's copy was made anew")
		}
	})
}

// Bulk on a slow line to another zone delays neither the local replica nor a report.
func TestSlowWAN(t *testing.T) {
	c := clean(t)
	far := c.n3
	line := joinLine(c.n1.Flockctl(append(initArgs(c.n1), "--zone", "here")...))
	c.join(line, c.n2, "--zone", "here")
	c.join(line, far, "--zone", "far")
	c.waitNodes(3)
	// With manual failover nothing depends on a beat.
	c.Step("failover becomes automatic by itself", func() { c.waitAutomatic() })
	if _, err := createOn(c.n1, "v", "size=1G", "replicas=1", "remote=1"); err != nil {
		t.Fatal(err)
	}
	w := c.tally(c.n1, "usleep 50000", "v")
	v, _ := c.waitVolume(c.n1, "v", "ok with a local and a remote replica", func(v api.Volume) error {
		r, err := replicaOn(v, c.n2)
		if err == nil {
			err = healthy(v)
		}
		if err == nil && (r.LagSeconds == nil || *r.LagSeconds > 10) {
			err = fmt.Errorf("n2 is still %s behind", show(r.LagSeconds))
		}
		return err
	})
	s, err := c.n1.Status()
	if err != nil {
		t.Fatal(err)
	}
	leader := s.Leader.Name
	leads := c.Nodes()[slices.IndexFunc(c.Nodes(), func(n *lab.Node) bool { return n.Name == leader })]

	// worst of what is seen until done: how old the newest report of a node was for
	// the leader, and how far the local replica was behind.
	type worst struct {
		report, lag float64
		looks       int
	}
	watch := func(what string, done func(api.Volume) error) (w worst) {
		t.Helper()
		c.Until(what, 2*later, func() error {
			members, err := leads.Members()
			if err != nil {
				return err
			}
			now, err := time.Parse(time.RFC3339Nano, leads.Sh("date -u +%FT%T.%NZ"))
			if err != nil {
				return err
			}
			for _, m := range members {
				if m.Health != api.NodeAlive {
					t.Fatalf("%s is %s: %s", m.Name, m.Health, m.Reason)
				}
				if (m.Role == api.RoleLeader) != (m.Name == leader) {
					t.Fatalf("%s is %s, %s was the leader", m.Name, m.Role, leader)
				}
				w.report = max(w.report, now.Sub(m.LastSeen).Seconds())
			}
			for _, n := range c.Nodes() {
				held, err := n.Samples("flocker_lease_held")
				if err != nil {
					return err
				}
				if !slices.Equal(held, []float64{1}) {
					t.Fatalf("flocker_lease_held of %s: %v", n, held)
				}
			}
			v, err := c.n1.Volume("v")
			if err != nil {
				return err
			}
			r, err := replicaOn(v, c.n2)
			if err != nil {
				return err
			}
			if r.LagSeconds == nil {
				t.Fatalf("the lag of the local replica is not known: %s %s", r.State, r.Error)
			}
			w.lag = max(w.lag, *r.LagSeconds)
			w.looks++
			return done(v)
		})
		t.Logf("    %s: reports at most %.1fs old, local replica at most %.1fs behind, in %d looks", what, w.report, w.lag, w.looks)
		return w
	}

	// lates are the beats that nobody answered in time, and how often writers were
	// stopped, of each node since its flockd began.
	lates := func() (all []string) {
		t.Helper()
		for _, n := range c.Nodes() {
			lost, err := n.Metric("flocker_lease_beats_total", `result="lost"`)
			if err != nil {
				t.Fatal(err)
			}
			fences, err := n.Metric("flocker_fences_total")
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, fmt.Sprintf("%s: %v beats lost, fenced %v times", n, lost, fences))
		}
		return all
	}

	var calm, busy worst
	c.Step("on the whole LAN", func() {
		least := w.last() + 200
		calm = watch("200 writes", func(api.Volume) error {
			if got := w.last(); got < least {
				return fmt.Errorf("%d written, want %d", got, least)
			}
			return nil
		})
	})
	c.Step("8 MB of bulk for n3 on 1 Mbit/s", func() {
		c.Wan(far, "1mbit", 20*time.Millisecond)
		c.n1.Sh("docker exec tally sh -c 'dd if=/dev/urandom of=/tally/v/bulk bs=64k count=128 2>&1 && sync'")
		_, seq, err := newestSeq(c.n1, copyOf(v))
		if err != nil {
			t.Fatal(err)
		}
		begin, before := time.Now(), lates()
		busy = watch("the bulk to arrive on n3", func(api.Volume) error {
			_, got, err := newestSeq(far, copyOf(v))
			// The one after seq may have begun before the bulk was written; the next has not.
			if err == nil && got < seq+2 {
				err = fmt.Errorf("it holds %d, want %d", got, seq+2)
			}
			return err
		})
		if took := time.Since(begin); took < 40*time.Second {
			t.Errorf("8 MB went over 1 Mbit/s in %s: nothing was slow", took)
		}
		if after := lates(); !slices.Equal(before, after) {
			t.Errorf("leases were late during the bulk: before %v, after %v", before, after)
		}
	})
	// Twice the calm figure and some seconds: a report every 2 s and a snapshot every
	// second on emulated machines. Waiting behind the bulk would take a minute.
	if most := 2*calm.report + 4; busy.report > most {
		t.Errorf("a report was %.1fs old during the bulk, %.1fs without it", busy.report, calm.report)
	}
	if most := 2*calm.lag + 4; busy.lag > most {
		t.Errorf("the local replica was %.1fs behind during the bulk, %.1fs without it", busy.lag, calm.lag)
	}
	c.Step("a limit between the zones: streams wait for it, and are compressed, what ZFS cannot as well", func() {
		// Six bits of eight are used, and what repeats is too far apart for the pool's own compression.
		const piece, pieces, limit = 100_000, 40, 64 << 10
		rx := func() float64 {
			n, err := strconv.ParseFloat(strings.TrimSpace(far.Sh("cat /sys/class/net/lan/statistics/rx_bytes")), 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		of := []string{`volume="v"`, `replica="n3"`}
		c.n1.Flockctl("settings", "set", "bandwidth:here:far=64K")
		came, streamed := rx(), c.metric(c.n1, "flocker_replica_streamed_bytes_total", of...)
		begin := time.Now()
		c.n1.Sh(fmt.Sprintf("head -c %d /dev/urandom | base64 -w0 | docker exec -i tally sh -c "+
			"'cat >/tmp/piece && for i in $(seq %d); do cat /tmp/piece; done >/tally/v/text && sync'", piece/4*3, pieces))
		_, seq, err := newestSeq(c.n1, copyOf(v))
		if err != nil {
			t.Fatal(err)
		}
		c.Until("the text to arrive on n3", later, func() error {
			_, got, err := newestSeq(far, copyOf(v))
			if err == nil && got < seq+2 {
				err = fmt.Errorf("it holds %d, want %d", got, seq+2)
			}
			return err
		})
		took := time.Since(begin)
		came, streamed = rx()-came, c.metric(c.n1, "flocker_replica_streamed_bytes_total", of...)-streamed
		t.Logf("    %.0f bytes of streams came as %.0f over the line, in %.1fs", streamed, came, took.Seconds())
		if text := float64(piece * pieces); streamed < text || came > 0.9*text {
			t.Errorf("%.0f bytes of streams came as %.0f over the line; want at least %.0f, and as nine tenths of that at most", streamed, came, text)
		}
		// All that comes counts here, streams or not; a report or a beat is small.
		if least := time.Duration(came / 2 / limit * float64(time.Second)); took < least {
			t.Errorf("that took %s, which is less than %s: the limit does not hold", took, least)
		}
		if got := c.metric(c.n1, "flocker_replica_limit_bytes_per_second", of...); got != limit {
			t.Errorf("the limit of the link is %v, says its metric; want %d", got, limit)
		}
		// How long streams waited is told once a minute.
		c.Until("the metric of waiting for the limit to be above zero", later, func() error {
			waited, err := c.n1.Metric("flocker_stream_throttled_seconds_total", `replica="n3"`)
			if err == nil && waited <= 0 {
				err = fmt.Errorf("it is %v", waited)
			}
			return err
		})
		c.n1.Flockctl("settings", "set", "bandwidth:here:far=none")
	})
	c.Step("all is equal in the end", func() {
		c.Lan(far)
		w.stop()
		c.waitVolume(c.n1, "v", "ok", healthy)
		c.waitQuiet(v, c.n1)
		w.checkTally(v, c.Nodes()...)
		c.checkEqual(v)
	})
	c.checkLeftovers()
}
