package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/placement"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// Volumes implements api.Backend.
func (m *member) Volumes(_ context.Context, q api.VolumesQuery) ([]api.Volume, error) {
	v := m.view()
	out := []api.Volume{}
	for vol := range v.state.Volumes() {
		if vol.Phase != state.PhasePurged && vol.Live() != q.Trash {
			out = append(out, v.volume(vol))
		}
	}
	slices.SortFunc(out, func(a, b api.Volume) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// Volume implements api.Backend.
func (m *member) Volume(_ context.Context, ref string) (api.Volume, error) {
	v := m.view()
	vol, err := findVolume(v.state, ref, live)
	if volume.CodeOf(err) == volume.CodeNotFound {
		vol, err = findVolume(v.state, ref, trashed)
	}
	if err != nil {
		return api.Volume{}, err
	}
	out := v.volume(vol)
	out.Containers = v.containersOf(vol.ID)
	out.Readings = v.readings(vol)
	out.Clones = v.clones(vol)
	out.Locality = placement.NewView(v.state, m.heardByPlacement(), m.now()).Locality(vol)
	return out, nil
}

func live(v *state.Volume) bool    { return v.Live() }
func trashed(v *state.Volume) bool { return v.Phase == state.PhaseTrash }

// findVolume is what ref means among the volumes of one kind.
func findVolume(s *state.State, ref string, kind func(*state.Volume) bool) (*state.Volume, error) {
	var all []api.Candidate
	for v := range s.Volumes() {
		if kind(v) {
			all = append(all, api.Candidate{ID: string(v.ID), Name: v.Name})
		}
	}
	id, err := api.Resolve("volume", ref, all)
	if err != nil {
		return nil, err
	}
	return s.Volume(volume.ID(id)), nil
}

// resolveNow is the ID of what ref means at a moment after the call began. What this
// node remembers is not enough to change something: a volume may have been made elsewhere
// since, or another one have taken the name, and "no such volume" has to be true. A call
// that was forwarded has been resolved already.
func (m *member) resolveNow(ctx context.Context, ref string, kind func(*state.Volume) bool) (string, error) {
	if _, forwarded := api.Caller(ctx); forwarded {
		return ref, nil
	}
	if err := m.catchUp(ctx); err != nil {
		return "", err
	}
	v, err := findVolume(m.cluster.State(), ref, kind)
	if err != nil {
		return "", err
	}
	return string(v.ID), nil
}

// findHere is findVolume on the leader. That nothing is there is only true of a leader
// that has proven itself: a new one may not have applied all yet, and one that was
// deposed may not know of it.
func (m *member) findHere(ctx context.Context, ref string, kind func(*state.Volume) bool) (*state.Volume, error) {
	v, err := findVolume(m.cluster.State(), ref, kind)
	if err == nil {
		return v, nil
	}
	if _, err := m.Barrier(ctx); err != nil {
		return nil, err
	}
	return findVolume(m.cluster.State(), ref, kind)
}

// CreateVolume implements api.Backend.
func (m *member) CreateVolume(ctx context.Context, req api.CreateVolumeRequest) (api.Volume, error) {
	if err := volume.ValidateName(req.Name); err != nil {
		return api.Volume{}, err
	}
	from, opts, err := volume.CutSource(req.Options)
	if err != nil {
		return api.Volume{}, err
	}
	var spec volume.Spec
	if from.IsZero() {
		if spec, err = volume.ParseOptions(opts); err != nil {
			return api.Volume{}, err
		}
		if spec.Whole() {
			return api.Volume{}, volume.Errorf(volume.CodeInvalid, "that a volume is all of its dataset (%s) cannot be chosen", volume.Subdir).
				WithHint("flockctl import POOL/DATASET makes one of a dataset that is there")
		}
		req.Node = cmp.Or(req.Node, m.self)
	}
	req.Request = cmp.Or(req.Request, newRequest())

	var made api.Volume
	err = m.onLeader(ctx, func(ctx context.Context, leader *api.Client) error {
		if leader != nil {
			made, err = leader.CreateVolume(ctx, req)
			return err
		}
		if from.IsZero() {
			made, err = m.createHere(ctx, req, spec)
		} else {
			made, err = m.cloneHere(ctx, req, from, opts)
		}
		return err
	})
	if err != nil {
		return api.Volume{}, err
	}
	// Docker asks this node next: it must know the volume by then.
	if err := m.cluster.CaughtUp(ctx, made.Index); err != nil {
		return api.Volume{}, waited(err, "volume %q is made, but this node has not heard of it yet", req.Name)
	}
	return made, nil
}

// createHere is CreateVolume on the leader.
func (m *member) createHere(ctx context.Context, req api.CreateVolumeRequest, spec volume.Spec) (api.Volume, error) {
	id := volume.NewID()
	old := m.cluster.State().VolumeByName(req.Name)
	if old != nil {
		// What is committed below proves that this node leads. An answer from the state
		// alone has to be proven: one that was deposed without having heard of it may
		// remember a volume that is gone.
		if _, err := m.Barrier(ctx); err != nil {
			return api.Volume{}, err
		}
		old = m.cluster.State().VolumeByName(req.Name)
	}
	if old != nil {
		if old.Phase == state.PhaseDeleting {
			return api.Volume{}, volume.Errorf(volume.CodeConflict, "volume %q is being removed", req.Name).WithHint("try again in a moment")
		}
		if !old.Spec.Equal(spec) {
			return api.Volume{}, volume.Errorf(volume.CodeConflict, "volume %q exists with other options (%s)",
				req.Name, optionText(old.Spec)).WithHint("choose another name, or give the same options")
		}
		id = old.ID
	} else {
		if err := m.knowsPlaces(volume.Spec{}, spec); err != nil {
			return api.Volume{}, err
		}
		p, short, err := m.place(ctx, spec, req.Node)
		if err != nil {
			return api.Volume{}, err
		}
		if !short.IsZero() {
			m.log.Warn("volume starts with fewer replicas than asked for", "volume", req.Name, "why", short.String())
		}
		res, err := m.commit(ctx, req.Request, state.CreateVolume{ID: id, Name: req.Name, Spec: spec, Placement: p})
		if err != nil {
			return api.Volume{}, err
		}
		id = res.Volume
		m.hurry(p.Primary)
	}
	return m.awaitCreated(ctx, id, req.Name)
}

// hurry makes another node, which people wait for, hear at once of what was just committed.
func (m *member) hurry(node volume.NodeID) {
	if node != m.self {
		m.cluster.Nudge()
	}
}

// spreadPatience is how long who has asked for a volume waits until others hear of it.
const spreadPatience = 50 * time.Millisecond

// awaitCreated returns when the primary has made the dataset and confirmed, or has
// given up.
func (m *member) awaitCreated(ctx context.Context, id volume.ID, name string) (api.Volume, error) {
	s, err := m.cluster.Wait(ctx, func(s *state.State) bool {
		v := s.Volume(id)
		return v == nil || v.Phase != state.PhaseCreating
	})
	if err != nil {
		return api.Volume{}, waited(err, "volume %q is still being made on %s", name, m.cluster.State().NodeName(m.primaryOf(id)))
	}
	v := s.Volume(id)
	if v == nil || !v.Live() {
		reason := "it was removed at once"
		if v != nil && v.LastRefusal != nil {
			reason = v.LastRefusal.Reason
		}
		return api.Volume{}, volume.Errorf(volume.CodeRefused, "volume %q could not be made: %s", name, reason)
	}
	// Where disks are slow it goes on by itself: who has asked makes more of them, perhaps.
	soon, cancel := context.WithTimeout(ctx, spreadPatience)
	defer cancel()
	m.spread(soon)
	return m.view().volume(v), nil
}

// spread makes the other nodes hear of what was just committed at once, instead of
// with the leader's next heartbeat: people type their next command elsewhere. It
// promises nothing, so an error does not matter.
func (m *member) spread(ctx context.Context) {
	if _, err := m.cluster.Barrier(ctx); err != nil {
		m.log.Debug("a change is not spread yet", "err", err)
	}
}

// place chooses nodes. Where an answer hangs on nodes that have not reported yet, as
// just after a change of leader, it waits a little for their reports.
func (m *member) place(ctx context.Context, spec volume.Spec, prefer volume.NodeID, among ...volume.NodeID) (volume.Placement, placement.Shortfall, error) {
	patience, cancel := context.WithTimeout(ctx, m.timers.Stale)
	defer cancel()
	for {
		changed := m.reports.Changed()
		p, short, err := placement.Place(placement.NewView(m.cluster.State(), m.heardByPlacement(), m.now()), spec, prefer, among...)
		if volume.CodeOf(err) != volume.CodeUnavailable {
			return p, short, err
		}
		select {
		case <-changed:
		case <-patience.Done():
			return p, short, err
		}
	}
}

// RemoveVolume implements api.Backend.
func (m *member) RemoveVolume(ctx context.Context, ref string, req api.RemoveVolumeRequest) error {
	req.Request = cmp.Or(req.Request, newRequest())
	ref, err := m.resolveNow(ctx, ref, live)
	if err != nil {
		return err
	}
	return m.onLeader(ctx, func(ctx context.Context, leader *api.Client) error {
		if leader != nil {
			return leader.RemoveVolume(ctx, ref, req)
		}
		v, err := m.findHere(ctx, ref, live)
		if old := m.cluster.State().Volume(volume.ID(ref)); err != nil && old != nil && old.Phase == state.PhaseTrash {
			return nil // done, but the answer was lost; or somebody else has removed it
		}
		if err != nil {
			return err
		}
		if v.Phase == state.PhaseElecting {
			return m.noPrimary(v)
		}
		// The primary has to agree; do not begin what it cannot answer.
		if _, h, known := m.view().status(v.Placement.Primary, v.ID); !known {
			return volume.Errorf(volume.CodeUnavailable, "volume %q: its primary %s has not reported for %s, so nobody knows whether it is in use",
				v.Name, m.cluster.State().NodeName(v.Placement.Primary), round(h.Age)).WithHint("try again when the node is back")
		}
		// A repeat does not remove what was brought back since.
		attempt := req.Request
		_, err = m.commit(ctx, req.Request, state.BeginDelete{ID: v.ID, Epoch: v.Epoch, Attempt: attempt})
		if err != nil {
			return err
		}
		return m.awaitAttempt(ctx, v, attempt, state.PhaseDeleting, "removing", func(now *state.Volume) bool { return !now.Live() }, func(reason string) state.Command {
			return state.AbortDelete{ID: v.ID, Epoch: v.Epoch, Attempt: attempt, Reason: reason}
		})
	})
}

// UpdateVolume implements api.Backend.
func (m *member) UpdateVolume(ctx context.Context, ref string, req api.UpdateVolumeRequest) (api.UpdateVolumeReply, error) {
	ref, err := m.resolveNow(ctx, ref, live)
	if err != nil {
		return api.UpdateVolumeReply{}, err
	}
	var out api.UpdateVolumeReply
	err = m.onLeader(ctx, func(ctx context.Context, leader *api.Client) (err error) {
		if leader != nil {
			out, err = leader.UpdateVolume(ctx, ref, req)
			return err
		}
		out, err = m.updateHere(ctx, volume.ID(ref), req)
		return err
	})
	if err != nil {
		return api.UpdateVolumeReply{}, err
	}
	return out, m.cluster.CaughtUp(ctx, out.Volume.Index)
}

// updateHere is UpdateVolume on the leader.
func (m *member) updateHere(ctx context.Context, id volume.ID, req api.UpdateVolumeRequest) (api.UpdateVolumeReply, error) {
	out := api.UpdateVolumeReply{}
	err := m.retryChanged(ctx, func() (state.Command, func() bool, error) {
		v := m.cluster.State().Volume(id)
		if v == nil || !v.Live() {
			return nil, nil, volume.Errorf(volume.CodeNotFound, "no volume %s", id)
		}
		next, err := v.Spec.Change(req.Options)
		if err != nil {
			return nil, nil, err
		}
		if err := m.mayGrow(v, next); err != nil {
			return nil, nil, err
		}
		if err := m.knowsPlaces(v.Spec, next); err != nil {
			return nil, nil, err
		}
		out.Changes = v.Spec.Changes(next)
		stale := func() bool {
			now := m.cluster.State().Volume(id)
			return now != nil && now.Changed != v.Changed
		}
		return state.UpdateSpec{ID: id, Spec: next, Changed: v.Changed}, stale, nil
	})
	if err != nil {
		return api.UpdateVolumeReply{}, err
	}
	m.spread(ctx)
	now := m.view()
	if v := now.state.Volume(id); v != nil {
		out.Volume = now.volume(v)
	}
	return out, nil
}

// knowsPlaces refuses nodes and zones in a spec that are not there.
func (m *member) knowsPlaces(was, spec volume.Spec) error {
	return placement.KnowsPlaces(placement.NewView(m.cluster.State(), m.heardByPlacement(), m.now()), was, spec)
}

// mayGrow refuses a limit that the nodes of a volume have no room for, or that is
// less than what the volume holds: ZFS would refuse that one later, on the primary,
// where nobody looks.
func (m *member) mayGrow(v *state.Volume, next volume.Spec) error {
	if next.Size == v.Spec.Size {
		return nil
	}
	st, _, known := m.view().status(v.Placement.Primary, v.ID)
	shrinks := next.Size > 0 && (v.Spec.Size == 0 || next.Size < v.Spec.Size)
	if shrinks && (!known || !st.Exists) {
		return volume.Errorf(volume.CodeUnavailable, "volume %q: its primary %s does not say how much it holds, so nobody knows whether %s are enough",
			v.Name, m.cluster.State().NodeName(v.Placement.Primary), volume.FormatSize(next.Size)).WithHint("try again when it can be asked")
	}
	if known && next.Size > 0 && st.Data > next.Size {
		return volume.Errorf(volume.CodeRefused, "volume %q holds %s already, more than %s", v.Name,
			volume.FormatSize(st.Data), volume.FormatSize(next.Size)).WithHint("remove data first, or give a larger size")
	}
	return placement.Grow(placement.NewView(m.cluster.State(), m.heardByPlacement(), m.now()), v, next)
}

// awaitAttempt waits until the primary has carried a pending operation out, which done
// tells, or refused it. Mine is the caller's attempt, which abort gives up: when ctx
// ends first it is given up, but never that of somebody who asked for the same thing
// earlier and goes on waiting for it.
func (m *member) awaitAttempt(ctx context.Context, v *state.Volume, mine string, phase state.Phase, doing string,
	done func(*state.Volume) bool, abort func(reason string) state.Command) error {
	attempt := mine
	if now := m.cluster.State().Volume(v.ID); now != nil && now.Pending != nil {
		attempt = now.Pending.Attempt
	}
	s, err := m.cluster.Wait(ctx, func(s *state.State) bool {
		now := s.Volume(v.ID)
		return now == nil || now.Phase != phase
	})
	if err != nil {
		if attempt != mine {
			return waited(err, "%s volume %q takes long, and somebody else waits for it, too", doing, v.Name)
		}
		gaveUp, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		reason := fmt.Sprintf("%s took too long", doing)
		if _, aerr := m.commit(gaveUp, "", abort(reason)); aerr != nil && volume.CodeOf(aerr) != volume.CodeConflict {
			return waited(errors.Join(err, aerr), "%s volume %q", doing, v.Name)
		}
		if now := m.cluster.State().Volume(v.ID); now == nil || done(now) {
			return nil // at the last moment
		}
		return volume.Errorf(volume.CodeTimeout, "%s volume %q took too long and was given up", doing, v.Name).
			WithHint("see `flockctl volume inspect %s`, then try again", v.Name)
	}
	m.spread(ctx)
	now := s.Volume(v.ID)
	switch {
	case now == nil || done(now):
		return nil
	case now.LastRefusal != nil && now.LastRefusal.Attempt == attempt:
		return volume.Errorf(volume.CodeConflict, "%s volume %q: %s", doing, v.Name, now.LastRefusal.Reason)
	}
	return volume.Errorf(volume.CodeConflict, "%s volume %q: something else came first", doing, v.Name).WithHint("try again")
}

// UndeleteVolume implements api.Backend.
func (m *member) UndeleteVolume(ctx context.Context, ref string, req api.UndeleteRequest) (api.Volume, error) {
	req.Request = cmp.Or(req.Request, newRequest())
	ref, err := m.resolveNow(ctx, ref, trashed)
	if err != nil {
		return api.Volume{}, err
	}
	var back api.Volume
	err = m.onLeader(ctx, func(ctx context.Context, leader *api.Client) (err error) {
		if leader != nil {
			back, err = leader.UndeleteVolume(ctx, ref, req)
			return err
		}
		// In whatever phase: it may be back already, and this a repeat.
		v, err := m.findHere(ctx, ref, func(v *state.Volume) bool { return trashed(v) || string(v.ID) == ref })
		if err != nil {
			return err
		}
		name := cmp.Or(req.Name, v.Name)
		if err := volume.ValidateName(name); err != nil {
			return err
		}
		if _, err := m.commit(ctx, req.Request, state.Undelete{ID: v.ID, Name: name}); err != nil {
			return err
		}
		m.spread(ctx)
		now := m.view()
		back = now.volume(now.state.Volume(v.ID))
		return nil
	})
	if err != nil {
		return api.Volume{}, err
	}
	return back, m.cluster.CaughtUp(ctx, back.Index)
}

// PurgeVolume implements api.Backend. What is destroyed is the volume as it was seen in the
// trash: one that is restored meanwhile stays.
func (m *member) PurgeVolume(ctx context.Context, ref string) error {
	ref, err := m.resolveNow(ctx, ref, trashed)
	if err != nil {
		return err
	}
	err = m.onLeader(ctx, func(ctx context.Context, leader *api.Client) error {
		if leader != nil {
			return leader.PurgeVolume(ctx, ref)
		}
		// In whatever phase: it may be purged already, and this a repeat.
		v, err := m.findHere(ctx, ref, func(v *state.Volume) bool { return trashed(v) || string(v.ID) == ref })
		if err != nil {
			return err
		}
		if _, err := m.commit(ctx, "", state.PurgeVolume{ID: v.ID, Changed: v.Changed}); err != nil {
			return err
		}
		m.spread(ctx)
		return nil
	})
	if err != nil {
		return err
	}
	if _, forwarded := api.Caller(ctx); forwarded {
		return nil
	}
	return m.catchUp(ctx)
}

// Acquire implements api.Peer, on the leader: it makes node the primary of a
// volume that nobody uses.
func (m *member) Acquire(ctx context.Context, id volume.ID, node volume.NodeID) error {
	return m.moveTo(ctx, id, node, false)
}

// moveTo makes a node the primary of a volume, on the leader. With follow the
// containers that follow it are stopped first and started there; without, a volume in
// use stays.
func (m *member) moveTo(ctx context.Context, id volume.ID, node volume.NodeID, follow bool) error {
	s := m.cluster.State()
	v := s.Volume(id)
	switch {
	case v == nil || !v.Live():
		return volume.Errorf(volume.CodeNotFound, "no volume %s", id)
	case v.Placement.Primary == node:
		return nil
	case v.Phase == state.PhaseElecting:
		return m.noPrimary(v)
	}
	if n := s.Node(node); n != nil && n.Availability == state.Drain {
		return volume.Errorf(volume.CodeRefused, "volume %q: node %s is being drained and takes no volumes", v.Name, n.Name).
			WithHint("start the container on another node, or end the drain with `flockctl node undrain %s`", n.Name)
	}
	st, h, known := m.view().status(v.Placement.Primary, id)
	primary := s.NodeName(v.Placement.Primary)
	if !known {
		return volume.Errorf(volume.CodeUnavailable, "volume %q: its primary %s has not reported for %s, so it may be in use there",
			v.Name, primary, round(h.Age)).WithHint("it can be mounted elsewhere when %s is back", primary)
	}
	if st.Volume == "" && h.Applied >= v.Changed {
		return volume.Errorf(volume.CodeUnavailable, "volume %q: its primary %s has not read its disk yet", v.Name, primary).
			WithHint("try again in a moment; `flockctl node inspect %s` says what it waits for", primary)
	}
	if st.Problem != "" && !st.Exists {
		return volume.Errorf(volume.CodeUnavailable, "volume %q: on its primary %s: %s", v.Name, primary, st.Problem)
	}
	if v.Placement.Role(node) == volume.RoleNone {
		if err := m.addReplica(ctx, v, node); err != nil {
			return err
		}
	}
	attempt := newRequest()
	if _, err := m.commit(ctx, "", state.BeginHandoff{ID: id, Epoch: v.Epoch, To: node, Attempt: attempt, Follow: follow}); err != nil {
		return err
	}
	return m.awaitAttempt(ctx, v, attempt, state.PhaseMoving, "moving", func(now *state.Volume) bool { return now.Placement.Primary == node }, func(reason string) state.Command {
		return state.AbortHandoff{ID: id, Epoch: v.Epoch, Attempt: attempt, Reason: reason}
	})
}

// addReplica puts a copy on the node where the volume is wanted, besides the ones it
// has, and waits until that copy is complete.
func (m *member) addReplica(ctx context.Context, v *state.Volume, node volume.NodeID) error {
	s := m.cluster.State()
	n := s.Node(node)
	if n == nil || n.Witness {
		return volume.Errorf(volume.CodeConflict, "volume %q cannot be mounted on %s: that node has no pool", v.Name, s.NodeName(node))
	}
	// Repair may change the replicas at the same time; then this looks again.
	for tries := 5; v.Placement.Role(node) == volume.RoleNone; tries-- {
		p := v.Placement
		if home := s.Node(p.Primary); home != nil && home.Zone != n.Zone {
			p.Remote = append(slices.Clone(p.Remote), node)
		} else {
			p.Local = append(slices.Clone(p.Local), node)
		}
		_, err := m.commit(ctx, "", state.SetReplicas{ID: v.ID, Epoch: v.Epoch, Local: p.Local, Remote: p.Remote, Changed: v.Changed})
		now := m.cluster.State().Volume(v.ID)
		switch {
		case now == nil:
			return volume.Errorf(volume.CodeNotFound, "no volume %s", v.ID)
		case err != nil && (volume.CodeOf(err) != volume.CodeConflict || tries == 0 || now.Changed == v.Changed || now.Epoch != v.Epoch):
			return err
		}
		v = now
	}
	return m.pollReports(ctx, func() bool {
		st, _, known := m.view().status(v.Placement.Primary, v.ID)
		return known && slices.ContainsFunc(st.Links, func(l volume.LinkStatus) bool {
			return l.Replica == node && !l.Acked.IsZero()
		})
	}, "volume %q has no copy on %s yet; the first one is under way, try again", v.Name, s.NodeName(node))
}

func (m *member) primaryOf(id volume.ID) volume.NodeID {
	if v := m.cluster.State().Volume(id); v != nil {
		return v.Placement.Primary
	}
	return ""
}

// optionText is a spec as a user would have typed it.
func optionText(s volume.Spec) string {
	var out []string
	for k, val := range s.Options() {
		out = append(out, k+"="+val)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// waited turns the end of a context into a refusal that says what was waited for.
func waited(err error, format string, args ...any) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return volume.Errorf(volume.CodeTimeout, format, args...).WithHint("it goes on; look again in a moment")
	}
	return err
}
