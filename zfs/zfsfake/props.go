package zfsfake

import (
	"context"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/flocker-io/flocker/zfs"
)

// native are the properties that may be set, and the values they take: words, or
// "size", "path" or "any".
var native = map[string]string{
	"readonly": "on off", "canmount": "on off noauto", "atime": "on off", "relatime": "on off",
	"devices": "on off", "exec": "on off", "setuid": "on off", "overlay": "on off",
	"mountpoint": "path", "refquota": "size", "quota": "size", "reservation": "size", "refreservation": "size",
	"recordsize": "size", "special_small_blocks": "size",
	"compression": "any", "checksum": "any", "acltype": "any", "xattr": "any", "dnodesize": "any",
	"primarycache": "all none metadata", "secondarycache": "all none metadata",
	"logbias": "latency throughput", "sync": "standard always disabled", "copies": "1 2 3",
	"redundant_metadata": "any", "snapdir": "hidden visible disabled", "prefetch": "any",
	"encryption": "off on aes-256-gcm", // at creation only
	"keyformat":  "raw hex passphrase", "keylocation": "any",
	"sharenfs": "any", "sharesmb": "any", "zoned": "on off",
	"direct": "any", "volmode": "any", "aclinherit": "any", "aclmode": "any", "dedup": "any",
}

// inherited by the datasets below.
var notInherited = map[string]bool{
	"canmount": true, "refquota": true, "quota": true, "reservation": true, "refreservation": true,
}

// SetProperties implements zfs.System.
func (h *Host) SetProperties(ctx context.Context, name string, props map[string]string) error {
	if err := invalid("set", checkAny(name), checkProps(props)); err != nil || len(props) == 0 {
		return err
	}
	return h.command(ctx, "set", name, func() error {
		if strings.Contains(name, "@") {
			s, err := h.snapshot(name)
			if err != nil {
				return err
			}
			for key := range props {
				if !strings.Contains(key, ":") {
					return fail(zfs.ErrInvalid, "cannot set property for '%s': this property can not be modified for snapshots", name)
				}
			}
			if err := s.ds.pool.begin(0); err != nil {
				return err
			}
			s.props = maps.Clone(s.props)
			if s.props == nil {
				s.props = map[string]string{}
			}
			maps.Copy(s.props, props)
			return nil
		}
		d, err := h.dataset(name)
		if err != nil {
			return err
		}
		if err := h.checkValues(name, props); err != nil {
			return err
		}
		if _, ok := props["encryption"]; ok {
			return fail(zfs.ErrInvalid, "cannot set property for '%s': 'encryption' is readonly", name)
		}
		if q, ok := props["refquota"]; ok {
			if n, _ := parseSize(q); n > 0 && n < d.referenced() {
				return fail(zfs.ErrInvalid, "cannot set property for '%s': size is less than current used or reserved space", name)
			}
		}
		if err := d.pool.begin(0); err != nil {
			return err
		}
		d.setProps(props)
		h.remount(d, slices.Collect(maps.Keys(props)))
		return nil
	})
}

// defaults are those of words that are asked for by name; what is not here has no value
// unless somebody has set one.
var defaults = map[string]string{
	"readonly": "off", "canmount": "on", "atime": "on", "relatime": "on", "sharenfs": "off", "sharesmb": "off", "zoned": "off",
	"compression": "on", "xattr": "sa", "acltype": "off", "encryption": "off",
}

// Properties implements zfs.System.
func (h *Host) Properties(ctx context.Context, name string, props []string) (out map[string]zfs.Property, err error) {
	errs := []error{zfs.CheckDataset(name)}
	for _, p := range props {
		errs = append(errs, zfs.CheckProperty(p, ""))
	}
	if err := invalid("properties", errs...); err != nil {
		return nil, err
	}
	err = h.command(ctx, "properties", name, func() error {
		d, err := h.dataset(name)
		if err != nil {
			return err
		}
		out = map[string]zfs.Property{}
		for _, p := range props {
			own, ok := d.props[p]
			def := defaults[p]
			switch {
			case !strings.Contains(p, ":") && native[p] == "":
				return fail(zfs.ErrInvalid, "bad property list: invalid property '%s'", p)
			case native[p] == "size":
				def = "0"
			case p == "mountpoint":
				def = h.mountpoint(d)
			}
			value := own
			if !ok && notInherited[p] {
				value = def
			} else if !ok {
				value = h.effective(d, p, def)
			}
			if value != "" {
				out[p] = zfs.Property{Value: value, Own: ok}
			}
		}
		return nil
	})
	return out, err
}

