package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/browse"
	"github.com/flocker-io/flocker/internal/volume"
)

const browseHelp = `Files are read from a snapshot, on whichever node has it, while the volume is in use as ever.
Without @SNAPSHOT it is the newest one that has PATH: what was deleted is found by its path alone.
A path begins at the top of the volume, as containers see it.`

func (a *app) browseCommand() *cli.Command {
	const where = "VOLUME[@SNAPSHOT] "
	list := a.untimed(1, 2, a.listFiles)
	return &cli.Command{
		Name: "browse", Usage: "list, read and copy files of a volume's snapshots", ArgsUsage: where + "[PATH]", Description: browseHelp,
		// flockctl browse VOLUME lists, too.
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return unknownCommand(c)
			}
			return list(c)
		},
		Subcommands: []*cli.Command{
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list a directory of a snapshot", ArgsUsage: where + "[PATH]", Description: browseHelp,
				Action: list,
			},
			{
				Name: "cat", Usage: "print a file of a snapshot", ArgsUsage: where + "PATH", Description: browseHelp,
				Action: a.untimed(2, 2, a.catFile),
			},
			{
				Name: "get", Usage: "copy a file or a directory out of a snapshot", ArgsUsage: where + "PATH [DEST]",
				Description: browseHelp + "\n\n" +
					"DEST is a directory to put it into, or what the copy shall be called; nothing is overwritten. Times, modes\n" +
					"and links are kept, owners too if root asks; extended attributes are not. Pipes and devices are left out.\n" +
					"Files lose the bits setuid and setgid: programs that a container has made run as nobody else here.",
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "setuid", Usage: "keep the bits setuid and setgid of files, if root asks"}},
				Action: a.untimed(2, 3, a.getFiles),
			},
		},
	}
}

func (a *app) diffCommand() *cli.Command {
	return &cli.Command{
		Name: "diff", Usage: "tell what has changed between two snapshots of a volume, or since one", ArgsUsage: "VOLUME SNAPSHOT [SNAPSHOT]",
		Description: "+ is what came, - what went, M what was changed, and R what was renamed. Of a directory, M is only of its owner\n" +
			"and mode. With one snapshot it is what has changed until now, for which another one is taken.",
		Flags:  []cli.Flag{&cli.StringFlag{Name: "path", Usage: "only at and below this `PATH`, from the top of the volume"}},
		Action: a.untimed(2, 3, a.diff),
	}
}

func (a *app) diff(ctx context.Context, c *cli.Context) error {
	ref, since, name := c.Args().First(), c.Args().Get(1), c.Args().Get(2)
	// VOLUME@SNAPSHOT is how others take them.
	for _, s := range []*string{&since, &name} {
		if of, rest, at := strings.Cut(*s, "@"); at && of == ref {
			*s = rest
		}
	}
	if ref == "" || since == "" || strings.Contains(ref, "@") || c.NArg() == 3 && name == "" {
		return usage(c, "%q is not VOLUME SNAPSHOT [SNAPSHOT]", strings.Join(c.Args().Slice(), " "))
	}
	var found atomic.Int64
	stop := a.meanwhile(ctx, a.comparing(fmt.Sprintf("%s: comparing %s with %s", ref, since, cmp.Or(name, "now")), &found))
	defer stop()
	b, end, err := a.open(ctx, ref, api.BrowseRequest{Snapshot: name, Since: since, Path: c.String("path"), As: api.AsDiff})
	if err != nil {
		return err
	}
	defer end()
	if a.asJSON {
		return a.jsonLines(b, "changes", func(out func(any) error) error {
			return b.Changes(func(x browse.Change) error { return out(x) })
		})
	}
	if name == "" && !a.quiet {
		what := "the newest snapshot there is"
		if b.Fresh {
			what = "taken for this"
		}
		a.say("flockctl: until %s@%s, %s\n", b.Volume, b.Snapshot, what)
	}
	var some []browse.Change
	flush := func() error {
		defer func() { some = some[:0] }()
		slices.SortStableFunc(some, func(x, y browse.Change) int { return cmp.Compare(x.Path, y.Path) })
		for _, x := range some {
			now, was := x.Paths()
			line := plain(now)
			if x.Type == browse.Directory && now != "/" {
				line = plain(now + "/")
			}
			if was != "" {
				line = plain(was) + " -> " + line
			}
			if !a.quiet {
				line = changeLetter[x.Kind] + "  " + line
			}
			if _, err := fmt.Fprintln(a.stdout, line); err != nil {
				return err
			}
		}
		return nil
	}
	err = b.Changes(func(x browse.Change) error {
		found.Add(1)
		if some = append(some, x); len(some) < listBatch {
			return nil
		}
		return a.printing(flush)
	})
	if err != nil {
		return err
	}
	stop()
	return flush()
}

