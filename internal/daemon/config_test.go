package daemon

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/state"
)

func TestReadConfig(t *testing.T) {
	tests := []struct {
		name, file string
		want       string // of the error; "": none
	}{
		{"empty", "", ""},
		{"all good", "listen: 10.0.0.1:4523\nprofile: fast\nlog_format: json\n", ""},
		{"unknown key", "listen: :1\nlisten_addr: x\n", "line 2: field listen_addr not found"},
		{"not a map", "- a\n", "line 1"},
		{"profile", "profile: turbo\n", "want default, fast or lab"},
		{"level", "log_level: loud\n", "want debug, info, warn or error"},
		{"format", "log_format: xml\n", "want text or json"},
		{"no port", "listen: 10.0.0.1\n", "listen \"10.0.0.1\": want host:port, like :4523"},
		{"an empty port", "gossip_listen: '10.0.0.1:'\n", "gossip_listen \"10.0.0.1:\": want host:port"},
		{"no such port", "proxy_listen: ':99999'\n", "want host:port"},
		{"no port's name", "http_listen: 'localhost:banana'\n", "http_listen \"localhost:banana\": want host:port"},
		{"any port", "listen: 127.0.0.1:0\nhttp_listen: '[::1]:4525'\n", ""},
		{"no metrics", "http_listen: off\ndocker_host: off\n", ""},
		{"metrics are not off, but the port", "listen: off\n", "listen \"off\": want host:port"},
		{"a relative socket", "plugin_socket: flocker.sock\n", "want an absolute path"},
		{"a directory too long for sockets", "run_dir: /" + strings.Repeat("x", 96) + "\n", "at most 107 bytes, and one would have 109"},
		{"an engine without a scheme", "docker_host: /var/run/docker.sock\n", "want off, or an address like unix://"},
		{"an engine elsewhere", "docker_host: tcp://10.0.0.1:2375\n", ""},
		{"relative", "state_dir: here\n", "want an absolute path"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "flockd.yml")
			if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := ReadConfig(path, false)
			if err == nil {
				err = c.WithDefaults().Validate()
			}
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got %v, want none", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
	if _, err := ReadConfig("/nowhere/flockd.yml", true); err != nil {
		t.Errorf("an optional file that is missing: %v", err)
	}
	if _, err := ReadConfig("/nowhere/flockd.yml", false); err == nil {
		t.Error("a file that was asked for is missing, and nothing is said")
	}
}

// Every field of Config has a setting, so that flags and environment reach all.
func TestSettings(t *testing.T) {
	var c Config
	seen := map[*string]bool{}
	for _, s := range Settings() {
		if s.Usage == "" || strings.Contains(s.Flag(), "_") || seen[s.Field(&c)] {
			t.Errorf("setting %q has no usage, a bad flag or another one's field", s.Name)
		}
		seen[s.Field(&c)] = true
		*s.Field(&c) = s.Name
	}
	for _, line := range strings.Split(strings.TrimSpace(dumpYAML(t, c)), "\n") {
		key, value, _ := strings.Cut(line, ": ")
		if key != value {
			t.Errorf("field %q has the value of setting %q", key, value)
		}
	}
}

// What clients of a route say waits while those are parked and the server moves: with any
// timers that has to be the shorter part of what it may wait.
func TestTimersOfRoutes(t *testing.T) {
	for name, p := range profiles {
		quiet, held := cmp.Or(p.Quiet, quietPatience), cmp.Or(p.Held, state.DefaultHold)
		if quiet > held/2 {
			t.Errorf("profile %s: %s of the %s that a request may wait are for parking", name, quiet, held)
		}
	}
}
