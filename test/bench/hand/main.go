// hand runs in the nodes for scripts/bench. It replicates as one would by hand: zfs
// send, a plain pipe over the network, zfs receive. It checks nothing and keeps
// nothing: whatever flocker does besides moving bytes is what the comparison shows.
//
//	hand serve ADDR        receive what comes, from any number of senders
//	hand copy ADDR SNAPSHOT DATASET
//	hand steps ADDR COUNT [SOURCE DIR DATASET]...
//
// steps writes a file of 4 KiB into DIR, takes a snapshot of SOURCE and sends the
// increment, COUNT times one after the other, over one connection. Of several sources
// each gets a step before one gets another, or all go on at once with -together, over a
// connection of their own. With -plain the pipe is TCP, otherwise TLS 1.3. And for all
// contenders:
//
//	hand sync COUNT [VOLUME DIR]...    the same steps, all at once, but flocker does them
//	hand volumes FROM TO          make flocker volumes, idle-FROM to idle-TO
//	hand load DIR                 append 16 KiB to a file and fsync it, ten times a second
//	hand age DATASET COUNT        once a second, how old the newest snapshot is
package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func main() {
	plain := flag.Bool("plain", false, "TCP without TLS")
	together := flag.Bool("together", false, "all sources at once")
	flag.Parse()
	if err := run(*plain, *together, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "hand:", err)
		os.Exit(1)
	}
}

func run(plain, together bool, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(plain, args[1])
	case len(args) == 4 && args[0] == "copy":
		return report(plain, args[1], 1, func(p []*pipe) error { return p[0].send(args[3], args[2]) })
	case len(args) >= 6 && len(args)%3 == 0 && args[0] == "steps":
		count, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		var all []*source
		for of := range slices.Chunk(args[3:], 3) {
			all = append(all, &source{name: of[0], dir: of[1], target: of[2]})
		}
		if !together {
			return report(plain, args[1], 1, func(p []*pipe) error { return steps(p[0], count, all...) })
		}
		return report(plain, args[1], len(all), func(p []*pipe) error {
			return atOnce(len(all), func(i int) error { return steps(p[i], count, all[i]) })
		})
	}
	if do, ok := others[first(args)]; ok {
		return do(args[1:])
	}
	return errors.New("usage: hand [-plain] [-together] serve ADDR | copy ADDR SNAPSHOT DATASET | steps ADDR COUNT (SOURCE DIR DATASET)+")
}

// atOnce does f for 0 to n-1 at the same time.
func atOnce(n int, f func(i int) error) error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// report prints how many bytes went and how many seconds it took, the making of the
// connections not counted: flocker keeps its own open too.
func report(plain bool, addr string, connections int, do func([]*pipe) error) error {
	var pipes []*pipe
	for range connections {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		if !plain {
			t := tls.Client(conn, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})
			if err := t.Handshake(); err != nil {
				return err
			}
			conn = t
		}
		pipes = append(pipes, newPipe(conn))
	}
	began := time.Now()
	if err := do(pipes); err != nil {
		return err
	}
	took, sent := time.Since(began), int64(0)
	for _, p := range pipes {
		sent += p.sent
	}
	fmt.Println(sent, took.Seconds())
	return nil
}

// source is one dataset that steps are made of.
type source struct {
	name, dir, target string
	before            string // its newest snapshot
}

func steps(p *pipe, count int, all ...*source) error {
	for i := range count {
		for _, s := range all {
			if err := s.step(p, i); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *source) step(p *pipe, i int) error {
	if err := small(s.dir); err != nil {
		return err
	}
	snapshot := fmt.Sprintf("%s@hand-%06d", s.name, i)
	if out, err := exec.Command("zfs", "snapshot", snapshot).CombinedOutput(); err != nil {
		return fmt.Errorf("zfs snapshot %s: %w: %s", snapshot, err, out)
	}
	var from []string
	if s.before != "" {
		from = []string{"-i", s.before}
	}
	s.before = snapshot
	return p.send(s.target, snapshot, from...)
}

// small writes what one step changes.
func small(dir string) error {
	data := make([]byte, 4096)
	rand.Read(data)
	return os.WriteFile(dir+"/small", data, 0o644)
}

// serve receives until it is killed.
func serve(plain bool, addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	if !plain {
		cert, err := selfSigned()
		if err != nil {
			return err
		}
		ln = tls.NewListener(ln, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})
	}
	fmt.Println("listening")
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() { // until its sender hangs up
			defer conn.Close()
			p := newPipe(conn)
			var err error
			for err == nil {
				err = p.receive()
			}
			if err != io.EOF {
				fmt.Fprintln(os.Stderr, "hand:", err)
			}
		}()
	}
}

// pipe carries streams, one after the other: the target's name, chunks with their
// lengths, a chunk of none; one byte comes back when the stream is on disk.
type pipe struct {
	conn net.Conn
	r    *bufio.Reader
	buf  []byte
	sent int64
}

const chunk = 256 << 10

func newPipe(conn net.Conn) *pipe {
	return &pipe{conn: conn, r: bufio.NewReaderSize(conn, 64<<10), buf: make([]byte, 4+chunk)}
}

func (p *pipe) write(n int) error {
	binary.BigEndian.PutUint32(p.buf, uint32(n))
	_, err := p.conn.Write(p.buf[:4+n])
	return err
}

func (p *pipe) read() (n int, err error) {
	if _, err = io.ReadFull(p.r, p.buf[:4]); err != nil {
		return 0, err
	}
	if n = int(binary.BigEndian.Uint32(p.buf)); n > chunk {
		return 0, fmt.Errorf("chunk of %d bytes", n)
	}
	_, err = io.ReadFull(p.r, p.buf[4:4+n])
	return n, err
}

func (p *pipe) send(dataset, snapshot string, from ...string) error {
	if err := p.write(copy(p.buf[4:], dataset)); err != nil {
		return err
	}
	out, w, err := bigPipe()
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command("zfs", append(append([]string{"send", "-L", "-e", "-c"}, from...), snapshot)...)
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	w.Close()
	for {
		n, err := out.Read(p.buf[4:])
		if n > 0 {
			p.sent += int64(n)
			if err := p.write(n); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := cmd.Wait(); err != nil {
		return err
	}
	if err := p.write(0); err != nil {
		return err
	}
	if answer, err := p.r.ReadByte(); err != nil || answer != 0 {
		return fmt.Errorf("the stream was not received: %v", err)
	}
	return nil
}

func (p *pipe) receive() error {
	n, err := p.read()
	if err != nil {
		return err
	}
	r, in, err := bigPipe()
	if err != nil {
		return err
	}
	defer in.Close()
	cmd := exec.Command("zfs", "receive", "-u", "-s", string(p.buf[4:4+n]))
	cmd.Stdin, cmd.Stderr = r, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	r.Close()
	for {
		n, err := p.read()
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if _, err := in.Write(p.buf[4 : 4+n]); err != nil {
			return err
		}
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		return err
	}
	_, err = p.conn.Write([]byte{0})
	return err
}

// bigPipe is as large as flocker's own.
func bigPipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err == nil {
		const setPipeSize = 1031 // F_SETPIPE_SZ
		syscall.Syscall(syscall.SYS_FCNTL, r.Fd(), setPipeSize, 1<<20)
	}
	return r, w, err
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
