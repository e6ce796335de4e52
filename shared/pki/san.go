package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net"
	"net/netip"
	"net/url"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidCommonName       = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSAN              = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
)

// organisational are the subject attributes that say where a subject belongs and not who it is: C, L, ST, street, O, OU,
// postal code. A CSR may carry them; they are ignored.
var organisational = []asn1.ObjectIdentifier{
	{2, 5, 4, 6}, {2, 5, 4, 7}, {2, 5, 4, 8}, {2, 5, 4, 9}, {2, 5, 4, 10}, {2, 5, 4, 11}, {2, 5, 4, 17},
}

// CertificateNames reads the names of a certificate. A certificate with two common names, or with an alternative name of
// another kind than DNS, IP, e-mail and URI, is an error: nobody asked for it.
func CertificateNames(c *x509.Certificate) (Names, error) {
	return rawNames(c.Subject, c.Extensions, c.DNSNames, c.IPAddresses, c.EmailAddresses, c.URIs)
}

// CSRNames reads the names that a CSR asks for, under the same rules.
func CSRNames(c *x509.CertificateRequest) (Names, error) {
	return rawNames(c.Subject, c.Extensions, c.DNSNames, c.IPAddresses, c.EmailAddresses, c.URIs)
}

func rawNames(subject pkix.Name, exts []pkix.Extension, dns []string, ips []net.IP, emails []string, uris []*url.URL) (Names, error) {
	if err := checkSubject(subject); err != nil {
		return Names{}, err
	}
	for _, e := range exts {
		if e.Id.Equal(oidSAN) {
			if err := checkSANKinds(e.Value); err != nil {
				return Names{}, err
			}
		}
	}
	sans := append(append([]string{}, dns...), emails...)
	for _, raw := range ips {
		ip, ok := netip.AddrFromSlice(raw)
		if !ok {
			return Names{}, errors.New("an IP address has a wrong length")
		}
		sans = append(sans, ip.String())
	}
	for _, u := range uris {
		sans = append(sans, u.String())
	}
	return typedNames(subject.CommonName, sans, len(dns))
}

// typedNames normalises the names and makes sure that what was encoded as a DNS name is not read as another kind.
func typedNames(cn string, sans []string, dns int) (Names, error) {
	var n Names
	if problem := n.setCommonName(cn); problem != "" {
		return Names{}, errors.New("the common name " + problem)
	}
	for i, s := range sans {
		kind := len(n.DNS)
		was := n.sorted()
		if problem := n.add(s); problem != "" {
			return Names{}, errors.New("a subject alternative name " + problem)
		}
		if i < dns && len(n.DNS) == kind && len(n.sorted()) != len(was) {
			return Names{}, errors.New("a subject alternative name of kind DNS is not a DNS name")
		}
	}
	return n, nil
}

func checkSubject(subject pkix.Name) error {
	commonNames := 0
	for _, a := range subject.Names {
		if a.Type.Equal(oidCommonName) {
			commonNames++
			continue
		}
		if !isOrganisational(a.Type) {
			return errors.New("the subject names more than a common name and an organisation")
		}
	}
	if commonNames > 1 {
		return errors.New("the subject has more than one common name")
	}
	return nil
}

func isOrganisational(oid asn1.ObjectIdentifier) bool {
	for _, o := range organisational {
		if o.Equal(oid) {
			return true
		}
	}
	return false
}

// checkSANKinds refuses general names that crypto/x509 skips in silence: otherName, directoryName, registeredID …
func checkSANKinds(value []byte) error {
	in := cryptobyte.String(value)
	var list cryptobyte.String
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() {
		return errors.New("the subject alternative name extension is malformed")
	}
	for !list.Empty() {
		var name cryptobyte.String
		var tag cbasn1.Tag
		if !list.ReadAnyASN1(&name, &tag) {
			return errors.New("the subject alternative name extension is malformed")
		}
		switch tag {
		case cbasn1.Tag(1).ContextSpecific(), cbasn1.Tag(2).ContextSpecific(),
			cbasn1.Tag(6).ContextSpecific(), cbasn1.Tag(7).ContextSpecific():
		default:
			return errors.New("a subject alternative name is not a DNS name, IP address, e-mail address or URI")
		}
	}
	return nil
}
