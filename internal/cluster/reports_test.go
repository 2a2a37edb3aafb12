package cluster

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
)

func TestReports(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	later := now.Add(3 * time.Second)
	leader, follower := NewReports(), NewReports()
	rep := func(id volume.NodeID, applied uint64) volume.Report { return volume.Report{Node: id, Applied: applied} }
	leader.Put(rep("a", 1), now)
	leader.Put(rep("b", 1), now)

	// A follower gets what it does not have, once.
	changed := follower.Changed()
	follower.Merge(leader.Since(follower.Revisions(), now), later)
	select {
	case <-changed:
	default:
		t.Error("Merge woke nobody")
	}
	if got := leader.Since(follower.Revisions(), now); len(got) != 0 {
		t.Errorf("nothing is new, but Since = %v", got)
	}
	leader.Put(rep("b", 2), later)
	got := leader.Since(follower.Revisions(), later)
	if len(got) != 1 || got[0].Report.Node != "b" || got[0].Report.Applied != 2 {
		t.Errorf("Since = %+v; want b's second report", got)
	}

	// Ages count on, by each side's own clock.
	if r, ok := follower.Get("a", later.Add(time.Second)); !ok || r.Age != time.Second {
		t.Errorf("Get = %+v, %t; want an age of 1s", r, ok)
	}
	if _, ok := follower.Get("z", now); ok {
		t.Error("a report of nobody")
	}

	// Another leader, which knows less: its revisions are others, so the follower
	// takes its view.
	second := NewReports()
	second.Put(rep("b", 3), later)
	follower.Merge(second.Since(follower.Revisions(), later), later)
	if r, _ := follower.Get("b", later); r.Report.Applied != 3 {
		t.Errorf("after a change of leader b is at %d", r.Report.Applied)
	}
	follower.Forget("a")
	if all := follower.All(later); len(all) != 1 || all[0].Report.Node != "b" {
		t.Errorf("All = %+v", all)
	}
}

func TestReportsConcurrently(t *testing.T) {
	a, b := NewReports(), NewReports()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 200 {
				a.Put(volume.Report{Node: volume.NodeID(fmt.Sprint(i))}, time.Now())
				b.Merge(a.Since(b.Revisions(), time.Now()), time.Now())
				b.All(time.Now())
			}
		})
	}
	wg.Wait()
	if len(b.All(time.Now())) != 8 {
		t.Errorf("%d entries; want 8", len(b.All(time.Now())))
	}
}

func TestHealthOf(t *testing.T) {
	for _, tt := range []struct {
		reported bool
		age      time.Duration
		gossip   Health
		want     Health
	}{
		{false, 0, Unknown, Unknown},
		{false, 0, Alive, Suspect},
		{false, 0, Dead, Dead},
		{true, time.Second, Unknown, Alive},
		{true, time.Second, Dead, Alive}, // gossip may be cut where reports are not
		{true, 10 * time.Second, Unknown, Suspect},
		{true, 10 * time.Second, Alive, Suspect},
		{true, 10 * time.Second, Dead, Dead},
		{true, time.Minute, Alive, Suspect}, // it lives, but does not report
		{true, time.Minute, Unknown, Dead},
		{true, time.Minute, Dead, Dead},
	} {
		if got := HealthOf(tt.reported, tt.age, tt.gossip); got != tt.want {
			t.Errorf("HealthOf(%t, %s, %s) = %s; want %s", tt.reported, tt.age, tt.gossip, got, tt.want)
		}
	}
}

func TestLifeWatch(t *testing.T) {
	w, now := newLifeWatch(), time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, step := range []struct {
		after       time.Duration
		h           Health
		alive, dead time.Duration
	}{
		{0, Alive, 1, 0},
		{5 * time.Second, Alive, 5 * time.Second, 0},
		{6 * time.Second, Suspect, 0, 0},
		{7 * time.Second, Alive, 1, 0}, // from the beginning
		{9 * time.Second, Dead, 0, 1},
		{69 * time.Second, Dead, 0, time.Minute},
	} {
		alive, dead := w.see("n", step.h, now.Add(step.after))
		if alive != step.alive || dead != step.dead {
			t.Errorf("after %s: alive %s, dead %s; want %s, %s", step.after, alive, dead, step.alive, step.dead)
		}
	}
}

