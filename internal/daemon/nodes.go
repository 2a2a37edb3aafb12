package daemon

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// Nodes implements api.Backend.
func (m *member) Nodes(context.Context) ([]api.Node, error) {
	v := m.view()
	primaries, replicas := map[volume.NodeID]int{}, map[volume.NodeID]int{}
	for vol := range v.state.Volumes() {
		if !vol.Live() {
			continue
		}
		primaries[vol.Placement.Primary]++
		for _, id := range vol.Placement.Replicas() {
			replicas[id]++
		}
	}
	roles := m.roles()
	out := []api.Node{}
	for n := range v.state.Nodes() {
		node := api.Node{
			NodeRef: api.NodeRef{ID: n.ID, Name: n.Name}, Role: cmp.Or(roles[n.ID], api.RoleNone), Witness: n.Witness,
			Zone: n.Zone, Addr: n.Addr, Availability: string(n.Availability), KeepReplicas: n.KeepReplicas, Joined: n.Joined, Labels: n.Labels,
			Primaries: primaries[n.ID], Replicas: replicas[n.ID],
		}
		node.Health, node.Reason = m.health(v, n.ID)
		if h, ok := v.heard(n.ID); ok {
			node.LastSeen, node.Version = m.now().Add(-h.Age), h.Version
			node.Pool, node.Problems = h.Pool, slices.Clone(h.Problems)
			if says := h.Report.Lease.Fencer; says != "" && h.Age <= v.stale {
				node.Problems = append(node.Problems, "its fencer says: "+says)
			}
			// Once the lease is over its own reason says so.
			if l := h.Report.Lease; l.Held && l.Problem != "" && h.Age <= v.stale && v.state.Failover().Mode == state.FailoverAutomatic {
				node.Problems = append(node.Problems, "it cannot renew its lease: "+l.Problem)
			}
		}
		if !n.Witness {
			node.Lease = m.leaseOf(v, n)
		}
		out = append(out, node)
	}
	slices.SortFunc(out, func(a, b api.Node) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// health of a node for people, with the reason when it is not alive.
func (m *member) health(v view, id volume.NodeID) (api.NodeHealth, string) {
	if id == m.self {
		return api.NodeAlive, ""
	}
	if m.leaderless() {
		return api.NodeUnknown, "this node hears no leader"
	}
	if n := v.state.Node(id); n != nil && n.Lost {
		return api.NodeDead, "it was left behind when the cluster was recovered, and has not joined again"
	}
	health := api.NodeHealth(m.cluster.Health(id))
	h, ok := v.heard(id)
	switch {
	case health == api.NodeAlive:
		return health, ""
	case !ok:
		return health, "it has not reported yet"
	}
	return health, fmt.Sprintf("its last report is %s old", round(h.Age))
}

// roles of the nodes in Raft, as this node knows them.
func (m *member) roles() map[volume.NodeID]api.Role {
	leader, _ := m.cluster.Leader()
	out := map[volume.NodeID]api.Role{}
	for id, voter := range m.cluster.Servers() {
		switch {
		case id == leader:
			out[id] = api.RoleLeader
		case voter:
			out[id] = api.RoleVoter
		default:
			out[id] = api.RoleNonVoter
		}
	}
	return out
}

// Node implements api.Backend.
func (m *member) Node(ctx context.Context, ref string) (api.Node, error) {
	all, err := m.Nodes(ctx)
	if err != nil {
		return api.Node{}, err
	}
	id, err := findNode(m.cluster.State(), ref)
	if err != nil {
		return api.Node{}, err
	}
	i := slices.IndexFunc(all, func(n api.Node) bool { return n.ID == id })
	if i < 0 {
		return api.Node{}, volume.Errorf(volume.CodeNotFound, "no node %q", ref)
	}
	return all[i], nil
}

func findNode(s *state.State, ref string) (volume.NodeID, error) {
	var all []api.Candidate
	for n := range s.Nodes() {
		all = append(all, api.Candidate{ID: string(n.ID), Name: n.Name})
	}
	id, err := api.Resolve("node", ref, all)
	return volume.NodeID(id), err
}

// LabelNode implements api.Backend.
func (m *member) LabelNode(ctx context.Context, ref string, req api.LabelRequest) (api.Node, error) {
	id, err := findNode(m.cluster.State(), ref)
	if err != nil {
		return api.Node{}, err
	}
	if err := req.Check(); err != nil {
		return api.Node{}, err
	}
	cmd := state.UpdateNode{ID: id, SetLabels: req.Set, DropLabels: req.Drop}
	if req.Zone != nil {
		zone := volume.Zone(*req.Zone)
		if err := volume.ValidateName(string(zone)); err != nil {
			return api.Node{}, volume.Errorf(volume.CodeInvalid, "zone %q: %v", zone, err)
		}
		cmd.Zone = &zone
	}
	if err := m.asOperator(ctx, cmd); err != nil {
		return api.Node{}, err
	}
	return m.Node(ctx, ref)
}

// Tokens implements api.Backend.
func (m *member) Tokens(context.Context) ([]api.Token, error) {
	out := []api.Token{}
	for t := range m.cluster.State().Tokens() {
		out = append(out, tokenOf(t))
	}
	slices.SortFunc(out, func(a, b api.Token) int { return a.Created.Compare(b.Created) })
	return out, nil
}

func tokenOf(t *state.Token) api.Token {
	return api.Token{ID: t.ID, Created: t.Created, Expires: t.Expires, MaxUses: t.MaxUses, Uses: t.Uses, Note: t.Note}
}

// RevokeToken implements api.Backend.
func (m *member) RevokeToken(ctx context.Context, ref string) error {
	var all []api.Candidate
	for t := range m.cluster.State().Tokens() {
		all = append(all, api.Candidate{ID: t.ID})
	}
	id, err := api.Resolve("token", ref, all)
	if err != nil {
		return err
	}
	return m.asOperator(ctx, state.RevokeToken{ID: id})
}

// Events implements api.Backend.
func (m *member) Events(ctx context.Context, q api.EventsQuery) ([]api.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, q.Wait)
	defer cancel()
	for {
		changed := m.cluster.Changed()
		out := []api.Event{}
		for e := range m.cluster.State().Events(q.After) {
			out = append(out, api.Event{Seq: e.Seq, At: e.At, Kind: e.Kind, Volume: e.Volume, Name: e.Name, Node: e.Node, Message: e.Message})
		}
		if len(out) > 0 {
			return out, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return out, nil
		}
	}
}

// Status implements api.Backend.
func (m *member) Status(ctx context.Context) (api.ClusterStatus, error) {
	v := m.view()
	leader, ok := m.cluster.Leader()
	out := api.ClusterStatus{
		Initialized: true, ClusterID: v.state.Cluster().ID, Ready: true, Node: v.ref(m.self), Version: m.version,
		Quorum: ok, Applied: v.state.Index, TrashKeep: v.state.Cluster().Settings.TrashKeep(),
		Nodes: map[api.NodeHealth]int{}, Volumes: map[api.Health]int{},
	}
	if ok {
		out.Leader = v.ref(leader)
	} else {
		out.Problems = append(out.Problems, "this node hears no leader: volumes in use go on, nothing can be changed")
	}
	nodes, err := m.Nodes(ctx)
	if err != nil {
		return out, err
	}
	voters, votes := 0, map[volume.Zone]int{}
	for _, n := range nodes {
		out.Nodes[n.Health]++
		if n.Role == api.RoleLeader || n.Role == api.RoleVoter {
			voters++
			votes[n.Zone]++
			out.Voters = append(out.Voters, api.Voter{NodeRef: n.NodeRef, Health: n.Health})
		}
		if n.Health != api.NodeAlive {
			out.Problems = append(out.Problems, fmt.Sprintf("node %s is %s: %s", n.Name, n.Health, n.Reason))
		}
		if l := n.Lease; l != nil && l.State != "" && l.State != "held" && l.State != "unknown" {
			out.Problems = append(out.Problems, fmt.Sprintf("node %s may not write: its lease is %s: %s", n.Name, l.State, cmp.Or(l.Reason, "it has not asked for another")))
		}
		for _, p := range n.Problems {
			out.Problems = append(out.Problems, fmt.Sprintf("node %s: %s", n.Name, p))
		}
	}
	for vol := range v.state.Volumes() {
		if !vol.Live() {
			if vol.Phase == state.PhaseTrash {
				out.Trash++
			}
			continue
		}
		av := v.volume(vol)
		out.Volumes[av.Health]++
		if av.Health != api.HealthOK && av.Reason != "" {
			out.Problems = append(out.Problems, fmt.Sprintf("volume %s is %s: %s", av.Name, av.Health, av.Reason))
		}
	}
	if unfit := unfitTimers(v.state.Failover(), m.cluster.ElectionTime()); unfit != "" {
		out.Problems = append(out.Problems, unfit+"; set another with `flockctl settings set lease=...`")
	}
	out.Fencing = fencing(nodes)
	out.Notes = failoverNotes(v, m.now())
	out.Failover = m.failover(v)
	if out.Failover.Mode != string(state.FailoverAutomatic) {
		out.Safety = append(out.Safety, fmt.Sprintf("failover is %s: %s; volumes of a lost node wait for it, or for `flockctl failover`", out.Failover.Mode, out.Failover.Reason))
	}
	for _, n := range nodes {
		if n.Lease != nil && n.Lease.Safety == volume.SafetySoftware {
			out.Safety = append(out.Safety, softwareOnly(n.Name, v.state.Cluster().Settings.SoftwareFencing))
		}
	}
	if voters < 3 {
		out.Safety = append(out.Safety, fmt.Sprintf("%d voter(s): losing one stops all changes; three nodes or more survive the loss of one", voters))
	} else if risk := zoneRisk(votes); risk != "" {
		out.Safety = append(out.Safety, risk)
	}
	return out, nil
}

// fencing says of every node that may write how surely its writers are stopped.
func fencing(nodes []api.Node) map[string][]string {
	out := map[string][]string{}
	for _, n := range nodes {
		if n.Lease != nil {
			level := cmp.Or(string(n.Lease.Safety), "none")
			out[level] = append(out[level], n.Name)
		}
	}
	return out
}

// Failovers are shown in the status for noteFor, and no more than mostNotes at a time.
const (
	noteFor   = 24 * time.Hour
	mostNotes = 10
)

// failoverNotes are the failovers of late, those that may have lost most first.
func failoverNotes(v view, now time.Time) (notes []string) {
	var late []api.Volume
	for vol := range v.state.Volumes() {
		if f := vol.LastFailover; f != nil && vol.Live() && now.Sub(f.At) < noteFor {
			late = append(late, v.volume(vol))
		}
	}
	loss := func(f *api.LastFailover) float64 {
		if f.LossSeconds == nil {
			return math.Inf(1)
		}
		return *f.LossSeconds
	}
	slices.SortFunc(late, func(a, b api.Volume) int {
		return cmp.Or(cmp.Compare(loss(b.LastFailover), loss(a.LastFailover)), b.LastFailover.At.Compare(a.LastFailover.At), cmp.Compare(a.Name, b.Name))
	})
	for _, vol := range late[:min(len(late), mostNotes)] {
		f := vol.LastFailover
		notes = append(notes, fmt.Sprintf("volume %s failed over from %s to %s at %s: %s", vol.Name, f.From, f.To, f.At.UTC().Format(time.RFC3339), f.Lost()))
	}
	if more := len(late) - mostNotes; more > 0 {
		notes = append(notes, fmt.Sprintf("%d more volumes failed over in the last %s; `flockctl events` lists them", more, volume.FormatDuration(noteFor)))
	}
	return notes
}

// softwareOnly says what it means that a node cannot reset itself.
func softwareOnly(name string, accepted bool) string {
	if accepted {
		return fmt.Sprintf("node %s cannot reset itself, and with fencing=software-only it is taken for lost by time all the same: if its kernel hangs and comes back, it may write what another node writes", name)
	}
	return fmt.Sprintf("node %s cannot reset itself: when it is silent its volumes wait until it says that it has stopped, or for `flockctl failover --confirm-fenced %s`", name, name)
}

// failover is what the nodes have agreed on, and why it is not automatic, as far as this
// node knows.
func (m *member) failover(v view) api.Failover {
	f := v.state.Failover()
	out := api.Failover{Mode: string(f.Mode), Round: f.Round, Profile: f.Profile}
	if f.Mode == state.FailoverAutomatic {
		return out
	}
	lv := leaseView{
		state: v.state, voters: m.voters(), election: m.cluster.ElectionTime(), leading: 2 * agreeWithin, nodes: map[volume.NodeID]lessee{},
	}
	for n := range v.state.Nodes() {
		h, ok := v.heard(n.ID)
		lv.nodes[n.ID] = lessee{heard: ok && h.Age <= v.stale, unfit: h.Report.Lease.Problem}
	}
	out.Reason = cmp.Or(lv.manual(), "the nodes are agreeing")
	return out
}

// leaseOf a node for people.
func (m *member) leaseOf(v view, n *state.Node) *api.Lease {
	f := v.state.Failover()
	h, ok := v.heard(n.ID)
	out := &api.Lease{Safety: h.Report.Lease.Safety}
	fresh := ok && h.Age <= v.stale
	if !fresh {
		out.Safety = n.Lease.Safety
	}
	if !f.Enforced() {
		return out
	}
	out.No = n.Lease.No
	switch r := h.Report.Lease; {
	case n.Lease.Revoked:
		out.State, out.Reason = "revoked", r.Why
	case !fresh:
		out.State = "unknown"
	case r.Held:
		out.State, out.LeftSeconds = "held", round(r.Left).Seconds()
	default:
		out.State, out.Reason = "over", r.Why
	}
	if l := m.leases.Load(); l != nil && out.State != "revoked" {
		out.WaitSeconds = l.remaining(n.ID)
	}
	return out
}

// CreateToken implements api.Backend.
func (m *member) CreateToken(ctx context.Context, req api.TokenRequest) (api.Token, error) {
	if err := req.Check(); err != nil {
		return api.Token{}, err
	}
	tok, text, err := m.cluster.NewToken(m.now(), req.TTL, req.MaxUses)
	if err != nil {
		return api.Token{}, err
	}
	tok.Note = req.Note
	if err := m.asOperator(ctx, state.CreateToken{Token: tok}); err != nil {
		return api.Token{}, err
	}
	out := tokenOf(&tok)
	out.Text, out.JoinCommand = text, m.joinCommand(text)
	return out, nil
}

// joinCommand is the line to type on another node.
func (m *member) joinCommand(token string) string {
	addr := ""
	if n := m.cluster.State().Node(m.self); n != nil {
		addr = n.Addr
	}
	return fmt.Sprintf("flockctl join --peer %s %s", addr, token)
}
