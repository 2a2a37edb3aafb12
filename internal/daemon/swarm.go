package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/cluster"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

const (
	// swarmEvery is how often a manager is asked about its Swarm: what has changed there is
	// known that late. What has changed in the cluster is acted upon at once.
	swarmEvery = 5 * time.Second
	// memberEvery is how often an engine is asked what it is in a Swarm, and memberSoon when
	// it is in none, or has not said. That costs it more than all other questions.
	memberEvery = time.Minute
	memberSoon  = 10 * time.Second
	// memberPatience is how long it may take to say so.
	memberPatience = 40 * time.Second
	// swarmRetry is when a node is labelled again that could not be, and twice as long after
	// each further failure, up to swarmRetryMost.
	swarmRetry     = 5 * time.Second
	swarmRetryMost = time.Minute
	// swarmAgain is how often Swarm is told to stop tasks that are still there: a label may
	// have been given by a manager that knew less.
	swarmAgain = 5 * time.Second
	// swarmGap is the shortest time between two looks.
	swarmGap = 50 * time.Millisecond
	// unlabelPatience is how long one manager's flockd may take to have a service stopped
	// somewhere, and swarmStop how long Swarm may take then, besides the grace period that
	// the service's containers have to end. Of that no more than swarmGrace is waited for.
	unlabelPatience = 10 * time.Second
	swarmStop       = 60 * time.Second
	swarmGrace      = 10 * time.Minute
	// swarmLook is the time between two looks whether it has, which clients wait for.
	swarmLook = 100 * time.Millisecond
)

// swarmer looks after the Swarm that this node's engine belongs to. On a manager it has
// Swarm run services where their volumes are, by labels of nodes: see planSwarm. Of several
// managers one does it, but nothing breaks if two do.
type swarmer struct {
	m      *member
	engine container.Swarm
	// decide is plan and current is member.catchUp, but in tests.
	decide  func() (changes []swarmLabels, problems, held []string)
	current func(context.Context) error

	// turn is held from a look at the state until the labels are as it says, so that a
	// label is not given by an older state than the one by which it was taken.
	turn sync.Mutex

	mu       sync.Mutex
	is       container.SwarmMember
	known    bool // the engine has told, be that a while ago
	seen     container.SwarmView
	asked    time.Time // when it was; zero: never
	problems []string
	held     map[string]time.Time // since when labels of volumes are held back
	failed   map[string]failedLabels
}

// failedLabels are changes to a node of the Swarm that failed, and when they are tried again.
type failedLabels struct {
	again time.Time
	wait  time.Duration
	why   string
}

func newSwarmer(m *member, engine container.Swarm) *swarmer {
	w := &swarmer{m: m, engine: engine, current: m.catchUp}
	w.decide = w.plan
	return w
}

// run looks whenever something may have changed, until ctx ends.
func (w *swarmer) run(ctx context.Context) error {
	told := make(chan struct{}, 1)
	var asks sync.WaitGroup
	asks.Go(func() { w.learn(ctx, told) })
	defer asks.Wait()
	every := time.NewTicker(swarmEvery)
	defer every.Stop()
	for ctx.Err() == nil {
		changed := w.m.cluster.Changed()
		if err := w.step(ctx); err != nil && ctx.Err() == nil {
			w.m.log.Debug("the Swarm cannot be looked after now", "err", err)
		}
		pause(ctx, swarmGap)
		select {
		case <-changed:
		case <-told:
		case <-every.C:
		case <-ctx.Done():
		}
	}
	return nil
}

// learn what this node's engine is in a Swarm, until ctx ends, and tell when that changes.
// An engine that does not say leaves it as it was known.
func (w *swarmer) learn(ctx context.Context, told chan<- struct{}) {
	for ctx.Err() == nil {
		actx, cancel := context.WithTimeout(ctx, memberPatience)
		is, err := w.engine.SwarmMember(actx)
		cancel()
		again := memberEvery
		if err != nil || is.Node == "" {
			again = memberSoon
		}
		if err == nil {
			w.mu.Lock()
			changed := w.is != is
			w.is, w.known = is, true
			if changed {
				w.seen, w.asked = container.SwarmView{}, time.Time{}
			}
			w.mu.Unlock()
			if changed {
				ring(told)
			}
		}
		pause(ctx, again)
	}
}

