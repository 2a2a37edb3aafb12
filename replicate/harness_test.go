package replicate

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

const (
	testRoot = "tank/flocker"
	testVol  = volume.ID("00000000000000aa")
)

// world is a few nodes: a pool and an engine each, and a network of pipes that can
// be cut. In a bubble the pools are fakes; on real ones (real_test.go) the same
// tests of links run in the time of this world.
type world struct {
	patience time.Duration // of waitFor, in simulated time; 0: ten minutes
	testing.TB
	nodes map[string]*node
	real  bool
	// wrap, when set, puts itself around the dialing end of every new connection.
	wrap   func(from, to string, conn net.Conn) net.Conn
	tls    *tls.Config // nil: plain pipes
	below  bool        // wrap goes around what TLS runs on
	onStop []func()
	mu     sync.Mutex
	cut    map[string]bool // "a b": a cannot reach b
}

type node struct {
	w      *world
	name   string
	id     volume.NodeID
	pool   string
	disk   disk
	host   *zfsfake.Host // disk, when it is a fake
	tweak  func(*Config)
	engine *Engine
	ctx    context.Context // of the running engine
	halt   func()

	mu     sync.Mutex
	events []Event
	held   []uint64    // Config.Held, of all volumes
	seen   func(Event) // called where it happens; nil: nobody listens
	conns  map[net.Conn]bool
	table  []Assignment
	down   bool
	run    *process      // flockd as it runs now, or ran last
	strike *strike       // to come
	skew   time.Duration // by which times on disk are off for the engine
	// send, when set, stands in for the engine's sends.
	send    func(ctx context.Context, req zfs.SendRequest, w io.Writer) error
	serving atomic.Int32 // connections that are served
	deaf    atomic.Bool  // for deafEnd
}

// disk is what these tests need of a node's storage: ZFS, and programs that read and
// write files. A real one mounts for them what it must.
type disk interface {
	zfs.System
	WriteFile(dataset, file string, data []byte) error
	// ReadFile reads one of a snapshot or of a dataset's head.
	ReadFile(name, file string) ([]byte, error)
	// Checksum of a snapshot's files, or of those a dataset has in its head.
	Checksum(name string) (string, error)
}

// inBubble runs a test in a bubble with nodes of these names, and afterwards
// checks what must always hold.
func inBubble(t *testing.T, names string, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, strings.Fields(names)...)
		defer w.stopAll()
		f(w)
		w.stopAll()
		w.check()
	})
}

func newWorld(tb testing.TB, names ...string) *world {
	w := &world{TB: tb, nodes: map[string]*node{}, cut: map[string]bool{}}
	for i, name := range names {
		host := zfsfake.New(zfsfake.Options{Seed: uint64(i + 1), Pool: "tank", TxgTimeout: -1})
		w.add(name, "tank", host).host = host
	}
	for _, name := range names {
		w.node(name).start()
	}
	return w
}

// add gives the world one more node, which does not run yet.
func (w *world) add(name, pool string, d disk) *node {
	w.Helper()
	n := &node{
		w: w, name: name, pool: pool, disk: d, conns: map[net.Conn]bool{},
		id: volume.NodeID(strings.Repeat(fmt.Sprint(len(w.nodes)+1), 32)),
	}
	w.nodes[name] = n
	w.must(d.CreateFilesystem(context.Background(), n.root(), map[string]string{"mountpoint": "none", "canmount": "off"}))
	return n
}

func (n *node) root() string { return n.pool + "/flocker" }

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) node(name string) *node { return w.nodes[name] }

func (w *world) byID(id volume.NodeID) *node {
	for _, n := range w.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// byEngine marks the contexts of engines, to tell their commands from the test's.
type byEngine struct{}

func (n *node) start() {
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), byEngine{}, true))
	n.mu.Lock()
	defer n.mu.Unlock()
	n.run = &process{Pool: n.disk, node: n}
	cfg := Config{
		Node: n.id, ClusterID: "test", Root: n.root(), Pool: n.run,
		Dial: func(ctx context.Context, to volume.NodeID) (net.Conn, error) { return n.dial(to) },
		Observe: func(ev Event) {
			n.mu.Lock()
			n.events = append(n.events, ev)
			seen := n.seen
			n.mu.Unlock()
			if seen != nil {
				seen(ev)
			}
		},
		Held: func(volume.ID) []uint64 {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.held
		},
		Log: slog.New(slog.NewTextHandler(logTo{n.name}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if n.tweak != nil {
		n.tweak(&cfg)
	}
	n.engine = New(cfg)
	n.ctx, n.down = ctx, false
	n.engine.Assign(n.table)
	done := make(chan struct{})
	engine := n.engine
	go func() {
		defer close(done)
		engine.Run(ctx)
	}()
	n.halt = func() {
		cancel()
		n.mu.Lock()
		n.down = true
		n.mu.Unlock()
		n.hangUp()
		n.waitEnded(done)
	}
}

// waitEnded waits until the engine has ended and no connection is served any more. In a
// bubble nobody notices one that never ends: the time of the other nodes goes on. So the
// test fails, and the bubble says who is left.
func (n *node) waitEnded(done <-chan struct{}) {
	n.w.Helper()
	limit := time.NewTimer(10 * time.Minute)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
		n.w.Errorf("the engine of %s does not end", n.name)
		return
	}
	for n.serving.Load() > 0 {
		select {
		case <-limit.C:
			n.w.Errorf("%s does not end to serve %d connections", n.name, n.serving.Load())
			return
		default:
			time.Sleep(time.Millisecond)
		}
	}
}

func (n *node) hangUp() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		c.Close()
	}
	clear(n.conns)
}

