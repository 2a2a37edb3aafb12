package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	protocol "github.com/docker/go-plugins-helpers/volume"

	"github.com/flocker-io/flocker/internal/volume"
)

// TestContract replays what Docker sends, recorded from a real engine, over a real
// socket. A line at the margin is
//
//	METHOD VOLUME [ID | a=1 b=2]   one call, printed as status and body
//	raw METHOD BODY                a call with exactly this body
//	refuse VOLUME TEXT, panic VOLUME, fail VOLUME, heal VOLUME   what the backend does
//	restart                        flockd stops and starts again
//	mounts                         prints what the backend has mounted
func TestContract(t *testing.T) {
	files, err := filepath.Glob("testdata/contract/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			w := &contractWorld{t: t, backend: newMemoryBackend("/flocker")}
			w.server = startPlugin(t, w.backend)
			golden(t, path, w.do)
		})
	}
}

type contractWorld struct {
	t       *testing.T
	backend *memoryBackend
	server  *served
}

var requestID = regexp.MustCompile(`request [0-9a-f]{16}`)

func (w *contractWorld) do(line string) string {
	w.t.Helper()
	verb, rest, _ := strings.Cut(line, " ")
	name, args, _ := strings.Cut(rest, " ")
	switch verb {
	case "raw":
		return w.post(name, args)
	case "restart":
		w.server.stop()
		w.server = startPluginAt(w.t, w.backend, w.server.socket)
		return ""
	case "mounts":
		return w.backend.mounts()
	case "refuse":
		w.backend.rule(name, rule{refuse: volume.Errorf(volume.CodeRefused, "%s", args)})
		return ""
	case "fail":
		w.backend.rule(name, rule{refuse: errors.New("zfs mount: exit status 1")})
		return ""
	case "panic":
		w.backend.rule(name, rule{panics: true})
		return ""
	case "heal":
		w.backend.rule(name, rule{})
		return ""
	case "Activate":
		return w.post("Plugin.Activate", "")
	case "Capabilities", "List":
		return w.post("VolumeDriver."+verb, "{}")
	}
	body := map[string]any{"Name": name}
	if name == `""` {
		body["Name"] = ""
	}
	switch verb {
	case "Create":
		opts := map[string]string{}
		for _, f := range strings.Fields(args) {
			k, v, _ := strings.Cut(f, "=")
			opts[k] = v
		}
		body["Opts"] = opts
	case "Mount", "Unmount":
		body["ID"] = args
	case "Get", "Remove", "Path":
	default:
		w.t.Fatalf("no such line: %s", line)
	}
	b, err := json.Marshal(body)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.post("VolumeDriver."+verb, string(b))
}

func (w *contractWorld) post(method, body string) string {
	w.t.Helper()
	status, answer, err := w.server.post(method, body)
	if err != nil {
		return "no answer"
	}
	answer = requestID.ReplaceAllString(answer, "request R")
	answer = strings.ReplaceAll(answer, strings.Join(volume.OptionNames(), ", "), "<all>")
	return strings.TrimSpace(fmt.Sprintf("%d %s", status, answer))
}

// served is a Plugin on a socket.
type served struct {
	t      *testing.T
	socket string
	client *http.Client
	cancel context.CancelFunc
	done   chan error
	once   sync.Once
}

func startPlugin(t *testing.T, b Backend) *served {
	t.Helper()
	return startPluginAt(t, b, filepath.Join(t.TempDir(), "plugins", "flocker.sock"))
}

func startPluginAt(t *testing.T, b Backend, socket string) *served {
	t.Helper()
	return run(t, &Plugin{Backend: b, Log: testLog(t), Socket: socket, Drain: 200 * time.Millisecond})
}

func run(t *testing.T, p *Plugin) *served {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, socket := make(chan struct{}), p.Socket
	p.Listening = func() { close(ready) }
	s := &served{t: t, socket: socket, cancel: cancel, done: make(chan error, 1)}
	s.client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	go func() { s.done <- p.Run(ctx) }()
	t.Cleanup(s.stop)
	select {
	case <-ready:
	case err := <-s.done:
		t.Fatalf("plugin did not start: %v", err)
	}
	return s
}

