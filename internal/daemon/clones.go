package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
)

const (
	// pointPatience is how long a replica may take to get the snapshot that is to be cloned
	// on its node.
	pointPatience = 30 * time.Second
	// replicaPatience is how long a clone waits for it that could be made on the primary as
	// well: it is to be there at once.
	replicaPatience = 10 * time.Second
	// closeBehind is how much a replica that is being sent something may lack to count as one
	// that has in a moment what is taken now.
	closeBehind = 10 * time.Second
	// cloneTries is how often another snapshot is taken because retention was quicker than
	// the clone that would have kept it.
	cloneTries = 3
)

// cloneHere is CreateVolume on the leader, for a volume that is a clone. What is committed proves that this
// node leads, and the state machine looks again whether the original is there. All else, a refusal
// and what is there already, is said by a leader that has proven itself. What took long to be refused is not
// tried again for that.
func (m *member) cloneHere(ctx context.Context, req api.CreateVolumeRequest, from volume.Source, opts map[string]string) (api.Volume, error) {
	c := cloning{req: req, from: from, opts: opts}
	var refusal error
	// One that has just been elected may not know all yet.
	if m.leases.Load() != nil {
		made, err := m.cloneBy(ctx, &c)
		if c.proven {
			return made, err
		}
		refusal = err
	}
	if _, err := m.Barrier(ctx); err != nil {
		return api.Volume{}, err
	}
	if c.stands(m.cluster.State()) {
		return api.Volume{}, refusal
	}
	c = cloning{req: req, from: from, opts: opts, proven: true}
	return m.cloneBy(ctx, &c)
}

// cloning is one try to make a clone on the leader.
type cloning struct {
	req    api.CreateVolumeRequest
	from   volume.Source
	opts   map[string]string
	proven bool // this node has led at some moment after the call
	// refused is the original as it was when nodes were asked for a snapshot of it, or for a place for the clone,
	// if that was refused; else nil.
	refused *state.Volume
}

// stands says that what was refused would be refused again: what nodes were asked for is the same
// still. The state makes a new Volume for each change.
func (c *cloning) stands(s *state.State) bool {
	if c.refused == nil || s.VolumeByName(c.req.Name) != nil {
		return false
	}
	v, err := original(s, c.from)
	return err == nil && v == c.refused
}

// errUnproven is what cloneBy returns where it has an answer that nobody may be given yet.
var errUnproven = errors.New("this node has not proven yet that it leads")

// cloneBy makes the clone. Unless it is proven, then or before, that this node leads, what it returns is no
// answer.
func (m *member) cloneBy(ctx context.Context, c *cloning) (api.Volume, error) {
	if made, there, err := m.clonedAlready(ctx, c); there {
		return made, err
	}
	if who := m.unaware(knowsClones); who != "" {
		return api.Volume{}, volume.Errorf(volume.CodeRefused, "node %s runs a version of flocker that knows no clones", who).WithHint("upgrade flocker there first")
	}
	for try := 1; ; try++ {
		c.refused = nil
		// As it is now: what was taken may be gone because it has got another primary.
		s := m.cluster.State()
		v, err := original(s, c.from)
		if err != nil {
			return api.Volume{}, err
		}
		spec, err := v.Spec.Clone(c.opts)
		if err != nil {
			return api.Volume{}, err
		}
		if err := m.knowsPlaces(v.Spec, spec); err != nil {
			return api.Volume{}, err
		}
		if c.req.Node != "" && v.Placement.Role(c.req.Node) == volume.RoleNone {
			return api.Volume{}, noCopyOn(s, v, c.req.Node)
		}
		made, again, err := m.cloneOnce(ctx, c, v, spec)
		if !again || try == cloneTries {
			return made, err
		}
		m.log.Info("the snapshot that was to be cloned is gone already; another one is taken", "volume", c.req.Name, "of", v.Name, "err", err)
		c.from.Volume = string(v.ID) // whatever has its name by then
	}
}

