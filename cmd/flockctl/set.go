package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// volumeSet changes a live volume.
func (a *app) volumeSet() *cli.Command {
	var can []string
	for _, name := range volume.ChangeableOptions() {
		value, about, _ := volume.OptionHelp(name)
		if name == "size" {
			value += ", or " + volume.NoSize
		}
		can = append(can, fmt.Sprintf("%-10s %s; %s", name, about, value))
	}
	return &cli.Command{
		Name: "set", Aliases: []string{"update"}, Usage: "change options of a live volume", ArgsUsage: "VOLUME OPTION=VALUE...",
		Description: "What is not named stays as it is. These options can change:\n\n   " + strings.Join(can, "\n   "),
		Action: a.action(2, -1, func(ctx context.Context, c *cli.Context) error {
			opts, err := keyValues(c, c.Args().Tail())
			if err != nil {
				return err
			}
			rep, err := a.client.UpdateVolume(ctx, c.Args().First(), api.UpdateVolumeRequest{Options: opts})
			switch {
			case err != nil:
				return err
			case a.asJSON:
				return a.printJSON(rep)
			case a.quiet:
				a.printf("%s\n", rep.Volume.ID)
				return nil
			case len(rep.Changes) == 0:
				a.printf("%s is so already\n", rep.Volume.Name)
			}
			for _, ch := range rep.Changes {
				a.printf("%s: %s was %s, is %s\n", rep.Volume.Name, ch.Option, cmp.Or(ch.From, "not set"), cmp.Or(ch.To, "not set"))
			}
			return nil
		}),
	}
}
