package placement

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// randomWorld is a cluster with some of everything wrong with it.
func randomWorld(r *rand.Rand, nodes, volumes int) world {
	w := world{reports: map[volume.NodeID]Heard{}, salt: r.Uint64()}
	zones := 1 + r.IntN(4)
	for i := range nodes {
		n := &state.Node{
			ID: volume.NodeID(fmt.Sprintf("%032x", i)), Name: fmt.Sprintf("n%d", i),
			Zone: volume.Zone(fmt.Sprintf("z%d", r.IntN(zones))), Availability: state.Active,
		}
		rep := &volume.Report{Node: n.ID, At: now, Applied: 1000, Pool: volume.PoolInfo{Health: "ONLINE", Size: int64(1+r.IntN(20)) * 1e11}}
		rep.Pool.Free = rep.Pool.Size / 100 * int64(20+r.IntN(81))
		heard := now
		switch r.IntN(12) {
		case 0:
			n.Availability = state.Drain
		case 1:
			n.Witness, rep.Pool = true, volume.PoolInfo{}
		case 2:
			heard = now.Add(-ReportFresh - time.Duration(r.IntN(60))*time.Second)
		case 3:
			rep.Pool.Health = []string{"DEGRADED", "SUSPENDED", "unknown", ""}[r.IntN(4)]
		case 4:
			rep = nil
		}
		w.nodes = append(w.nodes, n)
		if rep != nil {
			w.reports[n.ID] = Heard{Report: rep, At: heard}
		}
	}
	for i := range volumes {
		vol := &state.Volume{
			ID: volume.ID(fmt.Sprintf("%016x", i)), Name: fmt.Sprintf("v%d", i), Phase: state.PhaseActive, Epoch: 1,
			Spec: randomSpec(r), Created: now.Add(-time.Hour),
		}
		// Placed anyhow, as an earlier cluster may have: only distinct.
		order := r.Perm(nodes)
		take := func(most int) (ids []volume.NodeID) {
			for range min(r.IntN(most+1), len(order)) {
				ids, order = append(ids, w.nodes[order[0]].ID), order[1:]
			}
			return ids
		}
		vol.Placement.Primary = w.nodes[order[0]].ID
		order = order[1:]
		vol.Placement.Local, vol.Placement.Remote = take(vol.Spec.Replicas), take(vol.Spec.Remote)
		w.volumes = append(w.volumes, vol)
		for _, id := range vol.Placement.Nodes() {
			if h, ok := w.reports[id]; ok && r.IntN(8) > 0 {
				h.Report.Volumes = append(h.Report.Volumes, volume.Status{
					Volume: vol.ID, Exists: true, Used: int64(r.IntN(1e9)), Newest: volume.Position{GUID: 1},
				})
			}
		}
	}
	return w
}

func randomSpec(r *rand.Rand) volume.Spec {
	return volume.Spec{Size: int64(r.IntN(3)) * 1e9, Replicas: r.IntN(4), Remote: r.IntN(3), Strict: r.IntN(8) == 0}
}

func TestPlacementsAreSound(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := randomWorld(r, 1+r.IntN(12), r.IntN(40))
		v := w.view()
		for range 10 {
			spec := randomSpec(r)
			prefer := w.nodes[r.IntN(len(w.nodes))].ID
			p, short, err := Place(v, spec, prefer)
			if err != nil {
				if c := volume.CodeOf(err); c != volume.CodeRefused && c != volume.CodeUnavailable {
					t.Fatalf("seed %d: Place failed with code %q: %v", seed, c, err)
				}
				continue
			}
			checkPlacement(t, seed, v, spec, p)
			if got := len(p.Local) + short.Local; got != spec.Replicas {
				t.Fatalf("seed %d: %d local replicas and %d missing, want %d in all", seed, len(p.Local), short.Local, spec.Replicas)
			}
			if got := len(p.Remote) + short.Remote; got != spec.Remote {
				t.Fatalf("seed %d: %d remote replicas and %d missing, want %d in all", seed, len(p.Remote), short.Remote, spec.Remote)
			}
			if spec.Strict && !short.IsZero() {
				t.Fatalf("seed %d: strict, yet placed with %s", seed, short)
			}
			again, _, _ := Place(w.view(), spec, prefer)
			if !reflect.DeepEqual(p, again) {
				t.Fatalf("seed %d: placed %s, then %s in the same view", seed, show(p), show(again))
			}
		}
	}
}

