package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// hello is what a client of TLS says first that wants the server called name.
func hello(t testing.TB, name string) []byte {
	t.Helper()
	var out capture
	config := &tls.Config{ServerName: name, InsecureSkipVerify: true}
	if err := tls.Client(&out, config).Handshake(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return out.Bytes()
}

type capture struct {
	bytes.Buffer
	net.Conn
}

func (c *capture) Read([]byte) (int, error)    { return 0, io.EOF }
func (c *capture) Write(p []byte) (int, error) { return c.Buffer.Write(p) }

// spread puts a message that came in one record into records of at most size bytes.
func spread(record []byte, size int) (out []byte) {
	head, body := record[:3], record[5:]
	for len(body) > 0 {
		n := min(size, len(body))
		out = append(append(append(out, head...), byte(n>>8), byte(n)), body[:n]...)
		body = body[n:]
	}
	return out
}

func TestServerName(t *testing.T) {
	named := hello(t, "db.example.org")
	for what, c := range map[string]struct {
		first []byte
		want  string
	}{
		"a name":               {named, "db.example.org"},
		"no name":              {hello(t, ""), ""},
		"more than the hello":  {append(bytes.Clone(named), "more"...), "db.example.org"},
		"many records":         {spread(named, 100), "db.example.org"},
		"records of two bytes": {spread(named, 2), "db.example.org"},
	} {
		got, err := ServerName(c.first)
		if got != c.want || err != nil {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	for n := range named {
		if name, err := ServerName(named[:n]); name != "" || !errors.Is(err, ErrIncomplete) {
			t.Errorf("of %d bytes: %q, %v", n, name, err)
		}
	}
	alert := []byte{21, 3, 1, 0, 2, 1, 0}
	done := []byte{22, 3, 3, 0, 4, 14, 0, 0, 0}
	huge := []byte{22, 3, 3, 0, 4, 1, 255, 255, 255}
	for _, other := range [][]byte{[]byte("GET / HTTP/1.1\r\n\r\n"), alert, done, huge, {22, 3, 1, 0, 0}} {
		if _, err := ServerName(other); err == nil || errors.Is(err, ErrIncomplete) {
			t.Errorf("%q: %v", other, err)
		}
	}
}

// However much of it has come, what was said is whole from one byte on, and stays so.
func FuzzServerName(f *testing.F) {
	named := hello(f, "db.example.org")
	f.Add(named)
	f.Add(spread(named, 700))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, first []byte) {
		name, err := ServerName(first)
		if errors.Is(err, ErrIncomplete) {
			for n := len(first) - 1; n > 0; n = min(n-1, n*9/10) {
				if _, err := ServerName(first[:n]); !errors.Is(err, ErrIncomplete) {
					t.Fatalf("%d bytes of %x are more than %d: %v", n, first, len(first), err)
				}
			}
			return
		}
		longer, again := ServerName(append(bytes.Clone(first), 22, 3, 1, 0))
		if err == nil && (longer != name || again != nil) {
			t.Fatalf("%x: %q, with more behind it %q, %v", first, name, longer, again)
		}
	})
}

// TLS goes through as it is, and its session has a name.
func TestTLS(t *testing.T) {
	web := httptest.NewUnstartedServer(nil)
	web.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	web.StartTLS()
	defer web.Close()
	w := &world{T: t}
	var err error
	if w.g, err = NewGate(TLS, dialTo(web.Listener.Addr()), Limits{}, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	w.port = front(t, w.g)
	c := w.client()
	conn := tls.Client(c.conn, &tls.Config{ServerName: "db.example.org", InsecureSkipVerify: true})
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := w.g.Sessions(); len(s) != 1 || s[0].Name != "db.example.org" || !s[0].Pinned {
		t.Errorf("sessions: %+v", s)
	}
	_ = conn.Close()

	// What is not TLS is the server's matter.
	plain := w.client()
	plain.say("GET / HTTP/1.0\r\n\r\n")
	if got, _ := plain.in.ReadString('\n'); !strings.Contains(got, "400 Bad Request") {
		t.Errorf("the server says %q", got)
	}

	// A client that does not come to the point is not waited for.
	if w.g, err = NewGate(TLS, dialTo(web.Listener.Addr()), Limits{Request: 50 * time.Millisecond}, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	w.port = front(t, w.g)
	slow := w.client()
	slow.say("\x16\x03")
	if err := slow.ended(); err != nil {
		t.Error(err)
	}
}
