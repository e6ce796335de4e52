package pki

import (
	"bytes"
	"crypto"
	"crypto/sha1" // #nosec G505 -- RFC 6960 clients identify issuers by SHA-1; nothing here relies on it for security
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Bounds of an OCSP request.
const (
	MaxOCSPRequest = 64 << 10 // octets of DER
	MaxOCSPCertIDs = 32       // certificates asked about in one message
	maxOCSPNonce   = 128      // RFC 9654 2.1
)

var (
	oidSHA1      = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	oidSHA256    = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidBasicOCSP = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
	oidNonce     = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
)

// ErrMalformedOCSP is every error of ParseOCSPRequest and DecodeOCSPGet: answer with OCSPError(OCSPMalformed).
var ErrMalformedOCSP = errors.New("the OCSP request is malformed")

// CertID is one certificate that an OCSP client asks about.
type CertID struct {
	Raw            []byte      // DER as received; it is echoed in the answer
	Hash           crypto.Hash // SHA-1 or SHA-256; 0: an algorithm that is not offered, so no issuer matches
	IssuerNameHash []byte
	IssuerKeyHash  []byte
	Serial         *big.Int
}

// OCSPRequest is what was asked, with or without a nonce (RFC 6960 4.1.1).
type OCSPRequest struct {
	CertIDs []CertID // at least one
	Nonce   []byte   // 1 to 128 octets; nil: none was sent
}

// ParseOCSPRequest reads a DER request of at most 64 KB and 32 certificates. A request may be signed: the signature is
// not looked at. A nonce of 0 or more than 128 octets and an unknown critical extension make it malformed.
func ParseOCSPRequest(der []byte) (*OCSPRequest, error) {
	in := cryptobyte.String(der)
	var outer, tbs, list cryptobyte.String
	if len(der) > MaxOCSPRequest || !in.ReadASN1(&outer, cbasn1.SEQUENCE) || !in.Empty() ||
		!outer.ReadASN1(&tbs, cbasn1.SEQUENCE) ||
		!outer.SkipOptionalASN1(cbasn1.Tag(0).Constructed().ContextSpecific()) || !outer.Empty() ||
		!readVersion(&tbs) ||
		!tbs.SkipOptionalASN1(cbasn1.Tag(1).Constructed().ContextSpecific()) || // requestorName
		!tbs.ReadASN1(&list, cbasn1.SEQUENCE) {
		return nil, ErrMalformedOCSP
	}
	r := new(OCSPRequest)
	for !list.Empty() {
		id, ok := readOneRequest(&list)
		if !ok || len(r.CertIDs) == MaxOCSPCertIDs {
			return nil, ErrMalformedOCSP
		}
		r.CertIDs = append(r.CertIDs, id)
	}
	if len(r.CertIDs) == 0 || !r.readExtensions(&tbs) || !tbs.Empty() {
		return nil, ErrMalformedOCSP
	}
	return r, nil
}

// readVersion accepts an explicit or absent version 1.
func readVersion(tbs *cryptobyte.String) bool {
	var field cryptobyte.String
	var present bool
	if !tbs.ReadOptionalASN1(&field, &present, cbasn1.Tag(0).Constructed().ContextSpecific()) {
		return false
	}
	var version int
	return !present || field.ReadASN1Integer(&version) && field.Empty() && version == 0
}

func readOneRequest(list *cryptobyte.String) (id CertID, ok bool) {
	var request, raw, exts cryptobyte.String
	var present bool
	if !list.ReadASN1(&request, cbasn1.SEQUENCE) || !request.ReadASN1Element(&raw, cbasn1.SEQUENCE) ||
		!request.ReadOptionalASN1(&exts, &present, cbasn1.Tag(0).Constructed().ContextSpecific()) || !request.Empty() {
		return id, false
	}
	if present && !eachExtension(exts, func(_ asn1.ObjectIdentifier, critical bool, _ []byte) bool { return !critical }) {
		return id, false
	}
	return parseCertID(raw)
}

func parseCertID(raw cryptobyte.String) (id CertID, ok bool) {
	id.Raw, id.Serial = raw, new(big.Int)
	var body, alg cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !raw.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1(&alg, cbasn1.SEQUENCE) || !alg.ReadASN1ObjectIdentifier(&oid) ||
		!body.ReadASN1Bytes(&id.IssuerNameHash, cbasn1.OCTET_STRING) ||
		!body.ReadASN1Bytes(&id.IssuerKeyHash, cbasn1.OCTET_STRING) ||
		!body.ReadASN1Integer(id.Serial) || !body.Empty() || id.Serial.BitLen() > 160 {
		return id, false
	}
	noParameters := alg.Empty() || bytes.Equal(alg, asn1Null)
	switch {
	case oid.Equal(oidSHA1) && noParameters:
		id.Hash = crypto.SHA1
	case oid.Equal(oidSHA256) && noParameters:
		id.Hash = crypto.SHA256
	}
	return id, true
}

func (r *OCSPRequest) readExtensions(tbs *cryptobyte.String) bool {
	var exts cryptobyte.String
	var present bool
	if !tbs.ReadOptionalASN1(&exts, &present, cbasn1.Tag(2).Constructed().ContextSpecific()) {
		return false
	}
	return !present || eachExtension(exts, func(oid asn1.ObjectIdentifier, critical bool, value []byte) bool {
		if !oid.Equal(oidNonce) {
			return !critical
		}
		in := cryptobyte.String(value)
		return r.Nonce == nil && in.ReadASN1Bytes(&r.Nonce, cbasn1.OCTET_STRING) && in.Empty() &&
			len(r.Nonce) >= 1 && len(r.Nonce) <= maxOCSPNonce
	})
}

// eachExtension walks Extensions until accept refuses one.
func eachExtension(in cryptobyte.String, accept func(oid asn1.ObjectIdentifier, critical bool, value []byte) bool) bool {
	var list cryptobyte.String
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() {
		return false
	}
	for !list.Empty() {
		var ext cryptobyte.String
		var oid asn1.ObjectIdentifier
		var critical bool
		var value []byte
		if !list.ReadASN1(&ext, cbasn1.SEQUENCE) || !ext.ReadASN1ObjectIdentifier(&oid) ||
			ext.PeekASN1Tag(cbasn1.BOOLEAN) && !ext.ReadASN1Boolean(&critical) ||
			!ext.ReadASN1Bytes(&value, cbasn1.OCTET_STRING) || !ext.Empty() || !accept(oid, critical, value) {
			return false
		}
	}
	return true
}

// DecodeOCSPGet reads the base64 request of an OCSP GET (RFC 6960 A.1.1). rawTail is everything after the responder's
// path, escaped or already unescaped by a gateway: "/", "//" and "+" stand for themselves, a space for a "+" that some
// proxy decoded, and missing padding is accepted.
func DecodeOCSPGet(rawTail string) ([]byte, error) {
	if len(rawTail) > 2*MaxOCSPRequest {
		return nil, ErrMalformedOCSP
	}
	tail, err := url.PathUnescape(rawTail)
	if err != nil {
		return nil, ErrMalformedOCSP
	}
	tail = strings.TrimRight(strings.ReplaceAll(strings.TrimPrefix(tail, "/"), " ", "+"), "=")
	der, err := base64.RawStdEncoding.DecodeString(tail)
	if err != nil || len(der) == 0 || len(der) > MaxOCSPRequest {
		return nil, ErrMalformedOCSP
	}
	return der, nil
}

// IssuerHashes are the forms in which OCSP clients name an issuer: hashes of its DER name and of its public key bits.
type IssuerHashes struct {
	NameSHA1, KeySHA1     [20]byte
	NameSHA256, KeySHA256 [32]byte
}

// HashIssuer computes the hashes of a CA certificate.
func HashIssuer(ca *x509.Certificate) IssuerHashes {
	bits := spkiBits(ca.RawSubjectPublicKeyInfo)
	return IssuerHashes{
		NameSHA1: sha1.Sum(ca.RawSubject), KeySHA1: sha1.Sum(bits), // #nosec G401 -- see the import
		NameSHA256: sha256.Sum256(ca.RawSubject), KeySHA256: sha256.Sum256(bits),
	}
}

// Match reports whether a client asks about a certificate of this issuer.
func (h IssuerHashes) Match(id CertID) bool {
	switch id.Hash {
	case crypto.SHA1:
		return bytes.Equal(id.IssuerNameHash, h.NameSHA1[:]) && bytes.Equal(id.IssuerKeyHash, h.KeySHA1[:])
	case crypto.SHA256:
		return bytes.Equal(id.IssuerNameHash, h.NameSHA256[:]) && bytes.Equal(id.IssuerKeyHash, h.KeySHA256[:])
	}
	return false
}

// OCSPStatus is a certificate's status in an answer. The zero value is Unknown, so that a forgotten status is never good.
type OCSPStatus int

// The statuses of RFC 6960 2.2.
const (
	OCSPUnknown OCSPStatus = iota
	OCSPGood
	OCSPRevoked
)

// OCSPSingle is the answer about one certificate.
type OCSPSingle struct {
	CertID     []byte // CertID.Raw of the request
	Status     OCSPStatus
	RevokedAt  time.Time // when revoked
	Reason     Reason    // when revoked; unspecified is left out
	ThisUpdate time.Time
	NextUpdate time.Time
}

// OCSPResponse is a successful answer before it is signed. Times are cut to whole seconds (RFC 9919 3.2.3).
type OCSPResponse struct {
	ProducedAt time.Time
	Singles    []OCSPSingle
	Nonce      []byte // echoed; nil: none
}

// SignOCSP encodes and signs an answer: responder by key, the responder's certificate included, and the same bytes for the
// same arguments where the key signs deterministically. It refuses to sign what no client may rely on: a signer that is not
// the responder's, no answers, an update window that is empty or ends after the responder's certificate.
func SignOCSP(p OCSPResponse, signer crypto.Signer, responder *x509.Certificate) ([]byte, error) {
	if !KeyMatches(responder, signer) {
		return nil, errors.New("signing an OCSP answer: the key is not that of the responder's certificate")
	}
	if err := p.check(responder); err != nil {
		return nil, err
	}
	s, err := signingFor(signer.Public())
	if err != nil {
		return nil, err
	}
	keyHash := sha1.Sum(spkiBits(responder.RawSubjectPublicKeyInfo)) // #nosec G401 -- RFC 6960 4.2.1 KeyHash
	tbs, err := p.encode(keyHash[:])
	if err != nil {
		return nil, err
	}
	sig, err := s.sign(signer, tbs)
	if err != nil {
		return nil, err
	}
	return wrapOCSP(tbs, s, sig, responder.Raw)
}

func (p *OCSPResponse) check(responder *x509.Certificate) error {
	if len(p.Singles) == 0 {
		return errors.New("signing an OCSP answer: it answers nothing")
	}
	if len(p.Nonce) > maxOCSPNonce {
		return errors.New("signing an OCSP answer: the nonce is longer than 128 octets")
	}
	for _, one := range p.Singles {
		switch {
		case !one.NextUpdate.After(one.ThisUpdate):
			return errors.New("signing an OCSP answer: the next update is not after this update")
		case one.NextUpdate.After(responder.NotAfter):
			return errors.New("signing an OCSP answer: the next update is after the end of the responder's certificate")
		case one.Status == OCSPRevoked && (one.RevokedAt.IsZero() || !one.Reason.Valid()):
			return errors.New("signing an OCSP answer: a revocation has no time or no usable reason")
		}
	}
	return nil
}

// encode makes the ResponseData (RFC 6960 4.2.1).
func (p *OCSPResponse) encode(keyHash []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 512))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(explicit(2), func(b *cryptobyte.Builder) { b.AddASN1OctetString(keyHash) })
		addOCSPTime(b, p.ProducedAt)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for i := range p.Singles {
				p.Singles[i].add(b)
			}
		})
		if len(p.Nonce) == 0 {
			return
		}
		b.AddASN1(explicit(1), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				addExtension(b, oidNonce, false, func(b *cryptobyte.Builder) { b.AddASN1OctetString(p.Nonce) })
			})
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding an OCSP answer: %w", err)
	}
	return der, nil
}

