package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
)

const failoverHelp = `For a volume whose primary's node is lost and which does not, or may not, fail over by itself.
The copy that has most goes on; what it lacks of the last writes is told before and after, and what
the old primary has of them is set aside when it comes back (flockctl aside).

Where nothing proves that the old primary has stopped, you have to: cut its power, or see that it is
off, and name it with --confirm-fenced. If it still runs, two nodes write the volume, and what one of
them wrote is set aside.`

func (a *app) failoverCommand() *cli.Command {
	return &cli.Command{
		Name: "failover", Usage: "give a volume that has lost its primary another one", ArgsUsage: "VOLUME", Description: failoverHelp,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "to", Usage: "make `NODE` the primary, not the one with the best copy"},
			&cli.BoolFlag{Name: "accept-loss", Usage: "go on though more may be lost than the volume's max-loss, or its failover=never, allows"},
			&cli.StringFlag{Name: "confirm-fenced", Usage: "the primary, `NODE`, is off, and does not come back before it can ask the others"},
		},
		Action: a.action(1, 1, func(ctx context.Context, c *cli.Context) error {
			stop := a.showElecting(ctx, c.Args().First())
			v, err := a.client.FailoverVolume(ctx, c.Args().First(), api.FailoverRequest{
				To: c.String("to"), AcceptLoss: c.Bool("accept-loss"), ConfirmFenced: c.String("confirm-fenced"),
			})
			stop()
			switch {
			case err != nil:
				return err
			case a.asJSON:
				return a.printJSON(v)
			case a.quiet:
				a.printf("%s\n", v.Name)
			default:
				a.printf("%s is on %s\n", v.Name, v.Primary)
				a.say("flockctl: what may be missing is in flockctl events\n")
			}
			return nil
		}),
	}
}

// showElecting says until stop what a volume waits for that gets another primary.
func (a *app) showElecting(ctx context.Context, ref string) (stop func()) {
	return a.meanwhile(ctx, func(ctx context.Context) []string {
		v, err := a.client.Volume(ctx, ref)
		if err != nil {
			return nil
		}
		return []string{fmt.Sprintf("%s: %s", v.Name, because(string(v.Health), v.Reason))}
	})
}
