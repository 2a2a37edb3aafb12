// Package bench measures flocker beside what one would do without it, on the same
// machines of the lab in one run: zfs send through a plain pipe by hand, and
// syncoid. Each test is one job and prints a row of docs/BENCHMARKS.md; scripts/bench
// puts them there. Two nodes take part, for failover three; any others are off, so that
// each of two has a core of its own where the host has two.
package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// later bounds waits; only failures take that long.
const later = 20 * time.Minute

// rig is a cluster of two or three, with hand in two of the nodes.
type rig struct {
	*lab.Lab
	n1, n2 *lab.Node // n1 is the primary of all
}

func start(t *testing.T, nodes int) rig {
	t.Helper()
	if os.Getenv("FLOCKER_BENCH") != "1" {
		t.Skip("measures for minutes on the machines of scripts/lab: run scripts/bench")
	}
	l := lab.Open(t)
	b := rig{l, l.Node(1), l.Node(2)}
	l.ResetTo(nodes)
	made, err := lab.Ask[api.InitReply](b.n1, "init", "--pool", "tank", "--advertise", b.n1.Addr())
	if err != nil {
		t.Fatal(err)
	}
	for i := 2; i <= nodes; i++ {
		n := l.Node(i)
		n.Sh(made.JoinCommand + " --pool tank --wait --advertise " + n.Addr())
	}

	hand := filepath.Join(t.TempDir(), "hand")
	build := exec.Command("go", "build", "-tags", "hashicorpmetrics,nosystemd", "-ldflags", "-s -w", "-o", hand, "./test/bench/hand")
	build.Dir, build.Env = l.Root(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, n := range []*lab.Node{b.n1, b.n2} {
		n.Copy(hand, "/usr/local/bin/hand")
	}
	return b
}

// hand runs the helper in a node, with the same settings of Go as flockd has there.
func hand(args ...any) string {
	return "set -a; . /etc/default/flockd; set +a; exec hand " + strings.TrimSpace(fmt.Sprintln(args...))
}

// serve has n2 receive by hand, over TLS on one port and TCP on another.
func (b rig) serve() (secured, plain string) {
	b.Helper()
	listening := make(chan string, 2)
	b.n2.Follow(hand("serve", ":9001"), func(s string) { listening <- s })
	b.n2.Follow(hand("-plain", "serve", ":9002"), func(s string) { listening <- s })
	for range 2 {
		select {
		case s := <-listening:
			if s != "listening" {
				b.Fatal(s)
			}
		case <-time.After(time.Minute):
			b.Fatal("hand does not listen on n2")
		}
	}
	return "n2:9001", "n2:9002"
}

// volume made on n1 with one replica on n2, mounted for the time of the test. It
// returns its dataset and the directory to write to.
func (b rig) volume(name string, options ...string) (dataset, dir string) {
	b.Helper()
	args := []string{"volume", "create", "--replicas", "1"}
	b.n1.Flockctl(append(append(args, options...), name)...)
	b.n1.Sh("docker run -d --name " + name + " --mount type=volume,volume-driver=flocker,src=" + name + ",dst=/d flocker-test/busybox:1 sleep 1000000")
	v, err := b.n1.Volume(name)
	if err != nil {
		b.Fatal(err)
	}
	dataset = "tank/flocker/" + string(v.ID)
	dir = strings.TrimSpace(b.n1.Sh("awk '$1 == \""+dataset+"\" { print $2; exit }' /proc/mounts")) + "/data"
	b.inSync()
	return dataset, dir
}

// inSync waits until all volumes are ok.
func (b rig) inSync() {
	b.Helper()
	b.Until("all volumes to be in sync", later, func() error {
		s, err := b.n1.Status()
		if err != nil {
			return err
		}
		for h, n := range s.Volumes {
			if h != api.HealthOK && n > 0 {
				return fmt.Errorf("%v", s.Volumes)
			}
		}
		return nil
	})
}

// numbers that a script printed.
func (b rig) numbers(n *lab.Node, script string) (out []float64) {
	b.Helper()
	for _, word := range n.Lines(script) {
		f, err := strconv.ParseFloat(word, 64)
		if err != nil {
			b.Fatalf("%s: %q is no number: %s", n, word, script)
		}
		out = append(out, f)
	}
	return out
}

func (b rig) metric(name string, labels ...string) float64 {
	b.Helper()
	v, err := b.n1.Metric(name, labels...)
	if err != nil {
		b.Fatal(err)
	}
	return v
}

// wire counts what n1 sent and heard on the LAN, in bytes.
func (b rig) wire() float64 {
	b.Helper()
	n := b.numbers(b.n1, "cat /sys/class/net/lan/statistics/{tx,rx}_bytes")
	return n[0] + n[1]
}

// busy is how long the two machines have had the host's processors, in seconds. Unlike
// the time on the clock it says the same on a host that does other work too.
func (b rig) busy() (sum float64) {
	b.Helper()
	for line := range strings.Lines(b.Do("status")) {
		field := strings.Fields(line)
		if field[0] != b.n1.Name && field[0] != b.n2.Name {
			continue
		}
		stat, err := os.ReadFile("/proc/" + field[2] + "/stat")
		if err != nil {
			b.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		for _, ticks := range strings.Fields(rest)[11:13] { // utime, stime
			n, err := strconv.ParseFloat(ticks, 64)
			if err != nil {
				b.Fatal(err)
			}
			sum += n / 100
		}
	}
	return sum
}

// timed runs a script on n1 and returns how many seconds it took there.
func (b rig) timed(script string) float64 {
	b.Helper()
	n := b.numbers(b.n1, "begin=$(date +%s%N); { "+script+"; } >/tmp/timed 2>&1 || { tail -5 /tmp/timed >&2; exit 1; }; echo $(( $(date +%s%N) - begin ))")
	return n[0] / 1e9
}

// setting of a run from its environment.
func setting(name string, def int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return def
}

// median of what a contender got in its rounds.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return s[len(s)/2]
}

// share is the value below which so much of all lies.
func share(values []float64, part float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return s[min(len(s)-1, int(part*float64(len(s))))]
}

// row prints one line of the table.
func (b rig) row(job string, cells ...string) {
	b.Helper()
	b.Logf("ROW | %s | %s |", job, strings.Join(cells, " | "))
}

// contenders in the order of the table's columns.
var contenders = []string{"flocker", "TLS", "TCP", "syncoid"}

// compare is a row of what each got in its rounds, as medians; for the others also
// what flocker had of theirs. That is the median over the rounds, since those of one
// round were measured one after the other, and a busy host is slow for all of them.
func (b rig) compare(what, unit string, of map[string][]float64) {
	b.Helper()
	var cells []string
	for _, who := range contenders {
		if len(of[who]) == 0 {
			cells = append(cells, "")
			continue
		}
		cell := fmt.Sprintf("%.1f %s", median(of[who]), unit)
		if who != "flocker" {
			var ratios []float64
			for i, f := range of["flocker"] {
				ratios = append(ratios, f/of[who][i])
			}
			cell += fmt.Sprintf(" (%.2f)", median(ratios))
		}
		cells = append(cells, cell)
	}
	b.row(what, cells...)
}

// One full copy of data that does not compress.
func TestFullCopy(t *testing.T) {
	b := start(t, 2)
	secured, plain := b.serve()
	size := setting("BENCH_SIZE", 256)
	dataset, dir := b.volume("full", "--interval", "1h")
	b.n1.Sh(fmt.Sprintf("dd if=/dev/urandom of=%s/data bs=1M count=%d status=none && sync", dir, size))
	b.n1.Flockctl("volume", "sync", "full")
	snapshot := b.n1.Lines("zfs list -H -d 1 -t snapshot -o name -S createtxg " + dataset)[0]

	rate, work := map[string][]float64{}, map[string][]float64{}
	note := func(who string, bytes, seconds, cpu float64) {
		rate[who] = append(rate[who], bytes/seconds/1e6)
		work[who] = append(work[who], cpu/bytes*1e9)
		t.Logf("%s: %.0f bytes in %.1fs, %.2f MB/s, %.1fs of processor", who, bytes, seconds, bytes/seconds/1e6, cpu)
	}
	destroy := func(dataset string) {
		b.n2.Sh("zfs destroy -r " + dataset + " && zpool wait -t free tank && zpool sync tank")
	}
	sent := func() []float64 {
		return []float64{
			b.metric("flocker_streams_total", `direction="sent"`), b.metric("flocker_streams_total", `kind="full"`),
			b.metric("flocker_stream_bytes_total", `direction="sent"`), b.metric("flocker_stream_duration_seconds_sum", `direction="sent"`),
		}
	}
	for range setting("BENCH_ROUNDS", 3) {
		// A replica that lost its dataset is seeded anew.
		for again := true; again; {
			destroy(dataset)
			before, busy := sent(), b.busy()
			b.n1.Flockctl("volume", "sync", "full")
			cpu, after := b.busy()-busy, sent()
			if again = after[0] != before[0]+1 || after[1] != before[1]+1; again {
				t.Log("another stream came between")
				continue
			}
			bytes, seconds := after[2]-before[2], after[3]-before[3]
			note("flocker", bytes, seconds, cpu)
		}
		for who, pipe := range map[string]string{"TLS": secured, "TCP": plain} {
			mode := "copy"
			if who == "TCP" {
				mode = "-plain copy"
			}
			busy := b.busy()
			n := b.numbers(b.n1, hand(mode, pipe, snapshot, "tank/hand"))
			note(who, n[0], n[1], b.busy()-busy)
			destroy("tank/hand")
		}
		busy := b.busy()
		took := b.timed("syncoid --no-sync-snap --no-stream --no-privilege-elevation --sendoptions='L e c' " + dataset + " root@n2:tank/syncoid")
		note("syncoid", float64(size<<20), took, b.busy()-busy)
		destroy("tank/syncoid")
	}
	b.compare(fmt.Sprintf("one full copy of %d MiB", size), "MB/s", rate)
	b.compare("the host's processor time for each MB of it", "ms", work)
}

// Small increments, one after the other: a step is over when the replica has it.
func TestIncrements(t *testing.T) {
	b := start(t, 2)
	secured, plain := b.serve()
	count := setting("BENCH_STEPS", 20)
	_, dir := b.volume("steps", "--interval", "1h")
	b.n1.Sh("for d in tls tcp syncoid; do zfs create -o mountpoint=/mnt/$d tank/$d; done")

	perSecond, bytes, work := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	measure := func(who string, steps int, run func() float64) {
		wire, busy := b.wire(), b.busy()
		n := float64(steps)
		took := run()
		perSecond[who] = append(perSecond[who], n/took)
		bytes[who] = append(bytes[who], (b.wire()-wire)/n/1024)
		work[who] = append(work[who], (b.busy()-busy)/n*1000)
		last := len(work[who]) - 1
		t.Logf("%s: %.2f steps a second, %.1f KiB and %.0f ms of processor each", who, n/took, bytes[who][last], work[who][last])
	}
	for range setting("BENCH_ROUNDS", 3) {
		measure("flocker", count, func() float64 { return b.numbers(b.n1, hand("sync", count, "steps", dir))[1] })
		measure("TLS", count, func() float64 {
			return b.numbers(b.n1, hand("steps", secured, count, "tank/tls", "/mnt/tls", "tank/tls"))[1]
		})
		measure("TCP", count, func() float64 {
			return b.numbers(b.n1, hand("-plain steps", plain, count, "tank/tcp", "/mnt/tcp", "tank/tcp"))[1]
		})
		for _, dataset := range []string{"tls", "tcp"} { // begin anew next time
			b.n2.Sh("zfs destroy -r tank/" + dataset)
			b.n1.Sh("zfs destroy tank/" + dataset + "@%")
		}
		few := max(count/10, 3)
		measure("syncoid", few, func() float64 {
			return b.timed(fmt.Sprintf("for i in $(seq %d); do head -c 4096 /dev/urandom >/mnt/syncoid/small; syncoid --quiet --no-privilege-elevation --sendoptions='L e c' tank/syncoid root@n2:tank/syncoid || exit; done", few))
		})
	}
	b.compare(fmt.Sprintf("small increments, one after the other, %d in a round", count), "a second", perSecond)
	b.compare("bytes on the wire for each, both ways", "KiB", bytes)
	b.compare("the host's processor time for each", "ms", work)
}

// Small increments of many volumes that are written at the same time.
func TestManyIncrements(t *testing.T) {
	b := start(t, 2)
	secured, _ := b.serve()
	const many = 8
	count := max(setting("BENCH_STEPS", 20)/4, 2)
	var flocker, byHand []any
	for i := range many {
		name := fmt.Sprint("many", i)
		_, dir := b.volume(name, "--interval", "1h")
		b.n1.Sh("zfs create -o mountpoint=/mnt/" + name + " tank/" + name)
		flocker = append(flocker, name, dir)
		byHand = append(byHand, "tank/"+name, "/mnt/"+name, "tank/"+name)
	}
	atOnce, inTurn := map[string][]float64{}, map[string][]float64{}
	steps := func(of []any, args ...any) float64 {
		t.Helper()
		perSecond := float64(many*count) / b.numbers(b.n1, hand(append(args, of...)...))[1]
		t.Logf("%v: %.2f steps a second", args, perSecond)
		return perSecond
	}
	again := func() {
		for i := range many {
			b.n2.Sh(fmt.Sprintf("zfs destroy -r tank/many%d", i))
			b.n1.Sh(fmt.Sprintf("zfs destroy tank/many%d@%%", i))
		}
	}
	for range setting("BENCH_ROUNDS", 3) {
		ours := steps(flocker, "sync", count)
		atOnce["flocker"], inTurn["flocker"] = append(atOnce["flocker"], ours), append(inTurn["flocker"], ours)
		atOnce["TLS"] = append(atOnce["TLS"], steps(byHand, "-together", "steps", secured, count))
		again()
		inTurn["TLS"] = append(inTurn["TLS"], steps(byHand, "steps", secured, count))
		again()
	}
	b.compare(fmt.Sprintf("small increments of %d volumes at once, %d of each in a round", many, count), "a second", atOnce)
	b.compare("the same, by hand one volume after the other", "a second", inTurn)
}

// How old the newest snapshot on the replica is while the primary is written to all
// the time: what would be lost. It is looked at in the same way for all.
func TestLag(t *testing.T) {
	b := start(t, 2)
	seconds := setting("BENCH_SECONDS", 90)
	var cells []string
	watch := func(who, dataset string, reported func() float64) {
		wire := b.wire()
		begin := time.Now()
		var said []float64
		looks := make(chan struct{}, seconds)
		ages := []float64{}
		f := b.n2.Follow(hand("age", dataset, seconds), func(s string) {
			if a, err := strconv.ParseFloat(s, 64); err == nil {
				ages = append(ages, a)
			}
			looks <- struct{}{}
		})
		for range seconds {
			select {
			case <-looks:
			case <-time.After(time.Minute):
				t.Fatalf("%s: no age of %s on n2", who, dataset)
			}
			if reported != nil {
				said = append(said, reported())
			}
		}
		f.Wait()
		rate := (b.wire() - wire) / time.Since(begin).Seconds() / 1024
		t.Logf("%s: %d looks, p50 %.1fs, p95 %.1fs, max %.1fs; %.0f KiB a second on the wire", who, len(ages), share(ages, 0.5), share(ages, 0.95), slices.Max(ages), rate)
		cell := fmt.Sprintf("p50 %.1f s, p95 %.1f s, max %.1f s; %.0f KiB/s on the wire", share(ages, 0.5), share(ages, 0.95), slices.Max(ages), rate)
		if said != nil {
			cell += fmt.Sprintf("; says itself %.1f, %.1f, %.1f s", share(said, 0.5), share(said, 0.95), slices.Max(said))
		}
		cells = append(cells, cell)
	}

	dataset, dir := b.volume("lag")
	writing := b.n1.Follow(hand("load", dir), func(s string) { t.Log(s) })
	b.Until("writes on n2", later, func() error { return arrived(b.n1, b.n2, dataset, 3) })
	watch("flocker", dataset, func() float64 { return b.metric("flocker_replica_lag_seconds") })
	writing.Stop()

	// flocker rests, with nothing to do, while the other works.
	b.n1.Sh("zfs create -o mountpoint=/mnt/lag tank/lag")
	b.n1.Follow(hand("load", "/mnt/lag"), func(s string) { t.Log(s) })
	b.n1.Follow("while :; do syncoid --quiet --no-privilege-elevation --sendoptions='L e c' tank/lag root@n2:tank/lag; done", func(s string) { t.Log(s) })
	b.Until("writes on n2", later, func() error { return arrived(b.n1, b.n2, "tank/lag", 1) })
	watch("syncoid, run again as soon as it ends", "tank/lag", nil)
	b.row("age of the replica under steady writes, interval 1 s", cells[0], "", "", cells[1])
}

// arrived says that n2 has so many snapshots of a dataset.
func arrived(from, to *lab.Node, dataset string, least int) error {
	out, err := to.Try("zfs list -H -o name -d 1 -t snapshot " + dataset + " | wc -l")
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(strings.TrimSpace(out)); err != nil || n < least {
		return fmt.Errorf("%s has %s snapshots of what %s writes, %v", to, out, from, err)
	}
	return nil
}

// What volumes cost that nobody writes to: measured without any, with half of them and
// with all, so that one sees whether the cost grows as their number does.
func TestIdle(t *testing.T) {
	b := start(t, 2)
	count, seconds := setting("BENCH_VOLUMES", 50), setting("BENCH_SECONDS", 90)
	used := func(unit string) (each [2]float64) {
		for i, n := range []*lab.Node{b.n1, b.n2} {
			each[i] = b.numbers(n, "systemctl show --value -p CPUUsageNSec "+unit)[0] / 1e9
		}
		return each
	}
	// cost is processor seconds an hour: of flockd with all its zfs commands on the primary and
	// on the replica, as they are counted there, which is too many while the host has others to
	// serve; and of the host for both machines, with all that runs in them.
	cost := func(what string) (each [3]float64) {
		before, host, begin := used("flockd"), b.busy(), time.Now()
		time.Sleep(time.Duration(seconds) * time.Second) // this is the measuring
		after, hours := used("flockd"), time.Since(begin).Hours()
		for i := range after {
			each[i] = (after[i] - before[i]) / hours
		}
		each[2] = (b.busy() - host) / hours
		t.Logf("%s: %.0f s an hour on the primary, %.0f s on the replica, %.0f s of the host for both machines", what, each[0], each[1], each[2])
		return each
	}
	// syncoid's turn comes first, while flockd has no volumes. It does one dataset after
	// the other, so few tell about many.
	const few = 5
	b.n1.Sh(fmt.Sprintf("zfs create tank/idle; for i in $(seq %d); do zfs create tank/idle/$i; done", few-1))
	pass := "syncoid --quiet -r --no-privilege-elevation --sendoptions='L e c' tank/idle root@n2:tank/idle"
	b.n1.Sh(pass)
	before := used("ssh")
	began := time.Now()
	printed := b.n1.Sh("systemd-run --wait --collect -p CPUAccounting=yes -E PATH=$PATH bash -c " + lab.Quote(pass) + " 2>&1")
	took := time.Since(began)
	after := used("ssh")
	_, cpu, ok := strings.Cut(printed, "CPU time consumed: ")
	if !ok {
		t.Fatal(printed)
	}
	first, _, _ := strings.Cut(cpu, "\n")
	here, err := time.ParseDuration(strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(first), "min", "m"), " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("syncoid: one pass over %d idle datasets took %s, %s of processor on the primary and %.1fs on the replica", few, took, here, after[1]-before[1])
	empty := cost("no volumes")
	with := func(from, to int) [3]float64 {
		t.Helper()
		began := time.Now()
		for ; from <= to; from += 50 { // a command in a node has ten minutes
			b.n1.Sh(hand("volumes", from, min(from+49, to)))
		}
		b.inSync()
		t.Logf("%d volumes were ok after %s more", to, time.Since(began).Round(time.Second))
		return cost(fmt.Sprintf("%d idle volumes", to))
	}
	half := with(1, count/2)
	full := with(count/2+1, count)
	thousand := func(i int) float64 { return empty[i] + (full[i]-empty[i])/float64(count)*1000 }

	b.row("the host's processor seconds an hour for both machines meanwhile, with all that runs in them",
		fmt.Sprintf("%.0f with %d, %.0f with %d, %.0f without any", full[2], count, half[2], count/2, empty[2]), "", "", "")
	hourly := func(seconds float64) float64 { return seconds / few * 1000 * 60 }
	b.row(fmt.Sprintf("processor seconds an hour for idle volumes: flockd and its commands, primary + replica; measured with %d", count),
		fmt.Sprintf("%.0f + %.0f (with %d: %.0f + %.0f; without any: %.0f + %.0f)", full[0], full[1], count/2, half[0], half[1], empty[0], empty[1]), "", "", "")
	b.row("the same for 1,000 volumes, calculated; syncoid once a minute from one pass over 5",
		fmt.Sprintf("%.0f + %.0f", thousand(0), thousand(1)), "", "", fmt.Sprintf("%.0f + %.0f", hourly(here.Seconds()), hourly(after[1]-before[1])))
}
