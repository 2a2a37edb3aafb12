package state

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/volume"
)

// Settings are the cluster-wide knobs. Zero means the default.
type Settings struct {
	TrashRetention time.Duration `json:"trash_retention,omitempty"`
	// AsideRetention is how long set-aside copies stay.
	AsideRetention time.Duration `json:"aside_retention,omitempty"`
	// ReplicaReplaceAfter is how long a replica's node may be lost before another
	// node gets a copy.
	ReplicaReplaceAfter time.Duration `json:"replica_replace_after,omitempty"`
	// Failover is what the operator wants: "" or FailoverAutomatic as soon as there are
	// three voters, or FailoverManual.
	Failover FailoverMode `json:"failover,omitempty"`
	// Lease is the profile of the lease's timers; "": default.
	Lease string `json:"lease,omitempty"`
	// SoftwareFencing lets nodes that cannot reset themselves be taken for dead by time
	// alone.
	SoftwareFencing bool `json:"software_fencing,omitempty"`
	// Rebalance is whether the leader evens out the nodes by itself: "" not, or RebalanceOn.
	Rebalance string `json:"rebalance,omitempty"`
	// Hold is how long a request of a route's client waits while its volume moves.
	Hold time.Duration `json:"hold,omitempty"`
	// HoldService is how many clients of one route may wait at a node, and HoldNode how many of
	// all routes.
	HoldService int `json:"hold_service,omitempty"`
	HoldNode    int `json:"hold_node,omitempty"`
	// Bandwidth limits streams between zones: one entry a pair, in order of A and B.
	Bandwidth []Bandwidth `json:"bandwidth,omitempty"`
}

// Bandwidth is the most that one node of either zone sends to the other, in bytes a
// second, over all its streams together.
type Bandwidth struct {
	A     volume.Zone `json:"a"` // A <= B
	B     volume.Zone `json:"b"`
	Bytes int64       `json:"bytes"`
}

// The words of the setting rebalance.
const (
	RebalanceOff = "off"
	RebalanceOn  = "on"
)

// Defaults of the settings.
const (
	DefaultTrashRetention      = 7 * 24 * time.Hour // how long removed volumes stay restorable
	DefaultAsideRetention      = 30 * 24 * time.Hour
	DefaultReplicaReplaceAfter = 10 * time.Minute
	DefaultHold                = 10 * time.Second
	DefaultHoldService         = 1000
	DefaultHoldNode            = 10_000
)

// Bounds of the settings that are not left at their defaults. A retention below its
// bound would destroy what somebody has just removed by mistake; a patience below its
// own would make new copies of everything whenever a machine restarts; a hold below its own
// would refuse what any move keeps waiting, and one above would promise what no move may take; so few
// clients that wait would refuse the connections of one program, and so many take more memory
// (about 20 KiB each, the kernel's included) than a node has for them; a limit of bandwidth below its own would stop replication for good.
const (
	MinRetention    = time.Hour
	MaxRetention    = 10 * 366 * 24 * time.Hour
	MinReplaceAfter = time.Minute
	MaxReplaceAfter = 30 * 24 * time.Hour
	MinHold         = 2 * time.Second
	MaxHold         = 90 * time.Second // a move that takes longer than two minutes is given up
	MinHolding      = 10               // of HoldService and HoldNode
	MaxHolding      = 100_000
	MinBandwidth    = 64 << 10
)

