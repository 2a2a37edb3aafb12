package daemon

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/placement"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
)

// undonePatience is how long a rollback that is over is not said to be before the report of
// its node has the set-aside copy that people want to know of. There is none where a node
// was promoted meanwhile that had nothing beyond the snapshot.
const undonePatience = 15 * time.Second

// RollBack implements api.Backend.
func (m *member) RollBack(ctx context.Context, ref string, req api.RollbackRequest) (out api.Rollback, err error) {
	if ref, err = m.resolveNow(ctx, ref, live); err != nil {
		return out, err
	}
	req.Request = cmp.Or(req.Request, newRequest())
	err = m.onLeader(ctx, func(ctx context.Context, leader *api.Client) (err error) {
		if leader != nil {
			out, err = leader.RollBack(ctx, ref, req)
			return err
		}
		out, err = m.rollBackHere(ctx, ref, req)
		return err
	})
	if err != nil {
		return api.Rollback{}, err
	}
	return out, m.cluster.CaughtUp(ctx, out.Index)
}

// rollBackHere is RollBack on the leader. Whatever can be refused is before anything is
// stopped; the primary looks once more, at its own disk, before it stops anything. The attempt
// follows from the request, so that a repeat whose first answer was lost, which may come when the
// rollback is over and its containers run again, is no second one.
func (m *member) rollBackHere(ctx context.Context, ref string, req api.RollbackRequest) (api.Rollback, error) {
	v, err := m.findHere(ctx, ref, live)
	if err != nil {
		return api.Rollback{}, err
	}
	attempt := attemptOf(v.ID, req.Request)
	if !req.DryRun {
		if known, err := m.rollback(v, attempt); err == nil {
			return known, nil
		}
	}
	if v.Phase == state.PhaseElecting {
		return api.Rollback{}, m.noPrimary(v)
	}
	if p := v.Pending; p != nil && p.Rollback != nil && p.Rollback.Snapshot == req.Snapshot && !req.DryRun {
		return m.rollback(v, p.Attempt)
	}
	if v, err = m.recorded(ctx, v, true); err != nil {
		return api.Rollback{}, err
	}
	containers, err := placement.CanRollBack(placement.NewView(m.cluster.State(), m.heardByPlacement(), m.now()), v)
	if err != nil {
		return api.Rollback{}, err
	}
	list, err := m.snapshotsOf(ctx, v)
	if err != nil {
		return api.Rollback{}, err
	}
	plan, to, err := planRollback(v, list, req.Snapshot)
	if err != nil {
		return api.Rollback{}, err
	}
	if !req.DryRun && !req.Newer && len(plan.Newer) > 0 {
		return api.Rollback{}, volume.Errorf(volume.CodeRefused, "volume %q has snapshots that are newer than %s and would stay with what is undone, in a set-aside copy: %s",
			v.Name, req.Snapshot, strings.Join(plan.Newer, ", ")).WithHint("flockctl rollback asks, or takes --yes")
	}
	if req.DryRun {
		out := m.describeRollback(v, req.Snapshot, api.RollbackPlanned)
		out.Taken, out.WrittenBytes, out.Newer, out.Containers = plan.Taken, plan.WrittenBytes, plan.Newer, containers
		return out, nil
	}
	if err := m.onReplica(ctx, v, to); err != nil {
		return api.Rollback{}, err
	}
	if _, err := m.commit(ctx, "", state.BeginRollback{ID: v.ID, Epoch: v.Epoch, Attempt: attempt, To: to}); err != nil {
		return api.Rollback{}, err
	}
	if v = m.cluster.State().Volume(v.ID); v == nil {
		return api.Rollback{}, volume.Errorf(volume.CodeNotFound, "no volume %s", ref)
	}
	if v.Pending != nil && v.Pending.Rollback != nil {
		attempt = v.Pending.Attempt // perhaps of somebody who asked for the same a moment ago
	}
	out, err := m.rollback(v, attempt)
	out.Taken, out.WrittenBytes, out.Newer, out.Containers = plan.Taken, plan.WrittenBytes, plan.Newer, containers
	return out, err
}

// recordPatience is how long a rollback or a migration waits for the records of containers that have just
// been started: its user has seen them start. It is two looks at them (followEvery).
const recordPatience = 10 * time.Second

