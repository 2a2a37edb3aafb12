package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

const asideHelp = `A copy is set aside when its history went another way than its primary's: it may hold the only copy
of something. It stays until aside-retention is over (flockctl settings), is restored as a volume of
its own, or removed by you. A copy is given by its name or the start of it.`

func (a *app) asideCommand() *cli.Command {
	node := &cli.StringFlag{Name: "node", Usage: "the one on `NODE`, when several nodes have one of that name"}
	return &cli.Command{
		Name: "aside", Aliases: []string{"asides"}, Usage: "list, restore and remove copies that were set aside", Description: asideHelp,
		Subcommands: []*cli.Command{
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list the set-aside copies of all nodes", Description: asideHelp,
				Action: a.action(0, 0, a.listAsides),
			},
			{
				Name: "restore", Usage: "make a volume of a set-aside copy and print its name", ArgsUsage: "COPY VOLUMENAME",
				Description: "The volume gets the options of the volume that it was a copy of, if that is still there, and the node\n" +
					"that has the copy as its primary. Ports that somebody has, mostly that volume itself, are left out, and\n" +
					"it is said which.",
				Flags: []cli.Flag{node, &cli.StringSliceFlag{Name: "option", Aliases: []string{"o"}, Usage: "`KEY=VALUE` as in flockctl volume create; repeat it for several"}},
				Action: a.action(2, 2, func(ctx context.Context, c *cli.Context) error {
					opts, err := keyValues(c, c.StringSlice("option"))
					if err != nil {
						return err
					}
					req := api.RestoreAsideRequest{Name: c.Args().Get(1), Node: c.String("node"), Options: opts}
					v, err := a.client.RestoreAside(ctx, c.Args().First(), req)
					if err != nil {
						return err
					}
					return a.made(v)
				}),
			},
			{
				Name: "remove", Aliases: []string{"rm"}, Usage: "destroy set-aside copies for good", ArgsUsage: "COPY...",
				Flags:  []cli.Flag{node, &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}},
				Action: a.untimed(1, -1, a.removeAsides),
			},
		},
	}
}

func (a *app) listAsides(ctx context.Context, _ *cli.Context) error {
	all, err := a.client.Asides(ctx)
	switch {
	case err != nil:
		return err
	case a.asJSON:
		return a.printJSON(all)
	case a.quiet:
		for _, x := range all.Asides {
			a.printf("%s\n", x.Name)
		}
		return nil
	}
	t := newTable("NAME", "NODE", "VOLUME", "SET ASIDE", "REASON", "DATA", "USED", "EXPIRES")
	for _, x := range all.Asides {
		since, expires := "", "never"
		if !x.At.IsZero() {
			since = a.ago(x.At) + " ago"
		}
		if !x.Expires.IsZero() {
			expires = "in " + a.in(x.Expires)
		}
		t.add(x.Name, x.Node.String(), cmp.Or(x.VolumeName, string(x.Volume)), since, x.Reason, size(x.Data), size(x.Used), expires)
	}
	if err := t.print(a.stdout); err != nil {
		return err
	}
	a.unheard(all)
	return nil
}

// unheard says what a list may lack.
func (a *app) unheard(all api.Asides) {
	if len(all.Unheard) > 0 {
		var names []string
		for _, n := range all.Unheard {
			names = append(names, n.String())
		}
		a.say("flockctl: not shown is what may be on %s: not heard of lately\n", strings.Join(names, ", "))
	}
}

func (a *app) removeAsides(ctx context.Context, c *cli.Context) error {
	yes := c.Bool("yes")
	if !yes && !a.terminal {
		return volume.Errorf(volume.CodeRefused, "nothing was removed, since nobody can be asked here").WithHint("--yes removes without asking")
	}
	in := bufio.NewReader(a.stdin)
	return a.each(c.Args().Slice(), func(ref string) (string, error) {
		if !yes {
			question := fmt.Sprintf("The set-aside copy %s will be destroyed and cannot be brought back.\nType what you gave as its name to remove it: ", ref)
			if err := a.typed(ctx, in, "set-aside copy", ref, question); err != nil {
				return "", err
			}
		}
		_, err := timed(a, ctx, func(ctx context.Context) (any, error) { return nil, a.client.RemoveAside(ctx, ref, c.String("node")) })
		return ref, err
	})
}
