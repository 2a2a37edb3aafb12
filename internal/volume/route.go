package volume

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Route is a front door of a volume: a port that every node listens on, and the port of
// the container on the volume's primary that it leads to.
type Route struct {
	Listen int       `json:"listen"`
	Port   int       `json:"port"`
	Mode   RouteMode `json:"mode"`
	// Cut says what becomes of connections that keep a pause from beginning: they are cut.
	// Without it the move is given up and they go on.
	Cut bool `json:"cut,omitempty"`
	// ProxyProtocol is the version, 1 or 2, of the PROXY protocol by which the server is
	// told which client each connection is for; 0: it is not told.
	ProxyProtocol int `json:"proxy_protocol,omitempty"`
	// Of mode postgres. TLS: clients that ask for it have it, by a certificate that each node
	// has in a file. PassTLS: they have it with the server, and cannot be parked. Auth: their
	// passwords are verified on their way, by a user whose password each node has in a file.
	TLS     bool `json:"tls,omitempty"`
	PassTLS bool `json:"pass_tls,omitempty"`
	Auth    bool `json:"auth,omitempty"`
	// Host has the names, with commas between, whose clients the route is for, so that others
	// may have the same listen port: see Hosts. "" is for whomever no other route is for.
	Host string `json:"host,omitempty"`
}

// RouteMode says how much of what passes through a route is understood, and so what a
// migration can promise its clients.
type RouteMode string

// The modes. With RouteTCP and RouteTLS connections that are busy are never parked.
const (
	RouteTCP      RouteMode = "tcp"
	RouteHTTP     RouteMode = "http"
	RouteRedis    RouteMode = "redis"
	RoutePostgres RouteMode = "postgres"
	RouteTLS      RouteMode = "tls"
)

// RouteModes are all modes, the one first that a route has when none is named.
func RouteModes() []RouteMode {
	return []RouteMode{RouteTCP, RouteHTTP, RouteRedis, RoutePostgres, RouteTLS}
}

// RouteForm is how a route is written.
const RouteForm = "LISTEN[:PORT][/MODE[/WORD]...][@NAME]..."

// The words that may follow a mode, in any order.
const (
	routeCut     = "cut"
	routeProxy1  = "proxy1"
	routeProxy2  = "proxy2"
	routeTLS     = "tls"
	routePassTLS = "passtls"
	routeAuth    = "auth"
)

// ParseRoute reads what RouteForm says. The container's port is LISTEN and the mode is tcp
// where nothing else is said.
func ParseRoute(text string) (Route, error) {
	text, names, hosts := strings.Cut(text, "@")
	ports, mode, named := strings.Cut(text, "/")
	mode, words, more := strings.Cut(mode, "/")
	listen, port, two := strings.Cut(ports, ":")
	var r Route
	var err error
	if r.Listen, err = parsePort(listen); err != nil {
		return Route{}, fmt.Errorf("%w to listen on", err)
	}
	if r.Port = r.Listen; two {
		if r.Port, err = parsePort(port); err != nil {
			return Route{}, fmt.Errorf("%w of the container", err)
		}
	}
	if r.Mode = RouteTCP; named {
		if r.Mode, err = ParseRouteMode(mode); err != nil {
			return Route{}, err
		}
	}
	if more {
		if err := r.parseWords(words); err != nil {
			return Route{}, err
		}
	}
	if hosts {
		if err := r.parseHosts(strings.Split(names, "@")); err != nil {
			return Route{}, err
		}
	}
	return r, nil
}

// parseWords reads what follows the mode.
func (r *Route) parseWords(words string) error {
	seen := map[string]bool{}
	for word := range strings.SplitSeq(words, "/") {
		if seen[word] {
			return fmt.Errorf("%s is there twice after the mode", clip(word))
		}
		seen[word] = true
		switch word {
		case routeCut:
			r.Cut = true
		case routeProxy1:
			r.ProxyProtocol = 1
		case routeProxy2:
			r.ProxyProtocol = 2
		case routeTLS:
			r.TLS = true
		case routePassTLS:
			r.PassTLS = true
		case routeAuth:
			r.Auth = true
		default:
			return fmt.Errorf("%s after the mode: only %s may stand there", clip(word), alternatives(routeCut, routeProxy1, routeProxy2, routeTLS, routePassTLS, routeAuth))
		}
	}
	if seen[routeProxy1] && seen[routeProxy2] {
		return fmt.Errorf("%s and %s after the mode: a server reads one of them", routeProxy1, routeProxy2)
	}
	return r.fits()
}

// fits says which options make no sense with the mode, or with one another.
func (r *Route) fits() error {
	switch {
	case r.ProxyProtocol != 0 && (r.Mode == RouteRedis || r.Mode == RoutePostgres):
		return fmt.Errorf("proxy%d in mode %s: no such server reads the PROXY protocol, and would take it for what a client says; "+
			"one with something in front of it that does can have mode %s", r.ProxyProtocol, r.Mode, RouteTCP)
	case (r.TLS || r.PassTLS || r.Auth) && r.Mode != RoutePostgres:
		return fmt.Errorf("mode %s with %s, %s or %s: only %s has these", r.Mode, routeTLS, routePassTLS, routeAuth, RoutePostgres)
	case r.PassTLS && (r.TLS || r.Auth):
		return fmt.Errorf("%s with %s or %s: what is enciphered for the server cannot be read on its way", routePassTLS, routeTLS, routeAuth)
	}
	return nil
}

