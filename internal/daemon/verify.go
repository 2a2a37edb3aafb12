package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

const (
	// verifyPatience is how long replicas may take to get the snapshot.
	verifyPatience = time.Minute
	// verifyTries is how often a new snapshot is taken because a replica had pruned the
	// last one before it could be mounted there.
	verifyTries = 5
)

// verifier is what one node knows of its own reading and of what it has found out.
type verifier struct {
	mu      sync.Mutex
	reading string                        // name of the volume that is being read here; "": none
	last    *reading                      // what is being read, or was last; nil: nothing yet
	differ  map[volume.ID]differingCopies // of volumes whose primary this node is
}

// differingCopies are the replicas that a verify found to be unlike the primary's copy.
type differingCopies struct {
	epoch volume.Epoch
	at    time.Time
	nodes []volume.NodeID
}

// begin takes the one slot of a node for reading whole copies.
func (f *verifier) begin(name string) (end func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reading != "" {
		return nil, volume.Errorf(volume.CodeConflict, "a copy of volume %q is being read there already, and a node reads one at a time", f.reading).
			WithHint("try again when that is done")
	}
	f.reading = name
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.reading = ""
		if f.last != nil {
			f.last.done = true
		}
	}, nil
}

// reading is one copy of a snapshot as it is being read.
type reading struct {
	volume       volume.ID
	guid         uint64
	bytes, total atomic.Int64
	done         bool // guarded by verifier.mu
}

// track begins to tell how far the reading is for which the slot was taken.
func (f *verifier) track(req api.SumRequest) *reading {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = &reading{volume: req.Volume, guid: req.GUID}
	return f.last
}

// told is the reading as this node reports it.
func (f *verifier) told() *volume.Reading {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last == nil {
		return &volume.Reading{}
	}
	return &volume.Reading{Volume: f.last.volume, GUID: f.last.guid, Bytes: f.last.bytes.Load(), Total: f.last.total.Load(), Done: f.last.done}
}

// note remembers what a verify has found: copies that differ, or that none does.
func (f *verifier) note(v *state.Volume, at time.Time, copies []api.CopySum) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.differ == nil {
		f.differ = map[volume.ID]differingCopies{}
	}
	old := f.differ[v.ID]
	if old.epoch != v.Epoch {
		old.nodes = nil
	}
	found := differingCopies{epoch: v.Epoch, at: at}
	for _, c := range copies {
		// What could not be read this time differs as long as nobody has seen otherwise.
		if c.Differs || c.Error != "" && slices.Contains(old.nodes, c.Node.ID) {
			found.nodes = append(found.nodes, c.Node.ID)
		}
	}
	f.differ[v.ID] = found
	if len(found.nodes) == 0 {
		delete(f.differ, v.ID)
	}
}

// problems are sentences about copies that differ, as long as they are replicas of
// volumes whose primary is this node.
func (f *verifier) problems(s *state.State, self volume.NodeID) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, id := range sortedKeys(f.differ) {
		d, v := f.differ[id], s.Volume(id)
		if v == nil || !v.Live() || v.Placement.Primary != self || v.Epoch != d.epoch {
			delete(f.differ, id)
			continue
		}
		var names []string
		for _, n := range d.nodes {
			if v.Placement.Role(n) == volume.RoleReplica {
				names = append(names, s.NodeName(n))
			}
		}
		if len(names) > 0 {
			out = append(out, fmt.Sprintf("volume %s: the copy on %s differs from the primary's, as verified at %s",
				v.Name, strings.Join(names, ", "), d.at.UTC().Format(time.RFC3339)))
		}
	}
	return out
}

// VerifyVolume implements api.Backend.
func (m *member) VerifyVolume(ctx context.Context, ref string, req api.VerifyRequest) (out api.VerifyReply, err error) {
	if req.Patience < 0 {
		return out, volume.Errorf(volume.CodeInvalid, "the time to wait cannot be negative")
	}
	v, err := findVolume(m.cluster.State(), ref, live)
	if err != nil {
		return out, err
	}
	err = m.onPrimary(ctx, v, func(ctx context.Context, primary *api.Client) (err error) {
		if primary != nil {
			out, err = primary.VerifyVolume(ctx, string(v.ID), req)
			return err
		}
		out, err = m.verifyHere(ctx, v, cmp.Or(req.Patience, verifyPatience))
		return err
	})
	return out, err
}

