package backup

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
)

// Auth is a secret of those who make backups and restore them. With it a manifest has a mark
// that nobody else can make, nor move to another one. It covers all that the manifest says: of
// what, with which options, on which other backup, and the checksum of each chunk as it is
// stored; encryption to a public key, which anybody may know, proves nothing of that.
type Auth struct{ key []byte }

// minAuth is so long that nobody tries them all, if it was made by chance.
const minAuth = 32

// ParseAuth reads a secret: what is in a file, but for the space around it.
func ParseAuth(r io.Reader) (*Auth, error) {
	b, err := readLimited(r, 4096)
	key := strings.TrimSpace(string(b))
	if err != nil || len(key) < minAuth {
		return nil, volume.Errorf(volume.CodeInvalid, "the secret is to have from %d to 4096 characters", minAuth).WithHint("head -c 32 /dev/urandom | base64 >FILE makes one")
	}
	return &Auth{[]byte(key)}, nil
}

// mark is what only who has the secret can make of words, which have no spaces in them.
func (a *Auth) mark(words ...string) string {
	h := hmac.New(sha256.New, a.key)
	io.WriteString(h, strings.Join(words, " "))
	return hex.EncodeToString(h.Sum(nil))
}

// Marked says that it was made with a secret.
func (m *Manifest) Marked() bool { return m.found.mark != "" }

// MadeWith says whether it was made with that secret, and is still what it was; nil: with none.
func (m *Manifest) MadeWith(a *Auth) bool {
	if a == nil || !m.Marked() {
		return a == nil && !m.Marked()
	}
	return hmac.Equal([]byte(m.found.mark), []byte(a.mark(manifestName, m.found.sum)))
}

// Refused says why a backup is not one of those that were made with that secret; nil: any may be.
func (a *Auth) Refused(m *Manifest) error {
	switch {
	case a == nil || m.MadeWith(a):
		return nil
	case !m.Marked():
		return volume.Errorf(volume.CodeRefused, "backup %s was made without --auth-key: somebody else may have put it there", m.ID).
			WithHint("without --auth-key it is taken as it is")
	}
	return volume.Errorf(volume.CodeRefused, "backup %s was not made with the secret that is given, or is not what it was", m.ID).
		WithHint("without --auth-key it is taken as it is")
}
