package proxy

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// history is what clients say that they have pushed and popped.
type history struct {
	all, pushers sync.WaitGroup

	mu       sync.Mutex
	in       map[string]int
	out      map[string]int
	failures []string
}

func newHistory() *history { return &history{in: make(map[string]int), out: make(map[string]int)} }

func (h *history) pushed(e string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.in[e]++
}

// popped counts an element, or none, and says how many there have been.
func (h *history) popped(e string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e != "" {
		h.out[e]++
	}
	return len(h.out)
}

func (h *history) fail(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures = append(h.failures, fmt.Sprintf(format, args...))
}

func (h *history) failed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.failures) > 0
}

func (h *history) complete() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.out) >= len(h.in)
}

func (h *history) compare(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.failures {
		t.Error(f)
	}
	for e, n := range h.in {
		if n != 1 || h.out[e] != 1 {
			t.Errorf("%s was pushed %d times, and popped %d times", e, n, h.out[e])
		}
	}
	for e := range h.out {
		if h.in[e] == 0 {
			t.Errorf("%s was popped, but never pushed", e)
		}
	}
	t.Logf("%d elements were pushed, %d popped", len(h.in), len(h.out))
}

// redisReply is one reply, with the strings of arrays in a row; that of an error or a null begins as
// on the wire.
func redisReply(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSpace(line)
	n, _ := strconv.Atoi(line[1:])
	if line[0] == '%' {
		n *= 2
	}
	switch {
	case n < 0:
		return line, nil
	case line[0] == '$':
		body := make([]byte, n+2)
		_, err := io.ReadFull(in, body)
		return string(body[:n]), err
	case strings.IndexByte("*%~>", line[0]) >= 0:
		var all []string
		for range n {
			one, err := redisReply(in)
			if err != nil {
				return "", err
			}
			all = append(all, one)
		}
		return strings.Join(all, " "), nil
	case line[0] == '-' || line[0] == '_':
		return line, nil
	}
	return line[1:], nil
}
