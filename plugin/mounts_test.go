package plugin

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/flocker-io/flocker/internal/volume"
)

var update = flag.Bool("update", false, "write what was got into testdata")

// TestMounts runs the stories in testdata/mounts. A line at the margin is an event:
//
//	at 90                     it is 90 s since the start
//	mounting|mounted|failed|unmounted|found VOLUME ID
//	forget VOLUME
//	containers NAME:STATE:VOLUME,VOLUME ...    what the engine lists from now on
//	silent                    the engine does not answer
//	lost                      the engine went away just now
//	disk VOLUME ...           what is mounted
//	held VOLUME=HOLDER ...    other places where it is mounted
//	reconcile [asked 80]      prints what follows
//
// Lines indented by four are what it printed.
func TestMounts(t *testing.T) {
	files, err := filepath.Glob("testdata/mounts/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			w := &mountsWorld{t: t, now: seconds(t, "0"), view: View{Known: true}}
			golden(t, path, w.do)
		})
	}
}

type mountsWorld struct {
	t    testing.TB
	m    Mounts
	now  time.Time
	view View
}

func (w *mountsWorld) do(line string) string {
	w.t.Helper()
	verb, args, _ := strings.Cut(line, " ")
	f := strings.Fields(args)
	arg := func(i int) string {
		if i < len(f) && f[i] != `""` {
			return f[i]
		}
		return ""
	}
	switch verb {
	case "at":
		w.now = seconds(w.t, arg(0))
	case "mounting":
		w.m.Mounting(arg(0), arg(1), w.now)
	case "mounted":
		w.m.Mounted(arg(0), arg(1), w.now)
	case "failed":
		w.m.MountFailed(arg(0), arg(1), w.now)
	case "unmounted":
		if w.m.Unmounted(arg(0), arg(1), w.now) {
			return "maybe free"
		}
	case "found":
		w.m.Found(arg(0), w.now)
	case "forget":
		w.m.Forget(arg(0))
	case "silent":
		w.view.Known, w.view.Containers = false, nil
	case "lost":
		w.view.EngineSince = w.now
	case "disk":
		w.view.Mounted = f
	case "held":
		w.view.Held = map[string][]volume.Holder{}
		for _, h := range f {
			vol, name, _ := strings.Cut(h, "=")
			w.view.Held[vol] = append(w.view.Held[vol], volume.Holder{Name: name})
		}
	case "containers":
		w.view.Known, w.view.Containers = true, nil
		for _, c := range f {
			p := strings.Split(c, ":")
			for vol := range strings.SplitSeq(p[2], ",") {
				w.view.Containers = append(w.view.Containers, ContainerMount{
					Volume: vol, Container: "id-" + p[0], Name: p[0], Running: p[1] == "running",
				})
			}
		}
	case "reconcile":
		view := w.view
		if arg(0) == "asked" {
			view.At = seconds(w.t, arg(1))
		}
		return describeReconciled(w.m.Reconcile(view, w.now))
	default:
		w.t.Fatalf("no such event: %s", line)
	}
	return ""
}

func describeReconciled(r Reconciled) string {
	var out []string
	for _, vol := range slices.Sorted(maps.Keys(r.InUse)) {
		var names []string
		for _, h := range r.InUse[vol] {
			names = append(names, cmp.Or(h.Name, h.Container))
		}
		out = append(out, fmt.Sprintf("%s in use by %s", vol, strings.Join(names, ", ")))
	}
	for _, vol := range r.Free {
		out = append(out, vol+" free")
	}
	for _, h := range r.Dropped {
		out = append(out, fmt.Sprintf("%s forgets mount ID %q: count %d, age %s", h.Volume, h.ID, h.Count, h.Age))
	}
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, "\n")
}

func seconds(t testing.TB, s string) time.Time {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%q is no number of seconds", s)
	}
	return time.Unix(1_700_000_000+int64(n), 0)
}

