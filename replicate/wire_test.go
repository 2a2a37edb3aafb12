package replicate

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/flocker-io/flocker/internal/volume"
)

var sampleOffer = offer{
	Cluster: "c", Volume: testVol, Epoch: 1 << 40, Primary: volume.NodeID(strings.Repeat("a", 32)),
	Newest: volume.Position{Epoch: 1 << 40, Seq: 9, GUID: 1<<64 - 1, Taken: time.Unix(1, 2).UTC()},
	Bases:  []guid{1<<64 - 1, 7}, Floor: volume.Position{Epoch: 1, Seq: 1, GUID: 7}, Keep: []guid{7},
	Anchors: []guid{8}, Dropped: []guid{9},
}

// What is written is read back; what is not exactly a message is refused.
func TestMessages(t *testing.T) {
	b, err := json.Marshal(sampleOffer)
	if err != nil {
		t.Fatal(err)
	}
	var got offer
	if err := decode(b, &got); err != nil {
		t.Fatal(err)
	}
	if again, _ := json.Marshal(got); !bytes.Equal(again, b) {
		t.Errorf("read back as %s, want %s", again, b)
	}
	text := string(b)
	for what, bad := range map[string]string{
		"empty":         "",
		"trailing":      text + "{}",
		"unknown field": strings.Replace(text, `"bases"`, `"basis"`, 1),
		"no cluster":    strings.Replace(text, `"cluster":"c"`, `"cluster":""`, 1),
		"bad volume":    strings.Replace(text, string(testVol), "../../x", 1),
		"bad node":      strings.Replace(text, "aaaa", "zzzz", 1),
		"zero base":     strings.Replace(text, `"7"`, `"0"`, 1),
		"zero anchor":   strings.Replace(text, `"8"`, `"0"`, 1),
		"zero dropped":  strings.Replace(text, `"9"`, `"0"`, 1),
		"many dropped":  strings.Replace(text, `"9"`, `"9"`+strings.Repeat(`,"9"`, maxDropped), 1),
		"number":        strings.Replace(text, `"7"`, `7`, 1),
		"too big":       strings.Replace(text, `"18446744073709551615","7"`, `"18446744073709551616"`, 1),
		"not utf-8":     strings.Replace(text, `"c"`, "\"\xff\"", 1),
		"no snapshot":   `{"cluster":"c","volume":"00000000000000aa","epoch":1,"primary":"` + strings.Repeat("a", 32) + `","newest":{"epoch":1,"seq":1,"guid":"0"},"bases":[]}`,
	} {
		if bad == text {
			t.Fatalf("%s: the case changes nothing", what)
		}
		if err := decode([]byte(bad), &offer{}); !errors.Is(err, errProtocol) {
			t.Errorf("%s: %v, want a protocol error", what, err)
		}
	}
	for _, bad := range []string{`{"verdict":"hello"}`, `{"verdict":"already"}`, `{"verdict":"resume"}`, `{"verdict":"incremental","have":"0"}`} {
		if err := decode([]byte(bad), &answer{}); err == nil {
			t.Errorf("answer %s was accepted", bad)
		}
	}
	if err := decode([]byte(`{}`), &ack{}); err == nil {
		t.Error("an empty ack was accepted")
	}
}

// script is a connection that gives fixed bytes and swallows what is written.
type script struct {
	net.Conn
	r io.Reader
	w bytes.Buffer
}

func (s *script) Read(p []byte) (int, error)       { return s.r.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return s.w.Write(p) }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }
func (s *script) Close() error                     { return nil }

// frames gives the bytes of these frames.
func frames(write func(w *wire)) []byte {
	s := &script{}
	write(newWire(s, time.Minute))
	return s.w.Bytes()
}

// A stream ends at END and nowhere else; a cut, a lie about its length and a failed
// sender are errors, never its end. Compressed or not, under the CRC or over TLS.
func TestStreamEnds(t *testing.T) {
	data := strings.Repeat("x", maxData) + blob(rand.New(rand.NewPCG(10, 10)), 3*maxData/2)
	for _, compress := range []string{"", compressZstd} {
		stream := func(e end) []byte {
			return frames(func(w *wire) {
				var pool zstdPool
				o := newOutgoing(w)
				if compress != "" {
					if _, err := pool.compress(o); err != nil {
						t.Fatal(err)
					}
				}
				io.WriteString(o, data)
				w.write(framePing, nil)
				if err := o.close(); err != nil {
					t.Fatal(err)
				}
				w.writeMessage(frameEnd, e)
			})
		}
		whole := stream(end{OK: true, Bytes: int64(len(data))})
		read := func(b []byte) (string, error) {
			in := newIncoming(t, newWire(&script{r: bytes.NewReader(b)}, time.Minute), compress)
			got, err := io.ReadAll(in)
			return string(got), err
		}
		if got, err := read(whole); err != nil || got != data {
			t.Errorf("whole stream: %d bytes, %v", len(got), err)
		}
		for n := range len(whole) {
			if n > 100 && n < len(whole)-100 && n%7919 != 0 {
				continue
			}
			if _, err := read(whole[:n]); err == nil {
				t.Fatalf("%s: cut after %d of %d bytes: no error", compress, n, len(whole))
			}
		}
		for i := 0; i < len(whole); i += 1 + len(whole)/150 {
			bad := slices.Clone(whole)
			bad[i] ^= 4
			if _, err := read(bad); err == nil {
				t.Fatalf("%s: byte %d damaged: no error", compress, i)
			}
		}
		if _, err := read(stream(end{Error: "broken", Bytes: int64(len(data))})); err != io.ErrUnexpectedEOF {
			t.Errorf("%s: failed sender: %v", compress, err)
		}
		if _, err := read(stream(end{OK: true, Bytes: 5})); err != io.ErrUnexpectedEOF {
			t.Errorf("%s: wrong length: %v", compress, err)
		}
	}
}

