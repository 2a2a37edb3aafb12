package stories

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/test/lab"
)

// scribe is a container that follows its volume and appends lines to a file of it: 1, 2,
// 3, ..., each with the time since the machine's boot and that boot's ID. Where it is
// started it goes on after the last line. So the lines that all copies hold, together, tell
// who wrote when, by one clock, whatever the nodes' clocks are set to.
type scribe struct {
	cluster
	name  string // of the volume and of the container
	v     api.Volume
	node  *lab.Node // that it runs on
	all   []*lab.Node
	boots map[string]*bootClock
	moves int             // how often another node took over, planned or not
	late  map[string]bool // lines that were written when another node wrote, as is to be expected
	safe  string          // a line that must survive whatever is done
}

// Its name is in it, so that its processes are found by somebody who cannot ask Docker.
const scribeScript = `file=/d/lines; read boot </proc/sys/kernel/random/boot_id; touch $file; i=$(wc -l <$file)
while i=$((i+1)); do
	read up idle </proc/uptime
	echo $i $up $boot | dd of=$file oflag=append conv=notrunc,fsync 2>/dev/null || exit 1
	sleep 1; : quill-%s
done`

// bootClock tells when something was by the clock of this machine, from a node's time
// since its boot.
type bootClock struct {
	node    *lab.Node
	samples []bootSample
	stops   []time.Duration // when the node's clock stood still for a while
}

type bootSample struct {
	up    time.Duration
	at    time.Time
	stops int // before it
}

// at converts by the nearest sample: an emulated machine's clock may run too fast or slow.
func (b *bootClock) at(up time.Duration) time.Time {
	stops, _ := slices.BinarySearch(b.stops, up)
	same := slices.DeleteFunc(slices.Clone(b.samples), func(s bootSample) bool { return s.stops != stops })
	near := slices.MinFunc(same, func(x, y bootSample) int { return int((x.up - up).Abs() - (y.up - up).Abs()) })
	return near.at.Add(up - near.up)
}

// scribe begins to write on n, on a volume with so many replicas, and waits until it could
// go on elsewhere.
func (c cluster) scribe(n *lab.Node, name string, replicas int) *scribe {
	c.Helper()
	s := &scribe{cluster: c, name: name, node: n, all: c.Nodes(), boots: map[string]*bootClock{}, late: map[string]bool{}}
	n.Docker("volume", "create", "-d", "flocker", "-o", "size=1G", "-o", fmt.Sprintf("replicas=%d", replicas), "-o", "interval=5s", name)
	n.Docker("run", "-d", "--name", name, "--restart", "always", "--label", "flocker.enable=true",
		"--mount", "type=volume,volume-driver=flocker,src="+name+",dst=/d", busyboxImage, "sh", "-c", fmt.Sprintf(scribeScript, name))
	s.v, _ = c.waitVolume(n, name, "ok with all replicas", healthy)
	c.waitFollows(n, name)
	s.more(5)
	return s
}

// learn reads the time since boot of nodes.
func (s *scribe) learn(nodes ...*lab.Node) {
	s.Helper()
	for _, n := range nodes {
		b, sample := s.sample(n)
		sample.stops = len(b.stops)
		b.samples = append(b.samples, sample)
	}
}

// resumed says that a node's clock stood still up to then.
func (s *scribe) resumed(n *lab.Node, at time.Time) {
	s.Helper()
	b, sample := s.sample(n)
	b.stops = append(b.stops, sample.up-sample.at.Sub(at))
	sample.stops = len(b.stops)
	b.samples = append(b.samples, sample)
}

// sample asks a node for its time since boot. The quickest of some answers is the truest.
func (s *scribe) sample(n *lab.Node) (b *bootClock, sample bootSample) {
	s.Helper()
	var boot string
	for best, i := time.Hour, 0; i < 4; i++ {
		begin := time.Now()
		out := strings.Fields(n.Sh(readBoot + " /proc/uptime"))
		took := time.Since(begin)
		up, err := strconv.ParseFloat(out[1], 64)
		if err != nil {
			s.Fatal(err)
		}
		if took < best {
			best, boot, sample = took, out[0], bootSample{up: seconds(up), at: begin.Add(took / 2)}
		}
	}
	if s.boots[boot] == nil {
		s.boots[boot] = &bootClock{node: n}
	}
	return s.boots[boot], sample
}

