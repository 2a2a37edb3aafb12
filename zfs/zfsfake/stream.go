package zfsfake

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/zfs"
)

// A stream begins with the record that a true one begins with (zfs.StreamHeader), so
// that whoever looks at a stream before zfs does sees no difference. Then come records
// of our own: a letter, the length, the body, and a running checksum over all so far.
// B begins (with the number of the first record sent), W is a piece of a file, D a
// file that is gone, E the end. Which records there are depends only on
// base and target, so a resumed stream begins at the number of a record.

const (
	pieceSize = 8 << 10
	maxRecord = 1 << 20
)

type header struct {
	ToName   string
	ToGUID   uint64
	FromGUID uint64
	Creation int64
	Clone    bool // the base is in another dataset
	Resume   bool
	Record   int // the first one sent
}

// partial is a receive under way, or the %recv of an interrupted one.
type partial struct {
	header    header
	resumable bool
	kept      bool // nobody is receiving; it waits to be resumed
	from      *snapshot
	tree      *tree
	next      int // record expected
	bytes     int64
	piece     []byte // of a file not complete yet
	new       bool   // the dataset was made for it
}

type token struct {
	ToName           string
	ToGUID, FromGUID uint64
	Record           int
	Bytes            int64
}

func (p *partial) token() string {
	raw, _ := json.Marshal(token{p.header.ToName, p.header.ToGUID, p.header.FromGUID, p.next, p.bytes})
	return fmt.Sprintf("1-%08x-%x-%x", crc32.ChecksumIEEE(raw), len(raw), raw)
}

func parseToken(s string) (t token, err error) {
	bad := &zfs.Error{Kind: zfs.ErrBadToken, Stderr: "cannot resume send: resume token is corrupt"}
	f := strings.Split(s, "-")
	if len(f) != 4 || f[0] != "1" {
		return t, bad
	}
	raw, err := hex.DecodeString(f[3])
	if err != nil || fmt.Sprintf("%08x", crc32.ChecksumIEEE(raw)) != f[1] || json.Unmarshal(raw, &t) != nil {
		return t, bad
	}
	return t, nil
}

