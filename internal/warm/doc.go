// Package warm is a container that is started before its volume may be written, and waits.
// Its first process is the gate, this program in the place of the image's own command, and
// where its volume belongs there is a placeholder that nothing can be written to. When this
// node has become the volume's primary the volume is put over the placeholder, in the
// container alone, and the gate becomes the container's command. What a start takes, namespaces
// and networks and control groups, is done by then.
//
// The gate believes nothing: it looks whether what it was told of is at the volume's path, and
// ends where it is not. It also ends when whoever opened its door is gone, so that after a
// restart of flockd nobody waits. Whether the volume may be written is not decided here: the
// agent says so, and has Inject called in the middle of it (MountInto). The node's side is
// internal/daemon/warm.go; the gate is run as `flockd gate`.
package warm