const readBoot = "cat /proc/sys/kernel/random/boot_id"

// bootOf tells the boots of a node apart.
func bootOf(n *lab.Node) string { return n.Sh(readBoot) }

func seconds(f float64) time.Duration { return time.Duration(f * float64(time.Second)) }

// dir is where the volume is mounted.
func (s *scribe) dir(n *lab.Node) string {
	s.Helper()
	d, err := n.DockerVolume(s.name)
	if err != nil {
		s.Fatal(err)
	}
	return d.Mountpoint
}

// last is the last line of the file where it is mounted. It asks neither Docker nor flockd.
func (s *scribe) last(n *lab.Node) (string, error) {
	out, err := n.Try("set -e; dir=$(awk '$1 == \"" + copyOf(s.v) + "\" { print $2; exit }' /proc/mounts); test -n \"$dir\"; tail -n1 $dir/data/lines")
	return strings.TrimSpace(out), err
}

// written is how far the file is.
func (s *scribe) written(n *lab.Node) (int64, error) {
	line, err := s.last(n)
	if err != nil {
		return 0, err
	}
	number, _, _ := strings.Cut(line, " ")
	return strconv.ParseInt(number, 10, 64)
}

// about prepares for a fault: it reads the writer's clock, and has the replicas take what is
// written by now, which must survive. A replica that is called ok may be some seconds
// behind, so without that nothing need survive but what the failover's event says.
func (s *scribe) about() {
	s.Helper()
	s.learn(s.node)
	line, err := s.last(s.node)
	if err != nil {
		s.Fatal(err)
	}
	s.node.Flockctl("volume", "sync", s.name)
	s.safe = line
	s.more(3)
}

// more waits until so many more lines are written where it runs.
func (s *scribe) more(lines int64) {
	s.Helper()
	var target int64
	s.Until(fmt.Sprintf("%d more lines on %s", lines, s.node), later, func() error {
		got, err := s.written(s.node)
		switch {
		case err != nil:
			return err
		case target == 0:
			target = got + lines
		}
		if got < target {
			return fmt.Errorf("it is at %d of %d", got, target)
		}
		return nil
	})
}

// runs says whether a process of it is alive on a node. It asks neither Docker nor flockd.
func (s *scribe) runs(n *lab.Node) (bool, error) {
	out, err := n.Try("pgrep -fc '[q]uill-" + s.name + "' || true")
	return strings.TrimSpace(out) != "0", err
}

// idle is a node on which nothing of it runs and nothing of the volume is mounted.
func (s *scribe) idle(n *lab.Node) error {
	if is, err := s.runs(n); err != nil || is {
		return fmt.Errorf("%s: it runs: %v, %w", n, is, err)
	}
	if is, err := mounted(n, s.v); err != nil || is {
		return fmt.Errorf("%s has the volume mounted: %v, %w", n, is, err)
	}
	return nil
}

// takenOver waits until another node is the primary and the container writes there; the
// node that it ran on has let go of it by then.
func (s *scribe) takenOver(since time.Time) {
	s.Helper()
	from := s.node
	to, v := s.waitPrimary(s.name, s.others(from)...)
	s.Logf("    %s is the primary after %.1fs", to, time.Since(since).Seconds())
	s.movedTo(to, v)
	s.Logf("    it writes there after %.1fs; %s", time.Since(since).Seconds(), s.event(s.node, "volume.failed-over", s.name).Message)
}

// movedTo waits until the container writes on the volume's new primary.
func (s *scribe) movedTo(to *lab.Node, v api.Volume) {
	s.Helper()
	s.node, s.v = to, v
	s.moves++
	s.more(3)
	s.learn(to)
}

func (s *scribe) others(n *lab.Node) (out []*lab.Node) {
	for _, o := range s.all {
		if o.Name != n.Name {
			out = append(out, o)
		}
	}
	return out
}

// line of the file, with when it was written by the clock of this machine.
type scribed struct {
	text, boot string
	up         time.Duration
	at         time.Time
}

