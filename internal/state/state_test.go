package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

func TestDecodeUnknown(t *testing.T) {
	for name, entry := range map[string]string{
		"kind":    `{"v":1,"kind":"summon","body":{}}`,
		"version": `{"v":2,"kind":"purge-volume","body":{}}`,
		"field":   `{"v":1,"kind":"purge-volume","body":{"id":"a","really":true}}`,
	} {
		if _, err := Decode([]byte(entry)); !errors.Is(err, ErrUnknownCommand) {
			t.Errorf("unknown %s: got %v, want ErrUnknownCommand", name, err)
		}
	}
	for _, later := range []string{`{"format":2}`, `{"format":1,"routes":[]}`, `{"format":1,"nodes":[{"id":"a","mood":"good"}]}`} {
		if _, err := Unmarshal(strings.NewReader(later)); !errors.Is(err, ErrUnknownCommand) {
			t.Errorf("snapshot %s: got %v, want ErrUnknownCommand", later, err)
		}
	}
	if _, err := Unmarshal(strings.NewReader(`{"format":1,`)); err == nil || errors.Is(err, ErrUnknownCommand) {
		t.Errorf("half a snapshot: got %v", err)
	}
}

// Every command type must have a decoder under its own kind.
func TestEveryCommandDecodes(t *testing.T) {
	for kind, dec := range decoders {
		c, err := dec([]byte("{}"))
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if c.kind() != kind {
			t.Errorf("decoder %q makes a %q", kind, c.kind())
		}
		s, _ := Apply(New(), 1, Envelope{Command: InitCluster{Node: Node{ID: "n"}}})
		if _, res := Apply(s, 2, Envelope{Command: c}); res.Err != nil && res.Err.Message == fmt.Sprintf("command %s has no effect", kind) {
			t.Errorf("Apply has no case for %s", kind)
		}
	}
}

// A node brings nothing along that only the log can give. The number of a lease that its
// fencer remembers is over, and only keeps lower ones from being granted.
func TestJoinGrantsNothing(t *testing.T) {
	s, _ := Apply(New(), 1, Envelope{Command: InitCluster{Node: Node{ID: "n1", Name: "n1"}}})
	s, _ = Apply(s, 2, Envelope{Command: CreateToken{Token: Token{ID: "t", Expires: time.Unix(9, 0)}}})
	s, res := Apply(s, 3, Envelope{Command: AddNode{Token: "t", Node: Node{ID: "n2", Name: "n2", Removed: true, Lost: true, Lease: Lease{No: 7, Boot: "b", Round: 1}}}})
	if n := s.Node("n2"); res.Err != nil || n == nil || n.Removed || n.Lost || n.Lease != (Lease{No: 7, Revoked: true}) {
		t.Errorf("joined as %+v, %v", n, res.Err)
	}
}

func TestBounds(t *testing.T) {
	s := New()
	index := uint64(0)
	apply := func(c Command) {
		index++
		s, _ = Apply(s, index, Envelope{Request: fmt.Sprint(index), Command: c})
	}
	apply(InitCluster{Node: Node{ID: "n1", Name: "n1"}})
	for i := range maxRequests + 10 {
		id := volume.ID(fmt.Sprintf("%016x", i))
		apply(CreateVolume{ID: id, Name: string(id), Placement: volume.Placement{Primary: "n1"}})
		apply(ConfirmCreate{ID: id, Epoch: 1})
	}
	if got := s.events.Len(); got != maxEvents {
		t.Errorf("%d events are kept, want %d", got, maxEvents)
	}
	if got := s.requests.Len(); got != maxRequests || s.answered.Len() != got {
		t.Errorf("%d requests and %d places are kept, want %d", got, s.answered.Len(), maxRequests)
	}
}

func FuzzDecode(f *testing.F) {
	b, err := Encode(Envelope{Request: "r", At: time.Unix(1, 0), Command: BeginDelete{ID: "a", Epoch: 1, Attempt: "x"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"v":1,"kind":"create-volume","body":{"id":"a","name":"b"}}`))
	s, _ := Apply(New(), 1, Envelope{Command: InitCluster{Node: Node{ID: "n1"}}})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			return
		}
		next, _ := Apply(s, 2, e)
		if err := next.Holds(); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
	})
}

func BenchmarkApply(b *testing.B) {
	s, _ := Apply(New(), 1, Envelope{Command: InitCluster{Node: Node{ID: "n1", Name: "n1"}}})
	for i := range 10_000 {
		id := volume.ID(fmt.Sprintf("%016x", i))
		s, _ = Apply(s, uint64(i+2), Envelope{Command: CreateVolume{ID: id, Name: string(id), Placement: volume.Placement{Primary: "n1"}}})
	}
	b.ResetTimer()
	for i := range b.N {
		id := volume.ID(fmt.Sprintf("%016x", i%10_000))
		Apply(s, uint64(20_000+i), Envelope{Request: fmt.Sprint(i), Command: ConfirmCreate{ID: id, Epoch: 1}})
	}
}

// What is made of a set-aside copy goes on with the history of whose copy that was, as far as it is known to go back
// to a clone; of anything else nobody says what it has not gone through.
func TestDescent(t *testing.T) {
	clone := &CloneOf{Volume: "pg"}
	for _, tt := range []struct {
		name    string
		v       Volume
		descent []volume.ID
		through map[volume.ID]bool
	}{
		{"one that began empty", Volume{ID: "a"}, nil, map[volume.ID]bool{"a": true, "pg": true}},
		{"a clone", Volume{ID: "a", Clone: clone}, []volume.ID{"a"}, map[volume.ID]bool{"a": true, "pg": false, "b": false}},
		{"made of a clone's copy", Volume{ID: "b", Descends: []volume.ID{"a"}}, []volume.ID{"b", "a"}, map[volume.ID]bool{"a": true, "b": true, "pg": false}},
		{"made of a copy of that", Volume{ID: "c", Descends: []volume.ID{"b", "a"}}, []volume.ID{"c", "b", "a"}, map[volume.ID]bool{"a": true, "b": true, "c": true, "pg": false}},
		{"a clone of what was restored", Volume{ID: "d", Clone: &CloneOf{Volume: "b"}}, []volume.ID{"d"}, map[volume.ID]bool{"b": false, "a": false, "d": true}},
	} {
		if got := tt.v.Descent(); !slices.Equal(got, tt.descent) {
			t.Errorf("%s: what is made of a copy of it goes on with %v, want %v", tt.name, got, tt.descent)
		}
		for of, want := range tt.through {
			if got := tt.v.WentThrough(of); got != want {
				t.Errorf("%s: that it went through the history of %s is %v, want %v", tt.name, of, got, want)
			}
		}
	}
}
