package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/backup"
	"github.com/flocker-io/flocker/internal/volume"
)

const backupHelp = `DEST is a directory (PATH or file:///PATH) or s3://BUCKET/PREFIX, which flockctl itself reads and
writes: keys and credentials stay in its environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_ENDPOINT_URL, AWS_REGION) and never reach the cluster. Many volumes may have one DEST.`

func (a *app) backupCommand() *cli.Command {
	return &cli.Command{
		Name: "backup", Aliases: []string{"backups"}, Usage: "keep copies of volumes outside of the cluster, and restore them", Description: backupHelp,
		Subcommands: []*cli.Command{a.backupCreate(), a.backupList(), a.backupInspect(), a.backupVerify(), a.backupRestore(), a.backupRemove()},
	}
}

func recipients() *cli.StringSliceFlag {
	return &cli.StringSliceFlag{Name: "recipient", Aliases: []string{"r"}, Usage: "encrypt to this public `KEY` of age; repeat it for several"}
}

func identity() *cli.StringFlag {
	return &cli.StringFlag{Name: "identity", Aliases: []string{"i"}, Usage: "decrypt with the secret keys in `FILE`, as age-keygen writes it"}
}

func authKey(usage string) *cli.StringFlag {
	return &cli.StringFlag{Name: "auth-key", Usage: usage}
}

const (
	authMarks   = "mark it with the secret in `FILE`, so that nobody without that can make one that passes for it"
	authDemands = "refuse what was not made with the secret in `FILE`"
)

func (a *app) backupCreate() *cli.Command {
	return &cli.Command{
		Name: "create", Usage: "back a volume up and print the id of the backup", ArgsUsage: "VOLUME[@SNAPSHOT] DEST",
		Description: backupHelp + "\n\n" +
			"Without @SNAPSHOT one is taken, backup-TIME; it stays until the next backup there is made, which is an\n" +
			"increment on it. What was interrupted is gone on with, but not while another flockctl may write it. With -\n" +
			"for DEST, one full backup goes to the standard output, as flockctl export does it.\n\n" +
			"With --profile or --all each volume is backed up as by its own command, one after the other; what fails\n" +
			"is told, and the others are made all the same.",
		Flags: []cli.Flag{
			recipients(),
			authKey(authMarks),
			&cli.StringFlag{Name: "profile", Usage: "back up all volumes that were made with profile `NAME`; no VOLUME is given then"},
			&cli.BoolFlag{Name: "all", Usage: "back up all volumes; no VOLUME is given then"},
			&cli.BoolFlag{Name: "here", Usage: "of these only those whose primary is this node: with the same timer on all nodes, one backs each up"},
			&cli.BoolFlag{Name: "full", Usage: "make it a full one, whatever there is to begin from, or has the snapshot already"},
			&cli.BoolFlag{Name: "resume", Usage: "go on with what was interrupted although its flockctl was heard of in the last 15 minutes"},
			&cli.IntFlag{Name: "increments", Value: 30, Usage: "make a full one after `N` increments on each other"},
			&cli.IntFlag{Name: "uploads", Value: 4, Usage: "store `N` pieces at a time, each of which takes 32 MiB of memory, or twice that when it is encrypted"},
			&cli.IntFlag{Name: "keep", Usage: "when it is done, remove all backups of the volume but the newest `N` and what these need"},
		},
		Action: a.untimed(1, 2, a.createBackups),
	}
}

// source takes VOLUME[@SNAPSHOT] apart.
func source(c *cli.Context, arg string) (ref, name string, err error) {
	ref, name, at := strings.Cut(arg, "@")
	if ref == "" || at && name == "" {
		return "", "", usage(c, "%q is not VOLUME or VOLUME@SNAPSHOT", arg)
	}
	return ref, name, nil
}

// maxUploads is so many that their memory is noticed.
const maxUploads = 32

func (a *app) createBackups(ctx context.Context, c *cli.Context) error {
	if c.Int("keep") < 0 || c.Int("increments") < 0 {
		return usage(c, "--keep and --increments are numbers from 0 on")
	}
	if n := c.Int("uploads"); n < 1 || n > maxUploads {
		return usage(c, "--uploads is a number from 1 to %d", maxUploads)
	}
	profile := c.String("profile")
	several := c.Bool("all") || profile != ""
	switch {
	case several && c.NArg() != 1:
		return usage(c, "with --profile or --all only DEST is given")
	case !several && c.NArg() != 2:
		return usage(c, "DEST is missing")
	case c.Bool("all") && profile != "":
		return usage(c, "--all and --profile do not go together")
	case !several && c.Bool("here"):
		return usage(c, "--here is for --profile and --all")
	case profile != "" && !slices.Contains(volume.Profiles(), profile):
		return usage(c, "there is no profile %q: there are %s", profile, strings.Join(volume.Profiles(), ", "))
	case several && c.Args().First() == "-":
		return usage(c, "several volumes are not written to one stream")
	}
	if !several {
		ref, name, err := source(c, c.Args().First())
		if err != nil {
			return err
		}
		if dest := c.Args().Get(1); dest != "-" {
			done, err := a.createBackup(ctx, c, ref, name, dest)
			if done == nil {
				return err
			}
			// It is made, whatever became of the old ones.
			if a.asJSON {
				return firstError(err, a.printJSON(summary(done)))
			}
			a.printf("%s\n", done.ID)
			return err
		}
		return a.export(ctx, c, ref, name)
	}
	all, err := timed(a, ctx, func(ctx context.Context) ([]api.Volume, error) { return a.client.Volumes(ctx, api.VolumesQuery{}) })
	if err != nil {
		return err
	}
	var self volume.NodeID
	if c.Bool("here") {
		s, err := timed(a, ctx, a.client.Status)
		if err != nil {
			return err
		}
		self = s.Node.ID
	}
	list := chosen(all, profile, self)
	if len(list) == 0 && !a.quiet {
		fmt.Fprintln(a.stderr, "flockctl: no volume is to be backed up")
	}
	var failed error
	made := []any{}
	for i, v := range list {
		if ctx.Err() != nil {
			failed = firstError(failed, volume.Errorf(volume.CodeUnavailable, "interrupted: %s not backed up", plural(len(list)-i, "volume")))
			break
		}
		done, err := a.createBackup(ctx, c, string(v.ID), "", c.Args().First())
		if err != nil {
			a.printError(fmt.Errorf("volume %q: %w", v.Name, err))
			failed = firstError(failed, told{err})
		}
		if done != nil {
			made = append(made, summary(done))
		}
		if done != nil && !a.asJSON {
			a.printf("%s\n", done.ID)
		}
	}
	if a.asJSON {
		return firstError(a.printJSON(made), failed)
	}
	return failed
}

