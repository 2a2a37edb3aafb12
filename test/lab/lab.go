// Package lab drives the machines of scripts/lab from Go tests: it starts, cuts and
// partitions nodes, runs commands in them and reads what flockd says of itself. It
// waits for conditions that it can name, and shows the nodes' own words when a test
// fails. It knows nothing of flocker but its command line. The stories use it.
package lab

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Lab is the running set of machines, for one test.
type Lab struct {
	testing.TB
	root string // of the checkout

	begin time.Time // journals before it are another test's
}

// Open gives a test the lab. Without FLOCKER_LAB=1, which scripts/test sets, the
// test is skipped: plain `go test ./...` needs no machines.
func Open(t testing.TB) *Lab {
	t.Helper()
	if os.Getenv("FLOCKER_LAB") != "1" {
		t.Skip("needs the machines of scripts/lab: run it with `scripts/test core` or `scripts/test full`")
	}
	l := &Lab{TB: t, root: root(t), begin: time.Now()}
	t.Cleanup(func() {
		if t.Failed() {
			l.Diagnose()
		}
	})
	return l
}

// root is where go.mod is.
func root(t testing.TB) string {
	dir, err := os.Getwd()
	for err == nil {
		if _, serr := os.Stat(filepath.Join(dir, "go.mod")); serr == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			err = errors.New("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
	t.Fatal(err)
	return ""
}

// Root of the checkout.
func (l *Lab) Root() string { return l.root }

// Step is one part of a story: it is named in the log, with the time it took.
func (l *Lab) Step(what string, do func()) {
	l.Helper()
	begin := time.Now()
	l.Logf("--- %s", what)
	do()
	l.Logf("    done in %.1fs", time.Since(begin).Seconds())
}

// Part is a part of a story that can be run alone, by the story's name and its own: it begins
// and ends with all well. After one that failed nothing is as the next expects it, so that
// is not begun. Meanwhile t is not the test to speak to, but l.
func (l *Lab) Part(t *testing.T, name string, do func()) {
	t.Helper()
	if t.Failed() {
		return
	}
	t.Run(name, func(part *testing.T) {
		whole := l.TB
		l.TB = part
		defer func() { l.TB = whole }()
		do()
	})
}

// commandTimeout bounds one command in a node; an emulated machine is slow.
const commandTimeout = 10 * time.Minute

// Failure is a command that did not end well.
type Failure struct {
	Command string
	Code    int
	Out     string // both outputs
}

func (f *Failure) Error() string {
	return fmt.Sprintf("%s: exit code %d: %s", f.Command, f.Code, cmp.Or(strings.TrimSpace(f.Out), "(no output)"))
}

// Try runs scripts/lab with args and returns its standard output.
func (l *Lab) Try(args ...string) (string, error) { return l.tryFor(commandTimeout, args...) }

func (l *Lab) tryFor(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := l.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err == nil {
		return strings.TrimRight(out.String(), "\n"), nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %s", limit)
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return out.String(), fmt.Errorf("scripts/lab %s: %w", strings.Join(args, " "), err)
	}
	return out.String(), &Failure{Command: strings.Join(args, " "), Code: exit.ExitCode(), Out: out.String() + errOut.String()}
}

func (l *Lab) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(l.root, "scripts", "lab"), args...)
	// A connection that scripts/lab leaves open for the next command holds no pipe of
	// ours, but better not to hang on it.
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Do is Try that must succeed.
func (l *Lab) Do(args ...string) string {
	l.Helper()
	out, err := l.Try(args...)
	if err != nil {
		l.Fatal(err)
	}
	return out
}

// quickCrypto makes Go on emulated machines do without the processor's instructions
// for AES and CRC: QEMU works them out bit by bit, so that TLS takes all of the time.
const quickCrypto = `{ ! grep -q TCG /proc/cpuinfo || echo GODEBUG=cpu.aes=off,cpu.sse42=off >>/etc/default/flockd; }`

// Reset gives the first three machines their clean state: flockd runs, in no cluster,
// with the timers of emulated machines. Others have no power then.
func (l *Lab) Reset() { l.Helper(); l.ResetTo(3) }

// ResetTo is Reset of so many machines, which have been up before.
func (l *Lab) ResetTo(count int) {
	l.Helper()
	l.Do("reset", strconv.Itoa(count))
	l.begin = time.Now()
	l.Do("exec-all", "mkdir -p /etc/flocker && echo 'profile: lab' >/etc/flocker/flockd.yml && "+quickCrypto+" && systemctl restart flockd flockd-proxy")
}

// Cut is a power loss.
func (l *Lab) Cut(nodes ...*Node) { l.Helper(); l.Do(append([]string{"cut"}, names(nodes)...)...) }

// Boot gives power back and returns when the machines are ready.
func (l *Lab) Boot(nodes ...*Node) { l.Helper(); l.Do(append([]string{"boot"}, names(nodes)...)...) }

// Freeze stops machines, while their clocks run on; Thaw lets them go on.
func (l *Lab) Freeze(nodes ...*Node) {
	l.Helper()
	l.Do(append([]string{"freeze"}, names(nodes)...)...)
}

// Thaw ends Freeze.
func (l *Lab) Thaw(nodes ...*Node) { l.Helper(); l.Do(append([]string{"thaw"}, names(nodes)...)...) }

// Pause stops machines together with their clocks, so that they cannot know of it.
func (l *Lab) Pause(nodes ...*Node) { l.Helper(); l.Do(append([]string{"pause"}, names(nodes)...)...) }

// Resume ends Pause.
func (l *Lab) Resume(nodes ...*Node) {
	l.Helper()
	l.Do(append([]string{"resume"}, names(nodes)...)...)
}

// Unplug pulls the disk of a node's pool, until the node is cut and booted.
func (l *Lab) Unplug(n *Node) { l.Helper(); l.Do("unplug", n.Name) }

// Slow has the disk of a node's pool write no more than so many bytes a second, until
// Fast, or until the node is cut and booted; a reset does not end it.
func (l *Lab) Slow(n *Node, bytes int) { l.Helper(); l.Do("slow", n.Name, strconv.Itoa(bytes)) }

// Fast ends Slow.
func (l *Lab) Fast(n *Node) { l.Helper(); l.Do("fast", n.Name) }

// Partition cuts the LAN between the first node and each other.
func (l *Lab) Partition(first *Node, others ...*Node) {
	l.Helper()
	l.Do(append([]string{"partition", first.Name}, names(others)...)...)
}

// Heal ends all partitions.
func (l *Lab) Heal() { l.Helper(); l.Do("heal") }

// Wan puts a node on a slow line, with a token bucket of rate (such as "1mbit") and
// that much delay each way.
func (l *Lab) Wan(n *Node, rate string, delay time.Duration) {
	l.Helper()
	l.Do("wan", n.Name, rate, fmt.Sprintf("%dms", delay.Milliseconds()))
}

// Lan ends Wan.
func (l *Lab) Lan(nodes ...*Node) { l.Helper(); l.Do(append([]string{"lan"}, names(nodes)...)...) }

func names(nodes []*Node) (out []string) {
	for _, n := range nodes {
		out = append(out, n.Name)
	}
	return out
}

// Parallel runs f for 0 to n-1 at once and returns what failed. f must not end the
// test.
func Parallel(n int, f func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Diagnose logs what every node says of itself, and keeps whole journals below
// bin/lab-failures.
func (l *Lab) Diagnose() {
	l.Helper()
	dir := filepath.Join(l.root, "bin", "lab-failures", strings.ReplaceAll(l.Name(), "/", "_"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		l.Log(err)
	}
	since := int(time.Since(l.begin).Seconds()) + 30
	status, _ := l.Try("status")
	l.Logf("machines:\n%s", status)
	for _, n := range l.Nodes() {
		journal, err := n.Try(fmt.Sprintf("journalctl -u flockd -u flockd-fence -u flockd-proxy -u docker --no-pager -o short-precise --since=-%ds", since))
		if err != nil {
			l.Logf("%s does not answer: %v", n, err)
			continue
		}
		file := filepath.Join(dir, n.Name+".log")
		if err := os.WriteFile(file, []byte(journal), 0o644); err != nil {
			l.Log(err)
		}
		lines := slices.DeleteFunc(strings.Split(journal, "\n"), func(line string) bool { return strings.Contains(line, "part=gossip") })
		l.Logf("%s: the end of its journal (all of it: %s)\n%s", n, file, strings.Join(lines[max(0, len(lines)-25):], "\n"))
		said, _ := n.Try(`systemctl is-active flockd flockd-proxy docker
timeout 20 flockctl status 2>&1; timeout 20 flockctl volume list 2>&1; timeout 20 flockctl route list 2>&1; timeout 20 flockd proxy status 2>&1
docker ps -a --format '{{.Names}} {{.Status}}'; zfs list -r -o name,used,mounted,readonly,origin tank; grep flocker /proc/mounts`)
		l.Logf("%s:\n%s", n, said)
	}
}
