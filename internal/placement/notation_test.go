package placement

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

var rewrite = flag.Bool("rewrite", false, "write what the code answers into testdata; the diff is the review")

// TestData runs the files of testdata. Each starts with its purpose. Paragraphs of
// lines that begin with # are prose. Every other paragraph is a command, its lines
// and, after ----, what it must answer:
//
//	nodes                        what follows are all nodes of the cluster
//	  a1 zone=a 100G free=80G    defaults: zone default, all free, ONLINE, active,
//	                             reported just now
//	volumes                      all volumes: primary > local | remote; then its spec
//	  v1 a1 > a2 | b1 size=1G    defaults: active, what is placed is wanted, all copies
//	                             seeded and empty
//	  v2 n1 > n2 of=v1 data=9G used=9G own=n1:1G stands=n1:v1:8G:7
//	                             a clone of v1: of 9G that users see it shares 8G on n1, those of
//	                             v1's snapshot with GUID 7, and nothing on n2; without of: made of
//	                             what was set aside
//	  v1 n2 > n1 moved=n1        that much came from n1 with its containers 10 s ago
//	  v1 n1 > n2 blank=n1        n1 has a dataset without a snapshot
//	containers                   all that follow their volumes
//	  web n1 v1 v2 images=n2     of n1; so far its image is on n2, and on its way to n3 with
//	                             fetching=n3; blocked: it cannot follow; taken=n2: its name is taken there
//	  web n1 v1 images=n2 failed=n2:3  and n2 has failed three times to start it
//	place size=1G replicas=2     Place; node=n1 is where its user asked
//	locality                     View.Locality
//	rebalance                    Rebalance: its moves, what nodes have before and after, its notes
//	carry replica v1 n1 n2       Carry of these moves, in their order; its migrations have attempt op
//	  primary v2 n1 n3 leaves
//	balance                      the same, then every move done at once, until there are none
//	places prefer=n1 zone=a      KnowsPlaces of a new volume
//	  v1 n1 > n2 n3 n4 absent=n2 refused=n3 lagging=n4
//	                             n2 is being seeded; what the primary says of the others
//	settings replace=1m          the cluster's settings; rebalance=on
//	policy                       LookAtPolicy
//	even 3h                      run with Decide: what is decided happens at once, and is shown;
//	                             refusing v1: its primary refuses handoffs; refusing all of v1: its
//	                             migration is refused; refusing n2: the node refuses new copies; forget: another node leads from now on
//	repair, decide, lacks        Repair, Decide, View.Shortfall and View.Silent
//	run 10m                      looks every 5 s; what is decided happens at once, and a
//	                             new replica is complete at the next look
//	seeded v1 n2                 that first copy is complete
//	elect was=n1 ...             Failover, see world.elect
//	drain                        Drain: its commands, and what is left and why
//	reunions                     Reunions: their commands, and how far each is
//	  v1 n1 > n2 moved=n3:10s:join-1 refused-join=20s  as moved, by an attempt of that name; a
//	                             handoff of a reunion was refused so long ago; settled=n1: where
//	                             an operator has migrated it
//	migrations                   Migrations: their commands, and how far each is
//	  v1 n1 > n2 ended=n2        its last migration there came to nothing
//	  v1 n1 > n2 migrate=n2      its user wants it there (n2:1m: since then); refused-of=op: the handoff was refused;
//	                             refused-of=op:follow: one with containers
//	swarm n1                     all nodes are in a Swarm that n1 manages; not ready: who gets no
//	  without n3                 tasks; unheard n3: it has not told of a Swarm yet
//	  tally v1 v2                and its services, with the volumes that they are bound to; once,
//	                             off or tries=3 (MaxAttempts), as in volume.SwarmService
//	  v1 n1 > n2 phase=moving pending=5s:join-1 to=n2   a handoff of that name began so long ago
//	  v1 n1 > n2 fresh=web       a container uses it that is to follow it, recorded or not
//	  v1 n1 > n2 starting=1a2b   it was just mounted there, for a container that does not run yet
//	  v1 n1 > n2 task=tally      a task of that service uses it
//	  v1 n2 > n1 migrate=n2 arrived=n1:10s   so long ago, for that migration; returned=n2: for
//	                             want of its service it came back from there
//	empty 10m                    run with Decide: handoffs happen at once, too, and no look
//	                             may leave a volume fewer complete copies than it asks for
//	wish v1 n2                   from now on it prefers n2; blind 5m: nobody looks meanwhile
//	undrain n2                   it takes volumes again
//	silence n2, hear n2          from now on it is not heard of, or it is again
func TestData(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(string(text), "# purpose: ") {
				t.Fatalf("%s does not begin with its purpose", file)
			}
			var w world
			var out []string
			for paragraph := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
				if strings.HasPrefix(paragraph, "#") {
					out = append(out, paragraph)
					continue
				}
				in, want, _ := strings.Cut(paragraph, "\n----\n")
				got := w.run(t, in)
				if got != want && !*rewrite {
					t.Errorf("%s:\n%s\ngot:\n%s\nwant:\n%s", file, in, got, want)
				}
				if got != "" {
					in += "\n----\n" + got
				}
				out = append(out, in)
			}
			if *rewrite {
				if err := os.WriteFile(file, []byte(strings.Join(out, "\n\n")+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// world is what the paragraphs of one file have built up.
type world struct {
	nodes    []*state.Node
	volumes  []*state.Volume
	reports  map[volume.NodeID]Heard
	settings state.Settings
	salt     uint64
	memory   Memory
	passed   time.Duration // since now
	silent   map[volume.NodeID]bool
	refusing map[string]bool // nodes and volumes
	follow   []*state.Container
}

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func (w *world) view() *View {
	v := newView(w.nodes, w.volumes, w.settings, w.salt, w.reports, now.Add(w.passed))
	v.containers = indexContainers(w.follow)
	for i := range v.Nodes {
		v.Nodes[i].Lease = !w.nodes[i].Lease.Revoked
	}
	return v
}

// repair is one look of a leader that remembers.
func (w *world) repair() []state.Command {
	cmds, next := Repair(w.view(), w.memory)
	w.memory = next
	return cmds
}

// pass lets time go by, in which all nodes report but the silent ones.
func (w *world) pass(d time.Duration) {
	w.passed += d
	for id, h := range w.reports {
		if !w.silent[id] {
			h.At = now.Add(w.passed)
			w.reports[id] = h
		}
	}
}

// place does what a command says: replicas arrive, and leave, at once.
func (w *world) place(c state.SetReplicas) {
	i := slices.IndexFunc(w.volumes, func(v *state.Volume) bool { return v.ID == c.ID })
	vol := *w.volumes[i]
	was := vol.Placement
	vol.Placement.Local, vol.Placement.Remote = c.Local, c.Remote
	vol.Changed++
	w.volumes[i] = &vol
	for _, id := range was.Replicas() {
		if vol.Placement.Role(id) == volume.RoleNone {
			w.drop(vol.ID, id)
		}
	}
	for _, id := range vol.Placement.Replicas() {
		if was.Role(id) == volume.RoleNone {
			link := volume.LinkInSync
			if w.refusing[string(id)] {
				link = volume.LinkRefused
			}
			w.hold(&vol, id, link)
		}
	}
}

// hold puts a replica on a node, as far as it and the primary report, which is being
// seeded or whole.
func (w *world) hold(vol *state.Volume, id volume.NodeID, link volume.LinkState) {
	one := volume.Position{GUID: 1}
	if h, ok := w.reports[id]; ok && link != volume.LinkSeeding {
		h.Report.Volumes = append(h.Report.Volumes, volume.Status{Volume: vol.ID, Exists: true, Newest: one})
	}
	if h, ok := w.reports[vol.Placement.Primary]; ok {
		for i := range h.Report.Volumes {
			if st := &h.Report.Volumes[i]; st.Volume == vol.ID {
				l := volume.LinkStatus{Replica: id, State: link}
				if link != volume.LinkSeeding {
					l.Acked = one
				}
				st.Links = append(st.Links, l)
			}
		}
	}
}

// drop takes what nodes report of a replica out.
func (w *world) drop(vol volume.ID, id volume.NodeID) {
	for node, h := range w.reports {
		if node == id {
			h.Report.Volumes = slices.DeleteFunc(h.Report.Volumes, func(s volume.Status) bool { return s.Volume == vol })
		}
		for i := range h.Report.Volumes {
			if st := &h.Report.Volumes[i]; st.Volume == vol {
				st.Links = slices.DeleteFunc(st.Links, func(l volume.LinkStatus) bool { return l.Replica == id })
			}
		}
	}
}

// handOver does what a handoff does, at once.
func (w *world) handOver(c state.BeginHandoff) {
	i := slices.IndexFunc(w.volumes, func(v *state.Volume) bool { return v.ID == c.ID })
	vol := *w.volumes[i]
	was := vol.Placement
	vol.Placement = was.Swap(c.To)
	vol.Epoch, vol.Changed = vol.Epoch+1, vol.Changed+1
	w.volumes[i] = &vol
	for _, id := range was.Nodes() {
		w.drop(vol.ID, id)
	}
	h := w.reports[c.To]
	h.Report.Volumes = append(h.Report.Volumes, volume.Status{Volume: vol.ID, Exists: true, Newest: volume.Position{GUID: 1}})
	for _, id := range vol.Placement.Replicas() {
		w.hold(&vol, id, volume.LinkInSync)
	}
}

// carryOutOne does what a command says, at once and with its containers.
func (w *world) carryOutOne(t *testing.T, cmd state.Command) {
	t.Helper()
	at := now.Add(w.passed)
	change := func(id volume.ID, f func(vol *state.Volume)) {
		i := slices.IndexFunc(w.volumes, func(v *state.Volume) bool { return v.ID == id })
		vol := *w.volumes[i]
		f(&vol)
		w.volumes[i] = &vol
	}
	// Space goes with the copies.
	space := func(id volume.ID, f func()) {
		find := func() *state.Volume {
			return w.volumes[slices.IndexFunc(w.volumes, func(v *state.Volume) bool { return v.ID == id })]
		}
		was, used := find().Placement, w.view().used(find())
		f()
		for node, h := range w.reports {
			has, had := find().Placement.Role(node) != volume.RoleNone, was.Role(node) != volume.RoleNone
			if has != had {
				h.Report.Pool.Free += used * int64(yes(had)-yes(has))
			}
			for i := range h.Report.Volumes {
				if st := &h.Report.Volumes[i]; st.Volume == id {
					st.Used = used
				}
			}
		}
	}
	switch c := cmd.(type) {
	case state.SetReplicas:
		space(c.ID, func() { w.place(c) })
	case state.StartMigration:
		if w.refusing["all of "+string(c.ID)] {
			return
		}
		change(c.ID, func(vol *state.Volume) {
			vol.Migration = &state.Migration{From: vol.Placement.Primary, To: c.To, Attempt: c.Attempt, Began: at}
		})
	case state.EndMigration:
		change(c.ID, func(vol *state.Volume) {
			vol.LastMigration = &state.EndedMigration{Migration: *vol.Migration, Reason: c.Reason, At: at}
			vol.Migration = nil
		})
	case state.BeginHandoff:
		if w.refusing[string(c.ID)] {
			change(c.ID, func(vol *state.Volume) {
				vol.LastRefusal = &state.Refusal{Attempt: c.Attempt, Reason: "its primary said no", At: at, To: c.To, Follow: c.Follow}
			})
			return
		}
		space(c.ID, func() { w.handOver(c) })
		for _, k := range w.follow {
			if k.Uses(c.ID) {
				k.Node = c.To
			}
		}
	case state.Tell:
	default:
		t.Fatalf("%T is not carried out here", cmd)
	}
}

// complete counts the complete copies of each volume.
func (w *world) complete() map[volume.ID]int {
	v, out := w.view(), map[volume.ID]int{}
	for _, vol := range v.Volumes {
		out[vol.ID] = 1
		for _, id := range vol.Placement.Replicas() {
			if v.complete(vol, id) {
				out[vol.ID]++
			}
		}
	}
	return out
}

// silence and hear a node.
func (w *world) silence(id volume.NodeID) { w.silent[id] = true }
func (w *world) hear(id volume.NodeID) {
	delete(w.silent, id)
	w.pass(0)
}

// refer checks that commands are about volumes as they are.
func (w *world) refer(t *testing.T, v *View, cmds []state.Command) {
	t.Helper()
	for _, cmd := range cmds {
		vol := v.volume(subject(cmd))
		switch c := cmd.(type) {
		case state.BeginHandoff:
			if c.Epoch != vol.Epoch {
				t.Errorf("a handoff of volume %s is of epoch %d, want %d", vol.ID, c.Epoch, vol.Epoch)
			}
		case state.SetReplicas:
			if c.Epoch != vol.Epoch || c.Changed != vol.Changed {
				t.Errorf("a placement of volume %s is of epoch %d and change %d, want %d and %d", vol.ID, c.Epoch, c.Changed, vol.Epoch, vol.Changed)
			}
		}
	}
}

// reunionsOf checks that each container finds the reunion that names it, and others none.
func (w *world) reunionsOf(t *testing.T, all []Reunion) {
	t.Helper()
	for _, c := range w.follow {
		var want *Reunion
		for i := range all {
			if slices.Contains(all[i].Containers, c) {
				want = &all[i]
			}
		}
		if got := ReunionOf(all, c); got != want {
			t.Errorf("container %s waits for %+v, want %+v", c.Name, got, want)
		}
	}
}

func (w *world) run(t *testing.T, in string) string {
	t.Helper()
	head, body, _ := strings.Cut(in, "\n")
	command, args, _ := strings.Cut(head, " ")
	var lines []string
	if body != "" {
		lines = strings.Split(body, "\n")
	}
	switch command {
	case "nodes":
		*w = world{reports: map[volume.NodeID]Heard{}, silent: map[volume.NodeID]bool{}, refusing: map[string]bool{}, settings: w.settings}
		for _, line := range lines {
			w.addNode(t, line)
		}
		return ""
	case "volumes":
		w.volumes, w.memory, w.follow = nil, Memory{}, nil
		for _, heard := range w.reports {
			heard.Report.Volumes, heard.Report.Followed = nil, nil
		}
		for _, line := range lines {
			w.addVolume(t, line)
		}
		return ""
	case "swarm":
		for id, heard := range w.reports {
			heard.Report.Swarm = volume.Swarm{Known: true, Node: "swarm-" + string(id)}
		}
		w.addSwarm(&w.reports[volume.NodeID(args)].Report.Swarm, lines)
		return ""
	case "containers":
		for _, line := range lines {
			w.addContainer(t, line)
		}
		return ""
	case "place":
		spec, prefer := volume.Spec{}, volume.NodeID("")
		var among []volume.NodeID
		for _, arg := range strings.Fields(args) {
			key, value, _ := strings.Cut(arg, "=")
			if key == "node" {
				prefer = volume.NodeID(value)
			} else if key == "among" {
				for name := range strings.SplitSeq(value, ",") {
					among = append(among, volume.NodeID(name))
				}
			} else if !setSpec(t, &spec, key, value) {
				t.Fatalf("place: unknown argument %q", arg)
			}
		}
		p, short, err := Place(w.view(), spec, prefer, among...)
		if err != nil {
			return fmt.Sprintf("%s: %v", volume.CodeOf(err), err)
		}
		out := show(p)
		if !short.IsZero() {
			out += "\n" + short.String()
		}
		return out
	case "locality":
		var out []string
		v := w.view()
		for _, vol := range v.Volumes {
			if s := v.Locality(vol); s != "" {
				out = append(out, fmt.Sprintf("%s: %s", vol.ID, s))
			}
		}
		return cmp.Or(strings.Join(out, "\n"), "nothing")
	case "rebalance":
		return showPlan(Rebalance(w.view()))
	case "carry":
		var moves []Wanted
		for _, line := range append([]string{args}, lines...) {
			f := strings.Fields(line)
			moves = append(moves, Wanted{Role: volume.Role(f[0]), Volume: volume.ID(f[1]), From: volume.NodeID(f[2]), To: volume.NodeID(f[3]), Leaves: len(f) > 4})
		}
		var out []string
		for i, c := range Carry(w.view(), moves, "op", time.Second) {
			out = append(out, fmt.Sprintf("%s: %s %s", moves[i].Volume, c.State, c.Text))
			if c.Command != nil {
				out = append(out, "  "+showAll([]state.Command{c.Command}))
			}
		}
		return strings.Join(out, "\n")
	case "balance":
		return w.balance(t)
	case "places":
		var spec volume.Spec
		for _, arg := range strings.Fields(args) {
			key, value, _ := strings.Cut(arg, "=")
			if !setSpec(t, &spec, key, value) {
				t.Fatalf("places: unknown argument %q", arg)
			}
		}
		if err := KnowsPlaces(w.view(), volume.Spec{}, spec); err != nil {
			return fmt.Sprintf("%s: %v", volume.CodeOf(err), err)
		}
		if err := KnowsPlaces(w.view(), spec, spec); err != nil {
			t.Errorf("what was accepted before is refused: %v", err)
		}
		return "known"
	case "elect":
		return w.elect(t, args, lines)
	case "repair":
		return showAll(w.repair())
	case "decide":
		cmds, next := Decide(w.view(), w.memory)
		w.memory = next
		return showAll(cmds)
	case "reunions":
		v := w.view()
		cmds, all := Reunions(v)
		w.refer(t, v, cmds)
		if again, _ := Reunions(v); showAll(again) != showAll(cmds) {
			t.Errorf("a look changes the view: after it\n%s\nand first\n%s", showAll(again), showAll(cmds))
		}
		w.reunionsOf(t, all)
		out := []string{showAll(cmds)}
		for _, r := range all {
			var who []string
			for _, vol := range r.Volumes {
				who = append(who, vol.Name)
			}
			for _, c := range r.Containers {
				who = append(who, c.Name)
			}
			out = append(out, fmt.Sprintf("%s: %s", strings.Join(who, " "), cmp.Or(r.Doing, "! "+r.Why)))
		}
		return strings.Join(out, "\n")
	case "drain":
		cmds, left := Drain(w.view())
		out := []string{showAll(cmds)}
		for _, l := range left {
			out = append(out, fmt.Sprintf("left on %s: %s (%s): %s", l.Node, l.Volume.ID, l.Role, cmp.Or(l.Doing, "! "+l.Why)))
		}
		return strings.Join(out, "\n")
	case "rollbacks": // of each volume: what would be stopped for one, or why there can be none
		v := w.view()
		var out []string
		for _, vol := range w.volumes {
			containers, err := CanRollBack(v, vol)
			line := fmt.Sprintf("%s: stops %v", vol.ID, containers)
			if err != nil {
				line = fmt.Sprintf("%s: %s", volume.CodeOf(err), err)
			}
			out = append(out, line)
		}
		return strings.Join(out, "\n")
	case "migrations":
		cmds, all := Migrations(w.view())
		out := []string{showAll(cmds)}
		for _, m := range all {
			line := fmt.Sprintf("%s: %s", m.Volume.ID, cmp.Or(m.Doing, "! "+m.Why))
			if phase := m.Step.Phase; phase == "" || (phase == volume.MoveWaiting) != (m.Doing == "") {
				line += fmt.Sprintf(" [for programs: %q]", phase)
			}
			if len(m.Containers)+len(m.With) > 0 {
				line += fmt.Sprintf(" (containers %v, with %v)", m.Containers, m.With)
			}
			if m.Volume.Phase == state.PhaseMoving || m.Copying.Left() > 0 {
				line += fmt.Sprintf(" [%s %d/%d left %s]", m.Step.Phase, m.Step.Round, m.Step.Rounds, volume.FormatSize(m.Copying.Left()))
			}
			if c := m.Copying; c != (Copying{}) {
				line += fmt.Sprintf(" [%s of %s, %s/s]", volume.FormatSize(c.Sent), volume.FormatSize(c.Total), volume.FormatSize(c.Rate))
			}
			if len(m.Services) > 0 {
				line += fmt.Sprintf(" (services %v)", m.Services)
			}
			out = append(out, line)
		}
		return strings.Join(out, "\n")
	case "empty":
		var out []string
		for began, end := w.passed, w.passed+duration(t, args); w.passed <= end; w.pass(5 * time.Second) {
			had := w.complete()
			cmds, next := Decide(w.view(), w.memory)
			w.memory = next
			for _, cmd := range cmds {
				out = append(out, fmt.Sprintf("%s %s", w.passed-began, showAll([]state.Command{cmd})))
				switch c := cmd.(type) {
				case state.SetReplicas:
					w.place(c)
				case state.BeginHandoff:
					w.handOver(c)
				}
			}
			for id, now := range w.complete() {
				vol := w.volumes[slices.IndexFunc(w.volumes, func(v *state.Volume) bool { return v.ID == id })]
				if now < min(had[id], 1+vol.Spec.Replicas+vol.Spec.Remote) {
					t.Errorf("volume %s had %d complete copies and has %d", id, had[id], now)
				}
			}
		}
		if out == nil {
			return "nothing"
		}
		return strings.Join(out, "\n")
	case "policy":
		p := LookAtPolicy(w.view())
		out := fmt.Sprintf("on: %t; waits: %s", p.On, cmp.Or(p.Waits, "for nothing"))
		for _, m := range p.Moves {
			out += fmt.Sprintf("\n%s: %s %s -> %s: %s", m.Volume.ID, m.Role, m.From, m.To, m.Why)
		}
		return out
	case "even":
		var out []string
		for began, end := w.passed, w.passed+duration(t, args); w.passed <= end; w.pass(5 * time.Second) {
			cmds, next := Decide(w.view(), w.memory)
			w.memory = next
			for _, cmd := range cmds {
				out = append(out, fmt.Sprintf("%s %s", w.passed-began, showAll([]state.Command{cmd})))
				w.carryOutOne(t, cmd)
			}
		}
		return cmp.Or(strings.Join(out, "\n"), "nothing")
	case "refusing":
		w.refusing[args] = !w.refusing[args]
		return ""
	case "undrain":
		for _, n := range w.nodes {
			if n.ID == volume.NodeID(args) {
				n.Availability = state.Active
			}
		}
		return ""
	case "blind":
		w.pass(duration(t, args))
		return ""
	case "wish":
		id, node, _ := strings.Cut(args, " ")
		i := slices.IndexFunc(w.volumes, func(v *state.Volume) bool { return v.ID == volume.ID(id) })
		vol := *w.volumes[i]
		vol.Spec.Prefer = []string{node}
		w.volumes[i] = &vol
		return ""
	case "forget":
		w.memory = Memory{}
		return ""
	case "silence":
		w.silence(volume.NodeID(args))
		return ""
	case "seeded":
		id, node, _ := strings.Cut(args, " ")
		i := slices.IndexFunc(w.volumes, func(v *state.Volume) bool { return v.ID == volume.ID(id) })
		w.drop(volume.ID(id), volume.NodeID(node))
		w.hold(w.volumes[i], volume.NodeID(node), volume.LinkInSync)
		return ""
	case "hear":
		w.hear(volume.NodeID(args))
		return ""
	case "settings":
		if value, ok := strings.CutPrefix(args, "rebalance="); ok {
			w.settings.Rebalance = value
			return ""
		}
		value, ok := strings.CutPrefix(args, "replace=")
		if !ok {
			t.Fatalf("settings: unknown argument %q", args)
		}
		w.settings.ReplicaReplaceAfter = duration(t, value)
		return ""
	case "run":
		var out []string
		for began, end := w.passed, w.passed+duration(t, args); w.passed <= end; w.pass(5 * time.Second) {
			for _, cmd := range w.repair() {
				out = append(out, fmt.Sprintf("%s %s", w.passed-began, showAll([]state.Command{cmd})))
				w.place(cmd.(state.SetReplicas))
			}
		}
		if out == nil {
			return "nothing"
		}
		return strings.Join(out, "\n")
	case "lacks":
		var out []string
		v := w.view()
		for _, vol := range v.Volumes {
			if s := v.Shortfall(vol); !s.IsZero() {
				out = append(out, fmt.Sprintf("%s: %s", vol.ID, s))
			}
			if s := v.Silent(vol); s != "" {
				out = append(out, fmt.Sprintf("%s: %s", vol.ID, s))
			}
		}
		if out == nil {
			return "nothing"
		}
		return strings.Join(out, "\n")
	}
	t.Fatalf("unknown command %q", command)
	return ""
}

// balance carries plans out until there is nothing left to move.
func (w *world) balance(t *testing.T) string {
	t.Helper()
	var out []string
	for range 10 {
		plan := Rebalance(w.view())
		out = append(out, showPlan(plan))
		if len(plan.Moves) == 0 {
			return strings.Join(out, "\n")
		}
		for _, m := range plan.Moves {
			w.carryOut(m)
		}
	}
	t.Errorf("it does not come to rest:\n%s", strings.Join(out, "\n"))
	return ""
}

// carryOut does a move at once, with all that goes along, and gives the space back.
func (w *world) carryOut(m Move) {
	volumes := []*state.Volume{m.Volume}
	if m.Role == volume.RolePrimary {
		volumes = w.view().company(m.Volume, m.From).volumes
	}
	for _, vol := range volumes {
		used := w.view().used(vol)
		swap := func(drop bool) {
			vol = w.volumes[slices.IndexFunc(w.volumes, func(v *state.Volume) bool { return v.ID == vol.ID })]
			p := cloned(vol.Placement)
			it := func(id volume.NodeID) bool { return id == m.From }
			list := &p.Remote
			if w.view().zoneOf(m.To) == w.view().zoneOf(p.Primary) {
				list = &p.Local
			}
			if drop {
				p.Local, p.Remote = slices.DeleteFunc(p.Local, it), slices.DeleteFunc(p.Remote, it)
			} else if p.Role(m.To) == volume.RoleNone {
				*list = append(*list, m.To)
			}
			w.place(state.SetReplicas{ID: vol.ID, Local: p.Local, Remote: p.Remote})
		}
		swap(false)
		if m.Role == volume.RolePrimary {
			w.handOver(state.BeginHandoff{ID: vol.ID, To: m.To})
		}
		if m.Leaves {
			swap(true)
			w.reports[m.From].Report.Pool.Free += used
			w.reports[m.To].Report.Pool.Free -= used
		}
		for _, h := range w.reports {
			for i := range h.Report.Volumes {
				if st := &h.Report.Volumes[i]; st.Volume == vol.ID {
					st.Used = used
				}
			}
		}
		for _, c := range w.follow {
			if c.Uses(vol.ID) {
				c.Node = m.To
			}
		}
	}
}

func showPlan(p Plan) string {
	var out []string
	for _, m := range p.Moves {
		line := fmt.Sprintf("%s: %s %s -> %s", m.Volume.ID, m.Role, m.From, m.To)
		if m.Leaves {
			line += fmt.Sprintf(", %dM", m.Bytes>>20)
		}
		line += ": " + m.Why
		if len(m.Containers)+len(m.With) > 0 {
			line += fmt.Sprintf(" (containers %v, with %v)", m.Containers, m.With)
		}
		out = append(out, line)
	}
	if out == nil {
		out = append(out, "nothing")
	}
	for _, s := range p.Shares {
		out = append(out, fmt.Sprintf("%s: %d %% full, %d primaries; then %d %%, %d", s.Node, 100*s.Bytes/s.Size, s.Primaries, 100*s.BytesAfter/s.Size, s.PrimariesAfter))
	}
	for _, n := range p.Notes {
		out = append(out, "note: "+n)
	}
	return strings.Join(out, "\n")
}

func (w *world) addNode(t *testing.T, line string) {
	t.Helper()
	fields := strings.Fields(line)
	n := &state.Node{ID: volume.NodeID(fields[0]), Name: fields[0], Availability: state.Active}
	r := &volume.Report{Node: n.ID, At: now, Applied: 1000, Proxy: true, Pool: volume.PoolInfo{Health: "ONLINE", Free: -1}}
	heard, lasts, report := now, time.Duration(0), true
	for _, f := range fields[1:] {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "zone":
			n.Zone = volume.Zone(value)
		case "free":
			r.Pool.Free = parseBytes(t, value)
		case "health":
			r.Pool.Health = value
		case "witness":
			n.Witness, r.Pool = true, volume.PoolInfo{}
		case "nolease":
			n.Lease.Revoked = true
		case "noproxy":
			r.Proxy = false
		case "drain":
			n.Availability, n.KeepReplicas = state.Drain, value == "keep"
		case "silent":
			heard = now.Add(-duration(t, value))
			w.silent[n.ID] = true
		case "for":
			lasts = duration(t, value)
		case "unheard":
			report = false
		case "applied":
			r.Applied = uint64(parseBytes(t, value))
		case "asided":
			r.Asides = []volume.Aside{{At: now.Add(-duration(t, value))}}
		case "clock":
			r.At = now.Add(duration(t, value))
		default:
			r.Pool.Size = parseBytes(t, key)
		}
	}
	if r.Pool.Free < 0 {
		r.Pool.Free = r.Pool.Size
	}
	w.nodes = append(w.nodes, n)
	if report {
		w.reports[n.ID] = Heard{Report: r, At: heard, For: lasts}
	}
}

func (w *world) addVolume(t *testing.T, line string) {
	t.Helper()
	fields := strings.Fields(line)
	v := &state.Volume{
		ID: volume.ID(fields[0]), Name: fields[0], Phase: state.PhaseActive,
		Epoch: 1, Changed: 100, Created: now.Add(-time.Hour),
	}
	v.Placement.Primary = volume.NodeID(fields[1])
	var used, data int64
	own, shares := map[volume.NodeID]int64{}, map[volume.NodeID]*volume.Shared{}
	problem, newest := "", volume.Position{GUID: 1}
	var holders []volume.Holder
	absent := map[volume.NodeID]bool{}
	links := map[volume.NodeID]volume.LinkState{}
	streams := map[volume.NodeID]Copying{}
	var told volume.MoveStep
	list := (*[]volume.NodeID)(nil)
	var rest []string
	for _, f := range fields[2:] {
		switch {
		case f == ">":
			list = &v.Placement.Local
		case f == "|":
			list = &v.Placement.Remote
		case !strings.Contains(f, "=") && list != nil:
			*list = append(*list, volume.NodeID(f))
		default:
			rest = append(rest, f)
		}
	}
	v.Spec.Replicas, v.Spec.Remote = len(v.Placement.Local), len(v.Placement.Remote)
	for _, f := range rest {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "used":
			used = parseBytes(t, value)
		case "phase":
			v.Phase = state.Phase(value)
		case "created":
			v.Created = now.Add(-duration(t, value))
		case "of":
			v.Clone = &state.CloneOf{Volume: volume.ID(value), GUID: 1}
		case "data":
			data = parseBytes(t, value)
		case "own": // on a node, where a copy shares the rest
			id, bytes, _ := strings.Cut(value, ":")
			own[volume.NodeID(id)] = parseBytes(t, bytes)
		case "stands": // on a node, on what of whom: NODE:VOLUME:BYTES:GUID
			f := strings.Split(value, ":")
			shares[volume.NodeID(f[0])] = &volume.Shared{With: volume.ID(f[1]), Bytes: parseBytes(t, f[2]), GUID: uint64(parseBytes(t, f[3]))}
		case "deleted":
			v.Deleted = now.Add(-duration(t, value))
		case "pending":
			ago, attempt, _ := strings.Cut(value, ":")
			v.Pending = &state.Pending{Attempt: cmp.Or(attempt, "try"), Began: now.Add(-duration(t, ago))}
		case "to": // of what is pending, with its containers
			v.Pending.To, v.Pending.Follow = volume.NodeID(value), true
		case "migrate": // an operator wants it there
			to, ago, _ := strings.Cut(value, ":")
			v.Migration = &state.Migration{From: v.Placement.Primary, To: volume.NodeID(to), Attempt: "op", Began: now.Add(-duration(t, cmp.Or(ago, "0s")))}
		case "ended": // the last migration, in vain; to a node
			v.LastMigration = &state.EndedMigration{Migration: state.Migration{From: v.Placement.Primary, To: volume.NodeID(value), Attempt: "op"}, Reason: "its primary said no", At: now}
		case "refused-of": // the last handoff of that migration
			id, follow, _ := strings.Cut(value, ":")
			v.LastRefusal = &state.Refusal{Attempt: state.MigrateAttempt + id, Reason: "its primary said no", At: now, Follow: follow != ""}
		case "moved": // from a node, so long ago
			from, rest, _ := strings.Cut(value, ":")
			ago, attempt, _ := strings.Cut(rest, ":")
			v.Moved = &state.Moved{From: volume.NodeID(from), Attempt: cmp.Or(attempt, drainAttempt+"1"), At: now.Add(-duration(t, cmp.Or(ago, "10s")))}
		case "settled":
			v.LastMigration = &state.EndedMigration{Migration: state.Migration{To: volume.NodeID(value), Attempt: "op"}, At: now}
		case "refused-join", "refused-back": // of a reunion, or of undoing a move, so long ago
			attempt := map[string]string{"refused-join": joinAttempt, "refused-back": backAttempt}[key]
			v.LastRefusal = &state.Refusal{Attempt: attempt + "1", Reason: "in use by a shell", At: now.Add(-duration(t, value))}
		case "begun": // this epoch, with a snapshot taken so long ago
			v.Start.Taken = now.Add(-duration(t, value))
		case "failed-over": // from a node, so long ago
			from, ago, _ := strings.Cut(value, ":")
			v.LastFailover = &state.EndedFailover{From: volume.NodeID(from), To: v.Placement.Primary, At: now.Add(-duration(t, ago))}
		case "undone": // a move of a drain to a node, for which containers were stopped, so long ago
			to, ago, _ := strings.Cut(value, ":")
			v.LastRefusal = &state.Refusal{Attempt: drainAttempt + "1", Reason: "it did not start on " + to, At: now.Add(-duration(t, ago)), To: volume.NodeID(to), Follow: true}
		case "absent": // nodes that have no copy
			for id := range strings.SplitSeq(value, ",") {
				absent[volume.NodeID(id)] = true
			}
		case "task":
			holders = append(holders, volume.Holder{Container: "of-" + value, Name: value + ".1", Service: value})
		case "arrived", "returned":
			from, ago, _ := strings.Cut(value, ":")
			v.Moved = &state.Moved{From: volume.NodeID(from), Attempt: state.MigrateAttempt + "op", At: now.Add(-duration(t, cmp.Or(ago, "10s")))}
			if key == "returned" {
				v.Moved.Attempt = backAttempt + "op"
			} else {
				v.Migration.From = v.Moved.From
			}
		case "served": // services that had it before it arrived
			v.Moved.Services = strings.Split(value, ",")
		case "user": // a container
			holders = append(holders, volume.Holder{Container: value, Name: value, Unknown: value == "unknown"})
		case "fresh": // a container with the label, which is recorded in a moment
			holders = append(holders, volume.Holder{Container: value, Name: value, Follows: true})
		case "starting": // a mount, without a container
			holders = append(holders, volume.Holder{Name: "mount ID " + value, Starting: true})
		case "refusal": // of a handoff of a drain, so long ago
			v.LastRefusal = &state.Refusal{Attempt: drainAttempt + "1", Reason: "in use by a shell", At: now.Add(-duration(t, value))}
		case "blank": // a primary, which has a dataset without a snapshot
			newest = volume.Position{}
		case "problem": // with the primary's copy
			problem = value
		case "told": // by the primary of what is pending, as in pre-stop:container:hook, pre-copy:1:8 or joining:volume
			words := append(strings.Split(value, ":"), "", "")
			told.Phase = volume.MovePhase(words[0])
			switch told.Phase {
			case volume.MovePreStop:
				told.Container, told.Hook = words[1], words[2]
			case volume.MovePreCopy:
				told.Round, told.Rounds = int(parseBytes(t, words[1])), int(parseBytes(t, words[2]))
			case volume.MoveJoin:
				told.For = words[1]
			}
		case "left": // of the stream to a node, whose other half was sent, at a quarter a second
			id, bytes, _ := strings.Cut(value, ":")
			n := parseBytes(t, bytes)
			streams[volume.NodeID(id)] = Copying{Sent: n, Total: 2 * n, Rate: n / 2}
		case "stream": // to a node: NODE:SENT:TOTAL:RATE
			f := strings.Split(value, ":")
			streams[volume.NodeID(f[0])] = Copying{Sent: parseBytes(t, f[1]), Total: parseBytes(t, f[2]), Rate: parseBytes(t, f[3])}
		case "refused", "lagging", "connecting":
			for id := range strings.SplitSeq(value, ",") {
				links[volume.NodeID(id)] = volume.LinkState(key)
			}
		default:
			if !setSpec(t, &v.Spec, key, value) {
				t.Fatalf("volume: unknown word %q in %q", f, line)
			}
		}
	}
	w.volumes = append(w.volumes, v)
	if heard, ok := w.reports[v.Placement.Primary]; ok && !absent[v.Placement.Primary] {
		heard.Report.Volumes = append(heard.Report.Volumes, volume.Status{Volume: v.ID, Exists: true, Newest: newest, Problem: problem, Holders: holders, Moving: told})
	}
	for _, id := range v.Placement.Replicas() {
		link := cmp.Or(links[id], volume.LinkInSync)
		if absent[id] {
			link = volume.LinkSeeding
		}
		w.hold(v, id, link)
	}
	if heard, ok := w.reports[v.Placement.Primary]; ok {
		for _, st := range heard.Report.Volumes {
			for i := range st.Links {
				l := &st.Links[i]
				if c, ok := streams[l.Replica]; ok && st.Volume == v.ID {
					l.Stream, l.SentBytes, l.TotalBytes, l.Rate = "incremental", c.Sent, c.Total, c.Rate
				}
			}
		}
	}
	for id, h := range w.reports {
		for i := range h.Report.Volumes {
			if st := &h.Report.Volumes[i]; st.Volume == v.ID {
				st.Used, st.Data, st.Shares = used, data, shares[id]
				if bytes, ok := own[id]; ok {
					st.Used = bytes
				}
			}
		}
	}
}

func (w *world) addSwarm(s *volume.Swarm, lines []string) {
	s.Cluster = "swarm"
	without := map[volume.NodeID]bool{}
	for _, line := range lines {
		fields := strings.Fields(line)
		svc := volume.SwarmService{Name: fields[0], Wanted: true}
		for _, f := range fields[1:] {
			switch {
			case fields[0] == "without":
				without[volume.NodeID(f)] = true
			case fields[0] == "unheard":
				w.reports[volume.NodeID(f)].Report.Swarm = volume.Swarm{}
			case f == "once":
				svc.Once = true
			case f == "tries=3":
				svc.MaxAttempts = 3
			case f == "off":
				svc.Wanted = false
			default:
				svc.Volumes = append(svc.Volumes, f)
			}
		}
		if fields[0] != "without" && fields[0] != "unheard" {
			s.Services = append(s.Services, svc)
		}
	}
	for _, n := range w.nodes {
		if !without[n.ID] {
			s.Ready = append(s.Ready, "swarm-"+string(n.ID))
		}
	}
}

func (w *world) addContainer(t *testing.T, line string) {
	t.Helper()
	fields := strings.Fields(line)
	c := &state.Container{Name: fields[0], ID: fields[0], Node: volume.NodeID(fields[1]), Run: true}
	said := map[volume.NodeID]volume.Followed{}
	for _, f := range fields[2:] {
		switch key, value, _ := strings.Cut(f, "="); key {
		case "images":
			for id := range strings.SplitSeq(value, ",") {
				said[volume.NodeID(id)] = volume.Followed{}
			}
		case "fetching":
			said[volume.NodeID(value)] = volume.Followed{LacksImage: true}
		case "failed":
			node, tries, _ := strings.Cut(value, ":")
			said[volume.NodeID(node)] = volume.Followed{Failed: int(parseBytes(t, tries)), Error: "no such network", Problem: "it cannot be started"}
		case "taken":
			said[volume.NodeID(value)] = volume.Followed{Problem: "a container of its name is on this node already"}
		case "blocked":
			c.Blocked, c.Obstacles = true, []string{"it uses the device /dev/kvm"}
		case "stopped":
			c.Run = false
		case "route":
			c.Routes = []volume.Route{{Listen: int(parseBytes(t, value))}}
		default:
			c.Volumes = append(c.Volumes, state.ContainerVolume{ID: volume.ID(f), Epoch: 1})
		}
	}
	for id, f := range said {
		f.Record = c.RecordKey()
		w.reports[id].Report.Followed = append(w.reports[id].Report.Followed, f)
	}
	w.follow = append(w.follow, c)
}

func setSpec(t *testing.T, s *volume.Spec, key, value string) bool {
	t.Helper()
	switch key {
	case "size":
		s.Size = parseBytes(t, value)
	case "replicas":
		s.Replicas = int(parseBytes(t, value))
	case "remote":
		s.Remote = int(parseBytes(t, value))
	case "strict":
		s.Strict = true
	case "prefer":
		s.Prefer = strings.Split(value, ",")
	case "avoid":
		s.Avoid = strings.Split(value, ",")
	case "zone":
		s.Zone = volume.Zone(value)
	default:
		return false
	}
	return true
}

func parseBytes(t *testing.T, s string) int64 {
	t.Helper()
	unit := int64(1)
	digits := strings.TrimRight(s, "MG")
	switch s[len(digits):] {
	case "M":
		unit = 1 << 20
	case "G":
		unit = 1 << 30
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		t.Fatalf("%q is no number of bytes", s)
	}
	return n * unit
}

func duration(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func show(p volume.Placement) string {
	out := string(p.Primary)
	if len(p.Local) > 0 {
		out += " > " + join(p.Local)
	}
	if len(p.Remote) > 0 {
		out += " | " + join(p.Remote)
	}
	return out
}

func join(ids []volume.NodeID) string {
	var out []string
	for _, id := range ids {
		out = append(out, string(id))
	}
	return strings.Join(out, " ")
}

func showAll(cmds []state.Command) string {
	var out []string
	for _, cmd := range cmds {
		switch c := cmd.(type) {
		case state.SetReplicas:
			out = append(out, fmt.Sprintf("%s: replicas %s", c.ID, strings.TrimSpace(show(volume.Placement{Local: c.Local, Remote: c.Remote}))))
		case state.AbortCreate:
			out = append(out, fmt.Sprintf("%s: abort create: %s", c.ID, c.Reason))
		case state.AbortHandoff:
			out = append(out, fmt.Sprintf("%s: abort handoff %s: %s", c.ID, c.Attempt, c.Reason))
		case state.AbortDelete:
			out = append(out, fmt.Sprintf("%s: abort delete %s: %s", c.ID, c.Attempt, c.Reason))
		case state.PurgeVolume:
			out = append(out, fmt.Sprintf("%s: purge", c.ID))
		case state.ForgetVolume:
			out = append(out, fmt.Sprintf("%s: forget", c.ID))
		case state.Tell:
			out = append(out, fmt.Sprintf("%s: %s at %s: %s", c.Volume, c.Kind, c.Node, c.Message))
		case state.StartMigration:
			out = append(out, fmt.Sprintf("%s: migration %s to %s, pause %s", c.ID, c.Attempt, c.To, c.MaxPause))
		case state.EndMigration:
			out = append(out, fmt.Sprintf("%s: end of migration %s: %s", c.ID, c.Attempt, cmp.Or(c.Reason, "done")))
		case state.BeginHandoff:
			text := fmt.Sprintf("%s: hand to %s, attempt %s", c.ID, c.To, c.Attempt)
			if c.Follow {
				text += ", with containers"
			}
			if len(c.Services) > 0 {
				text += " and " + strings.Join(c.Services, ",")
			}
			if c.Back != "" {
				text += ", back: " + c.Back
			}
			out = append(out, text)
		default:
			out = append(out, fmt.Sprintf("%T", c))
		}
	}
	if out == nil {
		return "nothing"
	}
	return strings.Join(out, "\n")
}
