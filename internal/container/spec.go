package container

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// ErrNotFound means that the engine has no such container, image or network.
var ErrNotFound = errors.New("not found")

// ErrInUse means that a container has what is to be removed.
var ErrInUse = errors.New("in use")

// LabelEnable on a container, with the value "true", has it follow its volumes.
const LabelEnable = "flocker.enable"

// LabelMade is on what flocker makes on a node: the ID of the container, elsewhere, that it is
// made for. Once it has come up its record has its own ID, so what has the one that its record
// names was made here and has never been seen to come up; or its user has gone back to that
// container by hand, and then its record has this one's ID among those that it left.
const LabelMade = "flocker.made"

// labelSwarm is on the containers that Swarm makes. Swarm alone makes those again.
const labelSwarm = "com.docker.swarm.task"

// Followed says that a container with these labels goes where its volumes go.
func Followed(labels map[string]string) bool {
	if labels[LabelEnable] != "true" {
		return false
	}
	for k := range labels {
		if k == labelSwarm || strings.HasPrefix(k, labelSwarm+".") {
			return false
		}
	}
	return true
}

// Spec is how a container was made, as far as it can be made again on another machine.
// Config and HostConfig are the engine's own words, so that what this version of
// flocker does not know of is kept. A Spec holds secrets (the environment): whoever
// stores it seals it first.
type Spec struct {
	Name       string          `json:"name"`
	Image      Image           `json:"image"`
	Config     json.RawMessage `json:"config"`
	HostConfig json.RawMessage `json:"host_config"`
	Networks   []Network       `json:"networks,omitempty"` // by name
	Mounts     []MountPoint    `json:"mounts,omitempty"`   // by destination
}

// Image says which image a container runs. IDs differ between the image stores of
// engines, so that the layers count where the ID is not found.
type Image struct {
	ID     string `json:"id"`
	Ref    string `json:"ref"`              // what its user called it
	Layers string `json:"layers,omitempty"` // hash over its layers' IDs
}

// Network is one that a container is on.
type Network struct {
	Name string `json:"name"`
	// Endpoint is what the user asked of it: aliases, fixed addresses, options.
	Endpoint json.RawMessage `json:"endpoint"`
	// Definition is how to make the network where it is missing; empty for one that every
	// engine has, and for one that only a cluster of engines can make.
	Definition json.RawMessage `json:"definition,omitempty"`
	Driver     string          `json:"driver,omitempty"`
}

// MountPoint is one mount of a container, of any kind.
type MountPoint struct {
	Type        string `json:"type"` // volume, bind, tmpfs ...
	Name        string `json:"name,omitempty"`
	Driver      string `json:"driver,omitempty"`
	Source      string `json:"source,omitempty"` // of a bind
	Destination string `json:"destination"`
	ReadOnly    bool   `json:"read_only,omitempty"`
}

// Captured is what an engine says of one container now.
type Captured struct {
	ID       string
	State    State
	Started  bool   // it has run at least once
	Since    string // when it was started last, as its engine writes it: another one is another run
	ExitCode int    // of the last run
	Restarts int    // by its engine alone, since somebody has started it
	Error    string // why the last start failed
	Labels   map[string]string
	Spec     Spec
	Ports    Ports
}

