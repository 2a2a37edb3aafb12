package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

func (a *app) replicationCommand() *cli.Command {
	return &cli.Command{
		Name: "replication", Aliases: []string{"repl", "links"}, Usage: "show how far each replica of each volume is", ArgsUsage: "[VOLUME...]",
		Description: "LAG is how much of the volume's history would be lost with the primary, \"?\" if nobody knows; BEHIND\n" +
			"estimates the data that the replica lacks. RATE, BASE and PROGRESS are of the stream under way; without\n" +
			"one, BASE is the newest snapshot that the replica has acknowledged. SENT counts since the link began.\n" +
			"RATE shows the limit that the settings set, if any. ERROR says what is wrong, and for how long nothing\n" +
			"has got to the replica, also of one that is only behind (lagging).",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "worst", Usage: "show the links that are worst first"},
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "show it again each second until interrupted; with --json one line each time"},
		},
		Action: a.untimed(0, -1, func(ctx context.Context, c *cli.Context) error {
			refs, worst := c.Args().Slice(), c.Bool("worst")
			if c.Bool("watch") {
				return a.watchLinks(ctx, refs, worst)
			}
			links, err := timed(a, ctx, func(ctx context.Context) ([]link, error) { return a.links(ctx, refs, worst) })
			switch {
			case err != nil:
				return err
			case a.asJSON:
				return a.printJSON(links)
			}
			return a.printLinks(links)
		}),
	}
}

// link is one replica with the volume it follows.
type link struct {
	Volume  string      `json:"volume"`
	ID      volume.ID   `json:"id"`
	Primary api.NodeRef `json:"primary"`
	api.Replica
}

// links of these volumes, or of all.
func (a *app) links(ctx context.Context, refs []string, worst bool) ([]link, error) {
	var vs []api.Volume
	var err error
	if len(refs) == 0 {
		vs, err = a.client.Volumes(ctx, api.VolumesQuery{})
	}
	for _, ref := range refs {
		v, verr := a.client.Volume(ctx, ref)
		if verr != nil {
			return nil, verr
		}
		vs = append(vs, v)
	}
	out := []link{}
	for _, v := range vs {
		for _, r := range v.Replicas {
			out = append(out, link{Volume: v.Name, ID: v.ID, Primary: v.Primary, Replica: r})
		}
	}
	if worst {
		slices.SortStableFunc(out, compareLinks)
	}
	return out, err
}

// linkStates from worst to best.
var linkStates = []volume.LinkState{
	volume.LinkRefused, volume.LinkConnecting, volume.LinkSeeding, volume.LinkLagging, volume.LinkSending, volume.LinkInSync,
}

// compareLinks orders the worst first: by state, then by lag, where one that is not
// known is the largest.
func compareLinks(x, y link) int {
	lagOf := func(l link) float64 {
		if l.LagSeconds == nil {
			return math.Inf(1)
		}
		return *l.LagSeconds
	}
	return cmp.Or(
		cmp.Compare(slices.Index(linkStates, x.State), slices.Index(linkStates, y.State)),
		cmp.Compare(lagOf(y), lagOf(x)),
	)
}

func (a *app) printLinks(links []link) error {
	if a.quiet {
		for _, l := range links {
			a.printf("%s@%s\n", l.Volume, l.Node)
		}
		return nil
	}
	t := newTable("VOLUME", "REPLICA", "KIND", "STATE", "LAG", "BEHIND", "RATE", "BASE", "SENT", "PROGRESS", "ERROR")
	for _, l := range links {
		behind, sent := "", ""
		if l.LagBytes > 0 {
			behind = size(l.LagBytes)
		}
		if l.Streamed > 0 {
			sent = size(l.Streamed)
		}
		t.add(l.Volume, l.Node.String(), string(l.Kind), string(l.State), lag(l.LagSeconds), behind,
			rate(l.Replica), base(l.Replica), sent, progress(l.Replica, a.now()), trouble(l.Replica))
	}
	return t.print(a.stdout)
}

// trouble is what is wrong with a link, and for how long nothing has gone well.
func trouble(r api.Replica) string {
	if r.FailingSeconds <= 0 {
		return r.Error
	}
	return because("failing for "+lag(&r.FailingSeconds), r.Error)
}

