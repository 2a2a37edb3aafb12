package zfs

import (
	"context"
	"encoding/json"
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
const takeProgram = `
local args = ...
local argv = args["argv"]
local answer = {}
for i = 1, #argv do
	local snap = argv[i]
	local failed = zfs.sync.snapshot(snap)
	if failed ~= 0 then
		answer[snap] = {failed = failed}
	else
		answer[snap] = {
			guid = zfs.get_prop(snap, "guid"),
			createtxg = zfs.get_prop(snap, "createtxg"),
			creation = zfs.get_prop(snap, "creation"),
			used = zfs.get_prop(snap, "used"),
			referenced = zfs.get_prop(snap, "referenced"),
			written = zfs.get_prop(snap, "written")
		}
	end
end
return answer
`

const (
	// takeBatch bounds the snapshots of one program, for the memory that it may use.
	takeBatch = 1000
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
		for batch := range slices.Chunk(byPool[pool], takeBatch) {
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
		out, err := h.program(ctx, "take", takeProgram, pool, names)
		if err != nil {
			return taken, failed, err
		}
		answers, err := parseTaken(out)
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

// takenAnswer is what the program says of one snapshot. Its numbers are signed, and a
// guid takes all 64 bits.
type takenAnswer struct {
	Failed     int   `json:"failed"`
	GUID       int64 `json:"guid"`
	CreateTXG  int64 `json:"createtxg"`
	Creation   int64 `json:"creation"`
	Used       int64 `json:"used"`
	Referenced int64 `json:"referenced"`
	Written    int64 `json:"written"`
}

func (a takenAnswer) snapshot(name string) Snapshot {
	dataset, short, _ := strings.Cut(name, "@")
	return Snapshot{Dataset: dataset, Name: short, GUID: uint64(a.GUID), CreateTXG: uint64(a.CreateTXG), Creation: time.Unix(a.Creation, 0),
		Used: a.Used, Referenced: a.Referenced, Written: a.Written}
}

// parseTaken reads {"return": {snapshot: answer}}.
func parseTaken(out []byte) (map[string]takenAnswer, error) {
	var answer struct {
		Return map[string]takenAnswer `json:"return"`
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return nil, fmt.Errorf("zfs program printed %.200q: %w", out, err)
	}
	for name, a := range answer.Return {
		if a.Failed == 0 && (a.GUID == 0 || a.CreateTXG <= 0) {
			return nil, fmt.Errorf("zfs program took %s and told no guid of it", name)
		}
	}
	return answer.Return, nil
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
