// Package scenario runs whole clusters in one process and one testing/synctest
// bubble: real daemons, real Raft, real replication, over an in-memory network,
// in-memory ZFS and in-memory container engines. Time is the bubble's, so hours pass
// in moments and every wait is exact.
//
// A World is driven by Go code, by a text script (see Script), or by scripts made at
// random (TestStorms), and checks the standing invariants of docs/ARCHITECTURE.md after
// every step. What clients were told is checked for linearizability (TestLinearizable).
package scenario
