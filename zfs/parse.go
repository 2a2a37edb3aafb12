package zfs

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The parsers take what `zfs -Hp` prints and never panic. An unknown line or
// value is an error: a listing that was half understood would look like datasets
// that are gone.

// row is one line of `zfs get -Hp -o name,property,value,source`.
type row struct {
	name, prop, value, source string
}

func parseRows(out []byte) ([]row, error) {
	var rows []row
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) != 4 || f[0] == "" || f[1] == "" {
			return nil, fmt.Errorf("line %q of zfs get: want name, property, value and source", line)
		}
		rows = append(rows, row{f[0], f[1], f[2], f[3]})
	}
	return rows, nil
}

// own says whether the value was set on the object itself.
func (r row) own() bool { return r.source == "local" || r.source == "received" }

// isUserProperty: only the names of those hold a colon.
func isUserProperty(prop string) bool { return strings.Contains(prop, ":") }

// datasetProps are asked for in this order by every listing of datasets. Of a volume,
// zfs prints "-" for those that only filesystems have.
var datasetProps = []string{
	"guid", "createtxg", "used", "available", "referenced", "written", "refquota", "origin",
	"mountpoint", "mounted", "readonly", "canmount", "encryption", "receive_resume_token",
}

// parseDatasets reads the answer for datasetProps and user properties, in the
// order in which the datasets were printed.
func parseDatasets(out []byte) ([]Dataset, error) {
	rows, err := parseRows(out)
	if err != nil {
		return nil, err
	}
	var list []Dataset
	for _, r := range rows {
		if len(list) == 0 || list[len(list)-1].Name != r.name {
			list = append(list, Dataset{Name: r.name})
		}
		if err := list[len(list)-1].set(r); err != nil {
			return nil, fmt.Errorf("%s of %s: %w", r.prop, r.name, err)
		}
	}
	for i := range list {
		if list[i].GUID == 0 {
			return nil, fmt.Errorf("dataset %s: zfs printed no guid", list[i].Name)
		}
		list[i].Writable = list[i].Writable && list[i].Mounted
	}
	return list, nil
}

func (d *Dataset) set(r row) (err error) {
	switch r.prop {
	case "guid":
		d.GUID, err = parseUint(r.value)
	case "createtxg":
		d.CreateTXG, err = parseUint(r.value)
	case "used":
		d.Used, err = parseSize(r.value)
	case "available":
		d.Available, err = parseSize(r.value)
	case "referenced":
		d.Referenced, err = parseSize(r.value)
	case "written":
		d.Written, err = parseSize(r.value)
	case "refquota":
		d.RefQuota, err = parseSize(r.value)
	case "origin":
		d.Origin = parseText(r.value)
	case "mountpoint":
		d.Mountpoint = parseText(r.value)
	case "mounted":
		d.Mounted, err = parseBool(r.value)
		d.Volume = r.value == "-"
	case "readonly":
		// A mount with another option than the property shows the option, with source
		// "temporary"; the property on disk is then the opposite.
		var shown bool
		shown, err = parseBool(r.value)
		d.ReadOnly = shown != (r.source == "temporary")
		d.Writable = !shown // completed by parseDatasets: only when mounted
	case "canmount":
		d.CanMount = parseText(r.value)
	case "encryption":
		d.Encryption = parseText(r.value)
	case "receive_resume_token":
		d.ResumeToken = parseText(r.value)
	default:
		if isUserProperty(r.prop) && r.own() {
			if d.User == nil {
				d.User = map[string]string{}
			}
			d.User[r.prop] = r.value
		}
	}
	return err
}

// snapshotProps are asked for in this order by every listing of snapshots.
var snapshotProps = []string{
	"guid", "createtxg", "creation", "used", "referenced", "written", "userrefs", "clones",
}

