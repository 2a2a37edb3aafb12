package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// Load reads what there is in a store.
func Load(ctx context.Context, s Store) (*Catalog, error) {
	type place struct{ manifest, partial bool }
	places := map[string]*place{}
	var order []string
	err := s.List(ctx, "", func(name string, _ int64) error {
		parts := strings.Split(name, "/")
		if len(parts) != 3 || parts[2] != manifestName && parts[2] != partialName {
			return nil
		}
		at := path.Dir(name)
		if places[at] == nil {
			places[at] = &place{}
			order = append(order, at)
		}
		if parts[2] == manifestName {
			places[at].manifest = true
		} else {
			places[at].partial = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the backups: %w", err)
	}
	c := &Catalog{}
	for _, at := range order {
		name, whole := at+"/"+partialName, false
		if places[at].manifest {
			name, whole = at+"/"+manifestName, true
		}
		m, err := read(ctx, s, name, whole)
		var bad *damage
		switch {
		case errors.Is(err, fs.ErrNotExist): // it was removed, or finished, meanwhile
		case errors.As(err, &bad):
			c.Broken = append(c.Broken, Broken{name, bad.Error()})
		case err != nil:
			return nil, fmt.Errorf("reading %s: %w", name, err)
		case whole:
			c.Backups = append(c.Backups, m)
		default:
			c.Partial = append(c.Partial, m)
		}
	}
	c.sort()
	return c, nil
}

// damage is what is wrong with something that was read.
type damage struct{ error }

// read reads a manifest, which has to be that of the place where it is.
func read(ctx context.Context, s Store, name string, whole bool) (*Manifest, error) {
	b, err := s.Get(ctx, name, maxManifest)
	if errors.Is(err, errTooLong) {
		return nil, &damage{err}
	}
	if err != nil {
		return nil, err
	}
	m, err := parse(b, whole)
	if err != nil {
		return nil, &damage{err}
	}
	if m.prefix() != path.Dir(name)+"/" {
		return nil, &damage{fmt.Errorf("it is the manifest of %s, which is another backup", m.ID)}
	}
	return m, nil
}

// Remove takes a backup away, finished or not. Its manifest goes first: what remains when
// this is cut short is no backup, and goes when it is called again.
func Remove(ctx context.Context, s Store, m *Manifest) error {
	// Who looks at what remains finds what it was, and can remove it.
	if b, err := (&Manifest{ID: m.ID, Volume: m.Volume, Name: m.Name, Cluster: m.Cluster, Snapshot: m.Snapshot, Base: m.Base, Began: m.Began, Recipients: m.Recipients, ChunkSize: m.ChunkSize}).encode(); err != nil {
		return err
	} else if err := s.Put(ctx, m.object(partialName), b); err != nil {
		return fmt.Errorf("removing backup %s: %w", m.ID, err)
	}
	if err := s.Remove(ctx, m.object(manifestName)); err != nil {
		return fmt.Errorf("removing backup %s: %w", m.ID, err)
	}
	if err := sweep(ctx, s, m, func(name string) bool { return name == partialName }); err != nil {
		return err
	}
	if err := s.Remove(ctx, m.object(partialName)); err != nil {
		return fmt.Errorf("removing backup %s: %w", m.ID, err)
	}
	return nil
}

// sweep removes the objects of a backup but for some.
func sweep(ctx context.Context, s Store, m *Manifest, keep func(name string) bool) error {
	var list []string
	err := s.List(ctx, m.prefix(), func(name string, _ int64) error {
		if !keep(strings.TrimPrefix(name, m.prefix())) {
			list = append(list, name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("listing backup %s: %w", m.ID, err)
	}
	for _, name := range list {
		if err := s.Remove(ctx, name); err != nil {
			return fmt.Errorf("removing %s: %w", name, err)
		}
	}
	return nil
}