// lines that one copy holds; they must count from 1 without a gap.
func (s *scribe) lines(what, text string) (out []scribed) {
	s.Helper()
	for text := range strings.Lines(text) {
		text = strings.TrimSpace(text)
		f := strings.Fields(text)
		if len(f) != 3 || f[0] != strconv.Itoa(len(out)+1) {
			s.Fatalf("%s: line %d is %q", what, len(out)+1, text)
		}
		up, err := strconv.ParseFloat(f[1], 64)
		if err != nil || s.boots[f[2]] == nil {
			s.Fatalf("%s: line %d is of no known boot: %q, %v", what, len(out)+1, text, err)
		}
		out = append(out, scribed{text: text, boot: f[2], up: seconds(up), at: s.boots[f[2]].at(seconds(up))})
	}
	return out
}

// live are the lines of the volume itself.
func (s *scribe) live() []scribed {
	s.Helper()
	return s.lines(s.name+" on "+s.node.Name, s.node.Sh("cat "+s.dir(s.node)+"/lines"))
}

// asides are the lines of all that was set aside of it.
func (s *scribe) asides() (out []scribed) {
	s.Helper()
	for _, n := range s.all {
		for _, dataset := range n.Lines("zfs list -H -o name -r -d 1 tank/flocker-aside 2>/dev/null | grep " + string(s.v.ID) + " || true") {
			text := n.Sh(fmt.Sprintf(`set -e
snapshot=$(zfs list -H -o name -d 1 -t snapshot -s createtxg %s | tail -n1)
dir=$(mktemp -d)
mount -t zfs $snapshot $dir
trap 'umount $dir; rmdir $dir' EXIT
cat $dir/data/lines`, dataset))
			out = append(out, s.lines(dataset+" on "+n.Name, text)...)
		}
	}
	return out
}

// check compares what all copies hold: the count has no gap anywhere, one container runs,
// and by the times of all lines, those set aside too, writers have followed one another:
// each wrote its last line before the next one wrote its first.
func (s *scribe) check() {
	s.Helper()
	s.learn(s.all...)
	s.idleElsewhere()
	live := s.live()
	all := append(slices.Clone(live), s.asides()...)
	slices.SortFunc(all, func(a, b scribed) int { return a.at.Compare(b.at) })
	all = slices.CompactFunc(all, func(a, b scribed) bool { return a.text == b.text })
	ever := len(all)
	all = slices.DeleteFunc(all, func(l scribed) bool { return s.late[l.text] })
	moves := 0
	for i := 1; i < len(all); i++ {
		if a, b := all[i-1], all[i]; a.boot != b.boot {
			moves++
			s.Logf("    %s wrote for the last time %.1fs before %s began", s.boots[a.boot].node, b.at.Sub(a.at).Seconds(), s.boots[b.boot].node)
		}
	}
	s.Logf("    it counts to %d; %d lines of %d ever written are in no copy that is used", len(live), ever-len(live), ever)
	if s.safe != "" && !slices.ContainsFunc(live, func(l scribed) bool { return l.text == s.safe }) {
		s.Errorf("%q was written before a volume sync and is not there", s.safe)
	}
	if moves != s.moves {
		s.Errorf("the writer changed %d times, and moved %d times: two have written at the same time", moves, s.moves)
	}
}

// overlap measures for how long a node that another one has taken over from, and that went
// on then, wrote on: beside the other, to its own copy. No line of that may be in the volume.
func (s *scribe) overlap(from *lab.Node, resumed time.Time) {
	s.Helper()
	s.learn(s.node)
	late := func(l scribed) bool { return s.boots[l.boot].node.Name == from.Name && l.at.After(resumed) }
	live := s.live()
	if i := slices.IndexFunc(live, late); i >= 0 {
		s.Errorf("line %d of the volume was written on %s when it had lost it", i+1, from)
	}
	first := len(live) - 1
	for first > 0 && live[first-1].boot == live[first].boot {
		first--
	}
	lines, last := 0, resumed
	for _, l := range s.asides() {
		if late(l) {
			s.late[l.text] = true
			lines++
			if l.at.After(last) {
				last = l.at
			}
		}
	}
	s.Logf("    %s wrote for the first time %.1fs before %s went on; %s wrote %d lines more to its own copy, now set aside, the last %.1fs after it went on: so long two wrote",
		s.node, resumed.Sub(live[first].at).Seconds(), from, from, lines, last.Sub(resumed).Seconds())
	// What its lease may have had left when it was stopped, and the time to stop the writers.
	if most := lease.Lab.TTL + lease.Lab.Fence; last.Sub(resumed) > most {
		s.Errorf("that is longer than %s", most)
	}
}

