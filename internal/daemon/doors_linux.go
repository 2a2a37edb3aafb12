package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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
	program, err := os.Executable()
	if err != nil {
		return osDoors{}, fmt.Errorf("finding the own program: %w", err)
	}
	return osDoors{dir: dir, program: strings.TrimSuffix(program, " (deleted)")}, nil
}

func (o osDoors) Program() string { return o.program }

func (o osDoors) Open(token string) (Door, error) {
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return nil, err
	}
	return warm.OpenDoor(filepath.Join(o.dir, token))
}

func (o osDoors) Of(pid int) string { return mounts.ContainerOf(fmt.Sprintf("/proc/%d", pid)).ID }

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
		tokens = append(tokens, e.Name())
	}
	return tokens, err
}

func (o osDoors) Discard(token string) error { return warm.Discard(filepath.Join(o.dir, token)) }
