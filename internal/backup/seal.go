package backup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"

	"github.com/flocker-io/flocker/internal/volume"
)

// Seal encrypts chunks to public keys; who has none of the others cannot read them, who made
// them included. A nil one encrypts nothing.
type Seal struct {
	to    []age.Recipient
	names []string
}

// NewSeal encrypts to public keys of age; none of them is nil.
func NewSeal(keys []string) (*Seal, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	s := &Seal{}
	for _, k := range keys {
		to, err := age.ParseRecipients(strings.NewReader(k))
		if err != nil || len(to) != 1 {
			return nil, volume.Errorf(volume.CodeInvalid, "%.100q is no public key", k).WithHint("age-keygen makes a pair, and prints the public one, which begins with age1")
		}
		s.to, s.names = append(s.to, to[0]), append(s.names, k)
	}
	return s, nil
}

// Recipients are the keys.
func (s *Seal) Recipients() []string {
	if s == nil {
		return nil
	}
	return s.names
}

func (s *Seal) seal(clear []byte) ([]byte, error) {
	var out bytes.Buffer
	out.Grow(len(clear) + len(clear)/1000 + 4096)
	w, err := age.Encrypt(&out, s.to...)
	if err == nil {
		_, err = w.Write(clear)
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("encrypting: %w", err)
	}
	return out.Bytes(), nil
}

// Keys decrypt.
type Keys struct{ identities []age.Identity }

// ParseKeys reads a file of secret keys as age-keygen writes it.
func ParseKeys(r io.Reader) (*Keys, error) {
	ids, err := age.ParseIdentities(r)
	if err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "no secret keys can be read: %v", err).WithHint("give a file as age-keygen writes it")
	}
	return &Keys{ids}, nil
}

func (k *Keys) open(sealed []byte) ([]byte, error) {
	if k == nil {
		return nil, volume.Errorf(volume.CodeInvalid, "it is encrypted, and no key is given").WithHint("--identity FILE gives the one of a recipient")
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), k.identities...)
	var none *age.NoIdentityMatchError
	if errors.As(err, &none) {
		return nil, volume.Errorf(volume.CodeDenied, "it is encrypted to other keys than those given").WithHint("flockctl backup inspect shows to which")
	}
	if err != nil {
		return nil, err
	}
	return readLimited(r, ChunkSize)
}
