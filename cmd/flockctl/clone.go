package main

import (
	"cmp"
	"context"
	"errors"
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
			"With several names as many clones are made of one snapshot, at the same time, or none if a name cannot be one.\n" +
			"When some fail the others stay, and the same command again makes those that are missing. Each error begins with\n" +
			"the name that it is about, and the exit code is that of the first one, in the order of the names; 0: all are made.\n" +
			"One that is made, but of another snapshot, since that name was given anew meanwhile, is an error, too (4), and stays.\n" +
			"--json prints a list, of those that are made as asked for; of a single name it is that volume. --timeout is for all\n" +
			"together: what is not begun by then, or when it is interrupted, is not made.",
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
			if err := mayCreateAll(c, opts, names); err != nil {
				return err
			}
			return a.createAll(ctx, c, names, opts)
		}),
	}
}

// mayCreateAll refuses what nobody has to be asked about, before the first volume is begun.
func mayCreateAll(c *cli.Context, opts map[string]string, names []string) error {
	if _, _, err := volume.CutSource(opts); err != nil {
		return err
	}
	for i, name := range names {
		if err := volume.ValidateName(name); err != nil {
			return err
		}
		if slices.Contains(names[:i], name) {
			return usage(c, "NEW %q is given twice", name)
		}
	}
	return nil
}

// createAtOnce is how many volumes are asked for at the same time.
const createAtOnce = 16

// createAll makes several clones of one snapshot with the same options, goes on after a failure and fails at the end with the
// first one. They are printed in the order in which they were asked for.
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
	all := createEach(ctx, names, func(ctx context.Context, name string) (api.Volume, error) {
		one := req
		one.Name = name
		v, err := a.client.CreateVolume(ctx, one)
		if err == nil {
			made.Add(1)
		}
		return v, err
	})
	stop()
	ofOneSnapshot(all)
	return a.sayCreated(all, names[len(all):], ctx.Err())
}

// created is a volume that was asked for beside others, or why there is none as it was asked for.
type created struct {
	name   string
	volume api.Volume
	err    error
}

// createEach makes several volumes, a few at the same time. When ctx is over it begins no more: what it returns are those
// that were begun, which are the first of the names.
func createEach(ctx context.Context, names []string, create func(ctx context.Context, name string) (api.Volume, error)) []created {
	out := make([]created, len(names)) // goroutines write to it: it does not grow
	slots := make(chan struct{}, createAtOnce)
	begun := 0
	var all sync.WaitGroup
	for i, name := range names {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		begun++
		all.Go(func() {
			v, err := create(ctx, name)
			out[i] = created{name, v, err}
			<-slots
		})
	}
	all.Wait()
	return out[:begun]
}

// ofOneSnapshot makes an error of each clone that is of another snapshot than the first one: for each the snapshot is
// looked for by its name, and a clone that was there already may be an older one's.
func ofOneSnapshot(all []created) {
	first := slices.IndexFunc(all, func(c created) bool { return c.err == nil })
	if first < 0 {
		return
	}
	guid := func(v api.Volume) uint64 {
		if v.From == nil {
			return 0
		}
		return v.From.GUID
	}
	want := all[first]
	for i, c := range all {
		if c.err == nil && guid(c.volume) != guid(want.volume) {
			all[i].err = volume.Errorf(volume.CodeConflict, "it is made, but of another snapshot than %s: that name became another one's in between", want.name).
				WithHint("remove those that are of the wrong one, and ask for them again")
		}
	}
}

// sayCreated prints what became of several volumes; left are those that were not begun because of over, the end of the
// context. Its error has been printed.
func (a *app) sayCreated(all []created, left []string, over error) error {
	done := []api.Volume{}
	var failed error
	fail := func(text string, err error) {
		a.printFailure(text)
		failed = cmp.Or(failed, error(told{err}))
	}
	for _, c := range all {
		if c.err != nil {
			fail(c.name+": "+errorText(c.err), c.err)
			continue
		}
		done = append(done, c.volume)
		if !a.asJSON {
			a.sayMade(c.volume)
		}
	}
	if len(left) > 0 {
		why := "interrupted"
		if errors.Is(over, context.DeadlineExceeded) {
			why, over = "no time was left", &volume.Error{Code: volume.CodeTimeout, Message: over.Error()}
		}
		fail(fmt.Sprintf("%s: %d of %d were not begun, from %s on: the same command again makes what is missing", why, len(left), len(all)+len(left), left[0]), over)
	}
	if a.asJSON {
		if err := a.printJSON(done); err != nil {
			return err
		}
	}
	return failed
}
