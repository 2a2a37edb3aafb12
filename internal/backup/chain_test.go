package backup

import (
	"slices"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/volume"
)

// catalog reads a small notation: full ones are "1", increments "2<1", in the order of their
// snapshots.
func catalog(text string) *Catalog {
	c := &Catalog{}
	for _, word := range strings.Fields(text) {
		name, base, on := strings.Cut(word, "<")
		m := about(int(name[0] - '0'))
		if on {
			b := about(int(base[0] - '0'))
			m.Base = &Base{ID: b.ID, GUID: b.Snapshot.GUID}
		}
		c.Backups = append(c.Backups, m)
	}
	c.sort()
	return c
}

// short is the notation of some, by their snapshots.
func short(list []*Manifest) string {
	var out []string
	for _, m := range list {
		out = append(out, strings.TrimPrefix(m.Snapshot.Name, "s"))
	}
	return strings.Join(out, " ")
}

func TestChains(t *testing.T) {
	const all = "1 2<1 3<2 4 5<4 6<4"
	c := catalog(all)
	for of, want := range map[int]string{1: "1", 3: "1 2 3", 5: "4 5", 6: "4 6"} {
		got, err := c.Chain(c.Backups[of-1])
		if err != nil || short(got) != want {
			t.Errorf("chain of %d: %s, %v", of, short(got), err)
		}
	}
	for keep, want := range map[int]string{0: "", 1: "5 3 2 1", 2: "3 2 1", 3: "3 2 1", 4: "", 5: "", 6: "", 7: ""} {
		got, err := c.Expired(shop, keep, "", nil)
		if err != nil || short(got) != want {
			t.Errorf("keep %d: %s goes, %v; want %s", keep, short(got), err, want)
		}
	}
	if got, err := c.Expired("ffffffffffffffff", 1, "", nil); err != nil || len(got) > 0 {
		t.Errorf("of another volume %s goes, %v", short(got), err)
	}
	for most, want := range map[int]string{0: "", 1: "", 2: "6 5 4 2 1", 3: "6 5 4 3 2 1"} {
		if got := short(c.Bases(shop, most, nil, nil)); got != want {
			t.Errorf("bases with at most %d increments: %s, want %s", most, got, want)
		}
	}
	for ids, ok := range map[string]bool{"3": true, "1": false, "1 2": false, "1 2 3": true, "4 5": false, "4 5 6": true, "": true} {
		var list []string
		for _, n := range strings.Fields(ids) {
			list = append(list, about(int(n[0]-'0')).ID)
		}
		if err := c.Removable(list); (err == nil) != ok {
			t.Errorf("removing %s: %v", ids, err)
		}
	}
}

// However the newest are kept, what is left can be restored.
func TestExpiredBreaksNoChain(t *testing.T) {
	for _, text := range []string{"1 2<1 3<1 4<2 5 6<5 7<6", "1 2<1 3<2 4<3 5<4", "1 2 3 4", "1 2<1 3 4<1 5<3"} {
		for keep := 1; keep < 8; keep++ {
			c := catalog(text)
			gone, err := c.Expired(shop, keep, "", nil)
			if err != nil {
				t.Fatal(err)
			}
			newest := slices.Clone(c.Backups[max(0, len(c.Backups)-keep):])
			// Also when it is interrupted after any of them.
			for _, m := range append([]*Manifest{nil}, gone...) {
				c.Backups = slices.DeleteFunc(c.Backups, func(b *Manifest) bool { return b == m })
				for _, b := range c.Backups {
					if _, err := c.Chain(b); err != nil {
						t.Errorf("%s, keep %d: %v", text, keep, err)
					}
				}
			}
			for _, m := range newest {
				if !slices.Contains(c.Backups, m) {
					t.Errorf("%s, keep %d: %s went", text, keep, m.ID)
				}
			}
		}
	}
}

