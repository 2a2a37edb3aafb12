package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The servers of these tests are processes of their own. They write down what they are
// about to answer in a folder, which is what moves with them.
const nativeServer = "FLOCKER_TEST_SERVER"

func TestMain(m *testing.M) {
	if log := os.Getenv(nativeServer); log != "" {
		fmt.Fprintln(os.Stderr, serveNative(log))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// serveNative is such a server, of HTTP/1.1 and HTTP/2: it answers what was asked, and the
// checksum of the body.
func serveNative(log string) error {
	done, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	server := http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		if _, err := io.Copy(sum, r.Body); err != nil {
			return // it did not come whole, and is not done
		}
		line := fmt.Sprintf("%s %x\n", r.RequestURI, sum.Sum(nil)[:8])
		if _, err := io.WriteString(done, line); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = io.WriteString(w, line)
	})}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	return server.Serve(l)
}

// native is a server that moves to and fro between two nodes, with a folder.
type native struct {
	*testing.T
	c       *cluster
	r       Route
	dir     string // of the server of this moment
	begin   func(dir string) *exec.Cmd
	server  *exec.Cmd
	at      string // where it listens
	epoch   uint64
	moves   int
	loads   sync.WaitGroup
	longest time.Duration
}

// newNative starts a server by begin, which says its address first of all.
func newNative(t *testing.T, mode Mode, begin func(dir string) *exec.Cmd) *native {
	t.Helper()
	n := &native{T: t, dir: filepath.Join(t.TempDir(), "a"), begin: begin}
	t.Cleanup(n.loads.Wait) // when there is nothing left to load
	n.c = newCluster(t, 2)
	n.r = Route{ID: "r", Listen: freePort(t), Mode: mode, Limits: Limits{Request: time.Minute, Event: time.Minute, Sessions: 10_000}}
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.stop() })
	n.start()
	return n
}

func goServer(dir string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), nativeServer+"="+filepath.Join(dir, "done"))
	return cmd
}

func (n *native) owner() int { return int(n.epoch) % 2 }

// start has the server begin on the next node.
func (n *native) start() {
	n.Helper()
	n.server = n.begin(n.dir)
	n.server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	n.server.Stderr = n.Output()
	out, err := n.server.StdoutPipe()
	if err != nil {
		n.Fatal(err)
	}
	if err := n.server.Start(); err != nil {
		n.Fatal(err)
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		n.Fatalf("the server does not say where it is: %v", err)
	}
	n.at = strings.TrimSpace(addr)
	n.epoch++
	n.c.route(n.r, n.owner(), n.epoch, n.at)
}

// stop ends the server as a power cut would: what has been answered is in its folder.
func (n *native) stop() {
	if n.server == nil || n.server.Process == nil {
		return // it could not be started
	}
	_ = n.server.Process.Kill()
	_ = n.server.Wait()
}

