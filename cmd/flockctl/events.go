package main

import (
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/terminal"
	"github.com/flocker-io/flocker/internal/volume"
)

func (a *app) eventsCommand() *cli.Command {
	return &cli.Command{
		Name:  "events",
		Usage: "show what has happened in the cluster",
		Description: "One line an event, oldest first. With --json each line is an object; with --quiet only the\n" +
			"messages are printed.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "wait for more until interrupted"},
			&cli.Uint64Flag{Name: "after", Usage: "only events after the one with this `NUMBER`", DefaultText: "all"},
			&cli.IntFlag{Name: "tail", Aliases: []string{"n"}, Usage: "of those that are there, only the last `N`", DefaultText: "all"},
		},
		Action: a.untimed(0, 0, func(ctx context.Context, c *cli.Context) error {
			if c.Int("tail") < 0 {
				return usage(c, "--tail is a number of events, from 0")
			}
			after := c.Uint64("after")
			first, cancel := a.within(ctx)
			es, err := a.client.Events(first, api.EventsQuery{After: after})
			cancel()
			if err != nil {
				return err
			}
			if len(es) > 0 {
				after = es[len(es)-1].Seq
			}
			if c.IsSet("tail") {
				es = es[max(0, len(es)-c.Int("tail")):]
			}
			if err := a.printEvents(es); err != nil || !c.Bool("follow") {
				return err
			}
			if !a.patient {
				var cancel context.CancelFunc
				ctx, cancel = a.within(ctx)
				defer cancel()
			}
			return a.follow(ctx, after)
		}),
	}
}

// follow prints events as they come until it is interrupted. It outlives restarts
// of flockd and changes of the leader.
func (a *app) follow(ctx context.Context, after uint64) error {
	const wait, pause = 30 * time.Second, time.Second
	complained := false
	for {
		poll, cancel := context.WithTimeout(ctx, 2*wait)
		es, err := a.client.Events(poll, api.EventsQuery{After: after, Wait: wait})
		cancel()
		switch {
		case ctx.Err() == context.Canceled:
			return nil
		case ctx.Err() != nil:
			return volume.Errorf(volume.CodeTimeout, "following ended after %s, as asked", a.timeout)
		case err == nil:
			complained = false
			if err := a.printEvents(es); err != nil {
				return err
			}
			if len(es) > 0 {
				after = es[len(es)-1].Seq
			}
			continue
		}
		switch volume.CodeOf(err) {
		case volume.CodeUnavailable, volume.CodeNoQuorum, volume.CodeTimeout:
		default:
			return err
		}
		if !complained {
			a.printError(fmt.Errorf("waiting: %w", err))
			complained = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (a *app) printEvents(es []api.Event) error {
	for _, e := range es {
		var err error
		switch {
		case a.asJSON:
			err = a.printJSONLine(e)
		case a.quiet:
			_, err = fmt.Fprintln(a.stdout, terminal.Visible(e.Message))
		default:
			_, err = fmt.Fprintf(a.stdout, "%6d  %s  %-18s  %s\n", e.Seq, e.At.UTC().Format(time.RFC3339), terminal.Visible(e.Kind), terminal.Visible(e.Message))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
