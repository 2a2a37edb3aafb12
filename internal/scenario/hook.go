package scenario

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// hooks are what is done in the containers of one machine before they are stopped for a
// move. Each writes a file into the volume, as a server that flushes does; when the
// container is stopped, that has to be on another machine.
type hooks struct {
	machine *Machine

	mu      sync.Mutex
	how     string // "": it works; fails or hangs
	ran     []string
	written map[string]string // by container: the dataset that it was written to
}

const hookFile = "flushed"

func (h *hooks) run(ctx context.Context, name string, command []string) (string, error) {
	h.mu.Lock()
	how, script := h.how, strings.Join(command, " ")
	h.ran = append(h.ran, name)
	h.mu.Unlock()
	switch how {
	case "fails":
		return "", errors.New("it ended with code 1: connection refused")
	case "hangs":
		<-ctx.Done()
		return "", context.Cause(ctx)
	}
	if ds := h.machine.world.datasetUnder(name); ds != "" && !strings.Contains(script, "default || {") {
		if err := errors.Join(h.machine.ZFS.WriteFile(ds, hookFile, []byte(name)), h.machine.ZFS.Sync(ds)); err != nil {
			return "", err
		}
		h.mu.Lock()
		h.written = map[string]string{name: ds}
		h.mu.Unlock()
	}
	return "changed", nil
}

// stopping checks that what a hook has written was copied before its container is stopped.
func (h *hooks) stopping(name string) {
	h.mu.Lock()
	ds := h.written[name]
	delete(h.written, name)
	h.mu.Unlock()
	w := h.machine.world
	if ds != "" && !slices.ContainsFunc(w.Names(), func(other string) bool {
		_, err := w.nodes[other].ZFS.ReadFile(ds, hookFile)
		return other != h.machine.Name && err == nil
	}) {
		w.t.Errorf("container %s on %s is stopped while what its hook has written is on no other machine", name, h.machine.Name)
	}
}

// datasetUnder is that of the volume of a container that follows; "" for none, and for
// several: each of these is copied ahead for itself, and the first one stops the container.
func (w *World) datasetUnder(name string) string {
	for _, s := range w.states() {
		for c := range s.Containers() {
			if c.Name == name && len(c.Volumes) == 1 {
				return datasetOf(c.Volumes[0].ID)
			}
		}
	}
	return ""
}

// hookStep is a step about what is done in containers before their stop; ok is false for
// another step.
//
//	hook NODE works|fails|hangs    what becomes of it there
//	hooks NODE CONTAINER..         it was done in these there, in this order, undoing it included
func (w *World) hookStep(words []string) (ok bool, err error) {
	if len(words) < 2 || w.nodes[words[1]] == nil {
		return false, nil
	}
	h := w.nodes[words[1]].hooks
	h.mu.Lock()
	defer h.mu.Unlock()
	switch words[0] {
	case "hook":
		h.how = words[2]
	case "hooks":
		if !slices.Equal(h.ran, words[2:]) {
			return true, fmt.Errorf("it was done in %q", h.ran)
		}
	default:
		return false, nil
	}
	return true, nil
}
