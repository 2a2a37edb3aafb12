package zfs_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/zfs"
)

var update = flag.Bool("update", false, "write what the code does into testdata")

// TestMain lets this binary stand in for zfs and zpool on a bad day.
func TestMain(m *testing.M) {
	if mode := os.Getenv("ZFS_TEST_MODE"); mode != "" {
		os.Exit(misbehave(mode))
	}
	os.Exit(m.Run())
}

// reply is what the nth command of a case prints: when it fails, its complaint, or
// its output and its complaint with 2> between them.
type reply struct {
	Code int
	Text string
}

// standIn writes down how it was called, of a program also with which arguments, and
// gives the next reply. It is a script because a test binary takes a second to start
// under the race detector.
const standIn = `#!/bin/sh
if [ "$1" = program ]; then
	while IFS= read -r line || [ -n "$line" ]; do last=$line; done
	set -- "$@" "<${last#return f}"
fi
{ printf '%s\0' "${0##*/}" "$@"; printf '\n'; } >>"$ZFS_TEST_DIR/log"
n=0
[ -e "$ZFS_TEST_DIR/n" ] && read -r n <"$ZFS_TEST_DIR/n"
echo $((n + 1)) >"$ZFS_TEST_DIR/n"
[ -e "$ZFS_TEST_DIR/out$n" ] && /bin/cat "$ZFS_TEST_DIR/out$n"
[ -e "$ZFS_TEST_DIR/err$n" ] && /bin/cat "$ZFS_TEST_DIR/err$n" >&2
code=0
[ -e "$ZFS_TEST_DIR/code$n" ] && read -r code <"$ZFS_TEST_DIR/code$n"
exit "$code"
`

// install puts stand-ins into PATH as zfs and zpool, and says how they were called.
func install(t *testing.T, replies []reply) (calls func() [][]string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"zfs", "zpool", "mount", "umount"} {
		write(name, standIn, 0o755)
	}
	for i, r := range replies {
		out, complaint, both := strings.Cut(r.Text, "2>")
		if r.Code != 0 {
			if !both {
				out, complaint = "", out
			}
			write(fmt.Sprint("code", i), fmt.Sprintln(r.Code), 0o644)
			write(fmt.Sprint("err", i), complaint, 0o644)
		}
		write(fmt.Sprint("out", i), out, 0o644)
	}
	t.Setenv("PATH", dir)
	t.Setenv("ZFS_TEST_DIR", dir)
	return func() (calls [][]string) {
		all, _ := os.ReadFile(filepath.Join(dir, "log"))
		for line := range strings.Lines(string(all)) {
			calls = append(calls, strings.Split(strings.TrimSuffix(line, "\x00\n"), "\x00"))
		}
		return calls
	}
}

