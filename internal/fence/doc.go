// Package fence will be the fencer: the small process (flockd fence) that makes
// sure that a node whose lease has run out can write no more. The daemon feeds it
// the deadline; when the deadline passes it freezes the containers that use our
// volumes, kills them, unmounts, and verifies that nobody is left, and where it
// cannot it resets the machine if the operator's policy says so.
//
// It will work without Docker, without the network and without the daemon, since
// it is needed exactly when those hang. It will never decide whether a lease has
// run out, only that its deadline has come, and never let one be extended after it
// has acted. Its only durable file is that deadline.
//
// internal/daemon will feed it and cmd/flockd will run it as a subcommand.
//
// Nothing of it is built yet, and nothing needs it yet: as long as no node is
// failed over (see internal/lease), no other node becomes primary while an old one
// may still write. Unmounting before a planned handoff is internal/agent's.
package fence
