package apitest

import (
	"context"
	"slices"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// MigrateVolume implements api.Backend. What begins is under way in the answer, and done
// when Migration is called for the second time.
func (f *Fake) MigrateVolume(ctx context.Context, ref string, req api.MigrateRequest) (api.Migration, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "MigrateVolume", ref, req); err != nil {
		return api.Migration{}, err
	}
	i, err := f.findVolume(ref, false)
	if err != nil {
		return api.Migration{}, err
	}
	if req.MaxPauseSeconds < 0 || req.MaxPauseSeconds > 110 {
		return api.Migration{}, volume.Errorf(volume.CodeInvalid, "clients cannot wait for %g s: take more than 0 and at most 110 s", req.MaxPauseSeconds)
	}
	v := f.volumes[i]
	j := slices.IndexFunc(v.Replicas, func(r api.Replica) bool { return req.To == "" || req.To == r.Node.Name })
	switch {
	case req.To == v.Primary.Name:
		return api.Migration{}, volume.Errorf(volume.CodeConflict, "volume %q is on %s already", v.Name, v.Primary)
	case j < 0:
		return api.Migration{}, volume.Errorf(volume.CodeRefused, "volume %q cannot be migrated to %s: node %s is not heard of", v.Name, req.To, req.To)
	}
	m := api.Migration{
		ID: "k7q2m4zt5xw3a6ve", Volume: v.ID, Name: v.Name, From: v.Primary, To: v.Replicas[j].Node,
		State: api.MigrationRunning, Doing: "moving to " + v.Replicas[j].Node.Name, Phase: volume.MoveBegins, Containers: []string{}, With: []string{}, Index: f.index,
	}
	for _, h := range v.Holders {
		m.Containers = append(m.Containers, h.Name)
	}
	if m.To == Gamma { // which is where it has clients that come through a route
		m.PredictedSeconds = 0.05
		m.Doing += ": pre-copy round 1 of at most 8, 12MiB left"
		m.Phase, m.Round, m.Rounds = volume.MovePreCopy, 1, 8
		m.LeftBytes, m.SentBytes, m.TotalBytes, m.Rate = 12<<20, 36<<20, 48<<20, 4<<20
	}
	if req.DryRun {
		m.ID, m.State, m.Doing = "", api.MigrationPlanned, ""
		enterPhase(&m, "")
		if len(m.Containers) > 0 {
			m.Notes = []string{"container " + m.Containers[0] + ": its port 5432 is published by the engine, past the route on port 5432: clients that come that way are not spared a move"}
		}
		return m, nil
	}
	f.index++
	m.Began = Now
	f.migration, f.looks = &m, 0
	return m, nil
}

// Migration implements api.Backend.
func (f *Fake) Migration(ctx context.Context, ref, id string) (api.Migration, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Migration", ref, id); err != nil {
		return api.Migration{}, err
	}
	return f.migrated(ref, id)
}

func (f *Fake) migrated(ref, id string) (api.Migration, error) {
	i, err := f.findVolume(ref, false)
	if err != nil {
		return api.Migration{}, err
	}
	m := f.migration
	if m == nil || m.Volume != f.volumes[i].ID || id != "" && m.ID != id {
		return api.Migration{}, volume.Errorf(volume.CodeNotFound, "volume %q was never migrated", f.volumes[i].Name)
	}
	f.looks++
	switch {
	case m.State != api.MigrationRunning:
	case f.looks == 1:
		m.PredictedSeconds = 0
		m.Arrived, m.Doing = true, "on "+m.To.Name+", where its containers are starting"
		enterPhase(m, volume.MoveStarting)
	default:
		m.State, m.Doing, m.Phase, m.Ended = api.MigrationDone, "", "", Now
		if len(m.Containers) > 0 {
			m.StoppedSeconds = 1.5
		}
		if m.To == Gamma {
			m.PausedSeconds, m.Times = 0.43, &api.MoveTimes{Park: 0.01, Stop: 0.1, Unmount: 0.02, Copy: 0.06, Start: 0.24, Commit: 0.02, Takeover: 0.03, Mount: 0.02, Run: 0.1, Ready: 0.05, Open: 0.02}
		}
		f.volumes[i].Primary = m.To
	}
	return *m, nil
}

// AbortMigration implements api.Backend.
func (f *Fake) AbortMigration(ctx context.Context, ref, id string) (api.Migration, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "AbortMigration", ref, id); err != nil {
		return api.Migration{}, err
	}
	i, err := f.findVolume(ref, false)
	if err != nil {
		return api.Migration{}, err
	}
	m := f.migration
	if m == nil || m.Volume != f.volumes[i].ID || id != "" && m.ID != id {
		return api.Migration{}, volume.Errorf(volume.CodeNotFound, "volume %q was never migrated", f.volumes[i].Name)
	}
	if m.State != api.MigrationRunning {
		return *m, nil
	}
	if m.Arrived {
		return api.Migration{}, volume.Errorf(volume.CodeRefused, "volume %q is on %s by now", m.Name, m.To)
	}
	m.State, m.Doing, m.Reason, m.Ended = api.MigrationFailed, "", "called off by its user", Now
	enterPhase(m, "")
	return *m, nil
}

// enterPhase begins one in which nothing is sent.
func enterPhase(m *api.Migration, phase volume.MovePhase) {
	m.Phase, m.Round, m.Rounds = phase, 0, 0
	m.LeftBytes, m.SentBytes, m.TotalBytes, m.Rate = 0, 0, 0, 0
}
