package daemon

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Config is what an operator may set on one node. The zero value of a field is its
// default; flockd runs without any configuration.
type Config struct {
	// StateDir holds the node's identity and the Raft log. It must not be on the
	// managed pool: a suspended pool must not stop the control plane.
	StateDir string `yaml:"state_dir"`
	// RunDir holds the control socket.
	RunDir string `yaml:"run_dir"`
	// MountDir is where volumes are mounted.
	MountDir string `yaml:"mount_dir"`
	// Listen is the mutual-TLS port for raft, the API and streams.
	Listen string `yaml:"listen"`
	// GossipListen is serf's port, TCP and UDP.
	GossipListen string `yaml:"gossip_listen"`
	// ProxyListen is the mutual-TLS port of `flockd proxy`, for the clients of routes.
	ProxyListen string `yaml:"proxy_listen"`
	// RouteDir has a folder for each listen port whose route needs a certificate or a password,
	// which are read by `flockd proxy`.
	RouteDir string `yaml:"route_dir"`
	// HTTPListen serves /metrics, /healthz and /readyz in clear; "off" for none.
	HTTPListen string `yaml:"http_listen"`
	// PluginSocket is where Docker looks for the volume driver.
	PluginSocket string `yaml:"plugin_socket"`
	// DockerHost is the engine's address; "off" on a node without containers.
	DockerHost string `yaml:"docker_host"`
	// Pool overrides the pool given to init or join.
	Pool string `yaml:"pool"`
	// Profile of the timers: default, fast (one quick LAN) or lab (slow emulation).
	Profile string `yaml:"profile"`
	// LogLevel is debug, info, warn or error; LogFormat text or json.
	LogLevel  string `yaml:"log_level"`
	LogFormat string `yaml:"log_format"`
}

// Setting names one field of Config for flags and environment variables.
type Setting struct {
	Name  string // as in the file; the flag has - for _
	Usage string
	Def   string
	Field func(*Config) *string
}

// Flag is the command-line form of the name.
func (s Setting) Flag() string { return strings.ReplaceAll(s.Name, "_", "-") }

// Env is the environment variable of the setting.
func (s Setting) Env() string { return "FLOCKD_" + strings.ToUpper(s.Name) }

// Settings lists every field of Config once: what flags, environment, defaults and
// `flockd config show` are made from.
func Settings() []Setting {
	return []Setting{
		{"state_dir", "directory of identity and Raft log, not on the managed pool", "/var/lib/flocker", func(c *Config) *string { return &c.StateDir }},
		{"run_dir", "directory of the control socket", "/run/flocker", func(c *Config) *string { return &c.RunDir }},
		{"mount_dir", "directory below which volumes are mounted", "/var/lib/flocker/volumes", func(c *Config) *string { return &c.MountDir }},
		{"listen", "host:port of the mutual-TLS port", ":4523", func(c *Config) *string { return &c.Listen }},
		{"gossip_listen", "host:port of gossip, TCP and UDP", ":4524", func(c *Config) *string { return &c.GossipListen }},
		{"proxy_listen", "host:port of the proxy's mutual-TLS port", ":4526", func(c *Config) *string { return &c.ProxyListen }},
		{"route_dir", "directory of the routes' certificates and passwords, by listen port", "/etc/flocker/routes", func(c *Config) *string { return &c.RouteDir }},
		{"http_listen", "host:port of /metrics, /healthz and /readyz, or off", "127.0.0.1:4525", func(c *Config) *string { return &c.HTTPListen }},
		{"plugin_socket", "socket of the Docker volume driver", "/run/docker/plugins/flocker.sock", func(c *Config) *string { return &c.PluginSocket }},
		{"docker_host", "address of the container engine, or off", "unix:///var/run/docker.sock", func(c *Config) *string { return &c.DockerHost }},
		{"pool", "zpool to use instead of the one given to init or join", "", func(c *Config) *string { return &c.Pool }},
		{"profile", "timers: default, fast or lab", "default", func(c *Config) *string { return &c.Profile }},
		{"log_level", "debug, info, warn or error", "info", func(c *Config) *string { return &c.LogLevel }},
		{"log_format", "text or json", "text", func(c *Config) *string { return &c.LogFormat }},
	}
}

// WithDefaults fills in what is empty.
func (c Config) WithDefaults() Config {
	for _, s := range Settings() {
		f := s.Field(&c)
		*f = cmp.Or(*f, s.Def)
	}
	return c
}

