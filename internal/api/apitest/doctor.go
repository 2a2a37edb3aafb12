package apitest

import (
	"context"
	"slices"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/doctor"
	"github.com/flocker-io/flocker/internal/volume"
)

// Doctor implements api.Backend. Of a cluster it finds something of each weight; of anything else
// that it is none.
func (f *Fake) Doctor(ctx context.Context) (api.Doctor, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Doctor"); err != nil {
		return api.Doctor{}, err
	}
	if !f.status.Initialized {
		return api.Doctor{At: Now, Findings: []doctor.Finding{{Severity: doctor.Warning, Check: "nodes", What: "this node is in no cluster",
			Why: "only this machine was examined", Fix: "`flockctl init` makes a cluster"}}}, nil
	}
	return api.Doctor{Node: Alpha, At: Now, Findings: slices.Clone(f.findings)}, nil
}

// Recover has Doctor find nothing wrong from now on.
func (f *Fake) Recover() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.findings = []doctor.Finding{{Severity: doctor.OK, Check: "pool", What: "all are healthy and have room"}}
}

func sick() []doctor.Finding {
	return []doctor.Finding{
		{Severity: doctor.Problem, Check: "shadows", Node: Beta.Name, What: `its Docker has a local volume "pgdata", which hides the flocker volume of that name`,
			Why: "containers on this node write to the local one", Fix: "on beta: docker volume rm pgdata"},
		{Severity: doctor.Warning, Check: "clocksource", Node: Alpha.Name, What: "the kernel tells the time by hpet", Why: "it is slow", Fix: "boot with clocksource=tsc"},
		{Severity: doctor.OK, Check: "pool", What: "all are healthy and have room"},
	}
}

// Facts implements api.Backend. It knows little of any node.
func (f *Fake) Facts(ctx context.Context, node string) (doctor.Facts, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Facts", node); err != nil {
		return doctor.Facts{}, err
	}
	if node == "" {
		return doctor.Facts{Node: Alpha.ID, Version: "v0.1.0", Began: Now, Ended: Now}, nil
	}
	for _, n := range f.nodes {
		if n.Name == node || string(n.ID) == node {
			return doctor.Facts{Node: n.ID, Version: n.Version, Began: Now, Ended: Now}, nil
		}
	}
	return doctor.Facts{}, volume.Errorf(volume.CodeNotFound, "no node %q", node)
}
