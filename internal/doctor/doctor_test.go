package doctor

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

var now = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

const vol volume.ID = "5f2d4be093a1c7de"

func ref[T any](v T) *T { return &v }

// healthy is a cluster of three nodes, n1 the primary of one volume, n2 with a replica.
func healthy() (Cluster, []Node) {
	c := Cluster{Quorum: true, Proven: true, Applied: 7, Failover: "automatic", Volumes: map[volume.ID]Volume{
		vol: {Name: "pgdata", Primary: "id1", Copies: []volume.NodeID{"id1", "id2"}, Live: true},
	}}
	var all []Node
	for _, name := range []string{"n1", "n2", "n3"} {
		id := volume.NodeID("id" + name[1:])
		f := &Facts{
			Node: id, Version: "v1.2.0", Applied: 7, Datasets: []Dataset{}, ZFS: &ZFS{"2.1.11-1+deb12u1", "2.1.11-1"},
			Pool:        &Pool{Name: "tank", Health: "ONLINE", Size: 100 << 30, Free: 60 << 30, Features: map[string]string{"lz4_compress": "active", "zstd_compress": "enabled"}},
			Clock:       &Clock{Source: "tsc", Available: []string{"tsc", "hpet"}},
			Mount:       &Mount{Dir: "/var/lib/flocker/volumes", On: "/", Shared: true},
			Engine:      &Engine{Version: "20.10.24", Drivers: []string{"flocker", "local"}},
			Certificate: &Certificate{From: now.Add(-40 * 24 * time.Hour), To: now.Add(50 * 24 * time.Hour)},
			Fencing:     &Fencing{Safety: volume.SafetyWatchdog},
			Timers:      &Timers{Report: 2 * time.Second, Raft: 3 * time.Second},
			Ports:       []Port{{For: "the node port", Network: "tcp", Address: ":4523", Unit: "flockd", Held: true, Ours: true}},
		}
		for _, other := range []volume.NodeID{"id1", "id2", "id3"} {
			if other != id {
				f.Peers = append(f.Peers, Peer{Node: other, Addr: "10.0.0." + string(other[2:]) + ":4523", Gossip: "alive"})
			}
		}
		for _, lazy := range inStreams { // those that are in no case
			if f.Pool.Features[lazy] == "" {
				f.Pool.Features[lazy] = "enabled"
			}
		}
		all = append(all, Node{ID: id, Name: name, Facts: f})
	}
	all[0].Facts.Datasets = []Dataset{{Name: "tank/flocker/" + string(vol), Volume: vol, Used: 1 << 30, Mounted: true, Users: ref(1)}}
	all[1].Facts.Datasets = []Dataset{{Name: "tank/flocker/" + string(vol), Volume: vol, Used: 1 << 30, Partial: true}}
	return c, all
}

