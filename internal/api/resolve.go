package api

import (
	"fmt"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
)

// Candidate is one thing that a ref may mean.
type Candidate struct {
	ID   string
	Name string
	Note string // tells it from others of the same name, such as "removed 2h ago"
}

// MinPrefix is how many digits of an ID make a ref. Fewer would turn a mistyped
// short name into another volume.
const MinPrefix = 4

// Resolve finds what ref means among candidates: the one with this ID, else the one
// with this name, else the one whose ID begins with it. What ("volume", "node",
// "token") is for the error: CodeNotFound, or CodeConflict with all that match.
//
// Docker's names are names and nothing else: the plugin must not use Resolve.
func Resolve(what, ref string, candidates []Candidate) (id string, err error) {
	if ref == "" {
		return "", volume.Errorf(volume.CodeInvalid, "no %s given", what).
			WithHint("give a name, an id, or at least %d digits an id begins with", MinPrefix)
	}
	rules := []func(Candidate) bool{
		func(c Candidate) bool { return c.ID == ref },
		func(c Candidate) bool { return c.Name == ref },
		func(c Candidate) bool { return len(ref) >= MinPrefix && strings.HasPrefix(c.ID, ref) },
	}
	for _, matches := range rules {
		var found []Candidate
		for _, c := range candidates {
			if matches(c) {
				found = append(found, c)
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return found[0].ID, nil
		default:
			return "", volume.Errorf(volume.CodeConflict, "%s %q is ambiguous", what, ref).
				WithHint("it may be %s", list(found))
		}
	}
	return "", noSuch(what, ref)
}

// noSuch is the refusal of a ref that means nothing, with the command that lists what there is.
func noSuch(what, ref string) error {
	err := volume.Errorf(volume.CodeNotFound, "no %s %q", what, ref)
	switch what {
	case "volume", "node", "token", "container":
		return err.WithHint("`flockctl %s list` shows what there is", what)
	case "snapshot":
		return err.WithHint("`flockctl snapshot list VOLUME` shows what there is")
	case "set-aside copy":
		return err.WithHint("`flockctl aside list` shows what there is")
	}
	return err
}

// list is candidates in words, the first few of them.
func list(cs []Candidate) string {
	const most = 8
	var words []string
	for _, c := range cs {
		w := c.ID
		if c.Name != "" {
			w += " (" + c.Name
			if c.Note != "" {
				w += ", " + c.Note
			}
			w += ")"
		}
		words = append(words, w)
	}
	slices.Sort(words)
	if n := len(words) - most; n > 0 {
		words = append(words[:most], fmt.Sprintf("%d more", n))
	}
	return strings.Join(words, ", ")
}
