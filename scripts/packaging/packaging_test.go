// Package packaging is what flocker's .deb and .rpm are made of: the units, which scripts/provision installs as well, the
// scripts that dpkg and rpm run, and the list of files. It has no code; these are its tests.
package packaging

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var units = []string{"flockd.service", "flockd-fence.service", "flockd-proxy.service"}

// host is a directory that dpkg's scripts take for the machine, with a systemd that writes down what it is told.
type host struct {
	t    *testing.T
	root string
	bin  string
	log  string
	sys  string // what systemd knows: each unit's state and main process, the program that it starts, whether it is enabled
}

// newHost where active units run and are enabled. Where systemd is told one of others, that happens, in the words of a shell in
// the folder of what it knows; then only what these words do not end (exit) comes about.
func newHost(t *testing.T, active []string, others map[string]string) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{t: t, root: filepath.Join(dir, "root"), bin: filepath.Join(dir, "bin"), log: filepath.Join(dir, "log"), sys: filepath.Join(dir, "sys")}
	h.write("proc/mounts", "/dev/sda1 / ext4 rw 0 0\ntank /tank zfs rw 0 0\ntank/other/x /srv zfs rw 0 0\n")
	h.write("var/lib/flocker/node.key", "only here")
	h.write("run/systemd/system/x", "")
	h.write("usr/bin/flockd", "this version")
	if err := errors.Join(os.MkdirAll(h.bin, 0o755), os.MkdirAll(h.sys, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, u := range units {
		h.set(strings.TrimSuffix(u, ".service"), "inactive")
		h.set(strings.TrimSuffix(u, ".service")+".path", "/usr/bin/flockd")
	}
	for _, u := range active {
		h.set(u, "active")
		h.set(u+".pid", "1")
		h.set(u+".enabled", "")
	}
	fake := `#!/bin/sh
cd ` + h.sys + `
name=$(basename "$0")
for unit; do :; done
value() { cat "$1" 2>/dev/null || echo "$2"; }
case "$name $*" in
"systemctl show --property=MainPID --value "*) value "$unit.pid" 0; exit ;;
"systemctl show --property=ActiveState --value "*) value "$unit"; exit ;;
"systemctl show --property=LoadState --value "*) value "$unit.load" loaded; exit ;;
"systemctl show --property=ExecStart --value "*) echo "{ path=$(cat "$unit.path") ; argv[]=$(cat "$unit.path") x ; ignore_errors=no }"; exit ;;
"systemctl -q is-active "*) [ "$(value "$unit")" = active ]; exit ;;
"systemctl --quiet is-enabled "*) [ -e "$unit.enabled" ]; exit ;;
esac
echo "$name $*" >>` + h.log + `
case "$name $*" in
`
	for _, told := range slices.Sorted(maps.Keys(others)) {
		fake += `*" ` + told + `") ` + others[told] + " ;;\n"
	}
	fake += `esac
case "$1" in
kill) echo 0 >"$unit.pid"; echo activating >"$unit" ;;
start | restart | reload)
	echo active >"$unit"
	[ "$1" = start ] && [ "$(value "$unit.pid" 0)" != 0 ] || echo $$ >"$unit.pid" ;;
stop) shift; for unit; do echo inactive >"$unit"; echo 0 >"$unit.pid"; done ;;
esac
`
	for name, text := range map[string]string{"systemctl": fake, "systemd-run": fake, "sleep": "#!/bin/sh\n"} {
		if err := os.WriteFile(filepath.Join(h.bin, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// set what systemd knows.
func (h *host) set(name, value string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.sys, name), []byte(value+"\n"), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) write(name, text string) {
	h.t.Helper()
	name = filepath.Join(h.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
		h.t.Fatal(err)
	}
}

// program of a shell's words.
func (h *host) program(name, words string) {
	h.t.Helper()
	h.write(name, "#!/bin/sh\n"+words+"\n")
	if err := os.Chmod(filepath.Join(h.root, name), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) env() []string {
	return append(os.Environ(), "PATH="+h.bin+":"+os.Getenv("PATH"), "DPKG_ROOT="+h.root)
}

// run one of the scripts. did is what systemd was told, without what every unit's environment is.
func (h *host) run(script string, args ...string) (out string, did []string, err error) {
	h.t.Helper()
	_ = os.Remove(h.log)
	cmd := exec.Command("/bin/sh", append([]string{filepath.Join("scripts", script)}, args...)...)
	cmd.Env = h.env()
	b, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		h.t.Fatal(err)
	}
	return string(b), h.did(), err
}

// killFencer is how the fencer is ended: at once, and only it.
const killFencer = "kill --kill-who=main --signal=KILL flockd-fence"

func (h *host) did() (did []string) {
	h.t.Helper()
	told, err := os.ReadFile(h.log)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(told)) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "systemctl ")
		if i := strings.Index(line, "/usr/bin/flockd "); i >= 0 {
			line = line[i+len("/usr/bin/"):]
		}
		line = strings.TrimPrefix(line, "--quiet ")
		if line == killFencer {
			line = "kill flockd-fence"
		}
		did = append(did, line)
	}
	return did
}

// What dpkg and rpm run does no more to a machine than it may.
func TestScripts(t *testing.T) {
	all := []string{"flockd", "flockd-fence", "flockd-proxy"}
	const (
		mayRestart = "flockd fence may-restart"
		fencer     = mayRestart + ", kill flockd-fence, start flockd-fence"
		mayRun     = "daemon-reload, flockd may-run"
		proxy      = mayRun + ", reload flockd-proxy"
		whole      = proxy + ", " + fencer + ", " + mayRestart + ", restart flockd"
	)
	refuse := "echo it fails; exit 1"
	mute := func(from int) map[string]string { // the fencer's answer from then on
		return map[string]string{"/usr/bin/" + mayRestart: fmt.Sprintf(`[ $(echo x >>asked; wc -l <asked) -lt %d ] || { echo it does not answer; exit 1; }`, from)}
	}
	for _, tc := range []struct {
		name   string
		script string
		args   string
		active []string
		others map[string]string // see newHost
		known  map[string]string // what else systemd knows
		mounts string            // more of /proc/mounts
		flockd string            // what the package's flockd does, in words of a shell; "": it cannot be run
		want   string            // what systemd is told
		says   string
		fails  bool
	}{
		{name: "installed", script: "postinst", args: "configure", want: "daemon-reload", says: "systemctl enable --now"},
		{name: "installed by rpm", script: "postinst", args: "1", want: "daemon-reload"},
		{name: "upgraded", script: "postinst", args: "configure 1.0", active: all, want: whole},
		{name: "upgraded by rpm", script: "postinst", args: "2", active: all, want: whole},
		{name: "upgraded where nothing runs", script: "postinst", args: "configure 1.0", want: "daemon-reload"},
		{name: "upgraded where only the proxy runs", script: "postinst", args: "configure 1.0", active: all[2:], want: proxy},

		// A restart that kills containers, or leaves them without a guard, is worse than an old version.
		{name: "the lease was not renewed", script: "postinst", args: "configure 1.0", active: all, others: mute(1),
			want: proxy + ", " + mayRestart, says: "flockd and the fencer go on with the version before: it does not answer", fails: true},
		{name: "no beat is answered after the fencer's restart", script: "postinst", args: "configure 1.0", active: all, others: mute(2),
			want: proxy + ", " + fencer + ", " + mayRestart, says: "flockd goes on with the version before: it does not answer", fails: true},
		{name: "nobody would stand in for the fencer", script: "postinst", args: "configure 1.0", active: all[1:], want: proxy, says: "nobody would stand in"},
		{name: "the fencer comes and goes", script: "postinst", args: "configure 1.0", active: all, known: map[string]string{"flockd-fence": "activating"},
			want: proxy, says: "nothing was restarted: the fencer is activating", fails: true},
		{name: "the fencer has failed", script: "postinst", args: "configure 1.0", active: all, known: map[string]string{"flockd-fence": "failed"},
			want: proxy, says: "nothing was restarted: the fencer is failed", fails: true},
		{name: "the fencer is not wanted", script: "postinst", args: "configure 1.0", active: []string{"flockd", "flockd-proxy"},
			want: proxy, says: "nothing was restarted: the fencer is inactive"},
		{name: "the fencer runs, and is not to be found", script: "postinst", args: "configure 1.0", active: all,
			others: map[string]string{killFencer: refuse}, want: proxy + ", " + mayRestart + ", kill flockd-fence", says: "in the fencer's place", fails: true},
		{name: "the new fencer does not come up", script: "postinst", args: "configure 1.0", active: all, others: map[string]string{"start flockd-fence": refuse},
			want: proxy + ", " + fencer, says: "in the fencer's place", fails: true},
		{name: "the new fencer is not started, which is no failure", script: "postinst", args: "configure 1.0", active: all,
			others: map[string]string{"start flockd-fence": "echo inactive >flockd-fence; exit 0"}, want: proxy + ", " + fencer, says: "in the fencer's place", fails: true},
		{name: "the new flockd does not come up", script: "postinst", args: "configure 1.0", active: all, others: map[string]string{"restart flockd": refuse},
			want: whole, says: "flockd does not come up", fails: true},
		{name: "the new flockd is not started, which is no failure", script: "postinst", args: "configure 1.0", active: all,
			others: map[string]string{"restart flockd": "echo inactive >flockd; exit 0"}, want: whole, says: "flockd does not come up", fails: true},
		{name: "the proxy is not reloaded", script: "postinst", args: "configure 1.0", active: all, others: map[string]string{"reload flockd-proxy": refuse},
			want: whole, says: "the proxy goes on"},
		{name: "the new proxy does not come up, of which reload says nothing", script: "postinst", args: "configure 1.0", active: all,
			others: map[string]string{"reload flockd-proxy": "exit 0"}, want: whole, says: "the proxy goes on"},

		// An earlier version may not know all that a later one has written.
		{name: "it cannot read what there is", script: "postinst", args: "configure 1.0", active: all, others: map[string]string{"/usr/bin/flockd may-run": "echo a later format; exit 1"},
			want: mayRun, says: "what the one that runs has written: a later format", fails: true},
		{name: "it cannot read what there is, and the proxy alone runs", script: "postinst", args: "configure 1.0", active: all[2:],
			others: map[string]string{"/usr/bin/flockd may-run": refuse}, want: mayRun, says: "install that one again", fails: true},

		// Units that scripts/provision has left: a restart is that of another program, or of none.
		{name: "units of provision", script: "postinst", args: "configure 1.0", active: all, known: map[string]string{"flockd.path": "/usr/local/bin/flockd"},
			want: "daemon-reload", says: "(flockd:/usr/local/bin/flockd)"},
		{name: "units of provision, whose program is gone", script: "postinst", args: "configure 1.0", active: all, known: map[string]string{"flockd-fence.path": "/usr/local/bin/gone"},
			want: "daemon-reload", says: "put it back now", fails: true},
		{name: "units of provision, of which none runs", script: "postinst", args: "configure", known: map[string]string{"flockd-fence.path": "/usr/local/bin/gone"},
			want: "daemon-reload", says: "nothing was restarted"},
		{name: "units of provision, whose program is the package's", script: "postinst", args: "configure 1.0", active: all, known: map[string]string{"flockd.path": "/usr/local/bin/link"},
			want: whole},
		{name: "the proxy is not wanted", script: "postinst", args: "configure 1.0", active: all[:2], known: map[string]string{"flockd-proxy.path": "", "flockd-proxy.load": "masked"},
			want: mayRun + ", " + fencer + ", " + mayRestart + ", restart flockd"},
		{name: "an upgrade that was taken back", script: "postinst", args: "abort-upgrade 1.0", active: all},
		{name: "a removal that was taken back", script: "postinst", args: "abort-remove", active: all},

		{name: "before an upgrade", script: "prerm", args: "upgrade 1.1", active: all, mounts: "tank/flocker/v1 /v zfs rw 0 0\n"},
		{name: "before an upgrade by rpm", script: "prerm", args: "1", active: all, mounts: "tank/flocker/v1 /v zfs rw 0 0\n"},
		{name: "before its removal", script: "prerm", args: "remove", active: all,
			want: "stop flockd, stop flockd-proxy flockd-fence, disable flockd flockd-proxy flockd-fence"},
		{name: "before its removal by rpm", script: "prerm", args: "0", active: all,
			want: "stop flockd, stop flockd-proxy flockd-fence, disable flockd flockd-proxy flockd-fence"},
		{name: "in use", script: "prerm", args: "remove", active: all, mounts: "tank/flocker/v1 /v/v1 zfs rw 0 0\n", says: "/v/v1", fails: true},
		{name: "in use where the table does not show it", script: "prerm", args: "remove", active: all,
			flockd: `[ "$*" != "fence used" ] || { echo "flockd: volumes are still in use: process 7 (postgres)" >&2; exit 1; }`, says: "process 7 (postgres)", fails: true},
		{name: "nobody knows whether it is in use", script: "prerm", args: "remove", active: all, flockd: "exit 3", says: "ended with code 3", fails: true},
		{name: "looked at thoroughly, and not in use", script: "prerm", args: "remove", active: all, flockd: "exit 0",
			want: "stop flockd, stop flockd-proxy flockd-fence, disable flockd flockd-proxy flockd-fence"},
		{name: "what was stopped does not stay so", script: "prerm", args: "remove", active: all, others: map[string]string{"stop flockd-proxy flockd-fence": refuse},
			want: "stop flockd, stop flockd-proxy flockd-fence, start flockd-fence flockd-proxy flockd", says: "what ran is started again", fails: true},
		{name: "what did not run is not started", script: "prerm", args: "remove", active: all[1:], others: map[string]string{"disable flockd flockd-proxy flockd-fence": refuse},
			want: "stop flockd, stop flockd-proxy flockd-fence, disable flockd flockd-proxy flockd-fence, start flockd-fence flockd-proxy", fails: true},
		{name: "nothing ran, and nothing is started", script: "prerm", args: "remove", others: map[string]string{"disable flockd flockd-proxy flockd-fence": refuse},
			want: "stop flockd, stop flockd-proxy flockd-fence, disable flockd flockd-proxy flockd-fence", fails: true},

		{name: "removed", script: "postrm", args: "remove", want: "daemon-reload"},
		{name: "purged", script: "postrm", args: "purge", says: "all datasets stay"},
		{name: "purged, with a directory that root cannot remove", script: "postrm", args: "purge", says: "chattr -f -i /var/lib/flocker/volumes/*; rm -r"},
		{name: "after an upgrade", script: "postrm", args: "upgrade 1.1"},
		{name: "after an upgrade by rpm", script: "postrm", args: "1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t, tc.active, tc.others)
			h.write("usr/local/bin/flockd", "of another version")
			if err := errors.Join(os.Chmod(filepath.Join(h.root, "usr/local/bin/flockd"), 0o755),
				os.Symlink("../../bin/flockd", filepath.Join(h.root, "usr/local/bin/link"))); err != nil {
				t.Fatal(err)
			}
			for name, value := range tc.known {
				h.set(name, value)
			}
			if tc.flockd != "" {
				h.program("usr/bin/flockd", tc.flockd)
			}
			if tc.mounts != "" {
				h.write("proc/mounts", "tank /tank zfs rw 0 0\n"+tc.mounts)
			}
			out, did, err := h.run(tc.script, strings.Fields(tc.args)...)
			if got := strings.Join(did, ", "); got != tc.want {
				t.Errorf("systemd was told: %s\nwant: %s", got, tc.want)
			}
			if !strings.Contains(out, tc.says) {
				t.Errorf("it says %q, want something with %q", out, tc.says)
			}
			if (err != nil) != tc.fails {
				t.Errorf("ended with %v, want failure: %v", err, tc.fails)
			}
			if b, err := os.ReadFile(filepath.Join(h.root, "var/lib/flocker/node.key")); string(b) != "only here" {
				t.Errorf("the state is not what it was: %q, %v", b, err)
			}

			// The same in an image that is being built: there is no systemd, and nothing is told to the builder's.
			_ = os.RemoveAll(filepath.Join(h.root, "run"))
			if _, did, err := h.run(tc.script, strings.Fields(tc.args)...); len(did) > 0 || err != nil {
				t.Errorf("without systemd: %v, %v", did, err)
			}
		})
	}
}

