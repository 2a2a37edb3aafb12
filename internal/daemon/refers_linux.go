package daemon

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/flocker-io/flocker/internal/agent"
	"github.com/flocker-io/flocker/internal/mounts"
)

// Refers implements agent.Files.
func (osFiles) Refers(dataset, dir string, binds []agent.Bind) ([]string, error) {
	return realRoads.refersIn("/etc", dataset, dir, binds)
}

// refersIn looks for a dataset, or where it is mounted, in what /etc says of mounts and exports, and
// in binds.
func (r roads) refersIn(etc, dataset, dir string, binds []agent.Bind) (found []string, err error) {
	t, err := r.to(dir)
	if err != nil {
		return nil, err
	}
	exports, err := filepath.Glob(filepath.Join(etc, "exports.d", "*.exports"))
	if err != nil {
		return nil, err
	}
	for i, name := range append([]string{filepath.Join(etc, "fstab"), filepath.Join(etc, "exports")}, exports...) {
		text, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var lines []int
		if i == 0 {
			lines, err = refersFstab(string(text), dataset, t.below)
		} else {
			lines, err = refersExports(string(text), t)
		}
		if err != nil {
			return nil, fmt.Errorf("%s, %w", name, err)
		}
		for _, n := range lines {
			found = append(found, fmt.Sprintf("%s, line %d", name, n))
		}
	}
	for _, b := range binds {
		in, err := t.below(b.Path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.By, err)
		}
		if in {
			found = append(found, b.By)
		}
	}
	return found, nil
}

// roads follow symbolic links.
type roads struct {
	under    func(dir string) (mounts.Entry, error)
	readlink func(name string) (string, error)
	// asking is held by whoever asks a file system that may never answer: no more than one waits
	// for ever.
	asking chan struct{}
}

var realRoads = roads{func(dir string) (mounts.Entry, error) { return mounts.Under("/proc", dir) }, os.Readlink, make(chan struct{}, 1)}

// answers are file systems that answer as long as this machine lives. Others hang with a server, or
// with a process.
var answers = map[string]bool{
	"ext2": true, "ext3": true, "ext4": true, "xfs": true, "btrfs": true, "zfs": true, "bcachefs": true, "f2fs": true, "jfs": true, "vfat": true, "exfat": true,
	"iso9660": true, "udf": true, "squashfs": true, "erofs": true, "overlay": true, "tmpfs": true, "ramfs": true, "rootfs": true, "devtmpfs": true, "proc": true, "sysfs": true,
}

// linkPatience is how long one of the others is waited for.
const linkPatience = 3 * time.Second

// link is where a name leads by itself, "" for what is no link; there is false for what is not there.
func (r roads) link(name string) (to string, there bool, err error) {
	e, err := r.under(name)
	if err != nil {
		return "", false, err
	}
	ask := r.readlink
	if !answers[e.FSType] {
		if e.Mountpoint == name {
			return "", true, nil // on no link is anything mounted
		}
		ask = r.readlinkSoon
	}
	to, err = ask(name)
	switch {
	case errors.Is(err, syscall.EINVAL):
		return "", true, nil
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return "", false, nil
	case err != nil:
		return "", false, fmt.Errorf("where %s leads cannot be known, which is on %s (%s): %w", name, e.Mountpoint, e.FSType, err)
	}
	return to, true, nil
}

// readlinkSoon waits for a while only. What it has begun ends when the file system answers.
func (r roads) readlinkSoon(name string) (string, error) {
	late := time.NewTimer(linkPatience)
	defer late.Stop()
	select {
	case r.asking <- struct{}{}:
	case <-late.C:
		return "", errors.New("a file system that was asked before still does not answer: bring it back, or take out what leads over it")
	}
	type answer struct {
		to  string
		err error
	}
	got := make(chan answer, 1)
	go func() {
		to, err := r.readlink(name)
		<-r.asking
		got <- answer{to, err}
	}()
	select {
	case a := <-got:
		return a.to, a.err
	case <-late.C:
		return "", fmt.Errorf("it has not answered within %v: bring it back, or take out what leads over it", linkPatience)
	}
}

