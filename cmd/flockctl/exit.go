package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/flocker-io/flocker/internal/terminal"
	"github.com/flocker-io/flocker/internal/volume"
)

// Exit codes. Scripts rely on them: they never change their meaning.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitTimeout     = 5
	exitUnavailable = 6
	exitDenied      = 7
	exitFewer       = 8
)

const exitHelp = `Exit codes:
   0  done
   1  failed inside, or interrupted; or doctor has found a problem
   2  the command line or an option is wrong
   3  no such volume, node, snapshot, set-aside copy or token
   4  conflict, refused by a safety rule, or copies differ
   5  not done in time; it may still happen
   6  flockd is not running, in no cluster, has no quorum, or a node cannot be asked
   7  not allowed: no permission, wrong token, foreign cluster
   8  done on all copies that there are, which are fewer than the volume asks for`

var exitCodes = map[volume.Code]int{
	volume.CodeInvalid:     exitUsage,
	volume.CodeNotFound:    exitNotFound,
	volume.CodeConflict:    exitConflict,
	volume.CodeRefused:     exitConflict,
	volume.CodeTimeout:     exitTimeout,
	volume.CodeNoQuorum:    exitUnavailable,
	volume.CodeUnavailable: exitUnavailable,
	volume.CodeNotInit:     exitUnavailable,
	volume.CodeDenied:      exitDenied,
}

// usageError is a wrong command line.
type usageError struct {
	err     error
	command string // where to look for help
}

func (e usageError) Error() string {
	return fmt.Sprintf("%v: see %s --help", e.err, e.command)
}

// fewerError is a volume with fewer copies than it asks for.
type fewerError struct{ error }

// told is an error that has been printed already.
type told struct{ err error }

func (e told) Error() string { return e.err.Error() }
func (e told) Unwrap() error { return e.err }

func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	var u usageError
	if errors.As(err, &u) {
		return exitUsage
	}
	var fewer fewerError
	if errors.As(err, &fewer) {
		return exitFewer
	}
	if code, ok := exitCodes[volume.CodeOf(err)]; ok {
		return code
	}
	return exitError
}

// printError says on one line what went wrong and what to do.
func (a *app) printError(err error) {
	var t told
	if err == nil || errors.As(err, &t) {
		return
	}
	a.printFailure(errorText(err))
}

func (a *app) printFailure(text string) {
	fmt.Fprintln(a.stderr, "flockctl:", terminal.Line(text))
}

// errorText is what an error says to people.
func errorText(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted: what was asked may still happen"
	}
	return err.Error()
}
