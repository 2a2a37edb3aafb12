package apitest

import (
	"context"
	"slices"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// RollBack implements api.Backend. What begins is done when Rollback is called.
func (f *Fake) RollBack(ctx context.Context, ref string, req api.RollbackRequest) (api.Rollback, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "RollBack", ref, req); err != nil {
		return api.Rollback{}, err
	}
	i, err := f.findVolume(ref, false)
	if err != nil {
		return api.Rollback{}, err
	}
	v := f.volumes[i]
	list := f.snapshots[v.ID]
	j := slices.IndexFunc(list, func(s api.Snapshot) bool { return s.Name == req.Snapshot })
	if j < 0 {
		return api.Rollback{}, volume.Errorf(volume.CodeNotFound, "volume %q has no snapshot %s", v.Name, req.Snapshot).WithHint("`flockctl snapshot list %s` shows what there is", v.Name)
	}
	b := api.Rollback{Volume: v.ID, Name: v.Name, Node: v.Primary, Snapshot: req.Snapshot, State: api.RollbackPlanned,
		Taken: list[j].Taken, Containers: []string{}, Index: f.index}
	for _, s := range list[j+1:] {
		b.WrittenBytes += s.Written
		if s.Kind != "engine" {
			b.Newer = append(b.Newer, s.Name)
		}
	}
	for _, h := range v.Holders {
		b.Containers = append(b.Containers, h.Name)
	}
	switch {
	case req.DryRun:
		return b, nil
	case len(b.Newer) > 0 && !req.Newer:
		return api.Rollback{}, volume.Errorf(volume.CodeRefused, "volume %q has snapshots that are newer than %s", v.Name, req.Snapshot)
	}
	f.index++
	b.ID, b.State, b.Began, b.Doing = "q3v8n1yk6d0c5h2j", api.RollbackRunning, Now, "its containers are being stopped"
	f.rolledBack = &b
	return b, nil
}

// Rollback implements api.Backend.
func (f *Fake) Rollback(ctx context.Context, ref, id string) (api.Rollback, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Rollback", ref, id); err != nil {
		return api.Rollback{}, err
	}
	i, err := f.findVolume(ref, false)
	if err != nil {
		return api.Rollback{}, err
	}
	b := f.rolledBack
	if b == nil || b.Volume != f.volumes[i].ID || id != "" && b.ID != id {
		return api.Rollback{}, volume.Errorf(volume.CodeNotFound, "volume %q was never rolled back", f.volumes[i].Name)
	}
	b.State, b.Doing, b.Ended = api.RollbackDone, "", Now
	b.Undone = string(b.Volume) + "-0000000000000003-1"
	return *b, nil
}
