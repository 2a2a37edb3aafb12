// Command asker is a client that neither repeats anything nor forgives anything, for
// stories about routes: what it was answered it counts once, and a connection that breaks,
// is refused or answers something else ends it with what was wrong. The stories install it
// on the lab's machines.
//
//	asker redis HOST:PORT KEY    raises KEY: one by one, eight at a time, in transactions, and on new connections
//	asker anew HOST:PORT KEY     raises KEY on new connections alone, two at a time
//	asker http HOST:PORT NAME    posts to /NAME-CONNECTION/1, 2, 3, ... on kept connections, and on new ones
//
// Each second it prints how many were answered, all in all, and the longest that one took:
// "1200 85ms". SIGTERM has it wait for what was asked and end. What is wrong it prints as
// "error: ...".
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Printf("error: %v\n", err)
		os.Exit(1)
	}
}

// patience is how long an answer may take: longer than any route keeps a client waiting.
const patience = 5 * time.Minute

// tally counts what was answered.
type tally struct {
	answered atomic.Int64
	mu       sync.Mutex
	longest  time.Duration // since it was told last
}

func (t *tally) add(n int, took time.Duration) {
	t.answered.Add(int64(n))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.longest = max(t.longest, took)
}

func (t *tally) tell(out io.Writer) error {
	t.mu.Lock()
	longest := t.longest
	t.longest = 0
	t.mu.Unlock()
	_, err := fmt.Fprintf(out, "%d %dms\n", t.answered.Load(), longest.Milliseconds())
	return err
}

// asker asks on one connection: each call asks once more and returns how many were done.
type asker struct {
	addr string
	ask  func(c *client, no int) (n int, err error)
	// anew: each time on a new connection.
	anew bool
}

// client is one connection.
type client struct {
	net.Conn
	in   *bufio.Reader
	last int64 // number that the server said
	done bool  // the server wants it closed
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) != 3 {
		return errors.New("usage: asker redis|anew|http HOST:PORT NAME")
	}
	mode, addr, name := args[0], args[1], args[2]
	var all []asker
	switch mode {
	case "redis":
		all = []asker{
			{addr, func(c *client, _ int) (int, error) { return c.raise(name, 1) }, false},
			{addr, func(c *client, _ int) (int, error) { return c.raise(name, 8) }, false},
			{addr, func(c *client, _ int) (int, error) { return c.transact(name) }, false},
			{addr, func(c *client, _ int) (int, error) { return c.raise(name, 1) }, true},
		}
	case "anew":
		for range 2 {
			all = append(all, asker{addr, func(c *client, _ int) (int, error) { return c.raise(name, 1) }, true})
		}
	case "http":
		for i := range 4 {
			all = append(all, asker{addr, func(c *client, no int) (int, error) { return 1, c.post(fmt.Sprintf("/%s-%d/%d", name, i, no)) }, i == 3})
		}
	default:
		return fmt.Errorf("no such mode: %s", mode)
	}
	var t tally
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var work sync.WaitGroup
	for i, a := range all {
		work.Go(func() {
			if err := a.run(ctx, &t); err != nil {
				cancel(fmt.Errorf("connection %d: %w", i, err))
			}
		})
	}
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for ctx.Err() == nil {
		select {
		case <-second.C:
			if err := t.tell(out); err != nil {
				cancel(err)
			}
		case <-ctx.Done():
		}
	}
	work.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return t.tell(out)
}

// rest is how long a connection does without, after an answer that took so long. An emulated
// machine has other work to do, too, and the slower it is the more it would have clients alone.
func rest(took time.Duration) time.Duration {
	return min(max(100*time.Millisecond, 2*took), 2*time.Second)
}

// run asks until ctx ends.
func (a *asker) run(ctx context.Context, t *tally) error {
	var c *client
	defer func() {
		if c != nil {
			_ = c.Close()
		}
	}()
	for no := 1; ctx.Err() == nil; no++ {
		began := time.Now()
		if c == nil {
			conn, err := net.DialTimeout("tcp", a.addr, patience)
			if err != nil {
				return err
			}
			c = &client{Conn: conn, in: bufio.NewReader(conn)}
		}
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		n, err := a.ask(c, no)
		if err != nil {
			return fmt.Errorf("request %d after %s: %w", no, time.Since(began).Round(time.Millisecond), err)
		}
		took := time.Since(began)
		t.add(n, took)
		if a.anew || c.done {
			_ = c.Close()
			c = nil
		}
		select {
		case <-time.After(rest(took)):
		case <-ctx.Done():
		}
	}
	return nil
}

// raise raises key n times, all of them asked for before the first is answered.
func (c *client) raise(key string, n int) (int, error) {
	if _, err := io.WriteString(c, strings.Repeat(command("INCR", key), n)); err != nil {
		return 0, err
	}
	for i := range n {
		if err := c.risen(); err != nil {
			return i, err
		}
	}
	return n, nil
}

// transact raises key twice in a transaction, step by step, each after the other's answer.
func (c *client) transact(key string) (int, error) {
	steps := []struct{ say, want string }{{command("MULTI"), "+OK"}, {command("INCR", key), "+QUEUED"}, {command("INCR", key), "+QUEUED"}, {command("EXEC"), "*2"}}
	for _, s := range steps {
		if _, err := io.WriteString(c, s.say); err != nil {
			return 0, err
		}
		if got, err := c.line(); err != nil || got != s.want {
			return 0, fmt.Errorf("the answer is %q, want %q: %w", got, s.want, errOr(err))
		}
	}
	return 2, errors.Join(c.risen(), c.risen())
}

// risen reads the next number, which is higher than all before it.
func (c *client) risen() error {
	s, err := c.line()
	if err != nil {
		return err
	}
	n, err := strconv.ParseInt(strings.TrimPrefix(s, ":"), 10, 64)
	if err != nil || !strings.HasPrefix(s, ":") || n <= c.last {
		return fmt.Errorf("the answer is %q after the number %d", s, c.last)
	}
	c.last = n
	return nil
}

func (c *client) line() (string, error) {
	s, err := c.in.ReadString('\n')
	return strings.TrimRight(s, "\r\n"), err
}

var errAnswer = errors.New("unexpected")

func errOr(err error) error {
	if err == nil {
		return errAnswer
	}
	return err
}

// command in Redis' protocol.
func command(words ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
	}
	return b.String()
}

// post asks for path, whose answer is the path again.
func (c *client) post(path string) error {
	const body = "once"
	req := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: story\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	if _, err := io.WriteString(c, req); err != nil {
		return err
	}
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK || strings.TrimSpace(string(got)) != path {
		return fmt.Errorf("%s is answered with %s %q", path, res.Status, got)
	}
	c.done = res.Close
	return nil
}
