// Package transport is how nodes talk: one TCP port per node, split by ALPN into
// protocols, every connection TLS 1.3 under the cluster's own CA. It knows who is at
// the other end of a connection and nothing of what is said on it.
//
// A node is the subject of its certificate: the URI SAN
// flocker://<cluster-id>/node/<node-id>. A dialer names the node it means to reach
// and gets an error when another one answers at that address; a listener asks its
// allow callback about each node that connects, so that removed nodes are refused
// although their certificates are still valid. Only the protocol flk-join/1 is open
// to peers without a certificate.
//
// What it never does: keep an address book, decide who is a member, issue
// certificates by itself (Authority does when internal/cluster asks), retry.
// internal/cluster owns the Listener and the Identity; the control API, replication
// and Raft take their listeners and dial functions from there.
package transport
