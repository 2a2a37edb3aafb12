package daemon

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

func TestChangeSettings(t *testing.T) {
	tests := []struct {
		name  string
		was   string // key=value words
		set   string
		reset string
		want  string // what is not a default, or the refusal
	}{
		{"nothing", "", "", "", ""},
		{"a period", "", "trash-retention=3d", "", "trash-retention=3d"},
		{"all periods", "", "trash-retention=3d aside-retention=12h replica-replace-after=30m hold=45s", "", "trash-retention=3d aside-retention=12h replica-replace-after=30m hold=45s"},
		{"the default itself is a choice", "", "trash-retention=7d", "", "trash-retention=1w"},
		{"others stay", "aside-retention=2d bandwidth:a:b=1M", "trash-retention=3d", "", "trash-retention=3d aside-retention=2d bandwidth:a:b=1MiB"},
		{"reset", "trash-retention=3d aside-retention=2d", "", "trash-retention", "aside-retention=2d"},
		{"reset what is default", "", "", "trash-retention", ""},
		{"a limit", "", "bandwidth:b:a=20M", "", "bandwidth:a:b=20MiB"},
		{"a limit a second", "", "bandwidth:a:b=20M/s", "", "bandwidth:a:b=20MiB"},
		{"a limit inside a zone", "", "bandwidth:a:a=1G", "", "bandwidth:a:a=1GiB"},
		{"limits in order", "bandwidth:b:c=1M", "bandwidth:a:c=2M", "", "bandwidth:a:c=2MiB bandwidth:b:c=1MiB"},
		{"another limit", "bandwidth:a:b=1M", "bandwidth:b:a=2M", "", "bandwidth:a:b=2MiB"},
		{"no limit", "bandwidth:a:b=1M", "bandwidth:a:b=none", "", ""},
		{"reset a limit", "bandwidth:a:b=1M", "", "bandwidth:b:a", ""},
		{"choices", "", "failover=manual lease=fast fencing=software-only rebalance=on", "", "failover=manual lease=fast fencing=software-only rebalance=on"},
		{"choices that are the defaults", "failover=manual lease=fast fencing=software-only rebalance=on", "failover=automatic lease=default fencing=hard rebalance=off", "", ""},
		{"reset choices", "failover=manual lease=fast fencing=software-only", "", "failover lease fencing", ""},

		{"numbers", "", "hold-service=50 hold-node=100000", "", "hold-service=50 hold-node=100000"},
		{"a number that is the default is a choice, too", "hold-node=50", "hold-node=10000", "", "hold-node=10000"},
		{"reset a number", "hold-service=50 hold-node=60", "", "hold-service", "hold-node=60"},
		{"fewer than one program has", "", "hold-service=9", "", `refused: setting hold-service: "9" is not from 10 to 100000`},
		{"more than there is room for", "", "hold-node=100001", "", `refused: setting hold-node: "100001" is not from 10 to 100000`},
		{"no number", "", "hold-node=10k", "", `refused: setting hold-node: "10k" is not from 10 to 100000: it takes a number of clients`},

		{"no such word", "", "failover=auto", "", `refused: setting failover: "auto" is not one of its values: it takes automatic or manual`},
		{"no word", "", "lease=", "", `refused: setting lease: "" is not one of its values`},
		{"unknown", "", "colour=red", "", `refused: there is no setting "colour": there is trash-retention, aside-retention, replica-replace-after, hold, hold-service, hold-node, failover, lease, fencing, rebalance, bandwidth:ZONE:ZONE`},
		{"reset unknown", "", "", "colour", `refused: there is no setting "colour"`},
		{"both", "", "trash-retention=3d", "trash-retention", "refused: setting trash-retention is both set and reset"},
		{"no period", "", "trash-retention=soon", "", "refused: setting trash-retention:"},
		{"no unit", "", "trash-retention=7", "", "refused: setting trash-retention:"},
		{"shorter than anybody could mean", "", "trash-retention=59m", "", "refused: setting trash-retention: not from 1h to "},
		{"longer than anybody could mean", "", "replica-replace-after=31d", "", "refused: setting replica-replace-after: not from 1m to 30d"},
		{"no move would end within it", "", "hold=1s", "", "refused: setting hold: not from 2s to 90s"},
		{"no move may take so long", "", "hold=91s", "", "refused: setting hold: not from 2s to 90s"},
		{"as long as there is", "", "hold=90s", "", "hold=90s"},
		{"zero", "", "trash-retention=0d", "", "refused: setting trash-retention:"},
		{"one zone", "", "bandwidth:a=1M", "", `refused: setting "bandwidth:a": "" is not the name of a zone: it is written`},
		{"three zones", "", "bandwidth:a:b:c=1M", "", `refused: setting "bandwidth:a:b:c": "b:c" is not`},
		{"reset one zone", "", "", "bandwidth:a", `refused: setting "bandwidth:a"`},
		{"no size", "", "bandwidth:a:b=fast", "", "refused: setting bandwidth:a:b:"},
		{"a slip of the unit", "", "bandwidth:a:b=20", "", "refused: setting bandwidth:a:b: \"20\" is less than 64KiB"},
	}
	words := func(text string) map[string]string {
		out := map[string]string{}
		for _, w := range strings.Fields(text) {
			k, v, _ := strings.Cut(w, "=")
			out[k] = v
		}
		return out
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			was, err := changeSettings(state.Settings{}, api.SettingsRequest{Set: words(tt.was)})
			if err != nil {
				t.Fatal(err)
			}
			before := fmt.Sprint(was)
			next, err := changeSettings(was, api.SettingsRequest{Set: words(tt.set), Reset: strings.Fields(tt.reset)})
			var got []string
			if err != nil {
				got = []string{"refused:", err.Error()}
			} else {
				for _, s := range showSettings(next, nil).Settings {
					if !s.Default {
						got = append(got, s.Key+"="+s.Value)
					}
				}
			}
			if got := strings.Join(got, " "); got != tt.want && !(err != nil && strings.HasPrefix(tt.want, "refused") && strings.HasPrefix(got, tt.want)) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if after := fmt.Sprint(was); after != before {
				t.Errorf("what was there before changed: %s, was %s", after, before)
			}
		})
	}
}

func TestSettingsOfUnknownZonesWarn(t *testing.T) {
	s, err := changeSettings(state.Settings{}, api.SettingsRequest{Set: map[string]string{"bandwidth:here:mars": "1M"}})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(showSettings(s, map[volume.Zone]bool{"here": true}).Warnings, "\n")
	if want := "bandwidth:here:mars: no node is in zone mars"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A bound that another one makes useless is told of.
func TestHoldWarns(t *testing.T) {
	for _, c := range []struct {
		s     state.Settings
		warns bool
	}{{state.Settings{}, false}, {state.Settings{HoldService: 20_000}, true}, {state.Settings{HoldNode: 999}, true}, {state.Settings{HoldService: 20_000, HoldNode: 20_000}, false}} {
		if got := showSettings(c.s, nil).Warnings; (len(got) > 0) != c.warns {
			t.Errorf("%+v: warns %q", c.s, got)
		}
	}
}
