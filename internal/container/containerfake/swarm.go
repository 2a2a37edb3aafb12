package containerfake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/volume"
)

// Times of the fake Swarm, as those of the real one by default.
const (
	swarmTick    = 250 * time.Millisecond
	restartDelay = 5 * time.Second
	taskGrace    = time.Second // a task's own time to end
	// downAfter is how long an engine is silent before its tasks are made elsewhere.
	downAfter = 15 * time.Second
)

// Swarm is a Swarm of fake engines. A service has one task, on a node that has the labels
// of all volumes that it is bound to; a task on a node that loses one is stopped for good,
// be the label back before it has ended, and its successor does not wait for its end.
//
// Where it differs from the real one: there is one cluster of managers that is always in
// agreement; a task that did not start is tried again on the same node; tasks that are over
// are removed.
type Swarm struct {
	id string

	mu       sync.Mutex
	nodes    map[string]*swarmNode // by ID
	services map[string]*Service
	refuse   error // what changes of labels get; nil: none is refused

	stop context.CancelFunc
	done sync.WaitGroup
}

type swarmNode struct {
	engine  *Engine
	manager bool
	labels  map[string]string
	silent  time.Time // since when the engine does not answer; zero: it does
}

// Service of a fake Swarm.
type Service struct {
	Name    string
	Volumes []string      // that its task mounts
	Bound   []string      // volumes to whose label it is bound
	Once    bool          // its task is not made again
	Grace   time.Duration // that its task takes to end; 0: taskGrace

	tasks    int
	ended    time.Time       // when its last task ended or was told to, or the service was made
	stopping map[string]bool // its tasks that were told to end
	most     int             // that ran at a time
}

// NewSwarm is one without nodes, which runs until Close.
func NewSwarm(id string) *Swarm {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Swarm{id: id, nodes: map[string]*swarmNode{}, services: map[string]*Service{}, stop: cancel}
	s.done.Go(func() {
		tick := time.NewTicker(swarmTick)
		defer tick.Stop()
		var tasks sync.WaitGroup
		defer tasks.Wait()
		busy := map[string]bool{} // services that a start or a stop is under way of
		for {
			s.mu.Lock()
			for _, name := range slices.Sorted(maps.Keys(s.services)) {
				if busy[name] {
					continue
				}
				busy[name] = true
				svc := s.services[name]
				tasks.Go(func() {
					s.converge(svc)
					s.mu.Lock()
					defer s.mu.Unlock()
					delete(busy, name)
				})
			}
			s.mu.Unlock()
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return s
}

// Close ends it. Tasks that are starting are waited for; those that run go on.
func (s *Swarm) Close() {
	s.stop()
	s.done.Wait()
}

// Join adds an engine, under an ID that is made of its name.
func (s *Swarm) Join(e *Engine, manager bool) {
	s.mu.Lock()
	s.nodes["swarm-"+e.name] = &swarmNode{engine: e, manager: manager, labels: map[string]string{"zone": "a"}}
	s.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.swarm = s
}

// Run makes a service, as `docker service create` does; with one of that name it is an
// update, which restarts nothing.
func (s *Swarm) Run(svc Service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.services[svc.Name]; old != nil {
		old.Bound, old.Once = svc.Bound, svc.Once
		return
	}
	svc.stopping = map[string]bool{}
	s.services[svc.Name] = &svc
}

// Remove a service, and its task.
func (s *Swarm) Remove(name string) {
	s.mu.Lock()
	delete(s.services, name)
	nodes := maps.Clone(s.nodes)
	s.mu.Unlock()
	for _, n := range nodes {
		for _, task := range n.engine.tasksOf(name) {
			n.engine.end(task)
		}
	}
}

// Refuse has all changes of labels fail with an error; nil: none any more.
func (s *Swarm) Refuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
}

// Started is how many tasks of a service were started so far, or tried to.
func (s *Swarm) Started(service string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if svc := s.services[service]; svc != nil {
		return svc.tasks
	}
	return 0
}

// Most is how many tasks of a service ran at a time, on all engines that are up.
func (s *Swarm) Most(service string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if svc := s.services[service]; svc != nil {
		return svc.most
	}
	return 0
}

// told says that a task was told to end.
func (s *Swarm) told(svc *Service, task string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return svc.stopping[task]
}

// Labels are those of an engine's node.
func (s *Swarm) Labels(e *Engine) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.nodes["swarm-"+e.name].labels)
}

