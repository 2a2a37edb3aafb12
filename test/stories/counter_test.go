package stories

import (
	"fmt"
	"strconv"
	"sync/atomic"
)

// counter is the highest number that a script in a node has printed.
type counter struct{ n atomic.Int64 }

func (k *counter) line(s string) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n > k.n.Load() {
		k.n.Store(n)
	}
}

func (k *counter) last() int64 { return k.n.Load() }

// wait until it has risen by more.
func (k *counter) wait(c cluster, more int64) {
	c.Helper()
	target := k.last() + more
	c.Until(fmt.Sprintf("the counter to reach %d", target), later, func() error {
		if got := k.last(); got < target {
			return fmt.Errorf("it is %d", got)
		}
		return nil
	})
}
