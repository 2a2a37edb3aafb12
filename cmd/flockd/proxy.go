package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/flocker-io/flocker/internal/cluster"
	flockd "github.com/flocker-io/flocker/internal/daemon"
	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/version"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/proxy"
)

// proxyCommand is the proxy, and what an operator may ask of it.
func proxyCommand(out, errOut io.Writer) *cli.Command {
	return &cli.Command{
		Name: "proxy", Usage: "the proxy: serves the ports of routes on this node, wherever their volumes are",
		Description: "Without a command it runs the proxy, as flockd-proxy.service does. flockd tells it what to do, and may be restarted meanwhile.\n" +
			"SIGHUP has a newer process take over, of whatever binary is there now, while this one serves those who are connected\n" +
			"to their end; SIGTERM ends it after --drain.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "drain", EnvVars: []string{"FLOCKD_PROXY_DRAIN"}, Value: 10 * time.Second,
				Usage: "how `LONG` clients may go on when the proxy is stopped for good"},
		},
		Action: func(c *cli.Context) error {
			cfg, err := config(c)
			if err != nil {
				return err
			}
			return serveProxy(c.Context, cfg, c.Duration("drain"), errOut)
		},
		Subcommands: []*cli.Command{{
			Name: "status", Usage: "print what the proxy does, as JSON",
			Action: func(c *cli.Context) error {
				cfg, err := config(c)
				if err != nil {
					return err
				}
				ctx, cancel := context.WithTimeout(c.Context, 10*time.Second)
				defer cancel()
				client := proxy.Dial(proxySocket(cfg))
				defer client.Close()
				s, err := client.Status(ctx)
				if err != nil {
					return err
				}
				enc := json.NewEncoder(out)
				enc.SetIndent("", "  ")
				return enc.Encode(s)
			},
		}},
	}
}

func proxySocket(cfg flockd.Config) string { return filepath.Join(cfg.RunDir, "proxy.sock") }

// What a process of the proxy hands on to the next one, beside the ports of routes: the
// names are in the environment, in the order of the files.
const (
	handedOn    = "FLOCKD_PROXY_HANDED_ON"
	fileNodes   = "nodes"   // the port for other nodes
	fileControl = "control" // the control socket
	fileLink    = "link"    // to the process before
)

// takeoverWait is what a newer process has to come up.
const takeoverWait = 30 * time.Second

// proxyProcess is one process of the proxy.
type proxyProcess struct {
	cfg     flockd.Config
	log     *slog.Logger
	node    *proxy.Node
	nodes   *net.TCPListener
	control *net.UnixListener
	link    net.Conn // to the process before; nil: there is none
}

// heapFloor is what Go's collector takes for in use in the proxy from the beginning, in bytes,
// though nothing of it is ever touched, and so no memory is behind it. The collector begins when
// as much again was made as is in use. In a proxy of few clients that is little, and with
// thousands of new ones a second it would run all the time, and empty the pools of buffers each
// time; in one of many it changes nothing. A new connection takes an eighth less of processor.
const heapFloor = 32 << 20

// serveProxy runs the proxy until ctx ends, or a newer process has taken over and nobody is
// left here.
func serveProxy(ctx context.Context, cfg flockd.Config, drain time.Duration, errOut io.Writer) error {
	p := &proxyProcess{cfg: cfg, log: cfg.Logger(errOut)}
	p.log.Info("flockd proxy starts", "version", version.String())
	defer runtime.KeepAlive(make([]byte, heapFloor))
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, unix.SIGHUP)
	defer signal.Stop(hup)

	given, err := inherited()
	if err != nil {
		return err
	}
	if err := p.listen(given); err != nil {
		return err
	}
	defer func() { _ = p.nodes.Close(); _ = p.control.Close() }()
	id, err := awaitIdentity(ctx, cluster.DirDisk(cfg.StateDir), p.log, func() { p.ready() })
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	peers := &proxyPeers{dialer: transport.Dialer{Identity: id}}
	p.node = proxy.NewNode(proxy.Options{
		Log: p.log, Node: string(id.Node()), Peers: peers, File: filepath.Join(cfg.RunDir, "proxy.json"), Secrets: p.cfg.RouteDir, Listeners: given.routes, Version: version.Version,
	})
	if p.link != nil {
		p.node.Succeed(p.link)
	}

	// What serves clients outlasts ctx: they may go on for a while.
	serving, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var work sync.WaitGroup
	defer work.Wait()
	defer cut()
	l := transport.Listen(p.nodes, id, func(n volume.NodeID) error { return p.node.Admit(string(n)) }, p.log)
	own := l.Protocol(transport.ProtoProxy)
	failed := make(chan error, 3)
	work.Go(func() {
		if err := l.Run(serving); err != nil {
			failed <- err
		}
	})
	work.Go(func() {
		if err := p.node.Run(serving, own); err != nil {
			failed <- err
		}
	})
	work.Go(func() {
		if err := keepIdentity(serving, cluster.DirDisk(cfg.StateDir), id, p.log); err != nil {
			failed <- err
		}
	})
	stop := p.serveControl(&work)
	defer func() { stop() }()
	p.ready()

	for {
		select {
		case err := <-failed:
			return err
		case <-ctx.Done():
			notify(p.log, daemon.SdNotifyStopping)
			stop()
			return p.leave(drain, l)
		case <-hup:
		}
		ours, err := p.succeed()
		if err != nil {
			p.log.Error("no newer process takes over; this one goes on", "err", err)
			continue
		}
		stop()
		_ = l.Close()
		p.log.Info("a newer process has taken over; those who are connected here are served to their end")
		err = p.node.Retire(ctx, ours)
		p.log.Info("flockd proxy has stopped", "clients", err == nil)
		return nil
	}
}

