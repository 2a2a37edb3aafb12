package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// call makes a request of gRPC as far as a gate knows it, and returns when its answer begins.
func (w *webs) call(c *http.Client, path string) *http.Response {
	w.Helper()
	res, err := c.Post("http://"+w.addr+path, "application/grpc+proto", strings.NewReader("x"))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = res.Body.Close() })
	return res
}

// watch is a call that has had its first message.
func (w *webs) watch(c *http.Client) (res *http.Response, rest *bufio.Reader) {
	w.Helper()
	res = w.call(c, "/watch")
	rest = bufio.NewReader(res.Body)
	if line, err := rest.ReadString('\n'); line != "first\n" {
		w.Fatalf("%q, %v", line, err)
	}
	return res, rest
}

// A status that has come with the headers, and no message after it, goes on as it has come:
// clients do not look for one there otherwise.
func TestGRPCWithoutMessage(t *testing.T) {
	w := newWebs(t, Limits{})
	c := w.client(true)
	for i := range 2000 {
		res := w.call(c, "/refused")
		_ = res.Body.Close()
		_, said := res.Header["Content-Length"]
		if res.ContentLength != 0 || said || res.Header.Get("Grpc-Status") != "5" {
			t.Fatalf("answer %d has a body, or a length (%t): %d, %v", i, said, res.ContentLength, res.Header)
		}
	}
}

// Who loses the server hears what one hears whose connection has ended.
func TestGRPCServerIsLost(t *testing.T) {
	w := newWebs(t, Limits{})
	c := w.client(true)
	begun, rest := w.watch(c)
	answer := make(chan *http.Response)
	go func() {
		res, err := c.Post("http://"+w.addr+"/slow", "application/grpc", nil)
		if err != nil {
			t.Error(err)
		}
		answer <- res
	}()
	other, err := c.Get("http://" + w.addr + "/watch")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Body.Close() }()
	w.until("all are with the server", func() bool { return w.calls.Load() == 3 })
	w.now.CloseClientConnections()
	if got, err := io.ReadAll(rest); len(got) > 0 || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if got := begun.Trailer.Get("Grpc-Status"); got != "14" {
		t.Errorf("a call that had part of its answer ends with %q: %v", got, begun.Trailer)
	}
	if res := <-answer; res != nil {
		if got := res.Header.Get("Grpc-Status"); got != "14" {
			t.Errorf("a call that had no answer ends with %q: %v", got, res.Header)
		}
		_ = res.Body.Close()
	}
	if got, err := io.ReadAll(other.Body); err == nil {
		t.Errorf("what is not gRPC takes %q for the whole answer", got)
	}
	for range 3 {
		w.let <- struct{}{}
	}
}

// A server that resets a stream means that one.
func TestGRPCServerResets(t *testing.T) {
	w := newWebs(t, Limits{})
	c := w.client(true)
	res := w.call(c, "/reset")
	if got := res.Header.Get("Grpc-Status"); got != "13" {
		t.Errorf("it ends with %q: %v", got, res.Header)
	}
	if err := w.ask(c, "GET", "/1", ""); err != nil {
		t.Error(err)
	}
}

// A client that has not said all, and says nothing, hears at once how its request ends.
func TestHTTP2HeardInSilence(t *testing.T) {
	lose := func(w *webs) { w.now.CloseClientConnections() }
	for name, c := range map[string]struct {
		path, kind string
		then       func(w *webs) // once it is with the server, and has heard the first part of an answer
		want       string        // of the status of gRPC and the body
		fails      bool
	}{
		"a call without an answer loses its server": {"/slow", "application/grpc", lose, "14 ", false},
		"a call within its answer":                  {"/watch", "application/grpc", lose, "14 first\n", false},
		"what is not gRPC":                          {"/slow", "text/plain", lose, "", true},
		"what is not gRPC, within its answer":       {"/watch", "text/plain", lose, " first\n", true},
		"the server resets a call":                  {"/reset", "application/grpc", func(*webs) {}, "13 ", false},
		"the server has answered all":               {"/watch", "application/grpc", func(w *webs) { w.let <- struct{}{} }, " first\nlast\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWebs(t, Limits{})
			body, more := io.Pipe()
			defer func() {
				_ = more.Close()
				close(w.let)
			}()
			type answer struct {
				said string
				err  error
			}
			heard, begun := make(chan answer, 1), make(chan struct{})
			go func() {
				res, err := w.client(true).Post("http://"+w.addr+c.path, c.kind, body)
				if err != nil {
					heard <- answer{"", err}
					return
				}
				in := bufio.NewReader(res.Body)
				first, _ := in.ReadString('\n') // the error will be there again
				close(begun)
				said, err := io.ReadAll(in)
				_ = res.Body.Close()
				heard <- answer{res.Header.Get("Grpc-Status") + res.Trailer.Get("Grpc-Status") + " " + first + string(said), err}
			}()
			switch c.path {
			case "/slow":
				w.until("it is with the server", func() bool { return w.calls.Load() == 1 })
			case "/watch":
				<-begun
			}
			c.then(w)
			select {
			case got := <-heard:
				if got.said != c.want || got.err != nil != c.fails {
					t.Errorf("it hears %q, %v", got.said, got.err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("it hears nothing")
			}
			w.g.Pause()
			w.quiet()
		})
	}
}

// What a server that leaves has still to answer is in the way of a pause, and can be cut, though
// other servers take the requests that come.
func TestHTTP2LeftBehind(t *testing.T) {
	for _, cut := range []bool{false, true} {
		t.Run(fmt.Sprintf("cut %t", cut), func(t *testing.T) {
			w := newWebs(t, Limits{Request: time.Minute, Event: time.Minute})
			c := w.client(true)
			begun, rest := w.watch(c)
			old := w.now
			w.now = w.start()
			w.g.Resume(func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() })
			var leaves sync.WaitGroup
			leaves.Go(func() {
				if err := old.Config.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
			})
			defer leaves.Wait()
			defer close(w.let)
			w.server("the server to say that it leaves", func(s *http.ClientConn) bool { return s.Available() == 0 })
			answer := make(chan error, 1)
			go func() { answer <- w.ask(c, "GET", "/1", "") }()
			w.until("another request waits for a server", func() bool { return w.g.waiting.Load() == 1 && w.g.held.Load() == 1 })
			if busy := w.busy(); busy != "1 requests have no answer yet, the oldest that for /watch" {
				t.Errorf("busy: %q", busy)
			}
			want, status := "last\n", ""
			if cut {
				w.g.Cut()
				want, status = "", "14"
			} else {
				w.let <- struct{}{}
			}
			w.quiet()
			if got, err := io.ReadAll(rest); string(got) != want || err != nil {
				t.Errorf("%q, %v", got, err)
			}
			if got := begun.Trailer.Get("Grpc-Status"); got != status {
				t.Errorf("it ends with %q: %v", got, begun.Trailer)
			}
			w.g.Resume(w.dial())
			if err := <-answer; err != nil {
				t.Error(err)
			}
		})
	}
}

