package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

func (a *app) cloneCommand() *cli.Command {
	return &cli.Command{
		Name: "clone", Usage: "make a volume of another one's data, at once, and print its name", ArgsUsage: "VOLUME[@SNAPSHOT] NEW...",
		Description: "The clone is a volume of its own, to be written, moved and removed like any other; it has the options of its\n" +
			"original, but for ports. Without @SNAPSHOT it is of now. It is made where a copy of the original is, and takes\n" +
			"no room there but for what is written; its replicas get what they lack. Whichever of the two is removed, the\n" +
			"other stays. 'docker volume create -d flocker -o from=VOLUME[@SNAPSHOT] NEW' does the same.\n" +
			"With several names as many clones are made of one snapshot, at the same time.",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "option", Aliases: []string{"o"}, Usage: "`KEY=VALUE` as in flockctl volume create, where it is to differ; repeat it for several"},
			&cli.StringFlag{Name: "node", Usage: "make it on `NODE`, which has a copy of the original"},
		},
		Action: a.action(2, -1, func(ctx context.Context, c *cli.Context) error {
			opts, err := keyValues(c, c.StringSlice("option"))
			if err != nil {
				return err
			}
			if _, twice := opts[volume.FromOption]; twice {
				return usage(c, "what to clone is given twice")
			}
			opts[volume.FromOption] = c.Args().First()
			names := c.Args().Tail()
			if len(names) == 1 {
				return a.create(ctx, c, names[0], opts)
			}
			if _, snapshot, _ := strings.Cut(c.Args().First(), "@"); snapshot == "" {
				return usage(c, "several clones are made of one snapshot, so that all have the same: VOLUME@SNAPSHOT")
			}
			for i, name := range names {
				if slices.Contains(names[:i], name) {
					return usage(c, "NEW %q is given twice", name)
				}
			}
			return a.createAll(ctx, c, names, opts)
		}),
	}
}

// createAtOnce is how many volumes are asked for at the same time.
const createAtOnce = 16

// createAll makes several volumes with the same options, goes on after a failure and fails at the end with the first one.
// They are printed in the order in which they were asked for.
func (a *app) createAll(ctx context.Context, c *cli.Context, names []string, opts map[string]string) error {
	req, err := a.creation(ctx, c, opts)
	if err != nil {
		return err
	}
	began := a.now()
	var made atomic.Int32
	stop := a.meanwhile(ctx, func(context.Context) []string {
		return []string{fmt.Sprintf("%d of %d are made, for %s", made.Load(), len(names), age(a.now().Sub(began)))}
	})
	volumes, errs := make([]api.Volume, len(names)), make([]error, len(names))
	slots := make(chan struct{}, createAtOnce)
	var all sync.WaitGroup
	for i, name := range names {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			one := req
			one.Name = name
			if volumes[i], errs[i] = a.client.CreateVolume(ctx, one); errs[i] == nil {
				made.Add(1)
			}
		})
	}
	all.Wait()
	stop()

	done := []api.Volume{}
	var failed error
	for i, v := range volumes {
		if errs[i] != nil {
			a.printError(errs[i])
			if failed == nil {
				failed = told{errs[i]}
			}
			continue
		}
		done = append(done, v)
		if !a.asJSON {
			a.sayMade(v)
		}
	}
	if a.asJSON {
		if err := a.printJSON(done); err != nil {
			return err
		}
	}
	return failed
}