// checkPlacement holds a new placement against the rules.
func checkPlacement(t *testing.T, seed uint64, v *View, spec volume.Spec, p volume.Placement) {
	t.Helper()
	seen := map[volume.NodeID]bool{}
	for _, id := range p.Nodes() {
		if seen[id] {
			t.Fatalf("seed %d: node %s twice in %s", seed, id, show(p))
		}
		seen[id] = true
		if n := v.Node(id); n.Witness || n.Availability != state.Active || !n.poolKnown() || n.usage(spec.Size) >= maxUsage {
			t.Fatalf("seed %d: node %s may not take a copy: %+v", seed, id, *n)
		}
	}
	zone := v.zoneOf(p.Primary)
	for _, id := range p.Local {
		if v.zoneOf(id) != zone {
			t.Fatalf("seed %d: local replica %s is not in zone %s", seed, id, zone)
		}
	}
	perZone, used := map[volume.Zone]int{}, map[volume.Zone]int{}
	for i := range v.Nodes {
		if n := &v.Nodes[i]; n.Zone != zone && n.unfit(max(spec.Size, growthReserve)) == fit {
			perZone[n.Zone]++
		}
	}
	for _, id := range p.Remote {
		z := v.zoneOf(id)
		if z == zone {
			t.Fatalf("seed %d: remote replica %s is in the primary's zone", seed, id)
		}
		used[z]++
	}
	for z, n := range used {
		for other, room := range perZone {
			if n > used[other]+1 && used[other] < room {
				t.Fatalf("seed %d: %d remote replicas in %s, but %d in %s, which has room", seed, n, z, used[other], other)
			}
		}
	}
}

func TestRepairIsSoundAndSettles(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		w := randomWorld(r, 1+r.IntN(12), r.IntN(60))
		for round := 0; ; round++ {
			if round > 1000 {
				t.Fatalf("seed %d: repair does not settle", seed)
			}
			cmds := Repair(w.view())
			if again := Repair(w.view()); !reflect.DeepEqual(cmds, again) {
				t.Fatalf("seed %d: the same view gave two plans:\n%s\n%s", seed, showAll(cmds), showAll(again))
			}
			if len(cmds) == 0 {
				break
			}
			for _, cmd := range cmds {
				w.apply(t, seed, cmd.(state.SetReplicas))
			}
		}
	}
}

// apply does what the cluster would and lets the new copies arrive at once.
func (w *world) apply(t *testing.T, seed uint64, c state.SetReplicas) {
	t.Helper()
	i := slices.IndexFunc(w.volumes, func(v *state.Volume) bool { return v.ID == c.ID })
	old := w.volumes[i]
	changed := *old
	changed.Placement = volume.Placement{Primary: old.Placement.Primary, Local: c.Local, Remote: c.Remote}
	now := changed.Placement.Nodes()
	for _, id := range old.Placement.Nodes() {
		if !slices.Contains(now, id) {
			t.Fatalf("seed %d: repair took the copy of %s on %s away", seed, c.ID, id)
		}
	}
	for i, id := range now {
		if slices.Contains(now[:i], id) {
			t.Fatalf("seed %d: repair put two copies of %s on %s", seed, c.ID, id)
		}
		if h, ok := w.reports[id]; ok && !slices.Contains(old.Placement.Nodes(), id) {
			h.Report.Volumes = append(h.Report.Volumes, volume.Status{Volume: c.ID, Exists: true, Newest: volume.Position{GUID: 1}})
		}
	}
	if len(now) > 1+max(old.Spec.Replicas+old.Spec.Remote, len(old.Placement.Nodes())-1) {
		t.Fatalf("seed %d: repair made more copies of %s than were asked for: %s", seed, c.ID, show(changed.Placement))
	}
	w.volumes[i] = &changed
}