// leave serves those who are connected for a while, and accepts nobody.
func (p *proxyProcess) leave(drain time.Duration, l *transport.Listener) error {
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	link, nobody := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, nobody) }()
	if err := p.node.HandOver(func(map[string]*os.File) error { return nil }); err != nil {
		return err
	}
	_ = l.Close()
	if err := p.node.Retire(ctx, link); err != nil {
		p.log.Warn("clients that were still connected are cut off", "after", drain)
	}
	p.log.Info("flockd proxy has stopped")
	return nil
}

// ready tells whoever started this process that it serves: the process before, or systemd.
func (p *proxyProcess) ready() {
	if p.link != nil {
		// One byte, before anything else is said on the link.
		if _, err := p.link.Write([]byte{'\n'}); err != nil {
			p.log.Warn("the process before cannot be told that this one serves", "err", err)
		}
		notify(p.log, fmt.Sprintf("MAINPID=%d", os.Getpid()))
	}
	notify(p.log, daemon.SdNotifyReady)
}

// given is what the process before has handed on.
type given struct {
	routes  map[string]net.Listener
	nodes   net.Listener
	control net.Listener
	link    net.Conn
}

func inherited() (g given, err error) {
	names := os.Getenv(handedOn)
	if names == "" {
		return g, nil
	}
	if err := os.Unsetenv(handedOn); err != nil {
		return g, err
	}
	g.routes = make(map[string]net.Listener)
	for i, name := range strings.Split(names, ",") {
		const first = 3 // after those that every process has
		f := os.NewFile(uintptr(first+i), name)
		if name == fileLink {
			g.link, err = net.FileConn(f)
		} else {
			var l net.Listener
			l, err = net.FileListener(f)
			switch name {
			case fileNodes:
				g.nodes = l
			case fileControl:
				g.control = l
			default:
				g.routes[name] = l
			}
		}
		_ = f.Close()
		if err != nil {
			return g, fmt.Errorf("taking over %s from the process before: %w", name, err)
		}
	}
	return g, nil
}

// listen takes what was handed on, and makes what was not.
func (p *proxyProcess) listen(g given) error {
	p.link = g.link
	if g.nodes == nil {
		var err error
		if g.nodes, err = net.Listen("tcp", p.cfg.ProxyListen); err != nil {
			return fmt.Errorf("listening for the proxies of other nodes: %w", err)
		}
	}
	if g.control == nil {
		if err := os.MkdirAll(p.cfg.RunDir, 0o755); err != nil {
			return err
		}
		socket := proxySocket(p.cfg)
		if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		var err error
		if g.control, err = net.Listen("unix", socket); err != nil {
			return fmt.Errorf("listening for flockd: %w", err)
		}
		if err := os.Chmod(socket, 0o600); err != nil {
			return err
		}
	}
	var tcp, unix bool
	p.nodes, tcp = g.nodes.(*net.TCPListener)
	p.control, unix = g.control.(*net.UnixListener)
	if !tcp || !unix {
		return errors.New("the process before has handed on sockets of the wrong kind")
	}
	p.control.SetUnlinkOnClose(false) // a newer process may have it
	return nil
}

