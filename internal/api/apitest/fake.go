// Package apitest is a flockd for tests of those who call one: an api.Backend and
// api.Peer in memory, and a listener without a network. It never leaves tests.
//
// It differs from the real one: everything happens at once (a volume is never
// seen being created, replicas are in sync from the start), nothing is placed with
// thought, nothing survives it, and its clock stands still at Now.
package apitest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/doctor"
	"github.com/flocker-io/flocker/internal/volume"
)

// Now is the time by the fake's clock.
var Now = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

// ClusterID is the cluster that Init makes.
const ClusterID = "c0ffee0123456789c0ffee0123456789"

// Fake is an in-memory flockd. Its zero value belongs to no cluster. Its methods
// may be called at the same time.
type Fake struct {
	mu      sync.Mutex
	status  api.ClusterStatus
	nodes   []api.Node
	volumes []api.Volume // live and removed
	tokens  []api.Token
	events  []api.Event
	// settings are those that somebody has set.
	settings   []api.Setting
	snapshots  map[volume.ID][]api.Snapshot
	asides     []api.Aside
	restore    *received // the last, and its id
	restoreID  string
	containers []api.Container
	routes     []api.Route
	// differs is the node whose copies verify finds to be unlike; unread, one whose
	// copies it cannot read.
	differs, unread volume.NodeID
	findings        []doctor.Finding
	index           uint64
	rolledBack      *api.Rollback  // the last
	migration       *api.Migration // the last, and how often it was asked for
	looks           int
	made            int                   // IDs handed out
	asked           map[string]api.Volume // by request ID of a create
	fail            map[string]error
	calls           []Call
	waiting         int
	news            chan struct{} // closed at the next event
}

var (
	_ api.Backend = (*Fake)(nil)
	_ api.Peer    = (*Fake)(nil)
)

// Call is one call that the fake got.
type Call struct {
	Method string
	Args   []any
	Peer   volume.NodeID // who called, if another node did
	// Request is the ID of the API call.
	Request string
}

// New is a node that belongs to no cluster.
func New() *Fake { return &Fake{} }

// Retired is a node that was taken out of its cluster.
func Retired(why string) *Fake { return &Fake{status: api.ClusterStatus{Retired: why}} }

// Fail makes a method return err from now on; nil ends that.
func (f *Fake) Fail(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail == nil {
		f.fail = map[string]error{}
	}
	f.fail[method] = err
}

// Calls are all calls so far.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Waiting is how many Events calls wait for the next event.
func (f *Fake) Waiting() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.waiting
}

// Emit adds an event.
func (f *Fake) Emit(kind, name, message string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.emit(kind, name, message)
}

// EmitOf adds an event of a volume.
func (f *Fake) EmitOf(kind string, id volume.ID, name, message string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.emit(kind, name, message)
	f.events[len(f.events)-1].Volume = id
}

func (f *Fake) emit(kind, name, message string) {
	f.events = append(f.events, api.Event{
		Seq: uint64(len(f.events) + 1), At: Now, Kind: kind, Name: name, Message: message,
	})
	if f.news != nil {
		close(f.news)
		f.news, f.waiting = nil, 0
	}
}

// SetVolume adds a volume or replaces the one with its ID.
func (f *Fake) SetVolume(v api.Volume) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.volumes = slices.DeleteFunc(f.volumes, func(o api.Volume) bool { return o.ID == v.ID })
	f.volumes = append(f.volumes, v)
}

// SetNode adds a node or replaces the one with its ID.
func (f *Fake) SetNode(n api.Node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodes = slices.DeleteFunc(f.nodes, func(o api.Node) bool { return o.ID == n.ID })
	f.nodes = append(f.nodes, n)
}

// SetStatus changes what Status says.
func (f *Fake) SetStatus(change func(*api.ClusterStatus)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.status)
}

