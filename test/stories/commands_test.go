package stories

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/test/lab"
)

// What no other story types, on one volume and some that come and go: each command does what it
// says, and what it refuses has changed nothing.
func TestCommands(t *testing.T) {
	c := start(t)
	docs, then, now := c.docs()
	tree := func(name string) string { t.Helper(); return c.n1.Sh(onVolume(name, treeOf)) }

	c.Step("docker makes a volume of what another one was", func() {
		for from, why := range map[string]string{"docs@never": "has no snapshot never", "nothing@tuesday": "no volume"} {
			c.refuse("from "+from, func() (string, error) { return createOn(c.n1, "copy", "from="+from) }, why)
		}
		if _, err := c.n1.Volume("copy"); err == nil {
			t.Error("what was refused is a volume")
		}
		if _, err := createOn(c.n1, "copy", "from=docs@tuesday", "replicas=0"); err != nil {
			t.Fatal(err)
		}
		c.shares(c.n1, "copy", docs)
		if got := tree("copy"); got != then {
			t.Errorf("it has\n%s\nwant what docs had then:\n%s\nwhich now has\n%s", got, then, now)
		}
		c.n1.Sh(onVolume("copy", "echo mine >/d/word && sync"))
		if got := c.n1.Docker("exec", "docs", "sh", "-c", treeOf); got != now {
			t.Errorf("what was written to the copy has made of docs\n%s\nwant\n%s", got, now)
		}
	})
	c.Step("asked for again it is the same one, with other words a conflict", func() {
		made, err := c.n1.Volume("copy")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := createOn(c.n2, "copy", "from=docs@tuesday", "replicas=0"); err != nil {
			t.Errorf("docker on n2: %v", err)
		}
		c.n3.Flockctl("clone", "docs@tuesday", "copy", "-o", "replicas=0")
		c.refuse("as it is now", func() (string, error) { return c.n3.TryFlockctl("clone", "docs", "copy", "-o", "replicas=0") }, "exit code 4", "exists already")
		c.refuse("with a replica", func() (string, error) { return c.n3.TryFlockctl("clone", "docs@tuesday", "copy", "-o", "replicas=1") }, "exit code 4", "exists already")
		c.refuse("without a source", func() (string, error) { return c.n3.TryFlockctl("volume", "create", "--replicas", "0", "copy") }, "exit code 4", "exists")
		if again, err := c.n3.Volume("copy"); err != nil || again.ID != made.ID {
			t.Errorf("it is %s now (%v), was %s", again.ID, err, made.ID)
		}
		if got := c.n1.Sh(onVolume("copy", "cat /d/word")); got != "mine" {
			t.Errorf("it was made anew: it has %q", got)
		}
	})

	c.Step("a backup goes to the standard output, and a volume comes by the standard input", func() {
		const file = "/var/tmp/docs.backup"
		c.n1.Sh("flockctl backup create docs@tuesday - >" + file)
		if listed := c.n1.Lines("flockctl snapshot list -q docs | grep @backup- || true"); len(listed) > 0 {
			t.Errorf("it has left snapshots: %q", listed)
		}
		c.refuse("half of it", func() (string, error) {
			return c.n1.Try("head -c $(($(stat -c %s " + file + ") / 2)) " + file + " | flockctl import -o replicas=0 half")
		})
		if _, err := c.n1.Volume("half"); err == nil {
			t.Error("half of it is a volume")
		}
		if said := c.n1.Sh("flockctl import -o replicas=0 read <" + file); strings.TrimSpace(said) != "read" {
			t.Errorf("it says %q", said)
		}
		if got := tree("read"); got != then {
			t.Errorf("it has\n%s\nwant\n%s", got, then)
		}
		c.n1.Sh("rm " + file)
	})

	c.pruned(docs)
	c.trashed()
	c.followed()

	c.Step("a volume that is made while top is on a screen is in the picture", func() {
		c.seenByTop()
	})
	c.Step("the shell completes names of snapshots that there are", func() {
		c.completed("docs", "tuesday")
	})
	c.Step("a script of Flocker's goes on working", func() {
		c.asFlockerctl()
	})
	c.Step("a timer of systemd makes backups", func() {
		c.backedUpByTimer()
	})
	if got := c.n1.Docker("exec", "docs", "sh", "-c", treeOf); got != now {
		t.Errorf("docs has\n%s\nin the end, want\n%s", got, now)
	}
}

