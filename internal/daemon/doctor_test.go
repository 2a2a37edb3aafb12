package daemon

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/doctor"
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
