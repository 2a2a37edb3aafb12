package scenario

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/container/containerfake"
)

// hooks are what is done in the containers of one machine before they are stopped for a
// move. Each writes a file into the volume, as a server that flushes does; when the
// container is stopped, that has to be on another machine. Around a snapshot they run
// freeze and thaw: one that is frozen then stays so until it is thawed.
type hooks struct {
	machine *Machine

	mu      sync.Mutex
	how     string // "": it works; fails or hangs
	only    string // "": any; freeze or thaw
	ran     []string
	written map[string]string // by container: the dataset that it was written to
	frozen  map[string]bool
}

const hookFile = "flushed"

func (h *hooks) run(ctx context.Context, name string, command []string) (string, error) {
	h.mu.Lock()
	how, script := h.how, strings.Join(command, " ")
	snap := ""
	if i := slices.IndexFunc(command, func(s string) bool { return s == "freeze" || s == "thaw" }); i >= 0 {
		snap = command[i]
		h.ran = append(h.ran, name+":"+snap)
		if h.only != "" && h.only != snap {
			how = ""
		}
		if h.frozen == nil {
			h.frozen = map[string]bool{}
		}
		if snap == "freeze" || how != "fails" && how != "hangs" {
			h.frozen[name] = snap == "freeze" // what fails to freeze may have done half of it
		}
	} else {
		h.ran = append(h.ran, name)
	}
	h.mu.Unlock()
	switch how {
	case "fails":
		return "", &container.ExitError{Code: 1, Said: "connection refused"}
	case "hangs":
		<-ctx.Done()
		return "", context.Cause(ctx)
	}
	if snap != "" {
		return "", nil
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

// stopping checks that what a hook has written was copied before its container is stopped,
// and that it does not stand still for a snapshot.
func (h *hooks) stopping(name string) {
	h.mu.Lock()
	ds := h.written[name]
	delete(h.written, name)
	frozen := h.frozen[name]
	h.mu.Unlock()
	if frozen {
		h.machine.world.t.Errorf("container %s on %s is stopped while it stands still for a snapshot", name, h.machine.Name)
	}
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

// hookStep is a step about what is done in containers before their stop and around
// snapshots; ok is false for another step.
//
//	hook NODE works|fails|hangs [COMMAND]  what becomes of it there, or of freeze or thaw alone
//	hooks NODE CONTAINER..         it was done in these there, in this order, undoing it included;
//	                               CONTAINER:freeze and CONTAINER:thaw are those of snapshots
//	run-hooked NODE CONTAINER VOLUME..  docker run of one that freezes before and thaws after a snapshot;
//	                               run-following-hooked: and follows its volumes
//	frozen NODE CONTAINER, thawed NODE CONTAINER  until it is
//	prepared-by NODE VOLUME NAME CONTAINER..  that snapshot was prepared by these, as list and inspect say
//	snapshot-begins NODE NAME VOLUME..  flockctl snapshot create, which flockd does not live to do
func (w *World) hookStep(words []string) (ok bool, err error) {
	if len(words) < 2 || w.nodes[words[1]] == nil {
		return false, nil
	}
	m := w.nodes[words[1]]
	h := m.hooks
	switch words[0] {
	case "run-hooked", "run-following-hooked":
		labels := map[string]string{container.LabelPreSnapshot: "freeze", container.LabelPostSnapshot: "thaw"}
		if words[0] == "run-following-hooked" {
			labels[container.LabelEnable] = "true"
		}
		return true, m.Engine.Run(words[2], containerfake.RunOptions{Restart: "always", Labels: labels}, words[3:]...)
	case "frozen", "thawed":
		w.Await(strings.Join(words, " "), func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.frozen[words[2]] == (words[0] == "frozen")
		})
		return true, nil
	case "prepared-by":
		list, err := m.API().Snapshots(w.ctx(), words[2])
		if err != nil {
			return true, err
		}
		one, err := m.API().Snapshot(w.ctx(), words[2], words[3])
		if err != nil {
			return true, err
		}
		i := slices.IndexFunc(list, func(s api.Snapshot) bool { return s.Name == words[3] })
		if i < 0 {
			return true, fmt.Errorf("there is no snapshot %s", words[3])
		}
		if !slices.Equal(list[i].Prepared, words[4:]) || !slices.Equal(one.Prepared, words[4:]) {
			err = fmt.Errorf("list says by %q, inspect by %q", list[i].Prepared, one.Prepared)
		}
		return true, err
	case "snapshot-begins":
		b, calling := m.API(), m.calling
		m.calls.Go(func() {
			if _, err := b.TakeSnapshot(calling, api.SnapshotRequest{Name: words[2], Volumes: words[3:]}); err == nil {
				w.t.Errorf("snapshot %s was taken", words[2])
			}
		})
		return true, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch words[0] {
	case "hook":
		h.how, h.only = words[2], append(words, "")[3]
	case "hooks":
		if !slices.Equal(h.ran, words[2:]) {
			return true, fmt.Errorf("it was done in %q", h.ran)
		}
	default:
		return false, nil
	}
	return true, nil
}
