package container

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Pauses between attempts to reach an engine that does not answer.
const (
	minRetry = 250 * time.Millisecond
	maxRetry = 5 * time.Second
)

// Watcher follows one engine for as long as it runs, through the engine's restarts.
// It activates our driver each time the engine is back, and rings C when the
// containers may have changed: events coalesce, one ring stands for many.
type Watcher struct {
	engine Engine
	log    *slog.Logger
	wake   chan struct{}

	mu    sync.Mutex
	up    bool
	since time.Time
	lost  time.Time
	err   error
}

// NewWatcher makes a Watcher; Run makes it watch.
func NewWatcher(engine Engine, log *slog.Logger) *Watcher {
	return &Watcher{engine: engine, log: log, wake: make(chan struct{}, 1)}
}

// C rings when it is worth asking the engine again.
func (w *Watcher) C() <-chan struct{} { return w.wake }

// Health is what the Watcher knows of the engine.
type Health struct {
	Up    bool
	Since time.Time // of Up, or of the first failure
	// Lost is when the engine last went away; zero when it never did. What was mounted
	// for containers before cannot belong to one that is starting now. It is the moment
	// of the loss and not of the return: an engine that boots mounts before it answers.
	Lost time.Time
	Err  error // why it is not Up
}

// Health returns what is known now.
func (w *Watcher) Health() Health {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Health{Up: w.up, Since: w.since, Lost: w.lost, Err: w.err}
}

// Run watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	retry := minRetry
	for ctx.Err() == nil {
		var activation sync.WaitGroup
		following, stop := context.WithCancel(ctx)
		err := w.engine.Follow(following, func() {
			retry = minRetry
			w.became(true, nil)
			// The engine answers this by asking our own plugin, which may take its time;
			// events must be read meanwhile.
			activation.Go(func() {
				if err := w.engine.Activate(following); err != nil && following.Err() == nil {
					w.log.Warn("the container engine could not be made to look for the volume driver", "error", err)
				}
			})
			w.ring()
		}, w.ring)
		stop()
		activation.Wait()
		if ctx.Err() != nil {
			return nil
		}

		w.became(false, err)
		w.ring()
		select {
		case <-ctx.Done():
		case <-time.After(retry):
			retry = min(2*retry, maxRetry)
		}
	}
	return nil
}

// became notes a change and logs it once.
func (w *Watcher) became(up bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
	if up == w.up && !w.since.IsZero() {
		return
	}
	w.since = time.Now()
	if up {
		w.log.Info("container engine answers")
	} else {
		if w.up {
			w.lost = w.since
		}
		w.log.Warn("container engine does not answer", "error", err)
	}
	w.up = up
}

func (w *Watcher) ring() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
