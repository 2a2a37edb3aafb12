package daemon

import (
	"cmp"
	"context"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/plugin"
	"github.com/flocker-io/flocker/proxy"
	"github.com/flocker-io/flocker/replicate"
)

// Metrics of one node, in a registry of its own. Counters listen to the same events
// that are logged; gauges are read from the node when somebody asks. docs/METRICS.md
// lists them all.
type Metrics struct {
	reg *prometheus.Registry
	all []Metric

	calls     *prometheus.CounterVec
	callTime  *prometheus.HistogramVec
	streams   *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	streaming *prometheus.HistogramVec
	throttled *prometheus.CounterVec
	snapshots *prometheus.CounterVec
	pruned    *prometheus.CounterVec
	aside     *prometheus.CounterVec
	steps     *prometheus.HistogramVec
	commands  *prometheus.CounterVec
	cmdTime   *prometheus.HistogramVec
	beats     *prometheus.CounterVec
	fences    *prometheus.CounterVec
	failovers *prometheus.CounterVec
	moves     *prometheus.CounterVec
	rollbacks *prometheus.CounterVec
	phases    *prometheus.HistogramVec
	pauses    *prometheus.HistogramVec

	counts moveCounts
}

// Metric describes one metric for people.
type Metric struct {
	Name   string
	Type   string // counter, gauge or histogram
	Labels []string
	Help   string
}

// NewMetrics makes an empty set.
func NewMetrics(version string) *Metrics {
	m := &Metrics{reg: prometheus.NewRegistry()}
	m.calls = m.counter("flocker_plugin_requests_total", "Calls of the container engine, by method and answer.", "method", "code")
	m.callTime = m.histogram("flocker_plugin_request_duration_seconds", "How long calls of the container engine took.", "method")
	m.streams = m.counter("flocker_streams_total", "Replication streams that ended, by direction (sent, received), kind (full, clone, incremental, resume; empty when received) and result (ok, error).", "direction", "kind", "result")
	m.bytes = m.counter("flocker_stream_bytes_total", "Bytes of replication streams, by direction.", "direction")
	m.streaming = m.histogram("flocker_stream_duration_seconds", "How long replication streams took, by direction.", "direction")
	m.throttled = m.counter("flocker_stream_throttled_seconds_total", "How long streams to a node waited for the bandwidth limit, all streams together.", "replica")
	m.snapshots = m.counter("flocker_snapshots_taken_total", "Snapshots taken, by whom: engine, scheduled or user.", "kind")
	m.pruned = m.counter("flocker_snapshots_pruned_total", "Snapshots that were destroyed, by retention or by people.")
	m.aside = m.counter("flocker_set_aside_total", "Diverged copies that were set aside.")
	m.steps = m.histogram("flocker_replication_step_duration_seconds", "How long steps of replication took: tick (one look at the pool), snapshot (one command for all volumes that are due), prune (one pass over all copies), offer (until a replica has answered what it holds), acknowledge (from the last byte of a stream until the replica has answered it).", "step")
	m.commands = m.counter("flocker_zfs_commands_total", "zfs, zpool and mount commands, and unmounts by the kernel alone (kernel-unmount), by operation and result (ok, error).", "op", "result")
	m.cmdTime = m.histogram("flocker_zfs_command_duration_seconds", "How long those commands took.", "op")
	m.beats = m.counter("flocker_lease_beats_total", "Beats of this node's lease, by result: answered, refused, lost (no answer in time), asked (for a lease), idle (failover is manual).", "result")
	m.fences = m.counter("flocker_fences_total", "How often this node's writers were stopped since flockd began, by result: stopped (nothing is left), instead (the same, by flockd itself, since no fencer runs), failed (not in time, or not yet).", "result")
	for _, result := range fenceResults {
		m.fences.WithLabelValues(result)
	}
	m.failovers = m.counter("flocker_failovers_total", "How elections of a primary ended that this node led, by result: promoted (another node), kept (the one before is back), held (nobody, without an operator; it may end otherwise later).", "result")
	for _, result := range electionResults {
		m.failovers.WithLabelValues(result)
	}
	m.moves = m.counter("flocker_moves_total", "Moves of containers with their volumes away from this node, by result: moved, refused. A move counts once, however many volumes go along; one of which a part stays behind is both.", "result")
	for _, result := range moveResults {
		m.moves.WithLabelValues(result)
	}
	m.rollbacks = m.counter("flocker_rollbacks_total", "Rollbacks of volumes whose primary this node is, by result: done, refused (nothing was undone).", "result")
	for _, result := range rollbackResults {
		m.rollbacks.WithLabelValues(result)
	}
	m.phases = m.histogram("flocker_move_phase_duration_seconds", "How long the parts of those moves took: park (until all clients of the routes were at a quiet point), stop (of the containers), unmount, copy (of what was written last), the last two of the slowest volume; and on the node that they came to, start (until the server was open to clients).", "phase")
	m.pauses = m.histogram("flocker_move_pause_seconds", "How long the clients of routes waited for moves to this node, from the pause at the old one until the server here was open to them.")

	build := prometheus.NewGaugeVec(m.metric("gauge", "flocker_build_info", "Always 1; the version is the label.", "version"), []string{"version"})
	build.WithLabelValues(version).Set(1)
	m.reg.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// What has no labels is there from the start.
	m.pruned.WithLabelValues()
	m.aside.WithLabelValues()
	m.pauses.WithLabelValues()
	return m
}

