package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/volume"
)

func (a *app) cloneCommand() *cli.Command {
	return &cli.Command{
		Name: "clone", Usage: "make a volume of another one's data, at once, and print its name", ArgsUsage: "VOLUME[@SNAPSHOT] NEW",
		Description: "The clone is a volume of its own, to be written, moved and removed like any other; it has the options of its\n" +
			"original, but for ports. Without @SNAPSHOT it is of now. It is made where a copy of the original is, and takes\n" +
			"no room there but for what is written; its replicas get what they lack. Whichever of the two is removed, the\n" +
			"other stays. 'docker volume create -d flocker -o from=VOLUME[@SNAPSHOT] NEW' does the same.",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "option", Aliases: []string{"o"}, Usage: "`KEY=VALUE` as in flockctl volume create, where it is to differ; repeat it for several"},
			&cli.StringFlag{Name: "node", Usage: "make it on `NODE`, which has a copy of the original"},
		},
		Action: a.action(2, 2, func(ctx context.Context, c *cli.Context) error {
			opts, err := keyValues(c, c.StringSlice("option"))
			if err != nil {
				return err
			}
			if _, twice := opts[volume.FromOption]; twice {
				return usage(c, "what to clone is given twice")
			}
			opts[volume.FromOption] = c.Args().First()
			return a.create(ctx, c, c.Args().Get(1), opts)
		}),
	}
}
