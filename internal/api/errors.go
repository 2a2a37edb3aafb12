package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
)

// codeInternal is on the wire what has no Code in Go.
const codeInternal volume.Code = "internal"

// statusOf gives each code its HTTP status. Clients of ours go by the code; the
// status is for proxies and curl.
var statusOf = map[volume.Code]int{
	volume.CodeInvalid:     http.StatusBadRequest,
	volume.CodeNotFound:    http.StatusNotFound,
	volume.CodeConflict:    http.StatusConflict,
	volume.CodeRefused:     http.StatusUnprocessableEntity,
	volume.CodeTimeout:     http.StatusGatewayTimeout,
	volume.CodeNoQuorum:    http.StatusServiceUnavailable,
	volume.CodeUnavailable: http.StatusServiceUnavailable,
	volume.CodeDenied:      http.StatusForbidden,
	volume.CodeNotInit:     http.StatusPreconditionFailed,
	codeInternal:           http.StatusInternalServerError,
}

func writeError(w http.ResponseWriter, err error) {
	e := wireError(err)
	status, ok := statusOf[e.Code]
	if !ok {
		status = http.StatusInternalServerError
	}
	writeErrorStatus(w, status, e)
}

func writeErrorStatus(w http.ResponseWriter, status int, e *volume.Error) {
	body, _ := json.Marshal(e) // strings only: cannot fail
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(body, '\n'))
}

// wireError is err as it travels: its code and hint, and the words that callers on
// the way wrapped around it.
func wireError(err error) *volume.Error {
	var e *volume.Error
	switch {
	case errors.As(err, &e):
		msg := err.Error()
		if e.Hint != "" {
			msg = strings.TrimSuffix(msg, ": "+e.Hint)
		}
		c := &volume.Error{Code: e.Code, Message: msg, Hint: e.Hint}
		if c.Code == "" {
			c.Code = codeInternal
		}
		return c
	case errors.Is(err, context.DeadlineExceeded):
		return volume.Errorf(volume.CodeTimeout, "not done in time: %v", err)
	case errors.Is(err, context.Canceled):
		return volume.Errorf(volume.CodeUnavailable, "given up: flockd is stopping or the caller has gone")
	}
	return volume.Errorf(codeInternal, "%v", err)
}

// readError is the error that a reply of an HTTP status other than 2xx carries.
func readError(status int, body []byte) error {
	var e volume.Error
	if err := json.Unmarshal(body, &e); err != nil || e.Message == "" {
		return volume.Errorf(volume.CodeUnavailable, "what answers is not flockd: %s", http.StatusText(status))
	}
	if e.Code == codeInternal {
		return errors.New(e.Message)
	}
	return &e
}
