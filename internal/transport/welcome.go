package transport

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
)

// With TLS 1.3 a client has finished its handshake before the server has judged the
// client's certificate, and an alert says little. So the server's first bytes say
// whether the client may stay: a length of 0, or the length of the reason why not
// and the reason.

// maxReason bounds the reason of a refusal, which comes from a peer that may be
// anybody.
const maxReason = 1000

// RefusedError is the peer's reason for not letting this node in.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "the peer refused this node: " + e.Reason }

func welcome(c net.Conn) error {
	_, err := c.Write([]byte{0, 0})
	return err
}

func refuse(c net.Conn, why error) {
	reason := why.Error()
	reason = reason[:min(len(reason), maxReason)]
	c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reason))), reason...))
	c.Close()
}

func readWelcome(c net.Conn) error {
	var head [2]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return fmt.Errorf("waiting for the welcome: %w", err)
	}
	n := binary.BigEndian.Uint16(head[:])
	if n == 0 {
		return nil
	}
	reason := make([]byte, min(n, maxReason))
	if _, err := io.ReadFull(c, reason); err != nil {
		return fmt.Errorf("waiting for the reason of a refusal: %w", err)
	}
	return &RefusedError{Reason: strings.ToValidUTF8(string(reason), "?")}
}
