// Package proxy is the front doors of volumes: ports on every node that lead to the
// container on a volume's primary, and can be paused and resumed towards another node while
// clients stay connected. A Gate follows the protocols it knows message by message, so that
// it can tell when nothing is outstanding; what waits is bounded in number and in time and
// is refused in the protocol's own words when that runs out. A Node has an edge, with a
// gate, for each route, and for each whose owner it is the door: the only way to the
// container's port, where pauses are decided.
//
// It imports nothing of ours, knows nothing of volumes or Docker, and never decides when
// to pause or who owns a route: internal/daemon asks for it, through a Client, and
// cmd/flockd runs a Node as a process of its own (flockd proxy), which keeps its
// connections when flockd is restarted. See DESIGN.md.
package proxy