// Send implements zfs.System.
func (h *Host) Send(ctx context.Context, req zfs.SendRequest, w io.Writer) error {
	ctx, life, done := h.begin(ctx, "send")
	defer done()
	if err := h.ready(ctx, "send", req.Snapshot+" "+req.From+req.Token); err != nil {
		return err
	}
	var plan plan
	if err := h.locked(life, "send", func() (err error) {
		plan, err = h.plan(req)
		if err == nil {
			plan.hold(1)
		}
		return err
	}); err != nil {
		return err
	}
	defer h.locked(life, "send", func() error { plan.hold(-1); return nil })

	_, err := zfs.Interruptible(ctx, zfs.WriteDeadline(w), func() error { return plan.write(ctx, w) })
	for _, ctx := range []context.Context{ctx, life} {
		if ctx.Err() != nil && err != nil {
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		return &zfs.Error{Op: "send", Err: err}
	}
	return wrap("send", h.apply(ctx, "send", req.Snapshot+" "+req.From+req.Token, true))
}

// EstimateSend implements zfs.System.
func (h *Host) EstimateSend(ctx context.Context, req zfs.SendRequest) (n int64, err error) {
	err = h.command(ctx, "estimate-send", req.Snapshot+" "+req.From+req.Token, func() error {
		p, err := h.plan(req)
		if err != nil {
			return err
		}
		n = 100
		for _, r := range p.records[p.header.Record:] {
			n += int64(len(r.path)+len(r.data)) + 32
		}
		return nil
	})
	return n, err
}

// DecodeToken implements zfs.System.
func (h *Host) DecodeToken(ctx context.Context, text string) (out zfs.ResumeToken, err error) {
	err = h.command(ctx, "decode-token", text, func() error {
		if _, err := h.planResume(text); err != nil {
			return err
		}
		t, err := parseToken(text)
		out = zfs.ResumeToken{ToName: t.ToName, ToGUID: t.ToGUID, FromGUID: t.FromGUID, Bytes: t.Bytes}
		return err
	})
	return out, err
}

// plan is all that a stream will hold; what it points to never changes.
type plan struct {
	header  header
	records []record
	reads   []*snapshot
}

type record struct {
	kind   byte // W or D
	path   string
	offset int
	total  int
	data   []byte
}

func (p plan) hold(n int) {
	for _, s := range p.reads {
		s.sending += n
	}
}

// plan is called under the lock.
func (h *Host) plan(req zfs.SendRequest) (plan, error) {
	if req.Token != "" {
		return h.planResume(req.Token)
	}
	err := zfs.CheckSnapshot(req.Snapshot)
	if err == nil && req.From != "" && zfs.CheckSnapshot(req.From) != nil {
		err = zfs.CheckBookmark(req.From)
	}
	if err != nil {
		return plan{}, invalid("send", err)
	}
	to, err := h.snapshot(req.Snapshot)
	if err != nil {
		return plan{}, err
	}
	out := plan{header: header{ToName: req.Snapshot, ToGUID: to.guid, Creation: to.creation.Unix()}, reads: []*snapshot{to}}
	var base *tree
	if req.From != "" {
		ds, name, mark := strings.Cut(req.From, "#")
		if !mark {
			ds, name, _ = strings.Cut(req.From, "@")
		}
		missing := fail(zfs.ErrNoBase, "cannot send '%s': incremental source (%s) does not exist", req.Snapshot, req.From)
		d, err := h.dataset(ds)
		if err != nil {
			return plan{}, missing
		}
		var txg uint64
		if mark {
			b := d.bookmarks[name]
			if b == nil {
				return plan{}, missing
			}
			base, txg, out.header.FromGUID = b.files, b.txg, b.guid
		} else {
			s := d.find(name)
			if s == nil {
				return plan{}, missing
			}
			base, txg, out.header.FromGUID = s.tree, s.txg, s.guid
			out.reads = append(out.reads, s)
		}
		if !isBefore(d, txg, to) {
			return plan{}, fail(zfs.ErrNoBase, "cannot send '%s': not an earlier snapshot from the same fs", req.From)
		}
		out.header.Clone = d != to.ds
	}
	out.records = difference(base, to.tree)
	return out, nil
}

// isBefore: what was in d at txg is in the history of to.
func isBefore(d *dataset, txg uint64, to *snapshot) bool {
	limit := to.txg
	for at := to.ds; ; {
		if at == d {
			return txg < limit
		}
		if at.origin == nil {
			return false
		}
		limit, at = at.origin.txg+1, at.origin.ds
	}
}

func (h *Host) planResume(text string) (plan, error) {
	t, err := parseToken(text)
	if err != nil {
		return plan{}, err
	}
	gone := &zfs.Error{Kind: zfs.ErrBadToken, Stderr: fmt.Sprintf("cannot resume send: '%s' used in the initial send no longer exists", t.ToName)}
	var to *snapshot
	if p := h.poolOf(t.ToName); p != nil {
		for _, name := range p.names() {
			if s := p.datasets[name].findGUID(t.ToGUID); s != nil && (to == nil || s.fullName() == t.ToName) {
				to = s
			}
		}
	}
	if to == nil {
		return plan{}, gone
	}
	req := zfs.SendRequest{Snapshot: to.fullName()}
	if t.FromGUID != 0 {
		if s := to.ds.findGUID(t.FromGUID); s != nil {
			req.From = s.fullName()
		} else if to.ds.origin != nil && to.ds.origin.guid == t.FromGUID {
			req.From = to.ds.origin.fullName()
		} else {
			for _, b := range to.ds.bookmarks {
				if b.guid == t.FromGUID {
					req.From = to.ds.name + "#" + b.name
				}
			}
		}
		if req.From == "" {
			return plan{}, &zfs.Error{Kind: zfs.ErrBadToken, Stderr: "cannot resume send: incremental source no longer exists"}
		}
	}
	out, err := h.plan(req)
	out.header.Resume, out.header.Record = true, t.Record
	if err == nil && t.Record > len(out.records) {
		err = &zfs.Error{Kind: zfs.ErrBadToken, Stderr: "cannot resume send: resume token is corrupt"}
	}
	return out, err
}

// difference is what turns base (nil: nothing) into to.
func difference(base, to *tree) []record {
	if base == nil {
		base = &tree{}
	}
	var list []record
	all := maps.Clone(to.files)
	maps.Copy(all, base.files)
	for _, path := range slices.Sorted(maps.Keys(all)) {
		b := to.files[path]
		switch {
		case b == nil:
			list = append(list, record{kind: 'D', path: path})
		case b != base.files[path]:
			for at := 0; at == 0 || at < len(b.data); at += pieceSize {
				list = append(list, record{kind: 'W', path: path, offset: at, total: len(b.data),
					data: b.data[at:min(at+pieceSize, len(b.data))]})
			}
		}
	}
	return list
}

func (p plan) write(ctx context.Context, w io.Writer) error {
	out := &recordWriter{w: bufio.NewWriterSize(w, 32<<10)}
	begin := BeginRecord(zfs.StreamHeader{
		ToName: p.header.ToName, ToGUID: p.header.ToGUID, FromGUID: p.header.FromGUID, Created: time.Unix(p.header.Creation, 0),
		Type: zfs.StreamFilesystem, Clone: p.header.Clone, Resuming: p.header.Resume,
	})
	out.w.Write(begin)
	out.sum = crc32.ChecksumIEEE(begin)
	out.put('B', binary.BigEndian.AppendUint64(nil, uint64(p.header.Record)))
	for _, r := range p.records[p.header.Record:] {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		body := binary.BigEndian.AppendUint32(nil, uint32(len(r.path)))
		body = append(body, r.path...)
		body = binary.BigEndian.AppendUint64(body, uint64(r.offset))
		body = binary.BigEndian.AppendUint64(body, uint64(r.total))
		if err := out.put(r.kind, append(body, r.data...)); err != nil {
			return err
		}
	}
	out.put('E', binary.BigEndian.AppendUint64(nil, uint64(len(p.records))))
	return out.w.Flush()
}

type recordWriter struct {
	w   *bufio.Writer
	sum uint32
}

func (o *recordWriter) put(kind byte, body []byte) error {
	buf := append([]byte{kind}, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(buf[1:], uint32(len(body)))
	buf = append(buf, body...)
	o.sum = crc32.Update(o.sum, crc32.IEEETable, buf)
	_, err := o.w.Write(binary.BigEndian.AppendUint32(buf, o.sum))
	return err
}

// recordReader gives one record after the other; any damage is errDamaged.
type recordReader struct {
	r   io.Reader
	sum uint32
}

var errDamaged = errors.New("checksum mismatch or incomplete stream")

func (i *recordReader) next() (kind byte, body []byte, n int, err error) {
	var head [5]byte
	if _, err := io.ReadFull(i.r, head[:]); err != nil {
		return 0, nil, 0, damaged(err)
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > maxRecord {
		return 0, nil, 0, errDamaged
	}
	rest := make([]byte, size+4)
	if _, err := io.ReadFull(i.r, rest); err != nil {
		return 0, nil, 0, damaged(err)
	}
	body = rest[:size]
	i.sum = crc32.Update(crc32.Update(i.sum, crc32.IEEETable, head[:]), crc32.IEEETable, body)
	if binary.BigEndian.Uint32(rest[size:]) != i.sum {
		return 0, nil, 0, errDamaged
	}
	return head[0], body, len(head) + len(rest), nil
}

// damaged keeps the reason of a broken connection, which zfs would not know.
func damaged(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errDamaged
	}
	return fmt.Errorf("%w: %w", errDamaged, err)
}

func parseBody(body []byte) (r record, ok bool) {
	if len(body) < 4 {
		return r, false
	}
	n := int(binary.BigEndian.Uint32(body))
	if n < 0 || len(body) < 4+n+16 {
		return r, false
	}
	r.path, body = string(body[4:4+n]), body[4+n:]
	r.offset, r.total = int(binary.BigEndian.Uint64(body)), int(binary.BigEndian.Uint64(body[8:]))
	r.data = body[16:]
	return r, true
}

// Receive implements zfs.System.
func (h *Host) Receive(ctx context.Context, req zfs.ReceiveRequest, r io.Reader) error {
	var bad error
	if req.Origin != "" {
		bad = zfs.CheckSnapshot(req.Origin)
	}
	if err := invalid("receive", zfs.CheckDataset(req.Dataset), bad, checkProps(req.Properties)); err != nil {
		return err
	}
	ctx, life, done := h.begin(ctx, "receive")
	defer done()
	if err := h.ready(ctx, "receive", req.Dataset); err != nil {
		return err
	}
	in := &receiver{h: h, life: life, ctx: ctx, req: req}
	_, err := zfs.Interruptible(ctx, zfs.ReadDeadline(r), func() error { return in.run(r) })
	if err := in.end(err); err != nil {
		return err
	}
	return wrap("receive", h.apply(ctx, "receive", req.Dataset, true))
}

// receiver is one Receive. Its reading runs on a goroutine that may outlive it
// when r blocks for ever; over then keeps that from changing anything.
type receiver struct {
	h    *Host
	life context.Context
	ctx  context.Context
	req  zfs.ReceiveRequest

	// Below the host's lock.
	ds      *dataset // with our partial, while receiving
	over    bool
	applied bool
}

func (in *receiver) run(r io.Reader) error {
	first := make([]byte, zfs.StreamHeaderSize)
	if _, err := io.ReadFull(r, first); err != nil {
		e := &zfs.Error{Op: "receive", Kind: zfs.ErrBadStream, Stderr: "cannot receive: failed to read from stream"}
		if err != io.EOF && err != io.ErrUnexpectedEOF {
			e.Err = err
		}
		return e
	}
	said, err := zfs.ParseStreamHeader(first)
	if err != nil {
		return fail(zfs.ErrBadStream, "cannot receive: invalid stream (bad magic number)")
	}
	rr := &recordReader{r: r, sum: crc32.ChecksumIEEE(first)}
	kind, body, _, err := rr.next()
	if err != nil || kind != 'B' || len(body) != 8 {
		return errors.Join(fail(zfs.ErrBadStream, "cannot receive: invalid stream (bad begin record)"), err)
	}
	head := header{
		ToName: said.ToName, ToGUID: said.ToGUID, FromGUID: said.FromGUID, Creation: said.Created.Unix(),
		Clone: said.Clone, Resume: said.Resuming, Record: int(binary.BigEndian.Uint64(body)),
	}

	var swallow bool
	if err := in.locked(func() (err error) {
		swallow, err = in.begin(head)
		return err
	}); err != nil {
		return err
	}
	for done := false; !done; {
		kind, body, n, err := rr.next()
		if err != nil {
			return err
		}
		done = kind == 'E'
		if swallow {
			continue
		}
		if err := in.locked(func() error { return in.record(kind, body, n) }); err != nil {
			return err
		}
	}
	if swallow {
		in.locked(func() error { in.applied = true; return nil })
	}
	io.Copy(io.Discard, r)
	return nil
}

func (in *receiver) locked(f func() error) error {
	return in.h.locked(in.life, "receive", func() error {
		if in.over || in.ctx.Err() != nil {
			return context.Cause(in.ctx)
		}
		return f()
	})
}

// begin decides what may be done with a stream, as the kernel does, in its order.
func (in *receiver) begin(head header) (swallow bool, err error) {
	h, name := in.h, in.req.Dataset
	_, short, _ := strings.Cut(head.ToName, "@")
	fresh := head.FromGUID == 0 || head.Clone || in.req.Origin != ""
	kindOf := "incremental"
	if fresh {
		kindOf = "new filesystem"
	}
	p := h.poolOf(name)
	if p == nil {
		return false, fail(zfs.ErrNotFound, "cannot receive %s stream: destination '%s' does not exist", kindOf, name)
	}
	d := p.datasets[name]

	if head.Resume {
		if d == nil || d.partial == nil {
			return false, fail(zfs.ErrBadToken, "cannot receive resume stream: destination '%s' has no partial state", name)
		}
		q := d.partial
		if !q.kept {
			return false, fail(zfs.ErrBusy, "cannot receive resume stream: dataset is busy")
		}
		if q.new && len(d.snaps) > 0 {
			return false, fail(zfs.ErrInvalid, "cannot receive resume stream: it was promoted, so that '%s' has snapshots", name)
		}
		if q.header.ToGUID != head.ToGUID || q.header.FromGUID != head.FromGUID || q.next != head.Record {
			return false, fail(zfs.ErrBadToken, "cannot receive resume stream: it is not the one '%s' waits for", name)
		}
		if err := p.begin(0); err != nil {
			return false, err
		}
		q.kept, q.resumable = false, in.req.Resumable
		in.ds = d
		return false, nil
	}

	if fresh {
		if d != nil {
			return false, fail(zfs.ErrExists, "cannot receive new filesystem stream: destination '%s' exists\nmust specify -F to overwrite it", name)
		}
		if p.datasets[path.Dir(name)] == nil {
			return false, fail(zfs.ErrNotFound, "cannot receive new filesystem stream: parent of '%s' does not exist", name)
		}
		if err := h.checkValues(name, in.req.Properties); err != nil {
			return false, err
		}
		var origin *snapshot
		switch {
		case in.req.Origin != "":
			s, err := h.snapshot(in.req.Origin)
			switch {
			case err != nil:
				return false, fail(zfs.ErrNotFound, "cannot receive new filesystem stream: dataset does not exist")
			case head.FromGUID == 0:
				return false, fail(zfs.ErrInvalid, "cannot receive new filesystem stream: the fake makes no clone of a full stream")
			case s.ds.pool != p:
				return false, fail(zfs.ErrInvalid, "cannot receive new filesystem stream: origin is in another pool")
			case s.guid != head.FromGUID:
				return false, fail(zfs.ErrNoBase, "cannot receive new filesystem stream: most recent snapshot of %s does not\nmatch incremental source", name)
			}
			origin = s
		case head.Clone:
			for _, other := range p.names() {
				if s := p.datasets[other].findGUID(head.FromGUID); s != nil {
					origin = s
				}
			}
			if origin == nil {
				return false, fail(zfs.ErrNoBase, "cannot receive new filesystem stream: local origin for clone '%s' does not exist", name+"@"+short)
			}
		}
		if origin == nil && h.effective(p.datasets[path.Dir(name)], "encryption", "off") != "off" {
			return false, fail(zfs.ErrBadToken, "cannot receive new filesystem stream: incompatible embedded data stream feature with encrypted receive.")
		}
		if err := p.begin(datasetOver); err != nil {
			return false, err
		}
		if origin != nil {
			d = h.addClone(origin, name)
		} else {
			d = h.add(p, name)
		}
		d.setProps(in.req.Properties)
		d.inconsistent = true
		d.partial = &partial{header: head, resumable: in.req.Resumable, tree: d.head.view(), new: true}
		in.ds = d
		return false, nil
	}

	switch {
	case d == nil:
		return false, fail(zfs.ErrNotFound, "cannot receive incremental stream: destination '%s' does not exist", name)
	case d.partial != nil && d.partial.kept:
		return false, fail(zfs.ErrBusy, "cannot receive incremental stream: destination %s contains partially-complete state from \"zfs receive -s\".", name)
	case d.partial != nil:
		return false, fail(zfs.ErrBusy, "cannot receive incremental stream: dataset is busy")
	case d.findGUID(head.ToGUID) != nil:
		return true, nil
	case d.find(short) != nil:
		return false, fail(zfs.ErrExists, "cannot restore to %s@%s: destination already exists", name, short)
	}
	from := d.findGUID(head.FromGUID)
	if from == nil {
		return false, fail(zfs.ErrNoBase, "cannot receive incremental stream: most recent snapshot of %s does not\nmatch incremental source", name)
	}
	if d.changedSince(from) {
		return false, fail(zfs.ErrDiverged, "cannot receive incremental stream: destination %s has been modified\nsince most recent snapshot", name)
	}
	if err := p.begin(0); err != nil {
		return false, err
	}
	d.partial = &partial{header: head, resumable: in.req.Resumable, from: from, tree: from.tree.view()}
	in.ds = d
	return false, nil
}

func (d *dataset) changedSince(s *snapshot) bool {
	for _, later := range d.snaps[slices.Index(d.snaps, s)+1:] {
		if later.changed {
			return true
		}
	}
	return d.changed
}

// record applies one record to the partial state, and the end to the dataset.
func (in *receiver) record(kind byte, body []byte, n int) error {
	d, q := in.ds, in.ds.partial
	p := d.pool
	if p.suspended {
		return fail(zfs.ErrSuspended, "cannot receive: pool I/O is currently suspended")
	}
	if kind == 'E' {
		if len(body) != 8 || binary.BigEndian.Uint64(body) != uint64(q.next) {
			return errDamaged
		}
		return in.apply()
	}
	r, ok := parseBody(body)
	if !ok || kind != 'W' && kind != 'D' {
		return errDamaged
	}
	q.tree = q.tree.mutable()
	if kind == 'D' {
		q.tree.remove(r.path)
	} else {
		if r.offset != len(q.piece) {
			return errDamaged
		}
		q.piece = append(q.piece, r.data...)
		if len(q.piece) >= r.total {
			if p.alloc+(&blob{data: q.piece}).size() > p.size {
				q.piece = q.piece[:r.offset]
				return fail(zfs.ErrNoSpace, "cannot receive stream: out of space")
			}
			q.tree.set(r.path, bytes.Clone(q.piece))
			q.piece = nil
		}
	}
	q.next++
	q.bytes += int64(n)
	return nil
}

// apply swaps the received state in and takes the snapshot, in one step.
func (in *receiver) apply() error {
	d, q := in.ds, in.ds.partial
	if q.from != nil && d.changedSince(q.from) {
		return fail(zfs.ErrDiverged, "cannot receive incremental stream: destination %s has been modified\nsince most recent snapshot", d.name)
	}
	if err := d.pool.begin(0); err != nil {
		return err
	}
	_, short, _ := strings.Cut(q.header.ToName, "@")
	d.sync()
	d.dropLog() // of a crash, which nobody has mounted since
	d.head.drop()
	d.head = q.tree
	d.changed, d.inconsistent, d.partial = false, false, nil
	d.snaps = append(d.snaps, &snapshot{
		ds: d, name: short, guid: q.header.ToGUID, txg: d.pool.txg, creation: time.Unix(q.header.Creation, 0),
		tree: d.head.view(), changed: q.from == nil || q.next > 0, holds: map[string]bool{}, clones: map[*dataset]bool{},
	})
	in.applied = true
	return nil
}

// end closes the receive, whatever became of it, and says it as zfs would.
func (in *receiver) end(err error) error {
	h := in.h
	h.mu.Lock()
	defer h.mu.Unlock()
	in.over = true
	if in.applied {
		return nil
	}
	kept := false
	if in.ds != nil && in.ds.partial != nil && in.life.Err() == nil {
		kept = h.interrupt(in.ds)
	}
	if err == nil {
		err = errDamaged
	}
	for _, ctx := range []context.Context{in.life, in.ctx} {
		if ctx.Err() != nil {
			return &zfs.Error{Op: "receive", Err: context.Cause(ctx)}
		}
	}
	if errors.Is(err, errDamaged) {
		e := &zfs.Error{Op: "receive", Kind: zfs.ErrBadStream, Stderr: "cannot receive stream: " + errDamaged.Error()}
		if err != errDamaged {
			e.Err = err
		}
		if kept {
			e.Kind = zfs.ErrInterrupted
			e.Stderr += ".\nPartially received snapshot is saved."
		}
		return e
	}
	return wrap("receive", err)
}

// interrupt ends a receive: a resumable one that has come some way is kept.
func (h *Host) interrupt(d *dataset) (kept bool) {
	q := d.partial
	if q.kept {
		return true
	}
	if q.resumable && (q.next > 0 || !q.new) {
		q.kept = true
		return true
	}
	if q.new {
		h.remove(d)
		return false
	}
	q.tree.drop()
	d.partial = nil
	return false
}

// AbortReceive implements zfs.System.
func (h *Host) AbortReceive(ctx context.Context, name string) error {
	if err := invalid("abort-receive", zfs.CheckDataset(name)); err != nil {
		return err
	}
	return h.command(ctx, "abort-receive", name, func() error {
		d, err := h.dataset(name)
		if err != nil || d.partial == nil {
			return nil
		}
		q := d.partial
		switch {
		case !q.kept:
			return fail(zfs.ErrBusy, "cannot abort receive of '%s': dataset is busy", name)
		case q.new && len(d.snaps) > 0: // it was promoted
			return fail(zfs.ErrBusy, "cannot destroy '%s': filesystem has children", name)
		}
		if err := d.pool.begin(0); err != nil {
			return err
		}
		if q.new {
			h.remove(d)
			return nil
		}
		q.tree.drop()
		d.partial = nil
		return nil
	})
}