// dpkg runs what has failed again, by itself with the next package. That is refused for as long as the reason is there, and
// ends well after it.
func TestUpgradeAgain(t *testing.T) {
	h := newHost(t, []string{"flockd", "flockd-fence", "flockd-proxy"}, map[string]string{"start flockd-fence": "[ -e mended ] || exit 1"})
	for range 2 {
		if out, did, err := h.run("postinst", "configure", "1.0"); err == nil || slices.Contains(did, "restart flockd") {
			t.Errorf("without a fencer: %v, %v: %s", did, err, out)
		}
	}
	h.set("mended", "")
	h.set("flockd-fence", "active")
	h.set("flockd-fence.pid", "7")
	if out, did, err := h.run("postinst", "configure", "1.0"); err != nil || did[len(did)-1] != "restart flockd" {
		t.Errorf("mended: %v, %v: %s", did, err, out)
	}
}

// provision runs words of a shell in scripts/provision, in place of what it does by itself.
func (h *host) provision(words string) (out string, did []string, err error) {
	h.t.Helper()
	b, err := os.ReadFile("../provision")
	if err != nil {
		h.t.Fatal(err)
	}
	text, ok := strings.CutSuffix(string(b), "\nmain \"$@\"\n")
	if !ok {
		h.t.Fatal("scripts/provision does not end with main")
	}
	_ = os.Remove(h.log)
	cmd := exec.Command("bash", "-c", text+"\n"+words)
	cmd.Env = h.env()
	got, err := cmd.CombinedOutput()
	return string(got), h.did(), err
}

