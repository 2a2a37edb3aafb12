package api

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/flocker-io/flocker/internal/browse"
	"github.com/flocker-io/flocker/internal/doctor"
)

type document struct {
	Paths      map[string]map[string]any `yaml:"paths"`
	Components struct {
		Schemas map[string]schema `yaml:"schemas"`
	} `yaml:"components"`
}

type schema struct {
	Ref        string              `yaml:"$ref"`
	AllOf      []schema            `yaml:"allOf"`
	Required   []string            `yaml:"required"`
	Properties map[string]property `yaml:"properties"`
}

type property struct {
	Ref string `yaml:"$ref"`
}

func parseDocument(t *testing.T) document {
	t.Helper()
	var d document
	if err := yaml.Unmarshal(openAPI, &d); err != nil {
		t.Fatalf("openapi.yaml: %v", err)
	}
	return d
}

func TestEveryRouteIsDescribed(t *testing.T) {
	d := parseDocument(t)
	described := map[string]bool{}
	for path, ops := range d.Paths {
		for method := range ops {
			if method != "parameters" {
				described[strings.ToUpper(method)+" "+path] = true
			}
		}
	}
	for _, r := range routes(nil, (*Client)(nil)) {
		k := r.method + " " + r.path
		if !described[k] {
			t.Errorf("openapi.yaml does not describe %s", k)
		}
		delete(described, k)
	}
	for k := range described {
		t.Errorf("openapi.yaml describes %s, which is not there", k)
	}
}

// Every field that travels is described, and is called required exactly when it is
// always there.
func TestEveryFieldIsDescribed(t *testing.T) {
	d := parseDocument(t)
	types := []any{
		NodeRef{}, VersionInfo{}, ClusterStatus{}, NodeSetup{}, InitRequest{}, InitReply{}, JoinRequest{}, JoinReply{},
		Node{}, LabelRequest{}, Volume{}, Replica{}, CreateVolumeRequest{}, UndeleteRequest{}, TokenRequest{}, Token{}, Event{},
		UpdateVolumeRequest{}, UpdateVolumeReply{}, Settings{}, Setting{}, SettingsRequest{},
		SyncRequest{}, SyncReply{}, VerifyRequest{}, VerifyReply{}, Sum{}, CopySum{}, Reading{}, Snapshot{}, Hold{}, HoldRequest{}, SnapshotDetails{}, SnapshotCopy{}, SnapshotRequest{}, PruneRequest{},
		Failover{}, LastFailover{}, Lease{}, Asides{}, Aside{}, RestoreAsideRequest{}, ImportRequest{}, Import{}, BeginRestoreRequest{}, RestoreState{}, FinishRestoreRequest{}, Container{}, FailoverRequest{}, DrainRequest{}, Drain{}, LeftCopy{}, RemoveNodeRequest{}, RemoveNodeReply{},
		browse.Entry{}, browse.Change{},
		Routes{}, Route{}, RouteSession{}, AddRouteRequest{}, NodeRoute{}, CloneOf{}, Clone{}, Doctor{}, doctor.Finding{}, Diagnostics{}, DiagnosticFile{},
	}
	for _, v := range types {
		typ := reflect.TypeOf(v)
		want := map[string]bool{}
		fields(typ, want)
		got := map[string]bool{}
		flatten(d, schema{Ref: "#/components/schemas/" + typ.Name()}, got)
		for name, required := range want {
			r, ok := got[name]
			switch {
			case !ok:
				t.Errorf("%s: field %s is not described", typ.Name(), name)
			case r != required:
				t.Errorf("%s: field %s: described as required: %v, in Go: %v", typ.Name(), name, r, required)
			}
		}
		for name := range got {
			if _, ok := want[name]; !ok {
				t.Errorf("%s: %s is described but not there", typ.Name(), name)
			}
		}
	}
}

// fields collects the JSON names of a struct and whether each is always written.
func fields(t reflect.Type, out map[string]bool) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			fields(f.Type, out)
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		out[name] = !strings.Contains(options, "omit")
	}
}

// flatten collects the properties of a schema and whether each is required.
func flatten(d document, s schema, out map[string]bool) {
	if s.Ref != "" {
		flatten(d, d.Components.Schemas[strings.TrimPrefix(s.Ref, "#/components/schemas/")], out)
	}
	for _, part := range s.AllOf {
		flatten(d, part, out)
	}
	for name := range s.Properties {
		out[name] = slices.Contains(s.Required, name)
	}
}

func TestReferencesLeadSomewhere(t *testing.T) {
	d := parseDocument(t)
	for _, line := range strings.Split(string(openAPI), "\n") {
		_, rest, found := strings.Cut(line, `"#/components/schemas/`)
		if !found {
			continue
		}
		name, _, _ := strings.Cut(rest, `"`)
		if _, ok := d.Components.Schemas[name]; !ok {
			t.Errorf("no schema %s: %s", name, strings.TrimSpace(line))
		}
	}
}
