package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/flocker-io/flocker/internal/state"
)

// After a restart Raft applies nothing before it has a leader: without one the node
// would not know its volumes, nor its peers' addresses, which it needs to get one. So
// the last state is also kept in a file. It is a copy of what was agreed on, perhaps
// of some time ago; Raft's own state replaces it as soon as it is newer.

// cacheEvery bounds how often the file is written.
const cacheEvery = time.Second

func (c *Cluster) loadCache() {
	b, err := c.disk.Read(fileCache)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		var s *state.State
		if s, err = state.Unmarshal(bytes.NewReader(b)); err == nil {
			c.publish(s)
			return
		}
	}
	c.log.Warn("the saved state cannot be read; waiting for the cluster's", "err", err)
}

// Readable says, as an error, that the state which this node has seen last was written by a later
// version, and that this one cannot read it: flockd would stop. A file that is damaged is none:
// without it flockd waits for the cluster's.
func Readable(d Disk) error {
	b, err := d.Read(fileCache)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("reading the saved state: %w", err)
	}
	var other *json.UnmarshalTypeError
	if _, err = state.Unmarshal(bytes.NewReader(b)); errors.Is(err, state.ErrUnknownCommand) || errors.As(err, &other) {
		return err
	}
	return nil
}

// keepCache saves the state some time after it has changed, and once more at the
// end.
func (c *Cluster) keepCache(ctx context.Context) {
	saved := c.State().Index
	save := func() {
		s := c.State()
		if s.Index == saved {
			return
		}
		var b bytes.Buffer
		err := s.Marshal(&b)
		if err == nil {
			err = c.disk.Write(fileCache, b.Bytes())
		}
		if err != nil {
			c.log.Error("cannot save the state", "err", err)
			return
		}
		saved = s.Index
	}
	for {
		changed := c.Changed()
		save()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		if !sleep(ctx, cacheEvery) {
			save()
			return
		}
	}
}
