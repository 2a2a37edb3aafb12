package daemon

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/plugin"
	"github.com/flocker-io/flocker/replicate"
)

// Metrics of one node, in a registry of its own. Counters listen to the same events
// that are logged; gauges are read from the node when somebody asks.
type Metrics struct {
	reg *prometheus.Registry

	calls     *prometheus.CounterVec
	callTime  *prometheus.HistogramVec
	streams   *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	streaming *prometheus.HistogramVec
	snapshots prometheus.Counter
	pruned    prometheus.Counter
	aside     prometheus.Counter
	commands  *prometheus.CounterVec
	cmdTime   *prometheus.HistogramVec
}

// NewMetrics makes an empty set.
func NewMetrics(version string) *Metrics {
	slow := prometheus.ExponentialBuckets(0.01, 2.5, 11) // 10 ms to 95 s
	m := &Metrics{
		reg: prometheus.NewRegistry(),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flocker_plugin_requests_total", Help: "Calls of the container engine, by method and answer."}, []string{"method", "code"}),
		callTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "flocker_plugin_request_duration_seconds", Help: "How long they took.", Buckets: slow}, []string{"method"}),
		streams: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flocker_streams_total", Help: "Replication streams that ended, by direction, kind and result."}, []string{"direction", "kind", "result"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flocker_stream_bytes_total", Help: "Bytes of replication streams, by direction."}, []string{"direction"}),
		streaming: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "flocker_stream_duration_seconds", Help: "How long streams took.", Buckets: slow}, []string{"direction"}),
		snapshots: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "flocker_snapshots_taken_total", Help: "Snapshots that replication took."}),
		pruned: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "flocker_snapshots_pruned_total", Help: "Snapshots that retention destroyed."}),
		aside: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "flocker_set_aside_total", Help: "Diverged copies that were set aside."}),
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flocker_zfs_commands_total", Help: "zfs and zpool commands, by operation and result."}, []string{"op", "result"}),
		cmdTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "flocker_zfs_command_duration_seconds", Help: "How long they took.", Buckets: slow}, []string{"op"}),
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "flocker_build_info", Help: "Always 1; the version is the label."}, []string{"version"})
	build.WithLabelValues(version).Set(1)
	m.reg.MustRegister(m.calls, m.callTime, m.streams, m.bytes, m.streaming, m.snapshots, m.pruned, m.aside,
		m.commands, m.cmdTime, build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
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

func (m *Metrics) replication(e replicate.Event) {
	switch e := e.(type) {
	case replicate.SnapshotsTaken:
		m.snapshots.Add(float64(len(e.Volumes)))
	case replicate.StreamEnded:
		m.stream("sent", e.Kind, e.Bytes, e.Took, e.Err)
	case replicate.Received:
		m.stream("received", "", e.Bytes, e.Took, e.Err)
	case replicate.Pruned:
		m.pruned.Add(float64(e.Snapshots))
	case replicate.SetAside:
		m.aside.Inc()
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

// nodeGauges reads the node's present state. Volumes appear on the node that is
// their primary, so that summing over nodes counts each once.
type nodeGauges struct{ d *Daemon }

var (
	leaderDesc   = prometheus.NewDesc("flocker_raft_leader", "1 on the node that leads the cluster.", nil, nil)
	quorumDesc   = prometheus.NewDesc("flocker_raft_quorum", "1 while this node hears a leader.", nil, nil)
	appliedDesc  = prometheus.NewDesc("flocker_raft_applied_index", "Raft index this node has applied.", nil, nil)
	poolSizeDesc = prometheus.NewDesc("flocker_pool_size_bytes", "Size of the pool.", []string{"pool"}, nil)
	poolFreeDesc = prometheus.NewDesc("flocker_pool_free_bytes", "Free space of the pool.", []string{"pool"}, nil)
	healthDesc   = prometheus.NewDesc("flocker_volume_state", "1 for the state a volume is in.", []string{"volume", "state"}, nil)
	usedDesc     = prometheus.NewDesc("flocker_volume_used_bytes", "Bytes on the primary's disk, snapshots included.", []string{"volume"}, nil)
	lagDesc      = prometheus.NewDesc("flocker_replica_lag_seconds", "What would be lost if the primary vanished now.", []string{"volume", "replica"}, nil)
	lagBytesDesc = prometheus.NewDesc("flocker_replica_pending_bytes", "Bytes a replica lacks, as estimated.", []string{"volume", "replica"}, nil)
	successDesc  = prometheus.NewDesc("flocker_replica_last_success_timestamp_seconds", "Time up to which a replica provably holds all data.", []string{"volume", "replica"}, nil)
)

// Describe implements prometheus.Collector.
func (nodeGauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{leaderDesc, quorumDesc, appliedDesc, poolSizeDesc, poolFreeDesc,
		healthDesc, usedDesc, lagDesc, lagBytesDesc, successDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (n nodeGauges) Collect(ch chan<- prometheus.Metric) {
	m := n.d.current.Load()
	if m == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	v := m.view()
	leader, quorum := m.cluster.Leader()
	gauge(leaderDesc, flag(quorum && leader == m.self))
	gauge(quorumDesc, flag(quorum))
	gauge(appliedDesc, float64(v.state.Index))
	if h, ok := v.heard(m.self); ok && h.Pool.Name != "" {
		gauge(poolSizeDesc, float64(h.Pool.Size), h.Pool.Name)
		gauge(poolFreeDesc, float64(h.Pool.Free), h.Pool.Name)
	}
	for vol := range v.state.Volumes() {
		if !vol.Live() || vol.Placement.Primary != m.self {
			continue
		}
		av := v.volume(vol)
		for _, h := range healths {
			gauge(healthDesc, flag(av.Health == h), av.Name, string(h))
		}
		gauge(usedDesc, float64(av.Used), av.Name)
		st, _, _ := v.status(m.self, vol.ID)
		for _, r := range av.Replicas {
			if r.LagSeconds != nil {
				gauge(lagDesc, *r.LagSeconds, av.Name, r.Node.String())
			}
			gauge(lagBytesDesc, float64(r.LagBytes), av.Name, r.Node.String())
			if at := completeAsOf(st, r.Node.ID); !at.IsZero() {
				gauge(successDesc, float64(at.UnixMilli())/1000, av.Name, r.Node.String())
			}
		}
	}
}

func completeAsOf(st volume.Status, replica volume.NodeID) time.Time {
	for _, l := range st.Links {
		if l.Replica == replica {
			return l.CompleteAsOf
		}
	}
	return time.Time{}
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
