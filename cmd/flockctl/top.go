package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/terminal"
	"github.com/flocker-io/flocker/internal/volume"
)

// topPause is between two looks of top, unless somebody wants another one. Each look asks for all
// volumes.
const (
	topPause    = 2 * time.Second
	leastPause  = 500 * time.Millisecond // and while something moves
	longestRest = time.Hour
)

// topOrder is what the volumes and links of top are sorted by.
type topOrder string

// The orders, with the key that chooses each.
const (
	byLag  topOrder = "lag"
	byName topOrder = "name"
	bySize topOrder = "size"
)

var topKeys = map[byte]topOrder{'l': byLag, 'n': byName, 's': bySize}

func (a *app) topCommand() *cli.Command {
	return &cli.Command{
		Name: "top", Usage: "show nodes, volumes, links and moves, again and again",
		Description: "Nodes: how long the lease runs, what is free of the pool, and what the links send to it and from it. Volumes: LAG\n" +
			"is that of the worst replica. Links: those that are sending, behind or in trouble. Moves: migrations under way,\n" +
			"and for 10 s how they ended.\n\n" +
			"Keys: q ends it; l, n and s sort by lag, name and size. Where there is no terminal it prints one picture, whole,\n" +
			"and ends.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "sort", Value: string(byLag), Usage: "begin with `ORDER` lag, name or size"},
			&cli.DurationFlag{Name: "interval", Value: topPause, Usage: "look again after this `TIME`, 500ms to 1h"},
		},
		Action: a.untimed(0, 0, func(ctx context.Context, c *cli.Context) error {
			order := topOrder(c.String("sort"))
			if !slices.Contains([]topOrder{byLag, byName, bySize}, order) {
				return usage(c, "--sort %q is not lag, name or size", order)
			}
			pause := c.Duration("interval")
			if pause < leastPause || pause > longestRest {
				return usage(c, "--interval %s is not from %s to %s", pause, age(leastPause), age(longestRest))
			}
			if a.asJSON || a.quiet {
				return usage(c, "top is for people: flockctl status, node list and volume list have --json and --quiet")
			}
			var l topLooker
			if !a.screen || !a.terminal {
				s, err := timed(a, ctx, func(ctx context.Context) (cluster, error) { return l.look(ctx, a.client, a.now()) })
				if err != nil {
					return err
				}
				for _, line := range topLines(s, order, 0, 0, a.now()) {
					a.printf("%s\n", line)
				}
				return nil
			}
			if !a.patient {
				var cancel context.CancelFunc
				ctx, cancel = a.within(ctx)
				defer cancel()
			}
			return onScreen(os.Stdin, os.Stdout, func(s *screen) error {
				resized := make(chan os.Signal, 1)
				signal.Notify(resized, syscall.SIGWINCH)
				defer signal.Stop(resized)
				ctx, cancel := context.WithCancel(ctx)
				var news sync.WaitGroup
				defer news.Wait()
				defer cancel()
				moves := make(chan struct{}, 1)
				news.Go(func() { topNews(ctx, a.client.Events, moves) })
				return a.top(ctx, s, resized, moves, order, pause, func(ctx context.Context) (cluster, error) { return l.look(ctx, a.client, a.now()) })
			})
		}),
	}
}

// cluster is what top shows of one moment.
type cluster struct {
	status  api.ClusterStatus
	nodes   []api.Node
	volumes []api.Volume
	moves   []api.Migration
	// stale says why it is of before, "" if it is not.
	stale string
}

// topLooker asks flockd, and remembers what need not be asked again.
type topLooker struct {
	again  bool        // it has looked before
	seen   uint64      // the last event
	moving []volume.ID // what a migration of was under way, or has begun since
	ended  []endedMove // not long ago
}

// endedMove is a migration whose end was seen then. It is shown for moveStays: many take less time
// than is between two looks.
type endedMove struct {
	api.Migration
	at time.Time
}

const moveStays = 10 * time.Second

// maxMoves is how many migrations are asked about in one look.
const maxMoves = 50