// Where the package is, provision puts no units in front of its, and no programs beside them.
func TestProvisionPackaged(t *testing.T) {
	const there = "packaged() { true; }; find_units() { echo 'units are looked for'; exit 1; }; apt() { echo 'it goes on'; exit 1; }; "
	h := newHost(t, []string{"flockd", "flockd-fence", "flockd-proxy"}, nil)
	if out, did, err := h.provision(there + "install_flocker"); err != nil || len(did) > 0 || !strings.Contains(out, "left as they are") {
		t.Errorf("%v, systemd was told %v: %s", err, did, out)
	}
	if os.Geteuid() != 0 {
		t.Skip("the rest refuses whoever is not root before")
	}
	if out, _, err := h.provision(there + ". () { ID=debian; }; main --binaries /nowhere"); err == nil || !strings.Contains(out, "installed as a package") {
		t.Errorf("--binaries: %v: %s", err, out)
	}
}

// With --package what was provisioned before gives way to it, in an order in which each unit has its program at any time.
func TestProvisionPackage(t *testing.T) {
	const end = "start flockd-fence flockd-proxy flockd"
	const enable = "reenable -q flockd-fence.service flockd-proxy.service flockd.service"
	for _, provisioned := range []bool{false, true} {
		h := newHost(t, []string{"flockd", "flockd-fence", "flockd-proxy"}, nil)
		want := []string{"package", enable, end}
		if provisioned {
			want = []string{"package", "program of its own", enable, "postinst configure", end}
			h.write("usr/local/bin/flockd", "before")
			h.write("usr/local/bin/flockctl", "before")
			for _, u := range units {
				h.write("etc/systemd/system/"+u, "before")
			}
		}
		h.write("var/lib/dpkg/info/flocker.postinst", "#!/bin/sh\necho postinst $* >>"+h.log+"\n")
		if err := os.Chmod(filepath.Join(h.root, "var/lib/dpkg/info/flocker.postinst"), 0o755); err != nil {
			t.Fatal(err)
		}
		out, did, err := h.provision("export PROVISION_ROOT=" + h.root + "; package=x.deb; " +
			"apt() { echo package >>" + h.log + "; [[ ! -f $PROVISION_ROOT/usr/local/bin/flockd ]] || echo program of its own >>" + h.log + "; }; install_flocker")
		if err != nil || !slices.Equal(did, want) {
			t.Errorf("provisioned before: %v: %v, did %q, want %q: %s", provisioned, err, did, want, out)
		}
		if !provisioned {
			continue
		}
		if to, err := os.Readlink(filepath.Join(h.root, "usr/local/bin/flockd")); err != nil || to != "/usr/bin/flockd" {
			t.Errorf("the name of the program leads to %q: %v", to, err)
		}
		for _, name := range []string{"usr/local/bin/flockctl", "etc/systemd/system/flockd.service", "etc/systemd/system/flockd-fence.service", "etc/systemd/system/flockd-proxy.service"} {
			if _, err := os.Stat(filepath.Join(h.root, name)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("/%s stands in front of the package's: %v", name, err)
			}
		}
	}
}