// enter starts every method: it remembers the call and fails it if it shall. The
// caller unlocks f.mu.
func (f *Fake) enter(ctx context.Context, method string, args ...any) error {
	f.mu.Lock()
	peer, _ := api.Caller(ctx)
	f.calls = append(f.calls, Call{Method: method, Args: args, Peer: peer, Request: api.RequestID(ctx)})
	if err := f.fail[method]; err != nil {
		return err
	}
	switch method {
	case "Version", "Status", "Init", "Join", "Doctor", "Diagnostics":
	default:
		if f.status.Retired != "" {
			return volume.Errorf(volume.CodeRefused, "%s", f.status.Retired)
		}
		if !f.status.Initialized {
			return volume.Errorf(volume.CodeNotInit, "this node is in no cluster").WithHint("flockctl init or flockctl join TOKEN")
		}
	}
	return nil
}

// Version implements api.Backend.
func (f *Fake) Version(ctx context.Context) (api.VersionInfo, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Version"); err != nil {
		return api.VersionInfo{}, err
	}
	return api.VersionInfo{Version: "v0.1.0", Commit: "abc1234", GoVersion: "go1.26.0", API: api.APIVersion, ZFS: "2.3.2", Kernel: "6.1.0", Docker: "20.10.24"}, nil
}

// Status implements api.Backend.
func (f *Fake) Status(ctx context.Context) (api.ClusterStatus, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Status"); err != nil {
		return api.ClusterStatus{}, err
	}
	s := f.status
	s.Version = "v0.1.0"
	s.Applied = f.index
	s.Nodes = map[api.NodeHealth]int{}
	s.Volumes = map[api.Health]int{}
	s.Voters = []api.Voter{}
	for _, n := range f.nodes {
		s.Nodes[n.Health]++
		if n.Role == api.RoleLeader || n.Role == api.RoleVoter {
			s.Voters = append(s.Voters, api.Voter{NodeRef: n.NodeRef, Health: n.Health})
		}
	}
	for _, v := range f.volumes {
		if v.Health == api.HealthTrash {
			s.Trash++
		} else {
			s.Volumes[v.Health]++
		}
	}
	s.Problems = append([]string{}, s.Problems...)
	s.Safety = append([]string{}, s.Safety...)
	return s, nil
}

// Init implements api.Backend.
func (f *Fake) Init(ctx context.Context, req api.InitRequest) (api.InitReply, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Init", req); err != nil {
		return api.InitReply{}, err
	}
	if f.status.Initialized {
		if req.IfNew {
			return api.InitReply{ClusterID: f.status.ClusterID, Node: f.status.Node, Existed: true}, nil
		}
		return api.InitReply{}, volume.Errorf(volume.CodeConflict, "this node is in cluster %s already", f.status.ClusterID).WithHint("with --if-new nothing is done then")
	}
	self := f.become(req.NodeSetup, api.RoleLeader)
	t := f.token(api.TokenRequest{TTL: 24 * time.Hour})
	return api.InitReply{ClusterID: ClusterID, Node: self, Token: t.Text, JoinCommand: t.JoinCommand, TokenExpires: t.Expires}, nil
}

// Join implements api.Backend.
func (f *Fake) Join(ctx context.Context, req api.JoinRequest) (api.JoinReply, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Join", req); err != nil {
		return api.JoinReply{}, err
	}
	switch {
	case f.status.Initialized && req.IfNew:
		return api.JoinReply{ClusterID: f.status.ClusterID, Node: f.status.Node, Existed: true}, nil
	case f.status.Initialized:
		return api.JoinReply{}, volume.Errorf(volume.CodeConflict, "this node is in cluster %s already", f.status.ClusterID).WithHint("with --if-new nothing is done then")
	case !strings.HasPrefix(req.Token, "flk1-"):
		return api.JoinReply{}, volume.Errorf(volume.CodeDenied, "the cluster refuses the token").WithHint("flockctl token create on a member makes a new one")
	}
	self := f.become(req.NodeSetup, api.RoleVoter)
	return api.JoinReply{ClusterID: ClusterID, Node: self}, nil
}

