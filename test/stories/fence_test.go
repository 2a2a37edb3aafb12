package stories

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/fence"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/test/lab"
)

//go:embed fence.py
var fencePython string

// fencing is a node on which the story plays flockd's part towards the fencer: flockd
// itself is frozen meanwhile, for a cluster of one has manual failover and it would disarm.
type fencing struct {
	cluster
	n       *lab.Node
	dataset string
	path    string // of the volume's files on the node
}

// fenceTime is what an emulated machine is given to stop its writers.
const fenceTime = 20 * time.Second

func startFencing(t *testing.T) fencing {
	t.Helper()
	f := fencing{cluster: clean(t)}
	f.n = f.n1
	f.n.Put("/root/fence.py", fencePython, 0o644)
	f.Step("a cluster of one, with a volume", func() {
		f.n.Flockctl(initArgs(f.n)...)
		if _, err := createOn(f.n, "v", "replicas=0"); err != nil {
			t.Fatal(err)
		}
		v, err := f.n.Volume("v")
		if err != nil {
			t.Fatal(err)
		}
		f.dataset = copyOf(v)
	})
	return f
}

// ask the fencer something.
func (f *fencing) ask(request map[string]any) (fence.Status, error) {
	text, err := json.Marshal(request)
	if err != nil {
		return fence.Status{}, err
	}
	out, err := f.n.Try("python3 /root/fence.py ask " + lab.Quote(string(text)))
	if err != nil {
		return fence.Status{}, err
	}
	var a struct {
		Status fence.Status
		Error  string
	}
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		return a.Status, fmt.Errorf("the fencer said %q: %w", out, err)
	}
	if a.Error != "" {
		return a.Status, fmt.Errorf("the fencer refused: %s", a.Error)
	}
	return a.Status, nil
}

// arm the fencer with a lease that runs so long from now.
func (f *fencing) arm(no uint64, d time.Duration) {
	f.Helper()
	s, err := f.ask(map[string]any{"do": "arm", "lease": map[string]any{
		"no": no, "round": 1, "until": d.Nanoseconds(), "fence": fenceTime.Nanoseconds(), "root": "tank/flocker",
	}})
	if err != nil || s.State != fence.PhaseArmed {
		f.Fatalf("arming lease %d: %+v, %v", no, s, err)
	}
}

// waitFenced waits until the fencer says that it is done.
func (f *fencing) waitFenced() fence.Status {
	f.Helper()
	var s fence.Status
	f.Until("all writers to be stopped", time.Minute, func() (err error) {
		if s, err = f.ask(map[string]any{"do": "status"}); err == nil && s.State != fence.PhaseFenced {
			err = fmt.Errorf("%s: %s", s.State, s.Problem)
		}
		return err
	})
	f.Logf("    %s", f.n.Sh("journalctl -u flockd-fence --no-pager -o cat | grep 'all writers are stopped' | tail -n1 | sed 's/.*took=/took=/'"))
	return s
}

// writers start everything that could use a volume: a container that writes mapped
// memory, a command in it, a shell of the host, and one whose namespace has let go of the
// mount while it goes on writing. It returns the container's ID.
func (f *fencing) writers() string {
	f.Helper()
	id := f.n.Docker("run", "-d", "--name", "c1", "--restart", "always", "-v", "/usr:/usr:ro", "-v", "/usr/lib:/lib:ro", "-v", "/usr/lib64:/lib64:ro",
		"-v", "/root/fence.py:/fence.py:ro", "--mount", "type=volume,volume-driver=flocker,src=v,dst=/d", busyboxImage, "/usr/bin/python3", "/fence.py", "mmap", "/d/mapped")
	f.path = f.n.Docker("volume", "inspect", "-f", "{{.Mountpoint}}", "v")
	append := "while :; do echo x >>%s; sleep 0.02; done"
	f.n.Docker("exec", "-d", "c1", "sh", "-c", fmt.Sprintf(append, "/d/exec"))
	f.n.Sh("systemd-run --quiet --collect --unit=host-shell bash -c " + lab.Quote("cd "+f.path+" && "+fmt.Sprintf(append, "host")))
	f.n.Sh("systemd-run --quiet --collect --unit=detached unshare -m bash -c " + lab.Quote("exec 3>>"+f.path+"/detached && umount -l "+strings.TrimSuffix(f.path, "/data")+
		" && while :; do echo x >&3; sleep 0.02; done"))
	f.n.Sh("systemd-run --quiet --unit=private unshare -m sleep 1000000")
	for _, file := range []string{"mapped", "exec", "host", "detached"} {
		f.Until(file+" to be written", soon, func() error { _, err := f.n.Try("test -s " + f.path + "/" + file); return err })
	}
	return strings.TrimSpace(id)
}

