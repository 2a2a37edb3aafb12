// Package state is the replicated state of the cluster: who its members are, which
// volumes exist, where they are placed, at which epoch and in which phase. A State
// is an immutable value; Apply makes the next one from a Command, as a pure
// function: no clock, no randomness, no logging, no I/O. Whoever proposes a command
// puts times and IDs into it. internal/cluster runs Apply inside Raft's FSM; every
// other part only reads States.
//
// What changes often (positions, lag, space, health) is not here: nodes report it
// to the leader, which keeps it in memory.
package state
