package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/browse"
	"github.com/flocker-io/flocker/internal/volume"
)

// The shells' scripts all ask "flockctl __complete WORD... CURRENT", which answers
// with lines of a candidate, a tab and what it is.
const completeName = "__complete"

const bashCompletion = `# bash completion for flockctl
_flockctl() {
    # Bash takes words apart at = and @ and :, which are parts of ours, and puts what is chosen in the place of the last part.
    local line="${COMP_LINE:0:COMP_POINT}" words last head word
    IFS=$' \t\n' read -r -a words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    last="${COMP_WORDS[COMP_CWORD]}"
    [[ $last == [=@:]* ]] && last=""
    head="${words[${#words[@]}-1]}"
    while [[ -n $last && $head != *"$last" ]]; do last="${last%?}"; done
    head="${head%"$last"}"
    COMPREPLY=()
    while IFS=$'\t' read -r word _; do
        COMPREPLY+=("${word#"$head"}")
        [[ $word == *[=@/] ]] && compopt -o nospace 2>/dev/null
    done < <("${words[0]}" __complete "${words[@]:1}" 2>/dev/null)
}
complete -o default -F _flockctl flockctl
`

const zshCompletion = `#compdef flockctl
_flockctl() {
    local -a found open
    local line word
    while IFS= read -r line; do
        word="${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}"
        if [[ "${line%%$'\t'*}" == *[=@/] ]]; then open+=("$word"); else found+=("$word"); fi
    done < <("${words[1]}" __complete "${(@)words[2,$CURRENT]}" 2>/dev/null)
    if (( $#found + $#open )); then _describe flockctl found -- open -S ''; else _files; fi
}
if [ "$funcstack[1]" = _flockctl ]; then _flockctl "$@"; else compdef _flockctl flockctl; fi
`

const fishCompletion = `# fish completion for flockctl
function __flockctl_complete
    set -l words (commandline -opc)
    command $words[1] __complete $words[2..-1] (commandline -ct) 2>/dev/null
end
complete -c flockctl -f -a '(__flockctl_complete)'
`

func (a *app) completionCommand() *cli.Command {
	scripts := []struct{ shell, script, use string }{
		{"bash", bashCompletion, "flockctl completion bash > /etc/bash_completion.d/flockctl"},
		{"zsh", zshCompletion, `flockctl completion zsh > "${fpath[1]}/_flockctl"`},
		{"fish", fishCompletion, "flockctl completion fish > ~/.config/fish/completions/flockctl.fish"},
	}
	group := &cli.Command{Name: "completion", Usage: "print a script that completes flockctl's commands in a shell"}
	for _, s := range scripts {
		group.Subcommands = append(group.Subcommands, &cli.Command{
			Name: s.shell, Usage: "for " + s.shell, Description: s.use,
			Action: a.action(0, 0, func(context.Context, *cli.Context) error {
				a.printf("%s", s.script)
				return nil
			}),
		})
	}
	return group
}

func (a *app) completeCommand() *cli.Command {
	return &cli.Command{
		Name: completeName, Hidden: true, SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(c.Context, completionPatience)
			defer cancel()
			for _, line := range a.complete(ctx, a.root(), c.Args().Slice()) {
				a.printf("%s\n", line)
			}
			return nil
		},
	}
}