func (n *node) dial(to volume.NodeID) (net.Conn, error) {
	target := n.w.byID(to)
	n.w.mu.Lock()
	cut, wrap := n.w.cut[n.name+" "+target.name], n.w.wrap
	n.w.mu.Unlock()
	if wrap == nil {
		wrap = func(_, _ string, conn net.Conn) net.Conn { return conn }
	}
	ours, theirs := net.Pipe()
	if n.w.tls != nil && n.w.below {
		ours = wrap(n.name, target.name, ours)
	}
	var client *tls.Conn
	if n.w.tls != nil {
		client = tls.Client(ours, n.w.tls)
		ours, theirs = client, tls.Server(theirs, n.w.tls)
	}
	if cut || !target.serve(theirs, n.id) {
		theirs.Close()
		return nil, errors.New("no route to " + target.name)
	}
	if client != nil {
		ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
		defer cancel()
		if err := client.HandshakeContext(ctx); err != nil {
			client.Close()
			return nil, err
		}
	}
	if n.w.below {
		return ours, nil
	}
	return wrap(n.name, target.name, ours), nil
}

// serve lets the engine that runs now serve a connection, unless the node is down.
func (n *node) serve(conn net.Conn, peer volume.NodeID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return false
	}
	n.conns[conn] = true
	n.serving.Add(1)
	go func(e *Engine, ctx context.Context) {
		defer n.serving.Add(-1)
		e.ServeConn(ctx, conn, peer)
	}(n.engine, n.ctx)
	return true
}

// partition cuts or heals the network between two nodes.
func (w *world) partition(a, b string, cut bool) {
	w.mu.Lock()
	w.cut[a+" "+b], w.cut[b+" "+a] = cut, cut
	w.mu.Unlock()
	if cut {
		w.node(a).hangUp()
		w.node(b).hangUp()
	}
}

func (w *world) stopAll() {
	for _, f := range w.onStop {
		f()
	}
	w.onStop = nil
	for _, n := range w.nodes {
		n.stop()
	}
}

// settle lets everything happen that can happen now. Real pools do not tell.
func (w *world) settle() {
	if !w.real {
		synctest.Wait()
	}
}

// assign makes one node primary of testVol and others its replicas.
func (w *world) assign(epoch volume.Epoch, primary string, replicas ...string) {
	for _, n := range w.nodes {
		n.assign(w.roleOf(n, epoch, volume.Line{}, primary, replicas...)...)
	}
}

// assignLine is assign of a volume that was rolled back, of which its replicas hear before
// its primary can tell them anything.
func (w *world) assignLine(epoch volume.Epoch, line volume.Line, primary string, replicas ...string) {
	for name, n := range w.nodes {
		if name != primary {
			n.assign(w.roleOf(n, epoch, line, primary, replicas...)...)
		}
	}
	w.node(primary).assign(w.roleOf(w.node(primary), epoch, line, primary, replicas...)...)
}

// roleOf is what a node has to do with testVol then.
func (w *world) roleOf(n *node, epoch volume.Epoch, line volume.Line, primary string, replicas ...string) []Assignment {
	a := Assignment{Volume: testVol, Epoch: epoch, Line: line, Primary: w.node(primary).id, Interval: time.Second}
	switch {
	case n.name == primary:
		a.Role = volume.RolePrimary
		for _, r := range replicas {
			a.Replicas = append(a.Replicas, w.node(r).id)
		}
	case slices.Contains(replicas, n.name):
		a.Role = volume.RoleReplica
	default:
		return nil
	}
	return []Assignment{a}
}

func (n *node) assign(all ...Assignment) {
	n.mu.Lock()
	n.table = all
	n.mu.Unlock()
	n.eng().Assign(all)
}

// freeze begins or ends a time in which no snapshot of testVol is taken by cadence: one
// that has been begun is there when it returns.
func (n *node) freeze(frozen bool) {
	n.assignFrozen(frozen)
	e := n.eng()
	n.w.must(acquire(context.Background(), e.snapping))
	release(e.snapping)
}

