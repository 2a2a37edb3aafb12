package daemon

import (
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/volume"
)

// What a dataset has stays, unless its user asks for something else.
func TestImportSpec(t *testing.T) {
	has := map[string]string{"zfs.recordsize": "64K", "zfs.compression": "zstd", "size": "1073741824"}
	for _, tt := range []struct {
		opts map[string]string
		want map[string]string // "": not there
		why  string
	}{
		{nil, map[string]string{"zfs.recordsize": "64K", "zfs.compression": "zstd", "size": "1GiB", "replicas": "1", "zfs.flocker:subdir": "."}, ""},
		{map[string]string{"zfs.recordsize": "8K", "size": "none", "replicas": "2"}, map[string]string{"zfs.recordsize": "8K", "size": "", "replicas": "2"}, ""},
		{map[string]string{"profile": "database"}, map[string]string{"zfs.recordsize": "16K", "zfs.compression": "lz4", "snapshots": "1h:24,1d:7", "size": "1GiB"}, ""},
		{map[string]string{"uid": "0"}, nil, "uid cannot be given"},
		{map[string]string{"gid": "1"}, nil, "gid cannot be given"},
		{map[string]string{"mode": "0755"}, nil, "mode cannot be given"},
		{map[string]string{"from": "pg"}, nil, "from cannot be given"},
		{map[string]string{"size": "banana"}, nil, "size=\"banana\""},
		{map[string]string{"zfs.flocker:subdir": "data"}, nil, "flocker:subdir"},
	} {
		spec, err := importSpec(has, tt.opts)
		if (err == nil) != (tt.why == "") || err != nil && (volume.CodeOf(err) != volume.CodeInvalid || !strings.Contains(err.Error(), tt.why)) {
			t.Errorf("%v: %v, want %q", tt.opts, err, tt.why)
			continue
		}
		if err != nil {
			continue
		}
		got := spec.Options()
		for k, want := range tt.want {
			if got[k] != want {
				t.Errorf("%v: %s=%s, want %s", tt.opts, k, got[k], want)
			}
		}
		if !spec.Whole() {
			t.Errorf("%v: it is not all of the dataset", tt.opts)
		}
	}
	if len(has) != 3 {
		t.Errorf("what the dataset has was changed: %v", has)
	}
}
