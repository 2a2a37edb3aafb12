package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/terminal"
)

// words is a command line taken apart: which command is meant, which options are
// given to it and to flockctl as a whole, and which arguments.
type words struct {
	command *cli.Command // nil: flockctl itself
	path    []string
	global  []string
	options []string
	rest    []string
	// open is an option at the end of the line whose value is still to come.
	open cli.Flag
	// help says that only help is wanted.
	help bool
	// dashes says that a "--" has ended the options.
	dashes bool
}

// parse takes a command line apart. The library wants global options before the
// command and others before the arguments; people put them anywhere.
func parse(root *cli.App, args []string) words {
	var w words
	commands := root.Commands
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case w.dashes:
			w.rest = append(w.rest, arg)
		case arg == "--":
			w.dashes = true
		case len(arg) > 1 && arg[0] == '-':
			f, to := w.find(arg), &w.options
			if f == nil {
				if f = lookup(root.Flags, arg); f != nil {
					to = &w.global
				} else if name := strings.TrimLeft(arg, "-"); name == "help" || name == "h" {
					w.help = true
					continue
				}
			}
			*to = append(*to, arg)
			if f == nil || !takesValue(f) || strings.Contains(arg, "=") {
				continue
			}
			if i+1 == len(args) {
				w.open = f
				continue
			}
			i++
			*to = append(*to, args[i])
		default:
			if c := named(commands, arg); c != nil && len(w.rest) == 0 {
				w.command, commands = c, c.Subcommands
				w.path = append(w.path, c.Name)
				continue
			}
			w.rest = append(w.rest, arg)
		}
	}
	return w
}

// arrange puts a command line into the order that the library wants.
func arrange(root *cli.App, args []string) ([]string, error) {
	if len(args) > 0 && args[0] == completeName {
		return args, nil
	}
	if len(args) > 0 && args[0] == "help" {
		args = append(args[1:len(args):len(args)], "--help")
	}
	w := parse(root, args)
	if w.open != nil {
		return nil, usageError{fmt.Errorf("option %s needs a value", args[len(args)-1]), strings.Join(append([]string{root.Name}, w.path...), " ")}
	}
	out := append(w.global, w.path...)
	group := w.command == nil || len(w.command.Subcommands) > 0 && w.command.ArgsUsage == ""
	if w.help && (!group || len(w.rest) == 0) {
		// Of arguments the library would want to have help.
		return append(out, "--help"), nil
	}
	out = append(out, w.options...)
	// Without the dashes, an argument that begins with one would be an option. For a
	// group, what is left is a command that there is not.
	if len(w.rest) > 0 && (w.command != nil && len(w.command.Subcommands) == 0 || w.dashes) {
		out = append(out, "--")
	}
	return append(out, w.rest...), nil
}

// find is the option of the command that arg means, nil when there is none.
func (w words) find(arg string) cli.Flag {
	if w.command == nil {
		return nil
	}
	return lookup(w.command.Flags, arg)
}

func lookup(flags []cli.Flag, arg string) cli.Flag {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	for _, f := range flags {
		for _, n := range f.Names() {
			if n == name {
				return f
			}
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}

func named(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

// checkWords refuses what nobody means to give: arguments and values of options that are empty,
// as of a variable that is not set, or that have something in them that no terminal shows. Only
// files may have such names.
func checkWords(c *cli.Context) error {
	places := strings.Fields(c.Command.ArgsUsage)
	for i, arg := range c.Args().Slice() {
		place := "argument"
		if len(places) > 0 {
			place = strings.TrimSuffix(strings.Trim(places[min(i, len(places)-1)], "[]"), "...")
		}
		file := strings.Contains(place, "PATH") || strings.Contains(place, "DEST")
		if why := terminal.BadWord(arg, file); why != "" {
			return usage(c, "%s %s", place, why)
		}
	}
	for _, f := range c.Command.Flags {
		name := f.Names()[0]
		if !c.IsSet(name) {
			continue
		}
		var values []string
		switch f.(type) {
		case *cli.StringFlag:
			values = []string{c.String(name)}
		case *cli.StringSliceFlag:
			values = c.StringSlice(name)
		}
		about, file := f.(cli.DocGenerationFlag).GetUsage(), false
		for _, word := range []string{"`PATH`", "`FILE`"} {
			file = file || strings.Contains(about, word)
		}
		for _, v := range values {
			if why := terminal.BadWord(v, file); why != "" {
				return usage(c, "--%s %s", name, why)
			}
		}
	}
	return nil
}
