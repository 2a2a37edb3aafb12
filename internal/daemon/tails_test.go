package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// What is to be told while there is no leader is told when there is one. What may be a loss
// of data is told first, also when it comes up while other things wait, and neither what is
// refused nor what is not answered keeps anything else from being told. Of what is refused only
// what may be a loss of data is tried again.
func TestTellEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := map[string][]error{
			"a": {errNoLeader, errNotLeader, context.DeadlineExceeded, errors.New("cut off"), nil},
			"b": {volume.Errorf(volume.CodeDenied, "only its primary")},
			"c": {volume.Errorf(volume.CodeRefused, "an older node")},
			"d": {nil},
			"e": {volume.Errorf(volume.CodeInvalid, "no such kind")},
			"f": {volume.Errorf(volume.CodeNotFound, "no such volume")},
			"J": {volume.Errorf(volume.CodeDenied, "only its primary")},
			"K": {volume.Errorf(volume.CodeRefused, "an older node"), volume.Errorf(volume.CodeInvalid, "no such kind"), volume.Errorf(volume.CodeNotFound, "no such volume"), nil},
			"L": {errNoLeader, nil}, // of a loss
			"M": {nil},
			"N": {nil},
		}
		var mu sync.Mutex // over what the test and what it tests share
		var got []string
		var open []fact
		add := func(names ...string) {
			mu.Lock()
			defer mu.Unlock()
			for _, name := range names {
				f := fact{grave: name < "a", tell: func() *state.Tell { return &state.Tell{Message: name} }}
				if name == "N" {
					f.tell = func() *state.Tell { return nil } // its volume is gone
				}
				open = append(open, f)
			}
		}
		began := time.Now()
		bell := make(chan struct{}, 1)
		ctx, stop := context.WithCancel(t.Context())
		var done bool
		go func() {
			tellEach(ctx, func() []fact {
				mu.Lock()
				defer mu.Unlock()
				news := open
				open = nil
				return news
			}, bell, func(_ context.Context, c state.Command) (state.Result, error) {
				text := c.(state.Tell).Message
				mu.Lock()
				got = append(got, fmt.Sprintf("%s@%s", text, time.Since(began)))
				err := answers[text][0]
				answers[text] = answers[text][1:]
				mu.Unlock()
				if text == "b" {
					add("M") // meanwhile
				}
				return state.Result{}, err
			}, slog.New(slog.DiscardHandler))
			done = true
		}()
		expect := func(want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(got, want) {
				t.Errorf("told %q, want %q", got, want)
			}
			got = nil
		}
		expect()
		time.Sleep(time.Hour)
		mu.Lock()
		began = time.Now()
		mu.Unlock()
		add("a", "b", "c", "e", "f", "J", "K", "L", "N", "d")
		bell <- struct{}{}
		expect("J@0s", "K@0s", "L@0s", "a@0s", "b@0s", "M@0s", "c@0s", "e@0s", "f@0s", "d@0s")
		time.Sleep(time.Hour)
		expect("K@5s", "L@5s", "a@5s", "K@10s", "a@10s", "K@15s", "a@15s", "a@20s")
		stop()
		synctest.Wait()
		if !done {
			t.Error("it does not end")
		}
	})
}

// Who forces a migration and names a limit wants the limit.
func TestMaxPause(t *testing.T) {
	for _, c := range []struct {
		req  api.MigrateRequest
		want time.Duration
	}{
		{api.MigrateRequest{}, api.DefaultMaxPause},
		{api.MigrateRequest{MaxPauseSeconds: 5}, 5 * time.Second},
		{api.MigrateRequest{MaxPauseSeconds: 1e-9}, time.Millisecond},
		{api.MigrateRequest{Force: true}, 0},
		{api.MigrateRequest{Force: true, MaxPauseSeconds: 5}, 5 * time.Second},
	} {
		if got := maxPause(c.req); got != c.want {
			t.Errorf("of %+v clients wait for %s, want %s", c.req, got, c.want)
		}
	}
	for seconds, ok := range map[float64]bool{0: true, 1: true, 110: true, 110.1: false, 300: false, -1: false} {
		switch err := checkMaxPause(seconds); {
		case (err == nil) != ok:
			t.Errorf("a limit of %g s: %v", seconds, err)
		case !ok && (volume.CodeOf(err) != volume.CodeInvalid || !strings.Contains(err.Error(), "given up")):
			t.Errorf("a limit of %g s: %v, which does not say why", seconds, err)
		}
	}
}