// comparing says how many changes are found, and for how long they have been looked for.
func (a *app) comparing(what string, found *atomic.Int64) func(context.Context) []string {
	began := a.now()
	return func(context.Context) []string {
		text := fmt.Sprintf("%s, for %s", what, age(a.now().Sub(began)))
		if n := found.Load(); n > 0 {
			text += ": " + plural(int(n), "change")
		}
		return []string{text}
	}
}

var changeLetter = map[browse.Kind]string{browse.Added: "+", browse.Removed: "-", browse.Modified: "M", browse.Renamed: "R"}

// browse opens what VOLUME[@SNAPSHOT] PATH mean.
func (a *app) browse(ctx context.Context, c *cli.Context, as api.BrowseAs) (*api.Browsed, context.CancelFunc, error) {
	ref, name, at := strings.Cut(c.Args().First(), "@")
	if ref == "" || at && name == "" {
		return nil, nil, usage(c, "%q is not VOLUME or VOLUME@SNAPSHOT", c.Args().First())
	}
	b, end, err := a.open(ctx, ref, api.BrowseRequest{Snapshot: name, Path: c.Args().Get(1), As: as})
	if err != nil {
		return nil, nil, err
	}
	if name == "" && !a.quiet && !a.asJSON {
		a.say("flockctl: in %s@%s, taken %s ago\n", b.Volume, b.Snapshot, a.ago(b.Taken))
	}
	return b, end, nil
}

// open opens something of a snapshot. The user's patience is for its beginning; all of it may
// take as long as it takes, unless a time was given.
func (a *app) open(ctx context.Context, ref string, req api.BrowseRequest) (*api.Browsed, context.CancelFunc, error) {
	var err error
	if req.Path, err = browse.Clean(req.Path); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(a.timeout, func() {
		cancel(volume.Errorf(volume.CodeTimeout, "not done within %s", a.timeout).WithHint("--timeout gives it longer"))
	})
	end := func() {
		late.Stop()
		cancel(nil)
	}
	b, err := a.client.Browse(ctx, ref, req)
	if err != nil {
		end()
		return nil, nil, err
	}
	if a.patient {
		late.Stop()
	}
	return b, func() { b.Body.Close(); end() }, nil
}

// listBatch is how many entries are held, to be sorted and to get their columns. What is
// beyond comes in the order of the directory.
const listBatch = 10000

