package fence

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/flocker-io/flocker/internal/volume"
)

// A fencer that is restarted under a lease leaves its watchdog running. The next one
// feeds it, or stops it where it is to use another means: nobody else would. One that
// somebody has open is left alone, and so is what nobody knows of.
func TestLeftWatchdog(t *testing.T) {
	for _, c := range []struct {
		name   string
		state  string // as sysfs has it
		held   bool   // by another process: it cannot be opened
		policy Policy
		armed  bool
		safety volume.Safety
		ours   bool
		said   string // to the device
	}{
		{"it does not run", "inactive", false, PolicyAuto, true, volume.SafetyWatchdog, false, ""},
		{"systemd has it", "active", true, PolicyAuto, true, volume.SafetySysrq, false, ""},
		{"an earlier fencer has left it", "active", false, PolicyAuto, true, volume.SafetyWatchdog, true, ""},
		{"and it is required", "active", false, PolicyWatchdog, true, volume.SafetyWatchdog, true, ""},
		{"the operator wants none now", "active", false, PolicySysrq, true, volume.SafetySysrq, false, "V"},
		{"nor a reset", "active", false, PolicyOff, true, volume.SafetySoftware, false, "V"},
		{"nobody knows of it", "active", false, PolicyOff, false, volume.SafetySoftware, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			sysfs, dev := t.TempDir(), t.TempDir()
			device := filepath.Join(dev, "watchdog0")
			for file, text := range map[string]string{"state": c.state, "nowayout": "0"} {
				if err := os.MkdirAll(filepath.Join(sysfs, "watchdog0"), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(sysfs, "watchdog0", file), []byte(text+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			// A directory cannot be opened for writing, as a device that is held cannot.
			err := os.WriteFile(device, nil, 0o644)
			if c.held {
				os.Remove(device)
				err = os.Mkdir(device, 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
			dogs, err := findDogs(sysfs, dev)
			if err != nil {
				t.Fatal(err)
			}
			m := machineWith(slog.New(slog.NewTextHandler(t.Output(), nil)), c.policy, "", dogs, true, c.armed)
			if got, _ := m.safety(); got != c.safety || (m.dev != nil) != c.ours {
				t.Errorf("safety %s, has it open: %v; want %s, %v", got, m.dev != nil, c.safety, c.ours)
			}
			if said, _ := os.ReadFile(device); string(said) != c.said {
				t.Errorf("it was told %q, want %q", said, c.said)
			}
			if err := m.disarm(); err != nil {
				t.Fatal(err)
			}
			if said, _ := os.ReadFile(device); c.ours && string(said) != "V" {
				t.Errorf("no lease is armed, and it was told %q", said)
			}
		})
	}
}