func (n *node) assignFrozen(frozen bool) {
	n.mu.Lock()
	table := slices.Clone(n.table)
	n.mu.Unlock()
	for i := range table {
		table[i].Frozen = frozen
	}
	n.assign(table...)
}

// eng is the engine that runs now, or ran last.
func (n *node) eng() *Engine {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.engine
}

func (n *node) stop() {
	n.mu.Lock()
	halt := n.halt
	n.mu.Unlock()
	halt()
}

func (n *node) create() {
	n.w.Helper()
	n.w.must(n.disk.CreateFilesystem(context.Background(), n.dataset(), copyProperties(testVol, 1, nil)))
}

func (n *node) dataset() string { return n.root() + "/" + string(testVol) }

// write changes the volume as an application does, with the dataset mounted for it.
func (n *node) write(file, data string) {
	n.w.Helper()
	n.w.must(n.tryWrite(file, data))
}

func (n *node) tryWrite(file, data string) error { return n.writeTo(n.dataset(), file, data) }

func (n *node) writeTo(dataset, file, data string) error {
	if n.host == nil {
		return n.disk.WriteFile(dataset, file, []byte(data)) // which mounts it
	}
	ctx := context.Background()
	if err := n.host.SetProperties(ctx, dataset, map[string]string{"mountpoint": "/m"}); err != nil {
		return err
	}
	if err := n.host.Mount(ctx, dataset, true); err != nil {
		return err
	}
	err := n.host.WriteFile(dataset, file, []byte(data))
	return errors.Join(err, n.host.Unmount(ctx, dataset), n.host.Inherit(ctx, dataset, "mountpoint"))
}

func (w *world) down(name string) bool {
	n := w.node(name)
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.down
}

// hangUpTo closes the connections that n has dialed to another node.
func (n *node) hangUpTo(to *node) { to.hangUp() }

func (n *node) snapshots() []zfs.Snapshot {
	list, err := n.disk.Snapshots(context.Background(), n.dataset(), false)
	if err != nil && !errors.Is(err, zfs.ErrNotFound) {
		n.w.Fatal(err)
	}
	return list
}

func (n *node) newest() (guid uint64, name string) {
	if list := n.snapshots(); len(list) > 0 {
		s := list[len(list)-1]
		return s.GUID, s.Name
	}
	return 0, ""
}

// waitFor lets time pass until a condition holds.
func (w *world) waitFor(what string, cond func() bool) {
	w.Helper()
	limit := cmp.Or(w.patience, 10*time.Minute)
	if w.real {
		limit = 2 * time.Minute
	}
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			for name, n := range w.nodes {
				if w.Logf("%s links %+v", name, n.eng().Links(testVol)); n.host != nil {
					w.Logf("%s", n.host.Dump())
				}
			}
			w.Fatalf("never: %s", what)
		}
		time.Sleep(50 * time.Millisecond)
		w.settle()
	}
}

// pair is the primary a, whose file f has this content, and its replica b, in sync.
func (w *world) pair(content string) (a, b *node) {
	a, b = w.node("a"), w.node("b")
	a.create()
	a.write("f", content)
	w.assign(1, "a", "b")
	w.waitFor("in sync", w.inSync("a", "b"))
	return a, b
}

// hear waits for word of another goroutine. In a bubble whose engines go on, a bare
// receive would wait for ever instead of failing.
func hear[T any](tb testing.TB, what string, from <-chan T) (word T) {
	tb.Helper()
	select {
	case word = <-from:
	case <-time.After(10 * time.Minute):
		tb.Fatalf("waited ten minutes for: %s", what)
	}
	return word
}

// alike says that a replica holds the primary's data of now.
func (w *world) alike(primary, replica string) func() bool {
	return func() bool {
		p, r := w.node(primary), w.node(replica)
		want, err1 := p.disk.Checksum(p.dataset())
		got, err2 := r.disk.Checksum(r.dataset())
		return err1 == nil && err2 == nil && want == got
	}
}

func (n *node) link(replica string) volume.LinkStatus {
	for _, l := range n.eng().Links(testVol) {
		if l.Replica == n.w.node(replica).id {
			return l
		}
	}
	return volume.LinkStatus{}
}

func (w *world) inSync(primary, replica string) func() bool {
	return func() bool {
		l := w.node(primary).link(replica)
		g, _ := w.node(primary).newest()
		return l.State == volume.LinkInSync && l.Acked.GUID == g && w.alike(primary, replica)()
	}
}

