package replicate

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/flocker-io/flocker/zfs"
)

// process is the pool as one run of flockd sees it. Its calls are counted; at the
// one that a strike waits for it fails, or it is killed: then neither this call nor
// any later one of this run reaches the pool.
type process struct {
	Pool
	node *node
	dead atomic.Bool
}

// blow is what a strike does to a node.
type blow string

const (
	killed    blow = "flockd is killed"
	powerless blow = "the machine loses power" // fakes only
	failing   blow = "the command fails"
)

// strike hits a node at the nth command of its engine from now on, before or after
// the command has done its work.
type strike struct {
	nth   int
	after bool
	blow  blow
	seen  int
	op    string // the command that was hit; "" until then
	hit   chan struct{}
}

var errKilled = errors.New("flockd was killed here")

// strikeAt plans a strike. The node starts again a second after it has fallen.
// happened says whether it has come to that.
func (n *node) strikeAt(nth int, after bool, b blow) (happened func() bool) {
	s := &strike{nth: nth, after: after, blow: b, hit: make(chan struct{})}
	n.mu.Lock()
	n.strike = s
	n.mu.Unlock()
	n.riseAfter(s.hit)
	return func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return s.op != ""
	}
}

// unstrike calls off a strike that has not happened.
func (n *node) unstrike() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.strike = nil
}

// riseAfter starts the node again once it has fallen.
func (n *node) riseAfter(fallen <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	joined := make(chan struct{})
	n.w.onStop = append(n.w.onStop, func() { cancel(); <-joined })
	go func() {
		defer close(joined)
		select {
		case <-ctx.Done():
			return
		case <-fallen:
		}
		n.stop()
		sleep(ctx, time.Second)
		n.start()
	}()
}

// fall is the end of a node's run, in the midst of whatever it does. The pool loses
// with the power what was not durable. stop joins what is left of it.
func (n *node) fall(b blow) {
	n.mu.Lock()
	n.down = true
	n.run.dead.Store(true)
	n.mu.Unlock()
	if b == powerless {
		n.host.Crash()
	}
	n.hangUp()
}

// struck counts a command and says whether it is the one.
func (p *process) struck(op string) *strike {
	n := p.node
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.strike
	if s == nil || p.dead.Load() {
		return nil
	}
	if s.seen++; s.seen != s.nth {
		return nil
	}
	s.op, n.strike = op, nil
	return s
}

// do is one command.
func (p *process) do(op string, command func() error) error {
	s := p.struck(op)
	if p.dead.Load() {
		return errKilled
	}
	var err error
	if s == nil || s.after {
		err = command()
	}
	switch {
	case p.dead.Load():
		return errKilled // nobody is there to hear what came of it
	case s == nil:
		return err
	case s.blow == failing:
		return errors.New("failed by a strike")
	}
	p.node.fall(s.blow)
	close(s.hit)
	return errKilled
}

func (p *process) Datasets(ctx context.Context, root string) (list []zfs.Dataset, err error) {
	err = p.do("datasets", func() error { list, err = p.Pool.Datasets(ctx, root); return err })
	return list, err
}

func (p *process) Dataset(ctx context.Context, name string) (d zfs.Dataset, err error) {
	err = p.do("dataset", func() error { d, err = p.Pool.Dataset(ctx, name); return err })
	return d, err
}

func (p *process) Snapshots(ctx context.Context, root string, recursive bool) (list []zfs.Snapshot, err error) {
	err = p.do("snapshots", func() error { list, err = p.Pool.Snapshots(ctx, root, recursive); return err })
	p.node.mu.Lock()
	defer p.node.mu.Unlock()
	for i := range list {
		list[i].Creation = list[i].Creation.Add(p.node.skew)
	}
	return list, err
}

func (p *process) SnapshotsNamed(ctx context.Context, names []string) (list []zfs.Snapshot, err error) {
	err = p.do("snapshots-named", func() error { list, err = p.Pool.SnapshotsNamed(ctx, names); return err })
	return list, err
}

func (p *process) Bookmarks(ctx context.Context, root string, recursive bool) (list []zfs.Bookmark, err error) {
	err = p.do("bookmarks", func() error { list, err = p.Pool.Bookmarks(ctx, root, recursive); return err })
	return list, err
}

func (p *process) CreateFilesystem(ctx context.Context, name string, props map[string]string) error {
	return p.do("create", func() error { return p.Pool.CreateFilesystem(ctx, name, props) })
}

func (p *process) SetProperties(ctx context.Context, name string, props map[string]string) error {
	return p.do("set", func() error { return p.Pool.SetProperties(ctx, name, props) })
}

func (p *process) Rename(ctx context.Context, from, to string) error {
	return p.do("rename", func() error { return p.Pool.Rename(ctx, from, to) })
}

func (p *process) Clone(ctx context.Context, snapshot, name string, props map[string]string) error {
	return p.do("clone", func() error { return p.Pool.Clone(ctx, snapshot, name, props) })
}

func (p *process) Promote(ctx context.Context, name string) error {
	return p.do("promote", func() error { return p.Pool.Promote(ctx, name) })
}

func (p *process) Snapshot(ctx context.Context, names []string, props map[string]string) error {
	return p.do("snapshot", func() error { return p.Pool.Snapshot(ctx, names, props) })
}

func (p *process) Take(ctx context.Context, names []string) (taken []zfs.Snapshot, failed map[string]error, err error) {
	err = p.do("take", func() error { taken, failed, err = p.Pool.Take(ctx, names); return err })
	if err != nil {
		return nil, nil, err
	}
	return taken, failed, nil
}

func (p *process) Prune(ctx context.Context, reqs []zfs.PruneRequest) (failed map[string]error, err error) {
	err = p.do("prune", func() error { failed, err = p.Pool.Prune(ctx, reqs); return err })
	return failed, err
}

func (p *process) DestroyBookmark(ctx context.Context, bookmark string) error {
	return p.do("destroy-bookmark", func() error { return p.Pool.DestroyBookmark(ctx, bookmark) })
}

func (p *process) Send(ctx context.Context, req zfs.SendRequest, w io.Writer) error {
	p.node.mu.Lock()
	send := p.node.send
	p.node.mu.Unlock()
	if send == nil {
		send = p.Pool.Send
	}
	return p.do("send", func() error { return send(ctx, req, w) })
}

func (p *process) Receive(ctx context.Context, req zfs.ReceiveRequest, r io.Reader) error {
	return p.do("receive", func() error { return p.Pool.Receive(ctx, req, r) })
}

func (p *process) AbortReceive(ctx context.Context, name string) error {
	return p.do("abort-receive", func() error { return p.Pool.AbortReceive(ctx, name) })
}

func (p *process) DecodeToken(ctx context.Context, token string) (t zfs.ResumeToken, err error) {
	err = p.do("decode-token", func() error { t, err = p.Pool.DecodeToken(ctx, token); return err })
	return t, err
}
