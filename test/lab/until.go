package lab

import (
	"fmt"
	"time"
)

// Until asks again and again until ok gives no error. When that takes longer than
// limit the test ends with what it waited for and the last answer. It returns how
// long it took.
func (l *Lab) Until(what string, limit time.Duration, ok func() error) time.Duration {
	l.Helper()
	took, err := Poll(limit, ok)
	if err != nil {
		l.Fatalf("waited %s for %s: %v", took.Round(time.Second), what, err)
	}
	return took
}

// Poll is Until for those who may not end the test.
func Poll(limit time.Duration, ok func() error) (took time.Duration, err error) {
	const between = 300 * time.Millisecond
	begin := time.Now()
	for {
		if err = ok(); err == nil {
			return time.Since(begin), nil
		}
		if time.Since(begin) > limit {
			return time.Since(begin), err
		}
		time.Sleep(between)
	}
}

// Want is an error unless got is as wanted.
func Want[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s: got %v, want %v", what, got, want)
	}
	return nil
}