// recorded waits until the containers are recorded that use a volume where it is and are to follow it, or
// all that go with it; alone as in placement.Unrecorded. The volume is as it is by then. On the leader.
func (m *member) recorded(ctx context.Context, v *state.Volume, alone bool) (*state.Volume, error) {
	patience, cancel := context.WithTimeout(ctx, recordPatience)
	defer cancel()
	for {
		changed, heard := m.cluster.Changed(), m.reports.Changed()
		now := m.cluster.State().Volume(v.ID)
		if now == nil {
			return nil, volume.Errorf(volume.CodeNotFound, "volume %q is gone", v.Name)
		}
		err := placement.Unrecorded(placement.NewView(m.cluster.State(), m.heardByPlacement(), m.now()), now, alone)
		if err == nil {
			return now, nil
		}
		select {
		case <-changed:
		case <-heard:
		case <-patience.Done():
			return nil, err
		}
	}
}

// attemptOf is the ID of the rollback that was asked for by this request.
func attemptOf(id volume.ID, request string) string {
	sum := sha256.Sum256([]byte("rollback " + string(id) + " " + request))
	return hex.EncodeToString(sum[:8])
}

// onReplica sees to it that a volume with replicas has the snapshot that it is to go back to on one
// of them. From the commit on nobody else could be promoted who has not got it, also of those that
// would have been a moment before, until the first of them has followed.
func (m *member) onReplica(ctx context.Context, v *state.Volume, to state.RollbackTo) error {
	nodes := v.Placement.Nodes()[1:]
	lack := lackOf(to, nodes, m.askReplicas(ctx, v, to, nodes))
	if lack == "" {
		return nil
	}
	// What was taken a moment ago is there as soon as one is in sync.
	if _, err := m.point(ctx, v.Placement.Primary, api.PointRequest{Volume: v.ID, Name: to.Snapshot, For: lack}); err != nil {
		return fmt.Errorf("bringing snapshot %s of volume %q to a replica first: %w", to.Snapshot, v.Name, err)
	}
	if lackOf(to, nodes, m.askReplicas(ctx, v, to, nodes)) == "" {
		return nil
	}
	return volume.Errorf(volume.CodeRefused, "volume %q cannot be rolled back: no replica that answers has its snapshot %s, so none could be promoted if %s were lost right after",
		v.Name, to.Snapshot, m.cluster.State().NodeName(v.Placement.Primary)).
		WithHint("flockctl clone makes a volume of what was there then; snapshots of replication go by themselves, on each node at another time")
}

// found is what a node said that was asked for a snapshot.
type found struct {
	guid uint64
	err  error
}

// askReplicas asks all of them at once for the snapshot of that name.
func (m *member) askReplicas(ctx context.Context, v *state.Volume, to state.RollbackTo, nodes []volume.NodeID) []found {
	out := make([]found, len(nodes))
	var all sync.WaitGroup
	for i, node := range nodes {
		all.Go(func() {
			p, err := m.point(ctx, node, api.PointRequest{Volume: v.ID, Name: to.Snapshot})
			out[i] = found{p.GUID, err}
		})
	}
	all.Wait()
	return out
}

// lackOf is a replica that lacks the snapshot where none is known to have it; "": one has it, or none
// can say. Whoever does not answer may have it, and may have been away when it was taken.
func lackOf(to state.RollbackTo, nodes []volume.NodeID, said []found) (lack volume.NodeID) {
	for i, f := range said {
		switch {
		case f.err == nil && f.guid == to.GUID:
			return ""
		case lack == "" && (f.err == nil || volume.CodeOf(f.err) == volume.CodeNotFound):
			lack = nodes[i]
		}
	}
	return lack
}

// snapshotsOf are the snapshots of a volume as its primary has them on its disk. It is for
// the leader, which others have asked.
func (m *member) snapshotsOf(ctx context.Context, v *state.Volume) (out []api.Snapshot, err error) {
	if v.Placement.Primary == m.self {
		list, err := m.repl.Snapshots(ctx, v.ID)
		return forPeople(list), named(err, v)
	}
	err = m.whilePrimary(ctx, v, func(ctx context.Context) (err error) {
		out, err = m.client(v.Placement.Primary).Snapshots(ctx, string(v.ID))
		return err
	})
	return out, err
}

