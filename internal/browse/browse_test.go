package browse

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"": ".", "/": ".", ".": ".", "a": "a", "/a/": "a", "a//b/./c": "a/b/c", "../../etc/passwd": "etc/passwd",
		"/a/../..": ".", "..": ".", "a/..b": "a/..b", " a\nb ": " a\nb ", "\xff": "\xff",
	} {
		if got, err := Clean(in); got != want || err != nil {
			t.Errorf("Clean(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for _, bad := range []string{"a\x00b", strings.Repeat("a/", MaxPath)} {
		if got, err := Clean(bad); volume.CodeOf(err) != volume.CodeInvalid {
			t.Errorf("Clean(%.20q) = %.20q, %v", bad, got, err)
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "/", "../..", "a/../../b", "a\x00", "./.", "//.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := Clean(in)
		if err != nil {
			return
		}
		if again, err := Clean(got); again != got || err != nil {
			t.Errorf("%q: once %q, twice %q, %v", in, got, again, err)
		}
		if !filepath.IsLocal(got) || strings.HasPrefix(got, "../") {
			t.Errorf("%q leads to %q", in, got)
		}
	})
}

var then = time.Date(2026, 1, 2, 3, 4, 5, 6007, time.UTC)

// hostile is a data directory as a container may leave it, beside a secret that is none of
// its own.
func hostile(t testing.TB) Files {
	t.Helper()
	top := t.TempDir()
	at := func(name string) string { return filepath.Join(top, "data", name) }
	errs := []error{
		os.WriteFile(filepath.Join(top, "secret"), []byte("secret"), 0o644),
		os.MkdirAll(at("dir/sub"), 0o755),
		os.WriteFile(at("dir/file"), []byte("content"), 0o640),
		os.WriteFile(at("dir/sub/big"), bytes.Repeat([]byte("x"), 300<<10), 0o600),
		os.Chmod(at("dir/sub"), 0o500),
		os.WriteFile(at("odd\n\xff\x1b"), nil, 0o600),
		os.Symlink("file", at("dir/inside")),
		os.Symlink("dir", at("dirlink")),
		os.Symlink("../secret", at("outside")),
		os.Symlink("/etc/passwd", at("passwd")),
		os.Symlink("..", at("up")),
		os.Symlink("nothing", at("dangling")),
		os.Symlink("loop", at("loop")),
		syscall.Mkfifo(at("pipe"), 0o600),
		os.Chtimes(at("dir/file"), then, then),
		os.Chtimes(at("dir/sub"), then, then),
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(at("dir/sub"), 0o700) })
	f, err := In(top, "data")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestOpen(t *testing.T) {
	f := hostile(t)
	for _, tt := range []struct {
		name, want string
		code       volume.Code
	}{
		{"dir/file", "content", ""},
		{"dir/inside", "content", ""},
		{"dirlink/file", "content", ""},
		{"dir", `"/dir" is a directory and no file`, volume.CodeInvalid},
		{".", "/ is a directory", volume.CodeInvalid},
		{"pipe", `"/pipe" is a pipe and no file`, volume.CodeInvalid},
		{"no", `has no "/no"`, volume.CodeNotFound},
		{"no/no", `has no "/no/no"`, volume.CodeNotFound},
		{"dir/file/x", `"/dir/file" is a file and no directory`, volume.CodeNotFound},
		{"outside", `"/outside" is a symbolic link to "../secret", which is not followed`, volume.CodeRefused},
		{"passwd", `"/passwd" is a symbolic link to "/etc/passwd", which is not followed`, volume.CodeRefused},
		{"up/secret", `"/up" is a symbolic link to "..", which is not followed`, volume.CodeRefused},
		{"loop", `is a symbolic link to "loop", which is not followed`, volume.CodeRefused},
		{"dangling", `is a symbolic link to "nothing", where nothing is`, volume.CodeNotFound},
		{strings.Repeat("n", 300), "name too long", ""},
	} {
		r, size, err := Open(f, tt.name)
		got := fmt.Sprint(err)
		if err == nil {
			b, rerr := io.ReadAll(r)
			if got = string(b); rerr != nil || size != int64(len(b)) {
				t.Errorf("%s: %d bytes, said %d, %v", tt.name, len(b), size, rerr)
			}
			r.Close()
		}
		if !strings.Contains(got, tt.want) || volume.CodeOf(err) != tt.code {
			t.Errorf("%.20s: %s (code %q), want %s", tt.name, got, volume.CodeOf(err), tt.want)
		}
	}
}

// The data directory itself is not followed anywhere.
func TestDataDirectoryThatIsALink(t *testing.T) {
	top := t.TempDir()
	if _, err := In(top, "data"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(top, "other"), 0o700), os.Symlink("other", filepath.Join(top, "data"))); err != nil {
		t.Fatal(err)
	}
	if _, err := In(top, "data"); err == nil {
		t.Error("a link was followed")
	}
}

