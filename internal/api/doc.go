// Package api is flocker's control API: HTTP and JSON over the local unix socket,
// where flockctl and the administrator call, and over the mutual-TLS port, where
// the other nodes do. It holds the types that travel, the server, and the client.
//
// A Client is itself a Backend, so "forward this to the leader" is a call of the
// same method on the leader's client. A Backend whose Caller is a peer never
// forwards again: leadership may have moved meanwhile, and then the caller has to
// ask anew.
//
// The package decides nothing: internal/daemon implements Backend and Peer. It
// imports no package of ours but internal/volume, from which it takes the nouns and
// the errors; those cross the wire unchanged.
package api
