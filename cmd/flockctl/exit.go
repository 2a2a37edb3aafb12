package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

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
	text := err.Error()
	if errors.Is(err, context.Canceled) {
		text = "interrupted: what was asked may still happen"
	}
	fmt.Fprintln(a.stderr, "flockctl:", shortened(visible(strings.Join(strings.Fields(text), " "))))
}

// shortened is a line without its middle, if it is longer than anybody reads: what was typed may
// be of any length, and what to do stands at the end.
func shortened(line string) string {
	const most, head, tail = 4096, 1024, 1024
	if len(line) <= most {
		return line
	}
	cut := func(i int) int {
		for !utf8.RuneStart(line[i]) {
			i++
		}
		return i
	}
	from, to := cut(head), cut(len(line)-tail)
	return fmt.Sprintf("%s [%d bytes left out] %s", line[:from], to-from, line[to:])
}

// visible is text that may have names in it that a container has chosen: nothing of it
// tells the terminal what to do.
func visible(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, "\\x%02x", text[0])
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
		text = text[n:]
	}
	return b.String()
}
