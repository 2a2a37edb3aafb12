package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// raftLogger sends Raft's messages to slog. What Raft calls an error is usually a
// peer that cannot be reached, so it is at most a warning here; and since Raft says so
// several times a second for as long as it lasts, a warning that repeats is shown once
// per repeatEvery.
func raftLogger(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Output: io.Discard, Level: hclog.Off})
	l.RegisterSink(&hclogSink{log: log.With("part", "raft"), seen: map[string]repeat{}})
	return l
}

const (
	repeatEvery = 30 * time.Second
	maxRepeats  = 1000 // distinct ones that are remembered
)

type hclogSink struct {
	log *slog.Logger

	mu   sync.Mutex
	seen map[string]repeat
}

// repeat is a warning that was shown at a time and hidden so often since.
type repeat struct {
	at     time.Time
	hidden int
}

func (s *hclogSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	at := slog.LevelDebug
	switch level {
	case hclog.Info:
		at = slog.LevelInfo
	case hclog.Warn, hclog.Error:
		at = slog.LevelWarn
	}
	if !s.log.Enabled(context.Background(), at) {
		return
	}
	attrs := make([]any, 0, len(args)+1)
	key := msg
	for i := 0; i+1 < len(args); i += 2 {
		name, _ := args[i].(string)
		value := args[i+1]
		if f, ok := value.(hclog.Format); ok && len(f) > 0 {
			value = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
		if name == "peer" || name == "server-id" || name == "target" {
			key += fmt.Sprint(value)
		}
		attrs = append(attrs, slog.Any(name, value))
	}
	if at == slog.LevelWarn {
		hidden, show := s.show(key, time.Now())
		if !show {
			return
		}
		if hidden > 0 {
			attrs = append(attrs, slog.Int("repeated", hidden))
		}
	}
	s.log.Log(context.Background(), at, msg, attrs...)
}

// show says whether a warning is shown now, and how often it was hidden before.
func (s *hclogSink) show(key string, now time.Time) (hidden int, show bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.seen[key]
	if ok && now.Sub(r.at) < repeatEvery {
		r.hidden++
		s.seen[key] = r
		return 0, false
	}
	if len(s.seen) >= maxRepeats {
		clear(s.seen)
	}
	s.seen[key] = repeat{at: now}
	return r.hidden, true
}

// lineWriter sends the lines of a standard logger, as memberlist and serf write
// them ("[WARN] memberlist: ..."), to slog.
type lineWriter struct{ log *slog.Logger }

func (w lineWriter) Write(p []byte) (int, error) {
	line := bytes.TrimSpace(p)
	at := slog.LevelDebug
	for tag, level := range map[string]slog.Level{
		"[INFO] ": slog.LevelDebug, "[WARN] ": slog.LevelInfo, "[ERR] ": slog.LevelWarn, "[DEBUG] ": slog.LevelDebug,
	} {
		if rest, ok := bytes.CutPrefix(line, []byte(tag)); ok {
			line, at = rest, level
		}
	}
	w.log.Log(context.Background(), at, string(line))
	return len(p), nil
}
