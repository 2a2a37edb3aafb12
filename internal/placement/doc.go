// Package placement decides which nodes hold the copies of a volume, and keeps
// what the cluster has agreed on moving towards what users asked for.
//
// A View is one leader's picture of the cluster at one moment: the replicated
// state joined with what nodes have reported lately. Place, Repair and Decide are
// pure functions of a View, so equal Views give equal plans and every decision can
// be written down as a test. Controller is the thin loop around Decide that runs
// while this node leads.
//
// The package never touches a disk, a socket or Raft itself: it returns placements
// and state.Commands, and whoever owns the log proposes them. It never moves a
// primary, and never guesses about a node that it has not heard from: unknown is not a
// candidate, and not a proof that data is gone. It takes a replica away only when as
// many as were asked for are known to be whole without it; DESIGN.md says when.
//
// The control API calls Place when a volume is made; internal/daemon runs the
// Controller under the context of leadership.
package placement
