package volume

import "time"

// Line is where a volume was last rolled back: from Epoch on its history goes on from the
// snapshot with this GUID, and whatever a copy of an earlier epoch holds beyond that is
// undone. The zero Line is a volume that never was.
type Line struct {
	Epoch Epoch  `json:"epoch"`
	GUID  uint64 `json:"guid,string"`
	// Snapshot is its name at that time, for people.
	Snapshot string `json:"snapshot"`
	// Taken is when the writing stopped, by the primary's clock: until then nothing was
	// written on this line.
	Taken time.Time `json:"taken,omitzero"`
}

// IsZero says that the volume was never rolled back.
func (l Line) IsZero() bool { return l.GUID == 0 }

// Start is where the line begins, as a position: above all that was taken in epochs before
// it, and below all that is taken on it. No snapshot has its name.
func (l Line) Start() Position { return Position{Epoch: l.Epoch, GUID: l.GUID, Taken: l.Taken} }
