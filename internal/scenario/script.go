package scenario

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/container/containerfake"
	"github.com/flocker-io/flocker/internal/volume"
)

// Script runs a text of one step a line. Lines that begin with # are prose.
//
//	cluster [ZONE=NODE,NODE..]     all machines make one cluster
//	create NODE VOLUME [OPTION..]  docker volume create
//	run NODE CONTAINER VOLUME..    docker run, restarted always; start and stop NODE CONTAINER
//	remove NODE VOLUME             docker volume rm
//	undelete NODE VOLUME           flockctl volume undelete
//	write NODE VOLUME FILE TEXT    the container writes, and the pool's transaction group with it
//	fsync NODE VOLUME FILE TEXT    the container writes, and has it in the intent log only
//	erase NODE VOLUME FILE         the container removes it
//	has NODE VOLUME FILE TEXT      the container reads exactly that
//	cut NODE, boot NODE            power loss, and power on
//	quit NODE, flockd NODE         flockd is stopped, and started; containers go on
//	partition NODE NODE, heal
//	await VOLUME HEALTH            until every machine that is up says so
//	throughout DURATION VOLUME HEALTH [TEXT]  for so long each of them says so, and TEXT in the reason
//	primary VOLUME NODE            holds; so does
//	call NAME replica VOLUME       from here on NAME means the machine of its first replica;
//	  with "primary" in place of "replica" that of its primary
//	copies VOLUME LOCAL REMOTE     the number of its replicas of each kind
//	running NODE CONTAINER         until it runs; stopped NODE CONTAINER holds
//	unmounted VOLUME               until no machine has it mounted
//	lose NODE VOLUME               somebody destroys the dataset there
//	slow NODE OP DURATION [VOLUME] a ZFS operation takes so long from now on; on that volume only
//	full-streams N                 so many whole copies were sent so far, by all
//	clone-streams N                so many first copies of clones were sent as increments on their originals
//	aside N                        so many copies were set aside, on all machines
//	clock NODE DURATION            its clock is wrong by that much
//	property NODE VOLUME KEY VALUE  somebody sets a property of a copy by hand
//	fencers [SAFETY]               before cluster: the machines have fencers; SAFETY: sysrq, or software
//	witnesses NODE..               before cluster: these join without a pool
//	mode MODE [PROFILE]            of failover, until all nodes have agreed on that
//	lease NODE WORD                until its lease is held, lost, revoked, or held with that number
//	fences NODE N                  until its fencer has fenced so many times, not more
//	fencer NODE down|up            the fencer's process ends, and comes back; gone: it ends,
//	  and flockd cannot stop the writers in its place
//	suspend NODE, resume NODE      its pool refuses every change
//	sleep DURATION                 of the bubble
//	settings, set, ...             what people do with flockctl: see operatorStep
//	route, busy, ...               what becomes of routes: see proxyStep
//	hook, hooks, ...               what is done in containers before their stop and around snapshots: see hookStep
//	swarm, service, ...            what becomes of a Swarm's services: see swarmStep
//	run-ahead, ...                 what becomes of those that are started ahead: see doorStep
//	run-following, ...             what becomes of containers that follow: see followStep
//	isolate, freeze, repair, ...   what goes wrong with machines: see faultStep
//
// "! STEP ~ TEXT" is a step that must be refused with an error that has TEXT in it, and
// "try STEP" one that may be. The invariants are checked after each line.
func (w *World) Script(text string) {
	w.t.Helper()
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		step, want, refused := line, "", false
		if rest, ok := strings.CutPrefix(line, "! "); ok {
			refused = true
			step, want, _ = strings.Cut(rest, " ~ ")
		}
		step, try := strings.CutPrefix(step, "try ")
		words := strings.Fields(step)
		if slices.Contains([]string{"snapshot", "snapshot-bare", "sync"}, words[0]) {
			// A primary's replication hears of its volume after all see that it is ok: whoever
			// types this is not as quick.
			synctest.Wait()
		}
		err := w.step(words)
		switch {
		case try:
			w.t.Logf("%s line %d: %s: %v", time.Now().Format("15:04:05.000"), i+1, step, err)
		case refused && err == nil:
			w.t.Fatalf("line %d: %s: it was not refused", i+1, line)
		case refused && !strings.Contains(err.Error(), want):
			w.t.Fatalf("line %d: %s: refused with %q", i+1, line, err)
		case !refused && err != nil:
			w.t.Fatalf("line %d: %s: %v\n%s", i+1, line, err, w.Describe())
		}
		w.Check()
	}
}