// chosen are the volumes to back up: all, or those of a profile, and of these all or those whose primary
// is one node. None of the trash is.
func chosen(all []api.Volume, profile string, node volume.NodeID) (out []api.Volume) {
	for _, v := range all {
		if v.Deleted.IsZero() && (profile == "" || v.Spec.Profile == profile) && (node == "" || v.Primary.ID == node) {
			out = append(out, v)
		}
	}
	return out
}

// createBackup makes one, or goes on with it. With an error it is made all the same, unless it is nil.
func (a *app) createBackup(ctx context.Context, c *cli.Context, ref, name, dest string) (*backup.Manifest, error) {
	seal, err := backup.NewSeal(c.StringSlice("recipient"))
	if err != nil {
		return nil, err
	}
	auth, err := a.auth(c)
	if err != nil {
		return nil, err
	}
	v, m, err := a.aboutVolume(ctx, ref)
	if err != nil {
		return nil, err
	}
	store, err := backup.Open(ctx, dest, true)
	if err != nil {
		return nil, err
	}
	job := &backupJob{app: a, store: store, seal: seal, auth: auth, volume: v, resume: c.Bool("resume"), uploads: c.Int("uploads")}
	if err := job.look(ctx); err != nil {
		return nil, err
	}
	done, err := job.goOn(ctx, name, c.Bool("full"))
	if err != nil {
		return nil, err
	}
	if done != nil && name == "" && a.now().Sub(done.Snapshot.Taken) > staleAfter {
		// What was asked for is one of today.
		job.note("backup %s is finished, and of %s ago; another one follows", done.ID, a.ago(done.Snapshot.Taken))
		job.dropSnapshots(ctx, done)
		if err := job.look(ctx); err != nil {
			return nil, err
		}
		m.ID, done = backup.NewID(a.now()), nil
	}
	if done == nil {
		var bases []*backup.Manifest
		if !c.Bool("full") {
			bases = job.all.Bases(v.ID, c.Int("increments"), seal.Recipients(), auth)
			if n := len(job.all.Of(v.ID)); n > 0 && !slices.ContainsFunc(job.all.Of(v.ID), job.fits) {
				job.note("a full backup: none of the %d there can be restored by the same keys", n)
			}
		}
		if done, err = job.begin(ctx, m, name, bases, c.Bool("full")); err != nil {
			return nil, err
		}
	}
	job.dropSnapshots(ctx, done)
	job.sweep(ctx)
	var kept error
	if n := c.Int("keep"); n > 0 {
		kept = job.keep(ctx, n, done)
	}
	return done, kept
}

// staleAfter is how old a snapshot may be that is gone on with in place of a new one.
const staleAfter = 6 * time.Hour

// aboutVolume is what every backup of a volume says of it.
func (a *app) aboutVolume(ctx context.Context, ref string) (api.Volume, backup.Manifest, error) {
	v, err := timed(a, ctx, func(ctx context.Context) (api.Volume, error) { return a.client.Volume(ctx, ref) })
	if err != nil {
		return v, backup.Manifest{}, err
	}
	if !v.Deleted.IsZero() {
		return v, backup.Manifest{}, volume.Errorf(volume.CodeRefused, "volume %q is in the trash", v.Name).WithHint("flockctl volume undelete %s brings it back", v.Name)
	}
	s, err := timed(a, ctx, a.client.Status)
	if err != nil {
		return v, backup.Manifest{}, err
	}
	now := a.now().UTC().Truncate(time.Second)
	return v, backup.Manifest{ID: backup.NewID(now), Volume: v.ID, Name: v.Name, Cluster: s.ClusterID, Options: v.Spec.Options(), Began: now}, nil
}

// backupJob is a backup being made of a volume.
type backupJob struct {
	*app
	store  backup.Store
	seal   *backup.Seal
	auth   *backup.Auth
	volume api.Volume
	all    *backup.Catalog
	resume bool // go on also with what another flockctl was heard to write just now
	// uploads is how many pieces are stored at a time.
	uploads int
}

// look reads what there is of the volume.
func (j *backupJob) look(ctx context.Context) (err error) {
	stop := j.waiting(ctx, j.volume.Name+": looking for its backups")
	defer stop()
	j.all, err = backup.LoadOf(ctx, j.store, j.volume.ID)
	return err
}

// fits says that a backup can be restored by who can read this one.
func (j *backupJob) fits(m *backup.Manifest) bool {
	return j.all.Fits(m, j.seal.Recipients(), j.auth)
}

func (j *backupJob) stream(ctx context.Context, req api.BrowseRequest) (*api.Browsed, context.CancelFunc, error) {
	req.As = api.AsStream
	return j.open(ctx, string(j.volume.ID), req)
}

func (j *backupJob) note(format string, args ...any) {
	if !j.quiet {
		j.say("flockctl: "+format+"\n", args...)
	}
}

