package stories

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// faults is a Redis that is to move between nodes while something goes wrong.
type faults struct {
	*live
	// It moves from one node to another. The third one leads the cluster, as far as that can be
	// had, and is asked how things are: nothing is done to it.
	from, to, third *lab.Node
}

// The server does not start on a machine that a file on its volume refuses, and does not serve
// yet on one that another file has it wait on: the files name it by its boot. So nothing is
// known of that before the container is there, and the volume has it on every node alike.
const faultsServer = `trap 'exit 0' TERM
read -r boot </proc/sys/kernel/random/boot_id
if grep -qsxF "$boot" /data/refused; then echo "this machine is refused"; exit 3; fi
while grep -qsxF "$boot" /data/awaited; do sleep 0.1; done
exec redis-server --bind 0.0.0.0 --protected-mode no --dir /data --appendonly yes --appendfsync always --save ''`

// Before its stop it stands still for a few seconds where that is asked for, so that a fault can
// come just before the copies ahead of the pause. flockd waits for 10 s.
const faultsHook = `[ -e /data/hold ] || exit 0; touch /data/held; i=0; while [ -e /data/hold ] && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done; rm -f /data/held`

// Redis with a route is to move while the link between the two nodes is cut, the container does
// not start on the new one, or either node loses power. Each time the move is finished or undone
// by itself: one node has the volume and runs the container, and nothing that was answered is
// missing or done twice; of a lost node, nothing that was synced, or came before what is reported.
func TestMigrateFaults(t *testing.T) {
	f := &faults{live: &live{cluster: start(t), volume: "counter", container: "redis", port: "6379"}}
	f.Step("failover becomes automatic by itself", func() { f.waitAutomatic() })
	f.Step("Redis with a route, on a node that does not lead", f.begin)

	f.Part(t, "link-ahead", f.linkAhead)
	f.Part(t, "link-stopped", f.linkStopped)
	f.Part(t, "refused", f.refused)
	f.Part(t, "target-ahead", f.targetAhead)
	f.Part(t, "target-starting", f.targetStarting)
	f.Part(t, "source-stopped", f.sourceStopped)
	if !t.Failed() {
		f.end()
	}
}

func (f *faults) begin() {
	f.Helper()
	f.askers()
	// As long as can be: on an emulated machine under load a start alone may take half of what
	// its profile lets clients wait.
	f.n1.Flockctl("settings", "set", "hold=90s")
	leader := f.leader()
	f.node = f.n1
	if leader.Name == f.n1.Name {
		f.node = f.n2
	}
	f.node.Docker("volume", "create", "-d", "flocker", "-o", "size=500M", "-o", "replicas=2", "-o", "ports=6379:6379/redis", f.volume)
	f.node.Docker("run", "-d", "--name", f.container, "--label", "flocker.enable=true", "--label", "flocker.pre-stop="+faultsHook,
		"--mount", "type=volume,volume-driver=flocker,src="+f.volume+",dst=/data", redisImage, "sh", "-c", faultsServer)
	f.serve(func(n *lab.Node) error {
		out, err := n.Try("redis-cli -h " + n.Addr() + " -p " + f.port + " ping")
		if err != nil {
			return err
		}
		return lab.Want("ping", strings.TrimSpace(out), "PONG")
	})
}

// roles says who is who in a part. Where the leader has the volume that goes elsewhere first.
func (f *faults) roles() {
	f.Helper()
	leader := f.leader()
	not := func(names ...string) *lab.Node {
		return f.Nodes()[slices.IndexFunc(f.Nodes(), func(n *lab.Node) bool { return !slices.Contains(names, n.Name) })]
	}
	if leader.Name == f.node.Name {
		to := not(leader.Name)
		if out, err := f.node.TryFlockctl("migrate", "--max-pause", "1m", f.volume, to.Name); err != nil {
			f.Fatalf("off the leader first: %s, %v", out, err)
		}
		f.node = to
		f.well()
	}
	f.from, f.third = f.node, leader
	f.to = not(leader.Name, f.node.Name)
	f.Logf("    from %s to %s, asked from %s", f.from, f.to, f.third)
}

// well waits until all is as before a part.
func (f *faults) well() {
	f.Helper()
	f.waitNodes(3)
	f.waitAutomatic()
	_, took := f.waitVolume(f.node, f.volume, "ok with its replicas", healthy)
	f.waitFollows(f.node, f.container)
	f.Logf("    all is well; the volume was ok after %.1fs", took.Seconds())
}