// stop ends the plugin and checks that it leaves nothing behind.
func (s *served) stop() {
	s.once.Do(func() {
		s.t.Helper()
		s.cancel()
		if err := <-s.done; err != nil {
			s.t.Errorf("Run: %v", err)
		}
		if _, err := os.Lstat(s.socket); !errors.Is(err, os.ErrNotExist) {
			s.t.Errorf("the socket is still there: %v", err)
		}
		s.client.CloseIdleConnections()
	})
}

func (s *served) post(method, body string) (status int, answer string, err error) {
	r, err := s.client.Post("http://plugin/"+method, "application/vnd.docker.plugins.v1.1+json", strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return r.StatusCode, string(b), err
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestSocket(t *testing.T) {
	t.Run("mode and directory", func(t *testing.T) {
		s := startPlugin(t, newMemoryBackend(""))
		info, err := os.Lstat(s.socket)
		if err != nil || info.Mode() != os.ModeSocket|0o600 {
			t.Errorf("socket has mode %v, %v; want %v", info.Mode(), err, os.ModeSocket|0o600)
		}
	})
	t.Run("stale socket is replaced", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "flocker.sock")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
		s := startPluginAt(t, newMemoryBackend(""), path)
		if status, _, err := s.post("Plugin.Activate", ""); status != 200 {
			t.Errorf("Activate = %d, %v; want 200", status, err)
		}
	})
	t.Run("live socket is left alone", func(t *testing.T) {
		s := startPlugin(t, newMemoryBackend(""))
		second := &Plugin{Backend: newMemoryBackend(""), Log: testLog(t), Socket: s.socket}
		if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another flockd") {
			t.Errorf("a second plugin: Run = %v; want it refused", err)
		}
		if status, _, err := s.post("Plugin.Activate", ""); status != 200 {
			t.Errorf("Activate of the first = %d, %v; want 200", status, err)
		}
	})
	t.Run("a file is left alone", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "flocker.sock")
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		p := &Plugin{Backend: newMemoryBackend(""), Log: testLog(t), Socket: path}
		if err := p.Run(t.Context()); err == nil {
			t.Error("Run replaced a plain file")
		}
		if b, _ := os.ReadFile(path); string(b) != "precious" {
			t.Errorf("the file now has %q", b)
		}
	})
}

// A call under way when flockd stops gets its answer, and a good one if it is done
// within the drain time.
func TestStopLetsCallsFinish(t *testing.T) {
	for name, tc := range map[string]struct {
		drain time.Duration
		done  bool // the call, before that has passed
		want  string
	}{
		"in time": {time.Minute, true, `{"Mountpoint":"/flocker/db/data"}`},
		"late":    {200 * time.Millisecond, false, "flockd is stopping"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newMemoryBackend("/flocker")
			s := run(t, &Plugin{Backend: b, Log: testLog(t), Socket: filepath.Join(t.TempDir(), "flocker.sock"), Drain: tc.drain})
			if _, answer, _ := s.post("VolumeDriver.Create", `{"Name":"db"}`); strings.TrimSpace(answer) != "{}" {
				t.Fatalf("Create: %s", answer)
			}
			r := rule{begun: make(chan struct{}), goOn: make(chan struct{})}
			b.rule("db", r)
			answered := make(chan string)
			go func() {
				_, answer, err := s.post("VolumeDriver.Mount", `{"Name":"db","ID":"m1"}`)
				answered <- fmt.Sprint(answer, err)
			}()
			select {
			case <-r.begun:
			case got := <-answered:
				t.Fatalf("Mount = %s before the backend had the call", got)
			}
			s.cancel()
			if tc.done {
				for _, err := os.Lstat(s.socket); !errors.Is(err, os.ErrNotExist); _, err = os.Lstat(s.socket) {
					time.Sleep(time.Millisecond) // until it is stopping
				}
				close(r.goOn)
			}
			if got := <-answered; !strings.Contains(got, tc.want) {
				t.Errorf("Mount while stopping = %s; want %s", got, tc.want)
			}
			s.stop()
		})
	}
}

