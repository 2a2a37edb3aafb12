package doctor

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// checks in the order in which people read them. look adds what it finds, and says in a few words
// what is well when that was nothing; "" when there was nothing to look at.
var checks = []struct {
	name string
	look func(*examination) string
}{
	{"nodes", nodes},
	{"zfs", versions},
	{"pool", pools},
	{"features", features},
	{"clock", clocks},
	{"clocksource", clocksources},
	{"ports", ports},
	{"reach", reach},
	{"mount", propagation},
	{"engine", engines},
	{"plugin", plugins},
	{"shadows", shadows},
	{"datasets", orphans},
	{"receives", partials},
	{"mounts", unused},
	{"certificate", certificates},
	{"fencing", fencing},
	{"timers", timers},
}

// nodes that answer, the quorum, and whether all run the same version.
func nodes(x *examination) string {
	if x.cluster.None != "" {
		x.add(Warning, "", x.cluster.None, "only this machine was examined", "`flockctl init` makes a cluster, `flockctl join` enters one")
		return ""
	}
	if !x.cluster.Quorum {
		x.add(Problem, "", "this node hears no leader", "nothing can be changed, and no volume fails over, until more than half of the voters reach each other",
			"start the nodes that do not answer, and see what is said of reach below; if more than half of the voters are lost for good: flockd recover")
	}
	by := map[string][]string{}
	for _, n := range x.nodes {
		x.look(n)
		switch {
		case n.Facts != nil:
			by[n.Facts.Version] = append(by[n.Facts.Version], n.Name)
		case n.Old:
			x.add(Warning, n.Name, "its version cannot be examined", "what is wrong on it is not seen here", "install the version of the other nodes on "+n.Name)
		default:
			x.add(Problem, n.Name, "it does not answer: "+n.Error, "its copies fall behind, and what is wrong on it cannot be seen",
				fmt.Sprintf("on %s: systemctl status flockd; journalctl -u flockd", n.Name))
		}
	}
	well := counted(len(x.nodes), "node") + ", all answer"
	if by[""] == nil { // each says which it runs
		well += " and run one version"
	}
	if delete(by, ""); len(by) > 1 {
		var said []string
		for _, v := range slices.Sorted(maps.Keys(by)) {
			said = append(said, fmt.Sprintf("%s on %s", v, strings.Join(by[v], ", ")))
		}
		x.add(Warning, "", "the nodes run different versions of flockd: "+strings.Join(said, "; "),
			"until all run the newest, the cluster refuses what the older ones could not read",
			"upgrade the nodes that stay behind, one at a time, each when `flockctl status` is well again (docs/OPERATIONS.md, Upgrade)")
	}
	return well
}

// versions of userland and module on a node, and of the nodes among one another.
func versions(x *examination) string {
	type of struct{ major, minor int }
	by := map[of][]string{}
	x.asked(func(n Node, f *Facts) {
		if f.ZFS == nil {
			return
		}
		x.look(n)
		user, module := number(f.ZFS.Userland), number(f.ZFS.Module)
		if f.ZFS.Module == "" {
			x.add(Problem, n.Name, "ZFS's module is not loaded", "no volume of the node can be used", fmt.Sprintf("on %s: modprobe zfs", n.Name))
			return
		}
		if user != module {
			s := Warning
			if user[0] != module[0] || user[1] != module[1] {
				s = Problem
			}
			x.add(s, n.Name, fmt.Sprintf("the commands are of ZFS %s, the module of %s", f.ZFS.Userland, f.ZFS.Module),
				"they are made for one another: what one knows and the other does not fails when it is needed", "restart "+n.Name+", after `flockctl node drain "+n.Name+"`")
		}
		v := of{module[0], module[1]}
		by[v] = append(by[v], n.Name)
	})
	if len(by) > 1 {
		s, majors := Warning, map[int]bool{}
		var said []string
		for _, v := range slices.SortedFunc(maps.Keys(by), func(a, b of) int { return cmp.Or(a.major-b.major, a.minor-b.minor) }) {
			majors[v.major] = true
			said = append(said, fmt.Sprintf("%d.%d on %s", v.major, v.minor, strings.Join(by[v], ", ")))
		}
		if len(majors) > 1 {
			s = Problem
		}
		x.add(s, "", "the nodes have different versions of ZFS: "+strings.Join(said, "; "),
			"a stream of a newer version may be one that an older one does not take", "bring the nodes to one version, one after another, each drained meanwhile")
	}
	return "commands and modules are of one version"
}

