package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/terminal"
	"github.com/flocker-io/flocker/internal/volume"
)

// grace is how much longer than asked the client waits for flockd's own answer, which
// says more than that there was none.
const grace = 10 * time.Second

func (a *app) volumeSync() *cli.Command {
	return &cli.Command{
		Name: "sync", Usage: "wait until every replica holds all that was written before", ArgsUsage: "VOLUME...",
		Description: "When a replica has not got it within --timeout, the error names it and says what it lacks. When all\n" +
			"replicas hold it and they are fewer than the volume asks for, the exit code is 8.",
		Action: a.untimed(1, -1, func(ctx context.Context, c *cli.Context) error {
			reps, err := each(a, c.Args().Slice(), func(ref string) (api.SyncReply, error) { return a.syncOne(ctx, ref) })
			if a.asJSON {
				err = firstError(a.printJSON(reps), err)
			} else {
				for _, rep := range reps {
					a.printSync(rep)
				}
			}
			return firstError(err, complain(a, reps, func(r api.SyncReply) bool { return r.Missing != "" }, fewer))
		}),
	}
}

// each does something for each ref, goes on after a failure, which it prints, and fails
// at the end with the first one.
func each[T any](a *app, refs []string, do func(ref string) (T, error)) ([]T, error) {
	out := []T{}
	var failed error
	for _, ref := range refs {
		x, err := do(ref)
		if err == nil {
			out = append(out, x)
			continue
		}
		a.printError(err)
		if failed == nil {
			failed = told{err}
		}
	}
	return out, failed
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *app) syncOne(ctx context.Context, ref string) (api.SyncReply, error) {
	// Found first, so that the name is told and not what has it meanwhile.
	v, err := timed(a, ctx, func(ctx context.Context) (api.Volume, error) { return a.client.Volume(ctx, ref) })
	if err != nil {
		return api.SyncReply{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout+grace)
	defer cancel()
	stop := a.showAwaited(ctx, v)
	defer stop()
	return a.client.SyncVolume(ctx, string(v.ID), api.SyncRequest{Patience: a.timeout})
}

func fewer(r api.SyncReply) error {
	return fewerError{fmt.Errorf("volume %s lacks %s, so what was written is on fewer copies than it asks for; "+
		"each is placed as soon as a node has room, see `flockctl volume inspect %s`", r.Volume, r.Missing, r.Volume)}
}

func (a *app) printSync(rep api.SyncReply) {
	if a.quiet {
		return
	}
	if len(rep.Replicas) == 0 {
		a.printf("%s has no replicas\n", rep.Volume)
	} else {
		var names []string
		for _, r := range rep.Replicas {
			names = append(names, r.String())
		}
		a.printf("%s is on %s\n", rep.Volume, strings.Join(names, ", "))
	}
}

// showAwaited says until stop which replicas do not hold yet what was written before it was called.
func (a *app) showAwaited(ctx context.Context, v api.Volume) (stop func()) {
	began := time.Now()
	return a.meanwhile(ctx, func(ctx context.Context) []string {
		now, err := a.client.Volume(ctx, string(v.ID))
		if err != nil {
			return nil
		}
		return []string{awaited(now, time.Since(began))}
	})
}

// awaited says which replicas lag by more than the time since a moment, so that they
// lack something from before it.
func awaited(v api.Volume, since time.Duration) string {
	var words []string
	for _, r := range v.Replicas {
		if r.LagSeconds != nil && *r.LagSeconds <= since.Seconds() {
			continue
		}
		text := fmt.Sprintf("%s (%s", r.Node, r.State)
		if r.LagBytes > 0 {
			text += ", " + size(r.LagBytes) + " behind"
		}
		if r.Error != "" {
			text += ": " + r.Error
		}
		words = append(words, text+")")
	}
	if len(words) == 0 {
		return fmt.Sprintf("%s: waiting", v.Name)
	}
	return fmt.Sprintf("%s: waiting for %s", v.Name, strings.Join(words, ", "))
}

func (a *app) volumeVerify() *cli.Command {
	return &cli.Command{
		Name: "verify", Usage: "read a volume on all its nodes and compare checksums", ArgsUsage: "VOLUME...",
		Description: "All nodes with a copy read the same snapshot: names, types, modes, owners, times, extended attributes\n" +
			"and contents. It takes as long as reading the volume does, unless --timeout is given, and repairs\n" +
			"nothing. How far each node is shows meanwhile; Ctrl-C ends it on all of them. When a copy differs\n" +
			"the exit code is 4; when one could not be read, 6.",
		Action: a.untimed(1, -1, func(ctx context.Context, c *cli.Context) error {
			reps, err := each(a, c.Args().Slice(), func(ref string) (api.VerifyReply, error) { return a.verifyOne(ctx, ref) })
			if a.asJSON {
				if perr := a.printJSON(reps); perr != nil {
					return perr
				}
			} else if !a.quiet {
				if perr := a.printVerified(reps); perr != nil {
					return perr
				}
			}
			// A copy that differs is worse than anything that could not be asked.
			return firstError(complain(a, reps, func(r api.VerifyReply) bool { return r.Differ }, differing),
				err, complain(a, reps, func(r api.VerifyReply) bool { return r.Unread }, unread))
		}),
	}
}

func (a *app) verifyOne(ctx context.Context, ref string) (api.VerifyReply, error) {
	req := api.VerifyRequest{}
	if !a.patient {
		var cancel context.CancelFunc
		ctx, cancel = a.within(ctx)
		defer cancel()
		req.Patience = a.timeout
	}
	stop := a.showReading(ctx, ref)
	defer stop()
	return a.client.VerifyVolume(ctx, ref, req)
}

// showReading says until stop how far each node is with reading its copy: on a terminal a line for
// each. What cannot be asked is only not shown.
func (a *app) showReading(ctx context.Context, ref string) (stop func()) {
	if a.quiet || a.asJSON {
		return func() {}
	}
	v, err := a.client.Volume(ctx, ref)
	if err != nil {
		return func() {} // the verify will say so
	}
	old := map[volume.NodeID]uint64{} // what was read before
	for _, r := range v.Readings {
		old[r.Node.ID] = r.GUID
	}
	return a.meanwhile(ctx, func(ctx context.Context) []string {
		now, err := a.client.Volume(ctx, string(v.ID))
		if err != nil {
			return nil
		}
		lines := readings(now.Readings, old)
		if !a.progress && len(lines) > 0 {
			lines[0] = v.Name + ": " + lines[0]
		}
		return lines
	})
}

// readings says of each node how far it is with what it did not read before; nothing when
// none has begun.
func readings(all []api.Reading, old map[volume.NodeID]uint64) []string {
	var lines []string
	begun := false
	for _, r := range all {
		fresh := r.GUID != 0 && r.GUID != old[r.Node.ID]
		begun = begun || fresh
		text := "waits"
		switch {
		case !r.Told:
			text = "does not say how far it is, its flockd is older"
		case fresh && r.Total > 0:
			text = bar(r.Bytes, r.Total)
		case fresh:
			text = size(r.Bytes) + " read"
		}
		if fresh && r.Done && r.Bytes != r.Total {
			text += ", stopped"
		}
		lines = append(lines, r.Node.String()+" "+text)
	}
	if !begun {
		return nil
	}
	return lines
}

// picture is a few lines on a terminal, each time in the place of the last ones.
type picture struct {
	w     io.Writer
	fit   func(string) string // a line that takes one line; nil: each does
	lines int
}

func (p *picture) draw(lines []string) {
	p.erase()
	lines = slices.Clone(lines)
	for i, line := range lines {
		if lines[i] = terminal.Visible(line); p.fit != nil {
			lines[i] = p.fit(line)
		}
	}
	fmt.Fprint(p.w, strings.Join(lines, "\n"))
	p.lines = len(lines)
}

func (p *picture) erase() {
	if p.lines > 0 {
		fmt.Fprint(p.w, "\r"+strings.Repeat("\x1b[A", p.lines-1)+"\x1b[J")
	}
	p.lines = 0
}

// complain is an error of all replies that are bad.
func complain[T any](a *app, reps []T, bad func(T) bool, say func(T) error) error {
	var first error
	for _, r := range reps {
		if !bad(r) {
			continue
		}
		err := say(r)
		a.printError(err)
		if first == nil {
			first = told{err}
		}
	}
	return first
}

func differing(r api.VerifyReply) error {
	var names []string
	for _, c := range r.Copies {
		if c.Differs {
			names = append(names, c.Node.String())
		}
	}
	return volume.Errorf(volume.CodeConflict, "volume %s: THE COPY ON %s DIFFERS from the primary's", r.Volume, strings.Join(names, ", ")).
		WithHint("nothing was changed; find out which one is right before either is used or replaced")
}

func unread(r api.VerifyReply) error {
	var words []string
	for _, c := range r.Copies {
		if c.Error != "" {
			words = append(words, fmt.Sprintf("%s (%s)", c.Node, c.Error))
		}
	}
	return volume.Errorf(volume.CodeUnavailable, "volume %s: not verified on %s", r.Volume, strings.Join(words, ", ")).
		WithHint("verify again when they can be asked")
}

func (a *app) printVerified(reps []api.VerifyReply) error {
	t := newTable("VOLUME", "NODE", "ROLE", "RESULT", "FILES", "DATA", "TOOK", "SHA256", "SNAPSHOT")
	for _, r := range reps {
		for i, c := range r.Copies {
			result := "alike"
			switch {
			case c.Error != "":
				t.add(r.Volume, c.Node.String(), string(c.Role), "not verified", "", "", "", "", r.Snapshot)
				continue
			case c.Differs:
				result = "DIFFERS"
			case i == 0:
				result = "read"
			}
			t.add(r.Volume, c.Node.String(), string(c.Role), result, fmt.Sprint(c.Files), size(c.Bytes), took(c.Took),
				c.SHA256[:min(16, len(c.SHA256))], r.Snapshot)
		}
	}
	return t.print(a.stdout)
}

func took(d time.Duration) string {
	return volume.FormatDuration(cmp.Or(d.Round(time.Second/10), time.Second/10))
}
