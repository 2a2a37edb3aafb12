package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// requestIDHeader carries the ID under which one user's wish appears in the logs
// of all nodes that took part.
const requestIDHeader = "X-Request-Id"

type requestIDKey struct{}

// WithRequestID gives a context the ID that calls made under it are logged with.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestIDKey{}, id)
}

// RequestID is the ID of the call that a context belongs to; "" outside of calls.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

func newRequestID() string { return strings.ToLower(rand.Text()[:16]) }

// validRequestID keeps line breaks and novels out of our logs.
func validRequestID(s string) bool {
	const ok = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	return s != "" && len(s) <= 64 && strings.Trim(s, ok) == ""
}

// decodeStrict reads a person's or a program's request: one JSON object, and no
// field that this version does not know. Ignoring one could mean doing something
// else than was asked, so a newer node's forwarded request is refused as well.
func decodeStrict[T any](r io.Reader) (T, error) {
	return decode[T](r, (*json.Decoder).DisallowUnknownFields)
}

// decodeLenient reads what another node says on its own account. While nodes are
// upgraded one by one, a field that only newer ones know must not stop heartbeats.
func decodeLenient[T any](r io.Reader) (T, error) {
	return decode[T](r, func(*json.Decoder) {})
}

func decode[T any](r io.Reader, configure func(*json.Decoder)) (T, error) {
	var v, zero T
	body, err := readBody(r)
	if err != nil {
		return zero, err
	}
	if first := bytes.TrimLeft(body, " \t\r\n"); len(first) == 0 || first[0] != '{' {
		return zero, volume.Errorf(volume.CodeInvalid, "the request body is not a JSON object")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	configure(d)
	if err := d.Decode(&v); err != nil {
		return zero, volume.Errorf(volume.CodeInvalid, "the request body: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return zero, volume.Errorf(volume.CodeInvalid, "the request body goes on after the JSON object")
	}
	return v, nil
}

func readBody(r io.Reader) ([]byte, error) {
	body, err := io.ReadAll(r)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, volume.Errorf(volume.CodeInvalid, "the request body is larger than %d bytes", tooLarge.Limit)
	case err != nil:
		return nil, volume.Errorf(volume.CodeInvalid, "reading the request body: %v", err)
	}
	return body, nil
}

// noBody refuses a body where none is read.
func noBody(r *http.Request) error {
	if n, _ := io.ReadFull(r.Body, make([]byte, 1)); n > 0 {
		return volume.Errorf(volume.CodeInvalid, "%s %s takes no request body", r.Method, r.URL.Path)
	}
	return nil
}

// params are query parameters, each given at most once.
type params map[string]string

// query reads the parameters, of which only known ones may be there.
func query(r *http.Request, known ...string) (params, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "the query: %v", err)
	}
	p := params{}
	for k, vs := range q {
		if !slices.Contains(known, k) {
			e := volume.Errorf(volume.CodeInvalid, "unknown query parameter %q", k)
			if len(known) > 0 {
				e = e.WithHint("there is %s", strings.Join(known, ", "))
			}
			return nil, e
		}
		if len(vs) > 1 {
			return nil, volume.Errorf(volume.CodeInvalid, "query parameter %q is given %d times", k, len(vs))
		}
		p[k] = vs[0]
	}
	return p, nil
}

func (p params) boolean(key string) (bool, error) {
	return param(p, key, strconv.ParseBool, "true or false")
}

func (p params) number(key string) (uint64, error) {
	return param(p, key, func(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }, "a number")
}

// duration between zero and most.
func (p params) duration(key string, most time.Duration) (time.Duration, error) {
	return param(p, key, func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err == nil && (d < 0 || d > most) {
			err = errors.New("out of range")
		}
		return d, err
	}, fmt.Sprintf("a duration such as 30s, at most %s", most))
}

func param[T any](p params, key string, parse func(string) (T, error), want string) (T, error) {
	var zero T
	s, ok := p[key]
	if !ok {
		return zero, nil
	}
	v, err := parse(s)
	if err != nil {
		return zero, volume.Errorf(volume.CodeInvalid, "query parameter %s=%q: want %s", key, s, want)
	}
	return v, nil
}