// verifyHere is VerifyVolume on the primary.
func (m *member) verifyHere(ctx context.Context, v *state.Volume, patience time.Duration) (api.VerifyReply, error) {
	var out api.VerifyReply
	for try := 1; ; try++ {
		again, err := false, error(nil)
		out, again, err = m.verifyOnce(ctx, v, patience)
		if err != nil {
			return api.VerifyReply{}, err
		}
		if !again || try == verifyTries {
			break
		}
	}
	m.verifier.note(v, m.now(), out.Copies)
	if out.Differ {
		m.tellDifference(ctx, v, out)
	}
	return out, nil
}

// tellDifference puts what nobody should miss into the cluster's events. That it could
// not be told does not change what was found.
func (m *member) tellDifference(ctx context.Context, v *state.Volume, out api.VerifyReply) {
	var names []string
	for _, c := range out.Copies {
		if c.Differs {
			names = append(names, c.Node.String())
		}
	}
	text := fmt.Sprintf("volume %s: the copy on %s differs from the primary's on %s in snapshot %s",
		v.Name, strings.Join(names, ", "), out.Copies[0].Node, out.Snapshot)
	m.log.Error("copies of a volume differ", "volume", v.Name, "replicas", names, "snapshot", out.Snapshot)
	if _, err := m.propose(ctx, state.Tell{Volume: v.ID, Kind: state.VolumeDiffers, Message: text}); err != nil {
		m.log.Warn("a difference could not be put into the events of the cluster", "volume", v.Name, "err", err)
	}
}

// verifyOnce takes one snapshot and has every node read it. again says that a replica
// did not have it any more by then.
func (m *member) verifyOnce(ctx context.Context, v *state.Volume, patience time.Duration) (out api.VerifyReply, again bool, err error) {
	// Replicas that are known not to answer are not waited for.
	silent := map[volume.NodeID]string{}
	var asked []volume.NodeID
	for _, l := range m.repl.Links(v.ID) {
		if l.Error != "" && (l.State == volume.LinkConnecting || l.State == volume.LinkRefused || l.State == volume.LinkLagging) {
			silent[l.Replica] = fmt.Sprintf("it is %s: %s", l.Shown(), l.Error)
			continue
		}
		asked = append(asked, l.Replica)
	}
	for _, id := range v.Placement.Replicas() {
		if silent[id] == "" && !slices.Contains(asked, id) {
			silent[id] = "its link has not begun yet"
		}
	}
	wait, cancel := context.WithTimeout(ctx, patience)
	pos, err := m.repl.SyncTo(wait, v.ID, asked)
	cancel()
	switch {
	case ctx.Err() != nil:
		return out, false, context.Cause(ctx)
	case pos.IsZero():
		return out, false, fmt.Errorf("taking a snapshot of volume %q: %w", v.Name, err)
	case err != nil:
		for _, l := range m.repl.Links(v.ID) {
			if l.Acked.Compare(pos) < 0 && silent[l.Replica] == "" {
				silent[l.Replica] = fmt.Sprintf("it did not get the snapshot within %s (%s)", round(patience), cmp.Or(l.Error, string(l.Shown())))
			}
		}
	}

	out = api.VerifyReply{Volume: v.Name, Snapshot: pos.SnapshotName(), Taken: pos.Taken}
	nodes := append([]volume.NodeID{m.self}, v.Placement.Replicas()...)
	out.Copies = make([]api.CopySum, len(nodes))
	errs := make([]error, len(nodes))
	req := api.SumRequest{Volume: v.ID, GUID: pos.GUID}
	var all sync.WaitGroup
	for i, id := range nodes {
		c := &out.Copies[i]
		*c = api.CopySum{Node: m.view().ref(id), Role: v.Placement.Role(id), Error: silent[id]}
		switch {
		case c.Error != "":
		case id == m.self:
			all.Go(func() { c.Sum, errs[i] = m.sumHere(ctx, req) })
		default:
			all.Go(func() {
				errs[i] = m.whileHeard(ctx, id, func(ctx context.Context) (err error) {
					c.Sum, err = m.client(id).Sum(ctx, req)
					return err
				})
			})
		}
	}
	all.Wait()
	if ctx.Err() != nil {
		return out, false, context.Cause(ctx)
	}
	if errs[0] != nil && volume.CodeOf(errs[0]) != volume.CodeNotFound {
		return out, false, fmt.Errorf("reading the primary's copy of volume %q: %w", v.Name, errs[0])
	}
	for i, err := range errs {
		if err != nil {
			out.Copies[i].Error = err.Error()
			again = again || volume.CodeOf(err) == volume.CodeNotFound
		}
	}
	compareSums(&out)
	return out, again, nil
}