func (w *World) step(words []string) error {
	w.t.Helper()
	for i, word := range words {
		if name, ok := w.called[word]; ok {
			words[i] = name
		}
		if word == "leader" {
			leader := w.Leader()
			if leader == nil {
				return errors.New("nobody leads")
			}
			words[i] = leader.Name
		}
	}
	arg := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	node := func() *Machine { return w.Machine(arg(1)) }
	if ok, err := w.faultStep(words); ok {
		return err
	}
	if ok, err := w.swarmStep(words); ok {
		return err
	}
	switch words[0] {
	case "fencers":
		w.fencers = true
		for _, name := range w.Names() {
			if arg(1) != "" {
				w.Machine(name).fencer.isSafe(volume.Safety(arg(1)))
			}
			w.Machine(name).Stop()
			w.Machine(name).Start()
		}
	case "witnesses":
		for _, n := range words[1:] {
			w.witnesses[n] = true
		}
	case "cluster":
		for _, z := range words[1:] {
			zone, nodes, _ := strings.Cut(z, "=")
			for _, n := range strings.Split(nodes, ",") {
				w.zones[n] = zone
			}
		}
		w.Cluster()
	case "create":
		return node().Engine.CreateVolume(arg(2), pairs(words[3:]))
	case "run":
		return node().Engine.Run(arg(2), containerfake.RunOptions{Restart: "always"}, words[3:]...)
	case "start":
		return node().Engine.Start(arg(2))
	case "stop":
		return node().Engine.Stop(arg(2))
	case "remove":
		return node().Engine.RemoveVolume(arg(2))
	case "undelete":
		_, err := node().API().UndeleteVolume(w.ctx(), arg(2), api.UndeleteRequest{})
		return err
	case "write", "fsync":
		ds, err := w.dataset(arg(2))
		if err != nil {
			return err
		}
		if err := node().ZFS.WriteFile(ds, arg(3), []byte(arg(4))); err != nil {
			return err
		}
		if words[0] == "fsync" {
			return node().ZFS.Fsync(ds)
		}
		return node().ZFS.Sync(ds)
	case "erase":
		ds, err := w.dataset(arg(2))
		if err == nil {
			err = node().ZFS.RemoveFile(ds, arg(3))
		}
		if err == nil {
			err = node().ZFS.Sync(ds)
		}
		return err
	case "has":
		ds, err := w.dataset(arg(2))
		if err != nil {
			return err
		}
		got, err := node().ZFS.ReadFile(ds, arg(3))
		if err == nil && string(got) != arg(4) {
			err = fmt.Errorf("%s has %q, want %q", arg(3), got, arg(4))
		}
		return err
	case "cut":
		if !node().on {
			return errors.New("it is off")
		}
		node().Cut()
	case "boot":
		if node().on {
			return errors.New("it is on")
		}
		node().Boot()
	case "quit":
		if !node().Up() || node().thawed != nil {
			return errors.New("flockd does not run")
		}
		if w.assumes && node().fencer.isDown() {
			return errNobodyFences
		}
		node().Stop()
	case "flockd":
		if !node().on || node().Up() {
			return errors.New("flockd runs, or the machine is off")
		}
		node().Start()
	case "partition":
		w.net.Partition(arg(1), arg(2))
	case "heal":
		w.net.HealAll()
	case "await":
		w.Await(fmt.Sprintf("%s is %s everywhere", arg(1), arg(2)), func() bool {
			for _, name := range w.Names() {
				if m := w.nodes[name]; m.Up() {
					v, err := m.API().Volume(w.ctx(), arg(1))
					if err != nil || string(v.Health) != arg(2) {
						return false
					}
				}
			}
			return true
		})
	case "throughout":
		d, err := time.ParseDuration(arg(1))
		if err != nil {
			return err
		}
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
			w.Check()
			for _, name := range w.Names() {
				if m := w.nodes[name]; m.Up() {
					v, err := m.API().Volume(w.ctx(), arg(2))
					if err != nil || string(v.Health) != arg(3) || !strings.Contains(v.Reason, strings.Join(words[min(4, len(words)):], " ")) {
						return fmt.Errorf("on %s it is %s (%s), %v", name, v.Health, v.Reason, err)
					}
				}
			}
		}
	case "call":
		if arg(2) == "primary" {
			w.called[arg(1)] = w.newest(arg(3)).Primary.Name
			return nil
		}
		v, err := w.volume(arg(3))
		if err == nil && len(v.Replicas) == 0 {
			err = errors.New("it has no replica")
		}
		if err == nil {
			w.called[arg(1)] = v.Replicas[0].Node.Name
		}
		return err
	case "copies":
		v, err := w.volume(arg(1))
		if err != nil {
			return err
		}
		kinds := map[api.ReplicaKind]int{}
		for _, r := range v.Replicas {
			kinds[r.Kind]++
		}
		if got, want := fmt.Sprintf("%d local, %d remote", kinds[api.ReplicaLocal], kinds[api.ReplicaRemote]), fmt.Sprintf("%s local, %s remote", arg(2), arg(3)); got != want {
			return fmt.Errorf("it has %s replicas, want %s", got, want)
		}
	case "primary":
		v, err := w.volume(arg(1))
		if err == nil && v.Primary.Name != arg(2) {
			err = fmt.Errorf("it is %s", v.Primary)
		}
		return err
	case "running":
		m := node()
		w.Await(arg(2)+" runs", func() bool { st, _, _ := m.Engine.Container(arg(2)); return st == container.Running })
	case "stopped":
		if st, _, ok := node().Engine.Container(arg(2)); !ok || st.Live() {
			return fmt.Errorf("it is %s", st)
		}
	case "unmounted":
		ds, err := w.dataset(arg(1))
		if err != nil {
			return err
		}
		w.Await(arg(1)+" is mounted nowhere", func() bool { return len(w.mountedOn(ds)) == 0 })
	case "lose":
		ds, err := w.dataset(arg(2))
		if err != nil {
			return err
		}
		return node().ZFS.Destroy(w.ctx(), ds)
	case "slow":
		d, err := time.ParseDuration(arg(3))
		if err != nil {
			return err
		}
		ds := ""
		if arg(4) != "" {
			if ds, err = w.dataset(arg(4)); err != nil {
				return err
			}
		}
		node().slow(arg(2), ds, d)
	case "full-streams":
		return count("whole copies sent", w.fullStreams(), arg(1))
	case "clone-streams":
		return count("first copies of clones sent as increments", w.cloneStreams(), arg(1))
	case "aside":
		return count("copies set aside", w.setAside(), arg(1))
	case "clock":
		d, err := time.ParseDuration(arg(2))
		if err != nil {
			return err
		}
		node().clock.Store(int64(d))
	case "property":
		ds, err := w.dataset(arg(2))
		if err != nil {
			return err
		}
		return node().ZFS.SetProperties(w.ctx(), ds, map[string]string{arg(3): arg(4)})
	case "sleep":
		d, err := time.ParseDuration(arg(1))
		if err != nil {
			return err
		}
		time.Sleep(d)
	case "fencer":
		m := node()
		if w.assumes && arg(2) == "down" && m.on && (!m.Up() || m.thawed != nil || m.suspended) {
			return errNobodyFences
		}
		m.fencer.setDown(arg(2) != "up")
		m.fencer.mu.Lock()
		m.fencer.only = arg(2) == "gone"
		m.fencer.mu.Unlock()
	case "suspend", "resume":
		m := node()
		if w.assumes && words[0] == "suspend" && m.fencer.isDown() {
			return errNobodyFences
		}
		m.suspended = words[0] == "suspend"
		m.ZFS.SuspendPool(Pool, m.suspended)
	case "mode":
		w.Await("failover is "+arg(1)+" everywhere", func() bool {
			for _, s := range w.states() {
				if string(s.Failover().Mode) != arg(1) || arg(2) != "" && s.Failover().Profile != arg(2) {
					return false
				}
			}
			return true
		})
	case "lease":
		return w.lease(arg(1), arg(2))
	case "fences":
		want, err := strconv.Atoi(arg(2))
		if err != nil {
			return err
		}
		m := node()
		w.Await(strings.Join(words, " "), func() bool { return len(m.fencer.log()) >= want })
		if got := m.fencer.log(); len(got) != want {
			return fmt.Errorf("it has fenced %q", got)
		}
	default:
		if ok, err := w.doorStep(words); ok {
			return err
		}
		if ok, err := w.followStep(words); ok {
			return err
		}
		if ok, err := w.hookStep(words); ok {
			return err
		}
		if ok, err := w.proxyStep(words); ok {
			return err
		}
		return w.operatorStep(words)
	}
	return nil
}

