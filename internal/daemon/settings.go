package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// period is a setting that is a time.
type period struct {
	key, about string
	low, high  time.Duration
	field      func(*state.Settings) *time.Duration
	inForce    func(state.Settings) time.Duration
}

// periods in the order in which people meet them.
var periods = []period{
	{
		"trash-retention", "how long a removed volume can be brought back",
		state.MinRetention, state.MaxRetention,
		func(s *state.Settings) *time.Duration { return &s.TrashRetention }, state.Settings.TrashKeep,
	}, {
		"aside-retention", "how long a copy stays that was set aside because its history went another way",
		state.MinRetention, state.MaxRetention,
		func(s *state.Settings) *time.Duration { return &s.AsideRetention }, state.Settings.AsideKeep,
	}, {
		"replica-replace-after", "how long a replica's node may be lost before another node gets a copy",
		state.MinReplaceAfter, state.MaxReplaceAfter,
		func(s *state.Settings) *time.Duration { return &s.ReplicaReplaceAfter }, state.Settings.ReplaceAfter,
	}, {
		"hold", "how long a request of a route's client waits while its volume moves; the clients of a move altogether twice that",
		state.MinHold, state.MaxHold,
		func(s *state.Settings) *time.Duration { return &s.Hold }, state.Settings.HoldFor,
	},
}

// number is a setting that is one.
type number struct {
	key, about string
	low, high  int
	field      func(*state.Settings) *int
	inForce    func(state.Settings) int
}

var numbers = []number{
	{
		"hold-service", "how many clients of one route may wait at a node",
		state.MinHolding, state.MaxHolding,
		func(s *state.Settings) *int { return &s.HoldService }, state.Settings.HoldsService,
	}, {
		"hold-node", "how many clients of all routes may wait at a node",
		state.MinHolding, state.MaxHolding,
		func(s *state.Settings) *int { return &s.HoldNode }, state.Settings.HoldsNode,
	},
}

// findNumber is nil when the key is none of them.
func findNumber(key string) *number {
	i := slices.IndexFunc(numbers, func(n number) bool { return n.key == key })
	if i < 0 {
		return nil
	}
	return &numbers[i]
}

func (n *number) put(s *state.Settings, value string) error {
	got, err := strconv.Atoi(value)
	if err != nil || got < n.low || got > n.high {
		return volume.Errorf(volume.CodeInvalid, "setting %s: %q is not from %d to %d", n.key, value, n.low, n.high).
			WithHint("it takes a number of clients")
	}
	*n.field(s) = got
	return nil
}

// choice is a setting that is one of a few words, the default first.
type choice struct {
	key, about string
	values     []string
	get        func(state.Settings) string // "": the default
	set        func(*state.Settings, string)
}

// The words of fencing.
const (
	fencingHard     = "hard"
	fencingSoftware = "software-only"
)

var choices = []choice{
	{
		"failover", "whether volumes of a lost node are taken over by themselves, once there are three voters",
		[]string{string(state.FailoverAutomatic), string(state.FailoverManual)},
		func(s state.Settings) string { return string(s.Failover) },
		func(s *state.Settings, v string) { s.Failover = state.FailoverMode(v) },
	}, {
		"lease", "how soon a silent node is taken for lost: " + lease.Waits(),
		lease.Profiles(),
		func(s state.Settings) string { return s.Lease },
		func(s *state.Settings, v string) { s.Lease = v },
	}, {
		"fencing", "whether nodes that cannot reset themselves may be taken for lost by time alone",
		[]string{fencingHard, fencingSoftware},
		func(s state.Settings) string {
			if s.SoftwareFencing {
				return fencingSoftware
			}
			return ""
		},
		func(s *state.Settings, v string) { s.SoftwareFencing = v == fencingSoftware },
	}, {
		"rebalance", "whether copies move by themselves, in a calm cluster, to even out the nodes",
		[]string{state.RebalanceOff, state.RebalanceOn},
		func(s state.Settings) string { return s.Rebalance },
		func(s *state.Settings, v string) { s.Rebalance = v },
	},
}

// findChoice is nil when the key is none of them.
func findChoice(key string) *choice {
	i := slices.IndexFunc(choices, func(c choice) bool { return c.key == key })
	if i < 0 {
		return nil
	}
	return &choices[i]
}