// parseSnapshots reads the answer for snapshotProps and user properties; datasets
// in the order printed, the snapshots of each in the order they were taken.
func parseSnapshots(out []byte) ([]Snapshot, error) {
	rows, err := parseRows(out)
	if err != nil {
		return nil, err
	}
	var list []Snapshot
	order := map[string]int{}
	last := ""
	for _, r := range rows {
		if len(list) == 0 || last != r.name {
			dataset, name, found := strings.Cut(r.name, "@")
			if !found {
				return nil, fmt.Errorf("%q is not a snapshot", r.name)
			}
			if _, seen := order[dataset]; !seen {
				order[dataset] = len(order)
			}
			list = append(list, Snapshot{Dataset: dataset, Name: name})
			last = r.name
		}
		if err := list[len(list)-1].set(r); err != nil {
			return nil, fmt.Errorf("%s of %s: %w", r.prop, r.name, err)
		}
	}
	for _, s := range list {
		if s.GUID == 0 {
			return nil, fmt.Errorf("snapshot %s: zfs printed no guid", s.FullName())
		}
	}
	slices.SortStableFunc(list, func(a, b Snapshot) int {
		if a.Dataset != b.Dataset {
			return order[a.Dataset] - order[b.Dataset]
		}
		return compareUint(a.CreateTXG, b.CreateTXG)
	})
	return list, nil
}

func (s *Snapshot) set(r row) (err error) {
	switch r.prop {
	case "guid":
		s.GUID, err = parseUint(r.value)
	case "createtxg":
		s.CreateTXG, err = parseUint(r.value)
	case "creation":
		s.Creation, err = parseTime(r.value)
	case "used":
		s.Used, err = parseSize(r.value)
	case "referenced":
		s.Referenced, err = parseSize(r.value)
	case "written":
		s.Written, err = parseSize(r.value)
	case "userrefs":
		var n uint64
		n, err = parseUint(r.value)
		s.UserRefs = int(min(n, 1<<30))
	case "clones":
		if v := parseText(r.value); v != "" {
			s.Clones = strings.Split(v, ",")
		}
	default:
		if isUserProperty(r.prop) && r.own() {
			if s.User == nil {
				s.User = map[string]string{}
			}
			s.User[r.prop] = r.value
		}
	}
	return err
}

// parseBookmarks reads `zfs list -Hp -t bookmark -o name,guid,createtxg,creation`.
func parseBookmarks(out []byte) ([]Bookmark, error) {
	var list []Bookmark
	order := map[string]int{}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) != 4 {
			return nil, fmt.Errorf("line %q of zfs list: want name, guid, createtxg and creation", line)
		}
		dataset, name, found := strings.Cut(f[0], "#")
		if !found {
			return nil, fmt.Errorf("%q is not a bookmark", f[0])
		}
		b := Bookmark{Dataset: dataset, Name: name}
		var err error
		if b.GUID, err = parseUint(f[1]); err == nil {
			if b.CreateTXG, err = parseUint(f[2]); err == nil {
				b.Creation, err = parseTime(f[3])
			}
		}
		if err != nil {
			return nil, fmt.Errorf("bookmark %s: %w", f[0], err)
		}
		if _, seen := order[dataset]; !seen {
			order[dataset] = len(order)
		}
		list = append(list, b)
	}
	slices.SortStableFunc(list, func(a, b Bookmark) int {
		if a.Dataset != b.Dataset {
			return order[a.Dataset] - order[b.Dataset]
		}
		return compareUint(a.CreateTXG, b.CreateTXG)
	})
	return list, nil
}

// parsePool reads `zpool get -Hp -o name,property,value,source`.
func parsePool(out []byte) (Pool, error) {
	rows, err := parseRows(out)
	if err != nil {
		return Pool{}, err
	}
	var p Pool
	for _, r := range rows {
		p.Name = r.name
		switch r.prop {
		case "guid":
			p.GUID, err = parseUint(r.value)
		case "size":
			p.Size, err = parseSize(r.value)
		case "allocated":
			p.Alloc, err = parseSize(r.value)
		case "free":
			p.Free, err = parseSize(r.value)
		case "health":
			p.Health = r.value
		case "readonly":
			p.ReadOnly, err = parseBool(r.value)
		case "bootfs":
			p.BootFS = parseText(r.value)
		}
		if err != nil {
			return Pool{}, fmt.Errorf("%s of pool %s: %w", r.prop, r.name, err)
		}
	}
	if p.GUID == 0 {
		return Pool{}, fmt.Errorf("zpool get printed no guid")
	}
	return p, nil
}

