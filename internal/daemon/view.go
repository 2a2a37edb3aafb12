package daemon

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/placement"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// heard is the newest report of a node, and how old it is by this node's clock.
type heard struct {
	volume.Report
	Age time.Duration
}

// view is one moment as this node knows it: what is agreed and what was reported.
// Everything people see of volumes is made from it, by pure functions.
type view struct {
	state *state.State
	stale time.Duration // a report older than this says nothing any more
	heard func(volume.NodeID) (heard, bool)
	// waits says of volumes without a primary what the leader waits for.
	waits map[volume.ID]string
	// reunions are those of volumes that came apart; nil: not known.
	reunions func() []placement.Reunion
}

// ref names a node for people.
func (v view) ref(id volume.NodeID) api.NodeRef {
	if id == "" {
		return api.NodeRef{}
	}
	return api.NodeRef{ID: id, Name: v.state.NodeName(id)}
}

// status is a node's last word about one volume. ok is false when it never said
// anything or when its word is too old.
func (v view) status(node volume.NodeID, id volume.ID) (volume.Status, heard, bool) {
	h, ok := v.heard(node)
	if !ok || h.Age > v.stale {
		return volume.Status{}, h, false
	}
	// A report lists its volumes in order of ID.
	i, found := slices.BinarySearchFunc(h.Volumes, id, func(s volume.Status, id volume.ID) int {
		return cmp.Compare(s.Volume, id)
	})
	if !found {
		return volume.Status{}, h, true
	}
	return h.Volumes[i], h, true
}

// volume describes one volume for people. It never says ok of what was not
// acknowledged, and not known is told apart from bad.
func (v view) volume(vol *state.Volume) api.Volume {
	out := api.Volume{
		ID: vol.ID, Name: vol.Name, Phase: string(vol.Phase), Spec: vol.Spec,
		Primary: v.ref(vol.Placement.Primary), Epoch: vol.Epoch, Index: vol.Changed,
		Created: vol.Created, Deleted: vol.Deleted, From: v.cloneOf(vol),
	}
	if vol.LastRefusal != nil {
		out.LastRefusal = vol.LastRefusal.Reason
	}
	if f := vol.LastFailover; f != nil {
		out.LastFailover = &api.LastFailover{From: v.ref(f.From), To: v.ref(f.To), At: f.At, Start: f.Start, CompleteAsOf: f.AsOf, LossBytes: f.Bytes}
		if f.Loss != nil {
			seconds := f.Loss.Seconds()
			out.LastFailover.LossSeconds = &seconds
		}
	}
	if !vol.Live() {
		out.PurgeAfter = vol.Deleted.Add(v.state.Cluster().Settings.TrashKeep())
	}
	st, from, known := v.status(vol.Placement.Primary, vol.ID)
	if known {
		out.AsOf = from.At
		out.Used, out.Data, out.Mounted = st.Used, st.Data, st.Mounted
		for _, h := range st.Holders {
			out.Holders = append(out.Holders, api.Holder{Holder: h, Node: out.Primary})
		}
	}
	for _, kind := range []struct {
		of    api.ReplicaKind
		nodes []volume.NodeID
	}{{api.ReplicaLocal, vol.Placement.Local}, {api.ReplicaRemote, vol.Placement.Remote}} {
		for _, n := range kind.nodes {
			out.Replicas = append(out.Replicas, v.replica(vol, n, kind.of, st, from, known))
		}
	}
	out.Health, out.Reason = v.health(vol, out, st, known)
	return out
}

func (v view) replica(vol *state.Volume, node volume.NodeID, kind api.ReplicaKind, st volume.Status, from heard, known bool) api.Replica {
	r := api.Replica{Node: v.ref(node), Kind: kind, State: volume.LinkConnecting}
	if vol.Phase == state.PhaseElecting {
		r.Error = "the volume has no primary"
		return r
	}
	if !known {
		r.Error = "its primary has not reported lately"
		return r
	}
	i := slices.IndexFunc(st.Links, func(l volume.LinkStatus) bool { return l.Replica == node })
	if i < 0 {
		return r
	}
	l := st.Links[i]
	r.State, r.Acked, r.Error = l.Shown(), l.Acked, l.Error
	if !l.Failing.IsZero() {
		r.FailingSeconds = max(0, from.At.Sub(l.Failing)+from.Age).Seconds()
		if r.State == volume.LinkConnecting && v.tellsBehind(vol, node, l, st) {
			if own, _, _ := v.status(node, vol.ID); ofHistory(vol, own.Newest) {
				r.State = volume.LinkLagging
			} else {
				r.Error += "; its copy, of before this primary, is not compared yet"
			}
		}
	}
	r.LagBytes, r.SentBytes, r.TotalBytes = l.LagBytes, l.SentBytes, l.TotalBytes
	r.Stream, r.Base, r.Began = l.Stream, l.Base, l.Began
	r.Rate, r.Limit, r.Streamed = l.Rate, l.Limit, l.Streamed
	if !l.CompleteAsOf.IsZero() {
		// Both times are the primary's own; the age of its report comes on top.
		lag := max(0, from.At.Sub(l.CompleteAsOf)+from.Age).Seconds()
		r.LagSeconds = &lag
	}
	return r
}

