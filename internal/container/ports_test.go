package container

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestUnpublished(t *testing.T) {
	const was = `{"Memory":9007199254740993,"PortBindings":{"22/tcp":[{"HostIp":"","HostPort":"80"}],"5432/tcp":[{"HostIp":"","HostPort":"5432"},{"HostIp":"127.0.0.1","HostPort":""}],"53/udp":[{"HostPort":"80"}]}}`
	const plain = `{"Labels":{"a":"b"}}`
	label := func(bindings string) string {
		return `{"Labels":{"a":"b","flocker.unpublished":"` + strings.ReplaceAll(bindings, `"`, `\"`) + `"}}`
	}
	tests := []struct {
		name         string
		drop         func(Binding) bool
		host, config string // before; "" for those above
		want, label  string
		reasons      []string
	}{
		{name: "none", drop: func(Binding) bool { return false }, want: was, label: plain},
		{name: "a port of the container", drop: func(b Binding) bool { return b.Port == 5432 },
			want:    `{"Memory":9007199254740993,"PortBindings":{"22/tcp":[{"HostIp":"","HostPort":"80"}],"53/udp":[{"HostPort":"80"}]}}`,
			label:   label(`{"5432/tcp":[{"HostIp":"","HostPort":"5432"},{"HostIp":"127.0.0.1","HostPort":""}]}`),
			reasons: []string{"5432/tcp", "127.0.0.1:0/tcp"}},
		{name: "a port of the node", drop: func(b Binding) bool { return b.Host == 80 && b.Protocol == "tcp" },
			want:    `{"Memory":9007199254740993,"PortBindings":{"5432/tcp":[{"HostIp":"","HostPort":"5432"},{"HostIp":"127.0.0.1","HostPort":""}],"53/udp":[{"HostPort":"80"}]}}`,
			label:   label(`{"22/tcp":[{"HostIp":"","HostPort":"80"}]}`),
			reasons: []string{"80/tcp"}},
		{name: "one of two", drop: func(b Binding) bool { return b.Host == 5432 },
			want:    `{"Memory":9007199254740993,"PortBindings":{"22/tcp":[{"HostIp":"","HostPort":"80"}],"5432/tcp":[{"HostIp":"127.0.0.1","HostPort":""}],"53/udp":[{"HostPort":"80"}]}}`,
			label:   label(`{"5432/tcp":[{"HostIp":"","HostPort":"5432"}]}`),
			reasons: []string{"5432/tcp"}},
		{name: "another protocol", drop: func(b Binding) bool { return b.Host == 80 && b.Protocol == "udp" },
			want:    `{"Memory":9007199254740993,"PortBindings":{"22/tcp":[{"HostIp":"","HostPort":"80"}],"5432/tcp":[{"HostIp":"","HostPort":"5432"},{"HostIp":"127.0.0.1","HostPort":""}]}}`,
			label:   label(`{"53/udp":[{"HostPort":"80"}]}`),
			reasons: []string{"80/udp"}},
		{name: "free again", drop: func(Binding) bool { return false },
			host:   `{"PortBindings":{"22/tcp":[{"HostIp":"","HostPort":"23"}]}}`,
			config: label(`{"22/tcp":[{"HostIp":"","HostPort":"24"}],"80/tcp":[{"HostIp":"","HostPort":"80"}]}`),
			want:   `{"PortBindings":{"22/tcp":[{"HostIp":"","HostPort":"23"},{"HostIp":"","HostPort":"24"}],"80/tcp":[{"HostIp":"","HostPort":"80"}]}}`,
			label:  plain},
		{name: "still taken", drop: func(b Binding) bool { return b.Host == 80 },
			host:    `{"PortBindings":null}`,
			config:  label(`{"80/tcp":[{"HostIp":"","HostPort":"80"}]}`),
			want:    `{"PortBindings":{}}`,
			label:   label(`{"80/tcp":[{"HostIp":"","HostPort":"80"}]}`),
			reasons: []string{"80/tcp"}},
		{name: "published by hand meanwhile", drop: func(Binding) bool { return false },
			host:   `{"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"80"}]}}`,
			config: label(`{"80/tcp":[{"HostIp":"","HostPort":"80"}]}`),
			want:   `{"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"80"}]}}`,
			label:  plain},
		{name: "a label that is not ours", drop: func(Binding) bool { return false },
			host: `{"PortBindings":{}}`, config: label(`no`), want: `{"PortBindings":{}}`, label: plain},
		{name: "without labels", drop: func(b Binding) bool { return b.Host == 80 },
			host: `{"PortBindings":{"80/tcp":[{"HostPort":"80"}]}}`, config: `{"Labels":null}`, want: `{"PortBindings":{}}`,
			label:   `{"Labels":{"flocker.unpublished":"{\"80/tcp\":[{\"HostPort\":\"80\"}]}"}}`,
			reasons: []string{"80/tcp"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := Spec{Name: "db", HostConfig: []byte(was), Config: []byte(plain)}
			if tt.host != "" {
				s.HostConfig, s.Config = []byte(tt.host), []byte(tt.config)
			}
			before := string(s.HostConfig) + string(s.Config)
			got, reasons, err := s.Unpublished(func(b Binding) string {
				if tt.drop(b) {
					return b.String()
				}
				return ""
			})
			if err != nil {
				t.Fatal(err)
			}
			sameJSON(t, got.HostConfig, tt.want)
			sameJSON(t, got.Config, tt.label)
			if !slices.Equal(reasons, tt.reasons) {
				t.Errorf("the reasons are %q, want %q", reasons, tt.reasons)
			}
			if after := string(s.HostConfig) + string(s.Config); after != before {
				t.Errorf("the spec itself was changed to %s", after)
			}
		})
	}
}

