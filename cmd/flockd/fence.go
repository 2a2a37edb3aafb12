package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"

	flockd "github.com/flocker-io/flocker/internal/daemon"
	"github.com/flocker-io/flocker/internal/fence"
	"github.com/flocker-io/flocker/internal/version"
)

// fenceCommand is the fencer, and what an operator may ask of it.
func fenceCommand(out, errOut io.Writer) *cli.Command {
	client := func(ask func(c *cli.Context, f *fence.Client) (fence.Status, error)) cli.ActionFunc {
		return func(c *cli.Context) error {
			cfg, err := config(c)
			if err != nil {
				return err
			}
			f := fence.Dial(fence.Socket(cfg.RunDir))
			defer f.Close()
			s, err := ask(c, f)
			if s.State != "" {
				printFence(out, s)
			}
			return err
		}
	}
	return &cli.Command{
		Name: "fence", Usage: "the fencer: stops this node's writers when its right to write is over",
		Description: "Without a command it runs the fencer, as flockd-fence.service does. It works without flockd, Docker and the network.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "reset", EnvVars: []string{"FLOCKD_FENCE_RESET"}, Value: string(fence.PolicyAuto),
				Usage: "how the machine is reset when writers cannot be stopped: `auto`, watchdog (required), sysrq, or off"},
			&cli.StringFlag{Name: "watchdog", EnvVars: []string{"FLOCKD_FENCE_WATCHDOG"}, Usage: "watchdog `DEVICE`; without the flag the first that is free"},
		},
		Action: func(c *cli.Context) error {
			cfg, err := config(c)
			if err != nil {
				return err
			}
			policy, err := fence.ParsePolicy(c.String("reset"))
			if err != nil {
				return err
			}
			return serveFence(c.Context, cfg, policy, c.String("watchdog"), errOut)
		},
		Subcommands: []*cli.Command{
			{Name: "status", Usage: "print what the fencer does, how surely, and what it has stopped",
				Action: client(func(c *cli.Context, f *fence.Client) (fence.Status, error) { return f.Status(c.Context) })},
			{Name: "may-restart", Usage: "say whether the fencer may be restarted now, without a writer being left unguarded",
				Description: "For upgrades: its exit code is 0 when the lease was renewed just now, or nothing is to be stopped.\n" +
					"flockd has to run meanwhile: it stops the writers if the fencer does not come up again, or takes longer than two seconds.",
				Flags: []cli.Flag{
					&cli.DurationFlag{Name: "wait", Value: 10 * time.Second, Usage: "wait this `LONG` for such a moment"},
				},
				Action: func(c *cli.Context) error {
					cfg, err := config(c)
					if err != nil {
						return err
					}
					// With this the next process would not begin; what runs may have been started with something else.
					if _, err := fence.ParsePolicy(c.String("reset")); err != nil {
						return err
					}
					f := fence.Dial(fence.Socket(cfg.RunDir))
					defer f.Close()
					ctx, cancel := context.WithTimeout(c.Context, c.Duration("wait"))
					defer cancel()
					return f.MayRestart(ctx)
				}},
			{Name: "used", Usage: "say who uses volumes on this machine, also where no mount table shows it",
				Description: "For the removal of the package: its exit code is 0 when nothing does. It does not need the fencer.",
				Action: func(*cli.Context) error {
					who, err := fence.InUse()
					if err == nil && who != "" {
						err = errors.New("volumes are " + who)
					}
					return err
				}},
			{Name: "now", Usage: "stop everything on this node that uses volumes, and keep it so until `flockd fence lift` or a reboot",
				Description: "For a node that is cut off, before its volumes are failed over by hand. It returns when nothing writes any more.",
				Flags: []cli.Flag{
					&cli.DurationFlag{Name: "timeout", Value: time.Minute, Usage: "wait this `LONG`; fencing goes on after it"},
					&cli.StringFlag{Name: "reason", Value: "an operator asked for it", Usage: "`WHY`, for the log and for status"},
				},
				Action: client(func(c *cli.Context, f *fence.Client) (fence.Status, error) {
					ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
					defer cancel()
					s, err := f.Hold(ctx, "", c.String("reason"))
					if err == nil && s.State != fence.PhaseFenced {
						err = errors.New("somebody has lifted it meanwhile")
					}
					return s, err
				})},
			{Name: "lift", Usage: "take `flockd fence now` back",
				Action: client(func(c *cli.Context, f *fence.Client) (fence.Status, error) { return f.Lift(c.Context) })},
		},
	}
}

// serveFence runs the fencer until it is told to stop.
func serveFence(ctx context.Context, cfg flockd.Config, policy fence.Policy, watchdog string, errOut io.Writer) error {
	return fence.WithLog(errOut, func(w io.Writer) error {
		log := cfg.Logger(w)
		log.Info("flockd fence starts", "version", version.String())
		err := fence.Run(ctx, fence.Options{
			Log: log, RunDir: cfg.RunDir, Reset: policy, Watchdog: watchdog, Version: version.Version,
			Ready: func() { notify(log, daemon.SdNotifyReady) },
		})
		log.Info("flockd fence has stopped")
		return err
	})
}

func printFence(out io.Writer, s fence.Status) {
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(out, "%-9s %s\n", name, value)
		}
	}
	line("state", string(s.State))
	line("safety", string(s.Safety))
	if s.Saved.Begun {
		line("lease", fmt.Sprintf("%d, volumes below %s", s.Saved.No, s.Lease.Root))
	}
	line("reason", s.Reason)
	line("problem", s.Problem)
	if s.Operator {
		line("operator", "`flockd fence lift` lets writers go on")
	}
	for _, v := range s.Fenced {
		line("stopped", fmt.Sprintf("container %s, volumes %s", v.Container[:min(12, len(v.Container))], strings.Join(v.Volumes, ", ")))
	}
}
