package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/api/apitest"
	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/volume"
)

// testLog writes to the test's output.
func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// start runs serve over an in-memory listener until the test ends, and returns a
// client of it.
func start(t *testing.T, serve func(ctx context.Context, l net.Listener) error) *api.Client {
	t.Helper()
	l := apitest.NewListener()
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := serve(ctx, l); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	c := api.NewClient(l.Dial)
	t.Cleanup(func() { c.Close(); stop(); wg.Wait() })
	return c
}

func startLocal(t *testing.T, f *apitest.Fake) *api.Client {
	h := api.NewHandler(f, f, testLog(t))
	return start(t, func(ctx context.Context, l net.Listener) error { return api.ServeLocal(ctx, l, h, testLog(t)) })
}

func startPeer(t *testing.T, f *apitest.Fake, id api.Identify) *api.Client {
	h := api.NewHandler(f, f, testLog(t))
	return start(t, func(ctx context.Context, l net.Listener) error { return api.ServePeers(ctx, l, id, h, testLog(t)) })
}

func isBeta(net.Conn) (volume.NodeID, error) { return apitest.Beta.ID, nil }

// both is what a Client and a Fake have in common.
type both interface {
	api.Backend
	api.Peer
}

// one turns a method that returns only an error into one that returns a value too.
func one(err error) (any, error) { return nil, err }

func two[T any](v T, err error) (any, error) { return v, err }

// browsed is all of what was browsed.
func browsed(b *api.Browsed, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(b.Body)
	b.Body.Close()
	b.Body = nil
	return []any{*b, string(content)}, err
}