func TestSeal(t *testing.T) {
	key := newSealKey()
	sealed, err := seal(key, "c1", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := unseal(key, "c1", sealed); err != nil || string(got) != "secret" {
		t.Errorf("unseal = %q, %v", got, err)
	}
	for name, try := range map[string]func() ([]byte, error){
		"another key":     func() ([]byte, error) { return unseal(newSealKey(), "c1", sealed) },
		"another cluster": func() ([]byte, error) { return unseal(key, "c2", sealed) },
		"cut off":         func() ([]byte, error) { return unseal(key, "c1", sealed[:5]) },
		"short key":       func() ([]byte, error) { return unseal(key[:5], "c1", sealed) },
		"changed":         func() ([]byte, error) { return unseal(key, "c1", append(bytes.Clone(sealed[:20]), sealed[19:]...)) },
	} {
		if got, err := try(); err == nil {
			t.Errorf("%s opens it: %q", name, got)
		}
	}
}

// A warning that repeats is shown once per half minute, with a count.
func TestRaftLogRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l := raftLogger(slog.New(slog.NewTextHandler(&b, nil)))
		for range 100 {
			l.Error("failed to heartbeat to", "peer", "n1")
			l.Error("failed to heartbeat to", "peer", "n2")
			time.Sleep(time.Second)
		}
		if got := strings.Count(b.String(), "\n"); got != 8 {
			t.Errorf("%d lines; want 4 for each peer:\n%s", got, b.String())
		}
		if !strings.Contains(b.String(), "repeated=29") {
			t.Errorf("no count:\n%s", b.String())
		}
	})
}

// A removed node is refused, its open connections are closed, and it stops by itself
// when it learns of it.
func TestRemovedNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(2)
		a, b := l.nodes[0].cluster(), l.nodes[1].cluster()
		ln := a.Listener(transport.ProtoStream)
		conn, err := b.Dial(t.Context(), a.ID(), transport.ProtoStream)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		accepted, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()

		// Only the other one knows of it: the log of the removed node may end before.
		gone := removedIn(t, a.State(), b.ID())
		a.publish(gone)
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("the removed node's connection is open")
		}
		if _, err := b.Dial(t.Context(), a.ID(), transport.ProtoStream); err == nil || !strings.Contains(err.Error(), "node n2 was removed from the cluster") {
			t.Errorf("the removed node's Dial = %v", err)
		}
		if _, err := a.Dial(t.Context(), b.ID(), transport.ProtoStream); volume.CodeOf(err) != volume.CodeNotFound {
			t.Errorf("Dial of the removed node = %v", err)
		}
		if err := <-l.nodes[1].done; err != ErrRemoved {
			t.Errorf("Run of the removed node = %v; want ErrRemoved", err)
		}
		l.nodes[1].mu.Lock()
		l.nodes[1].c = nil
		l.nodes[1].mu.Unlock()
	})
}

// removedIn is a later state in which a node was removed.
func removedIn(t *testing.T, s *state.State, id volume.NodeID) *state.State {
	t.Helper()
	var b bytes.Buffer
	if err := s.Marshal(&b); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(b.String(), fmt.Sprintf(`{"id":%q,`, id), fmt.Sprintf(`{"id":%q,"removed":true,`, id), 1)
	text = strings.Replace(text, fmt.Sprintf(`"index":%d`, s.Index), `"index":1000000`, 1)
	gone, err := state.Unmarshal(strings.NewReader(text))
	if err != nil || gone.Node(id) == nil || !gone.Node(id).Removed {
		t.Fatalf("cannot make the state: %v", err)
	}
	return gone
}