// docs makes a volume of that name on n1 with a replica on n2 and snapshots of three rules. It returns all that it held at its
// snapshot tuesday, and what it holds now.
func (c cluster) docs() (v api.Volume, then, now string) {
	c.Helper()
	c.Step("a volume, what it was at a snapshot, and what it is now", func() {
		if _, err := createOn(c.n1, "docs", "size=500M", "replicas=1", "prefer=n1,n2", "snapshots=5m:9,1h:9,1d:9"); err != nil {
			c.Fatal(err)
		}
		c.n1.Docker("run", "-d", "--name", "docs", "-v", "docs:/d", busyboxImage, "sleep", "1d")
		do := func(script string) string { return c.n1.Docker("exec", "docs", "sh", "-c", "cd /d && "+script) }
		do("mkdir sub && head -c 8000000 /dev/urandom >sub/one && ln -s sub/one link && chown 999:998 sub && echo then >word && sync")
		then = do(treeOf)
		c.n3.Flockctl("snapshot", "create", "docs@tuesday")
		do("rm link && head -c 4000000 /dev/urandom >two && chmod 700 sub && echo now >word && sync")
		if now = do(treeOf); now == then {
			c.Fatal("nothing has changed")
		}
		v, _ = c.waitVolume(c.n1, "docs", "ok with its replica on n2", func(v api.Volume) error {
			if err := healthy(v); err != nil || v.Replicas[0].Node.Name == c.n2.Name {
				return err
			}
			return fmt.Errorf("it is on %s", v.Replicas[0].Node)
		})
	})
	return v, then, now
}

