package proxy

import (
	"context"
	"net"
)

// ProbeAt is Probe of the server at ip:port.
func ProbeAt(ctx context.Context, mode Mode, server string) error {
	return Probe(ctx, mode, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", server)
	})
}
