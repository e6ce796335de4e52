package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/mail"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"certctl/shared/fault"
)

// Names is what a certificate says about its subject, in canonical form: lower case (a URI's path keeps its case), no
// duplicates, in the order given. Build it with ParseNames; the zero value names nothing.
type Names struct {
	CommonName string
	DNS        []string
	IPs        []netip.Addr
	Emails     []string
	URIs       []string
}

// Bounds of what is accepted.
const (
	MaxSANs       = 250 // subject alternative names in one certificate
	maxCommonName = 64  // ub-common-name, RFC 5280 appendix A
	maxURI        = 2048
)

// ParseNames reads a common name and subject alternative names as people write them. A SAN is an IP address, an e-mail
// address (it has an @), a URI (it has "://" or starts with "urn:"), else a DNS name, optionally with a leading "*." label.
//
// A missing common name becomes the first SAN if that fits into 64 characters; a common name that looks like a host, an
// address or a URI must be valid as one and is put first among the SANs if it is not there. Everything that is wrong is
// told at once, as an Invalid fault with fields "common_name", "sans" and "sans[i]".
func ParseNames(commonName string, sans []string) (Names, error) {
	var n Names
	var bad []fault.Field
	if len(sans) > MaxSANs {
		return Names{}, fault.BadField("sans", "must not hold more than %d names", MaxSANs)
	}
	if commonName == "" && len(sans) == 0 {
		return Names{}, fault.BadField("sans", "must hold a name when there is no common name")
	}
	if problem := n.setCommonName(commonName); problem != "" {
		bad = append(bad, fault.Field{Field: "common_name", Detail: problem})
	}
	for i, s := range sans {
		if problem := n.add(s); problem != "" {
			bad = append(bad, fault.Field{Field: fmt.Sprintf("sans[%d]", i), Detail: problem})
		}
	}
	if len(bad) > 0 {
		return Names{}, fault.BadFields(bad...)
	}
	if n.CommonName == "" {
		n.CommonName = defaultCommonName(sans[0])
	}
	return n, nil
}

func defaultCommonName(san string) string {
	var first Names
	first.add(san)
	if s := first.SANs()[0]; utf8.RuneCountInString(s) <= maxCommonName {
		return s
	}
	return ""
}

// setCommonName takes over a common name and, where it is a host, adds it to the SANs. It returns what is wrong, or "".
func (n *Names) setCommonName(cn string) string {
	switch {
	case cn == "":
		return ""
	case !utf8.ValidString(cn) || strings.ContainsFunc(cn, unicode.IsControl):
		return "must be text without control characters"
	case utf8.RuneCountInString(cn) > maxCommonName:
		return "must not be longer than 64 characters"
	case strings.TrimSpace(cn) != cn:
		return "must not begin or end with a space"
	}
	if !looksLikeHost(cn) {
		n.CommonName = cn
		return ""
	}
	var one Names
	if problem := one.add(cn); problem != "" {
		return problem
	}
	n.CommonName = one.SANs()[0]
	n.merge(one)
	return ""
}

// looksLikeHost tells a name that software may compare with a host from a description such as "Build server 7". Full stops
// of other scripts are counted, since IDNA reads them as dots.
func looksLikeHost(s string) bool {
	if strings.ContainsFunc(s, unicode.IsSpace) {
		return false
	}
	return strings.ContainsAny(s, ".*:@/。．｡") || dnsProblem(strings.ToLower(s)) == ""
}

// add recognises one SAN and appends it unless it is there already. It returns what is wrong, or "".
func (n *Names) add(s string) string {
	if s == "" {
		return "must not be empty"
	}
	if ip, err := netip.ParseAddr(s); err == nil {
		return n.addIP(ip)
	}
	switch {
	case strings.Contains(s, "://") || strings.HasPrefix(strings.ToLower(s), "urn:"):
		return n.addURI(s)
	case strings.Contains(s, "@"):
		return n.addEmail(strings.ToLower(s))
	}
	s = strings.ToLower(s)
	if problem := dnsProblem(s); problem != "" {
		return problem
	}
	n.DNS = appendNew(n.DNS, s)
	return ""
}

func (n *Names) merge(o Names) {
	for _, s := range o.DNS {
		n.DNS = appendNew(n.DNS, s)
	}
	for _, ip := range o.IPs {
		n.IPs = appendNew(n.IPs, ip)
	}
	for _, s := range o.Emails {
		n.Emails = appendNew(n.Emails, s)
	}
	for _, s := range o.URIs {
		n.URIs = appendNew(n.URIs, s)
	}
}

func appendNew[T comparable](list []T, v T) []T {
	if slices.Contains(list, v) {
		return list
	}
	return append(list, v)
}

func (n *Names) addIP(ip netip.Addr) string {
	if ip.Zone() != "" {
		return "must be an IP address without a zone"
	}
	n.IPs = appendNew(n.IPs, ip.Unmap())
	return ""
}

