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

// Where the files are in a copy is known by the copy, or by its volume, and not by who asks.
func TestCopyOptions(t *testing.T) {
	key, value := volume.WholeOption()
	whole := map[string]string{key: value}
	for _, tt := range []struct {
		was   map[string]string
		whole bool
		given map[string]string
		want  string
		fails bool
	}{
		{nil, false, nil, "", false},
		{nil, false, whole, value, false}, // a backup says so
		{nil, true, nil, value, false},
		{nil, true, map[string]string{key: ""}, "", true},
		{whole, false, map[string]string{"size": "1G"}, value, false},
		{whole, false, map[string]string{key: "data"}, "", true},
		{map[string]string{"replicas": "1"}, false, whole, "", true},
		{map[string]string{"replicas": "1"}, true, whole, value, false},
	} {
		got, err := copyOptions(tt.was, tt.whole, tt.given)
		if got[key] != tt.want || (volume.CodeOf(err) == volume.CodeInvalid) != tt.fails || (err != nil) != tt.fails {
			t.Errorf("%+v: %v, %v", tt, got, err)
		}
	}
}
