// Package migrate holds no code: it says where the planned move of a volume is, with the
// containers that run on it, from node to node while clients stay connected.
//
// A migration is a wish in the replicated state (internal/state: StartMigration,
// EndMigration), and whoever leads takes it a step further at each look, so that it
// outlives every process that was asked:
//
//   - internal/placement/migrate.go decides the next step, a pure function: a first copy,
//     the image, the handoff of all volumes of a company at once, or why it ends.
//   - internal/daemon/prestop.go does on the old primary what can be done ahead of the
//     pause, and company.go and router.go pause the routes and stop the containers.
//   - internal/agent/release.go unmounts, makes the final copy and commits the handoff, or
//     gives it up in time for the containers to run again where they were.
//   - internal/daemon/follow.go starts the containers on the new primary; if they do not
//     start, internal/placement/follow.go takes everything back.
//
// A drain hands volumes over in the same way (internal/placement/drain.go). docs/CONTAINERS.md
// is the user's side, docs/ARCHITECTURE.md has the walk, DESIGN.md all that clients wait for.
package migrate
