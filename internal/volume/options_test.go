package volume

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write what was got into testdata")

// TestOptions runs testdata/options.txt. A case is one line of options and, below it,
// lines that start with four spaces: the options of the resulting Spec, or the error.
// What equals the default Spec is left out of the result.
func TestOptions(t *testing.T) {
	runCases(t, "testdata/options.txt", func(line string) string {
		spec, err := ParseOptions(fields(line))
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Code != CodeInvalid {
				t.Errorf("%s: error %v is not of code invalid", line, err)
			}
			return "error: " + shorten(err.Error())
		}
		got, base := spec.Options(), DefaultSpec().Options()
		var out []string
		for _, k := range slices.Sorted(maps.Keys(got)) {
			if got[k] != base[k] {
				out = append(out, k+"="+got[k])
			}
		}
		for _, k := range slices.Sorted(maps.Keys(base)) {
			if _, ok := got[k]; !ok {
				out = append(out, "without "+k)
			}
		}
		if len(out) == 0 {
			return "the default"
		}
		return strings.Join(out, " ")
	})
}

// shorten replaces the list that every refusal ends with.
func shorten(s string) string {
	return strings.ReplaceAll(s, strings.Join(OptionNames(), ", "), "<all>")
}

func TestRefusalsListAllOptions(t *testing.T) {
	for _, opts := range []map[string]string{{"replica": "1"}, {"size": "banana"}, {"zfs.quota": "1G"}, {"zfs.sync": "disabled"}} {
		_, err := ParseOptions(opts)
		if err == nil {
			t.Fatalf("%v: no error", opts)
		}
		for k := range opts {
			if !strings.Contains(err.Error(), strings.TrimPrefix(k, "zfs.")) {
				t.Errorf("error does not name the option %s: %v", k, err)
			}
		}
		for _, name := range OptionNames() {
			if !strings.Contains(err.Error(), name) {
				t.Errorf("error for %v does not list %s: %v", opts, name, err)
			}
		}
	}
}

func TestOptionHelp(t *testing.T) {
	for _, name := range OptionNames() {
		value, about, ok := OptionHelp(name)
		if !ok || value == "" || about == "" {
			t.Errorf("OptionHelp(%q) = %q, %q, %v; want text", name, value, about, ok)
		}
	}
	if _, _, ok := OptionHelp("zfs.mountpoint"); ok {
		t.Error("OptionHelp knows zfs.mountpoint; want not")
	}
}

func TestProfilesParse(t *testing.T) {
	for _, p := range Profiles() {
		s, err := ParseOptions(map[string]string{"profile": p})
		if err != nil {
			t.Fatalf("profile %s: %v", p, err)
		}
		checkRoundTrip(t, s)
	}
}

func TestSpecEqual(t *testing.T) {
	base := DefaultSpec()
	same := DefaultSpec()
	same.Strict, same.Profile = true, "renamed-since"
	if !base.Equal(same) {
		t.Error("specs that differ in strict and profile are not Equal; want Equal")
	}
	for name, change := range map[string]func(*Spec){
		"size":     func(s *Spec) { s.Size = MinSize },
		"replicas": func(s *Spec) { s.Replicas++ },
		"remote":   func(s *Spec) { s.Remote++ },
		"interval": func(s *Spec) { s.Interval += time.Second },
		"failover": func(s *Spec) { s.Failover = FailoverNever },
		"max-loss": func(s *Spec) { s.MaxLoss += time.Second },
		"zfs":      func(s *Spec) { s.ZFS = map[string]string{"atime": "on"} },
		"uid":      func(s *Spec) { s.UID++ },
		"gid":      func(s *Spec) { s.GID++ },
		"mode":     func(s *Spec) { s.Mode++ },
		"prefer":   func(s *Spec) { s.Prefer = []string{"n1"} },
		"avoid":    func(s *Spec) { s.Avoid = []string{"n1"} },
		"zone":     func(s *Spec) { s.Zone = "a" },
		"ports":    func(s *Spec) { s.Ports = []Route{{Listen: 80, Port: 80, Mode: RouteTCP}} },
	} {
		s := DefaultSpec()
		change(&s)
		if base.Equal(s) {
			t.Errorf("specs that differ in %s are Equal", name)
		}
	}
}

