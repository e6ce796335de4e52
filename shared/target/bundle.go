package target

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"certctl/shared/fault"
	"certctl/shared/pki"
)

// Bundle is what a deployment brings: the chain, leaf first and without the root, and the leaf's private key.
type Bundle struct {
	Chain []*x509.Certificate
	Key   crypto.Signer
}

// Fingerprint is the lower-case hex SHA-256 of a certificate's DER.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// Prove shows that the key is the leaf's, as a handshake would (it signs and the certificate verifies), and that every
// certificate is signed by the one after it. The fault is Invalid.
func (b *Bundle) Prove() error {
	if len(b.Chain) == 0 || b.Key == nil {
		return fault.New(fault.Invalid, "There is no certificate or no private key to deploy.")
	}
	if err := provePair(b.Chain[0].PublicKey, b.Key); err != nil {
		return fault.Wrap(err, fault.Invalid, "The private key does not belong to the certificate.")
	}
	for i := range len(b.Chain) - 1 {
		if err := b.Chain[i].CheckSignatureFrom(b.Chain[i+1]); err != nil {
			return fault.Wrap(err, fault.Invalid, "Certificate %d of the chain is not signed by certificate %d.", i+1, i+2)
		}
	}
	return nil
}

func provePair(public crypto.PublicKey, key crypto.Signer) error {
	if !pki.SameKey(public, key.Public()) {
		return errors.New("the public keys differ")
	}
	message := make([]byte, 32)
	_, _ = rand.Read(message) // never fails since Go 1.24
	digest := sha256.Sum256(message)
	signed, opts := digest[:], crypto.SignerOpts(crypto.SHA256)
	if _, ok := public.(ed25519.PublicKey); ok {
		signed, opts = message, crypto.Hash(0)
	}
	sig, err := key.Sign(rand.Reader, signed, opts)
	if err != nil {
		return fmt.Errorf("signing with the key: %w", err)
	}
	verified := false
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		verified = ecdsa.VerifyASN1(p, signed, sig)
	case *rsa.PublicKey:
		verified = rsa.VerifyPKCS1v15(p, crypto.SHA256, signed, sig) == nil
	case ed25519.PublicKey:
		verified = ed25519.Verify(p, signed, sig)
	}
	if !verified {
		return errors.New("a signature made with the key does not verify")
	}
	return nil
}

// LeafPEM is the leaf alone.
func (b *Bundle) LeafPEM() []byte { return pki.EncodeBundle(b.Chain[0]) }

// IntermediatesPEM is the chain without the leaf; empty if the root signed the leaf.
func (b *Bundle) IntermediatesPEM() []byte { return pki.EncodeBundle(b.Chain[1:]...) }

// FullChainPEM is the leaf, then the intermediates.
func (b *Bundle) FullChainPEM() []byte { return pki.EncodeBundle(b.Chain...) }

// KeyPEM is the private key as PKCS #8 PEM, the same bytes each time.
func (b *Bundle) KeyPEM() ([]byte, error) { return pki.MarshalKeyPEM(b.Key) }
