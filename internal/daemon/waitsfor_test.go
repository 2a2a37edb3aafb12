package daemon

import (
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/proxy"
)

// Up to three are named, those first that have been there for longest; and what a client says of
// itself cannot make a report long.
func TestWaitsFor(t *testing.T) {
	now := time.Unix(1000, 0)
	session := func(client string, ago time.Duration, busy string) proxy.Session {
		return proxy.Session{Client: client, Since: now.Add(-ago), State: proxy.Active, Busy: busy}
	}
	few := []proxy.Session{session("a:1", time.Second, "a transaction is open"), session("b:2", 3*time.Minute, "")}
	for _, c := range []struct {
		sessions []proxy.Session
		want     string
	}{
		{nil, ""},
		{few, "b:2 (active, connected for 3m0s), a:1 (a transaction is open, connected for 1s)"},
		{append(few, session("c:3", 0, "x"), session("d:4", -time.Hour, "y"), session("e:5", 2*time.Second, "z")),
			"b:2 (active, connected for 3m0s), e:5 (z, connected for 2s), a:1 (a transaction is open, connected for 1s), 2 more"},
	} {
		if got := waitsFor(c.sessions, now); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	if few[0].Client != "a:1" {
		t.Error("what was to be named is in another order now")
	}
	if got := waitsFor([]proxy.Session{session("a:1", 0, strings.Repeat("x", 10_000))}, now); len(got) > maxWaitsFor+10 {
		t.Errorf("%d bytes", len(got))
	}
}