// pause waits until the server has nothing to do; the error is a Busy.
func (n *native) pause(limit time.Duration) error {
	n.Helper()
	node := n.c.nodes[n.owner()]
	if err := node.Pause(n.Context(), "r", 0); err != nil {
		n.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(n.Context(), limit)
	defer cancel()
	return node.Quiet(ctx, "r")
}

func (n *native) move() {
	n.Helper()
	begin := time.Now()
	if err := n.pause(time.Minute); err != nil {
		n.Fatal(err)
	}
	n.carry()
	n.longest = max(n.longest, time.Since(begin))
}

// carry has a server that is paused go on elsewhere.
func (n *native) carry() {
	n.Helper()
	n.stop()
	to := filepath.Join(filepath.Dir(n.dir), []string{"a", "b"}[n.epoch%2])
	if err := os.Rename(n.dir, to); err != nil { // who still writes there will not find it
		n.Fatal(err)
	}
	n.dir = to
	n.start()
	n.moves++
}

func (n *native) url(node int) string { return "http://" + n.c.addrOf(node, n.r) }

// done is all that the server has written down, as often as it has.
func (n *native) done() (lines []string) {
	n.Helper()
	text, err := os.ReadFile(filepath.Join(n.dir, "done"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.Fatal(err)
	}
	return strings.Split(string(text), "\n")[:bytes.Count(text, []byte("\n"))]
}

// moveUnder moves the server as often as it is to be, with some load before each move, and
// then ends the load: run loads a node until over, and says how many answers it had.
func (n *native) moveUnder(between int, run func(url string, over <-chan struct{}) (answered int, err error)) {
	n.Helper()
	over := make(chan struct{})
	end := sync.OnceFunc(func() { close(over) })
	defer end()
	type result struct {
		answered int
		err      error
	}
	results := make(chan result, len(n.c.nodes))
	for node := range n.c.nodes {
		url := fmt.Sprintf("%s/%d", n.url(node), node)
		n.loads.Go(func() {
			answered, err := run(url, over)
			results <- result{answered, err}
		})
	}
	for range movesHere() {
		before := len(n.done())
		eventually(n, "there is some load between two moves", func() bool {
			return len(n.done()) >= before+between || len(results) > 0
		})
		if len(results) > 0 {
			break
		}
		n.move()
	}
	early := len(results) > 0
	end()
	answered := 0
	for range n.c.nodes {
		r := <-results
		if r.err != nil {
			n.Error(r.err)
		}
		answered += r.answered
	}
	if early {
		n.Errorf("a client has ended after %d moves, before it was told to", n.moves)
	}
	if done := len(n.done()); done != answered || answered == 0 {
		n.Errorf("%d requests were done, %d answered", done, answered)
	}
	n.Logf("%d answers, and as many requests done, over %d moves; nobody was held for longer than %s", answered, n.moves, n.longest.Round(time.Millisecond))
}

// movesHere is how often a server moves under each client.
func movesHere() int {
	if testing.Short() {
		return 3
	}
	return 20
}

// needs skips a test for which a program that nobody here wrote is missing. Where
// FLOCKER_NATIVE says that they are all there, it fails.
func needs(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		lacks(t, p)
	}
}

func lacks(t testing.TB, program string) {
	t.Helper()
	if os.Getenv("FLOCKER_NATIVE") != "" {
		t.Fatalf("there is no %s here", program)
	}
	t.Skipf("there is no %s here", program)
}

// again runs a client that ends by itself until over.
func again(over <-chan struct{}, run func(round int) (answered int, err error)) (answered int, err error) {
	for round := 0; ; round++ {
		select {
		case <-over:
			return answered, nil
		default:
		}
		got, err := run(round)
		if err != nil {
			return answered, err
		}
		answered += got
	}
}

// output runs a command, and returns what it says.
func output(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return string(out), nil
}

// wants looks for a number in what a program says, and for what it may not say.
func wants(text string, number string, never ...string) (int, error) {
	for _, n := range never {
		if found := regexp.MustCompile(n).FindString(text); found != "" {
			return 0, fmt.Errorf("it tells of %q:\n%s", found, text)
		}
	}
	m := regexp.MustCompile(number).FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("it says nothing like %s:\n%s", number, text)
	}
	return strconv.Atoi(m[1])
}

func fileOf(t testing.TB, size int) (name, sum string) {
	t.Helper()
	name = filepath.Join(t.TempDir(), "body")
	text := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	all := sha256.Sum256(text)
	return name, fmt.Sprintf("%x", all[:8])
}

// Clients that nobody here wrote, at two nodes, load a server that moves between these
// back and forth. Each counts its answers by itself; the server has done so many, and not
// one more.
func TestNativeAb(t *testing.T) {
	needs(t, "ab")
	body, _ := fileOf(t, 1600)
	for _, c := range []struct {
		name    string
		mode    Mode
		args    []string
		between int
	}{
		{"http, connections that are kept", HTTP, []string{"-k"}, 300},
		{"http, a connection for each request", HTTP, nil, 50},
		{"tcp, a connection for each request", TCP, nil, 50},
	} {
		t.Run(c.name, func(t *testing.T) {
			newNative(t, c.mode, goServer).moveUnder(c.between, func(url string, over <-chan struct{}) (int, error) {
				return again(over, func(int) (int, error) {
					out, err := output("ab", append(c.args, "-q", "-s", "60", "-n", fmt.Sprint(5*c.between), "-c", "10", "-p", body, "-T", "text/plain", url)...)
					if err != nil {
						return 0, err
					}
					return wants(out, `Complete requests: +(\d+)`, `Failed requests: +[1-9].*`, `Write errors.*`, `Non-2xx.*`)
				})
			})
		})
	}
}

