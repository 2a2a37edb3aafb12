package main

import (
	"context"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
)

const settingsHelp = `Settings hold for the whole cluster. Keys:

   trash-retention        how long a removed volume can be brought back
   aside-retention        how long a copy stays that was set aside (flockctl aside list)
   replica-replace-after  how long a replica's node may be lost before another node gets a copy
   hold                   how long a request of a route's client waits while its volume moves: 2s to 90s
   hold-service           how many clients of one route may wait at a node: 10 to 100000
   hold-node              how many clients of all routes may wait at a node: 10 to 100000
   failover               automatic: volumes of a lost node are taken over by themselves; manual: they wait
   lease                  how soon a silent node is taken for lost: default, fast or lab ('flockctl settings' has the times)
   fencing                hard: only nodes that can reset themselves are taken for lost by time alone;
                          software-only: others too, after half as long again
   rebalance              off, or on: copies of volumes move by themselves, in a calm cluster, to even out the nodes
                          (flockctl rebalance --dry-run says what would be moved)
   bandwidth:ZONE:ZONE    most bytes a second between two zones, either way; none for no limit

Times are periods like 30s, 30m, 12h or 30d. A bandwidth is a number of bytes with k, M or G (powers of
1024) and holds for each sending node: all its streams to that zone share it, and two nodes may send
twice as much. A zone may stand on both sides. A limit for a zone that no node is in waits for one.`

func (a *app) settingsCommand() *cli.Command {
	return &cli.Command{
		Name: "settings", Aliases: []string{"setting"}, Usage: "show and change the settings of the cluster",
		Description: settingsHelp,
		Subcommands: []*cli.Command{
			{
				Name: "list", Aliases: []string{"ls", "show"}, Usage: "show all settings, as flockctl settings does",
				Action: a.action(0, 0, a.listSettings),
			},
			{
				Name: "set", Usage: "change settings", ArgsUsage: "SETTING=VALUE...", Description: settingsHelp,
				Action: a.action(1, -1, func(ctx context.Context, c *cli.Context) error {
					set, err := keyValues(c, c.Args().Slice())
					if err != nil {
						return err
					}
					return a.changeSettings(ctx, api.SettingsRequest{Set: set})
				}),
			},
			{
				Name: "reset", Usage: "give settings their defaults again", ArgsUsage: "SETTING...", Description: settingsHelp,
				Action: a.action(1, -1, func(ctx context.Context, c *cli.Context) error {
					return a.changeSettings(ctx, api.SettingsRequest{Reset: c.Args().Slice()})
				}),
			},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return unknownCommand(c)
			}
			return a.action(0, 0, a.listSettings)(c)
		},
	}
}

// keyValues reads arguments of the form KEY=VALUE, each key once.
func keyValues(c *cli.Context, args []string) (map[string]string, error) {
	out := map[string]string{}
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok || key == "" {
			return nil, usage(c, "%q is not KEY=VALUE", arg)
		}
		if _, twice := out[key]; twice {
			return nil, usage(c, "%s is given twice", key)
		}
		out[key] = value
	}
	return out, nil
}

func (a *app) listSettings(ctx context.Context, _ *cli.Context) error {
	s, err := a.client.Settings(ctx)
	if err != nil {
		return err
	}
	return a.printSettings(s)
}

func (a *app) changeSettings(ctx context.Context, req api.SettingsRequest) error {
	s, err := a.client.ChangeSettings(ctx, req)
	if err != nil {
		return err
	}
	return a.printSettings(s)
}

func (a *app) printSettings(s api.Settings) error {
	switch {
	case a.asJSON:
		return a.printJSON(s)
	case a.quiet:
		for _, x := range s.Settings {
			a.printf("%s=%s\n", x.Key, x.Value)
		}
	default:
		t := newTable("SETTING", "VALUE", "SET BY", "ABOUT")
		for _, x := range s.Settings {
			by := "operator"
			if x.Default {
				by = "default"
			}
			t.add(x.Key, x.Value, by, x.About)
		}
		if err := t.print(a.stdout); err != nil {
			return err
		}
	}
	for _, w := range s.Warnings {
		a.say("flockctl: %s\n", w)
	}
	return nil
}
