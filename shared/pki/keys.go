package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // #nosec G505 -- RFC 5280 4.2.1.2 (1) defines key identifiers by SHA-1; nothing here relies on it for security
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"

	"certctl/shared/fault"
)

// KeyAlgorithm is a kind and size of key as profiles, requests and versions write it.
type KeyAlgorithm string

// The accepted algorithms. Everything else (P-224, DSA, RSA of other sizes) is refused by AlgorithmOf.
const (
	ECDSAP256 KeyAlgorithm = "ecdsa-p256"
	ECDSAP384 KeyAlgorithm = "ecdsa-p384"
	ECDSAP521 KeyAlgorithm = "ecdsa-p521"
	RSA2048   KeyAlgorithm = "rsa-2048"
	RSA3072   KeyAlgorithm = "rsa-3072"
	RSA4096   KeyAlgorithm = "rsa-4096"
	Ed25519   KeyAlgorithm = "ed25519"
)

// KeyAlgorithms lists every accepted algorithm, the default first.
func KeyAlgorithms() []KeyAlgorithm {
	return []KeyAlgorithm{ECDSAP256, ECDSAP384, ECDSAP521, RSA2048, RSA3072, RSA4096, Ed25519}
}

// ParseKeyAlgorithm reads an algorithm's name; another word is an Invalid fault about field "key_algorithm".
func ParseKeyAlgorithm(s string) (KeyAlgorithm, error) {
	if a := KeyAlgorithm(s); slices.Contains(KeyAlgorithms(), a) {
		return a, nil
	}
	return "", fault.BadField("key_algorithm", "must be one of %v", KeyAlgorithms())
}

// Generate makes a new private key. RSA keys take tens to hundreds of milliseconds.
func Generate(a KeyAlgorithm) (crypto.Signer, error) {
	switch a {
	case ECDSAP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ECDSAP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case ECDSAP521:
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}
	return nil, fmt.Errorf("generating a key: unknown algorithm %q", string(a))
}

// AlgorithmOf names a public key's algorithm. It refuses keys that must not be certified: unknown kinds and sizes, RSA with
// an exponent that is even, below 65537 or above 2^32, with small factors, of the ROCA family or with close primes. The
// error is fit to be shown.
func AlgorithmOf(pub crypto.PublicKey) (KeyAlgorithm, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return ECDSAP256, nil
		case elliptic.P384():
			return ECDSAP384, nil
		case elliptic.P521():
			return ECDSAP521, nil
		}
		return "", errors.New("the elliptic curve is not one of P-256, P-384, P-521")
	case *rsa.PublicKey:
		if err := goodRSA(k); err != nil {
			return "", err
		}
		return KeyAlgorithm(fmt.Sprintf("rsa-%d", k.N.BitLen())), nil
	case ed25519.PublicKey:
		return Ed25519, nil
	}
	return "", errors.New("the key is not RSA, ECDSA or Ed25519")
}

func goodRSA(k *rsa.PublicKey) error {
	switch k.N.BitLen() {
	case 2048, 3072, 4096:
	default:
		return errors.New("the RSA key is not of 2048, 3072 or 4096 bits")
	}
	if k.E < 65537 || k.E%2 == 0 || int64(k.E) > 1<<32 {
		return errors.New("the RSA exponent must be odd and between 65537 and 2^32")
	}
	if new(big.Int).GCD(nil, nil, k.N, primorial()).Cmp(big.NewInt(1)) != 0 {
		return errors.New("the RSA modulus has a small factor")
	}
	if roca(k.N) {
		return errors.New("the RSA key comes from a generator with a known weakness (CVE-2017-15361)")
	}
	if closePrimes(k.N) {
		return errors.New("the RSA modulus has two primes that are too close to each other")
	}
	return nil
}

// primorial is the product of the primes up to 751, the bound of the CA/Browser Forum's requirements (6.1.6).
var primorial = sync.OnceValue(func() *big.Int {
	p := big.NewInt(1)
	for n := int64(2); n <= 751; n++ {
		if big.NewInt(n).ProbablyPrime(0) {
			p.Mul(p, big.NewInt(n))
		}
	}
	return p
})

// roca tests the fingerprint of Nemec et al., "The Return of Coppersmith's Attack": such moduli are powers of 65537 modulo
// each of these primes, which happens to a random modulus with a probability below 2^-27.
func roca(n *big.Int) bool {
	for _, p := range []int64{11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157} {
		rest := new(big.Int).Mod(n, big.NewInt(p)).Int64()
		power, found := int64(1), false
		for range p {
			if power == rest {
				found = true
				break
			}
			power = power * (65537 % p) % p
		}
		if !found {
			return false
		}
	}
	return true
}