// lease waits until a machine has, or has lost, the right to write.
func (w *World) lease(name, word string) error {
	m := w.Machine(name)
	w.Await("lease "+name+" "+word, func() bool {
		held, no := m.daemon.Lease()
		for _, s := range w.states() {
			for n := range s.Nodes() {
				switch {
				case n.Name != name:
				case word == "held":
					return held
				case word == "lost":
					return !held
				case word == "revoked":
					return n.Lease.Revoked
				default: // a number
					return held && fmt.Sprint(no) == word
				}
			}
		}
		return false
	})
	return nil
}

func count(what string, got int, want string) error {
	if fmt.Sprint(got) != want {
		return fmt.Errorf("%d %s, want %s", got, what, want)
	}
	return nil
}

// setAside counts the datasets below the place for diverged copies.
func (w *World) setAside() (n int) {
	for _, m := range w.nodes {
		list, err := m.ZFS.Datasets(bystander, Pool+"/flocker-aside")
		if err == nil {
			n += len(list) - 1
		}
	}
	return n
}

// volume as any machine that is up knows it, removed ones too.
func (w *World) volume(name string) (api.Volume, error) {
	err := errors.New("no machine is up")
	for _, n := range w.Names() {
		if m := w.nodes[n]; m.Up() {
			var v api.Volume
			if v, err = m.API().Volume(w.ctx(), name); err == nil {
				return v, nil
			}
		}
	}
	return api.Volume{}, err
}

// newest is a volume as the machine knows it that has heard most of it.
func (w *World) newest(name string) (v api.Volume) {
	for _, m := range w.nodes {
		if m.Up() {
			if x, err := m.API().Volume(w.ctx(), name); err == nil && x.Index > v.Index {
				v = x
			}
		}
	}
	return v
}

func (w *World) dataset(name string) (string, error) {
	v, err := w.volume(name)
	return datasetOf(v.ID), err
}

func datasetOf(id volume.ID) string { return Pool + "/flocker/" + string(id) }

func (w *World) mountedOn(dataset string) []string {
	var out []string
	for _, name := range w.Names() {
		for _, m := range w.nodes[name].ZFS.Mounts() {
			if m.Dataset == dataset {
				out = append(out, name)
			}
		}
	}
	return out
}
