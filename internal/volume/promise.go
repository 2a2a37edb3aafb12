package volume

import "time"

// Promise is what a node says of its copy of a volume when it is asked for one before
// another primary is chosen: it takes nothing of an epoch below Epoch any more, so that
// Newest stays what the copy holds.
type Promise struct {
	Epoch  Epoch `json:"epoch"`
	Exists bool  `json:"exists"` // a whole copy is on the disk
	// Newest is the newest complete engine snapshot, as read from the disk.
	Newest Position `json:"newest,omitzero"`
	// AsOf is the time, by the clock of the primary that took Newest, up to which the
	// copy provably holds all that was written. It is never later than that; zero: not
	// known.
	AsOf time.Time `json:"as_of,omitzero"`
	// Before says that the copy ends at or before what the volume was last rolled back to, so
	// that nothing in it is undone, though it has not got that snapshot.
	Before bool `json:"before,omitempty"`
}
