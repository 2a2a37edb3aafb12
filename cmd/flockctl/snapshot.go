package main

import (
	"bufio"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

func (a *app) snapshotCommand() *cli.Command {
	return &cli.Command{
		Name: "snapshot", Aliases: []string{"snap", "snapshots"}, Usage: "take, list, hold, remove and prune snapshots of volumes",
		Subcommands: []*cli.Command{a.snapshotCreate(), a.snapshotList(), a.snapshotInspect(), a.snapshotHold(), a.snapshotRelease(), a.snapshotRemove(), a.snapshotPrune()},
	}
}

func (a *app) snapshotCreate() *cli.Command {
	return &cli.Command{
		Name: "create", Usage: "take a snapshot of volumes, all at one moment, and print its name", ArgsUsage: "VOLUME[@NAME]...",
		Description: "Without a name it is called manual-TIME. Several volumes have to have the same primary; of all of them a\n" +
			"snapshot is taken, or of none. Snapshots reach the replicas with what is written next, and stay until\n" +
			"somebody removes them.\n\n" +
			"Containers that use one of the volumes and have the label flocker.pre-snapshot get ready first; if one\n" +
			"fails, or takes longer than 30s, no snapshot is taken. What their flocker.post-snapshot says is done after\n" +
			"it in any case.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "call the snapshot `NAME`"},
			&cli.BoolFlag{Name: "no-hooks", Usage: "take it as it is, without what containers do before and after"},
		},
		Action: a.action(1, -1, func(ctx context.Context, c *cli.Context) error {
			req := api.SnapshotRequest{Name: c.String("name"), NoHooks: c.Bool("no-hooks")}
			for _, arg := range c.Args().Slice() {
				ref, name, at := strings.Cut(arg, "@")
				if at && name == "" || ref == "" {
					return usage(c, "%q is not VOLUME or VOLUME@NAME", arg)
				}
				if at && req.Name != "" && req.Name != name {
					return usage(c, "one snapshot has one name: %s or %s", req.Name, name)
				}
				if at {
					req.Name = name
				}
				req.Volumes = append(req.Volumes, ref)
			}
			if req.Name == "" {
				req.Name = "manual-" + a.now().UTC().Format("20060102T150405Z")
			}
			stop := a.takingSnapshot(ctx, strings.Join(req.Volumes, ", ")+"@"+req.Name, req.NoHooks)
			rep, err := a.client.TakeSnapshot(ctx, req)
			stop()
			if err != nil {
				return err
			}
			for _, text := range rep.Warnings {
				a.say("flockctl: %s; it is tried again\n", text)
			}
			if a.asJSON {
				return a.printJSON(struct {
					api.SnapshotRequest
					api.SnapshotReply
				}{req, rep})
			}
			for _, ref := range req.Volumes {
				a.printf("%s@%s\n", ref, req.Name)
			}
			return nil
		}),
	}
}

// takingSnapshot shows for how long one is being taken: containers may get ready for it first.
func (a *app) takingSnapshot(ctx context.Context, what string, noHooks bool) (stop func()) {
	if !noHooks {
		what += ", for which containers with flocker.pre-snapshot get ready"
	}
	return a.waiting(ctx, "taking "+what)
}

func (a *app) snapshotList() *cli.Command {
	return &cli.Command{
		Name: "list", Aliases: []string{"ls"}, Usage: "list the snapshots of volumes, oldest first", ArgsUsage: "VOLUME...",
		Description: "USED is what removing one snapshot alone would free, WRITTEN what came since the one before it.\n" +
			"A held one cannot be removed: by 'flockctl snapshot hold', with its note, or by a hold of ZFS or a clone.\n" +
			"PREPARED names the containers that got ready for it by their label flocker.pre-snapshot, whatever that says.\n" +
			"To all others that wrote to the volume, and where there is no name, it is what a loss of power would leave.",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "list those of replication, too"}},
		Action: a.action(1, -1, func(ctx context.Context, c *cli.Context) error {
			type of struct {
				Volume string `json:"volume"`
				api.Snapshot
			}
			all, err := each(a, c.Args().Slice(), func(ref string) ([]of, error) {
				list, err := a.client.Snapshots(ctx, ref)
				var out []of
				for _, s := range list {
					if c.Bool("all") || s.Kind != "engine" {
						out = append(out, of{ref, s})
					}
				}
				return out, err
			})
			list := slices.Concat(all...)
			switch {
			case a.asJSON:
				return firstError(a.printJSON(append([]of{}, list...)), err)
			case a.quiet:
				for _, s := range list {
					a.printf("%s@%s\n", s.Volume, s.Name)
				}
				return err
			}
			t := newTable("VOLUME", "NAME", "KIND", "TAKEN", "USED", "REFERENCED", "WRITTEN", "PREPARED", "HELD")
			for _, s := range list {
				t.add(s.Volume, s.Name, kindOf(s.Snapshot), a.ago(s.Taken)+" ago", size(s.Used), size(s.Referenced), size(s.Written), strings.Join(s.Prepared, ","), heldBy(s.Snapshot))
			}
			return firstError(t.print(a.stdout), err)
		}),
	}
}