func (f *Fake) become(setup api.NodeSetup, role api.Role) api.NodeRef {
	self := api.NodeRef{ID: f.nodeID(), Name: cmp.Or(setup.Name, "this")}
	f.nodes = append(f.nodes, api.Node{
		NodeRef: self, Role: role, Zone: volume.Zone(cmp.Or(setup.Zone, string(volume.DefaultZone))), Addr: "192.0.2.1:4523",
		Version: "v0.1.0", Availability: "active", Health: api.NodeAlive, LastSeen: Now, Joined: Now,
		Pool: volume.PoolInfo{Name: cmp.Or(setup.Pool, "flocker"), Size: 20 << 30, Free: 19 << 30, Health: "ONLINE"},
	})
	f.status.Initialized, f.status.Ready, f.status.Quorum = true, true, true
	f.status.ClusterID, f.status.Node, f.status.Leader = ClusterID, self, self
	f.status.TrashKeep = 7 * 24 * time.Hour
	f.index++
	f.emit("node.joined", self.Name, "node "+self.Name+" has joined")
	return self
}

// Nodes implements api.Backend.
func (f *Fake) Nodes(ctx context.Context) ([]api.Node, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Nodes"); err != nil {
		return nil, err
	}
	return slices.Clone(f.nodes), nil
}

// Node implements api.Backend.
func (f *Fake) Node(ctx context.Context, ref string) (api.Node, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Node", ref); err != nil {
		return api.Node{}, err
	}
	i, err := f.findNode(ref)
	if err != nil {
		return api.Node{}, err
	}
	return f.nodes[i], nil
}

// LabelNode implements api.Backend.
func (f *Fake) LabelNode(ctx context.Context, ref string, req api.LabelRequest) (api.Node, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "LabelNode", ref, req); err != nil {
		return api.Node{}, err
	}
	i, err := f.findNode(ref)
	if err != nil {
		return api.Node{}, err
	}
	if err := req.Check(); err != nil {
		return api.Node{}, err
	}
	if req.Zone != nil {
		if err := volume.ValidateName(*req.Zone); err != nil {
			return api.Node{}, volume.Errorf(volume.CodeInvalid, "zone: %v", err)
		}
	}
	n := &f.nodes[i]
	labels := map[string]string{}
	maps.Copy(labels, n.Labels)
	maps.Copy(labels, req.Set)
	for _, k := range req.Drop {
		delete(labels, k)
	}
	n.Labels = labels
	if req.Zone != nil {
		n.Zone = volume.Zone(*req.Zone)
	}
	f.index++
	return *n, nil
}

func (f *Fake) findNode(ref string) (int, error) {
	var cs []api.Candidate
	for _, n := range f.nodes {
		cs = append(cs, api.Candidate{ID: string(n.ID), Name: n.Name})
	}
	id, err := api.Resolve("node", ref, cs)
	return slices.IndexFunc(f.nodes, func(n api.Node) bool { return string(n.ID) == id }), err
}

// Volumes implements api.Backend.
func (f *Fake) Volumes(ctx context.Context, q api.VolumesQuery) ([]api.Volume, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Volumes", q); err != nil {
		return nil, err
	}
	vs := slices.DeleteFunc(slices.Clone(f.volumes), func(v api.Volume) bool { return q.Trash != (v.Health == api.HealthTrash) })
	slices.SortFunc(vs, func(a, b api.Volume) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return vs, nil
}