func (l *topLooker) look(ctx context.Context, c *api.Client, now time.Time) (s cluster, err error) {
	if s.status, err = c.Status(ctx); err != nil || !s.status.Initialized || s.status.Retired != "" {
		return s, err
	}
	if s.nodes, err = c.Nodes(ctx); err != nil {
		return s, err
	}
	if s.volumes, err = c.Volumes(ctx, api.VolumesQuery{}); err != nil {
		return s, err
	}
	events, err := c.Events(ctx, api.EventsQuery{After: l.seen})
	if err != nil {
		return s, err
	}
	for _, e := range events {
		if l.seen = e.Seq; e.Kind == "volume.migrating" && !slices.Contains(l.moving, e.Volume) {
			l.moving = append(l.moving, e.Volume)
		}
	}
	var open []volume.ID
	for i, id := range l.moving {
		if i >= maxMoves {
			open = append(open, l.moving[i:]...)
			break
		}
		m, err := c.Migration(ctx, string(id), "")
		switch {
		case volume.CodeOf(err) == volume.CodeNotFound:
		case err != nil:
			return s, err
		default:
			l.ended = slices.DeleteFunc(l.ended, func(e endedMove) bool { return e.Volume == m.Volume })
			if m.State == api.MigrationRunning {
				open, s.moves = append(open, id), append(s.moves, m)
			} else if l.again { // else it may be of last year
				l.ended = append(l.ended, endedMove{m, now})
			}
		}
	}
	l.moving, l.again = open, true
	l.ended = slices.DeleteFunc(l.ended, func(e endedMove) bool { return now.Sub(e.at) > moveStays })
	for _, e := range l.ended {
		s.moves = append(s.moves, e.Migration)
	}
	return s, nil
}

// topNews says when a migration begins or ends, until ctx ends: top need not wait for its next look.
func topNews(ctx context.Context, events func(context.Context, api.EventsQuery) ([]api.Event, error), moves chan<- struct{}) {
	const wait, rest = 30 * time.Second, time.Second
	var after uint64
	for first := true; ctx.Err() == nil; {
		poll, cancel := context.WithTimeout(ctx, 2*wait)
		es, err := events(poll, api.EventsQuery{After: after, Wait: wait})
		cancel()
		if err != nil {
			select { // the looks say what is wrong
			case <-ctx.Done():
			case <-time.After(rest):
			}
			continue
		}
		for _, e := range es {
			if after = e.Seq; !first && strings.HasPrefix(e.Kind, "volume.migrat") {
				select {
				case moves <- struct{}{}:
				default:
				}
			}
		}
		first = false
	}
}

// topScreen is what top needs of a screen.
type topScreen interface {
	Draw(lines []string)
	Size() (width, height int)
	Keys() <-chan byte
}

// top shows the cluster until ctx ends or a person wants no more, and looks at once when something
// begins or ends to move. What flockd does not answer is said above what it answered last.
func (a *app) top(ctx context.Context, t topScreen, resized <-chan os.Signal, moves <-chan struct{}, order topOrder, pause time.Duration, look func(context.Context) (cluster, error)) error {
	type looked struct {
		cluster
		err error
		bug any
	}
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan looked, 1)
	ask := func() {
		go func() {
			var l looked
			defer func() { l.bug = recover(); answers <- l }() // its panic is ours, when the terminal is as it was
			l.cluster, l.err = timed(a, ctx, look)
		}()
	}
	asking, again := true, false
	defer func() {
		cancel()
		if asking {
			<-answers
		}
	}()
	ask()

	var now cluster
	shown := false
	tick := time.NewTimer(pause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return a.watchEnded(ctx)
		case key, ok := <-t.Keys():
			if !ok || key == 'q' || key == 'Q' {
				return nil
			}
			if o, known := topKeys[key]; known {
				order = o
			}
		case <-resized:
		case <-moves:
			if again = asking; !asking {
				asking = true
				ask()
			}
			continue
		case <-tick.C:
			if !asking {
				asking = true
				ask()
			}
			tick.Reset(pause)
			continue
		case l := <-answers:
			// Asked before it began to move, it may not have heard of that.
			if asking = again; again {
				again = false
				ask()
			}
			if l.bug != nil {
				panic(l.bug)
			}
			switch volume.CodeOf(l.err) {
			case "":
				if l.err != nil && ctx.Err() == nil {
					return l.err
				}
				if l.err == nil {
					now, shown = l.cluster, true
				}
				if slices.ContainsFunc(now.moves, func(m api.Migration) bool { return m.State == api.MigrationRunning }) {
					tick.Reset(leastPause)
				}
			case volume.CodeUnavailable, volume.CodeTimeout, volume.CodeNoQuorum:
				now.stale, shown = l.err.Error(), true
			default:
				return l.err
			}
		}
		if shown {
			w, h := t.Size()
			t.Draw(topLines(now, order, max(0, w-1), h, a.now())) // what fills the last column is not cleared well
		}
	}
}

