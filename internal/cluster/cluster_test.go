package cluster

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

func TestOneNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		n := l.node("z1")
		if _, err := Open(n.config()); !errors.Is(err, ErrNoCluster) || volume.CodeOf(err) != volume.CodeNotInit {
			t.Errorf("Open of a fresh node = %v; want ErrNoCluster", err)
		}
		c := n.init()
		// A command that comes before the cluster exists waits for it.
		tok, _, err := c.NewToken(time.Now(), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		l.eventually("a leader", c.IsLeader)
		res, err := c.Propose(t.Context(), state.Envelope{Command: state.CreateToken{Token: tok}})
		if err != nil || res.Err != nil {
			t.Errorf("Propose = %+v, %v", res, err)
		}
		s := c.State()
		if s.Cluster().ID != c.ClusterID() || s.Node(c.ID()).Name != "n1" || s.Token(tok.ID) == nil {
			t.Errorf("state: cluster %v, node %v, token %v", s.Cluster(), s.Node(c.ID()), s.Token(tok.ID))
		}
		index, err := c.Barrier(t.Context())
		if err != nil || index != s.Index {
			t.Errorf("Barrier = %d, %v; want %d", index, err, s.Index)
		}

		if err := n.stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if _, err := Init(t.Context(), n.config(), InitRequest{Name: "n1"}); volume.CodeOf(err) != volume.CodeConflict {
			t.Errorf("Init of a member = %v; want a conflict", err)
		}
		c = n.run(Init(t.Context(), n.config(), InitRequest{Name: "n1", IfNew: true}))
		// The saved state is there before Raft is.
		if c.State().Token(tok.ID) == nil {
			t.Error("after a restart the state is gone")
		}
		l.leader()
		if got := c.State(); got.Cluster().ID != s.Cluster().ID {
			t.Error("after a restart the cluster is another one")
		}
	})
}

func TestThreeNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(3)
		for _, n := range l.nodes {
			c := n.cluster()
			if got := names(c.State()); len(got) != 3 {
				t.Errorf("%s knows %v", n.name, got)
			}
			if _, err := n.disk.Read(fileSeal); err != nil {
				t.Errorf("voter %s has no seal: %v", n.name, err)
			}
			if _, err := c.authority(); err != nil {
				t.Errorf("voter %s cannot sign: %v", n.name, err)
			}
		}

		// A read on a follower that has everything the leader had.
		lead := l.leader()
		follower := l.nodes[0]
		if follower == lead {
			follower = l.nodes[1]
		}
		var not *NotLeaderError
		_, err := follower.cluster().Propose(t.Context(), state.Envelope{Command: state.SetSettings{}})
		if !errors.As(err, &not) || not.Leader != lead.cluster().ID() {
			t.Errorf("Propose on a follower = %v; want NotLeaderError naming %s", err, lead.name)
		}
		l.propose(state.SetSettings{Settings: state.Settings{TrashRetention: time.Hour}})
		index, err := lead.cluster().Barrier(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := follower.cluster().CaughtUp(t.Context(), index); err != nil {
			t.Fatal(err)
		}
		if got := follower.cluster().State().Cluster().Settings.TrashRetention; got != time.Hour {
			t.Errorf("the follower reads %s", got)
		}

		// The leader dies: another one leads within a few seconds, and goes on.
		start := time.Now()
		lead.kill()
		next := l.leader()
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("a new leader took %s", took)
		}
		if next == lead {
			t.Fatal("the dead node leads")
		}
		l.propose(state.SetSettings{})

		// It comes back and catches up.
		lead.start()
		l.settle(3)
	})
}

func TestNoQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(3)
		lead := l.leader()
		lead.isolate()
		request := string(volume.NewNodeID())
		env := state.Envelope{Request: request, Command: state.SetSettings{Settings: state.Settings{TrashRetention: 2 * time.Hour}}}
		_, err := lead.cluster().Propose(t.Context(), env)
		if !errors.Is(err, ErrIndeterminate) || volume.CodeOf(err) != volume.CodeTimeout {
			t.Errorf("Propose without a majority = %v; want ErrIndeterminate", err)
		}
		l.eventually("the cut-off leader steps down", func() bool { return !lead.cluster().IsLeader() })
		_, err = lead.cluster().Propose(t.Context(), env)
		if volume.CodeOf(err) != volume.CodeNoQuorum || errors.Is(err, ErrIndeterminate) {
			t.Errorf("Propose without a leader = %v; want CodeNoQuorum", err)
		}
		if _, err := lead.cluster().Barrier(t.Context()); volume.CodeOf(err) != volume.CodeNoQuorum {
			t.Errorf("Barrier without a leader = %v; want CodeNoQuorum", err)
		}
		// The same request elsewhere takes effect once, however it ended here.
		l.eventually("the others elect a leader", func() bool {
			for _, n := range l.nodes {
				if n != lead && n.cluster().IsLeader() {
					_, err := n.cluster().Propose(t.Context(), env)
					return err == nil
				}
			}
			return false
		})
		l.net.HealAll()
		l.settle(3)
		if got := lead.cluster().State().Cluster().Settings.TrashRetention; got != 2*time.Hour {
			t.Errorf("after healing the old leader reads %s", got)
		}
	})
}

