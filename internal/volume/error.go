package volume

import (
	"errors"
	"fmt"
)

// Code tells kinds of refusal apart, across the API, the CLI's exit status and the
// plugin. What has no Code is an internal error.
type Code string

// The codes. Each has one exit status in flockctl and one HTTP status in the API.
const (
	CodeInvalid     Code = "invalid"     // the request itself is wrong
	CodeNotFound    Code = "not-found"   // no such volume, node, token
	CodeConflict    Code = "conflict"    // another one is in the way: name taken, in use, epoch moved on
	CodeRefused     Code = "refused"     // a safety rule says no
	CodeTimeout     Code = "timeout"     // not done in time; it may still happen
	CodeNoQuorum    Code = "no-quorum"   // no leader can be reached
	CodeUnavailable Code = "unavailable" // not now: starting, node unreachable; try again
	CodeDenied      Code = "denied"      // wrong token, foreign cluster, not allowed
	CodeNotInit     Code = "no-cluster"  // this node belongs to no cluster yet
)

// Error is a refusal a user may see: Message says what was being done and what is
// wrong, Hint what the user can do about it.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + ": " + e.Hint
}

// Errorf makes an Error without a hint.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// WithHint returns a copy of e that tells the user what to do.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// CodeOf finds the code in err's chain; "" when there is none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
