package zfs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestKinds reads testdata/stderr.txt: what zfs printed, and the kind it has.
func TestKinds(t *testing.T) {
	raw, err := os.ReadFile("testdata/stderr.txt")
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]error{"none": nil}
	for name, kind := range map[string]error{
		"ErrNotFound": ErrNotFound, "ErrExists": ErrExists, "ErrBusy": ErrBusy, "ErrHasClones": ErrHasClones,
		"ErrNoSpace": ErrNoSpace, "ErrDiverged": ErrDiverged, "ErrNoBase": ErrNoBase, "ErrBadStream": ErrBadStream,
		"ErrInterrupted": ErrInterrupted, "ErrBadToken": ErrBadToken, "ErrSuspended": ErrSuspended,
		"ErrInvalid": ErrInvalid, "ErrUnsupported": ErrUnsupported, "ErrNoZFS": ErrNoZFS,
	} {
		kinds[name] = kind
	}
	n := 0
	for block := range strings.SplitSeq(string(raw), "\n\n") {
		name, text, found := strings.Cut(strings.TrimSpace(block), "\n")
		if strings.HasPrefix(name, "#") || !found {
			continue
		}
		want, known := kinds[name]
		if !known {
			t.Fatalf("no such kind: %q", name)
		}
		n++
		e := newError("op", nil, text, errors.New("exit status 1"))
		if e.Kind != want {
			t.Errorf("%s\ngot %v, want %s", text, e.Kind, name)
		}
	}
	if n < 40 {
		t.Errorf("only %d texts", n)
	}
}

// What people call a snapshot says nothing about what is wrong.
func TestKindsAndNames(t *testing.T) {
	for _, c := range []struct {
		argv, text string
		want       error
	}{
		{"", "cannot open 'tank/a@x does not exist': I/O error", nil},
		{"", "cannot open 'tank/a@is busy': dataset does not exist", ErrNotFound},
		{"tank/a@x,is busy,y", "cannot destroy snapshot tank/a@is busy: I/O error", nil},
		{"tank/a@x,is busy,y", "cannot destroy snapshot tank/a@x: it's being held. Run 'zfs holds -r tank/a@x' to ...", ErrBusy},
	} {
		if e := newError("op", []string{"zfs", "destroy", c.argv}, c.text, nil); e.Kind != c.want {
			t.Errorf("%s: got %v, want %v", c.text, e.Kind, c.want)
		}
	}
}

