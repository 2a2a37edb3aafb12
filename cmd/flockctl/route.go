package main

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

const routeHelp = `A route is a port that every node listens on and that leads to the container of one volume, wherever it
runs. It is written ` + volume.RouteForm + `: without PORT the container's port is the same, without MODE it is tcp.

tcp, tls         new connections wait while the volume moves; busy ones are in the way of a migration
http, redis, postgres  clients stay connected and wait; nothing that they ask is lost or done twice

Several routes of mode http, or of mode tls, can have one listen port if each has names of its own, as in
80:8080/http@a.example.org@*.b.example.org: it is for the clients that ask for one of them, by the Host
field of each request, or as the server that they want in TLS. *.b.example.org is for all names with one label
more that no other route has. One route on the port may have no names and is for all others; without
such a one others are refused. Of several on a port one is meant by PORT@NAME, or PORT@ without names.

Words may follow the mode, as in 5432/postgres/tls/auth:

cut              connections that are in the way of a migration are cut when their time is over; otherwise
                 it is given up and names them
proxy1, proxy2   of http, tcp and tls: the server is told by the PROXY protocol, of that version, which client
                 each connection is for; it has to expect that
tls              of postgres: clients that ask for TLS have it with the route, by a certificate of each node
auth             of postgres: their passwords are verified by the route, as a user of each node's choice
passtls          of postgres: clients that ask for TLS have it with the server, and are in the way

What tls and auth need is in files of each node: tls.crt, tls.key, auth-user and auth-password in the folder
/etc/flocker/routes/LISTEN. Routes can also be given as the option ports of a volume, or as labels of a
container that follows its volumes: flocker.proxy.NAME.listen, .port, .mode and .host.

A container reaches a route at its own node, wherever it runs: make it with --add-host NAME:host-gateway. With
the label flocker.links=NAME:LISTEN it is looked after, and listed here.`

func (a *app) routeCommand() *cli.Command {
	port := func(usage, what string, do func(ctx context.Context, route string) error) *cli.Command {
		return &cli.Command{
			Name: what, Usage: usage, ArgsUsage: "LISTEN[@NAME]",
			Action: a.action(1, 1, func(ctx context.Context, c *cli.Context) error {
				ref, err := volume.ParseRouteRef(c.Args().First())
				if err != nil {
					return usageError{err, c.Command.HelpName}
				}
				if err := do(ctx, ref.String()); err != nil {
					return err
				}
				a.printf("%s\n", ref)
				return nil
			}),
		}
	}
	remove := port("stop listening on a port; connections end", "remove", func(ctx context.Context, route string) error { return a.client.RemoveRoute(ctx, route) })
	remove.Aliases = []string{"rm"}
	pause := port("let nothing new reach the server of a route, wherever it goes", "pause", func(ctx context.Context, route string) error { return a.client.PauseRoute(ctx, route, true) })
	pause.Description = "Clients wait, and are refused in the words of their protocol when they have waited too long."
	return &cli.Command{
		Name: "route", Aliases: []string{"routes"}, Usage: "lead ports of all nodes to the container of a volume", Description: routeHelp,
		Subcommands: []*cli.Command{
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list them, and what their clients do", Description: routeHelp,
				Action: a.action(0, 0, a.listRoutes),
			},
			{
				Name: "add", Usage: "listen on a port for a volume", ArgsUsage: "VOLUME ROUTE", Description: routeHelp,
				Flags: []cli.Flag{&cli.StringSliceFlag{Name: "host", Usage: "only for clients that ask for this `NAME`; several with commas between, as @NAME in ROUTE"}},
				Action: a.action(2, 2, func(ctx context.Context, c *cli.Context) error {
					text := c.Args().Get(1)
					for _, hosts := range c.StringSlice("host") {
						text += "@" + strings.ReplaceAll(hosts, ",", "@")
					}
					r, err := a.client.AddRoute(ctx, c.Args().First(), api.AddRouteRequest{Route: text})
					switch {
					case err != nil:
						return err
					case a.asJSON:
						return a.printJSON(r)
					}
					a.printf("%s\n", r.Route)
					return nil
				}),
			},
			remove, pause,
			port("let a paused route go on", "resume", func(ctx context.Context, route string) error { return a.client.PauseRoute(ctx, route, false) }),
		},
	}
}

func (a *app) listRoutes(ctx context.Context, _ *cli.Context) error {
	all, err := a.client.Routes(ctx)
	switch {
	case err != nil:
		return err
	case a.asJSON:
		return a.printJSON(all)
	case a.quiet:
		for _, r := range all.Routes {
			a.printf("%s\n", ref(r.Route, all.Routes))
		}
		return nil
	}
	t := newTable("LISTEN", "PORT", "MODE", "HOST", "VOLUME", "OWNER", "STATE", "SESSIONS", "PARKED", "WAITING", "PINNED")
	for _, r := range all.Routes {
		owner, of := r.Owner.String(), r.Volume
		if r.Owner == (api.NodeRef{}) {
			owner = "-"
		}
		if r.Container != "" {
			of += " (" + r.Container + ")"
		}
		t.add(strconv.Itoa(r.Listen), strconv.Itoa(r.Port), r.How(), cmp.Or(r.Host, "-"), of, owner, string(r.State),
			strconv.Itoa(r.Sessions), strconv.Itoa(r.Parked), strconv.Itoa(r.Held), strconv.Itoa(len(r.Pinned)))
	}
	if err := t.print(a.stdout); err != nil {
		return err
	}
	for _, r := range all.Routes {
		a.printClients(ref(r.Route, all.Routes), "cannot be moved", r.Pinned)
		a.printClients(ref(r.Route, all.Routes), "keeps the pause from beginning", r.Busy)
		for _, text := range r.Problems {
			a.printf("%s: %s\n", ref(r.Route, all.Routes), text)
		}
		for _, l := range r.Linked {
			if l.Problem != "" {
				a.printf("%s: %s: %s\n", ref(r.Route, all.Routes), l.Node, l.Problem)
			} else {
				a.printf("%s: container %s on %s reaches it as %s\n", ref(r.Route, all.Routes), l.Container, l.Node, l.Name)
			}
		}
	}
	if len(all.Unheard) > 0 {
		var names []string
		for _, n := range all.Unheard {
			names = append(names, n.String())
		}
		a.say("flockctl: clients that came to %s are not counted: no answer\n", strings.Join(names, ", "))
	}
	return nil
}

// mostClients is how many are named of those that are in the way; all of them are in what is
// printed for programs.
const mostClients = 3

// printClients names those clients of a route that do something, the longest there first.
func (a *app) printClients(route, does string, all []api.RouteSession) {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(x, y api.RouteSession) int { return x.Since.Compare(y.Since) })
	for _, s := range all[:min(mostClients, len(all))] {
		a.printf("%s: %s on %s, connected %s ago, %s: %s\n", route, s.Client, s.Node, a.ago(s.Since), does, s.Why)
	}
	switch more := len(all) - mostClients; {
	case more == 1:
		a.printf("%s: so is it with 1 more\n", route)
	case more > 1:
		a.printf("%s: so is it with %d more\n", route, more)
	}
}

// ref is what a route is meant by in commands.
func ref(r volume.Route, all []api.Route) string {
	on := 0
	for _, other := range all {
		if other.Listen == r.Listen {
			on++
		}
	}
	key := r.Key()
	return volume.RouteRef{Listen: key.Listen, At: on > 1 || key.Name != "", Name: key.Name}.String()
}
