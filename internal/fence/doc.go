// Package fence stops a node's writers when its right to write is over: the fencer, a
// small process (flockd fence) beside flockd. flockd feeds it the deadline of the
// lease; when that passes the fencer freezes and kills the containers and processes
// that use our volumes, unmounts, and verifies that nothing is left. Where it cannot
// it resets the machine, if the operator's policy says so.
//
// It works without Docker, without the network and without flockd, since it is needed
// exactly when those hang. It never decides whether a lease has run out, only that its
// deadline has come; it never lets one go on after it has begun to act; and as long as
// nobody arms it, it does nothing at all. What it must not forget, it keeps in a file
// that a reboot removes: all writers end with the machine.
//
// Decisions are pure: the rules of what may be asked are record's, what to do about what
// was seen is plan's. Fencer runs them, one round after another; Machine is the kernel.
// internal/daemon feeds it through Client, and cmd/flockd runs it as a subcommand.
package fence
