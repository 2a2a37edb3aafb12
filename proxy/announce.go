package proxy

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// header is what the PROXY protocol has before the first byte of a connection between
// these; without a client that it can name it says that the connection is the proxy's own.
//
// Source: The PROXY protocol, versions 1 and 2 (haproxy.org), sections 2.1 and 2.2.
func (a Announce) header(client, server netip.AddrPort) []byte {
	from, to := netip.AddrPortFrom(client.Addr().Unmap(), client.Port()), netip.AddrPortFrom(server.Addr().Unmap(), server.Port())
	known := from.IsValid() && to.IsValid()
	if known && from.Addr().Is4() != to.Addr().Is4() { // a header has one family
		from = netip.AddrPortFrom(netip.AddrFrom16(from.Addr().As16()), from.Port())
		to = netip.AddrPortFrom(netip.AddrFrom16(to.Addr().As16()), to.Port())
	}
	four := known && from.Addr().Is4()
	switch a {
	case AnnounceV1:
		if !known {
			return []byte("PROXY UNKNOWN\r\n")
		}
		family := "TCP6"
		if four {
			family = "TCP4"
		}
		return fmt.Appendf(nil, "PROXY %s %s %s %d %d\r\n", family, plainIP(from), plainIP(to), from.Port(), to.Port())
	case AnnounceV2:
		const local, proxied, tcp4, tcp6 = 0x20, 0x21, 0x11, 0x21
		out := []byte("\r\n\r\n\x00\r\nQUIT\n")
		if !known {
			return append(out, local, 0, 0, 0)
		}
		var family byte = tcp6
		ips := append(sixteen(from), sixteen(to)...)
		if four {
			a, b := from.Addr().As4(), to.Addr().As4()
			family, ips = tcp4, append(a[:], b[:]...)
		}
		out = append(out, proxied, family)
		out = binary.BigEndian.AppendUint16(out, uint16(len(ips)+4))
		out = append(out, ips...)
		out = binary.BigEndian.AppendUint16(out, from.Port())
		return binary.BigEndian.AppendUint16(out, to.Port())
	}
	return nil
}

// plainIP has no zone, which means nothing elsewhere, and is no form of IPv4 in IPv6 that
// a parser may not know.
func plainIP(a netip.AddrPort) string {
	ip := a.Addr().WithZone("")
	if ip.Is4In6() {
		v4 := ip.As4()
		return fmt.Sprintf("::ffff:%x:%x", binary.BigEndian.Uint16(v4[:2]), binary.BigEndian.Uint16(v4[2:]))
	}
	return ip.String()
}

func sixteen(a netip.AddrPort) []byte {
	b := a.Addr().As16()
	return b[:]
}

// write says on a new connection to the server which client it is for, and where that one
// has connected to.
func (a Announce) write(conn net.Conn, client, at string) error {
	if a == AnnounceNone {
		return nil
	}
	from, _ := netip.ParseAddrPort(client) // none: it is our own
	to, _ := netip.ParseAddrPort(cmp.Or(at, conn.RemoteAddr().String()))
	if _, err := conn.Write(a.header(from, to)); err != nil {
		return fmt.Errorf("saying whose connection it is: %w", err)
	}
	return nil
}

// Announced is dial to a server that expects the PROXY protocol, for connections that are
// no client's: to Probe it.
func Announced(a Announce, dial Dialer) Dialer {
	if a == AnnounceNone {
		return dial
	}
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		if err := a.write(conn, "", ""); err != nil {
			_ = conn.Close()
			return nil, err
		}
		return conn, nil
	}
}
