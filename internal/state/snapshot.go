package state

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
)

// snapshot is the form of a whole State in a Raft snapshot.
type snapshot struct {
	Format     int          `json:"format"`
	Index      uint64       `json:"index"`
	Cluster    *Cluster     `json:"cluster"`
	Nodes      []*Node      `json:"nodes"`
	Volumes    []*Volume    `json:"volumes"`
	Tokens     []*Token     `json:"tokens"`
	Containers []*Container `json:"containers,omitempty"`
	Events     []*Event     `json:"events"`
	EventSeq   uint64       `json:"event_seq"`
	Requests   []*request   `json:"requests"`
}

const snapshotFormat = 1

// Marshal writes the whole state. Equal states give equal bytes.
func (s *State) Marshal(w io.Writer) error {
	requests := slices.SortedFunc(values(s.requests), func(a, b *request) int {
		return strings.Compare(a.ID, b.ID)
	})
	return json.NewEncoder(w).Encode(snapshot{
		Format: snapshotFormat, Index: s.Index, Cluster: s.cluster,
		Nodes: slices.Collect(values(s.nodes)), Volumes: slices.Collect(values(s.volumes)),
		Tokens: slices.Collect(values(s.tokens)), Containers: slices.Collect(values(s.containers)), Events: slices.Collect(values(s.events)),
		EventSeq: s.eventSeq, Requests: requests,
	})
}

// Unmarshal reads what Marshal wrote. The error wraps ErrUnknownCommand for a
// format or a field of a later release.
func Unmarshal(r io.Reader) (*State, error) {
	var snap snapshot
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&snap); err != nil {
		if strings.HasPrefix(err.Error(), "json: unknown field") { // encoding/json has no type for it
			err = fmt.Errorf("%w (%w)", ErrUnknownCommand, err)
		}
		return nil, fmt.Errorf("reading a snapshot of the state: %w", err)
	}
	if snap.Format != snapshotFormat {
		return nil, fmt.Errorf("reading a snapshot of the state: %w (format %d)", ErrUnknownCommand, snap.Format)
	}
	return stateOf(&snap), nil
}

func stateOf(snap *snapshot) *State {
	s := New()
	s.Index, s.cluster, s.eventSeq = snap.Index, snap.Cluster, snap.EventSeq
	for _, n := range snap.Nodes {
		s.nodes, _, _ = s.nodes.Insert([]byte(n.ID), n)
	}
	for _, v := range snap.Volumes {
		s.volumes, _, _ = s.volumes.Insert([]byte(v.ID), v)
		if v.Live() {
			s.names, _, _ = s.names.Insert([]byte(v.Name), v.ID)
		}
	}
	for _, t := range snap.Tokens {
		s.tokens, _, _ = s.tokens.Insert([]byte(t.ID), t)
	}
	for _, c := range snap.Containers {
		s.containers, _, _ = s.containers.Insert([]byte(c.RecordKey()), c)
	}
	for _, e := range snap.Events {
		s.events, _, _ = s.events.Insert(key64(e.Seq), e)
	}
	for _, q := range snap.Requests {
		s.requests, _, _ = s.requests.Insert([]byte(q.ID), q)
		s.answered, _, _ = s.answered.Insert(key64(q.Index), q.ID)
	}
	return s
}

// Holds checks what must be true of every state: names and records agree, no volume
// stands twice on one node, and none is left on a node whose lease was taken. It is
// for tests and for flockd's own doubts.
func (s *State) Holds() error {
	live := 0
	for v := range s.Volumes() {
		if v.Live() {
			live++
			if byName := s.VolumeByName(v.Name); byName == nil || byName.ID != v.ID {
				return fmt.Errorf("volume %s: its name %q leads elsewhere", v.ID, v.Name)
			}
		}
		if (v.Pending != nil) != (v.Phase == PhaseMoving || v.Phase == PhaseDeleting) {
			return fmt.Errorf("volume %s: phase %s and pending %v do not agree", v.ID, v.Phase, v.Pending)
		}
		// One that was given up while it had no primary has none for the rest of its time.
		electing, without := v.Phase == PhaseElecting, v.Placement.Primary == ""
		if electing != (v.Election != nil) || electing && !without || without && !electing && v.Phase != PhasePurged {
			return fmt.Errorf("volume %s: phase %s, election %v and primary %q do not agree", v.ID, v.Phase, v.Election, v.Placement.Primary)
		}
		if n := s.Node(v.Placement.Primary); n != nil && !n.Removed && v.Electable() && s.Stopped(n.ID) {
			return fmt.Errorf("volume %s: its primary %s may not write, and no other is looked for", v.ID, n.Name)
		}
		seen := map[volume.NodeID]bool{}
		for _, n := range v.Placement.Nodes() {
			if seen[n] {
				return fmt.Errorf("volume %s stands twice on node %s", v.ID, n)
			}
			seen[n] = true
		}
	}
	for c := range s.Containers() {
		for _, v := range c.Volumes {
			if s.Volume(v.ID) == nil {
				return fmt.Errorf("container %s has volume %s, which there is not", c.Name, v.ID)
			}
		}
		if c.Left[c.Node] != "" {
			return fmt.Errorf("container %s has left the node %s that it is on", c.Name, c.Node)
		}
	}
	if live != s.names.Len() {
		return fmt.Errorf("%d names for %d live volumes", s.names.Len(), live)
	}
	return nil
}