// put a word into s. The default is kept as no word at all, so that it stays the
// default.
func (c *choice) put(s *state.Settings, value string) error {
	switch i := slices.Index(c.values, value); {
	case i < 0:
		return volume.Errorf(volume.CodeInvalid, "setting %s: %q is not one of its values", c.key, value).
			WithHint("it takes %s", strings.Join(c.values, " or "))
	case i == 0:
		value = ""
	}
	c.set(s, value)
	return nil
}

// Limits of bandwidth have keys of this prefix and two zones, bandwidth:ZONE:ZONE.
const (
	bandwidthPrefix = "bandwidth:"
	noLimit         = "none"
)

const bandwidthAbout = "most bytes a second that one node sends to that zone, over all its streams together"

// settingKeys says which keys there are, for refusals.
func settingKeys() string {
	var keys []string
	for _, p := range periods {
		keys = append(keys, p.key)
	}
	for _, n := range numbers {
		keys = append(keys, n.key)
	}
	for _, c := range choices {
		keys = append(keys, c.key)
	}
	return strings.Join(append(keys, bandwidthPrefix+"ZONE:ZONE"), ", ")
}

// changeSettings is s with a request's changes. It is pure; the refusal says what a
// key takes.
func changeSettings(s state.Settings, req api.SettingsRequest) (state.Settings, error) {
	for _, key := range slices.Sorted(maps.Keys(req.Set)) {
		if slices.Contains(req.Reset, key) {
			return s, volume.Errorf(volume.CodeInvalid, "setting %s is both set and reset", key)
		}
		var err error
		if s, err = setSetting(s, key, req.Set[key]); err != nil {
			return s, err
		}
	}
	for _, key := range req.Reset {
		if a, b, err := zonePair(key); err == nil {
			s = s.WithLimit(a, b, 0)
			continue
		} else if strings.HasPrefix(key, bandwidthPrefix) {
			return s, err
		}
		if n := findNumber(key); n != nil {
			*n.field(&s) = 0
			continue
		}
		if c := findChoice(key); c != nil {
			c.set(&s, "")
			continue
		}
		p, err := findPeriod(key)
		if err != nil {
			return s, err
		}
		*p.field(&s) = 0
	}
	return s, nil
}

func setSetting(s state.Settings, key, value string) (state.Settings, error) {
	if strings.HasPrefix(key, bandwidthPrefix) {
		a, b, err := zonePair(key)
		if err != nil {
			return s, err
		}
		if value == noLimit {
			return s.WithLimit(a, b, 0), nil
		}
		n, err := volume.ParseSize(strings.TrimSuffix(value, "/s"))
		if err == nil && n < state.MinBandwidth {
			err = fmt.Errorf("%q is less than %s", value, volume.FormatSize(state.MinBandwidth))
		}
		if err != nil {
			return s, volume.Errorf(volume.CodeInvalid, "setting %s: %v", key, err).
				WithHint("it takes bytes a second like 500K, 20M or 1G, at least %s, or none", volume.FormatSize(state.MinBandwidth))
		}
		return s.WithLimit(a, b, n), nil
	}
	if n := findNumber(key); n != nil {
		err := n.put(&s, value)
		return s, err
	}
	if c := findChoice(key); c != nil {
		err := c.put(&s, value)
		return s, err
	}
	p, err := findPeriod(key)
	if err != nil {
		return s, err
	}
	d, err := volume.ParsePeriod(value)
	if err == nil && (d < p.low || d > p.high) {
		err = fmt.Errorf("not from %s to %s", volume.FormatPeriod(p.low), volume.FormatPeriod(p.high))
	}
	if err != nil {
		return s, volume.Errorf(volume.CodeInvalid, "setting %s: %v", key, err).WithHint("it takes a period like 30s, 30m, 12h or 30d")
	}
	*p.field(&s) = d
	return s, nil
}

func findPeriod(key string) (period, error) {
	i := slices.IndexFunc(periods, func(p period) bool { return p.key == key })
	if i < 0 {
		return period{}, volume.Errorf(volume.CodeInvalid, "there is no setting %q", key).WithHint("there is %s", settingKeys())
	}
	return periods[i], nil
}

