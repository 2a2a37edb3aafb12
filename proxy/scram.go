package proxy

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Both sides of SCRAM-SHA-256 (RFC 5802 and 7677), without channel binding. A gate is
// the server to its client, and thereby learns what lets it be the client to the server
// with the same verifier: the client's key, which it needs no password for.

// scramVerifier is what a server keeps of a password.
type scramVerifier struct {
	iterations           int
	salt, stored, server []byte
}

// scramKeys are what a client makes of a password and a verifier's salt.
type scramKeys struct{ client, server []byte }

const scramName = "SCRAM-SHA-256"

// parseScramVerifier reads what PostgreSQL keeps as a role's password; ok is false for
// one that is of another kind.
func parseScramVerifier(s string) (v scramVerifier, ok bool) {
	parts := strings.Split(s, "$")
	if len(parts) != 3 || parts[0] != scramName {
		return v, false
	}
	count, salt, a := strings.Cut(parts[1], ":")
	stored, server, b := strings.Cut(parts[2], ":")
	var errs [4]error
	v.iterations, errs[0] = strconv.Atoi(count)
	v.salt, errs[1] = base64.StdEncoding.DecodeString(salt)
	v.stored, errs[2] = base64.StdEncoding.DecodeString(stored)
	v.server, errs[3] = base64.StdEncoding.DecodeString(server)
	ok = a && b && errors.Join(errs[:]...) == nil && v.iterations > 0 && len(v.stored) == sha256.Size && len(v.server) == sha256.Size
	return v, ok
}

func hmacOf(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func hashOf(p []byte) []byte {
	sum := sha256.Sum256(p)
	return sum[:]
}

func xor(a, b []byte) []byte {
	out := make([]byte, len(a))
	subtle.XORBytes(out, a, b)
	return out
}

func scramKeysOf(password string, salt []byte, iterations int) (scramKeys, error) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return scramKeys{}, fmt.Errorf("deriving keys from a password: %w", err)
	}
	return scramKeys{hmacOf(salted, "Client Key"), hmacOf(salted, "Server Key")}, nil
}

var errScram = errors.New("the other side does not follow " + scramName)

// scramAttributes reads "a=…,b=…", whose order is fixed.
func scramAttributes(s string, names string) ([]string, error) {
	parts := strings.Split(s, ",")
	if len(parts) < len(names) {
		return nil, errScram
	}
	for i := range names {
		name, value, ok := strings.Cut(parts[i], "=")
		if !ok || name != names[i:i+1] {
			return nil, errScram
		}
		parts[i] = value
	}
	return parts, nil
}

// scramServer verifies one client.
type scramServer struct {
	verifier            scramVerifier
	nonce               string // its own half at first, then both
	header, bare, first string
}

func newScramServer(v scramVerifier) *scramServer {
	return &scramServer{verifier: v, nonce: rand.Text()}
}

// challenge answers the client's first message.
func (s *scramServer) challenge(clientFirst string) (string, error) {
	binding, rest, _ := strings.Cut(clientFirst, ",")
	authzid, bare, ok := strings.Cut(rest, ",")
	if !ok || binding != "n" && binding != "y" {
		return "", fmt.Errorf("%w: it asks for channel binding, or is cut off", errScram)
	}
	attributes, err := scramAttributes(bare, "nr")
	if err != nil {
		return "", err
	}
	s.header, s.bare, s.nonce = binding+","+authzid+",", bare, attributes[1]+s.nonce
	s.first = fmt.Sprintf("r=%s,s=%s,i=%d", s.nonce, base64.StdEncoding.EncodeToString(s.verifier.salt), s.verifier.iterations)
	return s.first, nil
}

var errPassword = errors.New("the password is wrong")

// verify judges the client's last message. The keys are what the client has shown to have.
func (s *scramServer) verify(clientFinal string) (serverFinal string, keys scramKeys, err error) {
	attributes, err := scramAttributes(clientFinal, "cr")
	if err != nil {
		return "", keys, err
	}
	at := strings.LastIndex(clientFinal, ",p=")
	if at < 0 {
		return "", keys, errScram
	}
	proof, err := base64.StdEncoding.DecodeString(clientFinal[at+3:])
	header, err2 := base64.StdEncoding.DecodeString(attributes[0])
	if err := errors.Join(err, err2); err != nil {
		return "", keys, fmt.Errorf("%w: %w", errScram, err)
	}
	if len(proof) != sha256.Size || string(header) != s.header || attributes[1] != s.nonce {
		return "", keys, errScram
	}
	message := s.bare + "," + s.first + "," + clientFinal[:at]
	key := xor(proof, hmacOf(s.verifier.stored, message))
	if subtle.ConstantTimeCompare(hashOf(key), s.verifier.stored) != 1 {
		return "", keys, errPassword
	}
	signature := hmacOf(s.verifier.server, message)
	return "v=" + base64.StdEncoding.EncodeToString(signature), scramKeys{key, s.verifier.server}, nil
}

// scramClient logs in to one server.
type scramClient struct {
	user    string // PostgreSQL takes it from the startup message, and wants none here
	nonce   string
	keys    func(salt []byte, iterations int) (scramKeys, error)
	message string
	server  []byte
}

func newScramClient(keys func(salt []byte, iterations int) (scramKeys, error)) *scramClient {
	return &scramClient{nonce: rand.Text(), keys: keys}
}

const scramHeader = "n,," // no channel binding, no other role

// bare is the first message without its header.
func (c *scramClient) bare() string { return "n=" + c.user + ",r=" + c.nonce }

func (c *scramClient) first() string { return scramHeader + c.bare() }

// answer proves that the client has the keys.
func (c *scramClient) answer(serverFirst string) (string, error) {
	attributes, err := scramAttributes(serverFirst, "rsi")
	if err != nil {
		return "", err
	}
	salt, err := base64.StdEncoding.DecodeString(attributes[1])
	iterations, err2 := strconv.Atoi(attributes[2])
	if err := errors.Join(err, err2); err != nil || iterations < 1 || !strings.HasPrefix(attributes[0], c.nonce) {
		return "", errScram
	}
	keys, err := c.keys(salt, iterations)
	if err != nil {
		return "", err
	}
	final := "c=" + base64.StdEncoding.EncodeToString([]byte(scramHeader)) + ",r=" + attributes[0]
	c.message = c.bare() + "," + serverFirst + "," + final
	c.server = keys.server
	proof := xor(keys.client, hmacOf(hashOf(keys.client), c.message))
	return final + ",p=" + base64.StdEncoding.EncodeToString(proof), nil
}

// check makes sure that the server knows the verifier, too.
func (c *scramClient) check(serverFinal string) error {
	attributes, err := scramAttributes(serverFinal, "v")
	if err != nil {
		return err
	}
	signature, err := base64.StdEncoding.DecodeString(attributes[0])
	if err != nil || !hmac.Equal(signature, hmacOf(c.server, c.message)) {
		return errors.New("the server does not know the password's verifier: it is not the one it seems")
	}
	return nil
}
