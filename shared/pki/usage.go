package pki

import (
	"crypto/x509"

	"certctl/shared/fault"
)

// ekus are the extended key usages that a leaf may be given. OCSPSigning and anyExtendedKeyUsage are left out on purpose:
// a leaf that had them could answer for the CA.
var ekus = map[string]x509.ExtKeyUsage{
	"serverAuth": x509.ExtKeyUsageServerAuth, "clientAuth": x509.ExtKeyUsageClientAuth,
	"codeSigning": x509.ExtKeyUsageCodeSigning, "emailProtection": x509.ExtKeyUsageEmailProtection,
}

// ParseEKUs reads extended key usages by their RFC 5280 names: serverAuth, clientAuth, codeSigning, emailProtection.
// Another word is an Invalid fault about field "ekus". None given means serverAuth and clientAuth.
func ParseEKUs(names []string) ([]x509.ExtKeyUsage, error) {
	if len(names) == 0 {
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, nil
	}
	var out []x509.ExtKeyUsage
	for _, name := range names {
		u, ok := ekus[name]
		if !ok {
			return nil, fault.BadField("ekus", "must be of serverAuth, clientAuth, codeSigning, emailProtection")
		}
		out = appendNew(out, u)
	}
	return out, nil
}
