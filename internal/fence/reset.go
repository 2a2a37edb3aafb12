package fence

import (
	"fmt"
	"os"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
)

// Policy is what the operator allows when writers cannot be stopped.
type Policy string

// The policies.
const (
	PolicyAuto     Policy = "auto"     // a free watchdog, else sysrq, else nothing
	PolicyWatchdog Policy = "watchdog" // a watchdog: without one no lease is taken
	PolicySysrq    Policy = "sysrq"    // the kernel's own reset, and no watchdog
	PolicyOff      Policy = "off"      // the machine is never reset
)

// ParsePolicy reads what an operator wrote; "" is auto.
func ParsePolicy(s string) (Policy, error) {
	switch p := Policy(s); p {
	case "":
		return PolicyAuto, nil
	case PolicyAuto, PolicyWatchdog, PolicySysrq, PolicyOff:
		return p, nil
	}
	return "", fmt.Errorf("reset policy %q: want auto, watchdog, sysrq or off", s)
}

// dog is a watchdog device as sysfs shows it. One that does not run is not opened: that
// would start it.
type dog struct {
	device string   // like /dev/watchdog0
	busy   bool     // somebody has it open, such as systemd
	stuck  bool     // once started it can never be stopped (nowayout)
	left   *os.File // it runs and nobody had it open: whoever started it has ended
}

// means is how the machine is to be reset.
type means struct {
	watchdog string // device; "" for none
	sysrq    bool
	missing  string // why it is less than was asked for
}

func (m means) safety() volume.Safety {
	switch {
	case m.watchdog != "":
		return volume.SafetyWatchdog
	case m.sysrq:
		return volume.SafetySysrq
	}
	return volume.SafetySoftware
}

// choose picks from what the machine has. want is a device that the operator names, ""
// for any. One that can never be stopped is taken only when the operator asks for a
// watchdog: he could not restart the fencer without resetting the machine.
func choose(p Policy, want string, dogs []dog, sysrq bool) means {
	m := means{sysrq: sysrq && p != PolicyOff}
	var why []string
	for _, d := range dogs {
		switch {
		case p == PolicyOff || p == PolicySysrq || m.watchdog != "":
		case want != "" && d.device != want:
		case d.busy:
			why = append(why, d.device+" is in use by somebody else")
		case d.stuck && p == PolicyAuto:
			why = append(why, d.device+" cannot be stopped once it runs (nowayout); ask for it with --reset=watchdog")
		default:
			m.watchdog = d.device
		}
	}
	if len(why) == 0 {
		why = []string{"there is no watchdog device"}
	}
	switch {
	case m.watchdog != "":
	case p == PolicyWatchdog:
		m.missing = "no watchdog can be used, and --reset=watchdog requires one: " + strings.Join(why, ", ")
	case p == PolicyOff:
		m.missing = "writers that cannot be stopped stay: --reset=off forbids a reset of the machine"
	case !m.sysrq:
		m.missing = "the machine cannot be reset: /proc/sysrq-trigger cannot be written, and " + strings.Join(why, ", ")
	}
	return m
}