// compareSums says which copies differ from the first one, the primary's.
func compareSums(out *api.VerifyReply) {
	for i := range out.Copies {
		c := &out.Copies[i]
		c.Differs = i > 0 && c.Error == "" && out.Copies[0].Error == "" && !c.Sum.Same(out.Copies[0].Sum)
		out.Differ = out.Differ || c.Differs
		out.Unread = out.Unread || c.Error != ""
	}
}

// tidyEvery is how often what could not be closed in time is looked for.
const tidyEvery = time.Minute

// tidyTrees closes what a crash has left open, and what was left since: a snapshot that is
// mounted for ever could never be pruned. It is no reason for the node not to start.
func (m *member) tidyTrees(ctx context.Context) error {
	first := sync.OnceFunc(func() { close(m.tidied) })
	for delay := time.Second; ctx.Err() == nil; {
		err := m.trees.Tidy(ctx)
		if err == nil {
			first()
			delay = time.Second
			pause(ctx, tidyEvery)
			continue
		}
		m.log.Warn("what an earlier verify left open cannot be closed", "err", err)
		pause(ctx, delay)
		delay = min(2*delay, tidyEvery)
	}
	return nil
}

// Sum implements api.Peer.
func (m *member) Sum(ctx context.Context, req api.SumRequest) (api.Sum, error) {
	return m.sumHere(ctx, req)
}

// sumHere reads this node's copy of one snapshot. While it is mounted for that, no
// retention can take it away.
func (m *member) sumHere(ctx context.Context, req api.SumRequest) (api.Sum, error) {
	v := m.cluster.State().Volume(req.Volume)
	if v == nil || m.repl == nil || m.trees == nil {
		return api.Sum{}, volume.Errorf(volume.CodeRefused, "this node has no copy of volume %s that it could read", req.Volume)
	}
	select {
	case <-m.tidied:
	default:
		return api.Sum{}, volume.Errorf(volume.CodeUnavailable, "this node still closes what an earlier verify has left open").
			WithHint("its log says what is in the way")
	}
	end, err := m.verifier.begin(v.Name)
	if err != nil {
		return api.Sum{}, err
	}
	defer end()
	ctx, read, err := m.readers.begin(ctx, m.dataset(req.Volume))
	if err != nil {
		return api.Sum{}, err
	}
	defer read()
	if err := m.trees.Tidy(ctx); err != nil {
		return api.Sum{}, fmt.Errorf("closing what an earlier verify has left open: %w", err)
	}
	gone := volume.Errorf(volume.CodeNotFound, "volume %q: the snapshot to verify is not here any more", v.Name).WithHint("try again")
	list, err := m.repl.Snapshots(ctx, req.Volume)
	if err != nil {
		return api.Sum{}, named(err, v)
	}
	for _, s := range list {
		if s.GUID != req.GUID {
			continue
		}
		tree, err := m.trees.Open(ctx, m.dataset(req.Volume)+"@"+s.Name)
		if errors.Is(err, zfs.ErrNotFound) {
			return api.Sum{}, gone
		}
		if err != nil {
			return api.Sum{}, fmt.Errorf("opening snapshot %s: %w", s.Name, err)
		}
		sum, err := sumTracked(ctx, tree, m.verifier.track(req))
		return sum, errors.Join(err, tree.Close())
	}
	return api.Sum{}, gone
}

// sumTracked is sumTree that tells how far it is. How much there is to be read is counted
// beside it: names cost little, and what was counted is in memory when the reader comes.
func sumTracked(ctx context.Context, t Tree, r *reading) (api.Sum, error) {
	counting, stop := context.WithCancel(ctx)
	var beside sync.WaitGroup
	beside.Go(func() {
		// What hinders the counting meets the reader too, who says so.
		if n, err := countTree(counting, t); err == nil {
			r.total.Store(n)
		}
	})
	sum, err := sumTree(ctx, t, func(n int) { r.bytes.Add(int64(n)) })
	stop()
	beside.Wait()
	if err == nil {
		r.total.Store(sum.Bytes)
	}
	return sum, err
}

// Holds implements api.Peer. To have no copy is an error: who asks may believe that what
// this node lacks of one was destroyed here because nobody needed it.
func (m *member) Holds(ctx context.Context, id volume.ID, guids []uint64) (map[uint64]bool, error) {
	if m.repl == nil {
		return nil, volume.Errorf(volume.CodeRefused, "this node has no pool")
	}
	return m.repl.Holds(ctx, id, guids)
}
