package cluster

import (
	"sync"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// addressBook finds the address of a node. The state has the agreed one. A node that
// has moved may have told us before the cluster could agree (which it cannot, when it
// is needed for the majority): then a hint is used as long as the state still says
// what it said when the hint came.
type addressBook struct {
	mu    sync.Mutex
	hints map[volume.NodeID]hint
	// joined are the addresses known from joining, until a state has come.
	joined map[volume.NodeID]string
}

type hint struct {
	addr    string
	instead string // the agreed address at that time
}

func (b *addressBook) init(peers []peer) {
	b.hints = map[volume.NodeID]hint{}
	b.joined = map[volume.NodeID]string{}
	for _, p := range peers {
		b.joined[p.Node] = p.Addr
	}
}

// learn that a node is said, by itself or by a member, to be at addr.
func (b *addressBook) learn(s *state.State, id volume.NodeID, addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hints[id] = hint{addr: addr, instead: agreedAddr(s, id)}
}

// find is "" when nothing is known.
func (b *addressBook) find(s *state.State, id volume.NodeID) string {
	addr, _ := b.lookUp(s, id)
	return addr
}

// lookUp is find, and says whether the address is only a hint.
func (b *addressBook) lookUp(s *state.State, id volume.NodeID) (addr string, hinted bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	agreed := agreedAddr(s, id)
	if h, ok := b.hints[id]; ok {
		if h.instead == agreed && h.addr != agreed {
			return h.addr, true
		}
		delete(b.hints, id)
	}
	if agreed != "" {
		return agreed, false
	}
	return b.joined[id], false
}

// forget a hint that did not work. If it was right, it will come again.
func (b *addressBook) forget(id volume.NodeID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.hints, id)
}

// peers are all known members but self.
func (b *addressBook) peers(s *state.State, self volume.NodeID) []volume.NodeID {
	var out []volume.NodeID
	for n := range s.Nodes() {
		if n.ID != self {
			out = append(out, n.ID)
		}
	}
	if len(out) > 0 {
		return out
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.joined {
		if id != self {
			out = append(out, id)
		}
	}
	return out
}

func agreedAddr(s *state.State, id volume.NodeID) string {
	if n := s.Node(id); n != nil {
		return n.Addr
	}
	return ""
}
