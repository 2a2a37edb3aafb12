package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
)

// Of the clients that are in the way three are named, those first that have been there for longest.
func TestPrintClients(t *testing.T) {
	now := time.Unix(10_000, 0)
	session := func(client string, ago time.Duration) api.RouteSession {
		return api.RouteSession{Node: api.NodeRef{Name: "n1"}, Client: client, Since: now.Add(-ago), Why: "a transaction is open"}
	}
	three := []api.RouteSession{session("a:1", time.Minute), session("b:2", time.Hour), session("c:3", 2*time.Minute)}
	line := func(client, ago string) string {
		return "80: " + client + " on n1, connected " + ago + " ago, waits: a transaction is open\n"
	}
	for _, c := range []struct {
		all  []api.RouteSession
		want string
	}{
		{nil, ""},
		{three, line("b:2", "1h") + line("c:3", "2m") + line("a:1", "1m")},
		{append(three, session("d:4", 30*time.Second)), line("b:2", "1h") + line("c:3", "2m") + line("a:1", "1m") + "80: so is it with 1 more\n"},
		{append(three, session("d:4", 3*time.Hour), session("e:5", 0)), line("d:4", "3h") + line("b:2", "1h") + line("c:3", "2m") + "80: so is it with 2 more\n"},
	} {
		var out bytes.Buffer
		a := &app{world: world{stdout: &out, now: func() time.Time { return now }}}
		a.printClients("80", "waits", c.all)
		if got := out.String(); got != c.want {
			t.Errorf("got:\n%swant:\n%s", got, c.want)
		}
	}
}