func TestBrokenChains(t *testing.T) {
	for text, say := range map[string]string{"2<1": "which is not there", "2<3 3<2": "increment on itself"} {
		c := catalog(text)
		if _, err := c.Chain(c.Backups[0]); volume.CodeOf(err) != volume.CodeRefused || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v", text, err)
		}
		if got := c.Bases(shop, 9, nil, nil); len(got) > 0 {
			t.Errorf("%s: bases %s", text, short(got))
		}
	}
	c := catalog("1 2<1")
	c.Backups[1].Base.GUID++
	if _, err := c.Chain(c.Backups[1]); volume.CodeOf(err) != volume.CodeRefused {
		t.Error(err)
	}
	// What cannot be read may need anything.
	c = catalog("1 2")
	c.Broken = []Broken{{Object: string(shop) + "/y/manifest", Reason: "damaged"}}
	if _, err := c.Expired(shop, 1, "", nil); err == nil {
		t.Error("something expires beside what cannot be read")
	}
	if err := c.Removable([]string{c.Backups[0].ID}); err == nil {
		t.Error("something is removed beside what cannot be read")
	}
}

func TestFind(t *testing.T) {
	c := catalog("1 2<1")
	other := about(3)
	other.Volume, other.ID = "00000000000000ff", "20260304T120003Z-0000000b"
	c.Backups = append(c.Backups, other)
	c.sort()
	for ref, want := range map[string]string{
		about(1).ID: "1", "20260304T120002": "2", string(shop): "2", "00000000000000ff": "3",
		"shop": "", "20260304": "", "202": "", "nothing": "",
	} {
		m, err := c.Find(ref)
		if want == "" && err == nil || want != "" && (err != nil || short([]*Manifest{m}) != want) {
			t.Errorf("%q: %v, %v", ref, m, err)
		}
	}
}

// The one just made never expires, whatever its clock said, nor what it or an unfinished one
// stands on.
func TestExpiredKeepsWhatIsNeeded(t *testing.T) {
	for done, want := range map[int]string{1: "5 4 3", 2: "5 4 3", 3: "5 4 2 1", 5: "3 2 1", 6: "5 4 3 2 1"} {
		c := catalog("1 2<1 3 4 5<4 6")
		gone, err := c.Expired(shop, 1, about(done).ID, nil)
		got := strings.Fields(short(gone))
		slices.Sort(got)
		slices.Reverse(got)
		if done == 1 {
			want = "5 4 3 2"
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("with %d just made: %s goes, %v; want %s", done, short(gone), err, want)
		}
	}
	c := catalog("1 2<1 3")
	p := about(9)
	p.Base = &Base{ID: about(2).ID, GUID: about(2).Snapshot.GUID}
	c.Partial = []*Manifest{p}
	if gone, err := c.Expired(shop, 1, "", nil); err != nil || len(gone) > 0 {
		t.Errorf("%s goes, %v", short(gone), err)
	}
	if err := c.Removable([]string{about(2).ID}); volume.CodeOf(err) != volume.CodeRefused {
		t.Error(err)
	}
	p.found.removed = true
	if gone, err := c.Expired(shop, 1, "", nil); err != nil || short(gone) != "2 1" {
		t.Errorf("%s goes, %v", short(gone), err)
	}
}

// An increment is only on what can be restored, with the same keys.
func TestBasesFit(t *testing.T) {
	c := catalog("1 2<1 3 4<3")
	c.Backups[2].Recipients = []string{"k1"}
	c.Backups[3].Recipients = []string{"k1", "k2"}
	for keys, want := range map[string]string{"": "2 1", "k1": "3", "k2": "", "k1 k2": ""} {
		if got := short(c.Bases(shop, 9, strings.Fields(keys), nil)); got != want {
			t.Errorf("to %q: %s, want %s", keys, got, want)
		}
	}
	c.Backups[3].Recipients = []string{"k1"}
	if got := short(c.Bases(shop, 9, []string{"k1"}, nil)); got != "4 3" {
		t.Error(got)
	}
	c.Backups[2].found.removed = true
	if got := short(c.Bases(shop, 9, []string{"k1"}, nil)); got != "" {
		t.Error(got)
	}
	c.Backups[0].found.lacks = errFull
	if got := short(c.Bases(shop, 9, nil, nil)); got != "" {
		t.Error(got)
	}
}
