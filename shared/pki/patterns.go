package pki

import (
	"net/netip"
	"slices"
	"strings"

	"certctl/shared/fault"
)

// MatchPattern reports whether a canonical name (an element of Names.SANs) is permitted by a profile's name pattern:
//
//   - every name
//     www.example.com     this name
//     *.example.com       one label below it, the wildcard name *.example.com included
//     **.example.com      any depth below it; .example.com means the same
//     10.0.0.0/8          the IP addresses of the prefix
//     *@example.com       the e-mail addresses of the domain
//     spiffe://x/ns/*     the URIs that go on from there with one segment; ** for any rest
//
// Letter case does not count in patterns for hosts. A pattern that CheckPattern refuses matches nothing.
func MatchPattern(pattern, name string) bool {
	if err := CheckPattern(pattern); err != nil || name == "" {
		return false
	}
	switch {
	case pattern == "*":
		return true
	case isURI(pattern):
		return matchURI(pattern, name)
	case isURI(name):
		return false
	}
	pattern, name = strings.ToLower(pattern), strings.ToLower(name)
	if prefix, err := netip.ParsePrefix(pattern); err == nil {
		ip, err := netip.ParseAddr(name)
		return err == nil && prefix.Contains(ip.Unmap())
	}
	if domain, ok := strings.CutPrefix(pattern, "*@"); ok {
		_, host, found := strings.Cut(name, "@")
		return found && host == domain
	}
	if suffix, depth := hostPattern(pattern); depth != 0 {
		rest, ok := strings.CutSuffix(name, suffix)
		return ok && rest != "" && !strings.ContainsAny(rest, "@:/") && (depth < 0 || !strings.Contains(rest, "."))
	}
	return pattern == name
}

// hostPattern splits a pattern with a leading wildcard into its suffix (with the dot) and the number of labels that may
// stand before it: 1, -1 for any number, 0 for a pattern without wildcard.
func hostPattern(p string) (suffix string, depth int) {
	switch {
	case strings.HasPrefix(p, "**."):
		return p[2:], -1
	case strings.HasPrefix(p, "*."):
		return p[1:], 1
	case strings.HasPrefix(p, "."):
		return p, -1
	}
	return "", 0
}

func isURI(s string) bool { return strings.Contains(s, "://") || strings.HasPrefix(s, "urn:") }

func matchURI(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "**"); ok {
		return len(name) > len(prefix) && strings.HasPrefix(name, prefix)
	}
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		rest, ok := strings.CutPrefix(name, prefix)
		return ok && rest != "" && !strings.Contains(rest, "/")
	}
	return pattern == name
}

// CheckPattern checks a name pattern: what it accepts, MatchPattern understands. The error is an Invalid fault about field
// "name_patterns".
func CheckPattern(p string) error {
	bad := fault.BadField("name_patterns", "must be *, a name, *.example.com, **.example.com, *@example.com, an IP prefix or a URI with a final /* or /**")
	if p == "*" {
		return nil
	}
	if isURI(p) {
		if rest := strings.TrimRight(p, "*"); len(p)-len(rest) > 2 || strings.Contains(rest, "*") ||
			rest != p && (!strings.HasSuffix(rest, "/") || strings.HasSuffix(rest, "://")) || !isASCII(p) {
			return bad
		}
		return nil
	}
	lower := strings.ToLower(p)
	if _, err := netip.ParsePrefix(lower); err == nil {
		return nil
	}
	if domain, ok := strings.CutPrefix(lower, "*@"); ok {
		lower = domain
	} else if suffix, depth := hostPattern(lower); depth != 0 {
		lower = suffix[1:]
	} else if problem := new(Names).add(lower); problem == "" {
		return nil
	}
	if dnsProblem(lower) != "" || strings.HasPrefix(lower, "*") {
		return bad
	}
	return nil
}

// Unpermitted returns the names (common name included, if it is not among the SANs) that no pattern matches. No patterns
// permit nothing.
func Unpermitted(patterns []string, n Names) (refused []string) {
	sans := n.SANs()
	all := sans
	if n.CommonName != "" && !slices.Contains(sans, n.CommonName) {
		all = append([]string{n.CommonName}, sans...)
	}
	for _, name := range all {
		if !matchesAny(patterns, name) {
			refused = append(refused, name)
		}
	}
	return refused
}

func matchesAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return MatchPattern(p, name) })
}
