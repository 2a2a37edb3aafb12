package volume

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The options of `docker volume create -o` and `flockctl volume create -o`. An
// option is described here once: what reads it, what writes it back, and the
// sentence that help and refusals show.
type option struct {
	name  string
	value string // what it may be, for people
	about string
	set   func(*Spec, string) error
	get   func(Spec) string // "" when there is nothing to say
}

// options in the order in which people should meet them. The profile is applied
// before all others, whatever the order.
var options = []option{
	{
		"size", "bytes or a number with k, M, G, T (powers of 1024), at least 16M",
		"most data the volume may hold; without it, as much as the pool has",
		func(s *Spec, v string) (err error) {
			s.Size, err = parseSize(v)
			if err == nil && s.Size < MinSize {
				err = fmt.Errorf("less than %s", FormatSize(MinSize))
			}
			return err
		},
		func(s Spec) string {
			if s.Size == 0 {
				return ""
			}
			return FormatSize(s.Size)
		},
	}, {
		"replicas", fmt.Sprintf("0 to %d", MaxReplicas),
		"copies besides the primary, in its zone",
		func(s *Spec, v string) error { return parseInt(&s.Replicas, v, 0, MaxReplicas) },
		func(s Spec) string { return strconv.Itoa(s.Replicas) },
	}, {
		"remote", fmt.Sprintf("0 to %d", MaxReplicas),
		"copies in other zones",
		func(s *Spec, v string) error { return parseInt(&s.Remote, v, 0, MaxReplicas) },
		func(s Spec) string { return strconv.Itoa(s.Remote) },
	}, {
		"interval", "a time from 250ms to 1h",
		"time between snapshots while data changes",
		func(s *Spec, v string) error { return parseDuration(&s.Interval, v, MinInterval, MaxInterval) },
		func(s Spec) string { return FormatDuration(s.Interval) },
	}, {
		"snapshots", "rules of a period and a number to keep, like 1h:24,1d:7,1w:4, or none",
		"snapshots that are taken by the clock and stay",
		func(s *Spec, v string) (err error) { s.Snapshots, err = ParseSnapshotPolicy(v); return err },
		func(s Spec) string {
			if s.Snapshots == nil {
				return ""
			}
			return s.Snapshots.String()
		},
	}, {
		"failover", "auto, manual or never",
		"what may happen when the primary's node is lost",
		func(s *Spec, v string) error {
			s.Failover = Failover(v)
			return oneOf(v, string(FailoverAuto), string(FailoverManual), string(FailoverNever))
		},
		func(s Spec) string { return string(s.Failover) },
	}, {
		"max-loss", "a time like 30s or 5m, not below the interval, or none",
		"automatic failover only if at most this much was written after the replica's copy",
		func(s *Spec, v string) error {
			if v == "none" {
				s.MaxLoss = 0
				return nil
			}
			return parseDuration(&s.MaxLoss, v, MinInterval, MaxMaxLoss)
		},
		func(s Spec) string {
			if s.MaxLoss == 0 {
				return "none"
			}
			return FormatDuration(s.MaxLoss)
		},
	}, {
		"prefer", "names of nodes with commas between, the best first, or none",
		"nodes where its copies should rather be, its primary before all",
		func(s *Spec, v string) (err error) { s.Prefer, err = parseNodes(v); return err },
		func(s Spec) string { return strings.Join(s.Prefer, ",") },
	}, {
		"avoid", "names of nodes with commas between, or none",
		"nodes where its copies should be only when there is no other place",
		func(s *Spec, v string) (err error) { s.Avoid, err = parseNodes(v); return err },
		func(s Spec) string { return strings.Join(s.Avoid, ",") },
	}, {
		"zone", "the name of a zone, or none",
		"zone that its primary stays in while a node there can have it",
		func(s *Spec, v string) (err error) { s.Zone, err = parseZone(v); return err },
		func(s Spec) string { return string(s.Zone) },
	}, {
		"ports", "routes like 5432:5432/postgres,80:8080/http, each " + RouteForm + ", or none",
		"ports that all nodes listen on for the volume's container, and how",
		func(s *Spec, v string) (err error) { s.Ports, err = ParseRoutes(v); return err },
		func(s Spec) string { return FormatRoutes(s.Ports) },
	}, {
		"profile", alternatives(Profiles()...),
		"a named set of options; others given beside it win",
		func(s *Spec, v string) error { s.Profile = v; return oneOf(v, Profiles()...) },
		func(s Spec) string { return s.Profile },
	}, {
		"uid", "a user number",
		"owner of the data directory",
		func(s *Spec, v string) error { return parseInt(&s.UID, v, 0, maxOwner) },
		func(s Spec) string { return strconv.Itoa(s.UID) },
	}, {
		"gid", "a group number",
		"group of the data directory",
		func(s *Spec, v string) error { return parseInt(&s.GID, v, 0, maxOwner) },
		func(s Spec) string { return strconv.Itoa(s.GID) },
	}, {
		"mode", "an octal mode like 0750",
		"permissions of the data directory",
		func(s *Spec, v string) error {
			m, err := strconv.ParseUint(v, 8, 32)
			if err != nil || m > 0o7777 || !isDigits(v) {
				return errors.New("not an octal mode")
			}
			s.Mode = uint32(m)
			return nil
		},
		func(s Spec) string { return fmt.Sprintf("%04o", s.Mode) },
	}, {
		FromOption, sourceForm,
		"make it a clone of that volume, as it is now or was in that snapshot; its other options are then as that one's",
		func(*Spec, string) error { return errors.New("only a volume that is being made can be a clone") },
		func(Spec) string { return "" },
	}, {
		"strict", "true or false",
		"refuse to create the volume when there are too few nodes for its copies",
		func(s *Spec, v string) error {
			s.Strict = v == "true"
			return oneOf(v, "true", "false")
		},
		func(s Spec) string {
			if s.Strict {
				return "true"
			}
			return ""
		},
	},
}

