package apitest

import (
	"cmp"
	"context"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// Diagnostics implements api.Backend. Beta has no journal, and gamma does not answer.
func (f *Fake) Diagnostics(ctx context.Context, q api.DiagnosticsQuery) (api.Diagnostics, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Diagnostics", q); err != nil {
		return api.Diagnostics{}, err
	}
	d := api.Diagnostics{At: Now, Files: []api.DiagnosticFile{
		{Name: "status.json", Text: "{}\n"},
		{Name: "logs/flockd.log", Text: "the last line\n", Cut: 1000},
	}}
	switch ref := cmp.Or(q.Node, Alpha.Name); {
	case !f.status.Initialized:
	case ref == Alpha.Name || ref == string(Alpha.ID):
		d.Node = Alpha
	case ref == Beta.Name || ref == string(Beta.ID):
		d.Node = Beta
		d.Files[1] = api.DiagnosticFile{Name: "logs/flockd.log", Error: "journalctl is not there"}
	default:
		return api.Diagnostics{}, volume.Errorf(volume.CodeUnavailable, "no answer from flockd: i/o timeout")
	}
	return d, nil
}
