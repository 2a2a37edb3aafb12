package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// migratePause is between two looks at a migration, and abortPatience how long one that
// nobody watches any more may take to be called off.
const (
	migratePause  = 250 * time.Millisecond
	abortPatience = 15 * time.Second
)

const migrateHelp = `Moves VOLUME, with the containers that run on it and follow it (label flocker.enable=true), to NODE,
or to the best node that has a copy already. What these containers need besides goes along.

A node without a copy gets one first, and the image, while all runs on. Then the clients of its routes
(flockctl route) are made to wait at a quiet point, the containers are stopped as soon as all do,
the last writes are copied, and they are started on NODE under the same name. If they do not start there
they run again where they were, with all that was written. A container that does not follow is not
stopped: it is named, and nothing is moved. So is a client that does not come to a quiet point.
The tasks of a Swarm service go along when it has the constraint node.labels.flocker.volume.VOLUME==true.

Just before the pause copies are made to see how long the last one will take. If that is more than --max-pause
nothing is stopped, and the migration fails; so it does if the containers took too long to stop the last time, and
if, once they are stopped, the last copy is not there before their clients are refused: then they go on where they
were. A client that cannot be moved as long as it is connected is named at once. --force does not ask for any of that:
also what others wait is then without a limit. --force with --max-pause ignores only who is in the way now.

While it is watched it says what is under way: the first copy, what it waits for, the hook that runs in a
container, which copy ahead of the pause, the clients that are waited for, the stop, the last copy. A copy has a bar,
how fast it goes and how long it will take, where the nodes tell how much it is. On a terminal each of them has a line; in
a pipe the copy under way is told of again each ten seconds. With --detach --json that is in phase, round, rounds,
sent_bytes, total_bytes, rate and left_bytes; given again, the same command says how it is then.

Ctrl-C calls the migration off until the volume has arrived; after that it only ends the watching.`

func (a *app) migrateCommand() *cli.Command {
	return &cli.Command{
		Name: "migrate", Aliases: []string{"move"}, Usage: "move a volume and its containers to another node", ArgsUsage: "VOLUME [NODE]", Description: migrateHelp,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Usage: "only say what would be done"},
			&cli.DurationFlag{Name: "max-pause", Value: api.DefaultMaxPause, Usage: "how long clients may wait, besides the stop and the start of the containers, by what is predicted just before; at most 110s"},
			&cli.BoolFlag{Name: "force", Usage: "go on whoever is in the way now, and, without --max-pause, however long clients will wait"},
			&cli.BoolFlag{Name: "detach", Usage: "do not wait"},
			&cli.BoolFlag{Name: "abort", Usage: "call off the one that is under way"},
		},
		Action: a.untimed(1, 2, func(ctx context.Context, c *cli.Context) error {
			if c.Bool("abort") {
				return a.abortMigration(ctx, c)
			}
			req := api.MigrateRequest{To: c.Args().Get(1), DryRun: c.Bool("dry-run"), Force: c.Bool("force")}
			if wait := c.Duration("max-pause"); wait <= 0 {
				return usageError{errors.New("--max-pause is more than 0; --force goes on however long it takes"), c.Command.HelpName}
			} else if c.IsSet("max-pause") {
				req.MaxPauseSeconds = wait.Seconds()
			}
			m, err := timed(a, ctx, func(ctx context.Context) (api.Migration, error) {
				return a.client.MigrateVolume(ctx, c.Args().First(), req)
			})
			if err != nil {
				return err
			}
			if !req.DryRun && !a.asJSON {
				for _, text := range m.Notes {
					a.say("note: %s\n", text)
				}
			}
			if !req.DryRun && !c.Bool("detach") {
				m, err = a.watchMigration(ctx, m)
			}
			return firstError(a.printMigration(m), err)
		}),
	}
}

func (a *app) abortMigration(ctx context.Context, c *cli.Context) error {
	if c.NArg() > 1 || c.Bool("dry-run") || c.Bool("detach") {
		return usageError{errors.New("--abort takes a volume and nothing else"), c.Command.HelpName}
	}
	m, err := timed(a, ctx, func(ctx context.Context) (api.Migration, error) {
		return a.client.AbortMigration(ctx, c.Args().First(), "")
	})
	if err != nil {
		return err
	}
	if m.State == api.MigrationDone {
		return volume.Errorf(volume.CodeConflict, "volume %s is not being migrated; it went to %s before", m.Name, m.To)
	}
	if !a.asJSON && !a.quiet {
		a.printf("%s stays on %s: %s\n", m.Name, m.From, m.Reason)
		return nil
	}
	return a.printMigration(m)
}

// watchMigration shows how a migration goes on until it is over. When ctx ends it is
// called off, unless the volume has arrived by then.
func (a *app) watchMigration(ctx context.Context, m api.Migration) (api.Migration, error) {
	return watch(ctx, a, m, watched[api.Migration]{
		pause: migratePause, most: a.watchFor(0), step: migrationStep,
		over: func(m api.Migration) (bool, error) {
			switch m.State {
			case api.MigrationDone:
				return true, nil
			case api.MigrationFailed:
				return true, volume.Errorf(volume.CodeRefused, "volume %s was not migrated to %s: %s", m.Name, m.To, m.Reason)
			}
			return false, nil
		},
		look: func(ctx context.Context, was api.Migration) (api.Migration, error) {
			now, err := a.client.Migration(ctx, string(m.Volume), m.ID)
			// The last prediction was made just before the pause, and is told with what came of it.
			now.PredictedSeconds = cmp.Or(now.PredictedSeconds, was.PredictedSeconds)
			return now, err
		},
		late: func(m api.Migration) error {
			return volume.Errorf(volume.CodeTimeout, "volume %s is not on %s after %s", m.Name, m.To, volume.FormatDuration(a.timeout)).
				WithHint("the migration goes on: `flockctl migrate %s %s` watches it, and Ctrl-C there calls it off", m.Name, m.To)
		},
		left: a.callOff,
	})
}

