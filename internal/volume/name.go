package volume

import "strconv"

// MaxName is the longest name of a volume.
const MaxName = 255

// ValidateName checks the name a user gives a volume against Docker's rule: a
// letter or digit, then letters, digits, "_", "." and "-". Docker checks only the
// names of local volumes, so other drivers get whatever was typed.
func ValidateName(name string) error {
	bad := func(reason string) error {
		return Errorf(CodeInvalid, "volume name %s: %s", clip(name), reason).
			WithHint("a name is 1 to %d letters, digits, '_', '.' and '-', and starts with a letter or digit", MaxName)
	}
	if name == "" {
		return bad("it is empty")
	}
	if len(name) > MaxName {
		return bad("it is " + strconv.Itoa(len(name)) + " bytes long")
	}
	for i, r := range name {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		case r == '_', r == '.', r == '-':
			if i == 0 {
				return bad("it starts with " + strconv.QuoteRune(r))
			}
		case r == '/':
			return bad("it has a '/' in it; volumes are named, not given by path")
		default:
			return bad("it has " + strconv.QuoteRune(r) + " in it")
		}
	}
	return nil
}

// IsAnonymous tells the names that Docker makes up for volumes that nobody named:
// 64 lower-case hex digits.
func IsAnonymous(name string) bool {
	return len(name) == 64 && isLowerHex(name)
}

// clip quotes what a user typed, without letting it fill the screen.
func clip(s string) string {
	const limit = 64
	if len(s) > limit {
		return strconv.QuoteToASCII(s[:limit]) + "..."
	}
	return strconv.QuoteToASCII(s)
}
