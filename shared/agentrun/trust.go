package agentrun

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"syscall"
	"time"

	"certctl/shared/pki"
)

// clockSkew is how far this host's clock may be off before the server's certificate counts as outside its validity.
const clockSkew = 2 * time.Hour

var tokenForm = regexp.MustCompile(`^cet1_[A-Za-z0-9_-]{43}(?:\.([A-Za-z0-9_-]{43}))?$`)

// TokenPin reads an enrollment token's form, cet1_<secret>[.<base64url SHA-256 of the server's root certificate>], and answers
// the pin, nil if it has none.
func TokenPin(token string) ([]byte, error) {
	m := tokenForm.FindStringSubmatch(token)
	if m == nil {
		return nil, errors.New("the enrollment token is malformed: it begins with cet1_ and is copied whole from `certctl agent token`")
	}
	if m[1] == "" {
		return nil, nil
	}
	return base64.RawURLEncoding.DecodeString(m[1])
}

// trust decides whether the peer is the server.
type trust struct {
	store *store
	roots *x509.CertPool // nil: the system's
	pin   []byte         // from the token, while no root is stored
	host  string
}

func newTransport(cfg Config, st *store, base *url.URL) (*http.Transport, error) {
	t := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // the standard library's own type
	t.MaxIdleConnsPerHost = 2
	if base.Scheme == "http" {
		// The resolved address is what counts, and a proxy would carry the credential out of the machine.
		t.Proxy = nil
		t.DialContext = (&net.Dialer{Timeout: 10 * time.Second, Control: onlyLoopback}).DialContext
		return t, nil
	}
	tr := &trust{store: st, host: base.Hostname()}
	if err := tr.load(cfg); err != nil {
		return nil, err
	}
	t.TLSClientConfig = &tls.Config{
		MinVersion: tls.VersionTLS12,
		// #nosec G402 -- verify does the whole verification; the standard one cannot tolerate this host's clock
		InsecureSkipVerify: true,
		VerifyConnection:   tr.verify,
	}
	return t, nil
}

// errPlain is the refusal of plain HTTP to another machine, before anything is sent.
var errPlain = errors.New("plain http is used to this machine only: give an https URL")

func onlyLoopback(_, address string, _ syscall.RawConn) error {
	host, _, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return errPlain
	}
	return nil
}

// load finds what to trust: a CA file given by the operator, the root stored at enrollment, the token's pin, or the system.
func (t *trust) load(cfg Config) error {
	if cfg.CAFile != "" {
		text, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return fmt.Errorf("reading CERTCTL_CA_FILE: %w", err)
		}
		return t.trustPEM(text, "CERTCTL_CA_FILE")
	}
	text, err := t.store.get(rootFile)
	if err != nil {
		return fmt.Errorf("reading the server's stored root: %w", err)
	}
	if text != nil {
		return t.trustPEM(text, rootFile)
	}
	if cfg.Token != "" {
		t.pin, err = TokenPin(cfg.Token)
	}
	return err
}

func (t *trust) trustPEM(text []byte, from string) error {
	certs, err := pki.ParseBundle(text)
	if err != nil {
		return fmt.Errorf("reading the certificates in %s: %w", from, err)
	}
	t.roots = x509.NewCertPool()
	for _, c := range certs {
		t.roots.AddCert(c)
	}
	return nil
}

// verify checks chain and name at the time that fits this host's clock within clockSkew. With a pin, the presented chain must
// hold the pinned certificate; it is stored and is the only root from then on.
func (t *trust) verify(state tls.ConnectionState) error {
	presented := state.PeerCertificates
	if len(presented) == 0 {
		return errors.New("the server presents no certificate")
	}
	roots := t.roots
	var pinned *x509.Certificate
	if t.pin != nil {
		if pinned = findPinned(presented, t.pin); pinned == nil {
			return errors.New("the server's chain does not hold the root that the enrollment token names: this is another server, or somebody is in between")
		}
		roots = x509.NewCertPool()
		roots.AddCert(pinned)
	}
	between := x509.NewCertPool()
	for _, c := range presented[1:] {
		between.AddCert(c)
	}
	_, err := presented[0].Verify(x509.VerifyOptions{DNSName: t.host, Roots: roots, Intermediates: between, CurrentTime: plausible(presented[0], time.Now())})
	if err != nil || pinned == nil || t.store.readOnly {
		return err
	}
	if err := t.store.put(pki.EncodeBundle(pinned), rootFile); err != nil {
		return fmt.Errorf("storing the server's root: %w", err)
	}
	return nil
}

func findPinned(presented []*x509.Certificate, pin []byte) *x509.Certificate {
	for _, c := range presented {
		if sum := sha256.Sum256(c.Raw); subtle.ConstantTimeCompare(sum[:], pin) == 1 {
			return c
		}
	}
	return nil
}

// plausible is now, moved by at most clockSkew into the leaf's validity.
func plausible(leaf *x509.Certificate, now time.Time) time.Time {
	switch {
	case now.Before(leaf.NotBefore) && leaf.NotBefore.Sub(now) <= clockSkew:
		return leaf.NotBefore
	case now.After(leaf.NotAfter) && now.Sub(leaf.NotAfter) <= clockSkew:
		return leaf.NotAfter
	}
	return now
}
