package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// The verbs of the command line that Flocker had are understood as well. They are words for
// commands that there are, never commands of their own, and none means anything else than ours.

// oldName is what Flocker's command line was called.
const oldName = "flockerctl"

const oldHelp = `flockctl understands what flockerctl was told; docs/FLOCKER.md has more:

   flockerctl create -n NODE -s SIZE -m name=NAME    flockctl create --node NODE --size SIZE NAME
   flockerctl list, list --deleted                   flockctl ls, flockctl ls --trash
   flockerctl list-nodes, ls-nodes                   flockctl node list
   flockerctl move -d DATASET -t NODE                flockctl migrate VOLUME NODE
   flockerctl destroy -d DATASET                     flockctl rm VOLUME
   flockerctl info [DATASET]                         flockctl inspect VOLUME, flockctl status
   flockerctl ls, status, version                    the same

A dataset is a volume, and is given by its name, its id or the start of that.

`

// oldVerb is how a command of Flocker's is said here.
type oldVerb struct {
	// to is the command. ours says that a command of this name is ours, too: then only options
	// that it does not have make it the old one.
	to   string
	ours bool
	// options are the old ones: another name, which takes a value or not, or the place of an
	// argument.
	options map[string]oldOption
}

type oldOption struct {
	name string // "": an argument
	at   int    // which argument
	bare bool   // it takes no value
	meta bool   // KEY=VALUE,... of which name is the first argument
}

var (
	oldDataset = oldOption{at: 0}
	oldTarget  = oldOption{at: 1}
	oldVerbs   = map[string]oldVerb{
		"list":       {to: "volume list", options: map[string]oldOption{"deleted": {name: "--trash", bare: true}}},
		"list-nodes": {to: "node list"},
		"ls-nodes":   {to: "node list"},
		"info":       {to: "volume inspect", options: map[string]oldOption{"d": oldDataset, "dataset": oldDataset}},
		"destroy":    {to: "volume remove", options: map[string]oldOption{"d": oldDataset, "dataset": oldDataset}},
		"move": {to: "migrate", ours: true, options: map[string]oldOption{
			"d": oldDataset, "dataset": oldDataset, "t": oldTarget, "destination": oldTarget,
		}},
		"create": {to: "volume create", ours: true, options: map[string]oldOption{
			"n": {name: "--node"}, "s": {name: "--size"}, "p": {name: "--profile"}, "m": {meta: true}, "metadata": {meta: true},
		}},
	}
	// oldGlobals say where the control service is, and who asks.
	oldGlobals = []string{"control-service", "control-port", "user", "certs-path", "cluster-crt", "cluster-yml"}
	// oldGone are words of Flocker's other programs.
	oldGone = map[string]string{
		"deploy":  "`flockctl migrate VOLUME NODE` moves a volume, and containers with the label flocker.enable=true go along",
		"ca":      "`flockctl init` and the line that it prints make and renew all certificates",
		"dataset": "`flockctl volume` has the commands for volumes", "datasets": "`flockctl volume list` lists them",
		"lease": "the containers that use a volume hold it by themselves, see `flockctl volume list`", "leases": "the containers that use a volume hold it by themselves, see `flockctl volume list`",
	}
)

// calledAs says by what name the program was called.
func calledAs(arg0 string) string {
	if filepath.Base(arg0) == oldName {
		return oldName
	}
	return "flockctl"
}

// fromFlocker says with our words what a command line means that has Flocker's. Every other one
// stays as it is.
func fromFlocker(root *cli.App, args []string) ([]string, error) {
	i := 0
	for i < len(args) && strings.HasPrefix(args[i], "-") && args[i] != "--" {
		if err := oldGlobal(args[i]); err != nil {
			return nil, usageError{err, root.Name}
		}
		f := lookup(root.Flags, args[i])
		if f != nil && takesValue(f) && !strings.Contains(args[i], "=") {
			i++
		}
		i++
	}
	if i >= len(args) {
		return args, nil
	}
	verb, rest := args[i], args[i+1:]
	if text := oldGone[verb]; text != "" && named(root.Commands, verb) == nil {
		return nil, usageError{fmt.Errorf("there is no command %q any more: %s", verb, text), root.Name}
	}
	v, ok := oldVerbs[verb]
	if !ok {
		return args, nil
	}
	said, old, err := v.say(root, rest)
	if err != nil {
		return nil, usageError{fmt.Errorf("%s: %w", verb, err), root.Name + " " + v.to}
	}
	if v.ours && !old {
		return args, nil
	}
	to := v.to
	if verb == "info" && !slices.ContainsFunc(said, func(w string) bool { return !strings.HasPrefix(w, "-") }) {
		to = "status"
	}
	return slices.Concat(args[:i], strings.Fields(to), said), nil
}

// say puts what stands after a verb into our words. old is whether any of it was Flocker's.
func (v oldVerb) say(root *cli.App, rest []string) (said []string, old bool, err error) {
	var dataset, target string // arguments that were options
	for i := 0; i < len(rest); i++ {
		word := rest[i]
		if word == "--" {
			said = append(said, rest[i:]...)
			break
		}
		if !strings.HasPrefix(word, "-") || word == "-" {
			said = append(said, word)
			continue
		}
		if err := oldGlobal(word); err != nil {
			return nil, false, err
		}
		name, value, has := strings.Cut(strings.TrimLeft(word, "-"), "=")
		o, ok := v.options[name]
		if !ok {
			said = append(said, word)
			// The value of one of ours is none of the old options.
			if f := lookup(slices.Concat(v.flags(root), root.Flags), word); f != nil && takesValue(f) && !has && i+1 < len(rest) {
				i++
				said = append(said, rest[i])
			}
			continue
		}
		old = true
		if !o.bare && !has {
			if i++; i == len(rest) {
				return nil, false, fmt.Errorf("option %s needs a value", word)
			}
			value = rest[i]
		}
		switch {
		case o.bare:
			said = append(said, o.name)
		case o.name != "":
			said = append(said, o.name, value)
		case o.meta:
			if value, err = oldMetadata(value); err != nil {
				return nil, false, err
			}
			fallthrough
		case o.at == 0:
			if dataset != "" {
				return nil, false, errors.New("two volumes are given: one at a time")
			}
			dataset = value
		default:
			target = value
		}
	}
	if target != "" && dataset == "" {
		return nil, false, errors.New("-d DATASET is missing")
	}
	if dataset != "" {
		said = append(said, "--", dataset)
	}
	if target != "" {
		said = append(said, target)
	}
	return said, old, nil
}

// flags are those of the command that a verb stands for.
func (v oldVerb) flags(root *cli.App) []cli.Flag {
	commands := root.Commands
	var c *cli.Command
	for _, name := range strings.Fields(v.to) {
		c = named(commands, name)
		commands = c.Subcommands
	}
	return c.Flags
}

// oldMetadata is the name in Flocker's metadata, which there is no other of here.
func oldMetadata(text string) (name string, err error) {
	for _, kv := range strings.Split(text, ",") {
		key, value, _ := strings.Cut(kv, "=")
		if key != "name" {
			return "", fmt.Errorf("nothing is kept of a volume's metadata but its name: leave out %q", kv)
		}
		name = value
	}
	if name == "" {
		return "", errors.New("a volume needs a name: -m name=NAME")
	}
	return name, nil
}

func oldGlobal(word string) error {
	name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
	if slices.Contains(oldGlobals, name) {
		return fmt.Errorf("there is no --%s: flockctl asks the flockd of its own machine, leave it out", name)
	}
	return nil
}
