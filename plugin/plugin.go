package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"
	protocol "github.com/docker/go-plugins-helpers/volume"

	"github.com/flocker-io/flocker/internal/volume"
)

// Name of the driver, as users write it after --driver.
const Name = "flocker"

// DefaultSocket is where engines look for the driver "flocker".
const DefaultSocket = "/run/docker/plugins/flocker.sock"

// drainTime is how long calls under way may go on when flockd stops. A Mount that
// is cut off is final for its container; most end within this.
const drainTime = 5 * time.Second

// Plugin serves the driver on its socket.
type Plugin struct {
	Backend Backend
	Log     *slog.Logger
	Socket  string // DefaultSocket when empty
	// Observe is told about every call, for metrics. May be nil.
	Observe func(Call)
	// Listening is called once when the socket is there. May be nil.
	Listening func()
	// Drain is drainTime when zero.
	Drain time.Duration
}

// Run binds the socket and serves until ctx ends, then lets calls under way finish
// for a moment, removes the socket and returns nil. Call it only when the backend
// can answer: an engine that has connected waits for ever for its first answer.
func (p *Plugin) Run(ctx context.Context) error {
	socket := p.Socket
	if socket == "" {
		socket = DefaultSocket
	}
	l, err := listen(socket)
	if err != nil {
		return fmt.Errorf("plugin socket: %w", err)
	}
	defer l.remove()

	// Calls outlive ctx by the drain time.
	calls, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	driver := NewDriver(calls, p.Backend, p.Log, p.Observe)
	served := make(chan error, 1)
	handler := protocol.NewHandler(driver)
	handler.HandleFunc("POST /VolumeDriver.Get", serveGet(driver)) // wins over the library's own
	go func() { served <- handler.Serve(l) }()
	p.Log.Info("plugin socket is open", "socket", socket)
	if p.Listening != nil {
		p.Listening()
	}

	var failed error
	select {
	case <-ctx.Done():
		// Without its file no engine tries the socket; a file without a listener would
		// hold up an engine's start by 45 s.
		l.remove()
		l.Close()
		<-served
	case failed = <-served:
		l.Close()
	}

	drain := p.Drain
	if drain == 0 {
		drain = drainTime
	}
	l.finish()
	deadline := time.AfterFunc(drain, giveUp)
	defer deadline.Stop()
	driver.Wait()
	l.wait()
	giveUp() // calls that came in after all, by connections that are closed by now
	driver.Wait()
	if failed != nil {
		return fmt.Errorf("plugin socket: %w", failed)
	}
	return nil
}

// serveGet answers Get with a volume, with "not found", or not at all. Whatever else is
// answered means to the engine that the volume is gone: it forgets the labels and sends
// no more Unmount. A connection that breaks means "not known", which is the truth of a
// bug, of a backend that hangs, and above all of the empty body with which the engine
// repeats a Get that a dying flockd left without an answer.
func serveGet(d *Driver) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var request protocol.GetRequest
		err := json.NewDecoder(r.Body).Decode(&request)
		if err == io.EOF {
			panic(http.ErrAbortHandler) // breaks the connection, without a log line
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer, err := d.Get(&request)
		switch {
		case err == nil:
			sdk.EncodeResponse(w, answer, false)
		case volume.CodeOf(err) == volume.CodeNotFound:
			sdk.EncodeResponse(w, protocol.NewErrorResponse(err.Error()), true)
		default:
			panic(http.ErrAbortHandler)
		}
	}
}

// listener is the unix socket with the connections that came in by it, so that they
// can be ended: the protocol's server leaves them open.
type listener struct {
	*net.UnixListener
	path string
	file fs.FileInfo

	mu        sync.Mutex
	finishing bool
	conns     map[*conn]struct{}
	open      sync.WaitGroup
}

// listen binds the socket. What is in its place is removed only if it is a socket
// that refuses connections: the remains of a process that is gone.
func listen(path string) (*listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	u, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	u.SetUnlinkOnClose(false) // see remove
	l := &listener{UnixListener: u, path: path, conns: map[*conn]struct{}{}}
	err = os.Chmod(path, 0o600)
	if err == nil {
		l.file, err = os.Lstat(path)
	}
	if err != nil {
		u.Close()
		return nil, fmt.Errorf("%s vanished while it was made; is another flockd starting? (%w)", path, err)
	}
	return l, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is not a socket: remove it", path)
	}
	c, err := net.DialTimeout("unix", path, 2*time.Second)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s is in use: another flockd runs on this machine", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s is there and cannot be tried, so it stays: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// remove takes the socket's file away, unless it is another one by now.
func (l *listener) remove() {
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.file) {
		os.Remove(l.path)
	}
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.UnixListener.Accept()
	if err != nil {
		return nil, err
	}
	t := &conn{Conn: c, from: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[t] = struct{}{}
	l.open.Add(1)
	if l.finishing {
		t.finish()
	}
	return t, nil
}

// finish ends every connection as soon as its answer is written: those that wait for
// a next request at once.
func (l *listener) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finishing = true
	for c := range l.conns {
		c.finish()
	}
}

// wait returns when all connections are closed. An engine that does not read its
// answer is cut off.
func (l *listener) wait() {
	cut := time.AfterFunc(time.Second, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for c := range l.conns {
			c.Conn.Close()
		}
	})
	defer cut.Stop()
	l.open.Wait()
}

// conn is one connection from the engine. Once it is to finish, reading fails and
// the server closes it after the answer it may be writing.
type conn struct {
	net.Conn
	from *listener

	mu        sync.Mutex
	finishing bool
	closed    sync.Once
}

func (c *conn) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finishing = true
	c.Conn.SetReadDeadline(time.Unix(1, 0))
}

// SetReadDeadline is called by the server between requests; it may not bring a
// connection back.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finishing {
		t = time.Unix(1, 0)
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *conn) SetDeadline(t time.Time) error {
	c.Conn.SetWriteDeadline(t)
	return c.SetReadDeadline(t)
}

func (c *conn) Close() error {
	err := c.Conn.Close()
	c.closed.Do(func() {
		c.from.mu.Lock()
		delete(c.from.conns, c)
		c.from.mu.Unlock()
		c.from.open.Done()
	})
	return err
}
