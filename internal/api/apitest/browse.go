package apitest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"slices"
	"testing/fstest"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/browse"
	"github.com/flocker-io/flocker/internal/volume"
)

// Files are what every snapshot of every volume has in it, but for the oldest one, which has
// lost.txt too. A content that is "cut" ends before its end.
var Files = fstest.MapFS{
	"conf/app.conf":    {Data: []byte("listen = 80\n"), Mode: 0o640, ModTime: Now.Add(-3 * day)},
	"conf/old":         {Data: []byte("app.conf"), Mode: 0o777 | fs.ModeSymlink, ModTime: Now.Add(-2 * day)},
	"conf/passwd":      {Data: []byte("/etc/passwd"), Mode: 0o777 | fs.ModeSymlink, ModTime: Now.Add(-2 * day)},
	"cut":              {Data: []byte("only the beg"), Mode: 0o600, ModTime: Now.Add(-2 * day)},
	"new\nline\x1b[2J": {Data: []byte("x"), Mode: 0o600, ModTime: Now.Add(-2 * day)},
	"pipe":             {Mode: 0o600 | fs.ModeNamedPipe, ModTime: Now.Add(-2 * day)},
}

// Browse implements api.Backend, as alpha.
func (f *Fake) Browse(ctx context.Context, ref string, req api.BrowseRequest) (*api.Browsed, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Browse", ref, req); err != nil {
		return nil, err
	}
	i, err := f.findVolume(ref, false)
	if err != nil {
		return nil, err
	}
	v := f.volumes[i]
	list := f.snapshots[v.ID]
	at := slices.IndexFunc(list, func(s api.Snapshot) bool { return s.Name == req.Snapshot || req.GUID != 0 && s.GUID == req.GUID })
	if req.Snapshot == "" && req.As == api.AsDiff {
		at = len(list) - 1
	} else if req.Snapshot == "" && req.GUID == 0 && len(list) > 0 {
		if at = len(list) - 1; browse.Has(files(false), req.Path) != nil {
			at = 0
		}
	}
	if at < 0 {
		return nil, volume.Errorf(volume.CodeNotFound, "volume %q has no snapshot %s", v.Name, req.Snapshot).WithHint("`flockctl snapshot list %s` shows what there is", v.Name)
	}
	if req.As == api.AsStream {
		return f.stream(v, list[at], req.Bases)
	}
	if req.As == api.AsDiff {
		return changes(ctx, v.Name, list, at, req)
	}
	return browsed(ctx, files(at == 0), v.Name, list[at], req.Path, req.As)
}

// changes are those between two of the fake's snapshots.
func changes(ctx context.Context, name string, list []api.Snapshot, at int, req api.BrowseRequest) (*api.Browsed, error) {
	since := slices.IndexFunc(list, func(s api.Snapshot) bool { return s.Name == req.Since })
	if since < 0 {
		return nil, volume.Errorf(volume.CodeNotFound, "volume %q has no snapshot %s", name, req.Since).WithHint("`flockctl snapshot list %s` shows what there is", name)
	}
	b := &api.Browsed{Volume: name, Snapshot: list[at].Name, GUID: list[at].GUID, Taken: list[at].Taken, Node: Alpha, As: req.As,
		Since: req.Since, SinceTaken: list[since].Taken, Fresh: req.Snapshot == ""}
	r, w := io.Pipe()
	go func() {
		e := json.NewEncoder(w)
		w.CloseWithError(browse.Diff(ctx, files(since == 0), files(at == 0), req.Path, func(x browse.Change) error { return e.Encode(x) }))
	}()
	b.Body = r
	return b, nil
}

// BrowseCopy implements api.Peer.
func (f *Fake) BrowseCopy(ctx context.Context, req api.BrowseCopyRequest) (*api.Browsed, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "BrowseCopy", req); err != nil {
		return nil, err
	}
	return browsed(ctx, files(true), string(req.Volume), api.Snapshot{Name: req.Snapshot, GUID: req.GUID, Taken: Now}, req.Path, req.As)
}

func files(lost bool) browse.Files {
	all := fstest.MapFS{}
	for name, file := range Files {
		all[name] = file
	}
	if lost {
		all["lost.txt"] = &fstest.MapFile{Data: []byte("found\n"), Mode: 0o600, ModTime: Now.Add(-4 * day)}
	}
	return browse.Of(all)
}

func browsed(ctx context.Context, f browse.Files, name string, s api.Snapshot, path string, as api.BrowseAs) (*api.Browsed, error) {
	b := &api.Browsed{Volume: name, Snapshot: s.Name, GUID: s.GUID, Taken: s.Taken, Node: Alpha, As: as}
	if as == api.AsFile {
		body, n, err := browse.Open(f, path)
		b.Body, b.Size = body, n
		if path == "cut" {
			b.Body = io.NopCloser(io.MultiReader(body, broken{}))
			b.Size++
		}
		return b, err
	}
	if err := browse.Has(f, path); err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() {
		if as == api.AsTar {
			w.CloseWithError(browse.Tar(ctx, f, path, w))
			return
		}
		e := json.NewEncoder(w)
		w.CloseWithError(browse.List(ctx, f, path, func(x browse.Entry) error { return e.Encode(x) }))
	}()
	b.Body = r
	return b, nil
}

// broken is a disk that gives nothing more.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("the disk does not answer") }
