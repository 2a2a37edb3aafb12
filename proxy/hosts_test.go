package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// Whom a request is for, or that it does not say so clearly: heads are written with " | "
// between lines.
func TestAuthority(t *testing.T) {
	tests := []struct{ head, want string }{
		{"GET / HTTP/1.1 | Host: a.example.org", "a.example.org"},
		{"GET / HTTP/1.1 | hOsT:a.example.org  ", "a.example.org"},
		{"GET / HTTP/1.1 | Host: A.Example.ORG:8080", "a.example.org"},
		{"GET / HTTP/1.1 | Host: a.example.org.", "a.example.org"},
		{"GET / HTTP/1.1 | Host: a.example.org.:80", "a.example.org"},
		{"GET / HTTP/1.1 | Host: a.example.org:", "a.example.org"},
		{"GET / HTTP/1.1 | Host: a_b-c.x", "a_b-c.x"},
		{"GET / HTTP/1.1 | Host: 10.0.0.1:80", "10.0.0.1"},
		{"GET / HTTP/1.1 | Host: [2001:DB8::1]:80", "[2001:db8::1]"},
		{"GET / HTTP/1.1 | Host: [::1]", "[::1]"},
		{"GET / HTTP/1.1 | Host:", ""},
		{"GET / HTTP/1.0", ""},
		{"GET / HTTP/1.0 | Host: a", "a"},
		{"OPTIONS * HTTP/1.1 | Host: a", "a"},
		{"GET http://b.example.org/x HTTP/1.1 | Host: a.example.org", "b.example.org"},
		{"GET HTTPS://B.example.org:443 HTTP/1.1 | Host: a", "b.example.org"},
		{"GET http://b?q HTTP/1.1 | Host: a", "b"},
		{"GET http://b/ HTTP/1.0", "b"},
		{"CONNECT b.example.org:443 HTTP/1.1 | Host: a", "b.example.org"},
		{"GET //b/x HTTP/1.1 | Host: a", "a"},

		{"GET / HTTP/1.1", "refused"},
		{"GET / HTTP/1.1 | Host: a | Host: a", "refused"},
		{"GET / HTTP/1.1 | Host: a | hOST: b", "refused"},
		{"GET / HTTP/1.0 | Host: a | Host: b", "refused"},
		{"GET http://b/ HTTP/1.1", "refused"},
		{"GET http://b/ HTTP/1.1 | Host: a, b", "refused"},
		{"GET / HTTP/1.1 | Host: a,b", "refused"},
		{"GET / HTTP/1.1 | Host: a b", "refused"},
		{"GET / HTTP/1.1 | Host: a\tb", "refused"},
		{"GET / HTTP/1.1 | Host: me@a", "refused"},
		{"GET http://me@a/ HTTP/1.1 | Host: a", "refused"},
		{"GET http://me:pass@a/ HTTP/1.1 | Host: a", "refused"},
		{"GET / HTTP/1.1 | Host: a/b", "refused"},
		{"GET / HTTP/1.1 | Host: a\\b", "refused"},
		{"GET / HTTP/1.1 | Host: a?b", "refused"},
		{"GET / HTTP/1.1 | Host: a#b", "refused"},
		{"GET / HTTP/1.1 | Host: a%2eb", "refused"},
		{"GET / HTTP/1.1 | Host: ä", "refused"},
		{"GET / HTTP/1.1 | Host: a..b", "refused"},
		{"GET / HTTP/1.1 | Host: .a", "refused"},
		{"GET / HTTP/1.1 | Host: a..", "refused"},
		{"GET / HTTP/1.1 | Host: .", "refused"},
		{"GET / HTTP/1.1 | Host: *.a", "refused"},
		{"GET / HTTP/1.1 | Host: a:b", "refused"},
		{"GET / HTTP/1.1 | Host: a:80:80", "refused"},
		{"GET / HTTP/1.1 | Host: a:-1", "refused"},
		{"GET / HTTP/1.1 | Host: a:000080", "refused"},
		{"GET / HTTP/1.1 | Host: :80", "refused"},
		{"GET / HTTP/1.1 | Host: ::1", "refused"},
		{"GET / HTTP/1.1 | Host: [::1", "refused"},
		{"GET / HTTP/1.1 | Host: [::1]x", "refused"},
		{"GET / HTTP/1.1 | Host: [10.0.0.1]", "refused"},
		{"GET / HTTP/1.1 | Host: [fe80::1%25eth0]", "refused"},
		{"GET / HTTP/1.1 | Host: " + strings.Repeat("a.", 127) + "a", "refused"},
		{"GET http:///x HTTP/1.1 | Host: a", "refused"},
		{"GET http:b HTTP/1.1 | Host: a", "refused"},
		{"GET ftp://b/ HTTP/1.1 | Host: a", "refused"},
		{"GET b.example.org HTTP/1.1 | Host: a", "refused"},
		{"GET * HTTP/1.1 | Host: a | Host : b", "refused"},
		{"GET / HTTP/1.1 | Host: a |  b", "refused"},
		{"CONNECT b HTTP/1.1 | Host: a", "refused"},
		{"CONNECT / HTTP/1.1 | Host: a", "refused"},
		{"CONNECT http://b:80/ HTTP/1.1 | Host: a", "refused"},
	}
	for _, tt := range tests {
		got, err := headName([]byte(strings.ReplaceAll(tt.head, " | ", "\r\n") + "\r\n\r\n"))
		if err != nil {
			got = "refused"
		}
		if got != tt.want {
			t.Errorf("%s: got %q (%v), want %q", tt.head, got, err, tt.want)
		}
	}
}

