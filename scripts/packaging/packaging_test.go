// Package packaging is what flocker's .deb and .rpm are made of: the units, which scripts/provision installs as well, the
// scripts that dpkg and rpm run, and the list of files. It has no code; these are its tests.
package packaging

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var units = []string{"flockd.service", "flockd-fence.service", "flockd-proxy.service"}

// host is a directory that dpkg's scripts take for the machine, with a systemd that only writes down what it is told.
type host struct {
	t    *testing.T
	root string
	bin  string
	log  string
}

// newHost where active units run, and what contains one of failing fails.
func newHost(t *testing.T, active []string, failing ...string) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{t: t, root: filepath.Join(dir, "root"), bin: filepath.Join(dir, "bin"), log: filepath.Join(dir, "log")}
	h.write("proc/mounts", "/dev/sda1 / ext4 rw 0 0\ntank /tank zfs rw 0 0\ntank/other/x /srv zfs rw 0 0\n")
	h.write("var/lib/flocker/node.key", "only here")
	h.write("run/systemd/system/x", "")
	if err := os.MkdirAll(h.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	fake := `#!/bin/sh
case "$(basename "$0") $*" in
"systemctl --quiet is-active "*) case " ` + strings.Join(active, " ") + ` " in *" $3 "*) exit 0 ;; esac; exit 3 ;;
esac
echo "$(basename "$0") $*" >>` + h.log + "\n"
	for _, f := range failing {
		fake += `case "$*" in *"` + f + `"*) echo "it fails"; exit 1 ;; esac` + "\n"
	}
	for _, name := range []string{"systemctl", "systemd-run"} {
		if err := os.WriteFile(filepath.Join(h.bin, name), []byte(fake), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (h *host) write(name, text string) {
	h.t.Helper()
	name = filepath.Join(h.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
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
		did = append(did, strings.TrimPrefix(line, "--quiet "))
	}
	return did
}

// What dpkg and rpm run does no more to a machine than it may.
func TestScripts(t *testing.T) {
	all := []string{"flockd", "flockd-fence", "flockd-proxy"}
	const ask = "flockd fence may-restart"
	for _, tc := range []struct {
		name    string
		script  string
		args    string
		active  []string
		failing string
		mounts  string // more of /proc/mounts
		want    string // what systemd is told
		says    string
		fails   bool
	}{
		{name: "installed", script: "postinst", args: "configure", want: "daemon-reload", says: "systemctl enable --now"},
		{name: "installed by rpm", script: "postinst", args: "1", want: "daemon-reload"},
		{name: "upgraded", script: "postinst", args: "configure 1.0", active: all,
			want: "daemon-reload, reload flockd-proxy, " + ask + ", restart flockd-fence, restart flockd"},
		{name: "upgraded by rpm", script: "postinst", args: "2", active: all,
			want: "daemon-reload, reload flockd-proxy, " + ask + ", restart flockd-fence, restart flockd"},
		{name: "upgraded where nothing runs", script: "postinst", args: "configure 1.0", want: "daemon-reload"},
		{name: "the lease is about to end", script: "postinst", args: "configure 1.0", active: all, failing: "may-restart",
			want: "daemon-reload, reload flockd-proxy, " + ask + ", restart flockd", says: "goes on with the version before: it fails"},
		{name: "nobody would stand in for the fencer", script: "postinst", args: "configure 1.0", active: []string{"flockd-fence", "flockd-proxy"},
			want: "daemon-reload, reload flockd-proxy", says: "nobody would stand in"},
		{name: "the new fencer does not come up", script: "postinst", args: "configure 1.0", active: all, failing: "restart flockd-fence",
			want: "daemon-reload, reload flockd-proxy, " + ask + ", restart flockd-fence", says: "in the fencer's place", fails: true},
		{name: "the new proxy does not come up", script: "postinst", args: "configure 1.0", active: all, failing: "reload flockd-proxy",
			want: "daemon-reload, reload flockd-proxy, " + ask + ", restart flockd-fence, restart flockd", says: "the proxy goes on"},
		{name: "the new flockd does not come up", script: "postinst", args: "configure 1.0", active: []string{"flockd"}, failing: "restart flockd",
			want: "daemon-reload, restart flockd", says: "flockd does not come up", fails: true},
		{name: "an upgrade that was taken back", script: "postinst", args: "abort-upgrade 1.0", active: all},

		{name: "before an upgrade", script: "prerm", args: "upgrade 1.1", active: all, mounts: "tank/flocker/v1 /v zfs rw 0 0\n"},
		{name: "before an upgrade by rpm", script: "prerm", args: "1", active: all, mounts: "tank/flocker/v1 /v zfs rw 0 0\n"},
		{name: "before its removal", script: "prerm", args: "remove", active: all,
			want: "stop flockd, stop flockd-proxy flockd-fence, disable flockd flockd-proxy flockd-fence"},
		{name: "before its removal by rpm", script: "prerm", args: "0", active: all,
			want: "stop flockd, stop flockd-proxy flockd-fence, disable flockd flockd-proxy flockd-fence"},
		{name: "in use", script: "prerm", args: "remove", active: all, mounts: "tank/flocker/v1 /v/v1 zfs rw 0 0\n", says: "/v/v1", fails: true},

		{name: "removed", script: "postrm", args: "remove", want: "daemon-reload"},
		{name: "purged", script: "postrm", args: "purge", says: "all datasets stay"},
		{name: "after an upgrade", script: "postrm", args: "upgrade 1.1"},
		{name: "after an upgrade by rpm", script: "postrm", args: "1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var failing []string
			if tc.failing != "" {
				failing = append(failing, tc.failing)
			}
			h := newHost(t, tc.active, failing...)
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

// A volume that is mounted between the look and the end of flockd is seen.
func TestMountedWhileRemoved(t *testing.T) {
	h := newHost(t, []string{"flockd"})
	stop := "#!/bin/sh\necho \"$*\" >>" + h.log + "\ncase \"$*\" in \"stop flockd\") echo 'tank/flocker/v2 /v/v2 zfs rw 0 0' >>" + h.root + "/proc/mounts ;; esac\n"
	if err := os.WriteFile(filepath.Join(h.bin, "systemctl"), []byte(stop), 0o755); err != nil {
		t.Fatal(err)
	}
	out, did, err := h.run("prerm", "remove")
	if got := strings.Join(did, ", "); err == nil || got != "stop flockd, start flockd" || !strings.Contains(out, "/v/v2") {
		t.Errorf("%v: %s: %s", err, got, out)
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
		{"v1.2.0-rc1-5-gabc123-dirty", "1.2.0~rc1+5.gabc123+dirty"},
		{"v1.2.0-dirty", "1.2.0+dirty"},
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
	"/usr/bin/flockctl":                                  "-rwxr-xr-x",
	"/usr/bin/flockd":                                    "-rwxr-xr-x",
	"/usr/lib/systemd/system/flockd-fence.service":       "-rw-r--r--",
	"/usr/lib/systemd/system/flockd-proxy.service":       "-rw-r--r--",
	"/usr/lib/systemd/system/flockd.service":             "-rw-r--r--",
	"/usr/share/bash-completion/completions/flockctl":    "-rw-r--r--",
	"/usr/share/doc/flocker/changelog.gz":                "-rw-r--r--",
	"/usr/share/doc/flocker/copyright":                   "-rw-r--r--",
	"/usr/share/doc/flocker/examples/flockd.yml":         "-rw-r--r--",
	"/usr/share/doc/flocker/examples/flocker.rules.yml":  "-rw-r--r--",
	"/usr/share/doc/flocker/examples/grafana.json":       "-rw-r--r--",
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
	if got := output(t, nil, "dpkg-deb", "-I", deb, "conffiles"); got != "/etc/default/flockd\n" {
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
		if want := strings.ReplaceAll(string(ours), "/usr/local/bin/", "/usr/bin/"); string(packed) != want || strings.Contains(want, "/usr/local") {
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
	for _, target := range []string{"sysinit", "basic", "shutdown", "network-online"} {
		if err := os.WriteFile(filepath.Join(root, "usr/lib/systemd/system", target+".target"), []byte("[Unit]\nDescription=x\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(filepath.Join(root, "bin"), 0o755), os.Symlink("../usr/bin/flockd", filepath.Join(root, "bin/kill"))); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("systemd-analyze", append([]string{"--root=" + root, "--man=no", "--generators=no", "verify"}, units...)...)
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
	h := newHost(t, []string{"flockd", "flockd-fence", "flockd-proxy"})
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
	want := []string{"daemon-reload", "reload flockd-proxy", "flockd fence may-restart", "restart flockd-fence", "restart flockd"}
	if got := dpkg("-i", deb); !slices.Equal(got, want) {
		t.Errorf("upgraded: systemd was told %v, want %v", got, want)
	}
	if b, err := os.ReadFile(filepath.Join(h.root, "etc/default/flockd")); string(b) != "FLOCKD_LOG_LEVEL=debug\n" {
		t.Errorf("the configuration was changed: %q, %v", b, err)
	}

	dpkg("-r", "flocker")
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
	for _, name := range []string{"postinst", "prerm", "postrm"} {
		b, err := os.ReadFile(filepath.Join("scripts", name))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(scripts, strings.TrimSpace(string(b))) {
			t.Errorf("%s is not in it", name)
		}
	}
}