// metric notes what a metric is, and gives what Prometheus wants to know of a gauge.
func (m *Metrics) metric(kind, name, help string, labels ...string) prometheus.GaugeOpts {
	m.all = append(m.all, Metric{Name: name, Type: kind, Labels: labels, Help: help})
	return prometheus.GaugeOpts{Name: name, Help: help}
}

// fenceResults are there from the start, so that their first increase is seen.
var fenceResults = []string{"stopped", "instead", "failed"}

// electionResults are there from the start, as fenceResults are.
var electionResults = []string{"promoted", "kept", "held"}

// failover counts an election by its result.
func (m *Metrics) failover(result string) { m.failovers.WithLabelValues(result).Inc() }

// moveResults are there from the start, as fenceResults are.
var moveResults = []string{"moved", "refused"}

// rollbackResults are there from the start, as fenceResults are.
var rollbackResults = []string{"done", "refused"}

// rolledBack counts a rollback of a volume whose primary this node is.
func (m *Metrics) rolledBack(committed bool) {
	result := "refused"
	if committed {
		result = "done"
	}
	m.rollbacks.WithLabelValues(result).Inc()
}

// moved counts a move with containers away from this node by its result, with the times of
// one that was made.
func (m *Metrics) moved(result string, t state.MoveTimes) {
	m.moves.WithLabelValues(result).Inc()
	if result != "moved" {
		return
	}
	if t.Held > 0 {
		m.phases.WithLabelValues("park").Observe(t.Park.Seconds())
	}
	m.phases.WithLabelValues("stop").Observe(t.Stop.Seconds())
	m.phases.WithLabelValues("unmount").Observe(t.Unmount.Seconds())
	m.phases.WithLabelValues("copy").Observe(t.Copy.Seconds())
}

// opened counts a move to this node whose clients go on.
func (m *Metrics) opened(pause time.Duration, t state.MoveTimes) {
	m.pauses.WithLabelValues().Observe(pause.Seconds())
	m.phases.WithLabelValues("start").Observe(max(pause-t.Held, 0).Seconds())
}

// fence counts one by its result.
func (m *Metrics) fence(result string) { m.fences.WithLabelValues(result).Inc() }

// beat counts one by its result.
func (m *Metrics) beat(result string) { m.beats.WithLabelValues(result).Inc() }

func (m *Metrics) counter(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts(m.metric("counter", name, help, labels...)), labels)
	m.reg.MustRegister(v)
	return v
}

func (m *Metrics) histogram(name, help string, labels ...string) *prometheus.HistogramVec {
	m.metric("histogram", name, help, labels...)
	slow := prometheus.ExponentialBuckets(0.01, 2.5, 11) // 10 ms to 95 s
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: slow}, labels)
	m.reg.MustRegister(v)
	return v
}

