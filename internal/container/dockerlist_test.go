package container

import (
	"context"
	"errors"
	"fmt"
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
		got := map[string]int{}
		var all sync.WaitGroup
		ask := func(ctx context.Context) {
			all.Go(func() {
				list, err := l.get(ctx, made.list)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					got[err.Error()]++
					return
				}
				got[list[0].ID]++
			})
			synctest.Wait()
		}
		want := func(what string, begun int, want map[string]int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			made.mu.Lock()
			defer made.mu.Unlock()
			if made.begun != begun || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("%s: %d lists have begun, answers %v; want %d and %v", what, made.begun, got, begun, want)
			}
		}

		ask(t.Context())
		for range 3 {
			ask(t.Context())
		}
		want("one lists, three wait", 1, map[string]int{})
		made.answer <- nil
		want("the three got none that had begun", 2, map[string]int{"1": 1})
		made.answer <- nil
		want("the three share one", 2, map[string]int{"1": 1, "2": 3})

		// The one who lists gives up: the others do not get his error.
		ctx, giveUp := context.WithCancelCause(t.Context())
		ask(t.Context())
		ask(ctx)
		ask(t.Context())
		made.answer <- nil
		want("somebody lists for two", 4, map[string]int{"1": 1, "2": 3, "3": 1})
		giveUp(errors.New("given up"))
		synctest.Wait()
		for range 2 {
			select {
			case made.answer <- nil:
			default:
			}
			synctest.Wait()
		}
		all.Wait()
		mu.Lock()
		defer mu.Unlock()
		if got["given up"] != 1 || len(got) != 5 {
			t.Errorf("answers %v; want one given up, and one list more", got)
		}

		// An engine that does not answer says so to all who wait.
		clear(got)
		mu.Unlock()
		ask(t.Context())
		ask(t.Context())
		ask(t.Context())
		made.answer <- errors.New("no")
		synctest.Wait()
		made.answer <- errors.New("never")
		all.Wait()
		mu.Lock()
		if got["no"] != 1 || got["never"] != 2 {
			t.Errorf("answers %v; want no for one, never for two", got)
		}
	})
}
