package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Deterministic is implemented by a crypto.Signer of another type than the standard library's whose Sign, given a nil
// source of randomness, gives the same signature for the same digest (RFC 6979). Signers without it (KMS, PKCS #11) are
// given rand.Reader, and a repeated signature of theirs may differ although what is signed is the same.
type Deterministic interface{ Deterministic() }

// signing is how one key signs: the AlgorithmIdentifier as it stands in certificates and answers, and the digest.
type signing struct {
	oid  asn1.ObjectIdentifier
	null bool // RSA has NULL parameters, ECDSA and Ed25519 have none (RFC 4055, 5758, 8410)
	hash crypto.Hash
	x509 x509.SignatureAlgorithm
}

var (
	sha256RSA   = &signing{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, true, crypto.SHA256, x509.SHA256WithRSA}
	ecdsaSHA256 = &signing{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, false, crypto.SHA256, x509.ECDSAWithSHA256}
	ecdsaSHA384 = &signing{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, false, crypto.SHA384, x509.ECDSAWithSHA384}
	ecdsaSHA512 = &signing{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, false, crypto.SHA512, x509.ECDSAWithSHA512}
	pureEd25519 = &signing{asn1.ObjectIdentifier{1, 3, 101, 112}, false, 0, x509.PureEd25519}
)

// signingFor picks the signature algorithm of a key as crypto/x509 does: SHA-256 for RSA, the curve's own size for ECDSA.
// It looks at the kind of key only: whether a key is good is asked once, when it is accepted, and not at every signature.
func signingFor(pub crypto.PublicKey) (*signing, error) {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return sha256RSA, nil
	case ed25519.PublicKey:
		return pureEd25519, nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return ecdsaSHA256, nil
		case elliptic.P384():
			return ecdsaSHA384, nil
		case elliptic.P521():
			return ecdsaSHA512, nil
		}
	}
	return nil, errors.New("choosing a signature algorithm: the key is not RSA, ECDSA on P-256, P-384, P-521, or Ed25519")
}

// SignatureAlgorithm names the algorithm that certificates, CRLs and OCSP answers of this key are signed with.
func SignatureAlgorithm(pub crypto.PublicKey) (x509.SignatureAlgorithm, error) {
	s, err := signingFor(pub)
	if err != nil {
		return x509.UnknownSignatureAlgorithm, err
	}
	return s.x509, nil
}

func (s *signing) addIdentifier(b *cryptobyte.Builder) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(s.oid)
		if s.null {
			b.AddASN1NULL()
		}
	})
}

func (s *signing) identifier() ([]byte, error) {
	var b cryptobyte.Builder
	s.addIdentifier(&b)
	return b.Bytes()
}

// signDigest signs a digest, or the message itself where hash is 0 (Ed25519).
func (s *signing) signDigest(signer crypto.Signer, digest []byte) ([]byte, error) {
	sig, err := signer.Sign(randomFor(signer), digest, s.hash)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return sig, nil
}

func (s *signing) sign(signer crypto.Signer, message []byte) ([]byte, error) {
	if s.hash == 0 {
		return s.signDigest(signer, message)
	}
	h := s.hash.New()
	h.Write(message)
	return s.signDigest(signer, h.Sum(nil))
}

func randomFor(signer crypto.Signer) io.Reader {
	switch signer.(type) {
	case *ecdsa.PrivateKey, *rsa.PrivateKey, ed25519.PrivateKey, Deterministic:
		return nil
	}
	return rand.Reader
}

// SignTBS makes a certificate in DER from its TBSCertificate and the issuer's signer. The signature algorithm that stands
// in the TBS must be the one that the key signs with. Keys of the standard library sign deterministically, so that the same
// bytes give the same certificate. The signature is not verified here.
func SignTBS(tbs []byte, signer crypto.Signer) ([]byte, error) {
	s, err := signingFor(signer.Public())
	if err != nil {
		return nil, err
	}
	id, err := s.identifier()
	if err != nil {
		return nil, fmt.Errorf("encoding a signature algorithm: %w", err)
	}
	stated, err := tbsAlgorithm(tbs)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(id, stated) {
		return nil, errors.New("the certificate to be signed names another signature algorithm than that of the key")
	}
	sig, err := s.sign(signer, tbs)
	if err != nil {
		return nil, err
	}
	return wrapSigned(tbs, id, sig)
}

// ProveKey signs random bytes and verifies the signature with the certificate's key: a key service that answers for another
// key, or not at all, is found before anything is issued.
func ProveKey(cert *x509.Certificate, signer crypto.Signer) error {
	s, err := signingFor(signer.Public())
	if err != nil {
		return err
	}
	message := make([]byte, 32)
	_, _ = rand.Read(message) // never fails: crypto/rand ends the process instead
	sig, err := s.sign(signer, message)
	if err != nil {
		return err
	}
	if err := cert.CheckSignature(s.x509, message, sig); err != nil {
		return fmt.Errorf("proving a key: %w", err)
	}
	return nil
}

// ParseTBS reads a TBSCertificate as if it were signed. The result's Signature is empty and must not be relied on.
func ParseTBS(tbs []byte) (*x509.Certificate, error) {
	id, err := tbsAlgorithm(tbs)
	if err != nil {
		return nil, err
	}
	der, err := wrapSigned(tbs, id, []byte{0})
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading a certificate to be signed: %w", err)
	}
	c.Signature = nil
	return c, nil
}

// tbsAlgorithm cuts the signature AlgorithmIdentifier out of a TBSCertificate (RFC 5280 4.1.2.3).
func tbsAlgorithm(tbs []byte) ([]byte, error) {
	in := cryptobyte.String(tbs)
	var body, id cryptobyte.String
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) || !in.Empty() ||
		!body.SkipOptionalASN1(cbasn1.Tag(0).Constructed().ContextSpecific()) ||
		!body.SkipASN1(cbasn1.INTEGER) ||
		!body.ReadASN1Element(&id, cbasn1.SEQUENCE) {
		return nil, errors.New("the certificate to be signed is malformed")
	}
	return id, nil
}

func wrapSigned(tbs, id, sig []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(id)
		b.AddASN1BitString(sig)
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding a signed structure: %w", err)
	}
	return der, nil
}
