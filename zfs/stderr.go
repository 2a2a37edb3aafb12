package zfs

import "strings"

// kinds maps what zfs prints to kinds of error; the first text that occurs wins,
// so the more telling ones stand first. The texts are those of OpenZFS 2.1 to 2.3
// in the C locale, recorded in testdata/stderr.txt.
var kinds = []struct {
	text string
	kind error
}{
	// What a channel program of ours stumbled over says nothing of what it was asked.
	{`channel program execution failed: [string "channel program"]`, nil},

	// The machine.
	{"zfs modules are not loaded", ErrNoZFS},
	{"modules cannot be auto-loaded", ErrNoZFS},
	{"/dev/zfs and /proc/self/mounts are required", ErrNoZFS},
	{"unable to open /dev/zfs", ErrNoZFS},
	{"the zfs utilities must be run as root", ErrNoZFS},
	{"failed to initialize zfs library", ErrNoZFS},
	// The loader's word for a library of the command, which is no word about a dataset.
	{"error while loading shared libraries", ErrNoZFS},
	{"pool i/o is currently suspended", ErrSuspended},
	{"i/o is currently suspended", ErrSuspended},

	// Resuming. A saved partial state comes before the reason for it.
	{"partially received snapshot is saved", ErrInterrupted},
	{"resume token is corrupt", ErrBadToken},
	{"used in the initial send no longer exists", ErrBadToken},
	{"incremental source", ErrNoBase}, // refined below
	{"cannot resume send", ErrBadToken},
	// What a resumed stream meets that nothing here waits for: the kernel's EINVAL, to
	// which 2.3 gives a reason of its own. Embedded data is in every stream of ours,
	// encryption in none.
	{"incompatible embedded data stream feature with encrypted receive", ErrBadToken},
	{"contains partially-complete state", ErrBusy},

	// Streams.
	{"has been modified", ErrDiverged},
	{"most recent snapshot of", ErrNoBase},
	{"local origin for clone", ErrNoBase},
	{"does not match incremental source", ErrNoBase},
	{"not an ancestor", ErrNoBase},
	{"not an earlier snapshot from the same fs", ErrNoBase},
	{"space quota exceeded", ErrNoSpace},
	{"checksum mismatch", ErrBadStream}, // "or incomplete stream"
	{"failed to read from stream", ErrBadStream},
	{"invalid stream", ErrBadStream},
	{"invalid backup stream", ErrBadStream},
	{"incomplete stream", ErrBadStream},
	{"bad magic number", ErrBadStream},
	{"stream has unsupported feature", ErrUnsupported},
	{"must be upgraded to receive", ErrUnsupported},
	{"must be upgraded to use", ErrUnsupported},
	{"must be upgraded to set", ErrUnsupported},

	// Space.
	{"out of space", ErrNoSpace},
	{"no space left on device", ErrNoSpace},
	{"disk quota exceeded", ErrNoSpace},
	{"size is greater than available space", ErrNoSpace},

	// Dependants and users.
	{"has dependent clones", ErrHasClones},
	{"have dependent clones", ErrHasClones},
	{"filesystem already mounted", ErrExists},
	{"it's being held", ErrBusy},
	{"is busy", ErrBusy},
	{"resource busy", ErrBusy},
	{"device is in use", ErrBusy},

	// Names. The second is mount's word for a snapshot that is not there.
	{"does not exist", ErrNotFound},
	{"unable to open the dataset", ErrNotFound},
	{"no such pool", ErrNotFound},
	{"no pools available to import", ErrNotFound},
	{"no such file or directory", ErrNotFound},
	{"could not find any snapshots to destroy", ErrNotFound},
	{"already exists", ErrExists},
	{"tag already exists", ErrExists},
	{"bookmark exists", ErrExists},
	{"conflicting snapshot", ErrExists},
	{"must specify -f to overwrite", ErrExists},

	// Arguments.
	{"invalid property", ErrInvalid},
	{"bad property", ErrInvalid},
	{"is readonly", ErrInvalid},
	{"must be one of", ErrInvalid},
	{"cannot be inherited", ErrInvalid},
	{"multiple snapshots of same fs not allowed", ErrInvalid},
	{"bad numeric value", ErrInvalid},
	{"size is less than current used", ErrInvalid},
	{"no mountpoint set", ErrInvalid},
	{"legacy mountpoint", ErrInvalid},
	{"'canmount' property is set to 'off'", ErrInvalid},
	{"not a cloned filesystem", ErrInvalid},
	{"invalid character", ErrInvalid},
	{"name is too long", ErrInvalid},
	{"invalid argument", ErrInvalid},
	{"not supported", ErrUnsupported},
	{"unsupported version or feature", ErrUnsupported},
	{"unrecognized command", ErrUnsupported},
	{"invalid option", ErrUnsupported},
}

// kindOf finds the kind of what a zfs command printed, or nil.
func kindOf(stderr string) error {
	text := strings.ToLower(strings.Join(strings.Fields(stderr), " "))
	for _, k := range kinds {
		if strings.Contains(text, k.text) {
			return k.kind
		}
	}
	return nil
}

// withoutNames leaves out the names of snapshots and bookmarks that have a blank in them,
// which may say anything: in quotes, or as they were given to the command.
func withoutNames(stderr string, argv []string) string {
	names := quotedNames(stderr)
	for _, arg := range argv {
		if at := strings.IndexAny(arg, "@#"); at >= 0 {
			for short := range strings.SplitSeq(arg[at+1:], ",") {
				names = append(names, arg[:at+1]+short)
			}
		}
	}
	for _, name := range names {
		if strings.Contains(name, " ") {
			stderr = strings.ReplaceAll(stderr, name, "")
		}
	}
	return stderr
}

// quotedNames are the datasets, snapshots and bookmarks that zfs named in its
// complaint, in order and once each: what was wrong in a command with many names.
func quotedNames(stderr string) []string {
	var names []string
	seen := map[string]bool{}
	for i, part := range strings.Split(stderr, "'") {
		if i%2 == 0 || seen[part] || CheckDataset(part) != nil && CheckSnapshot(part) != nil && CheckBookmark(part) != nil {
			continue
		}
		if !strings.ContainsAny(part, "/@#") {
			continue // a property or a command, not a name
		}
		seen[part] = true
		names = append(names, part)
	}
	return names
}
