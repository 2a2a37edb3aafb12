package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/flocker-io/flocker/internal/volume"
)

// Severity of a finding.
type Severity string

// The severities. A problem keeps the cluster from doing what it promises, or will; a warning is
// worth knowing, or becomes a problem if nobody looks.
const (
	OK      Severity = "ok"
	Warning Severity = "warning"
	Problem Severity = "problem"
)

func (s Severity) rank() int { return slices.Index([]Severity{Problem, Warning, OK}, s) }

// Finding is one thing that was looked at.
type Finding struct {
	Severity Severity `json:"severity"`
	Check    string   `json:"check"`
	Node     string   `json:"node,omitempty"` // its name; "": the cluster as a whole
	What     string   `json:"what"`
	Why      string   `json:"why,omitempty"`
	Fix      string   `json:"fix,omitempty"` // a command or a sentence
}

// Worst of all findings; OK of none.
func Worst(all []Finding) Severity {
	worst := OK
	for _, f := range all {
		if f.Severity.rank() < worst.rank() {
			worst = f.Severity
		}
	}
	return worst
}

// Examine says what is wrong, the worst first, and of each check that found nothing and looked at
// all nodes that it is well. now is the asker's time.
func Examine(c Cluster, nodes []Node, now time.Time) []Finding {
	x := &examination{cluster: c, nodes: slices.Clone(nodes), now: now}
	slices.SortFunc(x.nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	for _, check := range checks {
		x.check, x.said, x.any, x.seen = check.name, false, false, map[volume.NodeID]bool{}
		well := check.look(x)
		if !x.any {
			continue
		}
		if names := x.unseen(); names != "" {
			x.gap(names, check.name)
			continue
		}
		if !x.said && well != "" {
			x.add(OK, "", well, "", "")
		}
	}
	x.gaps()
	x.unknowns()
	slices.SortStableFunc(x.findings, func(a, b Finding) int { return a.Severity.rank() - b.Severity.rank() })
	return x.findings
}

// examination is one run of Examine.
type examination struct {
	cluster  Cluster
	nodes    []Node
	now      time.Time
	check    string
	said     bool                   // the check has found something
	any      bool                   // it has looked at some node
	seen     map[volume.NodeID]bool // the nodes that it has looked at, or that have no such thing
	missed   []missed
	findings []Finding
}

// missed are checks that did not look at the same nodes.
type missed struct {
	nodes  string
	checks []string
}

// look notes that the check looks at a node.
func (x *examination) look(n Node) { x.any, x.seen[n.ID] = true, true }

// none notes that a node has nothing for the check, unless it could not find that out.
func (x *examination) none(n Node) {
	x.seen[n.ID] = !slices.ContainsFunc(n.Facts.Unknown, func(u Unknown) bool { return u.Check == "engine" })
}

// noWitness are the checks of what a witness has not got.
var noWitness = []string{"zfs", "pool", "features", "datasets", "receives", "mounts", "fencing"}

// unseen are the nodes that the check should have looked at and has not.
func (x *examination) unseen() string {
	var names []string
	for _, n := range x.nodes {
		if !x.seen[n.ID] && !(n.Witness && slices.Contains(noWitness, x.check)) {
			names = append(names, n.Name)
		}
	}
	return strings.Join(names, ", ")
}

func (x *examination) gap(nodes, check string) {
	i := slices.IndexFunc(x.missed, func(m missed) bool { return m.nodes == nodes })
	if i < 0 {
		x.missed = append(x.missed, missed{nodes: nodes})
		i = len(x.missed) - 1
	}
	x.missed[i].checks = append(x.missed[i].checks, check)
}

// gaps: one node's facts are not those of all, so checks that did not see all say nothing of well.
func (x *examination) gaps() {
	x.check = "nodes"
	for _, m := range x.missed {
		x.add(Warning, "", fmt.Sprintf("not looked at on %s: %s", m.nodes, strings.Join(m.checks, ", ")),
			"what nobody looked at is not well for that, so these checks call nothing well", "see what else is said of these nodes, and ask again when that is mended")
	}
}

func (x *examination) add(s Severity, node, what, why, fix string) {
	x.said = true
	x.findings = append(x.findings, Finding{Severity: s, Check: x.check, Node: node, What: plain(what), Why: plain(why), Fix: plain(fix)})
}

// plain keeps on one line, and off the terminal's controls, what processes and files are called by
// others.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, s)
}

// asked are the nodes that answered.
func (x *examination) asked(f func(n Node, facts *Facts)) {
	for _, n := range x.nodes {
		if n.Facts != nil {
			f(n, n.Facts)
		}
	}
}

// storage are the parts without which a node is of no use: not to hear of them is a problem.
var storage = []string{"zfs", "pool", "datasets", "engine"}

// unknowns: what a node could not find out is never taken for well.
func (x *examination) unknowns() {
	x.asked(func(n Node, f *Facts) {
		for _, u := range f.Unknown {
			s := Warning
			if slices.Contains(storage, u.Check) {
				s = Problem
			}
			x.check = u.Check
			x.add(s, n.Name, "this could not be looked at: "+u.Why, "what cannot be asked is not well for that",
				fmt.Sprintf("see what %s's log says: journalctl -u flockd", n.Name))
		}
	})
}