// nowhere removes a preference.
const nowhere = "none"

// parseNodes reads names of nodes with commas between. Whether there are such nodes is not
// known here.
func parseNodes(v string) ([]string, error) {
	if v == nowhere {
		return nil, nil
	}
	var out []string
	for name := range strings.SplitSeq(v, ",") {
		switch {
		case ValidateName(name) != nil:
			return nil, fmt.Errorf("%s is not the name of a node", clip(name))
		case slices.Contains(out, name):
			return nil, fmt.Errorf("node %s is there twice", name)
		}
		out = append(out, name)
	}
	return out, nil
}

func parseZone(v string) (Zone, error) {
	if v == nowhere {
		return "", nil
	}
	if ValidateName(v) != nil {
		return "", errors.New("not the name of a zone")
	}
	return Zone(v), nil
}

// MaxMaxLoss and maxOwner are sanity bounds.
const (
	MaxMaxLoss = 365 * 24 * time.Hour
	maxOwner   = 1<<31 - 1
)

// profiles are the named sets of options. A volume's spec holds what its profile
// meant when it was made, so a change here never changes an existing volume.
var profiles = map[string]map[string]string{
	// What a volume gets that names no profile. Reading must not be writing: with
	// atime every read of a file would be a change to snapshot and to ship. xattr=sa
	// and acltype=posix give containers what they find on ext4 and xfs.
	"default": {
		"zfs.compression": "lz4",
		"zfs.atime":       "off",
		"zfs.xattr":       "sa",
		"zfs.acltype":     "posix",
	},
	// PostgreSQL, MySQL, etcd: pages of 8 to 16 KiB written at random and fsync as
	// the pacemaker. Not logbias=throughput, which is often advised for it: without
	// a log device it trades the latency of every commit for bandwidth and fragments
	// the log that lies in the same dataset.
	"database": {
		"zfs.compression": "lz4",
		"zfs.atime":       "off",
		"zfs.xattr":       "sa",
		"zfs.acltype":     "posix",
		"zfs.recordsize":  "16K",
		"zfs.logbias":     "latency",
		// What a mistaken DELETE needs.
		"snapshots": "1h:24,1d:7",
	},
	// Large files written once: images, videos, backups.
	"media": {
		"zfs.compression":    "lz4",
		"zfs.atime":          "off",
		"zfs.xattr":          "sa",
		"zfs.acltype":        "posix",
		"zfs.recordsize":     "1M",
		"zfs.secondarycache": "metadata",
		"interval":           "5s",
	},
	// Caches and build directories: one copy, lost with its node.
	"scratch": {
		"replicas":        "0",
		"remote":          "0",
		"failover":        "never",
		"zfs.compression": "lz4",
		"zfs.atime":       "off",
		"zfs.xattr":       "sa",
		"zfs.acltype":     "posix",
	},
}

// Profiles are the names that the option profile takes.
func Profiles() []string { return slices.Sorted(maps.Keys(profiles)) }

// Profile is what a profile sets, as options; nil when there is none of that name.
func Profile(name string) map[string]string { return maps.Clone(profiles[name]) }

// DefaultSpec is the Spec of a volume made without any option.
func DefaultSpec() Spec {
	s, err := ParseOptions(nil)
	if err != nil {
		panic(err) // the built-in default profile is wrong; a test would have said so
	}
	return s
}

