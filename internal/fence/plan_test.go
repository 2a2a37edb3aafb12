package fence

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/mounts"
)

func TestPlan(t *testing.T) {
	text, err := os.ReadFile("testdata/plan.txt")
	if err != nil {
		t.Fatal(err)
	}
	cases := 0
	_, body, _ := strings.Cut(string(text), "\n\n")
	for block := range strings.SplitSeq(body, "\n\n") {
		title, rest, _ := strings.Cut(strings.TrimSpace(block), "\n")
		parts := strings.Split("\n"+rest, "\n--- ")
		s := readSeen(t, parts[0])
		for _, part := range parts[1:] {
			cases++
			at, want, _ := strings.Cut(part, "\n")
			spent, err := time.ParseDuration(at)
			if err != nil {
				t.Fatalf("%s: %v", title, err)
			}
			if got := showPlan(next(s, spent, 6*time.Second)); got != strings.TrimSpace(want) {
				t.Errorf("%s, after %s:\n%s\nwant\n%s", title, at, got, want)
			}
		}
	}
	if cases < 10 {
		t.Errorf("only %d cases were read", cases)
	}
}

func readSeen(t *testing.T, text string) seen {
	t.Helper()
	s := seen{containers: map[string]mounts.Container{}}
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		head, in, _ := strings.Cut(line, " in ")
		containers := strings.Fields(in)
		for _, c := range containers {
			s.containers[c] = mounts.Container{ID: c}
		}
		switch words[0] {
		case "mount":
			m := mount{id: words[1], volume: words[2], at: words[3], ours: strings.HasSuffix(head, " ours"), follows: strings.HasSuffix(head, " follows"), containers: containers}
			if len(words) > 5 && words[4] == "on" {
				m.on = words[5]
			}
			s.mounts = append(s.mounts, m)
		case "user":
			p := process{volumes: []string{words[2]}, container: in}
			if _, err := fmt.Sscan(words[1], &p.pid); err != nil {
				t.Fatal(err)
			}
			switch {
			case strings.Contains(head, "careful"):
				p.kind = careful
			case strings.Contains(head, "untouchable"):
				p.kind = untouchable
			}
			s.users = append(s.users, p)
		case "hidden":
			s.hidden = append(s.hidden, words[1])
		default:
			t.Fatalf("%q", line)
		}
	}
	return s
}

func showPlan(p plan) string {
	var lines []string
	for i, v := range p.victims {
		lines = append(lines, "container "+v.Container+" "+strings.Join(v.Volumes, " "))
		if p.containers[i].ID != v.Container {
			lines = append(lines, "but it kills "+p.containers[i].ID)
		}
	}
	if len(p.processes) > 0 {
		line := "process"
		for _, u := range p.processes {
			line += fmt.Sprint(" ", u.pid)
		}
		lines = append(lines, line)
	}
	var all []string
	for _, wave := range p.unmount {
		var ids []string
		for _, m := range wave {
			ids = append(ids, m.id)
		}
		all = append(all, strings.Join(ids, " "))
	}
	if len(all) > 0 {
		lines = append(lines, "unmount "+strings.Join(all, " | "))
	}
	if len(lines) == 0 {
		return "nothing"
	}
	return strings.Join(lines, "\n")
}

func TestChoose(t *testing.T) {
	free, busy, stuck := dog{device: "/dev/watchdog0"}, dog{device: "/dev/watchdog0", busy: true}, dog{device: "/dev/watchdog1", stuck: true}
	for _, c := range []struct {
		name   string
		policy Policy
		want   string
		dogs   []dog
		sysrq  bool
		safety string
		device string
		says   string
	}{
		{"a free watchdog", PolicyAuto, "", []dog{free}, true, "watchdog", "/dev/watchdog0", ""},
		{"the first is not free", PolicyAuto, "", []dog{busy, {device: "/dev/watchdog2"}}, true, "watchdog", "/dev/watchdog2", ""},
		{"none is free", PolicyAuto, "", []dog{busy}, true, "sysrq", "", ""},
		{"none is there", PolicyAuto, "", nil, true, "sysrq", "", ""},
		{"nothing at all", PolicyAuto, "", nil, false, "software", "", "no watchdog device"},
		{"it could not be stopped", PolicyAuto, "", []dog{stuck}, false, "software", "", "nowayout"},
		{"and is asked for", PolicyWatchdog, "", []dog{stuck}, false, "watchdog", "/dev/watchdog1", ""},
		{"a certain one", PolicyAuto, "/dev/watchdog3", []dog{free, {device: "/dev/watchdog3"}}, true, "watchdog", "/dev/watchdog3", ""},
		{"a certain one that is not there", PolicyWatchdog, "/dev/watchdog3", []dog{free}, true, "sysrq", "", "requires"},
		{"required, and busy", PolicyWatchdog, "", []dog{busy}, true, "sysrq", "", "in use by somebody else"},
		{"sysrq alone", PolicySysrq, "", []dog{free}, true, "sysrq", "", ""},
		{"sysrq alone, forbidden", PolicySysrq, "", []dog{free}, false, "software", "", "sysrq-trigger"},
		{"never", PolicyOff, "", []dog{free}, true, "software", "", "--reset=off"},
	} {
		m := choose(c.policy, c.want, c.dogs, c.sysrq)
		if string(m.safety()) != c.safety || m.watchdog != c.device || (m.missing != "") != (c.says != "") || !strings.Contains(m.missing, c.says) {
			t.Errorf("%s: %s by %q, %q", c.name, m.safety(), m.watchdog, m.missing)
		}
	}
	for _, s := range []string{"", "auto", "watchdog", "sysrq", "off"} {
		if _, err := ParsePolicy(s); err != nil {
			t.Error(err)
		}
	}
	if _, err := ParsePolicy("hard"); err == nil {
		t.Error("any word is a policy")
	}
}
