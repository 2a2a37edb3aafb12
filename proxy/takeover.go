package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// A process is replaced by a newer one without a connection noticing: both have the same
// listening sockets for a moment, each with one queue; then the older one accepts nobody
// any more and serves those it has to their end. Their edges then are told by the door of
// the newer process what they may do, as those of any other node; and how many connections
// the older one still has to servers it tells over a link, so that a pause counts them.

// elder is an older process.
//
// What it is told waits for it, however long it does not read: a message that was cut short
// would leave it deaf for all later ones, and who tells it may hold a lock. Of owners and
// names only the last word waits, of each cut one.
type elder struct {
	link net.Conn
	mail chan struct{} // has something when there is something to tell

	mu   sync.Mutex
	open map[string]int // by route; nil: it has not said yet
	cuts []string
	news elderHears // Owners and Named that are still to be told
}

func newElder(link net.Conn) *elder { return &elder{link: link, mail: make(chan struct{}, 1)} }

// elderSays is what it tells, each time that something has changed.
type elderSays struct{ Open map[string]int }

// elderHears is what it is told, one or the other.
type elderHears struct {
	Cut    string           `json:",omitempty"` // a route whose connections to the server are to be reset
	Owners map[string]place // of all routes that there are; nil: as before
	Named  map[string]named // whom those are for that are served; nil: as before
}

// named is for whom a route is on its port.
type named struct {
	Listen uint16
	Hosts  []string `json:",omitempty"`
}

func eldersHear(c Config) elderHears {
	h := elderHears{Owners: make(map[string]place), Named: make(map[string]named)}
	_, unfit := sharedPorts(c.Routes)
	for _, r := range c.Routes {
		h.Owners[r.ID] = r.place()
		if unfit[r.ID] == nil {
			h.Named[r.ID] = named{r.Listen, r.Hosts}
		}
	}
	return h
}

// tell has h told to it. It does not wait for that.
func (e *elder) tell(h elderHears) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if h.Cut != "" && !slices.Contains(e.cuts, h.Cut) {
		e.cuts = append(e.cuts, h.Cut)
	}
	if h.Owners != nil {
		e.news.Owners = h.Owners
	}
	if h.Named != nil {
		e.news.Named = h.Named
	}
	select {
	case e.mail <- struct{}{}:
	default:
	}
}

// takeMail is what there is to tell.
func (e *elder) takeMail() (out []elderHears) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.cuts {
		out = append(out, elderHears{Cut: c})
	}
	if e.news.Owners != nil || e.news.Named != nil {
		out = append(out, e.news)
	}
	e.cuts, e.news = nil, elderHears{}
	return out
}

// post tells it what there is to tell, until over or until the link has ended.
func (e *elder) post(over <-chan struct{}) {
	out := json.NewEncoder(e.link)
	for {
		for _, h := range e.takeMail() {
			if err := out.Encode(h); err != nil {
				_ = e.link.Close() // one that has gone serves nobody, which attend finds
				return
			}
		}
		select {
		case <-e.mail:
		case <-over:
			return
		}
	}
}

// count is how many connections it has to the server of a route.
func (e *elder) count(route string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open == nil {
		return 1 // not known yet: at least that is to be waited for
	}
	return e.open[route]
}

// older is how many connections older processes have to the server of a route.
func (n *Node) older(route string) (open int) {
	n.eldersMu.Lock()
	defer n.eldersMu.Unlock()
	for e := range n.elders {
		open += e.count(route)
	}
	return open
}

func (n *Node) cutOlder(route string) { n.tellElders(elderHears{Cut: route}) }

func (n *Node) tellElders(h elderHears) {
	n.eldersMu.Lock()
	elders := maps.Clone(n.elders)
	n.eldersMu.Unlock()
	for e := range elders {
		e.tell(h)
	}
}

// Succeed makes the node, before Run, the successor of an older process at the other end
// of link, which has to Retire.
func (n *Node) Succeed(link net.Conn) {
	n.eldersMu.Lock()
	defer n.eldersMu.Unlock()
	n.elders[newElder(link)] = struct{}{}
}