// What ends before its end does so for who reads it, and the next call is none the worse.
func TestBrowsedCut(t *testing.T) {
	client := startLocal(t, apitest.Cluster())
	b, err := client.Browse(t.Context(), "pgdata", api.BrowseRequest{Path: "cut", As: api.AsFile})
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(b.Body)
	b.Body.Close()
	if volume.CodeOf(err) != volume.CodeUnavailable || !strings.Contains(err.Error(), "has ended before its end") {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := client.Version(t.Context()); err != nil {
		t.Error(err)
	}
}

// What a node reads for another one goes over a connection of its own, which yields to others.
func TestBrowsedYields(t *testing.T) {
	l := &yieldingListener{Listener: apitest.NewListener()}
	f := apitest.Cluster()
	h := api.NewHandler(f, f, testLog(t))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := api.ServePeers(ctx, l, isBeta, h, testLog(t)); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	client := api.NewClient(l.Listener.Dial)
	defer func() { client.Close(); stop(); wg.Wait() }()
	for _, want := range []string{"", "marked "} {
		if _, err := client.Version(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := l.seen(); got != want {
			t.Errorf("the connections are %q, want %q", got, want)
		}
		if _, err := browsed(client.Browse(t.Context(), "pgdata", api.BrowseRequest{Snapshot: "before-upgrade", Path: ".", As: api.AsTar})); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.seen(); got != "marked marked" {
		t.Errorf("the connections are %q in the end", got)
	}
}

// yieldingListener knows which of its connections were made to yield, in the order in which they came.
type yieldingListener struct {
	*apitest.Listener
	mu    sync.Mutex
	conns []*yieldingConn
}

type yieldingConn struct {
	net.Conn
	marked atomic.Bool
}

func (c *yieldingConn) Background() error { c.marked.Store(true); return nil }

func (l *yieldingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &yieldingConn{Conn: conn}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, c)
	return c, nil
}

func (l *yieldingListener) seen() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, c := range l.conns {
		if c.marked.Load() {
			out = append(out, "marked")
		} else {
			out = append(out, "")
		}
	}
	return strings.Join(out, " ")
}

// Paths are made plain before anybody sees them, and what is no request is refused.
func TestBrowseRequests(t *testing.T) {
	f := apitest.Cluster()
	client := startLocal(t, f)
	for _, tt := range []struct {
		req  api.BrowseRequest
		code volume.Code
	}{
		{api.BrowseRequest{Path: "conf", As: "zip"}, volume.CodeInvalid},
		{api.BrowseRequest{Path: "conf"}, volume.CodeInvalid},
		{api.BrowseRequest{Path: "conf", As: api.AsDiff}, volume.CodeInvalid},
		{api.BrowseRequest{Path: "conf", As: api.AsList, Since: "before-upgrade"}, volume.CodeInvalid},
		{api.BrowseRequest{Path: "a\x00b", As: api.AsList}, volume.CodeInvalid},
		{api.BrowseRequest{Path: strings.Repeat("/x", 1<<15), As: api.AsList}, volume.CodeInvalid},
		{api.BrowseRequest{Path: "../../conf/./app.conf", As: api.AsFile}, ""},
		{api.BrowseRequest{Path: "/", As: api.AsList}, ""},
	} {
		b, err := client.Browse(t.Context(), "pgdata", tt.req)
		if volume.CodeOf(err) != tt.code || (err == nil) != (tt.code == "") {
			t.Errorf("%.80q: %v", tt.req.Path, err)
		}
		if err == nil {
			b.Body.Close()
			calls := f.Calls()
			if got := calls[len(calls)-1].Args[1].(api.BrowseRequest).Path; got != "." && got != "conf/app.conf" {
				t.Errorf("%q arrives as %q", tt.req.Path, got)
			}
		}
	}
}

var berlin = "berlin"

// calls are calls of every method that every node may make.
var calls = []struct {
	name string
	do   func(context.Context, both) (any, error)
}{
	{"version", func(ctx context.Context, b both) (any, error) { return two(b.Version(ctx)) }},
	{"status", func(ctx context.Context, b both) (any, error) { return two(b.Status(ctx)) }},
	{"nodes", func(ctx context.Context, b both) (any, error) { return two(b.Nodes(ctx)) }},
	{"node", func(ctx context.Context, b both) (any, error) { return two(b.Node(ctx, "gamma")) }},
	{"node by prefix", func(ctx context.Context, b both) (any, error) { return two(b.Node(ctx, "a1fa")) }},
	{"no node", func(ctx context.Context, b both) (any, error) { return two(b.Node(ctx, "delta")) }},
	{"label", func(ctx context.Context, b both) (any, error) {
		return two(b.LabelNode(ctx, "gamma", api.LabelRequest{Zone: &berlin, Set: map[string]string{"disk": "ssd"}, Drop: []string{"x"}}))
	}},
	{"drain", func(ctx context.Context, b both) (any, error) {
		return two(b.DrainNode(ctx, "gamma", api.DrainRequest{KeepReplicas: true}))
	}},
	{"how far the drain is", func(ctx context.Context, b both) (any, error) { return two(b.Drain(ctx, "gamma")) }},
	{"undrain", func(ctx context.Context, b both) (any, error) { return two(b.UndrainNode(ctx, "gamma")) }},
	{"remove a node that is not drained", func(ctx context.Context, b both) (any, error) {
		return two(b.RemoveNode(ctx, "gamma", api.RemoveNodeRequest{}))
	}},
	{"volumes", func(ctx context.Context, b both) (any, error) { return two(b.Volumes(ctx, api.VolumesQuery{})) }},
	{"trash", func(ctx context.Context, b both) (any, error) {
		return two(b.Volumes(ctx, api.VolumesQuery{Trash: true}))
	}},
	{"volume", func(ctx context.Context, b both) (any, error) { return two(b.Volume(ctx, "pgdata")) }},
	{"volume with an odd name", func(ctx context.Context, b both) (any, error) { return two(b.Volume(ctx, "a/b?c d%2f#é")) }},
	{"ambiguous volume", func(ctx context.Context, b both) (any, error) { return two(b.Volume(ctx, "0b5e")) }},
	{"create", func(ctx context.Context, b both) (any, error) {
		return two(b.CreateVolume(ctx, api.CreateVolumeRequest{
			Name: "new", Options: map[string]string{"size": "1G"}, Node: apitest.Beta.ID, Request: "r1",
		}))
	}},
	{"create again", func(ctx context.Context, b both) (any, error) {
		return two(b.CreateVolume(ctx, api.CreateVolumeRequest{Name: "new", Options: map[string]string{"size": "1G"}, Request: "r1"}))
	}},
	{"create what is bad", func(ctx context.Context, b both) (any, error) {
		return two(b.CreateVolume(ctx, api.CreateVolumeRequest{Name: "bad", Options: map[string]string{"size": "banana"}, Request: "r2"}))
	}},
	{"remove what is in use", func(ctx context.Context, b both) (any, error) {
		return one(b.RemoveVolume(ctx, "pgdata", api.RemoveVolumeRequest{Request: "r3"}))
	}},
	{"remove", func(ctx context.Context, b both) (any, error) {
		return one(b.RemoveVolume(ctx, "new", api.RemoveVolumeRequest{Request: "r4"}))
	}},
	{"undelete", func(ctx context.Context, b both) (any, error) {
		return two(b.UndeleteVolume(ctx, "new", api.UndeleteRequest{Name: "newer", Request: "r5"}))
	}},
	{"purge what is not in the trash", func(ctx context.Context, b both) (any, error) { return one(b.PurgeVolume(ctx, "pgdata")) }},
	{"purge", func(ctx context.Context, b both) (any, error) { return one(b.PurgeVolume(ctx, "old")) }},
	{"update", func(ctx context.Context, b both) (any, error) {
		return two(b.UpdateVolume(ctx, "pgdata", api.UpdateVolumeRequest{Options: map[string]string{"replicas": "2"}}))
	}},
	{"update of nothing", func(ctx context.Context, b both) (any, error) {
		return two(b.UpdateVolume(ctx, "pgdata", api.UpdateVolumeRequest{}))
	}},
	{"update what cannot change", func(ctx context.Context, b both) (any, error) {
		return two(b.UpdateVolume(ctx, "pgdata", api.UpdateVolumeRequest{Options: map[string]string{"uid": "2"}}))
	}},
	{"sync", func(ctx context.Context, b both) (any, error) {
		return two(b.SyncVolume(ctx, "pgdata", api.SyncRequest{Patience: time.Minute}))
	}},
	{"verify", func(ctx context.Context, b both) (any, error) {
		return two(b.VerifyVolume(ctx, "pgdata", api.VerifyRequest{Patience: time.Minute}))
	}},
	{"take a snapshot", func(ctx context.Context, b both) (any, error) {
		return two(b.TakeSnapshot(ctx, api.SnapshotRequest{Volumes: []string{"pgdata", "uploads"}, Name: "before"}))
	}},
	{"snapshots", func(ctx context.Context, b both) (any, error) { return two(b.Snapshots(ctx, "pgdata")) }},
	{"snapshots of a volume with an odd name", func(ctx context.Context, b both) (any, error) { return two(b.Snapshots(ctx, "a/b?c")) }},
	{"hold a snapshot", func(ctx context.Context, b both) (any, error) {
		return one(b.HoldSnapshot(ctx, "pgdata", "before", api.HoldRequest{Note: "audit"}))
	}},
	{"hold a snapshot that is not there", func(ctx context.Context, b both) (any, error) {
		return one(b.HoldSnapshot(ctx, "pgdata", "a/b", api.HoldRequest{}))
	}},
	{"snapshot", func(ctx context.Context, b both) (any, error) { return two(b.Snapshot(ctx, "pgdata", "before")) }},
	{"no snapshot", func(ctx context.Context, b both) (any, error) { return two(b.Snapshot(ctx, "pgdata", "a b")) }},
	{"remove a held snapshot", func(ctx context.Context, b both) (any, error) { return one(b.RemoveSnapshot(ctx, "pgdata", "before")) }},
	{"release a snapshot", func(ctx context.Context, b both) (any, error) { return one(b.ReleaseSnapshot(ctx, "pgdata", "before")) }},
	{"release it again", func(ctx context.Context, b both) (any, error) { return one(b.ReleaseSnapshot(ctx, "pgdata", "before")) }},
	{"remove a snapshot", func(ctx context.Context, b both) (any, error) { return one(b.RemoveSnapshot(ctx, "pgdata", "before")) }},
	{"remove a snapshot that is not there", func(ctx context.Context, b both) (any, error) { return one(b.RemoveSnapshot(ctx, "pgdata", "a%2f b")) }},
	{"prune", func(ctx context.Context, b both) (any, error) {
		return two(b.PruneSnapshots(ctx, "pgdata", api.PruneRequest{DryRun: true, Policy: "1h:1"}))
	}},
	{"browse a directory", func(ctx context.Context, b both) (any, error) {
		return browsed(b.Browse(ctx, "pgdata", api.BrowseRequest{Snapshot: "before-upgrade", Path: "conf", As: api.AsList}))
	}},
	{"browse a file", func(ctx context.Context, b both) (any, error) {
		return browsed(b.Browse(ctx, "pgdata", api.BrowseRequest{Path: "lost.txt", As: api.AsFile}))
	}},
	{"browse as tar", func(ctx context.Context, b both) (any, error) {
		return browsed(b.Browse(ctx, "pgdata", api.BrowseRequest{Snapshot: "before-upgrade", Path: ".", As: api.AsTar}))
	}},
	{"browse an odd name", func(ctx context.Context, b both) (any, error) {
		return browsed(b.Browse(ctx, "pgdata", api.BrowseRequest{Snapshot: "before-upgrade", Path: "new\nline\x1b[2J", As: api.AsFile}))
	}},
	{"browse no file", func(ctx context.Context, b both) (any, error) {
		return browsed(b.Browse(ctx, "pgdata", api.BrowseRequest{Snapshot: "before-upgrade", Path: "conf/nothing", As: api.AsTar}))
	}},
	{"browse what changed", func(ctx context.Context, b both) (any, error) {
		return browsed(b.Browse(ctx, "pgdata", api.BrowseRequest{Snapshot: "before-upgrade", Since: "auto-1h-20260304T100000Z", Path: ".", As: api.AsDiff}))
	}},
	{"browse a stream", func(ctx context.Context, b both) (any, error) {
		return browsed(b.Browse(ctx, "pgdata", api.BrowseRequest{Snapshot: "before-upgrade", Path: ".", As: api.AsStream, Bases: []uint64{1<<64 - 1, 101}}))
	}},
	{"browse a stream by guid", func(ctx context.Context, b both) (any, error) {
		return browsed(b.Browse(ctx, "pgdata", api.BrowseRequest{GUID: 102, Path: ".", As: api.AsStream}))
	}},
	{"browse no increment", func(ctx context.Context, b both) (any, error) {
		return browsed(b.Browse(ctx, "pgdata", api.BrowseRequest{GUID: 102, Path: ".", As: api.AsStream, Bases: []uint64{7}}))
	}},
	{"browse no snapshot", func(ctx context.Context, b both) (any, error) {
		return browsed(b.Browse(ctx, "pgdata", api.BrowseRequest{Snapshot: "a b", Path: ".", As: api.AsList}))
	}},
	{"asides", func(ctx context.Context, b both) (any, error) { return two(b.Asides(ctx)) }},
	{"restore an aside", func(ctx context.Context, b both) (any, error) {
		return two(b.RestoreAside(ctx, "0b5e55ed00000001-0000000000000002-1", api.RestoreAsideRequest{Name: "found", Node: "beta", Options: map[string]string{"replicas": "0"}, Request: "r9"}))
	}},
	{"remove an aside", func(ctx context.Context, b both) (any, error) {
		return one(b.RemoveAside(ctx, "0b5e55ed00000001-0000000000000002-1", "beta"))
	}},
	{"remove an aside anywhere", func(ctx context.Context, b both) (any, error) { return one(b.RemoveAside(ctx, "nothing", "")) }},
	{"routes", func(ctx context.Context, b both) (any, error) { return two(b.Routes(ctx)) }},
	{"add route", func(ctx context.Context, b both) (any, error) {
		return two(b.AddRoute(ctx, "pgdata", api.AddRouteRequest{Route: "5433:5432/postgres"}))
	}},
	{"add route that is taken", func(ctx context.Context, b both) (any, error) {
		return two(b.AddRoute(ctx, "uploads", api.AddRouteRequest{Route: "5432"}))
	}},
	{"add route to nothing", func(ctx context.Context, b both) (any, error) {
		return two(b.AddRoute(ctx, "a/b", api.AddRouteRequest{Route: "5432"}))
	}},
	{"pause route", func(ctx context.Context, b both) (any, error) { return one(b.PauseRoute(ctx, "5432", true)) }},
	{"resume route", func(ctx context.Context, b both) (any, error) { return one(b.PauseRoute(ctx, "5432", false)) }},
	{"remove route", func(ctx context.Context, b both) (any, error) { return one(b.RemoveRoute(ctx, "5432")) }},
	{"remove route that is not there", func(ctx context.Context, b both) (any, error) { return one(b.RemoveRoute(ctx, "81")) }},
	{"rebalance", func(ctx context.Context, b both) (any, error) { return two(b.Rebalance(ctx)) }},
	{"carry a rebalance on", func(ctx context.Context, b both) (any, error) {
		return two(b.CarryRebalance(ctx, api.RebalanceRequest{Request: "r1", Moves: []api.RebalanceMove{{Volume: "0b5e55ed00000009", Role: volume.RoleReplica}}}))
	}},
	{"containers", func(ctx context.Context, b both) (any, error) { return two(b.Containers(ctx)) }},
	{"forget a container", func(ctx context.Context, b both) (any, error) {
		return one(b.ForgetContainer(ctx, "shop_db_1", "alpha"))
	}},
	{"forget a container that is not there", func(ctx context.Context, b both) (any, error) { return one(b.ForgetContainer(ctx, "a/b", "")) }},
	{"settings", func(ctx context.Context, b both) (any, error) { return two(b.Settings(ctx)) }},
	{"change settings", func(ctx context.Context, b both) (any, error) {
		return two(b.ChangeSettings(ctx, api.SettingsRequest{Set: map[string]string{"trash-retention": "3d"}, Reset: []string{"aside-retention"}}))
	}},
	{"change no setting", func(ctx context.Context, b both) (any, error) {
		return two(b.ChangeSettings(ctx, api.SettingsRequest{Set: map[string]string{"colour": "red"}}))
	}},
	{"fail over what lives", func(ctx context.Context, b both) (any, error) {
		return two(b.FailoverVolume(ctx, "pg", api.FailoverRequest{To: "beta", AcceptLoss: true, ConfirmFenced: "alpha"}))
	}},
	{"roll back to what is not there", func(ctx context.Context, b both) (any, error) {
		return two(b.RollBack(ctx, "pgdata", api.RollbackRequest{Snapshot: "none", Newer: true}))
	}},
	{"plan a rollback", func(ctx context.Context, b both) (any, error) {
		return two(b.RollBack(ctx, "pgdata", api.RollbackRequest{Snapshot: "before-upgrade", DryRun: true}))
	}},
	{"rollback of what never was", func(ctx context.Context, b both) (any, error) { return two(b.Rollback(ctx, "pg", "x")) }},
	{"plan a migration", func(ctx context.Context, b both) (any, error) {
		return two(b.MigrateVolume(ctx, "pgdata", api.MigrateRequest{To: "beta", DryRun: true}))
	}},
	{"migrate to where it is", func(ctx context.Context, b both) (any, error) {
		return two(b.MigrateVolume(ctx, "pgdata", api.MigrateRequest{To: "alpha"}))
	}},
	{"migration of what never was", func(ctx context.Context, b both) (any, error) { return two(b.Migration(ctx, "pg", "x")) }},
	{"call off what never was", func(ctx context.Context, b both) (any, error) { return two(b.AbortMigration(ctx, "pg", "x")) }},
	{"create token", func(ctx context.Context, b both) (any, error) {
		return two(b.CreateToken(ctx, api.TokenRequest{TTL: time.Hour, MaxUses: 3, Note: "rack 2"}))
	}},
	{"tokens", func(ctx context.Context, b both) (any, error) { return two(b.Tokens(ctx)) }},
	{"revoke", func(ctx context.Context, b both) (any, error) { return one(b.RevokeToken(ctx, "k3y00001")) }},
	{"revoke again", func(ctx context.Context, b both) (any, error) { return one(b.RevokeToken(ctx, "k3y00001")) }},
	{"events", func(ctx context.Context, b both) (any, error) {
		return two(b.Events(ctx, api.EventsQuery{After: 1, Wait: time.Second}))
	}},
}

const restore = "00000000000000aa"

var localCalls = []struct {
	name string
	do   func(context.Context, both) (any, error)
}{
	{"init", func(ctx context.Context, b both) (any, error) {
		return two(b.Init(ctx, api.InitRequest{NodeSetup: api.NodeSetup{Name: "n", Zone: "z", Advertise: "192.0.2.1", PoolFileSize: 20 << 30, PoolFilePath: "/pool", IfNew: true}}))
	}},
	{"join", func(ctx context.Context, b both) (any, error) {
		return two(b.Join(ctx, api.JoinRequest{NodeSetup: api.NodeSetup{Pool: "tank"}, Token: "flk1-x", Peers: []string{"192.0.2.1"}, Witness: true}))
	}},
	{"begin a restore", func(ctx context.Context, b both) (any, error) {
		return two(b.BeginRestore(ctx, api.BeginRestoreRequest{ID: restore, Name: "back", GUIDs: []uint64{7, 1<<64 - 1}, Bytes: 1 << 40}))
	}},
	{"receive", func(ctx context.Context, b both) (any, error) {
		return one(b.ReceiveRestore(ctx, restore, api.ReceiveRequest{GUID: 7}, strings.NewReader("a stream")))
	}},
	{"receive what does not go on", func(ctx context.Context, b both) (any, error) {
		return one(b.ReceiveRestore(ctx, restore, api.ReceiveRequest{GUID: 9, Base: 8}, strings.NewReader("a stream")))
	}},
	{"receive an increment", func(ctx context.Context, b both) (any, error) {
		return one(b.ReceiveRestore(ctx, restore, api.ReceiveRequest{GUID: 1<<64 - 1, Base: 7}, strings.NewReader("another")))
	}},
	{"finish what is not whole", func(ctx context.Context, b both) (any, error) {
		return two(b.FinishRestore(ctx, restore, api.FinishRestoreRequest{Name: "back", GUID: 8}))
	}},
	{"finish a restore", func(ctx context.Context, b both) (any, error) {
		return two(b.FinishRestore(ctx, restore, api.FinishRestoreRequest{Name: "back", GUID: 1<<64 - 1, Options: map[string]string{"replicas": "0"}}))
	}},
	{"drop a restore", func(ctx context.Context, b both) (any, error) { return one(b.DropRestore(ctx, restore)) }},
}

var peerCalls = []struct {
	name string
	do   func(context.Context, both) (any, error)
}{
	{"report", func(ctx context.Context, b both) (any, error) {
		r := volume.Report{
			Node: apitest.Beta.ID, Applied: 12, At: apitest.Now, Pool: volume.PoolInfo{Name: "tank", GUID: 1<<64 - 1},
			Volumes: []volume.Status{{Volume: "0b5e55ed00000001", Epoch: volume.NewEpoch(1, 2), Role: volume.RoleReplica}},
		}
		return two(b.Report(ctx, r, map[volume.NodeID]uint64{apitest.Alpha.ID: 1 << 63}))
	}},
	{"beat", func(ctx context.Context, b both) (any, error) {
		return two(b.Beat(ctx, api.BeatRequest{
			Node: apitest.Beta.ID, Round: 2, Beat: lease.Beat{No: 3, Nonce: 1<<64 - 1, Boot: "b", Stopped: 3}, Safety: volume.SafetySysrq,
		}))
	}},
	{"propose", func(ctx context.Context, b both) (any, error) { return two(b.Propose(ctx, []byte("\x00\xff{}"))) }},
	{"import", func(ctx context.Context, b both) (any, error) {
		return two(b.Import(ctx, api.ImportRequest{Dataset: "tank/mail", Name: "mail", Node: "beta", Options: map[string]string{"replicas": "0"}, Request: "r10"}))
	}},
	{"import dry", func(ctx context.Context, b both) (any, error) {
		return two(b.Import(ctx, api.ImportRequest{Dataset: "tank/mail", Name: "mail", DryRun: true, Request: "r11"}))
	}},
	{"import nothing", func(ctx context.Context, b both) (any, error) {
		return two(b.Import(ctx, api.ImportRequest{Dataset: "tank/nothing", Name: "mail", Request: "r12"}))
	}},
	{"importable", func(ctx context.Context, b both) (any, error) { return two(b.Importable(ctx, "tank/mail")) }},
	{"barrier", func(ctx context.Context, b both) (any, error) { return two(b.Barrier(ctx)) }},
	{"sum", func(ctx context.Context, b both) (any, error) {
		return two(b.Sum(ctx, api.SumRequest{Volume: "0b5e55ed00000001", GUID: 1<<64 - 1}))
	}},
	{"snapshot of a copy", func(ctx context.Context, b both) (any, error) {
		return two(b.CopySnapshot(ctx, "0b5e55ed00000001", 1<<64-2))
	}},
	{"browse a copy", func(ctx context.Context, b both) (any, error) {
		return browsed(b.BrowseCopy(ctx, api.BrowseCopyRequest{Volume: "0b5e55ed00000001", GUID: 1<<64 - 1, Snapshot: "x", Path: "conf", As: api.AsTar}))
	}},
	{"browse a copy's nothing", func(ctx context.Context, b both) (any, error) {
		return browsed(b.BrowseCopy(ctx, api.BrowseCopyRequest{Volume: "0b5e55ed00000001", Path: "nothing", As: api.AsFile}))
	}},
	{"point", func(ctx context.Context, b both) (any, error) {
		return two(b.Point(ctx, api.PointRequest{Volume: "0b5e55ed00000001", Name: "before", For: apitest.Beta.ID}))
	}},
	{"point now", func(ctx context.Context, b both) (any, error) {
		return two(b.Point(ctx, api.PointRequest{Volume: "0b5e55ed00000001"}))
	}},
	{"holds", func(ctx context.Context, b both) (any, error) {
		return two(b.Holds(ctx, "0b5e55ed00000001", []uint64{1<<64 - 1, 2}))
	}},
	{"promise", func(ctx context.Context, b both) (any, error) {
		return two(b.Promise(ctx, api.PromiseRequest{Index: 7, Volumes: []api.PromiseFor{{ID: "0b5e55ed00000001", Epoch: volume.NewEpoch(1, 2)}}}))
	}},
	{"promise nothing", func(ctx context.Context, b both) (any, error) {
		rep, err := b.Promise(ctx, api.PromiseRequest{})
		return len(rep.Answers), err
	}},
	{"node routes", func(ctx context.Context, b both) (any, error) { return two(b.NodeRoutes(ctx)) }},
	{"acquire", func(ctx context.Context, b both) (any, error) {
		return one(b.Acquire(ctx, "0b5e55ed00000001", apitest.Beta.ID))
	}},
	{"unlabel", func(ctx context.Context, b both) (any, error) {
		return one(b.Unlabel(ctx, "0b5e55ed00000001", "migrate-7"))
	}},
}

// Through the wire, every call reaches the backend with the same arguments and
// comes back with the same answer or refusal as a direct one.
func TestClientIsABackend(t *testing.T) {
	check := func(t *testing.T, ctx context.Context, client *api.Client, far, near *apitest.Fake, do func(context.Context, both) (any, error)) {
		t.Helper()
		got, gotErr := do(context.Background(), client)
		want, wantErr := do(ctx, near)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("through the wire:\n%+v\ndirectly:\n%+v", got, want)
		}
		if !sameError(gotErr, wantErr) {
			t.Errorf("error through the wire: %v (code %q); directly: %v (code %q)", gotErr, volume.CodeOf(gotErr), wantErr, volume.CodeOf(wantErr))
		}
		gotCalls, wantCalls := far.Calls(), near.Calls()
		g, w := gotCalls[len(gotCalls)-1], wantCalls[len(wantCalls)-1]
		g.Request = ""
		if !reflect.DeepEqual(g, w) {
			t.Errorf("call through the wire:\n%+v\ndirectly:\n%+v", g, w)
		}
	}
	t.Run("local", func(t *testing.T) {
		far, near := apitest.Cluster(), apitest.Cluster()
		client := startLocal(t, far)
		for _, c := range append(calls, localCalls...) {
			t.Run(c.name, func(t *testing.T) { check(t, context.Background(), client, far, near, c.do) })
		}
	})
	t.Run("peer", func(t *testing.T) {
		far, near := apitest.Cluster(), apitest.Cluster()
		client := startPeer(t, far, isBeta)
		for _, c := range append(calls, peerCalls...) {
			t.Run(c.name, func(t *testing.T) {
				check(t, api.AsPeer(context.Background(), apitest.Beta.ID), client, far, near, c.do)
			})
		}
	})
	t.Run("no cluster", func(t *testing.T) {
		far, near := apitest.New(), apitest.New()
		client := startLocal(t, far)
		for _, c := range append(calls[:3:3], localCalls...) {
			t.Run(c.name, func(t *testing.T) { check(t, context.Background(), client, far, near, c.do) })
		}
	})
}

