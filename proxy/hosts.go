package proxy

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
)

// hostTable says which of the routes on a port is for whom. One that is not served by those
// who have the table is nil.
type hostTable struct {
	names map[string]*serving
	wild  map[string]*serving // by what follows "*."
	rest  *serving            // for whomever no other is for
	all   bool                // there is one
}

// hosted is a route with the names that it is for; none: for all others. One that has no
// edge here is nil.
type hosted struct {
	*serving
	names []string
}

func newHostTable(routes []hosted) hostTable {
	t := hostTable{names: make(map[string]*serving), wild: make(map[string]*serving)}
	for _, r := range routes {
		for _, name := range r.names {
			if under, ok := strings.CutPrefix(name, "*."); ok {
				t.wild[under] = r.serving
			} else {
				t.names[name] = r.serving
			}
		}
		if len(r.names) == 0 {
			t.rest, t.all = r.serving, true
		}
	}
	return t
}

// pick is the route for those who ask for a name, which is in lower case, and whether there
// is one.
func (t hostTable) pick(name string) (e *serving, ok bool) {
	if e, ok := t.names[name]; ok {
		return e, true
	}
	if _, under, ok := strings.Cut(name, "."); ok {
		if e, ok := t.wild[under]; ok {
			return e, true
		}
	}
	return t.rest, t.all
}

// sharedPorts are those that routes have by names, with the mode of them all. Routes that do
// not fit the ones before them are unfit, by their IDs.
func sharedPorts(routes []Route) (ports map[uint16]Mode, unfit map[string]error) {
	ports, unfit = make(map[uint16]Mode), make(map[string]error)
	for _, r := range routes {
		if len(r.Hosts) > 0 {
			ports[r.Listen] = r.Mode
		}
	}
	type want struct {
		port uint16
		name string // "": all others
	}
	first, has := make(map[uint16]Mode), make(map[want]string)
	for _, r := range routes {
		if ports[r.Listen] == "" {
			continue
		}
		if first[r.Listen] == "" {
			first[r.Listen] = r.Mode
		}
		names := r.Hosts
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			if other, taken := has[want{r.Listen, name}]; taken {
				unfit[r.ID] = fmt.Errorf("route %s has it for %q", other, name)
			}
		}
		if r.Mode != first[r.Listen] {
			unfit[r.ID] = fmt.Errorf("it is shared by routes of mode %s", first[r.Listen])
		}
		if unfit[r.ID] != nil {
			continue
		}
		for _, name := range names {
			has[want{r.Listen, name}] = r.ID
		}
	}
	for port := range ports {
		ports[port] = first[port]
	}
	return ports, unfit
}

var errHost = errors.New("whom a request is for is not said clearly")

// authority is the name of the server that a request is for, in lower case and without
// a port; "" if it says none, as it may. Where two who read the request might not find the
// same name, there is an error: one of them is the server.
//
// Source: RFC 9112, sections 3.2 and 3.3; RFC 9110, section 7.2.
func (h *httpHead) authority() (string, error) {
	switch {
	case len(h.hosts) > 1:
		return "", fmt.Errorf("%w: the field Host is there %d times", errHost, len(h.hosts))
	case len(h.hosts) == 0 && h.minor > 0:
		return "", fmt.Errorf("%w: there is no field Host", errHost)
	}
	name := ""
	if len(h.hosts) == 1 && h.hosts[0] != "" {
		var err error
		if name, err = hostName(h.hosts[0]); err != nil {
			return "", err
		}
	}
	switch {
	case h.method == "CONNECT":
		if !strings.Contains(h.target, ":") {
			return "", fmt.Errorf("%w: %.40q is not where to connect to", errHost, h.target)
		}
		return hostName(h.target)
	case h.target[0] == '/' || h.target == "*":
		return name, nil
	}
	// A whole URL has a name of its own, which outranks the field.
	scheme, rest, ok := strings.Cut(h.target, "://")
	if scheme = strings.ToLower(scheme); !ok || scheme != "http" && scheme != "https" {
		return "", fmt.Errorf("%w: the target %.40q", errHost, h.target)
	}
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	return hostName(rest)
}

// streamAuthority is the same for a request of HTTP/2. Of a field Host beside :authority
// the server that it is translated for sees the latter alone, but one behind that might not.
//
// Source: RFC 9113, section 8.3.1.
func streamAuthority(r *http.Request) (string, error) {
	fields := r.Header["Host"]
	if len(fields) > 1 || len(fields) == 1 && !strings.EqualFold(fields[0], r.Host) {
		return "", fmt.Errorf("%w: the field Host differs from :authority", errHost)
	}
	if r.Host == "" {
		return "", nil
	}
	return hostName(r.Host)
}

// hostName reads a name with or without a port. Of what URLs may have there it takes what
// names are made of, and addresses.
func hostName(text string) (string, error) {
	const longest = 253
	bad := func() (string, error) { return "", fmt.Errorf("%w: %.60q is no name of a host", errHost, text) }
	host, port := text, ""
	if i := strings.LastIndexByte(text, ':'); i > strings.LastIndexByte(text, ']') {
		host, port = text[:i], text[i+1:]
	}
	if len(port) > 5 || !digits([]byte(port)) {
		return bad()
	}
	if inside, ok := strings.CutPrefix(host, "["); ok {
		inside, ok = strings.CutSuffix(inside, "]")
		if addr, err := netip.ParseAddr(inside); !ok || err != nil || !addr.Is6() || addr.Zone() != "" {
			return bad()
		}
		return strings.ToLower(host), nil
	}
	name := strings.TrimSuffix(host, ".")
	if len(name) > longest {
		return bad()
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" {
			return bad()
		}
		for _, c := range []byte(label) {
			switch {
			case c >= '0' && c <= '9', c|0x20 >= 'a' && c|0x20 <= 'z', c == '-', c == '_':
			default:
				return bad()
			}
		}
	}
	return strings.ToLower(name), nil
}