// It restarts what runs by the package's rules.
func TestProvisionRestarts(t *testing.T) {
	all := []string{"flockd", "flockd-fence", "flockd-proxy"}
	const ask = "systemd-run --quiet --pipe --wait --collect -p EnvironmentFile=-/etc/default/flockd /usr/local/bin/flockd fence may-restart"
	const fencer = ask + ", restart flockd-fence"
	for _, tc := range []struct {
		name   string
		active []string
		others map[string]string
		want   string
		fails  bool
	}{
		{"all goes over", all, nil, fencer + ", reload-or-restart flockd-proxy, " + ask + ", restart flockd", false},
		{"nothing has run yet", nil, nil, "restart flockd-fence, reload-or-restart flockd-proxy, " + ask + ", restart flockd", false},
		{"not now", all, map[string]string{"/usr/local/bin/flockd fence may-restart": "exit 1"}, ask, true},
		{"nobody would stand in", all[1:], nil, "", true},
		{"the fencer does not come up", all, map[string]string{"restart flockd-fence": "exit 1"}, fencer, true},
		{"the fencer is not started, which is no failure", all, map[string]string{"restart flockd-fence": "echo inactive >flockd-fence; exit 0"}, fencer, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, did, err := newHost(t, tc.active, tc.others).provision("restart_flocker")
			if got := strings.Join(did, ", "); got != tc.want || (err != nil) != tc.fails {
				t.Errorf("systemd was told: %s\nwant: %s\nended with %v, want failure %v: %s", got, tc.want, err, tc.fails, out)
			}
		})
	}
}