// pruned has the rules of a policy taken away: prune destroys what they have left, on both
// nodes, but what is held only when it is released, and what people took not at all.
func (c cluster) pruned(v api.Volume) {
	c.Helper()
	// are says which of these snapshots a node has.
	are := func(n *lab.Node, names []string) (here []string) {
		c.Helper()
		order, _, err := snapshots(n, copyOf(v))
		if err != nil {
			c.Fatal(err)
		}
		for _, name := range names {
			if slices.Contains(order, name) {
				here = append(here, name)
			}
		}
		return here
	}
	waitAre := func(what string, names, want []string) {
		c.Helper()
		c.Until(what+" on n1 and n2", later, func() error {
			for _, n := range []*lab.Node{c.n1, c.n2} {
				if here := are(n, names); !slices.Equal(here, want) {
					return fmt.Errorf("%s has %q of %q, want %q", n, here, names, want)
				}
			}
			return nil
		})
	}
	prune := func(options ...string) (names []string, err error) {
		list, err := lab.Ask[[]api.Snapshot](c.n3, append([]string{"snapshot", "prune", "docs"}, options...)...)
		for _, s := range list {
			names = append(names, s.Name)
		}
		return names, err
	}
	// by is all that rules have taken, by their periods.
	by := func() map[string][]string {
		c.Helper()
		list, err := lab.Ask[[]api.Snapshot](c.n3, "snapshot", "list", "docs")
		if err != nil {
			c.Fatal(err)
		}
		out := map[string][]string{}
		for _, s := range list {
			if s.Rule > 0 {
				out[volume.FormatPeriod(s.Rule)] = append(out[volume.FormatPeriod(s.Rule)], s.Name)
			}
		}
		return out
	}

	var taken map[string][]string
	var all, going []string // of all rules, and of those that were taken away, but for what is held
	var held string
	c.Step("snapshots of three rules are on both nodes, and two rules are taken away", func() {
		c.Until("a snapshot of each rule", soon, func() error {
			if got := by(); len(got["5m"]) == 0 || len(got["1h"]) == 0 || len(got["1d"]) == 0 {
				return fmt.Errorf("there are %v", got)
			}
			return nil
		})
		c.n2.Flockctl("volume", "set", "docs", "snapshots=1d:9")
		taken = by()
		held = taken["1h"][0]
		c.n3.Flockctl("snapshot", "hold", "--note", "audit 2026", "docs@"+held)
		all = append(slices.Concat(taken["5m"], taken["1h"], taken["1d"]), "tuesday")
		going = slices.DeleteFunc(slices.Concat(taken["5m"], taken["1h"]), func(name string) bool { return name == held })
		waitAre("all snapshots", all, all)
	})
	c.Step("a held snapshot is not removed", func() {
		c.refuse("removing it", func() (string, error) { return c.n2.TryFlockctl("snapshot", "remove", "-y", "docs@"+held) }, "exit code 4", "is held", "audit 2026")
		list, err := lab.Ask[[]api.Snapshot](c.n2, "snapshot", "list", "docs")
		if err != nil {
			c.Fatal(err)
		}
		for _, s := range list {
			if is := s.Hold != nil && s.Hold.Note == "audit 2026" && s.Hold.Node.Name == c.n3.Name; is != (s.Name == held) {
				c.Errorf("n2 says of %s that it is held by %+v; want that of %s alone", s.Name, s.Hold, held)
			}
		}
	})
	same := func(what string, got, want []string, err error) {
		c.Helper()
		got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
		if err != nil || !slices.Equal(got, want) {
			c.Fatalf("%s: %q, %v; want %q", what, got, err, want)
		}
	}
	c.Step("prune says what would go, destroys that, and keeps what is held", func() {
		got, err := prune("--dry-run", "--policy", "5m:9,1h:9,1d:9")
		same("with the old policy there would go", got, nil, err)
		got, err = prune("--dry-run")
		same("there would go", got, going, err)
		c.refuse("another policy than its own", func() (string, error) { _, err := prune("--policy", "none"); return "", err }, "exit code 2")
		waitAre("all snapshots after all that was only asked", all, all)
		got, err = prune()
		same("pruned are", got, going, err)
		left := slices.DeleteFunc(slices.Clone(all), func(name string) bool { return slices.Contains(going, name) })
		waitAre("those that are held, of a rule, or somebody's", all, left)
	})
	c.Step("released, it goes as well", func() {
		c.n2.Flockctl("snapshot", "release", "docs@"+held)
		c.refuse("releasing it twice", func() (string, error) { return c.n1.TryFlockctl("snapshot", "release", "docs@"+held) }, "exit code 3", "is held")
		got, err := prune()
		same("pruned are", got, []string{held}, err)
		waitAre("those of a rule, or somebody's", all, append(slices.Clone(taken["1d"]), "tuesday"))
		got, err = prune()
		same("pruned are in the end", got, nil, err)
	})
}

