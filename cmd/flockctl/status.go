package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
)

func (a *app) statusCommand() *cli.Command {
	return &cli.Command{
		Name:        "status",
		Usage:       "show how the cluster is, as this node sees it",
		Description: "Works without quorum. With --quiet it prints only problems, nothing if all is well.",
		Action: a.action(0, 0, func(ctx context.Context, c *cli.Context) error {
			s, err := a.client.Status(ctx)
			switch {
			case err != nil:
				return err
			case a.asJSON:
				return a.printJSON(s)
			case a.quiet:
				if s.Retired != "" {
					a.printf("%s\n", s.Retired)
				}
				for _, p := range s.Problems {
					a.printf("%s\n", p)
				}
				return nil
			}
			a.printStatus(s)
			return nil
		}),
	}
}

func (a *app) printStatus(s api.ClusterStatus) {
	if s.Retired != "" {
		a.printf("%s\n", s.Retired)
		a.list("Problems", s.Problems)
		return
	}
	if !s.Initialized {
		a.printf("This node is in no cluster. 'flockctl init' makes one, 'flockctl join' enters one.\n")
		a.list("Problems", s.Problems)
		return
	}
	ready := "ready"
	if !s.Ready {
		ready = "not ready yet"
	}
	var f facts
	f.add("Cluster", "%s", s.ClusterID)
	f.add("This node", "%s (%s), version %s, %s", s.Node, s.Node.ID.Short(), s.Version, ready)
	f.add("Leader", "%s", cmp.Or(s.Leader.String(), "none known"))
	f.add("Quorum", "%s", quorum(s))
	f.add("Failover", "%s", failoverWords(s.Failover))
	if len(s.Fencing) > 0 {
		f.add("Fencing", "%s", fencing(s.Fencing))
	}
	f.add("Nodes", "%s", tally(s.Nodes, api.NodeAlive, api.NodeSuspect, api.NodeDead, api.NodeUnknown))
	f.add("Volumes", "%s", tally(s.Volumes))
	if s.Trash > 0 {
		f.add("Trash", "%s, kept for %s after removal", plural(s.Trash, "volume"), age(s.TrashKeep))
	}
	f.print(a.stdout)
	a.list("Problems", s.Problems)
	a.list("Lately", s.Notes)
	a.list("Not promised as this cluster is set up", s.Safety)
}

// fencing is how surely the writers of each node are stopped, the surest first.
func fencing(by map[string][]string) string {
	var words []string
	for _, level := range []struct{ key, words string }{
		{"watchdog", "watchdog"}, {"sysrq", "sysrq"}, {"software", "software only"}, {"none", "no fencer runs"},
	} {
		if names := by[level.key]; len(names) > 0 {
			words = append(words, fmt.Sprintf("%s on %s", level.words, strings.Join(names, ", ")))
		}
	}
	return strings.Join(words, "; ")
}

// failoverWords is what happens when a node is lost.
func failoverWords(f api.Failover) string {
	switch f.Mode {
	case "automatic":
		return fmt.Sprintf("automatic, lease profile %s, round %d", cmp.Or(f.Profile, "default"), f.Round)
	case "":
		return "manual"
	}
	return because(f.Mode, f.Reason)
}

func quorum(s api.ClusterStatus) string {
	word := "yes"
	if !s.Quorum {
		word = "NO, nothing can be changed"
	}
	alive := 0
	var names []string
	for _, v := range s.Voters {
		if v.Health == api.NodeAlive {
			alive++
		}
		names = append(names, fmt.Sprintf("%s %s", v.NodeRef, v.Health))
	}
	return fmt.Sprintf("%s: %d of %s alive (%s)", word, alive, plural(len(s.Voters), "voter"), strings.Join(names, ", "))
}

// tally is numbers by kind in words, kinds in the order given, then by name.
func tally[K ~string](m map[K]int, order ...K) string {
	total := 0
	var kinds []K
	for k, n := range m {
		total += n
		if n > 0 {
			kinds = append(kinds, k)
		}
	}
	if total == 0 {
		return "0"
	}
	rank := func(k K) int {
		if i := slices.Index(order, k); i >= 0 {
			return i
		}
		return len(order)
	}
	slices.SortFunc(kinds, func(x, y K) int { return cmp.Or(rank(x)-rank(y), cmp.Compare(x, y)) })
	var words []string
	for _, k := range kinds {
		words = append(words, fmt.Sprintf("%d %s", m[k], k))
	}
	return fmt.Sprintf("%d: %s", total, strings.Join(words, ", "))
}