// Check says what is wrong with settings that nobody could mean; nil when nothing is.
// Apply refuses them.
func (s Settings) Check() error {
	for _, p := range []struct {
		key       string
		value     time.Duration
		low, high time.Duration
	}{
		{"trash-retention", s.TrashRetention, MinRetention, MaxRetention},
		{"aside-retention", s.AsideRetention, MinRetention, MaxRetention},
		{"replica-replace-after", s.ReplicaReplaceAfter, MinReplaceAfter, MaxReplaceAfter},
		{"hold", s.Hold, MinHold, MaxHold},
	} {
		if p.value != 0 && (p.value < p.low || p.value > p.high) {
			return volume.Errorf(volume.CodeInvalid, "setting %s: %s is not from %s to %s",
				p.key, volume.FormatPeriod(p.value), volume.FormatPeriod(p.low), volume.FormatPeriod(p.high))
		}
	}
	for key, n := range map[string]int{"hold-service": s.HoldService, "hold-node": s.HoldNode} {
		if n != 0 && (n < MinHolding || n > MaxHolding) {
			return volume.Errorf(volume.CodeInvalid, "setting %s: %d is not from %d to %d", key, n, MinHolding, MaxHolding)
		}
	}
	if s.Failover != "" && s.Failover != FailoverAutomatic && s.Failover != FailoverManual {
		return volume.Errorf(volume.CodeInvalid, "setting failover: %q is neither automatic nor manual", s.Failover)
	}
	if _, ok := lease.Profile(s.Lease); !ok {
		return volume.Errorf(volume.CodeInvalid, "setting lease: %q is none of %s", s.Lease, strings.Join(lease.Profiles(), ", "))
	}
	if s.Rebalance != "" && s.Rebalance != RebalanceOn && s.Rebalance != RebalanceOff {
		return volume.Errorf(volume.CodeInvalid, "setting rebalance: %q is neither off nor on", s.Rebalance)
	}
	for i, l := range s.Bandwidth {
		bad := ""
		switch {
		case l.A == "" || l.B == "":
			bad = "a zone has no name"
		case l.A > l.B:
			bad = "the zones are not in order"
		case i > 0 && byPair(s.Bandwidth[i-1], l) >= 0:
			bad = "the pair is there twice or out of order"
		case l.Bytes < MinBandwidth:
			bad = fmt.Sprintf("%d bytes a second is less than %s", l.Bytes, volume.FormatSize(MinBandwidth))
		default:
			continue
		}
		return volume.Errorf(volume.CodeInvalid, "setting bandwidth:%s:%s: %s", l.A, l.B, bad)
	}
	return nil
}

func byPair(x, y Bandwidth) int { return cmp.Or(cmp.Compare(x.A, y.A), cmp.Compare(x.B, y.B)) }

// AsideKeep is the effective retention of set-aside copies.
func (s Settings) AsideKeep() time.Duration { return cmp.Or(s.AsideRetention, DefaultAsideRetention) }

// ReplaceAfter is the effective patience with a lost replica.
func (s Settings) ReplaceAfter() time.Duration {
	return cmp.Or(s.ReplicaReplaceAfter, DefaultReplicaReplaceAfter)
}

// HoldFor is how long a request waits in effect.
func (s Settings) HoldFor() time.Duration { return cmp.Or(s.Hold, DefaultHold) }

// HoldsService and HoldsNode are how many clients may wait in effect.
func (s Settings) HoldsService() int { return cmp.Or(s.HoldService, DefaultHoldService) }
func (s Settings) HoldsNode() int    { return cmp.Or(s.HoldNode, DefaultHoldNode) }

// Equal says that both are the same settings.
func (s Settings) Equal(t Settings) bool {
	return s.TrashRetention == t.TrashRetention && s.AsideRetention == t.AsideRetention &&
		s.ReplicaReplaceAfter == t.ReplicaReplaceAfter && s.Failover == t.Failover && s.Lease == t.Lease &&
		s.SoftwareFencing == t.SoftwareFencing && s.Rebalance == t.Rebalance && s.Hold == t.Hold && s.HoldService == t.HoldService && s.HoldNode == t.HoldNode && slices.Equal(s.Bandwidth, t.Bandwidth)
}

// WithLimit is s with another limit between two zones; 0 removes it.
func (s Settings) WithLimit(from, to volume.Zone, bytes int64) Settings {
	l := Bandwidth{A: min(from, to), B: max(from, to), Bytes: bytes}
	i, found := slices.BinarySearchFunc(s.Bandwidth, l, byPair)
	out := slices.Clone(s.Bandwidth)
	switch {
	case found && bytes == 0:
		out = slices.Delete(out, i, i+1)
	case found:
		out[i] = l
	case bytes > 0:
		out = slices.Insert(out, i, l)
	}
	s.Bandwidth = out
	return s
}

// Limit of the streams from one zone to another, in bytes a second; 0: none.
func (s Settings) Limit(from, to volume.Zone) int64 {
	a, b := min(from, to), max(from, to)
	for _, l := range s.Bandwidth {
		if l.A == a && l.B == b {
			return l.Bytes
		}
	}
	return 0
}

// TrashKeep is the effective retention of removed volumes.
func (s Settings) TrashKeep() time.Duration { return cmp.Or(s.TrashRetention, DefaultTrashRetention) }
