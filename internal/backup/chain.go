package backup

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
)

// Catalog is what there is in a store.
type Catalog struct {
	// Backups are finished, by volume, each volume's in the order of their snapshots.
	Backups []*Manifest
	// Partial are those that were begun and not finished.
	Partial []*Manifest
	// Broken are manifests that cannot be read, and why. What they were is unknown, so that
	// other backups may stand on them.
	Broken []Broken
}

// Broken is something in a store that cannot be read.
type Broken struct {
	Object string `json:"object"`
	Reason string `json:"reason"`
}

func (c *Catalog) sort() {
	for _, list := range [][]*Manifest{c.Backups, c.Partial} {
		slices.SortFunc(list, func(a, b *Manifest) int {
			return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Volume, b.Volume), a.Snapshot.Taken.Compare(b.Snapshot.Taken), cmp.Compare(a.ID, b.ID))
		})
	}
}

// Of are the backups of one volume, oldest first.
func (c *Catalog) Of(id volume.ID) (out []*Manifest) {
	for _, m := range c.Backups {
		if m.Volume == id {
			out = append(out, m)
		}
	}
	return out
}

// Find is the backup that ref means: its id, the start of one that only one has, or the
// newest one of a volume, by its name or id.
func (c *Catalog) Find(ref string) (*Manifest, error) {
	var begun []*Manifest
	volumes := map[volume.ID]*Manifest{}
	for _, m := range c.Backups {
		switch {
		case m.ID == ref:
			return m, nil
		case m.Name == ref, string(m.Volume) == ref:
			volumes[m.Volume] = m // the newest is the last
		case len(ref) >= 4 && strings.HasPrefix(m.ID, ref):
			begun = append(begun, m)
		}
	}
	found := begun
	if len(volumes) > 0 {
		found = nil
		for _, m := range volumes {
			found = append(found, m)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		var may []string
		for _, m := range found {
			may = append(may, m.ID)
		}
		slices.Sort(may)
		return nil, volume.Errorf(volume.CodeConflict, "%.100q is ambiguous: it may be %s", ref, strings.Join(may, ", ")).WithHint("give the id of the backup")
	}
	for _, m := range c.Partial {
		if m.ID == ref {
			return nil, volume.Errorf(volume.CodeRefused, "backup %s of volume %q was never finished, so it is none", m.ID, m.Name).
				WithHint("flockctl backup create %s goes on with it", m.Name)
		}
	}
	err := volume.Errorf(volume.CodeNotFound, "there is no backup %.100q", ref)
	if len(c.Broken) > 0 {
		return nil, err.WithHint("one cannot be read: %s: %s", c.Broken[0].Object, c.Broken[0].Reason)
	}
	return nil, err.WithHint("flockctl backup list shows what there is")
}

// Chain is what is needed to restore one: a full one first, then each increment, it last.
func (c *Catalog) Chain(m *Manifest) ([]*Manifest, error) {
	chain := []*Manifest{m}
	for m.Base != nil {
		i := slices.IndexFunc(c.Backups, func(b *Manifest) bool { return b.ID == m.Base.ID })
		if i < 0 {
			err := volume.Errorf(volume.CodeRefused, "backup %s is an increment on %s, which is not there", m.ID, m.Base.ID)
			if len(c.Broken) > 0 {
				err = err.WithHint("one cannot be read: %s: %s", c.Broken[0].Object, c.Broken[0].Reason)
			}
			return nil, err
		}
		b := c.Backups[i]
		switch {
		case b.Snapshot.GUID != m.Base.GUID || b.Volume != m.Volume:
			return nil, volume.Errorf(volume.CodeRefused, "backup %s is an increment on another snapshot than backup %s has", m.ID, b.ID)
		case slices.Contains(chain, b):
			return nil, volume.Errorf(volume.CodeRefused, "backup %s is an increment on itself, by way of others", m.ID)
		}
		chain = append(chain, b)
		m = b
	}
	slices.Reverse(chain)
	return chain, nil
}

// Restorable says why a backup could not be restored, as far as it is seen without reading
// all of it.
func (c *Catalog) Restorable(m *Manifest) error {
	chain, err := c.Chain(m)
	if err != nil {
		return err
	}
	for _, b := range chain {
		if b.found.removed {
			return volume.Errorf(volume.CodeRefused, "backup %s is being removed", b.ID)
		}
		if b.found.lacks != nil {
			return b.found.lacks
		}
	}
	return nil
}

// Fits says that a backup can be restored by those keys and with that secret, it and all that
// it stands on.
func (c *Catalog) Fits(m *Manifest, recipients []string, a *Auth) bool {
	chain, err := c.Chain(m)
	return err == nil && c.Restorable(m) == nil &&
		!slices.ContainsFunc(chain, func(b *Manifest) bool { return !b.SealedTo(recipients) || !b.MadeWith(a) })
}

// Bases are the backups of a volume that another one may be an increment on, newest first:
// those that can be restored, by who can read the new one and with the same secret. There are
// none when the newest is that many increments on each other: then it is time for a full one.
func (c *Catalog) Bases(id volume.ID, increments int, recipients []string, a *Auth) (out []*Manifest) {
	for _, m := range slices.Backward(c.Of(id)) {
		chain, err := c.Chain(m)
		switch {
		case err != nil || !c.Fits(m, recipients, a):
		case len(chain) <= increments:
			out = append(out, m)
		case len(out) == 0:
			return nil
		}
	}
	return out
}

// Removable says why these cannot be removed: others need them, that stay, or are being made.
func (c *Catalog) Removable(ids []string) error {
	for _, m := range slices.Concat(c.Backups, c.Partial) {
		if m.Base != nil && !m.found.removed && slices.Contains(ids, m.Base.ID) && !slices.Contains(ids, m.ID) {
			return volume.Errorf(volume.CodeRefused, "backup %s is needed: %s is an increment on it", m.Base.ID, m.ID).
				WithHint("remove that one with it, or first")
		}
	}
	for _, m := range slices.Concat(c.Backups, c.Partial) {
		if slices.Contains(ids, m.ID) {
			if b := c.brokenOf(m.Volume); len(b) > 0 {
				return volume.Errorf(volume.CodeRefused, "what cannot be read may need what is to be removed: %s: %s", b[0].Object, b[0].Reason).
					WithHint("repair or delete that object first")
			}
		}
	}
	return nil
}

// brokenOf is what of a volume cannot be read.
func (c *Catalog) brokenOf(id volume.ID) (out []Broken) {
	for _, b := range c.Broken {
		if strings.HasPrefix(b.Object, string(id)+"/") {
			out = append(out, b)
		}
	}
	return out
}

// Expired are the backups of a volume that go when only the newest are kept: those that are
// none of them, nor the one just made, and that none of these and nothing unfinished needs,
// increments before what they stand on. Where something cannot be read, none goes. With a
// secret only those made with it are counted, and go: what somebody else puts there expires none.
func (c *Catalog) Expired(id volume.ID, keep int, done string, a *Auth) ([]*Manifest, error) {
	all, others := c.Of(id), []*Manifest(nil)
	if a != nil {
		others = slices.DeleteFunc(slices.Clone(all), func(m *Manifest) bool { return m.MadeWith(a) })
		all = slices.DeleteFunc(all, func(m *Manifest) bool { return !m.MadeWith(a) })
	}
	if keep <= 0 || len(all) <= keep {
		return nil, nil
	}
	if b := c.brokenOf(id); len(b) > 0 {
		return nil, fmt.Errorf("no old backups are removed, for they may be needed by what cannot be read: %s: %s", b[0].Object, b[0].Reason)
	}
	needed := map[string]bool{}
	need := func(m *Manifest) {
		for m != nil && !needed[m.ID] {
			needed[m.ID] = true
			base := m.Base
			m = nil
			if base != nil {
				if i := slices.IndexFunc(all, func(b *Manifest) bool { return b.ID == base.ID }); i >= 0 {
					m = all[i]
				}
			}
		}
	}
	for i, m := range all {
		if i >= len(all)-keep || m.ID == done {
			need(m)
		}
	}
	for _, m := range slices.Concat(c.Partial, others) {
		if m.Volume == id && !m.found.removed {
			need(m)
		}
	}
	var out []*Manifest
	for _, m := range slices.Backward(all) {
		if !needed[m.ID] {
			out = append(out, m)
		}
	}
	// By time an increment may be before what it stands on, where clocks differ.
	for i := range out {
		for j := i; j < len(out); j++ {
			if !slices.ContainsFunc(out[i:], func(m *Manifest) bool { return m.Base != nil && m.Base.ID == out[j].ID }) {
				m := out[j]
				out = slices.Insert(slices.Delete(out, j, j+1), i, m)
				break
			}
		}
	}
	return out, nil
}