// needrestart, which looks for processes of files that were replaced, leaves all units alone.
func TestNeedrestart(t *testing.T) {
	b, err := os.ReadFile("needrestart.conf")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\$nrconf\{override_rc\}\{qr\((.*)\)\} = 0;$`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("it overrides nothing:\n%s", b)
	}
	for _, u := range units {
		if !regexp.MustCompile(string(m[1])).MatchString(u) {
			t.Errorf("%s would be restarted", u)
		}
	}
	if list, err := os.ReadFile("nfpm.yaml"); err != nil || !strings.Contains(string(list), "scripts/packaging/needrestart.conf, dst: /etc/needrestart/conf.d/flocker.conf") {
		t.Errorf("it is not in the package: %v", err)
	}
}

// A volume that is mounted between the look and the end of flockd is seen.
func TestMountedWhileRemoved(t *testing.T) {
	for _, active := range [][]string{{"flockd"}, {"flockd-fence"}} {
		h := newHost(t, active, map[string]string{"stop flockd": "echo 'tank/flocker/v2 /v/v2 zfs rw 0 0' >>$MOUNTS"})
		t.Setenv("MOUNTS", h.root+"/proc/mounts")
		out, did, err := h.run("prerm", "remove")
		if got := strings.Join(did, ", "); err == nil || got != "stop flockd, start "+active[0] || !strings.Contains(out, "/v/v2") {
			t.Errorf("%v: %s: %s", err, got, out)
		}
	}
}

// Who removes the package from a node is told that the cluster still counts on it.
func TestRemovedMember(t *testing.T) {
	for _, tc := range []struct {
		files string
		says  bool
	}{{"", false}, {"node.json", true}, {"node.json retired.json", false}} {
		h := newHost(t, []string{"flockd"}, nil)
		for _, name := range strings.Fields(tc.files) {
			h.write("var/lib/flocker/"+name, "{}")
		}
		if out, _, err := h.run("prerm", "remove"); err != nil || strings.Contains(out, "flockctl node remove NODE, on another one") != tc.says {
			t.Errorf("with %q: %v: %q", tc.files, err, out)
		}
	}
}

// Another version is not even unpacked where it is an earlier one, unless somebody insists.
func TestDowngrade(t *testing.T) {
	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Skip("dpkg compares the versions: ", err)
	}
	for _, tc := range []struct {
		args   string
		insist string
		fails  bool
	}{
		{"install", "", false},
		{"install 1.0 1.1", "", false},
		{"upgrade 1.0 1.1", "", false},
		{"upgrade 1.0 1.0", "", false},
		{"upgrade 1.1~rc1 1.1", "", false},
		{"upgrade 1.1+5.gabc123 1.1", "", true},
		{"upgrade 1.1 1.0", "", true},
		{"upgrade 1.1 1.0", "1", false},
		{"install 1.1 1.0", "", true}, // removed, and its state is there still
		{"upgrade 1.1", "", false},    // a dpkg that does not say
		{"abort-upgrade 1.0", "", false},
		{"1", "", false},
		{"2", "", false},
	} {
		t.Setenv("FLOCKER_DOWNGRADE", tc.insist)
		h := newHost(t, []string{"flockd", "flockd-fence", "flockd-proxy"}, nil)
		out, did, err := h.run("preinst", strings.Fields(tc.args)...)
		if (err != nil) != tc.fails || len(did) > 0 || tc.fails && !strings.Contains(out, "FLOCKER_DOWNGRADE=1") {
			t.Errorf("%s, %q: %v, systemd was told %v: %s", tc.args, tc.insist, err, did, out)
		}
	}
	if list, err := os.ReadFile("nfpm.yaml"); err != nil || !strings.Contains(string(list), "preinstall: scripts/packaging/scripts/preinst") {
		t.Errorf("it is not in the package: %v", err)
	}
}

// Every variable in the file is one that flockd reads, and is commented out.
func TestDefaults(t *testing.T) {
	b, err := os.ReadFile("flockd.default")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/CLI.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if line != "\n" && !strings.HasPrefix(line, "#") {
			t.Errorf("%q is in force", line)
		}
	}
	names := regexp.MustCompile(`(?m)^#(FLOCKD_\w+)=`).FindAllStringSubmatch(string(b), -1)
	if len(names) < 5 {
		t.Errorf("only %v", names)
	}
	for _, m := range names {
		if name := strings.ReplaceAll(m[1], "_", `\_`); !strings.Contains(string(doc), "$"+name) {
			t.Errorf("flockd reads no %s", m[1])
		}
	}
}

