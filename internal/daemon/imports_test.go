package daemon

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/state"
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

// A dry run tells what of the dataset does not stay, and where copies come from it.
func TestImportSteps(t *testing.T) {
	has := map[string]string{"zfs.recordsize": "64K", "zfs.compression": "zstd", "zfs.atime": "off", "size": "1073741824"}
	spec := func(opts map[string]string) volume.Spec {
		s, err := importSpec(has, opts)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, tt := range []struct {
		spec     volume.Spec
		replicas []string
		missing  string
		want     string
	}{
		{spec(nil), nil, "", ""},
		{spec(nil), []string{"n2", "n3"}, "", "copy it to n2, n3"},
		{spec(map[string]string{"size": "none"}), nil, "", "clear its refquota of 1GiB"},
		{spec(map[string]string{"size": "2G", "profile": "database"}), nil, "no node", "set size=2GiB instead of 1GiB; set zfs.compression=lz4 instead of zstd; set zfs.recordsize=16K instead of 64K; have fewer copies than it is to have: no node"},
		{volume.Spec{Size: 1 << 30}, []string{"n2"}, "one is missing", "set zfs.atime=inherit instead of off; set zfs.compression=inherit instead of zstd; drop zfs.recordsize=64K; copy it to n2; have fewer copies than it is to have: one is missing"},
	} {
		if got := strings.Join(importSteps(has, tt.spec, tt.replicas, tt.missing), "; "); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

// A node that has yet to give somebody's dataset back is not removed.
func TestGivesBack(t *testing.T) {
	s := state.New()
	apply := func(c state.Command) {
		t.Helper()
		next, res := state.Apply(s, s.Index+1, state.Envelope{Command: c})
		if res.Err != nil {
			t.Fatal(res.Err)
		}
		s = next
	}
	const n1, n2 = volume.NodeID("n1"), volume.NodeID("n2")
	apply(state.InitCluster{Cluster: state.Cluster{ID: "c"}, Node: state.Node{ID: n1, Name: "n1"}})
	for i, adopt := range []string{"tank/pgdata", "aside", ""} {
		id := volume.ID(fmt.Sprintf("00000000000000a%d", i))
		apply(state.CreateVolume{ID: id, Name: fmt.Sprint("v", i), Spec: volume.Spec{}, Placement: volume.Placement{Primary: n1}, Adopt: adopt})
		if v := givesBack(s, n1); (v != nil) != (i > 0) {
			t.Errorf("%q while it is made: %+v", adopt, v)
		}
		apply(state.AbortCreate{ID: id, Epoch: s.Volume(id).Epoch, Reason: "given up"})
		if v := givesBack(s, n1); v == nil || v.Adopt != "tank/pgdata" || givesBack(s, n2) != nil {
			t.Errorf("%q given up: %+v", adopt, v)
		}
	}
	apply(state.ForgetVolume{ID: "00000000000000a0"})
	if v := givesBack(s, n1); v != nil {
		t.Errorf("forgotten: %+v", v)
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
