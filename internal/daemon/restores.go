package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs"
)

// What is received from a backup lies below flocker-restore, where nothing is a volume and
// nothing is mounted, until all of it is there. Then it becomes a set-aside copy, of which
// the volume is made as of any other: so nothing that exists is ever received over, and what
// is cut short between two steps is found again, by people too.

const (
	// propRestore is on what is being received: when something of it came last. Nothing else
	// is destroyed there. What was received, and the volume that is made of it, have the restore's
	// id in it: a flockd that was started meanwhile knows them again.
	propRestore = "flocker:restore"
	// restoreKeep is how long what was begun and not finished stays.
	restoreKeep = 7 * 24 * time.Hour
	// restorePatience is how long the leader may take to hear of the copy.
	restorePatience = time.Minute
	// restoreReserve is the share of a pool that is left free: at its end every writer there stops.
	restoreReserve = 0.05
	// restoreWatch is how often it is looked whether that is still there.
	restoreWatch = 2 * time.Second
	// restoreSweep is how often what was left is looked for.
	restoreSweep = time.Hour
)

// restores are those that somebody is at.
type restores struct {
	mu   sync.Mutex
	busy map[string]bool
	left map[string]int64     // about how many bytes are to come, of those that were begun
	made map[string]volume.ID // the volume that was, or is being, made of one
}

// take is false when another call is at it.
func (r *restores) take(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy[id] {
		return false
	}
	if r.busy == nil {
		r.busy = map[string]bool{}
	}
	r.busy[id] = true
	return true
}

func (r *restores) give(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.busy, id)
}

// expect notes how much is to come of one.
func (r *restores) expect(id string, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left == nil {
		r.left = map[string]int64{}
	}
	r.left[id] = max(0, bytes)
}

// came notes that some of it has come.
func (r *restores) came(id string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if was, ok := r.left[id]; ok {
		r.left[id] = max(0, was-int64(n))
	}
}

// others is how much is to come of what others are at just now.
func (r *restores) others(id string) (sum int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other := range r.busy {
		if other != id {
			sum += r.left[other]
		}
	}
	return sum
}

// makes notes of which volume it becomes.
func (r *restores) makes(id string, v volume.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.made == nil {
		r.made = map[string]volume.ID{}
	}
	r.made[id] = v
}

// became is the volume that was made of one since flockd was started, or "".
func (r *restores) became(id string) volume.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.made[id]
}

// room says why a pool has none for so many bytes more, when others are to come as well.
func room(p zfs.Pool, bytes, others int64) error {
	keep := int64(restoreReserve * float64(p.Size))
	if p.Free-keep-others >= bytes {
		return nil
	}
	besides := ""
	if others > 0 {
		besides = fmt.Sprintf(", %s for what else is being restored here", volume.FormatSize(others))
	}
	return volume.Errorf(volume.CodeRefused, "the pool of this node has %s free, of which %s are kept free%s, and %s are to be restored",
		volume.FormatSize(p.Free), volume.FormatSize(keep), besides, volume.FormatSize(bytes)).
		WithHint("run the command on a node with more room, or make room here")
}

// restoring has a call be the only one at a restore.
func (m *member) restoring(id string) (end func(), err error) {
	switch {
	case m.agent == nil:
		return nil, volume.Errorf(volume.CodeRefused, "this node is a witness and has no pool").WithHint("run the command on a node that has one")
	case !m.restores.take(id):
		return nil, volume.Errorf(volume.CodeConflict, "this is being restored here just now")
	}
	return func() { m.restores.give(id) }, nil
}