// topLines is a picture of a cluster, at most so wide and high; 0: as much as there is.
func topLines(s cluster, order topOrder, width, height int, now time.Time) []string {
	head := topHead(s, now)
	if s.status.Initialized && s.status.Retired == "" {
		nodes, volumes, links, moves := topNodes(s), topVolumes(s, order), topLinks(s, order, now), topMoves(s)
		parts := []*table{nodes, moves, volumes, links}
		room := topRoom(height-len(head), parts)
		for i, t := range parts {
			if len(t.rows) == 1 && t != nodes {
				continue // nothing but its head
			}
			if height > 0 && room[i] < 2 {
				continue
			}
			head = append(head, "")
			head = append(head, t.lines(room[i])...)
		}
	}
	for i, line := range head {
		head[i] = cutLine(terminal.Visible(line), width)
	}
	if height > 0 && len(head) > height {
		head = head[:height]
	}
	return head
}

// topRoom shares out lines among tables, the first first, but so that each has three if it can;
// an empty line is before each. Without a limit each has all it wants.
func topRoom(height int, parts []*table) []int {
	const least = 3
	room := make([]int, len(parts))
	if height <= 0 {
		for i, t := range parts {
			room[i] = len(t.rows)
		}
		return room
	}
	left := height
	for i, t := range parts {
		if n := min(len(t.rows), least); len(t.rows) > 1 && left > n {
			room[i] = n
			left -= n + 1
		}
	}
	for i, t := range parts {
		if room[i] > 0 {
			more := min(len(t.rows)-room[i], max(0, left))
			room[i] += more
			left -= more
		}
	}
	return room
}

// lines of a table, at most so many, of which the last then says how many more there are.
func (t *table) lines(most int) []string {
	var b strings.Builder
	t.print(&b) // to memory
	all := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(all) <= most {
		return all
	}
	return append(all[:most-1:most-1], fmt.Sprintf("... and %d more", len(all)-most+1))
}

// cutLine is the beginning of a line that fits.
func cutLine(line string, width int) string {
	runes := []rune(line)
	if width <= 0 || len(runes) <= width {
		return line
	}
	return string(runes[:width])
}

// topProblems is how many of the cluster's problems are shown.
const topProblems = 3

func topHead(s cluster, now time.Time) []string {
	st := s.status
	var lines []string
	switch {
	case st.Retired != "":
		lines = append(lines, st.Retired)
	case !st.Initialized && s.stale == "":
		lines = append(lines, "This node is in no cluster. 'flockctl init' makes one, 'flockctl join' enters one.")
	case st.Initialized:
		word := "quorum"
		if !st.Quorum {
			word = "NO QUORUM"
		}
		lines = append(lines, fmt.Sprintf("%s  leader %s, %s, failover %s; nodes %s; volumes %s", now.UTC().Format(time.TimeOnly),
			cmp.Or(st.Leader.String(), "none known"), word, cmp.Or(st.Failover.Mode, "manual"),
			tally(st.Nodes, api.NodeAlive, api.NodeSuspect, api.NodeDead, api.NodeUnknown), tally(st.Volumes)))
	}
	if s.stale != "" {
		lines = append(lines, "! of before, since: "+s.stale)
	}
	for i, p := range st.Problems {
		if i == topProblems {
			lines = append(lines, fmt.Sprintf("! and %d more: flockctl status", len(st.Problems)-i))
			break
		}
		lines = append(lines, "! "+p)
	}
	return lines
}

func topNodes(s cluster) *table {
	in, out := map[volume.NodeID]int64{}, map[volume.NodeID]int64{}
	for _, v := range s.volumes {
		for _, r := range v.Replicas {
			in[r.Node.ID] += r.Rate
			out[v.Primary.ID] += r.Rate
		}
	}
	t := newTable("NODE", "ROLE", "HEALTH", "LEASE", "FREE", "FULL", "TO IT", "FROM IT", "PRIMARIES", "REPLICAS")
	nodes := slices.Clone(s.nodes)
	slices.SortFunc(nodes, func(x, y api.Node) int { return strings.Compare(x.Name, y.Name) })
	for _, n := range nodes {
		health := string(n.Health)
		if n.Availability != "active" {
			health += ", " + n.Availability
		}
		free, full := "", ""
		if n.Pool.Size > 0 {
			free, full = size(n.Pool.Free), percent(n.Pool.Size-n.Pool.Free, n.Pool.Size)
		}
		t.add(n.Name, role(n), health, shortLease(n.Lease), free, full, perSecond(in[n.ID]), perSecond(out[n.ID]), fmt.Sprint(n.Primaries), fmt.Sprint(n.Replicas))
	}
	return t
}

