package cluster

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Reports is the last report of every node: the leader's memory, and a copy of it on
// every other node. It is soft state: nothing is kept across a restart, and a new
// leader knows everything again after one heartbeat. Safe for use by many
// goroutines.
//
// Every entry has a revision, which means nothing but "another one than before". The
// leader numbers them from a random start, so that revisions of two leaders are never
// equal by accident; a follower asks with the revisions it has and takes what it
// gets.
type Reports struct {
	mu      sync.Mutex
	next    uint64
	entries map[volume.NodeID]entry
	changed chan struct{}
}

type entry struct {
	report   volume.Report
	rev      uint64
	received time.Time // by this process's clock
}

// Received is one node's last report.
type Received struct {
	Report volume.Report `json:"report"`
	Rev    uint64        `json:"rev,string"`
	Age    time.Duration `json:"age"` // since it reached the leader
}

// NewReports is empty.
func NewReports() *Reports {
	return &Reports{
		next:    rand.Uint64() &^ (1<<32 - 1),
		entries: map[volume.NodeID]entry{}, changed: make(chan struct{}),
	}
}

// Put notes a report that a node sent to this one; the revision is its number.
func (r *Reports) Put(rep volume.Report, received time.Time) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next++
	r.entries[rep.Node] = entry{report: rep, rev: r.next, received: received}
	r.notify()
	return r.next
}

// Get one node's.
func (r *Reports) Get(id volume.NodeID, now time.Time) (Received, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.entries[id]
	return e.at(now), ok
}

// All of them, in order of node ID.
func (r *Reports) All(now time.Time) []Received {
	return r.Since(nil, now)
}

// Since are the entries whose revision is another than the one known.
func (r *Reports) Since(known map[volume.NodeID]uint64, now time.Time) []Received {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Received
	for _, id := range slices.Sorted(maps.Keys(r.entries)) {
		e := r.entries[id]
		if rev, ok := known[id]; !ok || rev != e.rev {
			out = append(out, e.at(now))
		}
	}
	return out
}

// Revisions that this copy has, to ask the leader with.
func (r *Reports) Revisions() map[volume.NodeID]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[volume.NodeID]uint64, len(r.entries))
	for id, e := range r.entries {
		out[id] = e.rev
	}
	return out
}

// Merge takes over what the leader answered. Ages count on from now.
func (r *Reports) Merge(from []Received, now time.Time) {
	if len(from) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range from {
		r.entries[f.Report.Node] = entry{report: f.Report, rev: f.Rev, received: now.Add(-f.Age)}
	}
	r.notify()
}

// Forget a node that was removed.
func (r *Reports) Forget(id volume.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.entries, id)
}

// Changed is closed at the next Put or Merge.
func (r *Reports) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *Reports) notify() {
	close(r.changed)
	r.changed = make(chan struct{})
}

func (e entry) at(now time.Time) Received {
	return Received{Report: e.report, Rev: e.rev, Age: max(0, now.Sub(e.received))}
}
