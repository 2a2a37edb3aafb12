package container

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/warm"
)

// LabelPrestart on a container that follows its volume, with the value "true", has it
// started where it goes before the volume is there, and wait.
const LabelPrestart = "flocker.prestart"

// labelWarm is on a container that was started in this way, for good: what its own command
// and configuration are.
const labelWarm = "flocker.warm"

// warmSuffix ends the name of one that waits. It has no volume, and is none of its users.
const warmSuffix = ".flocker-warm"

// waits says that a container in an engine's list has yet to get its volume.
func waits(name string, labels map[string]string) bool {
	return labels[labelWarm] != "" && strings.HasSuffix(name, warmSuffix)
}

// Gate is what a waiting container is given of its node.
type Gate struct {
	Token   string // names the door
	Program string // path of this program on the node
	Door    string // directory of the door that is for the container
}

// warmFields is what of a waiting container's configuration is another one's: these fields, and
// the label.
var warmFields = map[string][]string{
	"Config":     {"Entrypoint", "Cmd", "WorkingDir"},
	"HostConfig": {"RestartPolicy", "Binds", "Mounts"},
}

type warmLabel struct {
	Token string                    `json:"token"`
	Was   map[string]map[string]any `json:"was"` // fields that there were, by the names of warmFields
}

// Prestarts says whether the container asks to be started ahead, and whether it can be: why
// is a reason against it.
func (s Spec) Prestarts(driver string) (asked bool, why string) {
	var config struct {
		Labels          map[string]string
		Entrypoint, Cmd []string
		Healthcheck     *struct{ Test []string }
	}
	var host struct {
		PortBindings                map[string]any
		Runtime, UsernsMode         string
		PublishAllPorts, AutoRemove bool
		Init                        *bool
	}
	if err := unmarshalExact(s.Config, &config); err != nil {
		return false, ""
	}
	if config.Labels[LabelPrestart] != "true" {
		return false, ""
	}
	if err := unmarshalExact(s.HostConfig, &host); err != nil {
		return true, "its configuration cannot be read: " + err.Error()
	}
	volume := ""
	for _, m := range s.Mounts {
		switch {
		case m.Type == "volume" && m.Driver == driver && volume != "":
			return true, "it mounts several volumes, or one twice"
		case m.Type == "volume" && m.Driver == driver && m.ReadOnly:
			return true, "it mounts its volume read-only"
		case m.Type == "volume" && m.Driver == driver:
			volume = m.Destination
		case m.Type == "volume" && m.Name == "":
			return true, "it has a volume without a name at " + m.Destination
		}
	}
	if volume == "" {
		return true, "it mounts no volume"
	}
	for _, m := range s.Mounts {
		if m.Destination != volume && below(m.Destination, volume) {
			return true, fmt.Sprintf("%s is mounted inside its volume", m.Destination)
		}
	}
	for _, at := range []string{warm.ProgramAt, warm.DoorAt} {
		if slices.ContainsFunc(s.Mounts, func(m MountPoint) bool { return below(at, m.Destination) || below(m.Destination, path.Dir(at)) }) {
			return true, path.Dir(at) + " is mounted in it"
		}
	}
	for _, n := range s.Networks {
		if !predefined(n.Name) {
			return true, fmt.Sprintf("it is on the network %s, where its names would lead to it while it waits", n.Name)
		}
	}
	switch {
	case len(config.Entrypoint)+len(config.Cmd) == 0:
		return true, "neither it nor its image names a command"
	case config.Healthcheck != nil && len(config.Healthcheck.Test) > 0 && config.Healthcheck.Test[0] != "NONE":
		return true, "it has a health check, which would judge it while it waits"
	case len(host.PortBindings) > 0 || host.PublishAllPorts:
		return true, "it publishes ports, which it would have while it waits; use routes"
	case host.Init != nil && *host.Init:
		return true, "its first process is the engine's (--init)"
	case host.AutoRemove:
		return true, "it is removed when it stops (--rm)"
	case host.UsernsMode != "" && host.UsernsMode != "host":
		return true, "it has a user namespace of its own"
	}
	switch host.Runtime {
	case "", "runc", "io.containerd.runc.v2":
	default:
		return true, "its runtime is " + host.Runtime
	}
	if _, err := s.Waiting(driver, Gate{}); err != nil {
		return true, err.Error()
	}
	return true, ""
}

// below says that a path is another one or inside it.
func below(at, dir string) bool {
	return at == dir || strings.HasPrefix(at, strings.TrimSuffix(dir, "/")+"/")
}

// VolumeAt is where the container mounts its only volume of a driver.
func (s Spec) VolumeAt(driver string) string {
	for _, m := range s.Mounts {
		if m.Type == "volume" && m.Driver == driver {
			return m.Destination
		}
	}
	return ""
}

