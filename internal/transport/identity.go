package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Identity is who a node is to its peers: key, certificate and the root it trusts.
// The certificate can be replaced while connections are made. Safe for use by many
// goroutines.
type Identity struct {
	subject
	current atomic.Pointer[credentials]
}

// credentials are never changed in place.
type credentials struct {
	keyPEM []byte
	cert   tls.Certificate // the leaf alone
	root   *x509.Certificate
	pool   *x509.CertPool
}

// NewIdentity checks that the three belong together. An expired certificate is
// accepted: its node can still ask for a new one.
func NewIdentity(certPEM, keyPEM, rootPEM []byte) (*Identity, error) {
	c, s, err := load(certPEM, keyPEM, rootPEM)
	if err != nil {
		return nil, err
	}
	id := &Identity{subject: s}
	id.current.Store(c)
	return id, nil
}

// Replace takes a newer certificate of the same node and key into use. Open
// connections stay as they are.
func (id *Identity) Replace(certPEM []byte) error {
	old := id.current.Load()
	c, s, err := load(certPEM, old.keyPEM, encodePEM(pemCertificate, old.root.Raw))
	if err != nil {
		return err
	}
	if s != id.subject {
		return fmt.Errorf("the new certificate is for node %s of cluster %s", s.node, s.cluster)
	}
	id.current.Store(c)
	return nil
}

func load(certPEM, keyPEM, rootPEM []byte) (*credentials, subject, error) {
	root, err := ParseCertificate(rootPEM)
	if err != nil {
		return nil, subject{}, fmt.Errorf("root certificate: %w", err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, subject{}, fmt.Errorf("node certificate: %w", err)
	}
	if len(cert.Certificate) != 1 {
		return nil, subject{}, errors.New("node certificate: want exactly one")
	}
	if err := cert.Leaf.CheckSignatureFrom(root); err != nil {
		return nil, subject{}, fmt.Errorf("node certificate: not signed by this cluster's root: %w", err)
	}
	s, err := subjectOf(cert.Leaf)
	if err != nil {
		return nil, subject{}, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return &credentials{keyPEM: keyPEM, cert: cert, root: root, pool: pool}, s, nil
}

// Node this is.
func (id *Identity) Node() volume.NodeID { return id.node }

// Cluster it belongs to.
func (id *Identity) Cluster() string { return id.cluster }

// Validity of the certificate in use.
func (id *Identity) Validity() (notBefore, notAfter time.Time) {
	leaf := id.current.Load().cert.Leaf
	return leaf.NotBefore, leaf.NotAfter
}

// Request makes a signing request for this node's key.
func (id *Identity) Request() ([]byte, error) {
	return NewRequest(id.current.Load().keyPEM)
}

// RootPEM is the root certificate.
func (id *Identity) RootPEM() []byte {
	return encodePEM(pemCertificate, id.current.Load().root.Raw)
}

// verify checks a peer's certificate and says whose it is.
func (id *Identity) verify(certs []*x509.Certificate) (subject, error) {
	if len(certs) == 0 {
		return subject{}, errors.New("the peer showed no certificate")
	}
	s, err := subjectOf(certs[0])
	if err != nil {
		return subject{}, err
	}
	// A foreign cluster is told apart before its signature fails, for the sake of
	// the message; the signature is what counts.
	if s.cluster != id.cluster {
		return subject{}, fmt.Errorf("%w: node %s is of cluster %s, node %s of cluster %s",
			ErrForeignCluster, s.node.Short(), s.cluster, id.node.Short(), id.cluster)
	}
	if err := verifyLeaf(certs[0], s, id.current.Load().pool, "node "+id.node.Short()); err != nil {
		return subject{}, err
	}
	return s, nil
}

// verifyLeaf checks signature, dates and usages of the certificate of s. All node
// certificates are signed by the root itself and may both serve and dial. judge is
// whose clock counts, for the message.
func verifyLeaf(leaf *x509.Certificate, s subject, roots *x509.CertPool, judge string) error {
	now := time.Now()
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return &ClockError{Node: s.node, Judge: judge, Now: now, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
	case errors.As(err, &unknown):
		return fmt.Errorf("%w: the certificate of node %s is not signed by this cluster's root", ErrForeignCluster, s.node.Short())
	}
	return err
}