// squaresMod64 has bit i set where i is a square modulo 64.
var squaresMod64 = func() (set uint64) {
	for i := range 64 {
		set |= 1 << (i * i % 64)
	}
	return set
}()

// closePrimes runs a hundred rounds of Fermat's factorisation (CVE-2022-26320). Most candidates are told from squares by
// their last six bits.
func closePrimes(n *big.Int) bool {
	a := new(big.Int).Sqrt(n)
	one, b2, root := big.NewInt(1), new(big.Int), new(big.Int)
	for range 100 {
		a.Add(a, one)
		b2.Sub(b2.Mul(a, a), n)
		if b2.Sign() > 0 && squaresMod64>>(b2.Bits()[0]&63)&1 == 0 {
			continue
		}
		root.Sqrt(b2)
		if root.Mul(root, root).Cmp(b2) == 0 {
			return true
		}
	}
	return false
}

// SPKIHash is the SHA-256 of the key's SubjectPublicKeyInfo, re-encoded so that one key has one hash. A key that cannot be
// encoded (and that AlgorithmOf refuses) has the zero hash.
func SPKIHash(pub crypto.PublicKey) [32]byte {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [32]byte{}
	}
	return sha256.Sum256(der)
}

// KeyID is the key identifier of RFC 5280 4.2.1.2 (1): the SHA-1 of the subjectPublicKey bits, all 20 octets; nil for a key
// that cannot be encoded. It is also the KeyHash of an OCSP responder id (RFC 6960 4.2.1).
func KeyID(pub crypto.PublicKey) []byte {
	bits := keyBits(pub)
	if bits == nil {
		return nil
	}
	sum := sha1.Sum(bits) // #nosec G401 -- see the import
	return sum[:]
}

// keyBits gives the content of the subjectPublicKey BIT STRING without tag, length and unused-bits octet.
func keyBits(pub crypto.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil
	}
	return spkiBits(der)
}

func spkiBits(der []byte) []byte {
	var spki struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil
	}
	return spki.Key.RightAlign()
}

// SameKey reports whether two public keys are the same key.
func SameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// KeyMatches reports whether the certificate certifies the signer's key.
func KeyMatches(cert *x509.Certificate, signer crypto.Signer) bool {
	return cert != nil && signer != nil && SameKey(cert.PublicKey, signer.Public())
}

// MarshalKey encodes a private key as PKCS #8 DER. The result is a secret.
func MarshalKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a private key: %w", err)
	}
	return der, nil
}

// MarshalKeyPEM encodes a private key as a PKCS #8 PEM block. The result is a secret.
func MarshalKeyPEM(key crypto.Signer) ([]byte, error) {
	der, err := MarshalKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// maxKeySize bounds an encoded private key; RSA-4096 in PEM takes 3.3 KB.
const maxKeySize = 16 << 10

// ParseKey reads one unencrypted private key in PEM or DER: PKCS #8, SEC 1 or PKCS #1. EC PARAMETERS blocks, as OpenSSL
// writes them, are skipped. The key's algorithm is checked. Errors hold nothing of the input.
func ParseKey(data []byte) (crypto.Signer, error) {
	if len(data) > maxKeySize {
		return nil, errors.New("the private key is larger than 16 KB")
	}
	der, err := keyDER(data)
	if err != nil {
		return nil, err
	}
	key, err := parseKeyDER(der)
	if err != nil {
		return nil, err
	}
	if _, err := AlgorithmOf(key.Public()); err != nil {
		return nil, fmt.Errorf("the private key is not accepted: %w", err)
	}
	return key, nil
}

func keyDER(data []byte) ([]byte, error) {
	if !bytes.Contains(data, []byte("-----BEGIN")) {
		return data, nil
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "EC PARAMETERS":
			continue
		case "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY":
			if block.Headers["Proc-Type"] != "" {
				return nil, errors.New("the private key is encrypted; give it unencrypted")
			}
			if len(bytes.TrimSpace(rest)) > 0 {
				return nil, errors.New("there is more than one private key")
			}
			return block.Bytes, nil
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the private key is encrypted; give it unencrypted")
		default:
			return nil, errors.New("the PEM block is not a private key")
		}
	}
	return nil, errors.New("the PEM block is damaged")
}

func parseKeyDER(der []byte) (crypto.Signer, error) {
	if k, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		if s, ok := k.(crypto.Signer); ok {
			return s, nil
		}
		return nil, errors.New("the private key cannot sign")
	}
	if k, err := x509.ParseECPrivateKey(der); err == nil {
		return k, nil
	}
	if k, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return k, nil
	}
	return nil, errors.New("the private key is not PKCS #8, SEC 1 or PKCS #1")
}