// All metrics of flocker's own, gauges included, in order of their names.
func (m *Metrics) All() []Metric {
	all := slices.Clone(m.all)
	for _, g := range gauges {
		all = append(all, g.Metric)
	}
	slices.SortFunc(all, func(a, b Metric) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func (m *Metrics) plugin(c plugin.Call) {
	m.calls.WithLabelValues(c.Method, c.Code()).Inc()
	m.callTime.WithLabelValues(c.Method).Observe(c.Took.Seconds())
}

// Command counts one zfs or zpool command.
func (m *Metrics) Command(op string, took time.Duration, err error) {
	m.commands.WithLabelValues(op, result(err)).Inc()
	m.cmdTime.WithLabelValues(op).Observe(took.Seconds())
}

// replication counts an event; name is that of a node.
func (m *Metrics) replication(e replicate.Event, name func(volume.NodeID) string) {
	switch e := e.(type) {
	case replicate.SnapshotsTaken:
		m.snapshots.WithLabelValues(e.Kind).Add(float64(len(e.Volumes)))
		m.steps.WithLabelValues("snapshot").Observe(e.Took.Seconds())
	case replicate.Ticked:
		m.steps.WithLabelValues("tick").Observe(e.Took.Seconds())
	case replicate.Offered:
		m.steps.WithLabelValues("offer").Observe(e.Took.Seconds())
	case replicate.Acknowledged:
		m.steps.WithLabelValues("acknowledge").Observe(e.Took.Seconds())
	case replicate.StreamEnded:
		m.stream("sent", e.Kind, e.Bytes, e.Took, e.Err)
	case replicate.Received:
		m.stream("received", "", e.Bytes, e.Took, e.Err)
	case replicate.Throttled:
		m.throttled.WithLabelValues(name(e.Replica)).Add(e.Waited.Seconds())
	case replicate.Pruned:
		m.pruned.WithLabelValues().Add(float64(e.Snapshots))
		m.steps.WithLabelValues("prune").Observe(e.Took.Seconds())
	case replicate.SetAside:
		m.aside.WithLabelValues().Inc()
	}
}

func (m *Metrics) stream(direction, kind string, bytes int64, took time.Duration, err error) {
	m.streams.WithLabelValues(direction, kind, result(err)).Inc()
	m.bytes.WithLabelValues(direction).Add(float64(bytes))
	m.streaming.WithLabelValues(direction).Observe(took.Seconds())
}

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

// Handler serves the metrics in Prometheus' form, with the gauges of d.
func (m *Metrics) Handler(d *Daemon) http.Handler {
	all := prometheus.NewRegistry()
	all.MustRegister(nodeGauges{d})
	return promhttp.HandlerFor(prometheus.Gatherers{m.reg, all}, promhttp.HandlerOpts{})
}

// gauge is what is read from the node when somebody asks.
type gauge struct {
	Metric
	desc *prometheus.Desc
	of   prometheus.ValueType
}

func newGauge(name, help string, labels ...string) gauge {
	return gauge{Metric{name, "gauge", labels, help}, prometheus.NewDesc(name, help, labels, nil), prometheus.GaugeValue}
}

// newTotal is a gauge that only grows.
func newTotal(name, help string, labels ...string) gauge {
	return gauge{Metric{name, "counter", labels, help}, prometheus.NewDesc(name, help, labels, nil), prometheus.CounterValue}
}

// Volumes and links appear on the node that is their primary, so that summing over
// nodes counts each once.
var (
	leaderGauge    = newGauge("flocker_raft_leader", "1 on the node that leads the cluster.")
	quorumGauge    = newGauge("flocker_raft_quorum", "1 while this node hears a leader.")
	appliedGauge   = newGauge("flocker_raft_applied_index", "Raft index this node has applied.")
	poolSizeGauge  = newGauge("flocker_pool_size_bytes", "Size of the pool.", "pool")
	poolFreeGauge  = newGauge("flocker_pool_free_bytes", "Free space of the pool.", "pool")
	copySnapsGauge = newGauge("flocker_copy_snapshots", "Snapshots of a copy on this node, those of replication included.", "volume", "role")
	asidesGauge    = newGauge("flocker_asides", "Set-aside copies on this node.")
	asideGauge     = newGauge("flocker_aside_bytes", "Bytes that removing the set-aside copies of this node would free.")
	healthGauge    = newGauge("flocker_volume_state", "1 for the state a volume is in, 0 for the others; on its primary, and on the leader while it has none or nothing is heard of it.", "volume", "state")
	usedGauge      = newGauge("flocker_volume_used_bytes", "Bytes on the primary's disk, snapshots included.", "volume")
	failedOver     = newGauge("flocker_volume_last_failover_timestamp_seconds", "When a volume last came to a primary without the one before; absent if never. On its primary, as the two below.", "volume")
	lossGauge      = newGauge("flocker_volume_last_failover_loss_seconds", "The most that was missing after that, in time; +Inf if nobody could bound it.", "volume")
	lossBytesGauge = newGauge("flocker_volume_last_failover_loss_bytes", "About how much that was; absent when not known.", "volume")
	linksGauge     = newGauge("flocker_links", "Links of volumes whose primary is this node, by state.", "state")
	lagGauge       = newGauge("flocker_replica_lag_seconds", "What would be lost if the primary vanished now; absent when not known.", "volume", "replica")
	lagBytesGauge  = newGauge("flocker_replica_pending_bytes", "Bytes a replica lacks, as estimated.", "volume", "replica")
	successGauge   = newGauge("flocker_replica_last_success_timestamp_seconds", "Time up to which a replica provably holds all data.", "volume", "replica")
	rateGauge      = newGauge("flocker_replica_stream_bytes_per_second", "How fast the stream to a replica is of late; 0 without one.", "volume", "replica")
	limitGauge     = newGauge("flocker_replica_limit_bytes_per_second", "Bandwidth that the settings allow all streams of this node to the replica's zone together; absent without a limit.", "volume", "replica")
	streamedTotal  = newTotal("flocker_replica_streamed_bytes_total", "Bytes sent to a replica since its link began.", "volume", "replica")

	leaseHeldGauge = newGauge("flocker_lease_held", "1 while this node may write.")
	leaseLeftGauge = newGauge("flocker_lease_left_seconds", "Until this node's lease runs out if no beat is answered; absent while failover is manual or the lease is not held.")
	safetyGauge    = newGauge("flocker_fencer_safety", "1 for how surely this node's writers are stopped: watchdog, sysrq, software, or none when no fencer runs; 0 for the others.", "level")
	failoverGauge  = newGauge("flocker_failover_automatic", "1 while volumes of a lost node are taken over by themselves.")
	lostGauge      = newGauge("flocker_failover_lost", "1 while failover is manual after it was automatic, though the settings want it automatic.")

	connectionsGauge = newGauge("flocker_route_connections", "Connections of clients to this node's listening port of a route.", "port", "mode", "host")
	parkedGauge      = newGauge("flocker_route_parked", "Connections of clients that have no connection to the server, and need none before they ask for something.", "port", "mode", "host")
	waitingGauge     = newGauge("flocker_route_waiting", "Connections of clients whose request is held now: the route is paused, or its server is not there. At most `hold-service` (1,000) of a route, and `hold-node` (10,000) of all.", "port", "mode", "host")
	heldTotal        = newTotal("flocker_route_held_total", "Requests, and new connections, that came to this node and were held, since its proxy began: by a pause, or since the server refused them or was not reached within 0.1 s. Each counts once.", "port", "mode", "host")
	pinnedGauge      = newGauge("flocker_route_pinned", "Connections of clients that cannot be moved.", "port", "mode", "host")
	pausedGauge      = newGauge("flocker_route_paused", "1 while a route is paused on this node.", "port", "mode", "host")

	gauges = []gauge{connectionsGauge, parkedGauge, waitingGauge, heldTotal, pinnedGauge, pausedGauge, leaseHeldGauge, leaseLeftGauge, safetyGauge, failoverGauge, lostGauge,
		leaderGauge, quorumGauge, appliedGauge, poolSizeGauge, poolFreeGauge, copySnapsGauge, asidesGauge, asideGauge,
		healthGauge, usedGauge, failedOver, lossGauge, lossBytesGauge, linksGauge, lagGauge, lagBytesGauge, successGauge, rateGauge, limitGauge, streamedTotal}
)

// nodeGauges reads the node's present state.
type nodeGauges struct{ d *Daemon }

// Describe implements prometheus.Collector.
func (nodeGauges) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range gauges {
		ch <- g.desc
	}
}

// Collect implements prometheus.Collector.
func (n nodeGauges) Collect(ch chan<- prometheus.Metric) {
	m := n.d.current.Load()
	if m == nil {
		return
	}
	leader, quorum := m.cluster.Leader()
	m.view().measure(m.self, quorum && leader == m.self, quorum, func(g gauge, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(g.desc, g.of, v, labels...)
	})
	if m.router == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	if st, err := m.router.proxy.Status(ctx); err == nil { // else they are absent, and status says why
		measureRoutes(st, func(g gauge, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(g.desc, g.of, v, labels...)
		})
	}
}

// scrapeTimeout bounds what is asked of others while somebody reads the metrics.
const scrapeTimeout = time.Second

// measureRoutes gives the value of every gauge of routes.
func measureRoutes(st proxy.Status, set func(g gauge, v float64, labels ...string)) {
	for _, r := range st.Routes {
		labels := []string{strconv.Itoa(int(r.Listen)), string(r.Mode), r.Name}
		set(connectionsGauge, float64(r.Sessions), labels...)
		set(parkedGauge, float64(r.Parked), labels...)
		set(waitingGauge, float64(r.Held), labels...)
		set(heldTotal, float64(r.HeldEver), labels...)
		set(pinnedGauge, float64(len(r.Pinned)), labels...)
		set(pausedGauge, flag(!r.Paused.IsZero()), labels...)
	}
}

// measure gives the value of every gauge on the node self.
func (v view) measure(self volume.NodeID, leads, quorum bool, set func(g gauge, v float64, labels ...string)) {
	set(leaderGauge, flag(leads))
	set(quorumGauge, flag(quorum))
	set(appliedGauge, float64(v.state.Index))
	if h, ok := v.heard(self); ok && h.Pool.Name != "" {
		set(poolSizeGauge, float64(h.Pool.Size), h.Pool.Name)
		set(poolFreeGauge, float64(h.Pool.Free), h.Pool.Name)
		var bytes int64
		for _, a := range h.Asides {
			bytes += a.Used
		}
		set(asidesGauge, float64(len(h.Asides)))
		set(asideGauge, float64(bytes))
	}
	f := v.state.Failover()
	set(failoverGauge, flag(f.Mode == state.FailoverAutomatic))
	// What was never automatic is a cluster that is too small, or being made.
	set(lostGauge, flag(f.Mode == state.FailoverManual && f.Reason != "" && v.state.Cluster() != nil && v.state.Cluster().Settings.Failover != state.FailoverManual))
	if h, ok := v.heard(self); ok {
		l := h.Report.Lease
		set(leaseHeldGauge, flag(l.Held))
		if l.Left > 0 {
			set(leaseLeftGauge, l.Left.Seconds())
		}
		for _, level := range []volume.Safety{volume.SafetyWatchdog, volume.SafetySysrq, volume.SafetySoftware, "none"} {
			set(safetyGauge, flag(cmp.Or(l.Safety, "none") == level), string(level))
		}
	}
	links := map[volume.LinkState]int{}
	for vol := range v.state.Volumes() {
		st, _, known := v.status(self, vol.ID)
		if known && vol.Live() && st.Exists {
			set(copySnapsGauge, float64(st.Snapshots), vol.Name, string(st.Role))
		}
		// Of one without a primary, or whose primary is silent, nobody else would tell.
		_, _, heard := v.status(vol.Placement.Primary, vol.ID)
		if !vol.Live() || vol.Placement.Primary != self && (heard || !leads) {
			continue
		}
		av := v.volume(vol)
		for _, h := range healths {
			set(healthGauge, flag(av.Health == h), av.Name, string(h))
		}
		if vol.Placement.Primary != self {
			continue
		}
		set(usedGauge, float64(av.Used), av.Name)
		if f := av.LastFailover; f != nil {
			set(failedOver, float64(f.At.UnixMilli())/1000, av.Name)
			if f.LossSeconds == nil {
				set(lossGauge, math.Inf(1), av.Name)
			} else {
				set(lossGauge, *f.LossSeconds, av.Name)
			}
			if f.LossBytes != nil {
				set(lossBytesGauge, float64(*f.LossBytes), av.Name)
			}
		}
		for _, r := range av.Replicas {
			links[r.State]++
			v.measureLink(st, av.Name, r, set)
		}
	}
	for _, s := range linkStates {
		set(linksGauge, float64(links[s]), string(s))
	}
}

func (v view) measureLink(st volume.Status, name string, r api.Replica, set func(g gauge, v float64, labels ...string)) {
	replica := r.Node.String()
	if r.LagSeconds != nil {
		set(lagGauge, *r.LagSeconds, name, replica)
	}
	set(lagBytesGauge, float64(r.LagBytes), name, replica)
	if at := completeAsOf(st, r.Node.ID); !at.IsZero() {
		set(successGauge, float64(at.UnixMilli())/1000, name, replica)
	}
	set(rateGauge, float64(r.Rate), name, replica)
	if r.Limit > 0 {
		set(limitGauge, float64(r.Limit), name, replica)
	}
	set(streamedTotal, float64(r.Streamed), name, replica)
}

func completeAsOf(st volume.Status, replica volume.NodeID) time.Time {
	for _, l := range st.Links {
		if l.Replica == replica {
			return l.CompleteAsOf
		}
	}
	return time.Time{}
}

// linkStates are the states a link may be in.
var linkStates = []volume.LinkState{
	volume.LinkInSync, volume.LinkSending, volume.LinkSeeding, volume.LinkLagging, volume.LinkConnecting, volume.LinkRefused,
}

// healths are the states a live volume may be in.
var healths = []api.Health{
	api.HealthOK, api.HealthCreating, api.HealthMoving, api.HealthDeleting, api.HealthSeeding,
	api.HealthLagging, api.HealthDegraded, api.HealthUnknown, api.HealthUnavailable, api.HealthFailed,
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
