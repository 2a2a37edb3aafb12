package volume

import (
	"maps"
	"slices"
	"strings"
)

// ChangeableOptions are those that can change on a volume with data, in the order in
// which help shows them. The others are properties of what is on its disks already.
func ChangeableOptions() []string {
	return []string{"size", "replicas", "remote", "interval", "snapshots", "failover", "max-loss", "prefer", "avoid", "zone", "ports"}
}

// OptionChange is one option of a volume before and after. "" is: not set.
type OptionChange struct {
	Option string `json:"option"`
	From   string `json:"from"`
	To     string `json:"to"`
}

// Change is the spec with some options changed, which are read as ParseOptions reads
// them; size=none removes the limit. What cannot change on a volume with data is an
// *Error of CodeInvalid.
func (s Spec) Change(opts map[string]string) (Spec, error) {
	merged := s.Options()
	can := strings.Join(ChangeableOptions(), ", ")
	for _, name := range slices.Sorted(maps.Keys(opts)) {
		if !slices.Contains(ChangeableOptions(), name) {
			if !slices.Contains(OptionNames(), name) {
				err := Errorf(CodeInvalid, "unknown volume option %s", clip(name))
				if near := nearest(name); slices.Contains(ChangeableOptions(), near) {
					return Spec{}, err.WithHint("did you mean %q? What can change is %s", near, can)
				}
				return Spec{}, err.WithHint("what can change is %s", can)
			}
			return Spec{}, Errorf(CodeInvalid, "option %s stays as it was when the volume was made", name).
				WithHint("what can change is %s; for anything else make another volume and copy the data", can)
		}
		if merged[name] = opts[name]; name == "size" && opts[name] == NoSize {
			delete(merged, name)
		}
	}
	// The bound that follows the interval goes on following it.
	if _, ok := opts["max-loss"]; !ok && s.MaxLoss == max(DefaultMaxLoss, 2*s.Interval) {
		delete(merged, "max-loss")
	}
	next, err := ParseOptions(merged)
	if err != nil {
		return Spec{}, err
	}
	// A profile of this version must not set what only it knows.
	next.Profile, next.ZFS = s.Profile, s.ZFS
	return next, nil
}

// NoSize is how a volume's limit is removed.
const NoSize = "none"

// Changes are the options that differ between two specs, in the order of help.
func (s Spec) Changes(to Spec) []OptionChange {
	before, after := s.Options(), to.Options()
	var out []OptionChange
	for _, name := range OptionNames() {
		if before[name] != after[name] {
			out = append(out, OptionChange{Option: name, From: before[name], To: after[name]})
		}
	}
	return out
}