// parseDelegated reads of `zfs allow`, which also tells of what is above a dataset, what is of
// the dataset itself.
func parseDelegated(out []byte, dataset string) (list []string, err error) {
	of := ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSuffix(line, "\n")
		if title, ok := strings.CutPrefix(line, "---- Permissions on "); ok {
			of = strings.TrimSuffix(strings.TrimRight(title, "-"), " ") // no name ends in a blank
			continue
		}
		text := strings.TrimSpace(line)
		if text == "" {
			continue
		}
		if of == "" {
			return nil, fmt.Errorf("line %q of zfs allow: want the dataset that it is of", line)
		}
		if of == dataset {
			list = append(list, text)
		}
	}
	return list, nil
}

// parseVersion reads `zfs version`: a line for the userland, one for the module.
func parseVersion(out []byte) (Capabilities, error) {
	var c Capabilities
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if v, ok := strings.CutPrefix(line, "zfs-kmod-"); ok {
			c.Kernel = v
		} else if v, ok := strings.CutPrefix(line, "zfs-"); ok {
			c.Userland = v
		}
	}
	major, rest, _ := strings.Cut(c.Userland, ".")
	minor := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	var err1, err2 error
	c.Major, err1 = strconv.Atoi(major)
	c.Minor, err2 = strconv.Atoi(minor)
	if err1 != nil || err2 != nil {
		return Capabilities{}, fmt.Errorf("zfs version printed %q", strings.TrimSpace(string(out)))
	}
	return c, nil
}

// parseToken reads what `zfs send -nvt` prints about a token.
func parseToken(out []byte) (ResumeToken, error) {
	var t ResumeToken
	var err error
	for line := range strings.Lines(string(out)) {
		key, value, found := strings.Cut(strings.TrimSpace(line), " = ")
		if !found {
			continue
		}
		switch key {
		case "toname":
			t.ToName = value
		case "toguid":
			t.ToGUID, err = strconv.ParseUint(value, 0, 64)
		case "fromguid":
			t.FromGUID, err = strconv.ParseUint(value, 0, 64)
		case "bytes":
			t.Bytes, err = strconv.ParseInt(value, 0, 64)
		}
		if err != nil {
			return ResumeToken{}, fmt.Errorf("%s of a resume token: %w", key, err)
		}
	}
	if t.ToGUID == 0 || CheckSnapshot(t.ToName) != nil {
		return ResumeToken{}, fmt.Errorf("zfs printed no target for a resume token")
	}
	return t, nil
}

// parseEstimate reads `zfs send -nvP`: its line "size<tab>bytes".
func parseEstimate(out []byte) (int64, error) {
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) == 2 && f[0] == "size" {
			return parseSize(f[1])
		}
	}
	return 0, fmt.Errorf("zfs send -nvP printed no size")
}

// parseText takes zfs' dash for nothing.
func parseText(s string) string {
	if s == "-" {
		return ""
	}
	return s
}

func parseUint(s string) (uint64, error) {
	if s == "-" || s == "none" || s == "" {
		return 0, nil
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	return v, nil
}

// parseSize is parseUint for bytes; what no int64 holds is the largest.
func parseSize(s string) (int64, error) {
	v, err := parseUint(s)
	return int64(min(v, 1<<63-1)), err
}

func parseTime(s string) (time.Time, error) {
	v, err := parseSize(s)
	return time.Unix(v, 0), err
}

func parseBool(s string) (bool, error) {
	switch s {
	case "on", "yes":
		return true, nil
	case "off", "no", "-":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither on nor off", s)
}

func compareUint(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
