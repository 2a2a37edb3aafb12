package zfs

import (
	"fmt"
	"path/filepath"
	"strings"
)

// maxName is the longest full name ZFS takes, bytes ("pool/fs@snap" included).
const maxName = 255

// CheckDataset says why name cannot be a filesystem's name, or nil. Every name is
// checked before a command is run, so that none can be taken for an option and
// none can hold what the parsers split on. It is stricter than ZFS, which also
// allows blanks: flocker gives its datasets their names itself.
func CheckDataset(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("%w: dataset name longer than %d bytes", ErrInvalid, maxName)
	}
	for i, part := range strings.Split(name, "/") {
		if err := checkComponent(part); err != nil {
			return fmt.Errorf("%w: dataset name %q: %s", ErrInvalid, name, err)
		}
		if i == 0 && !isLetter(part[0]) {
			return fmt.Errorf("%w: dataset name %q: a pool's name begins with a letter", ErrInvalid, name)
		}
	}
	return nil
}

// CheckSnapshot likewise for "pool/fs@snap", CheckBookmark for "pool/fs#mark". What
// stands behind the mark may be all that ZFS allows, blanks and a leading dash too: people
// take snapshots by hand, and what is listed must be good for every other command.
func CheckSnapshot(name string) error { return checkMarked(name, "@", "snapshot") }

// CheckBookmark says why name cannot be a bookmark's full name, or nil.
func CheckBookmark(name string) error { return checkMarked(name, "#", "bookmark") }

func checkMarked(name, mark, what string) error {
	if len(name) > maxName {
		return fmt.Errorf("%w: %s name longer than %d bytes", ErrInvalid, what, maxName)
	}
	dataset, short, found := strings.Cut(name, mark)
	if !found {
		return fmt.Errorf("%w: %s name %q has no %s", ErrInvalid, what, name, mark)
	}
	if err := CheckDataset(dataset); err != nil {
		return err
	}
	if err := checkCharacters(short, "-_.: "); err != nil {
		return fmt.Errorf("%w: %s name %q: %s", ErrInvalid, what, name, err)
	}
	return nil
}

func checkComponent(s string) error {
	if strings.HasPrefix(s, "-") {
		return fmt.Errorf("part begins with a dash")
	}
	return checkCharacters(s, "-_.:")
}

// checkCharacters wants letters, digits and some others.
func checkCharacters(s, others string) error {
	switch s {
	case "":
		return fmt.Errorf("empty part")
	case ".", "..":
		return fmt.Errorf("%q is not a name", s)
	}
	for i := range len(s) {
		c := s[i]
		if !isLetter(c) && (c < '0' || c > '9') && !strings.ContainsRune(others, rune(c)) {
			return fmt.Errorf("character %q", c)
		}
	}
	return nil
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

// CheckProperty says why key=value cannot be given to zfs, or nil. Whether ZFS
// knows the property is left to ZFS. Tabs and line ends are refused because they
// could not be read back.
func CheckProperty(key, value string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if len(value) >= 8192 {
		return fmt.Errorf("%w: value of property %s longer than 8191 bytes", ErrInvalid, key)
	}
	if i := strings.IndexFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
		return fmt.Errorf("%w: value of property %s holds a control character", ErrInvalid, key)
	}
	return nil
}

func checkKey(key string) error {
	if key == "" || len(key) > maxName || key[0] == '-' {
		return fmt.Errorf("%w: property name %q", ErrInvalid, key)
	}
	user := strings.Contains(key, ":")
	for i := range len(key) {
		c := key[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '_':
		case user && strings.ContainsRune(":-.", rune(c)):
		default:
			return fmt.Errorf("%w: property name %q", ErrInvalid, key)
		}
	}
	return nil
}

func checkTag(tag string) error {
	if err := checkComponent(tag); err != nil {
		return fmt.Errorf("%w: hold tag %q: %s", ErrInvalid, tag, err)
	}
	if len(tag) > maxName {
		return fmt.Errorf("%w: hold tag longer than %d bytes", ErrInvalid, maxName)
	}
	return nil
}

func checkToken(token string) error {
	if token == "" || strings.Trim(token, "0123456789abcdefABCDEF-") != "" || token[0] == '-' {
		return fmt.Errorf("%w: not of the form of a resume token", ErrBadToken)
	}
	return nil
}

// poolOf is the first part of any full name.
func poolOf(name string) string {
	if i := strings.IndexAny(name, "/@#"); i >= 0 {
		return name[:i]
	}
	return name
}

// checkDir wants a path that no option and no other directory can be taken for.
func checkDir(dir string) error {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || dir == "/" {
		return fmt.Errorf("directory %q: want a clean absolute path", dir)
	}
	return nil
}