// tellsBehind says that a replica which has not spoken to this primary since that began says
// itself that it has a whole copy, and an older one. That counts as a copy that is behind, not
// as acknowledged: how far is not known.
func (v view) tellsBehind(vol *state.Volume, node volume.NodeID, l volume.LinkStatus, primary volume.Status) bool {
	own, _, _ := v.status(node, vol.ID) // nothing, if it was not heard of lately
	return l.Acked.IsZero() && own.Exists && !own.Newest.IsZero() && own.Newest.Compare(primary.Newest) < 0
}

// ofHistory says that a copy which stands there is known to have gone no other way than its
// primary: it was made in this epoch, or in the one before up to where this one begins. What
// is beyond that, or older, is for the primary to compare.
func ofHistory(vol *state.Volume, newest volume.Position) bool {
	return newest.Epoch == vol.Epoch || newest.Epoch == vol.Start.Epoch && newest.Compare(vol.Start) <= 0
}

// readings are how far the nodes with a copy have got with reading it, once one of them has
// said that it does; of those that were not heard of lately nothing is said.
func (v view) readings(vol *state.Volume) []api.Reading {
	var out []api.Reading
	any := false
	for _, n := range append([]volume.NodeID{vol.Placement.Primary}, vol.Placement.Replicas()...) {
		h, ok := v.heard(n)
		if !ok || h.Age > v.stale {
			continue
		}
		r := api.Reading{Node: v.ref(n), Told: h.Reading != nil}
		if r.Told && h.Reading.Volume == vol.ID {
			any = true
			r.GUID, r.Bytes, r.Total, r.Done = h.Reading.GUID, h.Reading.Bytes, h.Reading.Total, h.Reading.Done
		}
		out = append(out, r)
	}
	if !any {
		return nil
	}
	return out
}

// health is the worst of a volume's parts, with the reason in words.
func (v view) health(vol *state.Volume, out api.Volume, st volume.Status, known bool) (api.Health, string) {
	type finding struct {
		health api.Health
		reason string
	}
	var found []finding
	add := func(h api.Health, format string, args ...any) {
		found = append(found, finding{h, fmt.Sprintf(format, args...)})
	}
	switch vol.Phase {
	case state.PhaseTrash, state.PhasePurged:
		return api.HealthTrash, ""
	case state.PhaseCreating:
		add(api.HealthCreating, "being made on %s", out.Primary)
	case state.PhaseMoving:
		if back := vol.Pending.Rollback; back != nil {
			add(api.HealthMoving, "going back to its snapshot %s", back.Snapshot)
		} else {
			add(api.HealthMoving, "moving to %s", v.ref(vol.Pending.To))
		}
	case state.PhaseDeleting:
		add(api.HealthDeleting, "being removed")
	}
	switch h, ok := v.heard(vol.Placement.Primary); {
	case vol.Phase == state.PhaseElecting:
		add(api.HealthUnavailable, "getting another primary than %s (%s): %s", v.ref(vol.Election.Was), vol.Election.Reason,
			cmp.Or(v.waits[vol.ID], "its copies are being asked"))
	case !known && ok:
		add(api.HealthUnknown, "primary %s was last heard of %s ago", out.Primary, round(h.Age))
	case !known:
		add(api.HealthUnknown, "primary %s has not reported yet", out.Primary)
	case st.Volume == "" && h.Applied >= vol.Changed:
		add(api.HealthUnknown, "primary %s has not looked at it yet", out.Primary)
	case !st.Exists && vol.Phase != state.PhaseCreating && st.Volume != "" && h.Applied < vol.Changed:
		// Seen before the volume became what it is: it may be there by now.
		add(api.HealthUnknown, "primary %s has not looked at it yet", out.Primary)
	case !st.Exists && vol.Phase != state.PhaseCreating && st.Volume != "":
		add(api.HealthFailed, "the dataset is missing on %s", out.Primary)
	case st.Problem != "":
		add(api.HealthDegraded, "on %s: %s", out.Primary, st.Problem)
	}
	if vol.Phase == state.PhaseElecting {
		return found[0].health, found[0].reason
	}
	if want, have := vol.Spec.Replicas, len(vol.Placement.Local); have < want {
		add(api.HealthDegraded, "%d of %d local replicas placed", have, want)
	}
	if want, have := vol.Spec.Remote, len(vol.Placement.Remote); have < want {
		add(api.HealthDegraded, "%d of %d remote replicas placed", have, want)
	}
	if known && vol.Phase != state.PhaseCreating {
		for _, r := range out.Replicas {
			patience := v.state.Cluster().Settings.ReplaceAfter()
			h, ok := v.heard(r.Node.ID)
			if ok && h.Age > v.stale {
				bad := api.HealthLagging
				if h.Age >= patience {
					bad = api.HealthDegraded
				}
				add(bad, "%s", placement.Silence(r.Node.Name, h.Age, patience))
			}
			switch r.State {
			case volume.LinkSeeding:
				add(api.HealthSeeding, "first copy to %s under way", r.Node)
			case volume.LinkLagging:
				add(outOfReach(r, ok && h.Age <= v.stale, patience), "%s", behind(r))
			case volume.LinkConnecting:
				if r.Error == "" {
					add(api.HealthSeeding, "%s is being asked what it holds", r.Node)
					continue
				}
				bad := api.HealthDegraded
				if !r.Acked.IsZero() && r.FailingSeconds > 0 {
					bad = outOfReach(r, ok && h.Age <= v.stale, patience)
				}
				add(bad, "%s cannot be reached: %s", r.Node, r.Error)
			case volume.LinkRefused:
				add(api.HealthDegraded, "%s refuses: %s", r.Node, r.Error)
			}
		}
	}
	worst, reasons := api.HealthOK, []string{}
	for _, f := range found {
		worst = api.Worst(worst, f.health)
		reasons = append(reasons, f.reason)
	}
	return worst, strings.Join(reasons, "; ")
}