// BeginRestore implements api.Backend.
func (m *member) BeginRestore(ctx context.Context, req api.BeginRestoreRequest) (out api.RestoreState, err error) {
	end, err := m.restoring(req.ID)
	if err != nil {
		return out, err
	}
	defer end()
	if err := volume.ValidateName(req.Name); err != nil {
		return out, err
	}
	if v := m.cluster.State().VolumeByName(req.Name); v != nil {
		if m.madeOf(ctx, v.ID, req.ID) {
			return out, volume.Errorf(volume.CodeConflict, "volume %q is there: it was made of this very backup", req.Name).WithHint("nothing is left to do; to restore it once more, give another name")
		}
		return out, volume.Errorf(volume.CodeConflict, "there is a volume %q already", req.Name).WithHint("a backup is restored as a new volume: give another name")
	}
	if len(req.GUIDs) == 0 {
		return out, volume.Errorf(volume.CodeInvalid, "nothing is to be restored")
	}
	if err := m.mayBecome(ctx, req.Options); err != nil {
		return out, err
	}
	m.sweepRestores(ctx)
	ds, have, err := m.restored(ctx, req.ID)
	if err != nil {
		return out, err
	}
	if ds == m.layout.Restore(req.ID) && len(have) == 0 {
		if err := m.clearRestore(ctx, ds); err != nil {
			return out, err
		}
		ds = ""
	}
	if len(have) > len(req.GUIDs) || !slices.Equal(have, req.GUIDs[:len(have)]) {
		return out, volume.Errorf(volume.CodeConflict, "what was received as restore %s is something else", req.ID)
	}
	out.Have = len(have)
	if out.Have == len(req.GUIDs) {
		return out, nil
	}
	left := req.Bytes
	if ds != "" {
		d, err := m.zfs.Dataset(ctx, ds)
		if err != nil {
			return out, err
		}
		left = max(0, left-d.Used)
	}
	m.restores.expect(req.ID, left)
	pool, err := m.zfs.Pool(ctx, m.layout.Pool)
	if err != nil {
		return out, err
	}
	return out, room(pool, left, m.restores.others(req.ID))
}

// madeOf says whether a volume was made here of a restore. What cannot be asked was not.
func (m *member) madeOf(ctx context.Context, v volume.ID, id string) bool {
	if v == m.restores.became(id) {
		return true
	}
	d, err := m.zfs.Dataset(ctx, m.layout.Dataset(v))
	return err == nil && d.User[propRestore] == id
}

// mayBecome says why no volume with those options can be made here. What only the leader knows
// it says in the end.
func (m *member) mayBecome(ctx context.Context, opts map[string]string) error {
	spec, err := volume.ParseOptions(opts)
	if err != nil {
		return err
	}
	if err := m.knowsPlaces(volume.Spec{}, spec); err != nil || !spec.Strict {
		return err
	}
	here := spec // but for where it would rather be, as for every set-aside copy
	here.Prefer, here.Zone = append([]string{m.cluster.State().NodeName(m.self)}, spec.Prefer...), ""
	if _, _, err = m.place(ctx, here, m.self); volume.CodeOf(err) == volume.CodeUnavailable {
		return nil
	}
	return err
}

// clearRestore destroys what a restore left without any snapshot: nothing goes on from there,
// and nothing is received over it.
func (m *member) clearRestore(ctx context.Context, ds string) error {
	d, err := m.zfs.Dataset(ctx, ds)
	switch {
	case errors.Is(err, zfs.ErrNotFound):
		return nil
	case err != nil:
		return err
	case d.User[propRestore] == "":
		return volume.Errorf(volume.CodeConflict, "%s is in the way, and is nothing that was received from a backup", ds).
			WithHint("look what it is, and rename or destroy it by hand")
	}
	m.log.Info("what a restore left without a snapshot is destroyed", "dataset", ds)
	return m.zfs.Destroy(ctx, ds)
}

// restored is where what was received of a restore is, "" where nothing was, and the guids of
// its snapshots.
func (m *member) restored(ctx context.Context, id string) (dataset string, guids []uint64, err error) {
	dataset = m.layout.Restore(id)
	list, err := m.zfs.Snapshots(ctx, dataset, false)
	if errors.Is(err, zfs.ErrNotFound) {
		if dataset, err = m.restoredAside(ctx, id); err != nil || dataset == "" {
			return "", nil, err
		}
		list, err = m.zfs.Snapshots(ctx, dataset, false)
	}
	if err != nil {
		return "", nil, err
	}
	for _, s := range list {
		guids = append(guids, s.GUID)
	}
	return dataset, guids, nil
}

