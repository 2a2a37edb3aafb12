package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/terminal"
)

// strict has every command do nothing when its line is wrong, and say so in one line. The library would
// pass over arguments that a command does not take, and `flockd fence now beta`, typed on alpha, would
// stop alpha's writers; and it would say a wrong flag with a page of help, on stdout.
func strict(app *cli.App) {
	app.ExitErrHandler = func(*cli.Context, error) {} // main decides
	app.OnUsageError = wrongFlag
	app.Action = checked(app.Action)
	var all func([]*cli.Command)
	all = func(commands []*cli.Command) {
		for _, c := range commands {
			c.OnUsageError = wrongFlag
			c.HideHelpCommand = true
			if c.Action == nil {
				c.Action = func(c *cli.Context) error { return cli.ShowSubcommandHelp(c) }
			}
			c.Action = checked(c.Action)
			all(c.Subcommands)
		}
	}
	all(app.Commands)
}

// usage refuses what was typed.
func usage(c *cli.Context, format string, args ...any) error {
	return fmt.Errorf("%s: see %s --help", fmt.Sprintf(format, args...), c.Command.HelpName)
}

// wrongFlag refuses what the library could not read. flockd's own flags, which all commands go by, are
// looked for before the command alone.
func wrongFlag(c *cli.Context, err error, _ bool) error {
	name, unknown := strings.CutPrefix(err.Error(), "flag provided but not defined: ")
	if name = strings.TrimLeft(name, "-"); unknown && c.Command.Name != c.App.Name && hasFlag(c.App.Flags, name) {
		return usage(c, "--%s stands before the command: flockd --%s VALUE %s", name, name, strings.TrimPrefix(c.Command.HelpName, "flockd "))
	}
	return usage(c, "%v", err)
}

func hasFlag(flags []cli.Flag, name string) bool {
	return slices.ContainsFunc(flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
}

// checked does what a command does, if its line has nothing that no command takes.
func checked(do cli.ActionFunc) cli.ActionFunc {
	return func(c *cli.Context) error {
		first := c.Args().First()
		switch group := len(c.Command.Subcommands) > 0; {
		case !c.Args().Present():
		case group && !strings.HasPrefix(first, "-"):
			return usage(c, "there is no command %q", first)
		default:
			return usage(c, "unexpected argument %q", first)
		}
		for _, f := range c.Command.Flags {
			if why := badFlag(c, f); why != "" {
				return usage(c, "--%s %s", f.Names()[0], why)
			}
		}
		return do(c)
	}
}

// badFlag is what is wrong with the value of a command's own flag, "" if nothing is.
func badFlag(c *cli.Context, f cli.Flag) string {
	name := f.Names()[0]
	if !c.IsSet(name) {
		return ""
	}
	switch f := f.(type) {
	case *cli.StringFlag:
		return badValue(c.String(name), strings.Join(f.EnvVars, ""), f.Usage)
	case *cli.DurationFlag:
		// Clients may be cut off at once; to wait for nothing is to ask for nothing.
		if d := c.Duration(name); d < 0 || d == 0 && name != "drain" {
			return fmt.Sprintf("is %s, and has to be more than nothing", d)
		}
	}
	return ""
}

// badValue is what is wrong with the value of a flag, whose usage says whether it is a file's name. In
// the environment an empty one is none.
func badValue(value, env, usage string) string {
	if value == "" && env != "" {
		if given, set := os.LookupEnv(env); set && given == "" {
			return ""
		}
	}
	file := slices.ContainsFunc([]string{"`FILE`", "`DEVICE`", "directory", "socket"}, func(word string) bool { return strings.Contains(usage, word) })
	return terminal.BadWord(value, file)
}