func testHey(t *testing.T, n *native) {
	n.moveUnder(300, func(url string, over <-chan struct{}) (int, error) {
		return again(over, func(int) (int, error) {
			out, err := output("hey", "-n", "2000", "-c", "10", "-t", "60", "-m", "POST", "-d", strings.Repeat("to be done ", 200), url)
			if err != nil {
				return 0, err
			}
			return wants(out, `\[200\]\s+(\d+) responses`, `Error distribution(?s:.*)`, `\[([1345]\d\d|20[1-9])\]\s+\d+ responses`)
		})
	})
}

func TestNativeHey(t *testing.T) {
	needs(t, "hey")
	testHey(t, newNative(t, HTTP, goServer))
}

// The server is another's as well: what it logs, it has done.
func TestNativeHeyNginx(t *testing.T) {
	needs(t, "hey", "nginx")
	testHey(t, newNative(t, HTTP, nginxServer(t)))
}

// nginxServer says by a shell where it is, once it answers.
func nginxServer(t *testing.T) func(dir string) *exec.Cmd {
	return func(dir string) *exec.Cmd {
		addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
		conf := filepath.Join(dir, "nginx.conf")
		text := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/log; events {}
http { log_format done "$request_uri $status"; access_log %[1]s/done done; keepalive_requests 100000;
client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
server { listen %[2]s; location / { return 200 "done\n"; } } }
`, dir, addr)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		// It says nothing of itself: the gate tries until it listens.
		return exec.Command("sh", "-c", `echo "$1"; exec nginx -p "$2" -c "$2/nginx.conf" -e "$2/log"`, "sh", addr, dir)
	}
}

func TestNativeH2load(t *testing.T) {
	needs(t, "h2load")
	body, _ := fileOf(t, 1600)
	newNative(t, HTTP, goServer).moveUnder(300, func(url string, over <-chan struct{}) (int, error) {
		return again(over, func(int) (int, error) {
			out, err := output("h2load", "-n", "2000", "-c", "3", "-m", "8", "-d", body, url)
			if err != nil {
				return 0, err
			}
			if !strings.Contains(out, "2000 succeeded, 0 failed, 0 errored, 0 timeout") {
				return 0, fmt.Errorf("not all of 2000 succeeded:\n%s", out)
			}
			return wants(out, `status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx`)
		})
	})
}

// Five thousand clients wait for the end of one pause. Each is answered, once.
func TestNativeHeld(t *testing.T) {
	needs(t, "h2load")
	clients := 5000
	if testing.Short() {
		clients = 600
	}
	// One connection of each client, and one to the server; half of the clients, or all
	// connections to the server, have another process.
	const besides = 300
	if room := moreFiles(t, uint64(2*clients+besides)); room < uint64(2*clients+besides) {
		clients = (int(room) - besides) / 4 * 2
		t.Logf("there may be only %d files open, so that there are %d clients", room, clients)
	}
	n := newNative(t, HTTP, goServer)
	if err := n.pause(time.Minute); err != nil {
		t.Fatal(err)
	}
	each := clients / len(n.c.nodes)
	results := make(chan error, len(n.c.nodes))
	for node := range n.c.nodes {
		url := n.url(node)
		n.loads.Go(func() {
			out, err := output("h2load", "--h1", "-n", fmt.Sprint(each), "-c", fmt.Sprint(each), url)
			if want := fmt.Sprintf("%d succeeded, 0 failed, 0 errored, 0 timeout", each); err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("not all of %d succeeded:\n%s", each, out)
			}
			results <- err
		})
	}
	eventually(t, fmt.Sprintf("%d clients wait", clients), func() bool {
		held := 0
		for node := range n.c.nodes {
			held += n.c.status(node, "r").Held
		}
		return held == clients
	})
	if done := len(n.done()); done > 0 {
		t.Errorf("%d requests were done during the pause", done)
	}
	kept := cost()
	n.carry()
	begin := time.Now()
	for range n.c.nodes {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if done := len(n.done()); done != clients {
		t.Errorf("%d requests were done for %d clients", done, clients)
	}
	t.Logf("%d clients were held, which took %d MiB of this process; all were answered %s after the server was back", clients, kept>>20, time.Since(begin).Round(time.Millisecond))
}

// moreFiles lets this process and those it starts have so many files open, or as many as
// they may.
func moreFiles(t testing.TB, want uint64) uint64 {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	before := limit
	limit.Cur = max(limit.Cur, want)
	limit.Max = max(limit.Max, want)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		limit = syscall.Rlimit{Cur: before.Max, Max: before.Max} // what anybody may
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	})
	return limit.Cur
}

// Each of wrk's requests has a number, and each answer too: none was done twice.
func TestNativeWrk(t *testing.T) {
	needs(t, "wrk")
	script, err := filepath.Abs("testdata/native/wrk.lua")
	if err != nil {
		t.Fatal(err)
	}
	n := newNative(t, HTTP, goServer)
	var mu sync.Mutex
	var answers []string
	home := filepath.Dir(n.dir) // n.dir itself moves meanwhile
	n.moveUnder(300, func(url string, over <-chan struct{}) (int, error) {
		dir, err := os.MkdirTemp(home, "wrk")
		if err != nil {
			return 0, err
		}
		said, stop := filepath.Join(dir, "answers"), filepath.Join(dir, "stop")
		cmd := exec.Command("wrk", "-t", "2", "-c", "10", "-d", "600s", "--timeout", "60s", "-s", script, url, "--", said, stop)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-over:
		case err := <-ended:
			return 0, fmt.Errorf("wrk: %w\n%s", err, out.String())
		}
		if err := os.WriteFile(stop, nil, 0o600); err != nil {
			return 0, err
		}
		// A connection stops when it has read its last answer.
		read := func() (lines []string, stopped int) {
			text, err := os.ReadFile(said)
			if err != nil {
				return nil, 0
			}
			for line := range strings.Lines(string(text)) {
				if line == "stopped\n" {
					stopped++
				} else {
					lines = append(lines, strings.TrimSuffix(line, "\n"))
				}
			}
			return lines, stopped
		}
		limit := time.After(time.Minute)
		const connections = 10
		for stopped := 0; stopped < connections; {
			select {
			case err := <-ended:
				return 0, fmt.Errorf("wrk has ended by itself: %w\n%s", err, out.String())
			case <-limit:
				_ = cmd.Process.Kill()
				<-ended
				return 0, fmt.Errorf("wrk still waits for answers\n%s", out.String())
			case <-time.After(10 * time.Millisecond):
				_, stopped = read()
			}
		}
		lines, _ := read()
		_ = cmd.Process.Signal(syscall.SIGINT)
		if err := <-ended; err != nil {
			return 0, fmt.Errorf("wrk: %w\n%s", err, out.String())
		}
		counted, err := wants(out.String(), `(\d+) requests in`, `Socket errors.*`, `Non-2xx.*`)
		if err == nil && counted != len(lines) {
			err = fmt.Errorf("wrk counts %d answers, and told of %d", counted, len(lines))
		}
		mu.Lock()
		defer mu.Unlock()
		answers = append(answers, lines...)
		return counted, err
	})
	var done []string
	for _, line := range n.done() {
		done = append(done, "200 "+line)
	}
	eachOnce(t, done, answers)
}

// eachOnce says that what was done is what was answered, and that nothing was done twice.
func eachOnce(t testing.TB, done, answered []string) {
	t.Helper()
	times := make(map[string]int)
	for _, d := range done {
		times[d]++
	}
	for _, a := range answered {
		times[a]--
	}
	for what, more := range times {
		if more != 0 {
			t.Errorf("%s: done %+d times more often than answered", what, more)
		}
	}
	if len(times) != len(answered) {
		t.Errorf("%d answers to %d requests", len(answered), len(times))
	}
}

// A large body is uploaded while its server is about to move, which waits for it.
func TestNativeCurl(t *testing.T) {
	needs(t, "curl")
	body, sum := fileOf(t, 32<<20)
	n := newNative(t, HTTP, goServer)
	n.moveUnder(1, func(url string, over <-chan struct{}) (int, error) {
		return again(over, func(round int) (int, error) {
			var args []string
			var want strings.Builder
			const uploads = 3 // over one connection
			for i := range uploads {
				at := fmt.Sprintf("%s/%d-%d", url, round, i)
				args = append(args, "-T", body, at)
				fmt.Fprintf(&want, "%s %s\n", strings.TrimPrefix(at, url[:strings.LastIndex(url, "/")]), sum)
			}
			out, err := output("curl", append(args, "-sS", "--fail")...)
			if err == nil && out != want.String() {
				err = fmt.Errorf("curl was told\n%s, not\n%s", out, &want)
			}
			return uploads, err
		})
	})
	seen := make(map[string]bool)
	for _, line := range n.done() {
		if seen[line] {
			t.Errorf("%s was done twice", line)
		}
		seen[line] = true
	}
}

// talksWith starts a client that is told what to do line by line, and says how that went.
func talksWith(t *testing.T, client *exec.Cmd) (in io.WriteCloser, out io.ReadCloser) {
	t.Helper()
	in, err := client.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if out, err = client.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	client.Stderr = t.Output()
	client.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	return in, out
}

// A connection that has become a websocket is pinned: a pause names it, and is given up
// without harm to it, or cuts it. Whoever makes another then goes on.
func TestNativeWebsocket(t *testing.T) {
	const python = "/usr/bin/python3" // for which Debian's packages are
	needs(t, python)
	if err := exec.Command(python, "-c", "import websockets").Run(); err != nil {
		lacks(t, "python3-websockets")
	}
	n := newNative(t, HTTP, func(dir string) *exec.Cmd {
		return exec.Command(python, "testdata/native/websocket_server.py", filepath.Join(dir, "done"))
	})
	client := exec.Command(python, "testdata/native/websocket_client.py", strings.Replace(n.url(1), "http:", "ws:", 1))
	in, out := talksWith(t, client)
	t.Cleanup(func() { _ = client.Process.Kill(); _ = client.Wait() })
	lines := bufio.NewScanner(out)
	last, ended := "", 0
	answered := make(map[string]int)
	hear := func() bool {
		if !lines.Scan() {
			return false
		}
		if last = lines.Text(); last == "ended" {
			ended++
		} else {
			answered[last]++
		}
		return true
	}
	cuts := 0
	for i := range movesHere() {
		for range 5 {
			if !hear() {
				t.Fatal("the client has ended")
			}
		}
		eventually(t, "the pause names the client", func() bool { // whose node may take a moment to say why
			var b *Busy
			err := n.pause(20 * time.Millisecond)
			return errors.As(err, &b) && len(b.Sessions) == 1 && b.Sessions[0].Pinned && b.Sessions[0].Busy == "the connection has become one for websocket"
		})
		node := n.c.nodes[n.owner()]
		if i%2 == 0 {
			if err := node.Resume(t.Context(), "r", ""); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := node.Cut(t.Context(), "r"); err != nil {
			t.Fatal(err)
		}
		cuts++
		if err := n.pause(time.Minute); err != nil {
			t.Fatal(err)
		}
		n.carry()
		for had := ended; ended == had; {
			if !hear() {
				t.Fatal("the client has ended")
			}
		}
	}
	_ = in.Close()
	for hear() {
	}
	if err := client.Wait(); err != nil {
		t.Error(err)
	}
	if ended != cuts {
		t.Errorf("the client was cut off %d times, of which it was to be %d times", ended, cuts)
	}
	delete(answered, "ended")
	done := make(map[string]int)
	for _, number := range n.done() {
		done[number]++
	}
	for number := range answered {
		if done[number] != 1 {
			t.Errorf("%s was answered, and done %d times", number, done[number])
		}
	}
	// What was on its way when the connection was cut may have been done, at most once.
	for number, times := range done {
		if times != 1 {
			t.Errorf("%s was done %d times", number, times)
		}
	}
	if len(done) > len(answered)+cuts {
		t.Errorf("%d were done, %d answered, in %d connections", len(done), len(answered), cuts+1)
	}
	t.Logf("%d answers, %d pauses that named it and were given up, %d that cut it", len(answered), movesHere()-cuts, cuts)
}
