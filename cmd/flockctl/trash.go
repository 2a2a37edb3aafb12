package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

const trashHelp = `The trash is what was removed or set aside and can still be brought back: removed volumes, and copies
whose history went another way than their primary's (flockctl aside). They stay for trash-retention
and aside-retention (flockctl settings). One is given by its id or the start of it, a volume also by its name.`

// Kinds of what is in the trash.
const (
	trashVolume = "volume"
	trashCopy   = "copy"
)

// trashed is one thing that can be brought back.
type trashed struct {
	Kind  string      `json:"kind"`
	ID    string      `json:"id"`
	Name  string      `json:"name"` // of the volume that it is or comes from
	Node  api.NodeRef `json:"node"`
	Since time.Time   `json:"since,omitzero"`
	Why   string      `json:"why"`
	Used  int64       `json:"used"`
	Data  int64       `json:"data"`
	Until time.Time   `json:"until,omitzero"` // it is destroyed then; zero: never
}

func (x trashed) String() string { return fmt.Sprintf("%s %s (%s)", x.Kind, x.ID, x.Name) }

// trash is all of it, oldest first.
func (a *app) trash(ctx context.Context) ([]trashed, api.Asides, error) {
	vs, err := a.client.Volumes(ctx, api.VolumesQuery{Trash: true})
	if err != nil {
		return nil, api.Asides{}, err
	}
	asides, err := a.client.Asides(ctx)
	if err != nil {
		return nil, api.Asides{}, err
	}
	out := []trashed{}
	for _, v := range vs {
		out = append(out, trashed{Kind: trashVolume, ID: string(v.ID), Name: v.Name, Node: v.Primary, Since: v.Deleted,
			Why: "it was removed", Used: v.Used, Data: v.Data, Until: v.PurgeAfter})
	}
	for _, x := range asides.Asides {
		out = append(out, trashed{Kind: trashCopy, ID: x.Name, Name: cmp.Or(x.VolumeName, string(x.Volume)), Node: x.Node, Since: x.At,
			Why: cmp.Or(x.Reason, "it was set aside"), Used: x.Used, Data: x.Data, Until: x.Expires})
	}
	slices.SortStableFunc(out, func(x, y trashed) int { return x.Since.Compare(y.Since) })
	return out, asides, nil
}

// findTrashed is the one thing that ref means, on one node only unless that is "": by its id, by
// the name of a volume, by the start of an id.
func findTrashed(all []trashed, ref, node string) (trashed, error) {
	rules := []func(trashed) bool{
		func(x trashed) bool { return x.ID == ref },
		func(x trashed) bool { return x.Kind == trashVolume && x.Name == ref },
		func(x trashed) bool { return len(ref) >= api.MinPrefix && strings.HasPrefix(x.ID, ref) },
	}
	if ref == "" {
		return trashed{}, volume.Errorf(volume.CodeInvalid, "nothing is named").WithHint("flockctl trash list shows what there is")
	}
	for _, rule := range rules {
		var found []trashed
		for _, x := range all {
			if rule(x) && (node == "" || x.Node.Name == node || string(x.Node.ID) == node) {
				found = append(found, x)
			}
		}
		if len(found) == 1 {
			return found[0], nil
		}
		if len(found) > 1 {
			var may []string
			for _, x := range found {
				may = append(may, fmt.Sprintf("%s on %s", x, x.Node))
			}
			return trashed{}, volume.Errorf(volume.CodeConflict, "%q is ambiguous: it may be %s", ref, strings.Join(may, ", ")).
				WithHint("give more of its id, or its node with --node")
		}
	}
	return trashed{}, volume.Errorf(volume.CodeNotFound, "no %q in the trash", ref).WithHint("flockctl trash list shows what there is")
}

