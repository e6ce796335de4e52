package pki

import (
	"encoding/asn1"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
)

func TestNewSerialIsPositiveShortAndRandom(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	long := 0
	for range 2000 {
		n := NewSerial()
		der, err := asn1.Marshal(n)
		if err != nil || n.Sign() <= 0 || len(der) > 2+17 {
			t.Fatalf("serial %x, %d octets, %v", n, len(der), err)
		}
		if n.BitLen() > 120 {
			long++
		}
		seen[n.String()] = true
	}
	if len(seen) != 2000 || long < 1900 {
		t.Errorf("%d different serials of 2000, %d of full length", len(seen), long)
	}
}

func TestSerialsRoundTrip(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"0A": "a", "00ffEE": "ffee", "1": "1", strings.Repeat("f", 40): strings.Repeat("f", 40), "000" + strings.Repeat("f", 40): strings.Repeat("f", 40)} {
		n, err := ParseSerial(in)
		if err != nil || FormatSerial(n) != want {
			t.Errorf("%q: %v, %v", in, n, err)
		}
	}
	for _, in := range []string{"", "0", "00", "-1", "+1", "0x1", "1 ", "g", "1:2", "1_0", strings.Repeat("f", 41), strings.Repeat("0", 100) + "1"} {
		if n, err := ParseSerial(in); err == nil {
			t.Errorf("%q was read as %v", in, n)
		}
	}
	if n := NewSerial(); FormatSerial(n) != strings.TrimLeft(FormatSerial(n), "0") {
		t.Error("leading zeros")
	}
	if FormatSerial(big.NewInt(0xABC)) != "abc" {
		t.Error("not lower case")
	}
}

func TestReasonsRoundTripAndRemoveFromCRLIsRefused(t *testing.T) {
	t.Parallel()
	for _, r := range Reasons() {
		back, err := ParseReason(r.String())
		if back != r || err != nil {
			t.Errorf("%v: %v, %v", r, back, err)
		}
	}
	for _, s := range []string{"removeFromCRL", "", "keycompromise", "unused", "reason(7)"} {
		if r, err := ParseReason(s); err == nil {
			t.Errorf("%q was read as %v", s, r)
		}
	}
	if Reason(7).Valid() || Reason(8).Valid() || !Unspecified.Valid() {
		t.Error("Valid is wrong")
	}
	var r Reason
	if err := json.Unmarshal([]byte(`"keyCompromise"`), &r); err != nil || r != KeyCompromise {
		t.Error(r, err)
	}
	if b, err := json.Marshal(AACompromise); string(b) != `"aACompromise"` || err != nil {
		t.Error(string(b), err)
	}
}

func TestParseEKUs(t *testing.T) {
	t.Parallel()
	if u, err := ParseEKUs(nil); len(u) != 2 || err != nil {
		t.Error(u, err)
	}
	if u, err := ParseEKUs([]string{"clientAuth", "clientAuth"}); len(u) != 1 || err != nil {
		t.Error(u, err)
	}
	for _, s := range []string{"OCSPSigning", "any", "anyExtendedKeyUsage", ""} {
		if _, err := ParseEKUs([]string{s}); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}
