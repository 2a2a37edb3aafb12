package proxy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// postgresServer is a real server with a cluster of its own. It moves to another port
// with the same data.
type postgresServer struct {
	t    testing.TB
	bin  string
	dir  string
	as   *syscall.SysProcAttr // the server refuses to be root
	cmd  *exec.Cmd
	mu   sync.Mutex
	port int
}

func newPostgresServer(t testing.TB) *postgresServer {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(found) == 0 {
		lacks(t, "PostgreSQL server")
	}
	s := &postgresServer{t: t, bin: filepath.Dir(found[len(found)-1]), dir: filepath.Join(t.TempDir(), "data")}
	s.as = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		s.ownFolder()
	}
	s.run("initdb", "-D", s.dir, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions")
	s.start()
	t.Cleanup(func() { _ = s.cmd.Process.Kill(); _ = s.cmd.Wait() })
	return s
}

// ownFolder makes the cluster that of a user other than root.
func (s *postgresServer) ownFolder() {
	s.t.Helper()
	who, err := user.Lookup("postgres")
	if err != nil {
		lacks(s.t, "user postgres for a server to run as")
	}
	uid, err := strconv.Atoi(who.Uid)
	gid, err2 := strconv.Atoi(who.Gid)
	if err := errors.Join(err, err2); err != nil {
		s.t.Fatal(err)
	}
	s.as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	for folder := filepath.Dir(s.dir); folder != os.TempDir() && folder != "/"; folder = filepath.Dir(folder) {
		if err := os.Chmod(folder, 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(s.dir, 0o700), os.Chown(s.dir, uid, gid)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *postgresServer) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir, cmd.SysProcAttr = "/", s.as
	return cmd
}

func (s *postgresServer) run(name string, args ...string) {
	s.t.Helper()
	if out, err := s.command(name, args...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func (s *postgresServer) start() {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	s.mu.Lock()
	s.port = port
	s.mu.Unlock()
	s.cmd = s.command("postgres", "-D", s.dir, "-p", fmt.Sprint(port), "-k", "", "-h", "127.0.0.1",
		"-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "autovacuum=off")
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := Probe(ctx, Postgres, s.dial); err != nil {
		s.t.Fatal(err)
	}
}

func (s *postgresServer) addr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("127.0.0.1:%d", s.port)
}

func (s *postgresServer) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", s.addr())
}

// move stops the server as Docker may, and starts it elsewhere on its data.
func (s *postgresServer) move() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil {
		s.t.Fatal(err)
	}
	_ = s.cmd.Wait()
	s.start()
}

// rules has the server ask its clients for passwords by these, from its next start on, which
// is at once.
func (s *postgresServer) rules(text string) {
	s.t.Helper()
	file := filepath.Join(s.dir, "pg_hba.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(file, int(s.as.Credential.Uid), int(s.as.Credential.Gid)); err != nil {
			s.t.Fatal(err)
		}
	}
	s.move()
}

// moveUnder has the gate's clients wait while its server moves.
func (s *postgresServer) moveUnder(g *Gate) (quiet, paused time.Duration) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	begin := time.Now()
	g.Pause()
	if err := g.Quiet(ctx); err != nil {
		s.t.Fatal(err)
	}
	quiet = time.Since(begin)
	s.move()
	g.Resume(nil)
	return quiet, time.Since(begin)
}

// patient are limits that no busy machine comes near.
var patient = Limits{Request: time.Minute, Event: time.Minute}

