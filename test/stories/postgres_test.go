package stories

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/test/lab"
)

const (
	postgresImage = "flocker-test/postgres:15"
	busyboxImage  = "flocker-test/busybox:1"
	dataDir       = "/var/lib/postgresql/data"
)

// table is what writer.sh fills: the body of each row follows from its id.
const table = `create table rows (id bigint primary key, body text not null)`

// database is PostgreSQL in a container.
type database struct {
	c         cluster
	node      *lab.Node
	container string
}

// runPostgres starts PostgreSQL on a flocker volume, as a user types it, and waits
// until it answers.
func (c cluster) runPostgres(n *lab.Node, container, volume string, options ...string) database {
	c.Helper()
	args := append([]string{"run", "-d", "--name", container,
		"--mount", "type=volume,volume-driver=flocker,src=" + volume + ",dst=" + dataDir}, options...)
	n.Docker(append(args, postgresImage, "postgres", "-c", "shared_buffers=16MB")...)
	db := database{c, n, container}
	db.wait()
	return db
}

// wait until the database answers.
func (db database) wait() time.Duration {
	db.c.Helper()
	return db.c.Until("PostgreSQL in "+db.container+" on "+db.node.Name, later, func() error {
		_, err := db.try("select 1")
		if err != nil {
			if said, lerr := db.node.Try("docker logs --tail 3 " + db.container + " 2>&1"); lerr == nil {
				err = fmt.Errorf("%w; the container says: %s", err, said)
			}
		}
		return err
	})
}

func (db database) try(sql string) (string, error) {
	return db.node.Try(fmt.Sprintf("docker exec %s psql -qAtX -U postgres -c %s", db.container, lab.Quote(sql)))
}

func (db database) query(sql string) string {
	db.c.Helper()
	out, err := db.try(sql)
	if err != nil {
		db.c.Fatal(err)
	}
	return out
}

// rows checks that the table holds exactly the rows 1 to k, each as it was written,
// and returns k.
func (db database) rows() int64 {
	db.c.Helper()
	out := db.query(`select count(*), coalesce(min(id), 1), coalesce(max(id), 0), coalesce(sum(id), 0),
		count(*) filter (where body <> repeat(md5(id::text), 8)) from rows`)
	var count, least, most, sum, wrong int64
	if _, err := fmt.Sscanf(strings.ReplaceAll(out, "|", " "), "%d %d %d %d %d", &count, &least, &most, &sum, &wrong); err != nil {
		db.c.Fatalf("rows: %q: %v", out, err)
	}
	if least != 1 || most != count || sum != count*(count+1)/2 || wrong != 0 {
		db.c.Fatalf("%s on %s holds %d rows from %d to %d with sum %d, %d of them with another body; want 1 to k without a gap",
			db.container, db.node, count, least, most, sum, wrong)
	}
	return count
}

// stop stops and removes the container.
func (db database) stop() {
	db.c.Helper()
	db.node.Docker("stop", "-t", "60", db.container)
	db.node.Docker("rm", db.container)
}

// onTheWay is how many acknowledgements a power cut may take with it: between the
// database and whoever counts are a few programs, each with some lines in hand.
const onTheWay = 20

//go:embed writer.sh
var writerScript string

// writer inserts rows one commit at a time until it is stopped. Each id that was
// acknowledged has left the node before it counts.
type writer struct {
	db  database
	run *lab.Follower

	counter // of acknowledged ids

	mu       sync.Mutex
	connects int
	unsound  []string // acknowledged ids that came out of order
}

// write starts a writer on the database, whose table is there.
func (db database) write() *writer {
	db.c.Helper()
	w := &writer{db: db}
	db.node.Put("/usr/local/bin/writer.sh", writerScript, 0o755)
	w.run = db.node.Follow("/usr/local/bin/writer.sh "+db.container, w.line)
	return w
}

func (w *writer) line(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s == "connect" {
		w.connects++
		return
	}
	id, err := strconv.ParseInt(s, 10, 64)
	// Right after a lost connection one row may be committed without having been
	// acknowledged; a lower or the same id would mean that a committed row is gone.
	if last := w.last(); err != nil || !w.reach(id) {
		w.unsound = append(w.unsound, fmt.Sprintf("%q after %d", s, last))
	}
}

// connections made so far.
func (w *writer) connections() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.connects
}

// more waits until n more rows are acknowledged.
func (w *writer) more(n int64) {
	w.db.c.Helper()
	target := w.last() + n
	w.db.c.Until(fmt.Sprintf("row %d to be committed", target), later, func() error {
		if got := w.last(); got < target {
			return fmt.Errorf("%d is the last one", got)
		}
		return nil
	})
}

// stop ends the writing and returns how many rows there must be: all acknowledged
// ones, and at most one whose answer was on the way.
func (w *writer) stop() int64 {
	w.db.c.Helper()
	w.run.Stop()
	w.check()
	got := w.db.rows()
	if last := w.last(); got != last && got != last+1 {
		w.db.c.Fatalf("the table has %d rows, %d were acknowledged", got, last)
	}
	return got
}

// check that acknowledged ids only ever rose.
func (w *writer) check() {
	w.db.c.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.unsound) > 0 {
		w.db.c.Fatalf("committed rows were lost, or the writer failed: %s", strings.Join(w.unsound, "; "))
	}
}
