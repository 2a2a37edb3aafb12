package stories

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// live is a container that follows its volume, whose clients come through a route on every
// node and are not to notice that it moves.
type live struct {
	cluster
	volume, container string
	port              string
	hook              string // preset of what is done before its stop, by a label; "": no label
	anew              string // port of a route in mode tcp to the same server, for clients that come anew for each request; "": none
	node              *lab.Node
	v                 api.Volume
	clients           []*asking
}

// asking is a script in a node that prints how many requests were answered so far, and how
// long the longest of the last second took: "1200 85ms", and "error: ..." once something
// was wrong.
type asking struct {
	what   string
	run    *lab.Follower
	byFile bool // it ends when it finds the stop file, and not by a signal

	mu       sync.Mutex
	answered int64
	longest  time.Duration // since it was asked last
	wrong    []string
}

func (a *asking) line(s string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	count, took, _ := strings.Cut(s, " ")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		a.wrong = append(a.wrong, s)
		return
	}
	a.answered = n
	if d, err := time.ParseDuration(took); err == nil {
		a.longest = max(a.longest, d)
	}
}

func (a *asking) count() (n int64, wrong error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.wrong) > 0 {
		wrong = fmt.Errorf("%s after %d answers: %s", a.what, a.answered, strings.Join(a.wrong, "; "))
	}
	return a.answered, wrong
}

// slowest is the longest that a request took since it was called last.
func (a *asking) slowest() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.longest
	a.longest = 0
	return d
}

// askers builds test/asker and brings it to all nodes.
func (c cluster) askers() {
	c.Helper()
	bin := filepath.Join(c.TempDir(), "asker")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./test/asker")
	cmd.Dir, cmd.Env = c.Root(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		c.Fatalf("building test/asker: %v: %s", err, out)
	}
	for _, n := range c.Nodes() {
		n.Copy(bin, "/usr/local/bin/asker")
	}
}

// ask has a script in a node ask, until stop.
func (l *live) ask(n *lab.Node, what, script string) *asking {
	l.Helper()
	a := &asking{what: what + " on " + n.Name, byFile: strings.Contains(script, stopFile)}
	a.run = n.Follow(script, a.line)
	l.clients = append(l.clients, a)
	return a
}

// stopFile tells those scripts to end that a signal would interrupt in the middle.
const stopFile = "/run/story-stop"

// again is a script that runs a command, which does so many things at a time, until it
// finds the stop file, and ends when the command fails.
func again(command string, does int) string {
	return fmt.Sprintf(`n=0
while [ ! -e %[1]s ]; do
	began=$SECONDS
	out=$(%[2]s 2>&1) || { echo "error: $(tail -n3 <<<"$out")"; exit 1; }
	n=$((n+%[3]d)); echo $n
	took=$((SECONDS-began)) # an emulated machine has other work to do, too
	sleep $((took < 5 ? took : 5)).5
done`, stopFile, command, does)
}

// progress waits until every client has got so many more answers, and nothing was wrong.
func (l *live) progress(more int64) {
	l.Helper()
	var from []int64
	for _, a := range l.clients {
		n, _ := a.count()
		from = append(from, n)
	}
	l.Until(fmt.Sprintf("%d more answers for each client", more), later, func() error {
		for i, a := range l.clients {
			n, wrong := a.count()
			if wrong != nil {
				l.Fatal(wrong)
			}
			if n < from[i]+more {
				return fmt.Errorf("%s: %d", a.what, n)
			}
		}
		return nil
	})
}

// serve waits until the route is served on every node.
func (l *live) serve(answers func(n *lab.Node) error) {
	l.Helper()
	for _, n := range l.Nodes() {
		l.Until(fmt.Sprintf("port %s on %s", l.port, n), later, func() error { return answers(n) })
	}
	l.v, _ = l.waitVolume(l.node, l.volume, "ok with its replicas", healthy)
	l.waitFollows(l.node, l.container)
}

