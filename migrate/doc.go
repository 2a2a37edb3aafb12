// Package migrate will be one planned move of a volume together with its container
// from node to node, while clients stay connected: seed if needed, pre-copy rounds
// while writing goes on, pause the routes, stop the container, take the final copy,
// commit the handoff, start on the other side, resume the routes. Before the commit
// every failure goes back to the source with nothing lost; after the first byte to
// a client the move only goes forward.
//
// Next will be a pure function from what is known of the move to its next step, and
// Runner will do one step at a time, each safe to repeat. The package will declare
// what it needs of replication, of the proxy and of the engine as small interfaces,
// and import none of them. It will never choose the target (internal/placement) and
// never write the state (the commands go through the log).
//
// internal/agent will run it on a volume's primary; internal/daemon will wire it.
//
// Nothing of it is built yet. What exists is the handoff (state.BeginHandoff,
// CommitHandoff; internal/agent): when a container on a replica's node mounts an idle
// volume, its primary gives it up; and a drain, or `flockctl migrate`, hands volumes over
// with the containers that follow them, which are stopped meanwhile
// (internal/placement). A volume in other use is refused, with the name of who uses it.
package migrate