// newOutgoing has no limit and tells nobody.
func newOutgoing(w *wire) *outgoing {
	return &outgoing{w: w, sentAt: time.Now(), pace: func(int) error { return nil }, piece: func() int { return maxData }, progress: func(int) {}}
}

func newIncoming(t *testing.T, w *wire, compress string) *incoming {
	t.Helper()
	in := &incoming{dataReader: dataReader{w: w}}
	if compress != "" {
		var pool zstdPool
		if _, err := pool.decompress(in); err != nil {
			t.Fatal(err)
		}
	}
	return in
}

// What a hostile sender compresses is an error, or at most as much work as it sends:
// never memory.
func TestHostileCompression(t *testing.T) {
	pack := func(window int, size int64) []byte {
		var b bytes.Buffer
		enc, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window), zstd.WithSingleSegment(false))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(enc, zeros{}, size); err != nil {
			t.Fatal(err)
		}
		if err := enc.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	open := func(packed []byte, size int64) (int64, error) {
		b := frames(func(w *wire) {
			o := newOutgoing(w)
			o.Write(packed)
			w.writeMessage(frameEnd, end{OK: true, Bytes: size})
		})
		in := newIncoming(t, newWire(&script{r: bytes.NewReader(b)}, time.Minute), compressZstd)
		return io.Copy(io.Discard, in)
	}
	good := pack(maxWindow, 1<<20)
	if n, err := open(good, 1<<20); n != 1<<20 || err != nil {
		t.Fatalf("a good one: %d bytes, %v", n, err)
	}
	// 256 MiB out of 10 KiB are taken as it comes, and cost no memory.
	var before, after runtime.MemStats
	bomb := pack(maxWindow, 256<<20)
	runtime.ReadMemStats(&before)
	if n, err := open(bomb, 256<<20); n != 256<<20 || err != nil {
		t.Errorf("a bomb of %d bytes: %d bytes, %v", len(bomb), n, err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 32<<20 {
		t.Errorf("a bomb took %d MiB of memory", used>>20)
	}
	// A frame that says it is one segment of 4 GiB, in 14 bytes.
	huge := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0x80, 1, 0, 0, 'a', 'b'}
	for what, c := range map[string]struct {
		packed []byte
		size   int64
	}{
		"garbage":        {[]byte(strings.Repeat("garbage", 100)), 700},
		"another window": {pack(64<<20, 256<<20), 256 << 20},
		"one segment":    {huge, 1},
		"truncated":      {good[:len(good)/2], 1 << 20},
		"longer":         {append(slices.Clone(good), good...), 1 << 20},
		"trailing":       {append(slices.Clone(good), "trailing"...), 1 << 20},
		"nothing":        {nil, 1 << 20},
	} {
		runtime.ReadMemStats(&before)
		if n, err := open(c.packed, c.size); err == nil {
			t.Errorf("%s: %d bytes and no error", what, n)
		}
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 32<<20 {
			t.Errorf("%s took %d MiB of memory", what, used>>20)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Whatever comes, reading frames ends without panic and without taking much memory,
// and what is accepted is written the same again.
func FuzzDecodeFrames(f *testing.F) {
	f.Add(frames(func(w *wire) {
		w.writeMessage(frameOffer, sampleOffer)
		w.write(framePing, nil)
		w.writeMessage(frameAnswer, answer{Verdict: saysResume, Token: "1-2", Have: 3})
		w.writeMessage(frameBegin, begin{To: 1, Name: "x"})
		w.write(frameData, []byte("data"))
		w.writeMessage(frameEnd, end{OK: true, Bytes: 4})
		w.writeMessage(frameAck, ack{GUID: 1})
	}))
	f.Add([]byte("D\xff\xff\xff\xff...."))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWire(&script{r: bytes.NewReader(b)}, time.Minute)
		var again bytes.Buffer
		for {
			kind, payload, err := w.read(0)
			if err != nil {
				break
			}
			again.Write(frames(func(w *wire) { w.write(kind, payload) }))
			switch kind {
			case frameOffer:
				fuzzMessage(t, payload, &offer{}, &offer{})
			case frameAnswer:
				fuzzMessage(t, payload, &answer{}, &answer{})
			case frameBegin:
				fuzzMessage(t, payload, &begin{}, &begin{})
			case frameEnd:
				fuzzMessage(t, payload, &end{}, &end{})
			case frameAck:
				fuzzMessage(t, payload, &ack{}, &ack{})
			}
		}
		if !bytes.HasPrefix(b, again.Bytes()) {
			t.Error("frames that were read are not those that came")
		}
	})
}

// Whatever comes where a stream should, compressed or not, it has come to its end only
// when the sender said so of as many bytes.
func FuzzIncoming(f *testing.F) {
	f.Add(false, frames(func(w *wire) {
		io.WriteString(newOutgoing(w), "some data")
		w.writeMessage(frameEnd, end{OK: true, Bytes: 9})
	}))
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(true, enc.EncodeAll([]byte("some data"), nil))
	f.Fuzz(func(t *testing.T, packed bool, b []byte) {
		compress := ""
		if packed {
			compress = compressZstd
			// Past the CRC of the frame, to the decompressor.
			b = frames(func(w *wire) {
				w.write(frameData, b[:min(len(b), maxData)])
				w.writeMessage(frameEnd, end{OK: true, Bytes: 9})
			})
		}
		in := newIncoming(t, newWire(&script{r: bytes.NewReader(b)}, time.Minute), compress)
		n, err := io.Copy(io.Discard, io.LimitReader(in, 1<<24))
		if err == nil && n < 1<<24 && (in.end == nil || !in.end.OK || in.end.Bytes != n) {
			t.Errorf("%d bytes were taken for the whole: %+v", n, in.end)
		}
	})
}

// FuzzDecodeMessages is for payloads, which a fuzzer cannot reach past the CRC.
func FuzzDecodeMessages(f *testing.F) {
	for _, m := range []any{sampleOffer, answer{Verdict: saysStale, Epoch: 4, Reason: "r"}, begin{From: 1, To: 2, Name: "n"}, end{Bytes: 3, Error: "e"}, ack{Code: codeFailed, Error: "e"}} {
		b, _ := json.Marshal(m)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzMessage(t, b, &offer{}, &offer{})
		fuzzMessage(t, b, &answer{}, &answer{})
		fuzzMessage(t, b, &begin{}, &begin{})
		fuzzMessage(t, b, &end{}, &end{})
		fuzzMessage(t, b, &ack{}, &ack{})
	})
}

