package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// drainPatience is how long flockctl watches a drain unless it is told otherwise.
const drainPatience = time.Hour

// drainPause is between two looks at a drain.
const drainPause = time.Second

func (a *app) nodeDrain() *cli.Command {
	return &cli.Command{
		Name: "drain", Usage: "move a node's volumes to other nodes", ArgsUsage: "NODE",
		Description: "Volumes are handed to another node. Containers that follow theirs (label flocker.enable=true) go along:\n" +
			"stopped here, started there, and started here again if they do not start there. What other containers\n" +
			"use stays until they are stopped, and is named. Replicas go once another node has their copy, two volumes at a time, so\n" +
			"that no volume ever has fewer copies than it asks for.\n\n" +
			"The command waits until the node is empty, an hour unless --timeout is given; then it says what is\n" +
			"left and exits with code 5. The drain itself goes on, also after Ctrl-C, until flockctl node undrain.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "keep-replicas", Usage: "move only what it is the primary of, as before a restart"},
			&cli.BoolFlag{Name: "detach", Usage: "do not wait"},
		},
		Action: a.untimed(1, 1, func(ctx context.Context, c *cli.Context) error {
			d, err := timed(a, ctx, func(ctx context.Context) (api.Drain, error) {
				return a.client.DrainNode(ctx, c.Args().First(), api.DrainRequest{KeepReplicas: c.Bool("keep-replicas")})
			})
			if err != nil {
				return err
			}
			if !c.Bool("detach") {
				d, err = a.watchDrain(ctx, d)
			}
			return firstError(a.printDrained(d, c.Bool("detach")), err)
		}),
	}
}

// watchDrain shows how a drain goes on until it is done, or ends with what is left.
func (a *app) watchDrain(ctx context.Context, d api.Drain) (api.Drain, error) {
	patience, total := a.watchFor(drainPatience), len(d.Left)
	return watch(ctx, a, d, watched[api.Drain]{
		pause: drainPause, most: patience,
		line: func(d api.Drain) string {
			total = max(total, len(d.Left))
			return drainLine(d, total)
		},
		over: func(d api.Drain) (bool, error) {
			if !d.Done && d.Availability != "drain" {
				return true, volume.Errorf(volume.CodeConflict, "the drain of %s was ended by somebody else", d.Node)
			}
			return d.Done, nil
		},
		look: func(ctx context.Context, d api.Drain) (api.Drain, error) {
			return a.client.Drain(ctx, string(d.Node.ID))
		},
		late: func(d api.Drain) error { return leftOver(d, patience) },
		left: func(_ context.Context, d api.Drain) (api.Drain, error) { return d, detached(d) },
	})
}

// drainLine is a drain on one line: how much is done, and what is going on or in the way.
func drainLine(d api.Drain, total int) string {
	text := fmt.Sprintf("%s: %d of %d copies moved", d.Node, total-len(d.Left), total)
	var words []string
	for _, l := range d.Left {
		if l.Doing != "" {
			words = append(words, l.Name+" "+l.Doing)
		}
	}
	for _, l := range d.Left {
		if l.Doing == "" {
			words = append(words, l.Name+" waits: "+l.Why)
		}
	}
	const most = 3
	if n := len(words); n > most {
		words = append(words[:most], fmt.Sprintf("%d more", n-most))
	}
	if len(words) > 0 {
		text += "; " + strings.Join(words, "; ")
	}
	return text
}

// detached is how a drain ends for who does not want to watch any longer.
func detached(d api.Drain) error {
	return fmt.Errorf("%w: the drain of %s goes on, with %s left; `flockctl node undrain %s` ends it",
		errDetached, d.Node, plural(len(d.Left), "volume"), d.Node)
}

var errDetached = errors.New("not watched any longer")

func leftOver(d api.Drain, patience time.Duration) error {
	return volume.Errorf(volume.CodeTimeout, "node %s still has %s after %s", d.Node, plural(len(d.Left), "volume"), volume.FormatDuration(patience)).
		WithHint("the drain goes on; see what stands in its way above, or end it with `flockctl node undrain %s`", d.Node)
}

