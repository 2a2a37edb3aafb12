package plugin

import (
	"context"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Backend does what Docker asks. List answers at once from local memory, whatever state
// the cluster is in, and so does Get of what is known there. The others may wait, until
// ctx ends: the driver gives them less time than Docker waits, and what is not done by
// then must be undone or safe to ask for again. All may be called at the same time, for the same
// volume too. A *volume.Error is shown to the user as it is.
type Backend interface {
	// Create makes a volume. Making one that is there already is fine when the specs
	// are Equal, and a conflict when they are not.
	Create(ctx context.Context, name string, spec volume.Spec) error
	// Clone makes a volume with these options, of which volume.FromOption is one, on another
	// one's data. Making it again with the same options is fine, and with others a conflict.
	Clone(ctx context.Context, name string, opts map[string]string) error
	// Remove puts a volume into the trash; refused while it is mounted anywhere.
	Remove(ctx context.Context, name string) error
	// Mount makes the volume writable here for the mount ID, and returns the
	// directory for the container, which must exist. The same ID may come again.
	Mount(ctx context.Context, name, id string) (path string, err error)
	// Unmount takes back one Mount of that ID. One that is not known is no error.
	Unmount(ctx context.Context, name, id string) error
	// Get finds a volume. At an answer that there is none Docker forgets the volume, or has
	// it made, so others are asked before, for a few seconds at most: an engine that starts
	// asks for one volume after another. When nobody answers, ok is false for what was never
	// known here: no container here can use that, and nothing can be made meanwhile either.
	Get(ctx context.Context, name string) (info Info, ok bool)
	List() []Info
}

// Info is what Docker is told about a volume.
type Info struct {
	Name string
	// Mountpoint is the directory that Mount returned; empty while not mounted here.
	Mountpoint string
	Created    time.Time
	// Status is shown by `docker volume inspect`. Values must be JSON.
	Status map[string]any
}