// Many volumes made one after the other end up evenly spread, whoever starts out
// empty.
func TestVolumesSpread(t *testing.T) {
	w := world{reports: map[volume.NodeID]Heard{}}
	for i := range 5 {
		w.addNode(t, fmt.Sprintf("n%d 1000G", i))
	}
	for i := range 200 {
		w.salt++
		p, _, err := Place(w.view(), volume.Spec{Size: 1 << 30, Replicas: 1}, "")
		if err != nil {
			t.Fatal(err)
		}
		w.volumes = append(w.volumes, &state.Volume{
			ID: volume.ID(fmt.Sprintf("%016x", i)), Phase: state.PhaseActive, Placement: p,
			Spec: volume.Spec{Size: 1 << 30, Replicas: 1},
		})
	}
	for _, n := range w.view().Nodes {
		if n.Primaries < 36 || n.Primaries > 44 || n.Replicas < 36 || n.Replicas > 44 {
			t.Errorf("%s has %d primaries and %d replicas, want about 40 of each", n.ID, n.Primaries, n.Replicas)
		}
	}
}

func bigWorld() world {
	r := rand.New(rand.NewPCG(7, 7))
	w := world{reports: map[volume.NodeID]Heard{}}
	for i := range 200 {
		id := volume.NodeID(fmt.Sprintf("%032x", i))
		w.nodes = append(w.nodes, &state.Node{ID: id, Name: fmt.Sprintf("n%d", i), Zone: volume.Zone(fmt.Sprintf("z%d", i%8)), Availability: state.Active})
		w.reports[id] = Heard{At: now, Report: &volume.Report{Node: id, At: now, Pool: volume.PoolInfo{Health: "ONLINE", Size: 10e12, Free: int64(5e12 + r.Float64()*5e12)}}}
	}
	v := w.view()
	for i := range 10_000 {
		v.salt = uint64(i)
		spec := volume.Spec{Size: 1e9, Replicas: 2, Remote: 1}
		p, _, _ := Place(v, spec, w.nodes[r.IntN(200)].ID)
		id := volume.ID(fmt.Sprintf("%016x", i))
		w.volumes = append(w.volumes, &state.Volume{ID: id, Phase: state.PhaseActive, Spec: spec, Placement: p})
		for _, n := range p.Nodes() {
			rep := w.reports[n].Report
			rep.Volumes = append(rep.Volumes, volume.Status{Volume: id, Exists: true, Used: 1e8, Newest: volume.Position{GUID: 1}})
		}
	}
	return w
}

// Both at 200 nodes and 10,000 volumes of four copies.
func BenchmarkNewView(b *testing.B) {
	w := bigWorld()
	b.ReportAllocs()
	for b.Loop() {
		w.view()
	}
}

func BenchmarkPlace(b *testing.B) {
	w := bigWorld()
	v := w.view()
	spec := volume.Spec{Size: 1e9, Replicas: 2, Remote: 2}
	b.ReportAllocs()
	for b.Loop() {
		v.salt++
		if _, _, err := Place(v, spec, ""); err != nil {
			b.Fatal(err)
		}
	}
}

// One look of the Controller when every volume lacks a replica: the most there is
// to decide.
func BenchmarkDecideAllDegraded(b *testing.B) {
	w := bigWorld()
	for _, vol := range w.volumes {
		vol.Spec.Replicas = 3
	}
	v := w.view()
	b.ReportAllocs()
	for b.Loop() {
		Decide(v)
	}
}

func BenchmarkDecideNothing(b *testing.B) {
	w := bigWorld()
	v := w.view()
	b.ReportAllocs()
	for b.Loop() {
		if cmds := Decide(v); len(cmds) != 0 {
			b.Fatal(cmds)
		}
	}
}
