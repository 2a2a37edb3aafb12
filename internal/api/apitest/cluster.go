package apitest

import (
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// The members of Cluster.
var (
	Alpha = api.NodeRef{ID: "a1fa0000000000000000000000000001", Name: "alpha"}
	Beta  = api.NodeRef{ID: "be7a0000000000000000000000000002", Name: "beta"}
	Gamma = api.NodeRef{ID: "9a33a000000000000000000000000003", Name: "gamma"}
)

// Cluster is a fake of three nodes, of which alpha answers and leads and gamma, in
// another zone, is suspect. It has a volume of each kind that people meet: pgdata
// is well and in use, uploads lags, scratch has no replica and has never been
// reported, and old is in the trash.
func Cluster() *Fake {
	f := New()
	f.index = 40
	f.findings = sick()
	f.status = api.ClusterStatus{
		Initialized: true, ClusterID: ClusterID, Ready: true, Node: Alpha, Leader: Alpha, Quorum: true,
		Failover:  api.Failover{Mode: "automatic", Round: 1, Profile: "default"},
		Fencing:   map[string][]string{"sysrq": {Alpha.Name}, "software": {Beta.Name}, "none": {Gamma.Name}},
		TrashKeep: 7 * 24 * time.Hour,
		Problems:  []string{"node gamma has not been heard of for 7 s"},
		Notes:     []string{"volume uploads failed over from beta to alpha at 2026-03-04T11:40:00Z: the last 2.3s may be missing, how many bytes is not known"},
		Safety:    []string{"node beta has no watchdog: its volumes fail over only on proof that it is fenced"},
	}
	f.nodes = []api.Node{
		{
			NodeRef: Alpha, Role: api.RoleLeader, Zone: "berlin", Addr: "192.0.2.1:4523", Version: "v0.1.0",
			Availability: "active", Health: api.NodeAlive, LastSeen: Now, Joined: Now.Add(-100 * time.Hour),
			Pool:      volume.PoolInfo{Name: "tank", GUID: 1 << 60, Size: 100 << 30, Free: 60 << 30, Health: "ONLINE"},
			Labels:    map[string]string{"disk": "nvme"},
			Primaries: 3,
			Lease:     &api.Lease{State: "held", No: 4, LeftSeconds: 9.2, Safety: volume.SafetySysrq},
		},
		{
			NodeRef: Beta, Role: api.RoleVoter, Zone: "berlin", Addr: "192.0.2.2:4523", Version: "v0.1.0",
			Availability: "active", Health: api.NodeAlive, LastSeen: Now.Add(-time.Second), Joined: Now.Add(-99 * time.Hour),
			Pool:     volume.PoolInfo{Name: "tank", GUID: 2 << 60, Size: 100 << 30, Free: 61 << 30, Health: "DEGRADED"},
			Replicas: 2, Problems: []string{"pool tank is degraded"},
		},
		{
			NodeRef: Gamma, Role: api.RoleVoter, Witness: true, Zone: "paris", Addr: "192.0.2.3:4523", Version: "v0.1.0",
			Availability: "active", Health: api.NodeSuspect, Reason: "not heard of for 7 s",
			LastSeen: Now.Add(-7 * time.Second), Joined: Now.Add(-98 * time.Hour),
		},
	}

	spec := func(opts map[string]string) volume.Spec {
		s, err := volume.ParseOptions(opts)
		if err != nil {
			panic(err)
		}
		return s
	}
	seconds := func(s float64) *float64 { return &s }
	epoch := volume.NewEpoch(0, 3)
	at := func(seq, guid uint64, ago time.Duration) volume.Position {
		return volume.Position{Epoch: epoch, Seq: seq, GUID: guid, Taken: Now.Add(-ago)}
	}
	f.volumes = []api.Volume{
		{
			ID: "0b5e55ed00000001", Name: "pgdata", Phase: "active", Health: api.HealthOK,
			Spec: spec(map[string]string{"size": "10G", "replicas": "1", "remote": "1", "profile": "database"}),
			AsOf: Now.Add(-time.Second), Used: 3 << 30, Data: 2 << 30, Mounted: true,
			Holders: []api.Holder{{Holder: volume.Holder{Container: "3f4e5d6c7b8a", Name: "db"}, Node: Alpha}},
			Primary: Alpha, Epoch: epoch, Index: 12, Created: Now.Add(-50 * time.Hour),
			Replicas: []api.Replica{
				{Node: Beta, Kind: api.ReplicaLocal, State: volume.LinkInSync, Acked: at(7200, 0xfeed, time.Second), LagSeconds: seconds(0.8), Streamed: 9 << 30},
				{Node: Gamma, Kind: api.ReplicaRemote, State: volume.LinkSending, Acked: at(7198, 0xbeef, 2*time.Second), LagSeconds: seconds(2.2), LagBytes: 3 << 20, SentBytes: 1 << 20, TotalBytes: 4 << 20,
					Stream: "incremental", Base: "flk-0000000000000003-000000007198", Began: Now.Add(-time.Second), Rate: 3 << 19, Limit: 2 << 20, Streamed: 17 << 29},
			},
		},
		{
			ID: "0b5e55ed00000002", Name: "uploads", Phase: "active", Health: api.HealthLagging,
			Reason: "the replica on beta is 5 minutes behind: connection refused",
			Spec:   spec(map[string]string{"replicas": "1"}),
			AsOf:   Now.Add(-time.Second), Used: 700 << 20, Data: 650 << 20,
			Primary: Alpha, Epoch: epoch, Index: 14, Created: Now.Add(-30 * time.Minute),
			LastFailover: &api.LastFailover{From: Beta, To: Alpha, At: Now.Add(-20 * time.Minute), Start: at(98, 0xab, 21*time.Minute),
				CompleteAsOf: Now.Add(-20*time.Minute - 40*time.Second), LossSeconds: seconds(2.25)},
			Replicas: []api.Replica{
				{Node: Beta, Kind: api.ReplicaLocal, State: volume.LinkLagging, Acked: at(100, 0xabcd, 5*time.Minute), LagSeconds: seconds(301), LagBytes: 200 << 20, Streamed: 650 << 20, FailingSeconds: 290, Error: "connection refused"},
			},
		},
		{
			ID: "5c4a7c0000000003", Name: "scratch", Phase: "active", Health: api.HealthUnknown,
			Reason: "alpha has not reported it yet", Spec: spec(map[string]string{"profile": "scratch"}),
			Primary: Alpha, Epoch: epoch, Index: 15, Created: Now.Add(-10 * time.Second), Replicas: []api.Replica{},
		},
		{
			ID: "01d0000000000004", Name: "old", Phase: "trash", Health: api.HealthTrash, Spec: spec(nil),
			AsOf: Now.Add(-time.Second), Used: 50 << 20, Data: 40 << 20, Primary: Alpha, Replicas: []api.Replica{},
			Epoch: epoch, Index: 16, Created: Now.Add(-400 * time.Hour), Deleted: Now.Add(-2 * time.Hour), PurgeAfter: Now.Add(166 * time.Hour),
		},
	}
	f.snapshots = map[volume.ID][]api.Snapshot{"0b5e55ed00000001": {
		{Name: "auto-1h-20260304T100000Z", GUID: 101, Taken: Now.Add(-2 * time.Hour), Kind: "scheduled", Rule: time.Hour, Used: 12 << 20, Referenced: 2 << 30, Written: 80 << 20},
		{Name: "before-upgrade", GUID: 102, Taken: Now.Add(-90 * time.Minute), Kind: "user", Used: 4 << 20, Referenced: 2 << 30, Written: 9 << 20, Held: true},
		{Name: "auto-1h-20260304T110000Z", GUID: 103, Taken: Now.Add(-time.Hour), Kind: "scheduled", Rule: time.Hour, Used: 8 << 20, Referenced: 2 << 30, Written: 70 << 20},
		{Name: "flk-0000000000000003-000000007200", GUID: 0xfeed, Taken: Now.Add(-time.Second), Kind: "engine", Referenced: 2 << 30, Written: 1 << 20},
	}}
	f.containers = containers()
	f.routes = routes()
	f.asides = []api.Aside{
		{Aside: volume.Aside{Name: "0b5e55ed00000001-0000000000000002-1", Volume: "0b5e55ed00000001", Epoch: 2, At: Now.Add(-72 * time.Hour), Reason: "it has snapshots that the primary lacks", Used: 30 << 20, Data: 2 << 30},
			Node: Beta, VolumeName: "pgdata", Expires: Now.Add(27 * 24 * time.Hour)},
		{Aside: volume.Aside{Name: "0b5e55ed00000002-0000000000000003-1", Volume: "0b5e55ed00000002", Epoch: 3, At: Now.Add(-time.Hour), Reason: "somebody wrote to it", Used: 1 << 20, Data: 650 << 20},
			Node: Beta, VolumeName: "uploads", Expires: Now.Add(719 * time.Hour)},
		{Aside: volume.Aside{Name: "dead0000beef0000-0000000000000001-2", Volume: "dead0000beef0000", Epoch: 1, Used: 5 << 20, Data: 4 << 20}, Node: Alpha},
	}
	f.tokens = []api.Token{
		{ID: "k3y00001", Created: Now.Add(-time.Hour), Expires: Now.Add(23 * time.Hour), MaxUses: 5, Uses: 2, Note: "first nodes"},
		{ID: "k3y00002", Created: Now.Add(-48 * time.Hour), Expires: Now.Add(-24 * time.Hour), Uses: 1},
	}
	f.emit("cluster.created", "", "the cluster has been created")
	f.emit("node.joined", "beta", "node beta has joined")
	f.emit("volume.created", "pgdata", "volume pgdata has been created on alpha")
	return f
}