// cases change a healthy cluster. want are the findings that are not ok, each as
// "severity check node: part of what is said".
var cases = []struct {
	name   string
	change func(c *Cluster, n []Node)
	want   []string
}{
	{"nothing", func(*Cluster, []Node) {}, nil},
	{"in no cluster", func(c *Cluster, _ []Node) { c.None = "this node is in no cluster" }, []string{"warning nodes : this node is in no cluster"}},
	{"no quorum", func(c *Cluster, _ []Node) { c.Quorum = false }, []string{"problem nodes : hears no leader"}},
	{"a node is off", func(_ *Cluster, n []Node) {
		n[2].Facts, n[2].Error = nil, "connection refused"
		n[0].Facts.Peers[1].Raft = "refused"
	},
		[]string{"problem nodes n3: does not answer: connection refused", "warning nodes : not looked at on n3: zfs, pool, features, clock, clocksource, ports, reach, mount, engine, plugin, shadows, datasets, receives, mounts, certificate, fencing, timers"}},
	{"an older node", func(_ *Cluster, n []Node) { n[2].Facts, n[2].Old = nil, true }, []string{"warning nodes n3: cannot be examined", "warning nodes : not looked at on n3: zfs, pool"}},
	{"an upgrade that was left half-way", func(_ *Cluster, n []Node) { n[1].Facts.Version = "v1.3.0" },
		[]string{"warning nodes : different versions of flockd: v1.2.0 on n1, n3; v1.3.0 on n2"}},
	{"three versions", func(_ *Cluster, n []Node) { n[0].Facts.Version, n[2].Facts.Version = "v1.3.0", "v1.10.0" },
		[]string{"warning nodes : v1.10.0 on n3; v1.2.0 on n2; v1.3.0 on n1"}},
	{"a witness of another version", func(_ *Cluster, n []Node) {
		n[2].Witness, n[2].Facts.Version = true, "v1.1.0"
	}, []string{"warning nodes : v1.1.0 on n3; v1.2.0 on n1, n2"}},
	{"a node that does not say its version", func(_ *Cluster, n []Node) { n[1].Facts.Version = "" }, nil},
	{"another version, and a node that is off", func(_ *Cluster, n []Node) {
		n[1].Facts.Version = "v1.3.0"
		n[2].Facts, n[2].Error = nil, "connection refused"
		n[0].Facts.Peers[1].Raft = "refused"
	}, []string{"problem nodes n3: does not answer", "warning nodes : v1.2.0 on n1; v1.3.0 on n2", "warning nodes : not looked at on n3: zfs"}},
	{"a witness is off", func(_ *Cluster, n []Node) { n[2].Facts, n[2].Error, n[2].Witness = nil, "connection refused", true },
		[]string{"problem nodes n3: does not answer", "warning nodes : not looked at on n3: clock, clocksource, ports, reach, mount, engine, plugin, shadows, certificate, timers"}},
	{"a witness that has no pool", func(_ *Cluster, n []Node) {
		n[2].Witness = true
		f := n[2].Facts
		f.ZFS, f.Pool, f.Datasets, f.Fencing = nil, nil, nil, nil
	}, nil},
	{"what could not be asked", func(_ *Cluster, n []Node) { n[1].Facts.Pool, n[1].Facts.Unknown = nil, []Unknown{{"pool", "it hangs"}} },
		[]string{"problem pool n2: could not be looked at: it hangs", "warning nodes : not looked at on n2: pool, features"}},
	{"ZFS that does not answer", func(_ *Cluster, n []Node) { n[1].Facts.ZFS, n[1].Facts.Unknown = nil, []Unknown{{"zfs", "no answer"}} },
		[]string{"problem zfs n2: no answer", "warning nodes : not looked at on n2: zfs"}},
	{"datasets that were not listed", func(_ *Cluster, n []Node) {
		n[1].Facts.Datasets, n[1].Facts.Unknown = nil, []Unknown{{"datasets", "no answer"}}
	}, []string{"problem datasets n2: no answer", "warning nodes : not looked at on n2: datasets, receives, mounts"}},
	{"an engine that hangs", func(_ *Cluster, n []Node) {
		n[1].Facts.Engine, n[1].Facts.Unknown = nil, []Unknown{{"engine", "no answer"}}
	}, []string{"problem engine n2: no answer", "warning nodes : not looked at on n2: engine, plugin, shadows"}},
	{"a clock source that cannot be read", func(_ *Cluster, n []Node) {
		n[1].Facts.Clock, n[1].Facts.Unknown = nil, []Unknown{{"clocksource", "no such file"}}
	}, []string{"warning clocksource n2: no such file", "warning nodes : not looked at on n2: clocksource"}},
	{"a node that does not know another", func(_ *Cluster, n []Node) { n[1].Facts.Peers = n[1].Facts.Peers[:1] },
		[]string{"warning nodes : not looked at on n2: reach"}},
	{"a name that writes on the terminal", func(_ *Cluster, n []Node) {
		n[0].Facts.Ports[0].Ours, n[0].Facts.Ports[0].By = false, "x\x1b[2J\nok       pool: y (7)"
	}, []string{"problem ports n1: taken by x?[2J ok       pool: y (7)"}},

	{"a module that was not restarted", func(_ *Cluster, n []Node) { n[0].Facts.ZFS.Userland = "2.1.14-1" }, []string{"warning zfs n1: the commands are of ZFS 2.1.14-1, the module of 2.1.11-1"}},
	{"commands of another series", func(_ *Cluster, n []Node) { n[0].Facts.ZFS.Userland = "2.3.2-1" }, []string{"problem zfs n1: the module of 2.1.11-1"}},
	{"commands of another generation", func(_ *Cluster, n []Node) { n[0].Facts.ZFS.Userland = "3.1.11" }, []string{"problem zfs n1: ZFS 3.1.11"}},
	{"no module", func(_ *Cluster, n []Node) { n[0].Facts.ZFS.Module = "" }, []string{"problem zfs n1: not loaded"}},
	{"nodes a series apart", func(_ *Cluster, n []Node) { *n[0].Facts.ZFS = ZFS{"2.3.2", "2.3.2"} }, []string{"warning zfs : 2.1 on n2, n3; 2.3 on n1"}},
	{"nodes a generation apart", func(_ *Cluster, n []Node) { *n[0].Facts.ZFS = ZFS{"0.8.6", "0.8.6"} }, []string{"problem zfs : 0.8 on n1; 2.1 on n2, n3"}},

	{"a disk less", func(_ *Cluster, n []Node) { n[1].Facts.Pool.Health = "DEGRADED" }, []string{"warning pool n2: DEGRADED"}},
	{"a pool that hangs", func(_ *Cluster, n []Node) { n[1].Facts.Pool.Health = "SUSPENDED" }, []string{"problem pool n2: SUSPENDED"}},
	{"read-only", func(_ *Cluster, n []Node) { n[1].Facts.Pool.ReadOnly = true }, []string{"problem pool n2: read-only"}},
	{"nearly full", func(_ *Cluster, n []Node) { n[1].Facts.Pool.Free = 15 << 30 }, []string{"warning pool n2: 85% full"}},
	{"full", func(_ *Cluster, n []Node) { n[1].Facts.Pool.Free = 5 << 30 }, []string{"problem pool n2: 95% full"}},
	{"a pool of unknown size", func(_ *Cluster, n []Node) { n[1].Facts.Pool.Size, n[1].Facts.Pool.Free = 0, 0 }, nil},
	{"a feature one lacks", func(_ *Cluster, n []Node) {
		n[0].Facts.Pool.Features["zstd_compress"], n[1].Facts.Pool.Features["zstd_compress"] = "active", "disabled"
	}, []string{"warning features n2: has not got the feature zstd_compress, which is in use on n1"}},
	{"a feature nobody uses", func(_ *Cluster, n []Node) { n[1].Facts.Pool.Features["zstd_compress"] = "disabled" }, nil},

	{"a clock that is off", func(_ *Cluster, n []Node) { n[2].Ahead = -3 * time.Second }, []string{"warning clock n3: 3s behind"}},
	{"a clock that is lost", func(_ *Cluster, n []Node) { n[2].Ahead = 2 * time.Hour }, []string{"problem clock n3: 2h0m0s ahead"}},
	{"the asker's clock", func(_ *Cluster, n []Node) { n[1].Ahead, n[2].Ahead = 5*time.Second, 5*time.Second }, []string{"warning clock n1: 5s behind"}},
	{"slow answers", func(_ *Cluster, n []Node) { n[2].Ahead, n[2].Unsure = 3*time.Second, 3*time.Second }, nil},
	{"hpet", func(_ *Cluster, n []Node) { n[0].Facts.Clock.Source = "hpet" }, []string{"warning clocksource n1: by hpet"}},
	{"acpi_pm", func(_ *Cluster, n []Node) { n[0].Facts.Clock.Source = "acpi_pm" }, []string{"warning clocksource n1: by acpi_pm"}},

	{"nobody listens", func(_ *Cluster, n []Node) { n[0].Facts.Ports[0].Held = false }, []string{"problem ports n1: nobody listens on tcp :4523"}},
	{"somebody else does", func(_ *Cluster, n []Node) { n[0].Facts.Ports[0].Ours, n[0].Facts.Ports[0].By = false, "nginx (4711)" }, []string{"problem ports n1: taken by nginx (4711)"}},
	{"one way is closed", func(_ *Cluster, n []Node) { n[0].Facts.Peers[1].Raft = "i/o timeout" }, []string{"problem reach n1: does not reach n3: i/o timeout"}},
	{"no gossip", func(_ *Cluster, n []Node) { n[0].Facts.Peers[1].Gossip = "dead" }, []string{"warning reach n1: gossip of n3"}},
	{"never any gossip", func(_ *Cluster, n []Node) { n[0].Facts.Peers[1].Gossip = "unknown" }, []string{"warning reach n1: gossip of n3"}},
	{"nobody gossips", func(_ *Cluster, n []Node) { n[0].Facts.Peers[1].Gossip = "" }, nil},
	{"a private mount", func(_ *Cluster, n []Node) { n[1].Facts.Mount.Shared = false }, []string{"warning mount n2: on the mount /, which is private"}},

	{"no engine answers", func(_ *Cluster, n []Node) { *n[1].Facts.Engine = Engine{Error: "refused"} }, []string{"problem engine n2: does not answer: refused", "warning nodes : not looked at on n2: plugin, shadows"}},
	{"an old engine", func(_ *Cluster, n []Node) { n[1].Facts.Engine.Version = "19.03.15" }, []string{"warning engine n2: version 19.03.15"}},
	{"an engine of the oldest series less one", func(_ *Cluster, n []Node) { n[1].Facts.Engine.Version = "20.9.1" }, []string{"warning engine n2: version 20.9.1"}},
	{"an engine with its own numbers", func(_ *Cluster, n []Node) { n[1].Facts.Engine.Version = "dev" }, nil},
	{"no engine at all", func(_ *Cluster, n []Node) { n[1].Facts.Engine = nil }, nil},
	{"an engine without us", func(_ *Cluster, n []Node) { n[1].Facts.Engine.Drivers = []string{"local"} }, []string{"warning plugin n2: does not list"}},
	{"a volume that hides ours", func(_ *Cluster, n []Node) { n[1].Facts.Engine.Shadows = []string{"pgdata"} }, []string{`problem shadows n2: local volume "pgdata"`}},

	{"a dataset without a name of ours", func(_ *Cluster, n []Node) {
		n[2].Facts.Datasets = []Dataset{{Name: "tank/flocker/mine", Used: 1 << 20}}
	}, []string{"warning datasets n3: tank/flocker/mine"}},
	{"a dataset of a volume nobody knows", func(_ *Cluster, n []Node) {
		n[2].Facts.Datasets = []Dataset{{Name: "tank/flocker/0000000000000001", Volume: "0000000000000001", Mounted: true, Partial: true}}
	}, []string{"warning datasets n3: tank/flocker/0000000000000001"}},
	{"a dataset of a volume that is newer than the asker's state", func(c *Cluster, n []Node) {
		n[1].Facts.Applied = 8
		n[1].Facts.Datasets = []Dataset{{Name: "tank/flocker/0000000000000001", Volume: "0000000000000001"}}
	}, []string{"warning datasets n2: its 1 dataset could not be judged", "warning nodes : not looked at on n2: datasets, receives, mounts"}},
	{"a copy that moved since the asker's state", func(c *Cluster, n []Node) {
		n[1].Facts.Applied = 8
		n[1].Facts.Datasets[0].Mounted = true
	}, []string{"warning datasets n2: older than what this one knows (7, and 8 here)", "warning nodes : not looked at on n2: datasets, receives, mounts"}},
	{"a node that is behind", func(c *Cluster, n []Node) {
		n[2].Facts.Applied = 6
		n[2].Facts.Datasets = []Dataset{{Name: "tank/flocker/mine"}}
	}, []string{"warning datasets n3: tank/flocker/mine"}},
	{"no leader confirms", func(c *Cluster, n []Node) {
		c.Proven = false
		n[0].Facts.Datasets[0].Partial, n[1].Facts.Datasets[0].Mounted = true, true
		n[1].Facts.Datasets = append(n[1].Facts.Datasets, Dataset{Name: "tank/flocker/mine"})
	}, []string{"warning datasets n1: its 1 dataset could not be judged: no leader", "warning datasets n2: its 2 datasets could not be judged"}},
	{"half received on the primary", func(_ *Cluster, n []Node) { n[0].Facts.Datasets[0].Partial = true }, []string{"warning receives n1: pgdata holds a receive"}},
	{"half received where no copy is to be", func(_ *Cluster, n []Node) { n[2].Facts.Datasets = n[1].Facts.Datasets }, []string{"warning receives n3: pgdata holds a receive"}},
	{"half received of one that is removed", func(c *Cluster, n []Node) { v := c.Volumes[vol]; v.Live = false; c.Volumes[vol] = v }, []string{"warning receives n2: pgdata holds a receive"}},
	{"half received by one that moves", func(c *Cluster, n []Node) {
		v := c.Volumes[vol]
		v.Moving = true
		c.Volumes[vol] = v
		n[0].Facts.Datasets[0].Partial = true
	}, nil},
	{"mounted on a replica", func(_ *Cluster, n []Node) { n[1].Facts.Datasets[0].Mounted = true }, []string{"problem mounts n2: not its primary"}},
	{"mounted for nobody", func(_ *Cluster, n []Node) { n[0].Facts.Datasets[0].Users = ref(0) }, []string{"warning mounts n1: nobody is known to use it"}},
	{"mounted for who knows whom", func(_ *Cluster, n []Node) { n[0].Facts.Datasets[0].Users = nil }, nil},
	{"mounted by one that moves", func(c *Cluster, n []Node) {
		v := c.Volumes[vol]
		v.Moving = true
		c.Volumes[vol] = v
		n[1].Facts.Datasets[0].Mounted = true
	}, nil},

	{"expired", func(_ *Cluster, n []Node) { n[0].Facts.Certificate.To = now.Add(-time.Second) }, []string{"problem certificate n1: expired at 2026-03-04T11:59:59Z"}},
	{"not valid yet", func(_ *Cluster, n []Node) { n[0].Facts.Certificate.From = now.Add(time.Second) }, []string{"problem certificate n1: valid only from"}},
	{"about to expire", func(_ *Cluster, n []Node) { n[0].Facts.Certificate.To = now.Add(7 * 24 * time.Hour) }, []string{"warning certificate n1: not renewed in time"}},
	{"expired by its own clock", func(_ *Cluster, n []Node) { n[0].Facts.Certificate.To = now.Add(time.Minute); n[0].Ahead = time.Hour },
		[]string{"problem clock n1: ahead", "problem certificate n1: expired"}},

	{"software alone", func(_ *Cluster, n []Node) { n[0].Facts.Fencing.Safety = volume.SafetySoftware }, []string{"warning fencing n1: software alone"}},
	{"no fencer", func(_ *Cluster, n []Node) { n[0].Facts.Fencing.Safety = "" }, []string{"problem fencing n1: no fencer"}},
	{"no fencer, by hand", func(c *Cluster, n []Node) { c.Failover = "manual"; n[0].Facts.Fencing.Safety = "" }, []string{"warning fencing n1: no fencer"}},
	{"no fencer on a witness", func(_ *Cluster, n []Node) { n[0].Witness = true; n[0].Facts.Fencing.Safety = "" }, nil},
	{"a fencer in trouble", func(_ *Cluster, n []Node) { n[0].Facts.Fencing.Problem = "cannot open /dev/watchdog" }, []string{"warning fencing n1: cannot open /dev/watchdog"}},
	{"timers that do not fit", func(_ *Cluster, n []Node) { n[0].Facts.Timers.Unfit = "the lease is too short" }, []string{"problem timers n1: the lease is too short"}},
	{"timers that differ", func(_ *Cluster, n []Node) { n[0].Facts.Timers.Raft = 10 * time.Second }, []string{"warning timers : election 10s on n1; report 2s, election 3s on n2, n3"}},
}