// clonedAlready is what is there of the clone's name, if anything is: it is the answer when it was asked for in
// the same words.
func (m *member) clonedAlready(ctx context.Context, c *cloning) (made api.Volume, there bool, err error) {
	s := m.cluster.State()
	old := s.VolumeByName(c.req.Name)
	switch {
	case old == nil:
		return api.Volume{}, false, nil
	case !c.proven:
		return api.Volume{}, true, errUnproven
	}
	if err := sameClone(s, old, c.from, c.opts); err != nil {
		return api.Volume{}, true, err
	}
	made, err = m.awaitCreated(ctx, old.ID, c.req.Name)
	return made, true, err
}

// cloneOnce makes the clone of one snapshot. again says that this was taken for it and is
// gone, so that another one may do.
func (m *member) cloneOnce(ctx context.Context, c *cloning, v *state.Volume, spec volume.Spec) (made api.Volume, again bool, err error) {
	req, from := c.req, c.from
	prefer := m.self
	if node, forwarded := api.Caller(ctx); forwarded {
		prefer = node
	}
	var point api.Point
	var p volume.Placement
	if from.Snapshot == "" {
		point, p, err = m.pointNow(ctx, v, spec, prefer, req.Node)
	} else {
		point, p, err = m.pointNamed(ctx, v, spec, prefer, req.Node, from.Snapshot)
	}
	if err != nil {
		c.refused = v
		return api.Volume{}, from.Snapshot == "" && volume.CodeOf(err) == volume.CodeNotFound, err
	}
	if err := fits(v, spec, point); err != nil {
		c.refused = v
		return api.Volume{}, false, err
	}
	id := volume.NewID()
	// Another snapshot is another request: asked for again after the leader has changed, it is
	// not answered with what became of the first one.
	res, err := m.commit(ctx, fmt.Sprintf("%s/%016x", req.Request, point.GUID), state.CreateVolume{ID: id, Name: req.Name, Spec: spec, Placement: p,
		Clone: &state.CloneOf{Volume: v.ID, Name: v.Name, Snapshot: point.Name, GUID: point.GUID, Now: from.Snapshot == ""}})
	c.proven = c.proven || err == nil || res.Err != nil // a refusal of the state machine was agreed on, too
	if err != nil {
		if res.Err != nil {
			// Somebody was faster, perhaps with the same words.
			if made, there, terr := m.clonedAlready(ctx, c); there {
				return made, false, terr
			}
		}
		return api.Volume{}, false, err
	}
	m.hurry(p.Primary)
	made, err = m.awaitCreated(ctx, res.Volume, req.Name)
	if volume.CodeOf(err) == volume.CodeRefused && from.Snapshot == "" {
		_, gone := m.point(ctx, p.Primary, api.PointRequest{Volume: v.ID, Name: point.Name})
		again = volume.CodeOf(gone) == volume.CodeNotFound
	}
	return made, again, err
}

// fits refuses a limit that the data of the snapshot exceeds: the clone could not be made, or
// not be written.
func fits(v *state.Volume, spec volume.Spec, point api.Point) error {
	if spec.Size == 0 || point.Referenced <= spec.Size {
		return nil
	}
	return volume.Errorf(volume.CodeRefused, "snapshot %s of volume %q holds %s, more than size=%s", point.Name, v.Name,
		volume.FormatSize(point.Referenced), volume.FormatSize(spec.Size)).WithHint("give a larger size, or leave it out to have the original's")
}

// original is the volume that is to be cloned.
func original(s *state.State, from volume.Source) (*state.Volume, error) {
	v, err := findVolume(s, from.Volume, live)
	if volume.CodeOf(err) == volume.CodeNotFound {
		if _, terr := findVolume(s, from.Volume, trashed); terr == nil {
			return nil, volume.Errorf(volume.CodeNotFound, "no volume %q: it is in the trash", from.Volume).
				WithHint("flockctl volume undelete %s brings it back", from.Volume)
		}
	}
	switch {
	case err != nil:
		return nil, err
	case v.Phase == state.PhaseCreating:
		return nil, volume.Errorf(volume.CodeConflict, "volume %q is still being made", v.Name).WithHint("try again in a moment")
	case v.Phase == state.PhaseDeleting:
		return nil, volume.Errorf(volume.CodeConflict, "volume %q is being removed", v.Name).WithHint("flockctl volume undelete %s brings it back when that is done", v.Name)
	}
	return v, nil
}