// Volumes of a driver that the container mounts, by name, each once.
func (s Spec) Volumes(driver string) []string {
	var out []string
	for _, m := range s.Mounts {
		if m.Type == "volume" && m.Driver == driver {
			out = append(out, m.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// OwnNetworks are those networks that not every engine has, by name.
func (s Spec) OwnNetworks() (names []string) {
	for _, n := range s.Networks {
		if !predefined(n.Name) {
			names = append(names, n.Name)
		}
	}
	return names
}

// StartsAgain says that its engine starts the container again when it ends well.
func (s Spec) StartsAgain() bool {
	var host struct{ RestartPolicy struct{ Name string } }
	if err := unmarshalExact(s.HostConfig, &host); err != nil {
		return false
	}
	return host.RestartPolicy.Name == "always" || host.RestartPolicy.Name == "unless-stopped"
}

// GivenUp says that its engine does not start the container again though it is to run: it has done
// so as often as it was to, or could not. One that a person stopped has no error, and tries left.
func (c Captured) GivenUp() bool {
	var host struct {
		RestartPolicy struct {
			Name              string
			MaximumRetryCount int
		}
	}
	if c.State.Live() || !c.Started {
		return false
	}
	if err := unmarshalExact(c.Spec.HostConfig, &host); err != nil {
		return false
	}
	most := host.RestartPolicy.MaximumRetryCount
	return c.Error != "" || host.RestartPolicy.Name == "on-failure" && c.ExitCode != 0 && most > 0 && c.Restarts >= most
}

// spares says that an engine that removes a container with its nameless volumes leaves all of a
// driver alone. It does in any case with those that were mounted by a name, as ours always are.
func (s Spec) spares(driver string) bool {
	return !slices.ContainsFunc(s.Mounts, func(m MountPoint) bool {
		return m.Type == "volume" && m.Driver == driver && (m.Name == "" || anonymous(m.Name))
	})
}

// MadeFor is the spec with the label LabelMade. Capture does not give it back.
func (s Spec) MadeFor(id string) (Spec, error) {
	config := map[string]any{}
	if err := unmarshalExact(s.Config, &config); err != nil {
		return Spec{}, fmt.Errorf("reading the configuration of container %s: %w", s.Name, err)
	}
	labels, _ := config["Labels"].(map[string]any)
	if labels == nil {
		labels = map[string]any{}
		config["Labels"] = labels
	}
	labels[LabelMade] = id
	var err error
	s.Config, err = json.Marshal(config)
	return s, err
}

// madeFor is what MadeFor has put in, "" for nothing.
func (s Spec) madeFor() string {
	var config struct{ Labels map[string]string }
	if err := unmarshalExact(s.Config, &config); err != nil {
		return ""
	}
	return config.Labels[LabelMade]
}

// Encode gives equal bytes for equal specs.
func (s Spec) Encode() ([]byte, error) { return json.Marshal(s) }

// DecodeSpec reads what Encode wrote.
func DecodeSpec(b []byte) (Spec, error) {
	var s Spec
	if err := json.Unmarshal(b, &s); err != nil {
		return Spec{}, fmt.Errorf("reading the spec of a container: %w", err)
	}
	return s, nil
}

// inspection is what we read of the engine's answer. What is passed on as it is stays
// a map.
type inspection struct {
	ID    string `json:"Id"`
	Name  string
	Image string

	RestartCount int

	State struct {
		Status    string
		Error     string
		ExitCode  int
		StartedAt string
	}
	Config     map[string]any
	HostConfig map[string]any
	Mounts     []inspectedMount

	NetworkSettings struct {
		Networks map[string]map[string]any
	}
}

type inspectedMount struct {
	Type, Name, Source, Destination, Driver string
	RW                                      bool
}

// neverStarted is the StartedAt of a container that has not run yet.
const neverStarted = "0001-01-01T00:00:00Z"

// Capture makes a Spec of the engine's JSON about a container. What belongs to the
// machine or to this one container is left out: its ID, generated host name, addresses
// that nobody asked for. driver is the name of our volume driver. The image's layers
// and the networks' definitions are not in that JSON; the caller adds them.
func Capture(raw []byte, driver string) (Captured, error) {
	var in inspection
	if err := unmarshalExact(raw, &in); err != nil {
		return Captured{}, fmt.Errorf("reading what the engine says of a container: %w", err)
	}
	if in.ID == "" || in.Config == nil || in.HostConfig == nil {
		return Captured{}, errors.New("reading what the engine says of a container: it has no ID or no configuration")
	}
	if err := in.unwarm(); err != nil {
		return Captured{}, fmt.Errorf("container %s: %w", strings.TrimPrefix(in.Name, "/"), err)
	}
	c := Captured{
		ID: in.ID, State: State(in.State.Status), ExitCode: in.State.ExitCode, Restarts: in.RestartCount, Error: in.State.Error,
		Started: in.State.StartedAt != "" && in.State.StartedAt != neverStarted,
		Since:   in.State.StartedAt,
		Labels:  stringMap(in.Config["Labels"]),
		Ports:   in.portsOf(),
		Spec: Spec{
			Name:  strings.TrimPrefix(in.Name, "/"),
			Image: Image{ID: in.Image, Ref: text(in.Config["Image"])},
		},
	}
	if labels, ok := in.Config["Labels"].(map[string]any); ok {
		delete(labels, LabelMade)
	}
	for _, m := range in.Mounts {
		p := MountPoint{Type: m.Type, Name: m.Name, Driver: m.Driver, Destination: m.Destination, ReadOnly: !m.RW}
		if m.Type == "bind" {
			p.Source = m.Source
		}
		if m.Type == "volume" && anonymous(m.Name) && m.Driver != driver {
			p.Name = "" // another one is made with the container
		}
		c.Spec.Mounts = append(c.Spec.Mounts, p)
	}
	slices.SortFunc(c.Spec.Mounts, func(a, b MountPoint) int { return strings.Compare(a.Destination, b.Destination) })

	mode := text(in.HostConfig["NetworkMode"])
	for name, e := range in.NetworkSettings.Networks {
		// A network can be named by its ID, which is another one elsewhere.
		if id := text(e["NetworkID"]); len(mode) >= 12 && strings.HasPrefix(id, mode) {
			mode = name
			in.HostConfig["NetworkMode"] = name
		}
	}
	cleanConfig(in.Config, in.ID, mode, text(in.HostConfig["UTSMode"]))
	cleanHostConfig(in.HostConfig, c.Spec.Mounts, driver)
	for _, name := range slices.Sorted(maps.Keys(in.NetworkSettings.Networks)) {
		endpoint := cleanEndpoint(in.NetworkSettings.Networks[name], in.ID, predefined(name))
		b, err := json.Marshal(endpoint)
		if err != nil {
			return Captured{}, err
		}
		c.Spec.Networks = append(c.Spec.Networks, Network{Name: name, Endpoint: b})
	}
	var err error
	if c.Spec.Config, err = json.Marshal(in.Config); err != nil {
		return Captured{}, err
	}
	c.Spec.HostConfig, err = json.Marshal(in.HostConfig)
	return c, err
}

// cleanConfig takes out of a container's configuration what the engine has put in.
func cleanConfig(config map[string]any, id, networkMode, utsMode string) {
	// Without a name of its own a container is called by its ID; one in another's network
	// or with the host's name may not have one.
	borrowed := networkMode == "host" || strings.HasPrefix(networkMode, "container:") || utsMode == "host"
	if host := text(config["Hostname"]); borrowed || host != "" && strings.HasPrefix(id, host) {
		delete(config, "Hostname")
	}
	if borrowed {
		delete(config, "Domainname")
	}
	// One that was generated looks like one that was asked for, and two machines with one
	// address would take each other's packets.
	delete(config, "MacAddress")
	// The image's name is in Spec.Image; what is created is decided where it is.
	delete(config, "Image")
}

// cleanHostConfig also adds the volumes of ours that nothing in it names: those that
// the engine has made without a name.
func cleanHostConfig(host map[string]any, mounts []MountPoint, driver string) {
	delete(host, "ContainerIDFile") // a path of the old machine
	named := map[string]bool{}
	binds := list(host["Binds"])
	for _, b := range binds {
		if parts := strings.Split(text(b), ":"); len(parts) > 1 {
			named[parts[1]] = true
		}
	}
	for _, m := range list(host["Mounts"]) {
		if m, ok := m.(map[string]any); ok {
			named[text(m["Target"])] = true
		}
	}
	for _, m := range mounts {
		if m.Type != "volume" || m.Driver != driver || named[m.Destination] {
			continue
		}
		bind := m.Name + ":" + m.Destination
		if m.ReadOnly {
			bind += ":ro"
		}
		binds = append(binds, bind)
	}
	if len(binds) > 0 {
		host["Binds"] = binds
	}
}

// cleanEndpoint keeps of a network endpoint what a user can ask for.
func cleanEndpoint(e map[string]any, id string, predefined bool) map[string]any {
	out := map[string]any{}
	for _, key := range []string{"Links", "DriverOpts", "GwPriority"} {
		if v, ok := e[key]; ok && v != nil {
			out[key] = v
		}
	}
	if predefined {
		return out // engines refuse aliases and fixed addresses there
	}
	if v := e["IPAMConfig"]; v != nil {
		out["IPAMConfig"] = v
	}
	var aliases []any
	for _, a := range list(e["Aliases"]) {
		if !shortID(text(a), id) {
			aliases = append(aliases, a)
		}
	}
	if len(aliases) > 0 {
		out["Aliases"] = aliases
	}
	return out
}

// predefined says that every engine has a network of this name.
func predefined(network string) bool {
	return network == "bridge" || network == "host" || network == "none"
}

// shortID says that an alias is what the engine gives by itself: the ID's start.
func shortID(alias, id string) bool { return len(alias) == 12 && strings.HasPrefix(id, alias) }

// anonymous says that the engine made up a volume's name.
func anonymous(volume string) bool {
	return len(volume) == 64 && strings.Trim(volume, "0123456789abcdef") == ""
}

// layersOf hashes the IDs of an image's layers, in their order.
func layersOf(ids []string) string {
	if len(ids) == 0 {
		return ""
	}
	sum := sha256.Sum256([]byte(strings.Join(ids, "\n")))
	return hex.EncodeToString(sum[:])
}

// unmarshalExact keeps numbers as they are written: a memory limit does not fit into a
// float.
func unmarshalExact(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return d.Decode(v)
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

func stringMap(v any) map[string]string {
	m, _ := v.(map[string]any)
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, s := range m {
		out[k] = text(s)
	}
	return out
}