// callOff ends a migration that its user does not want any more.
func (a *app) callOff(ctx context.Context, m api.Migration) (api.Migration, error) {
	ctx, cancel := context.WithTimeout(ctx, abortPatience)
	defer cancel()
	now, err := a.client.AbortMigration(ctx, string(m.Volume), m.ID)
	switch {
	case err == nil && now.State == api.MigrationDone:
		return now, nil
	case err == nil:
		return now, fmt.Errorf("%w: volume %s stays on %s: %s", errDetached, now.Name, now.From, now.Reason)
	case volume.CodeOf(err) == volume.CodeRefused: // it has arrived
		return m, fmt.Errorf("%w: %w", errDetached, err)
	}
	return m, fmt.Errorf("the migration of volume %s could not be called off and goes on: %w", m.Name, err)
}

// migrationStep is a migration on one line, none when none is under way.
func migrationStep(m api.Migration) step {
	if m.State != api.MigrationRunning {
		return step{}
	}
	text := fmt.Sprintf("%s from %s to %s", m.Name, m.From, m.To)
	copying := copyPhase(m)
	switch {
	case copying != "" && m.TotalBytes > 0:
		text = m.Name + ": " + migrationDoing(m) // which has to fit into a line
	case m.Doing != "":
		text += ": " + m.Doing
	case m.Why != "":
		text += " waits: " + m.Why
	}
	if copying != "" {
		return step{phase: copying, what: m.Name + ": " + copying, counts: true, text: text}
	}
	if m.Phase == volume.MoveBegins || m.Phase == volume.MoveEnding {
		return step{text: text} // they are between two others
	}
	return step{phase: string(m.Phase), what: text, text: text}
}

// migrationDoing is what is under way, with a bar while it is a copy and known how much that is.
func migrationDoing(m api.Migration) string {
	copying := copyPhase(m)
	if copying == "" || m.TotalBytes <= 0 {
		return m.Doing
	}
	text := copying + ": " + bar(m.SentBytes, max(m.SentBytes, m.TotalBytes))
	if m.Rate > 0 {
		text += ", " + size(m.Rate) + "/s"
	}
	if left, ok := timeLeft(m.TotalBytes-m.SentBytes, float64(m.Rate)); ok {
		text += ", " + left + " left"
	}
	return text
}

// copyPhase is which copy is under way, "" when none is. In other phases what is sent is of no copy that
// anybody waits for.
func copyPhase(m api.Migration) string {
	to := ""
	if m.Arrived {
		to = " back to " + m.From.String() // as when Swarm does not start its service
	}
	switch m.Phase {
	case volume.MoveFirstCopy:
		return "first copy to " + m.To.String()
	case volume.MovePreCopy:
		return fmt.Sprintf("pre-copy %d of at most %d", m.Round, m.Rounds) + to
	case volume.MoveFinalCopy:
		return "final copy" + to
	}
	return ""
}

// printMigration says what came of one, or would.
func (a *app) printMigration(m api.Migration) error {
	along := ""
	if len(m.Containers) > 0 {
		along = " with " + strings.Join(m.Containers, ", ")
	}
	if len(m.Services) > 0 {
		along += " with service " + strings.Join(m.Services, ", ") + " of the Swarm"
	}
	if len(m.With) > 0 {
		along += " and " + plural(len(m.With), "volume") + " more (" + strings.Join(m.With, ", ") + ")"
	}
	switch {
	case a.asJSON:
		return a.printJSON(m)
	case a.quiet:
		a.printf("%s\n", m.Name)
	case m.State == api.MigrationPlanned:
		a.printf("%s would go from %s to %s%s\n", m.Name, m.From, m.To, along)
		if m.Doing != "" {
			a.printf("first: %s\n", m.Doing)
		}
		if m.Why != "" {
			a.printf("it would wait: %s\n", m.Why)
		}
		a.printPredicted(m)
		for _, text := range m.Notes {
			a.printf("note: %s\n", text)
		}
	case m.State == api.MigrationDone:
		a.printf("%s is on %s\n", m.Name, m.To)
		switch t := m.Times; {
		case m.PausedSeconds > 0 && t != nil:
			a.printf("its clients waited for %.2f s: %.2f s until they were quiet, %.2f s for the stop, %.2f s to unmount, %.2f s for the last copy, %.2f s for the start\n",
				m.PausedSeconds, t.Park, t.Stop, t.Unmount, t.Copy, t.Start)
			if t.Open > 0 {
				a.printf("of the start: %.2f s for the commit, %.2f s to take the volume over, %.2f s to mount it, %.2f s until its containers were started, %.2f s until one answered, %.2f s until the routes led there\n",
					t.Commit, t.Takeover, t.Mount, t.Run, t.Ready, t.Open)
			}
			if m.PredictedSeconds > 0 {
				a.printf("predicted were %.2f s, besides the stop and the start\n", m.PredictedSeconds)
			}
		case m.StoppedSeconds > 0:
			a.printf("its containers were stopped for at most %.1f s\n", m.StoppedSeconds)
		}
	case m.State == api.MigrationRunning:
		a.printf("%s goes to %s%s\n", m.Name, m.To, along)
		a.printPredicted(m)
	}
	return nil
}

func (a *app) printPredicted(m api.Migration) {
	if m.PredictedSeconds > 0 && len(m.Containers)+len(m.Services) > 0 {
		a.printf("its clients would wait for about %.2f s, besides the stop and the start of its containers\n", m.PredictedSeconds)
	}
}
