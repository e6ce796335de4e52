package pki

import (
	"fmt"
	"strings"

	"certctl/shared/fault"
)

// Reason is a CRLReason of RFC 5280 5.3.1. The zero value is "unspecified", which is never written to the wire.
type Reason int

// The reasons. 7 is not used by RFC 5280; 8 (removeFromCRL) belongs to delta CRLs, which are not made.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	CACompromise         Reason = 2
	AffiliationChanged   Reason = 3
	Superseded           Reason = 4
	CessationOfOperation Reason = 5
	CertificateHold      Reason = 6
	PrivilegeWithdrawn   Reason = 9
	AACompromise         Reason = 10
)

var reasonNames = map[Reason]string{
	Unspecified: "unspecified", KeyCompromise: "keyCompromise", CACompromise: "cACompromise",
	AffiliationChanged: "affiliationChanged", Superseded: "superseded", CessationOfOperation: "cessationOfOperation",
	CertificateHold: "certificateHold", PrivilegeWithdrawn: "privilegeWithdrawn", AACompromise: "aACompromise",
}

// Reasons lists every reason that may be given, in the order of their numbers.
func Reasons() []Reason {
	return []Reason{Unspecified, KeyCompromise, CACompromise, AffiliationChanged, Superseded, CessationOfOperation,
		CertificateHold, PrivilegeWithdrawn, AACompromise}
}

// ParseReason reads a name as RFC 5280 spells it; another word is an Invalid fault about field "reason".
func ParseReason(s string) (Reason, error) {
	for r, name := range reasonNames {
		if name == s {
			return r, nil
		}
	}
	var names []string
	for _, r := range Reasons() {
		names = append(names, r.String())
	}
	return 0, fault.BadField("reason", "must be one of %s", strings.Join(names, ", "))
}

// Valid reports whether r is one of the constants.
func (r Reason) Valid() bool { return reasonNames[r] != "" }

func (r Reason) String() string {
	if name := reasonNames[r]; name != "" {
		return name
	}
	return fmt.Sprintf("reason(%d)", int(r))
}

// MarshalText writes the RFC 5280 name.
func (r Reason) MarshalText() ([]byte, error) {
	if !r.Valid() {
		return nil, fmt.Errorf("revocation reason %d has no name", int(r))
	}
	return []byte(r.String()), nil
}

// UnmarshalText is ParseReason.
func (r *Reason) UnmarshalText(b []byte) (err error) {
	*r, err = ParseReason(string(b))
	return err
}
