package daemon

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// Refers implements agent.Files.
func (osFiles) Refers(dataset, dir string) ([]string, error) {
	return refersIn("/etc", dataset, dir)
}

// refersIn looks for a dataset, or where it is mounted, in what /etc says of mounts and exports.
func refersIn(etc, dataset, dir string) (found []string, err error) {
	at := below(dir)
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
			lines = refersFstab(string(text), dataset, at)
		} else {
			lines = refersExports(string(text), dir, at)
		}
		for _, n := range lines {
			found = append(found, fmt.Sprintf("%s, line %d", name, n))
		}
	}
	return found, nil
}

// below tells what is a directory, or is in it, also by way of symbolic links; of "" nothing is.
func below(dir string) func(name string) bool {
	in := func(name string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }
	return func(name string) bool {
		if dir == "" || !path.IsAbs(name) {
			return false
		}
		if in(path.Clean(name)) {
			return true
		}
		real, err := filepath.EvalSymlinks(name)
		return err == nil && in(real)
	}
}

// refersFstab are the numbers of the lines of an fstab that name a dataset, or something in it, as
// what is mounted, as where that is, or as what has to be there first.
func refersFstab(text, dataset string, in func(string) bool) (lines []int) {
	for i, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") {
			continue
		}
		source, target := unescape(f[0]), unescape(f[1])
		refers := source == dataset || in(source) || in(target)
		for _, o := range strings.Split(strings.Join(f[2:], ","), ",") {
			if _, need, ok := strings.Cut(o, "requires-mounts-for="); ok {
				refers = refers || in(unescape(need))
			}
		}
		if refers {
			lines = append(lines, i+1)
		}
	}
	return lines
}

// refersExports are the numbers of the lines that export dir or what is in it, or something above
// it with all that is mounted there.
func refersExports(text, dir string, in func(string) bool) (lines []int) {
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
		exported = path.Clean(unescape(exported))
		above := dir != "" && (exported == "/" || strings.HasPrefix(dir, exported+"/"))
		if in(exported) || above && strings.Contains(options, "crossmnt") {
			lines = append(lines, at)
		}
		whole = ""
	}
	return lines
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
