package daemon

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/state"
)

// The networks of a container that comes are made once for each attempt, and stay until it has
// come or does not come any more. The words are those of TestPlanFollow and TestPlanWarm.
func TestPlanNetworks(t *testing.T) {
	for name, c := range map[string]struct {
		view  string
		tried string   // for web
		made  []string // records for which network "net" was made
		want  string
	}{
		"it comes":                        {view: "vol db@1 on=n2 moving to=n1 attempt=a\nrec web n2 id=aa vols=db@1 run", want: "make web"},
		"once":                            {view: "vol db@1 on=n2 moving to=n1 attempt=a\nrec web n2 id=aa vols=db@1 run", tried: "a", made: []string{"web"}},
		"for each attempt":                {view: "vol db@1 on=n2 moving to=n1 attempt=b\nrec web n2 id=aa vols=db@1 run", tried: "a", want: "make web"},
		"it goes elsewhere":               {view: "vol db@1 on=n2 moving to=n3 attempt=a\nrec web n2 id=aa vols=db@1 run"},
		"it stays":                        {view: "vol db@1 on=n2\nrec web n2 id=aa vols=db@1 run"},
		"it does not follow":              {view: "vol db@1 on=n2 moving to=n1 attempt=a alone\nrec web n2 id=aa vols=db@1 run"},
		"it is not to run":                {view: "vol db@1 on=n2 moving to=n1 attempt=a\nrec web n2 id=aa vols=db@1"},
		"it cannot be made":               {view: "vol db@1 on=n2 moving to=n1 attempt=a\nrec web n2 id=aa vols=db@1 run blocked"},
		"one of its volumes comes":        {view: "vol db@2 on=n1\nvol logs@1 on=n2 moving to=n1 attempt=a\nrec web n2 id=aa vols=db@1,logs@1 run", want: "make web"},
		"it is here already":              {view: "vol db@1 on=n1\nvol logs@1 on=n2 moving to=n1 attempt=a\nrec web n1 id=aa vols=db@1,logs@1 run"},
		"its volume is here, it starts":   {view: "vol db@2 on=n1\nrec web n2 id=aa vols=db@1 run", tried: "a", made: []string{"web"}},
		"it has come":                     {view: "vol db@2 on=n1\nrec web n1 id=aa vols=db@2 run", tried: "a", made: []string{"web"}, want: "keep net"},
		"given up":                        {view: "vol db@1 on=n2\nrec web n2 id=aa vols=db@1 run", tried: "a", made: []string{"web"}, want: "remove net"},
		"given up, another still comes":   {view: "vol db@1 on=n2\nvol logs@1 on=n2 moving to=n1 attempt=a\nrec web n2 id=aa vols=db@1 run\nrec log n2 id=bb vols=logs@1 run", tried: "a", made: []string{"web", "log"}, want: "make log"},
		"given up, another one has it":    {view: "vol db@1 on=n2\nvol logs@1 on=n1\nrec web n2 id=aa vols=db@1 run\nrec log n1 id=bb vols=logs@1 run", made: []string{"web", "log"}, want: "keep net"},
		"forgotten where it was":          {view: "vol db@1 on=n2", made: []string{"web"}, want: "remove net"},
		"it came, and is to go back":      {view: "vol db@2 on=n1 moving to=n2 attempt=b\nrec web n2 id=aa vols=db@1 run", tried: "a", made: []string{"web"}, want: "remove net"},
		"its old node lost, it comes all": {view: "vol db@2 on=n2 electing\nrec web n2 id=aa vols=db@1 run", tried: "a", made: []string{"web"}, want: "remove net"},
	} {
		t.Run(name, func(t *testing.T) {
			fv := followCase(t, strings.Split(c.view, "\n"))
			v := networksView{Self: fv.Self, State: fv.State, Tried: map[string]string{}, Made: map[string]map[string]bool{}}
			key := func(name string) string {
				all := slices.Collect(v.State.Containers())
				if i := slices.IndexFunc(all, func(r *state.Container) bool { return r.Name == name }); i >= 0 {
					return all[i].RecordKey()
				}
				return name
			}
			if c.tried != "" {
				v.Tried[key("web")] = c.tried
			}
			if len(c.made) > 0 {
				v.Made["net"] = map[string]bool{}
			}
			for _, name := range c.made {
				v.Made["net"][key(name)] = true
			}
			p := planNetworks(v)
			var got []string
			for _, k := range p.Make {
				name, _, _ := strings.Cut(k, "/")
				got = append(got, "make "+name)
			}
			for _, id := range p.Keep {
				got = append(got, "keep "+id)
			}
			for _, id := range p.Remove {
				got = append(got, "remove "+id)
			}
			if fmt.Sprint(got) != fmt.Sprint(strings.FieldsFunc(c.want, func(r rune) bool { return r == ',' })) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
