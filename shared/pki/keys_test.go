package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os/exec"
	"strings"
	"testing"
)

func TestEveryAlgorithmGeneratesRoundTripsAndIsRecognised(t *testing.T) {
	t.Parallel()
	for _, a := range KeyAlgorithms() {
		t.Run(string(a), func(t *testing.T) {
			t.Parallel()
			key := mustKey(t, a)
			if got, err := AlgorithmOf(key.Public()); got != a || err != nil {
				t.Errorf("AlgorithmOf = %q, %v", got, err)
			}
			der, err := MarshalKey(key)
			if err != nil {
				t.Fatal(err)
			}
			text, err := MarshalKeyPEM(key)
			if err != nil {
				t.Fatal(err)
			}
			for _, data := range [][]byte{der, text} {
				back, err := ParseKey(data)
				if err != nil {
					t.Fatal(err)
				}
				if !SameKey(back.Public(), key.Public()) || SPKIHash(back.Public()) != SPKIHash(key.Public()) {
					t.Error("the key that is read back is another one")
				}
			}
		})
	}
}

func TestParseKeyAlgorithmRefusesOtherWords(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "RSA-2048", "rsa-1024", "ecdsa-p224"} {
		if a, err := ParseKeyAlgorithm(s); err == nil {
			t.Errorf("%q was read as %q", s, a)
		}
	}
	if a, err := ParseKeyAlgorithm("rsa-3072"); a != RSA3072 || err != nil {
		t.Error(a, err)
	}
}

func TestParseKeyReadsWhatOpenSSLWrites(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"SEC 1 with parameters": {"ecparam", "-name", "prime256v1", "-genkey"},
		"SEC 1":                 {"ecparam", "-name", "secp384r1", "-genkey", "-noout"},
		"PKCS #8 RSA":           {"genrsa", "2048"},
		"PKCS #1 RSA":           {"genrsa", "-traditional", "2048"},
		"PKCS #8 Ed25519":       {"genpkey", "-algorithm", "ed25519"},
	} {
		out, err := exec.Command("openssl", args...).Output()
		if err != nil {
			t.Fatalf("%s: openssl is needed: %v", name, err)
		}
		if _, err := ParseKey(out); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseKeyRefusesWithoutTellingTheInput(t *testing.T) {
	t.Parallel()
	good, err := MarshalKeyPEM(mustKey(t, ECDSAP256))
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := x509.MarshalECPrivateKey(p224)
	if err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string][]byte{
		"empty":       nil,
		"words":       []byte("hunter2"),
		"two keys":    append(bytes.Clone(good), good...),
		"certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("hunter2")}),
		"encrypted":   pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("hunter2")}),
		"damaged":     []byte("-----BEGIN PRIVATE KEY-----\nhunter2"),
		"too large":   bytes.Repeat([]byte("hunter2"), 4096),
		"P-224":       weak,
	} {
		key, err := ParseKey(in)
		if err == nil {
			t.Errorf("%s: accepted as %T", name, key)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error tells the input: %v", name, err)
		}
	}
}

func TestAlgorithmOfRefusesWeakKeys(t *testing.T) {
	t.Parallel()
	good := mustKey(t, RSA2048).Public().(*rsa.PublicKey)
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, pub := range map[string]any{
		"nil":               nil,
		"P-224":             p224.Public(),
		"RSA 1024":          &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 1023, 1), E: 65537},
		"RSA 2047":          &rsa.PublicKey{N: new(big.Int).Rsh(good.N, 1), E: 65537},
		"exponent 3":        &rsa.PublicKey{N: good.N, E: 3},
		"even exponent":     &rsa.PublicKey{N: good.N, E: 65538},
		"huge exponent":     &rsa.PublicKey{N: good.N, E: 1<<33 + 1},
		"small factor":      &rsa.PublicKey{N: smallFactor(), E: 65537},
		"close primes":      &rsa.PublicKey{N: closeModulus(t), E: 65537},
		"ROCA":              &rsa.PublicKey{N: rocaModulus(), E: 65537},
		"symmetric or else": []byte("key"),
	} {
		if a, err := AlgorithmOf(pub); err == nil {
			t.Errorf("%s: accepted as %s", name, a)
		}
	}
}

// smallFactor is a 2048-bit multiple of 751.
func smallFactor() *big.Int {
	n := new(big.Int).SetBit(new(big.Int), 2047, 1)
	n.Div(n, big.NewInt(751)).Add(n, big.NewInt(1))
	if n.Mul(n, big.NewInt(751)); n.Bit(0) == 0 {
		n.Add(n, big.NewInt(751))
	}
	return n
}

// closeModulus is the product of two neighbouring primes of 1024 bits.
func closeModulus(t *testing.T) *big.Int {
	for {
		p, err := rand.Prime(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		q := new(big.Int).Add(p, big.NewInt(2))
		for !q.ProbablyPrime(20) {
			q.Add(q, big.NewInt(2))
		}
		if n := q.Mul(p, q); n.BitLen() == 2048 {
			return n
		}
	}
}

// rocaModulus is a power of 65537 modulo the product of the fingerprint's primes, lifted to 2048 bits without small factors.
func rocaModulus() *big.Int {
	m := big.NewInt(1)
	for _, p := range []int64{11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157} {
		m.Mul(m, big.NewInt(p))
	}
	n := new(big.Int).Exp(big.NewInt(65537), big.NewInt(12345), m)
	lift := new(big.Int).SetBit(new(big.Int), 2047, 1)
	n.Add(n, lift.Sub(lift, new(big.Int).Mod(lift, m))).Add(n, m)
	for n.Bit(0) == 0 || new(big.Int).GCD(nil, nil, n, primorial()).Cmp(big.NewInt(1)) != 0 {
		n.Add(n, m)
	}
	return n
}

func TestKeyIDIsWhatOpenSSLComputes(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, RSA2048)
	out, _ := judge(t, "openssl", "x509", "-in", certFile(t, ca.cert), "-noout", "-ocspid")
	var want strings.Builder
	for _, b := range KeyID(ca.key.Public()) {
		const digits = "0123456789ABCDEF"
		want.WriteByte(digits[b>>4])
		want.WriteByte(digits[b&15])
	}
	if !strings.Contains(out, "Public key OCSP hash: "+want.String()) {
		t.Errorf("OpenSSL says %s, KeyID %s", out, want.String())
	}
}

func TestKeyMatches(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, ECDSAP256)
	if !KeyMatches(ca.cert, ca.key) || KeyMatches(ca.cert, mustKey(t, ECDSAP256)) || KeyMatches(nil, ca.key) || KeyMatches(ca.cert, nil) {
		t.Error("KeyMatches does not tell keys apart")
	}
}

func BenchmarkAlgorithmOfRSA4096(b *testing.B) {
	pub := mustKey(b, RSA4096).Public()
	for b.Loop() {
		_, _ = AlgorithmOf(pub)
	}
}
