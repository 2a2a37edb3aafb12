package apitest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// Asides implements api.Backend. Gamma, a suspect, is not heard.
func (f *Fake) Asides(ctx context.Context) (api.Asides, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Asides"); err != nil {
		return api.Asides{}, err
	}
	return api.Asides{Asides: append([]api.Aside{}, f.asides...), Unheard: []api.NodeRef{Gamma}}, nil
}

// findAside takes the first one whose name begins so; several are ambiguous.
func (f *Fake) findAside(ref, node string) (int, error) {
	found := -1
	for i, a := range f.asides {
		if !strings.HasPrefix(a.Name, ref) || node != "" && a.Node.Name != node && string(a.Node.ID) != node {
			continue
		}
		if found >= 0 {
			return -1, volume.Errorf(volume.CodeConflict, "set-aside copy %q is ambiguous", ref)
		}
		found = i
	}
	if found < 0 {
		return -1, volume.Errorf(volume.CodeNotFound, "no set-aside copy %q", ref).WithHint("`flockctl aside list` shows what there is")
	}
	return found, nil
}

// RestoreAside implements api.Backend.
func (f *Fake) RestoreAside(ctx context.Context, ref string, req api.RestoreAsideRequest) (api.Volume, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "RestoreAside", ref, req); err != nil {
		return api.Volume{}, err
	}
	if err := volume.ValidateName(req.Name); err != nil {
		return api.Volume{}, err
	}
	i, err := f.findAside(ref, req.Node)
	if err != nil {
		return api.Volume{}, err
	}
	if _, err := f.findVolume(req.Name, false); err == nil {
		return api.Volume{}, volume.Errorf(volume.CodeConflict, "there is a volume %q already", req.Name)
	}
	spec, err := volume.ParseOptions(req.Options)
	if err != nil {
		return api.Volume{}, err
	}
	a := f.asides[i]
	f.asides = slices.Delete(slices.Clone(f.asides), i, i+1)
	f.index++
	v := api.Volume{
		ID: f.volumeID(), Name: req.Name, Phase: "active", Health: api.HealthOK, Spec: spec, AsOf: Now, Used: a.Data, Data: a.Data,
		Primary: a.Node, Replicas: []api.Replica{}, Epoch: a.Epoch.Next(), Index: f.index, Created: Now,
	}
	f.volumes = append(f.volumes, v)
	if _, chosen := req.Options["ports"]; !chosen {
		for _, old := range f.volumes {
			for _, r := range old.Spec.Ports {
				if old.ID == a.Volume {
					v.Without = append(v.Without, fmt.Sprintf("port %d is that of volume %q", r.Listen, old.Name))
				}
			}
		}
	}
	return v, nil
}

// RemoveAside implements api.Backend.
func (f *Fake) RemoveAside(ctx context.Context, ref, node string) error {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "RemoveAside", ref, node); err != nil {
		return err
	}
	i, err := f.findAside(ref, node)
	if err != nil {
		return err
	}
	f.asides = slices.Delete(slices.Clone(f.asides), i, i+1)
	return nil
}
