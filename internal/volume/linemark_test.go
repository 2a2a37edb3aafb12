package volume

import "testing"

// A mark counts for its own volume and line, and for those that began on that line.
func TestLineMarked(t *testing.T) {
	line := Line{Epoch: 3, GUID: 7}
	for _, tt := range []struct {
		name string
		mark string
		want bool
		bad  bool
	}{
		{"none", "", false, false},
		{"its own", line.Mark("v"), true, false},
		{"of a later line", Line{Epoch: 4, GUID: 8}.Mark("v"), true, false},
		{"of an older one", Line{Epoch: 2, GUID: 7}.Mark("v"), false, false},
		{"of another of that epoch", Line{Epoch: 3, GUID: 8}.Mark("v"), false, false},
		{"of another volume", line.Mark("w"), false, false},
		{"of a later line of another volume", Line{Epoch: 4, GUID: 8}.Mark("w"), false, false},
		{"nobody's", "x", false, true},
		{"nobody's epoch", "v x 7", false, true},
	} {
		if got, err := line.Marked("v", tt.mark); got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%s: %t, %v", tt.name, got, err)
		}
	}
	if got, _ := (Line{}).Marked("v", line.Mark("v")); got {
		t.Error("a copy is on the line of a volume that was never rolled back")
	}
}