// converge does the next thing about a service.
func (s *Swarm) converge(svc *Service) {
	type place struct {
		id     string
		fits   bool
		lost   bool
		engine *Engine
	}
	s.mu.Lock()
	if s.services[svc.Name] != svc {
		s.mu.Unlock()
		return
	}
	var all []place
	for _, id := range slices.Sorted(maps.Keys(s.nodes)) {
		n := s.nodes[id]
		up := n.engine.alive() == nil
		switch {
		case up:
			n.silent = time.Time{}
		case n.silent.IsZero():
			n.silent = time.Now()
		}
		fits := up && !slices.ContainsFunc(svc.Bound, func(v string) bool { return n.labels[volume.SwarmPrefix+v] != "true" })
		all = append(all, place{id: id, fits: fits, lost: !up && time.Since(n.silent) >= downAfter, engine: n.engine})
	}
	s.mu.Unlock()
	runs, live := 0, 0
	for _, p := range all {
		for _, task := range p.engine.tasksOf(svc.Name) {
			if p.engine.alive() == nil {
				live++
			}
			if p.fits && runs == 0 && !s.told(svc, task) || !p.fits && p.engine.alive() != nil && !p.lost {
				runs++ // or may run: its node is silent
				continue
			}
			s.mu.Lock()
			told := svc.stopping[task]
			if !told && !p.lost {
				svc.stopping[task], svc.ended = true, time.Now()
			}
			s.mu.Unlock()
			if told || p.lost {
				continue
			}
			s.done.Go(func() {
				time.Sleep(cmp.Or(svc.Grace, taskGrace)) // it ends in its own time
				p.engine.end(task)
			})
		}
	}
	i := slices.IndexFunc(all, func(p place) bool { return p.fits })
	s.mu.Lock()
	svc.most = max(svc.most, live)
	wait := runs > 0 || i < 0 || time.Since(svc.ended) < restartDelay || svc.Once && svc.tasks > 0
	if !wait {
		svc.tasks++
	}
	number := svc.tasks
	s.mu.Unlock()
	if wait {
		return
	}
	name := fmt.Sprintf("%s.1.%d", svc.Name, number)
	err := all[i].engine.Run(name, RunOptions{Labels: map[string]string{
		"com.docker.swarm.service.name": svc.Name, "com.docker.swarm.task.id": name, "com.docker.swarm.task": "",
	}}, svc.Volumes...)
	if err != nil {
		all[i].engine.end(name)
		s.mu.Lock()
		defer s.mu.Unlock()
		svc.ended = time.Now()
	}
}

// tasksOf are the running containers of a service.
func (e *Engine) tasksOf(service string) (names []string) {
	for _, c := range e.all() {
		e.mu.Lock()
		if c.labels["com.docker.swarm.service.name"] == service && c.state.Live() {
			names = append(names, c.name)
		}
		e.mu.Unlock()
	}
	return names
}

// end a task, and leave nothing of it.
func (e *Engine) end(task string) {
	if e.Stop(task) == nil {
		// There is nothing to remove when its engine went away just now.
		_ = e.Remove(task)
	}
}

// Tasks of a service that run on this engine.
func (e *Engine) Tasks(service string) []string { return e.tasksOf(service) }

var errNoManager = errors.New("this node is not a swarm manager")

// SwarmMember implements container.Swarm.
func (e *Engine) SwarmMember(context.Context) (container.SwarmMember, error) {
	if err := e.alive(); err != nil {
		return container.SwarmMember{}, err
	}
	e.mu.Lock()
	s := e.swarm
	e.mu.Unlock()
	if s == nil {
		return container.SwarmMember{}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := container.SwarmMember{Node: "swarm-" + e.name}
	if s.nodes[out.Node].manager {
		out.Cluster = s.id
	}
	return out, nil
}

// Swarm implements container.Swarm.
func (e *Engine) Swarm(ctx context.Context) (out container.SwarmView, err error) {
	is, err := e.SwarmMember(ctx)
	if err == nil && is.Cluster == "" {
		err = errNoManager
	}
	if err != nil {
		return out, err
	}
	e.mu.Lock()
	s := e.swarm
	e.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(s.nodes)) {
		n := s.nodes[id]
		out.Nodes = append(out.Nodes, container.SwarmNode{ID: id, Labels: maps.Clone(n.labels), Ready: n.silent.IsZero()})
	}
	for _, name := range slices.Sorted(maps.Keys(s.services)) {
		svc := s.services[name]
		if len(svc.Bound) > 0 {
			out.Services = append(out.Services, volume.SwarmService{Name: name, Volumes: slices.Clone(svc.Bound), Wanted: true, Once: svc.Once, Grace: cmp.Or(svc.Grace, taskGrace)})
		}
	}
	return out, nil
}

// LabelSwarmNode implements container.Swarm.
func (e *Engine) LabelSwarmNode(_ context.Context, node string, add, remove []string) error {
	if err := e.alive(); err != nil {
		return err
	}
	e.mu.Lock()
	s := e.swarm
	e.mu.Unlock()
	if s == nil {
		return errNoManager
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[node]
	switch {
	case !s.nodes["swarm-"+e.name].manager:
		return errNoManager
	case s.refuse != nil:
		return s.refuse
	case n == nil:
		return fmt.Errorf("node %s not found", node)
	}
	for _, l := range remove {
		delete(n.labels, l)
	}
	for _, l := range add {
		n.labels[l] = "true"
	}
	return nil
}