// dpkg and rpm order versions as they were made.
func TestVersions(t *testing.T) {
	for _, tc := range [][2]string{
		{"v1.2.0", "1.2.0"},
		{"v1.2.0-rc1", "1.2.0~rc1"},
		{"v1.2.0-5-gabc123", "1.2.0+5.gabc123"},
		{"v1.2.0-rc1-5-gabc123-dirty", "1.2.0~rc1+5.gabc123+dirty.20231114221320"},
		{"v1.2.0-dirty", "1.2.0+dirty.20231114221320"},
		{"1234567", "0~20231114221320.1234567"},
		{"abc1234-dirty", "0~20231114221320.abc1234.dirty"},
		{"dev", "0~20231114221320.dev"},
	} {
		cmd := exec.Command("./build", tc[0], "", "--print-version")
		cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
		out, err := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != tc[1] {
			t.Errorf("%s: got %s (%v), want %s", tc[0], got, err, tc[1])
		}
	}
}

// ---- what `make package` has made

// need gives the package of a kind. It skips the test but under `make native`, which has just made it: what else is in
// dist may be of another tree than bin. There a tool that is missing is an error.
func need(t *testing.T, kind string, tools ...string) string {
	t.Helper()
	if os.Getenv("FLOCKER_NATIVE") == "" {
		t.Skip("`make native` makes the package and looks at it")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is not installed: make natives", tool)
		}
	}
	found, err := filepath.Glob("../../dist/flocker*." + kind)
	if err != nil || len(found) != 1 {
		t.Fatalf("dist has %v (%v), want one .%s: make package", found, err, kind)
	}
	return found[0]
}

func output(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = env
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, errOut.String())
	}
	return string(out)
}

// debFiles are all files of the .deb, with their modes.
var debFiles = map[string]string{
	"/etc/default/flockd":                                "-rw-r--r--",
	"/etc/needrestart/conf.d/flocker.conf":               "-rw-r--r--",
	"/usr/bin/flockctl":                                  "-rwxr-xr-x",
	"/usr/bin/flockd":                                    "-rwxr-xr-x",
	"/usr/lib/systemd/system/flocker-backup@.service":    "-rw-r--r--",
	"/usr/lib/systemd/system/flocker-backup@.timer":      "-rw-r--r--",
	"/usr/lib/systemd/system/flockd-fence.service":       "-rw-r--r--",
	"/usr/lib/systemd/system/flockd-proxy.service":       "-rw-r--r--",
	"/usr/lib/systemd/system/flockd.service":             "-rw-r--r--",
	"/usr/share/bash-completion/completions/flockctl":    "-rw-r--r--",
	"/usr/share/doc/flocker/changelog.gz":                "-rw-r--r--",
	"/usr/share/doc/flocker/copyright":                   "-rw-r--r--",
	"/usr/share/doc/flocker/examples/backup.env":         "-rw-r--r--",
	"/usr/share/doc/flocker/examples/compose.yml":        "-rw-r--r--",
	"/usr/share/doc/flocker/examples/flockd.yml":         "-rw-r--r--",
	"/usr/share/doc/flocker/examples/flocker.rules.yml":  "-rw-r--r--",
	"/usr/share/doc/flocker/examples/grafana.json":       "-rw-r--r--",
	"/usr/share/doc/flocker/examples/stack.yml":          "-rw-r--r--",
	"/usr/share/fish/vendor_completions.d/flockctl.fish": "-rw-r--r--",
	"/usr/share/man/man1/flockctl.1.gz":                  "-rw-r--r--",
	"/usr/share/man/man8/flockd.8.gz":                    "-rw-r--r--",
	"/usr/share/zsh/vendor-completions/_flockctl":        "-rw-r--r--",
}