func sameError(a, b error) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Error() == b.Error() && volume.CodeOf(a) == volume.CodeOf(b)
}

func TestErrorsCrossTheWire(t *testing.T) {
	f := apitest.Cluster()
	client := startLocal(t, f)
	codes := []volume.Code{
		volume.CodeInvalid, volume.CodeNotFound, volume.CodeConflict, volume.CodeRefused, volume.CodeTimeout,
		volume.CodeNoQuorum, volume.CodeUnavailable, volume.CodeDenied, volume.CodeNotInit,
	}
	for _, code := range codes {
		for _, err := range []error{
			volume.Errorf(code, "it does not do"),
			volume.Errorf(code, "it does not do").WithHint("try: %s", "that"),
			fmt.Errorf("asking: %w", volume.Errorf(code, "it does not do").WithHint("try that")),
		} {
			f.Fail("Nodes", err)
			_, got := client.Nodes(t.Context())
			if !sameError(got, err) {
				t.Errorf("got %v (code %q), want %v (code %q)", got, volume.CodeOf(got), err, code)
			}
		}
	}
	f.Fail("Nodes", errors.New("disk on fire"))
	if _, err := client.Nodes(t.Context()); err == nil || err.Error() != "disk on fire" || volume.CodeOf(err) != "" {
		t.Errorf("internal error: got %v (code %q)", err, volume.CodeOf(err))
	}
	f.Fail("Nodes", fmt.Errorf("waiting: %w", context.DeadlineExceeded))
	if _, err := client.Nodes(t.Context()); volume.CodeOf(err) != volume.CodeTimeout {
		t.Errorf("deadline inside the backend: got %v, want code timeout", err)
	}
}

