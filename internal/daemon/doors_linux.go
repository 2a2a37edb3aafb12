package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

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
