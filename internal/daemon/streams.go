package daemon

import (
	"context"
	"io"
	"slices"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs"
)

// maySend says why a node is not to be asked for streams of its copies; "": it is.
func (m *member) maySend(node volume.NodeID) string {
	if why := m.mayRead(node); why != "" || node == m.self {
		return why
	}
	if h, ok := m.view().heard(node); !ok || !h.Streams {
		return "its flockd is older and sends no snapshots for backups"
	}
	return ""
}

// sendCopy opens a snapshot of this node's copy as zfs sends it. While zfs sends it, it cannot
// be destroyed. It is volume.CodeConflict that this copy has not what was asked for, and of
// nothing else: who has asked all copies then knows that a full stream is needed.
func (m *member) sendCopy(ctx context.Context, v *state.Volume, list []replicate.Snapshot, req api.BrowseCopyRequest) (*api.Browsed, error) {
	found := wanted(list, req)
	if len(found) == 0 {
		return nil, volume.Errorf(volume.CodeConflict, "it has no such snapshot")
	}
	s, ds := found[0], m.dataset(v.ID)
	b := m.browsed(v, s, req.As)
	send := zfs.SendRequest{Snapshot: ds + "@" + s.Name}
	if len(req.Bases) > 0 {
		marks, err := m.zfs.Bookmarks(ctx, ds, false)
		if err != nil {
			return nil, volume.Errorf(volume.CodeUnavailable, "%v", err)
		}
		if b.Since, b.SinceGUID = baseOf(list, marks, s, req.Bases); b.SinceGUID == 0 {
			return nil, volume.Errorf(volume.CodeConflict, "it has no snapshot of an earlier backup, to send what came since")
		}
		send.From = ds + b.Since
	}
	// For display; that it cannot be told is no reason not to send.
	if n, err := m.zfs.EstimateSend(ctx, send); err == nil {
		b.Size = n
	} else {
		m.log.Debug("how large a stream will be cannot be told", "snapshot", send.Snapshot, "err", err)
	}
	b.Body = produce(func(w io.Writer) error { return m.zfs.Send(ctx, send, w) })
	return b, nil
}

// baseOf is the first of some guids that a copy can send what came since from: "@snapshot" or
// "#bookmark", and which.
func baseOf(list []replicate.Snapshot, marks []zfs.Bookmark, to replicate.Snapshot, bases []uint64) (string, uint64) {
	at := slices.IndexFunc(list, func(s replicate.Snapshot) bool { return s.GUID == to.GUID })
	for _, g := range bases {
		if i := slices.IndexFunc(list, func(s replicate.Snapshot) bool { return s.GUID == g }); i >= 0 {
			if i < at {
				return "@" + list[i].Name, g
			}
			continue // not before it, so nothing to begin from
		}
		if i := slices.IndexFunc(marks, func(b zfs.Bookmark) bool { return b.GUID == g && b.CreateTXG < to.CreateTXG }); i >= 0 {
			return "#" + marks[i].Name, g
		}
	}
	return "", 0
}