// sameClone says why a volume of that name is not the clone that is asked for, with these
// words, again: Compose and Swarm ask for the same each time. What became of the original
// since does not matter.
func sameClone(s *state.State, old *state.Volume, from volume.Source, opts map[string]string) error {
	other := func(format string, args ...any) error {
		return volume.Errorf(volume.CodeConflict, "volume %q exists already, "+format, append([]any{old.Name}, args...)...).
			WithHint("choose another name, or give the same options")
	}
	c := old.Clone
	if old.Phase == state.PhaseDeleting {
		return volume.Errorf(volume.CodeConflict, "volume %q is being removed", old.Name).WithHint("try again in a moment")
	}
	if c == nil {
		return other("and is no clone of %q", from.Volume)
	}
	if from.Volume != c.Name && from.Volume != string(c.Volume) {
		if v, err := findVolume(s, from.Volume, live); err != nil || v.ID != c.Volume {
			return other("as a clone of %q", c.Name)
		}
	}
	switch {
	case from.Snapshot == "" && !c.Now, from.Snapshot != "" && from.Snapshot != c.Snapshot:
		return other("as a clone of %s@%s", c.Name, c.Snapshot)
	case !old.Spec.As(opts):
		return other("with other options (%s)", optionText(old.Spec))
	}
	return nil
}

func noCopyOn(s *state.State, v *state.Volume, node volume.NodeID) error {
	what := fmt.Sprintf("node %s has no copy of it", s.NodeName(node))
	if n := s.Node(node); n != nil && n.Witness {
		what = fmt.Sprintf("node %s is a witness and has no copies", n.Name)
	}
	var names []string
	for _, id := range v.Placement.Nodes() {
		names = append(names, s.NodeName(id))
	}
	return volume.Errorf(volume.CodeRefused, "volume %q cannot be cloned there: %s", v.Name, what).
		WithHint("its copies are on %s: give one of these, or no node", strings.Join(names, ", "))
}

// pointNow takes a snapshot for a clone, once it is known where that will be, and has it
// there. It is one of the engine's: the clone pins it, and when that is gone, it goes.
func (m *member) pointNow(ctx context.Context, v *state.Volume, spec volume.Spec, prefer, on volume.NodeID) (api.Point, volume.Placement, error) {
	if v.Phase == state.PhaseElecting {
		return api.Point{}, volume.Placement{}, m.noPrimary(v)
	}
	s, primary := m.cluster.State(), v.Placement.Primary
	st, h, known := m.view().status(primary, v.ID)
	if !known {
		return api.Point{}, volume.Placement{}, volume.Errorf(volume.CodeUnavailable, "volume %q: its primary %s has not reported for %s, so no snapshot can be taken now",
			v.Name, s.NodeName(primary), round(h.Age)).
			WithHint("try again when the node is back, or clone a snapshot that a replica has: --node NODE with %s@SNAPSHOT", v.Name)
	}
	among := []volume.NodeID{on}
	if on == "" {
		among = holders(v, st, h.At)
	}
	p, err := m.placeClone(ctx, v, spec, st.Used, prefer, among)
	if err != nil {
		return api.Point{}, volume.Placement{}, err
	}
	req := api.PointRequest{Volume: v.ID}
	if p.Primary != primary {
		req.For = p.Primary
	}
	if on != "" || req.For == "" {
		point, err := m.point(ctx, primary, req)
		return point, p, err
	}
	wait, cancel := context.WithTimeout(ctx, replicaPatience)
	point, err := m.point(wait, primary, req)
	late := wait.Err() != nil
	cancel()
	if err == nil || ctx.Err() != nil || !late && volume.CodeOf(err) != volume.CodeUnavailable {
		return point, p, err
	}
	m.log.Info("the replica does not get what is to be cloned; it is cloned on the primary", "of", v.Name, "replica", s.NodeName(req.For), "err", err)
	if p, err = m.placeClone(ctx, v, spec, st.Used, prefer, []volume.NodeID{primary}); err != nil {
		return api.Point{}, volume.Placement{}, err
	}
	point, err = m.point(ctx, primary, api.PointRequest{Volume: v.ID})
	return point, p, err
}

