package volume

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Hosts are the names that clients ask for who are led by the route: of the Host field in
// mode http, of the server that is wanted (SNI) in mode tls. *.example.org is for all names
// with one label more that no route has itself. None: it is for whomever no other route on
// the port is for.
func (r Route) Hosts() []string {
	if r.Host == "" {
		return nil
	}
	return strings.Split(r.Host, ",")
}

// parseHosts gives a route names, which mean the same in capitals and with a dot at their end.
func (r *Route) parseHosts(names []string) error {
	if r.Mode != RouteHTTP && r.Mode != RouteTLS {
		return fmt.Errorf("mode %s with the name %s: only %s and %s say which name is wanted", r.Mode, clip(names[0]), RouteHTTP, RouteTLS)
	}
	var hosts []string
	for _, name := range names {
		host := strings.TrimSuffix(strings.ToLower(name), ".")
		if why := badHost(host); why != "" {
			return fmt.Errorf("%s is no name of a host: %s", clip(name), why)
		}
		if slices.Contains(hosts, host) {
			return fmt.Errorf("the name %s is there twice", clip(host))
		}
		hosts = append(hosts, host)
	}
	r.Host = strings.Join(hosts, ",")
	return nil
}

// badHost says why a name can be none of a route's; "" if it can.
func badHost(host string) string {
	const longest, longestLabel = 253, 63
	rest, wild := strings.CutPrefix(host, "*.")
	if _, err := netip.ParseAddr(host); err == nil {
		return "it is an address"
	}
	switch {
	case len(host) > longest:
		return fmt.Sprintf("it is longer than %d bytes", longest)
	case !wild && strings.Contains(host, "*") || strings.Contains(rest, "*"):
		return "a * stands for the first label, as in *.example.org"
	}
	for label := range strings.SplitSeq(rest, ".") {
		switch {
		case label == "" || len(label) > longestLabel:
			return fmt.Sprintf("between dots are 1 to %d bytes", longestLabel)
		case label[0] == '-' || label[len(label)-1] == '-':
			return "a label neither begins nor ends with -"
		case strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "":
			return "it has letters, digits, - and dots; others are written xn--"
		}
	}
	return ""
}

// CompareRoutes orders routes by their listen ports, and those of one port with the one
// first that has no names.
func CompareRoutes(a, b Route) int {
	return cmp.Or(cmp.Compare(a.Listen, b.Listen), cmp.Compare(a.Host, b.Host))
}

// Clash says what two routes both want that only one can have, as in "port 80", or "port
// 80 for a.example.org"; "" when they go together: on one port if they have the same mode and
// no name in common, one of them perhaps without any.
func (r Route) Clash(other Route) string {
	switch {
	case r.Listen != other.Listen:
		return ""
	case r.Mode != other.Mode || r.Host == "" && other.Host == "":
		return r.at("")
	}
	for _, name := range r.Hosts() {
		if slices.Contains(other.Hosts(), name) {
			return r.at(name)
		}
	}
	return ""
}

func (r Route) at(name string) string {
	if name == "" {
		return fmt.Sprintf("port %d", r.Listen)
	}
	return fmt.Sprintf("port %d for %s", r.Listen, name)
}

// RouteKey is what a route is known by in the cluster: its listen port and, if it has names,
// the first of them. As text it is 80, or 80@a.example.org.
type RouteKey struct {
	Listen int
	Name   string
}

// Key is what a route is known by.
func (r Route) Key() RouteKey {
	first, _, _ := strings.Cut(r.Host, ",")
	return RouteKey{r.Listen, first}
}

func (k RouteKey) String() string {
	if k.Name == "" {
		return strconv.Itoa(k.Listen)
	}
	return fmt.Sprintf("%d@%s", k.Listen, k.Name)
}

// At is where a route listens, in the words of messages: "port 80", or "port 80 for
// a.example.org".
func (k RouteKey) At() string { return Route{Listen: k.Listen}.at(k.Name) }

// Compare orders keys as CompareRoutes does routes.
func (k RouteKey) Compare(other RouteKey) int {
	return cmp.Or(cmp.Compare(k.Listen, other.Listen), cmp.Compare(k.Name, other.Name))
}

// MarshalJSON writes a number where there is no name, as all keys were before there were names.
func (k RouteKey) MarshalJSON() ([]byte, error) {
	if k.Name == "" {
		return []byte(strconv.Itoa(k.Listen)), nil
	}
	return []byte(strconv.Quote(k.String())), nil
}

// UnmarshalJSON reads what MarshalJSON writes.
func (k *RouteKey) UnmarshalJSON(text []byte) error {
	plain := string(text)
	if unquoted, err := strconv.Unquote(plain); err == nil {
		plain = unquoted
	}
	listen, name, _ := strings.Cut(plain, "@")
	port, err := parsePort(listen)
	*k = RouteKey{port, name}
	return err
}

// RouteRef is a route as somebody names it: 80, if one route alone listens there; 80@NAME
// with one of its names; 80@ for the one without names among several.
type RouteRef struct {
	Listen int
	At     bool // NAME follows
	Name   string
}

// Ref is how somebody names a route among all: by its port alone where that is enough.
func (r Route) Ref(all []Route) RouteRef {
	others := slices.ContainsFunc(all, func(other Route) bool { return other.Listen == r.Listen && other != r })
	return RouteRef{r.Listen, others || r.Host != "", r.Key().Name}
}

// ParseRouteRef reads one.
func ParseRouteRef(text string) (RouteRef, error) {
	listen, name, at := strings.Cut(text, "@")
	port, err := parsePort(listen)
	if err != nil {
		return RouteRef{}, err
	}
	return RouteRef{port, at, strings.TrimSuffix(strings.ToLower(name), ".")}, nil
}

func (r RouteRef) String() string {
	if !r.At {
		return strconv.Itoa(r.Listen)
	}
	return fmt.Sprintf("%d@%s", r.Listen, r.Name)
}

// Find is the index of the route that is meant. The error says why there is none.
func (r RouteRef) Find(routes []Route) (int, error) {
	var there []string
	found, on := -1, 0
	for i, route := range routes {
		if route.Listen != r.Listen {
			continue
		}
		on++
		there = append(there, fmt.Sprintf("%d@%s", r.Listen, route.Key().Name))
		if !r.At || r.Name == "" && route.Host == "" || r.Name != "" && slices.Contains(route.Hosts(), r.Name) {
			found = i
		}
	}
	switch {
	case on == 0:
		return -1, Errorf(CodeNotFound, "no route listens on port %d", r.Listen).WithHint("flockctl route list shows all")
	case !r.At && on > 1:
		return -1, Errorf(CodeInvalid, "%d routes listen on port %d: %s; name one of them", on, r.Listen, strings.Join(there, ", "))
	case found < 0:
		return -1, Errorf(CodeNotFound, "no route on port %d is %s", r.Listen, r).WithHint("flockctl route list shows all")
	}
	return found, nil
}