// kindOf a snapshot, with the rule of a scheduled one.
func kindOf(s api.Snapshot) string {
	if s.Rule > 0 {
		return fmt.Sprintf("%s %s", s.Kind, volume.FormatPeriod(s.Rule))
	}
	return s.Kind
}

// heldBy says in a word or a few why a snapshot cannot be removed.
func heldBy(s api.Snapshot) string {
	switch {
	case s.Hold != nil && s.Hold.Note != "":
		return plain(s.Hold.Note)
	case s.Hold != nil:
		return "yes"
	case s.Held:
		return "by ZFS"
	}
	return ""
}

// oneSnapshot takes VOLUME@NAME apart.
func oneSnapshot(c *cli.Context, arg string) (ref, name string, err error) {
	ref, name, _ = strings.Cut(arg, "@")
	if ref == "" || name == "" {
		return "", "", usage(c, "%q is not VOLUME@NAME", arg)
	}
	return ref, name, nil
}

func (a *app) snapshotInspect() *cli.Command {
	return &cli.Command{
		Name: "inspect", Usage: "show all there is to know of a snapshot, and which nodes have it", ArgsUsage: "VOLUME@NAME",
		Action: a.action(1, 1, func(ctx context.Context, c *cli.Context) error {
			ref, name, err := oneSnapshot(c, c.Args().First())
			if err != nil {
				return err
			}
			s, err := a.client.Snapshot(ctx, ref, name)
			switch {
			case err != nil:
				return err
			case a.asJSON:
				return a.printJSON(s)
			case a.quiet:
				a.printf("%d\n", s.GUID)
				return nil
			}
			var f facts
			f.add("Snapshot", "%s@%s", s.Volume, s.Name)
			f.add("GUID", "%d", s.GUID)
			f.add("Taken", "%s", a.moment(s.Taken))
			f.add("By", "%s", madeBy(s.Snapshot))
			f.add("Shows", "%s", size(s.Referenced))
			f.add("Written", "%s since the one before", size(s.Written))
			f.add("Frees", "%s, if it alone were removed", size(s.Used))
			if len(s.Prepared) > 0 {
				f.add("Prepared", "by %s", strings.Join(s.Prepared, ", "))
			}
			if h := s.Hold; h != nil {
				f.add("Held", "%s, through %s", a.moment(h.At), h.Node)
				if h.Note != "" {
					f.add("Note", "%s", plain(h.Note))
				}
			}
			f.print(a.stdout)
			a.printf("\n")
			t := newTable("NODE", "ROLE", "HAS IT", "FREES", "ZFS HOLDS", "CLONES")
			var unknown []string
			for _, x := range s.Copies {
				has, frees, holds := "no", "", ""
				switch {
				case x.Error != "":
					has = "?"
					unknown = append(unknown, fmt.Sprintf("%s: %s", x.Node, x.Error))
				case x.Here:
					has, frees = "yes", size(x.Used)
				}
				if x.Holds > 0 {
					holds = fmt.Sprint(x.Holds)
				}
				t.add(x.Node.String(), string(x.Role), has, frees, holds, strings.Join(x.Clones, ","))
			}
			err = t.print(a.stdout)
			a.list("Not known", unknown)
			return err
		}),
	}
}

// madeBy says who takes, and who destroys, snapshots of its kind.
func madeBy(s api.Snapshot) string {
	switch s.Kind {
	case "engine":
		return "replication, which destroys it when no replica needs it"
	case "scheduled":
		return fmt.Sprintf("the policy's rule for every %s", volume.FormatPeriod(s.Rule))
	}
	return "somebody; it stays until somebody removes it"
}