// checkNoWriter is what must hold when a node says that it is fenced: no mount table has
// the volume, ZFS has nothing of it open, and it does not change any more.
func (f *fencing) checkNoWriter() {
	f.Helper()
	if out := f.n.Sh("cat /proc/[0-9]*/task/*/mountinfo 2>/dev/null | grep " + f.dataset + " || true"); out != "" {
		f.Errorf("still mounted:\n%s", out)
	}
	if out := f.n.Sh("cat /proc/spl/kstat/zfs/tank/objset-* 2>/dev/null | grep " + f.dataset + " || true"); out != "" {
		f.Errorf("ZFS still has it open:\n%s", out)
	}
	// A snapshot of this moment, not of an earlier check: a mount alone, though nobody used it, may
	// write when it clears away what was unlinked.
	f.n.Sh("! zfs list " + f.dataset + "@fenced >/dev/null 2>&1 || zfs destroy " + f.dataset + "@fenced; zfs snapshot " + f.dataset + "@fenced")
	if out := f.n.Sh("zpool sync tank; zfs get -Hp -o value written@fenced " + f.dataset); out != "0" {
		f.Errorf("%s bytes were written after all writers were stopped", out)
	}
}

// What runs out stops everything that writes, while flockd and Docker stand still; and a
// fencer that is killed in the middle goes on.
func TestCoreFence(t *testing.T) {
	f := startFencing(t)
	var id string
	f.Step("a container writes mapped memory, a command in it appends, so do a shell of the host and a process whose mount was detached", func() { id = f.writers() })
	f.Step("flockd and Docker stand still, and the lease runs out", func() {
		f.n.Sh("systemctl kill -s STOP flockd docker")
		f.arm(1, 2*time.Second)
		s := f.waitFenced()
		if s.Saved.No != 1 || !s.Saved.Over || len(s.Fenced) != 1 || s.Fenced[0].Container != id || len(s.Fenced[0].Volumes) != 1 {
			t.Errorf("status %+v", s)
		}
		f.checkNoWriter()
		if out := f.n.Sh("systemctl is-active host-shell detached private || true"); out != "inactive\ninactive\nactive" {
			t.Errorf("host-shell, detached, private: %q; the first two wrote, the third used nothing", out)
		}
		if out := f.n.Sh("flockd fence status"); !strings.Contains(out, "fenced") || !strings.Contains(out, id[:12]) {
			t.Errorf("flockd fence status: %s", out)
		}
	})
	f.Step("what is mounted later is unmounted", func() {
		f.n.Sh("zfs mount " + f.dataset)
		f.Until("it to be unmounted", soon, func() error { _, err := f.n.Try("! grep -q " + f.dataset + " /proc/mounts"); return err })
		f.waitFenced()
		f.checkNoWriter()
	})
	f.Step("disarmed, all of it may run again", func() {
		if s, err := f.ask(map[string]any{"do": "disarm"}); err != nil || s.State != fence.PhaseIdle {
			t.Fatalf("disarmed: %+v, %v", s, err)
		}
		f.n.Sh("systemctl kill -s CONT flockd docker; zfs destroy " + f.dataset + "@fenced")
		f.Until("the container to run again", later, func() error { _, err := f.n.TryDocker("exec", "c1", "test", "-s", "/d/exec"); return err })
		f.n.Docker("exec", "-d", "c1", "sh", "-c", "while :; do echo x >>/d/exec; sleep 0.02; done")
	})
	f.Step("a restart of the fencer under a lease disturbs nobody", func() {
		f.n.Sh("systemctl kill -s STOP flockd")
		f.arm(2, time.Hour)
		f.n.Sh("systemctl restart flockd-fence")
		s, err := f.ask(map[string]any{"do": "status"})
		if err != nil || s.State != fence.PhaseArmed || s.Lease.No != 2 {
			t.Errorf("after a restart: %+v, %v", s, err)
		}
		f.n.Docker("exec", "c1", "test", "-s", "/d/exec")
	})
	f.Step("one that is killed in the middle goes on", func() {
		f.n.Sh("systemctl kill -s STOP docker")
		f.arm(3, 2*time.Second)
		// With a priority above the fencer's, or it would be done before this is scheduled.
		f.n.Sh(`pid=$(systemctl show -P MainPID flockd-fence)
chrt -r 20 sh -c "until grep -q '\"over\":true' /run/flocker/fence.json; do sleep 0.02; done; kill -9 $pid"`)
		f.waitFenced()
		f.checkNoWriter()
		if _, err := f.n.Try("journalctl -u flockd-fence --no-pager -o cat | grep \"earlier fencer's work goes on\" | grep -q 'over=true stopped=false'"); err != nil {
			t.Errorf("it was not killed in the middle: %v", err)
		}
	})
	f.Step("an operator stops everything, until he lifts it", func() {
		if _, err := f.ask(map[string]any{"do": "disarm"}); err != nil {
			t.Error(err)
		}
		f.n.Sh("zfs mount -o rw " + f.dataset + " && systemd-run --quiet --unit=host-shell --collect bash -c " + lab.Quote("cd "+f.path+" && sleep 1000000"))
		out := f.n.Sh("flockd fence now --reason 'the cable is cut'")
		if !strings.Contains(out, "fenced") || !strings.Contains(out, "cable") {
			t.Errorf("flockd fence now: %s", out)
		}
		f.checkNoWriter()
		if out := f.n.Sh("flockd fence lift"); !strings.Contains(out, "idle") {
			t.Errorf("flockd fence lift: %s", out)
		}
		f.n.Sh("systemctl stop private; systemctl reset-failed; systemctl kill -s CONT flockd docker")
	})
}

