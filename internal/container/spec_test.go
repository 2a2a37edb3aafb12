package container

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// inspected reads what `docker inspect` of a real engine printed about one container.
func inspected(t *testing.T, file string) json.RawMessage {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil || len(all) != 1 {
		t.Fatalf("%s: %d containers, %v", file, len(all), err)
	}
	return all[0]
}

// TestCapture: testdata/inspect holds what a real engine (20.10) said of containers,
// and beside each what is kept of it, shown as the difference, and what cannot follow.
func TestCapture(t *testing.T) {
	files, err := filepath.Glob("testdata/inspect/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			raw := inspected(t, file)
			c, err := Capture(raw, "flocker")
			if err != nil {
				t.Fatal(err)
			}
			again, err := Capture(raw, "flocker")
			if err != nil || !reflect.DeepEqual(c, again) {
				t.Errorf("a second look gives something else: %v", err)
			}
			got := describe(t, raw, c)
			want := strings.TrimSuffix(file, ".json") + ".txt"
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(want, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			b, err := os.ReadFile(want)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(b) {
				t.Errorf("got:\n%s\nwant:\n%s", got, b)
			}
		})
	}
}

func describe(t *testing.T, raw []byte, c Captured) string {
	t.Helper()
	var in inspection
	if err := unmarshalExact(raw, &in); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s started=%t followed=%t volumes=%v\nimage %s\n", c.Spec.Name, c.State, c.Started, Followed(c.Labels),
		c.Spec.Volumes("flocker"), c.Spec.Image.Ref)
	fmt.Fprintf(&b, "at %q exposes %v publishes %v\n", c.Ports.Address, c.Ports.Exposed, c.Ports.Published)
	differences(t, &b, "Config", in.Config, c.Spec.Config)
	differences(t, &b, "HostConfig", in.HostConfig, c.Spec.HostConfig)
	for _, n := range c.Spec.Networks {
		fmt.Fprintf(&b, "network %s %s\n", n.Name, n.Endpoint)
	}
	for _, o := range Preflight(c.Spec, "flocker", Target{}) {
		word := "note"
		if o.Blocks {
			word = "blocks"
		}
		fmt.Fprintf(&b, "%s (%s): %s\n", word, o.Kind, o.Message)
	}
	return b.String()
}

// differences between the engine's configuration and what is kept of it.
func differences(t *testing.T, b *strings.Builder, what string, was map[string]any, kept json.RawMessage) {
	t.Helper()
	var now map[string]any
	if err := unmarshalExact(kept, &now); err != nil {
		t.Fatal(err)
	}
	keys := maps.Clone(was)
	maps.Copy(keys, now)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		before, had := was[key]
		after, has := now[key]
		switch {
		case had && !has:
			fmt.Fprintf(b, "%s without %s, which was %q\n", what, key, before)
		case !reflect.DeepEqual(before, after):
			fmt.Fprintf(b, "%s has %s %q, which was %q\n", what, key, after, before)
		}
	}
}

