package zfs

import (
	"errors"
	"fmt"
	"strings"
)

// Kinds of error a caller may want to tell apart, found with errors.Is. What zfs
// prints that is none of these has no kind.
var (
	ErrNotFound    = errors.New("does not exist")
	ErrExists      = errors.New("exists already")
	ErrBusy        = errors.New("is busy")
	ErrHasClones   = errors.New("has clones that depend on it")
	ErrNoSpace     = errors.New("out of space")
	ErrDiverged    = errors.New("has been modified since the base of the stream")
	ErrNoBase      = errors.New("the base of the stream is not there")
	ErrBadStream   = errors.New("the stream is damaged or cut short")
	ErrInterrupted = errors.New("the stream was cut short and can be resumed")
	ErrBadToken    = errors.New("the resume token cannot be used")
	ErrSuspended   = errors.New("the pool is suspended")
	ErrInvalid     = errors.New("invalid argument")
	ErrUnsupported = errors.New("not supported by this ZFS")
	ErrNoZFS       = errors.New("zfs is not usable on this machine")
)

// Error says which command failed, on what, and what it printed.
type Error struct {
	Op     string   // "snapshot", "receive", ...
	Args   []string // of the command, for the log
	Stderr string   // trimmed
	Kind   error    // one of the kinds above, or nil
	Names  []string // the datasets and snapshots it complained about, when it said so
	Err    error    // how the command ended, or the cause of its context
}

func (e *Error) Error() string {
	msg := strings.ReplaceAll(strings.TrimSpace(e.Stderr), "\n", "; ")
	if msg == "" && e.Err != nil {
		msg = e.Err.Error()
	}
	if msg == "" && e.Kind != nil {
		msg = e.Kind.Error()
	}
	return fmt.Sprintf("zfs %s: %s", e.Op, msg)
}

// Unwrap lets errors.Is find the kind and the cause.
func (e *Error) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.Kind, e.Err} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}