// holders are the nodes where a snapshot that is taken now will be in a moment, by what the
// primary said then, by its own clock.
func holders(v *state.Volume, primary volume.Status, then time.Time) []volume.NodeID {
	out := []volume.NodeID{v.Placement.Primary}
	for _, l := range primary.Links {
		soon := l.State == volume.LinkInSync || l.State == volume.LinkSending && !l.CompleteAsOf.IsZero() && then.Sub(l.CompleteAsOf) <= closeBehind
		if v.Placement.Role(l.Replica) == volume.RoleReplica && soon && l.Error == "" {
			out = append(out, l.Replica)
		}
	}
	return out
}

// pointNamed finds a snapshot that people name, and where its clone will be. Its primary
// need not be there, if a replica has it.
func (m *member) pointNamed(ctx context.Context, v *state.Volume, spec volume.Spec, prefer, on volume.NodeID, name string) (api.Point, volume.Placement, error) {
	s, primary := m.cluster.State(), v.Placement.Primary
	ask := v.Placement.Nodes()
	if on != "" {
		ask = slices.Compact([]volume.NodeID{primary, on})
	}
	points, errs := make([]api.Point, len(ask)), make([]error, len(ask))
	var all sync.WaitGroup
	for i, node := range ask {
		all.Go(func() { points[i], errs[i] = m.point(ctx, node, api.PointRequest{Volume: v.ID, Name: name}) })
	}
	all.Wait()
	if ctx.Err() != nil {
		return api.Point{}, volume.Placement{}, context.Cause(ctx)
	}
	// A replica that is asked for and has not got it yet gets it; perhaps it still has one that
	// was removed, and that the name was given to again.
	if i := slices.Index(ask, on); i > 0 && errs[0] == nil && lacksPoint(points[0], points[i], errs[i]) {
		if _, err := m.point(ctx, primary, api.PointRequest{Volume: v.ID, Name: name, For: on}); err != nil {
			return api.Point{}, volume.Placement{}, err
		}
		points[i], errs[i] = m.point(ctx, on, api.PointRequest{Volume: v.ID, Name: name})
	}
	point, among, err := agreed(s, v, name, on, ask, points, errs)
	if err != nil {
		return api.Point{}, volume.Placement{}, err
	}
	p, err := m.placeClone(ctx, v, spec, point.Referenced, prefer, among)
	return point, p, err
}

// lacksPoint says that a replica answered, and has not the primary's snapshot.
func lacksPoint(primary, its api.Point, err error) bool {
	return err == nil && its.GUID != primary.GUID || volume.CodeOf(err) == volume.CodeNotFound
}

// agreed is which snapshot of that name is meant, and which of the nodes that were asked
// have it: the primary's, if it answers. That it has none is an answer, too, but to who asks
// for a certain node's. With on, "" for any, among is that one.
func agreed(s *state.State, v *state.Volume, name string, on volume.NodeID, asked []volume.NodeID, points []api.Point, errs []error) (point api.Point, among []volume.NodeID, err error) {
	var silent []string
	if asked[0] == v.Placement.Primary && on == "" && volume.CodeOf(errs[0]) == volume.CodeNotFound {
		missing := noPoint(v, name)
		if i := slices.IndexFunc(errs, func(err error) bool { return err == nil }); i >= 0 {
			missing = missing.WithHint("its primary has none any more; %s still has: --node %[1]s clones that", s.NodeName(asked[i]))
		}
		return api.Point{}, nil, missing
	}
	for i, node := range asked {
		switch {
		case errs[i] == nil && point.GUID == 0:
			point, among = points[i], []volume.NodeID{node}
		case errs[i] == nil && points[i].GUID == point.GUID:
			among = append(among, node)
		case errs[i] == nil && errs[0] != nil:
			return api.Point{}, nil, volume.Errorf(volume.CodeConflict, "volume %q: several snapshots are called %s on its replicas, and its primary %s cannot be asked which one is meant",
				v.Name, name, s.NodeName(asked[0])).WithHint("say with --node which replica's")
		case errs[i] != nil && volume.CodeOf(errs[i]) != volume.CodeNotFound:
			silent = append(silent, s.NodeName(node))
		}
	}
	switch {
	case len(among) > 0 && (on == "" || slices.Contains(among, on)):
		if on != "" {
			among = []volume.NodeID{on}
		}
		return point, among, nil
	case len(among) > 0:
		if i := slices.Index(asked, on); i >= 0 && errs[i] != nil && volume.CodeOf(errs[i]) != volume.CodeNotFound {
			return api.Point{}, nil, errs[i]
		} else if i >= 0 && errs[i] == nil {
			return api.Point{}, nil, volume.Errorf(volume.CodeRefused, "volume %q: the copy on %s has another snapshot of the name %s than its primary",
				v.Name, s.NodeName(on), name).WithHint("leave --node out to clone that of %s", s.NodeName(among[0]))
		}
		return api.Point{}, nil, volume.Errorf(volume.CodeRefused, "volume %q: the copy on %s lacks snapshot %s, which is older than that copy, or was removed there",
			v.Name, s.NodeName(on), name).WithHint("it is on %s: leave --node out", s.NodeName(among[0]))
	case len(silent) > 0:
		return api.Point{}, nil, volume.Errorf(volume.CodeUnavailable, "volume %q: no node that answers has a snapshot %s, and %s cannot be asked", v.Name, name, strings.Join(silent, ", ")).
			WithHint("try again when it is back")
	}
	return api.Point{}, nil, noPoint(v, name)
}

