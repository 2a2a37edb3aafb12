package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

func (a *app) volumeCommand() *cli.Command {
	return &cli.Command{
		Name:    "volume",
		Aliases: []string{"vol", "volumes"},
		Usage:   "create, change, sync, verify and remove volumes",
		Subcommands: []*cli.Command{
			a.volumeCreate(), a.volumeList(), a.volumeInspect(), a.volumeSet(), a.volumeSync(), a.volumeVerify(), a.volumeRemove(), a.volumeUndelete(),
		},
	}
}

// volumeShortcuts are the commands that one types all day, without "volume".
func (a *app) volumeShortcuts() []*cli.Command {
	list, create, inspect, remove := a.volumeList(), a.volumeCreate(), a.volumeInspect(), a.volumeRemove()
	list.Name, list.Aliases = "ls", nil
	remove.Name, remove.Aliases = "rm", nil
	short := []*cli.Command{list, create, inspect, remove}
	for _, c := range short {
		c.Category = "short for flockctl volume ..."
	}
	return short
}

// volumeCreate has a flag for each option that a volume may have, but those of ZFS.
func (a *app) volumeCreate() *cli.Command {
	flags := []cli.Flag{
		&cli.StringSliceFlag{Name: "option", Aliases: []string{"o"}, Usage: "`KEY=VALUE` as in docker volume create; repeat it for several"},
		&cli.StringFlag{Name: "node", Usage: "make `NODE` the primary if possible, or of a clone in any case; this node unless given"},
	}
	for _, name := range volume.OptionNames() {
		if strings.HasPrefix(name, "zfs.") {
			continue
		}
		value, about, _ := volume.OptionHelp(name)
		if value == "true or false" {
			flags = append(flags, &cli.BoolFlag{Name: name, Usage: about})
			continue
		}
		flags = append(flags, &cli.StringFlag{Name: name, Usage: fmt.Sprintf("%s; `VALUE`: %s", about, value)})
	}
	return &cli.Command{
		Name: "create", Usage: "make a volume and print its name", ArgsUsage: "NAME", Flags: flags,
		Description: "Each option may also be given as -o KEY=VALUE; properties of ZFS only so:\n\n   " +
			strings.Join(zfsOptions(), "\n   "),
		Action: a.action(1, 1, func(ctx context.Context, c *cli.Context) error {
			opts, err := volumeOptions(c)
			if err != nil {
				return err
			}
			return a.create(ctx, c, c.Args().First(), opts)
		}),
	}
}

// create makes a volume, where --node says, and prints its name.
func (a *app) create(ctx context.Context, c *cli.Context, name string, opts map[string]string) error {
	req, err := a.creation(ctx, c, opts)
	if err != nil {
		return err
	}
	req.Name = name
	stop := a.making(ctx, name)
	v, err := a.client.CreateVolume(ctx, req)
	stop()
	if err != nil {
		return err
	}
	return a.made(v)
}

// creation asks for a volume that has no name yet.
func (a *app) creation(ctx context.Context, c *cli.Context, opts map[string]string) (api.CreateVolumeRequest, error) {
	req := api.CreateVolumeRequest{Options: opts}
	if ref := c.String("node"); ref != "" {
		n, err := a.client.Node(ctx, ref)
		if err != nil {
			return req, err
		}
		req.Node = n.ID
	}
	return req, nil
}

func zfsOptions() []string {
	var out []string
	for _, name := range volume.OptionNames() {
		if strings.HasPrefix(name, "zfs.") {
			value, _, _ := volume.OptionHelp(name)
			out = append(out, fmt.Sprintf("%-24s %s", name, value))
		}
	}
	return out
}

// volumeOptions joins -o and the flags. What values mean is the cluster's business;
// here it only matters that each is given once.
func volumeOptions(c *cli.Context) (map[string]string, error) {
	out := map[string]string{}
	for _, o := range c.StringSlice("option") {
		key, value, found := strings.Cut(o, "=")
		if !found || key == "" {
			return nil, usage(c, "-o %q is not KEY=VALUE", o)
		}
		if _, twice := out[key]; twice {
			return nil, usage(c, "option %s is given twice", key)
		}
		out[key] = value
	}
	for _, name := range volume.OptionNames() {
		if !c.IsSet(name) {
			continue
		}
		if _, twice := out[name]; twice {
			return nil, usage(c, "option %s is given twice", name)
		}
		out[name] = fmt.Sprint(c.Value(name))
	}
	return out, nil
}