// idleElsewhere waits until it runs on one node alone.
func (s *scribe) idleElsewhere() {
	s.Helper()
	for _, n := range s.others(s.node) {
		s.Until("nothing of it to be on "+n.Name, soon, func() error { return s.idle(n) })
	}
	if is, err := s.runs(s.node); err != nil || !is {
		s.Errorf("it runs on %s: %v, %v", s.node, is, err)
	}
}

// down keeps a unit from starting, over reboots too, and kills what it runs; up ends that.
func down(n *lab.Node, unit string) {
	n.Sh(fmt.Sprintf("d=/etc/systemd/system/%[1]s.service.d; mkdir -p $d && printf '[Unit]\\nConditionPathExists=/nowhere\\n' >$d/down.conf && systemctl daemon-reload && systemctl kill -s KILL %[1]s", unit))
}

func up(n *lab.Node, unit string) {
	n.Sh(fmt.Sprintf("rm -r /etc/systemd/system/%[1]s.service.d && systemctl daemon-reload && systemctl start %[1]s", unit))
}

// A node is ill rather than dead: a part of it stands still or is gone for good while the
// container goes on. In each case its writers are stopped before another node writes.
func TestIllNode(t *testing.T) {
	c := start(t)
	c.Step("failover becomes automatic by itself", func() { c.waitAutomatic() })
	var s *scribe
	c.Step("a container that is to follow writes on n2", func() { s = c.scribe(c.n2, "log", 2) })
	// Ill, the node loses the volume; healed, it has a replica, and all is as before.
	ill := func(what string, strike, heal func(n *lab.Node)) {
		c.Step(what, func() {
			from := s.node
			s.about()
			begin := time.Now()
			strike(from)
			s.takenOver(begin)
			if err := s.idle(from); err != nil {
				t.Errorf("while it writes on %s: %v", s.node, err)
			}
			heal(from)
			_, took := c.waitVolume(s.node, s.name, "ok again", healthy)
			c.Logf("    ok %.1fs after %s is well again", took.Seconds(), from)
			s.check()
		})
	}

	ill("its fencer is killed and kept down",
		func(n *lab.Node) { down(n, "flockd-fence") },
		func(n *lab.Node) { up(n, "flockd-fence") })
	c.Step("its Docker stands still: the container goes on, and nobody takes it away", func() {
		s.node.Sh("systemctl kill -s STOP docker")
		before := time.Now()
		for time.Since(before) < lease.Lab.Promote {
			s.more(10)
		}
		if v, err := c.n1.Volume(s.name); err != nil || v.Primary.Name != s.node.Name {
			t.Errorf("the primary is %s, it was %s; %v", v.Primary, s.node, err)
		}
	})
	ill("its flockd stands still as well",
		func(n *lab.Node) { n.Sh("systemctl kill -s STOP flockd") },
		func(n *lab.Node) { n.Sh("systemctl kill -s CONT flockd docker") })
	ill("its flockd is killed and kept down, and the node loses power and comes back without it",
		func(n *lab.Node) { down(n, "flockd") },
		func(n *lab.Node) {
			c.Cut(n)
			c.Boot(n)
			// Docker has tried to start what is restart=always.
			c.Until("Docker to have given the container up", later, func() error {
				out, err := n.Try("docker inspect -f '{{.State.Status}} {{.State.Error}}' " + s.name)
				if err == nil && !strings.HasPrefix(out, "exited") {
					err = fmt.Errorf("it is %s", out)
				}
				return err
			})
			if err := s.idle(n); err != nil {
				t.Errorf("booted without flockd: %v", err)
			}
			if out := n.Sh("grep tank/flocker/ /proc/mounts || true"); out != "" {
				t.Errorf("booted without flockd, it has mounted %s", out)
			}
			up(n, "flockd")
		})
	s.node.Docker("rm", "-f", s.name)
}

