package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Identify tells which node is at the other end of an authenticated connection. It
// is asked for every request, so that a node removed meanwhile is refused.
type Identify func(net.Conn) (volume.NodeID, error)

// ServeLocal serves this machine's administrator until ctx ends: whoever can
// connect to l may do everything. It closes l and returns nil when ctx ended.
func ServeLocal(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	return serve(ctx, l, h, log, func(ctx context.Context, _ net.Conn) (context.Context, error) {
		return AsLocal(ctx), nil
	})
}

// ServePeers serves other nodes until ctx ends. l must hand out connections whose
// handshake is done. It closes l and returns nil when ctx ended.
func ServePeers(ctx context.Context, l net.Listener, id Identify, h http.Handler, log *slog.Logger) error {
	return serve(ctx, l, h, log, func(ctx context.Context, c net.Conn) (context.Context, error) {
		node, err := id(c)
		if err != nil {
			return nil, err
		}
		return AsPeer(ctx, node), nil
	})
}

type connKey struct{}

// stopGrace is how long calls may take to notice that the server stops.
const stopGrace = 5 * time.Second

func serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger, mark func(context.Context, net.Conn) (context.Context, error)) error {
	marked := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _ := r.Context().Value(connKey{}).(net.Conn)
		ctx, err := mark(r.Context(), conn)
		if err != nil {
			writeError(w, volume.Errorf(volume.CodeDenied, "this cluster does not know you: %v", err))
			return
		}
		h.ServeHTTP(w, r.WithContext(ctx))
	})
	srv := &http.Server{
		Handler: marked,
		// Long polls and slow calls end with the server.
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute, // longer than the client's, so that it never uses a dying connection
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}

	stopped := make(chan error, 1)
	go func() { stopped <- srv.Serve(l) }()
	select {
	case err := <-stopped:
		srv.Close()
		return err
	case <-ctx.Done():
	}

	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	srv.Shutdown(grace) // what has not ended by now is cut
	srv.Close()
	<-stopped
	return nil
}

// NewHandler is the API over a backend. p may be nil on a node that answers no
// peers. It serves only requests that ServeLocal or ServePeers let in; any other
// caller is denied, so that a listener wired wrongly is closed, not open.
func NewHandler(b Backend, p Peer, log *slog.Logger) http.Handler {
	h := &handler{mux: http.NewServeMux(), log: log}
	for _, r := range routes(b, p) {
		h.mux.Handle(r.method+" "+r.path, h.route(r))
	}
	h.mux.HandleFunc("/", h.nowhere)
	return h
}

type handler struct {
	mux *http.ServeMux
	log *slog.Logger
}

// ServeHTTP gives the request its ID and refuses strangers.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get(requestIDHeader)
	if !validRequestID(id) {
		id = newRequestID()
	}
	w.Header().Set(requestIDHeader, id)
	r = r.WithContext(WithRequestID(r.Context(), id))

	if c, _ := r.Context().Value(callerKey{}).(caller); !c.local && c.node == "" {
		writeError(w, volume.Errorf(volume.CodeDenied, "this connection is not authenticated"))
		return
	}
	h.mux.ServeHTTP(w, r)
}

func (h *handler) route(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		r.Body = http.MaxBytesReader(w, r.Body, rt.bodyLimit())
		if rt.path == receivePath {
			r.Body = &patientBody{ReadCloser: r.Body, deadline: http.NewResponseController(w).SetReadDeadline}
		}
		out, err := h.call(rt, r)
		if stream, ok := r.Body.(*patientBody); ok && err != nil {
			stream.refused()
		}
		h.logCall(rt, r, time.Since(start), err)
		files, streamed := out.(*Browsed)
		switch {
		case err != nil:
			writeError(w, err)
		case streamed:
			h.stream(w, r, files)
		case out == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			writeReply(w, out)
		}
	})
}

// call runs one route: permission, then the backend.
func (h *handler) call(rt route, r *http.Request) (out any, err error) {
	defer func() {
		if p := recover(); p != nil {
			h.log.Error("panic in an API call", "method", rt.method, "path", rt.path,
				"request", RequestID(r.Context()), "panic", p, "stack", string(debug.Stack()))
			out, err = nil, errors.New("flockd has met a bug; its log has the details")
		}
	}()
	_, isPeer := Caller(r.Context())
	switch {
	case rt.who == local && isPeer:
		return nil, volume.Errorf(volume.CodeDenied, "%s %s is for the node's own administrator", rt.method, rt.path)
	case rt.who == peers && !isPeer:
		return nil, volume.Errorf(volume.CodeDenied, "%s %s is for other nodes of the cluster", rt.method, rt.path)
	}
	return rt.serve(r)
}

// logCall tells what happened: changes and their refusals are of interest, reading
// and the chatter between nodes is not.
func (h *handler) logCall(rt route, r *http.Request, took time.Duration, err error) {
	ctx := r.Context()
	level := slog.LevelDebug
	if rt.method != http.MethodGet && rt.who != peers {
		level = slog.LevelInfo
	}
	args := []any{"method", rt.method, "path", r.URL.Path, "request", RequestID(ctx), "took", took}
	if node, ok := Caller(ctx); ok {
		args = append(args, "peer", node.Short())
	}
	if err != nil {
		if volume.CodeOf(err) == "" && ctx.Err() == nil {
			level = slog.LevelError
		}
		args = append(args, "code", string(volume.CodeOf(err)), "err", err)
	}
	h.log.Log(ctx, level, "api call", args...)
}

// nowhere answers what no route matches.
func (h *handler) nowhere(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete} {
		probe := &http.Request{Method: m, URL: r.URL, Host: r.Host}
		if _, pattern := h.mux.Handler(probe); pattern != "/" {
			allowed = append(allowed, m)
		}
	}
	if len(allowed) > 0 {
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		writeErrorStatus(w, http.StatusMethodNotAllowed,
			volume.Errorf(volume.CodeInvalid, "%s is not possible on %s", r.Method, r.URL.Path).
				WithHint("use %s", strings.Join(allowed, " or ")))
		return
	}
	writeError(w, volume.Errorf(volume.CodeNotFound, "no %s in this API", r.URL.Path).
		WithHint("GET /v1/openapi.yaml describes what there is"))
}

// raw is a reply that is not JSON.
type raw struct {
	contentType string
	body        []byte
}

func writeReply(w http.ResponseWriter, out any) {
	if f, ok := out.(raw); ok {
		w.Header().Set("Content-Type", f.contentType)
		w.Write(f.body)
		return
	}
	body, err := json.Marshal(out)
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(body, '\n'))
}
