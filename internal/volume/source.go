package volume

import (
	"errors"
	"maps"
	"strings"
)

// FromOption is the option that makes a new volume a clone. It says where a volume's data
// comes from, not what the volume is like, so no Spec has it.
const FromOption = "from"

// Source is what a clone is made of.
type Source struct {
	Volume string // its name, or its ID or the start of that
	// Snapshot of it; "": one is taken for the clone.
	Snapshot string
}

// IsZero says that no clone is asked for.
func (s Source) IsZero() bool { return s == Source{} }

func (s Source) String() string {
	if s.Snapshot == "" {
		return s.Volume
	}
	return s.Volume + "@" + s.Snapshot
}

// ParseSource reads VOLUME or VOLUME@SNAPSHOT. Snapshots that flocker or somebody with
// zfs(8) took have other names than people may give.
func ParseSource(text string) (Source, error) {
	var s Source
	var at bool
	s.Volume, s.Snapshot, at = strings.Cut(text, "@")
	err := ValidateName(s.Volume)
	switch {
	case err != nil:
		err = errors.New("that is not the name of a volume")
	case at && s.Snapshot == "":
		err = errors.New("no snapshot stands behind the @; without one the clone is of now")
	case len(s.Snapshot) > maxSnapshotName || !snapshotCharacters(s.Snapshot):
		err = errors.New("what stands behind the @ cannot be the name of a snapshot")
	}
	if err != nil {
		return Source{}, badValue(FromOption, text, err, sourceForm)
	}
	return s, nil
}

// maxSnapshotName is that of ZFS.
const maxSnapshotName = 255

func snapshotCharacters(name string) bool {
	return strings.IndexFunc(name, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("._:- ", r))
	}) < 0
}

const sourceForm = "VOLUME or VOLUME@SNAPSHOT"

// CutSource takes the option from out of the options of a volume that is to be made.
func CutSource(opts map[string]string) (from Source, rest map[string]string, err error) {
	text, ok := opts[FromOption]
	if !ok {
		return Source{}, opts, nil
	}
	rest = maps.Clone(opts)
	delete(rest, FromOption)
	from, err = ParseSource(text)
	return from, rest, err
}

// Clone is the Spec of a clone of a volume with this one: as that, with these options on
// top. It listens on no ports unless it is told to: those of the original are taken.
func (s Spec) Clone(opts map[string]string) (Spec, error) {
	all := s.Options()
	delete(all, "ports")
	maps.Copy(all, profiles[opts["profile"]])
	maps.Copy(all, opts)
	if opts["size"] == NoSize {
		delete(all, "size")
	}
	// The bound that follows the interval goes on following it.
	if _, ok := opts["max-loss"]; !ok && s.MaxLoss == max(DefaultMaxLoss, 2*s.Interval) {
		delete(all, "max-loss")
	}
	out, err := ParseOptions(all)
	if err != nil {
		return Spec{}, err
	}
	if out.UID != s.UID || out.GID != s.GID || out.Mode != s.Mode {
		return Spec{}, Errorf(CodeInvalid, "a clone has its original's files with their owners and permissions: uid, gid and mode stay %d, %d and %04o", s.UID, s.GID, s.Mode).
			WithHint("leave these options out, and change the files in the clone")
	}
	if out.Whole() != s.Whole() {
		return Spec{}, Errorf(CodeInvalid, "a clone has its files where its original has them: %s%s cannot be chosen", zfsPrefix, Subdir).WithHint("leave that option out")
	}
	return out, nil
}

// As says that a volume with this Spec has each of the options given, whatever else it has.
func (s Spec) As(opts map[string]string) bool {
	all := s.Options()
	maps.Copy(all, profiles[opts["profile"]])
	maps.Copy(all, opts)
	if opts["size"] == NoSize {
		delete(all, "size")
	}
	t, err := ParseOptions(all)
	return err == nil && t.Equal(s)
}
