package scenario

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/container/containerfake"
	"github.com/flocker-io/flocker/internal/volume"
)

// swarmStep is a step about a Swarm and its services; ok is false for another step.
//
//	swarm NODE[,NODE..] NODE..     a Swarm, and the first of these manage it
//	service NAME VOLUME..          docker service create, bound to its volumes; service-unbound and
//	  service-once: not bound, and never restarted
//	service-slow NAME TIME VOLUME..   its tasks take so long to end
//	unservice NAME                 docker service rm
//	task NAME NODE                 until its task runs there, and on no other machine that is up
//	tasks NAME N                   so many of its tasks were started so far
//	tasks-together NAME N          so many of its tasks ran at a time, at most
//	tasks-fail NODE NAME           tasks of it do not start there from now on; tasks-work: they do
//	label VOLUME NODE|nowhere      until exactly that machine has the label of a volume
//	relabel NODE VOLUME            somebody gives that manager's node the label of a volume
//	unlabelled VOLUME              no machine has it now
//	engine NODE down|up            the engine's process ends, and comes back; containers go on
//	labels refused|taken           what becomes of changes of labels
func (w *World) swarmStep(words []string) (ok bool, err error) {
	switch words[0] {
	case "swarm":
		w.swarm = containerfake.NewSwarm("swarm")
		managers := strings.Split(words[1], ",")
		for _, n := range append(managers, words[2:]...) {
			w.swarm.Join(w.Machine(n).Engine, slices.Contains(managers, n))
		}
	case "service", "service-unbound", "service-once":
		s := containerfake.Service{Name: words[1], Volumes: words[2:], Bound: words[2:], Once: words[0] == "service-once"}
		if words[0] == "service-unbound" {
			s.Bound = nil
		}
		w.swarm.Run(s)
	case "service-slow":
		grace, err := time.ParseDuration(words[2])
		if err != nil {
			return true, err
		}
		w.swarm.Run(containerfake.Service{Name: words[1], Volumes: words[3:], Bound: words[3:], Grace: grace})
	case "tasks-together":
		if got := fmt.Sprint(w.swarm.Most(words[1])); got != words[2] {
			return true, fmt.Errorf("%s ran at a time", got)
		}
	case "unservice":
		w.swarm.Remove(words[1])
	case "task":
		w.Await(strings.Join(words, " "), func() bool {
			for _, n := range w.Names() {
				m := w.nodes[n]
				if want := n == words[2]; m.Up() && (len(m.Engine.Tasks(words[1])) == 1) != want {
					return false
				}
			}
			return true
		})
	case "engine":
		if e := w.Machine(words[1]).Engine; words[2] == "down" {
			e.Crash(true)
		} else {
			e.Boot()
		}
	case "tasks":
		if got := fmt.Sprint(w.swarm.Started(words[1])); got != words[2] {
			return true, fmt.Errorf("%s were started", got)
		}
	case "tasks-fail", "tasks-work":
		for i := range 1000 {
			w.Machine(words[1]).Engine.Spoil(fmt.Sprintf("%s.1.%d", words[2], i+1), words[0] == "tasks-fail")
		}
	case "label":
		w.Await(strings.Join(words, " "), func() bool {
			var on []string
			for _, n := range w.Names() {
				if labels := w.swarm.Labels(w.nodes[n].Engine); labels[volume.SwarmPrefix+words[1]] == "true" {
					on = append(on, n)
				}
			}
			return strings.Join(on, ",") == strings.TrimPrefix(words[2], "nowhere")
		})
	case "relabel":
		if err := w.Machine(words[1]).Engine.LabelSwarmNode(w.ctx(), "swarm-"+words[1], []string{volume.SwarmPrefix + words[2]}, nil); err != nil {
			return true, err
		}
	case "unlabelled":
		for _, n := range w.Names() {
			if labels := w.swarm.Labels(w.nodes[n].Engine); labels[volume.SwarmPrefix+words[1]] != "" {
				return true, fmt.Errorf("%s has its label", n)
			}
		}
	case "labels":
		w.swarm.Refuse(map[string]error{"refused": errors.New("the swarm does not have a leader")}[words[1]])
	default:
		return false, nil
	}
	return true, nil
}
