package cluster

import (
	"bytes"
	"context"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLogger sends Raft's messages to slog. What Raft calls an error is usually a
// peer that cannot be reached, so it is at most a warning here.
func raftLogger(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Output: io.Discard, Level: hclog.Off})
	l.RegisterSink(hclogSink{log.With("part", "raft")})
	return l
}

type hclogSink struct{ log *slog.Logger }

func (s hclogSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
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
	attrs := make([]any, 0, len(args))
	for i := 0; i+1 < len(args); i += 2 {
		key, _ := args[i].(string)
		attrs = append(attrs, slog.Any(key, args[i+1]))
	}
	s.log.Log(context.Background(), at, msg, attrs...)
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