func (one *OCSPSingle) add(b *cryptobyte.Builder) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(one.CertID)
		switch one.Status {
		case OCSPGood:
			b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(*cryptobyte.Builder) {})
		case OCSPRevoked:
			b.AddASN1(explicit(1), one.addRevoked)
		default:
			b.AddASN1(cbasn1.Tag(2).ContextSpecific(), func(*cryptobyte.Builder) {})
		}
		addOCSPTime(b, one.ThisUpdate)
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { addOCSPTime(b, one.NextUpdate) })
	})
}

func (one *OCSPSingle) addRevoked(b *cryptobyte.Builder) {
	addOCSPTime(b, one.RevokedAt)
	if one.Reason != Unspecified {
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddASN1Enum(int64(one.Reason)) })
	}
}

func explicit(n uint8) cbasn1.Tag { return cbasn1.Tag(n).Constructed().ContextSpecific() }

func addOCSPTime(b *cryptobyte.Builder, t time.Time) {
	b.AddASN1GeneralizedTime(t.UTC().Truncate(time.Second))
}

func wrapOCSP(tbs []byte, s *signing, sig, cert []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(sig)+len(cert)+128))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Enum(0) // successful
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidBasicOCSP)
				b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddBytes(tbs)
						s.addIdentifier(b)
						b.AddASN1BitString(sig)
						b.AddASN1(explicit(0), func(b *cryptobyte.Builder) {
							b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(cert) })
						})
					})
				})
			})
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding an OCSP answer: %w", err)
	}
	return der, nil
}

// OCSPErrorStatus is an unsuccessful OCSPResponseStatus (RFC 6960 4.2.1).
type OCSPErrorStatus byte

// The error statuses.
const (
	OCSPMalformed    OCSPErrorStatus = 1
	OCSPInternal     OCSPErrorStatus = 2
	OCSPTryLater     OCSPErrorStatus = 3
	OCSPSigRequired  OCSPErrorStatus = 5
	OCSPUnauthorized OCSPErrorStatus = 6
)

// OCSPError is an unsigned error answer of five octets, sent with HTTP status 200 and not to be cached.
func OCSPError(s OCSPErrorStatus) []byte { return []byte{0x30, 3, 0x0a, 1, byte(s)} }
