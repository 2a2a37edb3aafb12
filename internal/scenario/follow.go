package scenario

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/container/containerfake"
	"github.com/flocker-io/flocker/internal/state"
)

// secret is in the environment of every container that follows, and must be nowhere
// else.
const secret = "PASSWORD=letmein"

// moveFollowing asks every machine that is up, of which one leads.
func (w *World) moveFollowing(name, to string) error {
	v, err := w.volume(name)
	if !w.Machine(to).Up() {
		return errors.New("flockd does not run there")
	}
	for _, n := range w.Names() {
		m := w.nodes[n]
		if err != nil || !m.Up() {
			continue
		}
		if merr := m.daemon.MoveWithContainers(w.ctx(), v.ID, w.nodes[to].daemon.ID()); merr == nil {
			return nil
		} else if !strings.Contains(merr.Error(), "lead") {
			return merr
		}
	}
	return errors.Join(err, errors.New("no machine leads"))
}

// followStep is a step about containers that follow their volumes; ok is false for
// another step.
//
//	run-following NODE CONTAINER VOLUME..  docker run with the label, a secret and the image CONTAINER:1
//	run-once NODE CONTAINER VOLUME..       the same without a restart policy
//	run-trying NODE CONTAINER TRIES VOLUME..  the same with the policy on-failure:TRIES
//	prepare NODE CONTAINER VOLUME..        docker compose create of what run-following runs; prepared NODE CONTAINER:
//	                               the one there is no other; prepare-once of what run-once runs
//	run-networked NODE CONTAINER VOLUME NETWORK..  run-following on these networks; other-networked: without the label
//	network NODE NAME, no-network NODE NAME  until its engine has the network, or has it no more
//	started NODE CONTAINER TIMES   so often one of that name was started there, by its user or by flockd; what its
//	                               engine does by itself is not counted
//	polite NODE CONTAINER          it ends with code 0 there when it is stopped
//	sticks NODE CONTAINER, loosens NODE CONTAINER  the engine cannot remove it while it runs, and can again
//	followed NODE CONTAINER ON running|stopped  until the node knows it so
//	remarked NODE CONTAINER TEXT   until flockctl container list says so of it
//	not-followed NODE CONTAINER    until the node does not know it
//	spoil NODE CONTAINER, mend NODE CONTAINER  the engine cannot start it, and can again
//	ends NODE CONTAINER CODE AFTER [WORDS..]  its command ends there so long after each start, having said
//	                               WORDS; ends NODE CONTAINER never: no more
//	ends-once NODE CONTAINER CODE AFTER [WORDS..]  and runs once its engine has started it again
//	image NODE IMAGE               until the node's engine has the image
//	same NODE CONTAINER            it has its label, secret and policy, and the state does not show the secret
//	ponders NODE TOOK DURATION     from now on, for so long, its engine takes TOOK to describe a container
//	lingers NODE TOOK              from now on its engine takes TOOK between the mounts of volumes and the start of a process
//	begins NODE CONTAINER VOLUME..  run-following that has only mounted the first yet; begins-other: without the label
//	rm NODE CONTAINER              docker rm
//	not-there NODE CONTAINER       the engine has no container of that name
//	rmi NODE IMAGE, load NODE IMAGE  docker rmi and docker load
//	shutdown NODE                  the machine is shut down in order: its engine, then all the rest
//	move-following NODE VOLUME TO  a planned move with the containers is begun by the leader
func (w *World) followStep(words []string) (ok bool, err error) {
	var m *Machine
	if len(words) > 1 {
		m = w.nodes[words[1]]
	}
	if m == nil {
		return false, nil
	}
	record := func() *state.Container {
		for c := range m.daemon.State().Containers() {
			if c.Name == words[2] {
				return c
			}
		}
		return nil
	}
	switch words[0] {
	case "shutdown":
		m.Engine.StopAll()
		time.Sleep(10 * time.Second) // flockd, which ends after the engine, sees what that does
		m.Engine.Shutdown()
		m.Cut()
	case "run-following", "run-once", "run-trying", "prepare", "prepare-once":
		opts := containerfake.RunOptions{
			Labels: map[string]string{container.LabelEnable: "true"}, Env: []string{secret}, Image: words[2] + ":1",
		}
		switch words[0] {
		case "run-following":
			opts.Restart = "always"
		case "run-trying":
			var err error
			if opts.Tries, err = strconv.Atoi(words[3]); err != nil {
				return true, err
			}
			opts.Restart = "on-failure"
			return true, m.Engine.Run(words[2], opts, words[4:]...)
		case "prepare":
			opts.Restart = "always"
			return true, m.Engine.Create(words[2], opts, words[3:]...)
		case "prepare-once":
			return true, m.Engine.Create(words[2], opts, words[3:]...)
		}
		return true, m.Engine.Run(words[2], opts, words[3:]...)
	case "run-networked", "other-networked":
		opts := containerfake.RunOptions{
			Labels: map[string]string{container.LabelEnable: "true"}, Env: []string{secret}, Image: words[2] + ":1", Restart: "always", Networks: words[4:],
		}
		if words[0] == "other-networked" {
			return true, m.Engine.Create(words[2], containerfake.RunOptions{Networks: words[3:]})
		}
		return true, m.Engine.Run(words[2], opts, words[3])
	case "network", "no-network":
		w.Await(strings.Join(words, " "), func() bool {
			t, err := m.Engine.Target(w.ctx())
			return err == nil && slices.Contains(t.Networks, words[2]) == (words[0] == "network")
		})
	case "followed":
		w.Await(strings.Join(words, " "), func() bool {
			c := record()
			return c != nil && m.daemon.State().NodeName(c.Node) == words[3] && c.Run == (words[4] == "running")
		})
	case "remarked":
		text := strings.Join(words[3:], " ")
		w.Await(strings.Join(words, " "), func() bool {
			all, err := m.API().Containers(w.ctx())
			return err == nil && slices.ContainsFunc(all, func(c api.Container) bool {
				return c.Name == words[2] && slices.Contains(c.Notes, text)
			})
		})
	case "not-followed":
		w.Await(strings.Join(words, " "), func() bool { return record() == nil })
	case "prepared":
		c, err := m.Engine.Inspect(w.ctx(), words[2])
		if err == nil && c.Labels[container.LabelMade] != "" {
			err = errors.New("it is one that flocker has made")
		}
		return true, err
	case "started":
		if got := m.Engine.Started(words[2]); strconv.Itoa(got) != words[3] {
			return true, fmt.Errorf("it was started %d times", got)
		}
	case "polite":
		m.Engine.Polite(words[2])
	case "sticks", "loosens":
		m.Engine.Stick(words[2], words[0] == "sticks")
	case "spoil", "mend":
		m.Engine.Spoil(words[2], words[0] == "spoil")
	case "ends", "ends-once":
		if words[3] == "never" {
			m.Engine.Ends(words[2], nil)
			return true, nil
		}
		code, err := strconv.Atoi(words[3])
		if err != nil {
			return true, err
		}
		after, err := time.ParseDuration(words[4])
		m.Engine.Ends(words[2], &containerfake.End{Code: code, After: after, Says: strings.Join(words[5:], " "), Once: words[0] == "ends-once"})
		return true, err
	case "image":
		w.Await(strings.Join(words, " "), func() bool {
			_, err := m.Engine.LocalImage(w.ctx(), container.Image{Ref: words[2]})
			return err == nil
		})
	case "same":
		c, err := m.Engine.Inspect(w.ctx(), words[2])
		if err != nil {
			return true, err
		}
		if c.Labels[container.LabelEnable] != "true" || !slices.Contains(m.Engine.Env(words[2]), secret) || !bytes.Contains(c.Spec.HostConfig, []byte(`"always"`)) {
			return true, fmt.Errorf("it is another one: %s %s", c.Spec.Config, c.Spec.HostConfig)
		}
		var all bytes.Buffer
		if err := m.daemon.State().Marshal(&all); err != nil {
			return true, err
		}
		if strings.Contains(all.String(), secret) {
			return true, fmt.Errorf("the state shows its secret")
		}
	case "ponders":
		took, err := time.ParseDuration(words[2])
		if err != nil {
			return true, err
		}
		during, err := time.ParseDuration(words[3])
		m.Engine.Ponder(took, during)
		return true, err
	case "lingers":
		took, err := time.ParseDuration(words[2])
		m.Engine.Linger(took)
		return true, err
	case "begins", "begins-other":
		opts := containerfake.RunOptions{Image: words[2] + ":1", Restart: "always"}
		if words[0] == "begins" {
			opts.Labels, opts.Env = map[string]string{container.LabelEnable: "true"}, []string{secret}
		}
		m.calls.Go(func() {
			if err := m.Engine.Run(words[2], opts, words[3:]...); err != nil {
				w.t.Errorf("container %s: %v", words[2], err)
			}
		})
		w.Await(strings.Join(words, " "), func() bool {
			v := m.daemon.State().VolumeByName(words[3])
			return v != nil && slices.Contains(w.mountedOn(datasetOf(v.ID)), m.Name)
		})
	case "rm":
		return true, m.Engine.Remove(words[2])
	case "not-there":
		if st, _, there := m.Engine.Container(words[2]); there {
			return true, fmt.Errorf("it is there, %s", st)
		}
	case "rmi":
		m.Engine.RemoveImage(words[2])
	case "load":
		return true, m.Engine.LoadImage(w.ctx(), container.Image{Ref: words[2]}, strings.NewReader(words[2]))
	case "move-following":
		return true, w.moveFollowing(words[2], words[3])
	default:
		return false, nil
	}
	return true, nil
}