func (a *app) trashCommand() *cli.Command {
	node := &cli.StringFlag{Name: "node", Usage: "the one on `NODE`, when several nodes have one of that id"}
	return &cli.Command{
		Name: "trash", Usage: "list, restore and remove what was removed or set aside", Description: trashHelp,
		Subcommands: []*cli.Command{
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list removed volumes and set-aside copies, oldest first", Description: trashHelp,
				Action: a.action(0, 0, a.listTrash),
			},
			{
				Name: "restore", Usage: "bring something back and print its name", ArgsUsage: "TRASHED [NEWNAME]",
				Description: "A volume comes back as it was, a copy as a volume of its own with the node that has it as its primary; each under\n" +
					"the name that it had, unless another one is given.",
				Flags: []cli.Flag{node}, Action: a.action(1, 2, a.restoreTrash),
			},
			{
				Name: "remove", Aliases: []string{"rm"}, Usage: "destroy what is in the trash, for good", ArgsUsage: "TRASHED...",
				Flags:  []cli.Flag{node, &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}},
				Action: a.untimed(1, -1, a.removeTrash),
			},
		},
	}
}

func (a *app) listTrash(ctx context.Context, _ *cli.Context) error {
	all, asides, err := a.trash(ctx)
	switch {
	case err != nil:
		return err
	case a.asJSON:
		return a.printJSON(all)
	case a.quiet:
		for _, x := range all {
			a.printf("%s\n", x.ID)
		}
		return nil
	}
	t := newTable("KIND", "NAME", "ID", "NODE", "SINCE", "WHY", "DATA", "USED", "KEPT")
	var used int64
	for _, x := range all {
		since, kept := "", "until removed"
		if !x.Since.IsZero() {
			since = a.ago(x.Since) + " ago"
		}
		if !x.Until.IsZero() {
			kept = "for " + a.in(x.Until)
		}
		used += x.Used
		t.add(x.Kind, x.Name, x.ID, x.Node.String(), since, x.Why, size(x.Data), size(x.Used), kept)
	}
	if err := t.print(a.stdout); err != nil {
		return err
	}
	if len(all) > 0 {
		a.printf("%s, %s in all\n", plural(len(all), "thing"), size(used))
	}
	a.unheard(asides)
	return nil
}

func (a *app) restoreTrash(ctx context.Context, c *cli.Context) error {
	all, _, err := a.trash(ctx)
	if err != nil {
		return err
	}
	x, err := findTrashed(all, c.Args().First(), c.String("node"))
	if err != nil {
		return err
	}
	name := c.Args().Get(1)
	if c.NArg() == 2 && name == "" {
		return usage(c, "a volume needs a name")
	}
	if name == "" && x.Kind == trashCopy && strings.HasPrefix(x.ID, x.Name) {
		return volume.Errorf(volume.CodeInvalid, "nobody knows any more what the volume of copy %s was called", x.ID).WithHint("give a name after it")
	}
	var v api.Volume
	if x.Kind == trashVolume {
		v, err = a.client.UndeleteVolume(ctx, x.ID, api.UndeleteRequest{Name: name})
	} else {
		v, err = a.client.RestoreAside(ctx, x.ID, api.RestoreAsideRequest{Name: cmp.Or(name, x.Name), Node: string(x.Node.ID)})
	}
	if err != nil {
		return err
	}
	return a.made(v)
}

func (a *app) removeTrash(ctx context.Context, c *cli.Context) error {
	yes := c.Bool("yes")
	if !yes && !a.terminal {
		return volume.Errorf(volume.CodeRefused, "nothing was removed, since nobody can be asked here").WithHint("--yes removes without asking")
	}
	in := bufio.NewReader(a.stdin)
	return a.each(c.Args().Slice(), func(ref string) (string, error) {
		all, err := timed(a, ctx, func(ctx context.Context) ([]trashed, error) {
			all, _, err := a.trash(ctx)
			return all, err
		})
		if err != nil {
			return "", err
		}
		x, err := findTrashed(all, ref, c.String("node"))
		if err != nil {
			return "", err
		}
		if !yes {
			question := fmt.Sprintf("The %s, %s, will be destroyed and cannot be brought back.\nType what you gave as its name to remove it: ", x, size(x.Data))
			if err := a.typed(ctx, in, x.Kind, ref, question); err != nil {
				return "", err
			}
		}
		_, err = timed(a, ctx, func(ctx context.Context) (any, error) {
			if x.Kind == trashVolume {
				return nil, a.client.PurgeVolume(ctx, x.ID)
			}
			return nil, a.client.RemoveAside(ctx, x.ID, string(x.Node.ID))
		})
		return x.ID, err
	})
}
