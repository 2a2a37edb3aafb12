package main

import (
	"bufio"
	"net"
	"strings"
	"testing"
)

// What is not exactly as it has to be is an error, and not counted.
func TestAskerIsStrict(t *testing.T) {
	tests := []struct {
		name, says string
		ask        func(c *client) (int, error)
		answered   int
		ok         bool
	}{
		{"numbers that rise", ":4\r\n:5\r\n", func(c *client) (int, error) { return c.raise("k", 2) }, 2, true},
		{"one that does not", ":4\r\n:4\r\n", func(c *client) (int, error) { return c.raise("k", 2) }, 1, false},
		{"an error", "-ERR no\r\n", func(c *client) (int, error) { return c.raise("k", 1) }, 0, false},
		{"the end", "", func(c *client) (int, error) { return c.raise("k", 1) }, 0, false},
		{"half an answer", ":4", func(c *client) (int, error) { return c.raise("k", 1) }, 0, false},
		{"a transaction", "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:7\r\n:8\r\n", func(c *client) (int, error) { return c.transact("k") }, 2, true},
		{"one that was not done", "+OK\r\n+QUEUED\r\n+QUEUED\r\n*-1\r\n", func(c *client) (int, error) { return c.transact("k") }, 0, false},
		{"the page", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n/a\n", func(c *client) (int, error) { return 1, c.post("/a") }, 1, true},
		{"another page", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n/b\n", func(c *client) (int, error) { return 1, c.post("/a") }, 1, false},
		{"another status", "HTTP/1.1 503 No\r\nContent-Length: 3\r\n\r\n/a\n", func(c *client) (int, error) { return 1, c.post("/a") }, 1, false},
		{"half a page", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n/a", func(c *client) (int, error) { return 1, c.post("/a") }, 1, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ours, _ := net.Pipe()
			c := &client{Conn: discard{ours}, in: bufio.NewReader(strings.NewReader(tt.says))}
			n, err := tt.ask(c)
			if (err == nil) != tt.ok || n != tt.answered {
				t.Errorf("got %d answers and %v, want %d and success: %v", n, err, tt.answered, tt.ok)
			}
		})
	}
}

// discard takes all that is said.
type discard struct{ net.Conn }

func (discard) Write(p []byte) (int, error) { return len(p), nil }
