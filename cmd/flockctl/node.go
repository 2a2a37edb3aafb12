package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
)

func (a *app) nodeCommand() *cli.Command {
	return &cli.Command{
		Name:    "node",
		Aliases: []string{"nodes"},
		Usage:   "list, inspect, label, drain and remove nodes",
		Subcommands: []*cli.Command{
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list the nodes",
				Action: a.action(0, 0, func(ctx context.Context, c *cli.Context) error {
					ns, err := a.client.Nodes(ctx)
					if err != nil {
						return err
					}
					slices.SortFunc(ns, func(x, y api.Node) int { return strings.Compare(x.Name, y.Name) })
					return a.printNodes(ns)
				}),
			},
			{
				Name: "inspect", Usage: "show all about nodes", ArgsUsage: "NODE...",
				Action: a.action(1, -1, func(ctx context.Context, c *cli.Context) error {
					return inspect(a, ctx, c.Args().Slice(), a.client.Node, a.printNode, func(n api.Node) string { return string(n.ID) })
				}),
			},
			{
				Name: "label", Usage: "change a node's zone and labels", ArgsUsage: "NODE [KEY=VALUE...] [KEY-...]",
				Description: "KEY=VALUE sets a label, KEY- drops it.",
				Flags:       []cli.Flag{&cli.StringFlag{Name: "zone", Usage: "move the node to failure domain `ZONE`"}},
				Action: a.action(1, -1, func(ctx context.Context, c *cli.Context) error {
					req, err := labelRequest(c)
					if err != nil {
						return err
					}
					n, err := a.client.LabelNode(ctx, c.Args().First(), req)
					switch {
					case err != nil:
						return err
					case a.asJSON:
						return a.printJSON(n)
					case a.quiet:
						a.printf("%s\n", n.ID)
					default:
						a.printf("%s\n", n.Name)
					}
					return nil
				}),
			},
			a.nodeDrain(), a.nodeUndrain(), a.nodeRemove(),
		},
	}
}

func labelRequest(c *cli.Context) (api.LabelRequest, error) {
	var req api.LabelRequest
	if c.IsSet("zone") {
		zone := c.String("zone")
		req.Zone = &zone
	}
	for _, arg := range c.Args().Tail() {
		key, value, set := strings.Cut(arg, "=")
		dropped, drop := strings.CutSuffix(arg, "-")
		switch {
		case set && key != "":
			if req.Set == nil {
				req.Set = map[string]string{}
			}
			req.Set[key] = value
		case !set && drop && dropped != "":
			req.Drop = append(req.Drop, dropped)
		default:
			return req, usage(c, "%q is neither KEY=VALUE nor KEY-", arg)
		}
	}
	if req.Zone == nil && req.Set == nil && req.Drop == nil {
		return req, usage(c, "nothing to change: give --zone, KEY=VALUE or KEY-")
	}
	return req, nil
}

func (a *app) printNodes(ns []api.Node) error {
	if a.asJSON {
		return a.printJSON(ns)
	}
	if a.quiet {
		for _, n := range ns {
			a.printf("%s\n", n.ID)
		}
		return nil
	}
	t := newTable("NAME", "ID", "ROLE", "ZONE", "HEALTH", "ADDRESS", "VERSION", "POOL", "FREE", "POOL HEALTH", "PRIMARIES", "REPLICAS", "SEEN")
	for _, n := range ns {
		health := string(n.Health)
		if n.Availability != "active" {
			health += ", " + availability(n)
		}
		free := ""
		if n.Pool.Size > 0 {
			free = fmt.Sprintf("%s of %s", size(n.Pool.Free), size(n.Pool.Size))
		}
		t.add(n.Name, n.ID.Short(), role(n), string(n.Zone), health, n.Addr, n.Version,
			n.Pool.Name, free, n.Pool.Health, fmt.Sprint(n.Primaries), fmt.Sprint(n.Replicas), a.ago(n.LastSeen))
	}
	return t.print(a.stdout)
}

// availability is the operator's wish for a node, in a word or two.
func availability(n api.Node) string {
	if n.KeepReplicas {
		return n.Availability + ", keeps its replicas"
	}
	return n.Availability
}

// leaseWords is a node's right to write.
func leaseWords(l api.Lease) string {
	words := "not needed, failover is manual"
	switch l.State {
	case "held":
		words = fmt.Sprintf("held (number %d), runs for %.3g s more", l.No, l.LeftSeconds)
	case "":
	default:
		words = because(fmt.Sprintf("%s (number %d)", l.State, l.No), l.Reason)
		if l.WaitSeconds != nil {
			words += fmt.Sprintf("; taken for lost in %.3g s", *l.WaitSeconds)
		}
	}
	safety := string(l.Safety)
	if safety == "" {
		safety = "no fencer runs"
	}
	return words + "; fencing: " + safety
}

// role is a node's part in the control plane, in a word or two.
func role(n api.Node) string {
	switch {
	case n.Witness && n.Role == api.RoleLeader:
		return "leader, witness"
	case n.Witness:
		return "witness"
	}
	return string(n.Role)
}

func (a *app) printNode(n api.Node) {
	var f facts
	f.add("Name", "%s", n.Name)
	f.add("ID", "%s", n.ID)
	f.add("Role", "%s", role(n))
	f.add("Zone", "%s", n.Zone)
	f.add("Health", "%s", because(string(n.Health), n.Reason))
	f.add("Availability", "%s", availability(n))
	f.add("Address", "%s", n.Addr)
	f.add("Version", "%s", n.Version)
	if n.Pool.Name == "" {
		f.add("Pool", "none")
	} else {
		f.add("Pool", "%s, %s, %s free of %s", n.Pool.Name, n.Pool.Health, size(n.Pool.Free), size(n.Pool.Size))
	}
	if l := n.Lease; l != nil {
		f.add("Lease", "%s", leaseWords(*l))
	}
	f.add("Volumes", "primary of %d, replica of %d", n.Primaries, n.Replicas)
	for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
		f.add("Label", "%s=%s", k, n.Labels[k])
	}
	f.add("Joined", "%s", a.moment(n.Joined))
	if n.LastSeen.IsZero() {
		f.add("Last seen", "never")
	} else {
		f.add("Last seen", "%s", a.moment(n.LastSeen))
	}
	f.print(a.stdout)
	a.list("Problems", n.Problems)
}

// because is a word and its reason, if there is one.
func because(word, reason string) string {
	if reason == "" {
		return word
	}
	return word + ": " + reason
}

// inspect shows things one after the other. It goes on after one that cannot be
// shown and fails at the end.
func inspect[T any](a *app, ctx context.Context, refs []string, get func(context.Context, string) (T, error), print func(T), id func(T) string) error {
	found := []T{}
	var failed error
	for _, ref := range refs {
		v, err := get(ctx, ref)
		if err != nil {
			a.printError(err)
			if failed == nil {
				failed = told{err}
			}
			continue
		}
		found = append(found, v)
	}
	if a.asJSON {
		if err := a.printJSON(found); err != nil {
			return err
		}
		return failed
	}
	for i, v := range found {
		switch {
		case a.quiet:
			a.printf("%s\n", id(v))
		default:
			if i > 0 {
				a.printf("\n")
			}
			print(v)
		}
	}
	return failed
}
