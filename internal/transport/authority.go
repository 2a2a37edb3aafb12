package transport

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Lifetimes of certificates.
const (
	RootLife = 20 * 365 * 24 * time.Hour
	NodeLife = 90 * 24 * time.Hour
)

// backdate is how far NotBefore is set back, so that a node whose clock is a little
// behind accepts a certificate that was just made.
func backdate(life time.Duration) time.Duration { return min(time.Hour, life/10) }

// Authority is the cluster's CA: a root certificate and its key. It signs node
// certificates and nothing else.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes the root of a new cluster.
func NewAuthority(clusterID string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{Organization: []string{"flocker"}, CommonName: "flocker cluster " + clusterID},
		NotBefore:             now.Add(-backdate(RootLife)),
		NotAfter:              now.Add(RootLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making the cluster's root certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Authority{cert: cert, key: key}, nil
}

// LoadAuthority reads the PEM forms of the root certificate and its key.
func LoadAuthority(certPEM, keyPEM []byte) (*Authority, error) {
	cert, err := ParseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("key of the root certificate: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("the root certificate and its key do not belong together")
	}
	return &Authority{cert: cert, key: key}, nil
}

// CertPEM is the root certificate.
func (a *Authority) CertPEM() []byte { return encodePEM(pemCertificate, a.cert.Raw) }

// KeyPEM is the root's private key.
func (a *Authority) KeyPEM() ([]byte, error) { return encodeKey(a.key) }

// Issue signs a certificate for the key of a signing request. Nothing else of the
// request is used: the names are those that the caller vouches for. A life of 0 is
// NodeLife.
func (a *Authority) Issue(csrPEM []byte, clusterID string, node volume.NodeID, now time.Time, life time.Duration) ([]byte, error) {
	if life == 0 {
		life = NodeLife
	}
	csr, err := ParseRequest(csrPEM)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{Organization: []string{"flocker"}, CommonName: string(node)},
		NotBefore:    now.Add(-backdate(life)),
		NotAfter:     now.Add(life),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:         []*url.URL{nodeURI(clusterID, node)},
		DNSNames:     []string{string(node)},

		BasicConstraintsValid: true,
	}
	if tmpl.NotAfter.After(a.cert.NotAfter) {
		tmpl.NotAfter = a.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, csr.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate of node %s: %w", node.Short(), err)
	}
	return encodePEM(pemCertificate, der), nil
}

// NewKey makes a node's private key, in PEM form.
func NewKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return encodeKey(key)
}

// NewRequest makes a signing request for a key that NewKey made. Its signature
// proves to the signer that the sender has the key.
func NewRequest(keyPEM []byte) ([]byte, error) {
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate signing request: %w", err)
	}
	return encodePEM(pemRequest, der), nil
}

// ParseRequest reads a signing request and checks that its sender has the key.
func ParseRequest(csrPEM []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != pemRequest {
		return nil, errors.New("no certificate signing request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate signing request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate signing request: %w", err)
	}
	if key, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("certificate signing request: want an ECDSA P-256 key")
	}
	return csr, nil
}

// RequestKeyHash is the SHA-256 of the public key in a signing request: what the
// state remembers of a node's key.
func RequestKeyHash(csrPEM []byte) ([]byte, error) {
	csr, err := ParseRequest(csrPEM)
	if err != nil {
		return nil, err
	}
	h := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	return h[:], nil
}

// KeyHash is the same of a private key.
func KeyHash(keyPEM []byte) ([]byte, error) {
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	h := sha256.Sum256(spki)
	return h[:], nil
}

// RootDigest is the SHA-256 of a root certificate, by which a join token names its
// cluster.
type RootDigest [sha256.Size]byte

// DigestRoot reads a root certificate in PEM form.
func DigestRoot(rootPEM []byte) (RootDigest, error) {
	cert, err := ParseCertificate(rootPEM)
	if err != nil {
		return RootDigest{}, err
	}
	return sha256.Sum256(cert.Raw), nil
}

// ParseCertificate reads one certificate in PEM form.
func ParseCertificate(certPEM []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(certPEM)
	if block == nil || block.Type != pemCertificate || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("want exactly one PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// nodeURI is the identity of a node in its certificate.
func nodeURI(clusterID string, node volume.NodeID) *url.URL {
	return &url.URL{Scheme: "flocker", Host: clusterID, Path: "/node/" + string(node)}
}

// subject is whom a certificate is about.
type subject struct {
	cluster string
	node    volume.NodeID
}

// subjectOf reads what nodeURI wrote.
func subjectOf(cert *x509.Certificate) (subject, error) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "flocker" {
		return subject{}, errors.New("the certificate is not one of a flocker node")
	}
	u := cert.URIs[0]
	path, ok := strings.CutPrefix(u.Path, "/node/")
	if !ok {
		return subject{}, errors.New("the certificate is not one of a flocker node")
	}
	node, err := volume.ParseNodeID(path)
	if err != nil {
		return subject{}, err
	}
	return subject{cluster: u.Host, node: node}, nil
}

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
	pemRequest     = "CERTIFICATE REQUEST"
)

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func encodeKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return encodePEM(pemKey, der), nil
}

func parseKey(keyPEM []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(keyPEM)
	if block == nil || block.Type != pemKey {
		return nil, errors.New("no private key in PEM form")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("want an ECDSA key")
	}
	return ec, nil
}

func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] &= 0x7f // positive
	return new(big.Int).SetBytes(b[:])
}