// goOn goes on with a backup that was interrupted, if there is one that this may be: nil when
// there is none. Without a name it is one whose snapshot was taken for it. While another
// flockctl backs the volume up to the same place, there is nothing to do here.
func (j *backupJob) goOn(ctx context.Context, name string, full bool) (*backup.Manifest, error) {
	for _, p := range j.all.Partial {
		if !j.resume && backup.Busy(p.Heard(), j.now()) {
			return nil, volume.Errorf(volume.CodeConflict, "backup %s of volume %q is being made there: the flockctl that writes it was heard of %s ago", p.ID, p.Name, j.ago(p.Heard())).
				WithHint("wait for it; if it was killed, --resume goes on at once")
		}
	}
	for _, p := range slices.Backward(j.all.Partial) {
		if p.Removed() || name != "" && p.Snapshot.Name != name || name == "" && !p.Own || full && p.Base != nil || !p.SealedTo(j.seal.Recipients()) || !p.MadeWith(j.auth) {
			continue
		}
		if err := j.stands(p); err != nil {
			j.note("backup %s, which was interrupted, is not gone on with: %v", p.ID, err)
			continue
		}
		// By name it is the one that has it now, which may be another.
		req := api.BrowseRequest{GUID: p.Snapshot.GUID}
		if name != "" {
			req = api.BrowseRequest{Snapshot: name}
		}
		if p.Base != nil {
			req.Bases = []uint64{p.Base.GUID}
		}
		b, end, err := j.stream(ctx, req)
		switch code := volume.CodeOf(err); {
		case code == volume.CodeConflict || code == volume.CodeNotFound:
			j.note("backup %s, which was interrupted, is not gone on with: %v", p.ID, err)
			continue
		case err != nil:
			// Not to be able to ask is no reason to begin anew.
			j.note("backup %s was interrupted and cannot be gone on with now; flockctl backup remove gives it up", p.ID)
			return nil, err
		}
		defer end()
		if b.GUID != p.Snapshot.GUID {
			j.note("backup %s, which was interrupted, is not gone on with: it is of another snapshot that was called %s", p.ID, name)
			continue
		}
		j.note("going on with backup %s, which was interrupted", p.ID)
		w, err := j.writing(p).Begin(ctx)
		if err != nil {
			return nil, err
		}
		return j.write(ctx, w, p, b)
	}
	return nil, nil
}

// stands says why what was interrupted could not be restored: what it is an increment on.
func (j *backupJob) stands(p *backup.Manifest) error {
	chain, err := j.all.Chain(p)
	if err != nil || len(chain) == 1 {
		return err
	}
	return j.all.Restorable(chain[len(chain)-2])
}

// begin makes a new one.
func (j *backupJob) begin(ctx context.Context, m backup.Manifest, name string, bases []*backup.Manifest, full bool) (*backup.Manifest, error) {
	var guids []uint64
	for _, b := range bases[:min(len(bases), api.MaxBases)] {
		guids = append(guids, b.Snapshot.GUID)
	}
	begun := false
	if name == "" {
		var err error
		if name, err = j.takeSnapshot(ctx); err != nil {
			return nil, err
		}
		m.Own = true
		// Until something in the store names it, nobody would remove it.
		defer func() {
			if !begun {
				j.dropSnapshot(ctx, name, 0)
			}
		}()
	}
	b, end, err := j.stream(ctx, api.BrowseRequest{Snapshot: name, Bases: guids})
	// That is what they say who have the snapshot and no base, when all could be asked.
	if len(guids) > 0 && volume.CodeOf(err) == volume.CodeConflict {
		why := err
		if b, end, err = j.stream(ctx, api.BrowseRequest{Snapshot: name}); err == nil {
			j.note("a full backup: %v", why)
		}
	}
	if err != nil {
		return nil, err
	}
	defer end()
	if !full {
		for _, old := range j.all.Of(j.volume.ID) {
			if old.Snapshot.GUID == b.GUID && j.fits(old) {
				j.note("that snapshot is in backup %s already", old.ID)
				return old, nil
			}
		}
	}
	m.Snapshot = backup.Snapshot{Name: b.Snapshot, GUID: b.GUID, Taken: b.Taken}
	for _, base := range bases {
		if b.SinceGUID != 0 && base.Snapshot.GUID == b.SinceGUID {
			m.Base = &backup.Base{ID: base.ID, GUID: b.SinceGUID}
			break
		}
	}
	if b.SinceGUID != 0 && m.Base == nil {
		return nil, fmt.Errorf("flockd sends an increment on snapshot %d, which it was not asked for", b.SinceGUID)
	}
	w, err := j.writing(&m).Begin(ctx)
	if err != nil {
		return nil, err
	}
	begun = true
	return j.write(ctx, w, &m, b)
}

func (j *backupJob) writing(m *backup.Manifest) *backup.Writing {
	return &backup.Writing{Store: j.store, Manifest: m, Seal: j.seal, Auth: j.auth, Now: j.now, Resume: j.resume,
		Warn: func(err error) { j.note("%v", err) }, Uploads: j.uploads}
}

func (j *backupJob) write(ctx context.Context, w *backup.Begun, m *backup.Manifest, b *api.Browsed) (*backup.Manifest, error) {
	p := j.meter(ctx, fmt.Sprintf("%s: backup %s", m.Name, m.ID), b.Size)
	defer p.end()
	w.Progress = func(stored, reused int64) { p.at(stored + reused) }
	done, err := w.Write(ctx, b.Body)
	if err != nil && ctx.Err() != nil {
		err = volume.Errorf(volume.CodeUnavailable, "interrupted: backup %s is not finished", m.ID).WithHint("the same command goes on with it")
	}
	return done, err
}

// ownSnapshot is what those are called that are taken for backups.
var ownSnapshot = regexp.MustCompile(`^backup-[0-9]{8}T[0-9]{6}Z$`)