// The machine below a node is ill. One that stands still for longer than its lease has lost
// its volume when it goes on, and its container, in the middle of a write, goes on as well:
// for how long is measured; what it writes then is no part of the volume, and is not lost
// either. A pool whose disk is gone hangs, with all that writes to it: the node gives its
// volumes up, and is reset, since it cannot stop what hangs.
func TestIllMachine(t *testing.T) {
	c := start(t)
	c.Step("failover becomes automatic by itself", func() { c.waitAutomatic() })
	var s *scribe
	c.Step("a container that is to follow writes on n2", func() { s = c.scribe(c.n2, "log", 2) })
	pause := func(what string, stop, resume func(...*lab.Node), clockStops bool) {
		c.Step(what, func() {
			from := s.node
			s.about()
			boot := bootOf(from)
			begin := time.Now()
			stop(from)
			s.takenOver(begin)
			resume(from)
			resumed := time.Now()
			c.Until("it to be stopped on "+from.Name, later, func() error { return s.idle(from) })
			c.Logf("    nothing of it is on %s any more, which says so %.1fs after it went on; it has reset itself: %t", from, time.Since(resumed).Seconds(), bootOf(from) != boot)
			if clockStops {
				s.resumed(from, resumed)
			} else {
				s.learn(from)
			}
			_, took := c.waitVolume(s.node, s.name, "ok again", healthy)
			c.Logf("    ok %.1fs later", took.Seconds())
			s.overlap(from, resumed)
			s.check()
		})
	}
	pause("it stands still with its clocks", c.Pause, c.Resume, true)
	pause("it stands still, its clocks run on", c.Freeze, c.Thaw, false)
	c.Step("the disk of its pool is pulled", func() {
		from := s.node
		s.about()
		boot := bootOf(from)
		begin := time.Now()
		c.Unplug(from)
		s.takenOver(begin)
		took := c.Until(from.Name+" to have been reset", later, func() error {
			_, err := from.Try(readBoot + " | grep -vF " + boot)
			return err
		})
		c.Logf("    %s has reset itself; seen after %.1fs more", from, took.Seconds())
		if err := s.idle(from); err != nil {
			t.Error(err)
		}
		c.Cut(from)
		c.Boot(from)
		_, took = c.waitVolume(s.node, s.name, "ok again", healthy)
		c.Logf("    ok %.1fs after %s is back with its disk", took.Seconds(), from)
		s.check()
	})
	s.node.Docker("rm", "-f", s.name)
}

// Two of five nodes die at once: what was on them is back on the others.
func TestTwoOfFive(t *testing.T) {
	l := lab.Open(t)
	c := cluster{Lab: l, n1: l.Node(1), n2: l.Node(2), n3: l.Node(3)}
	n4, n5 := l.Node(4), l.Node(5)
	c.Step("a cluster of five", func() {
		l.Do("up", "5")
		l.ResetTo(5)
		line := joinLine(c.n1.Flockctl(initArgs(c.n1)...))
		for _, n := range []*lab.Node{c.n2, c.n3, n4, n5} {
			c.join(line, n)
		}
		c.waitNodes(5)
		c.waitAutomatic()
	})
	t.Cleanup(func() { c.Cut(n4, n5) })
	var both []*scribe
	c.Step("containers that are to follow write on n4 and n5", func() {
		for _, n := range []*lab.Node{n4, n5} {
			s := c.scribe(n, "log-"+n.Name, 2)
			s.all = append(c.Nodes(), n4, n5)
			both = append(both, s)
		}
	})
	c.Step("both nodes lose power at once", func() {
		for _, s := range both {
			s.about()
		}
		begin := time.Now()
		c.Cut(n4, n5)
		for _, s := range both {
			s.takenOver(begin)
		}
	})
	c.Step("they come back", func() {
		c.Boot(n4, n5)
		for _, s := range both {
			c.waitVolume(s.node, s.name, "ok again", healthy)
			s.check()
			s.node.Docker("rm", "-f", s.name)
		}
	})
	c.checkLeftovers()
}
