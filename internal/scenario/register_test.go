package scenario

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/anishathalye/porcupine"

	"github.com/flocker-io/flocker/internal/volume"
)

// register is what clients may know of one name: the volume that has it, who is its
// primary in which epoch, and what is in the trash under that name. It is the whole
// specification that histories are checked against.
type register struct {
	id      volume.ID // "": none; someID: one that was made without its maker being told
	epoch   volume.Epoch
	primary volume.NodeID // "": not seen in this epoch
	trash   string        // IDs in order
}

const someID volume.ID = "?"

// call is what a client asked of a name.
type call struct {
	op   string // create, remove, undelete, read, promote
	name string
	id   volume.ID // of undelete
}

// answer is what it was told.
type answer struct {
	how answerKind
	// Of a read, a promotion, and the ID of a create. trash: it was found there.
	id      volume.ID
	epoch   volume.Epoch
	primary volume.NodeID
	trash   bool
}

type answerKind string

const (
	done     answerKind = "done"
	notFound answerKind = "not found"
	taken    answerKind = "conflict"
	unknown  answerKind = "unknown" // it may have happened, or happen yet
)

// registers is the model for the checker.
var registers = porcupine.Model{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		byName := map[string][]porcupine.Operation{}
		for _, op := range history {
			name := op.Input.(call).name
			byName[name] = append(byName[name], op)
		}
		for _, part := range byName {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return register{} },
	Step: func(s, in, out any) (bool, any) { return s.(register).step(in.(call), out.(answer)) },
	DescribeOperation: func(in, out any) string {
		return fmt.Sprintf("%+v -> %+v", in.(call), out.(answer))
	},
}

// step says whether the answer is right at this point, and what is then.
func (r register) step(c call, a answer) (bool, register) {
	switch c.op {
	case "create":
		switch a.how {
		case done:
			if r.id == "" {
				return !r.trashed(a.id), r.live(a.id)
			}
			return r.is(a.id), r.named(a.id)
		case taken:
			return r.id != "", r
		case unknown:
			if r.id == "" {
				return true, r.live(someID)
			}
			return true, r
		}
	case "remove":
		switch a.how {
		case done:
			// Of two who remove one volume at once, both are told so.
			return r.id != "" || r.trash != "", r.removed()
		case notFound:
			return r.id == "", r
		case unknown:
			return true, r.removed()
		}
	case "undelete":
		there := r.trashed(c.id) || r.trashed(someID)
		switch a.how {
		case done:
			return r.id == "" && there, r.restored(c.id)
		case notFound:
			return !r.trashed(c.id), r
		case taken:
			return r.id != "", r
		case unknown:
			if r.id == "" && there {
				return true, r.restored(c.id)
			}
			return true, r
		}
	case "read", "promote":
		switch {
		case a.how == notFound:
			return r.id == "" && r.trash == "", r
		case a.how == done && a.trash:
			if !r.trashed(a.id) && r.trashed(someID) {
				r = r.without(someID).with(a.id)
			}
			return r.id == "" && r.trashed(a.id), r
		case a.how == done:
			return r.is(a.id) && r.follows(a), r.seen(a)
		}
		return true, r // it told nothing
	}
	panic(fmt.Sprintf("no such step: %+v %+v", c, a))
}

func (r register) is(id volume.ID) bool { return r.id == id || r.id == someID && !r.trashed(id) }
func (r register) trashed(id volume.ID) bool {
	return slices.Contains(strings.Fields(r.trash), string(id))
}

// follows says that a primary may be seen now: an epoch has one, and they only rise.
func (r register) follows(a answer) bool {
	return a.epoch > r.epoch || a.epoch == r.epoch && (r.primary == "" || a.primary == r.primary)
}

func (r register) seen(a answer) register {
	r.id, r.epoch, r.primary = a.id, a.epoch, a.primary
	return r
}

func (r register) live(id volume.ID) register { return register{id: id, trash: r.trash} }

func (r register) named(id volume.ID) register {
	r.id = id
	return r
}

func (r register) removed() register {
	if r.id == "" {
		return r
	}
	return register{trash: r.trash}.with(r.id)
}

