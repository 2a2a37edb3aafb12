package fence

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/volume"
)

// Fencer answers flockd.
type Fencer struct {
	log  *slog.Logger
	file string
	now  func() lease.Moment

	mu sync.Mutex
	r  record
}

// New is the fencer of a machine in a boot, with what an earlier process has left in
// file.
func New(log *slog.Logger, file, boot string, now func() lease.Moment) *Fencer {
	r, err := load(file, boot)
	if err != nil {
		log.Error("all writers will be stopped", "err", err)
	}
	return &Fencer{log: log, file: file, now: now, r: r}
}

// Status is what Client.Status returns.
func (f *Fencer) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status()
}

func (f *Fencer) status() Status {
	s := f.r.status(f.now())
	s.Safety = volume.SafetySoftware
	return s
}

// do answers one request. What is to be remembered is written before the answer.
func (f *Fencer) do(r request) response {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.change(r)
	a := response{Status: f.status()}
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

func (f *Fencer) change(q request) error {
	r := f.r
	switch q.Do {
	case doStatus:
		return nil
	case doArm:
		if q.Lease == nil {
			return fmt.Errorf("arm: no lease is given")
		}
		if err := r.arm(*q.Lease); err != nil {
			return err
		}
	case doFence:
		r.stop(q.No, q.Reason)
	case doDisarm:
		if err := r.disarm(); err != nil {
			return err
		}
	case doForget:
		r.Fenced = append([]Victim(nil), r.Fenced...)
		r.forget(q.Containers)
	case doHold:
		r.hold(q.Root, q.Reason)
	case doLift:
		r.lift()
	default:
		return fmt.Errorf("the fencer does not know how to %q", q.Do)
	}
	err := r.save(f.file)
	if err != nil && !r.Over {
		// What would be forgotten was never said: the old deadline holds.
		return err
	}
	f.r = r
	return err
}