// move takes it to another node, under its clients.
func (l *live) move(to *lab.Node) api.Migration {
	l.Helper()
	for _, a := range l.clients {
		a.slowest()
	}
	begin := time.Now()
	var done api.Migration
	l.Until("a move to "+to.Name+" that is not refused by its forecast", later, func() (err error) {
		done, err = lab.Ask[api.Migration](to, "migrate", "--max-pause", "1m", l.volume, to.Name)
		if err != nil && !strings.Contains(err.Error(), "they would be stopped in vain") {
			l.Fatal(err)
		}
		if err != nil { // of a machine that is too slow just now; nothing was stopped
			l.Logf("    %v", err)
		}
		return err
	})
	if done.State != api.MigrationDone {
		l.Fatalf("it ended with %+v", done)
	}
	took := time.Since(begin)
	from := l.node
	l.node = to
	l.progress(20)
	var slowest []string
	for _, a := range l.clients {
		slowest = append(slowest, fmt.Sprintf("%s %s", a.what, a.slowest()))
	}
	l.Logf("    %s to %s in %.1fs, the container stopped for at most %.1fs; the longest answer: %s", from, to, took.Seconds(), done.StoppedSeconds, strings.Join(slowest, ", "))
	if p := done.Times; p != nil && done.PausedSeconds > 0 { // told once the routes lead there
		l.Logf("    clients waited for %.1fs: quiet %.2f, stop %.2f, unmount %.2f, last copy %.2f, commit %.2f, takeover %.2f, mount %.2f, start %.2f, ready %.2f, release %.2f",
			done.PausedSeconds, p.Park, p.Stop, p.Unmount, p.Copy, p.Commit, p.Takeover, p.Mount, p.Run, p.Ready, p.Open)
	}
	for _, n := range l.Nodes() {
		out := n.Docker("ps", "-q", "--filter", "name="+l.container)
		if runs := out != ""; runs != (n.Name == to.Name) {
			l.Errorf("%s runs on %s: %v", l.container, n, runs)
		}
		is, err := mounted(n, l.v)
		if err != nil || is != (n.Name == to.Name) {
			l.Errorf("%s has the volume mounted: %v, %v", n, is, err)
		}
	}
	return done
}

// tour is six moves from n1 between all nodes and back.
func (l *live) tour() []*lab.Node { return []*lab.Node{l.n2, l.n1, l.n3, l.n2, l.n3, l.n1} }

// moves takes it to these nodes, one after the other, and meanwhile kills flockd and has
// newer processes of the proxy take over, under connected clients.
func (l *live) moves(nodes ...*lab.Node) {
	l.Helper()
	// An answer of a busy emulated machine comes some time after the pause, for which a minute is allowed.
	l.n1.Flockctl("settings", "set", "hold=90s")
	for i, to := range nodes {
		l.Step(fmt.Sprintf("move %d, to %s", i+1, to), func() { l.move(to) })
		switch i {
		case 0:
			l.Step("flockd is killed on all nodes: nobody is cut off", func() {
				l.Do("exec-all", "systemctl kill -s KILL flockd")
				l.progress(20)
				l.Until("flockd to answer", later, func() error { _, err := l.node.Volume(l.volume); return err })
			})
		case 1:
			l.Step("newer processes of the proxy take over on all nodes: nobody is cut off", l.reload)
		}
		l.waitVolume(to, l.volume, "ok with its replicas", healthy)
		l.waitFollows(to, l.container)
	}
}

// reload has newer processes of the proxy take over from those that serve the clients.
func (l *live) reload() {
	l.Helper()
	main := func(n *lab.Node) string { return n.Sh("systemctl show -P MainPID flockd-proxy") }
	was := map[string]string{}
	for _, n := range l.Nodes() {
		was[n.Name] = main(n)
	}
	l.Do("exec-all", "systemctl reload flockd-proxy")
	for _, n := range l.Nodes() {
		l.Until("a newer process of the proxy on "+n.Name, later, func() error {
			if is := main(n); is == was[n.Name] || is == "0" {
				return fmt.Errorf("its process is %s, as before", is)
			}
			return nil
		})
	}
	l.progress(20)
	for _, n := range l.Nodes() {
		l.Logf("    %s: %d processes of the proxy serve", n, len(n.Lines("pgrep -f '^/usr(/local)?/bin/flockd proxy$'")))
	}
}