// number takes a version's first three numbers.
func number(version string) (out [3]int) {
	for i, part := range strings.SplitN(version, ".", 3) {
		if end := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
			part = part[:end]
		}
		out[i], _ = strconv.Atoi(part) // "" is 0, as a version without one is
	}
	return out
}

// How full a pool may be before ZFS is slow with it, and before it soon takes nothing.
const (
	fullish = 0.80
	full    = 0.92
)

func pools(x *examination) string {
	x.asked(func(n Node, f *Facts) {
		p := f.Pool
		if p == nil {
			return
		}
		x.look(n)
		see := fmt.Sprintf("on %s: zpool status -v %s", n.Name, p.Name)
		switch p.Health {
		case "ONLINE":
		case "DEGRADED":
			x.add(Warning, n.Name, fmt.Sprintf("pool %s is DEGRADED", p.Name), "it works, and the next device that fails may take it", see+", and replace what has failed")
		default:
			x.add(Problem, n.Name, fmt.Sprintf("pool %s is %s", p.Name, cmp.Or(p.Health, "of no known health")), "its volumes cannot be used there", see+"; once its devices are back: zpool clear "+p.Name)
		}
		if p.ReadOnly {
			x.add(Problem, n.Name, fmt.Sprintf("pool %s is imported read-only", p.Name), "nothing can be written or received there",
				fmt.Sprintf("on %[1]s: zpool export %[2]s && zpool import %[2]s", n.Name, p.Name))
		}
		if p.Size <= 0 {
			return
		}
		used := 1 - float64(p.Free)/float64(p.Size)
		what := fmt.Sprintf("pool %s is %.0f%% full", p.Name, used*100)
		fix := "add a device, remove what nobody needs (`flockctl aside list`, `flockctl volume list`), or move volumes: flockctl rebalance"
		switch {
		case used >= full:
			x.add(Problem, n.Name, what, "writes and receives fail when it is full, and it is slow before that", fix)
		case used >= fullish:
			x.add(Warning, n.Name, what, "ZFS is slow with a pool that is nearly full", fix)
		}
	})
	return "all are healthy and have room"
}

// inStreams are the features that a stream of replication may make use of: where the receiving pool
// has one not enabled, it refuses the stream.
var inStreams = []string{"embedded_data", "extensible_dataset", "large_blocks", "large_dnode", "lz4_compress", "zstd_compress"}

func features(x *examination) string {
	active := map[string]string{} // the first node on which it is
	x.asked(func(n Node, f *Facts) {
		if f.Pool == nil || f.Pool.Features == nil {
			return
		}
		x.look(n)
		for _, name := range inStreams {
			if f.Pool.Features[name] == "active" && active[name] == "" {
				active[name] = n.Name
			}
		}
	})
	x.asked(func(n Node, f *Facts) {
		if f.Pool == nil || f.Pool.Features == nil {
			return
		}
		for _, name := range inStreams {
			if state := f.Pool.Features[name]; active[name] != "" && state != "active" && state != "enabled" {
				x.add(Warning, n.Name, fmt.Sprintf("its pool %s has not got the feature %s, which is in use on %s", f.Pool.Name, name, active[name]),
					"a stream that needs it is refused there", fmt.Sprintf("on %s: zpool set feature@%s=enabled %s", n.Name, name, f.Pool.Name))
			}
		}
	})
	return "each pool takes the streams of all others"
}

// How far a clock may be away from the others'. Leases do not go by it, but ages do: of what is
// set aside, of snapshots that are kept, of the trash.
const (
	clockAway = time.Second
	clockLost = time.Minute
)