// takeSnapshot takes one for a backup.
func (j *backupJob) takeSnapshot(ctx context.Context) (string, error) {
	v, name := j.volume, "backup-"+j.now().UTC().Format("20060102T150405Z")
	stop := j.takingSnapshot(ctx, v.Name+"@"+name, false)
	defer stop()
	rep, err := timed(j.app, ctx, func(ctx context.Context) (api.SnapshotReply, error) {
		return j.client.TakeSnapshot(ctx, api.SnapshotRequest{Volumes: []string{string(v.ID)}, Name: name})
	})
	stop()
	for _, text := range rep.Warnings {
		j.say("flockctl: %s; it is tried again\n", text)
	}
	var e *volume.Error
	if err != nil && !(errors.As(err, &e) && slices.Contains([]volume.Code{volume.CodeConflict, volume.CodeNotFound, volume.CodeRefused, volume.CodeInvalid, volume.CodeDenied}, e.Code)) {
		// It may have been taken all the same.
		j.dropSnapshot(ctx, name, 0)
	}
	if errors.As(err, &e) && e.Code == volume.CodeUnavailable && e.Hint == "" {
		err = e.WithHint("flockctl backup create %s@SNAPSHOT takes one that is there", v.Name)
	}
	return name, err
}

// dropSnapshots removes what was taken for earlier backups there: the next one begins from
// this one's.
func (j *backupJob) dropSnapshots(ctx context.Context, done *backup.Manifest) {
	for _, m := range j.all.Of(j.volume.ID) {
		if m.Own && m.ID != done.ID && !m.Snapshot.Taken.After(done.Snapshot.Taken) {
			j.dropSnapshot(ctx, m.Snapshot.Name, m.Snapshot.GUID)
		}
	}
	// So does what was interrupted and is not gone on with any more: this one is newer, and for the
	// same keys.
	for _, p := range j.all.Partial {
		if !p.Own || p.Removed() || p.ID == done.ID || p.Snapshot.Taken.After(done.Snapshot.Taken) || !p.SealedTo(done.Recipients) || !p.MadeWith(j.auth) {
			continue
		}
		if err := j.removing(ctx, j.store, p); err != nil {
			j.note("backup %s, which was interrupted, stays: %v", p.ID, err)
			continue
		}
		j.note("backup %s, which was interrupted, is removed: %s is newer", p.ID, done.ID)
		j.dropSnapshot(ctx, p.Snapshot.Name, p.Snapshot.GUID)
	}
}

// dropSnapshot removes a snapshot, if it is that one: its name may be another one's by now.
// With guid 0 it was taken just now. That it stays is told, and hurts nobody.
func (j *backupJob) dropSnapshot(ctx context.Context, name string, guid uint64) {
	_, err := timed(j.app, context.WithoutCancel(ctx), func(ctx context.Context) (any, error) {
		list, err := j.client.Snapshots(ctx, string(j.volume.ID))
		if volume.CodeOf(err) == volume.CodeNotFound {
			return nil, nil // nor is the volume
		}
		if err != nil {
			return nil, err
		}
		// What the store says was taken for a backup may be what somebody else wrote there.
		if !ownSnapshot.MatchString(name) || !slices.ContainsFunc(list, func(s api.Snapshot) bool { return s.Name == name && (guid == 0 || s.GUID == guid) }) {
			return nil, nil
		}
		return nil, j.client.RemoveSnapshot(ctx, string(j.volume.ID), name)
	})
	if err != nil {
		j.note("snapshot %s@%s, taken for a backup, stays: %v", j.volume.Name, name, err)
	}
}

// sweep removes what is left beside finished backups by who was cut short at their end.
func (j *backupJob) sweep(ctx context.Context) {
	for _, m := range j.all.Of(j.volume.ID) {
		if !m.Rest() || m.Removed() || j.all.Restorable(m) != nil {
			continue
		}
		if err := backup.Sweep(ctx, j.store, m); err != nil {
			j.note("what backup %s does not need is left in the store: %v", m.ID, err)
		}
	}
}

// keep removes old backups, but not the one just made.
func (j *backupJob) keep(ctx context.Context, n int, done *backup.Manifest) error {
	if err := j.look(ctx); err != nil {
		return err
	}
	old, err := j.all.Expired(j.volume.ID, n, done.ID, j.auth)
	if err != nil {
		return err
	}
	for _, m := range old {
		if err := j.removing(ctx, j.store, m); err != nil {
			return err
		}
		j.note("backup %s of %s is removed", m.ID, m.Snapshot.Taken.UTC().Format(time.DateOnly))
	}
	return nil
}

// removing removes a backup, of which a large one has many pieces.
func (a *app) removing(ctx context.Context, store backup.Store, m *backup.Manifest) error {
	stop := a.waiting(ctx, fmt.Sprintf("%s: removing backup %s", m.Name, m.ID))
	defer stop()
	return backup.Remove(ctx, store, m, a.now())
}

func (a *app) exportCommand() *cli.Command {
	return &cli.Command{
		Name: "export", Usage: "write a volume to the standard output, for flockctl import or a file", ArgsUsage: "VOLUME[@SNAPSHOT]",
		Description: "It is one full backup as a tar stream: unpacked into a directory it is a backup in that. Without\n" +
			"@SNAPSHOT one is taken, and removed again.",
		Flags: []cli.Flag{recipients(), authKey(authMarks)},
		Action: a.untimed(1, 1, func(ctx context.Context, c *cli.Context) error {
			ref, name, err := source(c, c.Args().First())
			if err != nil {
				return err
			}
			return a.export(ctx, c, ref, name)
		}),
	}
}

func (a *app) export(ctx context.Context, c *cli.Context, ref, name string) error {
	if a.screen || a.asJSON {
		return usage(c, "a volume is not written to a terminal, and is no JSON: give a file or a pipe")
	}
	seal, err := backup.NewSeal(c.StringSlice("recipient"))
	if err != nil {
		return err
	}
	auth, err := a.auth(c)
	if err != nil {
		return err
	}
	v, m, err := a.aboutVolume(ctx, ref)
	if err != nil {
		return err
	}
	out := backup.NewArchive(a.stdout, a.now)
	j := &backupJob{app: a, store: out, seal: seal, auth: auth, volume: v, all: &backup.Catalog{}}
	taken := name == ""
	if taken {
		if name, err = j.takeSnapshot(ctx); err != nil {
			return err
		}
		defer j.dropSnapshot(ctx, name, 0)
	}
	if _, err := j.begin(ctx, m, name, nil, true); err != nil {
		return err
	}
	return out.Close()
}