// trashed removes a volume, restores it from the trash, and removes it for good.
func (c cluster) trashed() {
	c.Helper()
	const bytes = 40_000_000
	type thing struct {
		Kind, ID, Name string
		Used           int64
	}
	list := func() []thing {
		c.Helper()
		all, err := lab.Ask[[]thing](c.n1, "trash", "list")
		if err != nil {
			c.Fatal(err)
		}
		return all
	}
	var v api.Volume
	var was string
	c.Step("the trash lists what was removed, and gives it back as it was", func() {
		if _, err := createOn(c.n2, "waste", "replicas=1"); err != nil {
			c.Fatal(err)
		}
		was = c.n2.Sh(onVolume("waste", fmt.Sprintf("head -c %d /dev/urandom >/d/big && sync && %s", bytes, treeOf)))
		v, _ = c.waitVolume(c.n2, "waste", "ok", healthy)
		c.waitMounted(c.n2, "waste", false)
		c.n2.Flockctl("volume", "sync", "waste")
		c.n3.Flockctl("rm", "--yes", "waste")
		c.Until("waste to be all that is in the trash, with its bytes", later, func() error {
			if all := list(); len(all) != 1 || all[0].Kind != "volume" || all[0].Name != "waste" || all[0].ID != string(v.ID) || all[0].Used < bytes {
				return fmt.Errorf("it has %+v", all)
			}
			return nil
		})
		if said := c.n3.Flockctl("trash", "list"); !strings.Contains(said, "waste") || !strings.Contains(said, "1 thing, ") {
			c.Errorf("it says %q", said)
		}
		if said := c.n1.Flockctl("trash", "restore", "waste"); strings.TrimSpace(said) != "waste" {
			c.Errorf("restored is %q", said)
		}
		v2, _ := c.waitVolume(c.n2, "waste", "ok again", healthy)
		if got := c.n2.Sh(onVolume("waste", treeOf)); got != was || v2.ID != v.ID {
			c.Errorf("it is %s with\n%s\nwas %s with\n%s", v2.ID, got, v.ID, was)
		}
		if all := list(); len(all) > 0 {
			c.Errorf("in the trash are still %+v", all)
		}
	})
	c.Step("removed from the trash it is gone, and its room is there again", func() {
		c.waitMounted(c.n2, "waste", false)
		v, _ = c.waitVolume(c.n2, "waste", "ok", healthy)
		nodes := slices.DeleteFunc(c.Nodes(), func(n *lab.Node) bool { return isNotOn(v, n.Name) == nil })
		c.n3.Flockctl("rm", "--yes", "waste")
		trash := "tank/flocker-trash/" + string(v.ID)
		before := map[string]int64{}
		for _, n := range nodes {
			c.Until("waste to be in the trash of "+n.Name, later, func() error { _, err := n.Try("zfs list " + trash); return err })
			before[n.Name] = c.used(n)
		}
		c.refuse("without a yes", func() (string, error) { return c.n3.TryFlockctl("trash", "remove", "waste") }, "exit code 4", "nobody can be asked")
		if all := list(); len(all) != 1 {
			c.Fatalf("in the trash are %+v", all)
		}
		if said := c.n3.Flockctl("trash", "remove", "--yes", "waste"); strings.TrimSpace(said) != string(v.ID) {
			c.Errorf("removed is %q, want %s", said, v.ID)
		}
		c.Until("nothing to be in the trash, seen from n1", soon, func() error {
			if all := list(); len(all) > 0 {
				return fmt.Errorf("there are %+v", all)
			}
			return nil
		})
		c.refuse("restoring what is gone", func() (string, error) { return c.n1.TryFlockctl("trash", "restore", "waste") }, "exit code 3")
		for _, n := range nodes {
			c.Until("the room of waste to be free on "+n.Name, later, func() error {
				if left := n.Sh("zfs list -H -o name -r tank | grep " + string(v.ID) + " || true"); left != "" {
					return fmt.Errorf("there is %q", left)
				}
				if now := c.used(n); now > before[n.Name]-bytes*9/10 {
					return fmt.Errorf("%d bytes are used, %d were with it", now, before[n.Name])
				}
				return nil
			})
		}
	})
}

// used is how many bytes of a node's pool are.
func (c cluster) used(n *lab.Node) int64 {
	c.Helper()
	used, err := strconv.ParseInt(n.Sh("zfs list -H -p -o used tank"), 10, 64)
	if err != nil {
		c.Fatal(err)
	}
	return used
}

// told are events, in the order in which they were printed.
type told struct {
	mu     sync.Mutex
	events []api.Event
	odd    []string // lines that are no event
}

func (h *told) line(s string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var e api.Event
	if err := json.Unmarshal([]byte(s), &e); err != nil {
		h.odd = append(h.odd, s)
		return
	}
	h.events = append(h.events, e)
}

// made is an error until it was told of a volume that it was made.
func (h *told) made(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.ContainsFunc(h.events, func(e api.Event) bool { return e.Kind == "volume.created" && e.Name == name }) {
		return fmt.Errorf("%d events were told, none of them that", len(h.events))
	}
	return nil
}

