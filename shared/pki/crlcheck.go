package pki

import (
	"crypto/x509"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var errCRLForm = errors.New("checking a CRL: it is not a well-formed CertificateList")

// CheckCRL reads a finished CRL back: form, every entry, and the CA's signature. crypto/x509 reads all but the entries, which
// are walked over in place: as structures, a million of them take half a gigabyte.
func CheckCRL(der []byte, ca *x509.Certificate) error {
	in := cryptobyte.String(der)
	var list, tbs cryptobyte.String
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() || !list.ReadASN1Element(&tbs, cbasn1.SEQUENCE) {
		return errCRLForm
	}
	short, err := withoutEntries(tbs)
	if err != nil {
		return err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(short)
		b.AddBytes(list) // the algorithm and the signature
	})
	small, err := b.Bytes()
	if err != nil {
		return fmt.Errorf("checking a CRL: %w", err)
	}
	l, err := x509.ParseRevocationList(small)
	if err != nil {
		return fmt.Errorf("checking a CRL: %w", err)
	}
	l.RawTBSRevocationList = tbs // what was signed
	if err := l.CheckSignatureFrom(ca); err != nil {
		return fmt.Errorf("checking a CRL: %w", err)
	}
	return nil
}

// withoutEntries gives a TBSCertList without its revokedCertificates, after it has walked over them.
func withoutEntries(tbs cryptobyte.String) ([]byte, error) {
	var fields, one, entries cryptobyte.String
	if !tbs.ReadASN1(&fields, cbasn1.SEQUENCE) {
		return nil, errCRLForm
	}
	var b cryptobyte.Builder
	var tag cbasn1.Tag
	ok := true
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		// version, signature, issuer, thisUpdate and nextUpdate stand before the entries (RFC 5280 5.1.2).
		for range 5 {
			if ok = ok && fields.ReadAnyASN1Element(&one, &tag); ok {
				b.AddBytes(one)
			}
		}
		var present bool
		ok = ok && fields.ReadOptionalASN1(&entries, &present, cbasn1.SEQUENCE) && (!present || goodEntries(entries))
		b.AddBytes(fields)
	})
	short, err := b.Bytes()
	if err != nil || !ok {
		return nil, errCRLForm
	}
	return short, nil
}

// goodEntries reports whether there is at least one entry, and each is a serial, a time and perhaps extensions.
func goodEntries(entries cryptobyte.String) bool {
	if entries.Empty() {
		return false
	}
	for !entries.Empty() {
		var entry, serial, exts cryptobyte.String
		var tag cbasn1.Tag
		var present bool
		if !entries.ReadASN1(&entry, cbasn1.SEQUENCE) || !entry.ReadASN1(&serial, cbasn1.INTEGER) || serial.Empty() ||
			!entry.ReadAnyASN1(&exts, &tag) || tag != cbasn1.UTCTime && tag != cbasn1.GeneralizedTime ||
			!entry.ReadOptionalASN1(&exts, &present, cbasn1.SEQUENCE) || present && exts.Empty() || !entry.Empty() {
			return false
		}
	}
	return true
}