// summary is a manifest without what only programs of ours need.
func summary(m *backup.Manifest) any {
	type manifest backup.Manifest
	x := struct {
		manifest
		Stored int64      `json:"stored"`
		Marked bool       `json:"marked,omitempty"`
		Chunks []struct{} `json:"chunks,omitempty"` // hides those
	}{manifest(*m), m.Stored(), m.Marked(), nil}
	return x
}

func (a *app) backupList() *cli.Command {
	return &cli.Command{
		Name: "list", Aliases: []string{"ls"}, Usage: "list the backups in a place, by volume, oldest first", ArgsUsage: "DEST [VOLUME]",
		Description: backupHelp + "\n\nVOLUME is the name or the id that it had. ON is the backup that an increment needs.",
		Action: a.untimed(1, 2, func(ctx context.Context, c *cli.Context) error {
			_, all, err := a.backups(ctx, c)
			if err != nil {
				return err
			}
			of := func(m *backup.Manifest) bool {
				ref := c.Args().Get(1)
				return ref == "" || m.Name == ref || string(m.Volume) == ref
			}
			all.Backups = slices.DeleteFunc(all.Backups, func(m *backup.Manifest) bool { return !of(m) })
			all.Partial = slices.DeleteFunc(all.Partial, func(m *backup.Manifest) bool { return !of(m) })
			if c.NArg() > 1 && len(all.Backups)+len(all.Partial) == 0 {
				return firstError(a.broken(all), volume.Errorf(volume.CodeNotFound, "there are no backups of volume %.100q", c.Args().Get(1)).
					WithHint("flockctl backup list DEST shows of which there are"))
			}
			switch {
			case a.asJSON:
				out := struct {
					Backups    []any           `json:"backups"`
					Unfinished []any           `json:"unfinished"`
					Broken     []backup.Broken `json:"broken"`
				}{[]any{}, []any{}, append([]backup.Broken{}, all.Broken...)}
				for _, m := range all.Backups {
					out.Backups = append(out.Backups, summary(m))
				}
				for _, m := range all.Partial {
					out.Unfinished = append(out.Unfinished, summary(m))
				}
				return a.printJSON(out)
			case a.quiet:
				for _, m := range all.Backups {
					a.printf("%s\n", m.ID)
				}
			default:
				t := newTable("BACKUP", "VOLUME", "SNAPSHOT", "TAKEN", "ON", "SIZE", "STORED", "ENCRYPTED")
				for _, m := range all.Backups {
					on, sealed := "full", ""
					if m.Base != nil {
						on = m.Base.ID
					}
					if m.Encrypted() {
						sealed = "yes"
					}
					t.add(m.ID, m.Name, m.Snapshot.Name, a.ago(m.Snapshot.Taken)+" ago", on, size(m.Size), size(m.Stored()), sealed)
				}
				if err := t.print(a.stdout); err != nil {
					return err
				}
				for _, m := range all.Partial {
					a.say("flockctl: backup %s of volume %s was never finished, so it is none\n", m.ID, m.Name)
				}
			}
			return a.broken(all)
		}),
	}
}

// broken tells of what cannot be read; it is an error, for it may have been a backup.
func (a *app) broken(all *backup.Catalog) error {
	if len(all.Broken) == 0 {
		return nil
	}
	b := all.Broken[0]
	err := volume.Errorf(volume.CodeRefused, "%s cannot be read: %s", b.Object, b.Reason)
	if n := len(all.Broken) - 1; n > 0 {
		err = err.WithHint("so can %d more not", n)
	}
	return err
}

// backups are those in the place that the first argument names.
func (a *app) backups(ctx context.Context, c *cli.Context) (backup.Store, *backup.Catalog, error) {
	stop := a.waiting(ctx, "looking for backups in "+c.Args().First())
	defer stop()
	store, err := backup.Open(ctx, c.Args().First(), false)
	if err != nil {
		return nil, nil, err
	}
	all, err := backup.Load(ctx, store)
	return store, all, err
}

func (a *app) backupInspect() *cli.Command {
	return &cli.Command{
		Name: "inspect", Usage: "show all there is to know of a backup", ArgsUsage: "DEST BACKUP",
		Description: backupHelp + "\n\nBACKUP is its id, the start of that, or a volume's name for its newest one.",
		Action: a.untimed(2, 2, func(ctx context.Context, c *cli.Context) error {
			_, all, err := a.backups(ctx, c)
			if err != nil {
				return err
			}
			m, err := all.Find(c.Args().Get(1))
			if err != nil {
				return err
			}
			chain, missing := all.Chain(m)
			if a.asJSON {
				return firstError(a.printJSON(summary(m)), missing)
			}
			var f facts
			f.add("Backup", "%s", m.ID)
			f.add("Volume", "%s (%s)", m.Name, m.Volume)
			f.add("Cluster", "%s", m.Cluster)
			f.add("Snapshot", "%s, guid %d", m.Snapshot.Name, m.Snapshot.GUID)
			f.add("Taken", "%s", a.moment(m.Snapshot.Taken))
			f.add("Made", "%s, in %s", a.moment(m.Began), age(m.Ended.Sub(m.Began)))
			f.add("Size", "%s, stored as %s in %s", size(m.Size), size(m.Stored()), plural(m.Pieces(), "chunk"))
			for _, key := range m.Recipients {
				f.add("Encrypted to", "%s", key)
			}
			if m.Marked() {
				f.add("Marked", "with a secret, which --auth-key of verify and restore compares")
			}
			for _, b := range chain[:max(0, len(chain)-1)] {
				f.add("Needs", "%s, %s", b.ID, size(b.Size))
			}
			for _, k := range slices.Sorted(maps.Keys(m.Options)) {
				f.add("Option", "%s=%s", k, m.Options[k])
			}
			f.print(a.stdout)
			return missing
		}),
	}
}

