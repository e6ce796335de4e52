// Package certlint owns the rules that a certificate of a local CA must keep before it is signed: zlint's, chosen by source.
// It stands apart from localca because the lints are large and register themselves at start: only programs that sign link it.
package certlint

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"certctl/shared/fault"
)

// RFCSources bind every certificate; forumSources only those of a profile for public TLS.
var (
	RFCSources = lint.SourceList{
		lint.RFC3279, lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC6960, lint.RFC6962, lint.RFC8813,
	}
	forumSources = lint.SourceList{
		lint.CABFBaselineRequirements, lint.MozillaRootStorePolicy, lint.AppleRootStorePolicy, lint.ChromeRootStorePolicy,
	}
)

// unmeetable are lints of the forum that a private CA cannot pass, each with its reason.
var unmeetable = map[string]string{
	"e_sub_cert_certificate_policies_missing": "a private CA has no policy of the forum that it could state",
	"e_sub_cert_cert_policy_empty":            "as above",
	"e_dnsname_not_valid_tld":                 "a private CA names hosts below private top-level domains",
	"e_ext_san_contains_reserved_ip":          "a private CA names hosts in private networks",
}

var (
	rfcLints = sync.OnceValues(func() (lint.Registry, error) { return lintRegistry(RFCSources) })
	allLints = sync.OnceValues(func() (lint.Registry, error) {
		return lintRegistry(append(slices.Clone(RFCSources), forumSources...))
	})
)

func lintRegistry(sources lint.SourceList) (lint.Registry, error) {
	var exclude []string
	for name := range unmeetable {
		exclude = append(exclude, name)
	}
	r, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: sources, ExcludeNames: exclude})
	if err != nil {
		return nil, fmt.Errorf("certlint: choosing lints: %w", err)
	}
	return r, nil
}

// Check runs zlint on a certificate in DER; errors refuse the certificate, warnings and notices do not.
func Check(der []byte, publicTLS bool) error {
	registry, err := rfcLints()
	if publicTLS {
		registry, err = allLints()
	}
	if err != nil {
		return err
	}
	c, err := zx509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("certlint: reading the draft for linting: %w", err)
	}
	var found []string
	for name, r := range zlint.LintCertificateEx(c, registry).Results {
		if r.Status >= lint.Error {
			found = append(found, name)
		}
	}
	if len(found) == 0 {
		return nil
	}
	slices.Sort(found)
	return fault.New(fault.Invalid, "The certificate would break these rules: %s.", strings.Join(found, ", "))
}
