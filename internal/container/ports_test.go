package container

import (
	"reflect"
	"testing"
)

func TestUnpublished(t *testing.T) {
	const was = `{"Memory":9007199254740993,"PortBindings":{"22/tcp":[{"HostIp":"","HostPort":"80"}],"5432/tcp":[{"HostIp":"","HostPort":"5432"},{"HostIp":"127.0.0.1","HostPort":""}],"53/udp":[{"HostPort":"80"}]}}`
	tests := []struct {
		name string
		drop func(host, port int) bool
		want string
	}{
		{"none", func(int, int) bool { return false }, was},
		{"a port of the container", func(_, port int) bool { return port == 5432 },
			`{"Memory":9007199254740993,"PortBindings":{"22/tcp":[{"HostIp":"","HostPort":"80"}],"53/udp":[{"HostPort":"80"}]}}`},
		{"a port of the node", func(host, _ int) bool { return host == 80 },
			`{"Memory":9007199254740993,"PortBindings":{"5432/tcp":[{"HostIp":"","HostPort":"5432"},{"HostIp":"127.0.0.1","HostPort":""}],"53/udp":[{"HostPort":"80"}]}}`},
		{"one of two", func(host, port int) bool { return host == 5432 && port == 5432 },
			`{"Memory":9007199254740993,"PortBindings":{"22/tcp":[{"HostIp":"","HostPort":"80"}],"5432/tcp":[{"HostIp":"127.0.0.1","HostPort":""}],"53/udp":[{"HostPort":"80"}]}}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := Spec{Name: "db", HostConfig: []byte(was)}
			got, err := s.Unpublished(tt.drop)
			if err != nil {
				t.Fatal(err)
			}
			var g, w any
			if err := unmarshalExact(got.HostConfig, &g); err != nil {
				t.Fatal(err)
			}
			if err := unmarshalExact([]byte(tt.want), &w); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(g, w) {
				t.Errorf("got %s, want %s", got.HostConfig, tt.want)
			}
			if string(s.HostConfig) != was {
				t.Errorf("the spec itself was changed to %s", s.HostConfig)
			}
		})
	}
}
