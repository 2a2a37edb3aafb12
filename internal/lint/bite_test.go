package lint

import (
	"strings"
	"testing"
)

// A rule that finds nothing may only be blind: each has to bite on a small
// repository that breaks it, and to let the rightful neighbour pass.
func TestRulesBite(t *testing.T) {
	const mod = "example.org/m"
	for _, tc := range []struct {
		rule string
		file string
		text string
		want string // part of the one complaint; "" for none
	}{
		{"layering", "zfs/a.go", `package zfs; import _ "` + mod + `/internal/volume"`, "may not import internal/volume"},
		{"layering", "internal/state/a.go", `package state; import _ "` + mod + `/internal/volume"`, ""},
		{"layering", "internal/daemon/a.go", `package daemon; import _ "` + mod + `/replicate"`, ""},
		{"layering", "internal/daemon/a.go", `package daemon; import _ "` + mod + `/zfs/zfsfake"`, "may not import zfs/zfsfake"},
		{"layering", "internal/daemon/a_test.go", `package daemon; import _ "` + mod + `/zfs/zfsfake"`, ""},
		{"layering", "migrate/a.go", `package migrate; import _ "` + mod + `/proxy"`, "may not import proxy"},
		{"layering", "internal/agent/a.go", `package agent; import _ "` + mod + `/internal/daemon"`, "may not import internal/daemon"},
		{"layering", "replicate/a_test.go", `package replicate; import _ "` + mod + `/zfs/zfsfake"`, ""},
		{"layering", "replicate/a_test.go", `package replicate; import _ "` + mod + `/plugin"`, "may not import plugin"},
		{"layering", "internal/scenario/a.go", `package scenario; import _ "` + mod + `/zfs/zfsfake"`, ""},
		{"layering", "internal/misc/a.go", `package misc`, "is not in the table"},
		{"layering", "test/stories/a.go", `package stories; import _ "` + mod + `/internal/api"`, ""},

		{"processes", "plugin/a.go", `package plugin; import _ "os/exec"`, "imports os/exec"},
		{"processes", "plugin/a.go", `package plugin; import "os"; var _ = os.StartProcess`, "StartProcess"},
		{"processes", "zfs/a.go", `package zfs; import _ "os/exec"`, ""},
		{"processes", "plugin/a_test.go", `package plugin; import _ "os/exec"`, ""},

		{"sockets", "replicate/a.go", `package replicate; import "net"; var _ = net.Dial`, "opens no sockets"},
		{"sockets", "replicate/a.go", `package replicate; import n "net"; var d n.Dialer`, "opens no sockets"},
		{"sockets", "replicate/a.go", `package replicate; import "net/http"; var _ = http.Get`, "opens no sockets"},
		{"sockets", "replicate/a.go", `package replicate; import "net"; var l net.Listener`, ""},
		{"sockets", "internal/transport/a.go", `package transport; import "net"; var _ = net.Listen`, ""},

		{"package docs", "zfs/a.go", "package zfs", "no package comment"},
		{"package docs", "zfs/a.go", "// All about pools.\npackage zfs", "does not begin with"},
		{"package docs", "zfs/a.go", "// Package zfs is.\npackage zfs", ""},
		{"package docs", "cmd/flockd/a.go", "// Flockd runs a node.\npackage main", ""},

		{"formatting", "zfs/a.go", "package   zfs\n", "not formatted"},
		{"formatting", "zfs/a.go", "package zfs\n", ""},

		{"sleeping tests", "zfs/a_test.go", `package zfs; import "time"; func TestA() { time.Sleep(1) }`, "a test sleeps"},
		{"sleeping tests", "zfs/a_test.go", `package zfs; import "time"; func waitFor() { time.Sleep(1) }`, ""},
		{"sleeping tests", "zfs/a_test.go", `package zfs; import ("testing/synctest"; "time"); func TestA() { time.Sleep(1) }`, ""},
		{"sleeping tests", "zfs/a_test.go", `package zfs; import "time"; func TestA() { for !done() { time.Sleep(1) } }`, ""},
		{"sleeping tests", "zfs/a_test.go", `package zfs; import "time"; func TestA() { time.Sleep(1) } // it must not come`, ""},
		{"sleeping tests", "zfs/a.go", `package zfs; import "time"; func a() { time.Sleep(1) }`, ""},

		{"private places", "scripts/x", "docker pull qu" + "ay.io/x", "names"},
		{"private places", "scripts/x", "docker pull docker" + ".io/library/x", "names"},
		{"private places", "scripts/x", "apt-get install docker.io", ""},
		{"private places", "docs/x.md", "see /wo" + "rk/shared/x", "names"},

		{"links", "docs/x.md", "see [y](y.md)", "not there"},
		{"links", "docs/x.md", "# Part: `one`\nsee [x](x.md#part-one), [out](https://example.org/y#z), [docs](../docs), [me](#here)\n## Here", ""},
		{"links", "docs/x.md", "see [x](x.md#part)", "no such heading"},
		{"links", "docs/x.md", "# Part\nsee [me](#here)", "no such heading"},
		{"links", "docs/x.md", "call `f[i](y)`", ""},

		{"labels", "zfs/a.go", `package zfs; const LabelOne = "flocker.one"`, "is not in docs/DOCKER.md"},
		{"labels", "zfs/a.go", `package zfs; const LabelOther, prefix = "other.one", "flocker.one"`, ""},

		{"named tests", "docs/x.md", "shown by `TestNobody`", "no test is called so"},
		{"named tests", "docs/x.md", "shown by *nobody3*, and", "not in internal/scenario/testdata"},
		{"named tests", "docs/x.md", "a *test* by `testers`", ""},

		{"stories", "test/stories/a_test.go", `package stories; func TestA() {}`, "no table of stories in docs/TESTING.md has TestA"},
		{"stories", "test/stories/a_test.go", `package stories; func testers() {}; func (c cluster) TestA() {}; func TestMain() {}`, ""},
		{"stories", "test/lab/a_test.go", `package lab; func TestA() {}`, ""},

		{"properties", "zfs/a.go", `package zfs; var UserProperties = []string{"flocker:a"}; const p = "flocker:b"`, "zfs is not asked for flocker:b"},
		{"properties", "zfs/a.go", `package zfs; var UserProperties = []string{"flocker:a"}; const p = "flocker:a"`, ""},
		{"properties", "zfs/a.go", `package zfs; var SnapshotProperties = []string{"flocker:a"}; const p = "flocker:a"`, ""},
		{"properties", "zfs/a.go", `package zfs; var others = []string{"flocker:a"}`, "zfs is not asked for flocker:a"},
		{"properties", "replicate/a.go", `package replicate; const p = "flocker:a"`, "zfs is not asked for flocker:a"},
		{"properties", "replicate/a.go", `package replicate; const p = "flocker:canary"`, ""},
		{"properties", "replicate/a.go", `package replicate; const p = "flocker: no such thing"`, ""},
		{"properties", "replicate/a_test.go", `package replicate; const p = "flocker:a"`, ""},
	} {
		r := newRepo(mod)
		if err := r.add(tc.file, []byte(tc.text)); err != nil {
			t.Fatalf("%s: %v", tc.text, err)
		}
		for _, rule := range rules {
			if rule.name != tc.rule {
				continue
			}
			got := strings.Join(rule.check(r), "\n")
			switch {
			case tc.want == "" && got != "":
				t.Errorf("%s: %s with %q: complained: %s", tc.rule, tc.file, tc.text, got)
			case tc.want != "" && !strings.Contains(got, tc.want):
				t.Errorf("%s: %s with %q: got %q, want a complaint with %q", tc.rule, tc.file, tc.text, got, tc.want)
			}
		}
	}
}

// A story is told by the first cell of a row that stands in one of the two tables, and nowhere else.
func TestStoriesTold(t *testing.T) {
	const page = `
## The core stories

| story | what it shows |
| --- | --- |
| ` + "`TestA`, `TestB`" + ` | what ` + "`TestC`" + ` does, and more |

## The other stories

| ` + "`TestD`" + ` | something |

What ` + "`TestE`" + ` shows.

## The last result of each story

| ` + "`TestF`" + ` | pass |
`
	r := newRepo("example.org/m")
	for name, text := range map[string]string{
		"docs/TESTING.md":        page,
		"test/stories/a_test.go": "package stories\nfunc TestA() {}\nfunc TestB() {}\nfunc TestC() {}\nfunc TestD() {}\nfunc TestE() {}\nfunc TestF() {}\n",
	} {
		if err := r.add(name, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	got := stories(r)
	if len(got) != 3 || !strings.Contains(got[0], "TestC") || !strings.Contains(got[1], "TestE") || !strings.Contains(got[2], "TestF") {
		t.Errorf("got %q, want complaints of TestC, TestE and TestF", got)
	}
}
