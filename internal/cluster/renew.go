package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
)

// Certificates are renewed at a random point between 50 and 80 % of their life, so
// that not all nodes come at once. A node that can sign does it itself, without any
// network: so the voters of a cluster that was off for longer than a certificate's
// life come up by themselves. The others ask on flk-join/1, where an expired
// certificate does not matter: what counts is that the signing request is signed with
// the key that the state lists for this node.

// Messages of the operation "renew".
type (
	renewMessage struct {
		Node volume.NodeID `json:"node"`
		CSR  []byte        `json:"csr"`
	}
	renewAnswer struct {
		Cert []byte `json:"cert"`
	}
)

// renewRetry is the time between attempts while the certificate is still valid.
const renewRetry = 10 * time.Minute

// renew keeps the certificate valid until ctx ends.
func (c *Cluster) renew(ctx context.Context) {
	for {
		from, to := c.id.Validity()
		at := renewAt(from, to, rand.Float64())
		for {
			wait := time.Until(at)
			if wait > 0 && !sleep(ctx, wait) || ctx.Err() != nil {
				return
			}
			err := c.renewOnce(ctx)
			if err == nil {
				break
			}
			retry := renewRetry
			if !time.Now().Before(to) {
				retry = c.cfg.Timing.Retry // nothing else works until it is renewed
			}
			c.log.Warn("cannot renew this node's certificate", "expires", to, "err", err)
			at = time.Now().Add(retry)
		}
	}
}

// renewAt is the time to renew; dice is in [0, 1).
func renewAt(from, to time.Time, dice float64) time.Time {
	return from.Add(time.Duration((0.5 + 0.3*dice) * float64(to.Sub(from))))
}

func (c *Cluster) renewOnce(ctx context.Context) error {
	csr, err := c.id.Request()
	if err != nil {
		return err
	}
	cert, err := c.newCertificate(ctx, csr)
	if err != nil {
		return err
	}
	// Disk first: what is in use must be there after a restart.
	if _, err := transport.ParseCertificate(cert); err != nil {
		return err
	}
	if err := c.disk.Write(fileCert, cert); err != nil {
		return err
	}
	if err := c.id.Replace(cert); err != nil {
		return err
	}
	_, to := c.id.Validity()
	c.log.Info("renewed this node's certificate", "expires", to)
	return nil
}

func (c *Cluster) newCertificate(ctx context.Context, csr []byte) ([]byte, error) {
	if ca, err := c.authority(); err == nil {
		return ca.Issue(csr, c.record.Cluster, c.record.Node, time.Now(), c.cfg.certLife)
	}
	digest, err := transport.DigestRoot(c.id.RootPEM())
	if err != nil {
		return nil, err
	}
	lastErr := errors.New("no other member is known")
	for _, id := range c.book.peers(c.State(), c.record.Node) {
		addr := c.book.find(c.State(), id)
		if addr == "" {
			continue
		}
		var answer renewAnswer
		conn, _, err := transport.DialJoin(ctx, c.cfg.DialFunc, addr, digest)
		if err == nil {
			err = call(ctx, conn, "renew", renewMessage{Node: c.record.Node, CSR: csr}, &answer)
		}
		if err == nil {
			return answer.Cert, nil
		}
		lastErr = err
	}
	return nil, lastErr
}

// handleRenew signs for a listed node that has the listed key. Any member that can
// sign does.
func (c *Cluster) handleRenew(_ context.Context, _ volume.NodeID, body json.RawMessage) (any, error) {
	var m renewMessage
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "renew: %v", err)
	}
	hash, err := transport.RequestKeyHash(m.CSR)
	if err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "renew: %v", err)
	}
	n := c.State().Node(m.Node)
	if n == nil || n.Removed || n.Lost || len(n.KeyHash) == 0 || !bytes.Equal(hash, n.KeyHash) {
		return nil, volume.Errorf(volume.CodeDenied, "node %s with this key is no member of this cluster", m.Node.Short())
	}
	ca, err := c.authority()
	if err != nil {
		return nil, err
	}
	cert, err := ca.Issue(m.CSR, c.record.Cluster, n.ID, time.Now(), c.cfg.certLife)
	if err != nil {
		return nil, fmt.Errorf("renewing the certificate of %s: %w", n.Name, err)
	}
	c.log.Info("renewed a certificate", "for", n.ID.Short(), "name", n.Name)
	return renewAnswer{Cert: cert}, nil
}
