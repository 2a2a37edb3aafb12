package placement

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// elect is a Failover of volume pg, which was on a node, in words like
//
//	elect was=n1 asked=4s life=20s start=1-90 failover=manual max-loss=1m created=1h home=z1 recovered
//	                         and prefer=, avoid= and zone= of its spec
//	                         and line=2: the volume was rolled back in that epoch, and no other began since;
//	                         2-passed: another one did, at the start of the line; kept=n2,n3: who had what is
//	                         undone besides n1, which rolled it back; kept=-: nobody
//	  n2 2-100 asof=21s      it promised: its position, and how long ago it was complete; taken=22s: the snapshot;
//	                         before: it ends before what the volume was rolled back to
//	  n3 none                no copy; err=TEXT: no answer but that; silent: none at all;
//	                         slow=TEXT: no answer yet, but that
//	  link n2 2-100 asof=21s lag=3M   what the old primary said last
//	  wish to=n2 accept      what an operator asks for
//	  promoted v1 n2         another volume is about to be there
//
// A position is EPOCH-SEQ, and its guid follows from that; 2-100x is another snapshot.
// Times are ago. An operator's answer and the old primary's life may be left out.
func (w *world) elect(t *testing.T, args string, lines []string) string {
	t.Helper()
	vol := &state.Volume{ID: "000000000000000a", Name: "pg", Phase: state.PhaseElecting, Epoch: 3,
		Spec: volume.DefaultSpec(), Created: now.Add(-time.Hour), Election: &state.Election{}}
	c := Contest{Volume: vol, Home: volume.DefaultZone, Answers: map[volume.NodeID]Answer{},
		Asked: 4 * time.Second, Grace: 3 * time.Second, Patience: 20 * time.Second, Forbearance: time.Minute}
	ago := func(s string) time.Time { return now.Add(-duration(t, s)) }
	for _, f := range strings.Fields(args) {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "was":
			vol.Election.Was = volume.NodeID(value)
		case "asked":
			c.Asked = duration(t, value)
		case "life":
			c.Life = ago(value)
		case "start":
			vol.Start = position(t, value)
		case "failover":
			vol.Spec.Failover = volume.Failover(value)
		case "max-loss":
			vol.Spec.MaxLoss = duration(t, value)
		case "created":
			vol.Created = ago(value)
		case "home":
			c.Home = volume.Zone(value)
		case "line":
			value, passed := strings.CutSuffix(value, "-passed")
			at := position(t, value+"-0")
			vol.RolledBack = &state.RolledBack{RollbackTo: state.RollbackTo{Snapshot: "before", GUID: at.GUID}, Epoch: at.Epoch, Passed: passed, Final: volume.Position{Epoch: at.Epoch - 1, Seq: 9, GUID: 9}}
			// Two times that were read from a snapshot of the state are of two zones, by their pointers.
			vol.RolledBack.Final.Taken = now.In(time.FixedZone("", 19800))
			vol.Start = vol.Line().Start()
			vol.Start.Taken = now.In(time.FixedZone("", 19800))
		case "kept":
			vol.RolledBack.Node = vol.Election.Was
			for _, id := range strings.Split(strings.Trim(value, "-"), ",") {
				vol.RolledBack.Kept = append(vol.RolledBack.Kept, volume.NodeID(id))
			}
		case "recovered":
			vol.Election.Recovered = true
		default:
			if !setSpec(t, &vol.Spec, key, value) {
				t.Fatalf("elect: unknown word %q", f)
			}
		}
	}
	for _, line := range lines {
		words := strings.Fields(line)
		if words[0] == "wish" {
			c.Wish = &Wish{}
			for _, f := range words[1:] {
				to, is := strings.CutPrefix(f, "to=")
				c.Wish.AcceptLoss = c.Wish.AcceptLoss || f == "accept"
				if is {
					c.Wish.To = volume.NodeID(to)
				}
			}
			continue
		}
		if words[0] == "promoted" {
			c.Promoted = map[volume.ID]volume.NodeID{volume.ID(words[1]): volume.NodeID(words[2])}
			continue
		}
		link := words[0] == "link"
		if link {
			words = words[1:]
		}
		id := volume.NodeID(words[0])
		var asOf time.Time
		var lag int64
		var taken time.Time
		before := false
		for _, f := range words[2:] {
			before = before || f == "before"
			if v, ok := strings.CutPrefix(f, "asof="); ok {
				asOf = ago(v)
			} else if v, ok := strings.CutPrefix(f, "lag="); ok {
				lag = parseBytes(t, v)
			} else if v, ok := strings.CutPrefix(f, "taken="); ok {
				taken = ago(v)
			}
		}
		if link {
			c.Links = append(c.Links, volume.LinkStatus{Replica: id, Acked: position(t, words[1]), CompleteAsOf: asOf, LagBytes: lag})
			continue
		}
		vol.Placement.Local = append(vol.Placement.Local, id)
		text, failed := strings.CutPrefix(strings.Join(words[1:], " "), "err=")
		late, slow := strings.CutPrefix(strings.Join(words[1:], " "), "slow=")
		switch {
		case slow:
			c.Answers[id] = Answer{Err: late, Silent: true}
		case failed:
			c.Answers[id] = Answer{Err: text}
		case words[1] == "none":
			c.Answers[id] = Answer{Promise: volume.Promise{Epoch: 3}}
		case words[1] != "silent":
			at := position(t, words[1])
			at.Taken = taken
			c.Answers[id] = Answer{Promise: volume.Promise{Epoch: 3, Exists: true, Newest: at, AsOf: asOf, Before: before}}
		}
	}
	got := Failover(w.view(), c)
	switch p := got.Promote; {
	case p != nil && got.Why+got.Again.String() != "0s":
		t.Fatalf("it promotes and waits: %+v", got)
	case p != nil:
		return fmt.Sprintf("promote %s at %d-%d, loss %s: %s", p.To, p.Start.Epoch, p.Start.Seq, missing(t, p), p.Note)
	case got.Again > 0 && got.Long:
		return fmt.Sprintf("for %s and long %s", got.Again, got.Why)
	case got.Again > 0:
		return fmt.Sprintf("for %s %s", got.Again, got.Why)
	}
	return "nobody: " + got.Why
}

