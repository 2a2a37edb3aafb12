package container

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"
)

// Who waits for the list of somebody whom the engine does not answer is not kept until his own time is over.
func TestListingsPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l listings
		var all sync.WaitGroup
		hangs, release := context.WithCancel(t.Context())
		all.Go(func() {
			_, err := l.get(hangs, func(ctx context.Context) ([]container.Summary, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			})
			if err == nil {
				t.Error("the one that hangs has ended well")
			}
		})
		synctest.Wait()
		for range 3 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
				defer cancel()
				_, err := l.get(ctx, func(ctx context.Context) ([]container.Summary, error) {
					select {
					case <-time.After(callTimeout * 7 / 10): // a loaded machine
						return nil, nil
					case <-ctx.Done():
						return nil, ctx.Err()
					}
				})
				if err != nil {
					t.Errorf("it has waited for another's list: %v", err)
				}
			})
		}
		time.Sleep(callTimeout)
		release()
		all.Wait()
	})
}

// lister counts lists, and answers each when it is told to.
type lister struct {
	mu     sync.Mutex
	begun  int
	answer chan error
}

func (l *lister) list(ctx context.Context) ([]container.Summary, error) {
	l.mu.Lock()
	l.begun++
	n := l.begun
	l.mu.Unlock()
	select {
	case err := <-l.answer:
		return []container.Summary{{ID: fmt.Sprint(n)}}, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// However many ask while a list is made, the next one is for all of them: none gets one that began
// before he asked, and what one of them gives up the others do not.
func TestListings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l listings
		made := &lister{answer: make(chan error)}
		var mu sync.Mutex
		got := map[string]string{} // who asked, and which list it was, or the error
		var all sync.WaitGroup
		ask := func(ctx context.Context, who string) {
			all.Go(func() {
				list, err := l.get(ctx, made.list)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					got[who] = err.Error()
					return
				}
				got[who] = list[0].ID
			})
			synctest.Wait()
		}
		want := func(what string, begun int, want map[string]string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			made.mu.Lock()
			defer made.mu.Unlock()
			if made.begun != begun || !maps.Equal(got, want) {
				t.Fatalf("%s: %d lists have begun, answers %v; want %d and %v", what, made.begun, got, begun, want)
			}
		}

		ask(t.Context(), "a")
		for _, who := range []string{"b", "c", "d"} {
			ask(t.Context(), who)
		}
		want("one lists, three wait", 1, map[string]string{})
		made.answer <- nil
		want("the three got none that had begun", 2, map[string]string{"a": "1"})
		made.answer <- nil
		want("the three share one", 2, map[string]string{"a": "1", "b": "2", "c": "2", "d": "2"})

		// The one who lists gives up: the others do not get his error, nor the list of before they asked.
		mu.Lock()
		clear(got)
		mu.Unlock()
		ctx, giveUp := context.WithCancelCause(t.Context())
		ask(t.Context(), "e")
		ask(ctx, "quits")
		ask(t.Context(), "f")
		made.answer <- nil
		want("somebody lists for two", 4, map[string]string{"e": "3"})
		giveUp(errors.New("given up"))
		synctest.Wait()
		made.answer <- nil
		all.Wait()
		made.mu.Lock()
		newest := made.begun // the fourth is whose turn it was: of the one who gave up, or of the other
		made.mu.Unlock()
		if newest > 5 {
			t.Errorf("%d lists have begun, want 5 at most", newest)
		}
		want("one has given up", newest, map[string]string{"e": "3", "quits": "given up", "f": fmt.Sprint(newest)})

		// An engine that does not answer says so to all who wait.
		mu.Lock()
		clear(got)
		mu.Unlock()
		ask(t.Context(), "a")
		ask(t.Context(), "b")
		ask(t.Context(), "c")
		made.answer <- errors.New("no")
		synctest.Wait()
		made.answer <- errors.New("never")
		all.Wait()
		want("it does not answer", newest+2, map[string]string{"a": "no", "b": "never", "c": "never"})
	})
}