// askOn has clients count that never try twice, each node's at its own port.
func (f *faults) askOn(key string, nodes ...*lab.Node) {
	f.Helper()
	f.clients = nil
	for _, n := range nodes {
		f.ask(n, "asker", fmt.Sprintf("exec asker redis %s:%s %s", n.Addr(), f.port, key))
	}
	f.progress(50)
}

// answered ends those clients: what they were answered is what was counted.
func (f *faults) answered(key string) {
	f.Helper()
	f.progress(20)
	var all int64
	for _, n := range f.stop() {
		all += n
	}
	f.clients = nil
	for _, n := range f.Nodes() {
		got := n.Sh("redis-cli -h " + n.Addr() + " -p " + f.port + " get " + key)
		if err := lab.Want("the counter, read on "+n.Name, strings.TrimSpace(got), strconv.FormatInt(all, 10)); err != nil {
			f.Error(err)
		}
	}
	f.Logf("    %d increments were answered and done", all)
}

// migrating is a move that is waited for, beside what is done to it.
type migrating struct {
	over chan struct{} // closed when the rest is known
	done api.Migration
	err  error
}

func (f *faults) migrate() *migrating {
	m := &migrating{over: make(chan struct{})}
	third, volume, to := f.third, f.volume, f.to.Name
	go func() {
		defer close(m.over)
		m.done, m.err = lab.Ask[api.Migration](third, "migrate", "--max-pause", "30s", volume, to)
	}()
	f.Cleanup(func() { <-m.over })
	return m
}

// ended waits until a move is over, and says whether the volume has moved.
func (f *faults) ended(m *migrating) (moved bool) {
	f.Helper()
	select {
	case <-m.over:
	case <-time.After(later):
		f.Fatalf("the migration is not over after %s", later)
	}
	if m.err != nil {
		f.Logf("    it has not moved: %s", lastLine(m.err.Error()))
		return false
	}
	if m.done.State != api.MigrationDone {
		f.Fatalf("it ended with %+v", m.done)
	}
	f.Logf("    it has moved; clients waited for %.1fs", m.done.PausedSeconds)
	return true
}

// upon runs a script on a node until it says "now".
func (f *faults) upon(n *lab.Node, script string) <-chan struct{} {
	f.Helper()
	now := make(chan struct{})
	var once sync.Once
	n.Follow(script, func(s string) {
		if s == "now" {
			once.Do(func() { close(now) })
		}
	})
	return now
}

// await waits for what a script says of a move that is under way.
func (f *faults) await(what string, m *migrating, now <-chan struct{}) {
	f.Helper()
	select {
	case <-now:
	case <-m.over:
		select {
		case <-now:
		default:
			f.Fatalf("the move was over before %s: %+v, %v", what, m.done, m.err)
		}
	case <-time.After(later):
		f.Fatalf("waited %s for %s", later, what)
	}
}

// uponEvent is a script that does something at the next event of an engine.
func uponEvent(n *lab.Node, event, do string) string {
	since := strings.TrimSpace(n.Sh("date +%s"))
	return fmt.Sprintf("read -r line < <(docker events --since %s --filter type=container --filter event=%s)\n%s\necho now", since, event, do)
}

// uponHeld is a script that does something once the container stands still before its stop,
// which goes on when the file hold is gone from dir.
func uponHeld(dir, do string) string {
	return fmt.Sprintf("until [ -e %s/held ]; do sleep 0.05; done\n%s\necho now", dir, do)
}

// dir is where the volume is mounted before it moves.
func (f *faults) dir() string {
	f.Helper()
	v, err := f.from.DockerVolume(f.volume)
	if err != nil {
		f.Fatal(err)
	}
	return v.Mountpoint
}

// inside runs a command in the container.
func (f *faults) inside(script string) {
	f.Helper()
	f.node.Docker("exec", f.container, "sh", "-c", script)
}

// began tells one run of the container from another.
func (f *faults) began() string {
	f.Helper()
	return f.node.Docker("inspect", "-f", "{{.Id}} {{.State.StartedAt}}", f.container)
}

// onlyOn waits until of these nodes one alone runs the container and has the volume mounted:
// the one that all of them take for its primary.
func (f *faults) onlyOn(nodes ...*lab.Node) {
	f.Helper()
	for _, n := range nodes {
		owns := n.Name == f.node.Name
		f.Until(fmt.Sprintf("the container to run on %s alone, by %s", f.node, n), soon, func() error {
			out, err := n.TryDocker("ps", "-q", "--filter", "name="+f.container)
			if err != nil {
				return err
			}
			if runs := len(strings.Fields(out)); runs > 1 || (runs == 1) != owns {
				return fmt.Errorf("%d run there", runs)
			}
			is, err := mounted(n, f.v)
			if err == nil {
				err = lab.Want("the volume is mounted there", is, owns)
			}
			if err != nil {
				return err
			}
			v, err := n.Volume(f.volume)
			if err != nil {
				return err
			}
			return lab.Want("the primary", v.Primary.Name, f.node.Name)
		})
	}
}