// check is what must hold at the end of every test: pools in order, nothing
// claimed, no holds, snapshots of one guid with one content, wherever they are.
func (w *world) check() {
	w.Helper()
	sums := map[uint64]string{}
	for name, n := range w.nodes {
		if n.host != nil {
			if err := n.host.Check(); err != nil {
				w.Errorf("pool of %s: %v", name, err)
			}
		}
		list, err := n.disk.Snapshots(context.Background(), n.pool, true)
		w.must(err)
		for _, s := range list {
			if s.UserRefs > 0 {
				w.Errorf("%s on %s is held", s.FullName(), name)
			}
			sum, err := n.disk.Checksum(s.FullName())
			w.must(err)
			if was, ok := sums[s.GUID]; ok && was != sum {
				w.Errorf("%s on %s has guid %d but other content than elsewhere", s.FullName(), name, s.GUID)
			}
			sums[s.GUID] = sum
		}
		n.eng().mu.Lock()
		if len(n.eng().receives) > 0 {
			w.Errorf("%s still receives", name)
		}
		n.eng().mu.Unlock()
		if len(n.eng().slots) > 0 || len(n.eng().seeds) > 0 || len(n.eng().snapping) > 0 {
			w.Errorf("%s has slots taken", name)
		}
		if taken := n.eng().turnsTaken(); taken > 0 {
			w.Errorf("%s has %d turns taken or waited for", name, taken)
		}
	}
}

// tidy checks that nothing half done is left anywhere: no partial stream, seed or
// fork.
func (w *world) tidy() {
	w.Helper()
	for name, n := range w.nodes {
		list, err := n.disk.Datasets(context.Background(), n.pool)
		w.must(err)
		for _, d := range list {
			k, _, _ := n.eng().cfg.parse(d.Name)
			if d.ResumeToken != "" || k == kindSeed || k == kindFork {
				w.Errorf("%s is left on %s (token %q)", d.Name, name, d.ResumeToken)
			}
		}
	}
}

func (n *node) count(match func(Event) bool) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for _, ev := range n.events {
		if match(ev) {
			count++
		}
	}
	return count
}

// streams counts those that got through, by kind; "" for all.
func (n *node) streams(kind string) int {
	return n.count(func(ev Event) bool {
		s, ok := ev.(StreamEnded)
		return ok && s.Err == nil && (kind == "" || s.Kind == kind)
	})
}

func setAside(ev Event) bool { _, ok := ev.(SetAside); return ok }

// trace shows what the engines log; it is far too much to be part of -v.
var trace = flag.Bool("trace", false, "show what the engines log")

// logTo writes a node's log, at once: a test that hangs tells nothing afterwards.
type logTo struct {
	node string
}

func (l logTo) Write(p []byte) (int, error) {
	if *trace {
		fmt.Fprintf(os.Stderr, "%s %s %s\n", time.Now().Format("04:05.000"), l.node, strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// cutter is a connection that dies after so many bytes one way, or that damages
// one byte.
type cutter struct {
	net.Conn
	reads, writes *int   // bytes left; nil: without end
	flip          bool   // damage instead of dying
	then          func() // called when it has died; nil: nobody asks
}

func (c *cutter) die() error {
	c.Conn.Close()
	if c.then != nil {
		c.then()
	}
	return errors.New("cut")
}

func (c *cutter) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return c.spend(c.reads, p[:n], err)
}

func (c *cutter) Write(p []byte) (int, error) {
	if c.writes != nil && *c.writes >= 0 && *c.writes < len(p) {
		if c.flip {
			q := slices.Clone(p)
			q[*c.writes] ^= 0x10
			*c.writes = -1
			return c.Conn.Write(q)
		}
		n, _ := c.Conn.Write(p[:*c.writes])
		*c.writes = -1
		return n, c.die()
	}
	if c.writes != nil && *c.writes >= 0 {
		*c.writes -= len(p)
	}
	return c.Conn.Write(p)
}

func (c *cutter) spend(left *int, p []byte, err error) (int, error) {
	if left == nil || *left < 0 || err != nil {
		return len(p), err
	}
	if *left >= len(p) {
		*left -= len(p)
		return len(p), nil
	}
	if c.flip {
		p[*left] ^= 0x10
		*left = -1
		return len(p), nil
	}
	n := *left
	*left = -1
	return n, c.die()
}

func blob(rng *rand.Rand, size int) string {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return string(b)
}

// cutOnce spends one budget of bytes over all connections, then lets all through.
func cutOnce(way string, left *int, flip bool) func(from, to string, conn net.Conn) net.Conn {
	return func(from, to string, conn net.Conn) net.Conn {
		if *left < 0 {
			return conn
		}
		if way == "sender" {
			return &cutter{Conn: conn, writes: left, flip: flip}
		}
		return &cutter{Conn: conn, reads: left, flip: flip}
	}
}

// selfSigned is a TLS configuration for both ends.
func selfSigned(tb testing.TB) *tls.Config {
	tb.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		tb.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), DNSNames: []string{"x"}}
	der, err := x509.CreateCertificate(nil, cert, cert, public, private)
	if err != nil {
		tb.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
}