// What cannot be stopped ends with the machine: by the kernel's own reset when the time is
// over, by the watchdog also when the fencer itself stands still.
func TestFenceReset(t *testing.T) {
	f := startFencing(t)
	boot := func() string { return f.n.Sh("cat /proc/sys/kernel/random/boot_id") }
	// A loop device is the kernel's own: nobody can be killed for it.
	hold := func() {
		f.n.Docker("run", "-d", "--name", "c1", "--mount", "type=volume,volume-driver=flocker,src=v,dst=/d", busyboxImage, "sleep", "1000000")
		f.path = f.n.Docker("volume", "inspect", "-f", "{{.Mountpoint}}", "v")
		f.n.Sh("truncate -s 10M " + f.path + "/disk && losetup -f " + f.path + "/disk")
	}
	back := func(before string) {
		f.Until("the machine to be reset", later, func() error {
			now, err := f.n.Try("cat /proc/sys/kernel/random/boot_id")
			if err == nil && now == before {
				err = fmt.Errorf("it is still in the same boot")
			}
			return err
		})
		f.Do("wait", f.n.Name)
		s, err := f.ask(map[string]any{"do": "status"})
		if err != nil || s.State != fence.PhaseIdle {
			t.Errorf("after the reset: %+v, %v", s, err)
		}
		f.n.Docker("rm", "-f", "c1")
	}
	f.Step("a file that the kernel holds: the machine is reset when the time is over", func() {
		hold()
		if s, err := f.ask(map[string]any{"do": "status"}); err != nil || s.Safety != volume.SafetySysrq {
			t.Errorf("safety %s, %v; want sysrq", s.Safety, err)
		}
		before := boot()
		f.n.Sh("systemctl kill -s STOP flockd docker")
		f.arm(1, time.Second)
		back(before)
	})
	f.Step("with a watchdog, a fencer that stands still is enough", func() {
		f.n.Sh("modprobe softdog && systemctl restart flockd-fence")
		hold()
		before := boot()
		f.n.Sh("systemctl kill -s STOP flockd")
		f.arm(1, time.Hour)
		if s, err := f.ask(map[string]any{"do": "status"}); err != nil || s.Safety != volume.SafetyWatchdog {
			t.Errorf("safety %s, %v; want watchdog", s.Safety, err)
		}
		f.n.Sh("systemctl kill -s STOP flockd-fence")
		back(before)
	})
	f.Step("disarmed, the watchdog does not run", func() {
		f.n.Sh("modprobe softdog && systemctl restart flockd-fence && systemctl kill -s STOP flockd")
		f.arm(1, time.Hour)
		f.Until("the watchdog to run", soon, func() error { return f.watchdog("active") })
		if _, err := f.ask(map[string]any{"do": "disarm"}); err != nil {
			t.Error(err)
		}
		f.Until("the watchdog to be stopped", soon, func() error { return f.watchdog("inactive") })
		f.n.Sh("systemctl kill -s CONT flockd")
	})
}

func (f *fencing) watchdog(want string) error {
	out, err := f.n.Try("cat /sys/class/watchdog/watchdog0/state")
	if err != nil {
		return err
	}
	return lab.Want("watchdog", strings.TrimSpace(out), want)
}

// Hundreds of mounted volumes are let go of within the time for it.
func TestFenceMany(t *testing.T) {
	f := startFencing(t)
	const volumes = 500
	count := func() string { return f.n.Sh("grep -c tank/flocker/many- /proc/mounts || true") }
	f.Step(fmt.Sprintf("%d datasets, mounted and written to", volumes), func() {
		// What flockd does not know of it would report, each time it looks.
		f.n.Sh("systemctl kill -s STOP flockd")
		f.n.Sh(fmt.Sprintf("python3 /root/fence.py many %d", volumes))
		if got := count(); got != strconv.Itoa(volumes) {
			t.Fatalf("%s are mounted", got)
		}
	})
	f.Step("all of them are unmounted in time", func() {
		f.arm(1, time.Second)
		f.waitFenced()
		said := f.n.Sh("journalctl -u flockd-fence --no-pager -o cat | grep 'all writers are stopped' | tail -n1 | grep -o 'took=[^ ]*'")
		took, err := time.ParseDuration(strings.TrimPrefix(said, "took="))
		if err != nil || took > fenceTime {
			t.Errorf("the fencer says %s, %v; it has %s", said, err, fenceTime)
		}
		if got := count(); got != "0" {
			t.Errorf("%s are left", got)
		}
	})
}