// Volume implements api.Backend.
func (f *Fake) Volume(ctx context.Context, ref string) (api.Volume, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Volume", ref); err != nil {
		return api.Volume{}, err
	}
	i, err := f.findVolume(ref, false)
	if volume.CodeOf(err) == volume.CodeNotFound {
		i, err = f.findVolume(ref, true)
	}
	if err != nil {
		return api.Volume{}, err
	}
	v := f.volumes[i]
	for _, c := range f.containers {
		if slices.Contains(c.Volumes, v.Name) {
			v.Containers = append(v.Containers, c)
		}
	}
	for _, c := range f.volumes {
		if c.From != nil && c.From.Volume == v.ID {
			v.Clones = append(v.Clones, api.Clone{ID: c.ID, Name: c.Name, Snapshot: c.From.Snapshot, Primary: c.Primary, Trash: !c.Deleted.IsZero()})
		}
	}
	if p := v.Spec.Prefer; len(p) > 0 && p[0] != v.Primary.Name {
		v.Locality = fmt.Sprintf("its primary is on %s, not on %s", v.Primary, p[0])
	}
	return v, nil
}

func (f *Fake) findVolume(ref string, trash bool) (int, error) {
	var cs []api.Candidate
	for _, v := range f.volumes {
		if trash == (v.Health == api.HealthTrash) {
			cs = append(cs, api.Candidate{ID: string(v.ID), Name: v.Name})
		}
	}
	id, err := api.Resolve("volume", ref, cs)
	return slices.IndexFunc(f.volumes, func(v api.Volume) bool { return string(v.ID) == id }), err
}

// cloned is what a volume with these options is like, and what it is a clone of. The caller
// holds mu.
func (f *Fake) cloned(from volume.Source, opts map[string]string) (volume.Spec, *api.CloneOf, error) {
	if from.IsZero() {
		spec, err := volume.ParseOptions(opts)
		return spec, nil, err
	}
	i, err := f.findVolume(from.Volume, false)
	if err != nil {
		return volume.Spec{}, nil, err
	}
	v := f.volumes[i]
	name, guid := from.Snapshot, uint64(7)
	if name == "" {
		name = "flk-0000000000000001-000000000099"
	} else if at := slices.IndexFunc(f.snapshots[v.ID], func(s api.Snapshot) bool { return s.Name == name }); at >= 0 {
		guid = f.snapshots[v.ID][at].GUID
	} else {
		return volume.Spec{}, nil, volume.Errorf(volume.CodeNotFound, "volume %q has no snapshot %s", v.Name, name).WithHint("`flockctl snapshot list %s` shows what there is", v.Name)
	}
	spec, err := v.Spec.Clone(opts)
	return spec, &api.CloneOf{Volume: v.ID, Name: v.Name, Snapshot: name, GUID: guid}, err
}

// CreateVolume implements api.Backend.
func (f *Fake) CreateVolume(ctx context.Context, req api.CreateVolumeRequest) (api.Volume, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "CreateVolume", req); err != nil {
		return api.Volume{}, err
	}
	if v, ok := f.asked[req.Request]; ok {
		return v, nil
	}
	if err := volume.ValidateName(req.Name); err != nil {
		return api.Volume{}, err
	}
	source, opts, err := volume.CutSource(req.Options)
	if err != nil {
		return api.Volume{}, err
	}
	spec, from, err := f.cloned(source, opts)
	if err != nil {
		return api.Volume{}, err
	}
	for _, v := range f.volumes {
		if v.Name != req.Name || v.Health == api.HealthTrash {
			continue
		}
		if v.Spec.Equal(spec) {
			return v, nil
		}
		return api.Volume{}, volume.Errorf(volume.CodeConflict, "volume %q is there already, with other options", req.Name).
			WithHint("flockctl volume inspect %s shows them", req.Name)
	}
	f.index++
	v := api.Volume{
		ID: f.volumeID(), Name: req.Name, Phase: "active", Health: api.HealthOK, Spec: spec,
		AsOf: Now, Used: 98304, Data: 24576, Primary: f.nodes[0].NodeRef, Replicas: []api.Replica{},
		Epoch: volume.NewEpoch(0, 1), Index: f.index, Created: Now, From: from,
	}
	for _, n := range f.nodes[1:min(len(f.nodes), 1+spec.Replicas)] {
		lag := 0.0
		v.Replicas = append(v.Replicas, api.Replica{
			Node: n.NodeRef, Kind: api.ReplicaLocal, State: volume.LinkInSync,
			Acked: volume.Position{Epoch: v.Epoch, Seq: 1, GUID: 7, Taken: Now}, LagSeconds: &lag,
		})
	}
	f.volumes = append(f.volumes, v)
	if f.asked == nil {
		f.asked = map[string]api.Volume{}
	}
	if req.Request != "" {
		f.asked[req.Request] = v
	}
	f.emit("volume.created", v.Name, "volume "+v.Name+" has been created on "+v.Primary.Name)
	return v, nil
}

