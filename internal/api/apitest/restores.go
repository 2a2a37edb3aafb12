package apitest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// received is what a restore has got.
type received struct {
	guids   []uint64
	streams [][]byte
}

// Received are the streams that the last restore has got, in order.
func (f *Fake) Received() [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.restore == nil {
		return nil
	}
	return slices.Clone(f.restore.streams)
}

// stream opens a snapshot as an increment on the first of some bases, or as a full stream. It
// is none that zfs would know.
func (f *Fake) stream(v api.Volume, s api.Snapshot, bases []uint64) (*api.Browsed, error) {
	b := &api.Browsed{Volume: v.Name, Snapshot: s.Name, GUID: s.GUID, Taken: s.Taken, Node: Alpha, As: api.AsStream}
	if len(bases) > 0 {
		list := f.snapshots[v.ID]
		at := slices.IndexFunc(list, func(x api.Snapshot) bool { return x.GUID == s.GUID })
		for _, g := range bases {
			if i := slices.IndexFunc(list, func(x api.Snapshot) bool { return x.GUID == g }); i >= 0 && i < at {
				b.Since, b.SinceGUID = "@"+list[i].Name, g
				break
			}
		}
		if b.SinceGUID == 0 {
			return nil, volume.Errorf(volume.CodeConflict, "volume %q has no such base", v.Name)
		}
	}
	content := Stream(s.GUID, b.SinceGUID)
	b.Size = int64(len(content))
	b.Body = io.NopCloser(bytes.NewReader(content))
	return b, nil
}

// Stream is the content of a stream of the fake.
func Stream(guid, base uint64) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "snapshot %d since %d\n", guid, base), 1000)
}

// BeginRestore implements api.Backend.
func (f *Fake) BeginRestore(ctx context.Context, req api.BeginRestoreRequest) (api.RestoreState, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "BeginRestore", req); err != nil {
		return api.RestoreState{}, err
	}
	if _, err := volume.ParseOptions(req.Options); err != nil {
		return api.RestoreState{}, err
	}
	if _, err := f.findVolume(req.Name, false); err == nil {
		return api.RestoreState{}, volume.Errorf(volume.CodeConflict, "there is a volume %q already", req.Name)
	}
	if f.restore == nil || f.restoreID != req.ID {
		f.restore, f.restoreID = &received{}, req.ID
	}
	return api.RestoreState{Have: len(f.restore.guids)}, nil
}

// ReceiveRestore implements api.Backend.
func (f *Fake) ReceiveRestore(ctx context.Context, id string, req api.ReceiveRequest, stream io.Reader) error {
	content, err := io.ReadAll(stream)
	if err != nil {
		err = volume.Errorf(volume.CodeUnavailable, "the stream could not be received: %v", err)
	}
	defer f.mu.Unlock()
	if err := f.enter(ctx, "ReceiveRestore", id, req); err != nil {
		return err
	}
	switch {
	case err != nil:
		return err
	case f.restore == nil || f.restoreID != id:
		return volume.Errorf(volume.CodeConflict, "no restore %s was begun", id)
	}
	if n := len(f.restore.guids); n > 0 && f.restore.guids[n-1] != req.Base || n == 0 && req.Base != 0 {
		return volume.Errorf(volume.CodeConflict, "the stream does not go on from what is here")
	}
	f.restore.guids, f.restore.streams = append(f.restore.guids, req.GUID), append(f.restore.streams, content)
	return nil
}

// FinishRestore implements api.Backend.
func (f *Fake) FinishRestore(ctx context.Context, id string, req api.FinishRestoreRequest) (api.Volume, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "FinishRestore", id, req); err != nil {
		return api.Volume{}, err
	}
	if f.restore == nil || f.restoreID != id || len(f.restore.guids) == 0 || f.restore.guids[len(f.restore.guids)-1] != req.GUID {
		return api.Volume{}, volume.Errorf(volume.CodeConflict, "not all of restore %s is here", id)
	}
	spec, err := volume.ParseOptions(req.Options)
	if err != nil {
		return api.Volume{}, err
	}
	f.index++
	v := api.Volume{
		ID: f.volumeID(), Name: req.Name, Phase: "active", Health: api.HealthOK, Spec: spec, AsOf: Now,
		Primary: Alpha, Replicas: []api.Replica{}, Epoch: 1, Index: f.index, Created: Now,
	}
	f.volumes = append(f.volumes, v)
	f.restoreID = ""
	return v, nil
}

// DropRestore implements api.Backend.
func (f *Fake) DropRestore(ctx context.Context, id string) error {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "DropRestore", id); err != nil {
		return err
	}
	if f.restoreID == id {
		f.restore, f.restoreID = nil, ""
	}
	return nil
}