// shortLease is a node's right to write in a word or two.
func shortLease(l *api.Lease) string {
	switch {
	case l == nil || l.State == "":
		return ""
	case l.State == "held":
		return fmt.Sprintf("held, %.0fs", l.LeftSeconds)
	}
	return l.State
}

func perSecond(n int64) string {
	if n == 0 {
		return ""
	}
	return size(n) + "/s"
}

// knownLag is the lag of the worst replica in seconds: infinite if one of them is not known, less than
// nothing if there is none.
func knownLag(v api.Volume) float64 {
	worst := -1.0
	for _, r := range v.Replicas {
		if r.LagSeconds == nil {
			return math.Inf(1)
		}
		worst = max(worst, *r.LagSeconds)
	}
	return worst
}

func topVolumes(s cluster, order topOrder) *table {
	vs := slices.Clone(s.volumes)
	slices.SortFunc(vs, func(x, y api.Volume) int {
		by := 0
		switch order {
		case byLag:
			by = cmp.Compare(knownLag(y), knownLag(x))
		case bySize:
			by = cmp.Compare(y.Data, x.Data)
		}
		return cmp.Or(by, strings.Compare(x.Name, y.Name), cmp.Compare(x.ID, y.ID))
	})
	t := newTable("VOLUME", "HEALTH", "PRIMARY", "REPLICAS ON", "LAG", "DATA", "USED BY")
	for _, v := range vs {
		var on []string
		for _, r := range v.Replicas {
			on = append(on, r.Node.String())
		}
		t.add(v.Name, string(v.Health), v.Primary.String(), strings.Join(on, ","), worstLag(v), seen(v, v.Data), usedBy(v))
	}
	return t
}

// topLinks are the links that are worth a look: not in sync, in trouble, or sending.
func topLinks(s cluster, order topOrder, now time.Time) *table {
	var all []link
	for _, v := range s.volumes {
		for _, r := range v.Replicas {
			if r.State != volume.LinkInSync || r.Error != "" || r.Rate > 0 {
				all = append(all, link{Volume: v.Name, ID: v.ID, Primary: v.Primary, Replica: r})
			}
		}
	}
	slices.SortStableFunc(all, func(x, y link) int {
		by := 0
		switch order {
		case byLag:
			by = compareLinks(x, y)
		case bySize:
			by = cmp.Compare(y.LagBytes, x.LagBytes)
		}
		return cmp.Or(by, strings.Compare(x.Volume, y.Volume), strings.Compare(x.Node.Name, y.Node.Name))
	})
	t := newTable("LINK", "FROM", "TO", "STATE", "LAG", "BEHIND", "RATE", "PROGRESS", "ERROR")
	for _, l := range all {
		behind := ""
		if l.LagBytes > 0 {
			behind = size(l.LagBytes)
		}
		t.add(l.Volume, l.Primary.String(), l.Node.String(), string(l.State), lag(l.LagSeconds), behind, rate(l.Replica), progress(l.Replica, now), trouble(l.Replica))
	}
	return t
}

func topMoves(s cluster) *table {
	t := newTable("MOVE", "FROM", "TO", "NOW")
	moves := slices.Clone(s.moves)
	slices.SortStableFunc(moves, func(x, y api.Migration) int { return strings.Compare(x.Name, y.Name) })
	for _, m := range moves {
		now := migrationDoing(m)
		switch {
		case m.State == api.MigrationDone && m.PausedSeconds > 0:
			now = fmt.Sprintf("done, clients waited %.2f s", m.PausedSeconds)
		case m.State == api.MigrationDone:
			now = "done"
		case m.State == api.MigrationFailed:
			now = "not moved: " + m.Reason
		case now == "" && m.Why != "":
			now = "waits: " + m.Why
		}
		t.add(m.Name, m.From.String(), m.To.String(), now)
	}
	return t
}