// UpdateVolume implements api.Backend.
func (f *Fake) UpdateVolume(ctx context.Context, ref string, req api.UpdateVolumeRequest) (api.UpdateVolumeReply, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "UpdateVolume", ref, req); err != nil {
		return api.UpdateVolumeReply{}, err
	}
	i, err := f.findVolume(ref, false)
	if err != nil {
		return api.UpdateVolumeReply{}, err
	}
	v := &f.volumes[i]
	next, err := v.Spec.Change(req.Options)
	if err != nil {
		return api.UpdateVolumeReply{}, err
	}
	changes := v.Spec.Changes(next)
	f.index++
	v.Spec, v.Index = next, f.index
	return api.UpdateVolumeReply{Volume: *v, Changes: append([]volume.OptionChange{}, changes...)}, nil
}

// RemoveVolume implements api.Backend.
func (f *Fake) RemoveVolume(ctx context.Context, ref string, req api.RemoveVolumeRequest) error {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "RemoveVolume", ref, req); err != nil {
		return err
	}
	i, err := f.findVolume(ref, false)
	if err != nil {
		return err
	}
	v := &f.volumes[i]
	if v.Mounted {
		return volume.Errorf(volume.CodeConflict, "volume %q is in use on %s", v.Name, v.Primary).WithHint("stop the container first")
	}
	f.index++
	v.Phase, v.Health, v.Deleted, v.PurgeAfter, v.Index = "trash", api.HealthTrash, Now, Now.Add(f.status.TrashKeep), f.index
	f.emit("volume.removed", v.Name, "volume "+v.Name+" has been moved to the trash")
	return nil
}

// UndeleteVolume implements api.Backend.
func (f *Fake) UndeleteVolume(ctx context.Context, ref string, req api.UndeleteRequest) (api.Volume, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "UndeleteVolume", ref, req); err != nil {
		return api.Volume{}, err
	}
	i, err := f.findVolume(ref, true)
	if err != nil {
		return api.Volume{}, err
	}
	v := &f.volumes[i]
	name := cmp.Or(req.Name, v.Name)
	if err := volume.ValidateName(name); err != nil {
		return api.Volume{}, err
	}
	if _, err := f.findVolume(name, false); err == nil {
		return api.Volume{}, volume.Errorf(volume.CodeConflict, "there is a volume %q already", name).WithHint("give another name with --name")
	}
	f.index++
	v.Name, v.Phase, v.Health, v.Deleted, v.PurgeAfter, v.Index = name, "active", api.HealthOK, time.Time{}, time.Time{}, f.index
	f.emit("volume.undeleted", v.Name, "volume "+v.Name+" is back from the trash")
	return *v, nil
}

// PurgeVolume implements api.Backend.
func (f *Fake) PurgeVolume(ctx context.Context, ref string) error {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "PurgeVolume", ref); err != nil {
		return err
	}
	i, err := f.findVolume(ref, true)
	if err != nil {
		return err
	}
	f.volumes = slices.Delete(slices.Clone(f.volumes), i, i+1)
	return nil
}

// CreateToken implements api.Backend.
func (f *Fake) CreateToken(ctx context.Context, req api.TokenRequest) (api.Token, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "CreateToken", req); err != nil {
		return api.Token{}, err
	}
	if err := req.Check(); err != nil {
		return api.Token{}, err
	}
	return f.token(req), nil
}