// restoredAside finds what was received when it is a set-aside copy already.
func (m *member) restoredAside(ctx context.Context, id string) (string, error) {
	list, err := m.zfs.Datasets(ctx, m.layout.Aside())
	if errors.Is(err, zfs.ErrNotFound) {
		return "", nil
	}
	for _, d := range list {
		if a, ok := replicate.ParseAside(d, m.layout.Aside()); ok && string(a.Volume) == id {
			return d.Name, err
		}
	}
	return "", err
}

// sweepRestoresLater destroys what was left, from time to time.
func (m *member) sweepRestoresLater(ctx context.Context) error {
	for ctx.Err() == nil {
		pause(ctx, restoreSweep)
		if ctx.Err() == nil {
			m.sweepRestores(ctx)
		}
	}
	return nil
}

// sweepRestores destroys what was begun long ago and never became a volume.
func (m *member) sweepRestores(ctx context.Context) {
	list, err := m.zfs.Datasets(ctx, m.layout.Restores())
	if err != nil {
		if !errors.Is(err, zfs.ErrNotFound) {
			m.log.Warn("what was restored in part cannot be listed", "err", err)
		}
		return
	}
	for _, d := range list {
		id, below := strings.CutPrefix(d.Name, m.layout.Restores()+"/")
		at, err := time.Parse(time.RFC3339, d.User[propRestore])
		if !below || strings.Contains(id, "/") || err != nil || m.now().Sub(at) < restoreKeep || !m.restores.take(id) {
			continue
		}
		err = m.zfs.Destroy(ctx, d.Name)
		m.restores.give(id)
		if err != nil {
			m.log.Warn("what was restored in part, and not gone on with, cannot be destroyed", "dataset", d.Name, "err", err)
			continue
		}
		m.log.Info("what was restored in part, and not gone on with, is destroyed", "dataset", d.Name, "last", at)
	}
}

// ReceiveRestore implements api.Backend.
func (m *member) ReceiveRestore(ctx context.Context, id string, req api.ReceiveRequest, stream io.Reader) error {
	end, err := m.restoring(id)
	if err != nil {
		return err
	}
	defer end()
	ds, have, err := m.restored(ctx, id)
	if err != nil {
		return err
	}
	switch {
	case ds != "" && ds != m.layout.Restore(id):
		return volume.Errorf(volume.CodeConflict, "all of restore %s is here already", id)
	case len(have) == 0 && req.Base != 0, len(have) > 0 && have[len(have)-1] != req.Base:
		return volume.Errorf(volume.CodeConflict, "the stream does not go on from what is here").WithHint("begin again")
	}
	in := bufio.NewReaderSize(stream, 64<<10)
	head, err := in.Peek(zfs.StreamHeaderSize)
	if err != nil {
		return volume.Errorf(volume.CodeInvalid, "the stream has ended before its beginning: %v", err)
	}
	h, err := zfs.ParseStreamHeader(head)
	if err == nil {
		err = fitting(h, req)
	}
	if err != nil {
		return volume.Errorf(volume.CodeRefused, "this stream is not taken: %v", err)
	}
	now := m.now().UTC().Format(time.RFC3339)
	r := zfs.ReceiveRequest{Dataset: m.layout.Restore(id)}
	if req.Base == 0 {
		err := m.zfs.CreateFilesystem(ctx, m.layout.Restores(), map[string]string{"mountpoint": "none", "canmount": "off", "readonly": "on"})
		if err != nil && !errors.Is(err, zfs.ErrExists) {
			return err
		}
		r.Properties = map[string]string{"canmount": "noauto", "readonly": "on", "mountpoint": "none", propRestore: now}
	} else if err := m.readyForMore(ctx, r.Dataset, h, now); err != nil {
		return err
	}
	watched, end := m.whileRoom(ctx)
	defer end()
	err = m.zfs.Receive(watched, r, counted{in, zfs.ReadDeadline(stream), func(n int) { m.restores.came(id, n) }})
	if err != nil && watched.Err() != nil && ctx.Err() == nil {
		return context.Cause(watched)
	}
	if err != nil {
		return volume.Errorf(volume.CodeUnavailable, "the stream could not be received: %v", err).WithHint("what came before it stays; the same command goes on from there")
	}
	_, have, err = m.restored(ctx, id)
	if err != nil {
		return err
	}
	if len(have) == 0 || have[len(have)-1] != req.GUID {
		return fmt.Errorf("the stream was received, but snapshot %d is not here", req.GUID)
	}
	return nil
}