// rate of the stream under way, with the limit of the link.
func rate(r api.Replica) string {
	limit := ""
	if r.Limit > 0 {
		limit = "of " + size(r.Limit) + "/s"
	}
	if r.Rate == 0 {
		return limit
	}
	return strings.TrimSpace(size(r.Rate) + "/s " + limit)
}

// base is what the stream under way starts from, or else the newest snapshot that
// is acknowledged.
func base(r api.Replica) string {
	switch {
	case r.Base != "":
		return r.Base
	case r.Stream == "" && !r.Acked.IsZero():
		return r.Acked.SnapshotName()
	}
	return ""
}

// barWidth is the number of cells of a progress bar.
const barWidth = 10

// progress of the stream under way: what was sent, and for a long one a bar and an
// estimate of the time that is left.
func progress(r api.Replica, now time.Time) string {
	if r.TotalBytes <= 0 {
		return ""
	}
	if r.State != volume.LinkSeeding && r.Stream != "full" && r.Stream != "resume" {
		return fmt.Sprintf("%s of %s", size(r.SentBytes), size(r.TotalBytes))
	}
	text := bar(r.SentBytes, r.TotalBytes)
	if left, ok := eta(r, now); ok {
		text += ", " + left + " left"
	}
	return text
}

// bar shows how much is done of what there is to do, which is not nothing.
func bar(bytes, total int64) string {
	done := min(1, float64(bytes)/float64(total))
	cells := int(done * barWidth)
	return fmt.Sprintf("[%s%s] %2.0f%% %s of %s", strings.Repeat("#", cells), strings.Repeat(".", barWidth-cells), math.Floor(100*done), size(bytes), size(total))
}

// eta estimates from the rate of late, or else from the whole stream's.
func eta(r api.Replica, now time.Time) (string, bool) {
	perSecond := float64(r.Rate)
	if took := now.Sub(r.Began).Seconds(); perSecond == 0 && !r.Began.IsZero() && took >= 1 {
		perSecond = float64(r.SentBytes) / took
	}
	return timeLeft(r.TotalBytes-r.SentBytes, perSecond)
}

// timeLeft is how long so many bytes take, if that can be said.
func timeLeft(bytes int64, perSecond float64) (string, bool) {
	if perSecond <= 0 || bytes <= 0 {
		return "", false
	}
	seconds := float64(bytes) / perSecond
	if seconds > (1000 * time.Hour).Seconds() {
		return "", false
	}
	return age(time.Duration(seconds * float64(time.Second))), true
}

// watchPause is between two looks of --watch.
const watchPause = time.Second

// watchLinks shows the links again and again. On a terminal each picture takes the
// place of the last one. It outlives a restart of flockd.
func (a *app) watchLinks(ctx context.Context, refs []string, worst bool) error {
	if !a.patient {
		var cancel context.CancelFunc
		ctx, cancel = a.within(ctx)
		defer cancel()
	}
	for {
		links, err := timed(a, ctx, func(ctx context.Context) ([]link, error) { return a.links(ctx, refs, worst) })
		if ctx.Err() != nil {
			return a.watchEnded(ctx)
		}
		if a.screen && !a.asJSON {
			fmt.Fprint(a.stdout, "\x1b[H\x1b[J") // home, clear to the end
		}
		switch volume.CodeOf(err) {
		case volume.CodeUnavailable, volume.CodeTimeout, volume.CodeNoQuorum:
			a.printError(fmt.Errorf("waiting: %w", err))
		default:
			if err == nil {
				err = a.showLinks(links)
			}
			if err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return a.watchEnded(ctx)
		case <-time.After(watchPause):
		}
	}
}

func (a *app) showLinks(links []link) error {
	if a.asJSON {
		return a.printJSONLine(links)
	}
	return a.printLinks(links)
}

// watchEnded is nil when a person ended it.
func (a *app) watchEnded(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return volume.Errorf(volume.CodeTimeout, "watching ended after %s, as asked", a.timeout)
	}
	return nil
}
