package placement

import (
	"hash/fnv"
	"math"

	"github.com/flocker-io/flocker/internal/volume"
)

// norms are the largest values among the fit nodes, so that each part of a score
// lies between 0 and 1 and the weights mean what they say.
type norms struct {
	primaries, replicas, copies int
	size                        int64
}

func (m *norms) add(n *NodeView) {
	m.primaries = max(m.primaries, n.Primaries)
	m.replicas = max(m.replicas, n.Replicas)
	m.copies = max(m.copies, n.Primaries+n.Replicas)
	m.size = max(m.size, n.Pool.Size)
}

// Weights of a score. Free space rules; then the work a node already has; the
// hash spreads volumes over nodes that are otherwise alike.
const (
	weightFree = 0.6
	weightRole = 0.25 // few copies in the role wanted
	weightAll  = 0.13 // few copies at all
	weightHash = 0.02 // less than three points of space: it decides only between likes
	// degradedFactor makes a pool that has lost redundancy a last resort, short of
	// refusing it: its data is whole, and a volume with a copy there is better off
	// than one without.
	degradedFactor = 0.25
)

// score of a fit node for a new copy, between 0 and 1; higher is better.
func (n *NodeView) score(role volume.Role, claim int64, key uint64, most norms) float64 {
	inRole := fewer(n.Replicas, most.replicas)
	if role == volume.RolePrimary {
		inRole = fewer(n.Primaries, most.primaries)
	}
	s := weightFree*(1-n.usage(claim)) +
		weightRole*inRole +
		weightAll*fewer(n.Primaries+n.Replicas, most.copies) +
		weightHash*n.rendezvous(key, most.size)
	if n.Pool.Health == poolDegraded {
		s *= degradedFactor
	}
	return s
}

func fewer(n, most int) float64 {
	if most == 0 {
		return 1
	}
	return 1 - float64(n)/float64(most)
}

// rendezvous is weighted rendezvous hashing: over many keys the node of the
// largest value is each node in proportion to its pool's size, and the value of
// one node never depends on which others there are.
func (n *NodeView) rendezvous(key uint64, largest int64) float64 {
	if largest <= 0 {
		return 0
	}
	u := (float64(mix(n.hash^key)>>11) + 0.5) / (1 << 53) // in (0, 1)
	weight := float64(n.Pool.Size) / float64(largest)
	return math.Pow(u, 1/weight)
}

// mix spreads every bit of x over all bits (the finaliser of splitmix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// keyOf a volume is what breaks ties for it.
func keyOf(id volume.ID) uint64 { return mix(hashOf(string(id))) }

func hashOf(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}