func TestFiveNodesInZones(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(6, "a", "a", "b", "b", "c", "c")
		perZone := map[volume.Zone]int{}
		s := l.leader().cluster().State()
		for _, id := range votersOf(l.leader().cluster().raft.Load()) {
			perZone[s.Node(id).Zone]++
		}
		if perZone["a"] > 2 || perZone["b"] > 2 || perZone["c"] > 2 {
			t.Errorf("voters per zone: %v; want 2-2-1", perZone)
		}
		// A dead voter is replaced by the sixth node, and stays a member.
		var dead *labNode
		voters := votersOf(l.leader().cluster().raft.Load())
		for _, n := range l.nodes {
			if n != l.leader() && n.cluster() != nil && slices.Contains(voters, n.cluster().ID()) {
				dead = n
			}
		}
		id := dead.cluster().ID()
		dead.kill()
		l.eventually("the dead voter is replaced", func() bool {
			now := votersOf(l.leader().cluster().raft.Load())
			return len(now) == 5 && !slices.Contains(now, id)
		})
		if n := l.leader().cluster().State().Node(id); n == nil || n.Removed {
			t.Error("a dead node was removed")
		}
		dead.start()
		l.settle(5)
	})
}

// Two nodes have one voter: the loss of the other one costs nothing.
func TestTwoNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(2)
		time.Sleep(time.Minute)
		l.settle(1)
		// Both could be recovered alone: both have the seal.
		for _, n := range l.nodes {
			if _, err := n.cluster().authority(); err != nil {
				t.Errorf("%s cannot sign: %v", n.name, err)
			}
		}
		l.nodes[1].kill()
		l.propose(state.SetSettings{Settings: state.Settings{TrashRetention: time.Hour}})
		l.nodes[1].start()
		l.settle(1)
	})
}

// All nodes stop and start, in another order, and find each other by themselves.
func TestRestartAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(5)
		for i := range l.nodes {
			l.nodes[i].stop()
		}
		for _, i := range []int{3, 0, 4, 1, 2} {
			c := l.nodes[i].start()
			if len(names(c.State())) != 5 {
				t.Errorf("%s has forgotten its peers: %v", l.nodes[i].name, names(c.State()))
			}
			time.Sleep(5 * time.Second)
		}
		l.settle(5)
	})
}

// A node comes back under another address, one after the other, until none has its
// first one.
func TestNewAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(3)
		for i, n := range l.nodes {
			n.kill()
			n.move("10.9.9." + string(rune('1'+i)))
			n.start()
			l.eventually(n.name+" is known by its new address", func() bool {
				for _, other := range l.nodes {
					if rec := other.cluster().State().Node(n.cluster().ID()); rec == nil || rec.Addr != n.addr() {
						return false
					}
				}
				return true
			})
		}
		l.settle(3)
	})
}

// Two of three voters move at once: the third, which nobody has told, must learn
// where they are without a majority.
func TestMajorityMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(3)
		for i, n := range l.nodes[:2] {
			n.kill()
			n.move("10.9.9." + string(rune('1'+i)))
		}
		for _, n := range l.nodes[:2] {
			n.start()
		}
		l.eventually("the new addresses are on record", func() bool {
			for _, n := range l.nodes {
				if l.nodes[2].cluster().State().Node(n.cluster().ID()).Addr != n.addr() {
					return false
				}
			}
			return true
		})
		l.settle(3)
	})
}

func TestLead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(3)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		var running atomic.Int32
		var mu sync.Mutex
		var causes []error
		starts := map[volume.NodeID]int{}
		for _, n := range l.nodes {
			c := n.cluster()
			wg.Go(func() {
				c.Lead(ctx, func(ctx context.Context) error {
					running.Add(1)
					defer running.Add(-1)
					mu.Lock()
					starts[c.ID()]++
					mu.Unlock()
					<-ctx.Done()
					mu.Lock()
					causes = append(causes, context.Cause(ctx))
					mu.Unlock()
					return context.Cause(ctx)
				})
			})
		}
		one := func() bool { return running.Load() == 1 }
		l.eventually("one leads", one)
		lead := l.leader()
		lead.isolate()
		l.eventually("the old one has stopped and a new one leads", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(causes) == 1 && errors.Is(causes[0], ErrLeadershipLost) && one()
		})
		l.net.HealAll()
		if err := l.leader().cluster().Abdicate(t.Context()); err != nil {
			t.Errorf("Abdicate = %v", err)
		}
		l.eventually("after a transfer one leads", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(causes) == 2 && one()
		})
		// A node that stops ends its Lead, too.
		l.leader().stop()
		l.eventually("after a stop one leads", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(causes) == 3 && one()
		})
		cancel()
		wg.Wait()
	})
}