// panics is a backend with a bug.
type panics struct{ api.Backend }

func (panics) Nodes(context.Context) ([]api.Node, error) { panic("oh no") }

func TestPanicIsAnInternalError(t *testing.T) {
	h := api.NewHandler(panics{}, nil, testLog(t))
	client := start(t, func(ctx context.Context, l net.Listener) error { return api.ServeLocal(ctx, l, h, testLog(t)) })
	if _, err := client.Nodes(t.Context()); err == nil || !strings.Contains(err.Error(), "bug") {
		t.Errorf("got %v, want a sentence about a bug", err)
	}
}

// raw sends a request past the client's own care.
func raw(h http.Handler, ctx context.Context, method, target, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body)).WithContext(ctx)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestStrictRequests(t *testing.T) {
	local := api.AsLocal(context.Background())
	peer := api.AsPeer(context.Background(), apitest.Beta.ID)
	tests := []struct {
		name         string
		ctx          context.Context
		method, path string
		body         string
		status       int
		says         string
	}{
		{"unknown field", local, "POST", "/v1/volumes", `{"name":"x","sise":"1G"}`, 400, `unknown field \"sise\"`},
		{"unknown field inside init", local, "POST", "/v1/init", `{"witness":true}`, 400, "witness"},
		{"wrong type", local, "POST", "/v1/volumes", `{"name":7}`, 400, "cannot unmarshal number"},
		{"empty body", local, "POST", "/v1/volumes", ``, 400, "not a JSON object"},
		{"null", local, "POST", "/v1/volumes", `null`, 400, "not a JSON object"},
		{"an array", local, "POST", "/v1/volumes", `[{"name":"x"}]`, 400, "not a JSON object"},
		{"two objects", local, "POST", "/v1/volumes", `{"name":"x"}{"name":"y"}`, 400, "goes on"},
		{"cut off", local, "POST", "/v1/volumes", `{"name":"x"`, 400, "unexpected EOF"},
		{"a huge body", local, "POST", "/v1/volumes", `{"name":"` + strings.Repeat("x", 2<<20) + `"}`, 400, "larger than"},
		{"a body for GET", local, "GET", "/v1/nodes", `{}`, 400, "takes no request body"},
		{"a body for DELETE", local, "DELETE", "/v1/volumes/pgdata", `{}`, 400, "takes no request body"},
		{"unknown parameter", local, "GET", "/v1/volumes?Trash=true", ``, 400, "unknown query parameter"},
		{"unknown parameter where none is", local, "GET", "/v1/nodes?x=1", ``, 400, "unknown query parameter"},
		{"parameter twice", local, "GET", "/v1/volumes?trash=true&trash=false", ``, 400, "2 times"},
		{"bad boolean", local, "GET", "/v1/volumes?trash=maybe", ``, 400, "want true or false"},
		{"bad number", local, "GET", "/v1/events?after=-1", ``, 400, "want a number"},
		{"bad duration", local, "GET", "/v1/events?wait=30", ``, 400, "want a duration"},
		{"long wait", local, "GET", "/v1/events?wait=1h", ``, 400, "at most 5m"},
		{"negative wait", local, "GET", "/v1/events?wait=-1s", ``, 400, "want a duration"},
		{"wrong method", local, "PUT", "/v1/volumes", `{}`, 405, "use GET or POST"},
		{"no such path", local, "GET", "/v2/volumes", ``, 404, "openapi.yaml"},

		{"stranger", context.Background(), "GET", "/v1/version", ``, 403, "not authenticated"},
		{"peer inits", peer, "POST", "/v1/init", `{}`, 403, "own administrator"},
		{"peer joins", peer, "POST", "/v1/join", `{}`, 403, "own administrator"},
		{"local reports", local, "POST", "/v1/peer/report", `{}`, 403, "for other nodes"},
		{"local proposes", local, "POST", "/v1/peer/propose", `{}`, 403, "for other nodes"},
		{"report for another node", peer, "POST", "/v1/peer/report", `{"report":{"node":"a1fa0000000000000000000000000001"}}`, 403, "reports as"},
		{"acquire with a bad id", peer, "POST", "/v1/peer/acquire", `{"volume":"../x","node":"be7a0000000000000000000000000002"}`, 400, "volume id"},
		{"unlabel with a bad id", peer, "POST", "/v1/peer/unlabel", `{"volume":"../x","attempt":"a"}`, 400, "volume id"},
		{"acquire for a bad node", peer, "POST", "/v1/peer/acquire", `{"volume":"0b5e55ed00000001","node":"beta"}`, 400, "node id"},
		{"sum of a bad id", peer, "POST", "/v1/peer/sum", `{"volume":"../x","guid":"1"}`, 400, "volume id"},
		{"holds of a bad id", peer, "POST", "/v1/peer/holds", `{"volume":"../x","guids":[1]}`, 400, "volume id"},
		{"peer restores", peer, "POST", "/v1/restores", `{}`, 403, "own administrator"},
		{"restore with a bad id", local, "POST", "/v1/restores", `{"id":"../x","name":"x","guids":[1],"bytes":1}`, 400, "id of a restore"},
		{"receive with a bad id", local, "POST", "/v1/restores/x/receive?guid=1", ``, 400, "id of a restore"},
		{"receive of nothing", local, "POST", "/v1/restores/00000000000000aa/receive", ``, 400, "guid is missing"},
		{"bad bases", local, "GET", "/v1/volumes/pgdata/browse?as=stream&guid=1&bases=1,x", ``, 400, "is no guid"},
		{"too many bases", local, "GET", "/v1/volumes/pgdata/browse?as=stream&guid=1&bases=1" + strings.Repeat(",1", 64), ``, 400, "more than 64"},
		{"bases of a list", local, "GET", "/v1/volumes/pgdata/browse?as=list&bases=1", ``, 400, "for as=stream"},
		{"stream of nothing", local, "GET", "/v1/volumes/pgdata/browse?as=stream", ``, 400, "of one snapshot"},
		{"stream of a file", local, "GET", "/v1/volumes/pgdata/browse?as=stream&guid=1&path=conf", ``, 400, "has no path"},
		{"report of a newer version", peer, "POST", "/v1/peer/report", `{"report":{"node":"be7a0000000000000000000000000002","mood":"fine"}}`, 200, "leader"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := apitest.Cluster()
			w := raw(api.NewHandler(f, f, testLog(t)), tt.ctx, tt.method, tt.path, tt.body)
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.says) {
				t.Errorf("got %d %s, want %d and %q", w.Code, w.Body, tt.status, tt.says)
			}
			if tt.status != 200 && len(f.Calls()) > 0 {
				t.Errorf("the backend was asked: %+v", f.Calls())
			}
			if ct := w.Header().Get("Content-Type"); ct != "application/json" {
				t.Errorf("content type %q", ct)
			}
		})
	}
}