// made prints a volume that a command has made or brought back.
func (a *app) made(v api.Volume) error {
	if a.asJSON {
		return a.printJSON(v)
	}
	a.sayMade(v)
	return nil
}

func (a *app) sayMade(v api.Volume) {
	a.printf("%s\n", v.Name)
	if len(v.Without) > 0 {
		a.say("flockctl: volume %s is made without ports that its copy's volume listens on: %s\n", v.Name, strings.Join(v.Without, "; "))
	}
	if !a.quiet && v.Health == api.HealthDegraded {
		a.say("flockctl: volume %s is %s\n", v.Name, because(string(v.Health), v.Reason))
	}
}

func (a *app) volumeList() *cli.Command {
	return &cli.Command{
		Name: "list", Aliases: []string{"ls"}, Usage: "list the volumes",
		Description: "REPLICAS tells how many copies besides the primary can be trusted, of how many asked for.\n" +
			"LAG is how much of its history a volume would lose with its primary, by its worst replica.",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "trash", Usage: "list removed volumes, which can be brought back; --quiet prints their ids"}},
		Action: a.action(0, 0, func(ctx context.Context, c *cli.Context) error {
			trash := c.Bool("trash")
			vs, err := a.client.Volumes(ctx, api.VolumesQuery{Trash: trash})
			switch {
			case err != nil:
				return err
			case a.asJSON:
				return a.printJSON(vs)
			case a.quiet && trash:
				for _, v := range vs {
					a.printf("%s\n", v.ID)
				}
				return nil
			case a.quiet:
				for _, v := range vs {
					a.printf("%s\n", v.Name)
				}
				return nil
			case trash:
				return a.printTrash(vs)
			}
			return a.printVolumes(vs)
		}),
	}
}

func (a *app) printVolumes(vs []api.Volume) error {
	t := newTable("NAME", "ID", "HEALTH", "SIZE", "DATA", "PRIMARY", "REPLICAS", "LAG", "USED BY", "AGE")
	for _, v := range vs {
		t.add(v.Name, string(v.ID), string(v.Health), limit(v.Spec.Size), seen(v, v.Data), v.Primary.String(),
			replicas(v), worstLag(v), usedBy(v), a.ago(v.Created))
	}
	return t.print(a.stdout)
}

func (a *app) printTrash(vs []api.Volume) error {
	t := newTable("NAME", "ID", "DATA", "REMOVED", "GONE IN")
	for _, v := range vs {
		t.add(v.Name, string(v.ID), seen(v, v.Data), a.ago(v.Deleted)+" ago", a.in(v.PurgeAfter))
	}
	return t.print(a.stdout)
}

// limit is the most a volume may hold.
func limit(n int64) string {
	if n == 0 {
		return ""
	}
	return size(n)
}

// seen is a number of bytes that the primary reports, "?" if it never has.
func seen(v api.Volume, n int64) string {
	if v.AsOf.IsZero() {
		return "?"
	}
	return size(n)
}

// replicas is how many replicas follow, of how many asked for.
func replicas(v api.Volume) string {
	follow := 0
	for _, r := range v.Replicas {
		if r.State == volume.LinkInSync || r.State == volume.LinkSending {
			follow++
		}
	}
	return fmt.Sprintf("%d/%d", follow, v.Spec.Replicas+v.Spec.Remote)
}

// worstLag is "" without replicas and "?" when one of them is not known.
func worstLag(v api.Volume) string {
	if len(v.Replicas) == 0 {
		return ""
	}
	worst := v.Replicas[0].LagSeconds
	for _, r := range v.Replicas {
		if r.LagSeconds == nil {
			return lag(nil)
		}
		if *r.LagSeconds > *worst {
			worst = r.LagSeconds
		}
	}
	return lag(worst)
}

// usedBy names the containers that have a volume, and where they run.
func usedBy(v api.Volume) string {
	var words []string
	for _, h := range v.Holders {
		words = append(words, fmt.Sprintf("%s@%s", cmp.Or(h.Name, h.Container, "?"), h.Node))
	}
	if len(words) == 0 && v.Mounted {
		return "mounted@" + v.Primary.String()
	}
	return strings.Join(words, ",")
}