func (r register) restored(id volume.ID) register {
	if !r.trashed(id) {
		return r.without(someID).live(id)
	}
	return r.without(id).live(id)
}

func (r register) with(id volume.ID) register {
	ids := append(strings.Fields(r.trash), string(id))
	slices.Sort(ids)
	r.trash = strings.Join(ids, " ")
	return r
}

func (r register) without(id volume.ID) register {
	ids := strings.Fields(r.trash)
	if i := slices.Index(ids, string(id)); i >= 0 {
		ids = slices.Delete(ids, i, i+1)
	}
	r.trash = strings.Join(ids, " ")
	return r
}

// TestRegister: the model takes what may happen, and nothing else. Steps of a row follow
// each other; "|" makes the two around it overlap.
func TestRegister(t *testing.T) {
	read := func(id volume.ID, epoch volume.Epoch, primary volume.NodeID) (call, answer) {
		return call{op: "read"}, answer{how: done, id: id, epoch: epoch, primary: primary}
	}
	type row struct {
		what string
		ok   bool
		ops  []porcupine.Operation
	}
	at := int64(0)
	op := func(c call, a answer) porcupine.Operation {
		at += 2
		return porcupine.Operation{Input: c, Output: a, Call: at, Return: at + 1}
	}
	forever := func(o porcupine.Operation) porcupine.Operation {
		o.Return = 1 << 60
		return o
	}
	create, remove := call{op: "create"}, call{op: "remove"}
	ofA, gone := answer{how: done, id: "a"}, answer{how: notFound}
	for _, r := range []row{
		{"made, read, removed", true, []porcupine.Operation{
			op(create, ofA), op(read("a", 1, "n1")), op(remove, answer{how: done}), op(remove, gone)}},
		{"an older epoch is read after a newer one", false, []porcupine.Operation{
			op(create, ofA), op(read("a", 2, "n2")), op(read("a", 1, "n1"))}},
		{"two primaries in one epoch", false, []porcupine.Operation{
			op(create, ofA), op(read("a", 1, "n1")), op(read("a", 1, "n2"))}},
		{"an election, then its primary", true, []porcupine.Operation{
			op(create, ofA), op(read("a", 1, "n1")), op(read("a", 2, "")), op(read("a", 2, "n2"))}},
		{"what was made is not found", false, []porcupine.Operation{op(create, ofA), op(call{op: "read"}, gone)}},
		{"what was made is not found by its remover", false, []porcupine.Operation{op(create, ofA), op(remove, gone)}},
		{"removed, and there all the same", false, []porcupine.Operation{
			op(create, ofA), op(remove, answer{how: done}), op(read("a", 1, "n1"))}},
		{"made twice under one name", false, []porcupine.Operation{op(create, ofA), op(create, answer{how: done, id: "b"})}},
		{"an unknown create that happens late", true, []porcupine.Operation{
			forever(op(create, answer{how: unknown})), op(call{op: "read"}, gone), op(read("a", 1, "n1"))}},
		{"an unknown remove that happens late", true, []porcupine.Operation{
			op(create, ofA), forever(op(remove, answer{how: unknown})), op(read("a", 1, "n1")), op(remove, gone)}},
		{"an unknown remove does not make another volume", false, []porcupine.Operation{
			op(create, ofA), forever(op(remove, answer{how: unknown})), op(create, answer{how: done, id: "b"}), op(read("a", 1, "n1"))}},
		{"brought back", true, []porcupine.Operation{
			op(create, ofA), op(remove, answer{how: done}), op(call{op: "undelete", id: "a"}, answer{how: done}), op(read("a", 1, "n1"))}},
		{"brought back, and told that it is not there", false, []porcupine.Operation{
			op(create, ofA), op(remove, answer{how: done}), op(call{op: "undelete", id: "a"}, gone), op(read("a", 1, "n1"))}},
		{"brought back over another volume", false, []porcupine.Operation{
			op(create, ofA), op(remove, answer{how: done}), op(create, answer{how: done, id: "b"}), op(call{op: "undelete", id: "a"}, answer{how: done})}},
	} {
		if got := porcupine.CheckOperations(registers, r.ops); got != r.ok {
			t.Errorf("%s: linearizable=%v, want %v", r.what, got, r.ok)
		}
	}
}