// differences of what is found from what is wanted.
func differences(change func(*Cluster, []Node), want []string) (out []string) {
	c, n := healthy()
	change(&c, n)
	slices.Reverse(n) // the order of asking does not matter
	left := slices.Clone(want)
	for _, f := range Examine(c, n, now) {
		if f.Severity == OK {
			continue
		}
		head := fmt.Sprintf("%s %s %s: ", f.Severity, f.Check, f.Node)
		i := slices.IndexFunc(left, func(w string) bool {
			return strings.HasPrefix(w, head) && strings.Contains(f.What, w[len(head):])
		})
		if i < 0 {
			out = append(out, "found "+head+f.What)
			continue
		}
		left = slices.Delete(left, i, i+1)
		if f.Why == "" || f.Fix == "" {
			out = append(out, "no reason or no way out: "+head+f.What)
		}
	}
	for _, w := range left {
		out = append(out, "did not find "+w)
	}
	return out
}

func TestExamine(t *testing.T) {
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			for _, d := range differences(tt.change, tt.want) {
				t.Error(d)
			}
		})
	}
}

// Each check is missed by some case when it is gone, and says of a healthy cluster that it
// is well.
func TestEachCheckIsTested(t *testing.T) {
	said := map[string]int{}
	c, n := healthy()
	for _, f := range Examine(c, n, now) {
		said[f.Check]++
	}
	for i := range checks {
		look := checks[i].look
		checks[i].look = func(*examination) string { return "" }
		missed := slices.ContainsFunc(cases, func(c struct {
			name   string
			change func(c *Cluster, n []Node)
			want   []string
		}) bool {
			return len(differences(c.change, c.want)) > 0
		})
		checks[i].look = look
		if !missed {
			t.Errorf("no case misses the check %s", checks[i].name)
		}
		if said[checks[i].name] != 1 {
			t.Errorf("the check %s says %d things of a healthy cluster, want one", checks[i].name, said[checks[i].name])
		}
	}
}

