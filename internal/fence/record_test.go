package fence

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/volume"
)

func seconds(s float64) lease.Moment { return lease.Moment(s * float64(time.Second)) }

var comment = regexp.MustCompile(` {3,}\(.*\)$`)

func TestRecord(t *testing.T) {
	text, err := os.ReadFile("testdata/record.txt")
	if err != nil {
		t.Fatal(err)
	}
	var r record
	now := seconds(1)
	count := 0
	for i, line := range strings.Split(string(text), "\n") {
		call, want, ok := strings.Cut(line, "->")
		if strings.HasPrefix(line, "#") {
			r, now = record{Boot: boot}, seconds(1)
		}
		if !ok {
			continue
		}
		count++
		var said error
		var no uint64
		var at, jump float64
		call = strings.TrimSpace(call)
		word, rest, _ := strings.Cut(call, " ")
		switch word {
		case "arm":
			var node volume.NodeID
			fmt.Sscanf(rest, "%d until %f as %s", &no, &at, &node)
			said = r.arm(Lease{Node: node, No: no, Until: seconds(at), Fence: 5 * time.Second, Root: "tank/flocker"})
		case "fence":
			fmt.Sscanf(rest, "%d", &no)
			r.stop(no, "asked")
		case "disarm":
			said = r.disarm()
		case "hold":
			r.hold("tank/flocker", "by hand")
		case "lift":
			r.lift()
		case "stopped":
			r.Stopped = true
		case "found":
			r.found(now)
		case "tick":
			fmt.Sscanf(rest, "%f jump %f", &at, &jump)
			now = seconds(at)
			r.tick(now, time.Duration(jump*float64(time.Second)))
		default:
			t.Fatalf("line %d: %q", i+1, call)
		}
		s := r.status(now)
		got := string(s.State)
		if want := strings.TrimSpace(want); want != "idle" {
			got += fmt.Sprintf(" %d until %g", s.Saved.No, time.Duration(s.Saved.Until).Seconds())
		}
		if r.Over {
			got += " over"
		}
		if s.Operator {
			got += " operator"
		}
		if s.Reason != "" {
			got += " (" + s.Reason + ")"
		}
		if s.Saved.Over != (r.Over && r.Armed) || s.Saved.Begun != r.Armed {
			t.Errorf("line %d: %s: saved %+v", i+1, call, s.Saved)
		}
		want, wantError, _ := strings.Cut(comment.ReplaceAllString(strings.TrimSpace(want), ""), " error: ")
		if got != want {
			t.Errorf("line %d: %s: %s, want %s", i+1, call, got, want)
		}
		if (said != nil) != (wantError != "") || said != nil && !strings.Contains(said.Error(), wantError) {
			t.Errorf("line %d: %s: error %v, want %q", i+1, call, said, wantError)
		}
	}
	if count < 60 {
		t.Errorf("only %d lines were read", count)
	}
}

// A watchdog is never fed so that it could fire after the writers must have ended.
func TestFeed(t *testing.T) {
	armed := record{Armed: true, Lease: Lease{Until: seconds(10), Fence: 5 * time.Second}}
	over := armed
	over.stop(0, "")
	stopped := over
	stopped.Stopped = true
	for _, c := range []struct {
		name string
		r    record
		now  float64
		want bool
	}{
		{"nobody armed it", record{}, 99, true},
		{"the lease runs", armed, 10, true},
		{"it would fire too late", armed, 10.1, false},
		{"writers are being stopped", over, 10, true},
		{"and it would fire too late", over, 12, false},
		{"they are", stopped, 99, true},
	} {
		if got := c.r.feed(seconds(c.now), 5*time.Second); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestVictims(t *testing.T) {
	var r record
	r.remember([]Victim{{Container: "a", Volumes: []string{"2"}}, {Container: "b"}})
	before := r.status(0).Fenced
	r.remember([]Victim{{Container: "a", Volumes: []string{"1", "2"}}})
	r.forget([]string{"b", "c"})
	if want := []Victim{{Container: "a", Volumes: []string{"1", "2"}}}; !reflect.DeepEqual(r.Fenced, want) {
		t.Errorf("remembered %+v, want %+v", r.Fenced, want)
	}
	if len(before) != 2 || len(before[0].Volumes) != 1 || before[1].Container != "b" {
		t.Errorf("what was told before has changed: %+v", before)
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fence.json")
	if r, err := load(path, boot); err != nil || !reflect.DeepEqual(r, record{Boot: boot}) {
		t.Errorf("without a file: %+v, %v", r, err)
	}
	r := record{Boot: boot}
	if err := r.arm(Lease{No: 2, Until: seconds(20), Fence: time.Second, Root: "tank/flocker"}); err != nil {
		t.Fatal(err)
	}
	r.tick(seconds(21), 0)
	r.remember([]Victim{{Container: "a", Volumes: []string{"1"}}})
	r.Stopped = true
	if err := r.save(path); err != nil {
		t.Fatal(err)
	}
	if got, err := load(path, boot); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("read %+v, %v; want %+v", got, err, r)
	}
	if got, err := load(path, "the next boot"); err != nil || !reflect.DeepEqual(got, record{Boot: "the next boot"}) {
		t.Errorf("after a boot: %+v, %v", got, err)
	}
	if err := Readable(filepath.Dir(path)); err != nil {
		t.Errorf("what this version has written: %v", err)
	}
	if err := Readable(t.TempDir()); err != nil {
		t.Errorf("without a file: %v", err)
	}
	written, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, later := range []string{`"later":1,"lease":`, `"lease":"of another form","before":`} {
		if err := os.WriteFile(path, []byte(strings.Replace(string(written), `"lease":`, later, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Readable(filepath.Dir(path)); err == nil {
			t.Errorf("%s may be of a later version, and is taken for this one's", later)
		}
	}
	// Not knowing is not the same as not being armed.
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := load(path, boot); err == nil || !got.Over {
		t.Errorf("a damaged file: %+v, %v; want all writers stopped", got, err)
	}
}
