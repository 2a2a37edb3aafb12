package daemon

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/placement"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// maxMaxPause is the longest pause that the leader lets a move have.
const maxMaxPause = placement.PendingLimit - moveMargin

// MigrateVolume implements api.Backend.
func (m *member) MigrateVolume(ctx context.Context, ref string, req api.MigrateRequest) (out api.Migration, err error) {
	if ref, err = m.resolveNow(ctx, ref, live); err != nil {
		return out, err
	}
	err = m.onLeader(ctx, func(ctx context.Context, leader *api.Client) (err error) {
		if leader != nil {
			out, err = leader.MigrateVolume(ctx, ref, req)
			return err
		}
		out, err = m.migrateHere(ctx, ref, req)
		return err
	})
	if err != nil {
		return api.Migration{}, err
	}
	return out, m.cluster.CaughtUp(ctx, out.Index)
}

// migrateHere is MigrateVolume on the leader.
func (m *member) migrateHere(ctx context.Context, ref string, req api.MigrateRequest) (api.Migration, error) {
	v, err := m.findHere(ctx, ref, live)
	if err != nil {
		return api.Migration{}, err
	}
	if v.Phase == state.PhaseElecting {
		return api.Migration{}, m.noPrimary(v)
	}
	if v, err = m.recorded(ctx, v, false); err != nil {
		return api.Migration{}, err
	}
	var to volume.NodeID
	if req.To != "" {
		to, err = findNode(m.cluster.State(), req.To)
	} else {
		to = m.migrationTarget(ctx, v)
	}
	view := placement.NewView(m.cluster.State(), m.heardByPlacement(), m.now())
	switch {
	case err != nil:
		return api.Migration{}, err
	case v.Migration != nil && v.Migration.To == to:
		return m.migration(v, v.Migration.Attempt)
	case to == "":
		return api.Migration{}, volume.Errorf(volume.CodeRefused, "volume %q: no other node that may write has a complete copy of it and of all that goes along", v.Name).
			WithHint("name a node, which then gets one: flockctl migrate %s NODE", v.Name)
	case to == v.Placement.Primary:
		return api.Migration{}, volume.Errorf(volume.CodeConflict, "volume %q is on %s already", v.Name, m.cluster.State().NodeName(to))
	}
	if err := checkMaxPause(req.MaxPauseSeconds); err != nil {
		return api.Migration{}, err
	}
	plan, err := placement.CanMigrate(view, v, to)
	if err != nil {
		return api.Migration{}, err
	}
	if req.DryRun {
		out := m.describeMigration(v, state.Migration{From: v.Placement.Primary, To: to}, api.MigrationPlanned)
		out.Doing, out.Why, out.Containers, out.Services, out.With = plan.Doing, plan.Why, plan.Containers, plan.Services, plan.With
		out.Notes = append(m.migrationNotes(ctx, v, to, plan.Containers, maxPause(req)), unlimited(maxPause(req), m.unaware(knowsRoutes))...)
		out.PredictedSeconds = placement.PredictPause(view, v, to).Seconds()
		return out, nil
	}
	if !req.Force && len(plan.Containers) > 0 {
		if who := m.pinned(ctx, v); who != "" {
			return api.Migration{}, volume.Errorf(volume.CodeRefused, "volume %q is not migrated: %s, for as long as they are connected", v.Name, who).
				WithHint("have them disconnect, or try it all the same, in case they do meanwhile: flockctl migrate --force --max-pause %s %s %s", volume.FormatDuration(maxPause(req)), v.Name, m.cluster.State().NodeName(to))
		}
	}
	if _, err := m.commit(ctx, "", state.StartMigration{ID: v.ID, To: to, Attempt: newRequest(), MaxPause: maxPause(req)}); err != nil {
		return api.Migration{}, err
	}
	if v = m.cluster.State().Volume(v.ID); v == nil {
		return api.Migration{}, volume.Errorf(volume.CodeNotFound, "no volume %s", ref)
	}
	out, err := m.migration(v, "")
	if err == nil {
		out.Notes = unlimited(maxPause(req), m.unaware(knowsRoutes))
	}
	return out, err
}

// unlimited says that a limit to a pause is not kept where a node does not know it (see forOlder):
// all nodes have to know what the state has of a move. It goes on as before there were limits.
func unlimited(limit time.Duration, who string) []string {
	if limit == 0 || who == "" {
		return nil
	}
	return []string{fmt.Sprintf("clients may have to wait for more than %s: node %s runs a version of flocker that knows no such limit, so the move has none; upgrade it first, or call the move off", volume.FormatDuration(limit), who)}
}

// checkMaxPause says what is wrong with a limit that nobody could mean, or that no move could
// use up.
func checkMaxPause(seconds float64) error {
	if seconds >= 0 && seconds <= maxMaxPause.Seconds() {
		return nil
	}
	return volume.Errorf(volume.CodeInvalid, "clients cannot wait for %g s: a move that is not over after %s is given up; take more than 0 and at most %g s, or force it", seconds, placement.PendingLimit, maxMaxPause.Seconds())
}

// maxPause is what clients may wait for; 0: as long as it takes. Whoever forces a migration
// and names a limit all the same wants only those ignored who are in the way now.
func maxPause(req api.MigrateRequest) time.Duration {
	switch {
	case req.MaxPauseSeconds > 0:
		return max(time.Duration(req.MaxPauseSeconds*float64(time.Second)), time.Millisecond)
	case req.Force:
		return 0
	}
	return api.DefaultMaxPause
}

