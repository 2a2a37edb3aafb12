package agent

import (
	"fmt"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// Action is one step this node has to take for one volume.
type Action struct {
	Do     Step
	Volume volume.ID
}

// Step is what an Action does.
type Step string

// The steps, each safe to repeat.
const (
	StepCreate    Step = "create"     // make the dataset of a new volume
	StepConfirm   Step = "confirm"    // tell the cluster that it is there
	StepReplay    Step = "replay"     // have ZFS write what a loss of power left in its intent log
	StepPromote   Step = "promote"    // take over as primary: epoch, quota, mountpoint
	StepDemote    Step = "demote"     // drop what only a primary has
	StepUnmount   Step = "unmount"    // nobody uses it any more, or not ours to write
	StepRelease   Step = "release"    // give it up for a handoff
	StepAgree     Step = "agree"      // give it up for a removal
	StepToTrash   Step = "to-trash"   // rename the dataset into the trash
	StepFromTrash Step = "from-trash" // and back
	StepDestroy   Step = "destroy"    // the state gave the volume up
	StepGiveBack  Step = "give-back"  // it gave up a volume that was to be made of a set-aside copy
	StepDrop      Step = "drop"       // this node is no replica any more
)

func (a Action) String() string { return fmt.Sprintf("%s %s", a.Do, a.Volume) }

// Diff is what node self has to do so that its disk becomes what the state wants:
// at most one action per volume, in order of volume ID. inUse says which mounted
// volumes something on this node uses, or may use.
func Diff(s *state.State, got Actual, self volume.NodeID, inUse func(volume.ID) bool) []Action {
	if removed(s, self) {
		return nil // what is on its disk may be the last copy of what the cluster has given up
	}
	var out []Action
	for v := range s.Volumes() {
		if step := diffVolume(v, got, self, inUse); step != "" {
			out = append(out, Action{Do: step, Volume: v.ID})
		}
	}
	return out
}

// newHere are the volumes that node self has to make, whatever is on its disk. What one is made of that
// is there already, a set-aside copy or a dataset, needs a look.
func newHere(s *state.State, self volume.NodeID) (out []Action) {
	if removed(s, self) {
		return nil
	}
	for v := range s.Volumes() {
		if v.Phase == state.PhaseCreating && v.Placement.Primary == self && v.Adopt == "" {
			out = append(out, Action{Do: StepCreate, Volume: v.ID})
		}
	}
	return out
}

// removed says that a node is out of the cluster for ever.
func removed(s *state.State, self volume.NodeID) bool {
	n := s.Node(self)
	return n != nil && n.Removed
}

func diffVolume(v *state.Volume, got Actual, self volume.NodeID, inUse func(volume.ID) bool) Step {
	c, exists := got.Copies[v.ID]
	t, trashed := got.Trash[v.ID]
	role := v.Placement.Role(self)
	idle := exists && c.Mounted && !inUse(v.ID)

	if exists && c.Logged && !c.Mounted && v.Phase != state.PhasePurged {
		return StepReplay // before anything is done by what the dataset seems to hold
	}
	switch v.Phase {
	case state.PhaseTrash:
		switch {
		case exists && c.Mounted:
			return StepUnmount
		case exists && !trashed:
			return StepToTrash
		}
		return ""
	case state.PhasePurged:
		switch {
		case exists && isDataset(v.Adopt):
			return StepGiveBack // also when the machine mounted it where it was
		case isDataset(v.Adopt) && role == volume.RolePrimary && !got.Returned[v.ID]:
			return StepGiveBack // it may have come since the look, or have been unmounted for it
		case exists && c.Mounted:
			return StepUnmount
		case exists && v.Adopt != "":
			return StepGiveBack
		case exists || (trashed && !t.Mounted) || len(got.Parts[v.ID]) > 0:
			return StepDestroy
		}
		return ""
	}

	// A live volume.
	if trashed && !exists {
		return StepFromTrash
	}
	if role != volume.RolePrimary {
		switch {
		case exists && c.Mounted:
			return StepUnmount
		case exists && role == volume.RoleNone && v.Phase == state.PhaseActive:
			return StepDrop
		case exists && c.RefQuota != 0 && v.Phase != state.PhaseElecting: // it may be the primary again
			return StepDemote
		}
		return ""
	}
	switch v.Phase {
	case state.PhaseCreating:
		// Only a clone of the right snapshot is confirmed, and only a dataset that has become
		// like that of a volume.
		if !exists || v.Clone != nil || isDataset(v.Adopt) {
			return StepCreate
		}
		return StepConfirm
	case state.PhaseMoving:
		if exists && c.Epoch < v.Epoch {
			return StepPromote // it has to be this node's before it can be given away
		}
		return StepRelease
	case state.PhaseDeleting:
		return StepAgree
	}
	switch {
	case !exists && v.RolledBack != nil && len(got.Parts[v.ID]) > 0:
		return StepPromote // its rollback was cut short
	case !exists:
		return "" // reported as a problem; never replaced by an empty one
	case c.Epoch < v.Epoch || c.RefQuota != v.Spec.Size:
		return StepPromote
	case idle:
		return StepUnmount
	}
	return ""
}

// problem says in a sentence what is wrong with this node's copy; "" when nothing is.
func problem(v *state.Volume, got Actual, self volume.NodeID) string {
	c, exists := got.Copies[v.ID]
	role := v.Placement.Role(self)
	switch {
	case !v.Live():
		return ""
	case role == volume.RolePrimary && !exists && v.Phase != state.PhaseCreating:
		return "its dataset is missing on the primary; a replica still holds the data"
	case exists && c.Epoch > v.Epoch:
		return fmt.Sprintf("its dataset has accepted epoch %s, which the cluster does not know", c.Epoch)
	}
	return ""
}
