package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Load reads what there is in a store. Of the chunks of a backup it keeps nothing: who reads one
// reads its manifest again.
func Load(ctx context.Context, s Store) (*Catalog, error) { return load(ctx, s, "") }

// LoadOf reads what there is of one volume.
func LoadOf(ctx context.Context, s Store, id volume.ID) (*Catalog, error) {
	return load(ctx, s, string(id)+"/")
}

func load(ctx context.Context, s Store, prefix string) (*Catalog, error) {
	places := map[string]map[string]int64{}
	var order []string
	err := s.List(ctx, prefix, func(name string, size int64) error {
		parts := strings.Split(name, "/")
		if len(parts) != 3 {
			return nil
		}
		at := path.Dir(name)
		if places[at] == nil {
			places[at] = map[string]int64{}
			order = append(order, at)
		}
		places[at][parts[2]] = size
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the backups: %w", err)
	}
	c := &Catalog{}
	for _, at := range order {
		have := places[at]
		var what string
		for _, what = range []string{manifestName, partialName, removedName, ""} {
			if has(have, what) {
				break
			}
		}
		if what == "" {
			continue
		}
		name := at + "/" + what
		m, err := read(ctx, s, name, what == manifestName)
		var bad *damage
		switch {
		case errors.Is(err, fs.ErrNotExist): // it was removed, or finished, meanwhile
			continue
		case errors.As(err, &bad):
			c.Broken = append(c.Broken, Broken{name, bad.Error()})
			continue
		case err != nil:
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		m.found.removed = has(have, removedName)
		if what == manifestName {
			m.found.lacks = lacks(m, have)
			m.found.rest = rest(m, have)
			m.head()
			c.Backups = append(c.Backups, m)
			continue
		}
		if _, m.found.heard, err = readMark(ctx, s, m); err != nil {
			return nil, err
		}
		c.Partial = append(c.Partial, m)
	}
	c.sort()
	return c, nil
}

// rest says whether there is more than what a backup needs.
func rest(m *Manifest, have map[string]int64) bool {
	mine := m.objects()
	for name := range have {
		if !mine[name] && name != removedName {
			return true
		}
	}
	return false
}

// whole is a manifest with its chunks.
func whole(ctx context.Context, s Store, m *Manifest) (*Manifest, error) {
	if len(m.Chunks) > 0 {
		return m, nil
	}
	w, err := read(ctx, s, m.object(manifestName), true)
	var bad *damage
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, volume.Errorf(volume.CodeConflict, "backup %s was removed meanwhile", m.ID)
	case errors.As(err, &bad):
		return nil, volume.Errorf(volume.CodeRefused, "backup %s of volume %q is damaged: %v", m.ID, m.Name, bad)
	case err != nil:
		return nil, fmt.Errorf("reading the manifest of backup %s: %w", m.ID, err)
	case w.found.sum != m.found.sum: // the mark was looked at, too
		return nil, volume.Errorf(volume.CodeConflict, "backup %s is another one than it was a moment ago", m.ID)
	}
	return w, nil
}

// Sweep removes what is next to a finished backup and is no part of it.
func Sweep(ctx context.Context, s Store, m *Manifest) error {
	m, err := whole(ctx, s, m)
	if err != nil {
		return err
	}
	mine := m.objects()
	return sweep(ctx, s, m, func(name string) bool { return mine[name] || name == removedName })
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

// Remove takes a backup away, finished or not, unless it is being made or another stands on
// it. What remains when this is cut short is no backup, and goes when it is called again.
func Remove(ctx context.Context, s Store, m *Manifest, now time.Time) error {
	_, heard, err := readMark(ctx, s, m)
	if err != nil {
		return err
	}
	if Busy(heard, now) {
		return beingMade(m, heard, now).WithHint("end that first; what was killed can be removed %s after it was heard of", aliveFor)
	}
	// Who looks at what remains finds what it was, and can remove it; and who makes an
	// increment on it sees that it goes.
	head := *m
	head.Ended, head.Size, head.Chunks = time.Time{}, 0, nil
	b, err := head.encode(nil)
	if err != nil {
		return err
	}
	said := s.Put(ctx, m.object(removedName), b)
	if err := unneeded(ctx, s, m); err != nil {
		if !m.found.removed {
			err = errors.Join(err, s.Remove(ctx, m.object(removedName)))
		}
		return err
	}
	order := []string{manifestName, "", partialName, removedName}
	if said != nil {
		// A full store takes nothing. Then the manifest goes last, so that the rest is found.
		order = []string{"", partialName, manifestName, removedName}
	}
	for _, name := range order {
		if name == "" {
			err = sweep(ctx, s, m, func(name string) bool { return slices.Contains(order, name) })
		} else if err = s.Remove(ctx, m.object(name)); err != nil {
			err = fmt.Errorf("removing backup %s: %w", m.ID, err)
		}
		if err != nil {
			return errors.Join(err, said)
		}
	}
	return nil
}

// unneeded is an error when something stands on a backup, finished or not.
func unneeded(ctx context.Context, s Store, m *Manifest) error {
	all, err := LoadOf(ctx, s, m.Volume)
	if err != nil {
		return err
	}
	return all.Removable([]string{m.ID})
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
	if t, ok := s.(interface{ tidy(prefix string) error }); ok {
		return t.tidy(m.prefix())
	}
	return nil
}
