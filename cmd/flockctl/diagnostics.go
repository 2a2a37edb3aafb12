package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/doctor"
	"github.com/flocker-io/flocker/internal/volume"
)

func (a *app) diagnosticsCommand() *cli.Command {
	var file string
	var since time.Duration
	return &cli.Command{
		Name:  "diagnostics",
		Usage: "gather what all nodes have to show into one archive, without secrets",
		Description: "The archive (tar.gz) has of each node its status, its state, events, metrics, settings, versions, mounts, what ZFS\n" +
			"says of the pool and of our datasets, and the last hours of the logs of flockd, its fencer and its proxy; and what\n" +
			"doctor finds. Keys, join tokens and descriptions of containers are not in it; names of volumes, containers and\n" +
			"machines are. What could not be had is said in README.txt. With -o - it goes to standard output.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write it to `FILE` instead of flocker-diagnostics-TIME.tar.gz", Destination: &file},
			&cli.DurationFlag{Name: "since", Value: api.DefaultLogs, Usage: "of the logs, the last `TIME`", Destination: &since},
		},
		Action: a.action(0, 0, func(ctx context.Context, c *cli.Context) error {
			if since <= 0 || since > api.MaxLogs {
				return usage(c, "--since has to be more than nothing and at most %s", volume.FormatDuration(api.MaxLogs))
			}
			name := "flocker-diagnostics-" + a.now().UTC().Format("20060102-150405")
			if file == "" {
				file = name + ".tar.gz"
			}
			if file == "-" {
				_, err := a.writeDiagnostics(ctx, a.stdout, name, since)
				return err
			}
			return a.saveDiagnostics(ctx, file, name, since)
		}),
	}
}

// saveDiagnostics writes the archive to a file that only its owner can read, and leaves none
// behind that is not whole.
func (a *app) saveDiagnostics(ctx context.Context, file, name string, since time.Duration) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return badDestination(file, err)
	}
	missing, err := a.writeDiagnostics(ctx, f, name, since)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	switch {
	case a.asJSON:
		if missing == nil {
			missing = []string{}
		}
		return a.printJSON(struct {
			File    string   `json:"file"`
			Missing []string `json:"missing"`
		}{file, missing})
	case a.quiet:
		a.printf("%s\n", file)
		return nil
	}
	a.printf("%s\n", file)
	a.list("Not in it", missing)
	return nil
}

// writeDiagnostics asks all nodes and writes the archive as they answer. missing is what could not be
// had, in sentences.
func (a *app) writeDiagnostics(ctx context.Context, w io.Writer, name string, since time.Duration) (missing []string, err error) {
	// The node that is asked first has to be there: it knows the others.
	own, err := a.client.Diagnostics(ctx, api.DiagnosticsQuery{Since: since})
	if err != nil {
		return nil, err
	}
	zip := gzip.NewWriter(w)
	t := archive{Writer: tar.NewWriter(zip), root: name, at: a.now()}
	lacks := func(what string, err error) { missing = append(missing, fmt.Sprintf("%s: %v", what, err)) }

	if d, err := a.client.Doctor(ctx); err != nil {
		lacks("doctor's findings", err)
	} else {
		t.add("doctor.txt", findingsText(d))
		b, err := json.MarshalIndent(d, "", " ")
		if err != nil {
			return nil, err
		}
		t.add("doctor.json", string(b)+"\n")
	}
	place := func(label string, d api.Diagnostics) {
		for _, f := range d.Files {
			if !localName(f.Name) {
				continue // no node of ours names one so
			}
			at := path.Join("nodes", label, f.Name)
			if f.Error != "" {
				lacks(at, errors.New(f.Error))
			}
			if f.Cut > 0 {
				lacks(at, fmt.Errorf("%s more", size(f.Cut)))
			}
			if f.Text != "" {
				t.add(at, f.Text)
			}
		}
	}
	label := "this-node"
	if !own.Node.IsZero() {
		label = own.Node.String()
	}
	place(label, own)
	nodes, err := a.client.Nodes(ctx)
	if err != nil {
		lacks("the other nodes", err)
	}
	p := a.newProgress()
	defer p.end()
	for i, n := range nodes {
		if n.ID == own.Node.ID {
			continue
		}
		if a.progress { // it is soon done, so that a pipe has nothing to tell
			p.show(fmt.Sprintf("asking node %s, %d of %d", n.Name, i+1, len(nodes)))
		}
		d, err := a.client.Diagnostics(ctx, api.DiagnosticsQuery{Node: string(n.ID), Since: since})
		if err != nil {
			lacks("all of node "+n.Name, err)
			continue
		}
		place(n.Name, d)
	}
	t.add("README.txt", readme(a.now(), since, missing))
	return missing, errors.Join(t.err, t.Close(), zip.Close())
}

// localName says that a file stays in its node's directory.
func localName(name string) bool {
	return name != "" && path.Clean(name) == name && !path.IsAbs(name) && name != ".." && !strings.HasPrefix(name, "../")
}

func readme(now time.Time, since time.Duration, missing []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Made by flockctl diagnostics at %s, with logs of the last %s.\n", now.UTC().Format(time.RFC3339), volume.FormatDuration(since))
	b.WriteString("doctor.txt says what is wrong; nodes/ has what each node had to show. Names of volumes, containers and machines\n" +
		"are in it; keys, join tokens and descriptions of containers are not.\n\n")
	if len(missing) == 0 {
		b.WriteString("Nothing is missing.\n")
		return b.String()
	}
	b.WriteString("Not in it:\n")
	for _, m := range missing {
		fmt.Fprintf(&b, "  - %s\n", strings.Join(strings.Fields(m), " "))
	}
	return b.String()
}

func findingsText(d api.Doctor) string {
	var b strings.Builder
	for _, f := range d.Findings {
		fmt.Fprintf(&b, "%s %s %s: %s\n", f.Severity, f.Node, f.Check, f.What)
		if f.Severity != doctor.OK {
			fmt.Fprintf(&b, "  why: %s\n  fix: %s\n", f.Why, f.Fix)
		}
	}
	return b.String()
}

// archive is a tar with one directory. After an error it takes nothing more.
type archive struct {
	*tar.Writer
	root string
	at   time.Time
	err  error
}

func (t *archive) add(name, text string) {
	if t.err != nil {
		return
	}
	t.err = t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(t.root, name), Mode: 0o600, Size: int64(len(text)), ModTime: t.at})
	if t.err == nil {
		_, t.err = io.WriteString(t.Writer, text)
	}
}
