package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
)

// held is a volume that processes have for a few looks more, and that is copied at once when it
// was tried a few times.
type held struct {
	Files
	Replicator
	looks, tries int
	err          error // of these tries
}

func (h *held) Uncover(string, func(string) bool) error { return nil }

func (h *held) Unused(string, string) error {
	if h.looks--; h.looks >= 0 {
		return errors.New("a mount namespace shows it")
	}
	return nil
}

func (h *held) Flush(context.Context, volume.ID, volume.NodeID) (volume.Position, error) {
	if h.tries--; h.tries >= 0 {
		return volume.Position{}, h.err
	}
	return volume.Position{Epoch: 1, Seq: 2, GUID: 2}, nil
}

// A volume that is not free yet when its clients have waited for too long goes back to them.
// But when another volume of the same move has gone it is waited for: what uses both can run
// only there.
func TestReleaseLate(t *testing.T) {
	for name, c := range map[string]struct {
		late, gone bool
		looks      int
		tries      int
		err        error
		want       string // the reason of the refusal; "": it goes
	}{
		"in time":                              {looks: 3},
		"late":                                 {late: true, looks: 3, want: "a mount namespace shows it"},
		"late, and free":                       {late: true, want: "its last copy was not on other yet"},
		"late, and another one is gone":        {late: true, gone: true, looks: 3},
		"copied in the end":                    {tries: 3, err: errors.New("the link is cut")},
		"never copied":                         {tries: 1 << 20, err: errors.New("the link is cut"), want: "its last copy was not on other yet, so they go on where they were (--force does not ask): the link is cut"},
		"not in time":                          {tries: 1 << 20, err: fmt.Errorf("%w; last: %w", context.DeadlineExceeded, errors.New("it says no")), want: "ask): it says no"},
		"no room":                              {tries: 1, err: fmt.Errorf("n2: %w", replicate.ErrNoRoom), want: "there is no room for its last copy on other"},
		"no room yet, another one is gone":     {tries: 3, err: replicate.ErrNoRoom, gone: true},
		"another one is gone, and it is stuck": {late: true, gone: true, looks: 1 << 20, want: "a mount namespace shows it"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				_, host, f, _ := quiet(t)
				layout := Layout{Pool: "tank", MountBase: "/v"}
				for _, id := range []volume.ID{vol1, vol2} {
					must(t, host.CreateFilesystem(ctx, layout.Dataset(id), nil))
					f.apply(t, state.CreateVolume{ID: id, Name: "pg-" + string(id), Spec: volume.DefaultSpec(), Placement: volume.Placement{Primary: self, Local: []volume.NodeID{other}}})
					f.apply(t, state.ConfirmCreate{ID: id, Epoch: 1})
					f.apply(t, state.BeginHandoff{ID: id, Epoch: 1, To: other, Attempt: "drain-1", Follow: true})
				}
				if c.gone {
					f.apply(t, state.CommitHandoff{ID: vol2, Epoch: 1, Attempt: "drain-1", Final: volume.Position{Epoch: 1, Seq: 1, GUID: 1}})
				}
				h := &held{looks: c.looks, tries: c.tries, err: c.err}
				stopped := Stopped{Paused: time.Now(), CopyBy: time.Now().Add(time.Minute)}
				if c.late {
					stopped.CopyBy = time.Now()
				}
				var told []string
				a := New(Config{
					Self: self, Layout: layout, Cluster: f, ZFS: host, Files: h, Use: lonely{}, Repl: h, Log: slog.New(slog.DiscardHandler),
					Moving: func(move string) func(string, state.MoveTimes) {
						told = append(told, "begins "+move)
						return func(result string, _ state.MoveTimes) { told = append(told, result) }
					},
					StopFollowing: func(context.Context, volume.ID) (Stopped, error) { return stopped, nil },
				})
				must(t, a.release(ctx, vol1))
				result := "moved"
				if c.want != "" {
					result = "refused"
				}
				if want := []string{"begins drain-1", result}; !slices.Equal(told, want) {
					t.Errorf("told of the move was %q, want %q", told, want)
				}
				if len(f.proposed) != 1 {
					t.Fatalf("proposed %+v, want one command", f.proposed)
				}
				switch got := f.proposed[0].(type) {
				case state.CommitHandoff:
					if c.want != "" {
						t.Errorf("it went, want a refusal: %s", c.want)
					}
				case state.AbortHandoff:
					if c.want == "" || !strings.Contains(got.Reason, c.want) {
						t.Errorf("refused: %s, want %q", got.Reason, c.want)
					}
				default:
					t.Errorf("proposed %+v", got)
				}
			})
		})
	}
}

// Volumes that go back together do so by a handoff of their own each, but came by one.
func TestMoveOf(t *testing.T) {
	came := &state.Moved{Attempt: "m1"}
	for _, c := range []struct {
		v    state.Volume
		want string
	}{
		{state.Volume{Pending: &state.Pending{Attempt: "m2"}}, "m2"},
		{state.Volume{Pending: &state.Pending{Attempt: "m2"}, Moved: came}, "m2"},
		{state.Volume{Pending: &state.Pending{Attempt: "back-7", Back: "it does not start"}, Moved: came}, "back from m1"},
		{state.Volume{Pending: &state.Pending{Attempt: "back-8", Back: "it does not start"}, Moved: came}, "back from m1"},
	} {
		if got := moveOf(&c.v); got != c.want {
			t.Errorf("%+v: %q, want %q", c.v.Pending, got, c.want)
		}
	}
}