// complete is what may stand in place of the last word.
func (a *app) complete(ctx context.Context, root *cli.App, args []string) []string {
	current := ""
	if n := len(args); n > 0 {
		args, current = args[:n-1], args[n-1]
	}
	w := parse(root, args)
	var out []string
	add := func(word, about string) {
		if strings.HasPrefix(word, current) {
			out = append(out, word+"\t"+about)
		}
	}
	switch {
	case w.open != nil:
		a.completeValue(ctx, w.open.Names()[0], add)
	case strings.HasPrefix(current, "-") && !w.dashes && strings.Contains(current, "="):
		name, _, _ := strings.Cut(current, "=")
		f := w.find(name)
		if f == nil {
			f = lookup(root.Flags, name)
		}
		if f != nil && takesValue(f) {
			a.completeValue(ctx, f.Names()[0], func(word, about string) { add(name+"="+word, about) })
		}
	case strings.HasPrefix(current, "-") && !w.dashes:
		flags := root.Flags
		if w.command != nil {
			flags = slices.Concat(w.command.Flags, flags)
		}
		for _, f := range flags {
			about := ""
			if d, ok := f.(cli.DocGenerationFlag); ok {
				about = strings.ReplaceAll(d.GetUsage(), "`", "")
			}
			add("--"+f.Names()[0], about)
		}
	case w.command == nil || len(w.command.Subcommands) > 0:
		commands := root.Commands
		if w.command != nil {
			commands = w.command.Subcommands
		}
		if len(w.rest) > 0 {
			break // no such command
		}
		for _, c := range commands {
			if !c.Hidden {
				add(c.Name, c.Usage)
			}
		}
	default:
		a.completeArgument(ctx, w, current, add)
	}
	return out
}

// completeArgument offers names of what a command is about. Not being able to ask
// is no error here: then there is nothing to offer.
func (a *app) completeArgument(ctx context.Context, w words, current string, add func(word, about string)) {
	places := strings.Fields(strings.NewReplacer("[@NAME]", "", "[", "", "]", "").Replace(w.command.ArgsUsage))
	if len(places) == 0 {
		return
	}
	what := places[min(len(w.rest), len(places)-1)]
	if len(w.rest) >= len(places) && !strings.HasSuffix(what, "...") {
		return
	}
	if strings.HasSuffix(what, "...") {
		// What is there already is not wanted again.
		offer := add
		add = func(word, about string) {
			key := strings.HasSuffix(word, "=")
			if !slices.ContainsFunc(w.rest, func(r string) bool { return r == word || key && strings.HasPrefix(r, word) }) {
				offer(word, about)
			}
		}
	}
	switch strings.TrimSuffix(what, "...") {
	case "VOLUME":
		trash := w.command.Name == "undelete"
		vs, _ := a.client.Volumes(ctx, api.VolumesQuery{Trash: trash})
		for _, v := range vs {
			add(v.Name, fmt.Sprintf("%s on %s", v.Health, v.Primary))
		}
	case "PATH":
		a.completePath(ctx, w.rest[0], current, add)
	case "SNAPSHOT":
		list, _ := a.client.Snapshots(ctx, w.rest[0])
		for _, s := range list {
			if s.Kind != "engine" && !slices.Contains(w.rest[1:], s.Name) {
				add(s.Name, a.ago(s.Taken)+" ago")
			}
		}
	case "VOLUME@NAME", "VOLUME@SNAPSHOT":
		vs, _ := a.client.Volumes(ctx, api.VolumesQuery{})
		for _, v := range vs {
			// Only the snapshots of what is typed already: each volume is a call.
			if ref, _, at := strings.Cut(current, "@"); !at || ref != v.Name {
				if what == "VOLUME@SNAPSHOT" {
					add(v.Name, fmt.Sprintf("%s on %s", v.Health, v.Primary))
				}
				add(v.Name+"@", "")
				continue
			}
			list, _ := a.client.Snapshots(ctx, string(v.ID))
			for _, s := range list {
				if s.Kind != "engine" {
					add(v.Name+"@"+s.Name, a.ago(s.Taken)+" ago")
				}
			}
		}
	case "TRASHED":
		all, _, _ := a.trash(ctx)
		for _, x := range all {
			if !slices.Contains(w.rest, x.ID) {
				add(x.ID, fmt.Sprintf("%s %s on %s", x.Kind, x.Name, x.Node))
			}
		}
	case "COPY":
		all, _ := a.client.Asides(ctx)
		for _, x := range all.Asides {
			add(x.Name, fmt.Sprintf("%s of %s on %s", size(x.Data), cmp.Or(x.VolumeName, string(x.Volume)), x.Node))
		}
	case "LISTEN":
		all, _ := a.client.Routes(ctx)
		for _, r := range all.Routes {
			add(ref(r.Route, all.Routes), fmt.Sprintf("%s of %s, %s", r.Mode, r.Volume, r.State))
		}
	case "OPTION=VALUE":
		for _, name := range volume.ChangeableOptions() {
			_, about, _ := volume.OptionHelp(name)
			add(name+"=", about)
		}
	case "SETTING", "SETTING=VALUE":
		s, _ := a.client.Settings(ctx)
		for _, x := range s.Settings {
			word := x.Key
			if strings.HasSuffix(what, "=VALUE...") {
				word += "="
			}
			add(word, x.About)
		}
	case "CONTAINER":
		cs, _ := a.client.Containers(ctx)
		for _, c := range cs {
			add(c.Name, fmt.Sprintf("%s on %s", c.State, c.Node))
		}
	case "KEY=VALUE", "KEY-":
		n, err := a.client.Node(ctx, w.rest[0])
		if err != nil {
			break
		}
		for _, key := range slices.Sorted(maps.Keys(n.Labels)) {
			add(key+"=", "it is "+n.Labels[key])
			add(key+"-", "drop it")
		}
	case "NODE":
		a.completeValue(ctx, "node", add)
	case "ID":
		ts, _ := a.client.Tokens(ctx)
		for _, t := range ts {
			add(t.ID, t.Note)
		}
	}
}