func noPoint(v *state.Volume, name string) *volume.Error {
	return volume.Errorf(volume.CodeNotFound, "volume %q has no snapshot %s", v.Name, name).
		WithHint("flockctl snapshot list %s shows what there is; without @%s the clone is of now", v.Name, name)
}

// placeClone chooses where a clone is made, among the nodes with what it is made of, and
// where its replicas will be. It takes no room there but for what will be written to it, while
// each replica may get all that it is made of: bytes. One that has the original does not, if all
// is as it should be.
func (m *member) placeClone(ctx context.Context, v *state.Volume, spec volume.Spec, bytes int64, prefer volume.NodeID, among []volume.NodeID) (volume.Placement, error) {
	takes := spec
	takes.Size = 0
	if spec.Replicas+spec.Remote > 0 {
		takes.Size = bytes
	}
	p, short, err := m.place(ctx, takes, prefer, among...)
	if err != nil {
		return volume.Placement{}, err
	}
	if !short.IsZero() {
		m.log.Warn("clone starts with fewer replicas than asked for", "of", v.Name, "why", short.String())
	}
	return p, nil
}

// point asks a node, this one or another, for a snapshot.
func (m *member) point(ctx context.Context, node volume.NodeID, req api.PointRequest) (out api.Point, err error) {
	if node == m.self {
		return m.Point(ctx, req)
	}
	if !m.hears(node) {
		return out, volume.Errorf(volume.CodeUnavailable, "node %s is not heard of", m.cluster.State().NodeName(node)).WithHint("try again when it is back")
	}
	err = m.whileHeard(ctx, node, func(ctx context.Context) (err error) {
		out, err = m.client(node).Point(ctx, req)
		return err
	})
	return out, err
}

// Point implements api.Peer.
func (m *member) Point(ctx context.Context, req api.PointRequest) (api.Point, error) {
	v := m.cluster.State().Volume(req.Volume)
	if v == nil || m.repl == nil {
		return api.Point{}, volume.Errorf(volume.CodeRefused, "this node has no copy of volume %s", req.Volume)
	}
	name, taken := req.Name, volume.Position{}
	if req.Name == "" || req.For != "" {
		pos, err := m.pointFor(ctx, v, req.For)
		if err != nil {
			return api.Point{}, err
		}
		if name == "" {
			name, taken = pos.SnapshotName(), pos
		}
	}
	// Many clones are often made of one at once.
	got, err := m.points.Ask(ctx, api.PointRequest{Volume: v.ID, Name: name}, func(ctx context.Context) (found pointFound, err error) {
		asked := time.Now()
		found.Snapshot, found.ok, err = m.repl.SnapshotNamed(ctx, v.ID, name)
		if err == nil && found.ok {
			m.agent.Pointed(v.ID, name, found.GUID, asked)
		}
		return found, err
	})
	switch {
	case err != nil:
		return api.Point{}, named(err, v)
	case !got.ok || !taken.IsZero() && got.GUID != taken.GUID:
		return api.Point{}, volume.Errorf(volume.CodeNotFound, "volume %q: the copy on %s has no snapshot %s", v.Name, m.cluster.State().NodeName(m.self), name)
	}
	return api.Point{Name: name, GUID: got.GUID, Taken: got.Taken, Referenced: got.Referenced}, nil
}