func clocks(x *examination) string {
	var all []time.Duration
	x.asked(func(n Node, _ *Facts) { all = append(all, n.Ahead) })
	if len(x.nodes) < 2 {
		return ""
	}
	x.asked(func(n Node, _ *Facts) { x.look(n) })
	if len(all) == 0 {
		return ""
	}
	slices.Sort(all)
	middle := all[(len(all)-1)/2]
	most := time.Duration(0)
	x.asked(func(n Node, _ *Facts) {
		away := n.Ahead - middle
		way := "ahead of"
		if away < 0 {
			away, way = -away, "behind"
		}
		away = max(0, away-n.Unsure) // what is sure
		most = max(most, away)
		if away <= clockAway {
			return
		}
		s := Warning
		if away > clockLost {
			s = Problem
		}
		x.add(s, n.Name, fmt.Sprintf("its clock is %s %s those of the others", short(away), way),
			"how long snapshots, removed volumes and set-aside copies are kept goes by clocks", fmt.Sprintf("on %s: timedatectl set-ntp true, and see timedatectl timesync-status", n.Name))
	})
	return fmt.Sprintf("they differ by no more than can be measured and %s", short(most))
}

// short is a time with two digits that matter.
func short(d time.Duration) string {
	for _, unit := range []time.Duration{time.Hour, time.Minute, time.Second} {
		if d >= 10*unit {
			return d.Round(unit).String()
		}
		if d >= unit {
			return d.Round(unit / 10).String()
		}
	}
	return d.Round(time.Millisecond).String()
}

// slowSources are those that cost a trip to a device each time.
var slowSources = []string{"hpet", "acpi_pm", "jiffies", "refined-jiffies"}

func clocksources(x *examination) string {
	x.asked(func(n Node, f *Facts) {
		if f.Clock == nil {
			return
		}
		x.look(n)
		if slices.Contains(slowSources, f.Clock.Source) {
			x.add(Warning, n.Name, fmt.Sprintf("the kernel tells the time by %s", f.Clock.Source),
				"each look at the clock takes a microsecond and more, and databases look at it all the time",
				fmt.Sprintf("on %s see `dmesg | grep -i tsc` for why its TSC is not used (there are: %s); where that is sound, boot with clocksource=tsc tsc=reliable",
					n.Name, strings.Join(f.Clock.Available, ", ")))
		}
	})
	return "the kernels tell the time by quick ones"
}

func ports(x *examination) string {
	x.asked(func(n Node, f *Facts) {
		for _, p := range f.Ports {
			x.look(n)
			at := strings.TrimSpace(p.Network + " " + p.Address)
			switch {
			case !p.Held:
				x.add(Problem, n.Name, fmt.Sprintf("nobody listens on %s, which is for %s", at, p.For), "who needs it gets no answer",
					fmt.Sprintf("on %s: systemctl restart %s", n.Name, p.Unit))
			case !p.Ours:
				x.add(Problem, n.Name, fmt.Sprintf("%s, which is for %s, is taken by %s", at, p.For, cmp.Or(p.By, "somebody else")), "flocker cannot listen there",
					fmt.Sprintf("on %s: stop that, then systemctl restart %s; or give flocker another in /etc/flocker/flockd.yml", n.Name, p.Unit))
			}
		}
	})
	return "flocker has all of its own"
}

// reach: each pair of nodes, in both directions. One that does not answer the asker is told of
// already.
func reach(x *examination) string {
	byID := map[volume.NodeID]Node{}
	for _, n := range x.nodes {
		byID[n.ID] = n
	}
	pairs := 0
	x.asked(func(n Node, f *Facts) {
		tried := map[volume.NodeID]bool{n.ID: true}
		for _, p := range f.Peers {
			tried[p.Node] = true
		}
		if !slices.ContainsFunc(x.nodes, func(to Node) bool { return !tried[to.ID] }) {
			x.look(n)
		}
		for _, p := range f.Peers {
			to, ok := byID[p.Node]
			if !ok || to.Facts == nil {
				continue
			}
			pairs++
			switch {
			case p.Raft != "":
				x.add(Problem, n.Name, fmt.Sprintf("it does not reach %s: %s", to.Name, p.Raft), "they cannot vote for, lead or replicate to one another",
					fmt.Sprintf("let %s connect to %s (TCP) on %s: firewall, routes, --advertise", n.Name, p.Addr, to.Name))
			case p.Gossip == "dead" || p.Gossip == "unknown":
				x.add(Warning, n.Name, fmt.Sprintf("it does not hear the gossip of %s, which is there", to.Name), "that a node dies is noticed later",
					fmt.Sprintf("let %s and %s reach one another's gossip port, TCP and UDP", n.Name, to.Name))
			}
		}
	})
	if pairs == 0 {
		return ""
	}
	return fmt.Sprintf("all %d ways between nodes are open", pairs)
}

