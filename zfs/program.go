package zfs

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

// program is a channel program: Lua that runs inside the kernel, for any number of
// datasets of one pool by one process. One that writes runs in a transaction group and
// returns when that is on disk; one that only reads waits for none.
type program struct {
	op    string
	text  string // a function of one argument, a list of names
	reads bool
	// followed by other commands, which nothing that is started ahead must be in the way of
	followed bool
}

// argv is the command that runs it. What it is to run, arguments included, comes by its
// standard input, so the command is the same for all programs of one kind in one pool.
func (p program) argv(pool string) []string {
	argv := []string{"zfs", "program", "-j"}
	if p.reads {
		argv = append(argv, "-n")
	}
	return append(argv, pool, "-")
}

// source is the program together with its arguments. The call stands at its end, so
// that of a text that was cut short nothing is done.
func (p program) source(args []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "local f = %s\nreturn f({", p.text)
	for _, arg := range args {
		quoteLua(&b, arg)
		b.WriteByte(',')
	}
	b.WriteString("})")
	return b.String()
}

// quoteLua writes s as a string of Lua that means s, whatever is in it: what is no plain
// part of a name is written as its number.
func quoteLua(b *strings.Builder, s string) {
	b.WriteByte('"')
	for i := range len(s) {
		if c := s[i]; isLetter(c) || '0' <= c && c <= '9' || strings.IndexByte("-_.:/@#", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(b, `\%03d`, c)
		}
	}
	b.WriteByte('"')
}

// program runs one and returns what it printed, as JSON.
func (h *Host) program(ctx context.Context, p program, pool string, args []string) (out []byte, err error) {
	c := command{op: p.op, argv: p.argv(pool), input: p.source(args)}
	defer func() {
		if err == nil {
			h.ahead.ended(c.argv, false)
			if !p.followed {
				h.ahead.next()
			}
		}
	}()
	if s := h.ahead.claim(c.argv); s != nil {
		if out, begun, err := h.hand(ctx, s, c); begun {
			return out, err
		}
	}
	return h.run(ctx, c)
}

// parseReturn reads what a program returned. One that did nothing returns nothing, which
// is not the empty answer of one that did.
func parseReturn[T any](out []byte, answer *map[string]T) error {
	parsed := struct {
		Return *map[string]T `json:"return"`
	}{answer}
	if err := json.Unmarshal(out, &parsed); err != nil {
		return fmt.Errorf("zfs program printed %.200q: %w", out, err)
	}
	if *answer == nil {
		return fmt.Errorf("zfs program printed %.200q, which is no answer", out)
	}
	return nil
}
