package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// carried are the two ends of a carrier over TCP; begun gets the streams that come in.
func carried(t testing.TB, begun func(*stream)) (*carrier, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	t.Cleanup(func() { cancel(); work.Wait() })
	c := newCarrier(a, nil)
	work.Go(func() {
		if err := c.run(ctx); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the side that begins streams: %v", err)
		}
	})
	if begun != nil {
		work.Go(func() {
			if err := newCarrier(b, func(s *stream) { work.Go(func() { begun(s) }) }).run(ctx); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the side that has streams begun: %v", err)
			}
		})
	}
	return c, b
}

func begin(t testing.TB, c *carrier, first string) *stream {
	t.Helper()
	s, err := c.begin([]byte(first))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Many streams at once each get their own bytes, whole and in order, and their ends.
func TestCarrierBytes(t *testing.T) {
	c, _ := carried(t, func(s *stream) {
		_, _ = io.Copy(s, s)
		_ = s.CloseWrite()
		s.awaitHangup()
		_ = s.Close()
	})
	var work sync.WaitGroup
	for i := range 50 {
		want := make([]byte, 1+i*i*1000)
		random := rand.NewChaCha8([32]byte{byte(i)})
		_, _ = random.Read(want)
		s := begin(t, c, string(want[:1]))
		work.Go(func() {
			for p := want[1:]; len(p) > 0; {
				n, err := s.Write(p[:min(len(p), 1+int(random.Uint64()%200_000))])
				if err != nil {
					t.Error(err)
					return
				}
				p = p[n:]
			}
			if err := s.CloseWrite(); err != nil {
				t.Error(err)
			}
		})
		work.Go(func() {
			got, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("stream %d: %d bytes come back as %d, %v", i, len(want), len(got), err)
			}
			_ = s.Close()
		})
	}
	work.Wait()
	eventually(t, "no stream is left", func() bool { n, _ := c.load(); return n == 0 })
}

// A stream whose end nobody reads costs as much as its window, and holds up no other.
func TestCarrierBackpressure(t *testing.T) {
	over, theirs := make(chan struct{}), make(chan *stream, 1)
	c, _ := carried(t, func(s *stream) {
		defer func() { _ = s.Close() }()
		first, err := s.readChunk()
		if err != nil {
			return
		}
		defer first.release()
		if first.bytes()[0] == 'd' { // deaf
			theirs <- s
			<-over
			return
		}
		_, _ = s.Write(first.bytes())
	})
	deaf := begin(t, c, "d")
	var n int
	var err error
	var says sync.WaitGroup
	says.Go(func() { n, err = deaf.Write(make([]byte, 10*streamWindow)) })
	there := <-theirs
	eventually(t, "its window is full", func() bool {
		there.mu.Lock()
		defer there.mu.Unlock()
		return there.owed == 0
	})
	_ = deaf.SetWriteDeadline(time.Unix(1, 0))
	says.Wait()
	if !errors.Is(err, os.ErrDeadlineExceeded) || n > streamWindow || n < streamWindow-1 {
		t.Errorf("a deaf one is said %d bytes, %v", n, err)
	}
	for range 100 {
		s := begin(t, c, "x")
		if got, err := io.ReadAll(s); string(got) != "x" || err != nil {
			t.Fatalf("beside it: %q, %v", got, err)
		}
	}
	close(over)
}

// Each end of a stream finds what the other has done.
func TestCarrierEnds(t *testing.T) {
	theirs := make(chan *stream, 1)
	c, _ := carried(t, func(s *stream) { theirs <- s })
	for _, test := range []struct {
		name       string
		do         func(s *stream)
		reads      error // what the other end reads after "ab"
		readsFirst bool  // that "ab" is still there
		writes     error
	}{
		{"all said", func(s *stream) { _ = s.CloseWrite() }, io.EOF, true, nil},
		{"closed", func(s *stream) { _ = s.Close() }, io.EOF, true, syscall.EPIPE},
		{"all said, then closed", func(s *stream) { _ = s.CloseWrite(); _ = s.Close() }, io.EOF, true, syscall.EPIPE},
		{"reset", func(s *stream) { _ = s.SetLinger(0); _ = s.Close() }, syscall.ECONNRESET, false, syscall.ECONNRESET},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := begin(t, c, "a")
			if _, err := s.Write([]byte("b")); err != nil {
				t.Fatal(err)
			}
			other := <-theirs
			defer func() { _ = other.Close() }()
			test.do(s)
			eventually(t, "it is heard", func() bool {
				other.mu.Lock()
				defer other.mu.Unlock()
				return errors.Is(other.mayWrite(), test.writes) && (other.ended || other.lost != nil)
			})
			got := make([]byte, 2)
			if test.readsFirst {
				if _, err := io.ReadFull(other, got); err != nil || string(got) != "ab" {
					t.Errorf("%q, %v is read first", got, err)
				}
			}
			if _, err := other.Read(got); !errors.Is(err, test.reads) {
				t.Errorf("%v is read at the end, want %v", err, test.reads)
			}
			if _, err := other.Write([]byte("x")); !errors.Is(err, test.writes) {
				t.Errorf("writing: %v, want %v", err, test.writes)
			}
		})
	}
}