func (a *app) backupVerify() *cli.Command {
	return &cli.Command{
		Name: "verify", Usage: "read backups, with what they stand on, and print the ids of those that are whole", ArgsUsage: "DEST [BACKUP...]",
		Description: backupHelp + "\n\nWithout BACKUP it is all of them. No key is needed; with one, it is also seen that they can be decrypted.",
		Flags:       []cli.Flag{identity(), authKey(authDemands)},
		Action: a.untimed(1, -1, func(ctx context.Context, c *cli.Context) error {
			keys, err := a.keys(c)
			if err != nil {
				return err
			}
			auth, err := a.auth(c)
			if err != nil {
				return err
			}
			store, all, err := a.backups(ctx, c)
			if err != nil {
				return err
			}
			refs := c.Args().Slice()[1:]
			if len(refs) == 0 {
				for _, m := range all.Backups {
					refs = append(refs, m.ID)
				}
			}
			read := map[string]error{} // each once, however many stand on it
			err = a.each(refs, func(ref string) (string, error) {
				m, err := all.Find(ref)
				if err != nil {
					return "", err
				}
				chain, err := all.Chain(m)
				if err != nil {
					return "", err
				}
				for _, b := range chain {
					err, ok := read[b.ID]
					if !ok {
						p := a.meter(ctx, fmt.Sprintf("%s: reading backup %s", b.Name, b.ID), b.Size)
						if err = auth.Refused(b); err == nil {
							err = backup.Verify(ctx, store, b, keys, p.more)
						}
						p.end()
						read[b.ID] = err
					}
					switch {
					case err != nil && b != m:
						return "", fmt.Errorf("backup %s cannot be restored, for it stands on another: %w", m.ID, err)
					case err != nil:
						return "", err
					case b.Removed():
						return "", volume.Errorf(volume.CodeRefused, "backup %s is being removed", b.ID)
					}
				}
				return m.ID, nil
			})
			return firstError(err, a.broken(all))
		}),
	}
}

// keys are those of --identity, nil without.
func (a *app) keys(c *cli.Context) (*backup.Keys, error) {
	if !c.IsSet("identity") {
		return nil, nil
	}
	return fromFile(c.String("identity"), "the secret keys", backup.ParseKeys)
}

// auth is the secret of --auth-key, nil without.
func (a *app) auth(c *cli.Context) (*backup.Auth, error) {
	if !c.IsSet("auth-key") {
		return nil, nil
	}
	return fromFile(c.String("auth-key"), "the secret", backup.ParseAuth)
}

func fromFile[T any](name, what string, parse func(io.Reader) (T, error)) (none T, err error) {
	f, err := os.Open(name)
	if err != nil {
		var e *fs.PathError
		if errors.As(err, &e) {
			err = e.Err
		}
		return none, volume.Errorf(volume.CodeInvalid, "%s in %.100q cannot be read: %v", what, name, err)
	}
	defer f.Close()
	return parse(f)
}

const restoreHelp = `The volume is a new one, made on the node that this is typed on; none is overwritten. It has the options that
the original had, but no ports, and, in another cluster, no preferences of place; -o changes them, and -o KEY=
drops one. What is interrupted is gone on with by the same command. Nothing that is damaged gets into a volume.`

func restoreFlags() []cli.Flag {
	return []cli.Flag{identity(), authKey(authDemands), &cli.StringSliceFlag{Name: "option", Aliases: []string{"o"}, Usage: "`KEY=VALUE` as in flockctl volume create; repeat it for several"}}
}

func (a *app) backupRestore() *cli.Command {
	return &cli.Command{
		Name: "restore", Usage: "make a volume of a backup and print its name", ArgsUsage: "DEST BACKUP NAME",
		Description: backupHelp + "\n\nBACKUP is its id, the start of that, or a volume's name for its newest one.\n" + restoreHelp,
		Flags:       restoreFlags(),
		Action:      a.untimed(3, 3, a.restoreBackup),
	}
}

