package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// linksEvery is how often the links of this node's containers are looked at: nothing but
// what people are told follows from it.
const linksEvery = 5 * time.Second

// linker knows which containers of this node are to reach services through it, whether
// they follow a volume or not, and tells of those that do not. It changes none: what a
// container calls its node is decided when it is made.
type linker struct {
	m      *member
	engine interface {
		Linking(ctx context.Context) ([]container.Linking, error)
	}

	mu    sync.Mutex
	links []madeLink
}

// madeLink is one link of one container here.
type madeLink struct {
	Container string
	Link      container.Link
	Listen    []int  // ports of the routes that it leads to
	Problem   string // a sentence; "" when all is well
}

// run looks until ctx ends.
func (l *linker) run(ctx context.Context) error {
	every := time.NewTicker(linksEvery)
	defer every.Stop()
	for ctx.Err() == nil {
		l.step(ctx)
		select {
		case <-every.C:
		case <-ctx.Done():
		}
	}
	return nil
}

// step looks once. What the engine does not say stays as it was known.
func (l *linker) step(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	here, err := l.engine.Linking(ctx)
	if err != nil {
		l.m.log.Debug("the links of containers are not known now", "err", err)
		return
	}
	links := madeLinks(l.m.cluster.State(), here)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range links {
		if x.Problem != "" && !slices.ContainsFunc(l.links, func(old madeLink) bool { return old.Problem == x.Problem }) {
			l.m.log.Warn("a container does not reach what it is linked to", "problem", x.Problem)
		}
	}
	l.links = links
}

// madeLinks judges the links of containers, in order of their names.
func madeLinks(s *state.State, here []container.Linking) (out []madeLink) {
	here = slices.Clone(here)
	slices.SortFunc(here, func(a, b container.Linking) int { return strings.Compare(a.Name, b.Name) })
	for _, c := range here {
		links, err := container.ParseLinks(c.Label)
		if err != nil {
			out = append(out, madeLink{Container: c.Name, Problem: fmt.Sprintf("container %s: %v", c.Name, err)})
			continue
		}
		unlinked := container.Unlinked(links, c.Hosts)
		for _, l := range links {
			x := madeLink{Container: c.Name, Link: l, Listen: linkedTo(s, l)}
			i := slices.IndexFunc(unlinked, func(h container.Host) bool { return h.Name == l.Name })
			switch {
			case len(x.Listen) == 0:
				x.Problem = unrouted("container "+c.Name, l)
			case i >= 0:
				x.Problem = fmt.Sprintf("container %s does not reach %s through its node: %s", c.Name, l, unlinked[i])
			}
			out = append(out, x)
		}
	}
	return out
}

// linkedTo are the listen ports that a link leads to, in order.
func linkedTo(s *state.State, l container.Link) (listen []int) {
	for _, r := range s.Routes() {
		serves := func() bool {
			if r.Volume.Name == l.Name {
				return true
			}
			if r.Container != nil {
				return r.Container.Name == l.Name
			}
			return slices.ContainsFunc(s.ContainersOf(r.Volume.ID), func(c *state.Container) bool { return c.Name == l.Name })
		}
		if l.Port == r.Listen || l.Port == 0 && serves() {
			listen = append(listen, r.Listen)
		}
	}
	return listen
}

// unrouted says that a link of somebody leads nowhere.
func unrouted(who string, l container.Link) string {
	if l.Port != 0 {
		return fmt.Sprintf("%s is linked to %s, and no route listens on port %d", who, l, l.Port)
	}
	return fmt.Sprintf("%s is linked to %s, and no volume or container of that name has a route", who, l)
}

func (l *linker) report(rep *volume.Report) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.links {
		if x.Problem != "" {
			rep.Problems = append(rep.Problems, x.Problem)
		}
	}
}

// of are the links of this node's containers to a route.
func (l *linker) of(listen int) (out []api.RouteLink) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.links {
		if slices.Contains(x.Listen, listen) {
			out = append(out, api.RouteLink{Container: x.Container, Name: x.Link.Name, Problem: x.Problem})
		}
	}
	return out
}