// linkAhead: the nodes lose each other just before the copies ahead of the pause. Nothing is
// stopped, and no client notices.
func (f *faults) linkAhead() {
	f.roles()
	var m *migrating
	var before string
	f.Step("the link is cut while it is copied ahead", func() {
		f.askOn("ahead", f.from, f.third)
		before = f.began()
		f.inside("touch /data/hold")
		dir := f.dir()
		cut := f.upon(f.from, uponHeld(dir, "lab-block "+f.to.Addr()+"; rm -f "+dir+"/hold"))
		m = f.migrate()
		f.await("the container to stand still", m, cut)
	})
	f.Step("nothing was stopped", func() {
		if f.ended(m) {
			f.Fatalf("it has moved to a node that cannot be reached: %+v", m.done)
		}
		f.onlyOn(f.Nodes()...)
		if now := f.began(); now != before {
			f.Errorf("the container is %s, and was %s", now, before)
		}
		f.progress(20)
	})
	f.Step("healed, every client was answered once", func() {
		f.Heal()
		f.well()
		f.answered("ahead")
	})
}

// linkStopped: the nodes lose each other when the container has stopped. It runs again where it
// was, unless what was written last was across by then. A client of a third node, which reaches
// both, is answered by one of them.
func (f *faults) linkStopped() {
	f.roles()
	var m *migrating
	f.Step("the link is cut as soon as the container has stopped", func() {
		f.askOn("stopped", f.third)
		cut := f.upon(f.from, uponEvent(f.from, "die", "lab-block "+f.to.Addr()))
		m = f.migrate()
		f.await("the container to stop", m, cut)
	})
	f.Step("it is where it was, or has moved, and its client goes on", func() {
		if f.ended(m) {
			f.node = f.to
		}
		f.progress(20)
		f.onlyOn(f.Nodes()...)
	})
	f.Step("healed, every client was answered once", func() {
		f.Heal()
		f.well()
		f.answered("stopped")
	})
}

// refused: the container does not start on the new node, as nobody could know before.
func (f *faults) refused() {
	f.roles()
	f.Step("the container does not start there: it runs again where it was, and why is said", func() {
		f.askOn("refused", f.Nodes()...)
		f.inside("echo " + bootOf(f.to) + " >/data/refused")
		m := f.migrate()
		if f.ended(m) {
			f.Fatalf("it has moved to a machine that it refuses: %+v", m.done)
		}
		for _, word := range []string{f.to.Name, "code 3", "this machine is refused"} {
			if !strings.Contains(m.err.Error(), word) {
				f.Errorf("%q is not in: %v", word, m.err)
			}
		}
		f.progress(20)
		f.onlyOn(f.Nodes()...)
		f.well()
	})
	f.Step("it goes there once it can, and every client was answered once", func() {
		f.inside("rm /data/refused")
		if m := f.migrate(); !f.ended(m) {
			f.Fatal(m.err)
		}
		f.node = f.to
		f.progress(20)
		f.onlyOn(f.Nodes()...)
		f.well()
		f.answered("refused")
	})
}

// targetAhead: the new node loses power before anything is stopped. No client of another one
// notices.
func (f *faults) targetAhead() {
	f.roles()
	var m *migrating
	var before string
	f.Step("the new node loses power while it is copied ahead", func() {
		f.askOn("lost", f.from, f.third)
		before = f.began()
		f.inside("touch /data/hold")
		held := f.upon(f.from, uponHeld(f.dir(), ":"))
		m = f.migrate()
		f.await("the container to stand still", m, held)
		f.Cut(f.to)
		f.inside("rm -f /data/hold")
	})
	f.Step("nothing was stopped", func() {
		if f.ended(m) {
			f.Fatalf("it has moved to a node that has no power: %+v", m.done)
		}
		f.onlyOn(f.from, f.third)
		if now := f.began(); now != before {
			f.Errorf("the container is %s, and was %s", now, before)
		}
		f.progress(20)
	})
	f.Step("with power again, every client was answered once", func() {
		f.Boot(f.to)
		f.well()
		f.onlyOn(f.Nodes()...)
		f.answered("lost")
	})
}

