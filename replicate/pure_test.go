package replicate

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

var update = flag.Bool("update", false, "write what the functions say now into testdata")

// The files in testdata hold cases: prose after #, a line of input in words
// key=value, and after -> what the function says. Snapshots are written as their
// txg, which is their guid too: 5 is the engine's at epoch 1 with sequence 5, 2.5
// at epoch 2, u5 a user's, h5 and d5 one that is taken hourly and daily, 5! has a
// hold, #5 is a bookmark and #u5 one of a user's.
func dataDriven(t *testing.T, file string, f func(in map[string]string) string) {
	t.Helper()
	path := "testdata/" + file
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cases := 0
	for i, line := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		input, want, found := strings.Cut(line, "->")
		if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" {
			fmt.Fprintln(&out, line)
			continue
		}
		in := map[string]string{}
		for _, word := range strings.Fields(input) {
			key, value, _ := strings.Cut(word, "=")
			in[key] = value
		}
		got := f(in)
		cases++
		if want = strings.TrimSpace(want); !*update && (!found || got != want) {
			t.Errorf("%s:%d: %s\n got %s\nwant %s", path, i+1, strings.TrimSpace(input), got, want)
		}
		fmt.Fprintf(&out, "%s -> %s\n", strings.TrimSpace(input), got)
	}
	if cases == 0 {
		t.Errorf("%s holds no case", path)
	}
	if *update {
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// spell writes ranges like #u1..3 out.
func spell(t *testing.T, s string) (all []string) {
	t.Helper()
	for part := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == ',' }) {
		first, last, ranged := strings.Cut(part, "..")
		if !ranged {
			all = append(all, part)
			continue
		}
		kind := strings.TrimRight(first, "0123456789")
		for n := number(t, strings.TrimPrefix(first, kind)); n <= number(t, last); n++ {
			all = append(all, kind+fmt.Sprint(n))
		}
	}
	return all
}

func parseSnaps(t *testing.T, s string) (snaps []snap, marks []mark) {
	t.Helper()
	for _, word := range spell(t, s) {
		sn := snap{pinned: strings.HasSuffix(word, "!")}
		text := strings.TrimSuffix(word, "!")
		bookmark := strings.HasPrefix(text, "#")
		other := strings.ContainsAny(text, "uhdf")
		switch {
		case strings.HasPrefix(text, "h"):
			sn.rule = time.Hour
		case strings.HasPrefix(text, "d"):
			sn.rule = 24 * time.Hour
		}
		epoch, seq, dotted := strings.Cut(strings.TrimLeft(text, "#uhdf"), ".")
		if !dotted {
			epoch, seq = "1", epoch
		}
		n, err := strconv.ParseUint(seq, 10, 64)
		if err != nil {
			t.Fatalf("snapshot %q: %v", word, err)
		}
		ep, err := strconv.ParseUint(epoch, 10, 32)
		if err != nil {
			t.Fatalf("snapshot %q: %v", word, err)
		}
		sn.txg, sn.guid, sn.name = n, guid(n), text
		p := volume.Position{Epoch: volume.Epoch(ep), Seq: n, GUID: n}
		switch {
		case strings.HasPrefix(text, "#f"): // left by somebody else
			marks = append(marks, mark{name: text[1:], guid: guid(n), txg: n})
			continue
		case bookmark && other:
			marks = append(marks, mark{name: tombstone + text[1:], guid: guid(n), txg: n})
			continue
		case bookmark:
			marks = append(marks, mark{name: p.SnapshotName(), guid: guid(n), txg: n})
			continue
		case !other:
			sn.pos, sn.name = p, p.SnapshotName()
		}
		snaps = append(snaps, sn)
	}
	return snaps, marks
}

func parseGUIDs(t *testing.T, s string) []guid {
	t.Helper()
	var list []guid
	for _, word := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' }) {
		list = append(list, guid(number(t, word)))
	}
	return list
}