func postgresGate(t testing.TB, s *postgresServer, o PostgresOptions, limits Limits) (*Gate, int) {
	t.Helper()
	g, err := NewPostgresGate(o, s.dial, limits, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return g, front(t, g)
}

// pgClient is a client that speaks the protocol message by message.
type pgClient struct {
	t    testing.TB
	conn net.Conn
	key  string
	told map[string]string
}

func dialPostgres(t testing.TB, port int, startup ...any) *pgClient {
	t.Helper()
	return dialPostgresAt(t, fmt.Sprintf("127.0.0.1:%d", port), startup...)
}

func dialPostgresAt(t testing.TB, addr string, startup ...any) *pgClient {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if startup == nil {
		startup = []any{"user", "postgres"}
	}
	w, err := pgLogin(conn, pgMessages(nil).add(0, append(append([]any{int32(pgVersion3)}, startup...), byte(0))...), nil)
	if err != nil {
		t.Fatal(err)
	}
	return &pgClient{t, conn, w.key, w.parameters}
}

func (c *pgClient) say(m []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(m); err != nil {
		c.t.Fatal(err)
	}
}

// hear reads up to the end of an answer: its rows, and the server's error.
func (c *pgClient) hear() (rows []string, failed error) {
	c.t.Helper()
	for {
		kind, body, err := pgRead(c.conn)
		if err != nil {
			c.t.Fatal(err)
		}
		switch kind {
		case 'D':
			columns, err := pgRow(body)
			if err != nil {
				c.t.Fatal(err)
			}
			rows = append(rows, strings.Join(columns, "|"))
		case 'A':
			_, rest, _ := pgString(body[4:])
			payload, _, _ := pgString(rest)
			rows = append(rows, "notified: "+payload)
		case 'S':
			name, rest, _ := pgString(body)
			c.told[name], _, _ = pgString(rest)
		case 'E':
			failed = pgErrorOf(body)
		case 'Z':
			return rows, failed
		}
	}
}

// asks says a query, and hears what the server has to answer.
func (c *pgClient) asks(query, want string) {
	c.t.Helper()
	c.say(pgMessages(nil).add('Q', query))
	rows, err := c.hear()
	if got := strings.Join(rows, ", "); got != want || err != nil {
		c.t.Fatalf("%s: %q, %v; want %q", query, got, err, want)
	}
}

// psql is a client that nobody here wrote.
type psql struct {
	t     testing.TB
	in    io.WriteCloser
	lines *bufio.Scanner
	notes int
}

func startPsql(t testing.TB, port int, env ...string) *psql {
	t.Helper()
	cmd := exec.Command("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-d", "postgres")
	cmd.Env = append(append(os.Environ(), "PGUSER=postgres"), env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait(); _ = r.Close() })
	return &psql{t: t, in: in, lines: bufio.NewScanner(r)}
}

// asks says something whose answer is one line, and counts what it is notified of.
func (p *psql) asks(query, want string) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, query+"\n"); err != nil {
		p.t.Fatal(err)
	}
	for p.lines.Scan() {
		switch line := p.lines.Text(); {
		case line == "":
		case strings.HasPrefix(line, "Asynchronous notification"):
			p.notes++
		case line == want:
			return
		default:
			p.t.Fatalf("%s: %q; want %q", query, line, want)
		}
	}
	p.t.Fatalf("%s: psql has ended; want %q", query, want)
}

