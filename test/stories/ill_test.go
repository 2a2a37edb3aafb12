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

// synced is the number of the last line that is on the node's own disk for certain, since
// the script begins with the next one only then. It survives a loss of power.
func (s *scribe) synced(n *lab.Node) int64 {
	s.Helper()
	got, err := s.written(n)
	if err != nil {
		s.Fatal(err)
	}
	return got - 1
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
				c.Errorf("while it writes on %s: %v", s.node, err)
			}
			heal(from)
			_, took := c.waitVolume(s.node, s.name, "ok again", healthy)
			c.Logf("    ok %.1fs after %s is well again", took.Seconds(), from)
			s.check()
		})
	}

	c.Part(t, "fencer", func() {
		ill("its fencer is killed and kept down",
			func(n *lab.Node) { down(n, "flockd-fence") },
			func(n *lab.Node) { up(n, "flockd-fence") })
	})
	// The engine lives: it starts the container again as often as the fencer kills it, and
	// asks a flockd for the volume that answers when it is a replica's.
	c.Part(t, "flockd", func() {
		var before string
		ill("its flockd alone stands still",
			func(n *lab.Node) {
				before = bootOf(n)
				n.Sh("systemctl kill -s STOP flockd")
			},
			func(n *lab.Node) {
				if out := n.Sh("flockd fence status"); !strings.Contains(out, "fenced") {
					c.Errorf("flockd fence status: %s", out)
				}
				if now := bootOf(n); now != before {
					c.Errorf("%s has reset itself, though its fencer could stop the writers", n)
				}
				n.Sh("systemctl kill -s CONT flockd")
				c.Until(n.Name+" to know that it has a replica", later, func() error {
					v, err := n.Volume(s.name)
					if err != nil {
						return err
					}
					return lab.Want("primary", v.Primary.Name, s.node.Name)
				})
				if err := s.idle(n); err != nil {
					c.Errorf("when its flockd goes on: %v", err)
				}
			})
	})
	c.Part(t, "docker", func() {
		c.Step("its Docker stands still: the container goes on, and nobody takes it away", func() {
			s.node.Sh("systemctl kill -s STOP docker")
			before := time.Now()
			for time.Since(before) < lease.Lab.Promote {
				s.more(10)
			}
			if v, err := s.others(s.node)[0].Volume(s.name); err != nil || v.Primary.Name != s.node.Name {
				c.Errorf("the primary is %s, it was %s; %v", v.Primary, s.node, err)
			}
		})
		ill("its flockd stands still as well",
			func(n *lab.Node) { n.Sh("systemctl kill -s STOP flockd") },
			func(n *lab.Node) { n.Sh("systemctl kill -s CONT flockd docker") })
	})
	c.Part(t, "power", func() {
		ill("its flockd is killed and kept down, and the node loses power and comes back without it",
			func(n *lab.Node) { down(n, "flockd") },
			func(n *lab.Node) {
				c.Cut(n)
				c.Boot(n)
				// Docker has tried to start what is restart=always.
				c.Until("Docker to have given the container up", later, func() error { return s.givenUp(n) })
				if err := s.idle(n); err != nil {
					c.Errorf("booted without flockd: %v", err)
				}
				if out := n.Sh("grep tank/flocker/ /proc/mounts || true"); out != "" {
					c.Errorf("booted without flockd, it has mounted %s", out)
				}
				up(n, "flockd")
			})
	})
	c.Part(t, "alone", func() { s.bootedAlone() })
	s.node.Docker("rm", "-f", s.name)
}

// givenUp is an engine that has tried to start the container and has not got the volume.
func (s *scribe) givenUp(n *lab.Node) error {
	out, err := n.Try("docker inspect -f '{{.State.Status}} {{.State.Error}}' " + s.name)
	if err == nil && !strings.HasPrefix(out, "exited") {
		err = fmt.Errorf("it is %s", out)
	}
	return err
}

