package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/browse"
	"github.com/flocker-io/flocker/internal/cluster"
	"github.com/flocker-io/flocker/internal/doctor"
	"github.com/flocker-io/flocker/zfs"
)

// operatorStep is a step of what people do with flockctl.
//
//	settings NODE KEY=VALUE..      flockctl settings set
//	together NODE.. settings KEY=VALUE..  each node is asked for one of them, all at once;
//	  with "set VOLUME" in place of "settings" for one option of a volume
//	shown NODE KEY=VALUE           until flockctl settings shows it there
//	sync NODE VOLUME [PATIENCE]    flockctl volume sync
//	verify NODE VOLUME [WORD..]    flockctl volume verify; WORD is NODE=alike, differs or unread
//	cat NODE VOLUME[@NAME] FILE TEXT [OTHER]  flockctl browse cat, which OTHER reads
//	diff NODE VOLUME[@NAME] SINCE [CHANGE..]  flockctl diff; CHANGE is like +/path, -/path, M/path
//	vanish NODE                    the next snapshot to be mounted there is gone by then
//	rot NODE VOLUME FILE           the disk of a node gives another content than was written
//	problem NODE TEXT              until status has a problem with that text in it
//	solved NODE TEXT               until it has none
//	safety NODE TEXT               until it says that of what is not promised
//	voters NODE OTHER..            until the node knows exactly these voters
//	snapshot NODE NAME VOLUME..    flockctl snapshot create; snapshot-bare: with --no-hooks
//	snapshots NODE VOLUME [NAME..] flockctl snapshot list has exactly these of users
//	drop NODE VOLUME NAME          flockctl snapshot remove
//	prunes NODE VOLUME N [dry]     flockctl snapshot prune of so many
//	purge NODE VOLUME              flockctl trash remove
//	hold NODE VOLUME NAME [NOTE], release NODE VOLUME NAME  flockctl snapshot hold and release
//	on NODE VOLUME NAME            until the node's own disk has that snapshot; gone: until not
//	copy-on NODE VOLUME            until the node's disk has a copy; no-copy-on: until not
//	scribble NODE VOLUME FILE TEXT  somebody mounts a copy by hand and writes to it
//	foreign NODE DATASET FILE TEXT [SNAPSHOT]  somebody writes to a dataset that is none of flocker's, which is made and
//	  mounted first, and takes a snapshot
//	occupied NODE DATASET          a process has files of it open; vacated: not any more
//	bound NODE CONTAINER [PATH]    a container that does not run is given that directory of the machine; without: not any more
//	found NODE DATASET [mounted]   it is there, and mounted or not
//	import NODE DATASET NEW [on=NODE] [dry=yes] [KEY=VALUE..]  flockctl import
//	clone NODE VOLUME[@NAME] NEW [on=NODE] [KEY=VALUE..]  flockctl clone
//	clones NODE VOLUME [NEW..]     flockctl volume inspect shows exactly these
//	hangs NODE VOLUME              until its copy there shares what it has with another one; stands: until not
//	asides NODE [NODE=VOLUME..]    until flockctl aside list shows exactly these
//	restore NODE FROM VOLUME       flockctl aside restore of what is set aside on FROM
//	discard NODE FROM              flockctl aside remove
//	roll-back NODE VOLUME NAME [newer] [same-request]  flockctl rollback, not waited for; newer: the newer snapshots may go;
//	  same-request: its last request, which must be the rollback that it was
//	rollback NODE VOLUME STATE [TEXT]  until the one that was begun last in the script is so, with that text in what it says
//	restore-undone NODE VOLUME NEW flockctl aside restore of what it names
//	set NODE VOLUME KEY=VALUE..    flockctl volume set
//	promote NODE VOLUME [to=NODE] [accept-loss] [fenced=NODE]  flockctl failover
//	problem-of NODE VOLUME TEXT    until the volume's reason has that text in it
//	event NODE KIND VOLUME TEXT    until there is such an event with that text in it; any: on one that is up
//	waited NODE VOLUME MOST [LEAST]  for its newest migration clients waited so long; 0s: nothing is known of it
//	migrate NODE VOLUME [OTHER [force|max-pause=5s]]  flockctl migrate, not waited for; call-off NODE VOLUME
//	migration NODE VOLUME STATE [TEXT]  until the newest one is so, with that text in what it says
//	sending NODE VOLUME PHASE      until it tells in that phase how much is sent of how much
//	drain NODE OTHER [keep]        flockctl node drain OTHER, not waited for; undrain NODE OTHER
//	drained NODE OTHER             until nothing is left on it
//	emptied NODE OTHER [all]       until it is drained, and the primary of nothing, or without any copy; after a
//	  move that was given up that may take longer than what else is waited for
//	only-drained [NODE [keep]]     until exactly that one is, as soon as somebody takes it down
//	left NODE OTHER VOLUME TEXT    until the drain says so of what is left of a volume
//	depart NODE OTHER [dead] [lose] [fenced=NODE]  flockctl node remove OTHER
//	retired NODE TEXT              until it says with that text why it is no member any more
//	rejoin NODE PEER               flockctl join on it, with a new token of PEER
//	recover NODE                   flockd recover, while it is stopped
//	members NODE OTHER..           until the node knows exactly these members, and Raft no others
//	plan NODE [MOVE..]             until flockctl rebalance --dry-run has exactly these, each VOLUME:ROLE:FROM:TO,
//	  or so many
//	rebalance NODE                 flockctl rebalance, until all its moves are done; rebalance-step NODE: one step of it
//	evened NODE N                  until the node knows of so many moves of the policy; N+: or more
//	locality NODE VOLUME [TEXT]    until that is in what the node says of the volume's preferences; without: it has all
//	doctor NODE SEVERITY CHECK [OF] ~~ TEXT  until flockctl doctor says so, of node OF or of the cluster
//	sound NODE                     until flockctl doctor finds no problem, nothing about datasets and no clock that is off
//	stray NODE NAME                somebody makes a dataset where those of the volumes are
//	lose-snapshot NODE VOLUME NAME  somebody destroys that copy's snapshot with zfs
//	local NODE NAME                the engine has a volume of its own of that name
//	option NODE VOLUME KEY=VALUE.. until the node knows the volume with these
func (w *World) operatorStep(words []string) error {
	node := func() *Machine { return w.Machine(words[1]) }
	if slices.Contains([]string{"sync", "snapshot", "roll-back", "promote", "migrate", "call-off", "drain", "undrain"}, words[0]) && !node().Up() {
		return errors.New("flockd does not run there")
	}
	switch words[0] {
	case "settings":
		_, err := node().API().ChangeSettings(w.ctx(), api.SettingsRequest{Set: pairs(words[2:])})
		return err
	case "together":
		return w.together(words[1:])
	case "shown":
		w.Await(words[1]+" shows "+words[2], func() bool {
			s, err := node().API().Settings(w.ctx())
			return err == nil && slices.ContainsFunc(s.Settings, func(x api.Setting) bool { return x.Key+"="+x.Value == words[2] })
		})
		return nil
	case "sync":
		patience, err := time.ParseDuration(append(words, "0s")[3])
		if err != nil {
			return err
		}
		done := w.beginSync(words[2])
		rep, err := node().API().SyncVolume(w.ctx(), words[2], api.SyncRequest{Patience: patience})
		switch {
		case err != nil:
			return err
		case len(rep.Replicas) > 0:
			done()
		}
		if rep.Missing != "" {
			return errors.New("it lacks " + rep.Missing)
		}
		return nil
	case "verify":
		rep, err := node().API().VerifyVolume(w.ctx(), words[2], api.VerifyRequest{Patience: 5 * time.Second})
		if err != nil {
			return err
		}
		return verified(rep, words[3:])
	case "cat":
		return w.cat(node(), words[2], words[3], words[4], append(words, "")[5])
	case "diff":
		return w.diff(node(), words[2], words[3], words[4:])
	case "vanish":
		node().ZFS.Fail("mount-snapshot", "", 1, &zfs.Error{Op: "mount-snapshot", Kind: zfs.ErrNotFound})
		return nil
	case "rot":
		ds, err := w.dataset(words[2])
		node().trees.rot(ds, words[3])
		return err
	case "doctor":
		head, text, _ := strings.Cut(strings.Join(words[2:], " "), " ~~ ")
		w.Await("doctor says "+head+": "+text, func() bool {
			d, err := node().API().Doctor(w.ctx())
			return err == nil && slices.ContainsFunc(d.Findings, func(f doctor.Finding) bool {
				return strings.TrimSpace(fmt.Sprintf("%s %s %s", f.Severity, f.Check, f.Node)) == head && strings.Contains(f.What, text)
			})
		})
		return nil
	case "sound":
		w.Await("doctor finds "+words[1]+" sound", func() bool {
			d, err := node().API().Doctor(w.ctx())
			return err == nil && doctor.Worst(d.Findings) != doctor.Problem && !slices.ContainsFunc(d.Findings, func(f doctor.Finding) bool {
				return f.Severity != doctor.OK && slices.Contains([]string{"datasets", "receives", "mounts", "clock"}, f.Check)
			})
		})
		return nil
	case "stray":
		return node().ZFS.CreateFilesystem(w.ctx(), Pool+"/flocker/"+words[2], nil)
	case "lose-snapshot":
		ds, err := w.dataset(words[2])
		if err != nil {
			return err
		}
		return node().ZFS.DestroySnapshots(w.ctx(), ds, words[3:4])
	case "local":
		node().Engine.MakeLocal(words[2])
		return nil
	case "safety":
		text := strings.Join(words[2:], " ")
		w.Await("status warns that "+text, func() bool {
			s, err := node().API().Status(w.ctx())
			return err == nil && strings.Contains(strings.Join(s.Safety, "\n"), text)
		})
		return nil
	case "problem":
		text := strings.Join(words[2:], " ")
		w.Await("status says "+text, func() bool {
			s, err := node().API().Status(w.ctx())
			return err == nil && strings.Contains(strings.Join(s.Problems, "\n"), text)
		})
		return nil
	case "solved":
		text := strings.Join(words[2:], " ")
		w.Await("status says no more "+text, func() bool {
			s, err := node().API().Status(w.ctx())
			return err == nil && !strings.Contains(strings.Join(s.Problems, "\n"), text)
		})
		return nil
	case "snapshot", "snapshot-bare":
		for _, name := range words[3:] {
			if b, err := w.book(name); err == nil {
				b.cuts[words[2]] = len(b.files)
			}
		}
		_, err := node().API().TakeSnapshot(w.ctx(), api.SnapshotRequest{Name: words[2], Volumes: words[3:], NoHooks: words[0] == "snapshot-bare"})
		for _, name := range words[3:] {
			if err == nil {
				err = w.noteSnapshot(name, words[2])
			}
		}
		return err
	case "snapshots":
		list, err := node().API().Snapshots(w.ctx(), words[2])
		var got []string
		for _, s := range list {
			if s.Kind == "user" {
				got = append(got, s.Name)
			}
		}
		if err == nil && !slices.Equal(got, words[3:]) {
			err = fmt.Errorf("they are %q", got)
		}
		return err
	case "drop":
		return node().API().RemoveSnapshot(w.ctx(), words[2], words[3])
	case "prunes":
		gone, err := node().API().PruneSnapshots(w.ctx(), words[2], api.PruneRequest{DryRun: slices.Contains(words, "dry")})
		if err == nil && strconv.Itoa(len(gone)) != words[3] {
			err = fmt.Errorf("it is about %d: %v", len(gone), gone)
		}
		return err
	case "purge":
		return node().API().PurgeVolume(w.ctx(), words[2])
	case "hold":
		return node().API().HoldSnapshot(w.ctx(), words[2], words[3], api.HoldRequest{Note: append(words, "")[4]})
	case "release":
		return node().API().ReleaseSnapshot(w.ctx(), words[2], words[3])
	case "on", "gone":
		ds, err := w.dataset(words[2])
		if err != nil {
			return err
		}
		w.Await(strings.Join(words, " "), func() bool {
			list, err := node().ZFS.Snapshots(w.ctx(), ds, false)
			has := slices.ContainsFunc(list, func(s zfs.Snapshot) bool { return s.Name == words[3] })
			return err == nil && has == (words[0] == "on")
		})
		return nil
	case "foreign":
		return node().foreign(w.ctx(), words[2], words[3], words[4], append(words, "")[5])
	case "bound":
		node().Engine.Bind(words[2], append(words, "")[3])
		return nil
	case "occupied", "vacated":
		return node().ZFS.SetInUse(words[2], words[0] == "occupied")
	case "found":
		d, err := node().ZFS.Dataset(w.ctx(), words[2])
		if err == nil && d.Mounted != slices.Contains(words, "mounted") {
			err = fmt.Errorf("mounted: %v", d.Mounted)
		}
		return err
	case "import":
		req := api.ImportRequest{Dataset: words[2], Name: words[3], Options: pairs(words[4:])}
		req.Node, req.DryRun = req.Options["on"], req.Options["dry"] != ""
		delete(req.Options, "on")
		delete(req.Options, "dry")
		i, err := node().API().Import(w.ctx(), req)
		if err == nil && (i.Volume == nil) != req.DryRun {
			err = fmt.Errorf("got %+v", i)
		}
		return err
	case "scribble":
		ds, err := w.dataset(words[2])
		if err != nil {
			return err
		}
		z := node().ZFS
		err = z.SetProperties(w.ctx(), ds, map[string]string{"mountpoint": "/mnt/" + words[2]})
		if err == nil {
			err = z.Mount(w.ctx(), ds, true)
		}
		if err == nil {
			err = errors.Join(z.WriteFile(ds, words[3], []byte(words[4])), z.Unmount(w.ctx(), ds))
		}
		return errors.Join(err, z.Inherit(w.ctx(), ds, "mountpoint"))
	case "clone":
		opts := pairs(words[4:])
		req := api.CreateVolumeRequest{Name: words[3], Options: opts}
		if on, ok := opts["on"]; ok {
			delete(opts, "on")
			if name, ok := w.called[on]; ok {
				on = name
			}
			n, err := node().API().Node(w.ctx(), on)
			if err != nil {
				return err
			}
			req.Node = n.ID
		}
		opts["from"] = words[2]
		v, err := node().API().CreateVolume(w.ctx(), req)
		if err == nil && v.From == nil {
			err = fmt.Errorf("volume %s does not say that it is a clone", v.Name)
		}
		return err
	case "clones":
		v, err := node().API().Volume(w.ctx(), words[2])
		var got []string
		for _, c := range v.Clones {
			got = append(got, c.Name)
		}
		if err == nil && !slices.Equal(got, words[3:]) {
			err = fmt.Errorf("they are %q", got)
		}
		return err
	case "hangs", "stands":
		ds, err := w.dataset(words[2])
		if err != nil {
			return err
		}
		w.Await(strings.Join(words, " "), func() bool {
			d, err := node().ZFS.Dataset(w.ctx(), ds)
			return err == nil && (d.Origin != "") == (words[0] == "hangs")
		})
		return nil
	case "asides":
		w.Await(strings.Join(words, " "), func() bool {
			all, err := node().API().Asides(w.ctx())
			var got []string
			for _, x := range all.Asides {
				got = append(got, x.Node.Name+"="+x.VolumeName)
			}
			slices.Sort(got)
			return err == nil && slices.Equal(got, words[2:])
		})
		return nil
	case "restore":
		x, err := w.asideOn(node(), words[2])
		if err != nil {
			return err
		}
		_, err = node().API().RestoreAside(w.ctx(), x.Name, api.RestoreAsideRequest{Name: words[3], Node: x.Node.Name})
		return err
	case "roll-back":
		again, was := slices.Contains(words, "same-request"), w.rollbacks[words[2]]
		if !again {
			w.asked[words[2]]++
		}
		b, err := node().API().RollBack(w.ctx(), words[2], api.RollbackRequest{
			Snapshot: words[3], Newer: slices.Contains(words, "newer"), Request: fmt.Sprintf("script-%d", w.asked[words[2]]),
		})
		if again && err == nil {
			if b.ID != was {
				return fmt.Errorf("asked again it is rollback %s, was %s", b.ID, was)
			}
			return nil
		}
		if err == nil {
			w.rollbacks[words[2]] = b.ID
			err = w.noteRollback(words[2], words[3], b.ID)
		}
		return err
	case "rollback":
		w.Await(strings.Join(words, " "), func() bool {
			b, err := node().API().Rollback(w.ctx(), words[2], w.rollbacks[words[2]])
			return err == nil && string(b.State) == words[3] && strings.Contains(b.Doing+b.Reason, strings.Join(words[4:], " "))
		})
		return nil
	case "restore-undone":
		b, err := node().API().Rollback(w.ctx(), words[2], w.rollbacks[words[2]])
		if err == nil {
			_, err = node().API().RestoreAside(w.ctx(), b.Undone, api.RestoreAsideRequest{Name: words[3], Node: b.Node.Name})
		}
		return err
	case "discard":
		x, err := w.asideOn(node(), words[2])
		if err != nil {
			return err
		}
		return node().API().RemoveAside(w.ctx(), x.Name[:20], words[2])
	case "drain":
		clear(w.migrations) // from now on the newest is meant
		_, err := node().API().DrainNode(w.ctx(), words[2], api.DrainRequest{KeepReplicas: len(words) > 3})
		return err
	case "migrate":
		to := ""
		if len(words) > 3 {
			to = words[3]
		}
		req := api.MigrateRequest{To: to, Force: slices.Contains(words, "force")}
		for _, word := range words {
			if most, ok := strings.CutPrefix(word, "max-pause="); ok {
				d, err := time.ParseDuration(most)
				if err != nil {
					return err
				}
				req.MaxPauseSeconds = d.Seconds()
			}
		}
		m, err := node().API().MigrateVolume(w.ctx(), words[2], req)
		if err == nil {
			w.migrations[words[2]] = m.ID
		}
		return err
	case "waited":
		most, err := time.ParseDuration(words[3])
		if err != nil {
			return err
		}
		m, err := node().API().Migration(w.ctx(), words[2], w.migrations[words[2]])
		least, _ := time.ParseDuration(append(words, "0s")[4])
		if got := time.Duration(m.PausedSeconds * float64(time.Second)); err == nil && (got > most || got < least || (got == 0) != (most == 0)) {
			err = fmt.Errorf("clients waited for %s: %+v", got, m.Times)
		}
		return err
	case "migration":
		w.Await(strings.Join(words, " "), func() bool {
			m, err := node().API().Migration(w.ctx(), words[2], w.migrations[words[2]])
			return err == nil && string(m.State) == words[3] && strings.Contains(m.Doing+m.Why+m.Reason, strings.Join(words[4:], " "))
		})
		return nil
	case "sending":
		var m api.Migration
		w.Await(strings.Join(words, " "), func() bool {
			var err error
			m, err = node().API().Migration(w.ctx(), words[2], w.migrations[words[2]])
			return err == nil && string(m.Phase) == words[3] && m.TotalBytes > 0
		})
		if m.SentBytes < 0 || m.SentBytes > m.TotalBytes || m.LeftBytes != m.TotalBytes-m.SentBytes || m.Rate < 0 {
			return fmt.Errorf("%d of %d bytes are sent, %d are left, at %d a second", m.SentBytes, m.TotalBytes, m.LeftBytes, m.Rate)
		}
		return nil
	case "call-off":
		_, err := node().API().AbortMigration(w.ctx(), words[2], "")
		return err
	case "undrain":
		_, err := node().API().UndrainNode(w.ctx(), words[2])
		return err
	case "drained":
		w.Await(strings.Join(words, " "), func() bool {
			d, err := node().API().Drain(w.ctx(), words[2])
			return err == nil && d.Done
		})
		return nil
	case "emptied":
		var left []api.LeftCopy
		defer func() {
			if w.t.Failed() {
				w.t.Logf("left on %s: %+v", words[2], left)
			}
		}()
		empty := func() bool {
			d, err := node().API().Drain(w.ctx(), words[2])
			left = d.Left
			if len(words) < 4 {
				left = slices.DeleteFunc(left, func(l api.LeftCopy) bool { return l.Role != "primary" })
			}
			return err == nil && d.Availability == "drain" && len(left) == 0
		}
		// A move that was given up when containers had been stopped for it is tried again after ten
		// minutes.
		for range 60 {
			if empty() {
				break
			}
			for range 100 {
				w.Check()
				time.Sleep(100 * time.Millisecond)
			}
		}
		w.Await(strings.Join(words, " "), empty)
		return nil
	case "only-drained":
		w.onlyDrained(words[1:])
		return nil
	case "left":
		w.Await(strings.Join(words, " "), func() bool {
			d, err := node().API().Drain(w.ctx(), words[2])
			return err == nil && slices.ContainsFunc(d.Left, func(l api.LeftCopy) bool {
				return l.Name == words[3] && strings.Contains(l.Doing+l.Why, strings.Join(words[4:], " "))
			})
		})
		return nil
	case "depart":
		req := api.RemoveNodeRequest{Dead: slices.Contains(words, "dead"), LoseData: slices.Contains(words, "lose")}
		req.ConfirmFenced = pairs(words[3:])["fenced"]
		_, err := node().API().RemoveNode(w.ctx(), words[2], req)
		return err
	case "retired":
		text := strings.Join(words[2:], " ")
		w.Await(strings.Join(words, " "), func() bool {
			s, err := node().API().Status(w.ctx())
			return err == nil && strings.Contains(s.Retired, text) && len(s.Problems) == 0
		})
		return nil
	case "rejoin":
		tok, err := w.Machine(words[2]).API().CreateToken(w.ctx(), api.TokenRequest{})
		if err != nil {
			return err
		}
		_, err = node().API().Join(api.AsLocal(w.ctx()), api.JoinRequest{
			NodeSetup: w.setup(words[1]), Token: tok.Text, Peers: []string{words[2] + ":4523"}, Witness: w.witnesses[words[1]]})
		return err
	case "recover":
		m := node()
		if m.Up() {
			return errors.New("its flockd runs")
		}
		_, err := cluster.Recover(cluster.Config{Disk: m.disk, Log: slog.New(slog.DiscardHandler)}, time.Now(), func(cluster.Recovery) error { return nil })
		return err
	case "voters":
		w.Await(strings.Join(words, " "), func() bool {
			st, err := node().API().Status(w.ctx())
			var got []string
			for _, v := range st.Voters {
				got = append(got, v.Name)
			}
			return err == nil && slices.Equal(got, words[2:])
		})
		return nil
	case "members":
		w.Await(strings.Join(words, " "), func() bool {
			ns, err := node().API().Nodes(w.ctx())
			var got []string
			for _, n := range ns {
				got = append(got, n.Name)
			}
			return err == nil && slices.Equal(got, words[2:]) && len(node().daemon.Servers()) == len(got)
		})
		return nil
	case "option":
		w.Await(strings.Join(words, " "), func() bool {
			v, err := node().API().Volume(w.ctx(), words[2])
			for k, want := range pairs(words[3:]) {
				if v.Spec.Options()[k] != want {
					return false
				}
			}
			return err == nil
		})
		return nil
	case "plan": // what is planned is exactly this
		got, said := []string{}, ""
		defer func() {
			if w.t.Failed() {
				w.t.Logf("planned was %v: %s", got, said)
			}
		}()
		w.Await(strings.Join(words, " "), func() bool {
			plan, err := node().API().Rebalance(w.ctx())
			got, said = got[:0], strings.Join(plan.Notes, "; ")
			for _, m := range plan.Moves {
				got = append(got, fmt.Sprintf("%s:%s:%s:%s", m.Name, m.Role, m.From, m.To))
			}
			return err == nil && (slices.Equal(got, words[2:]) || len(words) == 3 && words[2] == strconv.Itoa(len(got)))
		})
		return nil
	case "evened":
		least, more := strings.CutSuffix(words[2], "+")
		n, err := strconv.Atoi(least)
		if err != nil {
			return err
		}
		w.Await(fmt.Sprintf("%s knows of %s moves of the policy", words[1], words[2]), func() bool {
			moves := 0
			events, err := node().API().Events(w.ctx(), api.EventsQuery{})
			for _, e := range events {
				if e.Kind == "volume.rebalanced" && strings.Contains(e.Message, "by itself, as") {
					moves++
				}
			}
			return err == nil && (moves == n || more && moves > n)
		})
		return nil
	case "rebalance", "rebalance-step":
		clear(w.migrations)
		return w.rebalance(node(), words[0] == "rebalance")
	case "locality":
		w.Await(strings.Join(words, " "), func() bool {
			v, err := node().API().Volume(w.ctx(), words[2])
			text := strings.Join(words[3:], " ")
			return err == nil && strings.Contains(v.Locality, text) && (text == "") == (v.Locality == "")
		})
		return nil
	case "copy-on", "no-copy-on":
		ds, err := w.dataset(words[2])
		if err != nil {
			return err
		}
		w.Await(strings.Join(words, " "), func() bool {
			_, err := node().ZFS.Dataset(w.ctx(), ds)
			return (words[0] == "copy-on") == (err == nil) && (err == nil || errors.Is(err, zfs.ErrNotFound))
		})
		return nil
	case "promote":
		opts := pairs(words[3:])
		_, accept := opts["accept-loss"]
		_, err := node().API().FailoverVolume(w.ctx(), words[2], api.FailoverRequest{To: opts["to"], AcceptLoss: accept, ConfirmFenced: opts["fenced"]})
		return err
	case "problem-of":
		text := strings.Join(words[3:], " ")
		w.Await(strings.Join(words, " "), func() bool {
			v, err := node().API().Volume(w.ctx(), words[2])
			return err == nil && strings.Contains(v.Reason, text)
		})
		return nil
	case "event":
		text := strings.Join(words[4:], " ")
		w.Await(strings.Join(words, " "), func() bool {
			for _, name := range w.Names() {
				m := w.Machine(name)
				if !m.Up() || words[1] != name && words[1] != "any" {
					continue
				}
				list, err := m.API().Events(w.ctx(), api.EventsQuery{})
				if err == nil && slices.ContainsFunc(list, func(e api.Event) bool {
					return e.Kind == words[2] && e.Name == words[3] && strings.Contains(e.Message, text)
				}) {
					return true
				}
			}
			return false
		})
		return nil
	case "set":
		_, err := node().API().UpdateVolume(w.ctx(), words[2], api.UpdateVolumeRequest{Options: pairs(words[3:])})
		return err
	}
	w.t.Fatalf("no such step: %q", words)
	return nil
}

