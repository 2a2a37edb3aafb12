package daemon

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// readers are those who read snapshots of this node's datasets. ZFS can neither promote nor
// destroy what somebody has open: repairing a copy, or removing it, ends them. Otherwise a
// person with a pager could keep a volume without its replica.
type readers struct {
	mu   sync.Mutex
	open map[*snapshotReader]bool
	shut map[string]int // datasets of which no reader begins now, by name
}

type snapshotReader struct {
	dataset string
	cancel  context.CancelCauseFunc
	ended   chan struct{}
}

// errRepaired is what readers are ended with.
var errRepaired = volume.Errorf(volume.CodeUnavailable, "the copy is being repaired or removed").WithHint("try again")

// readersPatience is how long those who are ended may take to close what they have open.
const readersPatience = 5 * time.Second

// begin counts a reader of a dataset until end, which is called when everything of it is
// closed. What it does ends with the context that it gets.
func (r *readers) begin(ctx context.Context, dataset string) (_ context.Context, end func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.shut[dataset] > 0 {
		return nil, nil, errRepaired
	}
	ctx, cancel := context.WithCancelCause(ctx)
	x := &snapshotReader{dataset: dataset, cancel: cancel, ended: make(chan struct{})}
	if r.open == nil {
		r.open = map[*snapshotReader]bool{}
	}
	r.open[x] = true
	return ctx, sync.OnceFunc(func() {
		cancel(nil)
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.open, x)
		close(x.ended)
	}), nil
}

// idle says that nobody reads.
func (r *readers) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.open) == 0
}

// expel ends the readers of a dataset, and lets no others begin until admit is called.
func (r *readers) expel(ctx context.Context, dataset string) (admit func()) {
	r.mu.Lock()
	if r.shut == nil {
		r.shut = map[string]int{}
	}
	r.shut[dataset]++
	var wait []*snapshotReader
	for x := range r.open {
		if x.dataset == dataset {
			x.cancel(errRepaired)
			wait = append(wait, x)
		}
	}
	r.mu.Unlock()
	late := time.NewTimer(readersPatience)
	defer late.Stop()
	for _, x := range wait {
		select {
		case <-x.ended:
			continue
		case <-late.C: // ZFS says itself that it is busy
		case <-ctx.Done():
		}
		break
	}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.shut[dataset]--; r.shut[dataset] == 0 {
			delete(r.shut, dataset)
		}
	}
}

// renamed has the readers follow a dataset.
func (r *readers) renamed(from, to string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for x := range r.open {
		if x.dataset == from {
			x.dataset = to
		}
	}
}

// expelling is ZFS that ends who reads what is to be promoted away or destroyed.
type expelling struct {
	ZFS
	readers *readers
}

// Promote implements zfs.System. The snapshots that move are those of the origin.
func (z expelling) Promote(ctx context.Context, name string) error {
	if z.readers.idle() {
		return z.ZFS.Promote(ctx, name)
	}
	d, err := z.ZFS.Dataset(ctx, name)
	if err != nil {
		return err
	}
	origin, _, _ := strings.Cut(d.Origin, "@")
	defer z.readers.expel(ctx, origin)()
	return z.ZFS.Promote(ctx, name)
}

// Destroy implements zfs.System.
func (z expelling) Destroy(ctx context.Context, name string) error {
	defer z.readers.expel(ctx, name)()
	return z.ZFS.Destroy(ctx, name)
}

// Rename implements zfs.System.
func (z expelling) Rename(ctx context.Context, from, to string) error {
	err := z.ZFS.Rename(ctx, from, to)
	if err == nil {
		z.readers.renamed(from, to)
	}
	return err
}

// held is content that is closed when its context ends, whoever reads it: what is sent to
// somebody who takes nothing holds nothing on the disk any more.
type held struct {
	io.Reader
	ctx  context.Context
	end  func() error
	stop func() bool
}

func hold(ctx context.Context, body io.ReadCloser, end func()) *held {
	h := &held{Reader: body, ctx: ctx}
	h.end = sync.OnceValue(func() error {
		defer end()
		return body.Close()
	})
	h.stop = context.AfterFunc(ctx, func() { _ = h.end() }) // Close tells it
	return h
}

func (h *held) Read(p []byte) (int, error) {
	if h.ctx.Err() != nil {
		return 0, context.Cause(h.ctx)
	}
	n, err := h.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && h.ctx.Err() != nil {
		err = context.Cause(h.ctx)
	}
	return n, err
}

func (h *held) Close() error {
	h.stop()
	return h.end()
}
