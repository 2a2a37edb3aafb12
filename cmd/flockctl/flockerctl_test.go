package main

import (
	"slices"
	"strings"
	"testing"
)

func TestFromFlocker(t *testing.T) {
	root := (&app{world: system()}).root()
	for _, tt := range []struct{ in, want, err string }{
		// What is ours stays as it is.
		{in: "", want: ""},
		{in: "ls", want: "ls"},
		{in: "status --json", want: "status --json"},
		{in: "create db --size 1G", want: "create db --size 1G"},
		{in: "create db -o note=-m", want: "create db -o note=-m"},
		{in: "create db --node -n", want: "create db --node -n"},
		{in: "move db n2 --max-pause 2s", want: "move db n2 --max-pause 2s"},
		{in: "volume list --trash", want: "volume list --trash"},
		{in: "--socket list ls", want: "--socket list ls"},
		{in: "frobnicate -d x", want: "frobnicate -d x"},
		{in: "rm -- list", want: "rm -- list"},

		{in: "list", want: "volume list"},
		{in: "--json list --deleted", want: "--json volume list --trash"},
		{in: "list-nodes -q", want: "node list -q"},
		{in: "ls-nodes", want: "node list"},
		{in: "destroy -d db", want: "volume remove -- db"},
		{in: "destroy --yes --dataset=db", want: "volume remove --yes -- db"},
		{in: "destroy db other", want: "volume remove db other"},
		{in: "destroy -d -odd", want: "volume remove -- -odd"},
		{in: "move -d db -t n2", want: "migrate -- db n2"},
		{in: "move --destination n2 --dataset db --dry-run", want: "migrate --dry-run -- db n2"},
		{in: "create -n n1 -s 10G -m name=db", want: "volume create --node n1 --size 10G -- db"},
		{in: "create --node n1 --size 10G --metadata=name=db -p database", want: "volume create --node n1 --size 10G --profile database -- db"},
		{in: "create -s 10G db", want: "volume create --size 10G db"},
		{in: "info db", want: "volume inspect db"},
		{in: "info -d db", want: "volume inspect -- db"},
		{in: "info", want: "status"},
		{in: "info --json", want: "status --json"},

		{in: "move -t n2", err: "-d DATASET is missing"},
		{in: "move -d db -t", err: "option -t needs a value"},
		{in: "move -d a -d b", err: "one at a time"},
		{in: "create -n n1 -m size=1,name=db", err: `leave out "size=1"`},
		{in: "create -m name=", err: "a volume needs a name"},
		{in: "--control-service 192.0.2.1 list", err: "leave it out"},
		{in: "list --user=me", err: "leave it out"},
		{in: "deploy a.yml b.yml", err: "flockctl migrate VOLUME NODE"},
	} {
		got, err := fromFlocker(root, strings.Fields(tt.in))
		switch {
		case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || exitCode(err) != exitUsage):
			t.Errorf("%q: %v, want an error with %q", tt.in, err, tt.err)
		case tt.err == "" && (err != nil || strings.Join(got, " ") != tt.want):
			t.Errorf("%q: %q, %v; want %q", tt.in, strings.Join(got, " "), err, tt.want)
		}
	}
}

// An old verb is a word for one of our commands, and takes nothing away from one.
func TestOldVerbsShadowNothing(t *testing.T) {
	root := (&app{world: system()}).root()
	for verb, v := range oldVerbs {
		c := named(root.Commands, verb)
		if (c != nil) != v.ours {
			t.Errorf("%s is a command of ours: %v, want %v", verb, c != nil, v.ours)
		}
		for name := range v.options {
			if c != nil && lookup(slices.Concat(c.Flags, root.Flags), "--"+name) != nil {
				t.Errorf("%s has an option --%s of ours", verb, name)
			}
		}
		v.flags(root) // the command is there
	}
	for verb := range oldGone {
		if named(root.Commands, verb) != nil {
			t.Errorf("%s is a command of ours", verb)
		}
	}
}

func TestCalledAs(t *testing.T) {
	for arg0, want := range map[string]string{"/usr/local/bin/flockerctl": oldName, "flockerctl": oldName, "/x/flockctl": "flockctl", "": "flockctl"} {
		if got := calledAs(arg0); got != want {
			t.Errorf("%q: %s, want %s", arg0, got, want)
		}
	}
}
