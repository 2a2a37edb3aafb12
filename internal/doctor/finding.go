package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"time"
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

// Examine says what is wrong, the worst first, and of each check that found nothing that it is
// well. now is the asker's time.
func Examine(c Cluster, nodes []Node, now time.Time) []Finding {
	x := &examination{cluster: c, nodes: slices.Clone(nodes), now: now}
	slices.SortFunc(x.nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	for _, check := range checks {
		x.check, x.said = check.name, false
		well := check.look(x)
		if !x.said && well != "" {
			x.add(OK, "", well, "", "")
		}
	}
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
	said     bool // the check has found something
	findings []Finding
}

func (x *examination) add(s Severity, node, what, why, fix string) {
	x.said = true
	x.findings = append(x.findings, Finding{Severity: s, Check: x.check, Node: node, What: what, Why: why, Fix: fix})
}

// asked are the nodes that answered.
func (x *examination) asked(f func(n Node, facts *Facts)) {
	for _, n := range x.nodes {
		if n.Facts != nil {
			f(n, n.Facts)
		}
	}
}

// unknowns: what a node could not find out is never taken for well.
func (x *examination) unknowns() {
	x.asked(func(n Node, f *Facts) {
		for _, u := range f.Unknown {
			x.check = u.Check
			x.add(Warning, n.Name, "this could not be looked at: "+u.Why, "what cannot be asked is not well for that",
				fmt.Sprintf("see what %s's log says: journalctl -u flockd", n.Name))
		}
	})
}
