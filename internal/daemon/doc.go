// Package daemon builds one node out of the other packages and runs it: it is the
// only one that sees them all, and it holds the glue between them and nothing else.
//
// A Daemon without a cluster answers the control socket (so that `flockctl init`
// and `join` work) and tells Docker politely that there are no volumes yet. Once
// the node is a member, a member value holds everything that belongs to that
// membership: raft and gossip, the replication engine, the agent, the leader's
// controller, reports. cmd/flockd makes the Parts from the real machine; tests and
// internal/scenario make them from fakes.
package daemon