// stop ends the clients once what they asked for was answered, and returns how many
// answers each got.
func (l *live) stop() (answered []int64) {
	l.Helper()
	l.Do("exec-all", "touch "+stopFile)
	for _, a := range l.clients {
		if a.byFile {
			l.Until(a.what+" to end", later, func() error { return lab.Want("it has ended", a.run.Ended(), true) })
		} else {
			a.run.Stop()
		}
		n, wrong := a.count()
		if wrong != nil {
			l.Fatal(wrong)
		}
		answered = append(answered, n)
	}
	return answered
}

// finish asks whether all was done in its containers before they were stopped, and ends it.
func (l *live) finish() {
	l.Helper()
	for line := range strings.Lines(l.n2.Flockctl("events")) {
		switch {
		case !strings.Contains(line, "volume.pre-stop-failed"):
		case strings.Contains(line, "did not end within"): // the machine was too slow for it, as for anything timed
			l.Logf("    %s", strings.TrimSpace(line))
		default:
			l.Errorf("it was not made ready for its stop: %s", strings.TrimSpace(line))
		}
	}
	if l.hook != "" {
		ready := 0
		for _, n := range l.Nodes() {
			ready += len(strings.Fields(n.Sh("journalctl -u flockd --no-pager -o cat | grep -F 'a container was made ready for its stop' | grep -oF hook=" + l.hook + " || true")))
		}
		l.Logf("    it was made ready for its stop %d times, as the preset %s does it", ready, l.hook)
		if ready == 0 {
			l.Errorf("nobody says that it was made ready for its stop by the preset %s", l.hook)
		}
	}
	l.end()
}

// end compares all copies, asks whether anybody misses anything, and removes the container.
func (l *live) end() {
	l.Helper()
	routes, err := lab.Ask[api.Routes](l.n2, "route", "list")
	if err != nil {
		l.Fatal(err)
	}
	for _, r := range routes.Routes {
		if r.State != api.RouteOpen || r.Owner.Name != l.node.Name || len(r.Problems)+len(r.Pinned) > 0 {
			l.Errorf("the route is %+v, want it open on %s, with nothing wrong", r, l.node)
		}
	}
	l.waitVolume(l.node, l.volume, "ok with its replicas", healthy)
	l.checkEqual(l.v)
	l.node.Docker("rm", "-f", l.container)
}

// Redis moves from node to node under clients that came to every node, and that do not try
// twice: nobody sees an error, and the counter is exactly what was answered. Nor does who comes
// anew for each request, through a route that knows nothing of what is said on it.
// It gets ready for each stop.
func TestMigrateLive(t *testing.T) { migrateRedis(t, 6, "redis") }

// The same with two moves of a container that is stopped as it is.
func TestCoreMigrate(t *testing.T) { migrateRedis(t, 2, "") }

func migrateRedis(t *testing.T, moves int, hook string) {
	l := &live{cluster: start(t), volume: "counter", container: "redis", port: "6379", anew: "6380", hook: hook}
	l.node = l.n1
	l.countInRedis()
	l.moves(l.tour()[:moves]...)
	l.checkCount()
	l.finish()
}

