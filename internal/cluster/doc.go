// Package cluster is one node's membership: its identity, the Raft node that runs
// internal/state, the join and renewal of members, the choice of voters, gossip as a
// hint, and leadership as a context. internal/daemon is its only caller.
//
// What it never does: look into volumes, grant leases, remove a node by itself, or
// let gossip decide anything. See DESIGN.md for how its parts fit.
package cluster
