package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/browse"
	"github.com/flocker-io/flocker/internal/volume"
)

// BrowseAs says in what form something of a snapshot is wanted.
type BrowseAs string

const (
	// AsList is a line of JSON, a browse.Entry, for each thing in a directory.
	AsList BrowseAs = "list"
	// AsFile is the content of a file.
	AsFile BrowseAs = "file"
	// AsTar is a thing and all that is below it as a tar stream.
	AsTar BrowseAs = "tar"
	// AsDiff is a line of JSON, a browse.Change, for each thing that is not the same in two
	// snapshots.
	AsDiff BrowseAs = "diff"
	// AsStream is the snapshot itself as zfs sends it, full or as an increment.
	AsStream BrowseAs = "stream"
)

var contentTypes = map[BrowseAs]string{AsList: "application/x-ndjson", AsFile: "application/octet-stream", AsTar: "application/x-tar", AsDiff: "application/x-ndjson", AsStream: "application/octet-stream"}

// BrowseRequest asks for something of a snapshot.
type BrowseRequest struct {
	// Snapshot is its name; "" is the newest one that has the path, for AsDiff one that the
	// primary takes for it, or the newest where the primary is away.
	Snapshot string
	Since    string // the other one, for AsDiff
	Path     string // from the top of the volume
	As       BrowseAs

	// GUID is that of the snapshot, for AsStream, instead of its name.
	GUID uint64
	// Bases, for AsStream, are guids of earlier snapshots: the stream is an increment on the
	// first of them that there is. Where there is none it is CodeUnavailable, not a full one.
	Bases []uint64
}

// BrowseCopyRequest is the same of one node's copy.
type BrowseCopyRequest struct {
	Volume volume.ID `json:"volume"`
	// GUID is that of the snapshot; 0: whichever has the name. Without both it is the
	// newest one that has the path, see BrowseRequest.
	GUID      uint64   `json:"guid,string,omitempty"`
	Snapshot  string   `json:"snapshot,omitempty"`
	SinceGUID uint64   `json:"since_guid,string,omitempty"`
	Since     string   `json:"since,omitempty"`
	Path      string   `json:"path"`
	As        BrowseAs `json:"as"`
	Bases     []uint64 `json:"bases,omitempty"`
}

// Browsed is something of a snapshot, to be read from Body, which has to be closed: until
// then the snapshot stays where it is. What ends with another error than io.EOF is not whole.
type Browsed struct {
	Volume   string    `json:"volume"`
	Snapshot string    `json:"snapshot"`
	GUID     uint64    `json:"guid,string"`
	Taken    time.Time `json:"taken"`
	// Since is the older one of two, and Fresh says that the other was taken for this.
	Since      string    `json:"since,omitempty"`
	SinceTaken time.Time `json:"since_taken,omitzero"`
	Fresh      bool      `json:"fresh,omitempty"`
	// SinceGUID is that of the base of a stream; 0: it is a full one.
	SinceGUID uint64 `json:"since_guid,string,omitempty"`

	Node NodeRef       `json:"node"`           // which has read it
	Size int64         `json:"size,omitempty"` // of a file; of a stream, about
	As   BrowseAs      `json:"as"`
	Body io.ReadCloser `json:"-"`
}

// Entries calls f for each entry of a list.
func (b *Browsed) Entries(f func(browse.Entry) error) error { return lines(b.Body, f) }

// Changes calls f for each change of a diff.
func (b *Browsed) Changes(f func(browse.Change) error) error { return lines(b.Body, f) }

func lines[T any](r io.Reader, f func(T) error) error {
	d := json.NewDecoder(bufio.NewReaderSize(r, 64<<10))
	for {
		var e T
		err := d.Decode(&e)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = f(e)
		}
		if err != nil {
			return err
		}
	}
}

// browsedHeader carries what there is to know of a Browsed beside its content.
const browsedHeader = "Flocker-Browsed"