func (a *app) volumeInspect() *cli.Command {
	return &cli.Command{
		Name: "inspect", Usage: "show all about volumes", ArgsUsage: "VOLUME...",
		Action: a.action(1, -1, func(ctx context.Context, c *cli.Context) error {
			return inspect(a, ctx, c.Args().Slice(), a.client.Volume, a.printVolume, func(v api.Volume) string { return string(v.ID) })
		}),
	}
}

func (a *app) printVolume(v api.Volume) {
	var f facts
	f.add("Name", "%s", v.Name)
	f.add("ID", "%s", v.ID)
	f.add("Health", "%s", because(string(v.Health), v.Reason))
	f.add("Phase", "%s", v.Phase)
	f.add("Size", "%s", cmp.Or(limit(v.Spec.Size), "no limit"))
	if v.AsOf.IsZero() {
		f.add("Holds", "not known: its primary has not reported")
	} else {
		f.add("Holds", "%s, on disk %s with snapshots, seen %s ago", size(v.Data), size(v.Used), a.ago(v.AsOf))
	}
	f.add("Primary", "%s", v.Primary)
	f.add("Used by", "%s", cmp.Or(usedBy(v), "nobody"))
	f.add("Epoch", "%s", v.Epoch)
	f.add("Created", "%s", a.moment(v.Created))
	if !v.Deleted.IsZero() {
		f.add("Removed", "%s; gone in %s", a.moment(v.Deleted), a.in(v.PurgeAfter))
	}
	if o := v.From; o != nil {
		f.add("Clone of", "%s@%s", o.Name, o.Snapshot)
	}
	for _, c := range v.Clones {
		where := "on " + c.Primary.String()
		if c.Trash {
			where = "in the trash"
		}
		f.add("Clone", "%s, %s, of @%s", c.Name, where, c.Snapshot)
	}
	if o := v.LastFailover; o != nil {
		f.add("Failed over", "from %s to %s, %s; %s", o.From, o.To, a.moment(o.At), o.Lost())
		f.add("Replicated", "%s", lastPoint(*o))
	}
	if v.LastRefusal != "" {
		f.add("Last refusal", "%s", v.LastRefusal)
	}
	if v.Locality != "" {
		f.add("Locality", "%s", v.Locality)
	}
	opts := v.Spec.Options()
	for _, k := range slices.Sorted(maps.Keys(opts)) {
		f.add("Option", "%s=%s", k, opts[k])
	}
	f.print(a.stdout)
	a.printReplicas(v.Replicas)
	if len(v.Containers) > 0 {
		a.printf("\n")
		a.printContainers(v.Containers)
	}
}

// lastPoint is up to where the new primary of a failover surely had all.
func lastPoint(o api.LastFailover) string {
	words := "no snapshot had been taken"
	if !o.Start.IsZero() {
		words = "up to " + o.Start.SnapshotName()
		if !o.Start.Taken.IsZero() {
			words += " of " + o.Start.Taken.UTC().Format(time.RFC3339)
		}
	}
	if o.CompleteAsOf.IsZero() {
		return words + "; how far that was complete is not known"
	}
	return words + ", complete as of " + o.CompleteAsOf.UTC().Format(time.RFC3339)
}

func (a *app) printReplicas(replicas []api.Replica) {
	if len(replicas) == 0 {
		return
	}
	a.printf("\n")
	t := newTable("REPLICA", "KIND", "STATE", "LAG", "BEHIND", "PROGRESS", "SNAPSHOT", "TAKEN", "ERROR")
	for _, r := range replicas {
		snapshot, taken, behind, progress := "", "", "", ""
		if !r.Acked.IsZero() {
			snapshot, taken = r.Acked.SnapshotName(), a.ago(r.Acked.Taken)+" ago"
		}
		if r.LagBytes > 0 {
			behind = size(r.LagBytes)
		}
		if r.TotalBytes > 0 {
			progress = fmt.Sprintf("%s of %s", size(r.SentBytes), size(r.TotalBytes))
		}
		t.add(r.Node.String(), string(r.Kind), string(r.State), lag(r.LagSeconds), behind, progress, snapshot, taken, trouble(r))
	}
	t.print(a.stdout)
}