// Waiting is the spec of the same container that waits behind a gate, and that no engine
// starts by itself. Capture gives the first one back.
func (s Spec) Waiting(driver string, g Gate) (Spec, error) {
	all := map[string]map[string]any{}
	for name, raw := range map[string]json.RawMessage{"Config": s.Config, "HostConfig": s.HostConfig} {
		fields := map[string]any{}
		if err := unmarshalExact(raw, &fields); err != nil {
			return Spec{}, fmt.Errorf("reading the configuration of container %s: %w", s.Name, err)
		}
		all[name] = fields
	}
	label := warmLabel{Token: g.Token, Was: map[string]map[string]any{}}
	for name, fields := range warmFields {
		label.Was[name] = map[string]any{}
		for _, f := range fields {
			if v, ok := all[name][f]; ok {
				label.Was[name][f] = v
			}
		}
	}
	encoded, err := json.Marshal(label)
	if err != nil {
		return Spec{}, err
	}
	config, host := all["Config"], all["HostConfig"]
	var command []string
	for _, field := range []string{"Entrypoint", "Cmd"} {
		for _, word := range list(config[field]) {
			command = append(command, text(word))
		}
	}
	labels, _ := config["Labels"].(map[string]any)
	if labels == nil {
		labels = map[string]any{}
	}
	labels[labelWarm] = string(encoded)
	config["Labels"] = labels
	at := s.VolumeAt(driver)
	config["Entrypoint"] = []string{warm.ProgramAt}
	config["Cmd"] = warm.Args(at, cmp.Or(text(config["WorkingDir"]), "/"), command)
	if below(path.Clean(text(config["WorkingDir"])), at) {
		config["WorkingDir"] = "/" // an engine makes one that is missing, which it cannot there
	}
	host["RestartPolicy"] = map[string]any{"Name": "no"}
	if err := uncopied(host, at); err != nil {
		return Spec{}, err
	}
	mounts := slices.Clone(list(host["Mounts"]))
	for from, to := range map[string]string{g.Program: warm.ProgramAt, g.Door: warm.DoorAt} {
		mounts = append(mounts, map[string]any{"Type": "bind", "Source": from, "Target": to, "ReadOnly": true})
	}
	host["Mounts"] = mounts
	if s.Config, err = json.Marshal(config); err != nil {
		return Spec{}, err
	}
	s.HostConfig, err = json.Marshal(host)
	return s, err
}

// uncopied has an engine not mount the volume when the container is created, as it does to
// fill an empty one from the image.
func uncopied(host map[string]any, at string) error {
	binds := slices.Clone(list(host["Binds"]))
	for i, b := range binds {
		parts := strings.Split(text(b), ":")
		if len(parts) < 2 || path.Clean(parts[1]) != at {
			continue
		}
		if mode := strings.Join(parts[2:], ":"); mode != "" && mode != "rw" && mode != "nocopy" {
			return fmt.Errorf("it mounts its volume with the option %s", mode)
		}
		binds[i] = parts[0] + ":" + parts[1] + ":nocopy"
		host["Binds"] = binds
		return nil
	}
	mounts := slices.Clone(list(host["Mounts"]))
	for i, m := range mounts {
		was, _ := m.(map[string]any)
		if path.Clean(text(was["Target"])) != at {
			continue
		}
		next := map[string]any{}
		for k, v := range was {
			next[k] = v
		}
		options := map[string]any{}
		given, _ := was["VolumeOptions"].(map[string]any)
		for k, v := range given {
			options[k] = v
		}
		if text(options["Subpath"]) != "" {
			return errors.New("it mounts a part of its volume")
		}
		options["NoCopy"] = true
		next["VolumeOptions"] = options
		mounts[i] = next
		host["Mounts"] = mounts
		return nil
	}
	return errors.New("its configuration does not say how it mounts its volume")
}

// execDir is the directory that a command is to be run in, in a container with such labels
// and such a directory; "": where its engine does it.
func execDir(labels map[string]string, now string) string {
	var label warmLabel
	if err := json.Unmarshal([]byte(labels[labelWarm]), &label); err != nil {
		return "" // it has none of ours
	}
	if was := text(label.Was["Config"]["WorkingDir"]); was != now {
		return was
	}
	return ""
}

