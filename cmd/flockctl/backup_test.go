package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	agekey "filippo.io/age"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/api/apitest"
	"github.com/flocker-io/flocker/internal/backup"
	"github.com/flocker-io/flocker/internal/volume"
)

// backups is a flockd that keeps still while it is backed up, and a place for it.
type backups struct {
	*testing.T
	server
	dest string
	now  time.Time
}

func newBackups(t *testing.T) *backups {
	b := &backups{T: t, server: server{socket: filepath.Join(t.TempDir(), "s")}, dest: filepath.Join(t.TempDir(), "backups"), now: apitest.Now}
	if err := b.start(apitest.Cluster()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.stop)
	return b
}

// try runs flockctl; each run is a minute after the one before.
func (b *backups) try(in io.Reader, args ...string) (out, said string, code int) {
	var stdout, stderr bytes.Buffer
	b.now = b.now.Add(time.Minute)
	now := b.now
	code = run(append([]string{"--socket", b.socket}, args...), world{stdin: in, stdout: &stdout, stderr: &stderr, now: func() time.Time { return now }})
	return stdout.String(), stderr.String(), code
}

func (b *backups) run(args ...string) string {
	b.Helper()
	out, said, code := b.try(strings.NewReader(""), args...)
	if code != 0 {
		b.Fatalf("flockctl %s: exit %d, %s", strings.Join(args, " "), code, said)
	}
	return strings.TrimSpace(out)
}

// fails runs what is to be refused with that exit code and those words.
func (b *backups) fails(code int, words string, args ...string) {
	b.Helper()
	if out, said, got := b.try(strings.NewReader(""), args...); got != code || !strings.Contains(said, words) {
		b.Errorf("flockctl %s: exit %d, %q, %s; want %d and %q", strings.Join(args, " "), got, out, said, code, words)
	}
}

// snapshots of pgdata that were taken for backups.
func (b *backups) snapshots() (out []string) {
	b.Helper()
	for _, line := range strings.Fields(b.run("snapshot", "list", "pgdata", "-q")) {
		if _, name, _ := strings.Cut(line, "@"); strings.HasPrefix(name, "backup-") {
			out = append(out, name)
		}
	}
	return out
}

// streams are those of snapshots since others, as the fake sends them.
func streams(guids ...uint64) (out [][]byte) {
	base := uint64(0)
	for _, g := range guids {
		out = append(out, apitest.Stream(g, base))
		base = g
	}
	return out
}

// chunk is the one chunk of a backup.
func (b *backups) chunk(id string) string {
	b.Helper()
	list, err := filepath.Glob(filepath.Join(b.dest, "*", id, "000000-*"))
	if err != nil || len(list) != 1 {
		b.Fatalf("chunks of %s: %q, %v", id, list, err)
	}
	return list[0]
}