// followed makes volumes under somebody who follows the events, on a node where flockd starts anew
// meanwhile. Volumes first and second are on n1 and n2 then.
func (c cluster) followed() {
	c.Helper()
	c.Step("who follows the events hears of each once, also when flockd starts anew", func() {
		last, err := lab.Ask[api.Event](c.n3, "events", "--tail", "1")
		if err != nil {
			c.Fatal(err)
		}
		since := strconv.FormatUint(last.Seq, 10)
		var heard told
		run := c.n3.Follow("exec flockctl --json events --follow --after "+since, heard.line)
		hears := func(n *lab.Node, name string) {
			c.Helper()
			if _, err := createOn(n, name, "profile=scratch"); err != nil {
				c.Fatal(err)
			}
			took := c.Until("n3 to be told that "+name+" was made", later, func() error {
				if run.Ended() {
					return errors.New("nobody follows any more")
				}
				return heard.made(name)
			})
			c.Logf("    told of %s %.1fs after docker was done", name, took.Seconds())
		}
		hears(c.n1, "first")
		c.n3.Sh("systemctl restart flockd")
		hears(c.n2, "second")
		run.Stop()

		var all told
		for line := range strings.Lines(c.n3.Flockctl("--json", "events", "--after", since)) {
			all.line(strings.TrimSpace(line))
		}
		if len(heard.odd)+len(all.odd) > 0 {
			c.Errorf("printed were also %q and %q", heard.odd, all.odd)
		}
		seq := func(events []api.Event) (list []uint64) {
			for _, e := range events {
				list = append(list, e.Seq)
			}
			return list
		}
		// More may have happened since.
		got, want := seq(heard.events), seq(all.events)
		if len(got) > len(want) || !slices.Equal(got, want[:len(got)]) || !slices.IsSorted(want) {
			c.Errorf("who followed was told of events %v; there were %v", got, want)
		}
	})
}

// topScript has top on a screen of its own, makes a volume when it shows those that there are, and
// ends it by its key when it shows that, too. What it has drawn is printed.
const topScript = `
rm -rf /tmp/top-story && mkdir /tmp/top-story && cd /tmp/top-story && mkfifo keys || exit
script -qec 'stty rows 40 cols 120; was=$(stty -g); flockctl top --sort name --interval 500ms; e=$?; [ "$was" = "$(stty -g)" ] || echo "THE TERMINAL IS ANOTHER"; exit $e' /dev/null <keys >picture 2>&1 &
top=$!
exec 3>keys
shows() {
	for _ in $(seq 600); do
		grep -q "$1" picture && return
		kill -0 $top || break
		sleep 0.2
	done
	echo "$1 is not in the picture" >&2
	return 1
}
shows docs && flockctl create --profile scratch --node n2 onscreen >/dev/null && shows onscreen
shown=$?
trap '' PIPE
printf q >&3
wait $top
ended=$?
cat picture
exit $((shown | ended))
`

// seenByTop looks at top, once in a pipe and once on a screen.
func (c cluster) seenByTop() {
	c.Helper()
	drawn := c.n1.Sh(topScript)
	if !strings.Contains(drawn, "\x1b[?1049h") || !strings.Contains(drawn, "\x1b[?1049l") || strings.Contains(drawn, "THE TERMINAL IS ANOTHER") {
		c.Errorf("it did not leave the screen as it was: %q", drawn)
	}
	// first are the first words of the rows of a table.
	first := func(lines []string, head string) (words []string) {
		on := false
		for _, line := range lines {
			fields := strings.Fields(line)
			switch {
			case len(fields) == 0:
				on = false
			case fields[0] == head:
				on = true
			case on:
				words = append(words, fields[0])
			}
		}
		return words
	}
	lines := strings.Split(c.n3.Flockctl("top", "--sort", "name"), "\n")
	vs, err := c.n3.Volumes()
	if err != nil {
		c.Fatal(err)
	}
	var want []string
	for _, v := range vs {
		want = append(want, v.Name)
	}
	slices.Sort(want)
	if got := first(lines, "VOLUME"); !slices.Equal(got, want) {
		c.Errorf("it shows the volumes %q, there are %q", got, want)
	}
	if got := slices.Sorted(slices.Values(first(lines, "NODE"))); !slices.Equal(got, []string{"n1", "n2", "n3"}) {
		c.Errorf("it shows the nodes %q", got)
	}
}