func propagation(x *examination) string {
	x.asked(func(n Node, f *Facts) {
		if f.Mount == nil {
			return
		}
		x.look(n)
		if !f.Mount.Shared {
			x.add(Warning, n.Name, fmt.Sprintf("%s is on the mount %s, which is private", f.Mount.Dir, f.Mount.On),
				"what is unmounted there stays mounted in the mount namespaces of services and containers, and keeps volumes from moving",
				fmt.Sprintf("on %s: mount --make-rshared %s, and see who has made it private", n.Name, f.Mount.On))
		}
	})
	return "what is unmounted is so for all services"
}

// oldest engine whose API is enough.
var oldest = [2]int{20, 10}

func engines(x *examination) string {
	var seen []string
	x.asked(func(n Node, f *Facts) {
		e := f.Engine
		switch {
		case e == nil:
			x.none(n)
		case e.Error != "":
			x.look(n)
			x.add(Problem, n.Name, "the container engine does not answer: "+e.Error, "who uses a volume there is not known, and no container can be started there",
				fmt.Sprintf("on %s: systemctl status docker", n.Name))
		default:
			x.look(n)
			v := number(e.Version)
			if v[0] > 0 && (v[0] < oldest[0] || v[0] == oldest[0] && v[1] < oldest[1]) {
				x.add(Warning, n.Name, "the container engine is of version "+e.Version, fmt.Sprintf("nothing before %d.%d is tested", oldest[0], oldest[1]), "install a newer Docker on "+n.Name)
			}
			restore := "off"
			if e.LiveRestore {
				restore = "on"
			}
			if says := fmt.Sprintf("%s, live-restore %s", e.Version, restore); !slices.Contains(seen, says) {
				seen = append(seen, says)
			}
		}
	})
	return strings.Join(seen, "; ")
}

// driver is the name by which the engine knows us.
const driver = "flocker"

func plugins(x *examination) string {
	x.asked(func(n Node, f *Facts) {
		if f.Engine == nil {
			x.none(n)
		}
		if f.Engine == nil || f.Engine.Error != "" {
			return
		}
		x.look(n)
		if !slices.Contains(f.Engine.Drivers, driver) {
			x.add(Warning, n.Name, "its Docker does not list the volume driver flocker", "Swarm places nothing there that needs it; Docker itself finds it at its first use",
				fmt.Sprintf("on %s: docker volume ls, then docker info; if it stays so, see journalctl -u flockd -u docker", n.Name))
		}
	})
	return "each Docker lists the volume driver"
}

func shadows(x *examination) string {
	x.asked(func(n Node, f *Facts) {
		if f.Engine == nil {
			x.none(n)
		}
		if f.Engine == nil || f.Engine.Error != "" {
			return
		}
		x.look(n)
		for _, name := range f.Engine.Shadows {
			fix := fmt.Sprintf("on %s: remove the containers that use it, save what is in it if it is wanted, then docker volume rm %s", n.Name, name)
			if x.unjudged(f) != "" {
				fix = fmt.Sprintf("an old state says so: leave it until there is a leader, and see meanwhile, on %s: docker volume inspect %s", n.Name, name)
			}
			x.add(Problem, n.Name, fmt.Sprintf("its Docker has a local volume %q, which hides the flocker volume of that name", name),
				"containers on this node that name it write to the local one, which is neither replicated nor moved",
				fix)
		}
	})
	return "no local volume of Docker hides one of flocker"
}

