// Package lease will be the protocol by which a node holds the right to write, and
// by which that right is taken from it when it is lost: both sides of the lease, and
// of the promises that go before a promotion, as pure state machines with the clock
// and the timers passed in.
//
// A node has one lease, renewed by its report and counted from when that was sent,
// on a clock that also runs while the machine sleeps. An expired lease is never
// revived by a late answer. The leader takes a node's volumes away only after lease,
// fencing time and clock drift have passed, and a new leader waits that long for
// every node.
//
// The package will never do I/O, read a clock or stop a writer itself:
// internal/cluster will keep the leader's books with it, and internal/fence the
// node's deadline.
//
// Nothing of it is built yet. Until it is, nothing fails over by itself: a volume's
// primary changes only by a handoff that the old primary itself commits
// (state.CommitHandoff), and a volume whose node is lost waits for that node. How
// one writer is kept meanwhile is told in internal/agent/DESIGN.md; the freshness
// of reports (placement.ReportFresh) is a hint for choosing nodes and grants nothing.
package lease
