package container

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
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

// PublishedPort of a container, by TCP. Host is 0 when the engine chooses one.
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

// publishedOfSummary are the ports that a container of a list has on its node now.
func publishedOfSummary(name string, s container.Summary) (out []PublishedBy) {
	for _, port := range s.Ports {
		if port.PublicPort == 0 {
			continue
		}
		b := Binding{Host: int(port.PublicPort), Port: int(port.PrivatePort), Protocol: port.Type}
		if port.IP.IsValid() {
			b.Address = port.IP.String()
		}
		out = append(out, PublishedBy{b, name})
	}
	return out
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

// LabelUnpublished is on a container that was made again without some of its published
// ports: these, as the engine describes them.
const LabelUnpublished = "flocker.unpublished"

// Binding is a port of a node that an engine leads to a port of a container.
type Binding struct {
	Address  string // of the node; "" for any
	Host     int    // 0 when the engine chooses one
	Port     int    // of the container
	Protocol string // tcp, udp or sctp
}

// String is the node's side of it.
func (b Binding) String() string {
	host := strconv.Itoa(b.Host)
	if b.Address != "" {
		host = net.JoinHostPort(b.Address, host)
	}
	return host + "/" + b.Protocol
}

// collides says that an engine cannot have both.
func (b Binding) collides(o Binding) bool {
	if b.Host == 0 || b.Host != o.Host || b.Protocol != o.Protocol {
		return false
	}
	if b.Address == "" || o.Address == "" {
		return true
	}
	x, errX := netip.ParseAddr(b.Address)
	y, errY := netip.ParseAddr(o.Address)
	if errX != nil || errY != nil {
		return b.Address == o.Address
	}
	return x.Is4() == y.Is4() && (x.IsUnspecified() || y.IsUnspecified() || x == y)
}

func bindingOf(spec string, binding map[string]any) Binding {
	number, protocol, _ := strings.Cut(spec, "/")
	port, _ := strconv.Atoi(number) // 0 for a range, which no route leads to
	return Binding{Address: text(binding["HostIp"]), Host: hostPort(text(binding["HostPort"])), Port: port, Protocol: cmp.Or(protocol, "tcp")}
}

// PublishedBy is a port that a container has on an engine now.
type PublishedBy struct {
	Binding
	Container string
}

// Taken says who has on this engine what a container of a name would publish; "" when
// nobody has it.
func (t Target) Taken(name string, b Binding) string {
	for _, p := range t.Published {
		own := p.Container == name || p.Container == name+stagedSuffix || p.Container == name+replacedSuffix
		if !own && p.collides(b) {
			return fmt.Sprintf("container %s publishes port %s there already", p.Container, b)
		}
	}
	return ""
}

// LeftOut are the ports that a container with these labels was made without, in order. A
// label that somebody has overwritten says nothing.
func LeftOut(labels map[string]string) (out []string) {
	var all map[string]any
	if labels[LabelUnpublished] == "" || unmarshalExact([]byte(labels[LabelUnpublished]), &all) != nil {
		return nil
	}
	for _, spec := range slices.Sorted(maps.Keys(all)) {
		for _, b := range list(all[spec]) {
			binding, _ := b.(map[string]any)
			out = append(out, bindingOf(spec, binding).String())
		}
	}
	return out
}

// publishes is what the engine is asked to publish for a container of this spec, in order. A
// range is as it was asked for: the engine chooses of it.
func (s Spec) publishes() (out []string, err error) {
	if len(s.HostConfig) == 0 {
		return nil, nil
	}
	var host map[string]any
	if err := unmarshalExact(s.HostConfig, &host); err != nil {
		return nil, fmt.Errorf("reading the configuration of container %s: %w", s.Name, err)
	}
	all, _ := host["PortBindings"].(map[string]any)
	for spec := range all {
		number, protocol, _ := strings.Cut(spec, "/")
		for _, b := range list(all[spec]) {
			binding, _ := b.(map[string]any)
			at := text(binding["HostPort"])
			if at == "0" {
				at = ""
			}
			out = append(out, fmt.Sprintf("%s/%s at %q %q", number, cmp.Or(protocol, "tcp"), text(binding["HostIp"]), at))
		}
	}
	slices.Sort(out)
	return out, nil
}

// Unpublished is the spec without those published ports for which why gives a reason, and
// the reasons. They stay known by a label, and are judged anew each time: so what is free
// again is published again. It is the same spec if there is nothing to change.
func (s Spec) Unpublished(why func(Binding) string) (out Spec, reasons []string, err error) {
	var host, config map[string]any
	if err := errors.Join(unmarshalExact(s.HostConfig, &host), unmarshalExact(s.Config, &config)); err != nil {
		return Spec{}, nil, fmt.Errorf("reading the configuration of container %s: %w", s.Name, err)
	}
	bindings, _ := host["PortBindings"].(map[string]any)
	labels, _ := config["Labels"].(map[string]any)
	was, had := labels[LabelUnpublished]
	var before map[string]any
	if had {
		// A label that somebody has overwritten says nothing; then nothing comes back.
		_ = unmarshalExact([]byte(text(was)), &before)
	}
	kept, left := map[string]any{}, map[string]any{}
	seen := map[Binding]bool{}
	for _, all := range []map[string]any{bindings, before} {
		for _, spec := range slices.Sorted(maps.Keys(all)) {
			for _, b := range list(all[spec]) {
				binding, _ := b.(map[string]any)
				at := bindingOf(spec, binding)
				if at.Host != 0 && seen[at] {
					continue // its user has published it once more
				}
				seen[at] = true
				to := kept
				if reason := why(at); reason != "" {
					to, reasons = left, append(reasons, reason)
				}
				to[spec] = append(list(to[spec]), b)
			}
		}
	}
	if len(left) == 0 && !had {
		return s, nil, nil
	}
	host["PortBindings"] = kept
	if labels == nil {
		labels = map[string]any{}
		config["Labels"] = labels
	}
	delete(labels, LabelUnpublished)
	if len(left) > 0 {
		b, err := json.Marshal(left)
		if err != nil {
			return Spec{}, nil, err
		}
		labels[LabelUnpublished] = string(b)
	}
	if s.HostConfig, err = json.Marshal(host); err != nil {
		return Spec{}, nil, err
	}
	s.Config, err = json.Marshal(config)
	return s, reasons, err
}