// ParseOptions reads the options a user gave and fills in every default, first the
// profile's, then the general ones. The error is an *Error of CodeInvalid that
// names the option and says which ones there are.
func ParseOptions(opts map[string]string) (Spec, error) {
	s := Spec{
		Replicas: DefaultReplicas,
		Remote:   DefaultRemote,
		Interval: DefaultInterval,
		Failover: FailoverAuto,
		MaxLoss:  DefaultMaxLoss,
		Profile:  "default",
		Mode:     DefaultMode,
		ZFS:      map[string]string{},
	}
	if p, ok := opts["profile"]; ok {
		if err := s.setOption("profile", p); err != nil {
			return Spec{}, err
		}
	}
	given := maps.Clone(profiles[s.Profile])
	maps.Copy(given, opts)
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if err := s.setOption(name, given[name]); err != nil {
			return Spec{}, err
		}
	}
	// A replica cannot be fresher than the interval allows, so a longer interval
	// takes the default bound along; a bound that was asked for is checked instead.
	if _, ok := given["max-loss"]; !ok {
		s.MaxLoss = max(s.MaxLoss, 2*s.Interval)
	}
	if err := s.Validate(); err != nil {
		return Spec{}, err
	}
	return s, nil
}

// setOption applies one option.
func (s *Spec) setOption(name, value string) error {
	if property, ok := strings.CutPrefix(name, zfsPrefix); ok {
		if _, known := zfsProperties[property]; known && value == inherit {
			delete(s.ZFS, property)
			return nil
		}
		canonical, err := parseProperty(property, value)
		if err != nil {
			return err
		}
		s.ZFS[property] = canonical
		return nil
	}
	i := slices.IndexFunc(options, func(o option) bool { return o.name == name })
	if i < 0 {
		return unknownOption(name)
	}
	if err := options[i].set(s, value); err != nil {
		return badValue(name, value, err, options[i].value)
	}
	return nil
}

// Options are the options that make this Spec again: ParseOptions(s.Options()) is
// Equal to s. Every value is in the one form in which we write it.
func (s Spec) Options() map[string]string {
	out := map[string]string{}
	for _, o := range options {
		if v := o.get(s); v != "" {
			out[o.name] = v
		}
	}
	for property, v := range s.ZFS {
		out[zfsPrefix+property] = v
	}
	// The profile must not bring back a property that the volume does not have: one
	// that was reset, or one that the profile sets in this version and did not in the
	// version which made the volume.
	profile := s.Profile
	if profiles[profile] == nil {
		delete(out, "profile")
		profile = "default"
	}
	for name := range profiles[profile] {
		if property, ok := strings.CutPrefix(name, zfsPrefix); ok && s.ZFS[property] == "" {
			out[name] = inherit
		}
		if name == "snapshots" && s.Snapshots == nil {
			out[name] = NoSnapshots
		}
	}
	return out
}

// Equal says that both describe the same volume. Strict and Profile are not
// compared: they only matter while a volume is made, and what a profile meant is in
// the other fields.
func (s Spec) Equal(t Spec) bool {
	return s.Size == t.Size && s.Replicas == t.Replicas && s.Remote == t.Remote &&
		s.Interval == t.Interval && s.Failover == t.Failover && s.MaxLoss == t.MaxLoss &&
		slices.Equal(s.Snapshots, t.Snapshots) && slices.Equal(s.Ports, t.Ports) &&
		slices.Equal(s.Prefer, t.Prefer) && slices.Equal(s.Avoid, t.Avoid) && s.Zone == t.Zone && maps.Equal(s.ZFS, t.ZFS) && s.UID == t.UID && s.GID == t.GID && s.Mode == t.Mode
}

// Validate checks a Spec that did not come from ParseOptions. Every field must be
// filled in and every property in its canonical form.
func (s Spec) Validate() error {
	for _, o := range options {
		v := o.get(s)
		if v == "" && o.name != "failover" {
			continue
		}
		var t Spec
		if err := o.set(&t, v); err != nil {
			return badValue(o.name, v, err, o.value)
		}
	}
	for _, property := range slices.Sorted(maps.Keys(s.ZFS)) {
		v := s.ZFS[property]
		canonical, err := parseProperty(property, v)
		if err != nil {
			return err
		}
		if canonical != v {
			return badValue(zfsPrefix+property, v, fmt.Errorf("it has to be written %s", canonical), zfsProperties[property].value)
		}
	}
	for _, node := range s.Prefer {
		if slices.Contains(s.Avoid, node) {
			return badValue("avoid", strings.Join(s.Avoid, ","), fmt.Errorf("node %s is preferred, too; take it out of one of them", node), "other nodes than prefer")
		}
	}
	if s.MaxLoss != 0 && s.MaxLoss < s.Interval {
		return badValue("max-loss", FormatDuration(s.MaxLoss),
			fmt.Errorf("below the interval of %s, so a failover could never be automatic", FormatDuration(s.Interval)),
			"at least the interval, or none")
	}
	return nil
}