func (a *app) listFiles(ctx context.Context, c *cli.Context) error {
	b, end, err := a.browse(ctx, c, api.AsList)
	if err != nil {
		return err
	}
	defer end()
	if a.asJSON {
		return a.jsonLines(b, "entries", func(out func(any) error) error {
			return b.Entries(func(e browse.Entry) error { return out(e) })
		})
	}
	var some []browse.Entry
	first := true
	flush := func() error {
		slices.SortFunc(some, func(x, y browse.Entry) int { return cmp.Compare(x.FileName(), y.FileName()) })
		if a.quiet {
			for _, e := range some {
				a.printf("%s\n", plain(e.FileName()))
			}
			return nil
		}
		t := &table{}
		if first {
			t = newTable("MODE", "OWNER", "SIZE", "MODIFIED", "NAME")
		}
		for _, e := range some {
			t.add(fileMode(e), fmt.Sprintf("%d:%d", e.UID, e.GID), fileSize(e), e.Modified.Format(time.DateTime), fileName(e))
		}
		first, some = false, some[:0]
		return t.print(a.stdout)
	}
	err = b.Entries(func(e browse.Entry) error {
		if some = append(some, e); len(some) < listBatch {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	return flush()
}

// jsonLines prints one document, as it comes.
func (a *app) jsonLines(b *api.Browsed, name string, all func(out func(any) error) error) error {
	head, err := json.Marshal(b)
	if err != nil {
		return err
	}
	a.printf("%s,\"%s\":[", printable(bytes.TrimSuffix(head, []byte("}"))), name)
	sep := "\n"
	err = all(func(x any) error {
		line, err := json.Marshal(x)
		if err == nil {
			_, err = fmt.Fprintf(a.stdout, "%s%s", sep, printable(line))
		}
		sep = ",\n"
		return err
	})
	if err != nil {
		return err
	}
	a.printf("\n]}\n")
	return nil
}

func fileMode(e browse.Entry) string {
	letter := map[browse.Type]string{browse.File: "-", browse.Directory: "d", browse.Link: "l", browse.Pipe: "p", browse.Socket: "s", browse.Device: "b"}[e.Type]
	return letter + e.Mode
}

func fileSize(e browse.Entry) string {
	if e.Type != browse.File {
		return ""
	}
	return size(e.Size)
}

func fileName(e browse.Entry) string {
	name := plain(e.FileName())
	switch e.Type {
	case browse.Directory:
		name += "/"
	case browse.Link:
		name += " -> " + plain(e.Target)
	}
	return name
}

// plain is a name that a container has chosen, as it is safe on a terminal and on one line.
func plain(name string) string {
	if q := strconv.Quote(name); q != `"`+name+`"` || name == "" {
		return q
	}
	return name
}

func (a *app) catFile(ctx context.Context, c *cli.Context) error {
	if a.asJSON {
		return usage(c, "the content of a file is not JSON")
	}
	b, end, err := a.browse(ctx, c, api.AsFile)
	if err != nil {
		return err
	}
	defer end()
	_, err = io.Copy(a.stdout, b.Body)
	return err
}

func (a *app) getFiles(ctx context.Context, c *cli.Context) error {
	dest, err := destination(c.Args().Get(1), c.Args().First(), c.Args().Get(2))
	if err != nil {
		return err
	}
	dir, err := os.OpenRoot(filepath.Dir(dest))
	if err != nil {
		return badDestination(dest, err)
	}
	defer dir.Close()
	b, end, err := a.browse(ctx, c, api.AsTar)
	if err != nil {
		return err
	}
	defer end()
	from := &counted{Reader: b.Body}
	began := a.now()
	stop := a.meanwhile(ctx, func(context.Context) []string {
		n := from.bytes.Load()
		text := fmt.Sprintf("%s: %s copied", dest, size(n))
		if took := a.now().Sub(began).Seconds(); took >= 1 {
			text += fmt.Sprintf(", %s/s", size(int64(float64(n)/took)))
		}
		return []string{text}
	})
	made, err := browse.Extract(dir, filepath.Base(dest), browse.Keep{Owners: os.Geteuid() == 0, Setuid: c.Bool("setuid")}, from)
	stop()
	if err != nil {
		return badDestination(dest, err)
	}
	if made.Lefts > 0 {
		a.say("flockctl: left out, since they are no files: %s\n", leftOut(made))
	}
	if made.Plain > 0 {
		a.say("flockctl: without the bits setuid and setgid that they had: %s\n", plural(int(made.Plain), "file"))
	}
	switch {
	case a.asJSON:
		return a.printJSON(struct {
			*api.Browsed
			browse.Extracted
			Dest string `json:"dest"`
		}{b, made, dest})
	case a.quiet:
		a.printf("%s\n", dest)
		return nil
	}
	a.printf("%s: %s, %s, from %s@%s, taken %s ago\n", dest, plural(int(made.Files), "file"), size(made.Bytes), b.Volume, b.Snapshot, a.ago(b.Taken))
	return nil
}

func leftOut(x browse.Extracted) string {
	var names []string
	for _, n := range x.Left {
		names = append(names, plain(n))
	}
	if more := x.Lefts - int64(len(x.Left)); more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

// destination is what the copy of a path will be called: dest, or its own name in it when
// that is a directory. The whole of a volume has the volume's name.
func destination(p, from, dest string) (string, error) {
	name, err := browse.Clean(p)
	if err != nil {
		return "", err
	}
	if name = path.Base(name); name == "." {
		name, _, _ = strings.Cut(from, "@")
	}
	dest = cmp.Or(dest, ".")
	fi, err := os.Stat(dest)
	switch {
	case err == nil && fi.IsDir():
		dest = filepath.Join(dest, name)
	case errors.Is(err, fs.ErrNotExist) && !strings.HasSuffix(dest, "/"):
	case err == nil:
		return "", volume.Errorf(volume.CodeConflict, "%s is there already, and nothing is overwritten", dest).
			WithHint("give another destination, or move it away")
	default:
		return "", badDestination(dest, err)
	}
	return filepath.Clean(dest), nil
}

// badDestination is what is wrong here and not with the snapshot, in words.
func badDestination(dest string, err error) error {
	switch {
	case volume.CodeOf(err) != "":
		return err
	case errors.Is(err, fs.ErrNotExist):
		return volume.Errorf(volume.CodeInvalid, "there is no directory for %s", dest).WithHint("make it first")
	case errors.Is(err, fs.ErrExist):
		return volume.Errorf(volume.CodeConflict, "%s is there already, and nothing is overwritten", dest).
			WithHint("give another destination, or move it away")
	case errors.Is(err, fs.ErrPermission):
		return volume.Errorf(volume.CodeDenied, "no permission to write %s: %v", dest, err)
	}
	return fmt.Errorf("writing %s: %w", dest, err)
}
