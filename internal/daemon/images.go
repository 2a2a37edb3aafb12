package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/cluster"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
)

// The image of a container that follows is fetched ahead by every node that may have to
// start it: when it has to, the node with the image is gone, and there may be no
// registry. A node asks the container's node, then others, on connections that yield to
// all other traffic.

const (
	// imagesEvery is how often a node looks for images that it lacks.
	imagesEvery = 10 * time.Second
	// imageRetry is the shortest pause after a failure, and imageMost the longest.
	imageRetry = 30 * time.Second
	imageMost  = 10 * time.Minute
	// imageSilence ends a transfer of which nothing has come for so long.
	imageSilence = 2 * time.Minute
	// imageShare of a bandwidth limit between two zones is for images: the rest is the
	// replication's.
	imageShare = 4
)

// fetchImages fetches what this node lacks, one image at a time, until ctx ends.
func (f *follower) fetchImages(ctx context.Context) error {
	every := time.NewTicker(imagesEvery)
	defer every.Stop()
	waits := map[string]followAttempt{} // by image ID
	var images deaf
	for ctx.Err() == nil {
		changed := f.m.cluster.Changed()
		f.m.letArrive(ctx)
		s := f.m.cluster.State()
		f.foresee(ctx, s) // before what follows says that all is ready
		asked := map[string]bool{}
		var failed error
		for r := range s.Containers() {
			if ctx.Err() != nil || !mayGetImage(s, r, f.m.self) {
				continue
			}
			has, err := f.hasImage(ctx, r)
			failed = cmp.Or(failed, err)
			if err != nil || has || asked[r.Image.ID] || f.m.now().Before(waits[r.Image.ID].next) {
				continue
			}
			asked[r.Image.ID] = true
			if err := f.fetchImage(ctx, s, r); err != nil && ctx.Err() == nil {
				w := waits[r.Image.ID]
				if w.pause == 0 {
					f.m.log.Warn("the image of a container that may have to run here cannot be fetched yet", "container", r.Name, "image", r.Image.Ref, "err", err)
				}
				w.pause = min(max(2*w.pause, imageRetry), imageMost)
				w.next = f.m.now().Add(w.pause)
				waits[r.Image.ID] = w
				continue
			}
			delete(waits, r.Image.ID)
			f.noteImage(r.RecordKey(), true)
		}
		images.note(ctx, f.m.log, failed)
		pause(ctx, followGap)
		select {
		case <-changed:
		case <-every.C:
		case <-ctx.Done():
		}
	}
	return nil
}

// imagesYield is for how long this loop leaves the engine to containers that are just being started
// here for a move: their clients wait.
const imagesYield = 5 * time.Second

// letArrive waits, though not for long, while a volume is here whose containers are on their way.
func (m *member) letArrive(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, imagesYield)
	defer cancel()
	for ctx.Err() == nil {
		changed := m.cluster.Changed()
		if !arrived(m.cluster.State(), m.self) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// arrived says that a node has a volume that came with a move, and whose containers are on their way.
func arrived(s *state.State, node volume.NodeID) bool {
	for v := range s.Volumes() {
		if v.Placement.Primary == node && v.Moved != nil && len(s.Starting(v)) > 0 {
			return true
		}
	}
	return false
}

// mayGetImage says that a node has a copy of a volume of a container that is elsewhere, and
// so may have to start it: what is not there yet of its volumes is brought there when a
// failover has taken them apart, and by then the node that had the image may be gone.
func mayGetImage(s *state.State, r *state.Container, node volume.NodeID) bool {
	if r.Node == node || r.Blocked {
		return false
	}
	return slices.ContainsFunc(r.Volumes, func(cv state.ContainerVolume) bool {
		v := s.Volume(cv.ID)
		return v != nil && v.Placement.Role(node) != volume.RoleNone
	})
}

func imageOf(r *state.Container) container.Image {
	return container.Image{ID: r.Image.ID, Ref: r.Image.Ref, Layers: r.Image.Layers}
}

// hasImage asks the engine here, and keeps the answer for reports.
func (f *follower) hasImage(ctx context.Context, r *state.Container) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	_, err := f.engine.LocalImage(ctx, imageOf(r))
	if err != nil && !errors.Is(err, container.ErrNotFound) {
		return false, err
	}
	f.noteImage(r.RecordKey(), err == nil)
	return err == nil, nil
}

