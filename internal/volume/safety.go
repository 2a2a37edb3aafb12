package volume

// Safety is how surely a node stops its own writers when its lease is over.
type Safety string

// The levels, the best first. With the first two a node that cannot stop its writers
// resets the machine; with SafetySoftware it can only try.
const (
	SafetyWatchdog Safety = "watchdog" // the hardware, or softdog, resets it even if nothing runs any more
	SafetySysrq    Safety = "sysrq"    // the fencer resets it through the kernel
	SafetySoftware Safety = "software" // writers are killed and volumes unmounted, no more
)

// Hard says that the machine is reset when all else fails.
func (s Safety) Hard() bool { return s == SafetyWatchdog || s == SafetySysrq }
