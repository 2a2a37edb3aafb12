package fence

import (
	"bytes"
	"io"
)

// WithLog runs body with a writer of lines that passes them on to w and never waits for
// it: what does not fit while w hangs is dropped. It may be written to by one goroutine
// at a time. In the end what is left is passed on.
func WithLog(w io.Writer, body func(io.Writer) error) error {
	lines := make(chan []byte, 256)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for line := range lines {
			if _, err := w.Write(line); err != nil {
				continue // there is nobody to tell
			}
		}
	}()
	err := body(lineWriter(lines))
	close(lines)
	<-done
	return err
}

type lineWriter chan<- []byte

func (l lineWriter) Write(line []byte) (int, error) {
	select {
	case l <- bytes.Clone(line):
	default:
	}
	return len(line), nil
}