// OptionNames are all options, "zfs.<property>" ones included, in the order in
// which help shows them.
func OptionNames() []string {
	var out []string
	for _, o := range options {
		out = append(out, o.name)
	}
	for _, property := range slices.Sorted(maps.Keys(zfsProperties)) {
		out = append(out, zfsPrefix+property)
	}
	return out
}

// OptionHelp is what an option takes and what it is for; ok is false for a name
// that is not in OptionNames.
func OptionHelp(name string) (value, about string, ok bool) {
	if property, found := strings.CutPrefix(name, zfsPrefix); found {
		p, ok := zfsProperties[property]
		return p.value + ", or inherit", "ZFS property " + property + " of every copy", ok
	}
	for _, o := range options {
		if o.name == name {
			return o.value, o.about, true
		}
	}
	return "", "", false
}

// unknownOption refuses a name, with the one that was probably meant.
func unknownOption(name string) error {
	hint := "valid options are " + strings.Join(OptionNames(), ", ")
	if near := nearest(name); near != "" {
		hint = fmt.Sprintf("did you mean %q? %s", near, "V"+hint[1:])
	}
	return Errorf(CodeInvalid, "unknown volume option %s", clip(name)).WithHint("%s", hint)
}

// badValue refuses a value.
func badValue(name, value string, why error, want string) error {
	return Errorf(CodeInvalid, "volume option %s=%s: %v", name, clip(value), why).
		WithHint("it takes %s. Valid options are %s", want, strings.Join(OptionNames(), ", "))
}

// nearest finds the option that a user meant, "" when nothing is near.
func nearest(name string) string {
	plain := strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	if alias, ok := aliases[plain]; ok {
		return alias
	}
	best, distance := "", 3
	for _, o := range OptionNames() {
		for _, candidate := range []string{o, strings.TrimPrefix(o, zfsPrefix)} {
			if d := editDistance(plain, strings.ReplaceAll(candidate, "_", "-")); d < distance && d < len(candidate)/2 {
				best, distance = o, d
			}
		}
	}
	return best
}

// aliases are names that other systems use for the same thing.
var aliases = map[string]string{
	"quota": "size", "refquota": "size", "capacity": "size", "o.size": "size", "zfs.quota": "size", "zfs.refquota": "size",
	"copies": "replicas", "replication": "replicas", "replica-count": "replicas", "nodes": "replicas",
	"local": "replicas", "zones": "remote", "remotes": "remote", "remote-replicas": "remote",
	"cadence": "interval", "frequency": "interval", "rpo": "max-loss", "loss": "max-loss",
	"owner": "uid", "user": "uid", "group": "gid", "permissions": "mode", "perm": "mode", "blocksize": "zfs.recordsize",
	"affinity": "prefer", "preferred": "prefer", "anti-affinity": "avoid", "az": "zone", "region": "zone",
	"compress": "zfs.compression", "port": "ports", "publish": "ports", "route": "ports", "routes": "ports", "expose": "ports",
}

// editDistance is the number of letters to insert, drop, change or swap with their
// neighbour that turn a into b.
func editDistance(a, b string) int {
	var before, last []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}

func oneOf(v string, values ...string) error {
	if slices.Contains(values, v) {
		return nil
	}
	return errors.New("no such value")
}

func parseInt(to *int, v string, low, high int) error {
	n, err := strconv.Atoi(v)
	if err != nil || strings.HasPrefix(v, "+") {
		return errors.New("not a whole number")
	}
	if n < low || n > high {
		return fmt.Errorf("not from %d to %d", low, high)
	}
	*to = n
	return nil
}

func parseDuration(to *time.Duration, v string, low, high time.Duration) error {
	d, err := time.ParseDuration(v)
	switch {
	case err != nil && isDigits(v):
		return fmt.Errorf("no unit, as in %ss", v)
	case err != nil:
		return errors.New("not a time like 500ms, 5s or 2m")
	case d < low || d > high:
		return fmt.Errorf("not from %s to %s", FormatDuration(low), FormatDuration(high))
	}
	*to = d
	return nil
}

// FormatDuration is d without the zero parts at its end: 5m, not 5m0s.
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// RoughDuration is d in words, no more exact than a bound is worth.
func RoughDuration(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return FormatDuration(d.Round(time.Second))
}