// ParseRouteMode reads the name of a mode.
func ParseRouteMode(mode string) (RouteMode, error) {
	if !slices.Contains(RouteModes(), RouteMode(mode)) {
		return "", fmt.Errorf("no mode %s; there are %s", clip(mode), modeNames())
	}
	return RouteMode(mode), nil
}

func modeNames() string {
	var names []string
	for _, m := range RouteModes() {
		names = append(names, string(m))
	}
	return alternatives(names...)
}

// parsePort reads a port, which has one form only: a route is looked for by what was
// typed.
func parsePort(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > 65535 || strconv.Itoa(n) != text {
		return 0, fmt.Errorf("%s is no port", clip(text))
	}
	return n, nil
}

// Check says what is wrong with a route that did not come from ParseRoute.
func (r Route) Check() error {
	read, err := ParseRoute(r.String())
	if err == nil && read != r {
		return fmt.Errorf("it is written %s", read)
	}
	return err
}

// String is the route as ParseRoute reads it, with all its parts.
func (r Route) String() string {
	text := fmt.Sprintf("%d:%d/%s", r.Listen, r.Port, r.How())
	for _, name := range r.Hosts() {
		text += "@" + name
	}
	return text
}

// How is the mode with the words that follow it.
func (r Route) How() string {
	text := string(r.Mode)
	if r.Cut {
		text += "/" + routeCut
	}
	if r.ProxyProtocol != 0 {
		text += fmt.Sprintf("/proxy%d", r.ProxyProtocol)
	}
	for _, word := range []struct {
		is   bool
		word string
	}{{r.TLS, routeTLS}, {r.PassTLS, routePassTLS}, {r.Auth, routeAuth}} {
		if word.is {
			text += "/" + word.word
		}
	}
	return text
}

// ParseRoutes reads a list of routes with commas between; "" and "none" are none. They
// are in order of their listen ports, which only those share whose names differ.
func ParseRoutes(text string) ([]Route, error) {
	if text == "" || text == NoRoutes {
		return nil, nil
	}
	var out []Route
	for item := range strings.SplitSeq(text, ",") {
		r, err := ParseRoute(item)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	if err := sortRoutes(out); err != nil {
		return nil, err
	}
	return out, nil
}

// NoRoutes is how a volume's routes are removed.
const NoRoutes = "none"

// FormatRoutes is what ParseRoutes reads.
func FormatRoutes(routes []Route) string {
	var out []string
	for _, r := range routes {
		out = append(out, r.String())
	}
	return strings.Join(out, ",")
}

func sortRoutes(routes []Route) error {
	slices.SortFunc(routes, CompareRoutes)
	for i, r := range routes {
		for _, other := range routes[:i] {
			if what := r.Clash(other); what != "" {
				return fmt.Errorf("%s is there twice", what)
			}
		}
	}
	return nil
}

// Labels of a container that is the server behind a route: flocker.proxy.NAME.listen,
// .port, .mode and .host, where NAME groups them and means nothing else. The words that may
// follow a mode may do so here, too; names in .host have commas between.
const LabelRoute = "flocker.proxy."

// LabelledRoutes are the routes that a container's labels ask for, in order of their
// listen ports. The error names the label that is wrong; then there are none.
func LabelledRoutes(labels map[string]string) ([]Route, error) {
	groups := map[string]map[string]string{}
	for _, label := range slices.Sorted(maps.Keys(labels)) {
		rest, ok := strings.CutPrefix(label, LabelRoute)
		if !ok {
			continue
		}
		name, key, ok := cutLast(rest, ".")
		if !ok || name == "" || !slices.Contains([]string{"listen", "port", "mode", "host"}, key) {
			return nil, fmt.Errorf("label %s: it is %s followed by a name and .listen, .port, .mode or .host", clip(label), LabelRoute)
		}
		if groups[name] == nil {
			groups[name] = map[string]string{}
		}
		groups[name][key] = labels[label]
	}
	var out []Route
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		g := groups[name]
		text := g["listen"]
		if text == "" {
			return nil, fmt.Errorf("label %s%s.listen: it is not there, so nobody knows where to listen", LabelRoute, name)
		}
		if g["port"] != "" {
			text += ":" + g["port"]
		}
		if g["mode"] != "" {
			text += "/" + g["mode"]
		}
		if host, ok := g["host"]; ok { // an empty one is a mistake: the route would be for everybody
			text += "@" + strings.ReplaceAll(host, ",", "@")
		}
		r, err := ParseRoute(text)
		if err != nil {
			return nil, fmt.Errorf("labels %s%s: %w", LabelRoute, name, err)
		}
		out = append(out, r)
	}
	if err := sortRoutes(out); err != nil {
		return nil, fmt.Errorf("labels %s: %w", LabelRoute, err)
	}
	return out, nil
}

// cutLast cuts around the last separator.
func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
