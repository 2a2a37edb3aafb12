package zfsfake

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/zfs"
)

// Options of a Host.
type Options struct {
	// Seed of GUIDs; two hosts of one test must differ. 0: random.
	Seed uint64
	// Pool to begin with, of Capacity bytes (0: 1 TiB); "" for none.
	Pool     string
	Capacity int64
	// TxgTimeout is after which time a write is durable by itself. 0: 5 s, as ZFS;
	// negative: at once.
	TxgTimeout time.Duration
}

// Host is one machine's ZFS. All methods may be called from many goroutines.
type Host struct {
	options Options

	mu       sync.Mutex // never held while a stream, a timer or a rule is waited for
	rng      *rand.Rand
	pools    map[string]*pool
	mounts   map[*dataset]*mount
	looks    map[string]*snapshot // mounted snapshots, by directory
	rules    []*rule
	commands map[string]int
	life     context.Context // ends at the next crash
	kill     context.CancelCauseFunc
}

var _ zfs.System = (*Host)(nil)

// ErrCrashed is what commands end with that were under way at a Crash.
var ErrCrashed = errors.New("the machine lost power")

type pool struct {
	name      string
	guid      uint64
	path      string
	size      int64
	alloc     int64
	txg       uint64
	imported  bool
	suspended bool
	bootfs    string
	health    string
	datasets  map[string]*dataset
	unsynced  map[*dataset]bool
	sorted    []string // names, in order; nil when it must be made again
}

type dataset struct {
	pool  *pool
	name  string
	guid  uint64
	txg   uint64
	props map[string]string // set on it, native and user

	head    *tree
	changed bool // since the newest snapshot
	// What a crash goes back to, while something is not synced; nil when all is.
	synced        *tree
	syncedChanged bool
	dirtySince    time.Time
	// The intent log: what was fsynced and is in no transaction group yet; after a crash,
	// what the next mount replays. Nil when it is empty.
	log *tree

	snaps     []*snapshot // oldest first
	bookmarks map[string]*bookmark
	origin    *snapshot

	delegated    []string // to users, see Allow
	volume       bool     // a block device
	partial      *partial // of a receive, under way or interrupted
	inconsistent bool     // its first receive is not complete
}

type snapshot struct {
	ds       *dataset
	name     string
	guid     uint64
	txg      uint64
	creation time.Time
	tree     *tree
	changed  bool // it differs from the snapshot before
	holds    map[string]bool
	props    map[string]string
	clones   map[*dataset]bool
	sending  int // streams that read it
	looked   int // directories it is mounted at
}

type bookmark struct {
	name     string
	guid     uint64
	txg      uint64
	creation time.Time
	files    *tree // remembered, not paid for
}

type mount struct {
	path     string
	writable bool
	inUse    bool
}

// New returns a Host.
func New(o Options) *Host {
	if o.Capacity == 0 {
		o.Capacity = 1 << 40
	}
	if o.TxgTimeout == 0 {
		o.TxgTimeout = 5 * time.Second
	}
	seed := o.Seed
	if seed == 0 {
		var b [8]byte
		crand.Read(b[:])
		seed = binary.BigEndian.Uint64(b[:])
	}
	h := &Host{
		options:  o,
		rng:      rand.New(rand.NewPCG(seed, 0x666c6f636b6572)),
		pools:    map[string]*pool{},
		mounts:   map[*dataset]*mount{},
		looks:    map[string]*snapshot{},
		commands: map[string]int{},
	}
	h.newLife()
	if o.Pool != "" {
		h.addPool(o.Pool, "/fake/"+o.Pool+".img", o.Capacity)
	}
	return h
}

func (h *Host) newLife() {
	h.life, h.kill = context.WithCancelCause(context.Background())
}

func (h *Host) guid() uint64 {
	for {
		if g := h.rng.Uint64() >> 1; g != 0 {
			return g
		}
	}
}

func (h *Host) addPool(name, file string, size int64) {
	p := &pool{name: name, guid: h.guid(), path: file, size: size, txg: 4, imported: true,
		health: "ONLINE", datasets: map[string]*dataset{}, unsynced: map[*dataset]bool{}}
	h.pools[name] = p
	root := h.add(p, name)
	root.props = map[string]string{
		"mountpoint": "none", "canmount": "off", "compression": "lz4", "atime": "off",
	}
}

// add puts an empty filesystem into the pool.
func (h *Host) add(p *pool, name string) *dataset {
	p.txg++
	d := &dataset{pool: p, name: name, guid: h.guid(), txg: p.txg, props: map[string]string{},
		head: newTree(p), bookmarks: map[string]*bookmark{}}
	p.datasets[name] = d
	p.sorted = nil
	p.alloc += datasetOver
	return d
}

// command is one call as a real host would run it: counted, subject to the rules,
// ended by ctx and by a crash. work runs under the lock.
func (h *Host) command(ctx context.Context, op, names string, work func() error) error {
	ctx, life, done := h.begin(ctx, op)
	defer done()
	if err := h.ready(ctx, op, names); err != nil {
		return err
	}
	err := h.locked(life, op, work)
	if err != nil {
		return err
	}
	return wrap(op, h.apply(ctx, op, names, true))
}

// begin counts the command and binds ctx to the life of the machine.
func (h *Host) begin(ctx context.Context, op string) (context.Context, context.Context, func()) {
	h.mu.Lock()
	h.commands[op]++
	life := h.life
	h.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(life, func() { cancel(context.Cause(life)) })
	return ctx, life, func() { stop(); cancel(nil) }
}