func fuzzMessage(t *testing.T, b []byte, m, again interface{ check() error }) {
	if decode(b, m) != nil {
		return
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatalf("accepted, but cannot be written: %v", err)
	}
	if err := decode(text, again); err != nil {
		t.Fatalf("accepted, but not when written again: %v\n%s", err, text)
	}
	if twice, _ := json.Marshal(again); !bytes.Equal(text, twice) {
		t.Errorf("%s became %s", text, twice)
	}
}

// A receive that fails while it waits for more of the stream still tells why, and a
// sender that is about to write more hears it.
func TestBreakOff(t *testing.T) {
	for _, secured := range []bool{false, true} {
		ours, theirs := net.Pipe()
		if secured {
			config := selfSigned(t)
			ours, theirs = tls.Client(ours, config), tls.Server(theirs, config)
		}
		sender, receiver := newWire(ours, time.Minute), newWire(theirs, time.Minute)
		in := &incoming{dataReader: dataReader{w: receiver}}
		began, failed := make(chan struct{}), make(chan error, 1)
		go func() {
			_, err := in.Read(make([]byte, 1))
			if err == nil {
				close(began)
				for err == nil {
					_, err = in.Read(make([]byte, 1<<20))
				}
			}
			failed <- err
		}()
		if err := sender.write(frameData, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		<-began
		in.SetReadDeadline(time.Unix(1, 0))
		if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the read that was broken off: %v", err)
		}
		in.SetReadDeadline(time.Time{}) // as zfs.Interruptible ends

		var parts sync.WaitGroup
		parts.Go(func() { sender.write(frameData, make([]byte, maxData)) })
		parts.Go(func() {
			if err := receiver.writeMessage(frameAck, ack{Code: codeNoSpace}); err != nil {
				t.Error(err)
			}
			receiver.swallow()
			receiver.close()
		})
		var a ack
		if err := sender.expect(frameAck, &a); err != nil || a.Code != codeNoSpace {
			t.Errorf("TLS %v: got %+v, %v", secured, a, err)
		}
		sender.close()
		parts.Wait()
	}
}
