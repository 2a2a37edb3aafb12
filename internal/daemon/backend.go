package daemon

import (
	"context"
	"io"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/doctor"
)

// backend is api.Backend of a node that may or may not be a member: what needs a
// cluster is passed on to the membership.
type backend struct{ d *Daemon }

// ask calls f with the membership.
func ask[T any](d *Daemon, f func(*member) (T, error)) (T, error) {
	m, err := d.member()
	if err != nil {
		var none T
		return none, err
	}
	return f(m)
}

func (b backend) Version(ctx context.Context) (api.VersionInfo, error) { return b.d.Version(ctx) }

func (b backend) Init(ctx context.Context, req api.InitRequest) (api.InitReply, error) {
	return b.d.Init(ctx, req)
}

func (b backend) Join(ctx context.Context, req api.JoinRequest) (api.JoinReply, error) {
	return b.d.Join(ctx, req)
}

func (b backend) Status(ctx context.Context) (api.ClusterStatus, error) {
	m, err := b.d.member()
	if err != nil {
		if r := b.d.retired.Load(); r != nil {
			return r.status(b.d.parts.Version), nil
		}
		return api.ClusterStatus{Version: b.d.parts.Version}, nil // Initialized is false, which says it
	}
	return m.Status(ctx)
}

func (b backend) Nodes(ctx context.Context) ([]api.Node, error) {
	return ask(b.d, func(m *member) ([]api.Node, error) { return m.Nodes(ctx) })
}

func (b backend) Node(ctx context.Context, ref string) (api.Node, error) {
	return ask(b.d, func(m *member) (api.Node, error) { return m.Node(ctx, ref) })
}

func (b backend) LabelNode(ctx context.Context, ref string, req api.LabelRequest) (api.Node, error) {
	return ask(b.d, func(m *member) (api.Node, error) { return m.LabelNode(ctx, ref, req) })
}

func (b backend) DrainNode(ctx context.Context, ref string, req api.DrainRequest) (api.Drain, error) {
	return ask(b.d, func(m *member) (api.Drain, error) { return m.DrainNode(ctx, ref, req) })
}

func (b backend) Drain(ctx context.Context, ref string) (api.Drain, error) {
	return ask(b.d, func(m *member) (api.Drain, error) { return m.Drain(ctx, ref) })
}

func (b backend) UndrainNode(ctx context.Context, ref string) (api.Node, error) {
	return ask(b.d, func(m *member) (api.Node, error) { return m.UndrainNode(ctx, ref) })
}

func (b backend) RemoveNode(ctx context.Context, ref string, req api.RemoveNodeRequest) (api.RemoveNodeReply, error) {
	return ask(b.d, func(m *member) (api.RemoveNodeReply, error) { return m.RemoveNode(ctx, ref, req) })
}

func (b backend) Volumes(ctx context.Context, q api.VolumesQuery) ([]api.Volume, error) {
	return ask(b.d, func(m *member) ([]api.Volume, error) { return m.Volumes(ctx, q) })
}

func (b backend) Volume(ctx context.Context, ref string) (api.Volume, error) {
	return ask(b.d, func(m *member) (api.Volume, error) { return m.Volume(ctx, ref) })
}

func (b backend) CreateVolume(ctx context.Context, req api.CreateVolumeRequest) (api.Volume, error) {
	return ask(b.d, func(m *member) (api.Volume, error) { return m.CreateVolume(ctx, req) })
}

func (b backend) RemoveVolume(ctx context.Context, ref string, req api.RemoveVolumeRequest) error {
	_, err := ask(b.d, func(m *member) (struct{}, error) { return struct{}{}, m.RemoveVolume(ctx, ref, req) })
	return err
}

func (b backend) UndeleteVolume(ctx context.Context, ref string, req api.UndeleteRequest) (api.Volume, error) {
	return ask(b.d, func(m *member) (api.Volume, error) { return m.UndeleteVolume(ctx, ref, req) })
}

func (b backend) PurgeVolume(ctx context.Context, ref string) error {
	_, err := ask(b.d, func(m *member) (struct{}, error) { return struct{}{}, m.PurgeVolume(ctx, ref) })
	return err
}

func (b backend) UpdateVolume(ctx context.Context, ref string, req api.UpdateVolumeRequest) (api.UpdateVolumeReply, error) {
	return ask(b.d, func(m *member) (api.UpdateVolumeReply, error) { return m.UpdateVolume(ctx, ref, req) })
}

