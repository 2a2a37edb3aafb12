package volume

import (
	"maps"
	"strings"
	"testing"
	"time"
)

func TestParseSource(t *testing.T) {
	for text, want := range map[string]Source{
		"pg":                                   {Volume: "pg"},
		"pg@before":                            {"pg", "before"},
		"0b5e55ed@by hand:1.":                  {"0b5e55ed", "by hand:1."},
		"pg@flk-0000000000000001-000000000002": {"pg", "flk-0000000000000001-000000000002"},
	} {
		if got, err := ParseSource(text); err != nil || got != want || got.String() != text {
			t.Errorf("%q: got %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "@", "@s", "pg@", "../pg", "a/b", "-r", "pg@a@b", "pg@../x", "pg@a/b", "pg@a\n", "pg@a%", "pg@" + strings.Repeat("x", 256)} {
		got, err := ParseSource(text)
		if CodeOf(err) != CodeInvalid || !got.IsZero() || !strings.Contains(err.Error(), sourceForm) {
			t.Errorf("%q: got %+v, %v; want a refusal that shows the form", text, got, err)
		}
	}
}

func TestCutSource(t *testing.T) {
	given := map[string]string{"from": "pg@s", "size": "1G"}
	from, rest, err := CutSource(given)
	if err != nil || from != (Source{"pg", "s"}) || !maps.Equal(rest, map[string]string{"size": "1G"}) || len(given) != 2 {
		t.Errorf("got %+v, %v, %v of %v", from, rest, err, given)
	}
	if from, rest, err := CutSource(rest); err != nil || !from.IsZero() || len(rest) != 1 {
		t.Errorf("of options without it: got %+v, %v, %v", from, rest, err)
	}
	if _, err := ParseOptions(given); CodeOf(err) != CodeInvalid || !strings.Contains(err.Error(), "only a volume that is being made") {
		t.Errorf("as an option of a volume: %v", err)
	}
	if _, err := DefaultSpec().Change(given); CodeOf(err) != CodeInvalid {
		t.Errorf("as a change of a volume: %v", err)
	}
}

// A clone is as its original but where it is told otherwise.
func TestSpecClone(t *testing.T) {
	parse := func(opts map[string]string) Spec {
		s, err := ParseOptions(opts)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	pg := parse(map[string]string{"profile": "database", "size": "10G", "replicas": "2", "interval": "500ms", "uid": "999", "ports": "5432:5432/postgres", "prefer": "n1"})
	for _, tt := range []struct {
		name  string
		of    Spec
		opts  map[string]string
		check func(Spec) bool
		err   string
	}{
		{"as it is", pg, nil, func(s Spec) bool {
			want := pg
			want.Ports = nil
			return s.Equal(want) && len(s.Ports) == 0
		}, ""},
		{"with ports of its own", pg, map[string]string{"ports": "5433:5432/postgres"}, func(s Spec) bool { return len(s.Ports) == 1 && s.Ports[0].Listen == 5433 }, ""},
		{"larger", pg, map[string]string{"size": "20G"}, func(s Spec) bool { return s.Size == 20<<30 && s.Replicas == 2 }, ""},
		{"without a limit", pg, map[string]string{"size": "none"}, func(s Spec) bool { return s.Size == 0 }, ""},
		{"of another profile", pg, map[string]string{"profile": "scratch"}, func(s Spec) bool {
			return s.Replicas == 0 && s.Failover == FailoverNever && s.Size == 10<<30 && s.Interval == 500*time.Millisecond
		}, ""},
		{"with a long interval", pg, map[string]string{"interval": "10m"}, func(s Spec) bool { return s.Interval == 10*time.Minute && s.MaxLoss == 20*time.Minute }, ""},
		{"with the owner that it has", pg, map[string]string{"uid": "999"}, func(s Spec) bool { return s.UID == 999 }, ""},
		{"with another owner", pg, map[string]string{"uid": "7"}, nil, "uid, gid and mode stay 999, 0"},
		{"of one that is all of its dataset", pg.MakeWhole(), nil, Spec.Whole, ""},
		{"elsewhere in the dataset", pg, map[string]string{"zfs.flocker:subdir": "."}, nil, "a clone has its files where its original has them"},
		{"with another mode", pg, map[string]string{"mode": "0700"}, nil, "uid, gid and mode stay"},
		{"with an option that there is not", pg, map[string]string{"colour": "red"}, nil, "unknown volume option"},
		{"of a profile that there is not", pg, map[string]string{"profile": "red"}, nil, "profile"},
	} {
		got, err := tt.of.Clone(tt.opts)
		switch {
		case tt.err != "":
			if CodeOf(err) != CodeInvalid || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: got %v, want a refusal that says %q", tt.name, err, tt.err)
			}
		case err != nil || !tt.check(got):
			t.Errorf("%s: got %+v, %v", tt.name, got, err)
		case !got.As(tt.opts):
			t.Errorf("%s: asked for again it would be another one", tt.name)
		}
	}
	for _, opts := range []map[string]string{{"size": "11G"}, {"size": "none"}, {"replicas": "1"}, {"profile": "scratch"}, {"colour": "red"}} {
		if pg.As(opts) {
			t.Errorf("a volume that is not like that has %v", opts)
		}
	}
}