// Nobody is told to destroy what may be live: nothing is destroyed or unmounted by any advice, what was
// received in part is dropped only after a look, and by an old state nothing is.
func TestAdviceDestroysNothing(t *testing.T) {
	for _, tt := range cases {
		for _, proven := range []bool{true, false} {
			c, n := healthy()
			tt.change(&c, n)
			c.Proven = c.Proven && proven
			for _, f := range Examine(c, n, now) {
				for _, never := range []string{"zfs destroy", "zfs unmount", "zpool destroy", "zfs rollback"} {
					if strings.Contains(f.Fix, never) {
						t.Errorf("%s: the fix of %q is %q", tt.name, f.What, f.Fix)
					}
				}
				for _, after := range []string{"zfs receive -A", "zfs rename", "docker volume rm"} {
					before, _, says := strings.Cut(f.Fix, after)
					if says && (!c.Proven || !strings.Contains(before, "look first") && !strings.Contains(before, "save what is in it")) {
						t.Errorf("%s (proven: %t): the fix of %q is %q", tt.name, c.Proven, f.What, f.Fix)
					}
				}
			}
		}
	}
}

// A check is well only if all nodes were looked at: without the facts that it goes by, of any node, it
// does not say so.
func TestOnlyWhatWasLookedAtIsWell(t *testing.T) {
	by := map[string][]string{
		"ZFS": {"zfs"}, "Pool": {"pool", "features"}, "Clock": {"clocksource"}, "Ports": {"ports"}, "Peers": {"reach"}, "Mount": {"mount"},
		"Engine": {"engine", "plugin", "shadows"}, "Datasets": {"datasets", "receives", "mounts"}, "Certificate": {"certificate"},
		"Fencing": {"fencing"}, "Timers": {"timers"},
	}
	well := func(c Cluster, n []Node) (out []string) {
		for _, f := range Examine(c, n, now) {
			if f.Severity == OK {
				out = append(out, f.Check)
			}
		}
		return out
	}
	for field := range reflect.TypeFor[Facts]().Fields() {
		if k := field.Type.Kind(); k != reflect.Pointer && k != reflect.Slice || field.Name == "Unknown" {
			continue
		}
		gone := by[field.Name]
		if gone == nil {
			t.Errorf("no check goes by %s", field.Name)
		}
		for i := range 3 {
			c, n := healthy()
			reflect.ValueOf(n[i].Facts).Elem().FieldByIndex(field.Index).SetZero()
			if field.Name == "Engine" { // there may be none
				n[i].Facts.Unknown = []Unknown{{"engine", "it hangs"}}
			}
			got := well(c, n)
			for _, check := range checks {
				if slices.Contains(got, check.name) == slices.Contains(gone, check.name) {
					t.Errorf("without the %s of %s: %s is well: %t", field.Name, n[i].Name, check.name, slices.Contains(got, check.name))
				}
			}
		}
	}
	c, n := healthy()
	n[1].Facts.Pool.Features = nil
	if got := well(c, n); slices.Contains(got, "features") || !slices.Contains(got, "pool") {
		t.Errorf("without the features of n2 %v are well", got)
	}
	for i := range 3 {
		c, n := healthy()
		n[i].Facts = nil
		if got := well(c, n); len(got) > 0 {
			t.Errorf("without %s %v are well", n[i].Name, got)
		}
	}
}