func (n *Names) addURI(s string) string {
	u, err := url.Parse(s)
	if err != nil || len(s) > maxURI || !isASCII(s) || strings.ContainsAny(s, " \t\r\n") || u.Scheme == "" {
		return "must be an absolute URI in ASCII of at most 2048 characters"
	}
	if u.User != nil {
		return "must be a URI without user name and password"
	}
	if u.Opaque == "" && u.Host == "" {
		return "must be a URI with a host"
	}
	if u.Host != "" && !goodLabels(u.Host) {
		return "must be a URI whose host has labels of 1 to 63 characters"
	}
	u.Scheme, u.Host = strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	n.URIs = appendNew(n.URIs, u.String())
	return ""
}

// goodLabels is what crypto/x509 asks of a URI's host (with its port) when it reads a request or a certificate: a name that
// passes here and not there would be accepted and could never be issued. Host names of URIs may have underscores (SPIFFE).
func goodLabels(host string) bool {
	for l := range strings.SplitSeq(host, ".") {
		if l == "" || len(l) > 63 {
			return false
		}
	}
	return len(host) <= 253
}

func (n *Names) addEmail(s string) string {
	const problem = "must be an e-mail address in ASCII, as in name@host.example"
	a, err := mail.ParseAddress(s)
	if err != nil || a.Address != s || len(s) > 254 || !isASCII(s) || strings.ContainsAny(s, "\" ") {
		return problem
	}
	if host := s[strings.LastIndexByte(s, '@')+1:]; dnsProblem(host) != "" || strings.Contains(host, "*") {
		return problem
	}
	n.Emails = appendNew(n.Emails, s)
	return ""
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// dnsProblem says what is wrong with a lower-case DNS name as a dNSName (RFC 5280 4.2.1.6, RFC 1123 2.1), or "".
func dnsProblem(s string) string {
	switch {
	case strings.ContainsFunc(s, func(r rune) bool { return r > '~' }):
		return "must be in ASCII: write international names as A-labels (xn--…)"
	case len(s) > 253:
		return "must not be longer than 253 characters"
	}
	labels := strings.Split(s, ".")
	if labels[0] == "*" {
		if labels = labels[1:]; len(labels) < 2 {
			return "a wildcard needs at least two labels after it, as in *.example.com"
		}
	}
	for _, l := range labels {
		if problem := labelProblem(l); problem != "" {
			return problem
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return "must not end in a label of digits only: it is neither a DNS name nor an IP address"
	}
	return ""
}

func labelProblem(l string) string {
	switch {
	case l == "":
		return "must be a DNS name without empty labels and without a final dot"
	case len(l) > 63:
		return "must not have a label longer than 63 characters"
	case hasOtherThanLDH(l):
		return "must be a DNS name of letters, digits, hyphens and dots; a wildcard may only be the whole first label"
	case l[0] == '-' || l[len(l)-1] == '-':
		return "must not have a label that begins or ends with a hyphen"
	case len(l) >= 4 && l[2:4] == "--" && !strings.HasPrefix(l, "xn--"):
		return "must not have a label with hyphens in the third and fourth place, other than xn--"
	}
	return ""
}

func hasOtherThanLDH(l string) bool {
	return strings.ContainsFunc(l, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	})
}

// SANs is the canonical list of subject alternative names: DNS names, then IP addresses, e-mail addresses, URIs.
func (n Names) SANs() []string {
	out := slices.Clone(n.DNS)
	for _, ip := range n.IPs {
		out = append(out, ip.String())
	}
	return append(append(out, n.Emails...), n.URIs...)
}

// Equal reports whether both say the same: the same common name and the same set of SANs, in any order.
func (n Names) Equal(o Names) bool { return n.CommonName == o.CommonName && n.SameSANs(o) }

// SameSANs reports whether both have the same set of SANs, in any order.
func (n Names) SameSANs(o Names) bool { return slices.Equal(n.sorted(), o.sorted()) }

// sorted gives the SANs with their kind, so that names of two kinds are never taken for each other.
func (n Names) sorted() []string {
	var out []string
	for _, s := range n.DNS {
		out = append(out, "dns:"+s)
	}
	for _, ip := range n.IPs {
		out = append(out, "ip:"+ip.String())
	}
	for _, s := range n.Emails {
		out = append(out, "email:"+s)
	}
	for _, s := range n.URIs {
		out = append(out, "uri:"+s)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// urls and addresses turn the names into the standard library's types.
func (n Names) urls() ([]*url.URL, error) {
	var out []*url.URL
	for _, s := range n.URIs {
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("reading a URI name: %w", err)
		}
		out = append(out, u)
	}
	return out, nil
}

// Apply sets the subject and the subject alternative names of a certificate template. The subject has a common name only,
// or is empty (then the extension becomes critical, RFC 5280 4.2.1.6).
func (n Names) Apply(t *x509.Certificate) error {
	uris, err := n.urls()
	if err != nil {
		return err
	}
	t.Subject = pkix.Name{CommonName: n.CommonName}
	t.DNSNames, t.EmailAddresses, t.URIs, t.IPAddresses = n.DNS, n.Emails, uris, nil
	for _, ip := range n.IPs {
		t.IPAddresses = append(t.IPAddresses, ip.AsSlice())
	}
	return nil
}
