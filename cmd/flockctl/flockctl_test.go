package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/api/apitest"
	"github.com/flocker-io/flocker/internal/volume"
)

func TestMain(m *testing.M) {
	flockctl := func() {
		w := system()
		w.now = func() time.Time { return apitest.Now } // the fake flockd's clock
		os.Exit(run(os.Args[1:], w))
	}
	testscript.Main(m, map[string]func(){"flockctl": flockctl, oldName: flockctl})
}

// TestStories runs testdata/*.txtar against a fake flockd. Besides testscript's own,
// a story has these commands:
//
//	flockd cluster|new|retired|stop  start one (anew) that leads a cluster, is in none, or
//	                          in none any more
//	fail METHOD [CODE TEXT]   make a method of the API fail from now on, or no more
//	emit KIND NAME TEXT       let an event happen
//	waiting N                 wait until N calls wait for events
//	called METHOD             wait until a method of the API was called
//	calls METHOD              print the arguments of the calls of a method
//	verify differs|unread NODE     what a verify finds from now on; alone: nothing
//	well                      doctor finds nothing from now on
//	unpack FILE               take a tar.gz apart here
//	code N flockctl ...       run a command that exits with N
func TestStories(t *testing.T) {
	p := stories()
	p.Dir = "testdata"
	testscript.Run(t, p)
}

// The completion works in each shell for which there is one: none may be missing here.
func TestNativeCompletion(t *testing.T) {
	needs(t, "bash", "zsh", "fish")
	p := stories()
	p.Files = []string{filepath.Join("testdata", "completion.txtar")}
	testscript.Run(t, p)
}

// needs skips a test for which a program that nobody here wrote is missing. Where FLOCKER_NATIVE says
// that they are all there, it fails.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		if os.Getenv("FLOCKER_NATIVE") != "" {
			t.Fatalf("there is no %s here: make natives", p)
		}
		t.Skipf("there is no %s here", p)
	}
}

// stories are how they are run.
func stories() testscript.Params {
	return testscript.Params{
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_STORIES") != "",
		Setup: func(e *testscript.Env) error {
			s := &server{socket: filepath.Join(e.WorkDir, "s")}
			e.Defer(s.stop)
			e.Values[serverKey{}] = s
			e.Setenv("FLOCKCTL_SOCKET", s.socket)
			e.Setenv("GORACE", "atexit_sleep_ms=0") // else each of many runs sleeps a second
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"flockd":  storyFlockd,
			"fail":    storyFail,
			"emit":    storyEmit,
			"waiting": storyWaiting,
			"called":  storyCalled,
			"calls":   storyCalls,
			"verify":  storyVerify,
			"lose":    storyLose,
			"unpack":  storyUnpack,
			"well":    func(ts *testscript.TestScript, _ bool, _ []string) { story(ts).fake.Recover() },
			"code":    storyCode,
		},
	}
}

