package cluster

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
)

func yes(Recovery) error { return nil }

// recover makes the cluster anew from a node that is stopped, and starts it.
func (n *labNode) recover() Recovery {
	n.lab.t.Helper()
	r, err := Recover(n.config(), time.Now(), yes)
	if err != nil {
		n.lab.t.Fatalf("recovering from %s: %v", n.name, err)
	}
	n.start()
	return r
}

// ended waits until a node has stopped by itself, and returns why.
func (n *labNode) ended() error {
	err := <-n.done
	n.mu.Lock()
	defer n.mu.Unlock()
	n.c = nil
	return err
}

// Two of three are lost. The third goes on alone in another generation; each of the two
// is told, stays out also after a restart, and joins again as the node that it was.
func TestRecover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(3)
		a, b, c := l.nodes[0], l.nodes[1], l.nodes[2]
		was := b.cluster().ID()
		for _, n := range []*labNode{a, b, c} {
			n.kill()
		}
		r := a.recover()
		if r.NewCA || len(r.Voters) != 3 || r.Next.Cluster().Generation != 1 || r.Was.Cluster().Generation != 0 || r.Index < r.Was.Index {
			t.Errorf("it was %+v", r)
		}
		l.settle(1)
		for n := range a.cluster().State().Nodes() {
			if n.Lost != (n.Name != a.name) {
				t.Errorf("node %s: lost is %t", n.Name, n.Lost)
			}
		}
		if _, err := a.cluster().Dial(t.Context(), was, transport.ProtoNode); err == nil || !strings.Contains(err.Error(), "has not joined again") {
			t.Errorf("Dial of one that was left behind: %v", err)
		}

		// Together they are most of the old voters.
		b.start()
		c.start()
		for _, n := range []*labNode{b, c} {
			if err := n.ended(); err != ErrLeftBehind {
				t.Fatalf("%s ended with %v", n.name, err)
			}
			if _, err := Open(n.config()); err != ErrLeftBehind {
				t.Errorf("%s opens: %v", n.name, err)
			}
			if _, err := Init(t.Context(), n.config(), InitRequest{Name: "x"}); err != ErrLeftBehind {
				t.Errorf("%s makes a cluster: %v", n.name, err)
			}
			if _, err := Join(t.Context(), n.config(), JoinRequest{Name: "x", IfNew: true}); err != ErrLeftBehind {
				t.Errorf("%s is brought back by a script: %v", n.name, err)
			}
			if _, err := Recover(n.config(), time.Now(), yes); !errors.Is(err, ErrLeftBehind) {
				t.Errorf("%s is recovered: %v", n.name, err)
			}
		}
		token := l.token(0, 0)
		b.join(a, token)
		c.join(a, token)
		l.settle(3)
		if now := b.cluster().ID(); now != was {
			t.Errorf("it came back as %s, was %s", now, was)
		}
		if got := names(a.cluster().State()); len(got) != 3 {
			t.Errorf("members %v", got)
		}
		// It is a cluster like any other: after a restart of all, too.
		for _, n := range l.nodes {
			n.kill()
		}
		for _, n := range l.nodes {
			n.start()
		}
		l.settle(3)
	})
}

// One that was never a voter cannot sign for anybody, and makes another authority.
func TestRecoverWithoutSeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(4)
		var survivor *labNode
		for _, n := range l.nodes {
			if !l.leader().cluster().Servers()[n.cluster().ID()] {
				survivor = n
			}
		}
		for _, n := range l.nodes {
			n.kill()
		}
		if r := survivor.recover(); !r.NewCA {
			t.Error("it uses an authority that it has no key of")
		}
		l.settle(1)
		l.node("z").join(survivor, l.token(0, 0))
		l.settle(1)
	})
}

// What is refused changes nothing.
func TestRecoverRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		fresh := l.node("z")
		if _, err := Recover(fresh.config(), time.Now(), yes); err != ErrNoCluster {
			t.Errorf("of no member: %v", err)
		}
		fresh.init()
		token := l.token(0, 0)
		l.settle(1)
		fresh.kill()
		if _, err := Recover(fresh.config(), time.Now(), yes); volume.CodeOf(err) != volume.CodeRefused || !strings.Contains(err.Error(), "only voter") {
			t.Errorf("of the only voter: %v", err)
		}
		fresh.start()
		l.node("z").join(fresh, token)
		l.node("z").join(fresh, token)
		l.settle(3)
		fresh.kill()
		no := errors.New("no")
		if _, err := Recover(fresh.config(), time.Now(), func(Recovery) error { return no }); err != no {
			t.Errorf("of one who says no: %v", err)
		}
		fresh.start()
		l.settle(3)
		for _, n := range l.nodes {
			if g := n.cluster().State().Cluster().Generation; g != 0 {
				t.Errorf("%s is in generation %d", n.name, g)
			}
		}
	})
}