// What is in the .deb is what belongs there, and works.
func TestNativeDebContents(t *testing.T) {
	deb := need(t, "deb", "dpkg-deb")
	got := map[string]string{}
	dirs := map[string]bool{}
	for line := range strings.Lines(output(t, nil, "dpkg-deb", "-c", deb)) {
		f := strings.Fields(line)
		if len(f) != 6 || f[1] != "root/root" && f[1] != "0/0" {
			t.Errorf("%q: it is root's, and no link", line)
			continue
		}
		name := "/" + strings.Trim(strings.TrimPrefix(f[5], "."), "/")
		if strings.HasPrefix(f[0], "d") {
			dirs[name] = true
		} else {
			got[name] = f[0]
		}
	}
	if !maps.Equal(got, debFiles) {
		t.Errorf("files and modes are\n%v\nwant\n%v", got, debFiles)
	}
	if !dirs["/etc/flocker"] || dirs["/var/lib/flocker"] {
		t.Errorf("folders %v: the configuration's is the package's, the state's is not", slices.Sorted(maps.Keys(dirs)))
	}
	if got := output(t, nil, "dpkg-deb", "-I", deb, "conffiles"); got != "/etc/default/flockd\n/etc/needrestart/conf.d/flocker.conf\n" {
		t.Errorf("conffiles: %q", got)
	}
	if got := output(t, nil, "dpkg-deb", "-f", deb, "Depends", "Pre-Depends"); got != "" {
		t.Errorf("it depends on %q: a witness has no pool, and a machine without containers no Docker", got)
	}
	if got := output(t, nil, "dpkg-deb", "-f", deb, "Recommends"); !strings.Contains(got, "zfsutils-linux") {
		t.Errorf("it recommends %q", got)
	}

	root := t.TempDir()
	output(t, nil, "dpkg-deb", "-x", deb, root)
	for _, name := range []string{"flockd", "flockctl"} {
		file := filepath.Join(root, "usr/bin", name)
		static(t, file)
		if got, want := output(t, nil, file, "--version"), output(t, nil, "../../bin/"+name, "--version"); got != want || strings.Contains(got, "dev") {
			t.Errorf("%s says %q, what was built says %q", name, got, want)
		}
	}
	for _, unit := range units {
		ours, err := os.ReadFile(filepath.Join("systemd", unit))
		if err != nil {
			t.Fatal(err)
		}
		packed, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/system", unit))
		if err != nil {
			t.Fatal(err)
		}
		want := regexp.MustCompile(`(?m)^ConditionPathExists=.*\n`).ReplaceAllString(string(ours), "")
		if want = strings.ReplaceAll(want, "/usr/local/bin/", "/usr/bin/"); string(packed) != want || strings.Contains(want, "/usr/local") {
			t.Errorf("%s is not the repository's", unit)
		}
	}
	for name, want := range map[string]string{
		"man/man1/flockctl.1.gz":                  ".TH FLOCKCTL 1",
		"man/man8/flockd.8.gz":                    ".SS flockd fence",
		"doc/flocker/changelog.gz":                "# Changelog",
		"doc/flocker/copyright":                   "Apache License",
		"doc/flocker/examples/flockd.yml":         "#state_dir: /var/lib/flocker\n",
		"bash-completion/completions/flockctl":    "complete -o default -F _flockctl flockctl",
		"zsh/vendor-completions/_flockctl":        "#compdef flockctl",
		"fish/vendor_completions.d/flockctl.fish": "complete -c flockctl",
	} {
		b, err := os.ReadFile(filepath.Join(root, "usr/share", name))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".gz") {
			z, err := gzip.NewReader(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			var plain bytes.Buffer
			if _, err := plain.ReadFrom(z); err != nil {
				t.Fatal(err)
			}
			b = plain.Bytes()
		}
		if !strings.Contains(string(b), want) {
			t.Errorf("%s has no %q", name, want)
		}
	}
	output(t, nil, filepath.Join(root, "usr/bin/flockd"), "--config", filepath.Join(root, "usr/share/doc/flocker/examples/flockd.yml"), "config", "check")
}

// static: neither a loader nor a library is needed.
func static(t *testing.T, file string) {
	t.Helper()
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	libs, err := f.ImportedLibraries()
	if len(libs) > 0 || err != nil {
		t.Errorf("%s needs %v (%v)", file, libs, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Errorf("%s needs a loader", file)
		}
	}
}

