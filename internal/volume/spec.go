package volume

import "time"

// Spec is what the user asked of a volume, with every default filled in: specs come
// from ParseOptions or DefaultSpec. Spec values are compared by Equal to decide
// whether a second create of the same name is a repeat or a conflict.
type Spec struct {
	Size     int64         `json:"size,omitempty"` // bytes the user may write (refquota); 0: no limit
	Replicas int           `json:"replicas"`       // copies besides the primary, in its zone
	Remote   int           `json:"remote"`         // copies in other zones
	Interval time.Duration `json:"interval"`       // between snapshots while data changes
	// Snapshots that are taken by the clock; nil: none.
	Snapshots SnapshotPolicy `json:"snapshots,omitempty"`
	Failover  Failover       `json:"failover"`           // what may happen when the primary's node is lost
	MaxLoss   time.Duration  `json:"max_loss,omitempty"` // automatic failover only below this; 0: no bound
	// Prefer and Avoid are names of nodes where its copies should rather be, the best first,
	// or rather not be. Zone is where its primary stays while a node there can have it;
	// "": anywhere.
	Prefer []string `json:"prefer,omitempty"`
	Avoid  []string `json:"avoid,omitempty"`
	Zone   Zone     `json:"zone,omitempty"`
	// Ports are the routes that lead to the volume's container, in order of Listen.
	Ports   []Route `json:"ports,omitempty"`
	Profile string  `json:"profile,omitempty"` // named set of options that other fields came from; for display
	// ZFS properties of the dataset, from the allow-list, set on every copy.
	ZFS map[string]string `json:"zfs,omitempty"`
	// UID, GID and Mode of the data directory, set once when the volume is made.
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
	Mode uint32 `json:"mode"`
	// Strict refuses to create the volume when too few nodes are there for all its
	// replicas; otherwise it starts degraded. It only matters at creation.
	Strict bool `json:"strict,omitempty"`
}

// Failover says what may happen to a volume when its primary's node is lost.
type Failover string

// The failover policies.
const (
	FailoverAuto   Failover = "auto"
	FailoverManual Failover = "manual"
	FailoverNever  Failover = "never"
)

// Defaults of a Spec, as ParseOptions fills them in and `--help` prints them.
const (
	DefaultReplicas = 1
	DefaultRemote   = 0
	DefaultInterval = time.Second
	DefaultMaxLoss  = 5 * time.Minute
	DefaultMode     = 0o755

	MinInterval = 250 * time.Millisecond
	MaxInterval = time.Hour
	MinSize     = 16 << 20 // ZFS needs some room for its own metadata
	MaxReplicas = 10
)