func (a *app) snapshotHold() *cli.Command {
	return &cli.Command{
		Name: "hold", Usage: "keep snapshots on all nodes, whatever the policy and people say", ArgsUsage: "VOLUME@NAME...",
		Description: "A held snapshot is not pruned and cannot be removed, on any node and whichever is the primary, until it is\n" +
			"released. It goes with its volume: the trash is emptied all the same.",
		Flags: []cli.Flag{&cli.StringFlag{Name: "note", Usage: "a `TEXT` for whoever wants it removed"}},
		Action: a.action(1, -1, func(ctx context.Context, c *cli.Context) error {
			return a.eachSnapshot(c, func(ref, name string) error {
				return a.client.HoldSnapshot(ctx, ref, name, api.HoldRequest{Note: c.String("note")})
			})
		}),
	}
}

func (a *app) snapshotRelease() *cli.Command {
	return &cli.Command{
		Name: "release", Usage: "let go of snapshots that are held", ArgsUsage: "VOLUME@NAME...",
		Description: "What the policy does not keep is destroyed soon after.",
		Action: a.action(1, -1, func(ctx context.Context, c *cli.Context) error {
			return a.eachSnapshot(c, func(ref, name string) error { return a.client.ReleaseSnapshot(ctx, ref, name) })
		}),
	}
}

// eachSnapshot does something with each VOLUME@NAME and prints it.
func (a *app) eachSnapshot(c *cli.Context, do func(ref, name string) error) error {
	for _, arg := range c.Args().Slice() {
		if _, _, err := oneSnapshot(c, arg); err != nil {
			return err
		}
	}
	return a.each(c.Args().Slice(), func(arg string) (string, error) {
		ref, name, _ := strings.Cut(arg, "@")
		return arg, do(ref, name)
	})
}

func (a *app) snapshotRemove() *cli.Command {
	return &cli.Command{
		Name: "remove", Aliases: []string{"rm"}, Usage: "destroy snapshots on all nodes, for good", ArgsUsage: "VOLUME@NAME...",
		Description: "A snapshot does not go to the trash. Those of replication cannot be removed.",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}},
		Action: a.untimed(1, -1, func(ctx context.Context, c *cli.Context) error {
			for _, arg := range c.Args().Slice() {
				if ref, name, _ := strings.Cut(arg, "@"); ref == "" || name == "" {
					return usage(c, "%q is not VOLUME@NAME", arg)
				}
			}
			yes := c.Bool("yes")
			if !yes && !a.terminal {
				return volume.Errorf(volume.CodeRefused, "nothing was removed, since nobody can be asked here").WithHint("--yes removes without asking")
			}
			in := bufio.NewReader(a.stdin)
			return a.each(c.Args().Slice(), func(arg string) (string, error) {
				if !yes {
					err := a.typed(ctx, in, "snapshot", arg, fmt.Sprintf("Snapshot %s will be destroyed on all nodes and cannot be brought back.\nType its name to remove it: ", arg))
					if err != nil {
						return "", err
					}
				}
				ref, name, _ := strings.Cut(arg, "@")
				_, err := timed(a, ctx, func(ctx context.Context) (any, error) { return nil, a.client.RemoveSnapshot(ctx, ref, name) })
				return arg, err
			})
		}),
	}
}

func (a *app) snapshotPrune() *cli.Command {
	return &cli.Command{
		Name: "prune", Usage: "destroy what a volume's snapshot policy does not keep, now", ArgsUsage: "VOLUME",
		Description: "flockd does so by itself for the rules of the policy; snapshots of rules that the policy no longer has\n" +
			"go only so. Those that people took stay. Try it with --dry-run first.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "only show what would be destroyed"},
			&cli.StringFlag{Name: "policy", Usage: "with --dry-run: try `POLICY` like 1h:24,1d:7 instead of the volume's own"},
		},
		Action: a.action(1, 1, func(ctx context.Context, c *cli.Context) error {
			ref, req := c.Args().First(), api.PruneRequest{DryRun: c.Bool("dry-run"), Policy: c.String("policy")}
			if req.Policy != "" && !req.DryRun {
				return usage(c, "--policy is for --dry-run; flockctl volume set %s snapshots=%s makes it the volume's", ref, req.Policy)
			}
			list, err := a.client.PruneSnapshots(ctx, ref, req)
			switch {
			case err != nil:
				return err
			case a.asJSON:
				return a.printJSON(list)
			case a.quiet:
				for _, s := range list {
					a.printf("%s@%s\n", ref, s.Name)
				}
				return nil
			}
			word := "destroyed"
			if req.DryRun {
				word = "would be destroyed"
			}
			for _, s := range list {
				a.printf("%s@%s, taken %s ago\n", ref, s.Name, a.ago(s.Taken))
			}
			a.printf("%s %s\n", plural(len(list), "snapshot"), word)
			return nil
		}),
	}
}
