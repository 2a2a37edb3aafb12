package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// What is to be told while there is no leader is told when there is one; what is refused
// keeps nothing else from being told.
func TestTellEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := map[string][]error{
			"a": {errNoLeader, errNotLeader, context.DeadlineExceeded, errors.New("cut off"), nil},
			"b": {volume.Errorf(volume.CodeDenied, "only its primary")},
			"c": {volume.Errorf(volume.CodeRefused, "an older node")},
			"d": {nil},
		}
		var got []string
		began := time.Now()
		tellEach(t.Context(), []state.Tell{{Message: "a"}, {Message: "b"}, {Message: "c"}, {Message: "d"}}, func(_ context.Context, c state.Command) (state.Result, error) {
			text := c.(state.Tell).Message
			got = append(got, fmt.Sprintf("%s@%s", text, time.Since(began)))
			err := answers[text][0]
			answers[text] = answers[text][1:]
			return state.Result{}, err
		}, slog.New(slog.DiscardHandler))
		if want := []string{"a@0s", "a@5s", "a@10s", "a@15s", "a@20s", "b@20s", "c@20s", "d@20s"}; !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	})
}
