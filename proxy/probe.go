package proxy

import (
	"context"
	"net"
)

// ProbeAt is Probe of the server at ip:port, which may expect the PROXY protocol.
func ProbeAt(ctx context.Context, mode Mode, announce Announce, server string) error {
	return Probe(ctx, mode, Announced(announce, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", server)
	}))
}
