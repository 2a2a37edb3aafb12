package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

// maxHello is more than any client says first: 2 KiB are usual with post-quantum keys.
const maxHello = 32 << 10

// hello reads what a client of TLS says first, and learns from it which server it wants.
// What cannot be understood is the server's matter.
func (r *relay) hello() (first []byte, err error) {
	h, err := readHello(r.client, r.gate.bounds().Request)
	if err != nil {
		return nil, err
	}
	if h.odd != nil {
		r.gate.log.Debug("whom a client wants is not understood", "client", r.client.RemoteAddr(), "err", h.odd)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.name = h.name
	return h.first, nil
}

// greeted is a client that has said which server it wants.
type greeted struct {
	net.Conn
	first []byte // all that it has said
	name  string
	odd   error // why that is not understood
}

// readHello reads what a client of TLS says first. One that does not come to the point within
// the limit is not served.
func readHello(client net.Conn, limit time.Duration) (*greeted, error) {
	_ = client.SetReadDeadline(time.Now().Add(limit))
	h := &greeted{Conn: client}
	for {
		c, err := readChunk(client)
		if err != nil {
			return nil, fmt.Errorf("waiting for a client to say whom it wants: %w", err)
		}
		h.first = append(h.first, c.bytes()...)
		c.release()
		h.name, h.odd = ServerName(h.first)
		if errors.Is(h.odd, ErrIncomplete) && len(h.first) < maxHello {
			continue
		}
		return h, client.SetReadDeadline(time.Time{})
	}
}

// ErrIncomplete says that more has to be read.
var ErrIncomplete = errors.New("more has to be read")

// ServerName tells from the first bytes of a connection with TLS which server its client
// wants (SNI); "" if it does not say. When they are too few the error is ErrIncomplete,
// and when they are not the beginning of TLS another.
func ServerName(first []byte) (string, error) {
	if err := wholeHello(first); err != nil {
		return "", err
	}
	var name string
	heard := errors.New("heard")
	config := &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		name = hello.ServerName
		return nil, heard
	}}
	err := tls.Server(said{Reader: bytes.NewReader(first)}, config).HandshakeContext(context.Background())
	if !errors.Is(err, heard) {
		return "", fmt.Errorf("the beginning of TLS is not understood: %w", err)
	}
	return name, nil
}

// wholeHello says whether the message with which a client begins is there to its end. It
// may be spread over records.
//
// Source: RFC 8446, sections 4 and 5.1.
func wholeHello(p []byte) error {
	const handshake, clientHello, recordHeader, messageHeader = 22, 1, 5, 4
	var head []byte // of the message
	got := 0
	for {
		if len(p) > 0 && p[0] != handshake || len(p) > 1 && p[1] != 3 {
			return fmt.Errorf("this is not TLS, which does not begin with %x", p[:min(len(p), 2)])
		}
		if len(p) < recordHeader {
			return ErrIncomplete
		}
		length := int(p[3])<<8 | int(p[4])
		if length == 0 || length > 16<<10 {
			return fmt.Errorf("a record of TLS may not be of %d bytes", length)
		}
		p = p[recordHeader:]
		body := p[:min(len(p), length)]
		head = append(head, body[:min(len(body), messageHeader-len(head))]...)
		got += len(body)
		if len(head) > 0 && head[0] != clientHello {
			return fmt.Errorf("TLS does not begin with a message of type %d", head[0])
		}
		if len(body) < length {
			return ErrIncomplete
		}
		if len(head) == messageHeader {
			need := messageHeader + int(head[1])<<16 + int(head[2])<<8 + int(head[3])
			if need > maxHello {
				return fmt.Errorf("the beginning of TLS may not be of %d bytes", need)
			}
			if got >= need {
				return nil
			}
		}
		p = p[length:]
	}
}

// said is a connection on which something was said, and nothing is heard.
type said struct {
	*bytes.Reader
	net.Conn
}

func (s said) Read(p []byte) (int, error)  { return s.Reader.Read(p) }
func (s said) Write(p []byte) (int, error) { return len(p), nil }
