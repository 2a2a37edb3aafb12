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
	w := world{reports: map[volume.NodeID]Heard{}, silent: map[volume.NodeID]bool{}, salt: r.Uint64()}
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
			w.silence(n.ID)
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
		if h, ok := w.reports[vol.Placement.Primary]; ok && r.IntN(8) > 0 {
			h.Report.Volumes = append(h.Report.Volumes, volume.Status{
				Volume: vol.ID, Exists: true, Used: int64(r.IntN(1e9)), Newest: volume.Position{GUID: 1},
			})
		}
		for _, id := range vol.Placement.Replicas() {
			w.hold(vol, id, []volume.LinkState{
				volume.LinkInSync, volume.LinkInSync, volume.LinkSending, volume.LinkLagging, volume.LinkSeeding, volume.LinkRefused, volume.LinkConnecting,
			}[r.IntN(7)])
		}
	}
	return w
}

func randomSpec(r *rand.Rand) volume.Spec {
	spec := volume.Spec{Size: int64(r.IntN(3)) * 1e9, Replicas: r.IntN(4), Remote: r.IntN(3), Strict: r.IntN(8) == 0}
	if names := r.Perm(8); r.IntN(2) == 0 {
		for i, n := range names[:r.IntN(4)] {
			name := fmt.Sprintf("n%d", n)
			if i%2 == 0 {
				spec.Prefer = append(spec.Prefer, name)
			} else {
				spec.Avoid = append(spec.Avoid, name)
			}
		}
		spec.Zone = []volume.Zone{"", "", "z0", "z9"}[r.IntN(4)]
	}
	return spec
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
				plain := spec
				plain.Prefer, plain.Avoid, plain.Zone, plain.Strict = nil, nil, "", false
				if _, _, err := Place(v, plain, prefer); err == nil && !spec.Strict {
					t.Fatalf("seed %d: only the preferences of %+v keep it from being placed", seed, spec)
				}
				if c := volume.CodeOf(err); c != volume.CodeRefused && c != volume.CodeUnavailable {
					t.Fatalf("seed %d: Place failed with code %q: %v", seed, c, err)
				}
				continue
			}
			checkPlacement(t, seed, v, spec, p)
			checkPreferences(t, seed, v, spec, prefer, p, short)
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

// checkPreferences: a zone that can be kept is kept, and a preference costs no copy.
func checkPreferences(t *testing.T, seed uint64, v *View, spec volume.Spec, caller volume.NodeID, p volume.Placement, short Shortfall) {
	t.Helper()
	if v.Node(p.Primary).strays(spec) && slices.ContainsFunc(v.Nodes, func(n NodeView) bool {
		return n.Zone == spec.Zone && n.unfit(max(spec.Size, growthReserve)) == fit
	}) {
		t.Fatalf("seed %d: primary %s is outside of zone %s, where a node is fit", seed, p.Primary, spec.Zone)
	}
	plain := spec
	plain.Prefer, plain.Avoid, plain.Strict = nil, nil, false
	_, without, err := Place(v, plain, caller)
	if err != nil || short.Local+short.Remote > without.Local+without.Remote {
		t.Fatalf("seed %d: with preferences %s, without %s (%v)", seed, short, without, err)
	}
}

// Whatever has happened, Repair never takes a copy that is needed, never puts two on a
// node, and comes to rest.
func TestRepairIsSoundAndSettles(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 2))
		w := randomWorld(r, 2+r.IntN(12), r.IntN(30))
		for range 4 {
			w.upset(r)
			w.settle(t, seed)
		}
	}
}

