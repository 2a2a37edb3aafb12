package main

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// screen is a terminal that is drawn on as a whole, with each key read as it is pressed. Only onScreen
// makes one, and whatever happens it leaves the terminal as it was.
type screen struct {
	in, out *os.File
	keys    chan byte
}

// What a terminal is told before and after: another picture and no cursor, and back.
const (
	screenBegin = "\x1b[?1049h\x1b[?25l"
	screenEnd   = "\x1b[?25h\x1b[?1049l"
)

// onScreen has do draw on a terminal. When do is over, well or by a panic, the terminal is as it was,
// and nothing reads from it any more. Ctrl-C is a signal as ever; what would stop the process at once,
// or for a while, is off.
func onScreen(in, out *os.File, do func(*screen) error) (err error) {
	fd := int(in.Fd())
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("asking the terminal how it is set: %w", err)
	}
	now := *was
	now.Lflag &^= unix.ICANON | unix.ECHO
	now.Cc[unix.VMIN], now.Cc[unix.VTIME] = 1, 0
	now.Cc[unix.VSUSP], now.Cc[unix.VQUIT] = 0, 0
	stopR, stopW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &now); err != nil {
		stopR.Close()
		stopW.Close()
		return fmt.Errorf("setting the terminal: %w", err)
	}
	s := &screen{in: in, out: out, keys: make(chan byte)}
	var reading sync.WaitGroup
	reading.Go(func() { s.read(int(stopR.Fd())) })
	defer func() {
		fmt.Fprint(out, screenEnd)
		stopW.Close()
		for range s.keys { // what nobody waits for any more
		}
		reading.Wait()
		stopR.Close()
		if rerr := unix.IoctlSetTermios(fd, unix.TCSETS, was); rerr != nil && err == nil {
			err = fmt.Errorf("setting the terminal as it was: %w", rerr)
		}
	}()
	fmt.Fprint(out, screenBegin)
	return do(s)
}

// read hands on keys until stop is at its end, or the terminal is.
func (s *screen) read(stop int) {
	defer close(s.keys)
	var buf [16]byte
	for {
		fds := []unix.PollFd{{Fd: int32(s.in.Fd()), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		} else if err != nil || fds[1].Revents != 0 {
			return
		}
		n, err := unix.Read(int(s.in.Fd()), buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		for _, key := range buf[:n] {
			s.keys <- key
		}
	}
}

// Keys are the keys that are pressed; closed when the terminal is gone.
func (s *screen) Keys() <-chan byte { return s.keys }

// Size of the terminal; 0, 0 where it does not say.
func (s *screen) Size() (width, height int) { return terminalSize(s.out) }

func terminalSize(f *os.File) (width, height int) {
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return int(ws.Col), int(ws.Row)
}

// Draw shows lines in place of what was there. Each is cleared behind its end, and all below the
// last, so that nothing flickers.
func (s *screen) Draw(lines []string) {
	fmt.Fprint(s.out, "\x1b[H"+strings.Join(lines, "\x1b[K\r\n")+"\x1b[K\x1b[J")
}
