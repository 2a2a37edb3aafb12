package volume

import (
	"errors"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

const (
	zfsPrefix = "zfs."
	// inherit takes a property of the profile back: the copy gets what the pool's
	// dataset above it has.
	inherit = "inherit"
)

// property is one ZFS property that users may set on a volume.
type property struct {
	value string // what it may be, for people
	// parse returns the form in which zfs itself prints the value.
	parse func(v string) (string, error)
}

// zfsProperties is the allow-list. On it is what changes how data is stored and
// nothing that flocker itself lives by: where and how a dataset is mounted,
// read-only, its quota, its name. Left out on purpose as well:
//
//   - sync=disabled: fsync would answer before the data is on any disk, and up to
//     5 s of commits that an application has reported are lost at every power cut,
//     with no failover and no word in status.
//   - redundant_metadata=some and none: one bad sector may take the whole volume.
//   - dnodesize other than legacy: such streams are refused by a pool without
//     large_dnode, and then one old node stops replication.
//   - special_small_blocks and anything else that needs a device the next pool may
//     not have: set it on <pool>/flocker, and the volumes there inherit it.
//   - dedup, encryption, checksum, casesensitivity: they cannot be taken back, or
//     not without rewriting the data.
var zfsProperties = map[string]property{
	"compression":        {"on, off, lz4, lzjb, zle, gzip, gzip-1 to gzip-9, zstd, zstd-1 to zstd-19 or zstd-fast-1 to zstd-fast-10", parseCompression},
	"recordsize":         {"a power of two from 512 to 1M", parseRecordsize},
	"atime":              words("on", "off"),
	"relatime":           words("on", "off"),
	"xattr":              words("on", "off", "sa"),
	"acltype":            {"off or posix", parseACLType},
	"logbias":            words("latency", "throughput"),
	"primarycache":       words("all", "none", "metadata"),
	"secondarycache":     words("all", "none", "metadata"),
	"sync":               {"standard or always", parseSync},
	"copies":             words("1", "2", "3"),
	"redundant_metadata": words("all", "most"),
	"dnodesize":          words("legacy"),
}

// Subdir is the property of a volume that is all of its dataset, as one is that was
// imported: its files were at the top before flocker was there, and are so in its old
// snapshots. Any other volume is the directory data of its dataset. It is among the ZFS
// properties of the Spec, so that every copy has it, every clone and every backup; it is
// given when the volume is made, and nobody can choose it.
const Subdir = "flocker:subdir"

// whole is the only value of Subdir.
const whole = "."

// Whole says that the volume is all of its dataset, see Subdir.
func (s Spec) Whole() bool { return s.ZFS[Subdir] == whole }

// MakeWhole is the Spec for a volume that is all of its dataset.
func (s Spec) MakeWhole() Spec {
	s.ZFS = maps.Clone(s.ZFS)
	if s.ZFS == nil {
		s.ZFS = map[string]string{}
	}
	s.ZFS[Subdir] = whole
	return s
}

// WholeOption makes it so by an option, for what is made of a copy of such a volume.
func WholeOption() (key, value string) { return zfsPrefix + Subdir, whole }

// Properties are the ZFS properties that a volume may have, in order.
func Properties() []string { return slices.Sorted(maps.Keys(zfsProperties)) }

// Carried are the options for a volume that keeps those properties of a dataset which it
// may have, with values that it may have.
func Carried(props map[string]string) map[string]string {
	opts := map[string]string{}
	for name, value := range props {
		p, ok := zfsProperties[name]
		if !ok {
			continue
		}
		if canonical, err := p.parse(value); err == nil {
			opts[zfsPrefix+name] = canonical
		}
	}
	return opts
}

// managed are properties that users reach in another way, or not at all.
var managed = map[string]string{
	"quota": "use size", "refquota": "use size", "reservation": "volumes are thin", "refreservation": "volumes are thin",
	"mountpoint": "flocker mounts volumes itself", "canmount": "flocker mounts volumes itself",
	"readonly":             "flocker decides which node may write",
	"special_small_blocks": "set it on the pool's flocker dataset of each node that has a special device",
	"encryption":           "create the pool's flocker dataset with encryption",
}

// parseProperty checks a property and returns its canonical value.
func parseProperty(name, value string) (string, error) {
	if name == Subdir && value == whole {
		return value, nil
	}
	p, ok := zfsProperties[name]
	if !ok {
		if why, ok := managed[name]; ok {
			return "", Errorf(CodeInvalid, "volume option %s%s is not for users: %s", zfsPrefix, name, why).
				WithHint("valid options are %s", strings.Join(OptionNames(), ", "))
		}
		return "", unknownOption(zfsPrefix + name)
	}
	canonical, err := p.parse(value)
	if err != nil {
		return "", badValue(zfsPrefix+name, value, err, p.value)
	}
	return canonical, nil
}

func words(values ...string) property {
	return property{alternatives(values...), func(v string) (string, error) { return v, oneOf(v, values...) }}
}

// alternatives are "a", "a or b", "a, b or c".
func alternatives(values ...string) string {
	last := len(values) - 1
	if last == 0 {
		return values[0]
	}
	return strings.Join(values[:last], ", ") + " or " + values[last]
}

// The default levels are printed without their number.
func parseCompression(v string) (string, error) {
	switch v {
	case "gzip-6":
		return "gzip", nil
	case "zstd-3":
		return "zstd", nil
	case "zstd-fast-1":
		return "zstd-fast", nil
	}
	if slices.Contains([]string{"on", "off", "lz4", "lzjb", "zle", "gzip", "zstd", "zstd-fast"}, v) {
		return v, nil
	}
	for prefix, highest := range map[string]int{"gzip-": 9, "zstd-": 19, "zstd-fast-": 10} {
		if level, ok := strings.CutPrefix(v, prefix); ok && isDigits(level) && level[0] != '0' {
			if n, err := strconv.Atoi(level); err == nil && n <= highest {
				return v, nil
			}
		}
	}
	return "", errors.New("no such compression")
}

// Larger records than 1M need a module parameter on the ZFS of some nodes.
func parseRecordsize(v string) (string, error) {
	n, err := parseSize(v)
	if err != nil {
		return "", err
	}
	if n < 512 || n > 1<<20 || bits.OnesCount64(uint64(n)) != 1 {
		return "", errors.New("not a power of two in that range")
	}
	return strings.TrimSuffix(FormatSize(n), "iB"), nil
}

func parseACLType(v string) (string, error) {
	switch v {
	case "off", "noacl":
		return "off", nil
	case "posix", "posixacl":
		return "posix", nil
	}
	return "", errors.New("no such value")
}

func parseSync(v string) (string, error) {
	if v == "disabled" {
		return "", errors.New("fsync would answer before the data is safe, and every power cut would lose commits that were already reported")
	}
	return v, oneOf(v, "standard", "always")
}
