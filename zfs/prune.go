package zfs

import (
	"cmp"
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
	// Aged is one that was not taken lately: what its destruction needs may have to be read
	// from disk. It goes in a program with others of its kind, and fewer of them.
	Aged bool
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

// PruneBatch is the most snapshots of one program, PruneAged of those that are aged. DESIGN.md
// says why they are no more.
const (
	PruneBatch = 1000
	PruneAged  = 30
)

// While a program works on its snapshots, nothing is written to the pool. A pool that writes
// nothing for seconds (three with the shortest timers) costs its node the leases, so the
// work of one program is kept far below that. It is not what a program takes: that is also its
// start and its waiting for transaction groups, which is the same however many it has, and on
// a pool with writers most of the time. So that is found out by a program that has only one.
const (
	pruneFirst = 10                     // what a program has as long as nothing is known
	pruneFewer = 2                      // what one has at least, so that more is tried again
	pruneWork  = 500 * time.Millisecond // what the work of one may be
	pruneMuch  = 2 * pruneWork          // from here on it has fewer: times of waiting differ
	pruneWait  = 1500 * time.Millisecond
	pruneSure  = 16 // so many programs believe in a waiting time
	pruneRest  = 5 * time.Second
)

// pace is how many snapshots a program has: what was learnt from those before. The zero value
// has learnt nothing, and takes all of a program's time for work.
type pace struct {
	most int           // 0: nothing is known
	wait time.Duration // what of a program's time is not work; at most pruneWait
	sure int           // programs that go by it before it is looked at again
	// doubt is a program that took long. The next one has a single snapshot, and then it
	// is known what of that was work. None: zero.
	doubt ran
}

// ran is a program that has ended.
type ran struct {
	n    int // how many snapshots it had
	took time.Duration
}

// size is how many snapshots the next program has.
func (p pace) size() int {
	switch {
	case p.doubt.n > 0:
		return 1
	case p.most == 0:
		return pruneFirst
	}
	return p.most
}

// next is what becomes of it after a program, where none has more than limit; and for how long
// there should be no other. After one that worked for long that is as long again: there was
// but a group for all who waited.
func (p pace) next(r ran, limit int) (_ pace, rest time.Duration) {
	if p.most == 0 {
		p.most = pruneFirst
	}
	if r.n == 1 {
		// It waited for the rest of a group and its own, so another waits for up to twice as
		// long: this is the middle. More than pruneWait is a pool in trouble, and no reason
		// to give it more to do.
		p.wait, p.sure = min(r.took*3/2, pruneWait), pruneSure
		if work := p.doubt.took - p.wait; work > pruneMuch {
			p.most = max(int(float64(p.doubt.n)*float64(pruneWork)/float64(work)), pruneFewer)
			rest = min(work, pruneRest)
		}
		p.doubt = ran{}
		return p, rest
	}
	p.wait = min(p.wait, r.took)
	work := r.took - p.wait
	switch {
	case work > pruneMuch, work > pruneWork/2 && p.sure == 0:
		p.doubt = r
	case work <= pruneWork/2 && r.n == p.most:
		p.most = min(2*p.most, limit)
	}
	p.sure = max(p.sure-1, 0)
	return p, 0
}

// paceOf is of what a pace is learnt: what is quick with young snapshots says nothing of aged ones.
type paceOf struct {
	pool string
	aged bool
}

func (of paceOf) limit() int {
	if of.aged {
		return PruneAged
	}
	return PruneBatch
}

// batch is how many snapshots a program may have now.
func (h *Host) batch(of paceOf) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.paces[of].size()
}

// paced takes note of a program that has ended. One that failed may have been too much.
func (h *Host) paced(of paceOf, r ran, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p, rest := h.paces[of].next(r, of.limit())
	if err != nil {
		p = pace{}
	}
	h.paces[of] = p
	h.rests[of.pool] = time.Now().Add(rest)
}

// rested returns once a program may work on the pool again.
func (h *Host) rested(ctx context.Context, pool string) error {
	h.mu.Lock()
	rest := time.NewTimer(time.Until(h.rests[pool]))
	h.mu.Unlock()
	defer rest.Stop()
	select {
	case <-rest.C:
		return nil
	case <-ctx.Done():
		return &Error{Op: "prune", Err: context.Cause(ctx)}
	}
}

// Prune implements System.
func (h *Host) Prune(ctx context.Context, reqs []PruneRequest) (map[string]error, error) {
	failed := map[string]error{}
	lists := map[paceOf][]PruneRequest{}
	for _, r := range reqs {
		err := CheckSnapshot(r.Snapshot)
		if err == nil && r.Bookmark != "" {
			err = CheckBookmark(r.mark())
		}
		if err := check("prune", err); err != nil {
			failed[r.Snapshot] = err
			continue
		}
		of := paceOf{poolOf(r.Snapshot), r.Aged}
		lists[of] = append(lists[of], r)
	}
	inOrder := func(a, b paceOf) int { // the aged ones, which take long, at the end
		return cmp.Or(cmp.Compare(a.pool, b.pool), cmp.Compare(b.limit(), a.limit()))
	}
	for _, of := range slices.SortedFunc(maps.Keys(lists), inOrder) {
		for rest := lists[of]; len(rest) > 0; {
			n := min(len(rest), h.batch(of))
			errs, err := h.prune(ctx, of, rest[:n])
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

func (h *Host) prune(ctx context.Context, of paceOf, batch []PruneRequest) (map[string]error, error) {
	var args []string
	for _, r := range batch {
		args = append(args, r.Snapshot, r.mark())
	}
	if err := h.rested(ctx, of.pool); err != nil {
		return nil, err
	}
	began := time.Now()
	out, err := h.program(ctx, pruneProgram, of.pool, args)
	h.paced(of, ran{len(batch), time.Since(began)}, err)
	if err != nil {
		return nil, err
	}
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
				again = append(again, PruneRequest{Snapshot: r.Snapshot, Aged: r.Aged})
			}
		default:
			errs[r.Snapshot] = pruneError(r.Snapshot, code)
		}
	}
	if len(again) > 0 {
		more, err := h.prune(ctx, of, again)
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
