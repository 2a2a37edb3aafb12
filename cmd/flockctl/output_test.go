package main

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/api/apitest"
)

// evil is a name as somebody could choose it who wants to tell a terminal something.
const evil = "a\x1b[2J\x1b]0;x\a\u009b1m\u202e\x7f\xffz"

// Whatever flockd says, a terminal is told nothing by it, in any of the ways in which we show it.
func TestOutputTellsATerminalNothing(t *testing.T) {
	for name, show := range map[string]func(*app){
		"table":  func(a *app) { tab := newTable("NAME"); tab.add(evil + "\nb\tc"); tab.print(a.stdout) },
		"facts":  func(a *app) { var f facts; f.add("Name", "%s", evil+"\nb"); f.print(a.stdout) },
		"printf": func(a *app) { a.printf("%s\n", evil) },
		"say":    func(a *app) { a.say("%s\n", evil) },
		"list":   func(a *app) { a.list("Problems", []string{evil}) },
		"error":  func(a *app) { a.printError(usageError{strconv.ErrRange, evil}) },
		"JSON":   func(a *app) { a.printJSON(map[string]string{evil: evil}) },
		"line":   func(a *app) { a.printJSONLine([]string{evil}) },
		"events": func(a *app) { a.printEvents([]api.Event{{At: apitest.Now, Kind: evil, Message: evil}}) },
		"quiet events": func(a *app) {
			a.quiet = true
			a.printEvents([]api.Event{{At: apitest.Now, Message: evil}})
		},
		"JSON events": func(a *app) { a.asJSON = true; a.printEvents([]api.Event{{At: apitest.Now, Message: evil}}) },
		"picture":     func(a *app) { p := picture{w: a.stdout}; p.draw([]string{evil}) },
	} {
		var out strings.Builder
		show(&app{world: world{stdout: &out, stderr: &out, now: func() time.Time { return apitest.Now }}})
		text := out.String()
		if strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && !strconv.IsPrint(r) }) || !utf8.ValidString(text) {
			t.Errorf("%s: %q", name, text)
		}
		if !strings.Contains(text, "z") {
			t.Errorf("%s shows nothing: %q", name, text)
		}
	}
}

func TestPrintableJSON(t *testing.T) {
	in := []string{"plain <b>", "\u009b\u202e\x7f\U000e0001\u2028 ä €", "\"quoted\"\n\t", ""}
	var out strings.Builder
	if err := (&app{world: world{stdout: &out}}).printJSON(in); err != nil {
		t.Fatal(err)
	}
	var back []string
	if err := json.Unmarshal([]byte(out.String()), &back); err != nil || strings.Join(back, "|") != strings.Join(in, "|") {
		t.Errorf("%s is %q, %v; want %q", out.String(), back, err, in)
	}
	if !strings.Contains(out.String(), "<b>") || !strings.Contains(out.String(), "ä €") || !strings.Contains(out.String(), `\udb40\udc01`) {
		t.Errorf("printed: %s", out.String())
	}
}