// sameJSON compares what two texts say.
func sameJSON(t *testing.T, got []byte, want string) {
	t.Helper()
	var g, w any
	if err := unmarshalExact(got, &g); err != nil {
		t.Fatal(err)
	}
	if err := unmarshalExact([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(g, w) {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A port is somebody's on one address or on all of a family.
func TestTaken(t *testing.T) {
	target := Target{Known: true, Published: []PublishedBy{
		{Binding{"0.0.0.0", 80, 8080, "tcp"}, "web"}, {Binding{"::", 80, 8080, "tcp"}, "web"},
		{Binding{"127.0.0.1", 5432, 5432, "tcp"}, "pg"}, {Binding{"0.0.0.0", 53, 53, "udp"}, "dns"},
		{Binding{"0.0.0.0", 6379, 6379, "tcp"}, "db"}, {Binding{"0.0.0.0", 6380, 6379, "tcp"}, "db.flocker-old"},
	}}
	for _, tt := range []struct {
		b    Binding
		want string
	}{
		{Binding{"", 80, 1, "tcp"}, "container web publishes port 80/tcp there already"},
		{Binding{"127.0.0.1", 80, 1, "tcp"}, "container web publishes port 127.0.0.1:80/tcp there already"},
		{Binding{"::1", 80, 1, "tcp"}, "container web publishes port [::1]:80/tcp there already"},
		{Binding{"", 80, 1, "udp"}, ""},
		{Binding{"", 5432, 1, "tcp"}, "container pg publishes port 5432/tcp there already"},
		{Binding{"127.0.0.1", 5432, 1, "tcp"}, "container pg publishes port 127.0.0.1:5432/tcp there already"},
		{Binding{"127.0.0.2", 5432, 1, "tcp"}, ""},
		{Binding{"::", 5432, 1, "tcp"}, ""},
		{Binding{"", 53, 53, "udp"}, "container dns publishes port 53/udp there already"},
		{Binding{"", 0, 8080, "tcp"}, ""},
		// Its own, of before, are free by then.
		{Binding{"", 6379, 6379, "tcp"}, ""},
		{Binding{"", 6380, 6379, "tcp"}, ""},
	} {
		if got := target.Taken("db", tt.b); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.b, got, tt.want)
		}
	}
}

func TestLeftOut(t *testing.T) {
	for label, want := range map[string]string{
		"":    "[]",
		"no":  "[]",
		"{}":  "[]",
		`[1]`: "[]",
		`{"80/tcp":[{"HostPort":"8080"}],"53/udp":[{"HostIp":"10.0.0.1","HostPort":"53"},{"HostPort":"54"}]}`: "[10.0.0.1:53/udp 54/udp 8080/tcp]",
	} {
		if got := fmt.Sprint(LeftOut(map[string]string{LabelUnpublished: label})); got != want {
			t.Errorf("%s: %s, want %s", label, got, want)
		}
	}
}
