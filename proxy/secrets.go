package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// What a gate for PostgreSQL needs and nobody else may know is in files of each node, in a
// folder named for the port: it is in no configuration, no log and no label.
const (
	secretCert     = "tls.crt"
	secretKey      = "tls.key"
	secretUser     = "auth-user"
	secretPassword = "auth-password"

	mostSecret = 1 << 20 // bytes that a file may have
)

// secrets are the contents of those files. The zero value is of a route that needs none.
type secrets struct{ cert, key, user, password string }

// readSecrets reads those that a route needs, below root. They are to be from one hand, and
// what is secret is to be kept secret; the error says what is wrong with which file.
func readSecrets(root string, r Route) (s secrets, err error) {
	p := r.Postgres
	if p == nil || !p.TLS && !p.Auth {
		return s, nil
	}
	if root == "" {
		return s, errors.New("this proxy was not told where the certificates and passwords of routes are")
	}
	dir := filepath.Join(root, fmt.Sprint(r.Listen))
	if err := checkFolder(dir); err != nil {
		return s, err
	}
	read := func(to *string, name string, private bool) {
		if err == nil {
			*to, err = readSecret(filepath.Join(dir, name), private)
		}
	}
	if p.TLS {
		read(&s.cert, secretCert, false)
		read(&s.key, secretKey, true)
	}
	if p.Auth {
		read(&s.user, secretUser, false)
		read(&s.password, secretPassword, true)
		s.user, s.password = strings.TrimSpace(s.user), strings.TrimRight(s.password, "\r\n")
	}
	if err != nil {
		return secrets{}, err
	}
	return s, nil
}

// options are what the secrets of a route are for.
func (r *RoutePostgres) options(s secrets) (o PostgresOptions, err error) {
	if r == nil {
		return o, nil
	}
	o = PostgresOptions{PassTLS: r.PassTLS, User: s.user, Password: s.password}
	if r.TLS {
		pair, err := tls.X509KeyPair([]byte(s.cert), []byte(s.key))
		if err != nil {
			return o, fmt.Errorf("%s and %s do not go together: %w", secretCert, secretKey, err)
		}
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	}
	return o, nil
}

func checkFolder(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no folder %s with what this route needs; each node has its own", dir)
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is no folder", dir)
	}
	return checkOwner(dir, info)
}

// checkOwner wants a file or folder to be changed by nobody but root, or whoever this
// process is of.
func checkOwner(path string, info fs.FileInfo) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d: chown root %s", path, st.Uid, path)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others than its owner may write %s (mode %#o): chmod go-w %s", path, info.Mode().Perm(), path)
	}
	return nil
}

// readSecret reads a file, which nobody but its owner may read if it is private.
func readSecret(path string, private bool) (string, error) {
	// What is no file, such as a pipe, is not waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("there is no %s, which this route needs; each node has its own", path)
	case err != nil:
		return "", err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	switch {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s is no file", path)
	}
	if err := checkOwner(path, info); err != nil {
		return "", err
	}
	if private && info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("others than its owner may read %s (mode %#o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	text, err := io.ReadAll(io.LimitReader(f, mostSecret+1))
	switch {
	case err != nil:
		return "", err
	case len(text) > mostSecret:
		return "", fmt.Errorf("%s has more than %d bytes", path, mostSecret)
	case strings.TrimSpace(string(text)) == "":
		return "", fmt.Errorf("%s is empty", path)
	}
	return string(text), nil
}
