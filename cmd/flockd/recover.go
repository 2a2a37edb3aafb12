package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/cluster"
)

// recoverCommand makes a cluster anew from this node, when most voters are lost.
func recoverCommand(out, errOut io.Writer) *cli.Command {
	return &cli.Command{
		Name: "recover", Usage: "make the cluster anew from this node alone, after most voters are lost for good",
		Description: "Only for a cluster that can never have a majority of its voters again, and with flockd stopped on this node.\n" +
			"Without --i-have-lost-quorum it prints what it would do and changes nothing. See docs/SAFETY.md.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "i-have-lost-quorum", Usage: "do it: all other voters are lost for good, or off and kept off until this node is up again"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print what would be done, and change nothing"},
		},
		Action: func(c *cli.Context) error {
			cfg, err := config(c)
			if err != nil {
				return err
			}
			approve := func(r cluster.Recovery) error {
				fmt.Fprint(out, recoveryPlan(r))
				switch {
				case c.Bool("dry-run"):
					return errDryRun
				case !c.Bool("i-have-lost-quorum"):
					return errors.New("nothing was changed; if that is what you want, say --i-have-lost-quorum")
				}
				return nil
			}
			cfg.LogLevel = "warn"
			r, err := cluster.Recover(cluster.Config{Dir: cfg.StateDir, Log: cfg.Logger(errOut)}, time.Now(), approve)
			if errors.Is(err, errDryRun) {
				fmt.Fprintln(out, "Nothing was changed.")
				return nil
			}
			if err != nil {
				return err
			}
			fmt.Fprint(out, recoveryDone(r))
			return nil
		},
	}
}

var errDryRun = errors.New("a dry run")

// recoveryPlan says what a recovery does, and what may be lost by it.
func recoveryPlan(r cluster.Recovery) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	self := r.Was.NodeName(r.Node)
	say("The cluster %s is made anew from node %s alone, as it knows it.\n", r.Cluster, self)
	role := "no voter"
	if slices.Contains(r.Voters, r.Node) {
		role = "a voter"
	}
	say("Known here       up to entry %d of the log; this node was %s", r.Index, role)
	last := "none"
	for e := range r.Was.Events(0) {
		last = fmt.Sprintf("%s: %s", e.At.UTC().Format(time.DateTime), e.Message)
	}
	say("Last event       %s", last)
	say("Generation       %d, was %d: what older ones still write is refused", r.Next.Cluster().Generation, r.Was.Cluster().Generation)
	say("Failover         by hand, until there are three voters again")
	if r.NewCA {
		say("Certificates     of a new authority, since this node cannot use the old one")
	}
	var behind, here, wait, away []string
	for n := range r.Next.Nodes() {
		if n.Lost {
			name := n.Name
			if slices.Contains(r.Voters, n.ID) {
				name += " (voter)"
			}
			behind = append(behind, name)
		}
	}
	for v := range r.Next.Volumes() {
		switch {
		case !v.Live():
		case v.Election != nil && v.Election.Was == r.Node:
			here = append(here, v.Name)
		case slices.Contains(v.Placement.Nodes(), r.Node):
			wait = append(wait, v.Name)
		default:
			away = append(away, v.Name)
		}
	}
	list := func(title string, names []string, what string) {
		if len(names) > 0 {
			slices.Sort(names)
			say("\n%s\n  %s\n%s", title, strings.Join(names, ", "), what)
		}
	}
	told := "Each is refused until `flockctl join` is run on it; then it is what it was, with its copies. What uses volumes there is stopped\nas soon as it hears of this cluster."
	if r.NewCA {
		told = "They cannot be told, because of the new authority: keep them off. Remove each here (`flockctl node remove NODE --dead`), move its\nstate directory away, and join it as a new node; its copies of volumes are found again."
	}
	list("Nodes that are left behind:", behind, told)
	list("Volumes that go on here:", here, "Their primary was this node. If another one took them over without its knowledge, what was written there is not here.")
	list("Volumes that wait for you:", wait,
		"Another node was their primary and a copy is here, which may lack what was written last. When the primary joins again it goes\non with all it has; to go on without it: `flockctl failover NAME --accept-loss`.")
	list("Volumes without a copy here:", away, "They are back when a node that has one joins again.")
	say(`
What may be lost: all that the cluster agreed on after that entry (volumes made, moved or removed, nodes added), and what was
written to volumes whose primary does not come back. Of several survivors take the one with the highest entry, and only that one:
a second one that is recovered is a second cluster.

The danger: if the other voters still run somewhere and reach each other, they go on as the old cluster, and volumes that you
promote here are written twice until they hear of this one. Make sure that they are off.
`)
	return b.String()
}

// recoveryDone says how to go on.
func recoveryDone(r cluster.Recovery) string {
	return fmt.Sprintf(`Done. Now, on this node:
  systemctl start flockd
  flockctl status                          what is missing
  flockctl failover NAME --accept-loss     for each volume that is not to wait for its primary
  flockctl token create                    prints the line that brings another node back, to be run there
  flockctl node remove NODE --dead         for each node that never comes back
The cluster is in generation %d.
`, r.Next.Cluster().Generation)
}