// A node that runs has its log open.
func TestRecoverLocked(t *testing.T) {
	disk := DirDisk(t.TempDir())
	cfg, err := Config{Disk: disk, Advertise: "n1:4523"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if err := writeInit(cfg, InitRequest{Name: "n1"}); err != nil {
		t.Fatal(err)
	}
	stores, err := disk.OpenRaft(raftLogger(cfg.Log))
	if err != nil {
		t.Fatal(err)
	}
	defer stores.Close()
	if _, err := Recover(cfg, time.Now(), yes); err == nil || !strings.Contains(err.Error(), "stop flockd first") {
		t.Errorf("while its log is open: %v", err)
	}
}

// A recovery that ends at any of its writes is completed by doing it again.
func TestRecoverInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(3)
		for _, n := range l.nodes {
			n.kill()
		}
		a := l.nodes[0]
		cut := errors.New("power cut")
		cuts := 0
		for {
			cfg := a.config()
			cfg.Disk = &cutDisk{Disk: a.disk, left: cuts, err: cut}
			_, err := Recover(cfg, time.Now(), yes)
			if err == nil || volume.CodeOf(err) == volume.CodeRefused {
				break // also when only the old log was left to drop
			}
			if !strings.Contains(err.Error(), cut.Error()) {
				t.Fatal(err)
			}
			cuts++
		}
		if cuts < 4 {
			t.Errorf("only %d writes were cut", cuts)
		}
		a.start()
		l.settle(1)
		if g := a.cluster().State().Cluster().Generation; g != 1 {
			t.Errorf("it is in generation %d", g)
		}
	})
}

// cutDisk fails every change after the first few.
type cutDisk struct {
	Disk
	left int
	err  error
}

func (d *cutDisk) change() error {
	if d.left--; d.left < 0 {
		return d.err
	}
	return nil
}

func (d *cutDisk) Write(name string, data []byte) error {
	if err := d.change(); err != nil {
		return err
	}
	return d.Disk.Write(name, data)
}

func (d *cutDisk) Remove(name string) error {
	if err := d.change(); err != nil {
		return err
	}
	return d.Disk.Remove(name)
}

func (d *cutDisk) OpenRaft(log hclog.Logger) (*Stores, error) {
	s, err := d.Disk.OpenRaft(log)
	if err != nil {
		return nil, err
	}
	cut := *s
	cut.Snapshots = cutSnapshots{s.Snapshots, d}
	cut.Logs = cutLogs{s.Logs, d}
	return &cut, nil
}

type cutSnapshots struct {
	raft.SnapshotStore
	disk *cutDisk
}

func (s cutSnapshots) Create(v raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, t raft.Transport) (raft.SnapshotSink, error) {
	if err := s.disk.change(); err != nil {
		return nil, err
	}
	return s.SnapshotStore.Create(v, index, term, conf, confIndex, t)
}

type cutLogs struct {
	raft.LogStore
	disk *cutDisk
}

func (s cutLogs) DeleteRange(from, to uint64) error {
	if err := s.disk.change(); err != nil {
		return err
	}
	return s.LogStore.DeleteRange(from, to)
}

// Raft hears nothing of a peer of another generation, and all of one of its own.
func TestGenerations(t *testing.T) {
	for _, peer := range []uint32{0, 1, 2} {
		there, here := net.Pipe()
		s := &streamLayer{generation: 1, conns: map[net.Conn]struct{}{}}
		c, err := s.track(here, true)
		if err != nil {
			t.Fatal(err)
		}
		said := make(chan error, 1)
		go func() {
			_, err := there.Write(append(binary.BigEndian.AppendUint32(nil, peer), "vote"...))
			said <- errors.Join(err, there.Close())
		}()
		got, err := io.ReadAll(c)
		if heard := string(got) == "vote"; heard != (peer == 1) || heard != (err == nil) {
			t.Errorf("of generation %d it hears %q, %v", peer, got, err)
		}
		c.Close()
		<-said
	}
}
