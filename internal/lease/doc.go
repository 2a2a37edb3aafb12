// Package lease is the protocol by which a node holds the right to write, and by
// which that right is taken from it when the node is lost: both sides as pure state
// machines, with every moment passed in.
//
// A node has one lease, for all its volumes. The Raft log numbers it; the node's
// beats and the leader's answers keep it alive. It may write a volume while the
// replicated state names it primary and its lease runs (Holder). When the leader
// has not heard it for long enough (Keeper), the lease is revoked through the log,
// the epochs of its volumes rise, and other nodes may be promoted.
//
// What makes that safe:
//
//   - a lease runs from when its beat was sent, never from when the answer came;
//   - one that has run out is never revived: only a higher number, granted through
//     the log, brings the node back;
//   - the leader answers a beat only after a proof of its leadership that began after
//     the beat had arrived;
//   - it waits Timers.Promote, by its own clock, from the last beat it answered; a new
//     leader waits as long for every node, and so does one that was stopped for a
//     while and may have beats waiting to be read;
//   - Timers.Check holds: see there.
//
// The package does no I/O, reads no clock, starts no goroutine and stops no writer:
// internal/cluster and internal/fence will do that with it. What is assumed of
// clocks and machines is said at Timers.
package lease