// ReadConfig reads a YAML file strictly: an unknown key is an error with its line.
// A missing file is an error too, unless optional.
func ReadConfig(path string, optional bool) (Config, error) {
	b, err := os.ReadFile(path)
	if optional && errors.Is(err, os.ErrNotExist) {
		return Config{}, nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("reading the configuration: %w", err)
	}
	c, err := parseConfig(b)
	if err != nil {
		return Config{}, fmt.Errorf("reading the configuration %s: %w", path, err)
	}
	return c, nil
}

func parseConfig(b []byte) (Config, error) {
	var c Config
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, err
	}
	return c, nil
}

// Validate says what is wrong with a configuration that has its defaults.
func (c Config) Validate() error {
	if _, err := c.level(); err != nil {
		return err
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		return fmt.Errorf("log_format %q: want text or json", c.LogFormat)
	}
	if _, ok := profiles[c.Profile]; !ok {
		return fmt.Errorf("profile %q: want default, fast or lab", c.Profile)
	}
	for _, dir := range []string{c.StateDir, c.RunDir, c.MountDir, c.RouteDir} {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("directory %q: want an absolute path", dir)
		}
	}
	for _, a := range []struct{ name, value, like string }{
		{"listen", c.Listen, ":4523"}, {"gossip_listen", c.GossipListen, ":4524"}, {"proxy_listen", c.ProxyListen, ":4526"}, {"http_listen", c.HTTPListen, "127.0.0.1:4525"},
	} {
		if !isAddress(a.value) && !(a.name == "http_listen" && a.value == "off") {
			return fmt.Errorf("%s %.100q: want host:port, like %s", a.name, a.value, a.like)
		}
	}
	if !filepath.IsAbs(c.PluginSocket) {
		return fmt.Errorf("plugin_socket %.100q: want an absolute path", c.PluginSocket)
	}
	// The kernel would call either no more than an invalid argument.
	if longest := max(len(c.PluginSocket), len(c.Socket())); longest > maxSocket {
		return fmt.Errorf("run_dir or plugin_socket is too long: the path of a socket has at most %d bytes, and one would have %d", maxSocket, longest)
	}
	if c.DockerHost != "off" && !strings.Contains(c.DockerHost, "://") {
		return fmt.Errorf("docker_host %.100q: want off, or an address like unix:///var/run/docker.sock", c.DockerHost)
	}
	return nil
}

// maxSocket is the longest path of a unix socket.
const maxSocket = 107

// isAddress says whether one can be listened on.
func isAddress(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	return err == nil && port != ""
}

// Logger made as the configuration says.
func (c Config) Logger(w io.Writer) *slog.Logger {
	level, err := c.level()
	if err != nil {
		level = slog.LevelInfo
	}
	opts := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

func (c Config) level() (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return 0, fmt.Errorf("log_level %q: want debug, info, warn or error", c.LogLevel)
	}
	return l, nil
}

// Socket is the path of the control socket.
func (c Config) Socket() string { return filepath.Join(c.RunDir, "flockd.sock") }

// Timers are all waiting times of a node, chosen together.
type Timers struct {
	Report time.Duration // between reports to the leader
	Stale  time.Duration // a report older than this says nothing any more
	Poll   time.Duration // between looks at the disk without a reason
	Raft   time.Duration // heartbeat and election timeout
	Stable time.Duration // a node is healthy this long before it becomes a voter
	Lease  string        // profile of the lease that a cluster made here begins with; "": default
	Commit time.Duration // an idle leader tells its followers what is committed
	Hang   time.Duration // a leader whose disk has not written for so long gives up; 0: 5 s
	Quiet  time.Duration // the clients of routes have so long to come to a quiet point before a move; 0: 4 s
	Held   time.Duration // the setting hold that a cluster made here begins with; 0: default
}

// profiles by name. lab is for emulated machines that are ten times slower.
var profiles = map[string]Timers{
	"default": {Report: 2 * time.Second, Stale: 10 * time.Second, Poll: 5 * time.Second, Raft: 1500 * time.Millisecond, Stable: 30 * time.Second, Commit: 50 * time.Millisecond},
	"fast":    {Report: time.Second, Stale: 6 * time.Second, Poll: 5 * time.Second, Raft: time.Second, Stable: 15 * time.Second, Lease: "fast", Commit: 50 * time.Millisecond},
	"lab":     {Report: 2 * time.Second, Stale: 15 * time.Second, Poll: 10 * time.Second, Raft: 5 * time.Second, Stable: 5 * time.Second, Lease: "lab", Commit: 250 * time.Millisecond, Hang: 20 * time.Second, Quiet: 20 * time.Second, Held: time.Minute},
}

// Profile is the set of timers of that name; the default one when there is none.
func Profile(name string) Timers {
	if t, ok := profiles[name]; ok {
		return t
	}
	return profiles["default"]
}
