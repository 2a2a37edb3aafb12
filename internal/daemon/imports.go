package daemon

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/agent"
	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// Import implements api.Backend. The leader has the dataset's node look at it, and what comes of
// it begins with the commit of the volume; the rest is the agent's, see internal/agent/import.go.
func (m *member) Import(ctx context.Context, req api.ImportRequest) (out api.Import, err error) {
	if err := volume.ValidateName(req.Name); err != nil {
		return out, err
	}
	if _, err := importSpec(nil, req.Options); err != nil {
		return out, err
	}
	if req.Node == "" {
		if m.agent == nil {
			return out, volume.Errorf(volume.CodeRefused, "this node is a witness and has no pool").WithHint("--node says which node has the dataset")
		}
		req.Node = string(m.self)
	}
	req.Request = cmp.Or(req.Request, newRequest())
	err = m.onLeader(ctx, func(ctx context.Context, leader *api.Client) (err error) {
		if leader != nil {
			out, err = leader.Import(ctx, req)
			return err
		}
		out, err = m.importHere(ctx, req)
		return err
	})
	if err != nil || out.Volume == nil {
		return out, err
	}
	if err := m.cluster.CaughtUp(ctx, out.Volume.Index); err != nil {
		return out, waited(err, "volume %q is made, but this node has not heard of it yet", req.Name)
	}
	return out, nil
}

// importSpec is the spec of a volume that is made of a dataset: what that has, and over it what
// its user asks for.
func importSpec(has, opts map[string]string) (volume.Spec, error) {
	for _, name := range []string{"uid", "gid", "mode", volume.FromOption} {
		if _, given := opts[name]; given {
			return volume.Spec{}, volume.Errorf(volume.CodeInvalid, "what is imported stays as it is: %s cannot be given", name).WithHint("leave that option out")
		}
	}
	all := maps.Clone(has)
	if all == nil {
		all = map[string]string{}
	}
	// A profile that is asked for counts for more than what the dataset has.
	for name := range volume.Profile(opts["profile"]) {
		delete(all, name)
	}
	maps.Copy(all, opts)
	if all["size"] == volume.NoSize {
		delete(all, "size")
	}
	spec, err := volume.ParseOptions(all)
	if err != nil {
		return volume.Spec{}, err
	}
	return spec.MakeWhole(), nil
}

// importSteps are what becomes of a dataset by what its user asks for, and its copies, for people.
func importSteps(has map[string]string, spec volume.Spec, replicas []string, missing string) (steps []string) {
	was, err := importSpec(has, nil)
	if err != nil {
		was = spec // nothing can be compared
	}
	before, after := was.Options(), spec.Options()
	for _, k := range slices.Sorted(maps.Keys(has)) {
		switch from, to := before[k], after[k]; {
		case from == to:
		case k == "size" && to == "":
			steps = append(steps, "clear its refquota of "+from)
		case to == "":
			steps = append(steps, fmt.Sprintf("drop %s=%s", k, from))
		default:
			steps = append(steps, fmt.Sprintf("set %s=%s instead of %s", k, to, from))
		}
	}
	if len(replicas) > 0 {
		steps = append(steps, "copy it to "+strings.Join(replicas, ", "))
	}
	if missing != "" {
		steps = append(steps, "have fewer copies than it is to have: "+missing)
	}
	return steps
}