// The worst comes first, and nothing is said to be well of which nothing is known.
func TestOrderAndSilence(t *testing.T) {
	c, n := healthy()
	n[0].Facts.Clock.Source, n[2].Facts.Pool.Health = "hpet", "FAULTED"
	all := Examine(c, n, now)
	if all[0].Severity != Problem || all[1].Severity != Warning || all[2].Severity != OK || Worst(all) != Problem {
		t.Errorf("got %v", all[:3])
	}
	got := Examine(Cluster{None: "this node is in no cluster"}, []Node{{Name: "n1", Facts: &Facts{}}}, now)
	if len(got) != 1 || got[0].Severity != Warning || Worst(got) != Warning || Worst(nil) != OK {
		t.Errorf("of a node that knows nothing: %v", got)
	}
}

func TestAhead(t *testing.T) {
	at := func(ms int) time.Time { return now.Add(time.Duration(ms) * time.Millisecond) }
	tests := []struct {
		sent, came, went, back int // ms by the asker's clock; the node's is 500 ahead
		ahead, unsure          time.Duration
	}{
		{0, 510, 3510, 3020, 500 * time.Millisecond, 10 * time.Millisecond}, // 10 each way, 3 s of thought
		{0, 600, 600, 100, 550 * time.Millisecond, 50 * time.Millisecond},   // all of it on the way there
		{0, 500, 500, 100, 450 * time.Millisecond, 50 * time.Millisecond},   // all of it on the way back
		{1000, 500, 500, 1000, -500 * time.Millisecond, 0},                  // behind, at once
	}
	for _, tt := range tests {
		ahead, unsure := Ahead(at(tt.sent), at(tt.came), at(tt.went), at(tt.back))
		if ahead != tt.ahead || unsure != tt.unsure {
			t.Errorf("%+v: got %s, %s", tt, ahead, unsure)
		}
	}
}