func flip(t testing.TB, name string) {
	t.Helper()
	c, err := os.ReadFile(name)
	if err == nil {
		c[len(c)/2] ^= 1
		err = os.WriteFile(name, c, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// sealed is a manifest with the checksum of its body.
func sealed(body []byte) []byte {
	sum := sha256.Sum256(body)
	return append(fmt.Appendf(nil, "flocker-backup 1 %x\n", sum), body...)
}

func equal(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }

// A full one, increments on it, and back again.
func TestBackupAndRestore(t *testing.T) {
	b := newBackups(t)
	const before = 102 // the guid of before-upgrade
	full := b.run("backup", "create", "pgdata@before-upgrade", b.dest)
	if again := b.run("backup", "create", "pgdata@before-upgrade", b.dest); again != full {
		t.Errorf("the same snapshot once more: %s, was %s", again, full)
	}
	one := b.run("backup", "create", "pgdata", b.dest)
	taken := b.snapshots()
	two := b.run("backup", "create", "pgdata", b.dest)
	if now := b.snapshots(); len(taken) != 1 || len(now) != 1 || now[0] == taken[0] {
		t.Errorf("snapshots for backups: %v, then %v", taken, now)
	}
	if got := strings.Fields(b.run("backup", "list", b.dest, "-q")); !slices.Equal(got, []string{full, one, two}) {
		t.Errorf("listed %q", got)
	}
	var list struct {
		Backups []struct {
			ID       string
			Base     *struct{ ID string }
			Snapshot struct {
				GUID uint64 `json:"guid,string"`
			}
			Own bool
		}
	}
	if err := json.Unmarshal([]byte(b.run("backup", "list", b.dest, "pgdata", "--json")), &list); err != nil || len(list.Backups) != 3 {
		t.Fatal(list, err)
	}
	if l := list.Backups; l[0].Base != nil || l[0].Own || l[1].Base.ID != full || !l[1].Own || l[2].Base.ID != one {
		t.Errorf("listed %+v", l)
	}
	if out := b.run("backup", "inspect", b.dest, "pgdata"); !strings.Contains(out, "Needs") || !strings.Contains(out, two) || !strings.Contains(out, full) {
		t.Errorf("inspected: %s", out)
	}
	if got := strings.Fields(b.run("backup", "verify", b.dest)); len(got) != 3 {
		t.Errorf("verified %q", got)
	}

	guids := []uint64{before, list.Backups[1].Snapshot.GUID, list.Backups[2].Snapshot.GUID}
	if got := b.run("backup", "restore", b.dest, "pgdata", "back", "-o", "replicas=0"); got != "back" {
		t.Errorf("restored %q", got)
	}
	if got := b.fake.Received(); !equal(got, streams(guids...)) {
		t.Errorf("received %q", got)
	}
	b.run("backup", "restore", b.dest, one, "back1")
	if got := b.fake.Received(); !equal(got, streams(guids[:2]...)) {
		t.Errorf("received %q", got)
	}
	b.fails(4, `there is a volume "back" already`, "backup", "restore", b.dest, "pgdata", "back")
	b.fails(2, "zfs.flocker:subdir cannot be chosen", "backup", "restore", b.dest, "pgdata", "other", "-o", "zfs.flocker:subdir=.")
	b.fails(3, "there is no backup", "backup", "restore", b.dest, "nothing", "new")

	// A full one begins anew, and old ones go as far as nothing needs them.
	b.fails(4, "is needed", "backup", "remove", b.dest, one, "--yes")
	anew := b.run("backup", "create", "pgdata", b.dest, "--full", "--keep", "2")
	if got := strings.Fields(b.run("backup", "list", b.dest, "-q")); !slices.Equal(got, []string{full, one, two, anew}) {
		t.Errorf("kept %q", got)
	}
	last := b.run("backup", "create", "pgdata", b.dest, "--keep", "2")
	if got := strings.Fields(b.run("backup", "list", b.dest, "-q")); !slices.Equal(got, []string{anew, last}) {
		t.Errorf("kept %q", got)
	}
	chained := b.run("backup", "create", "pgdata", b.dest, "--increments", "1")
	if out := b.run("backup", "inspect", b.dest, chained); strings.Contains(out, "Needs") {
		t.Errorf("after one increment: %s", out)
	}
	b.fails(4, "nobody can be asked", "backup", "remove", b.dest, last)
	b.run("backup", "remove", b.dest, anew, last, chained, "-y")
	if left, err := os.ReadDir(b.dest); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// One flipped byte is refused, before the node gets any of what it is in.
func TestBackupDamaged(t *testing.T) {
	b := newBackups(t)
	full := b.run("backup", "create", "pgdata@before-upgrade", b.dest)
	one := b.run("backup", "create", "pgdata", b.dest)
	flip(t, b.chunk(one))
	b.fails(4, "its checksum does not fit", "backup", "verify", b.dest)
	b.fails(4, "its checksum does not fit", "backup", "restore", b.dest, one, "back")
	if len(b.fake.Received()) != 0 {
		t.Errorf("received %q, and it was not thrown away", b.fake.Received())
	}
	b.run("backup", "restore", b.dest, full, "back")
	if err := os.Remove(b.chunk(one)); err != nil {
		t.Fatal(err)
	}
	b.fails(4, "it is not there", "backup", "restore", b.dest, one, "other")
	// What cannot be read is not passed over.
	flip(t, filepath.Join(filepath.Dir(b.chunk(full)), "manifest"))
	b.fails(4, "cannot be read", "backup", "list", b.dest)
	b.fails(4, "which is not there", "backup", "restore", b.dest, one, "other")
	b.fails(4, "may need", "backup", "remove", b.dest, one, "-y")
}

// What was interrupted is gone on with, of the same snapshot, and no other is taken.
func TestBackupInterrupted(t *testing.T) {
	b := newBackups(t)
	b.run("backup", "create", "pgdata@before-upgrade", b.dest)
	one := b.run("backup", "create", "pgdata", b.dest)
	// Without its manifest it is one that was not finished.
	at := filepath.Dir(b.chunk(one))
	if err := os.Rename(filepath.Join(at, "manifest"), filepath.Join(at, "was")); err != nil {
		t.Fatal(err)
	}
	partial := func() {
		t.Helper()
		m, err := os.ReadFile(filepath.Join(at, "was"))
		if err != nil {
			t.Fatal(err)
		}
		_, body, _ := strings.Cut(string(m), "\n")
		var x map[string]any
		d := json.NewDecoder(strings.NewReader(body))
		d.UseNumber()
		if err := d.Decode(&x); err != nil {
			t.Fatal(err)
		}
		delete(x, "chunks")
		delete(x, "ended")
		x["size"] = 0
		y, err := json.Marshal(x)
		if err == nil {
			err = os.WriteFile(filepath.Join(at, "partial"), sealed(y), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	partial()
	if _, said, code := b.try(nil, "backup", "list", b.dest); code != 0 || !strings.Contains(said, "was never finished") {
		t.Errorf("exit %d, %s", code, said)
	}
	b.fails(4, "was never finished", "backup", "restore", b.dest, one, "back")
	taken := b.snapshots()
	out, said, code := b.try(nil, "backup", "create", "pgdata", b.dest)
	if code != 0 || strings.TrimSpace(out) != one || !strings.Contains(said, "going on with backup "+one) {
		t.Errorf("exit %d, %q, %s", code, out, said)
	}
	if now := b.snapshots(); !slices.Equal(now, taken) {
		t.Errorf("snapshots for backups: %v, were %v", now, taken)
	}
	if _, err := os.Stat(filepath.Join(at, "was")); err == nil {
		t.Error("what does not belong to it is left")
	}
	b.run("backup", "restore", b.dest, one, "back")
}

// forge has the manifest of a finished backup say something else.
func (b *backups) forge(id string, change func(map[string]any)) {
	b.Helper()
	name := filepath.Join(filepath.Dir(b.chunk(id)), "manifest")
	m, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	_, body, _ := strings.Cut(string(m), "\n")
	var x map[string]any
	d := json.NewDecoder(strings.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&x); err != nil {
		b.Fatal(err)
	}
	change(x)
	y, err := json.Marshal(x)
	if err == nil {
		err = os.WriteFile(name, sealed(y), 0o600)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// begun makes a finished backup one that somebody writes, or has left.
func (b *backups) begun(id string, change func(map[string]any), heard time.Time) {
	b.Helper()
	at := filepath.Dir(b.chunk(id))
	m, err := os.ReadFile(filepath.Join(at, "manifest"))
	if err != nil {
		b.Fatal(err)
	}
	_, body, _ := strings.Cut(string(m), "\n")
	var x map[string]any
	d := json.NewDecoder(strings.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&x); err != nil {
		b.Fatal(err)
	}
	delete(x, "chunks")
	delete(x, "ended")
	x["size"] = 0
	if change != nil {
		change(x)
	}
	y, err := json.Marshal(x)
	if err == nil {
		err = os.WriteFile(filepath.Join(at, "partial"), sealed(y), 0o600)
	}
	if err == nil && !heard.IsZero() {
		err = os.WriteFile(filepath.Join(at, "writer"), []byte("somebody "+heard.UTC().Format(time.RFC3339)+"\n"), 0o600)
	}
	if err == nil {
		err = os.Remove(filepath.Join(at, "manifest"))
	}
	if err != nil {
		b.Fatal(err)
	}
}

// What another flockctl writes is left alone until it is dead, or said to be.
func TestBackupBusy(t *testing.T) {
	b := newBackups(t)
	full := b.run("backup", "create", "pgdata@before-upgrade", b.dest)
	one := b.run("backup", "create", "pgdata", b.dest)
	taken := b.snapshots()
	b.begun(one, nil, b.now)
	b.fails(4, "is being made", "backup", "create", "pgdata", b.dest)
	b.fails(4, "is being made", "backup", "create", "pgdata", b.dest, "--full", "--keep", "1")
	b.fails(4, "is being made", "backup", "remove", b.dest, one, "-y")
	b.fails(4, "is needed", "backup", "remove", b.dest, full, "-y")
	if got := b.run("backup", "create", "pgdata", b.dest, "--resume"); got != one || !slices.Equal(b.snapshots(), taken) {
		t.Errorf("made %s, snapshots %v", got, b.snapshots())
	}
	b.begun(one, nil, b.now)
	b.now = b.now.Add(15 * time.Minute)
	if got := b.run("backup", "create", "pgdata", b.dest); got != one {
		t.Errorf("made %s", got)
	}
	// What is old is finished, and then there is one of today.
	b.begun(one, nil, time.Time{})
	b.now = b.now.Add(24 * time.Hour)
	if got := b.run("backup", "create", "pgdata", b.dest); got == one || len(strings.Fields(b.run("backup", "verify", b.dest))) != 3 {
		t.Errorf("made %s", got)
	}
}

// Without a name none is gone on with that had one, and with a name only what has it now.
func TestBackupGoesOnWithItsOwn(t *testing.T) {
	b := newBackups(t)
	old := b.run("backup", "create", "pgdata@before-upgrade", b.dest)
	b.begun(old, nil, time.Time{})
	if got := b.run("backup", "create", "pgdata", b.dest); got == old || len(b.snapshots()) != 1 {
		t.Errorf("made %s, snapshots %v", got, b.snapshots())
	}
	other := map[string]any{"name": "before-upgrade", "guid": "7", "taken": b.now}
	if got := b.run("backup", "create", "pgdata@before-upgrade", b.dest); got != old {
		t.Errorf("made %s", got)
	}
	b.begun(old, func(x map[string]any) { x["snapshot"] = other }, time.Time{})
	if got := b.run("backup", "create", "pgdata@before-upgrade", b.dest); got == old {
		t.Errorf("made %s", got)
	}
	// Who cannot be asked has it, for all that is known: no full one, and none is begun anew.
	b = newBackups(t)
	once := func(words string, args ...string) {
		t.Helper()
		asked := func() (n int) {
			for _, c := range b.fake.Calls() {
				if c.Method == "Browse" {
					n++
				}
			}
			return n
		}
		before := asked()
		b.fails(6, words, args...)
		if n := asked() - before; n != 1 {
			t.Errorf("flockctl %s: it was asked %d times", strings.Join(args, " "), n)
		}
	}
	one := b.run("backup", "create", "pgdata", b.dest)
	b.begun(one, nil, time.Time{})
	b.fake.Fail("Browse", volume.Errorf(volume.CodeUnavailable, "4 snapshots are being read there already"))
	once("being read", "backup", "create", "pgdata", b.dest)
	b.fake.Fail("Browse", nil)
	if got := b.run("backup", "create", "pgdata", b.dest); got != one {
		t.Errorf("made %s", got)
	}
	b.fake.Fail("Browse", volume.Errorf(volume.CodeUnavailable, "4 snapshots are being read there already"))
	once("being read", "backup", "create", "pgdata", b.dest)
	if got := b.snapshots(); len(got) != 1 {
		t.Errorf("snapshots %v", got)
	}
}

// --keep spares the one just made; increments and "already there" are only on what can be
// restored by the same keys; and verify prints nothing that stands on what is damaged.
func TestBackupCanBeRestored(t *testing.T) {
	b := newBackups(t)
	b.run("backup", "create", "pgdata", b.dest)
	b.run("backup", "create", "pgdata", b.dest)
	if got := b.run("backup", "create", "pgdata@before-upgrade", b.dest, "--full", "--keep", "1"); !strings.Contains(b.run("backup", "list", b.dest, "-q"), got) {
		t.Errorf("%s was removed", got)
	}
	id, err := agekey.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	key := id.Recipient().String()
	if out := b.run("backup", "inspect", b.dest, b.run("backup", "create", "pgdata", b.dest, "-r", key)); strings.Contains(out, "Needs") || !strings.Contains(out, key) {
		t.Errorf("to another key: %s", out)
	}
	first := b.run("backup", "create", "pgdata@before-upgrade", b.dest)
	if got := b.run("backup", "create", "pgdata@before-upgrade", b.dest, "-r", key); got == first {
		t.Error("what is not encrypted is said to be")
	}
	if got := b.run("backup", "create", "pgdata@before-upgrade", b.dest, "--full"); got == first {
		t.Error("no full one was made")
	}

	b = newBackups(t)
	full := b.run("backup", "create", "pgdata@before-upgrade", b.dest)
	one := b.run("backup", "create", "pgdata", b.dest)
	flip(t, b.chunk(full))
	if out, said, code := b.try(nil, "backup", "verify", b.dest, one); code != 4 || out != "" || !strings.Contains(said, "stands on another") {
		t.Errorf("verified: exit %d, %q, %s", code, out, said)
	}
	if err := os.Remove(b.chunk(full)); err != nil {
		t.Fatal(err)
	}
	if got := b.run("backup", "inspect", b.dest, b.run("backup", "create", "pgdata", b.dest)); strings.Contains(got, "Needs") {
		t.Errorf("on what is damaged: %s", got)
	}
	again := b.run("backup", "create", "pgdata@before-upgrade", b.dest)
	if again == full {
		t.Error("what is damaged counts as there")
	}
	b.fails(2, "size", "backup", "restore", b.dest, again, "new", "-o", "size=1Q")
	b.fails(4, "is not encrypted", "backup", "restore", b.dest, again, "new", "-i", b.secret(id.String()))
}

// secret is a file with a key.
func (b *backups) secret(key string) string {
	b.Helper()
	name := filepath.Join(b.TempDir(), "key")
	if err := os.WriteFile(name, []byte(key+"\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	return name
}

// A store that takes nothing leaves no snapshot behind.
func TestBackupNowhere(t *testing.T) {
	b := newBackups(t)
	id := b.run("backup", "create", "pgdata", b.dest)
	had := b.snapshots()
	// A file where the volume's directory should be: nothing can be made below it.
	at := filepath.Dir(filepath.Dir(b.chunk(id)))
	if err := os.Rename(at, at+"-was"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, code := b.try(nil, "backup", "create", "pgdata", b.dest); code == 0 {
		t.Errorf("made %s", out)
	}
	if now := b.snapshots(); !slices.Equal(now, had) {
		t.Errorf("snapshots %v, were %v", now, had)
	}
}

// Where no base is left it is a full one, and said so; a snapshot that was taken in vain goes.
func TestBackupBases(t *testing.T) {
	b := newBackups(t)
	b.run("backup", "create", "pgdata", b.dest)
	b.run("snapshot", "remove", "pgdata@"+b.snapshots()[0], "--yes")
	out, said, code := b.try(nil, "backup", "create", "pgdata", b.dest)
	if code != 0 || !strings.Contains(said, "a full backup: ") || strings.Contains(b.run("backup", "inspect", b.dest, strings.TrimSpace(out)), "Needs") {
		t.Errorf("exit %d, %s", code, said)
	}
	had := b.snapshots()
	b.fake.Fail("Browse", volume.Errorf(volume.CodeUnavailable, "no node sends it"))
	b.fails(6, "no node sends it", "backup", "create", "pgdata", b.dest)
	if now := b.snapshots(); !slices.Equal(now, had) {
		t.Errorf("snapshots for backups: %v, were %v", now, had)
	}
}

// A stream is the same, and where it is encrypted only a key opens it.
func TestExportImport(t *testing.T) {
	b := newBackups(t)
	id, err := agekey.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	clear, _, code := b.try(nil, "export", "pgdata@before-upgrade")
	if code != 0 {
		t.Fatal(code)
	}
	if _, said, code := b.try(strings.NewReader(clear), "import", "one"); code != 0 || !equal(b.fake.Received(), streams(102)) {
		t.Errorf("exit %d, %s", code, said)
	}
	secret, _, code := b.try(nil, "backup", "create", "pgdata", "-", "--recipient", id.Recipient().String())
	if code != 0 || len(b.snapshots()) > 0 {
		t.Errorf("exit %d, snapshots %v", code, b.snapshots())
	}
	if _, said, code := b.try(strings.NewReader(secret), "import", "two"); code != 2 || !strings.Contains(said, "no key is given") {
		t.Errorf("exit %d, %s", code, said)
	}
	if _, said, code := b.try(strings.NewReader(secret), "import", "two", "--identity", key); code != 0 {
		t.Errorf("exit %d, %s", code, said)
	}
	bad := []byte(clear)
	bad[len(bad)/2] ^= 1
	for what, in := range map[string]string{"flipped": string(bad), "cut": clear[:len(clear)-2048], "half": clear[:len(clear)/2]} {
		if _, said, code := b.try(strings.NewReader(in), "import", "three"); code != 4 || !strings.Contains(said, "is damaged") {
			t.Errorf("%s: exit %d, %s", what, code, said)
		}
		if len(b.fake.Received()) > 0 {
			t.Errorf("%s: something is left", what)
		}
	}
	b.fails(2, "this is no backup", "import", "three")
	b.fails(3, "", "backup", "inspect", t.TempDir(), "three")
	b.fails(2, "is no place", "backup", "list", "ftp://x")

	// In a directory likewise.
	enc := b.run("backup", "create", "pgdata@before-upgrade", b.dest, "-r", id.Recipient().String())
	b.fails(2, "no key is given", "backup", "restore", b.dest, enc, "four")
	b.run("backup", "verify", b.dest, enc, "-i", key)
	b.run("backup", "restore", b.dest, enc, "four", "-i", key)
	if !equal(b.fake.Received(), streams(102)) {
		t.Error("it came out otherwise")
	}
	b.fails(2, "is no public key", "backup", "create", "pgdata", b.dest, "-r", "nonsense")
	err = filepath.WalkDir(b.dest, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		c, err := os.ReadFile(name)
		if bytes.Contains(c, []byte("snapshot 102 since")) {
			t.Errorf("%s has it in the clear", name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// With a secret, what somebody else has put into the store is not restored, not gone on with, and
// nothing begins to stand on it or goes for it.
func TestBackupAuthKey(t *testing.T) {
	b := newBackups(t)
	file := func(text string) string {
		name := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	key, other := file(strings.Repeat("k", 40)), file(strings.Repeat("o", 40))
	b.fails(2, "from 32 to 4096 characters", "backup", "create", "pgdata", b.dest, "--auth-key", file("short"))

	full := b.run("backup", "create", "pgdata", b.dest, "--auth-key", key)
	one := b.run("backup", "create", "pgdata", b.dest, "--auth-key", key)
	if out := b.run("backup", "inspect", b.dest, one); !strings.Contains(out, "Marked") || !strings.Contains(out, full) {
		t.Errorf("inspected: %s", out)
	}
	if got := strings.Fields(b.run("backup", "verify", b.dest, "--auth-key", key)); !slices.Equal(got, []string{full, one}) {
		t.Errorf("verified %q", got)
	}
	b.fails(4, "was not made with the secret", "backup", "verify", b.dest, "--auth-key", other)
	b.fails(4, "was not made with the secret", "backup", "restore", b.dest, one, "back", "--auth-key", other)
	b.run("backup", "restore", b.dest, one, "back", "--auth-key", key)
	b.run("backup", "restore", b.dest, one, "without")

	// Without it, and with it again, begins anew; what was made without one is neither counted nor removed.
	plain := b.run("backup", "create", "pgdata", b.dest)
	if out := b.run("backup", "inspect", b.dest, plain); strings.Contains(out, "Needs") || strings.Contains(out, "Marked") {
		t.Errorf("inspected: %s", out)
	}
	b.fails(4, "was made without --auth-key", "backup", "restore", b.dest, "pgdata", "new", "--auth-key", key)
	b.fails(4, "was made without --auth-key", "backup", "verify", b.dest, plain, "--auth-key", key)
	two := b.run("backup", "create", "pgdata", b.dest, "--auth-key", key, "--full", "--keep", "1")
	if got := strings.Fields(b.run("backup", "list", b.dest, "-q")); !slices.Equal(got, []string{plain, two}) {
		t.Errorf("kept %q", got)
	}

	// What is unfinished, and was not made with it: it is not finished with other options in our name.
	three := b.run("backup", "create", "pgdata", b.dest, "--auth-key", key, "--full")
	b.begun(three, func(x map[string]any) { x["options"] = map[string]string{"replicas": "0"} }, time.Time{})
	if got := b.run("backup", "create", "pgdata", b.dest, "--auth-key", key); got == three {
		t.Error("what somebody else began is gone on with")
	}

	// Nor are snapshots of people removed because the store says they were taken for a backup.
	b.forge(plain, func(x map[string]any) {
		x["snapshot"] = map[string]any{"name": "before-upgrade", "guid": "102", "taken": apitest.Now}
	})
	b.run("backup", "create", "pgdata", b.dest)
	if out := b.run("snapshot", "list", "pgdata", "-q"); !strings.Contains(out, "before-upgrade") {
		t.Errorf("left are %s", out)
	}

	made, _, code := b.try(nil, "export", "pgdata", "--auth-key", key)
	if code != 0 {
		t.Fatal(code)
	}
	if _, said, code := b.try(strings.NewReader(made), "import", "five", "--auth-key", other); code != 4 || !strings.Contains(said, "was not made with the secret") {
		t.Errorf("exit %d, %s", code, said)
	}
	if _, said, code := b.try(strings.NewReader(made), "import", "five", "--auth-key", key); code != 0 {
		t.Errorf("exit %d, %s", code, said)
	}
}

// All volumes of a profile, or all there are, and of these those of one node.
func TestBackupSeveral(t *testing.T) {
	of := func(name, profile, node string, deleted bool) api.Volume {
		v := api.Volume{Name: name, Spec: volume.Spec{Profile: profile}, Primary: api.NodeRef{ID: volume.NodeID(node)}}
		if deleted {
			v.Deleted = apitest.Now
		}
		return v
	}
	all := []api.Volume{of("a", "database", "n1", false), of("b", "default", "n1", false), of("c", "database", "n2", false), of("d", "database", "n1", true)}
	for want, got := range map[string][]api.Volume{
		"a b c": chosen(all, "", ""), "a c": chosen(all, "database", ""), "a": chosen(all, "database", "n1"), "a b": chosen(all, "", "n1"), "": chosen(all, "media", ""),
	} {
		var names []string
		for _, v := range got {
			names = append(names, v.Name)
		}
		if strings.Join(names, " ") != want {
			t.Errorf("chosen are %q, want %q", names, want)
		}
	}

	b := newBackups(t)
	list := func() (out []string) {
		t.Helper()
		var x struct{ Backups []struct{ Name string } }
		if err := json.Unmarshal([]byte(b.run("backup", "list", b.dest, "--json")), &x); err != nil {
			t.Fatal(err)
		}
		for _, m := range x.Backups {
			out = append(out, m.Name)
		}
		return out
	}
	if out := strings.Fields(b.run("backup", "create", "--profile", "database", "--here", "--keep", "3", b.dest)); len(out) != 1 || !slices.Equal(list(), []string{"pgdata"}) {
		t.Errorf("made %q: %q", out, list())
	}
	if out := strings.Fields(b.run("backup", "create", "--all", b.dest)); len(out) != 3 || !slices.Equal(list(), []string{"pgdata", "pgdata", "scratch", "uploads"}) {
		t.Errorf("made %q: %q", out, list())
	}
	at, err := filepath.Glob(filepath.Join(b.dest, "0b5e55ed00000001"))
	if err != nil || len(at) != 1 {
		t.Fatal(at, err)
	}
	if err := errors.Join(os.Rename(at[0], at[0]+"-was"), os.WriteFile(at[0], nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	// What fails keeps the others from nothing, and is told.
	out, said, code := b.try(nil, "backup", "create", "--all", b.dest)
	if code == 0 || len(strings.Fields(out)) != 2 || !strings.Contains(said, `volume "pgdata"`) {
		t.Errorf("exit %d, %q, %s", code, out, said)
	}
	if out, said, code := b.try(nil, "backup", "create", "--profile", "media", b.dest); code != 0 || out != "" || !strings.Contains(said, "no volume") {
		t.Errorf("exit %d, %q, %s", code, out, said)
	}
	for words, args := range map[string][]string{
		"no profile":        {"--profile", "nonsense", b.dest},
		"only DEST":         {"--all", "pgdata", b.dest},
		"DEST is missing":   {"pgdata"},
		"do not go":         {"--all", "--profile", "media", b.dest},
		"--here is for":     {"--here", "pgdata", b.dest},
		"to one stream":     {"--all", "-"},
		"from 1 to":         {"--uploads", "0", "pgdata", b.dest},
		"numbers from 0 on": {"--keep", "-1", "pgdata", b.dest},
	} {
		b.fails(2, words, append([]string{"backup", "create"}, args...)...)
	}
}

// The packaged timer's command is one that flockctl knows, as the example of its settings has it.
func TestBackupUnit(t *testing.T) {
	const dir = "../../scripts/packaging/backup/"
	unit, err := os.ReadFile(dir + "flocker-backup@.service")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile(dir + "backup.env")
	if err != nil {
		t.Fatal(err)
	}
	b := newBackups(t)
	env := map[string]string{}
	for line := range strings.Lines(string(example)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
			env[name] = strings.Trim(value, `"`)
		}
	}
	if env["DEST"] == "" || env["VOLUMES"] == "" || env["OPTIONS"] == "" {
		t.Fatalf("the example has %v", env)
	}
	env["DEST"] = b.dest
	var command string
	for line := range strings.Lines(string(unit)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStart="); ok {
			command = rest
		}
	}
	// As systemd does: what is in braces stays one word.
	var args []string
	for word := range strings.FieldsSeq(command) {
		switch {
		case strings.HasPrefix(word, "${"):
			args = append(args, env[strings.Trim(word, "${}")])
		case strings.HasPrefix(word, "$"):
			args = append(args, strings.Fields(env[word[1:]])...)
		default:
			args = append(args, word)
		}
	}
	if len(args) == 0 || filepath.Base(args[0]) != "flockctl" {
		t.Fatalf("it runs %q", command)
	}
	if out := strings.Fields(b.run(args[1:]...)); len(out) != 1 {
		t.Errorf("made %q", out)
	}
	env["VOLUMES"], env["OPTIONS"] = "uploads", ""
	b.run("backup", "create", env["VOLUMES"], env["DEST"])
}

// A backup takes its own snapshot with it, and what is beside a finished one goes with the next.
func TestBackupTidies(t *testing.T) {
	b := newBackups(t)
	one := b.run("backup", "create", "pgdata", b.dest)
	if len(b.snapshots()) != 1 {
		t.Fatal(b.snapshots())
	}
	b.begun(one, nil, time.Time{})
	b.run("backup", "remove", b.dest, one, "-y")
	if got := b.snapshots(); len(got) != 0 {
		t.Errorf("left are %q", got)
	}
	// One that people have taken stays.
	named := b.run("backup", "create", "pgdata@before-upgrade", b.dest)
	b.run("backup", "remove", b.dest, named, "-y")
	if got := b.run("snapshot", "list", "pgdata", "-q"); !strings.Contains(got, "before-upgrade") {
		t.Errorf("left are %q", got)
	}
	one = b.run("backup", "create", "pgdata", b.dest)
	left := filepath.Join(filepath.Dir(b.chunk(one)), "000000.clear")
	if err := os.WriteFile(left, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.run("backup", "create", "pgdata", b.dest)
	if _, err := os.Stat(left); err == nil {
		t.Error("it is still there")
	}
	if got := strings.Fields(b.run("backup", "verify", b.dest)); len(got) != 2 {
		t.Errorf("verified %q", got)
	}
	_, said, code := b.try(nil, "backup", "restore", b.dest, "pgdata", "back")
	if code != 0 || !strings.Contains(said, "taken for backups (2)") {
		t.Errorf("exit %d, %s", code, said)
	}
	// What will be refused in the end is refused before anything is sent.
	for _, c := range b.fake.Calls() {
		if c.Method == "BeginRestore" && len(c.Args[0].(api.BeginRestoreRequest).Options) == 0 {
			t.Errorf("it was begun without the options: %+v", c.Args)
		}
	}
}

// What http still reads of a stream that was answered counts no more.
func TestReadStreamEnds(t *testing.T) {
	a := &app{world: world{stderr: io.Discard, now: time.Now}}
	w := &readStream{r: strings.NewReader(strings.Repeat("x", 1<<20)), p: a.meter(t.Context(), "x", 1)}
	defer w.p.end()
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(io.Discard, w) })
	if err := w.end(); err != nil {
		t.Error(err)
	}
	was := w.p.done.Load()
	reading.Wait()
	if n, err := w.Read(make([]byte, 10)); n != 0 || err == nil || w.p.done.Load() != was {
		t.Errorf("read %d, %v; %d counted, %d when it was answered", n, err, w.p.done.Load(), was)
	}
}

// slowly gives a piece each three seconds.
type slowly struct{ r io.Reader }

func (s slowly) Read(b []byte) (int, error) {
	time.Sleep(3 * time.Second)
	return s.r.Read(b[:min(len(b), 1<<20)])
}

// A backup that takes long says in a timer's journal how far it is, and so do an export, beside the
// stream, in which nothing of that is, and a restore.
func TestBackupSaysHowFarItIs(t *testing.T) {
	const pieces = 8
	want := []string{"3MiB of 8MiB", "6MiB of 8MiB"}
	content := bytes.Repeat([]byte("x"), pieces<<20)
	about := func() *backup.Manifest {
		return &backup.Manifest{ID: "20260304T120000Z-0000000a", Volume: "5eed000000000001", Name: "pgdata", ChunkSize: 1 << 20,
			Snapshot: backup.Snapshot{Name: "x", GUID: 1, Taken: apitest.Now}, Began: apitest.Now}
	}
	write := func(t *testing.T, a *app, store backup.Store, body io.Reader) {
		t.Helper()
		j, m := &backupJob{app: a, store: store, uploads: 1}, about()
		w, err := j.writing(m).Begin(t.Context())
		if err == nil {
			_, err = j.write(t.Context(), w, m, &api.Browsed{Body: io.NopCloser(body), Size: pieces << 20})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	says := func(t *testing.T, what, said string) {
		t.Helper()
		lines := strings.Split(strings.TrimSuffix(said, "\n"), "\n")
		if len(lines) != len(want) {
			t.Fatalf("%s says %q", what, said)
		}
		for i, line := range lines {
			if !strings.HasPrefix(line, "pgdata: ") || !strings.Contains(line, want[i]) {
				t.Errorf("%s says %q, want %q in it", what, line, want[i])
			}
		}
	}
	synctest.Test(t, func(t *testing.T) {
		store, err := backup.Open(t.Context(), t.TempDir(), true)
		if err != nil {
			t.Fatal(err)
		}
		var stdout, stderr bytes.Buffer
		a := &app{world: world{stdout: &stdout, stderr: &stderr, now: time.Now}}
		write(t, a, store, slowly{bytes.NewReader(content)})
		says(t, "a backup", stderr.String())

		// An export is the same, told or not.
		stderr.Reset()
		a.now = func() time.Time { return apitest.Now }
		archive := backup.NewArchive(&stdout, a.now)
		write(t, a, archive, slowly{bytes.NewReader(content)})
		says(t, "an export", stderr.String())
		var still bytes.Buffer
		quiet := &app{world: world{stderr: io.Discard, now: a.now}, quiet: true}
		write(t, quiet, backup.NewArchive(&still, a.now), bytes.NewReader(content))
		if !bytes.Equal(stdout.Bytes(), still.Bytes()) {
			t.Errorf("the stream has %d bytes, and without a word %d, or they differ", stdout.Len(), still.Len())
		}

		stderr.Reset()
		in := &readStream{r: slowly{bytes.NewReader(content)}, p: a.meter(t.Context(), "pgdata", pieces<<20)}
		for buf, err := make([]byte, 1<<20), error(nil); err == nil; {
			_, err = in.Read(buf)
		}
		in.p.end()
		if err := in.end(); err != nil {
			t.Error(err)
		}
		says(t, "a restore", stderr.String())
	})
}

// Of what a volume had, its ports stay behind, and in another cluster what means something in its own
// alone.
func TestRestoredOptions(t *testing.T) {
	place := map[string]string{"prefer": "n1,n2", "avoid": "n3", "zone": "berlin", "replicas": "2"}
	for _, tt := range []struct {
		name    string
		options map[string]string
		from    string // the backup's cluster
		want    map[string]string
		left    string
	}{
		{"no options", nil, "c1", map[string]string{}, ""},
		{"no options, of another cluster", nil, "c2", map[string]string{}, ""},
		{"the same cluster", place, "c1", place, ""},
		{"another cluster", place, "c2", map[string]string{"replicas": "2"}, "avoid prefer zone"},
		{"nobody knows which cluster", place, "", map[string]string{"replicas": "2"}, "avoid prefer zone"},
		{"ports", map[string]string{"ports": "8080:80", "size": "10G"}, "c1", map[string]string{"size": "10G"}, "ports"},
		{"ports, of another cluster", map[string]string{"ports": "8080:80", "zone": "x", "size": "10G"}, "c2", map[string]string{"size": "10G"}, "ports zone"},
		{"what only looks like it", map[string]string{"zfs.zone": "x", "remote-zones": "x"}, "c2", map[string]string{"zfs.zone": "x", "remote-zones": "x"}, ""},
	} {
		m := &backup.Manifest{Options: maps.Clone(tt.options), Cluster: tt.from}
		if got := restoredOptions(m, "c1"); !maps.Equal(got, tt.want) || got == nil {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if left := strings.Join(notRestored(m.Options, restoredOptions(m, "c1")), " "); left != tt.left {
			t.Errorf("%s: left out is said to be %q, want %q", tt.name, left, tt.left)
		}
		if !maps.Equal(m.Options, tt.options) {
			t.Errorf("%s: the backup's own are %v now, were %v", tt.name, m.Options, tt.options)
		}
	}
}