// planRollback says what going back to the snapshot of that name would undo, from all that a
// volume has, oldest first.
func planRollback(v *state.Volume, list []api.Snapshot, name string) (plan api.Rollback, to state.RollbackTo, err error) {
	for _, s := range list {
		switch {
		case s.Name == name:
			to, plan.Taken = state.RollbackTo{Snapshot: s.Name, GUID: s.GUID}, s.Taken
		case to.GUID == 0:
		default:
			plan.WrittenBytes += s.Written
			if s.Kind != replicate.KindEngine {
				plan.Newer = append(plan.Newer, s.Name)
			}
		}
	}
	if to.GUID == 0 {
		return plan, to, volume.Errorf(volume.CodeNotFound, "volume %q has no snapshot %s", v.Name, name).
			WithHint("flockctl snapshot list %s shows them, with --all those of replication, too", v.Name)
	}
	return plan, to, nil
}

// Rollback implements api.Backend. Every node has the state and the reports.
func (m *member) Rollback(_ context.Context, ref, id string) (api.Rollback, error) {
	v, err := findVolume(m.cluster.State(), ref, live)
	if err != nil {
		return api.Rollback{}, err
	}
	return m.rollback(v, id)
}

// rollback of a volume by its ID; "": the newest.
func (m *member) rollback(v *state.Volume, id string) (api.Rollback, error) {
	if p := v.Pending; p != nil && p.Rollback != nil && (id == "" || p.Attempt == id) {
		out := m.describeRollback(v, p.Rollback.Snapshot, api.RollbackRunning)
		out.ID, out.Began, out.Doing = p.Attempt, p.Began, "its containers are being stopped"
		return out, nil
	}
	if r := v.LastRefusal; r != nil && r.Attempt == id && id != "" {
		out := m.describeRollback(v, "", api.RollbackFailed)
		out.ID, out.Reason, out.Ended = id, r.Reason, r.At
		return out, nil
	}
	if r := v.RolledBack; r != nil && (id == "" || r.Attempt == id) {
		return m.rolledBack(v, r), nil
	}
	if id != "" {
		return api.Rollback{}, volume.Errorf(volume.CodeNotFound, "volume %q: nothing is known of rollback %s any more", v.Name, id)
	}
	return api.Rollback{}, volume.Errorf(volume.CodeNotFound, "volume %q was never rolled back", v.Name)
}

// rolledBack is a rollback that was committed: it is done once the primary has set aside what
// was undone, and the containers run again.
func (m *member) rolledBack(v *state.Volume, r *state.RolledBack) api.Rollback {
	out := m.describeRollback(v, r.Snapshot, api.RollbackRunning)
	out.ID, out.Began = r.Attempt, r.Began
	s := m.cluster.State()
	for _, a := range m.view().asides().Asides {
		if a.Volume == v.ID && a.Node.ID == v.Placement.Primary && a.Epoch == r.Final.Epoch && a.Reason == replicate.Undone(v.Line()) {
			out.Undone = a.Name // the newest is last
		}
	}
	st, _, known := m.view().status(v.Placement.Primary, v.ID)
	switch {
	case v.Phase == state.PhaseElecting:
		out.Doing = "it is getting another primary"
		return out
	case !known || !st.Exists || st.Epoch < v.Line().Epoch:
		out.Doing = "what was undone is being set aside"
		if st.Problem != "" {
			out.Doing += ": " + st.Problem
		}
		return out
	case out.Undone == "" && m.now().Sub(r.At).Abs() < undonePatience:
		out.Doing = "what was undone is being set aside"
		return out
	}
	for _, c := range s.ContainersOf(v.ID) {
		for _, cv := range c.Volumes {
			if cv.ID == v.ID && cv.Epoch < r.Epoch && c.Run && !c.Blocked {
				out.Doing = fmt.Sprintf("container %s is starting", c.Name)
				return out
			}
		}
	}
	out.State, out.Ended = api.RollbackDone, r.At
	return out
}

func (m *member) describeRollback(v *state.Volume, snapshot string, in api.RollbackState) api.Rollback {
	view := m.view()
	return api.Rollback{Volume: v.ID, Name: v.Name, Node: view.ref(v.Placement.Primary), Snapshot: snapshot, State: in, Index: view.state.Index}
}
