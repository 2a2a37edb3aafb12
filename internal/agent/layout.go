package agent

import (
	"path"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
)

// Layout says where everything of flocker is on one node.
type Layout struct {
	Pool      string // zpool
	MountBase string // directory below which volumes are mounted
}

// Root holds the dataset of every copy.
func (l Layout) Root() string { return l.Pool + "/flocker" }

// Trash holds removed volumes until their retention ends.
func (l Layout) Trash() string { return l.Pool + "/flocker-trash" }

// Aside holds copies that were replaced but may contain the only copy of something.
func (l Layout) Aside() string { return l.Pool + "/flocker-aside" }

// Restores holds what is received from backups until it is whole.
func (l Layout) Restores() string { return l.Pool + "/flocker-restore" }

// Restore is what is received of one.
func (l Layout) Restore(id string) string { return l.Restores() + "/" + id }

// Dataset of a volume.
func (l Layout) Dataset(id volume.ID) string { return l.Root() + "/" + string(id) }

// TrashDataset of a removed volume.
func (l Layout) TrashDataset(id volume.ID) string { return l.Trash() + "/" + string(id) }

// Mountpoint of a volume's dataset.
func (l Layout) Mountpoint(id volume.ID) string { return path.Join(l.MountBase, string(id)) }

// DataDir is what containers get: a directory inside the dataset, so that an
// unmounted dataset can never be written by accident, or all of an imported one.
func (l Layout) DataDir(id volume.ID, spec volume.Spec) string {
	if spec.Whole() {
		return l.Mountpoint(id)
	}
	return path.Join(l.Mountpoint(id), "data")
}

// volumeIn is the volume whose dataset this is, if it stands directly below parent.
func volumeIn(parent, dataset string) (volume.ID, bool) {
	name, ok := strings.CutPrefix(dataset, parent+"/")
	if !ok {
		return "", false
	}
	id, err := volume.ParseID(name)
	return id, err == nil
}

// partOf is the volume whose part this dataset is: its ID, a dash, and more.
func partOf(parent, dataset string) (volume.ID, bool) {
	name, ok := strings.CutPrefix(dataset, parent+"/")
	id, _, dash := strings.Cut(name, "-")
	if !ok || !dash || strings.Contains(name, "/") {
		return "", false
	}
	vid, err := volume.ParseID(id)
	return vid, err == nil
}

// seedOf is the volume whose first copy is being received into this dataset.
func seedOf(parent, dataset string) (volume.ID, bool) {
	id, ok := partOf(parent, dataset)
	return id, ok && strings.HasPrefix(dataset, parent+"/"+string(id)+"-seed-")
}

// User properties on datasets.
const (
	propVolume = "flocker:volume"
	propAside  = "flocker:aside" // of a copy set aside: when, and why
	propEpoch  = "flocker:epoch"
	propLine   = "flocker:line" // of a copy that is known to be on a volume.Line: its Mark
)