// completed compares what a shell is offered with the snapshots of a volume, of which one is named.
// A shell is not kept waiting for long, so an emulated machine may be too late to answer.
func (c cluster) completed(name, snapshot string) {
	c.Helper()
	list, err := lab.Ask[[]api.Snapshot](c.n3, "snapshot", "list", name)
	if err != nil {
		c.Fatal(err)
	}
	var want []string
	for _, s := range list {
		want = append(want, name+"@"+s.Name)
	}
	slices.Sort(want)
	c.Until("the names of all snapshots", soon, func() error {
		out, err := c.n3.TryFlockctl("__complete", "snapshot", "inspect", name+"@")
		if err != nil {
			return err
		}
		var got []string
		for line := range strings.Lines(out) {
			word, _, _ := strings.Cut(line, "\t")
			got = append(got, strings.TrimSpace(word))
		}
		if slices.Sort(got); !slices.Equal(got, want) || !slices.Contains(got, name+"@"+snapshot) {
			return fmt.Errorf("offered are %q, there are %q", got, want)
		}
		return nil
	})
	c.Until("bash to complete one", soon, func() error {
		part := snapshot[:2]
		line := "flockctl rollback " + name + "@" + part
		out, err := c.n3.Try(fmt.Sprintf(`. <(flockctl completion bash)
COMP_LINE=%s COMP_POINT=%d COMP_WORDS=(flockctl rollback %s @ %s) COMP_CWORD=4
_flockctl
printf '%%s\n' "${COMPREPLY[@]}"`, lab.Quote(line), len(line), name, part))
		if err != nil {
			return err
		}
		return lab.Want("what stands in place of "+part, strings.TrimSpace(out), snapshot)
	})
}

// asFlockerctl makes, moves and destroys a volume by the words of Flocker's command line.
func (c cluster) asFlockerctl() {
	c.Helper()
	c.n2.Sh(`ln -sfT "$(command -v flockctl)" /usr/local/bin/flockerctl`)
	old := func(words string) string { c.Helper(); return strings.TrimSpace(c.n2.Sh("flockerctl " + words)) }
	if said := old("create -n n3 -s 100M -m name=old"); said != "old" {
		c.Errorf("made is %q", said)
	}
	v, _ := c.waitVolume(c.n2, "old", "ok", healthy)
	if v.Primary.Name != c.n3.Name || v.Spec.Size != 100<<20 {
		c.Errorf("it is on %s, and %d bytes large", v.Primary, v.Spec.Size)
	}
	was := c.n3.Sh(onVolume("old", "head -c 3000000 /dev/urandom >/d/one && sync && "+treeOf))
	c.waitMounted(c.n3, "old", false)
	for verb, ours := range map[string]string{"list -q": "volume list -q", "list-nodes -q": "node list -q", "ls-nodes -q": "node list -q", "info -q old": "volume inspect -q old"} {
		if got, want := old(verb), strings.TrimSpace(c.n2.Sh("flockctl "+ours)); got != want || got == "" {
			c.Errorf("flockerctl %s says %q, flockctl %s %q", verb, got, ours, want)
		}
	}
	c.refuse("another control service", func() (string, error) { return c.n2.Try("flockerctl --control-service=192.0.2.1 list") }, "exit code 2", "leave it out")

	old("move --force -d old -t n1")
	v, _ = c.waitVolume(c.n2, "old", "ok on n1", func(v api.Volume) error {
		if v.Primary.Name != c.n1.Name {
			return fmt.Errorf("it is on %s", v.Primary)
		}
		return healthy(v)
	})
	if got := c.n1.Sh(onVolume("old", treeOf)); got != was {
		c.Errorf("moved, it has\n%s\nhad\n%s", got, was)
	}
	c.waitMounted(c.n1, "old", false)
	c.refuse("destroy without a yes", func() (string, error) { return c.n2.Try("flockerctl destroy -d old") }, "exit code 4", "nobody can be asked")
	old("destroy --yes -d old")
	if strings.Contains(old("list"), string(v.ID)) || !strings.Contains(old("list --deleted"), string(v.ID)) {
		c.Errorf("destroyed, it is not in the trash alone:\n%s\n%s", old("list"), old("list --deleted"))
	}
	c.n2.Flockctl("trash", "remove", "--yes", string(v.ID))
	c.n2.Sh("rm /usr/local/bin/flockerctl")
}