func TestSpecValidate(t *testing.T) {
	if err := (Spec{}).Validate(); err == nil {
		t.Error("the zero Spec is valid; want its missing values refused")
	}
	for name, change := range map[string]func(*Spec){
		"negative size":      func(s *Spec) { s.Size = -1 },
		"tiny size":          func(s *Spec) { s.Size = 1 },
		"many replicas":      func(s *Spec) { s.Replicas = MaxReplicas + 1 },
		"no interval":        func(s *Spec) { s.Interval = 0 },
		"no failover":        func(s *Spec) { s.Failover = "" },
		"max-loss too short": func(s *Spec) { s.Interval, s.MaxLoss = time.Minute, time.Second },
		"mode too large":     func(s *Spec) { s.Mode = 0o10000 },
		"foreign property":   func(s *Spec) { s.ZFS["mountpoint"] = "/" },
		"not canonical":      func(s *Spec) { s.ZFS["recordsize"] = "16384" },
		"wrong port":         func(s *Spec) { s.Ports = []Route{{Listen: 80, Mode: RouteTCP}} },
		"no node":            func(s *Spec) { s.Prefer = []string{"n1", ""} },
		"node twice":         func(s *Spec) { s.Avoid = []string{"n1", "n1"} },
		"contradiction":      func(s *Spec) { s.Prefer, s.Avoid = []string{"n1"}, []string{"n1"} },
		"unknown profile":    func(s *Spec) { s.Profile = "turbo" },
	} {
		s := DefaultSpec()
		change(&s)
		if err := s.Validate(); CodeOf(err) != CodeInvalid {
			t.Errorf("%s: Validate = %v; want an error of code invalid", name, err)
		}
	}
}

func FuzzParseOptions(f *testing.F) {
	f.Add("size=10G replicas=2")
	f.Add("profile=database zfs.atime=inherit max-loss=none interval=250ms")
	f.Add("mode=0750 uid=70 gid=70 strict=true remote=1 failover=manual")
	f.Add("zfs.recordsize=128k zfs.compression=zstd-3")
	f.Fuzz(func(t *testing.T, line string) {
		s, err := ParseOptions(fields(line))
		if err != nil {
			if CodeOf(err) != CodeInvalid {
				t.Errorf("%q: %v has code %q; want invalid", line, err, CodeOf(err))
			}
			return
		}
		checkRoundTrip(t, s)
	})
}

func checkRoundTrip(t *testing.T, s Spec) {
	t.Helper()
	if err := s.Validate(); err != nil {
		t.Errorf("%+v is not valid: %v", s, err)
	}
	again, err := ParseOptions(s.Options())
	if err != nil {
		t.Fatalf("options of %+v do not parse: %v", s, err)
	}
	if !again.Equal(s) || again.Strict != s.Strict || again.Profile != s.Profile {
		t.Errorf("round trip: got %+v, want %+v", again, s)
	}
}

// runCases runs a file of cases: comments and empty lines pass through, a line at the
// margin is input, indented lines below it are what f made of it.
func runCases(t *testing.T, path string, f func(line string) string) {
	t.Helper()
	data, err := os.ReadFile(filepath.FromSlash(path))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "    "):
		case line == "", strings.HasPrefix(line, "#"):
			fmt.Fprintln(&out, line)
		default:
			fmt.Fprintln(&out, line)
			for got := range strings.Lines(f(line)) {
				fmt.Fprintf(&out, "    %s\n", strings.TrimSuffix(got, "\n"))
			}
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
		var w, g string
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w != g {
			t.Fatalf("%s:%d:\n got %q\nwant %q\n(-update writes what was got)", path, i+1, g, w)
		}
	}
}

// fields reads "a=1 b=2"; <empty> stands for no options.
func fields(line string) map[string]string {
	opts := map[string]string{}
	for _, f := range strings.Fields(line) {
		if f == "<empty>" {
			continue
		}
		k, v, _ := strings.Cut(f, "=")
		opts[k] = v
	}
	return opts
}
