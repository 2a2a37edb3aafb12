package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	agekey "filippo.io/age"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// startS3 runs a server of S3 that nobody here wrote, with one bucket, and has the environment name it.
func startS3(t *testing.T, bucket string) {
	t.Helper()
	needs(t, "versitygw")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	l.Close()
	const key, secret = "flocker-test", "flocker-test-secret"
	var out bytes.Buffer
	cmd := exec.Command("versitygw", "--port", at, "posix", "--sidecar", t.TempDir(), t.TempDir())
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+key, "ROOT_SECRET_KEY="+secret)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("the server says: %s", out.String())
		}
	})
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": "http://" + at, "AWS_ENDPOINT_URL_S3": "", "AWS_REGION": "us-east-1",
		"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": "",
	} {
		t.Setenv(name, value)
	}
	cfg, err := config.LoadDefaultConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client := s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true })
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) { // wait until it serves
		if _, err = client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String(bucket)}); err == nil {
			return
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("the server does not serve: %v", err)
		}
	}
}

// What somebody does with backups in a store of S3, as they type it: made, listed, read, restored,
// encrypted, removed, and refused with the code that the manual has for it.
func TestS3FromTheCommandLine(t *testing.T) {
	startS3(t, "backups")
	b := newBackups(t)
	b.dest = "s3://backups/cluster1"
	tryStore(t, b)
	b.fails(3, "no-such-bucket", "backup", "create", "pgdata", "s3://no-such-bucket/x")
	b.fails(3, "no-such-bucket", "backup", "list", "s3://no-such-bucket/x")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "another")
	b.fails(7, "", "backup", "create", "pgdata", b.dest)
	b.fails(7, "", "backup", "verify", b.dest)
	if left := b.snapshots(); len(left) > 0 {
		t.Errorf("snapshots that were taken for backups are left: %q", left)
	}
}

// tryStore has a volume backed up to a store, and restored.
func tryStore(t *testing.T, b *backups) {
	full := b.run("backup", "create", "pgdata@before-upgrade", b.dest)
	one := b.run("backup", "create", "pgdata", b.dest)
	two := b.run("backup", "create", "pgdata", b.dest, "--uploads", "2")
	if got := strings.Fields(b.run("backup", "list", b.dest, "-q")); !slices.Equal(got, []string{full, one, two}) {
		t.Errorf("listed %q, want %q", got, []string{full, one, two})
	}
	if out := b.run("backup", "inspect", b.dest, "pgdata"); !strings.Contains(out, two) || !strings.Contains(out, "Needs") || !strings.Contains(out, full) {
		t.Errorf("inspected: %s", out)
	}
	if got := strings.Fields(b.run("backup", "verify", b.dest)); len(got) != 3 {
		t.Errorf("verified %q", got)
	}
	if got := b.run("backup", "restore", b.dest, full, "back"); got != "back" || !equal(b.fake.Received(), streams(102)) {
		t.Errorf("restored %q, received %d streams", got, len(b.fake.Received()))
	}
	if b.run("backup", "restore", b.dest, "pgdata", "back1"); len(b.fake.Received()) != 3 || !equal(b.fake.Received()[:1], streams(102)) {
		t.Errorf("received %d streams, want a full one and two increments", len(b.fake.Received()))
	}

	id, err := agekey.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const other = "s3://backups/other/place"
	sealed := b.run("backup", "create", "pgdata@before-upgrade", other, "--recipient", id.Recipient().String())
	b.fails(2, "no key is given", "backup", "restore", other, sealed, "back2")
	b.run("backup", "verify", other, sealed, "--identity", key)
	if b.run("backup", "restore", other, sealed, "back2", "--identity", key); !equal(b.fake.Received(), streams(102)) {
		t.Errorf("received %d streams", len(b.fake.Received()))
	}

	b.fails(4, "is needed", "backup", "remove", b.dest, one, "--yes")
	last := b.run("backup", "create", "pgdata", b.dest, "--full", "--keep", "1")
	if got := strings.Fields(b.run("backup", "list", b.dest, "-q")); !slices.Equal(got, []string{last}) {
		t.Errorf("kept %q, want %q", got, last)
	}
	b.run("backup", "remove", b.dest, last, "--yes")
	if got := b.run("backup", "list", b.dest, "-q"); got != "" {
		t.Errorf("left are %q", got)
	}
}
