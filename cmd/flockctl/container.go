package main

import (
	"context"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
)

const containerHelp = `A container with the label flocker.enable=true follows its volumes: it is recorded where it runs and made
again, from the same image and with the same configuration, on the node that its volumes go to. One that
you stopped stays stopped. Swarm's own containers are left to Swarm.`

func (a *app) containerCommand() *cli.Command {
	return &cli.Command{
		Name: "container", Aliases: []string{"containers"}, Usage: "show the containers that follow their volumes", Description: containerHelp,
		Subcommands: []*cli.Command{
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list them, where they run and what cannot follow", Description: containerHelp,
				Action: a.action(0, 0, a.listContainers),
			},
			{
				Name: "forget", Usage: "do not start a container elsewhere whose node is lost", ArgsUsage: "CONTAINER",
				Description: "One that runs with the label is recorded again at once: remove it, or make it without the label.",
				Flags:       []cli.Flag{&cli.StringFlag{Name: "node", Usage: "the one of `NODE`, when several have that name"}},
				Action: a.action(1, 1, func(ctx context.Context, c *cli.Context) error {
					if err := a.client.ForgetContainer(ctx, c.Args().First(), c.String("node")); err != nil {
						return err
					}
					a.printf("%s\n", c.Args().First())
					return nil
				}),
			},
		},
	}
}

func (a *app) listContainers(ctx context.Context, _ *cli.Context) error {
	all, err := a.client.Containers(ctx)
	switch {
	case err != nil:
		return err
	case a.asJSON:
		return a.printJSON(all)
	case a.quiet:
		for _, c := range all {
			a.printf("%s\n", c.Name)
		}
		return nil
	}
	return a.printContainers(all)
}

func (a *app) printContainers(all []api.Container) error {
	t := newTable("CONTAINER", "NODE", "STATE", "IMAGE", "VOLUMES", "FOLLOWS")
	for _, c := range all {
		t.add(c.Name, c.Node.String(), c.State, c.Image, strings.Join(c.Volumes, ","), follows(c))
	}
	if err := t.print(a.stdout); err != nil {
		return err
	}
	for _, c := range all {
		for _, text := range slices.Concat(c.Obstacles, c.Notes, c.Problems) {
			a.printf("%s: %s\n", c.Name, text)
		}
	}
	return nil
}

// follows says in a few words what would become of a container if its node were lost
// now.
func follows(c api.Container) string {
	switch {
	case c.Blocked:
		return "no"
	case !c.Run:
		return "stays stopped"
	case len(c.LacksImage) > 0:
		var names []string
		for _, n := range c.LacksImage {
			names = append(names, n.String())
		}
		return "image not yet on " + strings.Join(names, ", ")
	case len(c.Problems) > 0:
		return "with problems"
	}
	return "yes"
}
