// Package proxy will be the front doors of volumes: TCP, HTTP and TLS ports that
// listen on every node, lead to the container on the volume's primary, and can be
// paused, retargeted and resumed while clients stay connected. An edge on any node
// passes a connection to the gate on the primary's node, the only way to the
// container's port; only the gate pauses, so that no agreement of the whole cluster
// is needed for it. Protocols it knows are followed message by message, so that it
// can tell when nothing is outstanding; what waits is bounded in number and in time
// and is refused in the protocol's own words when that runs out.
//
// It will run as a process of its own (flockd proxy) that keeps its sockets when
// flockd is restarted. It will import nothing of ours, know nothing of volumes,
// epochs or Docker, and never decide when to pause: migrate will ask for it through
// internal/daemon, and cmd/flockd will run it.
//
// Nothing of it is built yet. Containers publish their ports by Docker's own means,
// and a container that moves gets the address of its new node.
package proxy
