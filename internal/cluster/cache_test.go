package cluster

import (
	"bytes"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/state"
)

// Only what a later version has written is a reason not to begin: flockd does without what is damaged.
func TestReadable(t *testing.T) {
	var b bytes.Buffer
	if err := state.New().Marshal(&b); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, written string
		ok            bool
	}{
		{"nothing", "", true},
		{"this version's", b.String(), true},
		{"one more field", strings.Replace(b.String(), `"index":`, `"later":1,"index":`, 1), false},
		{"a field of another form", strings.Replace(b.String(), `"index":0`, `"index":"zero"`, 1), false},
		{"a later format", strings.Replace(b.String(), `"format":1`, `"format":2`, 1), false},
		{"damaged", b.String()[:b.Len()/2], true},
	} {
		d := NewMemDisk()
		if c.written != "" {
			if err := d.Write(fileCache, []byte(c.written)); err != nil {
				t.Fatal(err)
			}
		}
		if err := Readable(d); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.name != "nothing" && c.name != "this version's" && c.written == b.String() {
			t.Errorf("%s: it is this version's", c.name)
		}
	}
}
