// Package proxy is the front doors of volumes: ports that lead to the container on a
// volume's primary, and can be paused and resumed towards another node while clients
// stay connected. A Gate is the only way to the container's port. It follows protocols
// it knows message by message, so that it can tell when nothing is outstanding; what
// waits is bounded in number and in time and is refused in the protocol's own words
// when that runs out.
//
// It imports nothing of ours, knows nothing of volumes, epochs or Docker, and never
// decides when to pause: migrate will ask for it through internal/daemon, and cmd/flockd
// will run it as a process of its own (flockd proxy), which keeps its sockets when
// flockd is restarted.
//
// Nothing uses the gate yet: see DESIGN.md. Containers publish their ports by Docker's own
// means, and a container that moves gets the address of its new node.
package proxy
