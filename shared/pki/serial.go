package pki

import (
	"crypto/rand"
	"math/big"
	"strings"

	"certctl/shared/fault"
)

// NewSerial makes a random positive serial number of 128 bits. Its DER content has at most 17 of the 20 octets that RFC 5280
// 4.1.2.2 allows.
func NewSerial() *big.Int {
	var b [16]byte
	n := new(big.Int)
	for n.Sign() == 0 {
		_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
		n.SetBytes(b[:])
	}
	return n
}

// FormatSerial writes a serial as lower-case hex without leading zeros.
func FormatSerial(n *big.Int) string { return n.Text(16) }

// ParseSerial reads a positive serial in hex of any case, leading zeros accepted, at most 20 octets; anything else is an
// Invalid fault about field "serial".
func ParseSerial(s string) (*big.Int, error) {
	const maxInput = 64
	digits := strings.TrimLeft(s, "0")
	if len(s) > maxInput || digits == "" || len(digits) > 40 || strings.Trim(digits, "0123456789abcdefABCDEF") != "" {
		return nil, fault.BadField("serial", "must be a positive number of at most 20 octets in hexadecimal digits")
	}
	n, _ := new(big.Int).SetString(digits, 16)
	return n, nil
}
