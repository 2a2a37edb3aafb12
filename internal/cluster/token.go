package cluster

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
)

// A join token is four words joined by dashes:
//
//	FLK-1-<SHA-256 of the root certificate>-<token id>-<secret>
//
// The digest lets the joiner know the cluster before it says the secret; the id
// finds the record in the state, which has only a hash of the secret.
const (
	tokenPrefix = "FLK"
	tokenFormat = "1"

	tokenIDBytes     = 5
	tokenSecretBytes = 16
)

// DefaultTokenTTL is how long a token is good for.
const DefaultTokenTTL = 24 * time.Hour

var tokenEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Token is what a join token says.
type Token struct {
	Root   transport.RootDigest
	ID     string
	Secret string
}

// String is the form for people to copy.
func (t Token) String() string {
	return strings.Join([]string{tokenPrefix, tokenFormat, tokenEncoding.EncodeToString(t.Root[:]), t.ID, t.Secret}, "-")
}

// NewToken makes a token for the cluster with this root: the record for the state,
// and the text, which nobody can read from the record.
func NewToken(root transport.RootDigest, now time.Time, ttl time.Duration, maxUses int) (state.Token, string) {
	random := func(n int) string {
		b := make([]byte, n)
		rand.Read(b) // never fails
		return tokenEncoding.EncodeToString(b)
	}
	t := Token{Root: root, ID: random(tokenIDBytes), Secret: random(tokenSecretBytes)}
	if ttl == 0 {
		ttl = DefaultTokenTTL
	}
	return state.Token{
		ID: t.ID, Hash: hashSecret(t.Secret), Created: now, Expires: now.Add(ttl), MaxUses: maxUses,
	}, t.String()
}

// ParseToken reads what String wrote, in either case and with blanks around it.
func ParseToken(text string) (Token, error) {
	bad := func(what string) (Token, error) {
		return Token{}, volume.Errorf(volume.CodeInvalid, "the join token is not complete: %s", what).
			WithHint("copy the whole line that `flockctl init` or `flockctl token create` printed")
	}
	text = strings.TrimSpace(text)
	parts := strings.Split(text, "-")
	if len(parts) < 2 || !strings.EqualFold(parts[0], tokenPrefix) {
		return bad("it does not start with FLK-")
	}
	if parts[1] != tokenFormat {
		return Token{}, volume.Errorf(volume.CodeInvalid, "the join token has format %q, which this version does not know", parts[1])
	}
	if len(parts) != 5 {
		return bad("it does not have five parts")
	}
	var t Token
	sizes := []int{len(t.Root), tokenIDBytes, tokenSecretBytes}
	var words [3]string
	for i, size := range sizes {
		words[i] = strings.ToLower(parts[2+i])
		b, err := tokenEncoding.DecodeString(words[i])
		// Spare bits of the last digit must be zero, so that a token has one text.
		if err != nil || len(b) != size || tokenEncoding.EncodeToString(b) != words[i] {
			return bad("a part of it has the wrong length or letters")
		}
		if i == 0 {
			copy(t.Root[:], b)
		}
	}
	t.ID, t.Secret = words[1], words[2]
	return t, nil
}

func hashSecret(secret string) []byte {
	h := sha256.Sum256([]byte(secret))
	return h[:]
}

// checkSecret compares a secret with a record, which may be nil. The answer is the
// same sentence for an unknown token and a wrong secret, so that nobody learns
// which tokens exist.
func checkSecret(tok *state.Token, secret string) *volume.Error {
	var want []byte
	if tok != nil {
		want = tok.Hash
	}
	if subtle.ConstantTimeCompare(hashSecret(secret), want) != 1 {
		return volume.Errorf(volume.CodeDenied, "the join token is not valid in this cluster: it was revoked, or mistyped").
			WithHint("make a new one with `flockctl token create` on a member")
	}
	return nil
}