// missing is the loss as a promotion tells it: in time, and in bytes where it says any.
func missing(t *testing.T, p *state.Promote) string {
	t.Helper()
	if p.Missing.Loss == nil {
		return "not bounded"
	}
	if *p.Missing.Loss != p.Loss {
		t.Errorf("it tells older versions of %s, others of %s", p.Loss, *p.Missing.Loss)
	}
	words := p.Loss.String()
	if b := p.Missing.Bytes; b != nil && *b > 0 {
		words += fmt.Sprintf(" and %d bytes", *b)
	}
	if (p.Missing.Bytes != nil && *p.Missing.Bytes == 0) != (p.Loss == 0) {
		t.Errorf("it lacks %s and %v bytes", p.Loss, p.Missing.Bytes)
	}
	return words
}

func position(t *testing.T, s string) volume.Position {
	t.Helper()
	other := uint64(0)
	if rest, ok := strings.CutSuffix(s, "x"); ok {
		s, other = rest, 1<<32
	}
	epoch, seq, _ := strings.Cut(s, "-")
	e, err1 := strconv.ParseUint(epoch, 10, 32)
	n, err2 := strconv.ParseUint(seq, 10, 32)
	if err1 != nil || err2 != nil {
		t.Fatalf("%q is no position", s)
	}
	if e == 0 {
		return volume.Position{}
	}
	return volume.Position{Epoch: volume.Epoch(e), Seq: n, GUID: other | e<<16 | n}
}