func (a *app) importCommand() *cli.Command {
	return &cli.Command{
		Name: "import", Usage: "make a volume of what flockctl export wrote, from the standard input, or of a dataset that is there", ArgsUsage: "NAME|POOL/DATASET [NAME]",
		Description: "With NAME alone it reads the standard input. " + restoreHelp + "\n\n" + importHelp,
		Flags: append(restoreFlags(),
			&cli.StringFlag{Name: "node", Usage: "the dataset is on `NODE`; this one unless given"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be done to the dataset, or why it cannot be, and do nothing"},
		),
		Action: a.untimed(1, 2, func(ctx context.Context, c *cli.Context) error {
			// No volume's name has a slash in it, and every dataset's that can be one.
			if from := c.Args().First(); strings.Contains(from, "/") {
				return a.importDataset(ctx, c, from)
			}
			switch {
			case c.NArg() > 1:
				return usage(c, "unexpected argument %q: a stream has one name, and %.100q is not POOL/DATASET", c.Args().Get(1), c.Args().First())
			case c.IsSet("node") || c.IsSet("dry-run"):
				return usage(c, "--node and --dry-run are for a dataset, and %.100q is not POOL/DATASET", c.Args().First())
			}
			opts, keys, auth, err := a.restoreOptions(c, c.Args().First())
			if err != nil {
				return err
			}
			in, err := backup.OpenArchive(bufio.NewReaderSize(a.stdin, 1<<20), keys, auth)
			if err != nil {
				return err
			}
			chain := []*backup.Manifest{in.Manifest}
			id := restoreID(c.Args().First(), chain)
			if auth != nil {
				// Whose pieces these were is known at the end only: what an earlier one left is not gone on with.
				id = restoreID(rand.Text(), chain)
			}
			return a.restore(ctx, id, c.Args().First(), opts, chain, keys, auth, func(*backup.Manifest) io.Reader { return in.Stream() })
		}),
	}
}

const importHelp = `With POOL/DATASET it is that dataset, of the pool that flocker uses on its node, with its files and snapshots:
it is renamed, and nothing is copied but to its replicas. It may be in use by nobody, is unmounted from where it
was, and is a file system without others in it, neither encrypted nor shared. The volume is all of it, and
has its name unless another is given; it keeps properties that volumes may have, and a refquota as its size.`

// importDataset makes a volume of a dataset.
func (a *app) importDataset(ctx context.Context, c *cli.Context, from string) error {
	for _, name := range []string{"identity", "auth-key"} {
		if c.IsSet(name) {
			return usage(c, "--%s is for a stream, and %.100q is a dataset", name, from)
		}
	}
	name := c.Args().Get(1)
	if name == "" {
		name = from[strings.LastIndexByte(from, '/')+1:]
	}
	if err := volume.ValidateName(name); err != nil {
		return err
	}
	opts, err := keyValues(c, c.StringSlice("option"))
	if err != nil {
		return err
	}
	maps.DeleteFunc(opts, func(_, value string) bool { return value == "" })
	req := api.ImportRequest{Dataset: from, Name: name, Options: opts, DryRun: c.Bool("dry-run")}
	ctx, cancel := a.within(ctx)
	defer cancel()
	if ref := c.String("node"); ref != "" {
		n, err := a.client.Node(ctx, ref)
		if err != nil {
			return err
		}
		req.Node = string(n.ID)
	}
	stop := func() {}
	if !req.DryRun {
		stop = a.making(ctx, name)
	}
	i, err := a.client.Import(ctx, req)
	stop()
	switch {
	case err != nil:
		return err
	case i.Volume != nil:
		return a.made(*i.Volume)
	case a.asJSON:
		return a.printJSON(i)
	case a.quiet:
		return nil
	}
	var f facts
	f.add("Dataset", "%s on %s", i.Dataset, i.Node)
	f.add("Volume", "%s, if it is done", name)
	f.add("Holds", "%s, on disk %s with %s", size(i.Data), size(i.Used), plural(len(i.Snapshots), "snapshot"))
	for _, s := range i.Steps {
		f.add("Step", "%s", s)
	}
	for _, k := range slices.Sorted(maps.Keys(i.Options)) {
		f.add("Option", "%s=%s", k, i.Options[k])
	}
	f.print(a.stdout)
	return nil
}

// restoreOptions are what is given to make a volume of a backup.
func (a *app) restoreOptions(c *cli.Context, name string) (opts map[string]string, keys *backup.Keys, auth *backup.Auth, err error) {
	if err = volume.ValidateName(name); err != nil {
		return
	}
	if opts, err = keyValues(c, c.StringSlice("option")); err != nil {
		return
	}
	if keys, err = a.keys(c); err != nil {
		return
	}
	auth, err = a.auth(c)
	return
}

func (a *app) restoreBackup(ctx context.Context, c *cli.Context) error {
	opts, keys, auth, err := a.restoreOptions(c, c.Args().Get(2))
	if err != nil {
		return err
	}
	store, all, err := a.backups(ctx, c)
	if err != nil {
		return err
	}
	m, err := all.Find(c.Args().Get(1))
	if err != nil {
		return err
	}
	chain, err := all.Chain(m)
	if err != nil {
		return err
	}
	if err := a.allThere(ctx, store, chain); err != nil {
		return err
	}
	return a.restore(ctx, restoreID(c.Args().Get(2), chain), c.Args().Get(2), opts, chain, keys, auth, func(m *backup.Manifest) io.Reader { return backup.Stream(ctx, store, m, keys) })
}

// allThere looks whether all pieces of backups are there.
func (a *app) allThere(ctx context.Context, store backup.Store, chain []*backup.Manifest) error {
	stop := a.waiting(ctx, "looking for all pieces of "+plural(len(chain), "backup"))
	defer stop()
	for _, m := range chain {
		if err := backup.Complete(ctx, store, m); err != nil {
			return err
		}
	}
	return nil
}

// restore makes a volume of a chain of backups.
func (a *app) restore(ctx context.Context, id, name string, given map[string]string, chain []*backup.Manifest, keys *backup.Keys, auth *backup.Auth, stream func(*backup.Manifest) io.Reader) error {
	last := chain[len(chain)-1]
	if key, _ := volume.WholeOption(); hasKey(given, key) {
		return volume.Errorf(volume.CodeInvalid, "a volume has its files where its backup has them: %s cannot be chosen", key).WithHint("leave that option out")
	}
	status, err := timed(a, ctx, a.client.Status)
	if err != nil {
		return err
	}
	opts := restoredOptions(last, status.ClusterID)
	maps.Copy(opts, given)
	left := notRestored(last.Options, opts)
	maps.DeleteFunc(opts, func(_, value string) bool { return value == "" })
	req := api.BeginRestoreRequest{ID: id, Name: name, Options: opts}
	for _, m := range chain {
		if err := auth.Refused(m); err != nil {
			return err
		}
		if m.Encrypted() && keys == nil {
			return volume.Errorf(volume.CodeInvalid, "backup %s is encrypted, and no key is given", m.ID).WithHint("--identity FILE gives the one of a recipient")
		}
		if !m.Encrypted() && keys != nil {
			return volume.Errorf(volume.CodeRefused, "backup %s is not encrypted, although a key is given: somebody may have put it there", m.ID).WithHint("without --identity it is restored as it is")
		}
		req.GUIDs, req.Bytes = append(req.GUIDs, m.Snapshot.GUID), req.Bytes+m.Size
	}
	at, err := timed(a, ctx, func(ctx context.Context) (api.RestoreState, error) { return a.client.BeginRestore(ctx, req) })
	if volume.CodeOf(err) == volume.CodeInvalid {
		// It may be one of the backup's own.
		return fmt.Errorf("backup %s: %w", last.ID, err)
	}
	if err != nil {
		return err
	}
	if at.Have > 0 && !a.quiet {
		fmt.Fprintf(a.stderr, "flockctl: %d of %s were restored already; going on\n", at.Have, plural(len(chain), "backup"))
	}
	if len(left) > 0 && !a.quiet {
		a.say("flockctl: of the original's options %s is left out: -o NAME=VALUE sets it here\n", strings.Join(left, ", "))
	}
	p := a.meter(ctx, name, req.Bytes)
	defer p.end()
	for i, m := range chain {
		if i < at.Have {
			p.skip(m.Size)
			continue
		}
		if err := a.restoreOne(ctx, req.ID, m, stream(m), p); err != nil {
			return err
		}
	}
	p.end()
	stop := a.making(ctx, name)
	defer stop()
	v, err := timed(a, ctx, func(ctx context.Context) (api.Volume, error) {
		return a.client.FinishRestore(ctx, req.ID, api.FinishRestoreRequest{Name: name, GUID: last.Snapshot.GUID, Options: opts})
	})
	if err != nil {
		return err
	}
	stop()
	own := 0
	for _, m := range chain {
		if m.Own {
			own++
		}
	}
	if own > 0 && !a.quiet {
		fmt.Fprintf(a.stderr, "flockctl: %s has snapshots that were taken for backups (%d); flockctl snapshot remove takes them away\n", name, own)
	}
	return a.made(v)
}

// restoreOne has the node receive one stream. What cannot be read counts for more than what
// the node says of that; with what is damaged nobody goes on.
func (a *app) restoreOne(ctx context.Context, id string, m *backup.Manifest, stream io.Reader, p *meter) error {
	in := &readStream{r: stream, p: p}
	req := api.ReceiveRequest{GUID: m.Snapshot.GUID}
	if m.Base != nil {
		req.Base = m.Base.GUID
	}
	err := a.client.ReceiveRestore(ctx, id, req, in)
	failed := in.end()
	if failed == nil {
		return err
	}
	if volume.CodeOf(failed) == volume.CodeRefused {
		_, err := timed(a, context.WithoutCancel(ctx), func(ctx context.Context) (any, error) { return nil, a.client.DropRestore(ctx, id) })
		if err != nil {
			a.say("flockctl: what was restored of it stays for a while: %v\n", err)
		}
	}
	return failed
}

// readStream is a stream whose error is kept, for http tells it in its own words. What http still
// reads when the node has answered counts no more.
type readStream struct {
	r io.Reader
	p *meter

	mu    sync.Mutex
	err   error
	ended bool
}

func (w *readStream) Read(b []byte) (int, error) {
	n, err := w.r.Read(b)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return 0, io.ErrClosedPipe
	}
	w.p.more(int64(n))
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}