// together changes one setting, or one option of a volume, through each node, all at
// the same moment.
func (w *World) together(words []string) error {
	i := slices.IndexFunc(words, func(word string) bool { return word == "settings" || word == "set" })
	nodes, values, ref := words[:i], words[i+1:], ""
	if words[i] == "set" {
		ref, values = values[0], values[1:]
	}
	errs := make([]error, len(nodes))
	var all sync.WaitGroup
	for i, name := range nodes {
		m, change := w.Machine(name), pairs(values[i:i+1])
		all.Go(func() {
			if ref == "" {
				_, errs[i] = m.API().ChangeSettings(w.ctx(), api.SettingsRequest{Set: change})
			} else {
				_, errs[i] = m.API().UpdateVolume(w.ctx(), ref, api.UpdateVolumeRequest{Options: change})
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// asideOn is the one set-aside copy of a node.
func (w *World) asideOn(m *Machine, name string) (api.Aside, error) {
	all, err := m.API().Asides(w.ctx())
	var on []api.Aside
	for _, x := range all.Asides {
		if x.Node.Name == name {
			on = append(on, x)
		}
	}
	if err == nil && len(on) != 1 {
		return api.Aside{}, fmt.Errorf("%d copies are set aside on %s", len(on), name)
	}
	if err != nil {
		return api.Aside{}, err
	}
	return on[0], nil
}

// cat reads a file of a snapshot, which leaves nothing mounted.
func (w *World) cat(m *Machine, what, file, want, on string) error {
	ref, name, _ := strings.Cut(what, "@")
	b, err := m.API().Browse(w.ctx(), ref, api.BrowseRequest{Snapshot: name, Path: file, As: api.AsFile})
	if err == nil {
		var got []byte
		got, err = io.ReadAll(b.Body)
		err = errors.Join(err, b.Body.Close())
		if err == nil && (string(got) != want || on != "" && b.Node.Name != w.Machine(on).Name) {
			err = fmt.Errorf("%s of %s@%s has %q by %s", file, b.Volume, b.Snapshot, got, b.Node)
		}
	}
	w.nothingBrowsed()
	return err
}

func (w *World) nothingBrowsed() {
	for _, name := range w.Names() {
		z := w.Machine(name).ZFS
		w.Await("nothing is mounted on "+name, func() bool { return len(z.SnapshotMounts()) == 0 })
	}
}

// diff compares two snapshots, or one with a new one.
func (w *World) diff(m *Machine, what, since string, want []string) error {
	ref, name, _ := strings.Cut(what, "@")
	b, err := m.API().Browse(w.ctx(), ref, api.BrowseRequest{Snapshot: name, Since: since, Path: ".", As: api.AsDiff})
	if err != nil {
		return err
	}
	var got []string
	err = b.Changes(func(c browse.Change) error {
		got = append(got, map[browse.Kind]string{browse.Added: "+", browse.Removed: "-", browse.Modified: "M", browse.Renamed: "R"}[c.Kind]+c.Path)
		return nil
	})
	err = errors.Join(err, b.Body.Close())
	w.nothingBrowsed()
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if err == nil && !slices.Equal(got, want) {
		err = fmt.Errorf("between %s and %s there are %q, want %q", b.Since, b.Snapshot, got, want)
	}
	return err
}

// verified compares what a verify found with words like n2=differs.
func verified(rep api.VerifyReply, want []string) error {
	var got []string
	for _, c := range rep.Copies {
		result := "alike"
		switch {
		case c.Error != "":
			result = "unread"
		case c.Differs:
			result = "differs"
		}
		got = append(got, c.Node.Name+"="+result)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		return fmt.Errorf("the verify found %q: %+v", got, rep)
	}
	return nil
}

// foreign has somebody who knows nothing of flocker write to a dataset of their own.
func (m *Machine) foreign(ctx context.Context, ds, file, text, snapshot string) error {
	err := m.ZFS.CreateFilesystem(ctx, ds, map[string]string{"mountpoint": "/srv/" + ds, "recordsize": "16384", "quota": "1073741824"})
	if err == nil {
		err = m.ZFS.Mount(ctx, ds, false)
	}
	if err != nil && !errors.Is(err, zfs.ErrExists) {
		return err
	}
	if err := errors.Join(m.ZFS.WriteFile(ds, file, []byte(text)), m.ZFS.Sync(ds)); err != nil || snapshot == "" {
		return err
	}
	return m.ZFS.Snapshot(ctx, []string{ds + "@" + snapshot}, nil)
}

// pairs reads KEY=VALUE words.
func pairs(words []string) map[string]string {
	out := map[string]string{}
	for _, word := range words {
		k, v, _ := strings.Cut(word, "=")
		out[k] = v
	}
	return out
}

// rebalance does what flockctl rebalance does: it asks for steps until all moves of a plan
// are done, or for one of them only.
func (w *World) rebalance(m *Machine, all bool) error {
	plan, err := m.API().Rebalance(w.ctx())
	if err != nil {
		return err
	}
	req := api.RebalanceRequest{Request: fmt.Sprintf("plan-%d", time.Now().UnixNano()), Moves: plan.Moves}
	for len(req.Moves) > 0 {
		rep, err := m.API().CarryRebalance(w.ctx(), req)
		if err != nil && !all {
			return err
		}
		if err == nil {
			w.t.Logf("rebalance: %+v", rep.Moves)
			req.Moves = nil
			busy := map[string]string{}
			for _, x := range rep.Moves {
				if x.State == api.MoveFailed {
					return fmt.Errorf("volume %s does not go from %s to %s: %s", x.Name, x.From, x.To, x.Doing)
				}
				if x.State == api.MoveRunning {
					for _, n := range []string{x.From.Name, x.To.Name} {
						if other, twice := busy[n]; twice {
							return fmt.Errorf("node %s has a part in the moves of %s and %s at once", n, other, x.Name)
						}
						busy[n] = x.Name
					}
				}
				if !x.Over() {
					req.Moves = append(req.Moves, x)
				}
			}
		}
		if !all {
			return nil
		}
		time.Sleep(time.Second)
		w.Check()
	}
	return nil
}

// onlyDrained has one node drained and all others used, or all: it is said until a leader
// takes it down.
func (w *World) onlyDrained(words []string) {
	w.Await("only-drained "+strings.Join(words, " "), func() bool {
		for _, name := range w.Names() {
			var err error
			if len(words) > 0 && name == words[0] {
				_, err = w.Machine(name).API().DrainNode(w.ctx(), name, api.DrainRequest{KeepReplicas: len(words) > 1})
			} else {
				_, err = w.Machine(name).API().UndrainNode(w.ctx(), name)
			}
			if err != nil {
				return false
			}
		}
		return true
	})
}