// mountWatch notes from before the engine and flockd start what of ours is mounted and may be
// written: the time since boot, its ID, the line of /proc/mounts.
const mountWatch = `read -r boot </proc/sys/kernel/random/boot_id
while sleep 0.3; do
	while read -r what at kind options rest; do
		case $what,$options, in tank/flocker/*,rw,*)
			read -r up idle </proc/uptime
			echo "$up $boot $what $at $options" >>/root/mounted ;;
		esac
	done </proc/mounts
done`

// bootedAlone: a primary loses power and comes back cut off from all others. By all that it
// can know it is the primary still, and its container is restart=always; but nobody gives
// it a lease. So nothing is mounted that could be written, and nothing runs, until it is
// heard. failover=never keeps the volume for it, so that it gets it back with all that was
// written.
func (s *scribe) bootedAlone() {
	s.Helper()
	n, others := s.node, s.others(s.node)
	var synced int64
	var boot string
	s.Step("the primary loses power and boots alone: nothing is mounted, nothing runs", func() {
		others[0].Flockctl("volume", "set", s.name, "failover=never")
		s.about()
		n.Put("/root/watch.sh", mountWatch, 0o755)
		n.Put("/etc/systemd/system/watch.service", "[Unit]\nBefore=flockd.service docker.service\n[Service]\nExecStart=/bin/bash /root/watch.sh\n[Install]\nWantedBy=multi-user.target\n", 0o644)
		// Only the file system of the root disk: the pool is to be as a power cut leaves it.
		n.Sh("systemctl daemon-reload && systemctl enable -q watch && sync -f /root /etc/systemd/system")
		synced = s.synced(n)
		s.Cut(n)
		// A reboot ends the node's own side of a partition, so the others drop what it sends.
		for _, o := range others {
			o.Sh("lab-block " + n.Addr())
		}
		s.Boot(n)
		boot = bootOf(n)
		s.learn(n)
		took := s.Until("flockd on "+n.Name+" to say that it is alone", later, func() error {
			st, err := n.Status()
			if err == nil && st.Quorum {
				err = fmt.Errorf("it hears a leader: %s", st.Leader)
			}
			return err
		})
		s.Logf("    it says so %.1fs after the engine was there", took.Seconds())
		s.Until("Docker to have given the container up", later, func() error { return s.givenUp(n) })
		// What was synced when the power went is in the copy's intent log, which flockd has
		// ZFS write by a read-only mount of a moment.
		s.Until("nothing to be mounted on "+n.Name, soon, func() error { return s.idle(n) })
		looks := 0
		for begin := time.Now(); time.Since(begin) < lease.Lab.TTL; looks++ {
			out, err := n.Try(`cat /proc/[0-9]*/mounts 2>/dev/null | awk '$1 ~ "^tank/flocker/" && $4 ~ /^rw/' | sort -u; docker ps -q`)
			if err != nil || strings.TrimSpace(out) != "" {
				s.Fatalf("%s has no lease, and has mounted or runs %q, %v", n, out, err)
			}
			if is, err := s.runs(n); err != nil || is {
				s.Fatalf("%s has no lease, and the container runs: %v, %v", n, is, err)
			}
		}
		s.Logf("    so it is at %d looks in %s", looks, lease.Lab.TTL)
		if err := s.idle(n); err != nil {
			s.Error(err)
		}
		if v, err := n.Volume(s.name); err != nil || v.Primary.Name != n.Name {
			s.Errorf("%s takes %s for the primary, %v; it cannot have heard of another", n, v.Primary, err)
		}
	})
	s.Step("healed, it has its volume and its container back by itself, with every line", func() {
		s.learn(n)
		healed := time.Now()
		s.Heal()
		s.moves++ // to another boot of the same node
		s.more(3)
		s.Logf("    it writes again after %.1fs", time.Since(healed).Seconds())
		s.learn(n)
		live := s.live()
		first := slices.IndexFunc(live, func(l scribed) bool { return l.boot == boot })
		switch {
		case first < 0:
			s.Errorf("no line is of the boot %s", boot)
		case int64(first) < synced:
			s.Errorf("it went on after line %d; %d were on its disk when the power went", first, synced)
		case live[first].at.Before(healed):
			s.Errorf("line %d was written %.1fs before anybody could give it a lease", first+1, healed.Sub(live[first].at).Seconds())
		}
		seen := n.Sh("head -n1 /root/mounted")
		word := strings.Fields(seen)
		up, err := strconv.ParseFloat(word[0], 64)
		if err != nil || word[1] != boot {
			s.Fatalf("the watch noted %q, %v; this boot is %s", seen, err, boot)
		}
		if at := s.boots[boot].at(seconds(up)); at.Before(healed) {
			s.Errorf("it was mounted for writing %.1fs before anybody could give it a lease: %s", healed.Sub(at).Seconds(), seen)
		}
		n.Sh("systemctl disable -q --now watch; rm /etc/systemd/system/watch.service /root/watch.sh /root/mounted; systemctl daemon-reload")
		v, took := s.waitVolume(n, s.name, "ok again", healthy)
		s.Logf("    ok %.1fs later", took.Seconds())
		if v.Primary.Name != n.Name {
			s.Errorf("the primary is %s", v.Primary)
		}
		s.v = v
		n.Flockctl("volume", "set", s.name, "failover=auto")
		s.check()
	})
}

