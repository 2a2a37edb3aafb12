package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// rebalancePause is between two looks at the moves.
const rebalancePause = time.Second

const rebalanceHelp = `Says which copies of volumes would be moved, from where to where, why, and how many bytes that copies, asks, and
moves them: volumes to where they would rather be (options prefer, avoid and zone), then replicas, and where none
can go primaries, off nodes that are fuller than others, then primaries off nodes that have more than others.
What is nearly even stays as it is.

A primary goes as with 'flockctl migrate', with the containers that follow it. A replica goes when its copy on the
other node is complete. A node has a part in one move at a time. Nothing is moved for balance by itself, unless the
setting rebalance is on (flockctl settings); --dry-run says what that would do, too.

Ctrl-C, or the end of --timeout, lets nothing more begin. What has begun comes to its end by itself, and nothing is
left half done: of a volume with a copy too many one is taken away within minutes.`

func (a *app) rebalanceCommand() *cli.Command {
	return &cli.Command{
		Name: "rebalance", Usage: "even out space and load over the nodes", Description: rebalanceHelp,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Usage: "only say what would be moved"},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"},
		},
		Action: a.untimed(0, 0, func(ctx context.Context, c *cli.Context) error {
			plan, err := timed(a, ctx, a.client.Rebalance)
			if err != nil {
				return err
			}
			if c.Bool("dry-run") || len(plan.Moves) == 0 {
				return firstError(a.printRebalance(plan), a.printPolicy(plan.Policy))
			}
			if !c.Bool("yes") {
				if err := a.agree(ctx, plan); err != nil {
					return err
				}
			}
			plan.Moves, err = a.carryRebalance(ctx, plan.Moves)
			return firstError(a.printCarried(plan), err)
		}),
	}
}

// agree shows a plan to a person and asks whether it is to be.
func (a *app) agree(ctx context.Context, plan api.Rebalance) error {
	if !a.terminal {
		return volume.Errorf(volume.CodeRefused, "nothing was moved, since nobody can be asked here").WithHint("--dry-run says what would be moved, --yes moves it without asking")
	}
	if !a.asJSON && !a.quiet {
		if err := a.printRebalance(plan); err != nil {
			return err
		}
	}
	a.say("Type yes to begin with %s: ", plural(len(plan.Moves), "move"))
	answer := make(chan string, 1)
	go func() { // left behind when interrupted; the process ends then
		line, _ := bufio.NewReader(a.stdin).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case got := <-answer:
		if got == "yes" {
			return nil
		}
	case <-ctx.Done():
		fmt.Fprintln(a.stderr)
	}
	return volume.Errorf(volume.CodeRefused, "nothing was moved")
}

// carryRebalance takes moves further, step by step, until all are over, and returns them as
// they are then.
func (a *app) carryRebalance(ctx context.Context, moves []api.RebalanceMove) ([]api.RebalanceMove, error) {
	id := strings.ToLower(rand.Text()[:16])
	carry := func(ctx context.Context, moves []api.RebalanceMove) ([]api.RebalanceMove, error) {
		next, open := slices.Clone(moves), []int(nil) // moves that are not over
		req := api.RebalanceRequest{Request: id}
		for i, m := range moves {
			if !m.Over() {
				open, req.Moves = append(open, i), append(req.Moves, m)
			}
		}
		rep, err := a.client.CarryRebalance(ctx, req)
		if err != nil {
			return nil, err
		}
		if len(rep.Moves) != len(open) {
			return nil, fmt.Errorf("asked about %d moves, flockd answered about %d", len(open), len(rep.Moves))
		}
		for j, i := range open {
			next[i] = rep.Moves[j]
		}
		return next, nil
	}
	return watch(ctx, a, moves, watched[[]api.RebalanceMove]{
		pause: rebalancePause, most: a.watchFor(0), first: true, line: rebalanceLine, look: carry,
		over: func(moves []api.RebalanceMove) (bool, error) {
			if slices.ContainsFunc(moves, func(m api.RebalanceMove) bool { return !m.Over() }) {
				return false, nil
			}
			return true, failedMoves(moves)
		},
		late: func(moves []api.RebalanceMove) error {
			return volume.Errorf(volume.CodeTimeout, "%d of %s are done after %s", doneMoves(moves), plural(len(moves), "move"), volume.FormatDuration(a.timeout)).
				WithHint("what has begun comes to its end by itself; `flockctl rebalance` plans the rest anew")
		},
		left: func(_ context.Context, moves []api.RebalanceMove) ([]api.RebalanceMove, error) {
			return moves, fmt.Errorf("%w: %d of %s are done; what has begun comes to its end by itself, and `flockctl rebalance` plans the rest anew",
				errDetached, doneMoves(moves), plural(len(moves), "move"))
		},
	})
}

func doneMoves(moves []api.RebalanceMove) (n int) {
	for _, m := range moves {
		if m.State == api.MoveDone {
			n++
		}
	}
	return n
}

func failedMoves(moves []api.RebalanceMove) error {
	if n := len(moves) - doneMoves(moves); n > 0 {
		return volume.Errorf(volume.CodeRefused, "%d of %s came to nothing", n, plural(len(moves), "move")).
			WithHint("what they were about is where it was; `flockctl rebalance --dry-run` says what would be moved now")
	}
	return nil
}

// rebalanceLine is what is under way, on one line.
func rebalanceLine(moves []api.RebalanceMove) string {
	text := fmt.Sprintf("%d of %s done", doneMoves(moves), plural(len(moves), "move"))
	for _, m := range moves {
		if m.State == api.MoveRunning {
			text += fmt.Sprintf("; %s: %s", m.Name, m.Doing)
		}
	}
	return text
}

// printCarried says what became of each move.
func (a *app) printCarried(plan api.Rebalance) error {
	if a.asJSON || a.quiet {
		return a.printRebalance(plan)
	}
	t := newTable("VOLUME", "COPY", "FROM", "TO", "STATE", "WHY")
	for _, m := range plan.Moves {
		t.add(m.Name, string(m.Role), m.From.String(), m.To.String(), cmp.Or(m.State, api.MoveWaiting), m.Doing)
	}
	return t.print(a.stdout)
}

// printPolicy says what would be moved without being asked for.
func (a *app) printPolicy(p api.RebalancePolicy) error {
	if a.asJSON || a.quiet || !p.On && len(p.Moves) == 0 {
		return nil
	}
	text, would := "by itself (setting rebalance=on)", "moves"
	if !p.On {
		text, would = "with the setting rebalance=on the cluster", "would begin with"
	}
	switch {
	case len(p.Moves) == 0 && p.Waits != "":
		a.printf("%s: waits, since %s\n", text, p.Waits)
	case len(p.Moves) == 0:
		a.printf("%s: nothing is far enough apart, or it was moved not long ago\n", text)
	default:
		for _, m := range p.Moves {
			a.printf("%s %s: %s %s from %s to %s, since %s\n", text, would, m.Role, m.Name, m.From, m.To, m.Why)
		}
		if p.Waits != "" {
			a.printf("before that: %s\n", p.Waits)
		}
	}
	return nil
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
