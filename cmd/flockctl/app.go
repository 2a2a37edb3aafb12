package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// world is what a run of flockctl sees of the machine.
type world struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	// terminal says that a person can be asked a question on stdin.
	terminal bool
	// screen says that stdout is a terminal, whose picture can be drawn again; progress,
	// that stderr is one, where a line may come and go.
	screen, progress bool
	width            func() int // of the terminal that stderr is; nil: nobody knows
	now              func() time.Time
	called           string // the name that it was called by
}

func system() world {
	return world{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		terminal: isatty.IsTerminal(os.Stdin.Fd()), now: time.Now, called: calledAs(os.Args[0]),
		screen: isatty.IsTerminal(os.Stdout.Fd()), progress: isatty.IsTerminal(os.Stderr.Fd()),
		width: func() int { w, _ := terminalSize(os.Stderr); return w },
	}
}

// app is one run.
type app struct {
	world
	client *api.Client

	socket  string
	asJSON  bool
	quiet   bool
	timeout time.Duration
	// patient says that the user gave no --timeout.
	patient bool

	// drawn is what comes and goes on the terminal that stderr is, below all that is said there.
	drawing sync.Mutex
	drawn   *picture
}

// defaultTimeout covers the longest thing that flockd does in one call: waiting for
// a failover.
const defaultTimeout = 2 * time.Minute

// maxTimeout is for ever, as far as anybody waits.
const maxTimeout = 365 * 24 * time.Hour

// run does what args (without the program's name) say and returns the exit code.
func run(args []string, w world) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	a := &app{world: w}
	root := a.root()
	if len(args) == 0 && w.called == oldName {
		a.printf("%s", oldHelp)
	}
	args, err := a.understand(root, args)
	if err == nil {
		err = root.RunContext(ctx, append([]string{root.Name}, args...))
	}
	if a.client != nil {
		a.client.Close()
	}
	a.printError(err)
	return exitCode(err)
}

// understand puts a command line, of ours or of Flocker's, into the order that the library wants.
func (a *app) understand(root *cli.App, args []string) ([]string, error) {
	if len(args) > 0 && args[0] == completeName {
		return args, nil
	}
	args, err := fromFlocker(root, args)
	if err != nil {
		return nil, err
	}
	return arrange(root, args)
}

// root is the whole command line.
func (a *app) root() *cli.App {
	root := &cli.App{
		Name:      "flockctl",
		HelpName:  "flockctl",
		Usage:     "manage a flocker cluster, its nodes and its volumes",
		UsageText: "flockctl [global options] COMMAND [options] [arguments]\n\nOptions may stand before or after arguments.",
		Description: "flockctl talks to the flockd of this machine; any node of the cluster will do.\n\n" +
			exitHelp,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "socket", EnvVars: []string{"FLOCKCTL_SOCKET"}, Value: api.DefaultSocket, Usage: "`PATH` of flockd's socket", Destination: &a.socket},
			&cli.BoolFlag{Name: "json", Usage: "print JSON, for programs", Destination: &a.asJSON},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print only names, ids or the token", Destination: &a.quiet},
			&cli.DurationFlag{Name: "timeout", Value: defaultTimeout, Usage: "give up after this `TIME`", Destination: &a.timeout},
			&cli.BoolFlag{Name: "version", Usage: "print the version of flockctl"},
		},
		Commands: slices.Concat(
			[]*cli.Command{a.initCommand(), a.joinCommand(), a.statusCommand(), a.topCommand(), a.nodeCommand(), a.volumeCommand(), a.replicationCommand(), a.snapshotCommand(), a.rollbackCommand(), a.cloneCommand(), a.browseCommand(), a.diffCommand(), a.migrateCommand(), a.rebalanceCommand(), a.failoverCommand(), a.trashCommand(), a.asideCommand(), a.containerCommand(), a.routeCommand(), a.settingsCommand()},
			[]*cli.Command{a.backupCommand(), a.exportCommand(), a.importCommand()},
			a.volumeShortcuts(),
			[]*cli.Command{a.tokenCommand(), a.eventsCommand(), a.doctorCommand(), a.diagnosticsCommand(), a.versionCommand(), a.completionCommand(), a.completeCommand(), a.manCommand()},
		),
		HideHelpCommand:           true,
		HideVersion:               true,
		DisableSliceFlagSeparator: true, // a comma in "-o key=a,b" belongs to the value
		Writer:                    a.stdout,
		ErrWriter:                 a.stderr,
		ExitErrHandler:            func(*cli.Context, error) {}, // run decides
		OnUsageError:              func(c *cli.Context, err error, _ bool) error { return usageError{err, c.Command.HelpName} },
		Before:                    a.prepare,
		Action: func(c *cli.Context) error {
			if c.Bool("version") {
				return a.printOwnVersion()
			}
			return unknownCommand(c)
		},
	}
	plainSwitches(root.Flags)
	finish(root.Commands)
	return root
}

