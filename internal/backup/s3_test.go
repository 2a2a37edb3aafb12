package backup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/flocker-io/flocker/internal/volume"
)

// startS3 runs a server of S3 with one bucket, and has the environment name it.
func startS3(t *testing.T) {
	t.Helper()
	server, err := exec.LookPath("versitygw")
	if err != nil {
		if os.Getenv("FLOCKER_NATIVE") != "" {
			t.Fatal("there is no versitygw here: make natives")
		}
		t.Skip("there is no versitygw to test with: go install github.com/versity/versitygw/cmd/versitygw@v1.8.0")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	l.Close()
	const key, secret = "flocker-test", "flocker-test-secret"
	var out bytes.Buffer
	dir, beside := t.TempDir(), t.TempDir()
	cmd := exec.Command(server, "--port", at, "posix", "--sidecar", beside, dir)
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
	s3At(t, "http://"+at, key, secret)
	store, err := Open(t.Context(), "s3://backups", true)
	if err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) { // wait until it serves
		if _, err = store.(*bucket).client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("backups")}); err == nil {
			return
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("the server does not serve: %v", err)
		}
	}
}

// s3At has the environment name a server.
func s3At(t *testing.T, url, key, secret string) {
	t.Helper()
	t.Setenv("AWS_ENDPOINT_URL", url)
	t.Setenv("AWS_ENDPOINT_URL_S3", "")
	t.Setenv("AWS_REGION", "us-east-1")
	t.Setenv("AWS_ACCESS_KEY_ID", key)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	t.Setenv("AWS_SESSION_TOKEN", "")
}

func TestS3(t *testing.T) {
	startS3(t)
	open := func(dest string) Store {
		t.Helper()
		s, err := Open(t.Context(), dest, true)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for i, dest := range []string{"s3://backups/some/where", "s3://backups"} {
		t.Run(fmt.Sprint(i), func(t *testing.T) { testStore(t, open(dest)) })
	}

	s, want := open("s3://backups/x/"), content(10*small)
	seal, keys := newKey(t)
	for n, to := range []*Seal{nil, seal} {
		m := about(n + 1)
		cut := errors.New("cut")
		_, err := Writing{Store: s, Manifest: m, Seal: to, Now: clock}.Write(t.Context(), failing{bytes.NewReader(want[:4*small]), cut})
		if !errors.Is(err, cut) {
			t.Fatal(err)
		}
		var reused int64
		m, err = Writing{Store: s, Manifest: m, Seal: to, Now: clock, Uploads: 3, Warn: func(err error) { t.Error(err) }, Progress: func(_, n int64) { reused = n }}.Write(t.Context(), bytes.NewReader(want))
		if err != nil || reused != 4*small {
			t.Fatalf("reused %d, %v", reused, err)
		}
		if got, err := io.ReadAll(Stream(t.Context(), s, m, keys)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
		name := m.object(chunkName(3, m.Chunks[3].Sum))
		b, err := s.Get(t.Context(), name, ChunkSize)
		if err != nil {
			t.Fatal(err)
		}
		b[7] ^= 1
		if err := s.Put(t.Context(), name, b); err != nil {
			t.Fatal(err)
		}
		if err := Verify(t.Context(), s, m, nil, nil); volume.CodeOf(err) != volume.CodeRefused {
			t.Errorf("with a flipped byte: %v", err)
		}
	}
	all, err := Load(t.Context(), s)
	if err != nil || len(all.Backups) != 2 {
		t.Fatalf("found %+v, %v", all, err)
	}
	for _, m := range all.Backups {
		if err := Remove(t.Context(), s, m, epoch); err != nil {
			t.Error(err)
		}
	}
	if left := names(t, s); len(left) > 0 {
		t.Errorf("left are %q", left)
	}
	if _, err := Load(t.Context(), open("s3://no-such-bucket/x")); volume.CodeOf(err) != volume.CodeNotFound {
		t.Errorf("no bucket: %v", err)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "another")
	if _, err := Load(t.Context(), open("s3://backups/x")); volume.CodeOf(err) != volume.CodeDenied {
		t.Errorf("another key: %v", err)
	}
}
