package daemon

import (
	"io"
	"io/fs"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/browse"
)

// What is read for people is read with the lowest priority, in whatever form they want it, and
// nothing else of flockd's is.
func TestReadingYields(t *testing.T) {
	nice := func() int {
		prio, err := unix.Getpriority(unix.PRIO_PROCESS, unix.Gettid())
		if err != nil {
			t.Error(err)
		}
		return 20 - prio // the kernel tells 20 less it
	}
	before := nice()
	fsys := &noting{Files: browse.Of(fstest.MapFS{"f": {Data: []byte("text"), Mode: 0o644}})}
	for _, as := range []api.BrowseAs{api.AsFile, api.AsTar, api.AsList} {
		fsys.seen = nil
		fsys.look = func() { fsys.seen = append(fsys.seen, nice()) }
		path := "."
		if as == api.AsFile {
			path = "f"
		}
		var size int64
		body, err := content(t.Context(), fsys, api.BrowseCopyRequest{Path: path, As: as}, &size)
		if err != nil {
			t.Fatalf("%s: %v", as, err)
		}
		got, err := io.ReadAll(body)
		if err != nil || len(got) == 0 || as == api.AsFile && (string(got) != "text" || size != 4) {
			t.Errorf("%s: %q, %v", as, got, err)
		}
		if err := body.Close(); err != nil {
			t.Errorf("%s: closing it: %v", as, err)
		}
		if n := len(fsys.seen); n == 0 || fsys.seen[n-1] != 19 {
			t.Errorf("%s: read with priorities %v, want 19 at last", as, fsys.seen)
		}
	}
	if now := nice(); now != before {
		t.Errorf("this goes on with %d, and began with %d", now, before)
	}
}

// noting is told of what is done with files.
type noting struct {
	browse.Files
	look func()
	seen []int
}

func (n *noting) Open(name string) (fs.File, error) {
	n.look()
	f, err := n.Files.Open(name)
	if err != nil {
		return nil, err
	}
	return notingFile{f, n}, nil
}

type notingFile struct {
	fs.File
	n *noting
}

func (f notingFile) Read(b []byte) (int, error) {
	f.n.look()
	return f.File.Read(b)
}

func (f notingFile) ReadDir(n int) ([]fs.DirEntry, error) {
	f.n.look()
	return f.File.(fs.ReadDirFile).ReadDir(n)
}
