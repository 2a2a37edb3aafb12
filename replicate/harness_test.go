package replicate

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
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

// world is a few nodes in a bubble: a fake pool and an engine each, and a network
// of pipes that can be cut.
type world struct {
	testing.TB
	nodes map[string]*node
	// wrap, when set, puts itself around the dialing end of every new connection.
	wrap   func(from, to string, conn net.Conn) net.Conn
	tls    *tls.Config // nil: plain pipes
	onStop []func()
	mu     sync.Mutex
	cut    map[string]bool // "a b": a cannot reach b
}

type node struct {
	w      *world
	name   string
	id     volume.NodeID
	host   *zfsfake.Host
	tweak  func(*Config)
	engine *Engine
	ctx    context.Context // of the running engine
	halt   func()

	mu     sync.Mutex
	events []Event
	conns  map[net.Conn]bool
	table  []Assignment
	down   bool
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
		n := &node{
			w: w, name: name, conns: map[net.Conn]bool{},
			id:   volume.NodeID(strings.Repeat(fmt.Sprint(i+1), 32)),
			host: zfsfake.New(zfsfake.Options{Seed: uint64(i + 1), Pool: "tank", TxgTimeout: -1}),
		}
		w.nodes[name] = n
		w.must(n.host.CreateFilesystem(context.Background(), testRoot, map[string]string{"mountpoint": "none", "canmount": "off"}))
		n.start()
	}
	return w
}

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
	cfg := Config{
		Node: n.id, ClusterID: "test", Root: testRoot, Pool: n.host,
		Dial: func(ctx context.Context, to volume.NodeID) (net.Conn, error) { return n.dial(to) },
		Observe: func(ev Event) {
			n.mu.Lock()
			n.events = append(n.events, ev)
			n.mu.Unlock()
		},
		Log: slog.New(slog.NewTextHandler(logTo{n.w.TB, n.name}, &slog.HandlerOptions{Level: slog.LevelDebug})),
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
		n.hangUp()
		<-done
		n.mu.Lock()
		n.down = true
		n.mu.Unlock()
	}
}

// crash is a power cut: the engine and the pool lose what was not durable.
func (n *node) crash() {
	n.mu.Lock()
	n.down = true
	n.mu.Unlock()
	n.host.Crash()
	n.stop()
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
	cut := n.w.cut[n.name+" "+target.name]
	n.w.mu.Unlock()
	target.mu.Lock()
	defer target.mu.Unlock()
	if cut || target.down {
		return nil, errors.New("no route to " + target.name)
	}
	var ours, theirs net.Conn = net.Pipe()
	if n.w.tls != nil {
		ours, theirs = tls.Client(ours, n.w.tls), tls.Server(theirs, n.w.tls)
	}
	target.conns[theirs] = true
	go target.engine.ServeConn(target.ctx, theirs, n.id)
	n.w.mu.Lock()
	wrap := n.w.wrap
	n.w.mu.Unlock()
	if wrap != nil {
		ours = wrap(n.name, target.name, ours)
	}
	return ours, nil
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
	synctest.Wait()
	for _, n := range w.nodes {
		n.stop()
	}
	synctest.Wait()
}

// assign makes one node primary of testVol and others its replicas.
func (w *world) assign(epoch volume.Epoch, primary string, replicas ...string) {
	a := Assignment{Volume: testVol, Epoch: epoch, Primary: w.node(primary).id, Interval: time.Second}
	for _, r := range replicas {
		a.Replicas = append(a.Replicas, w.node(r).id)
	}
	for name, n := range w.nodes {
		a := a
		switch {
		case name == primary:
			a.Role = volume.RolePrimary
		case slices.Contains(replicas, name):
			a.Role, a.Replicas = volume.RoleReplica, nil
		default:
			n.assign()
			continue
		}
		n.assign(a)
	}
}

func (n *node) assign(all ...Assignment) {
	n.mu.Lock()
	n.table = all
	n.mu.Unlock()
	n.eng().Assign(all)
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
	n.w.must(n.host.CreateFilesystem(context.Background(), n.dataset(), copyProperties(testVol, 1, nil)))
}

func (n *node) dataset() string { return testRoot + "/" + string(testVol) }

// write changes the volume as an application does, with the dataset mounted for it.
func (n *node) write(file, data string) {
	n.w.Helper()
	n.w.must(n.tryWrite(file, data))
}

func (n *node) tryWrite(file, data string) error {
	ctx := context.Background()
	if err := n.host.SetProperties(ctx, n.dataset(), map[string]string{"mountpoint": "/m"}); err != nil {
		return err
	}
	if err := n.host.Mount(ctx, n.dataset(), true); err != nil {
		return err
	}
	err := n.host.WriteFile(n.dataset(), file, []byte(data))
	return errors.Join(err, n.host.Unmount(ctx, n.dataset()), n.host.Inherit(ctx, n.dataset(), "mountpoint"))
}

// try does something again until it works: power may be cut in between.
func (w *world) try(f func() error) {
	w.Helper()
	var err error
	for range 20 {
		if err = f(); err == nil {
			return
		}
		time.Sleep(time.Second)
	}
	w.Fatal(err)
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
	list, err := n.host.Snapshots(context.Background(), n.dataset(), false)
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
	deadline := time.Now().Add(10 * time.Minute)
	for !cond() {
		if time.Now().After(deadline) {
			for name, n := range w.nodes {
				w.Logf("%s:\n%s", name, n.host.Dump())
			}
			w.Fatalf("never: %s", what)
		}
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
	}
}

// alike says that a replica holds the primary's data of now.
func (w *world) alike(primary, replica string) func() bool {
	return func() bool {
		p, r := w.node(primary), w.node(replica)
		want, err1 := p.host.Checksum(p.dataset())
		got, err2 := r.host.Checksum(r.dataset())
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
// claimed, snapshots of one guid with one content, wherever they are.
func (w *world) check() {
	w.Helper()
	sums := map[uint64]string{}
	for name, n := range w.nodes {
		if err := n.host.Check(); err != nil {
			w.Errorf("pool of %s: %v", name, err)
		}
		list, err := n.host.Snapshots(context.Background(), "tank", true)
		w.must(err)
		for _, s := range list {
			sum, err := n.host.Checksum(s.FullName())
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
		if e := n.eng(); len(e.queue) > 0 || len(e.turns) > 0 {
			w.Errorf("%s has turns taken: %v, and %d waiting", name, e.turns, len(e.queue))
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

// logTo writes a log to the test.
type logTo struct {
	tb   testing.TB
	node string
}

func (l logTo) Write(p []byte) (int, error) {
	if testing.Verbose() {
		l.tb.Logf("%s %s %s", time.Now().Format("04:05.000"), l.node, strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// cutter is a connection that dies after so many bytes one way, or that damages
// one byte.
type cutter struct {
	net.Conn
	reads, writes *int // bytes left; nil: without end
	flip          bool // damage instead of dying
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
		c.Conn.Close()
		return n, errors.New("cut")
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
	c.Conn.Close()
	return n, errors.New("cut")
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
