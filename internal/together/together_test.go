package together

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// asking counts how often a question is asked that takes a second and is answered with that number.
type asking struct {
	asks Asks[string, int]
	n    int
	fail int // the first so many
}

func (a *asking) ask(ctx context.Context, key string) (int, error) {
	return a.asks.Ask(ctx, key, func(context.Context) (int, error) {
		a.n++
		n := a.n
		time.Sleep(time.Second)
		if n <= a.fail {
			return 0, errors.New("not now")
		}
		return n, nil
	})
}

// Who comes while somebody asks does not get that answer, which may be older than what happened before he came, but shares the
// next one with all who came meanwhile.
func TestTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a asking
		got := make([]int, 10)
		var all sync.WaitGroup
		began := time.Now()
		for i := range got {
			all.Go(func() {
				time.Sleep(time.Duration(i) * 10 * time.Millisecond)
				var err error
				if got[i], err = a.ask(t.Context(), "k"); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for i, n := range got {
			if want := min(i, 1) + 1; n != want {
				t.Errorf("%d got answer %d, want %d", i, n, want)
			}
		}
		if took := time.Since(began); a.n != 2 || took != 2*time.Second {
			t.Errorf("asked %d times, in %v", a.n, took)
		}
		if n, err := a.ask(t.Context(), "k"); n != 3 || err != nil {
			t.Errorf("who comes later gets %d, %v, and wants a new answer", n, err)
		}
		if len(a.asks.open) != 0 {
			t.Errorf("left: %v", a.asks.open)
		}
	})
}

func TestTogetherFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := asking{fail: 1}
		impatient, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		var errs [4]error
		var all sync.WaitGroup
		for i := range errs {
			all.Go(func() {
				time.Sleep(time.Duration(i) * 10 * time.Millisecond)
				ctx := t.Context()
				if i == 1 {
					ctx = impatient
				}
				_, errs[i] = a.ask(ctx, "k")
			})
		}
		other := make(chan int)
		go func() {
			time.Sleep(10 * time.Millisecond)
			n, _ := a.asks.Ask(t.Context(), "another", func(context.Context) (int, error) { return 7, nil })
			other <- n
		}()
		began := time.Now()
		if n := <-other; n != 7 || time.Since(began) != 10*time.Millisecond {
			t.Errorf("another question got %d after %v", n, time.Since(began))
		}
		all.Wait()
		if errs[0] == nil || errs[0].Error() != "not now" || !errors.Is(errs[1], context.DeadlineExceeded) || errs[2] != nil || errs[3] != nil || a.n != 2 {
			t.Errorf("got %v by %d questions: an error is for who got it, and who gives up keeps nobody", errs, a.n)
		}
		if len(a.asks.open) != 0 {
			t.Errorf("left: %v", a.asks.open)
		}
	})
}