// Inherit implements zfs.System.
func (h *Host) Inherit(ctx context.Context, name, prop string) error {
	if err := invalid("inherit", checkAny(name), zfs.CheckProperty(prop, "")); err != nil {
		return err
	}
	return h.command(ctx, "inherit", name+" "+prop, func() error {
		if strings.Contains(name, "@") {
			s, err := h.snapshot(name)
			if err != nil {
				return err
			}
			if err := s.ds.pool.begin(0); err != nil {
				return err
			}
			s.props = maps.Clone(s.props)
			delete(s.props, prop)
			return nil
		}
		d, err := h.dataset(name)
		if err != nil {
			return err
		}
		if !strings.Contains(prop, ":") && native[prop] == "" {
			return fail(zfs.ErrInvalid, "invalid property '%s'", prop)
		}
		if notInherited[prop] && strings.HasSuffix(prop, "quota") || strings.HasSuffix(prop, "reservation") {
			return fail(zfs.ErrInvalid, "'%s' property cannot be inherited", prop)
		}
		if err := d.pool.begin(0); err != nil {
			return err
		}
		delete(d.props, prop)
		h.remount(d, []string{prop})
		return nil
	})
}

func (d *dataset) setProps(props map[string]string) {
	for key, value := range props {
		if native[key] == "size" {
			n, _ := parseSize(value)
			value = strconv.FormatInt(n, 10)
		}
		if key == "encryption" && value == "on" {
			value = "aes-256-gcm"
		}
		d.props[key] = value
	}
}

// remount follows a changed property of what is mounted.
func (h *Host) remount(d *dataset, changed []string) {
	for _, d := range d.pool.below(d.name) {
		m := h.mounts[d]
		if m == nil {
			continue
		}
		if slices.Contains(changed, "readonly") {
			m.writable = h.effective(d, "readonly", "off") != "on"
		}
		if slices.Contains(changed, "mountpoint") {
			if m.path = h.mountpoint(d); m.path == "none" || m.path == "legacy" {
				d.sync()
				delete(h.mounts, d)
			}
		}
	}
}

func (h *Host) checkValues(name string, props map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(props)) {
		value, kind := props[key], native[key]
		ok := true
		switch {
		case strings.Contains(key, ":"):
		case kind == "":
			return fail(zfs.ErrInvalid, "cannot set property for '%s': invalid property '%s'", name, key)
		case kind == "any":
			ok = value != ""
		case kind == "path":
			ok = value == "none" || value == "legacy" || strings.HasPrefix(value, "/")
		case kind == "size":
			_, ok = parseSize(value)
		default:
			ok = slices.Contains(strings.Fields(kind), value)
		}
		if !ok {
			return fail(zfs.ErrInvalid, "cannot set property for '%s': bad value '%s' of %s", name, value, key)
		}
	}
	return nil
}

// parseSize takes what zfs takes: bytes, a suffix, or none.
func parseSize(s string) (int64, bool) {
	if s == "none" {
		return 0, true
	}
	n := strings.TrimSuffix(strings.ToUpper(s), "B")
	shift := 0
	if i := strings.IndexAny(n, "KMGTPE"); i >= 0 && i == len(n)-1 {
		shift = 10 * (1 + strings.IndexByte("KMGTPE", n[i]))
		n = n[:i]
	}
	v, err := strconv.ParseInt(n, 10, 64)
	return v << shift, err == nil && v >= 0 && v<<shift>>shift == v
}

func (d *dataset) refquota() int64 {
	n, _ := strconv.ParseInt(d.props["refquota"], 10, 64)
	return n
}

// effective is the value of a property here: own, inherited or the default.
func (h *Host) effective(d *dataset, prop, def string) string {
	for name := d.name; ; name = path.Dir(name) {
		if a := d.pool.datasets[name]; a != nil {
			if v, ok := a.props[prop]; ok {
				return v
			}
		}
		if !strings.Contains(name, "/") {
			return def
		}
	}
}

func (h *Host) mountpoint(d *dataset) string {
	rest := ""
	for name := d.name; ; name = path.Dir(name) {
		if a := d.pool.datasets[name]; a != nil {
			if v, ok := a.props["mountpoint"]; ok {
				if v == "none" || v == "legacy" {
					return v
				}
				return path.Join(v, rest)
			}
		}
		if !strings.Contains(name, "/") {
			return "/" + path.Join(name, rest)
		}
		rest = path.Join(path.Base(name), rest)
	}
}
