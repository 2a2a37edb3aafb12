package agent

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
)

// Any number share a lock; who wants it alone waits for all of them, and keeps out who comes later.
func TestLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l locks
		var order []string
		free := map[string]chan struct{}{}
		take := func(ctx context.Context, who string, by func(context.Context) (func(), error)) {
			free[who] = make(chan struct{})
			mine := free[who]
			go func() {
				unlock, err := by(ctx)
				if err != nil {
					order = append(order, who+" gave up")
					return
				}
				order = append(order, who)
				<-mine
				unlock()
			}()
			synctest.Wait()
		}
		release := func(who string) {
			close(free[who])
			synctest.Wait()
		}
		share := func(ctx context.Context) (func(), error) { return l.share(ctx, vol1) }
		alone := func(ctx context.Context) (func(), error) { return l.lock(ctx, vol1) }
		var want []string
		has := func(what string, more ...string) {
			t.Helper()
			if want = append(want, more...); !slices.Equal(order, want) {
				t.Fatalf("%s: %q, want %q", what, order, want)
			}
		}

		take(t.Context(), "a", share)
		take(t.Context(), "b", share)
		has("two share", "a", "b")
		impatient, cancel := context.WithCancelCause(t.Context())
		take(impatient, "c", alone)
		take(t.Context(), "d", alone)
		take(t.Context(), "e", share)
		has("three wait")
		cancel(errors.New("enough"))
		synctest.Wait()
		has("one gives up", "c gave up")
		release("a")
		has("one of two has gone")
		release("b")
		if len(order) != 4 || order[3] != "d" && order[3] != "e" {
			t.Fatalf("nobody shares it any more: %q", order)
		}
		first, second := order[3], map[string]string{"d": "e", "e": "d"}[order[3]]
		release(first)
		has("one after the other", first, second)
		release(second)
		if len(l.held) != 0 {
			t.Errorf("still held: %v", l.held)
		}
		take(t.Context(), "f", alone)
		take(t.Context(), "g", share)
		has("alone is alone", "f")
		release("f")
		has("and then not", "g")
		release("g")
	})
}