// step looks once and changes what is to be changed. What cannot be is tried again later,
// and keeps nothing else from being changed.
func (w *swarmer) step(ctx context.Context) error {
	if w.due() {
		if err := w.look(ctx); err != nil {
			return err
		}
	}
	changes, problems, held := w.decide()
	w.note(changes, problems, held)
	if !w.anyDue(changes) {
		return nil
	}
	// A node that was cut off, or stood still, decides by an old state until it hears of its
	// leader. The turn is not held for that: who has it is not to wait for a leader.
	cctx, cancel := context.WithTimeout(ctx, engineTimeout)
	err := w.current(cctx)
	cancel()
	if err != nil {
		return fmt.Errorf("labels are left as they are, since nobody says what is so now: %w", err)
	}
	w.turn.Lock()
	defer w.turn.Unlock()
	if err := w.look(ctx); err != nil {
		return err
	}
	changes, problems, held = w.decide()
	err = w.change(ctx, changes)
	w.note(changes, problems, held)
	return err
}

// change labels, as far as that is due. One that could not be taken away is not given
// elsewhere. The error has all that failed.
func (w *swarmer) change(ctx context.Context, changes []swarmLabels) error {
	var errs []error
	left := map[string]bool{} // labels that are where they are not to be
	for _, c := range changes {
		c.Add = slices.DeleteFunc(slices.Clone(c.Add), func(l string) bool { return left[l] })
		if len(c.Add)+len(c.Remove) == 0 {
			continue
		}
		var err error
		due := w.anyDue([]swarmLabels{c})
		if due {
			if err = w.label(ctx, c); ctx.Err() != nil {
				return ctx.Err()
			}
			w.outcome(c.Node, err)
		}
		if err != nil {
			errs = append(errs, err)
		}
		for _, l := range c.Remove {
			left[l] = left[l] || !due || err != nil
		}
	}
	return errors.Join(errs...)
}

// outcome of changing a node.
func (w *swarmer) outcome(node string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		delete(w.failed, node)
		return
	}
	wait := min(max(swarmRetry, 2*w.failed[node].wait), swarmRetryMost)
	if w.failed == nil {
		w.failed = map[string]failedLabels{}
	}
	w.failed[node] = failedLabels{again: w.m.now().Add(wait), wait: wait,
		why: fmt.Sprintf("node %s of the Swarm cannot be labelled, and services may not run where their volumes are: %v", node, err)}
}

// anyDue says that one of these changes is not to wait after a failure.
func (w *swarmer) anyDue(changes []swarmLabels) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(changes, func(c swarmLabels) bool { return !w.m.now().Before(w.failed[c.Node].again) })
}

// note what was decided, and what of it could not be done.
func (w *swarmer) note(changes []swarmLabels, problems, held []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.failed, func(node string, _ failedLabels) bool {
		return !slices.ContainsFunc(changes, func(c swarmLabels) bool { return c.Node == node })
	})
	w.problems = slices.Clone(problems)
	for _, node := range slices.Sorted(maps.Keys(w.failed)) {
		w.problems = append(w.problems, w.failed[node].why)
	}
	since := map[string]time.Time{}
	for _, name := range held {
		since[name] = w.m.now()
		if at, already := w.held[name]; already {
			since[name] = at
		}
	}
	w.held = since
}

// due says that the engine has not been asked for a while.
func (w *swarmer) due() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked.IsZero() || w.m.now().Sub(w.asked).Abs() >= swarmEvery-swarmGap
}