// unwarm takes out of what an engine says of a container what Waiting has put in. A policy
// to start it again that it was given since is its own.
func (in *inspection) unwarm() error {
	labels, _ := in.Config["Labels"].(map[string]any)
	encoded, ok := labels[labelWarm]
	if !ok {
		return nil
	}
	var label warmLabel
	if err := unmarshalExact([]byte(text(encoded)), &label); err != nil || label.Was == nil {
		return fmt.Errorf("reading the label %s: %w", labelWarm, cmp.Or(err, errors.New("it says nothing")))
	}
	delete(labels, labelWarm)
	policy, _ := in.HostConfig["RestartPolicy"].(map[string]any)
	for name, now := range map[string]map[string]any{"Config": in.Config, "HostConfig": in.HostConfig} {
		for _, f := range warmFields[name] {
			if p := text(policy["Name"]); f == "RestartPolicy" && p != "" && p != "no" {
				continue
			}
			delete(now, f)
			if v, had := label.Was[name][f]; had {
				now[f] = v
			}
		}
	}
	in.Mounts = slices.DeleteFunc(in.Mounts, func(m inspectedMount) bool {
		return m.Destination == warm.ProgramAt || m.Destination == warm.DoorAt
	})
	return nil
}

// Waiter is a container that was started to wait, whether or not it has got its volume.
type Waiter struct {
	ID      string
	Name    string
	Token   string
	Live    bool
	AtGate  bool // its first process is the gate still; of Waiter alone
	Waiting bool // it has yet to get its volume, by its name
}

// Prestarter is an Engine that can have containers wait.
type Prestarter interface {
	// Prestart makes the container of a spec that Waiting has made, and starts it, beside
	// whatever has its name. With an error there is none, unless it returns its ID, too:
	// then it could not be removed.
	Prestart(ctx context.Context, waiting Spec) (id string, err error)
	// TakeUp is Recreate, but that the container is made already and waits: release gives it
	// its volume and has it go. Unless it ran it is gone then, and what it was to replace is
	// there; ran with an error: what it replaced is still there.
	TakeUp(ctx context.Context, s Spec, id string, known Known, release func(context.Context) error) (ran bool, err error)
	// EndWaiter removes one, running or not. Nothing is lost with one that has no volume.
	EndWaiter(ctx context.Context, id string) error
	// Waiters are all of them, as a list has them. Waiter is one, as it is now.
	Waiters(ctx context.Context) ([]Waiter, error)
	Waiter(ctx context.Context, id string) (Waiter, error)
	// Settle gives one the policy to start it again that it was recorded with.
	Settle(ctx context.Context, s Spec, id string) error
}

// prestart is Prestart.
func prestart(ctx context.Context, m Maker, waiting Spec) (string, error) {
	id, err := m.Create(ctx, waiting.Name+warmSuffix, waiting)
	if err != nil {
		return "", err
	}
	if err := m.Start(ctx, id); err != nil {
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		eerr := m.End(uctx, id)
		if eerr == nil || errors.Is(eerr, ErrNotFound) {
			return "", err
		}
		return id, errors.Join(err, fmt.Errorf("removing it: %w", eerr))
	}
	return id, nil
}

// namesTimeout is how long it may take to give containers their names.
const namesTimeout = 15 * time.Second

// TakeUp is Prestarter.TakeUp.
func TakeUp(ctx context.Context, m Maker, s Spec, id string, known Known, release func(context.Context) error) (ran bool, err error) {
	if err := takeUp(ctx, m, s, id, known, release); err != nil {
		return errors.Is(err, ErrUndecided), err
	}
	return true, CleanUp(ctx, m, s.Name)
}

// takeUp is TakeUp but for the last step.
func takeUp(ctx context.Context, m Maker, s Spec, id string, known Known, release func(context.Context) error) (err error) {
	defer func() {
		if !fails(err) {
			return
		}
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if eerr := m.End(uctx, id); eerr != nil && !errors.Is(eerr, ErrNotFound) {
			err = errors.Join(err, fmt.Errorf("removing what waited: %w", eerr))
			return
		}
		err = errors.Join(err, nameBack(uctx, m, s.Name))
	}()
	if err := takeName(ctx, m, s, id, known); err != nil {
		return err
	}
	return release(ctx)
}

// takeName gives what waits its name, and what has it another one.
func takeName(ctx context.Context, m Maker, s Spec, id string, known Known) error {
	ctx, cancel := context.WithTimeout(ctx, namesTimeout)
	defer cancel()
	there, err := predecessor(ctx, m, s, known, func(Captured) bool { return false })
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return err
	case there.State.Live():
		return fmt.Errorf("another container named %s runs on this node", s.Name)
	case ended(there, s, known):
		return fmt.Errorf("what was made of container %s before has ended, and how has to be seen first", s.Name)
	case !known.mayReplace(there, s): // what somebody has prepared never is in a place to be removed from
		return errTaken(s.Name)
	default:
		if err := stepAside(ctx, m, s.Name, there.ID); err != nil {
			return err
		}
	}
	return m.Rename(ctx, id, s.Name)
}