func TestClientRefusesRefsThatChangeThePath(t *testing.T) {
	f := apitest.Cluster()
	client := startLocal(t, f)
	for ref, code := range map[string]volume.Code{"": volume.CodeInvalid, ".": volume.CodeNotFound, "..": volume.CodeNotFound} {
		if err := client.RemoveVolume(t.Context(), ref, api.RemoveVolumeRequest{}); volume.CodeOf(err) != code {
			t.Errorf("removing %q: got %v, want code %s", ref, err, code)
		}
		if err := client.RevokeToken(t.Context(), ref); volume.CodeOf(err) != code {
			t.Errorf("revoking %q: got %v, want code %s", ref, err, code)
		}
		if _, err := client.Node(t.Context(), ref); volume.CodeOf(err) != code {
			t.Errorf("node %q: got %v, want code %s", ref, err, code)
		}
	}
	if n := len(f.Calls()); n > 0 {
		t.Errorf("the backend was asked %d times", n)
	}
}

// The ID of a user's wish is kept from node to node and stands in the log.
func TestRequestID(t *testing.T) {
	f := apitest.Cluster()
	var log bytes.Buffer
	h := api.NewHandler(f, f, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	for given, kept := range map[string]bool{"wish-1": true, "": false, "a\nb": false, strings.Repeat("x", 65): false} {
		r := httptest.NewRequest("DELETE", "/v1/volumes/nothing", nil).WithContext(api.AsLocal(t.Context()))
		if given != "" {
			r.Header["X-Request-Id"] = []string{given}
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		calls := f.Calls()
		got := calls[len(calls)-1].Request
		if got == "" || (got == given) != kept || got != w.Header().Get("X-Request-Id") {
			t.Errorf("given %q: backend saw %q, reply says %q; want it kept: %v", given, got, w.Header().Get("X-Request-Id"), kept)
		}
	}
	for _, want := range []string{"request=wish-1", "level=INFO", "code=not-found", "path=/v1/volumes/nothing"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log.String())
		}
	}

	client := startPeer(t, f, isBeta)
	if _, err := client.Nodes(api.WithRequestID(t.Context(), "wish-2")); err != nil {
		t.Fatal(err)
	}
	calls := f.Calls()
	if got := calls[len(calls)-1].Request; got != "wish-2" {
		t.Errorf("forwarded request ID: got %q, want wish-2", got)
	}
}

