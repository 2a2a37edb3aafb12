package fence

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/mounts"
)

// seen is what one look at the machine has found of the volumes.
type seen struct {
	mounts []mount
	// containers are those with a process in a namespace of mounts, or among users.
	containers map[string]mounts.Container
	// users have files of the volumes open. Only a thorough look finds them.
	users []process
	// hidden datasets are in no mount table and still open: they were detached while in
	// use (umount -l), or their last user is about to end.
	hidden []string
}

// mount is one place where a volume is mounted, or something on top of one.
type mount struct {
	id      string
	on      string // the mount it stands on
	volume  string // ID
	at      string
	ns      string
	pid     int    // a process that sees it
	command string // of that process
	ours    bool   // in the fencer's namespace, which is the machine's
	follows bool   // it ends when ours at the same place does
	// containers have processes in its namespace.
	containers []string
}

func (m mount) String() string {
	s := m.volume + " at " + m.at
	switch {
	case len(m.containers) > 0:
		s += " of container " + m.containers[0][:min(12, len(m.containers[0]))]
	case !m.ours:
		s += " of " + m.command
	}
	return s
}

// process has files of volumes open.
type process struct {
	pid       int
	start     string // time of its start, which with the number names it for good
	command   string
	container string // ID, "" for none
	kind      kind
	volumes   []string
}

func (p process) String() string {
	s := fmt.Sprintf("process %d (%s)", p.pid, p.command)
	if len(p.volumes) > 0 {
		s += " with files of " + p.volumes[0]
	}
	return s
}

// kind says how hard it is to do without a process.
type kind int

const (
	ordinary kind = iota
	// careful: others depend on it (the container engine, sshd, flockd). It is ended
	// only if it still stands in the way when half of the time is gone.
	careful
	// untouchable: the fencer itself, and the machine's first process.
	untouchable
)

// plan is what to do about what was seen, in this order.
type plan struct {
	containers []mounts.Container // freeze all of them, then kill
	victims    []Victim           // the same, to be remembered before
	processes  []process          // kill
	unmount    [][]mount          // one list after the other, each in any order
}

// budgetWithoutLease is how long careful processes are given twice, where no lease says
// how long fencing may take.
const budgetWithoutLease = 5 * time.Second

// next decides what to do about what was seen, spent after the beginning of fencing that
// may take budget; 0 is no limit.
//
// A container goes as a whole when its namespace has a volume that would not go with
// ours, since that is how containers use volumes; any other process only when it has
// files open, and then alone. A copy of a volume in the namespace of a service that does
// not use it is unmounted there.
func next(s seen, spent, budget time.Duration) plan {
	if budget == 0 {
		budget = budgetWithoutLease
	}
	used := map[string][]string{} // volumes by container
	var p plan
	var ends []mount
	for _, m := range s.mounts {
		if m.follows {
			continue
		}
		if !m.ours && len(m.containers) > 0 {
			for _, c := range m.containers {
				used[c] = append(used[c], m.volume)
			}
			continue
		}
		ends = append(ends, m)
	}
	for _, u := range s.users {
		switch {
		case u.kind == untouchable || u.kind == careful && spent < budget/2:
		case u.container != "" && u.kind == ordinary:
			used[u.container] = append(used[u.container], u.volumes...)
		default:
			p.processes = append(p.processes, u)
		}
	}
	for id, volumes := range used {
		slices.Sort(volumes)
		p.containers = append(p.containers, s.containers[id])
		p.victims = append(p.victims, Victim{Container: id, Volumes: slices.Compact(volumes)})
	}
	slices.SortFunc(p.containers, func(a, b mounts.Container) int { return strings.Compare(a.ID, b.ID) })
	slices.SortFunc(p.victims, func(a, b Victim) int { return strings.Compare(a.Container, b.Container) })
	p.unmount = waves(ends)
	return p
}

// waves sorts mounts so that what stands on others comes before them.
func waves(all []mount) (out [][]mount) {
	by := map[string]mount{}
	for _, m := range all {
		by[m.id] = m
	}
	var deep [][]mount
	for _, m := range all {
		depth := 0
		for below, ok := by[m.on]; ok && depth < len(all); below, ok = by[below.on] {
			depth++
		}
		for len(deep) <= depth {
			deep = append(deep, nil)
		}
		deep[depth] = append(deep[depth], m)
	}
	for _, wave := range slices.Backward(deep) {
		if len(wave) > 0 {
			out = append(out, wave)
		}
	}
	return out
}

// nothing says that no volume is in use any more.
func (s seen) nothing() bool { return len(s.mounts) == 0 && len(s.hidden) == 0 && len(s.users) == 0 }

// problem says what stands in the way, in words for an operator.
func (s seen) problem() string {
	var words []string
	for _, u := range s.users {
		words = append(words, u.String())
	}
	for _, m := range s.mounts {
		words = append(words, m.String())
	}
	for _, d := range s.hidden {
		words = append(words, d+" detached and still open")
	}
	const most = 4
	if len(words) > most {
		words = append(words[:most], "and more")
	}
	return "still in use: " + strings.Join(words, ", ")
}