// whileRoom ends when the pool has no more left than what is kept free: others write there, too.
func (m *member) whileRoom(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		for ctx.Err() == nil {
			p, err := m.zfs.Pool(ctx, m.layout.Pool)
			// A pool that cannot be asked is not full, for all that is known.
			if err == nil && room(p, 0, 0) != nil {
				cancel(volume.Errorf(volume.CodeRefused, "the pool of this node has only %s left, and the restore was stopped before it is full", volume.FormatSize(p.Free)).
					WithHint("make room; the same command goes on with what came before"))
			}
			pause(ctx, restoreWatch)
		}
	})
	return ctx, func() {
		cancel(nil)
		watch.Wait()
	}
}

// counted is a stream that tells how much of it came.
type counted struct {
	r        io.Reader
	deadline func(time.Time) error
	came     func(int)
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.came(n)
	return n, err
}

// SetReadDeadline ends a Read where that can be.
func (c counted) SetReadDeadline(t time.Time) error {
	if c.deadline == nil {
		return errors.ErrUnsupported
	}
	return c.deadline(t)
}

// fitting says why a stream is not what was announced, or does more than to make a snapshot.
func fitting(h zfs.StreamHeader, req api.ReceiveRequest) error {
	switch {
	case h.Compound:
		return errors.New("it is a package of several")
	case h.Type != zfs.StreamFilesystem:
		return errors.New("it is of no file system")
	case h.Clone, h.Dedup, h.Resuming, h.Redacted, h.Raw:
		return errors.New("it is not of a kind that flocker sends")
	case h.ToGUID != req.GUID || h.FromGUID != req.Base:
		return fmt.Errorf("it is of snapshot %d since %d, and should be of %d since %d", h.ToGUID, h.FromGUID, req.GUID, req.Base)
	}
	return nil
}

// readyForMore notes that something comes, and gives another name to a snapshot that is called
// like the one that comes: names come back, and both are to be had.
func (m *member) readyForMore(ctx context.Context, ds string, h zfs.StreamHeader, now string) error {
	if err := m.zfs.SetProperties(ctx, ds, map[string]string{propRestore: now}); err != nil {
		return err
	}
	list, err := m.zfs.Snapshots(ctx, ds, false)
	if err != nil {
		return err
	}
	for _, s := range list {
		if s.Name == h.Snapshot() {
			return m.zfs.Rename(ctx, s.FullName(), fmt.Sprintf("%s@%.200s-%x", ds, s.Name, s.GUID))
		}
	}
	return nil
}

