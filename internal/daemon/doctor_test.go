package daemon

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/doctor"
	"github.com/flocker-io/flocker/zfs"
)

// A part that never answers keeps nobody waiting, is not asked twice, and is waited for at the
// end.
func TestGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a asking
		hang := make(chan struct{})
		var asked atomic.Int32
		parts := []part{
			{"good", func(context.Context) (func(*doctor.Facts), error) {
				return func(f *doctor.Facts) { f.Applied = 7 }, nil
			}},
			{"bad", func(context.Context) (func(*doctor.Facts), error) { return nil, errors.New("no such pool") }},
			{"half", func(context.Context) (func(*doctor.Facts), error) {
				return func(f *doctor.Facts) { f.Version = "told" }, errors.New("no features")
			}},
			{"hung", func(context.Context) (func(*doctor.Facts), error) {
				asked.Add(1)
				<-hang
				return func(f *doctor.Facts) { f.Applied = 0 }, nil
			}},
		}
		ask := func() (f doctor.Facts, took time.Duration) {
			began := time.Now()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			a.gather(ctx, &f, parts)
			return f, time.Since(began)
		}
		unknown := func(f doctor.Facts) string {
			var all []string
			for _, u := range f.Unknown {
				all = append(all, u.Check+": "+u.Why)
			}
			return strings.Join(all, "; ")
		}
		f, took := ask()
		if got, want := unknown(f), "bad: no such pool; half: no features; hung: no answer within 8s"; got != want || f.Applied != 7 || f.Version != "told" {
			t.Errorf("got %q, %+v; want %q", got, f, want)
		}
		if took != examineTimeout+time.Second {
			t.Errorf("it took %s", took)
		}
		f, took = ask()
		if got := unknown(f); !strings.Contains(got, "hung: it does not answer an earlier question either") || took != 0 || asked.Load() != 1 {
			t.Errorf("again: %q after %s, asked %d times", got, took, asked.Load())
		}
		close(hang)
		a.wait()
		if f, _ = ask(); strings.Contains(unknown(f), "hung") || asked.Load() != 2 {
			t.Errorf("when it answers again: %q", unknown(f))
		}
		a.wait()
	})
}

// Who asks while another does gets an answer of its own time, with all others that wait, and nobody is
// told that it does not answer.
func TestGatherAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a asking
		var asked atomic.Uint64
		parts := []part{{"slow", func(context.Context) (func(*doctor.Facts), error) {
			n := asked.Add(1)
			time.Sleep(3 * time.Second)
			return func(f *doctor.Facts) { f.Applied = n }, nil
		}}}
		var all sync.WaitGroup
		var got [3]doctor.Facts
		var took [3]time.Duration
		for i := range got {
			all.Go(func() {
				began := time.Now()
				a.gather(t.Context(), &got[i], parts)
				took[i] = time.Since(began)
			})
			synctest.Wait()
			time.Sleep(time.Second)
		}
		all.Wait()
		for i, want := range []uint64{1, 2, 2} {
			if got[i].Applied != want || len(got[i].Unknown) > 0 || took[i] > examineTimeout {
				t.Errorf("asker %d got the answer to question %d, %v after %s", i+1, got[i].Applied, got[i].Unknown, took[i])
			}
		}
		if asked.Load() != 2 {
			t.Errorf("asked %d times for three", asked.Load())
		}
		a.wait()
	})
}

// hanging is an Examiner of a machine whose ZFS never answers, and one whose files never do.
type hanging struct {
	until chan struct{}
	heeds *atomic.Int32 // how often what heeds its context has ended
}

func (h hanging) Clock() (*doctor.Clock, error) { <-h.until; return nil, nil }
func (h hanging) Mount() (*doctor.Mount, error) { return &doctor.Mount{Shared: true}, nil }
func (h hanging) Ports(ctx context.Context, _ bool) ([]doctor.Port, error) {
	<-ctx.Done()
	h.heeds.Add(1)
	return nil, context.Cause(ctx)
}
func (h hanging) Versions(context.Context) (zfs.Capabilities, error) {
	<-h.until
	return zfs.Capabilities{}, nil
}
func (h hanging) Features(context.Context, string) (map[string]string, error) { return nil, nil }

// The end of flockd does not wait for what hangs, since leases are not renewed meanwhile; neither does
// who asked.
func TestStopWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hanging{make(chan struct{}), new(atomic.Int32)}
		defer close(h.until)
		d := New(Parts{StateDir: t.TempDir(), Examiner: h})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- d.Run(ctx) }()
		synctest.Wait()
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			d.facts(t.Context(), nil) // by somebody who does not go away
		}()
		synctest.Wait()
		began := time.Now()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("flockd ended after %s", took)
		}
		if h.heeds.Load() != 1 {
			t.Error("what heeds the end of flockd was not told of it")
		}
		<-asked
		if took := time.Since(began); took > examineTimeout+time.Second {
			t.Errorf("the asker waited %s", took)
		}

		gone, leave := context.WithCancel(t.Context())
		leave()
		began = time.Now()
		other := New(Parts{StateDir: t.TempDir(), Examiner: h})
		other.asking.until(gone) // so that only the files hang
		other.facts(gone, nil)
		if took := time.Since(began); took != 0 {
			t.Errorf("one who has gone waited %s", took)
		}
	})
}

// The end waits for what ends soon.
func TestStopJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a asking
		ctx, stop := context.WithCancel(t.Context())
		a.until(ctx)
		var ended atomic.Bool
		go a.gather(t.Context(), &doctor.Facts{}, []part{{"soon", func(ctx context.Context) (func(*doctor.Facts), error) {
			<-ctx.Done()
			time.Sleep(100 * time.Millisecond)
			ended.Store(true)
			return nil, nil
		}}})
		synctest.Wait()
		stop()
		a.wait()
		if !ended.Load() {
			t.Error("left behind though it would have ended")
		}
	})
}