// raise has a client of the third node count, and returns once it does.
func (f *faults) raise() (raised *counter, run *lab.Follower) {
	f.Helper()
	raised = &counter{}
	run = f.third.Follow(raises(f.third.Addr(), f.port), raised.line)
	raised.wait(f.cluster, 30)
	return raised, run
}

// taken waits until one of the two others has taken over from a node without power, and its
// container serves there. It returns how far that counts.
func (f *faults) taken(lost *lab.Node, since time.Time) (count int64, event api.Event) {
	f.Helper()
	others := slices.DeleteFunc(f.Nodes(), func(n *lab.Node) bool { return n.Name == lost.Name })
	f.node, f.v = f.waitPrimary(f.volume, others...)
	f.Logf("    %s is the primary after %.1fs", f.node, time.Since(since).Seconds())
	f.waitRedis(f.node, f.port)
	f.Logf("    Redis answers there after %.1fs", time.Since(since).Seconds())
	event = f.event(f.node, "volume.failed-over", f.volume)
	f.Logf("    it says: %s", event.Message)
	f.onlyOn(others...)
	return f.redisCount(f.node, f.port), event
}

// back gives a node power again. Then each has the same, and the container runs once.
func (f *faults) back(n *lab.Node) {
	f.Helper()
	f.Boot(n)
	f.well()
	f.onlyOn(f.Nodes()...)
	before := f.redisCount(f.third, f.port)
	raised, run := f.raise()
	run.Stop()
	if raised.first() != before+1 {
		f.Errorf("it goes on with %d, and was at %d", raised.first(), before)
	}
}

// targetStarting: the new node loses power when the volume is its own, and its server has not
// answered anybody yet. Another node takes over, with all that was answered before the move.
func (f *faults) targetStarting() {
	f.roles()
	var raised *counter
	var m *migrating
	var cut time.Time
	f.Step("the new node loses power when its container has been started", func() {
		var run *lab.Follower
		raised, run = f.raise()
		f.inside("echo " + bootOf(f.to) + " >/data/awaited")
		started := f.upon(f.to, uponEvent(f.to, "start", ":"))
		m = f.migrate()
		f.await("the container to be started there", m, started)
		cut = time.Now()
		f.Cut(f.to)
		run.Stop() // what it asks for now would be refused long before anybody has taken over
	})
	f.Step("another node has all that was answered", func() {
		got, _ := f.taken(f.to, cut)
		f.ended(m)
		f.Logf("    it counts to %d, %d was acknowledged", got, raised.last())
		if got < raised.last() || got > raised.last()+onTheWay {
			f.Errorf("it counts to %d; %d was acknowledged, and nobody was answered since the move", got, raised.last())
		}
		f.inside("rm -f /data/awaited")
	})
	f.Step("with power again, that node is a replica", func() { f.back(f.to) })
}

// sourceStopped: the old node loses power when its container has stopped, with what was written
// last on its own disk alone, or on the third node's, too.
func (f *faults) sourceStopped() {
	f.roles()
	var raised *counter
	var m *migrating
	var cut time.Time
	var synced int64
	f.Step("the old node loses power before its last copy is across", func() {
		var run *lab.Follower
		raised, run = f.raise()
		synced = raised.last()
		f.from.Flockctl("volume", "sync", f.volume)
		raised.wait(f.cluster, 30)
		stopped := f.upon(f.from, uponEvent(f.from, "die", "lab-block "+f.to.Addr()))
		m = f.migrate()
		f.await("the container to stop", m, stopped)
		cut = time.Now()
		f.Cut(f.from)
		run.Stop() // as above
	})
	f.Step("another node has all that was synced, and all from before the reported point", func() {
		lost := f.from
		if v, err := f.third.Volume(f.volume); err == nil && v.Primary.Name == f.to.Name {
			// The copy was across after all. Nobody was left behind, then.
			f.node = f.to
			f.ended(m)
			f.waitRedis(f.to, f.port)
			f.onlyOn(f.to, f.third)
			if got := f.redisCount(f.to, f.port); got < raised.last() || got > raised.last()+onTheWay {
				f.Errorf("it has moved and counts to %d; %d was acknowledged", got, raised.last())
			}
			return
		}
		got, event := f.taken(lost, cut)
		f.ended(m)
		f.Logf("    it counts to %d, %d was acknowledged, %d before a sync", got, raised.last(), synced)
		if got < synced {
			f.Errorf("it counts to %d; %d was on all replicas when volume sync returned", got, synced)
		}
		f.checkLoss(event, cut, got, raised)
	})
	f.Step("with power again, that node is a replica", func() { f.back(f.from) })
}