// The budgets, with a clock that costs nothing.
func TestBudgets(t *testing.T) {
	for name, tc := range map[string]struct {
		rule rule
		took time.Duration
		want string // in the error; "" for success
	}{
		"within":              {rule{slow: 99 * time.Second}, 99 * time.Second, ""},
		"hears its context":   {rule{slow: time.Hour}, SlowBudget, "not done after 1m40s"},
		"answers in overtime": {rule{slow: 103 * time.Second, deaf: true}, 103 * time.Second, ""},
		"hears nothing":       {rule{slow: 10 * time.Minute, deaf: true}, SlowBudget + answerSlack, "not done after 1m40s"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newMemoryBackend("/flocker")
				var seen []Call
				d := NewDriver(t.Context(), b, testLog(t), func(c Call) { seen = append(seen, c) })
				if err := d.Create(&protocol.CreateRequest{Name: "db"}); err != nil {
					t.Fatal(err)
				}
				b.rule("db", tc.rule)
				began := time.Now()
				_, err := d.Mount(&protocol.MountRequest{Name: "db", ID: "m1"})
				if took := time.Since(began); took != tc.took {
					t.Errorf("answered after %s; want %s", took, tc.took)
				}
				if (err == nil) != (tc.want == "") || err != nil && (!strings.Contains(err.Error(), tc.want) || volume.CodeOf(err) != volume.CodeTimeout) {
					t.Errorf("Mount = %v; want an error with %q", err, tc.want)
				}
				last := seen[len(seen)-1]
				if last.Method != "Mount" || last.Took != tc.took || (last.Code() == "ok") != (tc.want == "") {
					t.Errorf("observed %v with code %s", last, last.Code())
				}
				d.Wait()
			})
		})
	}
}

func TestQuietAboutNothing(t *testing.T) {
	var log bytes.Buffer
	d := NewDriver(t.Context(), newMemoryBackend(""), slog.New(slog.NewTextHandler(&log, nil)), nil)
	if _, err := d.Get(&protocol.GetRequest{}); err == nil {
		t.Error("Get without a name succeeded")
	}
	if _, err := d.Get(&protocol.GetRequest{Name: "unknown"}); volume.CodeOf(err) != volume.CodeNotFound {
		t.Errorf("Get of an unknown volume = %v", err)
	}
	if _, err := d.List(); err != nil {
		t.Error(err)
	}
	if log.Len() != 0 {
		t.Errorf("logged %s", &log)
	}
}

// The ID of a call reaches the backend, so that it can go with the work.
func TestRequestID(t *testing.T) {
	b := &spyBackend{memoryBackend: newMemoryBackend("")}
	var seen Call
	d := NewDriver(t.Context(), b, testLog(t), func(c Call) { seen = c })
	if err := d.Remove(&protocol.RemoveRequest{Name: "db"}); err != nil {
		t.Fatal(err)
	}
	if b.request == "" || b.request != seen.Request {
		t.Errorf("backend saw request %q, observer %q", b.request, seen.Request)
	}
}

type spyBackend struct {
	*memoryBackend
	request string
}

func (b *spyBackend) Remove(ctx context.Context, name string) error {
	b.request = RequestID(ctx)
	return b.memoryBackend.Remove(ctx, name)
}

// A clone is as its original where nothing else is said, so no default of this node's is
// put in, not even for a volume that nobody named.
func TestCloneOptions(t *testing.T) {
	b := newMemoryBackend(t.TempDir())
	d := NewDriver(t.Context(), b, testLog(t), func(Call) {})
	anonymous := strings.Repeat("ab", 32)
	for _, name := range []string{"db", anonymous} {
		if err := d.Create(&protocol.CreateRequest{Name: name, Options: map[string]string{"from": "pg@before", "size": "1G"}}); err != nil {
			t.Error(err)
		}
	}
	if err := d.Create(&protocol.CreateRequest{Name: "../db", Options: map[string]string{"from": "pg"}}); err == nil {
		t.Error("a name that is none was passed on")
	}
	if want := []string{"db map[from:pg@before size:1G]", anonymous + " map[from:pg@before size:1G]"}; !slices.Equal(b.cloned, want) {
		t.Errorf("the backend was asked for %q, want %q", b.cloned, want)
	}
}