// What clients that nobody here wrote were told is compared with what the server holds,
// which moves between two nodes. They come to both.
func TestNativePostgres(t *testing.T) {
	needs(t, "psql")
	s := newPostgresServer(t)
	const nodes = 2
	w := newTour(t, nodes, Postgres, s.addr)
	watch := dialPostgres(t, s.port)
	watch.asks("CREATE TABLE counter AS SELECT 0 AS n; CREATE TABLE history (who int)", "")
	watch.say(pgMessages(nil).add('X'))

	host, _ := w.at(nodes - 1)
	listener := startPsql(t, int(w.r.Listen), "PGHOSTADDR="+host)
	listener.asks(`SET work_mem = '5MB'; SET app.who = 'it''s me'; SET TimeZone = 'Asia/Tokyo'; PREPARE twice(int) AS SELECT $1 * 2;
		LISTEN news; SELECT 'ready';`, "ready")

	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte(`BEGIN;
UPDATE counter SET n = n + 1;
INSERT INTO history VALUES (:client_id);
SELECT pg_notify('news', txid_current()::text);
END;
`), 0o644); err != nil {
		t.Fatal(err)
	}
	const clients, each = 2, 50
	over, end := context.WithCancel(t.Context())
	defer end()
	var all sync.WaitGroup
	var committed atomic.Int64
	for i, mode := range []string{"simple", "extended", "prepared"} {
		host, port := w.at(i % nodes)
		all.Go(func() {
			_, err := again(over.Done(), func(int) (int, error) {
				out, err := output(filepath.Join(s.bin, "pgbench"), "-h", host, "-p", port, "-U", "postgres",
					"-n", "-M", mode, "-c", fmt.Sprint(clients), "-j", fmt.Sprint(clients), "-t", fmt.Sprint(each), "-f", script, "postgres")
				if err != nil {
					return 0, err
				}
				n, err := wants(out, fmt.Sprintf(`processed: (%d)/%[1]d`, clients*each))
				committed.Add(int64(n))
				return n, err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	for i := range movesHere() {
		before := committed.Load()
		eventually(t, "there is some load between two moves", func() bool { return committed.Load() > before || t.Failed() })
		w.move(s.move)
		listener.asks(fmt.Sprintf("SELECT 'after %d';", i+1), fmt.Sprintf("after %d", i+1))
		listener.asks("SHOW work_mem;", "5MB")
		listener.asks("SELECT current_setting('app.who');", "it's me")
		listener.asks("SHOW TimeZone;", "Asia/Tokyo")
		listener.asks(fmt.Sprintf("EXECUTE twice(%d);", i), fmt.Sprint(2*i))
	}
	end()
	all.Wait()
	listener.asks("SELECT 'over';", "over")
	listener.asks("SELECT 'all';", "all")
	want := int(committed.Load())
	check := dialPostgres(t, s.port)
	check.asks("SELECT n, (SELECT count(*) FROM history) FROM counter", fmt.Sprintf("%d|%d", want, want))
	if listener.notes != want {
		t.Errorf("%d notifications of %d transactions", listener.notes, want)
	}
	t.Logf("%d transactions were acknowledged, and as many are there, over %d moves", want, movesHere())
}

// pgbench's own script, as people measure with it, on the tables that it makes itself, through
// either node, too: each transaction that it counts has changed an account, a teller and a branch by the same
// sum, once, and is in the history, and no other.
func TestNativePgbench(t *testing.T) {
	s := newPostgresServer(t)
	pgbench := filepath.Join(s.bin, "pgbench")
	if _, err := os.Stat(pgbench); err != nil {
		lacks(t, pgbench)
	}
	const nodes, clients, each = 2, 2, 25
	for _, mode := range []string{"simple", "prepared"} {
		t.Run(mode, func(t *testing.T) {
			w := newTour(t, nodes, Postgres, s.addr)
			at := func(node int, args ...string) []string {
				host, port := w.at(node)
				return append([]string{"-h", host, "-p", port, "-U", "postgres"}, args...)
			}
			if _, err := output(pgbench, at(1, "-i", "-q", "-s", "2", "postgres")...); err != nil {
				t.Fatal(err)
			}
			check := func() *pgClient {
				c := dialPostgres(t, s.port)
				t.Cleanup(func() { _ = c.conn.Close() })
				return c
			}
			// What is read at the end is something at all only if the script has changed it since.
			check().asks("SELECT (SELECT count(*) FROM pgbench_accounts), (SELECT count(*) FROM pgbench_history), (SELECT sum(abs(abalance)) FROM pgbench_accounts)", "200000|0|0")

			over, end := context.WithCancel(t.Context())
			defer end()
			var committed atomic.Int64
			var load sync.WaitGroup
			for node := range nodes {
				// -n, or it empties the history first. A thread for each client: one that waits keeps no other.
				args := at(node, "-n", "-M", mode, "-c", fmt.Sprint(clients), "-j", fmt.Sprint(clients), "-t", fmt.Sprint(each), "postgres")
				load.Go(func() {
					_, err := again(over.Done(), func(int) (int, error) {
						out, err := output(pgbench, args...)
						if err != nil {
							return 0, err
						}
						n, err := wants(out, fmt.Sprintf(`processed: (%d)/%[1]d`, clients*each), `number of failed transactions: [1-9]`)
						committed.Add(int64(n))
						return n, err
					})
					if err != nil {
						t.Error(err)
					}
				})
			}
			var longest time.Duration
			for range movesHere() {
				before := committed.Load()
				eventually(t, "there is some load between two moves", func() bool { return committed.Load() > before || t.Failed() })
				if t.Failed() {
					break
				}
				_, paused := w.move(s.move)
				longest = max(longest, paused)
			}
			end()
			load.Wait()
			want := committed.Load()
			check().asks(`SELECT count(*), count(*) FILTER (WHERE delta <> 0) > 0,
				sum(delta) = (SELECT sum(abalance) FROM pgbench_accounts), sum(delta) = (SELECT sum(tbalance) FROM pgbench_tellers),
				sum(delta) = (SELECT sum(bbalance) FROM pgbench_branches) FROM pgbench_history`, fmt.Sprintf("%d|t|t|t|t", want))
			check().asks(`SELECT count(*) FROM pgbench_accounts a LEFT JOIN (SELECT aid, sum(delta) AS d FROM pgbench_history GROUP BY aid) h USING (aid)
				WHERE a.abalance <> coalesce(h.d, 0)`, "0")
			t.Logf("%d transactions were acknowledged, and as many are there, over %d moves; the longest pause was %s", want, movesHere(), longest)
		})
	}
}

// What a session holds comes along, or is named.
func TestNativePostgresSessions(t *testing.T) {
	s := newPostgresServer(t)
	g, port := postgresGate(t, s, PostgresOptions{}, patient)
	admin := dialPostgres(t, port)
	admin.asks(`CREATE ROLE app LOGIN; CREATE ROLE other; GRANT other TO app;
		CREATE FUNCTION remember() RETURNS void LANGUAGE plpgsql AS $f$ BEGIN PERFORM set_config('hidden.one', 'kept', false); END $f$`, "")

	// busy wants the sessions to keep the server for this reason, and goes on there.
	busy := func(want string) {
		t.Helper()
		g.Pause()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for ctx.Err() == nil {
			short, stop := context.WithTimeout(ctx, 20*time.Millisecond)
			var b *Busy
			err := g.Quiet(short)
			stop()
			if !errors.As(err, &b) {
				t.Fatalf("quiet: %v; want it busy with %s", err, want)
			}
			if len(b.Sessions) == 1 && b.Sessions[0].Busy == want {
				g.Resume(nil)
				return
			}
		}
		t.Fatalf("it does not say %q: %+v", want, g.Sessions())
	}

	c := dialPostgres(t, port, "user", "app", "database", "postgres", "application_name", "test", "options", "-c lock_timeout=3s")
	c.asks("SET search_path = 'a b', public; SET statement_timeout = 61000; SET ROLE other", "")
	c.asks("SELECT remember()", "")
	c.asks("PREPARE \"of sql\" AS SELECT 'it''s ' || $1", "")
	c.asks(`LISTEN "we""ird"`, "")
	c.say(pgMessages(nil).parse("named", "SELECT $1::text || current_user").add('S'))
	if _, err := c.hear(); err != nil {
		t.Fatal(err)
	}
	c.say(pgMessages(nil).parse("", "SELECT 'unnamed ' || $1").add('S'))
	if _, err := c.hear(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s.moveUnder(g)
		c.say(pgMessages(nil).run("", "lives").add('S'))
		if rows, err := c.hear(); err != nil || strings.Join(rows, "") != "unnamed lives" {
			t.Fatalf("the unnamed statement: %q, %v", rows, err)
		}
	}
	c.say(pgMessages(nil).run("named", "by ").add('S'))
	if rows, err := c.hear(); err != nil || strings.Join(rows, "") != "by other" {
		t.Fatalf("the named statement: %q, %v", rows, err)
	}
	c.asks("EXECUTE \"of sql\"('me')", "it's me")
	c.asks("SELECT current_setting('search_path'), current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('hidden.one'), current_setting('application_name')",
		`"a b", public|61s|3s|kept|test`)
	// The server speaks without being asked.
	other := dialPostgres(t, port)
	s.moveUnder(g)
	other.asks(`NOTIFY "we""ird", 'hello'`, "")
	if kind, _, err := pgRead(c.conn); kind != 'A' || err != nil {
		t.Fatalf("heard %q, %v; want a notification", kind, err)
	}

	// A cancel key is good for as long as the session lives.
	c.say(pgMessages(nil).add('Q', "SELECT pg_sleep(100)"))
	for {
		other.say(pgMessages(nil).add('Q', "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"))
		if rows, err := other.hear(); err != nil || strings.Join(rows, "") == "1" {
			break
		}
	}
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(pgMessages(nil).add(0, int32(pgCancel), []byte(c.key))); err != nil {
		t.Fatal(err)
	}
	var e *pgError
	if _, err := c.hear(); !errors.As(err, &e) || e.code != "57014" {
		t.Errorf("a query that was cancelled: %v", err)
	}
	_ = conn.Close()

	// What does not come along is named, and can be let go of.
	for _, step := range []struct{ take, why, drop string }{
		{"CREATE TEMP TABLE t (i int)", "temporary tables or other temporary objects", "DROP TABLE t"},
		{"SELECT pg_advisory_lock(5)::text", "an advisory lock", "SELECT pg_advisory_unlock(5)"},
		{"DECLARE c CURSOR WITH HOLD FOR SELECT 1", "the cursor c", "CLOSE c"},
		{"BEGIN", "a transaction is open", "COMMIT"},
		{"SELECT 1; PREPARE twice AS SELECT 2", "the prepared statement twice, whose text does more than prepare it", "DEALLOCATE twice"},
	} {
		other.say(pgMessages(nil).add('Q', step.take))
		if _, err := other.hear(); err != nil {
			t.Fatalf("%s: %v", step.take, err)
		}
		busy(step.why)
		other.say(pgMessages(nil).add('Q', step.drop))
		if _, err := other.hear(); err != nil {
			t.Fatalf("%s: %v", step.drop, err)
		}
		g.Pause()
		if err := g.Quiet(t.Context()); err != nil {
			t.Fatal(err)
		}
		g.Resume(nil)
	}

	// A cancellation that comes late, and finds the gate's question instead of the
	// client's statement, is not its answer.
	other.asks("SELECT 'spoken'", "spoken")
	lock := dialPostgres(t, s.port)
	lock.asks("BEGIN; LOCK TABLE pg_catalog.pg_depend IN ACCESS EXCLUSIVE MODE", "")
	g.Pause()
	for range 3 {
		for cancelled := ""; !strings.Contains(cancelled, "t"); {
			lock.say(pgMessages(nil).add('Q', "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
			rows, err := lock.hear()
			if err != nil {
				t.Fatal(err)
			}
			cancelled = strings.Join(rows, "")
		}
	}
	lock.asks("COMMIT", "")
	if err := g.Quiet(t.Context()); err != nil {
		t.Fatalf("a question that was cancelled: %v, %+v", err, g.Sessions())
	}
	g.Resume(nil)

	// During a pause, only the client can let go; nobody keeps it from that.
	other.asks("SELECT pg_advisory_lock(5)", "")
	g.Pause()
	other.asks("SELECT pg_advisory_unlock(5)", "t")
	if err := g.Quiet(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.Resume(nil)
	other.asks("SELECT 'on'", "on")
}

// A server that asks for passwords is no obstacle where the gate may ask it how to
// verify them; nor are clients that want TLS.
func TestNativePostgresPasswords(t *testing.T) {
	needs(t, "psql")
	s := newPostgresServer(t)
	direct := dialPostgres(t, s.port)
	direct.asks("ALTER ROLE postgres PASSWORD 'geheim'; CREATE ROLE app LOGIN PASSWORD 'secret'; SET password_encryption = md5; CREATE ROLE old LOGIN PASSWORD 'secret'; CREATE ROLE nobody LOGIN", "")
	direct.say(pgMessages(nil).add('X'))
	s.rules("host all all 127.0.0.1/32 md5\n") // SCRAM for those who have it

	// Without a user of its own, the gate passes the login on, and pins.
	pinning, port := postgresGate(t, s, PostgresOptions{}, patient)
	p := startPsql(t, port, "PGUSER=app", "PGPASSWORD=secret")
	p.asks("SELECT current_user;", "app")
	if all := pinning.Sessions(); len(all) != 1 || !all[0].Pinned || all[0].Busy != pgPinPassword {
		t.Errorf("sessions: %+v", all)
	}
	pinning.Cut()
	passing, port := postgresGate(t, s, PostgresOptions{PassTLS: true}, patient)
	p = startPsql(t, port, "PGUSER=app", "PGPASSWORD=secret", "PGSSLMODE=prefer")
	p.asks("SELECT current_user;", "app")
	if all := passing.Sessions(); len(all) != 1 || !all[0].Pinned || all[0].Busy != "TLS with the server itself" {
		t.Errorf("sessions: %+v", all)
	}
	passing.Cut()

	g, port := postgresGate(t, s, PostgresOptions{User: "postgres", Password: "geheim", TLS: testTLS(t)}, patient)
	plain := startPsql(t, port, "PGUSER=app", "PGPASSWORD=secret", "PGSSLMODE=disable")
	secure := startPsql(t, port, "PGUSER=app", "PGPASSWORD=secret", "PGSSLMODE=require")
	for range 2 {
		plain.asks("SELECT current_user;", "app")
		secure.asks("SELECT 'over TLS as ' || current_user;", "over TLS as app")
		s.moveUnder(g)
	}
	psqlRefused(t, port, `password authentication failed for user "app"`, "PGUSER=app", "PGPASSWORD=wrong")
	psqlRefused(t, port, `password authentication failed for user "stranger"`, "PGUSER=stranger", "PGPASSWORD=wrong")
	old := startPsql(t, port, "PGUSER=old", "PGPASSWORD=secret", "PGSSLMODE=disable")
	old.asks("SELECT current_user;", "old")
	if pinned, all := count(g); pinned == 0 || all-pinned != 2 {
		t.Errorf("sessions: %+v", g.Sessions())
	}
	g.Cut()

	// Where the server trusts the gate's address, the gate still does not let everybody in.
	s.rules("host all all 127.0.0.1/32 trust\n")
	trusted := startPsql(t, port, "PGUSER=app", "PGPASSWORD=secret", "PGSSLMODE=disable")
	trusted.asks("SELECT current_user;", "app")
	psqlRefused(t, port, `password authentication failed for user "app"`, "PGUSER=app", "PGPASSWORD=wrong")
	psqlRefused(t, port, "flocker: the server asks nobody for no password, and has no SCRAM verifier of one that the gate could ask for", "PGUSER=nobody")
}

func count(g *Gate) (pinned, all int) {
	for _, s := range g.Sessions() {
		if all++; s.Pinned {
			pinned++
		}
	}
	return pinned, all
}

// psqlRefused wants psql not to be let in, for this reason.
func psqlRefused(t testing.TB, port int, why string, env ...string) {
	t.Helper()
	psqlFails(t, port, "FATAL:  "+why, env...)
}

func psqlFails(t testing.TB, port int, why string, env ...string) {
	t.Helper()
	cmd := exec.Command("psql", "-X", "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-d", "postgres", "-c", "SELECT 1")
	cmd.Env = append(append(os.Environ(), "PGSSLMODE=disable"), env...)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), why) {
		t.Errorf("psql %v: %v: %s; want %s", env, err, out, why)
	}
}

func testTLS(t testing.TB) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}
