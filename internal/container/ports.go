package container

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
)

// Ports is how a container is reached over TCP.
type Ports struct {
	// Address at which its node reaches it, on any of its ports; "" while it does not run,
	// and for one whose network is another container's.
	Address string
	Exposed []int // named by its image or its user
	// Published by the engine on its node, in order; not of a container that has its
	// node's network.
	Published []PublishedPort
}

// PublishedPort of a container. Host is 0 when the engine chooses one.
type PublishedPort struct{ Host, Port int }

// portsOf reads the engine's JSON about one container.
func (in *inspection) portsOf() (p Ports) {
	mode := text(in.HostConfig["NetworkMode"])
	v4, v6 := map[string]string{}, map[string]string{}
	for name, n := range in.NetworkSettings.Networks {
		v4[name], v6[name] = text(n["IPAddress"]), text(n["GlobalIPv6Address"])
	}
	p.Address = addressOf(State(in.State.Status), mode, v4, v6)
	exposed, _ := in.Config["ExposedPorts"].(map[string]any)
	for spec := range exposed {
		if port := tcpPort(spec); port > 0 {
			p.Exposed = append(p.Exposed, port)
		}
	}
	slices.Sort(p.Exposed)
	if mode == "host" {
		return p
	}
	bindings, _ := in.HostConfig["PortBindings"].(map[string]any)
	for spec, all := range bindings {
		port := tcpPort(spec)
		if port == 0 {
			continue
		}
		for _, b := range list(all) {
			binding, _ := b.(map[string]any)
			p.Published = append(p.Published, PublishedPort{hostPort(text(binding["HostPort"])), port})
		}
	}
	slices.SortFunc(p.Published, func(a, b PublishedPort) int { return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Host, b.Host)) })
	return p
}

// portsOfSummary reads what a list of containers says of one.
func portsOfSummary(s container.Summary) (p Ports) {
	v4, v6 := map[string]string{}, map[string]string{}
	if s.NetworkSettings != nil {
		for name, n := range s.NetworkSettings.Networks {
			if n != nil && n.IPAddress.IsValid() {
				v4[name] = n.IPAddress.String()
			}
			if n != nil && n.GlobalIPv6Address.IsValid() {
				v6[name] = n.GlobalIPv6Address.String()
			}
		}
	}
	p.Address = addressOf(State(s.State), s.HostConfig.NetworkMode, v4, v6)
	for _, port := range s.Ports {
		if port.Type == "tcp" {
			p.Exposed = append(p.Exposed, int(port.PrivatePort))
		}
	}
	slices.Sort(p.Exposed)
	p.Exposed = slices.Compact(p.Exposed)
	return p
}

// addressOf is the address of a container by its networks' names. One that is on several
// is reached on each; always the same one is taken.
func addressOf(st State, networkMode string, v4, v6 map[string]string) string {
	if !st.Live() {
		return ""
	}
	if networkMode == "host" {
		return "127.0.0.1"
	}
	address := ""
	for _, family := range []map[string]string{v4, v6} {
		for _, name := range slices.Sorted(maps.Keys(family)) {
			address = cmp.Or(address, family[name])
		}
	}
	return address
}

// tcpPort reads 80/tcp; 0 for anything else.
func tcpPort(spec string) int {
	number, protocol, _ := strings.Cut(spec, "/")
	port, err := strconv.Atoi(number)
	if err != nil || protocol != "tcp" && protocol != "" {
		return 0
	}
	return port
}

// hostPort is the port that is published; 0 for "" and for a range, of which the engine
// chooses one.
func hostPort(text string) int {
	port, err := strconv.Atoi(text)
	if err != nil {
		return 0
	}
	return port
}

// Unpublished is the spec without the published ports that drop says; the engine then
// keeps the others as they are. It is the same spec if there is none.
func (s Spec) Unpublished(drop func(host, port int) bool) (Spec, error) {
	var host map[string]any
	if err := unmarshalExact(s.HostConfig, &host); err != nil {
		return Spec{}, fmt.Errorf("reading the configuration of container %s: %w", s.Name, err)
	}
	bindings, _ := host["PortBindings"].(map[string]any)
	changed := false
	for spec, all := range bindings {
		port := tcpPort(spec)
		if port == 0 {
			continue
		}
		var kept []any
		for _, b := range list(all) {
			binding, _ := b.(map[string]any)
			if drop(hostPort(text(binding["HostPort"])), port) {
				changed = true
				continue
			}
			kept = append(kept, b)
		}
		if len(kept) > 0 {
			bindings[spec] = kept
		} else {
			delete(bindings, spec)
		}
	}
	if !changed {
		return s, nil
	}
	var err error
	s.HostConfig, err = json.Marshal(host)
	return s, err
}
