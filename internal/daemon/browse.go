package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/browse"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs"
)

// browseSlots is how many readers of snapshots a node has at a time. Each may have a mount,
// and as many directories open as may lie in each other.
const browseSlots = 4

// slots counts who reads.
type slots struct {
	mu    sync.Mutex
	taken int
}

// take is false when all are taken.
func (s *slots) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken == browseSlots {
		return false
	}
	s.taken++
	return true
}

func (s *slots) give() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
}

// Browse implements api.Backend. Which snapshot a name means is the primary's to say; when it
// cannot be asked, or the volume has none, a copy's own name for it has to do.
func (m *member) Browse(ctx context.Context, ref string, req api.BrowseRequest) (*api.Browsed, error) {
	v, err := findVolume(m.cluster.State(), ref, live)
	if err != nil {
		return nil, err
	}
	one := api.BrowseCopyRequest{Volume: v.ID, GUID: req.GUID, Snapshot: req.Snapshot, Since: req.Since, Path: req.Path, As: req.As, Bases: req.Bases}
	if req.Snapshot != "" || req.Since != "" {
		list, err := m.Snapshots(ctx, string(v.ID))
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err == nil {
			if one.GUID, err = guidOf(v, list, req.Snapshot); err == nil {
				one.SinceGUID, err = guidOf(v, list, req.Since)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	var why []string
	var missing error // what those say who may be behind
	unknown := false  // somebody could not be asked
	may := m.mayRead
	if req.As == api.AsStream {
		may = m.maySend
	}
	for _, r := range sources(v, m.self, req.Snapshot == "" && req.GUID == 0, may) {
		if r.why != "" {
			why, unknown = append(why, m.cluster.State().NodeName(r.node)+": "+r.why), true
			continue
		}
		b, err := m.browseOn(ctx, r.node, one)
		if volume.CodeOf(err) != volume.CodeConflict {
			unknown = true
		}
		switch {
		case err == nil:
			if r.node != m.self {
				m.noteReading("a snapshot of another node's copy is being read through this one", b, req.Path, "on", r.node)
			}
			return b, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case final(err, r.node == v.Placement.Primary, one.GUID != 0):
			return nil, named(err, v)
		case volume.CodeOf(err) == volume.CodeNotFound:
			missing = err
			continue
		}
		why = append(why, m.cluster.State().NodeName(r.node)+": "+err.Error())
	}
	if missing != nil {
		return nil, volume.Errorf(volume.CodeNotFound, "%v; what could not be asked: %s", missing, strings.Join(why, "; ")).
			WithHint("what its primary has may be more: try again later")
	}
	what := "a snapshot of volume " + fmt.Sprintf("%q", v.Name)
	if len(req.Bases) > 0 {
		what = "an increment of volume " + fmt.Sprintf("%q", v.Name)
	}
	if req.Snapshot != "" {
		what = fmt.Sprintf("snapshot %s of volume %q", req.Snapshot, v.Name)
	}
	if req.As == api.AsStream && !unknown && len(why) > 0 {
		code, text := volume.CodeNotFound, "%s is on no node: %s"
		if len(req.Bases) > 0 {
			code, text = volume.CodeConflict, "%s cannot be sent as what came since an earlier backup: %s"
		}
		return nil, volume.Errorf(code, text, what, strings.Join(why, "; "))
	}
	hint := ""
	if len(req.Bases) > 0 {
		hint = "; a full backup does not need what could not be asked"
	}
	return nil, volume.Errorf(volume.CodeUnavailable, "%s can be read on no node now: %s%s", what, strings.Join(why, "; "), hint).
		WithHint("flockctl snapshot list %s shows what its primary has", v.Name)
}

// final says that no other node has to be asked: it would not know better. A copy may be
// behind, have a snapshot of another time by that name, or be on a disk that is broken.
func final(err error, primary, exact bool) bool {
	switch volume.CodeOf(err) {
	case volume.CodeInvalid, volume.CodeRefused:
		return true
	case volume.CodeNotFound:
		return primary || exact
	}
	return false
}

// guidOf a snapshot by its name; 0 for no name.
func guidOf(v *state.Volume, list []api.Snapshot, name string) (uint64, error) {
	if name == "" {
		return 0, nil
	}
	if i := slices.IndexFunc(list, func(s api.Snapshot) bool { return s.Name == name }); i >= 0 {
		return list[i].GUID, nil
	}
	return 0, volume.Errorf(volume.CodeNotFound, "volume %q has no snapshot %s", v.Name, name).
		WithHint("flockctl snapshot list --all %s shows what there is", v.Name)
}

// source is a node with a copy, and why it is not asked, if it is not.
type source struct {
	node volume.NodeID
	why  string
}

// sources are the nodes with a copy in the order in which they are asked: this one first, for
// that costs no network, but the primary when its newest snapshots count.
func sources(v *state.Volume, self volume.NodeID, newest bool, may func(volume.NodeID) string) []source {
	nodes := append([]volume.NodeID{v.Placement.Primary}, v.Placement.Replicas()...)
	if i := slices.Index(nodes, self); i > 0 {
		to := 0
		if newest {
			to = 1
		}
		nodes = slices.Insert(slices.Delete(nodes, i, i+1), to, self)
	}
	var out []source
	for _, n := range nodes {
		if n != "" {
			out = append(out, source{n, may(n)})
		}
	}
	return out
}

// mayRead says why a node is not to be asked for files of its copies; "": it is.
func (m *member) mayRead(node volume.NodeID) string {
	if node == m.self {
		return ""
	}
	h, ok := m.view().heard(node)
	switch {
	case !ok:
		return "it has not been heard of yet"
	case h.Age > 3*m.timers.Stale:
		return fmt.Sprintf("it has not been heard of for %s", round(h.Age))
	case !h.Browse:
		return "its flockd is older and reads no snapshots for others"
	}
	return ""
}

// browseOn opens something on one node. What comes from another one ends when that is not
// heard of any more: the network takes a quarter of an hour to say so.
func (m *member) browseOn(ctx context.Context, node volume.NodeID, req api.BrowseCopyRequest) (*api.Browsed, error) {
	if node == m.self {
		return m.BrowseCopy(ctx, req)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		for ctx.Err() == nil {
			pause(ctx, time.Second)
			if ctx.Err() == nil && !m.hears(node) {
				cancel(volume.Errorf(volume.CodeUnavailable, "node %s was lost meanwhile", m.cluster.State().NodeName(node)).WithHint("try again"))
			}
		}
	})
	end := func() error {
		cancel(nil)
		watch.Wait()
		return nil
	}
	b, err := m.client(node).BrowseCopy(ctx, req)
	if err != nil {
		end()
		return nil, err
	}
	b.Body = &closing{Reader: b.Body, closers: []func() error{b.Body.Close, end}}
	return b, nil
}

// closing is content that takes something with it when it is closed, in order.
type closing struct {
	io.Reader
	closers []func() error
}

func (c *closing) Close() error {
	var errs []error
	for _, f := range c.closers {
		errs = append(errs, f())
	}
	c.closers = nil
	return errors.Join(errs...)
}

// BrowseCopy implements api.Peer.
func (m *member) BrowseCopy(ctx context.Context, req api.BrowseCopyRequest) (*api.Browsed, error) {
	v := m.cluster.State().Volume(req.Volume)
	if v == nil || m.repl == nil || m.trees == nil {
		return nil, volume.Errorf(volume.CodeUnavailable, "this node has no copy that it could read")
	}
	// A backup takes hours, and keeps nobody from a file.
	turn := &m.browsing
	if req.As == api.AsStream {
		turn = &m.sending
	}
	if !turn.take() {
		return nil, volume.Errorf(volume.CodeUnavailable, "%d snapshots are being read there already", browseSlots).WithHint("try again later")
	}
	read, end, err := m.readers.begin(ctx, m.dataset(v.ID))
	if err != nil {
		turn.give()
		return nil, err
	}
	done := func() {
		end()
		turn.give()
	}
	b, err := m.browseCopy(read, v, req)
	if err != nil {
		if read.Err() != nil && ctx.Err() == nil {
			err = context.Cause(read)
		}
		done()
		return nil, err
	}
	by := m.self
	if from, forwarded := api.Caller(ctx); forwarded {
		// Over a slow line it shares what streams may use of that.
		by, b.Body = from, &closing{Reader: m.repl.Paced(read, from, b.Body), closers: []func() error{b.Body.Close}}
	}
	m.noteReading("a snapshot of this node's copy is being read", b, req.Path, "for", by)
	b.Body = hold(read, b.Body, done)
	return b, nil
}

// noteReading leaves a trace of who was given what people have written: it is in no event, since
// those are agreed on by all.
func (m *member) noteReading(what string, b *api.Browsed, path, preposition string, node volume.NodeID) {
	m.log.Info(what, "volume", b.Volume, "snapshot", b.Snapshot, "path", path, "as", b.As, preposition, m.cluster.State().NodeName(node))
}

// dataset of a volume on this node.
func (m *member) dataset(id volume.ID) string { return m.layout.Root() + "/" + string(id) }

func (m *member) browseCopy(ctx context.Context, v *state.Volume, req api.BrowseCopyRequest) (*api.Browsed, error) {
	// Not to be able to close what was left open long ago is no reason not to read.
	if err := m.trees.Tidy(ctx); err != nil {
		m.log.Warn("what an earlier reader left open cannot be closed", "err", err)
	}
	fresh := req.As == api.AsDiff && req.GUID == 0 && req.Snapshot == "" && v.Placement.Primary == m.self && v.Phase == state.PhaseActive
	if fresh {
		pos, err := m.repl.SyncTo(ctx, v.ID, nil)
		if err != nil {
			return nil, volume.Errorf(volume.CodeUnavailable, "taking a snapshot of what is there now: %v", err)
		}
		req.GUID = pos.GUID
	}
	list, err := m.repl.Snapshots(ctx, req.Volume)
	if err != nil {
		return nil, volume.Errorf(volume.CodeUnavailable, "%v", err)
	}
	if req.As == api.AsStream {
		return m.sendCopy(ctx, v, list, req)
	}
	if req.As == api.AsDiff {
		b, err := m.compare(ctx, v, list, req)
		if err != nil {
			return nil, err
		}
		b.Fresh = fresh
		return b, nil
	}
	missing := error(volume.Errorf(volume.CodeUnavailable, "it has no such snapshot"))
	began := m.now()
	for i, s := range wanted(list, req) {
		if i > 0 && m.now().Sub(began) > searchFor {
			return nil, volume.Errorf(volume.CodeNotFound, "volume %q: the newest %d of its %d snapshots do not have it, and no others were looked at", v.Name, i, len(list)).
				WithHint("name an older one: flockctl snapshot list --all %s", v.Name)
		}
		b, err := m.open(ctx, v, s, req)
		switch {
		case err == nil:
			return b, nil
		case errors.Is(err, zfs.ErrNotFound): // destroyed since it was listed
		case req.GUID == 0 && req.Snapshot == "" && volume.CodeOf(err) == volume.CodeNotFound:
			missing = volume.Errorf(volume.CodeNotFound, "volume %q: none of its %d snapshots has it: %v", v.Name, len(list), err).
				WithHint("flockctl snapshot list --all %s shows what there is", v.Name)
		default:
			return nil, err
		}
	}
	return nil, missing
}

// searchFor bounds how long the newest snapshot that has a path is looked for: each one that
// has not is mounted in vain.
const searchFor = 20 * time.Second

// wanted are the snapshots of a copy to look at, in order.
func wanted(list []replicate.Snapshot, req api.BrowseCopyRequest) []replicate.Snapshot {
	var out []replicate.Snapshot
	for _, s := range slices.Backward(list) {
		if req.GUID != 0 && s.GUID == req.GUID || req.GUID == 0 && (req.Snapshot == "" || req.Snapshot == s.Name) {
			out = append(out, s)
		}
	}
	return out
}

// open opens something of one snapshot.
func (m *member) open(ctx context.Context, v *state.Volume, s replicate.Snapshot, req api.BrowseCopyRequest) (*api.Browsed, error) {
	files, end, err := m.openFiles(ctx, v, s)
	if err != nil {
		return nil, err
	}
	b := m.browsed(v, s, req.As)
	content, err := content(ctx, files, req, &b.Size)
	if err != nil {
		return nil, errors.Join(err, end())
	}
	b.Body = &closing{Reader: content, closers: []func() error{content.Close, end}}
	return b, nil
}

func (m *member) browsed(v *state.Volume, s replicate.Snapshot, as api.BrowseAs) *api.Browsed {
	return &api.Browsed{Volume: v.Name, Snapshot: s.Name, GUID: s.GUID, Taken: s.Taken, Node: m.view().ref(m.self), As: as}
}

// openFiles opens the files of one snapshot. While it is mounted for that, no retention can
// take it away.
func (m *member) openFiles(ctx context.Context, v *state.Volume, s replicate.Snapshot) (browse.Files, func() error, error) {
	tree, err := m.trees.Open(ctx, m.dataset(v.ID)+"@"+s.Name)
	if err != nil {
		return nil, nil, fmt.Errorf("opening snapshot %s: %w", s.Name, err)
	}
	files, err := tree.Files(v.Spec.Whole())
	if errors.Is(err, fs.ErrNotExist) {
		err = volume.Errorf(volume.CodeNotFound, "the volume had not been used yet when snapshot %s was taken", s.Name)
	}
	if err != nil {
		return nil, nil, errors.Join(err, tree.Close())
	}
	return files, func() error { return errors.Join(files.Close(), tree.Close()) }, nil
}

// compare opens what is not the same in two snapshots of this node's copy. The newer one is
// the newest there is unless it is named.
func (m *member) compare(ctx context.Context, v *state.Volume, list []replicate.Snapshot, req api.BrowseCopyRequest) (_ *api.Browsed, err error) {
	now := wanted(list, req)
	old := wanted(list, api.BrowseCopyRequest{GUID: req.SinceGUID, Snapshot: req.Since})
	gone := volume.Errorf(volume.CodeUnavailable, "it has not both snapshots")
	if len(now) == 0 || len(old) == 0 {
		return nil, gone
	}
	var ends []func() error
	defer func() {
		if err != nil {
			for _, end := range ends {
				err = errors.Join(err, end())
			}
		}
	}()
	var files []browse.Files
	for _, s := range []replicate.Snapshot{old[0], now[0]} {
		f, end, err := m.openFiles(ctx, v, s)
		if errors.Is(err, zfs.ErrNotFound) {
			return nil, gone
		}
		if err != nil {
			return nil, err
		}
		files, ends = append(files, f), append(ends, end)
	}
	if err := browse.Has(files[1], req.Path); err != nil {
		if browse.Has(files[0], req.Path) != nil {
			return nil, err
		}
	}
	b := m.browsed(v, now[0], req.As)
	b.Since, b.SinceTaken = old[0].Name, old[0].Taken
	lines := produce(func(w io.Writer) error {
		e := json.NewEncoder(w)
		return browse.Diff(ctx, files[0], files[1], req.Path, func(c browse.Change) error { return e.Encode(c) })
	})
	b.Body = &closing{Reader: lines, closers: append([]func() error{lines.Close}, ends...)}
	return b, nil
}

// content is what is asked for. That it is there, and can be had in this form, is known
// before anything of it is read.
func content(ctx context.Context, f browse.Files, req api.BrowseCopyRequest, size *int64) (io.ReadCloser, error) {
	if req.As == api.AsFile {
		file, n, err := browse.Open(f, req.Path)
		if err != nil {
			return nil, err
		}
		*size = n
		p := pipe(func(w io.Writer) error {
			_, err := io.CopyBuffer(w, struct{ io.Reader }{file}, make([]byte, 64<<10))
			return err
		})
		return &closing{Reader: p, closers: []func() error{p.Close, file.Close}}, nil
	}
	if err := browse.Has(f, req.Path); err != nil {
		return nil, err
	}
	return produce(func(w io.Writer) error {
		if req.As == api.AsTar {
			return browse.Tar(ctx, f, req.Path, w)
		}
		e := json.NewEncoder(w)
		return browse.List(ctx, f, req.Path, func(x browse.Entry) error { return e.Encode(x) })
	}), nil
}

// produced is what a function writes, for somebody who reads. To close it ends the function.
type produced struct {
	*io.PipeReader
	done chan struct{}
}

// produce has it written in pieces that are worth their way.
func produce(write func(io.Writer) error) *produced {
	return pipe(func(w io.Writer) error {
		b := bufio.NewWriterSize(w, 64<<10)
		err := write(b)
		if err == nil {
			err = b.Flush()
		}
		return err
	})
}

// pipe has it written with the lowest priority: what people look for can wait for what
// containers do.
func pipe(write func(io.Writer) error) *produced {
	r, w := io.Pipe()
	p := &produced{r, make(chan struct{})}
	go func() {
		defer close(p.done)
		err := lowest()
		if err == nil {
			err = write(w)
		}
		w.CloseWithError(err)
	}()
	return p
}

func (p *produced) Close() error {
	err := p.PipeReader.Close()
	<-p.done
	return err
}