// plainWord is what no shell gives a meaning to, anywhere in a word.
const plainWord = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+,@%"

// maxPaths is how many paths are offered.
const maxPaths = 200

// completePath offers what a directory of a snapshot has.
func (a *app) completePath(ctx context.Context, where, current string, add func(word, about string)) {
	ref, name, _ := strings.Cut(where, "@")
	dir := current[:strings.LastIndex(current, "/")+1]
	in, err := browse.Clean(dir)
	if err != nil {
		return
	}
	b, err := a.client.Browse(ctx, ref, api.BrowseRequest{Snapshot: name, Path: in, As: api.AsList})
	if err != nil {
		return
	}
	defer b.Body.Close()
	n := 0
	// What could not be read to its end is offered as far as it goes.
	_ = b.Entries(func(e browse.Entry) error {
		// Shells expand what is offered to them, and these names are chosen by containers.
		if strings.Trim(e.FileName(), plainWord) != "" {
			return nil
		}
		word := dir + e.Name
		if e.Type == browse.Directory {
			word += "/"
		}
		add(word, string(e.Type))
		if n++; n == maxPaths {
			return context.Canceled
		}
		return nil
	})
}

// completeValue offers values of an option.
func (a *app) completeValue(ctx context.Context, option string, add func(word, about string)) {
	switch option {
	case "option":
		for _, name := range volume.OptionNames() {
			value, _, _ := volume.OptionHelp(name)
			add(name+"=", value)
		}
	case "sort":
		for _, order := range []topOrder{byLag, byName, bySize} {
			add(string(order), "")
		}
	case "failover":
		for _, p := range []volume.Failover{volume.FailoverAuto, volume.FailoverManual, volume.FailoverNever} {
			add(string(p), "")
		}
	case "profile":
		for _, p := range volume.Profiles() {
			add(p, "")
		}
	case "zone":
		ns, _ := a.client.Nodes(ctx)
		zones := map[string][]string{}
		for _, n := range ns {
			zones[string(n.Zone)] = append(zones[string(n.Zone)], n.Name)
		}
		for _, zone := range slices.Sorted(maps.Keys(zones)) {
			add(zone, strings.Join(zones[zone], ", "))
		}
	case "node", "to", "confirm-fenced":
		ns, _ := a.client.Nodes(ctx)
		for _, n := range ns {
			add(n.Name, fmt.Sprintf("%s, zone %s", n.Health, n.Zone))
		}
	}
}