// What this version of flocker does not know of goes through untouched, as do numbers
// that are too long for a float.
func TestUnknownFieldsAreKept(t *testing.T) {
	raw := inspected(t, "testdata/inspect/redis.json")
	var m map[string]any
	if err := unmarshalExact(raw, &m); err != nil {
		t.Fatal(err)
	}
	m["Config"].(map[string]any)["Tomorrow"] = map[string]any{"a": []any{"b"}}
	m["HostConfig"].(map[string]any)["NextYear"] = json.Number("9007199254740993")
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Capture(raw, "flocker")
	if err != nil {
		t.Fatal(err)
	}
	stored, err := c.Spec.Encode()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := DecodeSpec(stored)
	if err != nil || !reflect.DeepEqual(spec, c.Spec) {
		t.Fatalf("stored and read again: %+v, %v; want %+v", spec, err, c.Spec)
	}
	body, _, err := createRequest(spec, "redis:7")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"Tomorrow":{"a":["b"]}`, `"NextYear":9007199254740993`, `"Image":"redis:7"`} {
		if !strings.Contains(string(body), want) {
			t.Errorf("the request lacks %s: %s", want, body)
		}
	}
}

// A container on two networks is created on the one that its mode names and connected
// to the other.
func TestCreateRequestNetworks(t *testing.T) {
	for _, tc := range []struct {
		mode   string
		on     []string
		first  string
		others []string
	}{
		{"default", []string{"bridge"}, "bridge", nil},
		{"shop", []string{"back", "shop"}, "shop", []string{"back"}},
		{"default", []string{"back", "bridge"}, "bridge", []string{"back"}},
		{"host", []string{"host"}, "", nil},
		{"none", []string{"none"}, "", nil},
		{"container:abc", nil, "", nil},
	} {
		s := Spec{Config: json.RawMessage(`{}`), HostConfig: json.RawMessage(fmt.Sprintf(`{"NetworkMode":%q}`, tc.mode))}
		for _, n := range tc.on {
			s.Networks = append(s.Networks, Network{Name: n, Endpoint: json.RawMessage(`{}`)})
		}
		body, others, err := createRequest(s, "i")
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			NetworkingConfig struct{ EndpointsConfig map[string]any }
		}
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatal(err)
		}
		first := strings.Join(slices.Sorted(maps.Keys(got.NetworkingConfig.EndpointsConfig)), ",")
		var rest []string
		for _, n := range others {
			rest = append(rest, n.Name)
		}
		if first != tc.first || !slices.Equal(rest, tc.others) {
			t.Errorf("mode %s on %v: created on %q, connected to %v; want %q, %v", tc.mode, tc.on, first, rest, tc.first, tc.others)
		}
	}
}

// A network is made like the one that is missing; its addresses are the engine's to
// choose unless the container has one of its own.
func TestDefineNetwork(t *testing.T) {
	raw := inspected(t, "testdata/network.json")
	for _, tc := range []struct{ endpoint, want string }{
		{`{}`, `{"Driver":"default","Options":{}}`},
		{`{"IPAMConfig":{"IPv4Address":"172.30.0.10"}}`, `{"Config":[{"Subnet":"172.30.0.0/16"}],"Driver":"default","Options":{}}`},
	} {
		def, driver, err := defineNetwork(raw, []byte(tc.endpoint))
		if err != nil || driver != "bridge" {
			t.Fatalf("driver %s, %v", driver, err)
		}
		var got struct {
			Name   string
			Labels map[string]string
			IPAM   json.RawMessage
		}
		if err := json.Unmarshal(def, &got); err != nil {
			t.Fatal(err)
		}
		if got.Name != "shop_default" || got.Labels["com.docker.compose.project"] != "shop" || string(got.IPAM) != tc.want {
			t.Errorf("with endpoint %s: %s", tc.endpoint, def)
		}
	}
	overlay := strings.Replace(string(raw), `"Driver": "bridge"`, `"Driver": "overlay"`, 1)
	if def, driver, err := defineNetwork([]byte(overlay), []byte(`{}`)); err != nil || def != nil || driver != "overlay" {
		t.Errorf("an overlay network gives %s, %s, %v; want no definition", def, driver, err)
	}
}

func TestPreflightTarget(t *testing.T) {
	s := Spec{Config: json.RawMessage(`{"Labels":{"flocker.allow":"host-paths, devices"}}`),
		HostConfig: json.RawMessage(`{"Devices":[{"PathOnHost":"/dev/fuse"}]}`),
		Mounts:     []MountPoint{{Type: "bind", Source: "/etc/localtime", Destination: "/etc/localtime"}, {Type: "volume", Name: "x", Driver: "local", Destination: "/x"}},
		Networks:   []Network{{Name: "bridge"}, {Name: "back", Definition: json.RawMessage(`{}`)}, {Name: "wide", Driver: "overlay"}}}
	var got []string
	for _, o := range Preflight(s, "flocker", Target{Known: true, Networks: []string{"bridge"}}) {
		got = append(got, fmt.Sprintf("%s %t", o.Kind, o.Blocks))
	}
	want := []string{"local-volumes true", "networks true", "devices false", "host-paths false"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if !Blocked(Preflight(s, "flocker", Target{})) {
		t.Error("a local volume does not block")
	}
	s.Mounts, s.Networks = s.Mounts[:1], s.Networks[:2]
	if o := Preflight(s, "flocker", Target{Known: true}); Blocked(o) {
		t.Errorf("blocked by %v, all of which is allowed or can be made", o)
	}
}

// A network that cannot be made is known before anything is stopped, and one that can be, or is
// there, is in nobody's way.
func TestPreflightSubnets(t *testing.T) {
	target := Target{Known: true, Networks: []string{"bridge", "there"}, Subnets: []SubnetOf{{netip.MustParsePrefix("172.17.0.0/16"), "bridge"}, {netip.MustParsePrefix("10.1.0.0/16"), "there"}}}
	for _, c := range []struct{ name, definition, want string }{
		{"back", `{"IPAM":{"Driver":"default","Config":[{"Subnet":"10.1.2.0/24","Gateway":"10.1.2.1"}]}}`,
			"the network back is not there and cannot be made: its addresses 10.1.2.0/24 are in use there by network there (10.1.0.0/16)"},
		{"back", `{"IPAM":{"Config":[{"Subnet":"fd00::/64"},{"Subnet":"10.0.0.0/8"}]}}`,
			"the network back is not there and cannot be made: its addresses 10.0.0.0/8 are in use there by network there (10.1.0.0/16)"},
		{"back", `{"IPAM":{"Config":[{"Subnet":"10.2.0.0/16"}]}}`, ""},
		{"back", `{"IPAM":{"Driver":"default"}}`, ""},
		{"there", `{"IPAM":{"Config":[{"Subnet":"10.1.0.0/16"}]}}`, ""},
		{"back", ``, "the network back is not there and cannot be made: only bridge networks are made where they lack"},
	} {
		s := Spec{Config: json.RawMessage(`{}`), HostConfig: json.RawMessage(`{}`), Networks: []Network{{Name: "bridge"}, {Name: c.name, Definition: json.RawMessage(c.definition)}}}
		got := ""
		for _, o := range Preflight(s, "flocker", target) {
			if got = o.Message; o.Kind != Networks || !o.Blocks {
				t.Errorf("%s %s: %+v", c.name, c.definition, o)
			}
		}
		if got != c.want {
			t.Errorf("%s %s: %q, want %q", c.name, c.definition, got, c.want)
		}
	}
}

func TestFollowed(t *testing.T) {
	for _, tc := range []struct {
		labels map[string]string
		want   bool
	}{
		{nil, false},
		{map[string]string{LabelEnable: "true"}, true},
		{map[string]string{LabelEnable: "yes"}, false},
		{map[string]string{LabelEnable: "true", "com.docker.swarm.task": ""}, false},
		{map[string]string{LabelEnable: "true", "com.docker.swarm.task.id": "x"}, false},
		{map[string]string{LabelEnable: "true", "com.docker.compose.project": "shop"}, true},
	} {
		if got := Followed(tc.labels); got != tc.want {
			t.Errorf("Followed(%v) = %t", tc.labels, got)
		}
	}
}

func TestCaptureRefusesNonsense(t *testing.T) {
	for _, raw := range []string{``, `{}`, `[]`, `{"Id":"x"}`, `{"Id":"x","Config":{}}`} {
		if c, err := Capture([]byte(raw), "flocker"); err == nil {
			t.Errorf("%q is read as %+v", raw, c)
		}
	}
}

// How often an engine has started a container again is what tells a crash from a start.
func TestCaptureRestarts(t *testing.T) {
	raw := inspected(t, "testdata/inspect/redis.json")
	var m map[string]any
	if err := unmarshalExact(raw, &m); err != nil {
		t.Fatal(err)
	}
	m["RestartCount"] = 4
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := Capture(raw, "flocker"); err != nil || c.Restarts != 4 {
		t.Errorf("%d restarts, %v; want 4", c.Restarts, err)
	}
	for policy, want := range map[string]bool{`{"RestartPolicy":{"Name":"always"}}`: true, `{"RestartPolicy":{"Name":"unless-stopped"}}`: true, `{"RestartPolicy":{"Name":"on-failure"}}`: false, `{"RestartPolicy":{"Name":"no"}}`: false, `{}`: false} {
		if got := (Spec{HostConfig: []byte(policy)}).StartsAgain(); got != want {
			t.Errorf("%s starts again when it ends well: %v", policy, got)
		}
	}
}