// judged are the datasets of nodes that the asker's state can be held against. An older state does
// not know volumes that are live, and what it says of nobody's datasets may be the only copies.
func (x *examination) judged(f func(n Node, d Dataset)) {
	x.asked(func(n Node, facts *Facts) {
		if facts.Datasets == nil || x.unjudged(facts) != "" {
			return
		}
		x.look(n)
		for _, d := range facts.Datasets {
			f(n, d)
		}
	})
}

// unjudged is why the asker's state cannot be held against what a node has; "" when it can.
func (x *examination) unjudged(f *Facts) string {
	switch {
	case !x.cluster.Proven:
		return "no leader has confirmed that the state of the node that was asked is the newest"
	case f.Applied > x.cluster.Applied:
		return fmt.Sprintf("the state of the node that was asked is older than what this one knows (%d, and %d here)", x.cluster.Applied, f.Applied)
	}
	return ""
}

// orphans: datasets where volumes' are that are none of this cluster's. What to do is never to destroy
// them: that is for who has seen what they are.
func orphans(x *examination) string {
	x.asked(func(n Node, f *Facts) {
		if why := x.unjudged(f); why != "" && len(f.Datasets) > 0 {
			x.add(Warning, n.Name, fmt.Sprintf("its %s could not be judged: %s", counted(len(f.Datasets), "dataset"), why),
				"whose they are, which receives are over and what is mounted for nobody cannot be told by an old state; they may be live",
				"leave them as they are, and ask again once there is a leader, or ask another node")
		}
	})
	x.judged(func(n Node, d Dataset) {
		if _, known := x.cluster.Volumes[d.Volume]; known && d.Volume != "" {
			return
		}
		fix := fmt.Sprintf("on %s, look first what it is: zfs list -rt all %s", n.Name, d.Name)
		if pool, name, ok := strings.Cut(d.Name, "/flocker/"); ok && !strings.Contains(name, "/") {
			fix += fmt.Sprintf("; out of the way, with all that is in it: zfs rename -u %s %s/flocker-aside/orphan-%s", d.Name, pool, name)
		}
		x.add(Warning, n.Name, fmt.Sprintf("dataset %s (%s) is no volume's of this cluster", d.Name, volume.RoughSize(d.Used)),
			"nobody looks after it, and it takes room; it may be the only copy of something, so flocker leaves it alone", fix)
	})
	return "each dataset is of a volume"
}

// partials: what was received in part and will not be received further. On a replica it goes on with
// the next stream.
func partials(x *examination) string {
	x.judged(func(n Node, d Dataset) {
		v, known := x.cluster.Volumes[d.Volume]
		if !d.Partial || !known || v.Moving || v.Live && v.Primary != n.ID && slices.Contains(v.Copies, n.ID) {
			return
		}
		x.add(Warning, n.Name, fmt.Sprintf("dataset %s of volume %s holds a receive that was broken off, and nothing is sent to it any more", d.Name, v.Name),
			"what came of it takes room", fmt.Sprintf("look first that the volume neither moves nor gets a replica there: flockctl volume inspect %s; on %s, "+
				"zfs get used,receive_resume_token %s; when it is still so: zfs receive -A %[3]s, which drops what came of it and nothing else", v.Name, n.Name, d.Name))
	})
	return "no receive is left half done"
}

// unused: what is mounted and should not be, or for nobody.
func unused(x *examination) string {
	x.judged(func(n Node, d Dataset) {
		v, known := x.cluster.Volumes[d.Volume]
		if !d.Mounted || !known || v.Moving {
			return
		}
		switch {
		case v.Primary != n.ID:
			x.add(Problem, n.Name, fmt.Sprintf("dataset %s of volume %s is mounted, and this node is not its primary", d.Name, v.Name),
				"what is written there is in no other copy, and the copy cannot follow",
				fmt.Sprintf("flockd unmounts it by itself where nothing holds it; if it stays, see which node is the primary: flockctl volume inspect %s; on %s, "+
					"grep %s /proc/*/mountinfo names who holds it here", v.Name, n.Name, d.Name))
		case d.Users != nil && *d.Users == 0:
			x.add(Warning, n.Name, fmt.Sprintf("dataset %s of volume %s is mounted, and nobody is known to use it", d.Name, v.Name),
				"it keeps the volume from being handed over; flockd unmounts it by itself within a minute where nothing holds it",
				fmt.Sprintf("if it stays: on %s, grep %s /proc/*/mountinfo names who holds it", n.Name, d.Name))
		}
	})
	return "nothing is mounted for nobody"
}

