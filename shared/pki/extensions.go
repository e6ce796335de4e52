package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"time"
)

var (
	oidNoRevAvail  = asn1.ObjectIdentifier{2, 5, 29, 56}
	oidTLSFeature  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}
	oidOCSPNoCheck = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}
)

// asn1Null is the DER of NULL. It is copied before use.
var asn1Null = []byte{5, 0}

// NoRevAvail says that no revocation information will ever be published for the certificate (RFC 9608). It excludes CRL
// distribution points and an OCSP URL.
func NoRevAvail() pkix.Extension {
	return pkix.Extension{Id: oidNoRevAvail, Value: slices.Clone(asn1Null)}
}

// MustStaple is the TLS feature extension with status_request (RFC 7633).
func MustStaple() pkix.Extension {
	return pkix.Extension{Id: oidTLSFeature, Value: []byte{0x30, 3, 2, 1, 5}}
}

// OCSPNoCheck frees an OCSP responder's certificate from being checked itself (RFC 6960 4.2.2.2.1).
func OCSPNoCheck() pkix.Extension {
	return pkix.Extension{Id: oidOCSPNoCheck, Value: slices.Clone(asn1Null)}
}

// HasNoRevAvail reports whether the certificate is exempt from revocation.
func HasNoRevAvail(c *x509.Certificate) bool { return hasExtension(c, oidNoRevAvail) }

// HasMustStaple reports whether the certificate has the TLS feature extension.
func HasMustStaple(c *x509.Certificate) bool { return hasExtension(c, oidTLSFeature) }

// HasOCSPNoCheck reports whether the certificate has id-pkix-ocsp-nocheck.
func HasOCSPNoCheck(c *x509.Certificate) bool { return hasExtension(c, oidOCSPNoCheck) }

func hasExtension(c *x509.Certificate, oid asn1.ObjectIdentifier) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oid) })
}

// ShortLived reports whether certificates of this lifetime are left out of CRL and OCSP (SPEC CERT-6).
func ShortLived(ttl time.Duration) bool { return ttl < time.Hour }
