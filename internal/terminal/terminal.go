// Package terminal is about text that goes to a person's terminal or comes from one: nothing that a
// container, a file or somebody on the command line has chosen tells the terminal what to do, and what
// nobody means to type is refused. It prints nothing itself. Both programs use it.
package terminal

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Line is text on one line, fit for a terminal, and no longer than anybody reads.
func Line(text string) string { return shortened(Visible(strings.Join(strings.Fields(text), " "))) }

// shortened is a line without its middle, if it is longer than anybody reads: what was typed may
// be of any length, and what to do stands at the end.
func shortened(line string) string {
	const most, head, tail = 4096, 1024, 1024
	if len(line) <= most {
		return line
	}
	cut := func(i int) int {
		for !utf8.RuneStart(line[i]) {
			i++
		}
		return i
	}
	from, to := cut(head), cut(len(line)-tail)
	return fmt.Sprintf("%s [%d bytes left out] %s", line[:from], to-from, line[to:])
}

// Visible is text that may have names in it that a container has chosen: nothing of it
// tells the terminal what to do.
func Visible(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, "\\x%02x", text[0])
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
		text = text[n:]
	}
	return b.String()
}

// maxWord is the longest argument that means something, in bytes.
const maxWord = 64 << 10

// BadWord is what is wrong with an argument or with the value of an option, "" if nothing is: nobody
// means to give what is empty, as of a variable that is not set, or what no terminal shows. Only files
// may have such names.
func BadWord(word string, file bool) string {
	switch {
	case word == "":
		return "is empty"
	case len(word) > maxWord:
		return fmt.Sprintf("has %d bytes, at most %d are possible", len(word), maxWord)
	case strings.ContainsRune(word, 0):
		return "has a zero byte in it"
	case file:
	case !utf8.ValidString(word), strings.ContainsFunc(word, func(r rune) bool { return !strconv.IsPrint(r) }):
		return fmt.Sprintf("has characters in it that cannot be shown: %q", word)
	}
	return ""
}
