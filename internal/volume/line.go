package volume

import (
	"fmt"
	"strings"
	"time"
)

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
	// Base is the newest of the engine's snapshots at or before the one that it went back to;
	// zero: there was none, or it is not known.
	Base Position `json:"base,omitzero"`
}

// IsZero says that the volume was never rolled back.
func (l Line) IsZero() bool { return l.GUID == 0 }

// Start is where the line begins, as a position: above all that was taken in epochs before
// it, and below all that is taken on it. No snapshot has its name.
func (l Line) Start() Position { return Position{Epoch: l.Epoch, GUID: l.GUID, Taken: l.Taken} }

// Before says that a copy whose newest snapshot of all is this one ends at or before what the
// volume went back to, so that nothing in it is undone. Only one node takes snapshots in an
// epoch, so in that of Base the order tells; of copies that stopped in an earlier one it is not
// known.
func (l Line) Before(p Position) bool {
	return !l.Base.IsZero() && !p.IsZero() && p.Epoch == l.Base.Epoch && (p.Seq < l.Base.Seq || p.Same(l.Base))
}

// Mark is what a copy of a volume is marked with that is known to be on the line. It names the
// volume, because a copy that was set aside may become another one.
func (l Line) Mark(id ID) string { return fmt.Sprintf("%s %s %016x", id, l.Epoch, l.GUID) }

// Marked says that this mark of a volume's copy is one of the line, or of one that began on it
// later. An error is a mark that nobody has made.
func (l Line) Marked(id ID, mark string) (bool, error) {
	if l.IsZero() || mark == "" {
		return false, nil
	}
	words := strings.Fields(mark)
	if len(words) != 3 {
		return false, fmt.Errorf("%q is no mark of a line", mark)
	}
	epoch, err := ParseEpoch(words[1])
	if err != nil {
		return false, fmt.Errorf("%q is no mark of a line: %w", mark, err)
	}
	return words[0] == string(id) && epoch > l.Epoch || mark == l.Mark(id), nil
}
