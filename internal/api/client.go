package api

import (
	"context"
	"net"
	"net/http"
	"time"
)

// Client calls another flockd. It is a Backend and, over mutual TLS, a Peer. Its
// methods may be called at the same time.
type Client struct {
	http *http.Client
	tr   *http.Transport
}

// NewClient makes a client whose connections come from dial.
func NewClient(dial func(ctx context.Context) (net.Conn, error)) *Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		// A few for calls, the rest for long polls.
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
	}
	return &Client{http: &http.Client{Transport: tr}, tr: tr}
}

// NewUnixClient makes a client of the flockd that listens on a unix socket.
func NewUnixClient(path string) *Client {
	return NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	})
}

// Close closes idle connections; running calls go on.
func (c *Client) Close() { c.tr.CloseIdleConnections() }