// The machine below a node is ill. One that stands still for longer than its lease has lost
// its volume when it goes on, and its container, in the middle of a write, goes on as well:
// for how long is measured; what it writes then is no part of the volume, and is not lost
// either. A pool whose disk is gone hangs, with all that writes to it: the node gives its
// volumes up, and is reset, since it cannot stop what hangs. One whose disk still writes, but
// takes minutes for what should take a second, asks for no lease any more, and ends the same.
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
	c.Part(t, "pause", func() { pause("it stands still with its clocks", c.Pause, c.Resume, true) })
	c.Part(t, "freeze", func() { pause("it stands still, its clocks run on", c.Freeze, c.Thaw, false) })
	c.Part(t, "slow", func() { s.slowPool() })
	c.Part(t, "unplug", func() {
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
				c.Error(err)
			}
			c.Cut(from)
			c.Boot(from)
			_, took = c.waitVolume(s.node, s.name, "ok again", healthy)
			c.Logf("    ok %.1fs after %s is back with its disk", took.Seconds(), from)
			s.check()
		})
	})
	s.node.Docker("rm", "-f", s.name)
}

// slowPool: the disk of the pool goes on, a kilobyte a second. What one sync of the pool writes,
// a hundred kilobytes and more, then takes longer than the pool may be silent, so the node
// says what is wrong and its lease is not renewed, though it hears the leader and its beats
// are heard. That the writers cannot be stopped in time is likely: then it resets itself.
func (s *scribe) slowPool() {
	s.Helper()
	s.Step("the disk of its pool is slow", func() {
		from, others := s.node, s.others(s.node)
		s.about()
		boot := bootOf(from)
		begin := time.Now()
		s.Slow(from, 1024)
		var says string
		took := s.Until("somebody to say that the pool keeps "+from.Name+" from its lease", later, func() error {
			for _, n := range append(others, from) {
				members, err := n.Members()
				if err != nil {
					return err
				}
				i := slices.IndexFunc(members, func(m api.Node) bool { return m.Name == from.Name })
				says = strings.Join(members[i].Problems, "; ")
				if l := members[i].Lease; l != nil {
					says += "; " + l.Reason
				}
				if strings.Contains(says, "its pool") {
					return nil
				}
			}
			return fmt.Errorf("it is said: %q", says)
		})
		s.Logf("    said after %.1fs: %s", took.Seconds(), says)
		s.takenOver(begin)
		// What it may write yet, now that it could, would be seen among the lines.
		s.Fast(from)
		s.Until("nothing of it to be on "+from.Name, later, func() error { return s.idle(from) })
		s.Logf("    it has reset itself: %t", bootOf(from) != boot)
		_, took = s.waitVolume(s.node, s.name, "ok again", healthy)
		s.Logf("    ok %.1fs after its disk is fast again", took.Seconds())
		s.check()
	})
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
