// Package replicate keeps the copies of volumes alike. On a volume's primary it
// takes snapshots while data changes and streams them to the replicas; on a
// replica it receives them; on both it prunes what nobody needs any more.
//
// The agent tells it what this node should do (Engine.Assign), the daemon hands
// it connections (Config.Dial, Engine.ServeConn). It never decides who is primary,
// never mounts, never destroys a dataset, and never forces a receive: a copy that
// went its own way is set aside under another name.
//
// Decisions are pure functions (due, decide, nextHop, pickTurn, keep, linkState); the
// files with runners carry them out. DESIGN.md has the protocol, the crash table and
// the reasons.
package replicate
