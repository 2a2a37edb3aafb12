package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// Statuses of gRPC, for calls that the server has not given one.
const (
	grpcCancelled         = 1
	grpcPermissionDenied  = 7
	grpcResourceExhausted = 8
	grpcInternal          = 13
	grpcUnavailable       = 14
)

// isGRPC tells calls from requests of anything else. What gRPC is for browsers has another way
// to end, and understands HTTP's statuses.
func isGRPC(r *http.Request) bool {
	rest, ok := strings.CutPrefix(r.Header.Get("Content-Type"), "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// refuseGRPC answers a call with a status, and nothing else.
func refuseGRPC(w http.ResponseWriter, status int, why string) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Grpc-Status", strconv.Itoa(status))
	w.Header().Set("Grpc-Message", grpcMessage(why))
}

// loseGRPC ends a call that has failed with err, after its answer has begun or not; gone says that
// the connection to its server has ended, or is about to. A reset of the
// stream alone would be taken for a fault of one side's; that the server has gone away is what
// clients are made for.
func loseGRPC(w http.ResponseWriter, begun bool, err error, gone bool) {
	status, why := grpcLost(err, gone)
	if !begun {
		refuseGRPC(w, status, why)
		return
	}
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", strconv.Itoa(status))
	w.Header().Set(http.TrailerPrefix+"Grpc-Message", grpcMessage(why))
}

// grpcLost is what a client would make of it, had it met err itself: the end of a connection, or
// of one stream.
func grpcLost(err error, gone bool) (status int, why string) {
	var reset streamReset
	switch {
	case errors.Is(err, errCut):
		return grpcUnavailable, "flocker: the call was cut off, so that its server could move; what it was to do may be done"
	case errors.As(err, &reset):
		why = fmt.Sprintf("flocker: the stream to the server was reset, with code %d", reset.Code)
		if reset.Cause != nil {
			why += ": " + reset.Cause.Error()
		}
	case gone || errors.As(err, new(*net.OpError)):
		return grpcUnavailable, "flocker: the connection to the server has ended before the call; what it was to do may be done"
	default:
		return grpcInternal, "flocker: the call could not be passed on to the server: " + err.Error()
	}
	switch reset.Code {
	case refusedStream:
		return grpcUnavailable, why
	case cancelStream:
		return grpcCancelled, why
	case enhanceYourCalm:
		return grpcResourceExhausted, why
	case inadequateSecurity:
		return grpcPermissionDenied, why
	}
	return grpcInternal, why
}

// grpcMessage has what a header may not have, and the sign that this is told by, as bytes of two
// digits.
//
// Source: gRPC over HTTP2, "Percent-Encoded".
func grpcMessage(why string) string {
	var out strings.Builder
	for i := range len(why) {
		if c := why[i]; c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&out, "%%%02X", c)
			continue
		}
		out.WriteByte(why[i])
	}
	return out.String()
}

// streamReset is what net/http calls a stream's error, which it lets be had as a type with the
// same fields.
type streamReset struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (r streamReset) Error() string { return fmt.Sprintf("stream reset with code %d", r.Code) }

// Codes of HTTP/2.
const (
	refusedStream      = 7
	cancelStream       = 8
	enhanceYourCalm    = 11
	inadequateSecurity = 12
)

// lossy is a body that tells why it could not be read to its end.
type lossy struct {
	io.ReadCloser
	lost *error
}

func (b *lossy) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		*b.lost = err
	}
	return n, err
}