// printDrained says what is left, or that nothing is.
func (a *app) printDrained(d api.Drain, begun bool) error {
	switch {
	case a.asJSON:
		return a.printJSON(d)
	case a.quiet:
		for _, l := range d.Left {
			a.printf("%s\n", l.Name)
		}
		return nil
	case len(d.Left) > 0:
		t := newTable("VOLUME", "ROLE", "STATE")
		for _, l := range d.Left {
			t.add(l.Name, string(l.Role), cmp.Or(l.Doing, l.Why))
		}
		return t.print(a.stdout)
	case d.KeepReplicas:
		a.printf("%s is the primary of no volume; its replicas stay\n", d.Node)
	case begun && !d.Done:
	default:
		a.printf("%s is empty; flockctl node remove %s takes it out of the cluster, flockctl node undrain %s uses it again\n", d.Node, d.Node, d.Node)
	}
	return nil
}

func (a *app) nodeUndrain() *cli.Command {
	return &cli.Command{
		Name: "undrain", Usage: "use a drained node again", ArgsUsage: "NODE...",
		Action: a.untimed(1, -1, func(ctx context.Context, c *cli.Context) error {
			ns, err := each(a, c.Args().Slice(), func(ref string) (api.Node, error) {
				return timed(a, ctx, func(ctx context.Context) (api.Node, error) { return a.client.UndrainNode(ctx, ref) })
			})
			if a.asJSON {
				return firstError(a.printJSON(ns), err)
			}
			for _, n := range ns {
				a.printf("%s\n", n.Name)
			}
			return err
		}),
	}
}

func (a *app) nodeRemove() *cli.Command {
	return &cli.Command{
		Name: "remove", Aliases: []string{"rm"}, Usage: "take a node out of the cluster for ever", ArgsUsage: "NODE",
		Description: "The node has to be drained; with --dead it has to be lost instead, and nothing is asked of it. Its\n" +
			"identity is refused from then on: a machine comes back as a new node, with a new token. Nothing on\n" +
			"its disks is touched; a dataset that was just being imported there when it was lost is below\n" +
			"POOL/flocker, and its property flocker:import says what it was called and was like.\n\n" +
			"A dead node that was the primary of volumes might still write to them. Where nothing proves that it\n" +
			"does not, make sure that it is off and say so with --confirm-fenced NODE.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "dead", Usage: "the node is lost and will not come back"},
			&cli.StringFlag{Name: "confirm-fenced", Usage: "I have made sure that `NODE` is off"},
			&cli.BoolFlag{Name: "lose-data", Usage: "give up the volumes that no other node has a whole copy of"},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"},
		},
		Action: a.untimed(1, 1, a.removeNode),
	}
}

func (a *app) removeNode(ctx context.Context, c *cli.Context) error {
	n, err := timed(a, ctx, func(ctx context.Context) (api.Node, error) { return a.client.Node(ctx, c.Args().First()) })
	if err != nil {
		return err
	}
	req := api.RemoveNodeRequest{Dead: c.Bool("dead"), ConfirmFenced: c.String("confirm-fenced"), LoseData: c.Bool("lose-data")}
	if req.Dead || req.LoseData {
		if !c.Bool("yes") && !a.terminal {
			return volume.Errorf(volume.CodeRefused, "node %s was not removed, since nobody can be asked here", n.Name).WithHint("--yes removes it without asking")
		}
		if !c.Bool("yes") {
			question := fmt.Sprintf("Node %s will never be let into the cluster again.\nType its name to remove it: ", n.Name)
			if req.LoseData {
				question = fmt.Sprintf("Node %s will never be let into the cluster again, and volumes that only it has are GIVEN UP.\nType its name to remove it: ", n.Name)
			}
			if err := a.typed(ctx, bufio.NewReader(a.stdin), "node", n.Name, question); err != nil {
				return err
			}
		}
	}
	rep, err := timed(a, ctx, func(ctx context.Context) (api.RemoveNodeReply, error) {
		return a.client.RemoveNode(ctx, string(n.ID), req)
	})
	switch {
	case err != nil:
		return err
	case a.asJSON:
		return a.printJSON(rep)
	case a.quiet:
		a.printf("%s\n", n.ID)
		return nil
	}
	a.printf("%s is removed\n", n.Name)
	a.list("These volumes get another primary", rep.Electing)
	a.list("These volumes are given up", rep.Lost)
	return nil
}
