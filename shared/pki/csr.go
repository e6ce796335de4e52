package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"slices"

	"certctl/shared/fault"
)

// MaxCSR bounds a certificate signing request in PEM or DER (SPEC R3).
const MaxCSR = 64 << 10

// csrField is the field that faults about a CSR name.
const csrField = "csr_pem"

// NewCSR makes a PKCS #10 request in DER, signed by key, for exactly these names.
func NewCSR(key crypto.Signer, n Names) ([]byte, error) {
	var t x509.Certificate
	if err := n.Apply(&t); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: t.Subject, DNSNames: t.DNSNames, IPAddresses: t.IPAddresses, EmailAddresses: t.EmailAddresses, URIs: t.URIs,
	}, key)
	if err != nil {
		return nil, fmt.Errorf("making a CSR: %w", err)
	}
	return der, nil
}

// EncodeCSR writes a DER request as PEM.
func EncodeCSR(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// ParseCSR reads one request in PEM or DER, at most MaxCSR octets, with nothing after it. It checks form only: AdmitCSR
// decides. Errors are Invalid faults about field "csr_pem".
func ParseCSR(data []byte) (*x509.CertificateRequest, error) {
	if len(data) > MaxCSR {
		return nil, fault.BadField(csrField, "must not be larger than 64 KB")
	}
	der := data
	if bytes.Contains(data, []byte("-----BEGIN")) {
		block, rest := pem.Decode(data)
		if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
			return nil, fault.BadField(csrField, "must be a PEM block of type CERTIFICATE REQUEST")
		}
		if len(bytes.TrimSpace(rest)) > 0 {
			return nil, fault.BadField(csrField, "must hold one certificate request and nothing after it")
		}
		der = block.Bytes
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fault.BadField(csrField, "is not a well-formed PKCS #10 certificate request")
	}
	return csr, nil
}

// csrSignatures are the signature algorithms that a CSR may use: no MD5, no SHA-1, no DSA.
var csrSignatures = []x509.SignatureAlgorithm{
	x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
	x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
	x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519,
}

// AdmitCSR holds a request against the record (SPEC R3): signature good and of a modern algorithm, key of an allowed
// algorithm (none given: any accepted one) and not weak, no CA rights asked for, and names equal to want. A missing common
// name is no difference, since the record decides. Everything wrong is told at once, as an Invalid fault about "csr_pem".
func AdmitCSR(csr *x509.CertificateRequest, want Names, allowed []KeyAlgorithm) error {
	problems := keyAndSignatureProblems(csr, allowed)
	if got, err := CSRNames(csr); err != nil {
		problems = append(problems, err.Error())
	} else if !got.SameSANs(want) || got.CommonName != "" && got.CommonName != want.CommonName {
		problems = append(problems, "the names are not those of the certificate's record")
	}
	return csrFault(problems)
}

// AdmitEnrollment checks a request that comes without a record (EST, SCEP): as AdmitCSR, with the names taken from the
// request. The caller must hold them against the profile's patterns and the authenticated identity.
func AdmitEnrollment(csr *x509.CertificateRequest, allowed []KeyAlgorithm) (Names, error) {
	problems := keyAndSignatureProblems(csr, allowed)
	n, err := CSRNames(csr)
	if err == nil {
		n, err = ParseNames(n.CommonName, n.SANs())
	}
	if err != nil {
		problems = append(problems, "the names are missing or not acceptable")
	}
	return n, csrFault(problems)
}

func csrFault(problems []string) error {
	if len(problems) == 0 {
		return nil
	}
	var fields []fault.Field
	for _, p := range problems {
		fields = append(fields, fault.Field{Field: csrField, Detail: p})
	}
	return fault.BadFields(fields...)
}

func keyAndSignatureProblems(csr *x509.CertificateRequest, allowed []KeyAlgorithm) (problems []string) {
	alg, err := AlgorithmOf(csr.PublicKey)
	switch {
	case err != nil:
		problems = append(problems, err.Error())
	case len(allowed) > 0 && !slices.Contains(allowed, alg):
		problems = append(problems, fmt.Sprintf("the key must be of one of these algorithms: %v", allowed))
	}
	if !slices.Contains(csrSignatures, csr.SignatureAlgorithm) {
		problems = append(problems, "the request is signed with an algorithm that is not accepted; use SHA-256 or better")
	} else if err == nil && csr.CheckSignature() != nil {
		problems = append(problems, "the request is not signed by its own key")
	}
	if asksForCA(csr) {
		problems = append(problems, "the request asks for the rights of a certificate authority")
	}
	return problems
}

// asksForCA reports whether the requested extensions hold CA:TRUE, keyCertSign or cRLSign; what cannot be read counts as
// asked for.
func asksForCA(csr *x509.CertificateRequest) bool {
	for _, e := range csr.Extensions {
		switch {
		case e.Id.Equal(oidBasicConstraints):
			var bc struct {
				IsCA    bool `asn1:"optional"`
				PathLen int  `asn1:"optional,default:-1"`
			}
			if rest, err := asn1.Unmarshal(e.Value, &bc); err != nil || len(rest) > 0 || bc.IsCA {
				return true
			}
		case e.Id.Equal(oidKeyUsage):
			var bits asn1.BitString
			if rest, err := asn1.Unmarshal(e.Value, &bits); err != nil || len(rest) > 0 || bits.At(5) == 1 || bits.At(6) == 1 {
				return true
			}
		}
	}
	return false
}
