package volume

import "slices"

// Role is what one node is for one volume.
type Role string

// The roles. RoleNone is also what a node has for a volume it never heard of.
const (
	RoleNone    Role = ""
	RolePrimary Role = "primary"
	RoleReplica Role = "replica"
)

// Placement says which node holds the writable copy of a volume and which nodes
// hold followers of it: Local ones in the primary's zone, Remote ones in others.
// A node stands in it at most once.
type Placement struct {
	Primary NodeID   `json:"primary"`
	Local   []NodeID `json:"local,omitempty"`
	Remote  []NodeID `json:"remote,omitempty"`
}

// Replicas are all followers, local ones first.
func (p Placement) Replicas() []NodeID {
	return append(slices.Clone(p.Local), p.Remote...)
}

// Role of a node in this placement.
func (p Placement) Role(n NodeID) Role {
	switch {
	case n == "":
		return RoleNone
	case n == p.Primary:
		return RolePrimary
	case slices.Contains(p.Local, n), slices.Contains(p.Remote, n):
		return RoleReplica
	}
	return RoleNone
}

// Nodes are all nodes with a copy, the primary first.
func (p Placement) Nodes() []NodeID {
	if p.Primary == "" {
		return p.Replicas()
	}
	return append([]NodeID{p.Primary}, p.Replicas()...)
}

// Swap makes to the primary and gives the old primary the place to had.
func (p Placement) Swap(to NodeID) Placement {
	swap := func(ids []NodeID) []NodeID {
		out := slices.Clone(ids)
		for i, id := range out {
			if id == to {
				out[i] = p.Primary
			}
		}
		return out
	}
	return Placement{Primary: to, Local: swap(p.Local), Remote: swap(p.Remote)}
}
