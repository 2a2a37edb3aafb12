package fence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// load reads what a fencer of this boot has left. What another boot left is of no
// interest: its writers ended with it. A file that cannot be read may stand for any
// lease, so that all writers are to be stopped.
func load(path, boot string) (record, error) {
	fresh := record{Boot: boot}
	unknown := record{Boot: boot, Over: true, Reason: "what the fencer knew of the lease is lost"}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return fresh, nil
	}
	if err != nil {
		return unknown, fmt.Errorf("reading the fencer's state: %w", err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return unknown, fmt.Errorf("reading the fencer's state %s: %w", path, err)
	}
	if r.Boot != boot {
		return fresh, nil
	}
	return r, nil
}

// Readable says, as an error, that the fencer of another version has left in its run directory what
// this one would drop, or take for any lease, at which it stops all writers.
func Readable(runDir string) error {
	path := filepath.Join(runDir, fileName)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		err = d.Decode(&record{})
	}
	if err != nil {
		return fmt.Errorf("reading the fencer's state %s: %w", path, err)
	}
	return nil
}

// fileName is that of the state in the run directory.
const fileName = "fence.json"

// save replaces the file at once: it is never seen half written. It is on a file system
// in memory, so that nothing is gained by syncing it.
func (r *record) save(path string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return fmt.Errorf("writing the fencer's state: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("writing the fencer's state: %w", err)
	}
	return nil
}