// A mount without a container that runs is of one that is starting. What runs is not, nor what nobody can see.
func TestMountsStarting(t *testing.T) {
	var m Mounts
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	m.Mounting("pg", "1a2b", now)
	m.Mounted("pg", "1a2b", now)
	for _, tt := range []struct {
		name string
		view View
		want volume.Holder
	}{
		{"starting", View{Known: true, At: now, Mounted: []string{"pg"}}, volume.Holder{Name: "mount ID 1a2b", Starting: true}},
		{"not to be seen", View{At: now, Mounted: []string{"pg"}}, volume.Holder{Name: "mount ID 1a2b"}},
		{"running", View{Known: true, At: now, Mounted: []string{"pg"}, Containers: []ContainerMount{{Volume: "pg", Container: "c", Name: "web", Running: true}}}, volume.Holder{Container: "c", Name: "web"}},
	} {
		if got := m.Reconcile(tt.view, now.Add(time.Second)).InUse["pg"]; len(got) != 1 || got[0] != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// One that starts where others run is known by its Mount. A Mount that is no one's who runs may also be left of
// one that nobody unmounted, and who rests may have done so for long.
func TestStartingBesideOthers(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	web := ContainerMount{Volume: "pg", Container: "c", Name: "web", Running: true}
	side := ContainerMount{Volume: "pg", Container: "d", Name: "side"}
	for _, tt := range []struct {
		name   string
		mounts map[string]time.Duration // by mount ID, how long ago
		there  []ContainerMount
		silent bool
		want   string
	}{
		{"it has mounted", map[string]time.Duration{"1": time.Hour, "2": time.Second}, []ContainerMount{web, side}, false, "side"},
		{"both have, just now", map[string]time.Duration{"1": 2 * time.Second, "2": time.Second}, []ContainerMount{web, side}, false, "side"},
		{"nobody runs", map[string]time.Duration{"2": time.Second}, []ContainerMount{side}, false, "side"},
		{"what runs has, and the other one rests", map[string]time.Duration{"1": time.Second}, []ContainerMount{web, side}, false, ""},
		{"it has long ago", map[string]time.Duration{"1": time.Hour, "2": time.Hour}, []ContainerMount{web, side}, false, ""},
		{"there is none", map[string]time.Duration{"1": time.Hour, "2": time.Second}, []ContainerMount{web}, false, ""},
		{"another volume's", map[string]time.Duration{"1": time.Hour, "2": time.Second}, []ContainerMount{web, {Volume: "logs", Container: "d", Name: "side"}}, false, ""},
		{"not to be seen", map[string]time.Duration{"1": time.Hour, "2": time.Second}, nil, true, ""},
	} {
		var m Mounts
		for id, ago := range tt.mounts {
			m.Mounted("pg", id, now.Add(-ago))
		}
		if got := strings.Join(m.Starting("pg", View{Known: !tt.silent, At: now, Containers: tt.there}, now), " "); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestMountsNeverFreeWhileUsed plays random histories of one node against a model that
// knows who really uses a volume, and checks the two rules: a volume with a user is
// never free, and one without is free once the grace has passed and the engine answers.
func TestMountsNeverFreeWhileUsed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var (
			m       Mounts
			now     = time.Unix(1_700_000_000, 0)
			engine  = true              // answers
			lost    time.Time           // when it last went away
			running = map[string]bool{} // container "c0" on volume "v0"
			copying = map[string]bool{}
			names   = []string{"c0", "c1", "c2"}
			vol     = map[string]string{"c0": "v0", "c1": "v0", "c2": "v1"}
			mounted = map[string]bool{"v0": true, "v1": true}
		)
		view := func() View {
			v := View{Known: engine, At: now, EngineSince: lost, Held: map[string][]volume.Holder{}}
			for name := range mounted {
				v.Mounted = append(v.Mounted, name)
			}
			if engine {
				for _, c := range names {
					v.Containers = append(v.Containers, ContainerMount{Volume: vol[c], Container: c, Name: c, Running: running[c]})
				}
			}
			for c := range copying {
				v.Held[vol[c]] = append(v.Held[vol[c]], volume.Holder{Name: "copy of " + c})
			}
			return v
		}
		inUse := func(name string) bool {
			for _, c := range names {
				if vol[c] == name && (running[c] || copying[c]) {
					return true
				}
			}
			return false
		}
		t.Repeat(map[string]func(*rapid.T){
			"start": func(t *rapid.T) {
				c := rapid.SampledFrom(names).Draw(t, "container")
				if running[c] || !engine {
					t.Skip()
				}
				m.Mounting(vol[c], c, now)
				m.Mounted(vol[c], c, now)
				running[c] = true
			},
			"stop": func(t *rapid.T) {
				c := rapid.SampledFrom(names).Draw(t, "container")
				if !running[c] {
					t.Skip()
				}
				running[c] = false
				if rapid.Bool().Draw(t, "unmount arrives") {
					m.Unmounted(vol[c], c, now)
				}
			},
			"copy": func(t *rapid.T) {
				c := rapid.SampledFrom(names).Draw(t, "container")
				if copying[c] || !engine {
					t.Skip()
				}
				m.Mounted(vol[c], c, now)
				copying[c] = true
			},
			"copied": func(t *rapid.T) {
				c := rapid.SampledFrom(names).Draw(t, "container")
				if !copying[c] {
					t.Skip()
				}
				delete(copying, c)
				m.Unmounted(vol[c], c, now)
			},
			"stray unmount": func(t *rapid.T) {
				m.Unmounted("v0", rapid.SampledFrom(names).Draw(t, "id"), now)
			},
			"engine goes": func(t *rapid.T) {
				if !engine {
					t.Skip()
				}
				engine, lost = false, now
				copying = map[string]bool{}
				if !rapid.Bool().Draw(t, "live restore") {
					running = map[string]bool{}
				}
			},
			"engine returns": func(t *rapid.T) { engine = true },
			"flockd restarts": func(t *rapid.T) {
				m = Mounts{}
				for name := range mounted {
					m.Found(name, now)
				}
			},
			"time passes": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "seconds")) * time.Second)
			},
			"": func(t *rapid.T) {
				r := m.Reconcile(view(), now)
				for _, name := range r.Free {
					if inUse(name) || !engine {
						t.Fatalf("%s is free; engine answers: %v, running %v, copying %v", name, engine, running, copying)
					}
					if !m.Idle(name) {
						t.Fatalf("%s is free and not idle", name)
					}
				}
				// A second look after the grace must have settled everything.
				if engine {
					later := now.Add(MountGrace)
					v := view()
					v.At = later
					probe := m.clone()
					r := probe.Reconcile(v, later)
					for name := range mounted {
						if !inUse(name) && !slices.Contains(r.Free, name) {
							t.Fatalf("nobody uses %s and it is not free after the grace: %v", name, r.InUse[name])
						}
					}
				}
			},
		})
	})
}

// clone lets a test look ahead.
func (m *Mounts) clone() *Mounts {
	c := &Mounts{Grace: m.Grace, volumes: map[string]*mounted{}}
	for vol, v := range m.volumes {
		w := &mounted{hints: map[string]*hint{}, last: slices.Clone(v.last)}
		for id, h := range v.hints {
			copied := *h
			w.hints[id] = &copied
		}
		c.volumes[vol] = w
	}
	return c
}

// golden runs a file of events: comments and empty lines pass through, a line at the
// margin is given to f, and what f prints is kept below it, indented.
func golden(t *testing.T, path string, f func(line string) string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "    ") {
			continue
		}
		fmt.Fprintln(&out, line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		for got := range strings.Lines(f(line)) {
			fmt.Fprintf(&out, "    %s\n", strings.TrimSuffix(got, "\n"))
		}
	}
	if *update {
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, got := strings.Split(string(data), "\n"), strings.Split(out.String(), "\n")
	for i := range max(len(want), len(got)) {
		w, g := at(want, i), at(got, i)
		if w != g {
			t.Fatalf("%s:%d:\n got %q\nwant %q\n(-update writes what was got)", path, i+1, g, w)
		}
	}
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return ""
}