// FinishRestore implements api.Backend.
func (m *member) FinishRestore(ctx context.Context, id string, req api.FinishRestoreRequest) (api.Volume, error) {
	end, err := m.restoring(id)
	if err != nil {
		return api.Volume{}, err
	}
	defer end()
	if err := volume.ValidateName(req.Name); err != nil {
		return api.Volume{}, err
	}
	if v := m.cluster.State().VolumeByName(req.Name); v != nil && m.madeOf(ctx, v.ID, id) {
		return m.awaitCreated(ctx, v.ID, req.Name) // the answer was lost
	}
	if err := m.mayBecome(ctx, req.Options); err != nil {
		return api.Volume{}, err
	}
	ds, have, err := m.restored(ctx, id)
	switch {
	case err != nil:
		return api.Volume{}, err
	case len(have) == 0 || have[len(have)-1] != req.GUID:
		return api.Volume{}, volume.Errorf(volume.CodeConflict, "not all of restore %s is here", id).WithHint("begin again")
	}
	if ds == m.layout.Restore(id) {
		if ds, err = m.putAside(ctx, id, "restored, to be volume "+req.Name); err != nil {
			return api.Volume{}, err
		}
	}
	// Also when that was cut short before.
	if err := m.zfs.SetProperties(ctx, ds, map[string]string{propRestore: id}); err != nil {
		return api.Volume{}, err
	}
	name := strings.TrimPrefix(ds, m.layout.Aside()+"/")
	wait, cancel := context.WithTimeout(ctx, restorePatience)
	defer cancel()
	request := newRequest()
	m.restores.makes(id, asideVolume(request))
	for ; ; pause(wait, time.Second) {
		v, err := m.RestoreAside(ctx, name, api.RestoreAsideRequest{Node: string(m.self), Name: req.Name, Options: req.Options, Request: request})
		var refused *volume.Error
		if errors.As(err, &refused) && refused.Code == volume.CodeConflict {
			return v, refused.WithHint("all of it is here: flockctl aside restore %s NAME makes a volume of another name", name)
		}
		// The options were looked at: what is not found is the copy, of which the leader has not heard.
		if volume.CodeOf(err) != volume.CodeNotFound {
			return v, err
		}
		if wait.Err() != nil {
			return api.Volume{}, volume.Errorf(volume.CodeUnavailable, "all of it is here, but the leader has not heard of it: %v", err).
				WithHint("flockctl aside restore %s %s makes the volume", name, req.Name)
		}
		m.agent.LookAside()
		m.reportSoon()
	}
}

// putAside makes a set-aside copy of what was received, and returns its dataset.
func (m *member) putAside(ctx context.Context, id, reason string) (string, error) {
	ds := m.layout.Restore(id)
	list, err := m.zfs.Snapshots(ctx, ds, false)
	if err != nil {
		return "", err
	}
	// The volume's epoch begins above those of the snapshots of replication in it.
	var epoch volume.Epoch
	for _, s := range list {
		if e, _, ok := volume.ParseSnapshotName(s.Name); ok {
			epoch = max(epoch, e)
		}
	}
	if err := m.zfs.CreateFilesystem(ctx, m.layout.Aside(), map[string]string{"mountpoint": "none", "canmount": "off"}); err != nil && !errors.Is(err, zfs.ErrExists) {
		return "", err
	}
	if err := m.zfs.SetProperties(ctx, ds, map[string]string{"flocker:aside": replicate.AsideNote(m.now(), reason)}); err != nil {
		return "", err
	}
	// What is still there without its new name is known by propRestore, so that goes last.
	to := fmt.Sprintf("%s/%s-%s-1", m.layout.Aside(), id, epoch)
	return to, m.zfs.Rename(ctx, ds, to)
}

// DropRestore implements api.Backend.
func (m *member) DropRestore(ctx context.Context, id string) error {
	end, err := m.restoring(id)
	if err != nil {
		return err
	}
	defer end()
	d, err := m.zfs.Dataset(ctx, m.layout.Restore(id))
	switch {
	case errors.Is(err, zfs.ErrNotFound):
		return nil
	case err != nil:
		return err
	case d.User[propRestore] == "":
		return volume.Errorf(volume.CodeRefused, "%s is nothing that was received from a backup", d.Name)
	}
	return m.zfs.Destroy(ctx, d.Name)
}
