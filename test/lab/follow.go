package lab

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"sync/atomic"
)

// units makes the names of followed scripts differ.
var units atomic.Int64

// Follower is a script that runs in a node while the test goes on.
type Follower struct {
	node *Node
	unit string
	done chan struct{}
}

// Follow starts a script in the node and passes on each line that it prints, as it
// comes. It ends with the script, with the node's power, with Stop or with the test.
// systemd takes ${...} in a script for a variable of its own.
func (n *Node) Follow(script string, line func(string)) *Follower {
	n.lab.Helper()
	// A unit, because the end of the connection does not end a process.
	f := &Follower{node: n, unit: fmt.Sprintf("lab-follow-%d", units.Add(1)), done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := n.lab.command(ctx, "ssh", n.Name, "systemd-run --quiet --pipe --wait --collect --unit="+f.unit+" bash -c "+Quote(script))
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		n.lab.Fatal(err)
	}
	go func() {
		defer close(f.done)
		defer cancel()
		for s := bufio.NewScanner(out); s.Scan(); {
			line(strings.TrimSpace(s.Text()))
		}
		cmd.Wait() // how it ended says nothing: power cuts are part of stories
	}()
	n.lab.Cleanup(func() {
		select {
		case <-f.done:
		default:
			n.Try("systemctl stop " + f.unit) // where the node has no power, the connection ends by itself
		}
		cancel()
		<-f.done
	})
	return f
}

// Stop ends the script with all its processes; when it returns, every line that
// was printed has been passed on.
func (f *Follower) Stop() {
	f.node.lab.Helper()
	f.node.Sh("systemctl stop " + f.unit + " 2>/dev/null || true")
	<-f.done
}

// Ended says whether the script has, for whatever reason; then every line was passed on.
func (f *Follower) Ended() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

// Wait returns when the script has ended, for whatever reason.
func (f *Follower) Wait() { <-f.done }