func (f *Fake) token(req api.TokenRequest) api.Token {
	f.made++
	t := api.Token{
		ID: fmt.Sprintf("tok%05d", f.made), Created: Now, Expires: Now.Add(cmp.Or(req.TTL, 24*time.Hour)),
		MaxUses: req.MaxUses, Note: req.Note,
	}
	f.index++
	f.tokens = append(f.tokens, t)
	t.Text = fmt.Sprintf("flk1-%032d-%s", f.made, t.ID)
	t.JoinCommand = "flockctl join --peer 192.0.2.1:4523 " + t.Text
	return t
}

// Tokens implements api.Backend.
func (f *Fake) Tokens(ctx context.Context) ([]api.Token, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Tokens"); err != nil {
		return nil, err
	}
	return slices.Clone(f.tokens), nil
}

// RevokeToken implements api.Backend.
func (f *Fake) RevokeToken(ctx context.Context, id string) error {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "RevokeToken", id); err != nil {
		return err
	}
	var cs []api.Candidate
	for _, t := range f.tokens {
		cs = append(cs, api.Candidate{ID: t.ID})
	}
	full, err := api.Resolve("token", id, cs)
	if err != nil {
		return err
	}
	f.index++
	f.tokens = slices.DeleteFunc(f.tokens, func(t api.Token) bool { return t.ID == full })
	return nil
}

// Events implements api.Backend.
func (f *Fake) Events(ctx context.Context, q api.EventsQuery) ([]api.Event, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Events", q); err != nil {
		return nil, err
	}
	timer := time.NewTimer(q.Wait)
	defer timer.Stop()
	for uint64(len(f.events)) <= q.After && q.Wait > 0 {
		if f.news == nil {
			f.news = make(chan struct{})
		}
		news := f.news
		f.waiting++
		f.mu.Unlock()
		var err error
		done := false
		select {
		case <-news:
		case <-timer.C:
			done = true
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		f.mu.Lock()
		if f.news == news {
			f.waiting--
		}
		if err != nil || done {
			return nil, err
		}
	}
	return slices.Clone(f.events[min(q.After, uint64(len(f.events))):]), nil
}

// Report implements api.Peer.
func (f *Fake) Report(ctx context.Context, r volume.Report, have map[volume.NodeID]uint64) (api.ReportReply, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Report", r, have); err != nil {
		return api.ReportReply{}, err
	}
	return api.ReportReply{
		Leader: f.status.Leader.ID, Commit: f.index,
		Reports: []api.PeerReport{{Rev: 1, Report: r}}, Ages: map[volume.NodeID]float64{r.Node: 0.5},
	}, nil
}

// Propose implements api.Peer.
func (f *Fake) Propose(ctx context.Context, envelope []byte) (api.ProposeReply, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Propose", envelope); err != nil {
		return api.ProposeReply{}, err
	}
	f.index++
	return api.ProposeReply{Index: f.index, Result: []byte("{}")}, nil
}

// Barrier implements api.Peer.
func (f *Fake) Barrier(ctx context.Context) (uint64, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Barrier"); err != nil {
		return 0, err
	}
	return f.index, nil
}

// Acquire implements api.Peer.
func (f *Fake) Acquire(ctx context.Context, id volume.ID, node volume.NodeID) error {
	defer f.mu.Unlock()
	return f.enter(ctx, "Acquire", id, node)
}

// Unlabel implements api.Peer.
func (f *Fake) Unlabel(ctx context.Context, id volume.ID, attempt string) error {
	defer f.mu.Unlock()
	return f.enter(ctx, "Unlabel", id, attempt)
}

// nodeID and volumeID count, so that output of tests is stable.
func (f *Fake) nodeID() volume.NodeID {
	f.made++
	return volume.NodeID(fmt.Sprintf("%032x", f.made))
}

func (f *Fake) volumeID() volume.ID {
	f.made++
	return volume.ID(fmt.Sprintf("%016x", 0x5eed_0000_0000_0000+f.made))
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