// TestArgv runs the calls of testdata/argv.txt against stand-ins for zfs and zpool
// and compares the command lines and the outcome. A case is a call, the replies of
// the commands in order, and after the dashes what happened. -update writes it.
func TestArgv(t *testing.T) {
	const file = "testdata/argv.txt"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, block := range strings.Split(string(raw), "\n\n") {
		given, want, found := strings.Cut(block, "----\n")
		if !found {
			out = append(out, block)
			continue
		}
		var comment, call string
		var replies []reply
		for line := range strings.Lines(given) {
			line = strings.TrimSuffix(line, "\n")
			switch {
			case strings.HasPrefix(line, "#"):
				comment += line + "\n"
			case strings.HasPrefix(line, "reply "):
				code, text, _ := strings.Cut(strings.TrimPrefix(line, "reply "), " ")
				n, err := strconv.Atoi(code)
				if err != nil {
					t.Fatalf("%s: %s", line, err)
				}
				replies = append(replies, reply{n, strings.NewReplacer(`\n`, "\n", `\t`, "\t").Replace(text)})
			default:
				call = line
			}
		}
		t.Run(call, func(t *testing.T) {
			calls := install(t, replies)
			result := dispatch(t, zfs.New(zfs.Options{}), strings.Fields(call))
			var got strings.Builder
			for _, argv := range calls() {
				for i, a := range argv {
					if strings.ContainsAny(a, " \t") || a == "" {
						argv[i] = strconv.Quote(a)
					}
				}
				fmt.Fprintln(&got, strings.Join(argv, " "))
			}
			fmt.Fprint(&got, result)
			if got.String() != strings.TrimSuffix(want, "\n") && !*update {
				t.Errorf("got\n%s\nwant\n%s", got.String(), want)
			}
			out = append(out, given+"----\n"+got.String())
		})
		_ = comment
	}
	if *update {
		if err := os.WriteFile(file, []byte(strings.TrimSuffix(strings.Join(out, "\n\n"), "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// dispatch makes the call of a case: a method and its arguments, where key=value
// are properties and -word are flags.
func dispatch(t *testing.T, h *zfs.Host, words []string) string {
	t.Helper()
	ctx := t.Context()
	var args []string
	props := map[string]string{}
	flags := map[string]bool{}
	for _, w := range words[1:] {
		if key, value, found := strings.Cut(w, "="); found {
			props[key] = value
		} else if strings.HasPrefix(w, "-") {
			flags[w] = true
		} else {
			args = append(args, w)
		}
	}
	if len(props) == 0 {
		props = nil
	}
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	var result any
	var err error
	switch words[0] {
	case "Capabilities":
		result, err = h.Capabilities(ctx)
	case "Pool":
		result, err = h.Pool(ctx, arg(0))
	case "ImportPool":
		err = h.ImportPool(ctx, arg(0), arg(1))
	case "CreateFilePool":
		err = h.CreateFilePool(ctx, arg(0), filepath.Join(t.TempDir(), "p.img"), 64<<20)
	case "Datasets":
		result, err = h.Datasets(ctx, arg(0))
	case "Dataset":
		result, err = h.Dataset(ctx, arg(0))
	case "Properties":
		result, err = h.Properties(ctx, arg(0), args[1:])
	case "Delegated":
		result, err = h.Delegated(ctx, arg(0))
	case "Snapshots":
		result, err = h.Snapshots(ctx, arg(0), flags["-r"])
	case "SnapshotsNamed":
		result, err = h.SnapshotsNamed(ctx, args)
	case "Bookmarks":
		result, err = h.Bookmarks(ctx, arg(0), flags["-r"])
	case "CreateFilesystem":
		err = h.CreateFilesystem(ctx, arg(0), props)
	case "SetProperties":
		err = h.SetProperties(ctx, arg(0), props)
	case "Inherit":
		err = h.Inherit(ctx, arg(0), arg(1))
	case "Rename":
		err = h.Rename(ctx, arg(0), arg(1))
	case "Clone":
		err = h.Clone(ctx, arg(0), arg(1), props)
	case "Promote":
		err = h.Promote(ctx, arg(0))
	case "Snapshot":
		err = h.Snapshot(ctx, args, props)
	case "Bookmark":
		err = h.Bookmark(ctx, arg(0), arg(1))
	case "Hold":
		err = h.Hold(ctx, arg(0), arg(1))
	case "Release":
		err = h.Release(ctx, arg(0), arg(1))
	case "DestroySnapshots":
		err = h.DestroySnapshots(ctx, arg(0), args[1:])
	case "DestroyBookmark":
		err = h.DestroyBookmark(ctx, arg(0))
	case "Destroy":
		err = h.Destroy(ctx, arg(0))
	case "Mount":
		err = h.Mount(ctx, arg(0), flags["-w"])
	case "MountSnapshot":
		err = h.MountSnapshot(ctx, arg(0), arg(1))
	case "UnmountSnapshot":
		err = h.UnmountSnapshot(ctx, arg(0))
	case "Unmount":
		err = h.Unmount(ctx, arg(0))
	case "Send":
		var buf bytes.Buffer
		err = h.Send(ctx, sendRequest(args, props), &buf)
		result = fmt.Sprintf("%d bytes", buf.Len())
	case "EstimateSend":
		result, err = h.EstimateSend(ctx, sendRequest(args, props))
	case "Receive":
		origin := props["origin"]
		delete(props, "origin")
		err = h.Receive(ctx, zfs.ReceiveRequest{Dataset: arg(0), Origin: origin, Resumable: flags["-s"], Properties: props}, strings.NewReader("stream"))
	case "AbortReceive":
		err = h.AbortReceive(ctx, arg(0))
	case "DecodeToken":
		result, err = h.DecodeToken(ctx, arg(0))
	case "Take":
		var taken []zfs.Snapshot
		var failed map[string]error
		taken, failed, err = h.Take(ctx, args)
		result = fmt.Sprintf("%+v, failed: %v", taken, failed)
	case "Prune":
		var failed map[string]error
		failed, err = h.Prune(ctx, pruneRequest(args))
		result = failed
	default:
		t.Fatalf("no such method: %s", words[0])
	}
	if err != nil {
		return "error: " + describe(err)
	}
	if result != nil {
		return fmt.Sprintf("ok: %+v", result)
	}
	return "ok"
}

func sendRequest(args []string, props map[string]string) zfs.SendRequest {
	req := zfs.SendRequest{Token: props["token"], From: props["from"]}
	if len(args) > 0 {
		req.Snapshot = args[0]
	}
	return req
}

// pruneRequest: snapshots with "#mark" behind them are bookmarked first.
func pruneRequest(args []string) (reqs []zfs.PruneRequest) {
	for _, a := range args {
		snap, mark, _ := strings.Cut(a, "#")
		reqs = append(reqs, zfs.PruneRequest{Snapshot: snap, Bookmark: mark})
	}
	return reqs
}

var kindNames = map[error]string{
	zfs.ErrNotFound: "ErrNotFound", zfs.ErrExists: "ErrExists", zfs.ErrBusy: "ErrBusy", zfs.ErrHasClones: "ErrHasClones",
	zfs.ErrNoSpace: "ErrNoSpace", zfs.ErrDiverged: "ErrDiverged", zfs.ErrNoBase: "ErrNoBase", zfs.ErrBadStream: "ErrBadStream",
	zfs.ErrInterrupted: "ErrInterrupted", zfs.ErrBadToken: "ErrBadToken", zfs.ErrSuspended: "ErrSuspended",
	zfs.ErrInvalid: "ErrInvalid", zfs.ErrUnsupported: "ErrUnsupported", zfs.ErrNoZFS: "ErrNoZFS",
}

func describe(err error) string {
	var e *zfs.Error
	if !errors.As(err, &e) {
		return "not an *Error: " + err.Error()
	}
	kind := "no kind"
	if e.Kind != nil {
		kind = kindNames[e.Kind]
	}
	s := e.Op + " " + kind
	if len(e.Names) > 0 {
		s += " " + strings.Join(e.Names, " ")
	}
	return s
}