// countInRedis has clients on every node count in Redis on n1, through a route.
func (l *live) countInRedis() {
	l.Helper()
	l.Step("Redis on n1, with a route", func() {
		l.askers()
		ports, labels := "ports=6379:6379/redis", []string{"--label", "flocker.enable=true"}
		if l.anew != "" {
			ports += "," + l.anew + ":6379/tcp"
		}
		if l.hook != "" {
			labels = append(labels, "--label", "flocker.pre-stop="+l.hook)
		}
		l.node.Docker("volume", "create", "-d", "flocker", "-o", "size=500M", "-o", "replicas=2", "-o", ports, l.volume)
		l.node.Docker(append(append([]string{"run", "-d", "--name", l.container}, labels...),
			"--mount", "type=volume,volume-driver=flocker,src="+l.volume+",dst=/data", redisImage)...)
		l.serve(func(n *lab.Node) error {
			for _, port := range []string{l.port, l.anew} {
				if port == "" {
					continue
				}
				out, err := n.Try("redis-cli -h " + n.Addr() + " -p " + port + " ping")
				if err == nil {
					err = lab.Want("ping on port "+port, out, "PONG")
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
	l.Step("clients on every node count", func() {
		for _, n := range l.Nodes() {
			l.ask(n, "asker", fmt.Sprintf("exec asker redis %s:%s n", n.Addr(), l.port))
			if l.anew != "" {
				l.ask(n, "asker anew each time", fmt.Sprintf("exec asker anew %s:%s n", n.Addr(), l.anew))
			}
		}
		// One that nobody here wrote: it ends at the first error.
		l.ask(l.n2, "redis-benchmark", again(fmt.Sprintf("redis-benchmark -h %s -p %s -c 2 -n 100 -q incr bench", l.n2.Addr(), l.port), 100))
		l.progress(100)
	})
}

// checkCount ends those clients: what they were answered is what was counted.
func (l *live) checkCount() {
	l.Helper()
	l.Step("the counter is what was answered", func() {
		answered := l.stop()
		ofBench := answered[len(answered)-1]
		var all int64
		for _, n := range answered[:len(answered)-1] {
			all += n
		}
		for key, want := range map[string]int64{"n": all, "bench": ofBench} {
			for _, n := range l.Nodes() {
				got := n.Sh("redis-cli -h " + n.Addr() + " -p " + l.port + " get " + key)
				if err := lab.Want("the counter "+key+", read on "+n.Name, strings.TrimSpace(got), strconv.FormatInt(want, 10)); err != nil {
					l.Error(err)
				}
			}
		}
		l.Logf("    %d and %d increments were answered and done", all, ofBench)
	})
}

// A web server moves under posts to every node: its log, which is on the volume, has each
// that was answered, once, and no others.
func TestMigrateLiveHTTP(t *testing.T) {
	l := &live{cluster: start(t), volume: "web", container: "nginx", port: "8080"}
	l.node = l.n1
	l.Step("nginx on n1, with a route by a label", func() {
		l.askers()
		l.node.Docker("volume", "create", "-d", "flocker", "-o", "size=500M", "-o", "replicas=2", l.volume)
		const conf = `error_log stderr; pid /run/nginx.pid; worker_processes 1; events {}
http { log_format post "$request_method $uri"; access_log /data/log post; server { listen 80; location / { return 200 "$uri\n"; } } }`
		l.node.Docker("run", "-d", "--name", l.container, "--label", "flocker.enable=true",
			"--label", "flocker.proxy.web.listen="+l.port, "--label", "flocker.proxy.web.port=80", "--label", "flocker.proxy.web.mode=http",
			"--mount", "type=volume,volume-driver=flocker,src="+l.volume+",dst=/data", "flocker-test/nginx:1",
			"sh", "-c", "echo "+lab.Quote(conf)+" >/run/conf; exec nginx -c /run/conf -g 'daemon off;'")
		l.serve(func(n *lab.Node) error {
			out, err := n.Try("curl -sf -d once http://" + n.Addr() + ":" + l.port + "/hello")
			if err != nil {
				return err
			}
			return lab.Want("the page", out, "/hello")
		})
	})
	l.Step("clients on every node post", func() {
		for _, n := range l.Nodes() {
			l.ask(n, "asker", fmt.Sprintf("exec asker http %s:%s %s", n.Addr(), l.port, n))
		}
		l.ask(l.n2, "curl", again(fmt.Sprintf("curl -sf --no-keepalive -d once http://%s:%s/curl/$n", l.n2.Addr(), l.port), 1))
		l.progress(50)
	})
	l.moves(l.tour()...)
	l.Step("the log is what was answered", func() {
		var all int64
		for _, n := range l.stop() {
			all += n
		}
		// Not counted are this story's and the route's own questions whether it serves.
		out := l.node.Docker("exec", l.container, "sh", "-c", "grep '^POST ' /data/log | grep -v /hello >/run/done; wc -l </run/done; sort -u /run/done | wc -l")
		if err := lab.Want("requests that were done, and different ones", strings.Join(strings.Fields(out), " "), fmt.Sprintf("%[1]d %[1]d", all)); err != nil {
			t.Error(err)
		}
		l.Logf("    %d posts were answered and done", all)
	})
	l.finish()
}

// PostgreSQL moves under pgbench on every node, in each of its modes, and one connection
// that commits row after row: every transaction that was acknowledged is there once.
func TestMigrateLivePostgres(t *testing.T) {
	l := &live{cluster: start(t), volume: "pgdata", container: "pg", port: "5432", hook: "postgres"}
	l.node = l.n1
	psql := func(n *lab.Node) string { return fmt.Sprintf("psql -qAtX -U postgres -h %s -p %s", n.Addr(), l.port) }
	l.Step("PostgreSQL on n1, with a route", func() {
		l.node.Docker("volume", "create", "-d", "flocker", "-o", "size=1G", "-o", "replicas=2", "-o", "ports=5432:5432/postgres", l.volume)
		l.runPostgres(l.node, l.container, l.volume, "--label", "flocker.enable=true", "--label", "flocker.pre-stop="+l.hook).query(table)
		l.serve(func(n *lab.Node) error {
			out, err := n.Try(psql(n) + " -c 'select 1'")
			if err != nil {
				return err
			}
			return lab.Want("select 1", out, "1")
		})
		for _, n := range l.Nodes() {
			n.Sh("id=$(docker create " + postgresImage + ") && docker cp $id:/usr/lib/postgresql/15/bin/pgbench /usr/local/bin/pgbench && docker rm $id")
		}
		l.n2.Sh(fmt.Sprintf("pgbench -i -q -s 1 -U postgres -h %s -p %s postgres", l.n2.Addr(), l.port))
	})
	// A thread for each client: pgbench waits for the answer to a Parse and does nothing else
	// meanwhile, and if it has a transaction open on another connection then, that stays open
	// for as long as the pause that it waits for.
	const each = 20
	l.Step("clients on every node commit", func() {
		for i, n := range l.Nodes() {
			mode := []string{"simple", "extended", "prepared"}[i]
			l.ask(n, "pgbench "+mode, again(fmt.Sprintf("pgbench -n -c 2 -j 2 -R 5 -t %d -M %s -U postgres -h %s -p %s postgres", each/2, mode, n.Addr(), l.port), each))
		}
		l.ask(l.n3, "psql", fmt.Sprintf(`set -o pipefail; n=0
while [ ! -e %s ]; do
	n=$((n+1)); echo "insert into rows values ($n, repeat(md5('$n'), 8)) returning id; select from pg_sleep(0.1);"
done | %s -v ON_ERROR_STOP=1 2>&1 | grep --line-buffered . || echo "error: psql has ended"`, stopFile, psql(l.n3)))
		l.progress(each)
	})
	l.moves(l.tour()...)
	l.Step("the database has what was acknowledged", func() {
		answered := l.stop()
		rows := answered[len(answered)-1]
		var all int64
		for _, n := range answered[:len(answered)-1] {
			all += n
		}
		db := database{l.cluster, l.node, l.container}
		if got := db.rows(); got != rows {
			t.Errorf("%d rows are there, %d were acknowledged", got, rows)
		}
		got := db.query(`select count(*), sum(delta) = (select sum(abalance) from pgbench_accounts),
			sum(delta) = (select sum(bbalance) from pgbench_branches), sum(delta) = (select sum(tbalance) from pgbench_tellers) from pgbench_history`)
		if err := lab.Want("transactions, and whether the balances agree", got, fmt.Sprintf("%d|t|t|t", all)); err != nil {
			t.Error(err)
		}
		l.Logf("    %d transactions and %d rows were acknowledged and are there", all, rows)
	})
	l.finish()
}
