package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// What flocker keeps in a pool is made again when the pool is there and lacks it, and nobody waits for
// the lease of this node to end. No dataset of a volume is: that comes from another node, or not at all.
func TestRenew(t *testing.T) {
	lose := func(t *testing.T, host *zfsfake.Host) { must(t, host.RenewPool("tank")) }
	for name, c := range map[string]struct {
		role   volume.Role
		leases bool // nodes write under leases
		lose   func(*testing.T, *zfsfake.Host)
		elect  bool   // the volume loses its primary after that
		copy   bool   // is still there
		want   string // in the node's trouble; "": there is none, and all is made
	}{
		"a replica's pool":                    {role: volume.RoleReplica, lose: lose},
		"a replica's pool, under leases":      {role: volume.RoleReplica, leases: true, lose: lose},
		"a primary's, and nothing is awaited": {role: volume.RolePrimary, lose: lose},
		"a primary's, which will fail over":   {role: volume.RolePrimary, leases: true, lose: lose, want: "once volume v, which this node is the primary of, has failed over"},
		"a primary's, which has":              {role: volume.RolePrimary, leases: true, lose: lose, elect: true},
		"the trash alone": {role: volume.RolePrimary, leases: true, copy: true, lose: func(t *testing.T, host *zfsfake.Host) {
			must(t, host.Destroy(t.Context(), "tank/flocker-trash"))
		}},
		"what was set aside alone": {role: volume.RolePrimary, leases: true, copy: true, lose: func(t *testing.T, host *zfsfake.Host) {
			must(t, host.Destroy(t.Context(), "tank/flocker-aside"))
		}},
		"a pool that is away": {role: volume.RoleReplica, lose: func(t *testing.T, host *zfsfake.Host) {
			lose(t, host)
			host.ExportPool("tank")
		}, want: "no such pool"},
		"a pool that is suspended": {role: volume.RoleReplica, lose: func(t *testing.T, host *zfsfake.Host) {
			lose(t, host)
			host.SuspendPool("tank", true)
		}, want: "pool tank is in state SUSPENDED"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			a, host, f, i := quiet(t)
			repl := &assigning{idle: i}
			a.use, a.repl = unused{}, repl
			var jobs sync.WaitGroup
			defer jobs.Wait()
			p := volume.Placement{Primary: self, Local: []volume.NodeID{other}}
			if c.role == volume.RoleReplica {
				p = volume.Placement{Primary: other, Local: []volume.NodeID{self}}
			}
			f.apply(t, state.CreateVolume{ID: vol1, Name: "v", Spec: volume.DefaultSpec(), Placement: p})
			f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: 1})
			if c.leases {
				f.underLeases(t)
			}
			must(t, host.CreateFilesystem(ctx, a.layout.Dataset(vol1), map[string]string{propEpoch: volume.Epoch(1).String()}))
			a.step(ctx, &jobs, byReason)
			if _, seen := a.actual.Copies[vol1]; !seen {
				t.Fatal("the copy was not seen before")
			}

			c.lose(t, host)
			if c.elect {
				f.apply(t, state.BeginElection{ID: vol1, Epoch: 1, Fenced: true})
			}
			a.trashAt, a.asidesAt = a.trashAt.Add(-trashPoll-1), a.asidesAt.Add(-asidePoll-1) // or their turn is later
			for range 3 {
				a.step(ctx, &jobs, byReason)
				jobs.Wait()
			}
			if got := strings.Join(a.trouble, "; "); !strings.Contains(got, c.want) || (got == "") != (c.want == "") {
				t.Errorf("trouble: %q, want %q", got, c.want)
			}
			must(t, host.ImportPool(ctx, "tank", "/fake"))
			for _, parent := range []string{a.layout.Root(), a.layout.Trash(), a.layout.Aside()} {
				if made := exists(t, host, parent); made != (c.want == "") {
					t.Errorf("%s is there: %v", parent, made)
				}
			}
			if c.want != "" {
				return
			}
			_, seen := a.actual.Copies[vol1]
			if there := exists(t, host, a.layout.Dataset(vol1)); there != c.copy || seen != c.copy {
				t.Errorf("the copy is there: %v, and seen: %v", there, seen)
			}
			if want := c.copy || c.role == volume.RoleReplica || c.elect; (len(repl.assigned) == 1) != want {
				t.Errorf("replication was given %v", repl.assigned)
			}
		})
	}
}

// After a start a pool that lacks what flocker keeps there is prepared once it is known that this node is the
// primary of nothing; one that has it at once, though nobody leads.
func TestPrepareFirst(t *testing.T) {
	for name, c := range map[string]struct {
		empty, away, primary, leaderless bool
		want                             string // in why it is put off; "": it is prepared
		caught                           bool   // what the state says against its lease counts from then on
	}{
		"as it was left":                   {primary: true, leaderless: true},
		"for the first time":               {empty: true, caught: true},
		"for the first time, with no lead": {empty: true, leaderless: true, want: "what this node is the primary of is not known"},
		"made anew, a primary's":           {empty: true, primary: true, caught: true, want: "once volume v, which this node is the primary of, has failed over"},
		"away":                             {away: true, primary: true, caught: true, want: "no such pool"},
		"away, with no lead":               {away: true, primary: true, leaderless: true, want: "no such pool"},
	} {
		t.Run(name, func(t *testing.T) {
			a, host, f, _ := quiet(t)
			p := volume.Placement{Primary: self, Local: []volume.NodeID{other}}
			if !c.primary {
				p = volume.Placement{Primary: other, Local: []volume.NodeID{self}}
			}
			f.apply(t, state.CreateVolume{ID: vol1, Name: "v", Spec: volume.DefaultSpec(), Placement: p})
			f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: 1})
			f.underLeases(t)
			if c.empty {
				must(t, host.RenewPool("tank"))
			}
			if c.away {
				host.ExportPool("tank")
			}
			if c.leaderless {
				a.cluster = leaderless{a.cluster}
			}
			err := a.prepareFirst(t.Context())
			if got := fmt.Sprint(err); (err == nil) != (c.want == "") || !strings.Contains(got, c.want) && c.want != "" {
				t.Errorf("prepared: %v, want %q", err, c.want)
			}
			if a.CaughtUp() != c.caught {
				t.Errorf("caught up: %v, want %v", a.CaughtUp(), c.caught)
			}
			if c.away {
				return
			}
			if there := exists(t, host, a.layout.Root()); there != (c.want == "") {
				t.Errorf("%s is there: %v", a.layout.Root(), there)
			}
		})
	}
}

// leaderless is a cluster that nobody leads.
type leaderless struct{ Cluster }

func (leaderless) CatchUp(context.Context) error { return errors.New("nobody leads") }

// underLeases has the cluster fail over by itself, of three nodes, with a lease for this one.
func (f *fixed) underLeases(t *testing.T) {
	t.Helper()
	const third = volume.NodeID("third")
	f.apply(t, state.AddNode{Node: state.Node{ID: third, Name: "third"}, Token: "t"})
	arm := state.ArmFailover{Round: 1, Profile: "default"}
	arm.Timers.Heartbeat, arm.Timers.Call = 2*time.Second, 1500*time.Millisecond
	arm.Timers.TTL, arm.Timers.Fence, arm.Timers.Promote = 10*time.Second, 5*time.Second, 20*time.Second
	f.apply(t, arm)
	f.apply(t, state.GrantLease{Node: self, No: 1, Boot: "b", Round: 1})
}
