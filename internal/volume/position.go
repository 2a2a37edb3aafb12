package volume

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Position is the newest snapshot a copy holds. The GUID is its identity; epoch
// and sequence only order it. The zero Position is "nothing yet".
type Position struct {
	Epoch Epoch  `json:"epoch"`
	Seq   uint64 `json:"seq"`
	GUID  uint64 `json:"guid,string"`
	// Taken is when the primary took the snapshot, by the primary's wall clock; for
	// display and loss estimates, never for ordering.
	Taken time.Time `json:"taken,omitzero"`
}

// IsZero says that no snapshot is there.
func (p Position) IsZero() bool { return p.GUID == 0 }

// Compare orders by epoch, then sequence. Equal order does not mean equal GUID.
func (p Position) Compare(q Position) int {
	switch {
	case p.Epoch != q.Epoch:
		if p.Epoch < q.Epoch {
			return -1
		}
		return 1
	case p.Seq != q.Seq:
		if p.Seq < q.Seq {
			return -1
		}
		return 1
	}
	return 0
}

// Same says that both are the same snapshot. Times are not compared: one that was written down and
// read again may be another value of the same moment.
func (p Position) Same(q Position) bool { return p.Compare(q) == 0 && p.GUID == q.GUID }

// SnapshotName is the engine's name for this position: flk-<epoch>-<seq>, both
// zero-padded, so that the order of names is the order of snapshots.
func (p Position) SnapshotName() string {
	return fmt.Sprintf("%s%s-%012d", snapshotPrefix, p.Epoch, p.Seq)
}

const snapshotPrefix = "flk-"

// ParseSnapshotName reads what SnapshotName wrote; ok is false for every other
// name, which then belongs to a user.
func ParseSnapshotName(name string) (epoch Epoch, seq uint64, ok bool) {
	rest, found := strings.CutPrefix(name, snapshotPrefix)
	if !found {
		return 0, 0, false
	}
	e, s, found := strings.Cut(rest, "-")
	if !found || len(s) != 12 {
		return 0, 0, false
	}
	epoch, err := ParseEpoch(e)
	if err != nil {
		return 0, 0, false
	}
	seq, err = strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, 0, false
	}
	return epoch, seq, true
}