// attend listens to an older process until it has gone.
func (n *Node) attend(ctx context.Context, e *elder) {
	stop := context.AfterFunc(ctx, func() { _ = e.link.Close() })
	defer stop()
	var posts sync.WaitGroup
	defer posts.Wait()
	over := make(chan struct{})
	defer close(over)
	posts.Go(func() { e.post(over) })
	in := json.NewDecoder(bufio.NewReader(e.link))
	for {
		var says elderSays
		err := in.Decode(&says)
		if err != nil {
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				n.Log.Warn("the link to an older process of the proxy has ended", "err", err)
			}
			_ = e.link.Close()
			n.eldersMu.Lock()
			delete(n.elders, e)
			n.eldersMu.Unlock()
			n.wakeDoors()
			return
		}
		e.mu.Lock()
		e.open = says.Open
		if e.open == nil {
			e.open = make(map[string]int)
		}
		e.mu.Unlock()
		n.wakeDoors()
	}
}

func (n *Node) wakeDoors() {
	n.mu.Lock()
	doors := maps.Clone(n.doors)
	n.mu.Unlock()
	for _, d := range doors {
		d.mu.Lock()
		d.wake()
		d.mu.Unlock()
	}
}

// HandOver lets start begin a newer process, with all that routes are listened on, by the
// names that its Options want. When start returns without an error the newer process
// serves, and the node has to Retire. Nobody can tell the node anything meanwhile: the
// newer process would not know.
func (n *Node) HandOver(start func(listeners map[string]*os.File) error) error {
	n.applying.Lock()
	defer n.applying.Unlock()
	files := make(map[string]*os.File)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	n.mu.Lock()
	for name, l := range n.listeners {
		f, err := HandOn(l.(*net.TCPListener))
		if err != nil {
			n.mu.Unlock()
			return fmt.Errorf("handing the listener of port %s on: %w", name, err)
		}
		files[name] = f
	}
	n.mu.Unlock()
	if err := start(files); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.retired = true
	for _, e := range n.edges {
		close(e.closed)
		n.former[e] = struct{}{}
	}
	n.edges = make(map[string]*serving)
	for _, p := range n.ports {
		n.leavePort(p)
	}
	for _, d := range n.doors {
		d.retire()
	}
	return nil
}

// Retire serves those clients to their end who are there after a HandOver, and tells the
// newer process at the other end of link how many connections to servers they have. It
// returns when there is nobody left, or when ctx ends. The listener that Run was given has
// to be closed before.
func (n *Node) Retire(ctx context.Context, link net.Conn) error {
	defer func() { _ = link.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = link.Close() })
	defer stop()
	var hears sync.WaitGroup
	defer hears.Wait()
	defer func() { _ = link.Close() }()
	hears.Go(func() {
		in := json.NewDecoder(link)
		for {
			var h elderHears
			if err := in.Decode(&h); err != nil {
				n.deaf(err)
				return
			}
			n.mu.Lock()
			d := n.doors[h.Cut]
			if h.Named != nil {
				for p := range n.formerPorts {
					p.setNames(h.Named)
				}
			}
			if h.Owners != nil {
				n.inform(h.Owners)
			}
			n.mu.Unlock()
			if d != nil {
				d.reset()
			}
			n.tellElders(h)
		}
	})
	served := make(chan struct{})
	n.work.Go(func() { n.serving.Wait(); close(served) })
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	var told map[string]int
	for {
		open, total := n.openNow()
		if told == nil || !maps.Equal(open, told) {
			told = open
			// However long it does not read: half of this would end the link, and the newer
			// process would take those whom we serve for gone.
			if err := json.NewEncoder(link).Encode(elderSays{Open: open}); err != nil {
				n.Log.Debug("the newer process of the proxy does not listen", "err", err)
			}
		}
		if total == 0 {
			select {
			case <-served:
				return nil
			default:
			}
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// deaf is what becomes of those whom a retired process serves when it hears no more of the newer
// one. One that is gone has nothing to say, and we go on until somebody ends both. What is
// not understood may have been a cut: nothing leads to a server any more that could not be
// told of a pause.
func (n *Node) deaf(err error) {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	if !errors.As(err, &syntax) && !errors.As(err, &kind) {
		return
	}
	n.Log.Warn("what the newer process of the proxy says is not understood; the connections to servers that this one still has are ended", "err", err)
	n.mu.Lock()
	doors := maps.Clone(n.doors)
	n.mu.Unlock()
	for id, d := range doors {
		d.reset()
		n.cutOlder(id)
	}
}

// openNow counts the connections to servers, by route.
func (n *Node) openNow() (open map[string]int, total int) {
	n.mu.Lock()
	doors := maps.Clone(n.doors)
	n.mu.Unlock()
	open = make(map[string]int)
	for id, d := range doors {
		d.mu.Lock()
		here := len(d.open)
		d.mu.Unlock()
		if here += n.older(id); here > 0 {
			open[id] = here
			total += here
		}
	}
	return open, total
}
