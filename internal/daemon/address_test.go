package daemon

import (
	"net"
	"strings"
	"testing"
)

// A machine with one address has one, though its engine has made bridges; so init need not be told
// which.
func TestReachableAt(t *testing.T) {
	for _, tt := range []struct{ name, addrs, want string }{
		{"eth0", "10.0.0.5/24 fe80::1/64 2001:db8::5/64", "10.0.0.5"},
		{"eth0", "10.0.0.5/24 10.0.0.6/24", "10.0.0.5 10.0.0.6"},
		{"lo", "127.0.0.1/8 ::1/128", ""},
		{"eth1", "169.254.7.7/16", ""},
		{"docker0", "172.17.0.1/16", ""},
		{"docker_gwbridge", "172.18.0.1/16", ""},
		{"br-0123456789ab", "172.19.0.1/16", ""},
		{"br-lan", "192.168.1.2/24", "192.168.1.2"}, // a bridge of the operator's
		{"br0", "192.168.1.3/24", "192.168.1.3"},
	} {
		var addrs []net.Addr
		for _, text := range strings.Fields(tt.addrs) {
			ip, n, err := net.ParseCIDR(text)
			if err != nil {
				t.Fatal(err)
			}
			n.IP = ip
			addrs = append(addrs, n)
		}
		if got := strings.Join(reachableAt(tt.name, addrs), " "); got != tt.want {
			t.Errorf("%s with %s: others reach it at %q, want %q", tt.name, tt.addrs, got, tt.want)
		}
	}
}
