package daemon

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/doctor"
)

// fakeMachine makes a /proc and a /sys in which flockd (7) has all it needs but for the metrics'
// port, which nginx (9) has, gossip's UDP, and the proxy's, which nobody has.
func fakeMachine(t *testing.T) osExaminer {
	t.Helper()
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	line := func(local, state, inode string) string {
		return "   0: " + local + " 00000000:0000 " + state + " 00000000:00000000 00:00000000 00000000     0        0 " + inode + " 1 0 100 0 0 10 0\n"
	}
	put("proc/self/net/tcp", head+line("0100007F:11AD", "0A", "100")+line("00000000:11AE", "01", "106")) // 4525, and a connection of 4526
	put("proc/self/net/tcp6", head+line("00000000000000000000000000000000:11AB", "0A", "101")+line("00000000000000000000000000000000:11AC", "0A", "102"))
	put("proc/self/net/udp", head)
	put("proc/self/net/unix", "Num       RefCount Protocol Flags    Type St Inode Path\n"+
		"0000000002c732b8: 00000003 00000000 00000000 0001 03 2852149\n"+
		"0000000002c732b9: 00000002 00000000 00010000 0001 01 103 /run/flocker/flockd.sock\n"+
		"0000000002c732ba: 00000003 00000000 00000000 0001 03 104 /run/docker/plugins/flocker.sock\n"+ // only a connection to what is gone
		"0000000002c732bb: 00000002 00000000 00010000 0001 01 105 /run/other.sock\n")
	put("proc/self/mountinfo", "27 1 253:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n30 27 0:9 / /var/lib/flocker rw - zfs tank/state rw\n")
	link := func(to, name string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("/usr/local/bin/flockd", "proc/self/exe")
	link("/", "proc/self/root")
	for pid, of := range map[string]struct {
		comm, exe, root string
		inodes          []string
	}{
		"7":  {"flockd", "/usr/local/bin/flockd", "/", []string{"101", "102", "103", "104", "106"}},
		"9":  {"nginx", "/usr/sbin/nginx", "/", []string{"100"}},
		"11": {"flockd", "/usr/local/bin/flockd (deleted)", "/", nil}, // from before an upgrade
		"12": {"flockd", "/tmp/flockd", "/", nil},
		"13": {"flockd", "/usr/local/bin/flockd", dir, nil}, // of a container
	} {
		put("proc/"+pid+"/comm", of.comm+"\n")
		put("proc/"+pid+"/fd/x", "")
		link(of.exe, "proc/"+pid+"/exe")
		link(of.root, "proc/"+pid+"/root")
		for i, inode := range of.inodes {
			link("socket:["+inode+"]", filepath.Join("proc", pid, "fd", string(rune('a'+i))))
		}
	}
	put("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n")
	put("sys/devices/system/clocksource/clocksource0/available_clocksource", "hpet acpi_pm \n")
	cfg := Config{MountDir: "/var/lib/flocker/volumes-of-a-test"}.WithDefaults()
	return osExaminer{cfg: cfg, proc: filepath.Join(dir, "proc"), sys: filepath.Join(dir, "sys")}
}

// examined is what the machine tells.
func examined(x osExaminer) (f doctor.Facts) {
	var a asking
	a.gather(context.Background(), &f, machine(x, true))
	return f
}

func TestMachine(t *testing.T) {
	x := fakeMachine(t)
	f := examined(x)
	if len(f.Unknown) > 0 {
		t.Errorf("not found out: %v", f.Unknown)
	}
	if want := (&doctor.Clock{Source: "hpet", Available: []string{"hpet", "acpi_pm"}}); !reflect.DeepEqual(f.Clock, want) {
		t.Errorf("clock %+v, want %+v", f.Clock, want)
	}
	if want := (doctor.Mount{Dir: "/var/lib/flocker/volumes-of-a-test", On: "/var/lib/flocker"}); f.Mount == nil || *f.Mount != want {
		t.Errorf("mount %+v, want %+v", f.Mount, want)
	}
	want := map[string]string{
		"unix /run/flocker/flockd.sock": "ours", "unix /run/docker/plugins/flocker.sock": "nobody's", "tcp 127.0.0.1:4525": "nginx (9)",
		"tcp :4523": "ours", "tcp :4524": "ours", "udp :4524": "nobody's", "tcp :4526": "nobody's",
	}
	got := map[string]string{}
	for _, p := range f.Ports {
		who := "nobody's"
		switch {
		case p.Ours:
			who = "ours"
		case p.Held:
			who = p.By
		}
		got[p.Network+" "+p.Address] = who
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("ports %v\nwant %v", got, want)
	}
	if all, err := x.Ports(t.Context(), false); err != nil || len(all) != 3 {
		t.Errorf("a machine in no cluster needs %v, %v; want the sockets and the metrics' port", all, err)
	}
	x.cfg.HTTPListen, x.cfg.DockerHost = "off", "off"
	if all, err := x.Ports(t.Context(), false); err != nil || len(all) != 1 {
		t.Errorf("without engine and metrics it needs %v, %v; want its socket", all, err)
	}
}

// What cannot be read is said.
func TestMachineUnknown(t *testing.T) {
	x := fakeMachine(t)
	x.sys = t.TempDir()
	if err := os.Remove(filepath.Join(x.proc, "self/net/udp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(x.proc, "self/mountinfo")); err != nil {
		t.Fatal(err)
	}
	f := examined(x)
	var checks []string
	for _, u := range f.Unknown {
		checks = append(checks, u.Check)
	}
	if strings.Join(checks, " ") != "clocksource mount ports" || f.Clock != nil || f.Ports != nil || f.Mount != nil {
		t.Errorf("not found out: %v; found %+v", f.Unknown, f)
	}
}

// Anybody may call himself flockd.
func TestOurs(t *testing.T) {
	x := fakeMachine(t)
	for pid, want := range map[string]bool{"7": true, "9": false, "11": true, "12": false, "13": false, "99": false} {
		if got := x.ours(filepath.Join(x.proc, pid)); got != want {
			t.Errorf("process %s is ours: %t", pid, got)
		}
	}
	if os.Geteuid() == 0 { // else files cannot be given to another user
		dir := filepath.Join(x.proc, "7")
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if x.ours(dir) {
			t.Error("another user's process is ours")
		}
	}
}