// systemd understands every line of the units.
func TestNativeUnits(t *testing.T) {
	deb := need(t, "deb", "dpkg-deb", "systemd-analyze")
	root := t.TempDir()
	output(t, nil, "dpkg-deb", "-x", deb, root)
	// What they need of a machine; what they only come before or after may be missing.
	for _, target := range []string{"sysinit", "basic", "shutdown", "network-online", "timers"} {
		if err := os.WriteFile(filepath.Join(root, "usr/lib/systemd/system", target+".target"), []byte("[Unit]\nDescription=x\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	err := os.Mkdir(filepath.Join(root, "bin"), 0o755)
	for _, name := range []string{"bin/kill", "bin/sh"} {
		err = errors.Join(err, os.Symlink("../usr/bin/flockd", filepath.Join(root, name)))
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("systemd-analyze", append([]string{"--root=" + root, "--man=no", "--generators=no", "verify", "flocker-backup@x.service", "flocker-backup@x.timer"}, units...)...)
	out, err := cmd.CombinedOutput()
	if err != nil || len(out) > 0 { // of a key that it does not know it only speaks
		t.Errorf("%v: %s", err, out)
	}
}

// dpkg itself: installed, upgraded, removed and purged in a directory, whose systemd writes down what it is told.
func TestNativeDebLife(t *testing.T) {
	deb := need(t, "deb", "dpkg", "dpkg-deb")
	if os.Geteuid() != 0 {
		t.Skip("dpkg --root chowns what it unpacks: only for root")
	}
	h := newHost(t, nil, nil)
	_ = os.Remove(filepath.Join(h.root, "usr/bin/flockd"))
	for _, f := range []string{"status", "available", "updates/x", "info/format", "triggers/x"} {
		h.write("var/lib/dpkg/"+f, map[string]string{"info/format": "1\n"}[f])
	}
	_ = os.Remove(filepath.Join(h.root, "var/lib/dpkg/updates/x"))
	dpkg := func(args ...string) []string {
		t.Helper()
		_ = os.Remove(h.log)
		output(t, h.env(), "dpkg", append([]string{"--root=" + h.root, "--log=/dev/null", "--force-script-chrootless"}, args...)...)
		return h.did()
	}
	has := func(name string) bool {
		_, err := os.Stat(filepath.Join(h.root, name))
		return err == nil
	}

	if got := dpkg("-i", deb); !slices.Equal(got, []string{"daemon-reload"}) {
		t.Errorf("installed: systemd was told %v", got)
	}
	output(t, nil, filepath.Join(h.root, "usr/bin/flockctl"), "--version")
	h.write("etc/default/flockd", "FLOCKD_LOG_LEVEL=debug\n")
	h.write("etc/flocker/flockd.yml", "log_level: debug\n")

	// The same again is an upgrade.
	for i, u := range []string{"flockd", "flockd-fence", "flockd-proxy"} {
		h.set(u, "active")
		h.set(u+".pid", strconv.Itoa(i+1))
	}
	want := []string{"daemon-reload", "flockd may-run", "reload flockd-proxy", "flockd fence may-restart", "kill flockd-fence", "start flockd-fence",
		"flockd fence may-restart", "restart flockd"}
	if got := dpkg("-i", deb); !slices.Equal(got, want) {
		t.Errorf("upgraded: systemd was told %v, want %v", got, want)
	}
	if b, err := os.ReadFile(filepath.Join(h.root, "etc/default/flockd")); string(b) != "FLOCKD_LOG_LEVEL=debug\n" {
		t.Errorf("the configuration was changed: %q, %v", b, err)
	}

	// An earlier one is not unpacked, and nothing is told of it; unless somebody insists.
	tree := t.TempDir()
	output(t, nil, "dpkg-deb", "-R", deb, tree)
	control, err := os.ReadFile(filepath.Join(tree, "DEBIAN/control"))
	if err != nil {
		t.Fatal(err)
	}
	control = regexp.MustCompile(`(?m)^Version: .*$`).ReplaceAll(control, []byte("Version: 0~0"))
	earlier := filepath.Join(t.TempDir(), "earlier.deb")
	if err := errors.Join(os.WriteFile(filepath.Join(tree, "DEBIAN/control"), control, 0o644), os.WriteFile(filepath.Join(tree, "usr/share/doc/flocker/earlier"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	output(t, nil, "dpkg-deb", "--root-owner-group", "-b", tree, earlier)
	_ = os.Remove(h.log)
	cmd := exec.Command("dpkg", "--root="+h.root, "--log=/dev/null", "--force-script-chrootless", "-i", earlier)
	cmd.Env = h.env()
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Nothing was changed") || has("usr/share/doc/flocker/earlier") || len(h.did()) > 0 {
		t.Errorf("an earlier version: %v, systemd was told %v: %s", err, h.did(), out)
	}
	t.Setenv("FLOCKER_DOWNGRADE", "1")
	if got := dpkg("-i", earlier); !slices.Equal(got, want) || !has("usr/share/doc/flocker/earlier") {
		t.Errorf("an earlier version, insisted upon: systemd was told %v, want %v", got, want)
	}

	// Asked for users, the program would look at the machine that runs this test, whose first process may be nobody's to look at.
	asked := filepath.Join(h.root, "asked")
	h.program("usr/bin/flockd", `echo "$*" >>`+asked)
	dpkg("-r", "flocker")
	if got, err := os.ReadFile(asked); string(got) != "fence used\nfence used\n" {
		t.Errorf("removed: flockd was asked %q (%v), want who uses volumes, before and after it is stopped", got, err)
	}
	if has("usr/bin/flockd") || !has("etc/default/flockd") || !has("etc/flocker/flockd.yml") || !has("var/lib/flocker/node.key") {
		t.Error("removed: the programs go; configuration and state stay")
	}
	dpkg("--purge", "flocker")
	if has("etc/default/flockd") || !has("etc/flocker/flockd.yml") || !has("var/lib/flocker/node.key") {
		t.Error("purged: what the package brought goes; what people and flockd wrote stays")
	}
}

// The .rpm has the same, where an .rpm has it.
func TestNativeRpm(t *testing.T) {
	rpm := need(t, "rpm", "rpm")
	query := func(args ...string) string {
		return output(t, append(os.Environ(), "HOME="+t.TempDir()), "rpm", append([]string{"--dbpath", t.TempDir(), "-qp"}, append(args, rpm)...)...)
	}
	want := []string{"/etc/flocker"}
	for name := range debFiles {
		if strings.HasPrefix(name, "/etc/needrestart/") {
			continue // Debian's and Ubuntu's
		}
		name = strings.Replace(name, "zsh/vendor-completions", "zsh/site-functions", 1)
		want = append(want, strings.Replace(name, "doc/flocker/copyright", "licenses/flocker/LICENSE", 1))
	}
	slices.Sort(want)
	got := strings.Fields(query("--list"))
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("files are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := query("--configfiles"); got != "/etc/default/flockd\n" {
		t.Errorf("configuration: %q", got)
	}
	scripts := query("--scripts")
	for _, name := range []string{"preinst", "postinst", "prerm", "postrm"} {
		b, err := os.ReadFile(filepath.Join("scripts", name))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(scripts, strings.TrimSpace(string(b))) {
			t.Errorf("%s is not in it", name)
		}
	}
}