// pointFound is a snapshot of a copy here, if it has one of that name.
type pointFound struct {
	replicate.Snapshot
	ok bool
}

// pointFor takes a snapshot on the primary, and returns when that replica has it.
func (m *member) pointFor(ctx context.Context, v *state.Volume, replica volume.NodeID) (volume.Position, error) {
	began := time.Now() // the clock of replication
	wait, cancel := context.WithTimeout(ctx, pointPatience)
	defer cancel()
	var to []volume.NodeID
	if replica != "" {
		to = append(to, replica)
	}
	pos, err := m.repl.SyncTo(wait, v.ID, to)
	switch {
	case err == nil:
		return pos, nil
	case ctx.Err() != nil:
		return pos, context.Cause(ctx)
	case wait.Err() != nil && !pos.IsZero():
		links := slices.DeleteFunc(m.repl.Links(v.ID), func(l volume.LinkStatus) bool { return l.Replica != replica })
		return pos, volume.Errorf(volume.CodeUnavailable, "volume %q: the copy to be cloned did not get its snapshot within %s: %s", v.Name, round(time.Since(began)),
			strings.Join(lacking(links, pos, began, m.cluster.State().NodeName), "; ")).
			WithHint("try again, or clone it on %s: leave --node out", m.cluster.State().NodeName(m.self))
	}
	return pos, named(err, v)
}

// clones are the volumes that were made of one, for people.
func (v view) clones(vol *state.Volume) []api.Clone {
	var out []api.Clone
	for _, c := range v.state.Clones(vol.ID) {
		out = append(out, api.Clone{ID: c.ID, Name: c.Name, Snapshot: c.Clone.Snapshot, Primary: v.ref(c.Placement.Primary), Trash: !c.Live()})
	}
	slices.SortFunc(out, func(a, b api.Clone) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return out
}

// clonedElsewhere are the clones of a snapshot, in words, that have a copy where the original has
// one that is not its primary's: there the snapshot would stay, and come back with a failover.
func clonedElsewhere(s *state.State, v *state.Volume, guid uint64) (names []string) {
	for _, c := range s.Clones(v.ID) {
		shares := slices.ContainsFunc(v.Placement.Replicas(), func(n volume.NodeID) bool { return c.Placement.Role(n) != volume.RoleNone })
		switch {
		case c.Clone.GUID != guid || !shares:
		case c.Live():
			names = append(names, fmt.Sprintf("volume %q", c.Name))
		default:
			names = append(names, fmt.Sprintf("volume %q in the trash", c.Name))
		}
	}
	slices.Sort(names)
	return names
}

// cloneOf is what a volume is a clone of, for people.
func (v view) cloneOf(vol *state.Volume) *api.CloneOf {
	c := vol.Clone
	if c == nil {
		return nil
	}
	out := api.CloneOf{Volume: c.Volume, Name: c.Name, Snapshot: c.Snapshot, GUID: c.GUID}
	if now := v.state.Volume(c.Volume); now != nil {
		out.Name = now.Name
	}
	return &out
}

// inWords replaces the datasets that a refusal of replication tells of by the volumes that
// people know.
func (m *member) inWords(err error) error {
	var e *volume.Error
	if !errors.As(err, &e) || !strings.Contains(e.Hint, m.layout.Pool+"/") {
		return err
	}
	c := *e
	for v := range m.cluster.State().Volumes() {
		c.Hint = strings.ReplaceAll(c.Hint, m.layout.Dataset(v.ID), fmt.Sprintf("volume %q", v.Name))
		c.Hint = strings.ReplaceAll(c.Hint, m.layout.TrashDataset(v.ID), fmt.Sprintf("volume %q in the trash", v.Name))
	}
	return &c
}