// backedUpByTimer has systemd make backups of n1's volumes of a profile, as docs/BACKUP.md has it.
func (c cluster) backedUpByTimer() {
	c.Helper()
	const (
		dest    = "/var/tmp/flocker-backup-timer"
		env     = "/etc/flocker/backup-story.env"
		unit    = "flocker-backup@story"
		soonDir = "/etc/systemd/system/" + unit + ".timer.d"
	)
	n := c.n1
	// The package has them where they belong.
	if _, err := n.Try("systemctl cat " + unit + ".service"); err != nil {
		for _, name := range []string{"flocker-backup@.service", "flocker-backup@.timer"} {
			n.Copy(filepath.Join(c.Root(), "scripts/packaging/backup", name), "/etc/systemd/system/"+name)
		}
	}
	n.Sh("rm -rf " + dest)
	settings := "DEST=" + dest + "\nVOLUMES=\"--profile scratch --here\"\nOPTIONS=\"--keep 5 --uploads 2\"\n"
	n.Put(env, settings, 0o600)
	// It would come once a day.
	n.Put(soonDir+"/soon.conf", "[Timer]\nOnCalendar=\nOnActiveSec=1s\nAccuracySec=1s\nRandomizedDelaySec=0\n", 0o644)
	var want []string
	vs, err := n.Volumes()
	if err != nil {
		c.Fatal(err)
	}
	for _, v := range vs {
		if v.Spec.Profile == "scratch" && v.Primary.Name == n.Name {
			want = append(want, v.Name)
		}
	}
	if !slices.Equal(want, []string{"first"}) {
		c.Fatalf("of the profile there are %q on n1, of %d volumes", want, len(vs))
	}

	type stored struct {
		Backups []struct {
			ID, Name string
			Base     *struct{ ID string }
		}
	}
	n.Sh("systemctl daemon-reload && systemctl enable -q --now " + unit + ".timer")
	var one stored
	c.Until("a backup, and its service to have ended well", later, func() (err error) {
		is := n.Lines("systemctl show -P ActiveState " + unit + ".service; systemctl show -P Result " + unit + ".service")
		if !slices.Equal(is, []string{"inactive", "success"}) {
			return fmt.Errorf("the service is %q", is)
		}
		one, err = lab.Ask[stored](n, "backup", "list", dest)
		if err == nil && len(one.Backups) == 0 {
			err = errors.New("there is none")
		}
		return err
	})
	if len(one.Backups) != 1 || one.Backups[0].Name != "first" || one.Backups[0].Base != nil {
		c.Fatalf("there are %+v, want a full one of first", one.Backups)
	}
	n.Sh("systemctl start " + unit)
	two, err := lab.Ask[stored](n, "backup", "list", dest)
	if err != nil || len(two.Backups) != 2 || two.Backups[1].Name != "first" || two.Backups[1].Base == nil || two.Backups[1].Base.ID != one.Backups[0].ID {
		c.Fatalf("there are %+v, %v; want one more of first, on %s", two.Backups, err, one.Backups[0].ID)
	}
	n.Flockctl("backup", "verify", dest)

	n.Put(env, settings+"MOUNT=/mnt\n", 0o600)
	c.refuse("where nothing is mounted", func() (string, error) {
		return n.Try("systemctl start " + unit + " 2>/dev/null || { journalctl --sync; journalctl -u " + unit + " -n 20 -o cat --no-pager; exit 1; }")
	}, "nothing is mounted on /mnt")
	if now, err := lab.Ask[stored](n, "backup", "list", dest); err != nil || len(now.Backups) != 2 {
		c.Errorf("there are %+v then, %v", now.Backups, err)
	}
	n.Sh("systemctl disable -q --now " + unit + ".timer; systemctl reset-failed " + unit + ".service; rm -rf " + soonDir + " " + env + " " + dest)
}