// Work that fails hands leadership over, so that another node may have more luck.
func TestLeadFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(3)
		bad := l.leader()
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		var tries atomic.Int32
		wg.Go(func() {
			bad.cluster().Lead(ctx, func(context.Context) error {
				tries.Add(1)
				return errors.New("broken on this node")
			})
		})
		l.eventually("another node leads", func() bool { return l.leader() != bad })
		if tries.Load() != 1 {
			t.Errorf("the work was tried %d times in one reign", tries.Load())
		}
		cancel()
		wg.Wait()
	})
}

// Concurrent callers share a Barrier, but never one that began before they came.
func TestBarrierIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(3)
		l.settle(3)
		c := l.leader().cluster()
		before := c.raft.Load().LastIndex()
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				if _, err := c.Barrier(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if used := c.raft.Load().LastIndex() - before; used > 10 {
			t.Errorf("200 concurrent callers used %d log entries", used)
		}
	})
}

// A leader whose disk hangs keeps everybody waiting: it must exit.
func TestDiskHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(3)
		lead := l.leader()
		lead.disk.Stall(true)
		var err error
		l.eventually("the leader gives up", func() bool {
			select {
			case err = <-lead.done:
				return true
			default:
				return false
			}
		})
		if !errors.Is(err, errDiskHangs) {
			t.Errorf("Run = %v; want errDiskHangs", err)
		}
		lead.mu.Lock()
		lead.c = nil
		lead.mu.Unlock()
		l.net.Crash(lead.host) // the process is gone
		if l.leader() == lead {
			t.Error("it still leads")
		}
		lead.disk.Stall(false) // so that what hangs can end
		time.Sleep(time.Minute)
	})
}

// A leader whose disk is slow proves its lead too late for those who wait, though it never
// hangs: another one leads.
func TestDiskIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(3)
		slow := l.leader()
		slow.disk.Slow(2 * time.Second)
		defer slow.disk.Slow(0)
		l.eventually("another one leads", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			slow.cluster().Barrier(ctx) // as each beat asks for one
			return !slow.cluster().IsLeader()
		})
		if l.leader() == slow {
			t.Error("it leads again")
		}
	})
}

// An entry that this version does not know stops the node; it does not skip it.
func TestUnknownCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		n := l.node("z1")
		c := n.init()
		l.leader()
		l.eventually("initialised", func() bool { return c.State().Cluster() != nil })
		index := c.State().Index
		c.raft.Load().Apply([]byte(`{"v":1,"kind":"from-the-future","at":"2030-01-01T00:00:00Z","body":{}}`), time.Second)
		err := <-n.done
		if !errors.Is(err, state.ErrUnknownCommand) {
			t.Errorf("Run = %v; want ErrUnknownCommand", err)
		}
		n.mu.Lock()
		n.c = nil
		n.mu.Unlock()
		// It does so again at each start, and never goes past the entry.
		c = n.start()
		if err := <-n.done; !errors.Is(err, state.ErrUnknownCommand) {
			t.Errorf("second Run = %v; want ErrUnknownCommand", err)
		}
		if got := c.State().Index; got != index {
			t.Errorf("the state moved from index %d to %d", index, got)
		}
		n.mu.Lock()
		n.c = nil
		n.mu.Unlock()
	})
}

// A node that was away for longer than the log is kept gets the state as a snapshot,
// and all nodes start from their own.
func TestSnapshots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(3)
		var away *labNode
		for _, n := range l.nodes {
			if n != l.leader() {
				away = n
			}
		}
		away.stop()
		lead := l.leader()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				for range 50 {
					if _, err := lead.cluster().Propose(t.Context(), state.Envelope{Command: state.SetSettings{}}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		l.eventually("the log is trimmed", func() bool {
			first, err := lead.disk.store.FirstIndex()
			return err == nil && first > 1000
		})
		l.propose(state.SetSettings{Settings: state.Settings{TrashRetention: time.Hour}})
		away.start()
		l.settle(3)
		for _, n := range l.nodes {
			n.stop()
			if err := n.disk.Remove(fileCache); err != nil { // so that it is not this that helps
				t.Fatal(err)
			}
		}
		for _, n := range l.nodes {
			n.start()
		}
		l.eventually("all have the state back", func() bool {
			for _, n := range l.nodes {
				if cl := n.cluster().State().Cluster(); cl == nil || cl.Settings.TrashRetention != time.Hour {
					return false
				}
			}
			return true
		})
	})
}
