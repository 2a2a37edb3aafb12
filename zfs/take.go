package zfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"
)

// takeProgram is a channel program that takes snapshots and reads what became of each,
// all in one transaction group: what `zfs snapshot` and a listing after it say, for one
// process instead of two. Each stands for itself: one that cannot be taken does not
// stop the others, which a command of many names does.
var takeProgram = program{op: "take", followed: true, text: `function(names)
	local answer = {}
	for i = 1, #names do
		local snap = names[i]
		local failed = zfs.sync.snapshot(snap)
		if failed ~= 0 then
			answer[snap] = {failed = failed}
		else
			answer[snap] = {` + tellSnapshot + `}
		end
	end
	return answer
end`}

// namedProgram tells of those of the snapshots that are there. The list of datasets
// stands still while it runs.
var namedProgram = program{op: "snapshots-named", reads: true, text: `function(names)
	local answer = {}
	for i = 1, #names do
		local snap = names[i]
		if zfs.exists(snap) then
			local clones = {}
			for clone in zfs.list.clones(snap) do
				clones[#clones + 1] = clone
			end
			answer[snap] = {userrefs = zfs.get_prop(snap, "userrefs"), clones = clones,` + tellSnapshot + `}
		end
	end
	return answer
end`}

// tellSnapshot are the figures that programs tell of a snapshot.
const tellSnapshot = `
				guid = zfs.get_prop(snap, "guid"),
				createtxg = zfs.get_prop(snap, "createtxg"),
				creation = zfs.get_prop(snap, "creation"),
				used = zfs.get_prop(snap, "used"),
				referenced = zfs.get_prop(snap, "referenced"),
				written = zfs.get_prop(snap, "written")
			`

const (
	// namesBatch bounds the snapshots of one program, for the memory that it may use.
	namesBatch = 1000
	// takeTries is how often a snapshot is tried whose dataset got another one in the
	// same transaction group, which ZFS does not do.
	takeTries = 4
)

// Take implements System.
func (h *Host) Take(ctx context.Context, names []string) (taken []Snapshot, failed map[string]error, err error) {
	byPool := map[string][]string{}
	seen := map[string]bool{}
	for _, name := range names {
		err := CheckSnapshot(name)
		dataset, _, _ := strings.Cut(name, "@")
		if err == nil && seen[dataset] {
			err = invalid("take", "two snapshots of "+dataset+" at once")
		}
		if err := check("take", err); err != nil {
			return nil, nil, err
		}
		seen[dataset] = true
		byPool[poolOf(name)] = append(byPool[poolOf(name)], name)
	}
	failed = map[string]error{}
	for _, pool := range slices.Sorted(maps.Keys(byPool)) {
		for batch := range slices.Chunk(byPool[pool], namesBatch) {
			part, errs, err := h.take(ctx, pool, batch)
			taken = append(taken, part...)
			maps.Copy(failed, errs)
			if err != nil {
				return taken, failed, err
			}
		}
	}
	return taken, failed, nil
}

func (h *Host) take(ctx context.Context, pool string, names []string) (taken []Snapshot, failed map[string]error, err error) {
	failed = map[string]error{}
	for try := 1; len(names) > 0; try++ {
		out, err := h.program(ctx, takeProgram, pool, names)
		if err != nil {
			return taken, failed, err
		}
		answers, err := parseTold(out)
		if err != nil {
			return taken, failed, &Error{Op: "take", Err: err}
		}
		var again []string
		for _, name := range names {
			a, told := answers[name]
			switch {
			case told && a.Failed == 0:
				taken = append(taken, a.snapshot(name))
			case told && a.Failed == int(syscall.EAGAIN) && try < takeTries:
				again = append(again, name)
			case told:
				failed[name] = takeError(name, a.Failed)
			default:
				return taken, failed, &Error{Op: "take", Names: []string{name}, Err: fmt.Errorf("zfs program says nothing of %s", name)}
			}
		}
		names = again
	}
	return taken, failed, nil
}

// SnapshotsNamed implements System.
func (h *Host) SnapshotsNamed(ctx context.Context, names []string) ([]Snapshot, error) {
	byPool := map[string][]string{}
	for _, name := range names {
		if err := check("snapshots-named", CheckSnapshot(name)); err != nil {
			return nil, err
		}
		byPool[poolOf(name)] = append(byPool[poolOf(name)], name)
	}
	var list []Snapshot
	for _, pool := range slices.Sorted(maps.Keys(byPool)) {
		for batch := range slices.Chunk(byPool[pool], namesBatch) {
			out, err := h.program(ctx, namedProgram, pool, batch)
			var e *Error
			if ctx.Err() == nil && errors.As(err, &e) && e.Kind == ErrNotFound && len(e.Names) == 0 {
				continue // the pool: of what is in it the program itself would have told
			}
			if err != nil {
				return nil, err
			}
			told, err := parseTold(out)
			if err != nil {
				return nil, &Error{Op: "snapshots-named", Err: err}
			}
			for name, t := range told {
				list = append(list, t.snapshot(name))
			}
		}
	}
	slices.SortFunc(list, func(a, b Snapshot) int {
		return cmp.Or(cmp.Compare(a.Dataset, b.Dataset), cmp.Compare(a.CreateTXG, b.CreateTXG))
	})
	return list, nil
}

// told is what a program says of one snapshot. Its numbers are signed, and a guid takes
// all 64 bits; its lists are objects with the keys "1", "2" and so on.
type told struct {
	Failed     int               `json:"failed"`
	GUID       int64             `json:"guid"`
	CreateTXG  int64             `json:"createtxg"`
	Creation   int64             `json:"creation"`
	Used       int64             `json:"used"`
	Referenced int64             `json:"referenced"`
	Written    int64             `json:"written"`
	UserRefs   int               `json:"userrefs"`
	Clones     map[string]string `json:"clones"`
}

func (t told) snapshot(name string) Snapshot {
	dataset, short, _ := strings.Cut(name, "@")
	return Snapshot{Dataset: dataset, Name: short, GUID: uint64(t.GUID), CreateTXG: uint64(t.CreateTXG), Creation: time.Unix(t.Creation, 0),
		Used: t.Used, Referenced: t.Referenced, Written: t.Written, UserRefs: t.UserRefs, Clones: slices.Sorted(maps.Values(t.Clones))}
}

// parseTold reads {"return": {snapshot: told}}.
func parseTold(out []byte) (map[string]told, error) {
	var answer map[string]told
	if err := parseReturn(out, &answer); err != nil {
		return nil, err
	}
	for name, t := range answer {
		if t.Failed == 0 && (t.GUID == 0 || t.CreateTXG <= 0) {
			return nil, fmt.Errorf("zfs program told no guid of %s", name)
		}
	}
	return answer, nil
}

func takeError(snap string, code int) error {
	errno := syscall.Errno(code)
	e := &Error{Op: "take", Names: []string{snap}, Err: fmt.Errorf("%s: %w", snap, errno)}
	switch errno {
	case syscall.ENOENT:
		e.Kind = ErrNotFound
	case syscall.EEXIST:
		e.Kind = ErrExists
	case syscall.EBUSY, syscall.EAGAIN, syscall.ETXTBSY:
		e.Kind = ErrBusy
	case syscall.ENOSPC, syscall.EDQUOT:
		e.Kind = ErrNoSpace
	}
	return e
}