// A node whose membership ends is refused on the connection that it has.
func TestPeersAreIdentifiedForEveryRequest(t *testing.T) {
	f := apitest.Cluster()
	var mu sync.Mutex
	var removed bool
	client := startPeer(t, f, func(net.Conn) (volume.NodeID, error) {
		mu.Lock()
		defer mu.Unlock()
		if removed {
			return "", errors.New("node beta has been removed")
		}
		return apitest.Beta.ID, nil
	})
	if _, err := client.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	removed = true
	mu.Unlock()
	if _, err := client.Barrier(t.Context()); volume.CodeOf(err) != volume.CodeDenied || !strings.Contains(err.Error(), "has been removed") {
		t.Errorf("after removal: got %v, want code denied", err)
	}
}

func TestEventsWait(t *testing.T) {
	f := apitest.Cluster()
	client := startLocal(t, f)
	type answer struct {
		events []api.Event
		err    error
	}
	got := make(chan answer, 1)
	go func() {
		es, err := client.Events(t.Context(), api.EventsQuery{After: 3, Wait: time.Minute})
		got <- answer{es, err}
	}()
	until(t, "the call waits", func() bool { return f.Waiting() == 1 })
	f.Emit("test", "x", "something has happened")
	if a := <-got; a.err != nil || len(a.events) != 1 || a.events[0].Seq != 4 {
		t.Errorf("got %+v, want the fourth event", a)
	}
	if es, err := client.Events(t.Context(), api.EventsQuery{After: 4, Wait: time.Millisecond}); err != nil || len(es) != 0 {
		t.Errorf("waiting in vain: got %v, %v", es, err)
	}
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 1000 {
		if done() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

func TestStoppingEndsLongPolls(t *testing.T) {
	f := apitest.Cluster()
	l := apitest.NewListener()
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- api.ServeLocal(ctx, l, api.NewHandler(f, nil, testLog(t)), testLog(t)) }()
	client := api.NewClient(l.Dial)
	defer client.Close()

	polled := make(chan error, 1)
	go func() {
		_, err := client.Events(context.Background(), api.EventsQuery{After: 3, Wait: time.Minute})
		polled <- err
	}()
	until(t, "the call waits", func() bool { return f.Waiting() == 1 })
	stop()
	if err := <-polled; volume.CodeOf(err) != volume.CodeUnavailable {
		t.Errorf("long poll at the end: got %v, want code unavailable", err)
	}
	if err := <-served; err != nil {
		t.Errorf("ServeLocal: got %v, want nil", err)
	}
	if _, err := client.Version(context.Background()); volume.CodeOf(err) != volume.CodeUnavailable {
		t.Errorf("calling what has stopped: got %v, want code unavailable", err)
	}
}

func TestClientWithoutServer(t *testing.T) {
	dir := t.TempDir()
	missing := api.NewUnixClient(filepath.Join(dir, "missing.sock"))
	_, err := missing.Status(t.Context())
	if volume.CodeOf(err) != volume.CodeUnavailable || !strings.Contains(err.Error(), "systemctl start flockd") {
		t.Errorf("missing socket: got %v", err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err = api.NewClient(func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }).Status(ctx)
	if volume.CodeOf(err) != volume.CodeTimeout {
		t.Errorf("slow dial: got %v, want code timeout", err)
	}

	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err = missing.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v, want context.Canceled", err)
	}

	stranger := start(t, func(ctx context.Context, l net.Listener) error {
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "hello", http.StatusTeapot) })}
		context.AfterFunc(ctx, func() { s.Close() })
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	if _, err := stranger.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "not flockd") {
		t.Errorf("another server: got %v", err)
	}
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "flockd.sock")
	l, err := api.ListenUnix(path, "no-such-group")
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, %v; want mode 0660", fi.Mode(), err)
	}
	if _, err := api.ListenUnix(path, ""); err == nil || !strings.Contains(err.Error(), "already listens") {
		t.Errorf("second listener: got %v", err)
	}

	l.(*net.UnixListener).SetUnlinkOnClose(false) // as kill -9 leaves it
	l.Close()
	l, err = api.ListenUnix(path, "")
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	l.Close()

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := api.ListenUnix(file, ""); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: got %v", err)
	}
}

