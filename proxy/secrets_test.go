package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pair is a certificate and its key, as they are in files.
func pair(t testing.TB) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: rand.Text()}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}

// keep writes files of a route, by name and text; only their owner may read them.
func keep(t testing.TB, dir string, files ...string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(files); i += 2 {
		if err := os.WriteFile(filepath.Join(dir, files[i]), []byte(files[i+1]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReadSecrets(t *testing.T) {
	cert, key := pair(t)
	mode := func(name string, mode os.FileMode) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	writes := func(name, text string) func(*testing.T, string) {
		return func(t *testing.T, dir string) { keep(t, dir, name, text) }
	}
	removes := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	gives := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if os.Geteuid() != 0 {
				t.Skip("only root can give a file away")
			}
			if err := os.Chown(filepath.Join(dir, name), 12345, -1); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name string
		of   *RoutePostgres
		do   func(t *testing.T, dir string)
		want string // of the error; "": none
	}{
		{"all", &RoutePostgres{TLS: true, Auth: true}, nil, ""},
		{"a certificate that all may read", &RoutePostgres{TLS: true}, mode("tls.crt", 0o644), ""},
		{"what is not needed may lack", &RoutePostgres{Auth: true}, removes("tls.key"), ""},
		{"nothing is needed", &RoutePostgres{PassTLS: true}, removes(""), ""},
		{"no options", nil, removes(""), ""},
		{"no folder", &RoutePostgres{Auth: true}, removes(""), "there is no folder DIR with"},
		{"no key", &RoutePostgres{TLS: true}, removes("tls.key"), "there is no DIR/tls.key"},
		{"no user", &RoutePostgres{Auth: true}, removes("auth-user"), "there is no DIR/auth-user"},
		{"a key that others may read", &RoutePostgres{TLS: true}, mode("tls.key", 0o640), "may read DIR/tls.key (mode 0640): chmod 600 DIR/tls.key"},
		{"a password that others may read", &RoutePostgres{Auth: true}, mode("auth-password", 0o604), "may read DIR/auth-password (mode 0604)"},
		{"a user that others may change", &RoutePostgres{Auth: true}, mode("auth-user", 0o620), "may write DIR/auth-user (mode 0620): chmod go-w DIR/auth-user"},
		{"a folder that others may change", &RoutePostgres{Auth: true}, mode("", 0o777), "may write DIR (mode 0777)"},
		{"another's key", &RoutePostgres{TLS: true}, gives("tls.key"), "DIR/tls.key belongs to user 12345: chown root DIR/tls.key"},
		{"another's folder", &RoutePostgres{TLS: true}, gives(""), "DIR belongs to user 12345"},
		{"an empty password", &RoutePostgres{Auth: true}, writes("auth-password", "\n"), "DIR/auth-password is empty"},
		{"too much", &RoutePostgres{Auth: true}, writes("auth-password", strings.Repeat("x", mostSecret+1)), "more than 1048576 bytes"},
		{"no file", &RoutePostgres{Auth: true}, func(t *testing.T, dir string) {
			removes("auth-password")(t, dir)
			keep(t, filepath.Join(dir, "auth-password"))
		}, "DIR/auth-password is no file"},
		{"another's pair", &RoutePostgres{TLS: true}, func(t *testing.T, dir string) {
			_, other := pair(t)
			keep(t, dir, "tls.key", other)
		}, "tls.crt and tls.key do not go together"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			dir := filepath.Join(root, "5432")
			keep(t, dir, "tls.crt", cert, "tls.key", key, "auth-user", "watch\n", "auth-password", " se cret\n")
			if c.do != nil {
				c.do(t, dir)
			}
			s, err := readSecrets(root, Route{Listen: 5432, Postgres: c.of})
			var o PostgresOptions
			if err == nil {
				o, err = c.of.options(s)
			}
			if got := strings.ReplaceAll(fmt.Sprint(err), dir, "DIR"); c.want == "" && err != nil || c.want != "" && !strings.Contains(got, c.want) {
				t.Fatalf("got %s, want %q", got, c.want)
			}
			if err != nil || c.of == nil {
				return
			}
			if (o.TLS != nil) != c.of.TLS || (o.User == "watch") != c.of.Auth || (o.Password == " se cret") != c.of.Auth || o.PassTLS != c.of.PassTLS {
				t.Errorf("got %+v for %+v", o, *c.of)
			}
		})
	}
	if _, err := readSecrets("", Route{Listen: 5432, Postgres: &RoutePostgres{TLS: true}}); err == nil {
		t.Error("a proxy without a folder has what is in it")
	}
}

// A server that asks for passwords moves while psql has a session over TLS: what each node
// needs for that is in its files. A node that lacks them serves nobody and says so, and
// what is replaced is used for those who come from then on.
func TestNativePostgresBySecrets(t *testing.T) {
	needs(t, "psql")
	s := newPostgresServer(t)
	direct := dialPostgres(t, s.port)
	direct.asks("CREATE ROLE flocker LOGIN PASSWORD 'geheim'; GRANT SELECT ON pg_catalog.pg_authid TO flocker; CREATE ROLE app LOGIN PASSWORD 'secret'", "")
	direct.say(pgMessages(nil).add('X'))
	s.rules("host all all 127.0.0.1/32 scram-sha-256\n")

	c := newCluster(t, 2)
	r := Route{ID: "r", Listen: freePort(t), Mode: Postgres, Postgres: &RoutePostgres{TLS: true, Auth: true}, Limits: patient}
	dir := func(node int) string { return filepath.Join(c.nodes[node].secrets, fmt.Sprint(r.Listen)) }
	roots := t.TempDir()
	root := func(name, cert string) string {
		keep(t, roots, name, cert)
		return "PGSSLROOTCERT=" + filepath.Join(roots, name)
	}
	app := func(node int, env ...string) []string {
		c.addrOf(node, r)
		return append([]string{"PGUSER=app", "PGPASSWORD=secret", "PGSSLMODE=verify-ca", "PGHOSTADDR=" + c.nodes[node].host}, env...)
	}
	problem := func(node int, want string) {
		t.Helper()
		if got := c.status(node, "r").Problem; want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("node %d says %q, want %q", node, got, want)
		}
	}

	cert, key := pair(t)
	first := root("first", cert)
	keep(t, dir(0), "tls.crt", cert, "tls.key", key, "auth-user", "flocker\n", "auth-password", "geheim\n")
	c.route(r, 0, 1, s.addr())
	problem(0, "")
	problem(1, "there is no folder "+dir(1))
	session := startPsql(t, int(r.Listen), app(0, first)...)
	session.asks("SET flocker.test = 'kept'; PREPARE one AS SELECT 'one of ' || current_user; SELECT 1;", "1")
	psqlRefused(t, int(r.Listen), `password authentication failed for user "app"`, app(0, first, "PGPASSWORD=wrong")...)

	move := func(from, to int, epoch uint64) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := c.nodes[from].Pause(ctx, "r", 0); err != nil {
			t.Fatal(err)
		}
		if err := c.nodes[from].Quiet(ctx, "r"); err != nil {
			t.Fatal(err)
		}
		s.move()
		c.route(r, to, epoch, s.addr())
	}
	// The owner's door needs nothing: who the clients are is seen to where they come in.
	move(0, 1, 2)
	session.asks("EXECUTE one;", "one of app")
	session.asks("SHOW flocker.test;", "kept")

	keep(t, dir(1), "tls.crt", cert, "tls.key", key, "auth-user", "flocker", "auth-password", "geheim")
	c.route(r, 1, 2, s.addr())
	problem(1, "")
	startPsql(t, int(r.Listen), app(1, first)...).asks("SELECT current_user;", "app")

	// One file is there before the other.
	cert, key = pair(t)
	second := root("second", cert)
	keep(t, dir(0), "tls.crt", cert)
	c.route(r, 1, 2, s.addr())
	problem(0, "do not go together")
	startPsql(t, int(r.Listen), app(0, first)...).asks("SELECT current_user;", "app")
	keep(t, dir(0), "tls.key", key)
	c.route(r, 1, 2, s.addr())
	problem(0, "")
	startPsql(t, int(r.Listen), app(0, second)...).asks("SELECT current_user;", "app")
	psqlFails(t, int(r.Listen), "certificate verify failed", app(0, first)...)

	if err := os.Chmod(filepath.Join(dir(0), "auth-password"), 0o644); err != nil {
		t.Fatal(err)
	}
	c.route(r, 1, 2, s.addr())
	problem(0, "chmod 600 "+filepath.Join(dir(0), "auth-password"))
	move(1, 0, 3)
	session.asks("EXECUTE one;", "one of app")
	session.asks("SHOW flocker.test;", "kept")
}