func (a *app) volumeRemove() *cli.Command {
	return &cli.Command{
		Name: "remove", Aliases: []string{"rm"}, Usage: "move volumes to the trash", ArgsUsage: "VOLUME...",
		Description: "A volume in use is not removed. 'flockctl volume undelete' brings one back until the trash is\n" +
			"emptied; 'flockctl volume list --trash' shows what is there.",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}},
		Action: a.untimed(1, -1, func(ctx context.Context, c *cli.Context) error {
			yes := c.Bool("yes")
			if !yes && !a.terminal {
				return volume.Errorf(volume.CodeRefused, "nothing was removed, since nobody can be asked here").WithHint("--yes removes without asking")
			}
			in := bufio.NewReader(a.stdin)
			return a.each(c.Args().Slice(), func(ref string) (string, error) {
				v, err := timed(a, ctx, func(ctx context.Context) (api.Volume, error) { return a.client.Volume(ctx, ref) })
				if err != nil {
					return "", err
				}
				if !v.Deleted.IsZero() {
					return "", volume.Errorf(volume.CodeNotFound, "no volume %q", ref).WithHint("one of that name is in the trash already")
				}
				if !yes {
					if err := a.confirm(ctx, in, v); err != nil {
						return "", err
					}
				}
				// By its ID: what was looked at, not what has the name by now.
				_, err = timed(a, ctx, func(ctx context.Context) (any, error) {
					return nil, a.client.RemoveVolume(ctx, string(v.ID), api.RemoveVolumeRequest{})
				})
				return v.Name, err
			})
		}),
	}
}

// timed makes one call with the user's patience.
func timed[T any](a *app, ctx context.Context, call func(context.Context) (T, error)) (T, error) {
	ctx, cancel := a.within(ctx)
	defer cancel()
	return call(ctx)
}

// confirm has a person type the volume's name.
func (a *app) confirm(ctx context.Context, in *bufio.Reader, v api.Volume) error {
	s, err := timed(a, ctx, a.client.Status)
	if err != nil {
		return err
	}
	holds := "an unknown amount of data"
	if !v.AsOf.IsZero() {
		holds = size(v.Data) + " of data"
	}
	return a.typed(ctx, in, "volume", v.Name, fmt.Sprintf("Volume %s holds %s. It goes to the trash, from where it can be brought back for %s.\nType its name to remove it: ",
		v.Name, holds, age(s.TrashKeep)))
}

// typed asks a person a question that a name answers.
func (a *app) typed(ctx context.Context, in *bufio.Reader, what, name, question string) error {
	a.say("%s", question)
	answer := make(chan string, 1)
	go func() { // left behind when interrupted; the process ends then
		line, _ := in.ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case got := <-answer:
		if got != name {
			return volume.Errorf(volume.CodeRefused, "%s %s was not removed: %q is not its name", what, name, got)
		}
		return nil
	case <-ctx.Done():
		fmt.Fprintln(a.stderr)
		return volume.Errorf(volume.CodeRefused, "%s %s was not removed: interrupted", what, name)
	}
}

func (a *app) volumeUndelete() *cli.Command {
	return &cli.Command{
		Name: "undelete", Usage: "bring a volume back from the trash and print its name", ArgsUsage: "VOLUME",
		Description: "When several volumes of one name are in the trash, give the id that 'flockctl volume list --trash' shows.",
		Flags:       []cli.Flag{&cli.StringFlag{Name: "name", Usage: "bring it back under another `NAME`"}},
		Action: a.action(1, 1, func(ctx context.Context, c *cli.Context) error {
			v, err := a.client.UndeleteVolume(ctx, c.Args().First(), api.UndeleteRequest{Name: c.String("name")})
			if volume.CodeOf(err) == volume.CodeNotFound {
				return volume.Errorf(volume.CodeNotFound, "no volume %q in the trash", c.Args().First()).WithHint("`flockctl volume list --trash` shows what there is")
			}
			if err != nil {
				return err
			}
			return a.made(v)
		}),
	}
}

// completionPatience is how long a shell may be kept waiting for names.
const completionPatience = time.Second
