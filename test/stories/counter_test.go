package stories

import (
	"fmt"
	"strconv"
	"sync"
	"time"
)

// counter is the highest number that a script in a node has printed, and when each
// of them came.
type counter struct {
	mu   sync.Mutex
	said []said
}

// said is when a number came out of its node.
type said struct {
	n  int64
	at time.Time
}

func (k *counter) line(s string) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		k.reach(n)
	}
}

// reach notes a number; false says that it is not higher than the last.
func (k *counter) reach(n int64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.said) > 0 && n <= k.said[len(k.said)-1].n {
		return false
	}
	k.said = append(k.said, said{n, time.Now()})
	return true
}

func (k *counter) last() int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.said) == 0 {
		return 0
	}
	return k.said[len(k.said)-1].n
}

// before is the last number that came before a moment.
func (k *counter) before(at time.Time) (n int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range k.said {
		if s.at.After(at) {
			break
		}
		n = s.n
	}
	return n
}

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

// first number of all.
func (k *counter) first() int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.said) == 0 {
		return 0
	}
	return k.said[0].n
}