// importHere is Import on the leader. As in restoreHere the volume's ID follows from the request.
func (m *member) importHere(ctx context.Context, req api.ImportRequest) (out api.Import, err error) {
	if _, err := m.Barrier(ctx); err != nil {
		return out, err
	}
	s := m.cluster.State()
	node, err := findNode(s, req.Node)
	if err != nil {
		return out, err
	}
	if n := s.Node(node); n == nil || n.Witness {
		return out, volume.Errorf(volume.CodeRefused, "node %s is a witness and has no pool", s.NodeName(node))
	}
	sum := sha256.Sum256([]byte("import " + req.Request))
	id := volume.ID(hex.EncodeToString(sum[:8]))
	out.Node, out.Dataset = m.view().ref(node), req.Dataset
	if s.Volume(id) == nil {
		if s.VolumeByName(req.Name) != nil {
			return out, volume.Errorf(volume.CodeConflict, "there is a volume %q already", req.Name).WithHint("give another name after the dataset")
		}
		if who := m.unaware(knowsImport); who != "" {
			return out, volume.Errorf(volume.CodeRefused, "node %s runs a version of flocker that does not know volumes which were imported", who).WithHint("upgrade flocker there first")
		}
		if out.Importable, err = m.importable(ctx, node, req.Dataset); err != nil {
			return out, err
		}
		spec, err := importSpec(out.Has, req.Options)
		if err != nil {
			return out, err
		}
		if spec.Size != 0 && spec.Size < out.Data {
			return out, volume.Errorf(volume.CodeRefused, "%s holds %s, more than size=%s", req.Dataset, volume.FormatSize(out.Data), volume.FormatSize(spec.Size)).
				WithHint("give a larger size, or none")
		}
		if err := m.knowsPlaces(volume.Spec{}, spec); err != nil {
			return out, err
		}
		out.Options = spec.Options()
		// It is where it is, as a set-aside copy is that becomes a volume.
		here := spec
		here.Prefer, here.Zone = append([]string{s.NodeName(node)}, spec.Prefer...), ""
		p, short, err := m.place(ctx, here, node)
		if err != nil && spec.Strict {
			return out, err
		}
		missing := short.String()
		if err != nil || p.Primary != node {
			p, missing = volume.Placement{Primary: node}, "its replicas are chosen when it is there"
			if err != nil {
				missing = err.Error()
			}
		}
		cmd := state.CreateVolume{ID: id, Name: req.Name, Spec: spec, Placement: p, Adopt: req.Dataset}
		if req.DryRun {
			// What the state refuses, it refuses now.
			if _, res := state.Apply(s, s.Index+1, state.Envelope{At: m.now(), Command: cmd}); res.Err != nil {
				return out, res.Err
			}
			var replicas []string
			for _, n := range p.Replicas() {
				replicas = append(replicas, s.NodeName(n))
			}
			out.Steps = append(out.Steps, importSteps(out.Has, spec, replicas, missing)...)
			return out, nil
		}
		if _, err := m.commit(ctx, req.Request, cmd); err != nil {
			return out, err
		}
	}
	v, err := m.awaitCreated(ctx, id, req.Name)
	if err != nil {
		return out, err
	}
	out.Volume, out.Options = &v, v.Spec.Options()
	return out, nil
}

// bindsOf says for people what containers, and volumes of the engine, have of this machine.
func bindsOf(list []container.Bound) (binds []agent.Bind) {
	for _, b := range list {
		by := fmt.Sprintf("container %s (%s)", b.Name, b.State)
		if b.Volume {
			by = fmt.Sprintf("volume %s of the container engine", b.Name)
		}
		binds = append(binds, agent.Bind{Path: b.Source, By: by})
	}
	return binds
}

// importable asks a node about a dataset of its.
func (m *member) importable(ctx context.Context, node volume.NodeID, dataset string) (out api.Importable, err error) {
	if node == m.self {
		return m.Importable(ctx, dataset)
	}
	if !m.hears(node) {
		return out, volume.Errorf(volume.CodeUnavailable, "node %s is not heard of", m.cluster.State().NodeName(node)).WithHint("try again when it is back")
	}
	err = m.whileHeard(ctx, node, func(ctx context.Context) (err error) {
		out, err = m.client(node).Importable(ctx, dataset)
		return err
	})
	return out, err
}

// Importable implements api.Peer.
func (m *member) Importable(ctx context.Context, dataset string) (api.Importable, error) {
	if m.agent == nil {
		return api.Importable{}, volume.Errorf(volume.CodeRefused, "this node is a witness and has no pool")
	}
	f, err := m.agent.LookImport(ctx, dataset)
	if err == nil {
		err = f.Refusal()
	}
	if err != nil {
		return api.Importable{}, err
	}
	out := api.Importable{
		Dataset: f.Dataset.Name, Data: f.Dataset.Referenced, Used: f.Dataset.Used,
		Snapshots: []string{}, Steps: f.Steps(m.layout), Has: f.Options(),
	}
	for _, s := range f.Snapshots {
		out.Snapshots = append(out.Snapshots, s.Name)
	}
	return out, nil
}