func TestWorst(t *testing.T) {
	tests := []struct {
		in   []api.Health
		want api.Health
	}{
		{nil, api.HealthOK},
		{[]api.Health{api.HealthOK}, api.HealthOK},
		{[]api.Health{api.HealthLagging, api.HealthOK, api.HealthSeeding}, api.HealthLagging},
		{[]api.Health{api.HealthFailed, api.HealthDegraded}, api.HealthFailed},
		{[]api.Health{api.HealthLagging, "new-word"}, api.HealthUnknown},
	}
	for _, tt := range tests {
		if got := api.Worst(tt.in...); got != tt.want {
			t.Errorf("Worst(%v) = %s, want %s", tt.in, got, tt.want)
		}
	}
}

// FuzzHandler: whatever comes in, the answer is JSON (or the description), of a
// status we know, and nothing panics.
func FuzzHandler(f *testing.F) {
	f.Add("POST", "/v1/volumes", []byte(`{"name":"x","options":{"size":"1G"},"node":"be7a","request":"r"}`), false)
	f.Add("POST", "/v1/init", []byte(`{"name":"x","pool_file_size":1}`), false)
	f.Add("POST", "/v1/join", []byte(`{"token":"flk1-","peers":["a"]}`), false)
	f.Add("PATCH", "/v1/nodes/beta", []byte(`{"zone":"z","set":{"a":"b"},"drop":["c"]}`), false)
	f.Add("GET", "/v1/events?after=1&wait=1ns", []byte(nil), false)
	f.Add("GET", "/v1/volumes/%2e%2e?trash=1", []byte(nil), false)
	f.Add("DELETE", "/v1/volumes/scratch?request=1", []byte(nil), false)
	f.Add("POST", "/v1/peer/report", []byte(`{"report":{"node":"be7a0000000000000000000000000002","at":"2026-01-01T00:00:00Z"},"have":{"x":1}}`), true)
	f.Add("POST", "/v1/peer/propose", []byte(`{"envelope":"AAAA"}`), true)
	f.Add("POST", "/v1/peer/acquire", []byte(`{"volume":"0b5e55ed00000001","node":"be7a0000000000000000000000000002"}`), true)
	known := map[int]bool{200: true, 204: true, 307: true, 400: true, 403: true, 404: true, 405: true, 409: true, 412: true, 422: true, 500: false}
	log := slog.New(slog.DiscardHandler)
	f.Fuzz(func(t *testing.T, method, target string, body []byte, peer bool) {
		r, err := http.NewRequest(method, target, bytes.NewReader(body))
		if err != nil || !strings.HasPrefix(target, "/") || r.URL.Query().Has("wait") {
			t.Skip()
		}
		ctx := api.AsLocal(t.Context())
		if peer {
			ctx = api.AsPeer(t.Context(), apitest.Beta.ID)
		}
		fake := apitest.Cluster()
		w := httptest.NewRecorder()
		api.NewHandler(fake, fake, log).ServeHTTP(w, r.WithContext(ctx))
		if !known[w.Code] {
			t.Fatalf("%s %s: status %d: %s", method, target, w.Code, w.Body)
		}
		if w.Header().Get("Content-Type") != "application/json" {
			return
		}
		var v any
		if err := json.NewDecoder(w.Body).Decode(&v); err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("%s %s: the reply is not JSON: %v", method, target, err)
		}
	})
}