// finish gives every command what all have in common.
func finish(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError = func(c *cli.Context, err error, _ bool) error { return usageError{err, c.Command.HelpName} }
		c.HideHelpCommand = true
		if len(c.Subcommands) > 0 && c.Action == nil {
			c.Action = unknownCommand
		}
		c.CustomHelpTemplate = cli.CommandHelpTemplate + globalHelp
		if len(c.Subcommands) > 0 {
			c.CustomHelpTemplate = cli.SubcommandHelpTemplate + globalHelp
		}
		plainSwitches(c.Flags)
		finish(c.Subcommands)
	}
}

// plainSwitches spares the reader that what is not given is false.
func plainSwitches(flags []cli.Flag) {
	for _, f := range flags {
		if b, ok := f.(*cli.BoolFlag); ok {
			b.DisableDefaultText = true
		}
	}
}

const globalHelp = `
The global options --json, --quiet, --timeout and --socket may stand here, too: see flockctl --help.
`

// unknownCommand is the action of what is only a group of commands.
func unknownCommand(c *cli.Context) error {
	name := c.Args().First()
	if c.NArg() == 0 {
		if c.Command.Name == "flockctl" {
			return cli.ShowAppHelp(c)
		}
		return cli.ShowSubcommandHelp(c)
	}
	err := fmt.Errorf("there is no command %q", name)
	for _, sub := range c.Command.Subcommands {
		if name != "" && !sub.Hidden && (strings.HasPrefix(sub.Name, name) || strings.HasPrefix(name, sub.Name)) {
			err = fmt.Errorf("%w, did you mean %q?", err, sub.Name)
			break
		}
	}
	return usageError{err, c.Command.HelpName}
}

// prepare reads the global options.
func (a *app) prepare(c *cli.Context) error {
	a.patient = !c.IsSet("timeout")
	if a.timeout <= 0 {
		return usageError{errors.New("--timeout has to be more than nothing"), "flockctl"}
	}
	if a.timeout > maxTimeout {
		return usageError{fmt.Errorf("--timeout is at most %s", volume.FormatPeriod(maxTimeout)), "flockctl"}
	}
	if a.socket == "" {
		return usageError{errors.New("--socket is empty"), "flockctl"}
	}
	if a.asJSON && a.quiet {
		return usageError{errors.New("--json and --quiet cannot be combined"), "flockctl"}
	}
	a.client = api.NewUnixClient(a.socket)
	return nil
}

// within is ctx with the user's patience.
func (a *app) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, a.timeout)
}

// action makes the action of a command: it checks the number of arguments (most
// below zero: no limit) and gives f a context that ends with the timeout.
func (a *app) action(least, most int, f func(ctx context.Context, c *cli.Context) error) cli.ActionFunc {
	return a.untimed(least, most, func(ctx context.Context, c *cli.Context) error {
		ctx, cancel := a.within(ctx)
		defer cancel()
		return f(ctx, c)
	})
}

// untimed is action for commands that wait for a person or for ever.
func (a *app) untimed(least, most int, f func(ctx context.Context, c *cli.Context) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		n := c.NArg()
		switch {
		case n < least:
			return usage(c, "%s is missing", firstWords(c.Command.ArgsUsage, least, n))
		case most >= 0 && n > most:
			return usage(c, "unexpected argument %q", c.Args().Get(most))
		}
		if err := checkWords(c); err != nil {
			return err
		}
		return f(c.Context, c)
	}
}

// firstWords names the arguments that are missing.
func firstWords(argsUsage string, least, given int) string {
	words := strings.Fields(argsUsage)
	return strings.TrimSuffix(strings.Join(words[min(given, len(words)):min(least, len(words))], " "), "...")
}

// usage refuses what was typed.
func usage(c *cli.Context, format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...), c.Command.HelpName}
}