// walk goes where a path leads, through symbolic links, until it has come to the end or to where it is to
// stop. From what is not there on, it is as it is written.
func (r roads) walk(name string, stop func(at string) bool) (string, error) {
	at, links := "/", 0
	for rest := strings.Split(name, "/"); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		if part == "" || part == "." {
			continue
		}
		if part == ".." {
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		if stop(next) {
			return next, nil
		}
		to, there, err := r.link(next)
		switch {
		case err != nil:
			return "", err
		case !there:
			return path.Join(next, path.Join(rest...)), nil
		case to == "":
			at = next
			continue
		}
		if links++; links > 40 {
			return "", fmt.Errorf("where %s leads cannot be known: %w", name, syscall.ELOOP)
		}
		if path.IsAbs(to) {
			at = "/"
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	return at, nil
}

// target is a directory that paths may lead to: as it is written, and where it is.
type target struct {
	roads roads
	forms []string // none: nothing leads there
}

func (r roads) to(dir string) (target, error) {
	t := target{roads: r}
	if dir == "" {
		return t, nil
	}
	real, err := r.walk(dir, func(string) bool { return false })
	t.forms = []string{path.Clean(dir), real}
	return t, err
}

// in says that a path is the target or in it, as it is written.
func (t target) in(name string) bool {
	for _, dir := range t.forms {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return false
}

// below says that a path is the target or in it, or leads through it.
func (t target) below(name string) (bool, error) {
	if len(t.forms) == 0 || !path.IsAbs(name) {
		return false, nil
	}
	if t.in(path.Clean(name)) {
		return true, nil
	}
	at, err := t.roads.walk(name, t.in)
	return err == nil && t.in(at), err
}

// above says that the target is in what is at a path.
func (t target) above(name string) (bool, error) {
	if len(t.forms) == 0 || !path.IsAbs(name) {
		return false, nil
	}
	real, err := t.roads.walk(name, func(string) bool { return false })
	if err != nil {
		return false, err
	}
	for _, dir := range t.forms {
		for _, name := range []string{path.Clean(name), real} {
			if name == "/" || strings.HasPrefix(dir, name+"/") {
				return true, nil
			}
		}
	}
	return false, nil
}

// refersFstab are the numbers of the lines of an fstab that name a dataset, or something in it, as
// what is mounted, as where that is, or in an option, as what has to be there first or is a part of it.
func refersFstab(text, dataset string, below func(string) (bool, error)) (lines []int, err error) {
	for i, line := range strings.Split(text, "\n") {
		// Only these are blanks to mount(8).
		f := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
		if len(f) < 2 || strings.HasPrefix(f[0], "#") {
			continue
		}
		names := append([]string{f[0], f[1]}, pathsIn(strings.Join(f[2:], ","))...)
		if strings.HasPrefix(f[0], "/") { // else it is of another machine
			names = append(names, pathsIn(f[0])...)
		}
		refers := unescape(f[0]) == dataset
		for _, name := range names {
			in, err := below(unescape(name))
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
			refers = refers || in
		}
		if refers {
			lines = append(lines, i+1)
		}
	}
	return lines, nil
}

// pathsIn are the absolute paths in options of a mount, like lowerdir=/a:/b.
func pathsIn(options string) (paths []string) {
	for _, o := range strings.FieldsFunc(options, func(r rune) bool { return strings.ContainsRune(",=:", r) }) {
		if path.IsAbs(o) {
			paths = append(paths, o)
		}
	}
	return paths
}

// refersExports are the numbers of the lines that export the target or what is in it, or something
// above it with all that is mounted there.
func refersExports(text string, t target) (lines []int, err error) {
	at, whole := 0, ""
	for i, line := range strings.Split(text, "\n") {
		if whole == "" {
			at = i + 1
		}
		if more, ok := strings.CutSuffix(line, "\\"); ok {
			whole += more + " "
			continue
		}
		whole = strings.TrimSpace(whole + line)
		exported, options, _ := strings.Cut(whole, " ")
		if quoted, ok := strings.CutPrefix(whole, `"`); ok {
			exported, options, _ = strings.Cut(quoted, `"`)
		} else if tab := strings.IndexByte(exported, '\t'); tab >= 0 {
			exported, options = whole[:tab], whole[tab:]
		}
		exported = unescape(exported)
		refers, err := t.below(exported)
		if err == nil && !refers && strings.Contains(options, "crossmnt") {
			refers, err = t.above(exported)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", at, err)
		}
		if refers {
			lines = append(lines, at)
		}
		whole = ""
	}
	return lines, nil
}

// unescape undoes the octal numbers that stand for blanks in a field.
func unescape(field string) string {
	var b strings.Builder
	for i := 0; i < len(field); i++ {
		if field[i] == '\\' && i+3 < len(field) {
			if n, err := strconv.ParseUint(field[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(field[i])
	}
	return b.String()
}
