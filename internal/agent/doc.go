// Package agent is the per-node loop: it compares what the replicated state wants
// of this node with what is on its disk, and acts until there is no difference.
// It makes datasets, mounts and unmounts them, gives volumes up for a handoff or a
// removal, tells replicate whom to send what, and reports.
//
// It decides nothing about the cluster: where volumes go is the leader's business
// (internal/placement), and a phase changes only by a command in the log. It never
// makes an empty dataset in place of a missing one and never destroys a copy that
// the state has not given up.
//
// internal/daemon makes one Agent per node and wires the plugin's Mount and Unmount
// to it. DESIGN.md beside this file tells how one writer is kept.
package agent
