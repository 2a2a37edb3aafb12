package replicate

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Kstats reads the kernel's per-dataset counters, which OpenZFS keeps for mounted
// filesystems in <dir>/<pool>/objset-*. It implements Dirty.
type Kstats struct {
	Pool string
	Dir  string // "": /proc/spl/kstat/zfs
}

// Counters adds up writes and unlinks of every mounted dataset, or fails. A pool without
// such files has none, which is no error: the hint is then just missing.
func (k Kstats) Counters(ctx context.Context) (map[string]uint64, error) {
	dir := k.Dir
	if dir == "" {
		dir = "/proc/spl/kstat/zfs"
	}
	files, err := filepath.Glob(filepath.Join(dir, k.Pool, "objset-*"))
	if err != nil {
		return nil, err
	}
	counters := make(map[string]uint64, len(files))
	for _, file := range files {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			if _, gone := os.Stat(file); errors.Is(gone, fs.ErrNotExist) {
				continue // unmounted since the listing
			}
			// Without its counter the dataset would pass for one that nobody writes.
			return nil, err
		}
		if name, n := parseObjset(b); name != "" {
			counters[name] = n
		}
	}
	return counters, nil
}

// parseObjset reads one kstat: lines of name, type, value.
func parseObjset(b []byte) (dataset string, counter uint64) {
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 {
			continue
		}
		switch fields[0] {
		case "dataset_name":
			dataset = fields[2]
		case "writes", "nunlinks":
			n, _ := strconv.ParseUint(fields[2], 10, 64)
			counter += n
		}
	}
	return dataset, counter
}