// server is the flockd of one story.
type server struct {
	socket string
	fake   *apitest.Fake
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (s *server) start(f *apitest.Fake) error {
	s.stop()
	l, err := api.ListenUnix(s.socket, "")
	if err != nil {
		return err
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	s.fake = f
	log := slog.New(slog.DiscardHandler)
	s.wg.Go(func() { api.ServeLocal(ctx, l, api.NewHandler(f, f, log), log) })
	return nil
}

func (s *server) stop() {
	if s.cancel != nil {
		s.cancel()
		s.wg.Wait()
	}
}

type serverKey struct{}

func story(ts *testscript.TestScript) *server { return ts.Value(serverKey{}).(*server) }

func storyFlockd(ts *testscript.TestScript, _ bool, args []string) {
	switch strings.Join(args, " ") {
	case "cluster":
		ts.Check(story(ts).start(apitest.Cluster()))
	case "new":
		ts.Check(story(ts).start(apitest.New()))
	case "retired":
		ts.Check(story(ts).start(apitest.Retired("this node was removed from the cluster: join again")))
	case "stop":
		story(ts).stop()
	default:
		ts.Fatalf("usage: flockd cluster|new|retired|stop")
	}
}

func storyFail(ts *testscript.TestScript, _ bool, args []string) {
	switch {
	case len(args) == 1:
		story(ts).fake.Fail(args[0], nil)
	case len(args) == 3 && args[1] == "internal":
		story(ts).fake.Fail(args[0], errors.New(args[2]))
	case len(args) == 3:
		story(ts).fake.Fail(args[0], volume.Errorf(volume.Code(args[1]), "%s", args[2]))
	default:
		ts.Fatalf("usage: fail METHOD [CODE TEXT]")
	}
}

func storyEmit(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: emit KIND NAME TEXT")
	}
	story(ts).fake.Emit(args[0], args[1], args[2])
}

func storyWaiting(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(strings.Join(args, " "))
	ts.Check(err)
	for range 2000 {
		if story(ts).fake.Waiting() == want {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	ts.Fatalf("%d calls wait for events, want %d", story(ts).fake.Waiting(), want)
}

func storyCalled(ts *testscript.TestScript, _ bool, args []string) {
	for range 2000 {
		if slices.ContainsFunc(story(ts).fake.Calls(), func(c apitest.Call) bool { return c.Method == args[0] }) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	ts.Fatalf("%s was not called", args[0])
}

func storyUnpack(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	zip, err := gzip.NewReader(f)
	ts.Check(err)
	for t := tar.NewReader(zip); ; {
		h, err := t.Next()
		if err == io.EOF {
			return
		}
		ts.Check(err)
		to := ts.MkAbs(h.Name)
		ts.Check(os.MkdirAll(filepath.Dir(to), 0o755))
		text, err := io.ReadAll(t)
		ts.Check(err)
		ts.Check(os.WriteFile(to, text, 0o644))
	}
}

func storyCalls(ts *testscript.TestScript, _ bool, args []string) {
	for _, c := range story(ts).fake.Calls() {
		if c.Method != args[0] {
			continue
		}
		b, err := json.Marshal(c.Args)
		ts.Check(err)
		var plain []any
		ts.Check(json.Unmarshal(b, &plain))
		for _, arg := range plain {
			if m, ok := arg.(map[string]any); ok {
				delete(m, "request") // random
			}
		}
		b, err = json.Marshal(plain)
		ts.Check(err)
		fmt.Fprintf(ts.Stdout(), "%s\n", b)
	}
}

func storyVerify(ts *testscript.TestScript, _ bool, args []string) {
	var differs, unread api.NodeRef
	if len(args) == 2 {
		node := map[string]api.NodeRef{"beta": apitest.Beta, "gamma": apitest.Gamma}[args[1]]
		switch args[0] {
		case "differs":
			differs = node
		case "unread":
			unread = node
		}
	}
	story(ts).fake.Verify(differs, unread)
}

// storyLose takes a volume from its primary.
func storyLose(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(story(ts).fake.Lose(args[0]))
}

func storyCode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func TestArrange(t *testing.T) {
	root := (&app{world: system()}).root()
	tests := []struct{ in, want string }{
		{"", ""},
		{"ls", "ls"},
		{"ls --json", "--json ls"},
		{"volume ls -q --trash", "-q volume list --trash"},
		{"vol create db --size 1G -o a=b", "volume create --size 1G -o a=b -- db"},
		{"create --size=1G db --timeout 3s", "--timeout 3s create --size=1G -- db"},
		{"create --strict db", "create --strict -- db"},
		{"join TOKEN --peer a,b", "join --peer a,b -- TOKEN"},
		{"rm -- -odd", "rm -- -odd"},
		{"rm --yes ls ls", "rm --yes -- ls ls"},
		{"inspect volume", "inspect -- volume"},
		{"node label n zone- a=b --zone z", "node label --zone z -- n zone- a=b"},
		{"node label n -", "node label -- n -"},
		{"help volume rm", "volume remove --help"},
		{"help", "--help"},
		{"volume rm --help", "volume remove --help"},
		{"volume foo", "volume foo"},
		{"foo bar", "foo bar"},
		{"--socket /x ls", "--socket /x ls"},
		{"ls --bogus x", "ls --bogus -- x"},
		{"__complete vol --", "__complete vol --"},
	}
	for _, tt := range tests {
		got, err := arrange(root, strings.Fields(tt.in))
		if got := strings.Join(got, " "); got != tt.want || err != nil {
			t.Errorf("arrange(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
}

func TestComplete(t *testing.T) {
	fake := apitest.Cluster()
	l := apitest.NewListener()
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	log := slog.New(slog.DiscardHandler)
	wg.Go(func() { api.ServeLocal(ctx, l, api.NewHandler(fake, nil, log), log) })
	defer wg.Wait()
	defer stop()
	a := &app{world: system(), client: api.NewClient(l.Dial)}
	defer a.client.Close()

	tests := []struct {
		line string // the last word is the one to complete
		want []string
	}{
		{"vol", []string{"volume"}},
		{"volume ", []string{"create", "list", "inspect", "set", "sync", "verify", "remove", "undelete"}},
		{"volume remove ", []string{"pgdata", "scratch", "uploads"}},
		{"rm pg", []string{"pgdata"}},
		{"rm pgdata ", []string{"scratch", "uploads"}},
		{"undelete ", nil},
		{"volume undelete ", []string{"old"}},
		{"volume undelete old ", nil},
		{"create ", nil},
		{"volume set pg", []string{"pgdata"}},
		{"volume set pgdata rep", []string{"replicas="}},
		{"volume set pgdata replicas=2 max", []string{"max-loss="}},
		{"replication up", []string{"uploads"}},
		{"snapshot create pg", []string{"pgdata"}},
		{"snapshot remove pg", []string{"pgdata@"}},
		{"snapshot remove pgdata@b", []string{"pgdata@before-upgrade"}},
		{"diff pgdata b", []string{"before-upgrade"}},
		{"diff pgdata before-upgrade auto-1h-20260304T10", []string{"auto-1h-20260304T100000Z"}},
		{"diff pgdata a b ", nil},
		{"browse ", []string{"list", "cat", "get"}},
		{"browse list pgdata@b", []string{"pgdata@before-upgrade"}},
		{"browse cat pgdata@before-upgrade ", []string{"conf/", "cut", "pipe"}}, // none that a shell would expand
		{"browse get pgdata@before-upgrade conf/o", []string{"conf/old"}},
		{"browse get nothing ", nil},
		{"snapshot hold pgdata@b", []string{"pgdata@before-upgrade"}},
		{"snapshot prune ", []string{"pgdata", "scratch", "uploads"}},
		{"volume sync pgdata u", []string{"uploads"}},
		{"failover up", []string{"uploads"}},
		{"failover uploads --to b", []string{"beta"}},
		{"aside remove de", []string{"dead0000beef0000-0000000000000001-2"}},
		{"aside restore dead0000beef0000-0000000000000001-2 ", nil},
		{"trash restore 01", []string{"01d0000000000004"}},
		{"trash restore 01d0000000000004 ", nil},
		{"trash remove dea", []string{"dead0000beef0000-0000000000000001-2"}},
		{"settings ", []string{"list", "set", "reset"}},
		{"settings set tr", []string{"trash-retention="}},
		{"settings reset as", []string{"aside-retention"}},
		{"create --n", []string{"--node"}},
		{"create --node b", []string{"beta"}},
		{"create x --failover ", []string{"auto", "manual", "never"}},
		{"top --sort n", []string{"name"}},
		{"create x --profile d", []string{"database", "default"}},
		{"create -o rep", []string{"replicas="}},
		{"node inspect ", []string{"alpha", "beta", "gamma"}},
		{"node label al", []string{"alpha"}},
		{"node label alpha ", []string{"disk=", "disk-"}},
		{"node label alpha disk=ssd ", []string{"disk-"}},
		{"node label alpha --zone b", []string{"berlin"}},
		{"node label nobody ", nil},
		{"node inspect alpha ", []string{"beta", "gamma"}},
		{"node drain g", []string{"gamma"}},
		{"node undrain beta g", []string{"gamma"}},
		{"node remove --confirm-fenced g", []string{"gamma"}},
		{"migrate up", []string{"uploads"}},
		{"migrate uploads b", []string{"beta"}},
		{"container forget s", []string{"shop_db_1"}},
		{"create --node=b", []string{"--node=beta"}},
		{"create --failover=n", []string{"--failover=never"}},
		{"create --bogus=n", nil},
		{"rm -- --node=b", nil},
		{"settings set trash-retention=1d tr", nil},
		{"volume set pgdata replicas=2 rep", nil},
		{"aside remove dead0000beef0000-0000000000000001-2 ", []string{"0b5e55ed00000001-0000000000000002-1", "0b5e55ed00000002-0000000000000003-1"}},
		{"doctor ", nil},
		{"diagnostics --o", []string{"--output"}},
		{"token revoke ", []string{"k3y00001", "k3y00002"}},
		{"completion ", []string{"bash", "zsh", "fish"}},
		{"ls --js", []string{"--json"}},
		{"nonsense ", nil},
		{"rm -- --", nil},
	}
	for _, tt := range tests {
		args := strings.Split(tt.line, " ")
		var got []string
		for _, line := range a.complete(t.Context(), a.root(), args) {
			word, _, _ := strings.Cut(line, "\t")
			got = append(got, word)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("completing %q: got %q, want %q", tt.line, got, tt.want)
		}
	}
}

// Whatever cannot be asked, completion stays silent.
func TestCompleteWithoutFlockd(t *testing.T) {
	a := &app{world: system(), client: api.NewClient(func(context.Context) (net.Conn, error) { return nil, errors.New("no") })}
	if got := a.complete(t.Context(), a.root(), []string{"rm", ""}); len(got) > 0 {
		t.Errorf("got %q, want nothing", got)
	}
}

// Every command has help, in one voice: no capital at its start, no full stop.
func TestEveryCommandHasHelp(t *testing.T) {
	var walk func(prefix string, commands []*cli.Command)
	walk = func(prefix string, commands []*cli.Command) {
		for _, c := range commands {
			name := prefix + " " + c.Name
			if c.Hidden {
				continue
			}
			if c.Usage == "" || strings.ToLower(c.Usage[:1]) != c.Usage[:1] || strings.HasSuffix(c.Usage, ".") {
				t.Errorf("%s: usage %q", name, c.Usage)
			}
			for _, f := range c.Flags {
				if d, ok := f.(cli.DocGenerationFlag); ok && d.GetUsage() == "" {
					t.Errorf("%s: option %s has no help", name, f.Names()[0])
				}
			}
			walk(name, c.Subcommands)
		}
	}
	walk("flockctl", (&app{world: system()}).root().Commands)
}

func TestHumanNumbers(t *testing.T) {
	sizes := map[int64]string{
		0: "0B", 1023: "1023B", 1024: "1KiB", 1536: "1.5KiB", 10 << 10: "10KiB", 1<<20 - 1: "1MiB", 1 << 20: "1MiB",
		650 << 20: "650MiB", 1<<30 + 1<<29: "1.5GiB", 10 << 40: "10TiB", 1<<63 - 1: "8EiB",
	}
	for in, want := range sizes {
		if got := size(in); got != want {
			t.Errorf("size(%d) = %s, want %s", in, got, want)
		}
	}
	const day = 24 * time.Hour
	ages := map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 59 * time.Second: "59s", time.Minute: "1m", 119 * time.Minute: "1h", 47 * time.Hour: "47h",
		2 * day: "2d", 700 * day: "700d", 800 * day: "2y",
	}
	for in, want := range ages {
		if got := age(in); got != want {
			t.Errorf("age(%s) = %s, want %s", in, got, want)
		}
	}
	lags := map[float64]string{0: "0.0s", 0.84: "0.8s", 9.99: "10s", 59: "59s", 301: "5m1s", 7200: "2h"}
	for in, want := range lags {
		if got := lag(&in); got != want {
			t.Errorf("lag(%v) = %s, want %s", in, got, want)
		}
	}
	if got := lag(nil); got != "?" {
		t.Errorf("lag(nil) = %s, want ?", got)
	}
}

func TestProgress(t *testing.T) {
	now := apitest.Now
	tests := []struct {
		name string
		r    api.Replica
		want string
	}{
		{"nothing under way", api.Replica{}, ""},
		{"an increment", api.Replica{Stream: "incremental", SentBytes: 1 << 20, TotalBytes: 4 << 20}, "1MiB of 4MiB"},
		{"a full copy by its rate of late", api.Replica{State: volume.LinkSeeding, Stream: "full", SentBytes: 1 << 30, TotalBytes: 4 << 30, Rate: 50 << 20, Began: now.Add(-time.Hour)},
			"[##........] 25% 1GiB of 4GiB, 1m left"},
		{"a full copy without a rate", api.Replica{Stream: "full", SentBytes: 1 << 30, TotalBytes: 2 << 30, Began: now.Add(-2 * time.Minute)},
			"[#####.....] 50% 1GiB of 2GiB, 2m left"},
		{"one that has just begun", api.Replica{Stream: "full", TotalBytes: 2 << 30, Began: now}, "[..........]  0% 0B of 2GiB"},
		{"more than estimated", api.Replica{Stream: "full", SentBytes: 3 << 30, TotalBytes: 2 << 30, Rate: 1}, "[##########] 100% 3GiB of 2GiB"},
		{"no end in sight", api.Replica{Stream: "full", SentBytes: 1, TotalBytes: 2 << 40, Rate: 1}, "[..........]  0% 1B of 2TiB"},
	}
	for _, tt := range tests {
		if got := progress(tt.r, now); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestReadings(t *testing.T) {
	alpha, beta, gamma := apitest.Alpha, apitest.Beta, apitest.Gamma
	old := map[volume.NodeID]uint64{alpha.ID: 1, beta.ID: 1}
	tests := []struct {
		name string
		all  []api.Reading
		want string
	}{
		{"none has begun", []api.Reading{{Node: alpha, Told: true, GUID: 1, Bytes: 9, Total: 9, Done: true}, {Node: gamma}}, ""},
		{"each in its own way", []api.Reading{
			{Node: alpha, Told: true, GUID: 2, Bytes: 1 << 30, Total: 4 << 30},
			{Node: beta, Told: true, GUID: 1, Bytes: 9, Total: 9, Done: true},
			{Node: gamma},
		}, "alpha [##........] 25% 1GiB of 4GiB|beta waits|gamma does not say how far it is, its flockd is older"},
		{"not counted yet, and read", []api.Reading{
			{Node: alpha, Told: true, GUID: 2, Bytes: 1 << 20},
			{Node: beta, Told: true, GUID: 2, Bytes: 1 << 30, Total: 1 << 30, Done: true},
			{Node: gamma, Told: true, GUID: 2, Bytes: 0, Total: 1 << 30, Done: true},
		}, "alpha 1MiB read|beta [##########] 100% 1GiB of 1GiB|gamma [..........]  0% 0B of 1GiB, stopped"},
	}
	for _, tt := range tests {
		if got := strings.Join(readings(tt.all, old), "|"); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// reader is a cluster where a verify of pgdata reads for ever.
type reader struct {
	*apitest.Fake
	reads, stopped chan struct{} // closed when a verify has begun, and when its caller has gone
}

func (r reader) Volume(ctx context.Context, ref string) (api.Volume, error) {
	v, err := r.Fake.Volume(ctx, ref)
	guid, bytes := uint64(1), int64(4)
	select {
	case <-r.reads:
		guid, bytes = 2, 3
	default:
	}
	v.Readings = []api.Reading{{Node: apitest.Alpha, Told: true, GUID: guid, Bytes: bytes, Total: 4}, {Node: apitest.Beta}}
	return v, err
}

func (r reader) VerifyVolume(ctx context.Context, _ string, _ api.VerifyRequest) (api.VerifyReply, error) {
	close(r.reads)
	<-ctx.Done()
	close(r.stopped)
	return api.VerifyReply{}, ctx.Err()
}

// spotter closes found once all of a text has been written.
type spotter struct {
	strings.Builder
	text  string
	found chan struct{}
}

func (w *spotter) Write(p []byte) (int, error) {
	n, err := w.Builder.Write(p)
	if w.text != "" && strings.Contains(w.String(), w.text) {
		w.text = ""
		close(w.found)
	}
	return n, err
}

// A verify shows how far it is, and who interrupts it ends it in flockd too.
func TestVerifyShowsAndEnds(t *testing.T) {
	r := reader{apitest.Cluster(), make(chan struct{}), make(chan struct{})}
	l := apitest.NewListener()
	serving, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	log := slog.New(slog.DiscardHandler)
	wg.Go(func() { api.ServeLocal(serving, l, api.NewHandler(r, nil, log), log) })
	defer wg.Wait()
	defer stop()
	shown := &spotter{text: "alpha [#######...] 75% 3B of 4B\nbeta does not say", found: make(chan struct{})}
	a := &app{world: world{stderr: shown, progress: true, now: time.Now}, client: api.NewClient(l.Dial), patient: true}
	defer a.client.Close()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	done := make(chan error, 1)
	go func() {
		_, err := a.verifyOne(ctx, "pgdata")
		done <- err
	}()
	within := func(what string, c <-chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-time.After(time.Minute):
			t.Fatalf("waited a minute until %s", what)
		}
	}
	within("it is shown", shown.found)
	interrupt()
	if err := <-done; err == nil {
		t.Error("it ended well")
	}
	within("flockd hears of it", r.stopped)
	if !strings.HasSuffix(shown.String(), "\x1b[J") {
		t.Errorf("something stays on the terminal: %q", shown)
	}
}

// A picture takes the place of the one before, and nothing stays of the last.
func TestPicture(t *testing.T) {
	var b strings.Builder
	p := picture{w: &b}
	p.erase()
	p.draw([]string{"one", "two"})
	p.draw([]string{"three"})
	p.erase()
	p.erase()
	if got, want := b.String(), "one\ntwo\r\x1b[A\x1b[Jthree\r\x1b[J"; got != want {
		t.Errorf("drawn: %q, want %q", got, want)
	}
}

func TestAwaited(t *testing.T) {
	lag := func(s float64) *float64 { return &s }
	node := func(name string) api.NodeRef { return api.NodeRef{Name: name} }
	tests := []struct {
		replicas []api.Replica
		want     string
	}{
		{nil, "v: waiting"},
		{[]api.Replica{{Node: node("a"), LagSeconds: lag(4.9)}, {Node: node("b"), LagSeconds: lag(0)}}, "v: waiting"},
		{[]api.Replica{{Node: node("a"), LagSeconds: lag(4)}, {Node: node("b"), State: volume.LinkSending, LagSeconds: lag(5.1), LagBytes: 3 << 20}},
			"v: waiting for b (sending, 3MiB behind)"},
		{[]api.Replica{{Node: node("a"), State: volume.LinkConnecting, Error: "no route"}, {Node: node("b"), State: volume.LinkSeeding}},
			"v: waiting for a (connecting: no route), b (seeding)"},
	}
	for _, tt := range tests {
		if got := awaited(api.Volume{Name: "v", Replicas: tt.replicas}, 5*time.Second); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestErrorsAreOneLine(t *testing.T) {
	var out strings.Builder
	a := &app{world: world{stderr: &out}}
	a.printError(errors.New("first line\n  second line\n"))
	a.printError(told{errors.New("printed before")})
	a.printError(nil)
	a.printError(errors.New("write \x1b]0;x\a/\xff/\u202eé: full"))
	if got, want := out.String(), "flockctl: first line second line\nflockctl: write \\x1b]0;x\\a/\\xff/\\u202eé: full\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestExitCodes(t *testing.T) {
	tests := []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{context.Canceled, 1},
		{usageError{errors.New("x"), "flockctl"}, 2},
		{fmt.Errorf("a: %w", volume.Errorf(volume.CodeNotFound, "x")), 3},
		{told{volume.Errorf(volume.CodeRefused, "x")}, 4},
	}
	for _, tt := range tests {
		if got := exitCode(tt.err); got != tt.want {
			t.Errorf("exitCode(%v) = %d, want %d", tt.err, got, tt.want)
		}
	}
	want := []volume.Code{
		volume.CodeConflict, volume.CodeDenied, volume.CodeInvalid, volume.CodeNoQuorum, volume.CodeNotFound,
		volume.CodeNotInit, volume.CodeRefused, volume.CodeTimeout, volume.CodeUnavailable,
	}
	var got []volume.Code
	for c := range exitCodes {
		got = append(got, c)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("codes with an exit code: %v, want %v", got, want)
	}
}
