package container

import (
	"context"
	"fmt"
	"io"
	"slices"
)

// Engine is what flocker asks of a container engine. Every method but Follow ends
// within a few seconds or with ctx. An error means "not known", never "none".
type Engine interface {
	Version(ctx context.Context) (Version, error)
	// Info is what the engine says of itself.
	Info(ctx context.Context) (Info, error)
	// Users are all containers, in any state, that mount a volume of our driver.
	Users(ctx context.Context) ([]Use, error)
	// Linking are the running containers that are to reach services by their names.
	Linking(ctx context.Context) ([]Linking, error)
	// Bound is what all containers, in any state, and the engine's own volumes have of the machine:
	// such a volume may be a directory somewhere else, or something be mounted on its own.
	Bound(ctx context.Context) ([]Bound, error)
	// LocalVolumes are the names of the engine's own volumes.
	LocalVolumes(ctx context.Context) ([]string, error)
	// Activate makes the engine find our driver: until its first use a driver is not
	// listed, and Swarm places nothing that needs it.
	Activate(ctx context.Context) error
	// Refused are the stopped containers that should be running by their restart policy
	// and are not because a mount of our driver failed at their last start. Engines do
	// not try those again.
	Refused(ctx context.Context) ([]Use, error)
	// StartAgain starts one of them, by ID. The engine calls our driver for it, so it
	// must not be called from a call of the driver.
	StartAgain(ctx context.Context, container string) error
	// Follow calls connected once events come in and changed after each one that may
	// concern volumes. It returns when ctx ends or the engine goes away. The functions
	// must not block.
	Follow(ctx context.Context, connected, changed func()) error
	Movers
	Images
	Swarm
}

// Movers are how a container comes to another node. What they are asked for may take
// minutes; all of it may be repeated.
type Movers interface {
	// Inspect a container by ID or name. ErrNotFound: there is none.
	Inspect(ctx context.Context, ref string) (Captured, error)
	// Target is what this engine has for containers that come.
	Target(ctx context.Context) (Target, error)
	// Recreate makes the container of a spec and starts it, and returns its ID. What is known says
	// which stopped container of the same name is removed after that; any other is an error. An ID
	// with an error: it runs, and what it replaced is still there.
	// The engine calls our driver for it. stays is asked about the container once it has been
	// started, or where an earlier call has made it; with an error of it, what was made is removed,
	// running or not, and what it was to replace has its name again; what somebody else has made and
	// this has started is stopped: a StoppedError. With ErrUndecided all stay, and a further call asks
	// again.
	Recreate(ctx context.Context, s Spec, known Known, stays func(ctx context.Context, id string) error) (id string, err error)
	// CleanUp removes what Recreate left of the container whose place that of a name has taken.
	CleanUp(ctx context.Context, name string) error
	// Discard removes what Recreate has made under a name, and what it was to replace has that again.
	// It fails for one that runs.
	Discard(ctx context.Context, name, id string) error
	// Said is the end of what a container has said, of either stream, that many lines of it
	// and no more than a few KiB.
	Said(ctx context.Context, id string, lines int) (string, error)
	// Exec runs a command in a running container, with its environment and as its user, and
	// returns what it says, the end of it; ctx ends the waiting, not the command. An error
	// says how it ended, an *ExitError its code; after any other but a NotBegun it may go on.
	Exec(ctx context.Context, id string, command []string) (output string, err error)
	// StopContainer stops one as its user would: it has its own time to end.
	StopContainer(ctx context.Context, id string) error
	// MakeNetworks makes the networks of a spec that this engine lacks, and returns the IDs of
	// those it has made, by name, also with an error. It may be repeated.
	MakeNetworks(ctx context.Context, s Spec) (made map[string]string, err error)
	// RemoveNetwork removes a network, by ID, unless a container has it, be that in any state:
	// ErrInUse. One that is gone is removed.
	RemoveNetwork(ctx context.Context, id string) error
	// Retire keeps a container from being started by the engine itself, for good.
	Retire(ctx context.Context, id string) error
}

// ExitError is of a command in a container that has ended, and not well.
type ExitError struct {
	Code int
	Said string
}

func (e *ExitError) Error() string { return fmt.Sprintf("it ended with code %d: %s", e.Code, e.Said) }

// NotBegun is of a command that was never begun.
type NotBegun struct{ Why error }

func (e NotBegun) Error() string { return e.Why.Error() }
func (e NotBegun) Unwrap() error { return e.Why }

// Images are moved without a registry.
type Images interface {
	// LocalImage is what this engine calls an image. ErrNotFound: it does not have it.
	LocalImage(ctx context.Context, i Image) (ref string, err error)
	// SaveImage is an image as an archive; ctx ends the stream. The caller closes it.
	SaveImage(ctx context.Context, i Image) (io.ReadCloser, error)
	// LoadImage takes what SaveImage of another engine gave. No name that an image here
	// has is taken away.
	LoadImage(ctx context.Context, i Image, archive io.Reader) error
}

// Version of an engine.
type Version struct {
	Engine string // "20.10.24"
	API    string // the one we speak with it
}

// Info is what an engine says of itself.
type Info struct {
	Version     string   // "20.10.24"
	LiveRestore bool     // containers outlive it
	Drivers     []string // of volumes, as far as it has found them
}

// Use is one container that mounts volumes of our driver.
type Use struct {
	Container string // ID
	Name      string // without the slash in front
	State     State
	Volumes   []Mount
	Labels    map[string]string
	Ports     Ports // without those published
}

// Bound is one directory or file of the machine in a container, or in a volume of the engine's own,
// which the next container of it gets.
type Bound struct {
	Name   string // of the container, or the volume
	State  State  // of the container
	Volume bool
	Source string // on the machine
}

// Mount is one volume in a container.
type Mount struct {
	Volume      string
	Driver      string
	Destination string
	ReadOnly    bool
}

// State of a container, in the engine's words.
type State string

// The states.
const (
	Created    State = "created"
	Running    State = "running"
	Paused     State = "paused"
	Restarting State = "restarting"
	Removing   State = "removing"
	Exited     State = "exited"
	Dead       State = "dead"
)

// Live says that the container has processes, or will have without being asked to
// start: in a restart loop Docker starts it again by itself.
func (s State) Live() bool {
	switch s {
	case Created, Exited, Dead, Removing:
		return false
	}
	return true // a state we do not know is in use
}

// Shadows are the volumes of ours that containers cannot reach by name on this node,
// because the engine has a local volume of the same name. Docker makes one when a
// container names a volume without its driver while our driver cannot be reached.
func Shadows(local []string, ours func(name string) bool) []string {
	var out []string
	for _, name := range local {
		if ours(name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
