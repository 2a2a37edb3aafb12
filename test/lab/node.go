package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/api"
)

// Node is one machine.
type Node struct {
	Name string
	lab  *Lab
}

func (n *Node) String() string { return n.Name }

// Node by its number, from 1.
func (l *Lab) Node(number int) *Node { return &Node{Name: "n" + strconv.Itoa(number), lab: l} }

// Nodes are the first three, which every story has.
func (l *Lab) Nodes() []*Node { return []*Node{l.Node(1), l.Node(2), l.Node(3)} }

// Addr is the node's address on the LAN.
func (n *Node) Addr() string { return "10.77.0.1" + strings.TrimPrefix(n.Name, "n") }

// Try runs a shell script in the node and returns its standard output.
func (n *Node) Try(script string) (string, error) { return n.lab.Try("ssh", n.Name, script) }

// TryFor is Try for what may take this long.
func (n *Node) TryFor(limit time.Duration, script string) (string, error) {
	return n.lab.tryFor(limit, "ssh", n.Name, script)
}

// Sh is Try that must succeed.
func (n *Node) Sh(script string) string {
	n.lab.Helper()
	out, err := n.Try(script)
	if err != nil {
		n.lab.Fatal(err)
	}
	return out
}

// Lines of what a script printed, without empty ones.
func (n *Node) Lines(script string) []string {
	n.lab.Helper()
	return strings.Fields(n.Sh(script))
}

// TryDocker runs the engine's command line.
func (n *Node) TryDocker(args ...string) (string, error) { return n.Try("docker " + quote(args)) }

// Docker is TryDocker that must succeed.
func (n *Node) Docker(args ...string) string { n.lab.Helper(); return n.Sh("docker " + quote(args)) }

// TryFlockctl runs flockctl.
func (n *Node) TryFlockctl(args ...string) (string, error) { return n.Try("flockctl " + quote(args)) }

// Flockctl is TryFlockctl that must succeed.
func (n *Node) Flockctl(args ...string) string {
	n.lab.Helper()
	return n.Sh("flockctl " + quote(args))
}

// Ask reads what flockctl prints for programs.
func Ask[T any](n *Node, args ...string) (T, error) {
	var v T
	out, err := n.TryFlockctl(append([]string{"--json"}, args...)...)
	if err == nil {
		if err = json.Unmarshal([]byte(out), &v); err != nil {
			err = fmt.Errorf("%s: flockctl %s printed %q: %w", n, strings.Join(args, " "), out, err)
		}
	}
	return v, err
}

// Members are the cluster's nodes, as this one sees them.
func (n *Node) Members() ([]api.Node, error) { return Ask[[]api.Node](n, "node", "list") }

// Status of the cluster, as this node sees it.
func (n *Node) Status() (api.ClusterStatus, error) { return Ask[api.ClusterStatus](n, "status") }

// Volume by name, as this node sees it.
func (n *Node) Volume(name string) (api.Volume, error) {
	vs, err := Ask[[]api.Volume](n, "volume", "inspect", name)
	if err == nil && len(vs) != 1 {
		err = fmt.Errorf("%s: %d volumes named %q", n, len(vs), name)
	}
	if err != nil {
		return api.Volume{}, err
	}
	return vs[0], nil
}

// Volumes are all live ones, as this node sees them.
func (n *Node) Volumes() ([]api.Volume, error) { return Ask[[]api.Volume](n, "volume", "list") }

// DockerVolume is what `docker volume inspect` shows.
type DockerVolume struct {
	Name, Driver, Mountpoint, Scope string
	Status                          map[string]any
}

// DockerVolume by name.
func (n *Node) DockerVolume(name string) (DockerVolume, error) {
	var vs []DockerVolume
	out, err := n.TryDocker("volume", "inspect", name)
	if err == nil {
		err = json.Unmarshal([]byte(out), &vs)
	}
	if err == nil && len(vs) != 1 {
		err = fmt.Errorf("%s: %d docker volumes named %q", n, len(vs), name)
	}
	if err != nil {
		return DockerVolume{}, err
	}
	return vs[0], nil
}

// DockerVolumes are the names of all volumes of our driver.
func (n *Node) DockerVolumes() ([]string, error) {
	out, err := n.TryDocker("volume", "ls", "-q", "-f", "driver=flocker")
	return strings.Fields(out), err
}

// Metric sums a metric over all series whose labels hold every one of the given
// `name="value"`.
func (n *Node) Metric(name string, labels ...string) (sum float64, err error) {
	samples, err := n.Samples(name, labels...)
	for _, s := range samples {
		sum += s
	}
	return sum, err
}

// Samples are the values of these series, one by one.
func (n *Node) Samples(name string, labels ...string) (values []float64, err error) {
	out, err := n.Try("curl -sf http://127.0.0.1:4525/metrics")
	if err != nil {
		return nil, err
	}
series:
	for line := range strings.Lines(out) {
		m := sample.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || m[1] != name {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(m[2], label) {
				continue series
			}
		}
		v, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			return nil, fmt.Errorf("metric %s: %w", name, err)
		}
		values = append(values, v)
	}
	return values, nil
}

var sample = regexp.MustCompile(`^([a-z_]+)(\{.*\})? (\S+)$`)

// Put writes a file of the node, from the text of one here.
func (n *Node) Put(path, text string, mode os.FileMode) {
	n.lab.Helper()
	local := filepath.Join(n.lab.TempDir(), filepath.Base(path))
	if err := os.WriteFile(local, []byte(text), mode); err != nil {
		n.lab.Fatal(err)
	}
	n.Sh("mkdir -p " + Quote(filepath.Dir(path)))
	n.Copy(local, path)
	n.Sh(fmt.Sprintf("chmod %o %s", mode, quote([]string{path})))
}

// Copy brings a file into the node.
func (n *Node) Copy(local, path string) {
	n.lab.Helper()
	n.lab.Do("cp", local, n.Name+":"+path)
}

// quote makes shell words.
func quote(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(words, " ")
}

// Quote makes one shell word.
func Quote(s string) string { return quote([]string{s}) }
