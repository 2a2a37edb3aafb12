package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
)

const rebalanceHelp = `Says which copies of volumes would be moved, from where to where, why, and how many bytes that copies:
volumes to where they would rather be (options prefer, avoid and zone), then replicas, and where none can go
primaries, off nodes that are fuller than others, then primaries off nodes that have more than others. What is
nearly even stays as it is. Nothing is moved unless somebody asks for it: this version only plans, and
'flockctl migrate VOLUME NODE' moves a primary.`

func (a *app) rebalanceCommand() *cli.Command {
	return &cli.Command{
		Name: "rebalance", Usage: "say what would even out space and load over the nodes", Description: rebalanceHelp,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "dry-run", Usage: "only say what would be moved"}},
		Action: a.action(0, 0, func(ctx context.Context, c *cli.Context) error {
			if !c.Bool("dry-run") {
				return usageError{errors.New("give --dry-run: this version moves nothing by itself; flockctl migrate VOLUME NODE moves a primary"), c.Command.HelpName}
			}
			plan, err := a.client.Rebalance(ctx)
			if err != nil {
				return err
			}
			return a.printRebalance(plan)
		}),
	}
}

func (a *app) printRebalance(plan api.Rebalance) error {
	switch {
	case a.asJSON:
		return a.printJSON(plan)
	case a.quiet:
		for _, m := range plan.Moves {
			a.printf("%s\n", m.Name)
		}
		return nil
	case len(plan.Moves) == 0:
		a.printf("nothing to move\n")
	default:
		t := newTable("VOLUME", "COPY", "FROM", "TO", "BYTES", "GOES ALONG", "WHY")
		for _, m := range plan.Moves {
			copies := size(m.Bytes)
			if m.Keeps {
				copies = "none"
			}
			t.add(m.Name, string(m.Role), m.From.String(), m.To.String(), copies, strings.Join(append(m.Containers, m.With...), ","), m.Why)
		}
		if err := t.print(a.stdout); err != nil {
			return err
		}
		a.printf("%s, %s to copy\n", plural(len(plan.Moves), "move"), size(plan.Bytes))
	}
	for _, n := range plan.Notes {
		a.printf("note: %s\n", n)
	}
	if len(plan.Moves) == 0 || len(plan.Nodes) == 0 {
		return nil
	}
	a.printf("\n")
	t := newTable("NODE", "FULL", "THEN", "PRIMARIES", "THEN")
	for _, n := range plan.Nodes {
		t.add(n.Node.String(), percent(n.Bytes, n.Size), percent(n.BytesAfter, n.Size), fmt.Sprint(n.Primaries), fmt.Sprint(n.PrimariesAfter))
	}
	return t.print(a.stdout)
}

func percent(part, of int64) string {
	if of <= 0 {
		return "?"
	}
	return fmt.Sprintf("%.0f %%", 100*float64(part)/float64(of))
}