func TestQuotedNames(t *testing.T) {
	for text, want := range map[string]string{
		"cannot open 'tank/a': dataset does not exist":                                          "[tank/a]",
		"cannot create snapshot 'tank/a@1': x\ncannot create snapshot 'tank/b@1': y":            "[tank/a@1 tank/b@1]",
		"cannot set property for 'tank/a': 'readonly' must be one of 'on | off'":                "[tank/a]",
		"bookmark 'tank/a#m' does not exist.":                                                   "[tank/a#m]",
		"cannot destroy snapshot tank/a@1: it's being held. Run 'zfs holds -r tank/a@1' to ...": "[]",
		"'":  "[]",
		"''": "[]",
	} {
		if got := fmt.Sprint(quotedNames(text)); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

func TestParseDatasets(t *testing.T) {
	out := strings.ReplaceAll(`tank/a|guid|18024938485114854520|-
tank/a|createtxg|34|-
tank/a|used|98304|-
tank/a|available|7800778752|-
tank/a|referenced|98304|-
tank/a|written|0|-
tank/a|refquota|0|default
tank/a|origin|-|-
tank/a|mountpoint|/mnt/a|local
tank/a|mounted|yes|-
tank/a|readonly|off|temporary
tank/a|canmount|noauto|local
tank/a|encryption|off|default
tank/a|receive_resume_token|-|-
tank/a|flocker:volume|v|received
tank/a|flocker:epoch|-|-
tank/a|flocker:name|x|inherited from tank
tank/b|guid|1|-
tank/b|readonly|on|local
tank/b|refquota|none|local
tank/b|mounted|no|-
tank/b|written|-|-
tank/v|guid|2|-
tank/v|mounted|-|-
tank/v|readonly|off|default
`, "|", "\t")
	list, err := parseDatasets([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%+v", list)
	want := "[{Name:tank/a Volume:false GUID:18024938485114854520 CreateTXG:34 Used:98304 Available:7800778752 Referenced:98304 Written:0 RefQuota:0 " +
		"Origin: Mountpoint:/mnt/a Mounted:true ReadOnly:true Writable:true CanMount:noauto Encryption:off ResumeToken: User:map[flocker:volume:v]} " +
		"{Name:tank/b Volume:false GUID:1 CreateTXG:0 Used:0 Available:0 Referenced:0 Written:0 RefQuota:0 " +
		"Origin: Mountpoint: Mounted:false ReadOnly:true Writable:false CanMount: Encryption: ResumeToken: User:map[]} " +
		"{Name:tank/v Volume:true GUID:2 CreateTXG:0 Used:0 Available:0 Referenced:0 Written:0 RefQuota:0 " +
		"Origin: Mountpoint: Mounted:false ReadOnly:false Writable:false CanMount: Encryption: ResumeToken: User:map[]}]"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	for _, bad := range []string{"x", "tank/a\tguid\t1", "tank/a\tguid\tx\t-", "tank/a\tused\t1\t-", "tank/a\tguid\t1\t-\ntank/a\tmounted\tperhaps\t-"} {
		if list, err := parseDatasets([]byte(bad)); err == nil {
			t.Errorf("%q: got %+v, want an error", bad, list)
		}
	}
}

func TestParseVersion(t *testing.T) {
	for out, want := range map[string]string{
		"zfs-2.3.2-2~bpo12+2\nzfs-kmod-2.3.2-2~bpo12+2\n": "{Userland:2.3.2-2~bpo12+2 Kernel:2.3.2-2~bpo12+2 Major:2 Minor:3}",
		"zfs-2.1.11-1\nzfs-kmod-2.1.11-1\n":               "{Userland:2.1.11-1 Kernel:2.1.11-1 Major:2 Minor:1}",
		"zfs-2.4.0-rc1\n":                                 "{Userland:2.4.0-rc1 Kernel: Major:2 Minor:4}",
		"":                                                "error",
		"zfs-\n":                                          "error",
		"zfs-2\n":                                         "error",
	} {
		c, err := parseVersion([]byte(out))
		got := fmt.Sprintf("%+v", c)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: got %s, want %s", out, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	for name, good := range map[string]bool{
		"tank": true, "tank/a": true, "tank/A-b_c.d:e": true, "t/0": true,
		"": false, "0tank": false, "/": false, "tank/": false, "/tank": false, "tank//a": false, "tank/-a": false,
		"tank/.": false, "tank/..": false, "tank/a b": false, "tank/a@b": false, "tank/a#b": false, "tank/ä": false,
		"tank/%recv": false, "tank/a\n": false, "tank/" + strings.Repeat("x", 251): false, "tank/" + strings.Repeat("x", 250): true,
	} {
		if err := CheckDataset(name); (err == nil) != good || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for short, good := range map[string]bool{
		"a": true, "before upgrade": true, " ": true, "-x": true, "A-b_c.d:e": true, "...": true,
		"": false, ".": false, "..": false, "a\tb": false, "a\n": false, "a,b": false, "a%b": false, "a'b": false, "ä": false, "a@b": false, "a/b": false,
	} {
		for mark, check := range map[string]func(string) error{"@": CheckSnapshot, "#": CheckBookmark} {
			if err := check("tank/a" + mark + short); (err == nil) != good || err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("%q: %v", mark+short, err)
			}
		}
		if err := checkTag(short); err == nil && (short[0] == '-' || strings.Contains(short, " ")) {
			t.Errorf("tag %q is good", short)
		}
	}
}

func TestBatches(t *testing.T) {
	names := []string{"aaaa", "bb", "cccccccccccccccccccccccccccccccccccc", "d", "e"}
	var got []string
	for b := range batches(names, 30) {
		got = append(got, strings.Join(b, " "))
	}
	if fmt.Sprintf("%q", got) != `["aaaa bb" "cccccccccccccccccccccccccccccccccccc" "d e"]` {
		t.Errorf("got %q", got)
	}
}

// The fuzzers ask for one thing: whatever zfs prints, no panic, and what is
// accepted makes sense.

func FuzzParseDatasets(f *testing.F) {
	f.Add([]byte("tank/a\tguid\t1\t-\ntank/a\treadonly\toff\ttemporary\ntank/a\tmounted\tyes\t-\ntank/a\tflocker:x\ty\tlocal\n"))
	f.Add([]byte("tank/a\tguid\t99999999999999999999\t-\n"))
	f.Add([]byte("\t\t\t\n"))
	f.Fuzz(func(t *testing.T, out []byte) {
		list, err := parseDatasets(out)
		for _, d := range list {
			if err != nil || d.Name == "" || d.GUID == 0 || d.Writable && !d.Mounted || d.Used < 0 {
				t.Errorf("%+v, %v", d, err)
			}
		}
	})
}

func FuzzParseSnapshots(f *testing.F) {
	f.Add([]byte("tank/a@b\tguid\t1\t-\ntank/a@b\tcreation\t1795221415\t-\ntank/a@b\tclones\ttank/b,tank/c\t-\n"))
	f.Fuzz(func(t *testing.T, out []byte) {
		list, err := parseSnapshots(out)
		for i, s := range list {
			if err != nil || s.GUID == 0 || s.UserRefs < 0 {
				t.Errorf("%+v, %v", s, err)
			}
			if i > 0 && list[i-1].Dataset == s.Dataset && list[i-1].CreateTXG > s.CreateTXG {
				t.Error("not in order")
			}
		}
	})
}

func FuzzParseBookmarks(f *testing.F) {
	f.Add([]byte("tank/a#b\t1\t2\t1795221415\n"))
	f.Fuzz(func(t *testing.T, out []byte) { parseBookmarks(out) })
}

func FuzzParsePool(f *testing.F) {
	f.Add([]byte("tank\tguid\t1\t-\ntank\tsize\t-\t-\n"))
	f.Fuzz(func(t *testing.T, out []byte) {
		if p, err := parsePool(out); err == nil && (p.GUID == 0 || p.Size < 0 || p.Free < 0) {
			t.Errorf("%+v", p)
		}
	})
}

func FuzzParseVersion(f *testing.F) {
	f.Add([]byte("zfs-2.3.2-2~bpo12+2\nzfs-kmod-2.3.2-2~bpo12+2\n"))
	f.Fuzz(func(t *testing.T, out []byte) { parseVersion(out) })
}

func FuzzParseToken(f *testing.F) {
	f.Add([]byte("\tbytes = 0x20b38\n\ttoguid = 0xda1327b666bff904\n\ttoname = tank/a@1\n"))
	f.Fuzz(func(t *testing.T, out []byte) {
		if token, err := parseToken(out); err == nil && (token.ToGUID == 0 || CheckSnapshot(token.ToName) != nil) {
			t.Errorf("%+v", token)
		}
	})
}

func FuzzParseEstimate(f *testing.F) {
	f.Add([]byte("incremental\ttank/a@1\ttank/a@2\t33392\nsize\t33392\n"))
	f.Fuzz(func(t *testing.T, out []byte) {
		if n, err := parseEstimate(out); err == nil && n < 0 {
			t.Error(n)
		}
	})
}

func FuzzParsePruned(f *testing.F) {
	f.Add([]byte(`{"return":{"tank/a@1":16}}`))
	f.Fuzz(func(t *testing.T, out []byte) { parsePruned(out) })
}

func FuzzParseTaken(f *testing.F) {
	f.Add([]byte(`{"return":{"tank/a@1":{"guid":-7962936063786616243,"createtxg":50},"tank/b@1":{"failed":2}}}`))
	f.Fuzz(func(t *testing.T, out []byte) {
		answers, err := parseTold(out)
		for name, a := range answers {
			if s := a.snapshot(name); err == nil && a.Failed == 0 && (s.GUID == 0 || s.CreateTXG == 0) {
				t.Errorf("%+v", s)
			}
		}
	})
}

func FuzzKind(f *testing.F) {
	f.Add("cannot open 'tank/a': dataset does not exist")
	f.Fuzz(func(t *testing.T, text string) {
		e := newError("op", nil, text, nil)
		_ = e.Error()
		for _, name := range e.Names {
			if CheckDataset(name) != nil && CheckSnapshot(name) != nil && CheckBookmark(name) != nil {
				t.Errorf("%q is not a name", name)
			}
		}
	})
}

// A deadline is set only where one is needed, and taken back.
func TestInterruptible(t *testing.T) {
	var set []bool
	deadline := func(at time.Time) error { set = append(set, at.IsZero()); return nil }
	if joined, err := Interruptible(t.Context(), deadline, func() error { return nil }); !joined || err != nil || len(set) != 0 {
		t.Errorf("joined %t, %v, deadlines %v", joined, err, set)
	}
}
