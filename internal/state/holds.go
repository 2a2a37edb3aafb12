package state

import (
	"fmt"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Bounds of what is held: it is in every state, and with every volume.
const (
	MaxHeld     = 100 // of one volume
	MaxHoldNote = 200 // bytes
)

// Hold keeps one snapshot of a volume, on every node that has it and whichever is the primary.
type Hold struct {
	GUID uint64        `json:"guid,string"`
	Name string        `json:"name"`           // of the snapshot, for people
	Node volume.NodeID `json:"node,omitempty"` // through which somebody asked for it
	Note string        `json:"note,omitempty"`
	At   time.Time     `json:"at"`
}

type (
	// HoldSnapshot keeps a snapshot from retention and from people until it is released. Held
	// again it gets the new note.
	HoldSnapshot struct {
		ID   volume.ID     `json:"id"`
		GUID uint64        `json:"guid,string"`
		Name string        `json:"name"`
		Node volume.NodeID `json:"node,omitempty"`
		Note string        `json:"note,omitempty"`
	}
	// ReleaseSnapshot ends that. One that is not held is no error.
	ReleaseSnapshot struct {
		ID   volume.ID `json:"id"`
		GUID uint64    `json:"guid,string"`
	}
)

func (HoldSnapshot) kind() string    { return "hold-snapshot" }
func (ReleaseSnapshot) kind() string { return "release-snapshot" }

// Hold is what holds a snapshot; nil: nothing.
func (v *Volume) Hold(guid uint64) *Hold {
	for i := range v.Held {
		if v.Held[i].GUID == guid {
			return &v.Held[i]
		}
	}
	return nil
}

func (t *txn) holdSnapshot(c HoldSnapshot) Result {
	v := t.s.Volume(c.ID)
	if v == nil || !v.Live() {
		return failed(volume.CodeNotFound, "no volume %s", c.ID)
	}
	old := v.Hold(c.GUID)
	switch {
	case c.GUID == 0 || c.Name == "":
		return failed(volume.CodeInvalid, "volume %q: no snapshot is named", v.Name)
	case len(c.Note) > MaxHoldNote:
		return failed(volume.CodeInvalid, "the note has %d bytes, at most %d are possible", len(c.Note), MaxHoldNote)
	case old == nil && len(v.Held) >= MaxHeld:
		return failed(volume.CodeRefused, "volume %q: %d snapshots are held already, and more are not", v.Name, len(v.Held))
	case old != nil && old.Note == c.Note:
		return Result{Volume: v.ID}
	}
	next := *v
	next.Held = slices.DeleteFunc(slices.Clone(v.Held), func(h Hold) bool { return h.GUID == c.GUID })
	next.Held = append(next.Held, Hold{GUID: c.GUID, Name: c.Name, Node: c.Node, Note: c.Note, At: t.at})
	t.putVolume(next)
	t.event(Event{Kind: "snapshot.held", Volume: v.ID, Name: v.Name, Node: c.Node, Message: fmt.Sprintf("snapshot %s of volume %s is held", c.Name, v.Name)})
	return Result{Volume: v.ID}
}

func (t *txn) releaseSnapshot(c ReleaseSnapshot) Result {
	v := t.s.Volume(c.ID)
	if v == nil || v.Hold(c.GUID) == nil {
		return Result{Volume: c.ID}
	}
	name := v.Hold(c.GUID).Name
	next := *v
	next.Held = slices.DeleteFunc(slices.Clone(v.Held), func(h Hold) bool { return h.GUID == c.GUID })
	if len(next.Held) == 0 {
		next.Held = nil
	}
	t.putVolume(next)
	t.event(Event{Kind: "snapshot.released", Volume: v.ID, Name: v.Name, Message: fmt.Sprintf("snapshot %s of volume %s is held no more", name, v.Name)})
	return Result{Volume: v.ID}
}
