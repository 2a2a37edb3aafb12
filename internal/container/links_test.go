package container

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseLinks(t *testing.T) {
	for _, tt := range []struct{ label, want string }{
		{"db", "[db]"},
		{"db:5432", "[db:5432]"},
		{"db:5432,cache", "[db:5432 cache]"},
		{" db:5432 , a-b.c_d:80 ", "[db:5432 a-b.c_d:80]"},
		{"", "the label flocker.links names nothing"},
		{",", "the label flocker.links names nothing"},
		{":5432", `":5432" in the label`},
		{"db:", `"db:" in the label`},
		{"db:0", `"db:0" in the label`},
		{"db:65536", `"db:65536" in the label`},
		{"db:postgres", `"db:postgres" in the label`},
		{"db:80:81", `"db:80:81" in the label`},
		{"db/x", `"db/x" in the label`},
	} {
		links, err := ParseLinks(tt.label)
		got := fmt.Sprint(links)
		if err != nil {
			got = err.Error()
		}
		if got != tt.want && (err == nil || !strings.HasPrefix(got, tt.want)) {
			t.Errorf("%q: %s, want %s", tt.label, got, tt.want)
		}
	}
}

// A container that is made again gets what its label names; what its user gave it stays as it
// is, and is told of.
func TestLinked(t *testing.T) {
	for _, tt := range []struct{ name, label, host, want, notes string }{
		{"lacks it", `"db:5432,cache"`, `{"Memory":9007199254740993,"ExtraHosts":null}`,
			`{"Memory":9007199254740993,"ExtraHosts":["db:host-gateway","cache:host-gateway"]}`,
			"it was made without --add-host cache:host-gateway, which it gets with it when it is made again; it was made without --add-host db:host-gateway, which it gets with it when it is made again"},
		{"has it", `"db:5432"`, `{"ExtraHosts":["db:host-gateway"]}`, `{"ExtraHosts":["db:host-gateway"]}`, ""},
		{"as other clients write it", `"db:5432"`, `{"ExtraHosts":["db=host-gateway"]}`, `{"ExtraHosts":["db=host-gateway"]}`, ""},
		{"two ports of one name", `"db:1,db:2"`, `{"ExtraHosts":["x:1.2.3.4"]}`, `{"ExtraHosts":["x:1.2.3.4","db:host-gateway"]}`,
			"it was made without --add-host db:host-gateway, which it gets with it when it is made again"},
		{"an address of its user's", `"db"`, `{"ExtraHosts":["db:10.0.0.1"]}`, `{"ExtraHosts":["db:10.0.0.1"]}`,
			"its db is 10.0.0.1 and not its node: it was made without --add-host db:host-gateway"},
		{"a name that begins alike", `"db"`, `{"ExtraHosts":["db2:host-gateway"]}`, `{"ExtraHosts":["db2:host-gateway","db:host-gateway"]}`,
			"it was made without --add-host db:host-gateway, which it gets with it when it is made again"},
		{"what cannot be read", `"db:x"`, `{"ExtraHosts":["a:b"]}`, `{"ExtraHosts":["a:b"]}`,
			`"db:x" in the label flocker.links is no NAME and no NAME:PORT, as in db:5432`},
		{"without the label", ``, `{}`, `{}`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := `{"Labels":{}}`
			if tt.label != "" {
				config = `{"Labels":{"flocker.links":` + tt.label + `}}`
			}
			s := Spec{Name: "web", Config: []byte(config), HostConfig: []byte(tt.host)}
			got, err := s.Linked()
			if err != nil {
				t.Fatal(err)
			}
			sameJSON(t, got.HostConfig, tt.want)
			if string(s.HostConfig) != tt.host {
				t.Errorf("the spec itself was changed to %s", s.HostConfig)
			}
			var notes []string
			for _, o := range Preflight(s, "flocker", Target{}) {
				if o.Kind == Links && o.Blocks {
					t.Errorf("it blocks: %s", o)
				}
				notes = append(notes, o.String())
			}
			if text := strings.Join(notes, "; "); text != tt.notes {
				t.Errorf("the preflight says %q, want %q", text, tt.notes)
			}
		})
	}
}
