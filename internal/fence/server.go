package fence

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
)

// Listen opens the fencer's socket, for root alone, in place of one that an earlier
// fencer has left.
func Listen(socket string) (net.Listener, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("opening the fencer's socket: %w", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("opening the fencer's socket: %w", err)
	}
	// The directory is closed to others as well: between the two calls the mode is what
	// the process was started with.
	if err := os.Chmod(socket, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("opening the fencer's socket: %w", err)
	}
	return l, nil
}

// Serve answers on a listener until ctx ends; then every connection is closed. Peers
// that allowed refuses are sent away; nil allows all.
func (f *Fencer) Serve(ctx context.Context, l net.Listener, allowed func(net.Conn) error) error {
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accepting connections: %w", err)
		}
		all.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			if allowed != nil {
				if err := allowed(conn); err != nil {
					f.log.Warn("a connection was refused", "err", err)
					return
				}
			}
			f.talk(conn)
		})
	}
}

// talk answers one peer's requests until it goes.
func (f *Fencer) talk(conn net.Conn) {
	out := json.NewEncoder(conn)
	in := bufio.NewScanner(conn)
	in.Buffer(nil, maxLine)
	for in.Scan() {
		var r request
		var a response
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			a = response{Status: f.Status(), Error: fmt.Sprintf("a request that cannot be read: %v", err)}
		} else {
			a = f.do(r)
		}
		if err := out.Encode(a); err != nil {
			return
		}
	}
}