// A stream is as long as it is, and one that is cut does not arrive as a whole one.
func TestReceiveRestore(t *testing.T) {
	f := apitest.Cluster()
	client := startLocal(t, f)
	if _, err := client.BeginRestore(t.Context(), api.BeginRestoreRequest{ID: restore, Name: "back", GUIDs: []uint64{7}}); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 5<<20)
	cut := errors.New("the disk does not answer")
	err := client.ReceiveRestore(t.Context(), restore, api.ReceiveRequest{GUID: 7}, io.MultiReader(strings.NewReader(long), iotest.ErrReader(cut)))
	if err == nil || len(f.Received()) > 0 {
		t.Errorf("%v, and received %d", err, len(f.Received()))
	}
	if err := client.ReceiveRestore(t.Context(), restore, api.ReceiveRequest{GUID: 7}, strings.NewReader(long)); err != nil {
		t.Error(err)
	}
	if got := f.Received(); len(got) != 1 || string(got[0]) != long {
		t.Errorf("received %d", len(got))
	}
}

// Who sends a stream may be slow, but not stop for ever.
func TestReceiveRestoreIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := apitest.Cluster()
		client := startLocal(t, f)
		if _, err := client.BeginRestore(t.Context(), api.BeginRestoreRequest{ID: restore, Name: "back", GUIDs: []uint64{7}}); err != nil {
			t.Fatal(err)
		}
		r, w := io.Pipe()
		var slow sync.WaitGroup
		slow.Go(func() {
			for range 3 {
				if _, err := io.WriteString(w, "a piece"); err != nil {
					t.Error(err)
				}
				time.Sleep(20 * time.Minute)
			}
			w.Close()
		})
		if err := client.ReceiveRestore(t.Context(), restore, api.ReceiveRequest{GUID: 7}, r); err != nil {
			t.Error(err)
		}
		slow.Wait()

		r, w = io.Pipe()
		slow.Go(func() {
			if _, err := io.WriteString(w, "a piece"); err != nil {
				t.Error(err)
			}
		})
		began := time.Now()
		err := client.ReceiveRestore(t.Context(), restore, api.ReceiveRequest{GUID: 8, Base: 7}, r)
		if took := time.Since(began); volume.CodeOf(err) != volume.CodeUnavailable || !strings.Contains(err.Error(), "nothing came for 30m") || took < 30*time.Minute || took > 31*time.Minute {
			t.Errorf("after %s: %v", took, err)
		}
		w.Close()
		slow.Wait()
		if got := f.Received(); len(got) != 1 {
			t.Errorf("received %q", got)
		}
	})
}
