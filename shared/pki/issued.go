package pki

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// Expected is what an issued certificate is held against before it is stored (SPEC ISS-0).
type Expected struct {
	Names     Names
	PublicKey crypto.PublicKey
	Now       time.Time
	MaxTTL    time.Duration  // longest lifetime accepted; 0: any
	Backdate  time.Duration  // how far notBefore may lie before Now, on top of MaxTTL; 0: any age
	Roots     *x509.CertPool // the chain must end at one of these; nil: only its links are checked
}

// NotAsAsked says in what an issued certificate differs from what was asked for.
type NotAsAsked struct {
	What   string // "chain", "key", "names", "validity" or "usage"
	Detail string
}

func (e *NotAsAsked) Error() string {
	return "the issued certificate is not what was asked for: " + e.What + ": " + e.Detail
}

func notAsAsked(what, format string, args ...any) error {
	return &NotAsAsked{What: what, Detail: fmt.Sprintf(format, args...)}
}

// CheckIssued holds a chain (leaf first) against what was asked for: the key, exactly the names, a validity that covers
// now and is not too long, a leaf that is no CA, and links whose signatures verify. The common name may be missing, since
// public CAs drop it; another one is refused unless none was asked for and it repeats a SAN. The error is a *NotAsAsked.
func CheckIssued(chain []*x509.Certificate, e Expected) error {
	if len(chain) == 0 {
		return notAsAsked("chain", "it is empty")
	}
	leaf := chain[0]
	if !SameKey(leaf.PublicKey, e.PublicKey) {
		return notAsAsked("key", "it certifies another key")
	}
	if leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return notAsAsked("usage", "it has the rights of a certificate authority")
	}
	if err := checkNames(leaf, e.Names); err != nil {
		return err
	}
	if err := checkValidity(leaf, e); err != nil {
		return err
	}
	return checkLinks(chain, e)
}

func checkNames(leaf *x509.Certificate, want Names) error {
	got, err := CertificateNames(leaf)
	if err != nil {
		return notAsAsked("names", "%v", err)
	}
	if len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses)+len(leaf.URIs) == 0 && len(want.SANs()) > 0 {
		return notAsAsked("names", "it has no subject alternative names")
	}
	if !got.SameSANs(want) {
		return notAsAsked("names", "the subject alternative names differ")
	}
	cn := got.CommonName
	if cn == "" || cn == want.CommonName || want.CommonName == "" && slices.Contains(want.SANs(), cn) {
		return nil
	}
	return notAsAsked("names", "the common name differs")
}

func checkValidity(leaf *x509.Certificate, e Expected) error {
	switch {
	case e.Now.Before(leaf.NotBefore):
		return notAsAsked("validity", "it is not valid before %s", leaf.NotBefore.Format(time.RFC3339))
	case e.Now.After(leaf.NotAfter):
		return notAsAsked("validity", "it ended at %s", leaf.NotAfter.Format(time.RFC3339))
	case e.Backdate > 0 && e.Now.Sub(leaf.NotBefore) > e.Backdate:
		return notAsAsked("validity", "it begins at %s, too long ago", leaf.NotBefore.Format(time.RFC3339))
	case e.MaxTTL > 0 && leaf.NotAfter.Sub(leaf.NotBefore) > e.MaxTTL+e.Backdate:
		return notAsAsked("validity", "it lives longer than %s", e.MaxTTL)
	}
	return nil
}

func checkLinks(chain []*x509.Certificate, e Expected) error {
	pool := x509.NewCertPool()
	for i, parent := range chain[1:] {
		if err := chain[i].CheckSignatureFrom(parent); err != nil {
			return notAsAsked("chain", "certificate %d is not signed by the next one: %v", i+1, err)
		}
		if e.Now.Before(parent.NotBefore) || e.Now.After(parent.NotAfter) {
			return notAsAsked("chain", "certificate %d is not valid at this time", i+2)
		}
		pool.AddCert(parent)
	}
	if e.Roots == nil {
		return nil
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: e.Roots, Intermediates: pool, CurrentTime: e.Now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return notAsAsked("chain", "it does not lead to a trusted root: %v", err)
	}
	return nil
}