func TestList(t *testing.T) {
	f := hostile(t)
	list := func(name string) []string {
		var got []string
		if err := List(t.Context(), f, name, func(e Entry) error {
			got = append(got, fmt.Sprintf("%q %s %s %s %d", e.FileName(), e.Type, e.Mode, e.Target, e.Size))
			return nil
		}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		slices.Sort(got)
		return got
	}
	want := []string{
		`"dangling" link 0777 nothing 0`, `"dir" directory 0755  0`, `"dirlink" link 0777 dir 0`, `"loop" link 0777 loop 0`,
		`"odd\n\xff\x1b" file 0600  0`, `"outside" link 0777 ../secret 0`, `"passwd" link 0777 /etc/passwd 0`, `"pipe" pipe 0600  0`, `"up" link 0777 .. 0`,
	}
	if got := list("."); !slices.Equal(got, want) {
		t.Errorf("the top:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := list("dir/file"); !slices.Equal(got, []string{`"file" file 0640  7`}) {
		t.Errorf("a file: %q", got)
	}
	if got := list("up"); !slices.Equal(got, []string{`"up" link 0777 .. 0`}) {
		t.Errorf("a link: %q", got)
	}
	if err := List(t.Context(), f, "up/x", nil); volume.CodeOf(err) != volume.CodeRefused {
		t.Errorf("through a link that leads out: %v", err)
	}
}

// counted is a tree that tells how many names it was asked for at a time, and how many
// directories are open.
type counted struct {
	Files
	most, open, deepest *int
}

type countedDir struct {
	fs.ReadDirFile
	c counted
}

func (c counted) Open(name string) (fs.File, error) {
	f, err := c.Files.Open(name)
	d, ok := f.(fs.ReadDirFile)
	if err != nil || !ok {
		return f, err
	}
	*c.open++
	*c.deepest = max(*c.deepest, *c.open)
	return countedDir{d, c}, nil
}

func (d countedDir) ReadDir(n int) ([]fs.DirEntry, error) {
	list, err := d.ReadDirFile.ReadDir(n)
	*d.c.most = max(*d.c.most, len(list))
	return list, err
}

func (d countedDir) Close() error { *d.c.open--; return d.ReadDirFile.Close() }

// A directory is not held in memory, however large it is, and a tree that is very deep is
// refused, not opened.
func TestBounds(t *testing.T) {
	top := t.TempDir()
	large, deep := filepath.Join(top, "data", "large"), filepath.Join(top, "data", strings.Repeat("d/", MaxDepth))
	if err := errors.Join(os.MkdirAll(large, 0o700), os.MkdirAll(deep, 0o700)); err != nil {
		t.Fatal(err)
	}
	const files = 3*batch + 1
	for i := range files {
		if err := os.WriteFile(filepath.Join(large, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in, err := In(top, "data")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	c := counted{in, new(int), new(int), new(int)}
	n := 0
	if err := List(t.Context(), c, "large", func(Entry) error { n++; return nil }); err != nil || n != files || *c.most > batch {
		t.Errorf("%d names, %d at a time, %v", n, *c.most, err)
	}
	if err := Tar(t.Context(), c, "d", io.Discard); err != nil {
		t.Errorf("as deep as may be: %v", err)
	}
	if err := Tar(t.Context(), c, ".", io.Discard); volume.CodeOf(err) != volume.CodeRefused {
		t.Errorf("deeper: %v", err)
	}
	if *c.open != 0 || *c.deepest > MaxDepth+1 {
		t.Errorf("%d are open, %d were", *c.open, *c.deepest)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := List(ctx, c, "large", func(Entry) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
	if err := Tar(ctx, c, "large", io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
}

// What is packed and unpacked is what it was, and what is a link stays one.
func TestRoundTrip(t *testing.T) {
	f := hostile(t)
	var b bytes.Buffer
	if err := Tar(t.Context(), f, ".", &b); err != nil {
		t.Fatal(err)
	}
	at := t.TempDir()
	dir, err := os.OpenRoot(at)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	t.Cleanup(func() { os.Chmod(filepath.Join(at, "copy/dir/sub"), 0o700) })
	out, err := Extract(dir, "copy", Keep{}, bytes.NewReader(b.Bytes()))
	if err != nil || out.Files != 13 || out.Bytes != 7+300<<10 || out.Lefts != 1 || !slices.Equal(out.Left, []string{"./pipe"}) {
		t.Fatalf("got %+v, %v", out, err)
	}
	got, err := os.ReadFile(filepath.Join(at, "copy/dir/inside"))
	if err != nil || string(got) != "content" {
		t.Errorf("through the link: %q, %v", got, err)
	}
	for name, mode := range map[string]fs.FileMode{"dir/file": 0o640, "dir/sub": 0o500 | fs.ModeDir} {
		fi, err := os.Lstat(filepath.Join(at, "copy", name))
		if err != nil || fi.Mode() != mode || !fi.ModTime().Equal(then) {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
	if target, err := os.Readlink(filepath.Join(at, "copy/passwd")); target != "/etc/passwd" || err != nil {
		t.Errorf("the link: %q, %v", target, err)
	}
	if _, err := Extract(dir, "copy", Keep{}, bytes.NewReader(b.Bytes())); volume.CodeOf(err) != volume.CodeConflict {
		t.Errorf("once more: %v", err)
	}
	// One file, one link.
	for _, name := range []string{"dir/file", "up"} {
		b.Reset()
		err := Tar(t.Context(), f, name, &b)
		if err == nil {
			_, err = Extract(dir, filepath.Base(name), Keep{}, &b)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for cut := 0; cut < b.Cap(); cut += 700 {
		b.Reset()
		if err := Tar(t.Context(), f, "dir", &b); err != nil {
			t.Fatal(err)
		}
		if cut > b.Len()-2048 {
			break
		}
		// The connection that is cut gives this error, see api.Browsed.
		r := io.MultiReader(bytes.NewReader(b.Bytes()[:cut]), failing{})
		if _, err := Extract(dir, "short", Keep{}, r); err == nil {
			t.Errorf("cut at %d of %d: no error", cut, b.Len())
		}
	}
	left, _ := os.ReadDir(at)
	if len(left) != 3 {
		t.Errorf("left behind: %v", left)
	}
	if err := Tar(t.Context(), f, "passwd/x", io.Discard); volume.CodeOf(err) != volume.CodeRefused {
		t.Errorf("through a link that leads out: %v", err)
	}
}

// failing is a stream that is cut.
type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("cut") }

// A socket is not in a stream.
func TestSocket(t *testing.T) {
	top, err := os.MkdirTemp("", "b") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(top)
	if err := os.Mkdir(top+"/data", 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", top+"/data/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := In(top, "data")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b bytes.Buffer
	if err := Tar(t.Context(), f, ".", &b); err != nil {
		t.Error(err)
	}
	if err := Tar(t.Context(), f, "s", &b); volume.CodeOf(err) != volume.CodeInvalid {
		t.Errorf("the socket itself: %v", err)
	}
}

func stream(entries ...tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		h.Mode = 0o600
		if h.Typeflag == tar.TypeDir {
			h.Mode = 0o700
		}
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		w.Write(make([]byte, h.Size))
	}
	w.Close()
	return b.Bytes()
}

var (
	aDir  = tar.Header{Name: "a/", Typeflag: tar.TypeDir}
	aLink = tar.Header{Name: "a/l", Typeflag: tar.TypeSymlink, Linkname: "../.."}
)

func entry(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg, Size: 3} }

// Streams that want to get out, or that are no streams of ours, make nothing.
var hostileStreams = map[string][]byte{
	"empty":                     {},
	"no tar":                    bytes.Repeat([]byte("x"), 2048),
	"up":                        stream(entry("../x")),
	"absolute":                  stream(entry("/x")),
	"two names":                 stream(entry("a/x")),
	"up from below":             stream(aDir, entry("a/../../x")),
	"beside":                    stream(aDir, entry("x")),
	"absolute below":            stream(aDir, entry("/a/x")),
	"through a link":            stream(aDir, aLink, entry("a/l/x")),
	"through a link that stays": stream(aDir, tar.Header{Name: "a/l", Typeflag: tar.TypeSymlink, Linkname: "."}, entry("a/l/x")),
	"over a link":               stream(aDir, aLink, entry("a/l")),
	"a directory on a link":     stream(aDir, aLink, tar.Header{Name: "a/l/", Typeflag: tar.TypeDir}, entry("a/l/x")),
	"twice":                     stream(aDir, entry("a/x"), entry("a/x")),
	"without its directory":     stream(aDir, entry("a/b/x")),
	"below a file":              stream(entry("a"), entry("a/x")),
	"a device":                  stream(tar.Header{Name: "a", Typeflag: tar.TypeBlock}),
	"a hard link":               stream(tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}),
	"from the top":              stream(tar.Header{Name: "./", Typeflag: tar.TypeDir}, entry("../x")),
	"the top twice":             stream(tar.Header{Name: "./", Typeflag: tar.TypeDir}, entry(".")),
}

// inside unpacks where nothing else may change, and says what is there.
func inside(t *testing.T, in []byte) (names []string, err error) {
	t.Helper()
	top := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(top, "a/b"), 0o700), os.WriteFile(filepath.Join(top, "x"), []byte("mine"), 0o600)); err != nil {
		t.Fatal(err)
	}
	dir, err := os.OpenRoot(filepath.Join(top, "a/b"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	_, err = Extract(dir, "copy", Keep{}, bytes.NewReader(in))
	if werr := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(top, path)
		switch {
		case err != nil:
			return nil // what was unpacked may be unreadable
		case rel == "." || rel == "a" || rel == "a/b" || rel == "x":
			return nil
		case rel != "a/b/copy" && !strings.HasPrefix(rel, "a/b/copy/"):
			t.Errorf("made %s", rel)
		}
		names = append(names, rel)
		os.Chmod(path, 0o700) // the test cleans up
		return nil
	}); werr != nil {
		t.Error(werr)
	}
	if mine, rerr := os.ReadFile(filepath.Join(top, "x")); string(mine) != "mine" {
		t.Errorf("overwritten: %q, %v", mine, rerr)
	}
	return names, err
}

func TestHostileStreams(t *testing.T) {
	for name, in := range hostileStreams {
		t.Run(name, func(t *testing.T) {
			if made, err := inside(t, in); err == nil || len(made) > 0 {
				t.Errorf("made %q, %v", made, err)
			}
		})
	}
	if made, err := inside(t, stream(aDir, aLink, entry("a/x"))); err != nil || len(made) != 3 {
		t.Errorf("a good one: made %q, %v", made, err)
	}
	dir, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, bad := range []string{"", ".", "..", "a/b", "/"} {
		if _, err := Extract(dir, bad, Keep{}, bytes.NewReader(stream(entry("a")))); volume.CodeOf(err) != volume.CodeInvalid {
			t.Errorf("as %q: %v", bad, err)
		}
	}
}

// A program that runs as another user does so in the container only, unless that is asked for.
// Of zeros nothing is written.
func TestExtractIsTame(t *testing.T) {
	const size = 64 << 20
	in := func() io.Reader {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range []tar.Header{
			{Name: "./", Typeflag: tar.TypeDir, Mode: 0o2755},
			{Name: "./shell", Typeflag: tar.TypeReg, Mode: 0o6755},
			{Name: "./holes", Typeflag: tar.TypeReg, Mode: 0o644, Size: size + 3},
		} {
			h.Uid, h.Gid = os.Getuid(), os.Getgid()
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if h.Size > 0 {
				content := make([]byte, size+3)
				content[0], content[size/2], content[size+1] = 'a', 'b', 'c'
				if _, err := w.Write(content); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return &b
	}
	at := t.TempDir()
	dir, err := os.OpenRoot(at)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	const both = fs.ModeSetuid | fs.ModeSetgid
	for name, tt := range map[string]struct {
		keep  Keep
		file  fs.FileMode
		dir   fs.FileMode
		plain int64
	}{
		"plain":  {Keep{}, 0, 0, 1},
		"owners": {Keep{Owners: true}, 0, fs.ModeSetgid, 1},
		"setuid": {Keep{Setuid: true}, 0, 0, 1},
		"both":   {Keep{Owners: true, Setuid: true}, both, fs.ModeSetgid, 0},
	} {
		out, err := Extract(dir, name, tt.keep, in())
		if err != nil {
			t.Fatal(err)
		}
		shell, err1 := os.Stat(filepath.Join(at, name, "shell"))
		top, err2 := os.Stat(filepath.Join(at, name))
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if shell.Mode()&both != tt.file || top.Mode()&both != tt.dir || out.Plain != tt.plain {
			t.Errorf("%s: the file is %v, the directory %v, %d are told of", name, shell.Mode(), top.Mode(), out.Plain)
		}
	}
	got, err := os.ReadFile(filepath.Join(at, "plain/holes"))
	if err != nil || len(got) != size+3 || got[0] != 'a' || got[size/2] != 'b' || got[size+1] != 'c' || bytes.Count(got, []byte{0}) != size {
		t.Errorf("the file with holes: %d bytes, %v", len(got), err)
	}
	fi, err := os.Stat(filepath.Join(at, "plain/holes"))
	if err != nil {
		t.Fatal(err)
	}
	if st := fi.Sys().(*syscall.Stat_t); st.Blocks*512 > size/4 {
		t.Errorf("it takes %d bytes", st.Blocks*512)
	}
}

// What is got out of a snapshot does not fill the disk that it is put on: it ends before, and
// leaves nothing. Holes take nothing.
func TestExtractLeavesRoom(t *testing.T) {
	const size = 3 * spaceStep
	content := func(b byte) io.Reader {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, Size: size}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte{b}, size)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return &out
	}
	for name, tt := range map[string]struct {
		fill      byte
		free, all int64 // at first
		want      bool
	}{
		"enough":               {'x', headroom + size + 2*spaceStep, 1 << 40, true},
		"not enough":           {'x', headroom + size - spaceStep, 1 << 40, false},
		"none":                 {'x', headroom, 1 << 40, false},
		"a small disk":         {'x', size + 2*spaceStep + headroom/20, headroom, true},
		"a small disk, filled": {'x', size - spaceStep + headroom/20, headroom, false},
		"holes":                {0, headroom + spaceStep, 1 << 40, true},
	} {
		t.Run(name, func(t *testing.T) {
			at := t.TempDir()
			dir, err := os.OpenRoot(at)
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			took := func() (n int64) {
				filepath.WalkDir(at, func(path string, d fs.DirEntry, err error) error {
					if err == nil && d.Type().IsRegular() {
						if fi, err := os.Stat(path); err == nil {
							n += fi.Sys().(*syscall.Stat_t).Blocks * 512
						}
					}
					return nil
				})
				return n
			}
			looks := 0
			_, err = extract(dir, "copy", Keep{}, content(tt.fill), func() (int64, int64, error) {
				looks++
				return tt.free - took(), tt.all, nil
			})
			if tt.want != (err == nil) || err != nil && (volume.CodeOf(err) != volume.CodeRefused || !strings.Contains(err.Error(), "stay so for other programs")) {
				t.Errorf("got %v", err)
			}
			if left, err := os.ReadDir(at); err != nil || (len(left) > 0) != tt.want {
				t.Errorf("it leaves %v, %v", left, err)
			}
			if looks > 5 {
				t.Errorf("it has looked %d times", looks)
			}
		})
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if free, all, err := space(dir); err != nil || all <= 0 || free < 0 || free > all {
		t.Errorf("this machine has %d of %d free, %v", free, all, err)
	}
}

// JSON has no years beyond 9999, and files do: one of them does not hide the others.
func TestListOfTimesThatNobodyHas(t *testing.T) {
	f := Of(fstest.MapFS{
		"a": {ModTime: time.Unix(1<<40, 0)}, "b": {ModTime: time.Unix(-1<<40, 0)}, "c": {ModTime: time.Unix(1, 0)},
	})
	var got []string
	if err := List(t.Context(), f, ".", func(e Entry) error {
		_, err := json.Marshal(e)
		got = append(got, fmt.Sprint(e.Name, e.Modified.Year()))
		return err
	}); err != nil {
		t.Error(err)
	}
	if want := []string{"a9999", "b0", "c1970"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func FuzzExtract(f *testing.F) {
	for _, in := range hostileStreams {
		f.Add(in)
	}
	f.Add(stream(aDir, aLink, entry("a/x")))
	f.Fuzz(func(t *testing.T, in []byte) {
		if made, err := inside(t, in); err != nil && len(made) > 0 {
			t.Errorf("refused with %v, and made %q", err, made)
		}
	})
}
