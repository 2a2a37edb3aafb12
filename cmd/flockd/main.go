// Flockd is flocker's daemon: one per node. See docs/ARCHITECTURE.md.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/flocker-io/flocker/internal/terminal"
	"github.com/flocker-io/flocker/internal/warm"
)

// The main goroutine keeps the main thread to itself. Other goroutines enter namespaces of
// containers on threads that end with them; this one never ends, and where it stayed in such a
// namespace, it would be the process's own as /proc/self says it, and hold what is mounted there.
func init() { runtime.LockOSThread() }

func main() {
	if len(os.Args) > 1 && os.Args[1] == warm.Command {
		// In a container, whose first process this is: nothing of a node is wanted there.
		fmt.Fprintln(os.Stderr, "flockd:", warm.Gate(os.Args[2:], warm.DoorAt))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "flockd:", terminal.Line(err.Error()))
		os.Exit(1)
	}
}
