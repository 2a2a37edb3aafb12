package cluster

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
)

// The CA's key stands in the replicated state, sealed with AES-256-GCM under a key
// that is not: the file ca.seal of the nodes that may sign certificates. The leader
// hands it over mTLS to a node before it makes it a voter, and, while there are
// fewer than three nodes, to every member but witnesses, so that after the loss of
// the only voter the other node can be recovered with the same CA.
//
// What this is worth: a copy of the state (a snapshot, a non-voter's directory) does
// not contain the CA. Root on a node that is or was a voter can sign certificates,
// and so can whoever has a backup of such a node's directory.

const sealKeyBytes = 32

func newSealKey() []byte {
	k := make([]byte, sealKeyBytes)
	rand.Read(k) // never fails
	return k
}

// seal encrypts for one cluster.
func seal(key []byte, clusterID string, plain []byte) ([]byte, error) {
	gcm, err := sealCipher(key)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, gcm.NonceSize())
	rand.Read(nonce)
	return gcm.Seal(nonce, nonce, plain, []byte(clusterID)), nil
}

// unseal is its inverse.
func unseal(key []byte, clusterID string, sealed []byte) ([]byte, error) {
	gcm, err := sealCipher(key)
	if err != nil {
		return nil, err
	}
	if len(sealed) < gcm.NonceSize() {
		return nil, errors.New("the sealed CA key is too short")
	}
	n := gcm.NonceSize()
	plain, err := gcm.Open(nil, sealed[:n], sealed[n:], []byte(clusterID))
	if err != nil {
		return nil, fmt.Errorf("the seal does not open this cluster's CA key: %w", err)
	}
	return plain, nil
}

func sealCipher(key []byte) (cipher.AEAD, error) {
	if len(key) != sealKeyBytes {
		return nil, errors.New("the seal of the CA key has the wrong length")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