// Browse implements Backend.
func (c *Client) Browse(ctx context.Context, ref string, req BrowseRequest) (*Browsed, error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return nil, err
	}
	query := url.Values{"snapshot": {req.Snapshot}, "path": {req.Path}, "as": {string(req.As)}}
	if req.Since != "" {
		query.Set("since", req.Since)
	}
	if req.GUID != 0 {
		query.Set("guid", strconv.FormatUint(req.GUID, 10))
	}
	if len(req.Bases) > 0 {
		query.Set("bases", joinGUIDs(req.Bases))
	}
	return c.browsed(ctx, request{method: "GET", path: path + "/browse", query: query})
}

// BrowseCopy implements Peer.
func (c *Client) BrowseCopy(ctx context.Context, req BrowseCopyRequest) (*Browsed, error) {
	return c.browsed(ctx, request{method: "POST", path: "/v1/peer/browse", in: req, repeatable: true})
}

func (c *Client) browsed(ctx context.Context, rq request) (*Browsed, error) {
	resp, err := c.send(ctx, rq)
	if err != nil {
		return nil, err
	}
	b := &Browsed{}
	if err := json.Unmarshal([]byte(resp.Header.Get(browsedHeader)), b); err != nil {
		resp.Body.Close()
		return nil, fmt.Errorf("reading flockd's answer: %w", err)
	}
	b.Body = browsedBody{resp.Body, ctx, b.Node}
	return b, nil
}

// browsedBody is content as it comes from another flockd.
type browsedBody struct {
	io.ReadCloser
	ctx  context.Context
	node NodeRef
}

func (b browsedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case b.ctx.Err() != nil:
		return n, context.Cause(b.ctx)
	}
	return n, volume.Errorf(volume.CodeUnavailable, "what %s reads has ended before its end: %v", b.node, err).
		WithHint("try again; the log of its flockd says why")
}

const (
	// browseIdle is how long somebody who reads may take none of what there is.
	browseIdle = 5 * time.Minute
	// streamIdle is that for a stream of a backup, either way: a piece of it is stored somewhere
	// else, or read there, before the next is asked for or sent, over whatever line there is.
	streamIdle = 30 * time.Minute
)

// stream sends what was browsed. A reply that is not whole is cut, which every client notices.
func (h *handler) stream(w http.ResponseWriter, r *http.Request, b *Browsed) {
	fail := func(err error) {
		h.log.Warn("reading a snapshot for somebody has ended before its end", "request", RequestID(r.Context()),
			"volume", b.Volume, "snapshot", b.Snapshot, "err", err)
	}
	defer func() {
		if err := b.Body.Close(); err != nil {
			h.log.Warn("closing a snapshot that was read for somebody", "volume", b.Volume, "snapshot", b.Snapshot, "err", err)
		}
	}()
	idle := browseIdle
	if b.As == AsStream {
		idle = streamIdle
	}
	buf := make([]byte, 64<<10)
	n, err := b.Body.Read(buf)
	if n == 0 && err != nil && err != io.EOF {
		fail(err)
		writeError(w, err)
		return
	}
	meta, merr := json.Marshal(b)
	if merr != nil {
		writeError(w, merr)
		return
	}
	w.Header().Set(browsedHeader, string(meta))
	w.Header().Set("Content-Type", contentTypes[b.As])
	if b.As == AsFile {
		w.Header().Set("Content-Length", strconv.FormatInt(b.Size, 10))
	}
	c := http.NewResponseController(w)
	// What goes to another node must not make a lease late. Nothing else is sent like that after it.
	if conn, ok := r.Context().Value(connKey{}).(interface{ Background() error }); ok {
		w.Header().Set("Connection", "close")
		if err := conn.Background(); err != nil {
			h.log.Warn("what is read for a node is not marked as background traffic", "request", RequestID(r.Context()), "err", err)
		}
	}
	// Somebody who takes nothing does not keep flockd from stopping.
	ended := context.AfterFunc(r.Context(), func() { c.SetWriteDeadline(time.Now()) })
	defer ended()
	for {
		if n > 0 {
			c.SetWriteDeadline(time.Now().Add(idle)) // what cannot have one ends with its connection
			if r.Context().Err() != nil {
				fail(context.Cause(r.Context()))
				panic(http.ErrAbortHandler)
			}
			if _, err := w.Write(buf[:n]); err != nil {
				fail(err)
				panic(http.ErrAbortHandler)
			}
		}
		switch {
		case err == io.EOF:
			c.SetWriteDeadline(time.Now().Add(idle))
			c.Flush()
			c.SetWriteDeadline(time.Time{}) // the connection serves other calls after this
			return
		case err != nil:
			fail(err)
			c.Flush() // so that who reads knows what it is that is cut
			panic(http.ErrAbortHandler)
		}
		n, err = b.Body.Read(buf)
	}
}