// outOfReach is how a volume fares whose replica has a copy and fails, or is only slow. It
// lags; but one whose node is not there either, or that nobody has reached for as long as a
// lost one is waited for, is a replica too few.
func outOfReach(r api.Replica, alive bool, patience time.Duration) api.Health {
	if r.FailingSeconds > 0 && (!alive || r.FailingSeconds >= patience.Seconds()) {
		return api.HealthDegraded
	}
	return api.HealthLagging
}

// behind says of a replica that lags by how much, and why as far as that is known.
func behind(r api.Replica) string {
	words := fmt.Sprintf("%s is behind", r.Node)
	if r.LagSeconds != nil {
		words += " by " + roughly(*r.LagSeconds)
	}
	if r.FailingSeconds > 0 {
		words += " and could not be brought up to date for " + roughly(r.FailingSeconds)
	}
	if r.Error != "" {
		words += ": " + r.Error
	}
	return words
}

func roughly(seconds float64) string {
	return round(time.Duration(seconds * float64(time.Second))).String()
}

// dockerStatus is what `docker volume inspect` shows under Status.
func dockerStatus(vol api.Volume) map[string]any {
	var replicas []map[string]any
	for _, r := range vol.Replicas {
		m := map[string]any{"node": r.Node.String(), "kind": r.Kind, "state": r.State}
		if r.LagSeconds != nil {
			m["lag_seconds"] = round(time.Duration(*r.LagSeconds * float64(time.Second))).Seconds()
		}
		if r.Error != "" {
			m["error"] = r.Error
		}
		if !r.Acked.IsZero() {
			m["snapshot"] = r.Acked.SnapshotName()
		}
		replicas = append(replicas, m)
	}
	status := map[string]any{
		"id": vol.ID, "health": vol.Health, "phase": vol.Phase, "epoch": uint64(vol.Epoch),
		"primary": vol.Primary.String(), "replicas": replicas, "options": vol.Spec.Options(),
		"used_bytes": vol.Used, "data_bytes": vol.Data, "mounted": vol.Mounted,
	}
	if vol.Reason != "" {
		status["reason"] = vol.Reason
	}
	if vol.From != nil {
		status["from"] = vol.From.Name + "@" + vol.From.Snapshot
	}
	if vol.Spec.Size > 0 {
		status["size_bytes"] = vol.Spec.Size
	}
	if len(vol.Holders) > 0 {
		var by []string
		for _, h := range vol.Holders {
			by = append(by, cmp.Or(h.Name, h.Container, "a starting container")+" on "+h.Node.String())
		}
		status["used_by"] = by
	}
	return status
}

func round(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(10 * time.Millisecond)
	}
	return d.Round(time.Second)
}
