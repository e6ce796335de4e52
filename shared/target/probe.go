package target

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// Want is what a probe must see served.
type Want struct {
	Chain      []*x509.Certificate // the version: leaf, then intermediates
	ServerName string              // SNI and the name that the leaf must be good for; "": DefaultServerName of the leaf
	Patience   time.Duration       // how long to try again, since reloads are asynchronous; 0 is 15 seconds
}

// Served is what a completed handshake showed.
type Served struct {
	Fingerprint string // lower-case hex SHA-256 of the leaf
	Serial      string // lower-case hex without leading zeros
	Note        string // for people: the certificate is not valid yet, or no longer, by this host's clock
	Attempts    int
}

const (
	probePatience = 15 * time.Second
	probeAttempt  = 5 * time.Second
	probePause    = 100 * time.Millisecond
	probePauseMax = time.Second
)

// Probe connects until a TLS handshake completes in which the server proves that it holds the key of exactly the wanted
// leaf, presents the intermediates that belong to it, and the leaf is good for the server name. A right certificate in a
// handshake that breaks is not served. The local clock has no say in the verdict; see Served.Note.
func Probe(ctx context.Context, dial DialContext, address string, w Want) (Served, error) {
	patience := w.Patience
	if patience == 0 {
		patience = probePatience
	}
	if w.ServerName == "" {
		w.ServerName = DefaultServerName(w.Chain[0])
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pause := probePause
	for attempt := 1; ; attempt++ {
		served, err := probeOnce(ctx, dial, address, w)
		served.Attempts = attempt
		if err == nil {
			return served, nil
		}
		select {
		case <-ctx.Done():
			return served, fmt.Errorf("probing %s (%d attempts): %w", address, attempt, err)
		case <-time.After(pause):
			pause = min(pause*3/2, probePauseMax)
		}
	}
}

func probeOnce(ctx context.Context, dial DialContext, address string, w Want) (Served, error) {
	ctx, cancel := context.WithTimeout(ctx, probeAttempt)
	defer cancel()
	raw, err := dial(ctx, "tcp", address)
	if err != nil {
		return Served{}, fmt.Errorf("connecting: %w", err)
	}
	defer func() { _ = raw.Close() }()
	config := &tls.Config{
		ServerName: w.ServerName,
		// #nosec G402 -- judge compares the leaf with the wanted one; the handshake still proves that the peer holds its key
		InsecureSkipVerify: true,
		MinVersion:         tls.VersionTLS12,
	}
	if net.ParseIP(w.ServerName) != nil {
		config.ServerName = "" // RFC 6066, section 3: no addresses in SNI
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return Served{}, fmt.Errorf("the TLS handshake does not complete: %w", err)
	}
	return judge(conn.ConnectionState().PeerCertificates, w, time.Now())
}

// judge decides by what was presented alone; now only makes the note.
func judge(presented []*x509.Certificate, w Want, now time.Time) (Served, error) {
	if len(presented) == 0 {
		return Served{}, errors.New("the server presents no certificate")
	}
	leaf, want := presented[0], w.Chain[0]
	served := Served{Fingerprint: Fingerprint(leaf), Serial: leaf.SerialNumber.Text(16), Note: clockNote(leaf, now)}
	if !bytes.Equal(leaf.Raw, want.Raw) {
		return served, fmt.Errorf("the server presents another certificate (serial %s, wanted %s)", served.Serial, want.SerialNumber.Text(16))
	}
	if w.ServerName != "" {
		if err := leaf.VerifyHostname(w.ServerName); err != nil {
			return served, fmt.Errorf("the certificate is not good for the name that clients ask for: %w", err)
		}
	}
	for _, c := range w.Chain[1:] {
		if !presents(presented[1:], c) {
			return served, fmt.Errorf("the server presents the certificate without its intermediate %q, so clients cannot build the chain", c.Subject.CommonName)
		}
	}
	return served, nil
}

func presents(chain []*x509.Certificate, c *x509.Certificate) bool {
	for _, p := range chain {
		if bytes.Equal(p.Raw, c.Raw) {
			return true
		}
	}
	return false
}

func clockNote(leaf *x509.Certificate, now time.Time) string {
	if early := leaf.NotBefore.Sub(now); early > 0 {
		return fmt.Sprintf("by this host's clock the certificate becomes valid in %s: is the clock slow?", early.Round(time.Second))
	}
	if late := now.Sub(leaf.NotAfter); late > 0 {
		return fmt.Sprintf("by this host's clock the certificate ended %s ago: is the clock fast?", late.Round(time.Second))
	}
	return ""
}

// DefaultServerName is the leaf's first DNS name, else its first address, else "". A wildcard gets a label in its place,
// since servers match SNI against real names.
func DefaultServerName(leaf *x509.Certificate) string {
	if len(leaf.DNSNames) > 0 {
		if rest, ok := strings.CutPrefix(leaf.DNSNames[0], "*."); ok {
			return "certctl-probe." + rest
		}
		return leaf.DNSNames[0]
	}
	if len(leaf.IPAddresses) > 0 {
		return leaf.IPAddresses[0].String()
	}
	return ""
}