// A plan leads only to nodes that can take what is moved, and where nothing else happens
// plans come to rest.
func TestRebalanceIsSoundAndSettles(t *testing.T) {
	moves := 0
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 5))
		w := randomWorld(r, 2+r.IntN(8), r.IntN(30))
		for i := range w.volumes { // most are whole, so that there is something to move
			vol := w.volumes[i]
			vol.Spec.Replicas, vol.Spec.Remote = len(vol.Placement.Local), len(vol.Placement.Remote)
			for _, id := range vol.Placement.Nodes() {
				w.drop(vol.ID, id)
			}
			if h, ok := w.reports[vol.Placement.Primary]; ok {
				h.Report.Volumes = append(h.Report.Volumes, volume.Status{Volume: vol.ID, Exists: true, Newest: volume.Position{GUID: 1}})
			}
			used := int64(r.IntN(1e11))
			for _, id := range vol.Placement.Replicas() {
				w.hold(vol, id, volume.LinkInSync)
			}
			for id, h := range w.reports {
				for j := range h.Report.Volumes {
					if st := &h.Report.Volumes[j]; st.Volume == vol.ID {
						st.Used = used
						h.Report.Pool.Free = max(0, h.Report.Pool.Free-used)
						w.reports[id] = h
					}
				}
			}
		}
		for round := 0; ; round++ {
			v := w.view()
			plan := Rebalance(v)
			if again := Rebalance(v); !reflect.DeepEqual(plan, again) {
				t.Fatalf("seed %d: two plans of one view differ:\n%s\n%s", seed, showPlan(plan), showPlan(again))
			}
			if len(plan.Moves) == 0 {
				break
			}
			if round == 20 {
				t.Fatalf("seed %d: still moving:\n%s", seed, showPlan(plan))
			}
			seen := map[volume.ID]bool{}
			for _, m := range plan.Moves {
				moves++
				to := v.Node(m.To)
				switch claim := v.claim(m.Volume); {
				case seen[m.Volume.ID] || m.Volume.Placement.Role(m.From) != m.Role:
					t.Fatalf("seed %d: %s cannot be moved so:\n%s", seed, m.Volume.ID, showPlan(plan))
				case m.Leaves != (m.Volume.Placement.Role(m.To) == volume.RoleNone):
					t.Fatalf("seed %d: %s leaves or does not:\n%s", seed, m.Volume.ID, showPlan(plan))
				case m.Leaves && to.unfit(claim) != fit || !to.Alive || to.Availability != state.Active:
					t.Fatalf("seed %d: %s may not go to %s:\n%s", seed, m.Volume.ID, m.To, showPlan(plan))
				case m.Role == volume.RolePrimary && (!to.Lease || to.strays(m.Volume.Spec) && !v.Node(m.From).strays(m.Volume.Spec)):
					t.Fatalf("seed %d: primary %s leaves its zone:\n%s", seed, m.Volume.ID, showPlan(plan))
				case m.Role == volume.RoleReplica && (v.zoneOf(m.To) == v.zoneOf(m.Volume.Placement.Primary)) != (v.zoneOf(m.From) == v.zoneOf(m.Volume.Placement.Primary)):
					t.Fatalf("seed %d: a replica of %s becomes one of the other kind:\n%s", seed, m.Volume.ID, showPlan(plan))
				}
				seen[m.Volume.ID] = true
			}
			for _, m := range plan.Moves {
				w.carryOut(m)
			}
		}
	}
	if moves < 500 {
		t.Errorf("only %d moves were planned: this says nothing", moves)
	}
}

// upset changes a few things that are not Repair's to decide.
func (w *world) upset(r *rand.Rand) {
	for _, n := range w.nodes {
		switch r.IntN(5) {
		case 0:
			w.silence(n.ID)
		case 1:
			w.hear(n.ID)
		}
	}
	if r.IntN(4) == 0 && len(w.nodes) > 2 { // one leaves the cluster
		i := r.IntN(len(w.nodes))
		delete(w.reports, w.nodes[i].ID)
		w.nodes = slices.Delete(w.nodes, i, i+1)
	}
	for i, old := range w.volumes {
		vol := *old
		vol.Changed++
		switch replicas := vol.Placement.Replicas(); {
		case r.IntN(4) == 0:
			vol.Spec = randomSpec(r)
		case r.IntN(4) == 0 && len(replicas) > 0: // a handoff
			to := replicas[r.IntN(len(replicas))]
			for _, id := range vol.Placement.Nodes() {
				w.drop(vol.ID, id)
			}
			vol.Placement = vol.Placement.Swap(to)
			if h, ok := w.reports[to]; ok {
				h.Report.Volumes = append(h.Report.Volumes, volume.Status{Volume: vol.ID, Exists: true, Newest: volume.Position{GUID: 1}})
			}
			for _, id := range vol.Placement.Replicas() {
				w.hold(&vol, id, volume.LinkLagging)
			}
		default:
			continue
		}
		w.volumes[i] = &vol
	}
}

// settle looks until nothing has changed for longer than any patience.
func (w *world) settle(t *testing.T, seed uint64) {
	t.Helper()
	changes := map[volume.ID]int{}
	for quiet := time.Duration(0); quiet < 3*w.settings.ReplaceAfter(); quiet += time.Minute {
		view, _ := w.view().listen(w.memory)
		cmds, next := Repair(view, w.memory)
		if again, _ := Repair(w.view(), w.memory); !reflect.DeepEqual(cmds, again) {
			t.Fatalf("seed %d: the same view gave two plans:\n%s\n%s", seed, showAll(cmds), showAll(again))
		}
		w.memory = next
		seen := map[volume.ID]bool{}
		for _, cmd := range cmds {
			c := cmd.(state.SetReplicas)
			if seen[c.ID] {
				t.Fatalf("seed %d: two changes of %s in one look:\n%s", seed, c.ID, showAll(cmds))
			}
			seen[c.ID], quiet = true, 0
			w.check(t, seed, view, c)
			w.place(c)
			// Sorting anew, replicas added, and for each an exchange of kind or zone.
			if changes[c.ID]++; changes[c.ID] > 20 {
				t.Fatalf("seed %d: the replicas of %s do not come to rest: %s", seed, c.ID, showAll(cmds))
			}
		}
		w.pass(time.Minute)
	}
}

