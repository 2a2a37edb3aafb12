package daemon

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// SyncVolume implements api.Backend.
func (m *member) SyncVolume(ctx context.Context, ref string, req api.SyncRequest) (out api.SyncReply, err error) {
	if req.Patience < 0 {
		return out, volume.Errorf(volume.CodeInvalid, "the time to wait cannot be negative")
	}
	v, err := findVolume(m.cluster.State(), ref, live)
	if err != nil {
		return out, err
	}
	err = m.onPrimary(ctx, v, func(ctx context.Context, primary *api.Client) (err error) {
		if primary != nil {
			out, err = primary.SyncVolume(ctx, string(v.ID), req)
			return err
		}
		out, err = m.syncHere(ctx, v, req.Patience)
		return err
	})
	return out, err
}

// syncHere is SyncVolume on the primary.
func (m *member) syncHere(ctx context.Context, v *state.Volume, patience time.Duration) (api.SyncReply, error) {
	began := time.Now() // the clock of replication
	if patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	for {
		state, reports, assigned := m.cluster.Changed(), m.reports.Changed(), m.repl.Reassigned()
		now := m.cluster.State().Volume(v.ID)
		if now == nil || !now.Live() || now.Placement.Primary != m.self {
			return api.SyncReply{}, volume.Errorf(volume.CodeConflict, "volume %q has another primary by now", v.Name).WithHint("try again")
		}
		replicas := now.Placement.Replicas()
		pos, err := m.repl.SyncTo(ctx, v.ID, replicas)
		switch {
		case err == nil:
			out := api.SyncReply{Volume: now.Name, Snapshot: pos.SnapshotName(), Missing: missing(now)}
			for _, id := range replicas {
				out.Replicas = append(out.Replicas, m.view().ref(id))
			}
			return out, nil
		case ctx.Err() != nil:
			if lacks := lacking(m.repl.Links(v.ID), pos, began, m.cluster.State().NodeName); len(lacks) > 0 {
				return api.SyncReply{}, volume.Errorf(volume.CodeTimeout, "volume %q: not every replica has got all within %s: %s",
					v.Name, round(time.Since(began)), strings.Join(lacks, "; ")).
					WithHint("replication goes on; flockctl replication %s shows it", v.Name)
			}
			return api.SyncReply{}, volume.Errorf(volume.CodeTimeout, "volume %q: its replicas were not asked within %s: %v", v.Name, round(time.Since(began)), err)
		case volume.CodeOf(err) == volume.CodeConflict || volume.CodeOf(err) == volume.CodeInvalid:
			// The agent has not passed on yet what the state says, or replicas change; or it
			// never will.
			if st, _, known := m.view().status(m.self, v.ID); known && st.Problem != "" && (!st.Exists || st.Epoch > now.Epoch) {
				return api.SyncReply{}, volume.Errorf(volume.CodeUnavailable, "volume %q: on its primary %s: %s", v.Name, m.cluster.State().NodeName(m.self), st.Problem)
			}
			select {
			case <-ctx.Done():
			case <-state:
			case <-reports:
			case <-assigned:
			}
		default:
			return api.SyncReply{}, err
		}
	}
}

// missing says in words which replicas a volume asks for and nobody holds.
func missing(v *state.Volume) string {
	var words []string
	for _, kind := range []struct {
		name       string
		want, have int
	}{{"local", v.Spec.Replicas, len(v.Placement.Local)}, {"remote", v.Spec.Remote, len(v.Placement.Remote)}} {
		if kind.have < kind.want {
			words = append(words, fmt.Sprintf("%d of %d %s replicas", kind.want-kind.have, kind.want, kind.name))
		}
	}
	return strings.Join(words, ", ")
}

// lacking says of each link that has not acknowledged a position how far it was when
// that was asked for.
func lacking(links []volume.LinkStatus, pos volume.Position, asked time.Time, name func(volume.NodeID) string) []string {
	var out []string
	for _, l := range links {
		if l.Acked.Compare(pos) >= 0 {
			continue
		}
		text := fmt.Sprintf("%s (%s)", name(l.Replica), l.Shown())
		if l.CompleteAsOf.IsZero() {
			text += " has no complete copy yet"
		} else {
			text += fmt.Sprintf(" lacks what was written since %s ago", round(max(0, asked.Sub(l.CompleteAsOf))))
		}
		if l.LagBytes > 0 {
			text += fmt.Sprintf(", about %s", volume.RoughSize(l.LagBytes))
		}
		if l.Error != "" {
			text += ": " + l.Error
		}
		out = append(out, text)
	}
	return out
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
