package apitest

import (
	"context"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

func routes() []api.Route {
	return []api.Route{
		{Route: volume.Route{Listen: 80, Port: 8080, Mode: volume.RouteHTTP}, Volume: "uploads", Container: "web", Owner: Beta, State: api.RouteWaiting,
			Held: 3, Sessions: 3, Problems: []string{"beta: nobody is served on port 80 of this node: address already in use"}},
		{Route: volume.Route{Listen: 5432, Port: 5432, Mode: volume.RoutePostgres}, Volume: "pgdata", Owner: Alpha, State: api.RouteOpen, Server: "172.17.0.2:5432",
			Sessions: 12, Parked: 9, Pinned: []api.RouteSession{{Node: Gamma, Client: "10.0.0.9:40312", Since: Now.Add(-3 * time.Minute), Why: "it has an advisory lock"}},
			Linked: []api.RouteLink{{Node: Beta, Container: "web", Name: "db"}, {Node: Gamma, Container: "job", Name: "db",
				Problem: "container job does not reach db:5432 through its node: it was made without --add-host db:host-gateway"}}},
	}
}

// Routes implements api.Backend.
func (f *Fake) Routes(ctx context.Context) (api.Routes, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Routes"); err != nil {
		return api.Routes{}, err
	}
	return api.Routes{Routes: slices.Clone(f.routes), Unheard: []api.NodeRef{Gamma}}, nil
}

// AddRoute implements api.Backend.
func (f *Fake) AddRoute(ctx context.Context, ref string, req api.AddRouteRequest) (api.Route, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "AddRoute", ref, req); err != nil {
		return api.Route{}, err
	}
	i, err := f.findVolume(ref, false)
	if err != nil {
		return api.Route{}, err
	}
	parsed, err := volume.ParseRoute(req.Route)
	if err != nil {
		return api.Route{}, volume.Errorf(volume.CodeInvalid, "route %q: %v", req.Route, err)
	}
	for _, r := range f.routes {
		if what := parsed.Clash(r.Route); what != "" {
			return api.Route{}, volume.Errorf(volume.CodeConflict, "%s is that of volume %q", what, r.Volume)
		}
	}
	r := api.Route{Route: parsed, Volume: f.volumes[i].Name, Owner: f.volumes[i].Primary, State: api.RouteOpen}
	f.routes = append(f.routes, r)
	return r, nil
}

// RemoveRoute implements api.Backend.
func (f *Fake) RemoveRoute(ctx context.Context, route string) error {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "RemoveRoute", route); err != nil {
		return err
	}
	i, err := f.routeAt(route)
	if err != nil {
		return err
	}
	f.routes = slices.Delete(f.routes, i, i+1)
	return nil
}

// PauseRoute implements api.Backend.
func (f *Fake) PauseRoute(ctx context.Context, route string, paused bool) error {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "PauseRoute", route, paused); err != nil {
		return err
	}
	i, err := f.routeAt(route)
	if err != nil {
		return err
	}
	f.routes[i].State = api.RouteOpen
	if paused {
		f.routes[i].State = api.RoutePaused
	}
	return nil
}

func (f *Fake) routeAt(route string) (int, error) {
	ref, err := volume.ParseRouteRef(route)
	if err != nil {
		return -1, volume.Errorf(volume.CodeInvalid, "%v", err)
	}
	var plain []volume.Route
	for _, r := range f.routes {
		plain = append(plain, r.Route)
	}
	return ref.Find(plain)
}

// NodeRoutes implements api.Peer.
func (f *Fake) NodeRoutes(ctx context.Context) ([]api.NodeRoute, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "NodeRoutes"); err != nil {
		return nil, err
	}
	return []api.NodeRoute{{Listen: 5432, Sessions: 12, Parked: 9, Server: "172.17.0.2:5432"}}, nil
}