// check holds one change of replicas against the rules.
func (w *world) check(t *testing.T, seed uint64, v *View, c state.SetReplicas) {
	t.Helper()
	old := w.volumes[slices.IndexFunc(w.volumes, func(v *state.Volume) bool { return v.ID == c.ID })]
	p := volume.Placement{Primary: old.Placement.Primary, Local: c.Local, Remote: c.Remote}
	now, want := p.Nodes(), old.Spec.Replicas+old.Spec.Remote
	complete, lost, added := 0, 0, 0
	for i, id := range now {
		if slices.Contains(now[:i], id) {
			t.Fatalf("seed %d: two copies of %s on %s", seed, c.ID, id)
		}
		if old.Placement.Role(id) == volume.RoleNone {
			added++
		}
		switch {
		case i == 0:
		case v.lost(id):
			lost++
		case v.complete(old, id):
			complete++
		}
	}
	gone := 0
	for _, id := range old.Placement.Replicas() {
		if v.Node(id) == nil || slices.Contains(now, id) {
			continue
		}
		if gone++; gone > 1 || added > 0 {
			t.Fatalf("seed %d: more than one change of %s: %s, then %s", seed, c.ID, show(old.Placement), show(p))
		}
		if complete < want {
			t.Fatalf("seed %d: the copy of %s on %s is taken away, which leaves %d of %d", seed, c.ID, id, complete, want)
		}
	}
	if added > 0 && len(now)-1-lost > want+1 {
		t.Fatalf("seed %d: more than one copy of %s beyond what was asked for: %s", seed, c.ID, show(p))
	}
}

// Many volumes made one after the other end up evenly spread, whoever starts out
// empty.
func TestVolumesSpread(t *testing.T) {
	w := world{reports: map[volume.NodeID]Heard{}, silent: map[volume.NodeID]bool{}}
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
	w := world{reports: map[volume.NodeID]Heard{}, silent: map[volume.NodeID]bool{}}
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
			st := volume.Status{Volume: id, Exists: true, Used: 1e8, Newest: volume.Position{GUID: 1}}
			if n == p.Primary {
				for _, r := range p.Replicas() {
					st.Links = append(st.Links, volume.LinkStatus{Replica: r, State: volume.LinkInSync, Acked: st.Newest})
				}
			}
			rep.Volumes = append(rep.Volumes, st)
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
		Decide(v, Memory{})
	}
}

func BenchmarkDecideNothing(b *testing.B) {
	w := bigWorld()
	v := w.view()
	b.ReportAllocs()
	for b.Loop() {
		if cmds, _ := Decide(v, Memory{}); len(cmds) != 0 {
			b.Fatal(cmds)
		}
	}
}

// TestReunionsSettle carries out whatever is decided in random clusters: volumes that
// containers need together are, or why not is said, and then nothing is done about them any
// more. What somebody uses is never handed over, and nothing goes to a drained node.
func TestReunionsSettle(t *testing.T) {
	met := 0
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 7))
		w := randomWorld(r, 2+r.IntN(6), 2+r.IntN(10))
		for i := range 1 + r.IntN(4) {
			c := &state.Container{Name: fmt.Sprintf("c%d", i), ID: fmt.Sprintf("c%d", i), Run: r.IntN(6) > 0, Blocked: r.IntN(8) == 0, Node: w.nodes[r.IntN(len(w.nodes))].ID}
			for _, k := range r.Perm(len(w.volumes))[:min(len(w.volumes), 1+r.IntN(3))] {
				c.Volumes = append(c.Volumes, state.ContainerVolume{ID: w.volumes[k].ID, Epoch: 1})
			}
			w.follow = append(w.follow, c)
		}
		used := map[volume.ID]bool{}
		for _, vol := range w.volumes {
			if h, ok := w.reports[vol.Placement.Primary]; ok && r.IntN(5) == 0 {
				for i := range h.Report.Volumes {
					if st := &h.Report.Volumes[i]; st.Volume == vol.ID {
						st.Holders, used[vol.ID] = []volume.Holder{{Container: "x", Name: "x"}}, true
					}
				}
			}
		}
		began := len(w.view().partedAll())
		var last string
		for range 30 {
			cmds, _ := Reunions(w.view())
			last = ""
			for _, cmd := range cmds {
				last += showAll([]state.Command{cmd}) + "\n"
				switch c := cmd.(type) {
				case state.SetReplicas:
					w.place(c)
				case state.BeginHandoff:
					if used[c.ID] || w.view().Node(c.To).Availability != state.Active {
						t.Fatalf("seed %d: %s", seed, last)
					}
					w.handOver(c)
				}
			}
			w.pass(5 * time.Second)
		}
		if last != "" {
			t.Errorf("seed %d: it does not come to rest:\n%s", seed, last)
		}
		_, all := Reunions(w.view())
		for _, x := range all {
			if x.Why == "" && x.Doing == "" {
				t.Errorf("seed %d: nothing is said of %v", seed, x.Volumes)
			}
		}
		met += began - len(w.view().partedAll())
	}
	if met < 100 {
		t.Errorf("only %d volumes came together: these clusters show nothing", met)
	}
}

func (v *View) partedAll() (out []*state.Volume) {
	for _, vol := range v.Volumes {
		if v.parted(vol) {
			out = append(out, vol)
		}
	}
	return out
}