// ready applies the rules and looks whether the command may still start.
func (h *Host) ready(ctx context.Context, op, names string) error {
	if ctx.Err() == nil {
		if err := h.apply(ctx, op, names, false); err != nil {
			return wrap(op, err)
		}
	}
	if ctx.Err() != nil {
		return &zfs.Error{Op: op, Err: context.Cause(ctx)}
	}
	return nil
}

// locked runs work under the lock, if the machine is still the same.
func (h *Host) locked(life context.Context, op string, work func() error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if life.Err() != nil {
		return &zfs.Error{Op: op, Err: context.Cause(life)}
	}
	for _, p := range h.pools {
		h.settle(p)
	}
	return wrap(op, work())
}

// wrap makes any error one of op.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*zfs.Error); ok {
		if e.Op == "" {
			e.Op = op
		}
		return e
	}
	return &zfs.Error{Op: op, Err: err}
}

// fail is an error as zfs would print it.
func fail(kind error, format string, args ...any) error {
	e := &zfs.Error{Kind: kind, Stderr: fmt.Sprintf(format, args...)}
	for i, part := range strings.Split(e.Stderr, "'") {
		if i%2 == 1 && strings.ContainsAny(part, "/@#") {
			e.Names = append(e.Names, part)
		}
	}
	return e
}

// settle syncs what has been written for long enough.
func (h *Host) settle(p *pool) {
	now := time.Now()
	for d := range p.unsynced {
		if now.Sub(d.dirtySince) >= h.options.TxgTimeout {
			d.sync()
		}
	}
}

// dirty is called before the head changes.
func (d *dataset) dirty() {
	if d.synced == nil {
		d.synced, d.syncedChanged, d.dirtySince = d.head.view(), d.changed, time.Now()
		d.pool.unsynced[d] = true
	}
	d.head = d.head.mutable()
	d.changed = true
}

func (d *dataset) sync() {
	if d.synced != nil {
		d.synced.drop()
		d.synced = nil
		delete(d.pool.unsynced, d)
		d.dropLog()
	}
}

func (d *dataset) dropLog() {
	if d.log != nil {
		d.log.drop()
		d.log = nil
	}
}

// flushed is the head as ZFS' own figures see it.
func (d *dataset) flushed() (*tree, bool) {
	if d.synced != nil {
		return d.synced, d.syncedChanged
	}
	return d.head, d.changed
}

func (d *dataset) referenced() int64 {
	t, _ := d.flushed()
	return datasetOver + t.size
}

func (d *dataset) find(name string) *snapshot {
	for _, s := range d.snaps {
		if s.name == name {
			return s
		}
	}
	return nil
}

func (d *dataset) findGUID(guid uint64) *snapshot {
	for _, s := range d.snaps {
		if s.guid == guid {
			return s
		}
	}
	return nil
}

func (s *snapshot) fullName() string { return s.ds.name + "@" + s.name }

// names of the pool's datasets, in order.
func (p *pool) names() []string {
	if p.sorted == nil {
		p.sorted = slices.Sorted(maps.Keys(p.datasets))
	}
	return p.sorted
}

// below is root and what is under it, root first.
func (p *pool) below(root string) []*dataset {
	var list []*dataset
	if d := p.datasets[root]; d != nil {
		list = append(list, d)
	}
	names := p.names()
	i, _ := slices.BinarySearch(names, root+"/")
	for ; i < len(names) && strings.HasPrefix(names[i], root+"/"); i++ {
		list = append(list, p.datasets[names[i]])
	}
	return list
}

func (h *Host) poolOf(name string) *pool {
	if i := strings.IndexAny(name, "/@#"); i >= 0 {
		name = name[:i]
	}
	p := h.pools[name]
	if p == nil || !p.imported {
		return nil
	}
	return p
}

// dataset by name, or what zfs says without it.
func (h *Host) dataset(name string) (*dataset, error) {
	if p := h.poolOf(name); p != nil {
		if d := p.datasets[name]; d != nil {
			return d, nil
		}
	}
	return nil, fail(zfs.ErrNotFound, "cannot open '%s': dataset does not exist", name)
}

func (h *Host) snapshot(full string) (*snapshot, error) {
	ds, name, _ := strings.Cut(full, "@")
	if p := h.poolOf(ds); p != nil && p.datasets[ds] != nil {
		if s := p.datasets[ds].find(name); s != nil {
			return s, nil
		}
	}
	return nil, fail(zfs.ErrNotFound, "cannot open '%s': dataset does not exist", full)
}

// begin refuses changes on a suspended or full pool and starts a transaction
// group: what changes in one call of it changes in one.
func (p *pool) begin(need int64) error {
	if p.suspended {
		return fail(zfs.ErrSuspended, "cannot change '%s': pool I/O is currently suspended", p.name)
	}
	if need > 0 && p.alloc+need > p.size {
		return fail(zfs.ErrNoSpace, "cannot change '%s': out of space", p.name)
	}
	p.txg++
	return nil
}

// parentOf checks that name may be made.
func (h *Host) parentOf(verb, name string) (*pool, error) {
	p := h.poolOf(name)
	if p == nil {
		return nil, fail(zfs.ErrNotFound, "cannot %s '%s': no such pool", verb, name)
	}
	if p.datasets[name] != nil {
		return nil, fail(zfs.ErrExists, "cannot %s '%s': dataset already exists", verb, name)
	}
	if p.datasets[path.Dir(name)] == nil {
		return nil, fail(zfs.ErrNotFound, "cannot %s '%s': parent does not exist", verb, name)
	}
	return p, nil
}
