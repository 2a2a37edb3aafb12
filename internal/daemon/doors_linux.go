package daemon

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/mounts"
	"github.com/flocker-io/flocker/internal/warm"
)

// osDoors is Doors on the real machine, below a directory that only root can enter. A door
// stays for as long as its container is there, which has a directory of it mounted.
type osDoors struct {
	dir     string
	program string
}

// newDoors is Doors with this program in the containers.
func newDoors(dir string) (osDoors, error) {
	o := osDoors{dir: dir, program: filepath.Join(dir, "flockd")}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return o, err
	}
	// A copy: containers mount it by its path for as long as they are there, and the one that
	// was started may be moved, or be replaced by a version that knows no gates.
	if err := copyProgram("/proc/self/exe", o.program); err != nil {
		return o, fmt.Errorf("copying the own program for containers that wait: %w", err)
	}
	return o, nil
}

// copyProgram has a file be as another one, at once or not at all.
func copyProgram(from, to string) (err error) {
	same, err := alikeFiles(from, to)
	if err != nil || same {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	tmp := to + ".new"
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	out, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Chmod(0o755), out.Sync(), out.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}

// alikeFiles says that two files have the same bytes; the second may be missing.
func alikeFiles(a, b string) (bool, error) {
	was, err := os.Stat(b)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	is, err := os.Stat(a)
	if err != nil || is.Size() != was.Size() || was.Mode().Perm() != 0o755 {
		return false, err
	}
	var sums [2][sha256.Size]byte
	for i, name := range []string{a, b} {
		f, err := os.Open(name)
		if err != nil {
			return false, err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return false, err
		}
		h.Sum(sums[i][:0])
	}
	return sums[0] == sums[1], nil
}

func (o osDoors) Program() string { return o.program }

func (o osDoors) Open(token string) (Door, error) {
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return nil, err
	}
	return warm.OpenDoor(filepath.Join(o.dir, token))
}

func (o osDoors) Of(pid int) string { return mounts.ContainerOf(fmt.Sprintf("/proc/%d", pid)).ID }

func (o osDoors) Holders(token string) (ids []string, err error) {
	held, err := mounts.HeldBy("/proc", filepath.Join(o.dir, token, "placeholder"))
	for _, h := range held {
		if h.Container != "" && !slices.Contains(ids, h.Container) {
			ids = append(ids, h.Container)
		}
	}
	return ids, err
}

func (o osDoors) settled(token string) string { return filepath.Join(o.dir, token, "settled") }

func (o osDoors) Settled(token string) bool {
	_, err := os.Stat(o.settled(token))
	return err == nil
}

func (o osDoors) Settle(token string) error { return os.WriteFile(o.settled(token), nil, 0o600) }

func (o osDoors) container(token string) string { return filepath.Join(o.dir, token, "container") }

func (o osDoors) Container(token string) string {
	b, err := os.ReadFile(o.container(token))
	if err != nil {
		return "" // it is then nobody's, and nothing is done about it
	}
	return string(b)
}

func (o osDoors) Name(token, id string) error {
	return os.WriteFile(o.container(token), []byte(id), 0o600)
}

// usedEvery is how often it is written down that a door is used.
const usedEvery = time.Hour

func (o osDoors) Unused(token string) (time.Duration, error) {
	at, err := os.Stat(filepath.Join(o.dir, token))
	if err != nil {
		return 0, err
	}
	return time.Since(at.ModTime()), nil
}

func (o osDoors) Use(token string) error {
	if unused, err := o.Unused(token); err != nil || unused < usedEvery {
		return err
	}
	now := time.Now()
	return os.Chtimes(filepath.Join(o.dir, token), now, now)
}

func (o osDoors) Release(token string) error { return warm.Released(filepath.Join(o.dir, token)) }

func (o osDoors) All() (tokens []string, err error) {
	entries, err := os.ReadDir(o.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if e.IsDir() { // beside them is the program
			tokens = append(tokens, e.Name())
		}
	}
	return tokens, err
}

func (o osDoors) Discard(token string) error { return warm.Discard(filepath.Join(o.dir, token)) }
