package state

import "github.com/flocker-io/flocker/internal/volume"

// Result is what Apply answers the proposer.
type Result struct {
	// Volume the command made or found, where it is about one.
	Volume volume.ID `json:"volume,omitempty"`
	// Reign that TakeLead began.
	Reign uint64 `json:"reign,omitempty"`
	// Err is why nothing was changed; nil when the command took effect or had
	// already.
	Err *volume.Error `json:"err,omitempty"`
}

// request remembers an answered command.
type request struct {
	ID     string `json:"id"`
	Index  uint64 `json:"index"`
	Result Result `json:"result"`
}