// noteImage keeps whether the image of a record is here. One that has come may be what its start has lacked.
func (f *follower) noteImage(record string, has bool) {
	f.mu.Lock()
	had, asked := f.images[record]
	f.images[record] = has
	f.mu.Unlock()
	if has && asked && !had {
		f.eased(record)
	}
}

// fetchImage asks the nodes that may have an image, the container's first.
func (f *follower) fetchImage(ctx context.Context, s *state.State, r *state.Container) error {
	nodes := []volume.NodeID{r.Node}
	for _, cv := range r.Volumes {
		if v := s.Volume(cv.ID); v != nil {
			nodes = append(nodes, v.Placement.Nodes()...)
		}
	}
	tried := map[volume.NodeID]bool{f.m.self: true}
	var errs []error
	for _, id := range nodes {
		if tried[id] || !cluster.MayHaveData(s.Node(id)) {
			continue
		}
		tried[id] = true
		err := f.fetchFrom(ctx, id, imageOf(r))
		if err == nil {
			f.m.log.Info("fetched the image of a container that may have to run here", "container", r.Name, "image", r.Image.Ref, "from", s.NodeName(id))
			return nil
		}
		errs = append(errs, fmt.Errorf("from %s: %w", s.NodeName(id), err))
	}
	return errors.Join(errs...)
}

func (f *follower) fetchFrom(ctx context.Context, from volume.NodeID, i container.Image) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return f.m.cluster.Dial(ctx, from, transport.ProtoImage)
		},
		DisableKeepAlives: true, DisableCompression: true,
	}
	defer tr.CloseIdleConnections()
	watch := time.AfterFunc(imageSilence, func() { cancel(errors.New("nothing has come for a long time")) })
	defer watch.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://flockd/v1/peer/image?id="+url.QueryEscape(i.ID), nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return errors.Join(fmt.Errorf("%s: %s", resp.Status, text), err)
	}
	// An archive that breaks off is an error of this reader, which the engine's load ends
	// with.
	body := &feeding{r: resp.Body, fed: func() { watch.Reset(imageSilence) }}
	if err := f.engine.LoadImage(ctx, i, body); err != nil {
		return errors.Join(err, body.err)
	}
	return nil
}

// feeding tells of every piece that comes.
type feeding struct {
	r   io.Reader
	fed func()
	err error // but for the end
}

func (r *feeding) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if n > 0 {
		r.fed()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// serveImages answers other nodes, one at a time, until ctx ends.
func (f *follower) serveImages(ctx context.Context) error {
	one := make(chan struct{}, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/peer/image", func(w http.ResponseWriter, r *http.Request) {
		select {
		case one <- struct{}{}:
			defer func() { <-one }()
		case <-r.Context().Done():
			return
		}
		f.sendImage(w, r)
	})
	return api.ServePeers(ctx, f.m.cluster.Listener(transport.ProtoImage), peerOf, mux, f.m.log)
}

// sendImage sends the image of a container that follows, and no other.
func (f *follower) sendImage(w http.ResponseWriter, r *http.Request) {
	s := f.m.cluster.State()
	from, _ := api.Caller(r.Context())
	id := r.URL.Query().Get("id")
	var wanted *state.Container
	for c := range s.Containers() {
		if c.Image.ID == id && cluster.MayHaveData(s.Node(from)) {
			wanted = c
		}
	}
	if wanted == nil {
		http.Error(w, "no container that follows its volumes has this image", http.StatusForbidden)
		return
	}
	archive, err := f.engine.SaveImage(r.Context(), imageOf(wanted))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	defer archive.Close()
	paced := &pacing{w: w, ctx: r.Context(), limit: func() int64 { return f.m.limit(from).Bytes / imageShare }}
	if _, err := io.Copy(paced, archive); err != nil {
		// What was sent must not look whole.
		f.m.log.Info("an image was not sent to its end", "image", wanted.Image.Ref, "to", s.NodeName(from), "err", err)
		panic(http.ErrAbortHandler)
	}
}

// pacing writes no more than so many bytes a second; 0 is no limit.
type pacing struct {
	w     io.Writer
	ctx   context.Context
	limit func() int64
}

func (p *pacing) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	if limit := p.limit(); limit > 0 && err == nil {
		pause(p.ctx, time.Duration(float64(n)/float64(limit)*float64(time.Second)))
		err = p.ctx.Err()
	}
	return n, err
}