// migrationTarget is placement.MigrationTarget; "" only once reports have had the time to
// say otherwise, as just after a change of leader or a first copy.
func (m *member) migrationTarget(ctx context.Context, v *state.Volume) volume.NodeID {
	patience, cancel := context.WithTimeout(ctx, m.timers.Stale)
	defer cancel()
	for {
		changed := m.reports.Changed()
		if to := placement.MigrationTarget(placement.NewView(m.cluster.State(), m.heardByPlacement(), m.now()), v); to != "" {
			return to
		}
		select {
		case <-changed:
		case <-patience.Done():
			return ""
		}
	}
}

// Migration implements api.Backend. Every node has the state and the reports.
func (m *member) Migration(_ context.Context, ref, id string) (api.Migration, error) {
	v, err := findVolume(m.cluster.State(), ref, live)
	if err != nil {
		return api.Migration{}, err
	}
	return m.migration(v, id)
}

// migration of a volume by its ID; "": the newest.
func (m *member) migration(v *state.Volume, id string) (api.Migration, error) {
	if now := v.Migration; now != nil && (id == "" || now.Attempt == id) {
		out := m.describeMigration(v, *now, api.MigrationRunning)
		out.Arrived = v.Placement.Primary == now.To
		view := placement.NewView(m.cluster.State(), m.heardByPlacement(), m.now())
		_, all := placement.Migrations(view)
		if i := slices.IndexFunc(all, func(p placement.Migration) bool { return p.Volume.ID == v.ID }); i >= 0 {
			p := all[i]
			out.Doing, out.Why, out.Containers, out.Services, out.With = p.Doing, p.Why, p.Containers, p.Services, p.With
			out.Phase, out.Round, out.Rounds = p.Step.Phase, p.Step.Round, p.Step.Rounds
			out.LeftBytes, out.SentBytes, out.TotalBytes, out.Rate = p.Copying.Left(), p.Copying.Sent, p.Copying.Total, p.Copying.Rate
		}
		if !out.Arrived {
			out.PredictedSeconds = placement.PredictPause(view, v, now.To).Seconds()
		}
		return out, nil
	}
	if last := v.LastMigration; last != nil && (id == "" || last.Attempt == id) {
		out := m.describeMigration(v, last.Migration, api.MigrationDone)
		out.Ended, out.Reason = last.At, last.Reason
		if last.Reason != "" {
			out.State = api.MigrationFailed
		}
		if !last.Stopped.IsZero() {
			out.StoppedSeconds = last.At.Sub(last.Stopped).Seconds()
			t := last.Times
			out.Times = &api.MoveTimes{Park: t.Park.Seconds(), Stop: t.Stop.Seconds(), Unmount: t.Unmount.Seconds(), Copy: t.Copy.Seconds()}
			if last.Paused > 0 {
				out.PausedSeconds = last.Paused.Seconds()
				out.Times.Start = max(last.Paused-t.Park-t.Stop-t.Unmount-t.Copy, 0).Seconds()
				a := t.Arrival
				out.Times.Commit, out.Times.Takeover, out.Times.Mount = t.Commit(last.Paused).Seconds(), a.Takeover.Seconds(), a.Mount.Seconds()
				out.Times.Run, out.Times.Ready, out.Times.Open = a.Run.Seconds(), a.Ready.Seconds(), a.Open.Seconds()
			}
		}
		return out, nil
	}
	if id != "" {
		return api.Migration{}, volume.Errorf(volume.CodeNotFound, "volume %q: nothing is known of migration %s any more", v.Name, id)
	}
	return api.Migration{}, volume.Errorf(volume.CodeNotFound, "volume %q was never migrated", v.Name)
}

func (m *member) describeMigration(v *state.Volume, of state.Migration, in api.MigrationState) api.Migration {
	view := m.view()
	out := api.Migration{
		ID: of.Attempt, Volume: v.ID, Name: v.Name, From: view.ref(of.From), To: view.ref(of.To), State: in, Index: view.state.Index,
	}
	if !of.Began.IsZero() {
		out.Began = of.Began.Round(time.Millisecond)
	}
	return out
}

// AbortMigration implements api.Backend.
func (m *member) AbortMigration(ctx context.Context, ref, id string) (out api.Migration, err error) {
	if ref, err = m.resolveNow(ctx, ref, live); err != nil {
		return out, err
	}
	err = m.onLeader(ctx, func(ctx context.Context, leader *api.Client) (err error) {
		if leader != nil {
			out, err = leader.AbortMigration(ctx, ref, id)
			return err
		}
		out, err = m.abortMigrationHere(ctx, ref, id)
		return err
	})
	if err != nil {
		return api.Migration{}, err
	}
	return out, m.cluster.CaughtUp(ctx, out.Index)
}

// abortMigrationHere is AbortMigration on the leader. What is over already is no error:
// the answer says how it ended.
func (m *member) abortMigrationHere(ctx context.Context, ref, id string) (api.Migration, error) {
	v, err := m.findHere(ctx, ref, live)
	if err != nil {
		return api.Migration{}, err
	}
	now := v.Migration
	if now == nil || id != "" && now.Attempt != id {
		return m.migration(v, id)
	}
	if v.Placement.Primary == now.To {
		return api.Migration{}, volume.Errorf(volume.CodeRefused, "volume %q is on %s by now; its containers are being started there, and go back if they do not start", v.Name, m.cluster.State().NodeName(now.To)).
			WithHint("to bring it back: flockctl migrate %s %s", v.Name, m.cluster.State().NodeName(now.From))
	}
	_, err = m.commit(ctx, "", state.EndMigration{ID: v.ID, Attempt: now.Attempt, Reason: "called off by its user"})
	if err != nil && volume.CodeOf(err) != volume.CodeConflict {
		return api.Migration{}, err
	}
	if v = m.cluster.State().Volume(v.ID); v == nil {
		return api.Migration{}, volume.Errorf(volume.CodeNotFound, "no volume %s", ref)
	}
	return m.migration(v, now.Attempt)
}
