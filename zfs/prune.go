package zfs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"
)

// PruneRequest is one snapshot to destroy, leaving a bookmark of it if asked.
type PruneRequest struct {
	Snapshot string // full name
	Bookmark string // short name of the bookmark in the same dataset; "" for none
}

// pruneProgram is a channel program: it runs inside the kernel in one transaction
// group, so that a whole pool is pruned by one process and one commit. Each
// snapshot stands for itself: one that is held does not stop the others. The
// bookmark comes first, and a snapshot without its bookmark stays. A bookmark that
// exists is told as 1000 more than its errno, since a program cannot read whose it
// is. ENOENT (2): gone already.
var pruneProgram = program{op: "prune", text: `function(names)
	local failed = {}
	for i = 1, #names, 2 do
		local snap, mark = names[i], names[i + 1]
		local err = 0
		if mark ~= "-" then
			if zfs.exists(snap) then
				err = zfs.sync.bookmark(snap, mark)
				if err ~= 0 then
					err = err + 1000
				end
			end
		end
		if err == 0 then
			err = zfs.sync.destroy(snap)
		end
		if err ~= 0 and err ~= 2 then
			failed[snap] = err
		end
	end
	return failed
end`}

// PruneBatch is the most snapshots of one program. DESIGN.md says why it is no more.
const PruneBatch = 1000

// A program holds up its transaction group, and so every writer of the pool, while it
// runs. So it begins with pruneLeast, and takes more only where that is quick.
const (
	pruneLeast = 100
	pruneQuick = 300 * time.Millisecond
	pruneSlow  = 700 * time.Millisecond
)

// nextBatch is how many snapshots a program takes of a pool whose last one had n of the
// most that it might have, and took so long.
func nextBatch(most, n int, took time.Duration) int {
	switch {
	case took > pruneSlow:
		return max(min(most, n)/2, pruneLeast)
	case took < pruneQuick && n == most:
		return min(2*most, PruneBatch)
	}
	return most
}

// batch is how many snapshots a program may have now.
func (h *Host) batch(pool string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(h.batches[pool], pruneLeast)
}

// paced takes note of how long a program took.
func (h *Host) paced(pool string, n int, took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.batches[pool] = nextBatch(max(h.batches[pool], pruneLeast), n, took)
}

// Prune implements System.
func (h *Host) Prune(ctx context.Context, reqs []PruneRequest) (map[string]error, error) {
	failed := map[string]error{}
	byPool := map[string][]PruneRequest{}
	for _, r := range reqs {
		err := CheckSnapshot(r.Snapshot)
		if err == nil && r.Bookmark != "" {
			err = CheckBookmark(r.mark())
		}
		if err := check("prune", err); err != nil {
			failed[r.Snapshot] = err
			continue
		}
		byPool[poolOf(r.Snapshot)] = append(byPool[poolOf(r.Snapshot)], r)
	}
	for _, pool := range slices.Sorted(maps.Keys(byPool)) {
		for rest := byPool[pool]; len(rest) > 0; {
			n := min(len(rest), h.batch(pool))
			errs, err := h.prune(ctx, pool, rest[:n])
			if err != nil {
				return failed, err
			}
			maps.Copy(failed, errs)
			rest = rest[n:]
		}
	}
	return failed, nil
}

func (r PruneRequest) mark() string {
	if r.Bookmark == "" {
		return "-"
	}
	dataset, _, _ := strings.Cut(r.Snapshot, "@")
	return dataset + "#" + r.Bookmark
}

func (h *Host) prune(ctx context.Context, pool string, batch []PruneRequest) (map[string]error, error) {
	var args []string
	for _, r := range batch {
		args = append(args, r.Snapshot, r.mark())
	}
	began := time.Now()
	out, err := h.program(ctx, pruneProgram, pool, args)
	if err != nil {
		return nil, err
	}
	h.paced(pool, len(batch), time.Since(began))
	codes, err := parsePruned(out)
	if err != nil {
		return nil, &Error{Op: "prune", Err: err}
	}

	// Those whose bookmark was there: the same one is success, and they go now.
	var again []PruneRequest
	errs := map[string]error{}
	for _, r := range batch {
		switch code := codes[r.Snapshot]; code {
		case 0:
		case markFailed + int(syscall.EEXIST):
			if err := h.Bookmark(ctx, r.Snapshot, r.mark()); err != nil {
				errs[r.Snapshot] = err
			} else {
				again = append(again, PruneRequest{Snapshot: r.Snapshot})
			}
		default:
			errs[r.Snapshot] = pruneError(r.Snapshot, code)
		}
	}
	if len(again) > 0 {
		more, err := h.prune(ctx, pool, again)
		if err != nil {
			return errs, err
		}
		maps.Copy(errs, more)
	}
	return errs, nil
}

// markFailed is what the program adds to the errno of a bookmark.
const markFailed = 1000

// parsePruned reads {"return": {snapshot: errno}}, which is empty when nothing failed.
func parsePruned(out []byte) (map[string]int, error) {
	var failed map[string]int
	err := parseReturn(out, &failed)
	return failed, err
}

func pruneError(snap string, code int) error {
	errno := syscall.Errno(code % markFailed)
	e := &Error{Op: "prune", Names: []string{snap}, Err: fmt.Errorf("%s: %w", snap, errno)}
	switch errno {
	case syscall.EBUSY:
		e.Kind = ErrBusy
	case syscall.EEXIST:
		e.Kind = ErrHasClones
	case syscall.ENOSPC, syscall.EDQUOT:
		e.Kind = ErrNoSpace
	}
	return e
}
