package transport

// Protocol is an ALPN name: what a connection to a node's port is for.
type Protocol string

// The protocols.
const (
	ProtoRaft   Protocol = "flk-raft/1"   // Raft's RPCs
	ProtoAPI    Protocol = "flk-api/1"    // the control API between nodes
	ProtoStream Protocol = "flk-stream/1" // snapshot streams
	ProtoImage  Protocol = "flk-image/1"  // images of containers
	ProtoProxy  Protocol = "flk-proxy/1"  // clients of routes, on a port of its own
	ProtoNode   Protocol = "flk-node/1"   // small requests between the members' cluster packages
	// ProtoJoin is for machines that are no members yet, or whose certificate has
	// expired: only the server shows a certificate.
	ProtoJoin Protocol = "flk-join/1"
)

// anonymous says that the client needs no certificate.
func (p Protocol) anonymous() bool { return p == ProtoJoin }

// bulk says that what the protocol carries yields to all other traffic.
func (p Protocol) bulk() bool { return p == ProtoStream || p == ProtoImage }