// When the connection is lost, so is every stream; one that had ended is whole.
func TestCarrierIsLost(t *testing.T) {
	theirs := make(chan *stream, 2)
	c, raw := carried(t, func(s *stream) { theirs <- s })
	whole, half := begin(t, c, "w"), begin(t, c, "h")
	for range 2 {
		s := <-theirs
		_, _ = s.Write([]byte("said"))
		if err := s.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
	}
	if err := whole.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both have heard", func() bool {
		for _, s := range []*stream{whole, half} {
			s.mu.Lock()
			ended := s.ended
			s.mu.Unlock()
			if !ended {
				return false
			}
		}
		return true
	})
	_ = raw.Close()
	eventually(t, "it is lost", func() bool { _, ok := c.load(); return !ok })
	if got, err := io.ReadAll(whole); string(got) != "said" || err != nil {
		t.Errorf("the one that had ended: %q, %v", got, err)
	}
	if _, err := io.ReadAll(half); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the one that had not: %v", err)
	}
	if _, err := c.begin(nil); err == nil {
		t.Error("a stream begins on what is lost")
	}
}

// A carrier that is retired ends with its last stream, and not before.
func TestCarrierRetires(t *testing.T) {
	c, _ := carried(t, func(s *stream) {
		_, _ = io.Copy(s, s)
		_ = s.Close()
	})
	s := begin(t, c, "x")
	c.retire()
	if _, err := c.begin(nil); err == nil {
		t.Error("it carries on")
	}
	_ = s.CloseWrite()
	if got, err := io.ReadAll(s); string(got) != "x" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	_ = s.Close()
	eventually(t, "it is closed", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.over != nil
	})
}

// Whether a session is quiet takes knowing what is still under way.
func TestCarrierUnderway(t *testing.T) {
	theirs := make(chan *stream, 1)
	c, _ := carried(t, func(s *stream) { theirs <- s })
	s := begin(t, c, "a")
	other := <-theirs
	if is, ok := other.underway(); !is || !ok {
		t.Error("what nobody has read is not under way")
	}
	p, err := other.readChunk()
	if err != nil {
		t.Fatal(err)
	}
	p.release()
	for _, s := range []*stream{s, other} {
		eventually(t, "all was acknowledged", func() bool { is, ok := s.underway(); return !is && ok })
	}
}

// Whatever comes on a carrier, the streams that begin by it end when it does.
func FuzzCarrier(f *testing.F) {
	f.Add(appendFrame(nil, frameData, 1, []byte("hello")))
	f.Add(appendFrame(appendFrame(nil, frameData, 1, []byte("hello")), frameEnd, 1, nil))
	f.Add(appendFrame(appendFrame(nil, frameData, 2, make([]byte, chunkSize)), frameClose, 2, nil))
	f.Add(appendFrame(appendFrame(nil, frameReset, 3, nil), frameData, 3, []byte("late")))
	f.Add(appendFrame(nil, frameCredit, 1, []byte{0xff, 0xff, 0xff, 0xff}))
	f.Add(appendFrame(nil, frameCredit, 1, []byte{1}))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, said []byte) {
		var streams sync.WaitGroup
		total := 0
		var mu sync.Mutex
		conn := &heardConn{in: bytes.NewReader(said)}
		c := newCarrier(conn, func(s *stream) {
			streams.Go(func() {
				got, _ := io.ReadAll(s)
				_, _ = s.Write([]byte("answer"))
				_ = s.Close()
				mu.Lock()
				defer mu.Unlock()
				total += len(got)
			})
		})
		_ = c.run(t.Context())
		streams.Wait()
		if n, _ := c.load(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
		if total > len(said) {
			t.Errorf("%d bytes are read of %d", total, len(said))
		}
	})
}

// A client that has said all, to a server that ended first, has not left: through another
// node, too, the door hears an end and no close, and gives the server the time it takes.
func TestRelayEndsStreamsByHalves(t *testing.T) {
	begun, left := make(chan *stream, 2), make(chan bool, 4)
	c, _ := carried(t, func(s *stream) {
		s.onLeave(func(bool) { left <- true })
		begun <- s
	})
	ours := begin(t, c, "x")
	theirs := <-begun
	defer func() { _ = theirs.Close() }()
	if err := theirs.CloseWrite(); err != nil { // the server ends
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, ours); err != nil {
		t.Fatal(err)
	}
	r := &relay{server: ours, ended: [2]bool{toClient: true}}
	if err := r.end(line{dir: toServer, to: ours, server: ours}); err != nil { // so does the client
		t.Fatal(err)
	}
	_ = ours.Close()
	if _, err := io.Copy(io.Discard, theirs); err != nil {
		t.Errorf("the door hears %v, want the end", err)
	}
	begin(t, c, "x")
	defer func(s *stream) { _ = s.Close() }(<-begun) // it has heard all that was said before
	if len(left) > 0 {
		t.Error("the door takes a client that has ended for one that has left")
	}
}