// headName is whom the request is for whose head is there to its end.
func headName(head []byte) (string, error) {
	r := httpScanner{names: true}
	for len(head) > 0 {
		n, part, err := r.scan(head)
		if err != nil {
			return "", err
		}
		if part == httpHeadEnd {
			return r.head.authority()
		}
		head = head[n:]
	}
	return "", errHTTP
}

// What is taken for clear is read by a server, which is more lenient, in the same way.
func FuzzAuthority(f *testing.F) {
	for _, head := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET http://b:80/ HTTP/1.1\r\nHost: a.\r\n\r\n", "CONNECT b:80 HTTP/1.1\r\nHost: [::1]:1\r\n\r\n",
		"OPTIONS * HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "GET //a@b/ HTTP/1.1\r\nHost:\r\n\r\n",
	} {
		f.Add([]byte(head))
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		name, err := headName(head)
		if err != nil {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
		if err != nil {
			return // it is stricter there
		}
		host := r.Host
		if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
			host = host[:i]
		}
		if strings.ToLower(strings.TrimSuffix(host, ".")) != name {
			t.Errorf("%q is for %q, and a server takes it to be for %q", head, name, r.Host)
		}
	})
}

// Which route a name belongs to: the one that has it, then the one that has a * for it,
// then the one for all others.
func TestHostTable(t *testing.T) {
	a, b, wild, rest := new(serving), new(serving), new(serving), new(serving)
	names := map[*serving]string{a: "a", b: "b", wild: "wild", rest: "rest", nil: "nobody"}
	some := []hosted{{a, []string{"a.example.org", "example.org"}}, {b, []string{"b.example.org"}}, {wild, []string{"*.example.org", "c.wild.org"}}}
	for name, want := range map[string]string{
		"a.example.org": "a", "example.org": "a", "b.example.org": "b", "c.example.org": "wild", "c.wild.org": "wild",
		"x.a.example.org": "nobody", "wild.org": "nobody", "org": "nobody", "": "nobody", "*.example.org": "wild", "[::1]": "nobody",
	} {
		if e, ok := newHostTable(some).pick(name); names[e] != want || ok != (e != nil) {
			t.Errorf("%q is for %s (%v), want %s", name, names[e], ok, want)
		}
		if want == "nobody" {
			want = "rest"
		}
		if e, ok := newHostTable(append(some, hosted{rest, nil})).pick(name); names[e] != want || !ok {
			t.Errorf("with one for all others, %q is for %s (%v), want %s", name, names[e], ok, want)
		}
	}
}

// Ports that routes share; a route is written ID:PORT/MODE@NAME...
func TestSharedPorts(t *testing.T) {
	tests := []struct{ routes, want string }{
		{"a:80/http b:81/http", ""},
		{"a:80/http b:80/http", ""}, // as ever: the second cannot listen
		{"a:80/http@a", "80/http"},
		{"a:80/http b:80/http@b c:443/tls@c@d d:443/tls", "80/http 443/tls"},
		{"a:80/http@a b:80/http@b@a c:80/http@b", `80/http b: route a has it for "a"`},
		{"a:80/http b:80/http c:80/http@c", `80/http b: route a has it for ""`},
		{"a:80/http b:80/tls@b", "80/http b: it is shared by routes of mode http"},
		{"a:80/redis b:80/http@b", "80/redis b: it is shared by routes of mode redis"},
	}
	for _, tt := range tests {
		var routes []Route
		for _, text := range strings.Fields(tt.routes) {
			var r Route
			plain, names, named := strings.Cut(text, "@")
			id, rest, _ := strings.Cut(plain, ":")
			if _, err := fmt.Sscanf(rest, "%d/%s", &r.Listen, &r.Mode); err != nil {
				t.Fatal(err)
			}
			if r.ID = id; named {
				r.Hosts = strings.Split(names, "@")
			}
			routes = append(routes, r)
		}
		ports, unfit := sharedPorts(routes)
		var got []string
		for _, port := range []uint16{80, 443} {
			if mode := ports[port]; mode != "" {
				got = append(got, fmt.Sprintf("%d/%s", port, mode))
			}
		}
		for _, r := range routes {
			if err := unfit[r.ID]; err != nil {
				got = append(got, r.ID+": "+err.Error())
			}
		}
		if got := strings.Join(got, " "); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.routes, got, tt.want)
		}
	}
}

func TestStreamAuthority(t *testing.T) {
	for _, tt := range []struct{ host, fields, want string }{
		{"A.example.org:80", "", "a.example.org"},
		{"a", "A", "a"},
		{"", "", ""},
		{"a", "b", "refused"},
		{"a", "a,a", "refused"},
		{"me@a", "", "refused"},
	} {
		r := &http.Request{Host: tt.host, Header: http.Header{}}
		if tt.fields != "" {
			r.Header["Host"] = strings.Split(tt.fields, ",")
		}
		got, err := streamAuthority(r)
		if err != nil {
			got = "refused"
		}
		if got != tt.want {
			t.Errorf("%+v: got %q, %v", tt, got, err)
		}
	}
}
