package apitest

import (
	"context"
	"maps"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// mail is the one dataset of every node that is no volume, but for one that is in use.
var mail = api.Importable{
	Dataset: "tank/mail", Data: 650 << 20, Used: 700 << 20, Snapshots: []string{"monday", "tuesday"},
	Steps: []string{"unmount it from /srv/mail", "rename it to tank/flocker/ID", "clear quota=10737418240"},
	Has:   map[string]string{"zfs.recordsize": "16K"},
}

func importable(dataset string) (api.Importable, error) {
	switch dataset {
	case mail.Dataset:
		i := mail
		i.Has = maps.Clone(i.Has)
		return i, nil
	case "tank/busy":
		return api.Importable{}, volume.Errorf(volume.CodeRefused, "tank/busy is in use by process 4711 (postgres)").WithHint("stop what uses it")
	}
	return api.Importable{}, volume.Errorf(volume.CodeNotFound, "there is no dataset %s on alpha", dataset).WithHint("zfs list shows there what there is")
}

// Import implements api.Backend.
func (f *Fake) Import(ctx context.Context, req api.ImportRequest) (api.Import, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Import", req); err != nil {
		return api.Import{}, err
	}
	if err := volume.ValidateName(req.Name); err != nil {
		return api.Import{}, err
	}
	if _, err := f.findVolume(req.Name, false); err == nil {
		return api.Import{}, volume.Errorf(volume.CodeConflict, "there is a volume %q already", req.Name)
	}
	i, err := importable(req.Dataset)
	if err != nil {
		return api.Import{}, err
	}
	opts := maps.Clone(i.Has)
	maps.Copy(opts, req.Options)
	spec, err := volume.ParseOptions(opts)
	if err != nil {
		return api.Import{}, err
	}
	spec = spec.MakeWhole()
	out := api.Import{Importable: i, Node: Alpha, Options: spec.Options()}
	if req.DryRun {
		return out, nil
	}
	f.index++
	v := api.Volume{
		ID: f.volumeID(), Name: req.Name, Phase: "active", Health: api.HealthOK, Spec: spec, AsOf: Now, Used: i.Used, Data: i.Data,
		Primary: Alpha, Replicas: []api.Replica{}, Epoch: 1, Index: f.index, Created: Now,
	}
	f.volumes = append(f.volumes, v)
	out.Volume = &v
	return out, nil
}

// Importable implements api.Peer.
func (f *Fake) Importable(ctx context.Context, dataset string) (api.Importable, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Importable", dataset); err != nil {
		return api.Importable{}, err
	}
	return importable(dataset)
}
