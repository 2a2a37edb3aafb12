package volume

import (
	"fmt"
	"strings"
	"testing"
)

func TestChange(t *testing.T) {
	tests := []struct {
		was, change string // options
		want        string // what differs, or the refusal
	}{
		{"", "replicas=2", "replicas 1->2"},
		{"", "", ""},
		{"replicas=2", "replicas=2", ""},
		{"size=1G", "size=2g", "size 1GiB->2GiB"},
		{"size=1G", "size=none", "size 1GiB->"},
		{"", "size=none", ""},
		{"", "interval=5s", "interval 1s->5s"},
		{"", "interval=1h", "interval 1s->1h max-loss 5m->2h"},
		{"interval=1h", "interval=1s", "interval 1h->1s max-loss 2h->5m"},
		{"max-loss=1m", "interval=5m", `refused: volume option max-loss="1m": below the interval of 5m`},
		{"max-loss=1m", "interval=5m max-loss=none", "interval 1s->5m max-loss 1m->none"},
		{"profile=database", "snapshots=none", "snapshots 1h:24,1d:7->none"},
		{"", "snapshots=1d:2 remote=1 failover=manual", "remote 0->1 snapshots ->1d:2 failover auto->manual"},
		{"profile=scratch", "replicas=1", "replicas 0->1"},
		{"", "ports=80:8080/http,79", "ports ->79:79/tcp,80:8080/http"},
		{"ports=80", "ports=none", "ports 80:80/tcp->"},
		{"ports=80", "replicas=2", "replicas 1->2"},
		{"", "ports=80/ftp", `refused: volume option ports="80/ftp": no mode "ftp"`},
		{"", "prefer=n2,n1 avoid=n3 zone=a", "prefer ->n2,n1 avoid ->n3 zone ->a"},
		{"prefer=n1 avoid=n2 zone=a", "prefer=none avoid=n1 zone=none", "prefer n1-> avoid n2->n1 zone a->"},
		{"prefer=n1", "avoid=n1", `refused: volume option avoid="n1": node n1 is preferred, too; take it out of one of them`},
		{"prefer=n1", "replicas=2", "replicas 1->2"},
		{"", "uid=5", "refused: option uid stays as it was"},
		{"", "zfs.compression=zstd", "refused: option zfs.compression stays"},
		{"", "profile=database", "refused: option profile stays"},
		{"", "rplicas=2", `refused: unknown volume option "rplicas": did you mean "replicas"? What can change is size, replicas,`},
		{"", "colour=red", `refused: unknown volume option "colour": what can change is size,`},
		{"", "replicas=many", "refused: volume option replicas="},
		{"zfs.recordsize=inherit profile=database", "replicas=2", "replicas 1->2"},
	}
	for _, tt := range tests {
		t.Run(tt.was+"/"+tt.change, func(t *testing.T) {
			was, err := ParseOptions(optionsOf(tt.was))
			if err != nil {
				t.Fatal(err)
			}
			next, err := was.Change(optionsOf(tt.change))
			if err != nil {
				if got := "refused: " + err.Error(); !strings.HasPrefix(tt.want, "refused") || !strings.HasPrefix(got, tt.want) {
					t.Errorf("got %s, want %s", got, tt.want)
				}
				return
			}
			var got []string
			for _, c := range was.Changes(next) {
				got = append(got, fmt.Sprintf("%s %s->%s", c.Option, c.From, c.To))
			}
			if got := strings.Join(got, " "); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// optionsOf reads "a=b c=d".
func optionsOf(text string) map[string]string {
	out := map[string]string{}
	for _, w := range strings.Fields(text) {
		k, v, _ := strings.Cut(w, "=")
		out[k] = v
	}
	return out
}
