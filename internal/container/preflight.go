package container

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Obstacle is something about a container that does not go with it to another node.
type Obstacle struct {
	// Kind is one of the kinds below. A container whose label flocker.allow names it is
	// made again all the same.
	Kind    string `json:"kind"`
	Message string `json:"message"`
	// Blocks: without being allowed, the container is not made again.
	Blocks bool `json:"blocks"`
}

func (o Obstacle) String() string { return o.Message }

// Kinds of obstacles.
const (
	HostPaths    = "host-paths"
	LocalVolumes = "local-volumes"
	Devices      = "devices"
	Partners     = "partners"
	Networks     = "networks"
	Addresses    = "addresses"
	Plugins      = "plugins"
	Lifetime     = "lifetime"
	Links        = "links"
)

// LabelAllow lists kinds of obstacles that the user has seen to on every node.
const LabelAllow = "flocker.allow"

// Target is what Preflight knows of the engine that a container is to go to.
type Target struct {
	// Known is false before anybody has asked it: then only the container is judged.
	Known    bool
	Networks []string
	// Subnets are those of its networks, of which none may be in another one.
	Subnets []SubnetOf
	// Containers are the IDs of all containers, in any state, by name.
	Containers map[string]string
	// Published are the ports that containers have on its node now.
	Published []PublishedBy
}

// SubnetOf a network.
type SubnetOf struct {
	Subnet  netip.Prefix
	Network string
}

// unmakeable says why a network that lacks cannot be made; "" where nothing is known to be in
// the way.
func (t Target) unmakeable(n Network) string {
	var def struct {
		IPAM struct{ Config []struct{ Subnet string } }
	}
	if len(n.Definition) == 0 {
		return "only bridge networks are made where they lack"
	}
	if err := unmarshalExact(n.Definition, &def); err != nil {
		return err.Error()
	}
	for _, pool := range def.IPAM.Config {
		subnet, err := netip.ParsePrefix(pool.Subnet)
		if err != nil {
			continue // the engine chooses, or says what is wrong
		}
		for _, s := range t.Subnets {
			if s.Subnet.Overlaps(subnet) {
				return fmt.Sprintf("its addresses %s are in use there by network %s (%s)", subnet, s.Network, s.Subnet)
			}
		}
	}
	return ""
}

// Preflight says what of a container cannot follow it to the target, those that block
// it first.
func Preflight(s Spec, driver string, target Target) []Obstacle {
	var host struct {
		NetworkMode, PidMode, IpcMode, UTSMode, UsernsMode, Cgroup, Runtime string
		Links, VolumesFrom                                                  []string
		Devices                                                             []struct{ PathOnHost string }
		DeviceRequests                                                      []struct{ Driver string }
		Privileged, AutoRemove                                              bool
		LogConfig                                                           struct{ Type string }
		PortBindings                                                        map[string][]struct{ HostIp, HostPort string }
		CgroupParent                                                        string
		ExtraHosts                                                          []string
	}
	var config struct{ Labels map[string]string }
	if err := unmarshalExact(s.HostConfig, &host); err != nil {
		return []Obstacle{{Partners, fmt.Sprintf("its configuration cannot be read: %v", err), true}}
	}
	if err := unmarshalExact(s.Config, &config); err != nil {
		return []Obstacle{{Partners, fmt.Sprintf("its configuration cannot be read: %v", err), true}}
	}
	allowed := strings.FieldsFunc(config.Labels[LabelAllow], func(r rune) bool { return r == ',' || r == ' ' })
	var out []Obstacle
	add := func(kind string, blocks bool, format string, args ...any) {
		o := Obstacle{kind, fmt.Sprintf(format, args...), blocks && !slices.Contains(allowed, kind)}
		if !slices.Contains(out, o) {
			out = append(out, o)
		}
	}

	for _, m := range s.Mounts {
		switch {
		case m.Type == "bind":
			add(HostPaths, true, "%s is the directory or file %s of its node", m.Destination, m.Source)
		case m.Type == "volume" && m.Driver == driver, m.Type == "tmpfs":
		case m.Type == "volume" && m.Name == "":
			add(LocalVolumes, false, "the volume without a name at %s begins empty", m.Destination)
		case m.Type == "volume":
			add(LocalVolumes, true, "%s is the volume %s of driver %s, which stays on its node", m.Destination, m.Name, m.Driver)
		default:
			add(HostPaths, true, "%s is a mount of type %s", m.Destination, m.Type)
		}
	}
	for _, d := range host.Devices {
		add(Devices, true, "it uses the device %s of its node", d.PathOnHost)
	}
	if len(host.DeviceRequests) > 0 {
		add(Devices, true, "it asks for devices such as GPUs")
	}
	if host.Privileged {
		add(Devices, false, "it is privileged and may use any device of its node")
	}

	for what, mode := range map[string]string{
		"network": host.NetworkMode, "process": host.PidMode, "IPC": host.IpcMode,
	} {
		if partner, ok := strings.CutPrefix(mode, "container:"); ok {
			add(Partners, true, "it shares the %s namespace of container %s", what, partner[:min(12, len(partner))])
		}
	}
	for _, link := range host.Links {
		name, _, _ := strings.Cut(strings.TrimPrefix(link, "/"), ":")
		add(Partners, true, "it is linked to container %s; use a network instead", name)
	}
	for _, from := range host.VolumesFrom {
		name, _, _ := strings.Cut(from, ":")
		add(Partners, true, "it takes volumes from container %s; name them instead", name)
	}

	if host.NetworkMode == "host" {
		add(Networks, false, "it has the network of its node: another node has other addresses, and its ports must be free there")
	}
	for _, n := range s.Networks {
		if !target.Known || predefined(n.Name) || slices.Contains(target.Networks, n.Name) {
			continue
		}
		if why := target.unmakeable(n); why != "" {
			add(Networks, true, "the network %s is not there and cannot be made: %s", n.Name, why)
		}
	}
	for _, bindings := range host.PortBindings {
		for _, b := range bindings {
			switch b.HostIp {
			case "", "0.0.0.0", "::", "127.0.0.1", "::1":
			default:
				add(Addresses, false, "port %s is published on %s, which the other node must have", b.HostPort, b.HostIp)
			}
		}
	}
	switch host.LogConfig.Type {
	case "", "json-file", "local", "journald", "syslog", "none", "fluentd", "gelf", "awslogs", "splunk", "gcplogs":
	default:
		add(Plugins, false, "its log driver %s must be on the other node too", host.LogConfig.Type)
	}
	switch host.Runtime {
	case "", "runc", "io.containerd.runc.v2":
	default:
		add(Plugins, false, "its runtime %s must be on the other node too", host.Runtime)
	}
	switch links, err := s.Links(); {
	case err != nil:
		add(Links, false, "%v", err)
	default:
		for _, h := range Unlinked(links, host.ExtraHosts) {
			if h.Address == "" {
				add(Links, false, "%s, which it gets with it when it is made again", h)
			} else {
				add(Links, false, "%s", h)
			}
		}
	}
	if host.AutoRemove {
		add(Lifetime, false, "it is removed when it stops (--rm), so it only follows when its node is lost while it runs")
	}
	slices.SortFunc(out, func(a, b Obstacle) int {
		if a.Blocks != b.Blocks {
			if a.Blocks {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Kind+a.Message, b.Kind+b.Message)
	})
	return out
}

// Blocked says that a container is not made again as things are.
func Blocked(obstacles []Obstacle) bool {
	return slices.ContainsFunc(obstacles, func(o Obstacle) bool { return o.Blocks })
}