// validBrowse is the path as it is meant.
func validBrowse(path string, as BrowseAs, since string) (string, error) {
	switch {
	case contentTypes[as] == "":
		return "", volume.Errorf(volume.CodeInvalid, "as=%q: want list, file, tar, diff or stream", as)
	case (as == AsDiff) != (since != ""):
		return "", volume.Errorf(volume.CodeInvalid, "since is for as=diff, which needs it")
	}
	return browse.Clean(path)
}

// validStream refuses what does not go together.
func validStream(as BrowseAs, snapshot string, guid uint64, bases int, path string) error {
	switch {
	case as != AsStream && (guid != 0 || bases > 0):
		return volume.Errorf(volume.CodeInvalid, "guid and bases are for as=stream")
	case as == AsStream && (snapshot == "") == (guid == 0):
		return volume.Errorf(volume.CodeInvalid, "as=stream is of one snapshot, by its name or its guid")
	case as == AsStream && path != "" && path != ".":
		return volume.Errorf(volume.CodeInvalid, "as=stream is of all there is, and has no path")
	case bases > MaxBases:
		return volume.Errorf(volume.CodeInvalid, "%d bases are more than %d", bases, MaxBases)
	}
	return nil
}

// MaxBases is how many snapshots may be named for an increment.
const MaxBases = 64

func joinGUIDs(guids []uint64) string {
	var b strings.Builder
	for i, g := range guids {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatUint(g, 10))
	}
	return b.String()
}

func splitGUIDs(s string) (guids []uint64, err error) {
	if s == "" {
		return nil, nil
	}
	for _, text := range strings.Split(s, ",") {
		g, err := strconv.ParseUint(text, 10, 64)
		if err != nil || g == 0 {
			return nil, volume.Errorf(volume.CodeInvalid, "query parameter bases: %q is no guid", text)
		}
		guids = append(guids, g)
	}
	return guids, nil
}

func browseRoutes(b Backend) []route {
	return []route{
		{"GET", "/v1/volumes/{ref}/browse", anyone, func(r *http.Request) (any, error) {
			q, err := query(r, "snapshot", "since", "path", "as", "guid", "bases")
			if err != nil {
				return nil, err
			}
			if err := noBody(r); err != nil {
				return nil, err
			}
			req := BrowseRequest{Snapshot: q["snapshot"], Since: q["since"], Path: q["path"], As: BrowseAs(q["as"])}
			if req.GUID, err = q.number("guid"); err != nil {
				return nil, err
			}
			if req.Bases, err = splitGUIDs(q["bases"]); err != nil {
				return nil, err
			}
			if err := validStream(req.As, req.Snapshot, req.GUID, len(req.Bases), req.Path); err != nil {
				return nil, err
			}
			if req.Path, err = validBrowse(req.Path, req.As, req.Since); err != nil {
				return nil, err
			}
			return browsed(b.Browse(r.Context(), r.PathValue("ref"), req))
		}},
	}
}

func browsePeerRoutes(p Peer) []route {
	return []route{
		{"POST", "/v1/peer/browse", peers, lenient(func(r *http.Request, req BrowseCopyRequest) (any, error) {
			if _, err := volume.ParseID(string(req.Volume)); err != nil {
				return nil, volume.Errorf(volume.CodeInvalid, "%v", err)
			}
			var err error
			if req.Path, err = validBrowse(req.Path, req.As, req.Since); err != nil {
				return nil, err
			}
			return browsed(p.BrowseCopy(r.Context(), req))
		})},
	}
}

// browsed is no reply where there is an error.
func browsed(b *Browsed, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}