func (b backend) FailoverVolume(ctx context.Context, ref string, req api.FailoverRequest) (api.Volume, error) {
	return ask(b.d, func(m *member) (api.Volume, error) { return m.FailoverVolume(ctx, ref, req) })
}

func (b backend) RollBack(ctx context.Context, ref string, req api.RollbackRequest) (api.Rollback, error) {
	return ask(b.d, func(m *member) (api.Rollback, error) { return m.RollBack(ctx, ref, req) })
}

func (b backend) Rollback(ctx context.Context, ref, id string) (api.Rollback, error) {
	return ask(b.d, func(m *member) (api.Rollback, error) { return m.Rollback(ctx, ref, id) })
}

func (b backend) MigrateVolume(ctx context.Context, ref string, req api.MigrateRequest) (api.Migration, error) {
	return ask(b.d, func(m *member) (api.Migration, error) { return m.MigrateVolume(ctx, ref, req) })
}

func (b backend) Migration(ctx context.Context, ref, id string) (api.Migration, error) {
	return ask(b.d, func(m *member) (api.Migration, error) { return m.Migration(ctx, ref, id) })
}

func (b backend) AbortMigration(ctx context.Context, ref, id string) (api.Migration, error) {
	return ask(b.d, func(m *member) (api.Migration, error) { return m.AbortMigration(ctx, ref, id) })
}

func (b backend) Rebalance(ctx context.Context) (api.Rebalance, error) {
	return ask(b.d, func(m *member) (api.Rebalance, error) { return m.Rebalance(ctx) })
}

func (b backend) CarryRebalance(ctx context.Context, req api.RebalanceRequest) (api.RebalanceReply, error) {
	return ask(b.d, func(m *member) (api.RebalanceReply, error) { return m.CarryRebalance(ctx, req) })
}

func (b backend) SyncVolume(ctx context.Context, ref string, req api.SyncRequest) (api.SyncReply, error) {
	return ask(b.d, func(m *member) (api.SyncReply, error) { return m.SyncVolume(ctx, ref, req) })
}

func (b backend) VerifyVolume(ctx context.Context, ref string, req api.VerifyRequest) (api.VerifyReply, error) {
	return ask(b.d, func(m *member) (api.VerifyReply, error) { return m.VerifyVolume(ctx, ref, req) })
}

func (b backend) Snapshots(ctx context.Context, ref string) ([]api.Snapshot, error) {
	return ask(b.d, func(m *member) ([]api.Snapshot, error) { return m.Snapshots(ctx, ref) })
}

func (b backend) TakeSnapshot(ctx context.Context, req api.SnapshotRequest) (api.SnapshotReply, error) {
	return ask(b.d, func(m *member) (api.SnapshotReply, error) { return m.TakeSnapshot(ctx, req) })
}

func (b backend) RemoveSnapshot(ctx context.Context, ref, name string) error {
	_, err := ask(b.d, func(m *member) (struct{}, error) { return struct{}{}, m.RemoveSnapshot(ctx, ref, name) })
	return err
}

func (b backend) Snapshot(ctx context.Context, ref, name string) (api.SnapshotDetails, error) {
	return ask(b.d, func(m *member) (api.SnapshotDetails, error) { return m.Snapshot(ctx, ref, name) })
}

func (b backend) HoldSnapshot(ctx context.Context, ref, name string, req api.HoldRequest) error {
	_, err := ask(b.d, func(m *member) (struct{}, error) { return struct{}{}, m.HoldSnapshot(ctx, ref, name, req) })
	return err
}

func (b backend) ReleaseSnapshot(ctx context.Context, ref, name string) error {
	_, err := ask(b.d, func(m *member) (struct{}, error) { return struct{}{}, m.ReleaseSnapshot(ctx, ref, name) })
	return err
}

func (b backend) PruneSnapshots(ctx context.Context, ref string, req api.PruneRequest) ([]api.Snapshot, error) {
	return ask(b.d, func(m *member) ([]api.Snapshot, error) { return m.PruneSnapshots(ctx, ref, req) })
}

func (b backend) Browse(ctx context.Context, ref string, req api.BrowseRequest) (*api.Browsed, error) {
	return ask(b.d, func(m *member) (*api.Browsed, error) { return m.Browse(ctx, ref, req) })
}

func (b backend) Routes(ctx context.Context) (api.Routes, error) {
	return ask(b.d, func(m *member) (api.Routes, error) { return m.Routes(ctx) })
}