// zonePair reads bandwidth:ZONE:ZONE.
func zonePair(key string) (a, b volume.Zone, err error) {
	pair, ok := strings.CutPrefix(key, bandwidthPrefix)
	if !ok {
		return "", "", errors.New("no limit of bandwidth")
	}
	from, to, _ := strings.Cut(pair, ":")
	for _, z := range []string{from, to} {
		if volume.ValidateName(z) != nil {
			return "", "", volume.Errorf(volume.CodeInvalid, "setting %q: %q is not the name of a zone", key, z).
				WithHint("it is written bandwidth:ZONE:ZONE; flockctl node list shows the zones")
		}
	}
	return volume.Zone(from), volume.Zone(to), nil
}

// showSettings is what people see of the settings.
func showSettings(s state.Settings, zones map[volume.Zone]bool) api.Settings {
	out := api.Settings{}
	for _, p := range periods {
		out.Settings = append(out.Settings, api.Setting{
			Key: p.key, Value: volume.FormatPeriod(p.inForce(s)), Default: *p.field(&s) == 0, About: p.about,
		})
	}
	for _, n := range numbers {
		out.Settings = append(out.Settings, api.Setting{Key: n.key, Value: strconv.Itoa(n.inForce(s)), Default: *n.field(&s) == 0, About: n.about})
	}
	if s.HoldsService() > s.HoldsNode() {
		out.Warnings = append(out.Warnings, "hold-service is more than hold-node, which holds for all routes of a node together")
	}
	for _, c := range choices {
		value := c.get(s)
		out.Settings = append(out.Settings, api.Setting{
			Key: c.key, Value: cmp.Or(value, c.values[0]), Default: value == "", About: c.about,
		})
	}
	for _, l := range s.Bandwidth {
		key := fmt.Sprintf("%s%s:%s", bandwidthPrefix, l.A, l.B)
		out.Settings = append(out.Settings, api.Setting{Key: key, Value: volume.FormatSize(l.Bytes), About: bandwidthAbout})
		for _, z := range slices.Compact([]volume.Zone{l.A, l.B}) {
			if !zones[z] {
				out.Warnings = append(out.Warnings, fmt.Sprintf("%s: no node is in zone %s", key, z))
			}
		}
	}
	return out
}

// Settings implements api.Backend.
func (m *member) Settings(context.Context) (api.Settings, error) {
	s := m.cluster.State()
	zones := map[volume.Zone]bool{}
	for n := range s.Nodes() {
		zones[cmp.Or(n.Zone, volume.DefaultZone)] = true
	}
	out := showSettings(s.Cluster().Settings, zones)
	out.Index = s.Index
	return out, nil
}

// ChangeSettings implements api.Backend.
func (m *member) ChangeSettings(ctx context.Context, req api.SettingsRequest) (api.Settings, error) {
	if _, err := changeSettings(m.cluster.State().Cluster().Settings, req); err != nil {
		return api.Settings{}, err
	}
	var out api.Settings
	err := m.onLeader(ctx, func(ctx context.Context, leader *api.Client) (err error) {
		if leader != nil {
			out, err = leader.ChangeSettings(ctx, req)
			return err
		}
		err = m.retryChanged(ctx, func() (state.Command, func() bool, error) {
			was := m.cluster.State().Cluster().Settings
			next, err := changeSettings(was, req)
			stale := func() bool { return !m.cluster.State().Cluster().Settings.Equal(was) }
			return state.SetSettings{Settings: next, Was: &was}, stale, err
		})
		if err != nil {
			return err
		}
		m.spread(ctx)
		out, err = m.Settings(ctx)
		return err
	})
	if err != nil {
		return api.Settings{}, err
	}
	return out, m.cluster.CaughtUp(ctx, out.Index)
}

// retryChanged commits, on the leader, what decide makes of the present state. Where
// the command meets a conflict and stale says that its ground has changed meanwhile,
// it decides again.
func (m *member) retryChanged(ctx context.Context, decide func() (c state.Command, stale func() bool, err error)) error {
	for {
		c, stale, err := decide()
		if err != nil {
			return err
		}
		_, err = m.commit(ctx, "", c)
		if volume.CodeOf(err) != volume.CodeConflict || ctx.Err() != nil || !stale() {
			return err
		}
	}
}