// A certificate is renewed when 50 to 80 % of its life are over: with less left than expiring something
// keeps it from that.
const expiring = 0.15

func certificates(x *examination) string {
	x.asked(func(n Node, f *Facts) {
		c := f.Certificate
		if c == nil {
			return
		}
		x.look(n)
		now := x.now.Add(n.Ahead) // by its own clock
		fix := fmt.Sprintf("flockd renews it by itself from a voter: on %s see journalctl -u flockd | grep certificate, and its clock", n.Name)
		left := c.To.Sub(now)
		switch {
		case left <= 0:
			x.add(Problem, n.Name, "its certificate expired at "+c.To.UTC().Format(time.RFC3339), "no other node talks to it", fix)
		case now.Before(c.From):
			x.add(Problem, n.Name, "its certificate is valid only from "+c.From.UTC().Format(time.RFC3339), "no other node talks to it", "set the clock of "+n.Name)
		case float64(left) < expiring*float64(c.To.Sub(c.From)):
			x.add(Warning, n.Name, "its certificate expires at "+c.To.UTC().Format(time.RFC3339)+", and was not renewed in time", "after that no other node talks to it", fix)
		}
	})
	return "none is about to expire"
}

func fencing(x *examination) string {
	x.asked(func(n Node, f *Facts) {
		if f.Fencing == nil || n.Witness {
			return
		}
		x.look(n)
		switch f.Fencing.Safety {
		case volume.SafetySoftware:
			x.add(Warning, n.Name, "its fencer stops writers by software alone, and cannot reset the machine",
				"when its kernel hangs nobody can be sure that it writes no more: its volumes wait, unless the setting fencing accepts that",
				fmt.Sprintf("give %s a watchdog (FLOCKD_FENCE_WATCHDOG in /etc/default/flockd), or let sysrq reset it: FLOCKD_FENCE_RESET=auto", n.Name))
		case "":
			s := Warning
			if x.cluster.Failover == "automatic" {
				s = Problem
			}
			x.add(s, n.Name, "no fencer runs", "nobody stops its writers when its lease is over; failover does not become automatic without it",
				fmt.Sprintf("on %s: systemctl enable --now flockd-fence", n.Name))
		}
		if f.Fencing.Problem != "" {
			x.add(Warning, n.Name, "its fencer says: "+f.Fencing.Problem, "its writers may not be stopped in time when they have to be",
				fmt.Sprintf("on %s: journalctl -u flockd-fence", n.Name))
		}
	})
	return "each node can be reset when its writers do not stop"
}

func timers(x *examination) string {
	by := map[Timers][]string{}
	x.asked(func(n Node, f *Facts) {
		if f.Timers == nil {
			return
		}
		x.look(n)
		t := *f.Timers
		if t.Unfit != "" {
			x.add(Problem, n.Name, t.Unfit, "nodes stop their writers without need, or failover ends", "flockctl settings set lease=PROFILE, or another profile in /etc/flocker/flockd.yml")
		}
		t.Unfit = ""
		by[t] = append(by[t], n.Name)
	})
	if len(by) > 1 {
		var said []string
		for t, names := range by {
			said = append(said, fmt.Sprintf("report %s, election %s on %s", t.Report, t.Raft, strings.Join(names, ", ")))
		}
		slices.Sort(said)
		x.add(Warning, "", "the nodes have different timers: "+strings.Join(said, "; "), "the slowest one decides how soon a leader is replaced, and the quickest ones call for elections that nobody needs",
			"give all nodes one profile: /etc/flocker/flockd.yml, FLOCKD_PROFILE")
	}
	return "they are the same everywhere and fit the lease"
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