// serveControl serves flockd, until stop is called.
func (p *proxyProcess) serveControl(work *sync.WaitGroup) (stop func()) {
	srv := &http.Server{Handler: proxy.Handler(p.node), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)}
	work.Go(func() {
		if err := srv.Serve(p.control); !errors.Is(err, http.ErrServerClosed) {
			p.log.Error("flockd is not served any more", "err", err)
		}
	})
	return func() { _ = srv.Close() }
}

// succeed starts a newer process, of the binary that is there now, and returns the link to
// it once it serves.
func (p *proxyProcess) succeed() (ours net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), fileLink)
	defer func() { _ = theirs.Close() }()
	end := os.NewFile(uintptr(fds[0]), fileLink)
	ours, err = net.FileConn(end)
	_ = end.Close()
	if err != nil {
		return nil, err
	}
	err = p.node.HandOver(func(files map[string]*os.File) error {
		nodes, err := proxy.HandOn(p.nodes)
		if err != nil {
			return err
		}
		defer func() { _ = nodes.Close() }()
		control, err := proxy.HandOn(p.control)
		if err != nil {
			return err
		}
		defer func() { _ = control.Close() }()
		files[fileNodes], files[fileControl], files[fileLink] = nodes, control, theirs
		return startNewer(files, ours)
	})
	if err != nil {
		_ = ours.Close()
		return nil, err
	}
	return ours, nil
}

// startNewer starts a process that is handed files on, and waits until it says that it
// serves.
func startNewer(files map[string]*os.File, link net.Conn) error {
	path, err := exec.LookPath(os.Args[0]) // not what runs now, which may have been replaced
	if err != nil {
		return err
	}
	cmd := exec.Command(path, os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	var names []string
	for name, f := range files {
		names = append(names, name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, handedOn+"=") }),
		handedOn+"="+strings.Join(names, ","))
	// It is to be a child of whoever has started this process, as systemd: that one learns
	// when it ends, and this one may live on for as long as its clients do.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_PARENT}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting a newer process: %w", err)
	}
	defer func() { _ = cmd.Process.Release() }()
	_ = files[fileLink].Close() // so that its end is that of the link
	_ = link.SetReadDeadline(time.Now().Add(takeoverWait))
	_, err = link.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = cmd.Process.Kill()
	}
	if err != nil {
		return fmt.Errorf("the newer process does not come up (see its log): %w", err)
	}
	return link.SetReadDeadline(time.Time{})
}

// proxyPeers are the proxies of other nodes, by the node's identity.
type proxyPeers struct{ dialer transport.Dialer }

func (p *proxyPeers) Dial(ctx context.Context, node, addr string) (net.Conn, error) {
	id, err := volume.ParseNodeID(node)
	if err != nil {
		return nil, err
	}
	return p.dialer.DialNode(ctx, id, addr, transport.ProtoProxy)
}

func (p *proxyPeers) Peer(conn net.Conn) string {
	id, _ := transport.PeerOf(conn)
	return string(id)
}

// identityPoll is the time between two looks at the node's identity on disk.
const identityPoll = 5 * time.Second

// awaitIdentity returns who this node is, as soon as it is a member of a cluster. Until then
// there is nothing to do, which idle is called for once.
func awaitIdentity(ctx context.Context, disk cluster.Disk, log *slog.Logger, idle func()) (*transport.Identity, error) {
	for told := false; ; told = true {
		id, err := cluster.LoadIdentity(disk)
		if !errors.Is(err, cluster.ErrNoCluster) {
			return id, err
		}
		if !told {
			log.Info("this node is no member of a cluster yet")
			idle()
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// keepIdentity takes renewed certificates into use until ctx ends. The error says that the
// node is somebody else by now: who is started again begins as that one, and serves nobody
// whom the old cluster has told it of.
func keepIdentity(ctx context.Context, disk cluster.Disk, id *transport.Identity, log *slog.Logger) error {
	var last string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(identityPoll):
		}
		now, err := cluster.LoadIdentity(disk)
		if errors.Is(err, cluster.ErrNoCluster) || err == nil && (now.Node() != id.Node() || now.Cluster() != id.Cluster()) {
			return fmt.Errorf("this node is no more node %s of cluster %s", id.Node(), id.Cluster())
		}
		var cert []byte
		if err == nil {
			cert, err = disk.Read("node.crt")
		}
		if err == nil {
			err = id.Replace(cert)
		}
		if err == nil {
			last = ""
		} else if last != err.Error() {
			last = err.Error()
			log.Warn("this node's certificate cannot be read again", "err", err)
		}
	}
}