func number(t *testing.T, s string) uint64 {
	t.Helper()
	if s == "" {
		return 0
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func set(list []guid) map[guid]bool {
	m := map[guid]bool{}
	for _, g := range list {
		m[g] = true
	}
	return m
}

func TestDecide(t *testing.T) {
	dataDriven(t, "decide.txt", func(in map[string]string) string {
		o := offer{Epoch: 2, Bases: parseGUIDs(t, in["bases"])}
		if in["epoch"] != "" {
			o.Epoch = volume.Epoch(number(t, in["epoch"]))
		}
		_, o.Truncated = in["truncated"]
		_, o.NoResume = in["noresume"]
		if len(o.Bases) > 0 {
			o.Newest = volume.Position{Epoch: o.Epoch, Seq: 1, GUID: uint64(o.Bases[0])}
		}
		s := standing{epoch: o.Epoch, token: in["token"], badEpoch: in["badepoch"]}
		var snaps string
		snaps, s.exists = in["copy"]
		s.snaps, _ = parseSnaps(t, snaps)
		if in["has"] != "" {
			s.epoch = volume.Epoch(number(t, in["has"]))
		}
		_, s.mounted = in["mounted"]
		_, s.modified = in["modified"]
		_, s.fork = in["fork"]
		if name, g, ok := strings.Cut(in["origin"], ":"); ok {
			s.origin, s.originGUID = name, guid(number(t, g))
		}
		for _, key := range slices.Sorted(maps.Keys(in)) {
			if n, ok := strings.CutPrefix(key, "seed"); ok {
				sd := seed{epoch: volume.Epoch(number(t, n))}
				if token, ok := strings.CutPrefix(in[key], "token:"); ok {
					sd.token, sd.origin, _ = strings.Cut(token, "/on:")
				} else {
					sd.snaps, _ = parseSnaps(t, in[key])
				}
				s.seeds = append(s.seeds, sd)
			}
		}
		st := decide(o, s)
		text := string(st.act)
		if st.act == actAnswer {
			text = string(st.answer.Verdict)
			if st.answer.Have != 0 {
				text += fmt.Sprintf(" have=%d", st.answer.Have)
			}
			if st.answer.Token != "" {
				text += " token=" + st.answer.Token
			}
			if st.answer.Epoch != 0 {
				text += fmt.Sprintf(" epoch=%d", st.answer.Epoch)
			}
		}
		if st.epoch != 0 {
			text += fmt.Sprintf(" epoch=%d", st.epoch)
		}
		if st.common != 0 {
			text += fmt.Sprintf(" common=%d", st.common)
		}
		return text
	})
}

func TestNextHop(t *testing.T) {
	dataDriven(t, "hops.txt", func(in map[string]string) string {
		snaps, marks := parseSnaps(t, in["snaps"])
		stops := map[guid]int{}
		for _, g := range parseGUIDs(t, in["stops"]) {
			stops[g] = 1
		}
		var path []string
		for have := guid(number(t, in["have"])); ; {
			h, ok := nextHop(snaps, marks, stops, have)
			if !ok {
				return strings.TrimSpace(strings.Join(path, " ") + " end")
			}
			from := "full"
			if h.from != "" {
				from = h.from[:1] + fmt.Sprint(h.fromGUID)
			}
			path = append(path, fmt.Sprintf("%s..%d", from, h.to.guid))
			have = h.to.guid
		}
	})
}

func TestKeep(t *testing.T) {
	dataDriven(t, "keep.txt", func(in map[string]string) string {
		k := kept{stay: set(parseGUIDs(t, in["stay"])), reachable: set(parseGUIDs(t, in["reachable"])),
			dropped: set(parseGUIDs(t, in["dropped"])), policy: parsePolicy(t, in["policy"])}
		k.snaps, k.marks = parseSnaps(t, in["copy"])
		if n := number(t, in["floor"]); n != 0 {
			k.floor = volume.Position{Epoch: 1, Seq: n, GUID: n}
		}
		p := keep(k)
		var text []string
		list := func(what string, guids []string) {
			if len(guids) > 0 {
				text = append(text, what+" "+strings.Join(guids, ","))
			}
		}
		list("mark", names(p.mark, func(s snap) guid { return s.guid }))
		list("destroy", names(p.destroy, func(s snap) guid { return s.guid }))
		list("unmark", names(p.unmark, func(m mark) guid { return m.guid }))
		if text == nil {
			return "nothing"
		}
		return strings.Join(text, "; ")
	})
}

func parsePolicy(t *testing.T, s string) volume.SnapshotPolicy {
	t.Helper()
	if s == "" {
		return nil
	}
	p, err := volume.ParseSnapshotPolicy(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func names[T any](list []T, of func(T) guid) []string {
	var out []string
	for _, v := range list {
		out = append(out, fmt.Sprint(of(v)))
	}
	return out
}

func TestDue(t *testing.T) {
	dataDriven(t, "due.txt", func(in map[string]string) string {
		p := pulse{replicas: 1, interval: time.Second, since: duration(t, in["since"], -1)}
		if in["replicas"] != "" {
			p.replicas = int(number(t, in["replicas"]))
		}
		if in["interval"] != "" {
			p.interval = duration(t, in["interval"], 0)
		}
		p.unacked, p.written = int(number(t, in["unacked"])), int64(number(t, in["written"]))
		_, p.frozen = in["frozen"]
		_, p.none = in["none"]
		_, p.userTop = in["usertop"]
		_, p.moved = in["moved"]
		return fmt.Sprint(due(p))
	})
}

func duration(t *testing.T, s string, empty time.Duration) time.Duration {
	t.Helper()
	if s == "" {
		return empty
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestLinkState(t *testing.T) {
	dataDriven(t, "link.txt", func(in map[string]string) string {
		s := signs{streaming: in["streaming"], allowed: 10 * time.Second, behind: duration(t, in["behind"], 0)}
		s.newest, s.acked = guid(number(t, in["newest"])), guid(number(t, in["acked"]))
		_, s.seeding = in["seeding"]
		_, s.spoken = in["spoken"]
		_, s.refused = in["refused"]
		_, s.failed = in["failed"]
		if lags(s) {
			return string(linkState(s)) + " lags"
		}
		return string(linkState(s))
	})
}

// A pass takes from those that have most, and never more than it may, of aged ones neither.
func TestPortionOf(t *testing.T) {
	excess := func(n, unmark int) pruning {
		p := pruning{unmark: make([]mark, unmark)}
		for i := range n {
			p.destroy = append(p.destroy, snap{guid: guid(i + 1)})
		}
		return p
	}
	for _, c := range []struct {
		have map[volume.ID]int
		most int
		aged int // of each the oldest so many, and in all
		want map[volume.ID]int
		rest bool
	}{
		{nil, 10, 0, nil, false},
		{map[volume.ID]int{"a": 4, "b": 6}, 10, 0, map[volume.ID]int{"a": 4, "b": 6}, false},
		{map[volume.ID]int{"a": 4, "b": 6}, 9, 0, map[volume.ID]int{"a": 3, "b": 6}, true},
		{map[volume.ID]int{"a": 8, "b": 8, "c": 9}, 9, 0, map[volume.ID]int{"c": 9}, true},
		{map[volume.ID]int{"a": 100, "b": 8}, 9, 0, map[volume.ID]int{"a": 9}, true},
		{map[volume.ID]int{"a": 8, "b": 0, "c": 8}, 9, 0, map[volume.ID]int{"a": 8, "b": 0, "c": 1}, true},
		{map[volume.ID]int{"a": 4}, 10, 5, map[volume.ID]int{"a": 4}, false},
		{map[volume.ID]int{"a": 4, "b": 6}, 10, 4, map[volume.ID]int{"b": 6}, true},
		{map[volume.ID]int{"a": 5, "b": 8}, 10, 4, map[volume.ID]int{"b": 8, "a": 1}, true},
		{map[volume.ID]int{"a": 5, "b": 8}, 3, 4, map[volume.ID]int{"b": 3}, true},
	} {
		plans := map[volume.ID]pruning{}
		for id, n := range c.have {
			plans[id] = excess(n, 1)
		}
		aged := func(_ volume.ID, s snap) bool { return int(s.guid) <= c.aged }
		portion, rest := portionOf(plans, c.most, c.aged, aged)
		got := map[volume.ID]int{}
		for id, p := range portion {
			got[id] = len(p.destroy)
			skipped := 0
			if got[id] > 0 && !aged(id, p.destroy[0]) {
				skipped = c.aged
			}
			for i, s := range p.destroy {
				if s.guid != guid(i+1+skipped) {
					t.Errorf("of %v not the oldest of %s go: %v", c.have, id, p.destroy)
				}
			}
		}
		if !maps.Equal(got, c.want) || rest != c.rest {
			t.Errorf("of %v at most %d, aged %d: %v, rest %v, want %v, %v", c.have, c.most, c.aged, got, rest, c.want, c.rest)
		}
	}
}

// What stays for people is aged, and the engine's when they were not taken lately: on a
// replica by the clock of the primary, whatever its own says.
func TestAged(t *testing.T) {
	const id = volume.ID("v")
	now := time.Unix(100_000, 0)
	at := func(ago time.Duration) volume.Position {
		return volume.Position{Epoch: 1, Seq: 1, GUID: 1, Taken: now.Add(-ago)}
	}
	for _, c := range []struct {
		name   string
		role   volume.Role
		pos    volume.Position
		newest time.Duration // ago
		asOf   time.Duration // ago; 0: not told
		want   bool
	}{
		{"a user's", volume.RolePrimary, volume.Position{}, 0, 0, true},
		{"a user's, where the engine has none", volume.RoleReplica, volume.Position{}, -1, 0, true},
		{"taken just now", volume.RolePrimary, at(10 * time.Second), 0, 0, false},
		{"taken long ago", volume.RolePrimary, at(2 * time.Minute), time.Second, 0, true},
		{"the newest, taken long ago", volume.RolePrimary, at(2 * time.Minute), 2 * time.Minute, 0, true},
		{"on a replica", volume.RoleReplica, at(10 * time.Second), time.Second, 0, false},
		{"on a replica, long ago", volume.RoleReplica, at(2 * time.Minute), time.Second, 0, true},
		{"on a replica whose clock is ahead", volume.RoleReplica, at(time.Hour + time.Second), time.Hour, time.Hour - time.Second, false},
		{"on an idle replica", volume.RoleReplica, at(time.Hour + time.Second), time.Hour, time.Minute, true},
	} {
		copied := newCopy()
		copied.snaps = []snap{{pos: c.pos}, {pos: at(c.newest)}}
		if c.newest < 0 {
			copied.snaps = copied.snaps[:1]
		}
		if c.asOf != 0 {
			copied.completeAsOf = now.Add(-c.asOf)
		}
		e := &Engine{table: map[volume.ID]*Assignment{id: {Role: c.role}}, copies: map[volume.ID]*localCopy{id: copied}}
		if got := e.aged(id, copied.snaps[0], now); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestTickEvery(t *testing.T) {
	for _, c := range []struct {
		shortest, took, want time.Duration
	}{
		{0, 0, maxTick},
		{time.Hour, 0, maxTick},
		{time.Second, 10 * time.Minute, 11 * time.Minute}, // of which ten minutes are over
		{time.Second, 0, time.Second},
		{time.Millisecond, 0, minTick},
		{time.Second, 900 * time.Millisecond, 1800 * time.Millisecond},
		{time.Second, time.Minute, 2 * time.Minute},
	} {
		if got := tickEvery(c.shortest, c.took); got != c.want {
			t.Errorf("tickEvery(%v, %v) = %v, want %v", c.shortest, c.took, got, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	c := Config{Root: testRoot}
	for name, want := range map[string]kind{
		c.dataset(testVol):                  kindCopy,
		c.fork(testVol):                     kindFork,
		c.seed(testVol, 7):                  kindSeed,
		testRoot:                            kindOther,
		testRoot + "/other":                 kindOther,
		c.dataset(testVol) + "x":            kindOther,
		c.dataset(testVol) + "/child":       kindOther,
		c.dataset(testVol) + "-seed-7":      kindOther,
		"tank/elsewhere/" + string(testVol): kindOther,
		c.asideRoot() + "/" + string(testVol) + "-0000000000000001-1": kindOther,
	} {
		k, id, epoch := c.parse(name)
		if k != want || k != kindOther && id != testVol || k == kindSeed && epoch != 7 {
			t.Errorf("parse(%s) = %v %s %d, want %v", name, k, id, epoch, want)
		}
	}
}

// The next position is above all that is on disk, bookmarks included.
func TestNextPosition(t *testing.T) {
	c := newCopy()
	c.snaps, c.marks = parseSnaps(t, "#9,3,4,2.7,u8")
	for epoch, want := range map[volume.Epoch]uint64{1: 10, 2: 8, 3: 1} {
		if got := c.next(epoch); got.Seq != want || got.Epoch != epoch {
			t.Errorf("next(%d) = %+v, want sequence %d", epoch, got, want)
		}
	}
}

func TestCandidates(t *testing.T) {
	c := newCopy()
	c.snaps, c.marks = parseSnaps(t, "#1,#2,#5,3,u4,5,6")
	got, truncated := c.candidates(100)
	if want := []guid{6, 5, 4, 3, 2, 1}; !slices.Equal(got, want) || truncated {
		t.Errorf("candidates: %v %v, want %v", got, truncated, want)
	}
	if got, truncated = c.candidates(2); !slices.Equal(got, []guid{6, 5}) || !truncated {
		t.Errorf("two candidates: %v %v", got, truncated)
	}
}

// A clone of a volume whose copy is just being set aside hangs on that one's fork for a
// moment: it is whole all the same. Only a copy that hangs on its own is half way.
func TestParting(t *testing.T) {
	for origin, want := range map[string]bool{
		"": false, "tank/flocker/00000000000000a1-fork@s": true, "tank/flocker/00000000000000a2-fork@s": false, "tank/flocker/00000000000000a2@s": false,
	} {
		c := newCopy()
		c.dataset, c.origin = "tank/flocker/00000000000000a1", origin
		if got := c.parting(); got != want {
			t.Errorf("with origin %q: parting %v, want %v", origin, got, want)
		}
	}
}

// An assignment that differs in whatever is another one.
func TestSameAssignment(t *testing.T) {
	filled := func() (a Assignment) {
		v := reflect.ValueOf(&a).Elem()
		for i := range v.NumField() {
			v.Field(i).Set(filledValue(t, v.Type().Field(i).Type))
		}
		return a
	}
	whole, same := filled(), filled()
	if !sameAssignment(&whole, &same) {
		t.Error("two that are alike are not the same")
	}
	for i := range reflect.TypeFor[Assignment]().NumField() {
		other := filled()
		reflect.ValueOf(&other).Elem().Field(i).SetZero()
		if sameAssignment(&whole, &other) {
			t.Errorf("one without %s is the same", reflect.TypeFor[Assignment]().Field(i).Name)
		}
	}
}

// filledValue is one of a type that is not its zero.
func filledValue(t *testing.T, typ reflect.Type) reflect.Value {
	v := reflect.New(typ).Elem()
	switch typ.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint64:
		v.SetUint(7)
	case reflect.Slice:
		return reflect.Append(v, filledValue(t, typ.Elem()))
	case reflect.Map:
		v.Set(reflect.MakeMap(typ))
		v.SetMapIndex(filledValue(t, typ.Key()), filledValue(t, typ.Elem()))
	case reflect.Struct:
		if typ == reflect.TypeFor[time.Time]() {
			return reflect.ValueOf(time.Unix(7, 0))
		}
		for i := range typ.NumField() {
			v.Field(i).Set(filledValue(t, typ.Field(i).Type))
		}
	default:
		t.Fatalf("no value of %s is known", typ)
	}
	return v
}