// end says why it could not be read, if it could not.
func (w *readStream) end() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	return w.err
}

// restoreID is the same for the same backup and name, so that what was interrupted is found. What
// somebody has put in its place since is another one.
func restoreID(name string, chain []*backup.Manifest) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n", name)
	for _, m := range chain {
		fmt.Fprintf(h, "%s %d %s\n", m.ID, m.Snapshot.GUID, m.Sum())
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func hasKey(m map[string]string, key string) bool { _, ok := m[key]; return ok }

// restoredOptions are those of a volume that is made of a backup. Ports are the original's, and
// nodes and zones mean something in its own cluster only.
func restoredOptions(m *backup.Manifest, cluster string) map[string]string {
	opts := maps.Clone(m.Options)
	if opts == nil {
		opts = map[string]string{}
	}
	delete(opts, "ports")
	if m.Cluster != cluster {
		for _, name := range []string{"prefer", "avoid", "zone"} {
			delete(opts, name)
		}
	}
	return opts
}

// notRestored names the options of an original that what is made of it has neither as they were nor otherwise.
func notRestored(original, restored map[string]string) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(original)) {
		if original[name] != "" && !hasKey(restored, name) {
			names = append(names, name)
		}
	}
	return names
}

func (a *app) backupRemove() *cli.Command {
	return &cli.Command{
		Name: "remove", Aliases: []string{"rm"}, Usage: "remove backups, for good", ArgsUsage: "DEST BACKUP...",
		Description: backupHelp + "\n\nBACKUP is its id. One that another is an increment on is removed only with that.",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}},
		Action:      a.untimed(2, -1, a.removeBackups),
	}
}

func (a *app) removeBackups(ctx context.Context, c *cli.Context) error {
	store, all, err := a.backups(ctx, c)
	if err != nil {
		return err
	}
	refs := c.Args().Slice()[1:]
	for _, ref := range refs {
		same := func(m *backup.Manifest) bool { return m.ID == ref }
		if !slices.ContainsFunc(all.Backups, same) && !slices.ContainsFunc(all.Partial, same) {
			return volume.Errorf(volume.CodeNotFound, "there is no backup %.100q", ref).WithHint("flockctl backup list shows their ids")
		}
	}
	if err := all.Removable(refs); err != nil {
		return err
	}
	yes := c.Bool("yes")
	if !yes && !a.terminal {
		return volume.Errorf(volume.CodeRefused, "nothing was removed, since nobody can be asked here").WithHint("--yes removes without asking")
	}
	in := bufio.NewReader(a.stdin)
	// Increments go before what they stand on, so that what is cut short leaves whole ones.
	var list []*backup.Manifest
	for _, m := range slices.Concat(all.Backups, all.Partial) {
		if slices.Contains(refs, m.ID) {
			list = append([]*backup.Manifest{m}, list...)
		}
	}
	refs = nil
	for _, m := range list {
		refs = append(refs, m.ID)
	}
	return a.each(refs, func(ref string) (string, error) {
		m := list[slices.Index(refs, ref)]
		if !yes {
			question := fmt.Sprintf("Backup %s of volume %s, of %s, will be removed and cannot be brought back.\nType the name of the volume to remove it: ",
				m.ID, m.Name, m.Snapshot.Taken.UTC().Format(time.DateOnly))
			if err := a.typed(ctx, in, "backup of volume", m.Name, question); err != nil {
				return "", err
			}
		}
		if err := a.removing(ctx, store, m); err != nil {
			return "", err
		}
		// Nothing in the store names it any more, so that no later backup would remove it.
		if m.Own {
			job := &backupJob{app: a, volume: api.Volume{ID: m.Volume, Name: m.Name}}
			job.dropSnapshot(ctx, m.Snapshot.Name, m.Snapshot.GUID)
		}
		return m.ID, nil
	})
}