func (b backend) AddRoute(ctx context.Context, ref string, req api.AddRouteRequest) (api.Route, error) {
	return ask(b.d, func(m *member) (api.Route, error) { return m.AddRoute(ctx, ref, req) })
}

func (b backend) RemoveRoute(ctx context.Context, route string) error {
	_, err := ask(b.d, func(m *member) (struct{}, error) { return struct{}{}, m.RemoveRoute(ctx, route) })
	return err
}

func (b backend) PauseRoute(ctx context.Context, route string, paused bool) error {
	_, err := ask(b.d, func(m *member) (struct{}, error) { return struct{}{}, m.PauseRoute(ctx, route, paused) })
	return err
}

func (b backend) Containers(ctx context.Context) ([]api.Container, error) {
	return ask(b.d, func(m *member) ([]api.Container, error) { return m.Containers(ctx) })
}

func (b backend) ForgetContainer(ctx context.Context, name, node string) error {
	_, err := ask(b.d, func(m *member) (struct{}, error) { return struct{}{}, m.ForgetContainer(ctx, name, node) })
	return err
}

func (b backend) Asides(ctx context.Context) (api.Asides, error) {
	return ask(b.d, func(m *member) (api.Asides, error) { return m.Asides(ctx) })
}

func (b backend) RestoreAside(ctx context.Context, ref string, req api.RestoreAsideRequest) (api.Volume, error) {
	return ask(b.d, func(m *member) (api.Volume, error) { return m.RestoreAside(ctx, ref, req) })
}

func (b backend) BeginRestore(ctx context.Context, req api.BeginRestoreRequest) (api.RestoreState, error) {
	return ask(b.d, func(m *member) (api.RestoreState, error) { return m.BeginRestore(ctx, req) })
}

func (b backend) ReceiveRestore(ctx context.Context, id string, req api.ReceiveRequest, stream io.Reader) error {
	_, err := ask(b.d, func(m *member) (struct{}, error) { return struct{}{}, m.ReceiveRestore(ctx, id, req, stream) })
	return err
}

func (b backend) FinishRestore(ctx context.Context, id string, req api.FinishRestoreRequest) (api.Volume, error) {
	return ask(b.d, func(m *member) (api.Volume, error) { return m.FinishRestore(ctx, id, req) })
}

func (b backend) Import(ctx context.Context, req api.ImportRequest) (api.Import, error) {
	return ask(b.d, func(m *member) (api.Import, error) { return m.Import(ctx, req) })
}

func (b backend) DropRestore(ctx context.Context, id string) error {
	_, err := ask(b.d, func(m *member) (struct{}, error) { return struct{}{}, m.DropRestore(ctx, id) })
	return err
}

func (b backend) RemoveAside(ctx context.Context, ref, node string) error {
	_, err := ask(b.d, func(m *member) (struct{}, error) { return struct{}{}, m.RemoveAside(ctx, ref, node) })
	return err
}

func (b backend) Settings(ctx context.Context) (api.Settings, error) {
	return ask(b.d, func(m *member) (api.Settings, error) { return m.Settings(ctx) })
}

func (b backend) ChangeSettings(ctx context.Context, req api.SettingsRequest) (api.Settings, error) {
	return ask(b.d, func(m *member) (api.Settings, error) { return m.ChangeSettings(ctx, req) })
}

func (b backend) CreateToken(ctx context.Context, req api.TokenRequest) (api.Token, error) {
	return ask(b.d, func(m *member) (api.Token, error) { return m.CreateToken(ctx, req) })
}

func (b backend) Tokens(ctx context.Context) ([]api.Token, error) {
	return ask(b.d, func(m *member) ([]api.Token, error) { return m.Tokens(ctx) })
}

func (b backend) RevokeToken(ctx context.Context, id string) error {
	_, err := ask(b.d, func(m *member) (struct{}, error) { return struct{}{}, m.RevokeToken(ctx, id) })
	return err
}

func (b backend) Doctor(ctx context.Context) (api.Doctor, error) { return b.d.doctor(ctx) }

func (b backend) Facts(ctx context.Context, node string) (doctor.Facts, error) {
	return b.d.factsOf(ctx, node)
}

func (b backend) Diagnostics(ctx context.Context, q api.DiagnosticsQuery) (api.Diagnostics, error) {
	return b.d.diagnosticsOf(ctx, q)
}

func (b backend) Events(ctx context.Context, q api.EventsQuery) ([]api.Event, error) {
	return ask(b.d, func(m *member) ([]api.Event, error) { return m.Events(ctx, q) })
}