// look asks the engine of a manager. While it does not answer nothing is known of the Swarm,
// and another manager may have to do what there is to do.
func (w *swarmer) look(ctx context.Context) error {
	w.mu.Lock()
	is := w.is
	w.mu.Unlock()
	if is.Cluster == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	seen, err := w.engine.Swarm(ctx)
	if err != nil {
		seen = container.SwarmView{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.is == is {
		w.asked, w.seen = w.m.now(), seen
	}
	return err
}

// manages says that this node's engine manages a Swarm and answers. The caller has the lock.
func (w *swarmer) manages() bool { return w.is.Cluster != "" && len(w.seen.Nodes) > 0 }

// label changes one node, and what is known of it.
func (w *swarmer) label(ctx context.Context, c swarmLabels) error {
	lctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	if err := w.engine.LabelSwarmNode(lctx, c.Node, c.Add, c.Remove); err != nil {
		return err
	}
	w.m.log.Info("Swarm is told where services may run", "node", c.Node, "there", c.Add, "not there", c.Remove)
	w.mu.Lock()
	defer w.mu.Unlock()
	nodes := slices.Clone(w.seen.Nodes)
	for i := range nodes {
		if nodes[i].ID != c.Node {
			continue
		}
		labels := map[string]string{}
		maps.Copy(labels, nodes[i].Labels)
		for _, l := range c.Remove {
			delete(labels, l)
		}
		for _, l := range c.Add {
			labels[l] = "true"
		}
		nodes[i].Labels = labels
	}
	w.seen.Nodes = nodes
	return nil
}

// plan is planSwarm, where it is this node's turn.
func (w *swarmer) plan() (changes []swarmLabels, problems, held []string) {
	v := swarmView{State: w.m.cluster.State(), Held: map[string]time.Duration{}, Copies: map[volume.NodeID][]volume.Status{}}
	w.mu.Lock()
	is, seen, manages := w.is, w.seen, w.manages()
	for name, at := range w.held {
		v.Held[name] = w.m.now().Sub(at).Abs()
	}
	w.mu.Unlock()
	// Without a leader this node's state may be an old one.
	if !manages || !w.m.ready() || w.m.leaderless() {
		return nil, nil, nil
	}
	where, reports := w.where()
	for _, r := range reports {
		id := r.Report.Node
		v.Copies[id] = r.Report.Volumes
		if r.Report.Swarm.Cluster == is.Cluster && id < w.m.self && r.Age <= w.m.timers.Stale {
			return nil, nil, nil // another manager's
		}
	}
	v.Swarm, v.Where = seen, where
	return planSwarm(v)
}

// where the nodes are in the Swarm, as far as they have said, and all that they have said.
func (w *swarmer) where() (map[volume.NodeID]string, []cluster.Received) {
	reports := w.m.reports.All(w.m.now())
	where := map[volume.NodeID]string{}
	for _, r := range reports {
		if s := r.Report.Swarm; s.Known {
			where[r.Report.Node] = s.Node
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	where[w.m.self] = w.is.Node
	return where, reports
}

// report adds what this node knows of its Swarm to its report.
func (w *swarmer) report(rep *volume.Report) {
	w.mu.Lock()
	defer w.mu.Unlock()
	rep.Swarm = volume.Swarm{Known: w.known, Node: w.is.Node, Services: w.seen.Services}
	if w.manages() {
		rep.Swarm.Cluster = w.is.Cluster
	}
	for _, n := range w.seen.Nodes {
		if n.Ready {
			rep.Swarm.Ready = append(rep.Swarm.Ready, n.ID)
		}
	}
	rep.Problems = append(rep.Problems, w.problems...)
}

// member says that this node's engine belongs to a Swarm, or may.
func (w *swarmer) member() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.is.Node != "" || !w.known
}

// Unlabel implements api.Peer, on a node whose engine manages a Swarm: the label of a volume
// that moves is taken off all nodes, with which Swarm stops the tasks of the services that
// are bound to it. It comes back when the move is over, wherever the volume is then.
func (m *member) Unlabel(ctx context.Context, id volume.ID, attempt string) error {
	if m.swarm == nil {
		return errNoManager
	}
	// A state from before the move began would have the label given again.
	if err := m.catchUp(ctx); err != nil {
		return err
	}
	m.swarm.turn.Lock()
	defer m.swarm.turn.Unlock()
	v := m.cluster.State().Volume(id)
	if v == nil || v.Phase != state.PhaseMoving || v.Pending.Attempt != attempt {
		return volume.Errorf(volume.CodeConflict, "volume %s: this move is over", id)
	}
	if from, ok := api.Caller(ctx); ok && from != v.Placement.Primary {
		return volume.Errorf(volume.CodeDenied, "volume %q: only its primary has its tasks stopped", v.Name)
	}
	if err := m.swarm.look(ctx); err != nil {
		return volume.Errorf(volume.CodeUnavailable, "the Swarm cannot be asked: %v", err)
	}
	m.swarm.mu.Lock()
	seen, manages := m.swarm.seen, m.swarm.manages()
	m.swarm.mu.Unlock()
	if !manages {
		return errNoManager
	}
	label := volume.SwarmPrefix + v.Name
	where, _ := m.swarm.where()
	view := swarmView{Swarm: seen, Where: where}
	_, said := where[v.Placement.Primary]
	for _, node := range view.labelled(label) {
		if said && !view.ours(node) {
			continue // as planSwarm does
		}
		if err := m.swarm.label(ctx, swarmLabels{Node: node, Remove: []string{label}}); err != nil {
			return volume.Errorf(volume.CodeUnavailable, "a node of the Swarm cannot be labelled: %v", err)
		}
	}
	return nil
}

var errNoManager = volume.Errorf(volume.CodeUnavailable, "the engine of this node does not manage a Swarm")

// swarmManagers are the nodes whose engines manage a Swarm that has services bound to a
// volume of this name, and that are heard of; and these services, from each manager.
func (m *member) swarmManagers(name string) (ids []volume.NodeID, services []volume.SwarmService) {
	for _, r := range m.reports.All(m.now()) {
		if s := r.Report.Swarm; s.Manages() && r.Age <= m.timers.Stale {
			for _, svc := range s.Services {
				if svc.BoundTo(name) && svc.Wanted {
					ids, services = append(ids, r.Report.Node), append(services, svc)
				}
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), services
}

// stopTasks has Swarm stop the tasks that use a volume here, and returns when it has. With
// none here it is told all the same, if it can be, so that none begins while the volume
// leaves.
func (f *follower) stopTasks(ctx context.Context, id volume.ID, attempt string) error {
	v := f.m.cluster.State().Volume(id)
	if v == nil {
		return errGivenUp
	}
	managers, bound := f.m.swarmManagers(v.Name)
	if len(managers) == 0 && !f.m.swarm.member() {
		return nil // clients wait: nothing is asked for nothing
	}
	tasks, err := f.tasks(ctx, v.Name)
	if err != nil {
		return err
	}
	err = f.m.unlabel(ctx, managers, id, attempt)
	switch {
	case err != nil && len(tasks) > 0:
		return fmt.Errorf("service %s: Swarm cannot be told to stop it: %w", strings.Join(tasks, ", "), err)
	case err != nil && len(managers) > 0:
		f.m.log.Warn("Swarm is not told that a volume leaves; tasks that it starts here cannot mount it", "volume", v.Name, "err", err)
	}
	limit := stopLimit(bound)
	began := time.Now()
	for told := began; len(tasks) > 0; {
		if time.Since(began) >= limit {
			return fmt.Errorf("service %s was not stopped by Swarm within %s", strings.Join(tasks, ", "), limit)
		}
		pause(ctx, swarmLook)
		now := f.m.cluster.State().Volume(id)
		if ctx.Err() != nil || now == nil || now.Pending == nil || now.Pending.Attempt != attempt {
			return errGivenUp
		}
		if time.Since(told) >= swarmAgain {
			managers, _ := f.m.swarmManagers(v.Name)
			if err := f.m.unlabel(ctx, managers, id, attempt); err != nil {
				f.m.log.Warn("Swarm is not told again to stop a service", "service", tasks, "err", err)
			}
			told = time.Now()
		}
		if tasks, err = f.tasks(ctx, v.Name); err != nil {
			return err
		}
	}
	return nil
}

// stopLimit is how long Swarm may take to stop tasks of these services.
func stopLimit(services []volume.SwarmService) time.Duration {
	var grace time.Duration
	for _, s := range services {
		grace = max(grace, s.Grace)
	}
	return swarmStop + min(grace, swarmGrace)
}

// tasks are the Swarm services that use a volume on this node.
func (f *follower) tasks(ctx context.Context, name string) (services []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	all, err := f.engine.Users(ctx)
	if err != nil {
		return nil, err
	}
	for _, u := range all {
		s := container.SwarmService(u.Labels)
		uses := slices.ContainsFunc(u.Volumes, func(m container.Mount) bool { return m.Volume == name })
		if s != "" && uses && u.State.Live() && !slices.Contains(services, s) {
			services = append(services, s)
		}
	}
	slices.Sort(services)
	return services, nil
}

// unlabel asks one manager after the other.
func (m *member) unlabel(ctx context.Context, managers []volume.NodeID, id volume.ID, attempt string) error {
	err := error(volume.Errorf(volume.CodeUnavailable, "no flockd on a manager of the Swarm is heard of"))
	for _, node := range managers {
		uctx, cancel := context.WithTimeout(ctx, unlabelPatience)
		if node == m.self {
			err = m.Unlabel(uctx, id, attempt)
		} else {
			err = m.client(node).Unlabel(uctx, id, attempt)
		}
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		err = fmt.Errorf("by %s: %w", m.cluster.State().NodeName(node), err)
	}
	return err
}

// bound is the Swarm service whose tasks go where a volume goes; a mount elsewhere must not
// fetch the volume from there. "" for none.
func (m *member) bound(v *state.Volume) string {
	if _, services := m.swarmManagers(v.Name); len(services) > 0 {
		return services[0].Name
	}
	return ""
}
