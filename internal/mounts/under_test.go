package mounts

import "testing"

func TestUnder(t *testing.T) {
	root := makeProc(t, proc{pid: 1, tid: 1, comm: "init", ns: 1, mounts: "host.mountinfo"})
	tests := []struct {
		dir, on string
		shared  bool
	}{
		{"/var/lib/flocker/volumes", "/", true},
		{"/sys/kernel/x", "/sys", true},
		{"/system", "/", true}, // /sys is not above it
		{"/var/lib/flocker/mnt/77ab4be093a1c7de/data", "/var/lib/flocker/mnt/77ab4be093a1c7de", false},
		{"/sys/kernel/security", "/sys/kernel/security", true},
	}
	for _, tt := range tests {
		if e, err := Under(root, tt.dir); err != nil || e.Mountpoint != tt.on || e.Shared() != tt.shared {
			t.Errorf("%s is on %s, shared %v, %v; want %s, %v", tt.dir, e.Mountpoint, e.Shared(), err, tt.on, tt.shared)
		}
	}
	if e, err := Under(t.TempDir(), "/x"); err == nil {
		t.Errorf("without a mount table: %+v", e)
	}
}
