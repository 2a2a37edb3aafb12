package container

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// LabelLinks is on a container that reaches services through its own node, which listens
// for every route: names, each alone or with a route's port, as in "db:5432,cache". By each
// name the container is to know its node.
const LabelLinks = "flocker.links"

// hostGateway is what engines replace by the address of their node, on whatever node that
// is. They keep the word, so that it goes along with a container.
const hostGateway = "host-gateway"

// Link is one service that a container is to reach.
type Link struct {
	Name string
	Port int // that the nodes listen on; 0: those of the volume or the container of that name
}

func (l Link) String() string {
	if l.Port == 0 {
		return l.Name
	}
	return fmt.Sprintf("%s:%d", l.Name, l.Port)
}

// Linking is a running container with the label.
type Linking struct {
	Name  string
	Label string
	Hosts []string // what was given to it by --add-host
}

// ParseLinks reads the label's value.
func ParseLinks(label string) (links []Link, err error) {
	for _, word := range strings.FieldsFunc(label, func(r rune) bool { return r == ',' || r == ' ' }) {
		name, text, named := strings.Cut(word, ":")
		l := Link{Name: name}
		if named {
			l.Port, err = strconv.Atoi(text)
		}
		if err != nil || named && (l.Port < 1 || l.Port > 65535) || !hostName(name) {
			return nil, fmt.Errorf("%q in the label %s is no NAME and no NAME:PORT, as in db:5432", word, LabelLinks)
		}
		links = append(links, l)
	}
	if len(links) == 0 {
		return nil, fmt.Errorf("the label %s names nothing; it is written NAME or NAME:PORT, as in db:5432", LabelLinks)
	}
	return links, nil
}

func hostName(s string) bool {
	return s != "" && strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789-._") == ""
}

// Unlinked are the names of links that do not lead a container with these hosts to its node,
// each with the address that it has instead, "" for none.
func Unlinked(links []Link, hosts []string) (out []Host) {
	for _, l := range links {
		have := addressesOf(l.Name, hosts)
		if slices.Contains(have, hostGateway) || slices.ContainsFunc(out, func(h Host) bool { return h.Name == l.Name }) {
			continue
		}
		out = append(out, Host{l.Name, strings.Join(have, ", ")})
	}
	return out
}

// Host is a name and its address.
type Host struct{ Name, Address string }

func (h Host) String() string {
	if h.Address == "" {
		return fmt.Sprintf("it was made without --add-host %s:%s", h.Name, hostGateway)
	}
	return fmt.Sprintf("its %s is %s and not its node: it was made without --add-host %s:%s", h.Name, h.Address, h.Name, hostGateway)
}

// addressesOf a name in an engine's list, whose entries are written with : or, by some
// clients, with =.
func addressesOf(name string, hosts []string) (out []string) {
	for _, h := range hosts {
		if i := strings.IndexAny(h, ":="); i > 0 && h[:i] == name {
			out = append(out, strings.Trim(h[i+1:], "[]"))
		}
	}
	return out
}

// Links are those that the labels of a spec's container name, nil without the label; the
// error is about the label.
func (s Spec) Links() ([]Link, error) {
	var config struct{ Labels map[string]string }
	if err := unmarshalExact(s.Config, &config); err != nil {
		return nil, fmt.Errorf("reading the configuration of container %s: %w", s.Name, err)
	}
	label, ok := config.Labels[LabelLinks]
	if !ok {
		return nil, nil
	}
	return ParseLinks(label)
}

// Linked is the spec with the names of its links that it lacks. What its user has given to
// a name stays. A label that cannot be read asks for none: the container's node says so.
func (s Spec) Linked() (Spec, error) {
	links, err := s.Links()
	if err != nil || len(links) == 0 {
		return s, nil
	}
	var host map[string]any
	if err := unmarshalExact(s.HostConfig, &host); err != nil {
		return Spec{}, fmt.Errorf("reading the configuration of container %s: %w", s.Name, err)
	}
	if strings.HasPrefix(text(host["NetworkMode"]), "container:") {
		return s, nil // it has its partner's names
	}
	all := list(host["ExtraHosts"])
	var hosts []string
	for _, h := range all {
		hosts = append(hosts, text(h))
	}
	for _, h := range Unlinked(links, hosts) {
		if h.Address == "" {
			all = append(all, h.Name+":"+hostGateway)
		}
	}
	if len(all) == len(hosts) {
		return s, nil
	}
	host["ExtraHosts"] = all
	s.HostConfig, err = json.Marshal(host)
	return s, err
}
