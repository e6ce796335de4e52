package pki

import (
	"math/big"
	"testing"
)

func TestCheckCRLTakesWhatIsSignedAndWellFormed(t *testing.T) {
	t.Parallel()
	for _, a := range []KeyAlgorithm{ECDSAP256, RSA2048} {
		ca := newTestCA(t, a)
		p := ca.crlParams()
		p.IDP = &IDP{URI: "http://pki.example.com/crl/1"}
		for _, entries := range [][][]byte{nil, {mustEntry(t, big.NewInt(1), now, Unspecified)}, {mustEntry(t, big.NewInt(2), now, KeyCompromise), mustEntry(t, NewSerial(), now, Unspecified)}} {
			if err := CheckCRL(mustCRL(t, ca, p, entries...), ca.cert); err != nil {
				t.Errorf("%s, %d entries: %v", a, len(entries), err)
			}
		}
		if CheckCRL(mustCRL(t, ca, p), newTestCA(t, a).cert) == nil {
			t.Errorf("%s: a CRL of another CA passes", a)
		}
	}
}

func TestCheckCRLRefusesEveryFlippedOctetAndEveryCut(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, ECDSAP256)
	der := mustCRL(t, ca, ca.crlParams(), mustEntry(t, big.NewInt(77), now, KeyCompromise))
	for i := range der {
		bad := append([]byte{}, der...)
		bad[i] ^= 0x01
		if CheckCRL(bad, ca.cert) == nil {
			t.Errorf("octet %d flipped passes", i)
		}
		if CheckCRL(der[:i], ca.cert) == nil {
			t.Errorf("cut at %d passes", i)
		}
	}
	if CheckCRL(append(der, 0), ca.cert) == nil {
		t.Error("an octet after the end passes")
	}
}

// The signature is good in all of these: only the walk can tell.
func TestCheckCRLRefusesSignedEntriesThatAreNone(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, ECDSAP256)
	good := mustEntry(t, big.NewInt(5), now, Unspecified)
	for name, entry := range map[string][]byte{
		"no sequence": {0x05, 0x00}, "empty": {0x30, 0x00}, "no time": {0x30, 0x03, 0x02, 0x01, 0x05},
		"a name for a time": {0x30, 0x06, 0x02, 0x01, 0x05, 0x0c, 0x01, 0x41}, "half an entry": good[:len(good)-1],
	} {
		if CheckCRL(mustCRL(t, ca, ca.crlParams(), good, entry), ca.cert) == nil {
			t.Errorf("%s passes", name)
		}
	}
}

func FuzzCheckCRL(f *testing.F) {
	ca := newTestCA(f, ECDSAP256)
	f.Add(mustCRL(f, ca, ca.crlParams()))
	f.Add(mustCRL(f, ca, ca.crlParams(), mustEntry(f, big.NewInt(1), now, KeyCompromise)))
	f.Fuzz(func(t *testing.T, der []byte) {
		_ = CheckCRL(der, ca.cert)
	})
}