// A call that the server would not take is no call that has lost it: it would be made again.
func TestGRPCNotTaken(t *testing.T) {
	w := newWebs(t, Limits{})
	w.serve(w, func(s *http.Server) { s.MaxHeaderBytes = 8 << 10 })
	c := w.client(true)
	if err := w.ask(c, "GET", "/1", ""); err != nil { // so that what the server allows is known
		t.Fatal(err)
	}
	r, err := http.NewRequest(http.MethodPost, "http://"+w.addr+"/2", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("X-Much", strings.Repeat("x", 16<<10))
	res, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if status, why := res.Header.Get("Grpc-Status"), res.Header.Get("Grpc-Message"); status != "13" || !strings.Contains(why, "header list") {
		t.Errorf("it ends with %q, %q", status, why)
	}
	if err := w.ask(c, "GET", "/3", ""); err != nil {
		t.Error(err)
	}
}

// What is cut off is what is with the server. What waits on the same connection goes on waiting.
func TestHTTP2Cut(t *testing.T) {
	w := newWebs(t, Limits{Request: time.Minute, Event: time.Minute})
	c := w.client(true)
	begun, rest := w.watch(c)
	other, err := c.Get("http://" + w.addr + "/watch")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Body.Close() }()
	w.until("both are with the server", func() bool { return w.calls.Load() == 2 })
	if busy := w.busy(); busy != "2 requests have no answer yet, the oldest that for /watch" {
		t.Errorf("busy: %q", busy)
	}
	answer := make(chan error)
	go func() { answer <- w.ask(c, "POST", "/held", "x") }()
	w.until("a request waits", func() bool { return w.g.held.Load() == 1 })
	w.g.Cut()
	w.quiet()
	if got, err := io.ReadAll(rest); len(got) > 0 || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if got := begun.Trailer.Get("Grpc-Status"); got != "14" {
		t.Errorf("it ends with %q: %v", got, begun.Trailer)
	}
	if got, err := io.ReadAll(other.Body); err == nil {
		t.Errorf("what is not gRPC takes %q for the whole answer", got)
	}
	if w.done["/held"] > 0 {
		t.Error("what waits was done in the pause")
	}
	w.g.Resume(nil)
	if err := <-answer; err != nil {
		t.Error(err)
	}
	if w.done["/held"] != 1 {
		t.Errorf("what waited was done %d times", w.done["/held"])
	}
	for range 2 {
		w.let <- struct{}{}
	}
}

func TestGRPCLost(t *testing.T) {
	for _, c := range []struct {
		err  error
		gone bool
		want int
	}{
		{io.ErrUnexpectedEOF, true, grpcUnavailable},
		{io.ErrUnexpectedEOF, false, grpcInternal},
		{fmt.Errorf("writing: %w", &net.OpError{Op: "write", Err: net.ErrClosed}), false, grpcUnavailable},
		{errCut, true, grpcUnavailable},
		{errCut, false, grpcUnavailable},
		{streamReset{Code: 0}, false, grpcInternal},
		{streamReset{Code: 1, Cause: errors.New("received from peer")}, true, grpcInternal},
		{fmt.Errorf("reading: %w", streamReset{Code: refusedStream}), false, grpcUnavailable},
		{streamReset{Code: cancelStream}, false, grpcCancelled},
		{streamReset{Code: enhanceYourCalm}, false, grpcResourceExhausted},
		{streamReset{Code: inadequateSecurity}, false, grpcPermissionDenied},
	} {
		if got, why := grpcLost(c.err, c.gone); got != c.want || why == "" || strings.Contains(why, "%") {
			t.Errorf("%v, %t: %d, %q, want %d", c.err, c.gone, got, why, c.want)
		}
	}
}

func TestGRPCMessage(t *testing.T) {
	for why, want := range map[string]string{"as it is": "as it is", "100%": "100%25", "two\nlines, ä": "two%0Alines, %C3%A4"} {
		if got := grpcMessage(why); got != want {
			t.Errorf("%q: %q, want %q", why, got, want)
		}
	}
}

func TestIsGRPC(t *testing.T) {
	for kind, want := range map[string]bool{
		"application/grpc": true, "application/grpc+proto": true, "application/grpc; charset=utf-8": true,
		"": false, "text/plain": false, "application/grpc-web": false, "application/grpc-web+proto": false,
	} {
		if got := isGRPC(&http.Request{Header: http.Header{"Content-Type": {kind}}}); got != want {
			t.Errorf("%q: %t", kind, got)
		}
	}
}
