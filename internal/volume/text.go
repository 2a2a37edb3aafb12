package volume

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// CheckText refuses text of people for people, such as a note, that no terminal would show as it
// was meant or that is longer than most bytes. What is the text's name in the error.
func CheckText(what, text string, most int) error {
	switch {
	case len(text) > most:
		return Errorf(CodeInvalid, "%s has %d bytes, at most %d are possible", what, len(text), most)
	case !utf8.ValidString(text), strings.ContainsFunc(text, func(r rune) bool { return !strconv.IsPrint(r) }):
		return Errorf(CodeInvalid, "%s %s has characters in it that cannot be shown", what, clip(text)).
			WithHint("give letters, digits and signs on one line")
	}
	return nil
}
