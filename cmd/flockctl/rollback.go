package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

const rollbackHelp = `Has VOLUME go on from its SNAPSHOT. The containers that use it and follow it (label flocker.enable=true) are
stopped, with the clients of its routes waiting, and started again on it as it was then.

Nothing is destroyed: all that was written after the snapshot, and the snapshots that were taken after it, are
kept in a set-aside copy, whose name is printed. 'flockctl aside restore COPY NEWNAME' makes a volume of it; after
aside-retention (flockctl settings) it goes by itself. The replicas set aside what they have of it, too, and need
only what is written from then on.

It is refused, before anything is stopped, when somebody uses the volume who does not follow it. Until the moment at
which the cluster has agreed to it, it is forgotten when something fails, and the containers go on with what they
had; from then on the volume goes back wherever its primary is. It goes on without the one who has asked for it.`

func (a *app) rollbackCommand() *cli.Command {
	return &cli.Command{
		Name: "rollback", Usage: "have a volume go on from one of its snapshots", ArgsUsage: "VOLUME@NAME", Description: rollbackHelp,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "only say what would be undone"},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"},
			&cli.BoolFlag{Name: "detach", Usage: "do not wait"},
		},
		Action: a.untimed(1, 1, func(ctx context.Context, c *cli.Context) error {
			arg := c.Args().First()
			ref, name, _ := strings.Cut(arg, "@")
			if ref == "" || name == "" {
				return usage(c, "%q is not VOLUME@NAME", arg)
			}
			begin := func(req api.RollbackRequest) (api.Rollback, error) {
				return timed(a, ctx, func(ctx context.Context) (api.Rollback, error) { return a.client.RollBack(ctx, ref, req) })
			}
			yes := c.Bool("yes")
			if c.Bool("dry-run") || !yes {
				plan, err := begin(api.RollbackRequest{Snapshot: name, DryRun: true})
				switch {
				case err != nil:
					return err
				case c.Bool("dry-run"):
					return a.printRollback(plan)
				case !a.terminal:
					return volume.Errorf(volume.CodeRefused, "nothing was rolled back, since nobody can be asked here").WithHint("--yes rolls back without asking")
				}
				a.say("%s", a.rollbackPlan(plan))
				if err := a.confirmed(ctx, bufio.NewReader(a.stdin), arg); err != nil {
					return err
				}
			}
			b, err := begin(api.RollbackRequest{Snapshot: name, Newer: true})
			if err != nil {
				return err
			}
			if !c.Bool("detach") {
				b, err = a.watchRollback(ctx, b)
			}
			return firstError(a.printRollback(b), err)
		}),
	}
}

// confirmed has a person type what is to be rolled back to.
func (a *app) confirmed(ctx context.Context, in *bufio.Reader, arg string) error {
	a.say("Type %s to roll it back: ", arg)
	answer := make(chan string, 1)
	go func() { // left behind when interrupted; the process ends then
		line, _ := in.ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case got := <-answer:
		if got != arg {
			return volume.Errorf(volume.CodeRefused, "nothing was rolled back: %q is not %s", got, arg)
		}
		return nil
	case <-ctx.Done():
		fmt.Fprintln(a.stderr)
		return volume.Errorf(volume.CodeRefused, "nothing was rolled back: interrupted")
	}
}

// watchRollback shows how a rollback goes on until it is over. It goes on when ctx ends.
func (a *app) watchRollback(ctx context.Context, began api.Rollback) (api.Rollback, error) {
	return watch(ctx, a, began, watched[api.Rollback]{
		pause: migratePause, most: a.watchFor(0),
		line: func(b api.Rollback) string {
			if b.Doing == "" {
				return ""
			}
			return fmt.Sprintf("%s: %s", b.Name, b.Doing)
		},
		over: func(b api.Rollback) (bool, error) {
			switch b.State {
			case api.RollbackDone:
				return true, nil
			case api.RollbackFailed:
				return true, volume.Errorf(volume.CodeRefused, "volume %s was not rolled back: %s", b.Name, b.Reason)
			}
			return false, nil
		},
		look: func(ctx context.Context, _ api.Rollback) (api.Rollback, error) {
			now, err := a.client.Rollback(ctx, string(began.Volume), began.ID)
			now.Snapshot, now.Taken, now.WrittenBytes, now.Newer, now.Containers = began.Snapshot, began.Taken, began.WrittenBytes, began.Newer, began.Containers
			return now, err
		},
		late: func(b api.Rollback) error {
			return volume.Errorf(volume.CodeTimeout, "the rollback of volume %s is not over after %s: %s", b.Name, volume.FormatDuration(a.timeout), b.Doing).
				WithHint("it goes on; see `flockctl volume inspect %s` and `flockctl aside list`", b.Name)
		},
		left: func(_ context.Context, b api.Rollback) (api.Rollback, error) {
			return b, fmt.Errorf("%w: the rollback of volume %s goes on", errDetached, b.Name)
		},
	})
}

// rollbackPlan says what would be undone.
func (a *app) rollbackPlan(b api.Rollback) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s would go on from its snapshot %s, taken %s ago at %s\n", b.Name, b.Snapshot, a.ago(b.Taken), b.Taken.UTC().Format(time.RFC3339))
	fmt.Fprintf(&out, "about %s that were written since would be set aside on %s\n", size(b.WrittenBytes), b.Node)
	if len(b.Newer) > 0 {
		fmt.Fprintf(&out, "%s would go with it: %s\n", plural(len(b.Newer), "newer snapshot"), strings.Join(b.Newer, ", "))
	}
	if len(b.Containers) > 0 {
		fmt.Fprintf(&out, "stopped for it, and started again: %s\n", strings.Join(b.Containers, ", "))
	}
	return out.String()
}

// printRollback says what came of one, or would.
func (a *app) printRollback(b api.Rollback) error {
	switch {
	case a.asJSON:
		return a.printJSON(b)
	case a.quiet:
		a.printf("%s\n", b.Name)
	case b.State == api.RollbackPlanned:
		a.printf("%s", a.rollbackPlan(b))
	case b.State == api.RollbackDone:
		a.printf("%s goes on from its snapshot %s on %s\n", b.Name, b.Snapshot, b.Node)
		if b.Undone != "" {
			a.printf("what was undone is kept as set-aside copy %s\n", b.Undone)
			a.printf("to have it as a volume of its own: flockctl aside restore --node %s %s NEWNAME\n", b.Node.Name, b.Undone)
		}
	case b.State == api.RollbackRunning:
		a.printf("%s is going back to its snapshot %s\n", b.Name, b.Snapshot)
	}
	return nil
}
