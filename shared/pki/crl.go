package pki

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidReasonCode = asn1.ObjectIdentifier{2, 5, 29, 21}
	oidCRLNumber  = asn1.ObjectIdentifier{2, 5, 29, 20}
	oidIDP        = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidAKI        = asn1.ObjectIdentifier{2, 5, 29, 35}
)

// IDP is a CRL's issuing distribution point, written as a critical extension (RFC 5280 5.2.5).
type IDP struct {
	URI           string // equal to the URI in the certificates' CRL distribution points
	OnlyUserCerts bool   // the CRL's scope has no CA certificates
}

// CRLParams is everything in a CRL but its entries.
type CRLParams struct {
	Issuer     []byte    // the CA's RawSubject
	AKI        []byte    // the CA's SubjectKeyId
	Number     *big.Int  // positive, at most 20 octets, larger than that of every earlier CRL of the scope
	ThisUpdate time.Time // not before any revocation in the list
	NextUpdate time.Time
	IDP        *IDP // nil: the complete CRL of the CA
}

// EncodeCRLEntry is one element of revokedCertificates in DER, as it is stored with the revocation: about 35 octets, 49
// with a reason. Reason unspecified is left out (RFC 5280 5.3.1). Reasons without a name are an error.
func EncodeCRLEntry(serial *big.Int, at time.Time, r Reason) ([]byte, error) {
	if !r.Valid() {
		return nil, fmt.Errorf("encoding a CRL entry: reason %d cannot be used", int(r))
	}
	if serial.Sign() <= 0 || serial.BitLen() > 160 {
		return nil, errors.New("encoding a CRL entry: the serial is not positive and of at most 20 octets")
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(serial)
		addTime(b, at)
		if r == Unspecified {
			return
		}
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addExtension(b, oidReasonCode, false, func(b *cryptobyte.Builder) { b.AddASN1Enum(int64(r)) })
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding a CRL entry: %w", err)
	}
	return der, nil
}

// addTime writes a Time: UTCTime to 2049, GeneralizedTime from 2050 (RFC 5280 5.1.2.4), whole seconds in UTC.
func addTime(b *cryptobyte.Builder, t time.Time) {
	t = t.UTC().Truncate(time.Second)
	if t.Year() >= 1950 && t.Year() < 2050 {
		b.AddASN1UTCTime(t)
		return
	}
	b.AddASN1GeneralizedTime(t)
}

func addExtension(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, critical bool, value cryptobyte.BuilderContinuation) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1(cbasn1.OCTET_STRING, value)
	})
}

// crlBuffer is the size of entries up to which they are kept in memory and asked for only once.
const crlBuffer = 1 << 20

// WriteCRL writes a signed version 2 CRL in DER in constant memory. entriesLen is the sum of the lengths of all entries
// (each made by EncodeCRLEntry). Up to 1 MB of entries are asked for once; more are asked for **twice**, to hash and to
// write, since the signature's length stands before them: the sequence must then be repeatable, as from one database
// snapshot. If the second pass differs from the first, or the sum is not entriesLen, the error says so and what was written
// is worthless. RSA and ECDSA keys only.
func WriteCRL(w io.Writer, p CRLParams, entriesLen int64, entries iter.Seq2[[]byte, error], signer crypto.Signer) error {
	s, err := signingFor(signer.Public())
	if err != nil {
		return err
	}
	if s.hash == 0 {
		return errors.New("writing a CRL: Ed25519 needs the whole list in memory and is not offered for CAs")
	}
	head, tail, err := p.encode(s, entriesLen)
	if err != nil {
		return err
	}
	if entriesLen <= crlBuffer {
		if entries, err = buffered(entries, entriesLen); err != nil {
			return err
		}
	}
	l := crlList{head: head, tail: tail, entriesLen: entriesLen, entries: entries, hash: s.hash}
	digest, err := l.copyTo(io.Discard)
	if err != nil {
		return err
	}
	sig, err := s.signDigest(signer, digest)
	if err != nil {
		return err
	}
	return l.write(w, s, sig, digest)
}

func buffered(entries iter.Seq2[[]byte, error], size int64) (iter.Seq2[[]byte, error], error) {
	buf := make([]byte, 0, max(size, 0))
	for e, err := range entries {
		if err != nil {
			return nil, fmt.Errorf("reading CRL entries: %w", err)
		}
		if int64(len(buf)+len(e)) > size {
			return nil, errEntriesLen
		}
		buf = append(buf, e...)
	}
	return func(yield func([]byte, error) bool) { yield(buf, nil) }, nil
}

var errEntriesLen = errors.New("writing a CRL: the entries do not have the length that was announced")

// crlList is a TBSCertList: what stands before the entries, the entries, and what stands after them.
type crlList struct {
	head, tail []byte
	entriesLen int64
	entries    iter.Seq2[[]byte, error]
	hash       crypto.Hash
}

// copyTo writes the TBSCertList and returns its digest.
func (l *crlList) copyTo(w io.Writer) ([]byte, error) {
	h := l.hash.New()
	if err := l.copyParts(w, h); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

func (l *crlList) copyParts(w io.Writer, h hash.Hash) error {
	both := bufio.NewWriterSize(io.MultiWriter(h, w), 64<<10)
	if _, err := both.Write(l.head); err != nil {
		return fmt.Errorf("writing a CRL: %w", err)
	}
	left := l.entriesLen
	for e, err := range l.entries {
		if err != nil {
			return fmt.Errorf("reading CRL entries: %w", err)
		}
		if left -= int64(len(e)); left < 0 {
			return errEntriesLen
		}
		if _, err := both.Write(e); err != nil {
			return fmt.Errorf("writing a CRL: %w", err)
		}
	}
	if left != 0 {
		return errEntriesLen
	}
	if _, err := both.Write(l.tail); err != nil {
		return fmt.Errorf("writing a CRL: %w", err)
	}
	if err := both.Flush(); err != nil {
		return fmt.Errorf("writing a CRL: %w", err)
	}
	return nil
}

// write puts the CertificateList out: header, list, algorithm, signature.
func (l *crlList) write(w io.Writer, s *signing, sig, digest []byte) error {
	var b cryptobyte.Builder
	s.addIdentifier(&b)
	b.AddASN1BitString(sig)
	trailer, err := b.Bytes()
	if err != nil {
		return fmt.Errorf("encoding a CRL's signature: %w", err)
	}
	size := int64(len(l.head)) + l.entriesLen + int64(len(l.tail)) + int64(len(trailer))
	if _, err := w.Write(derHeader(cbasn1.SEQUENCE, size)); err != nil {
		return fmt.Errorf("writing a CRL: %w", err)
	}
	again, err := l.copyTo(w)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, digest) {
		return errors.New("writing a CRL: the entries changed between the two passes over them")
	}
	if _, err := w.Write(trailer); err != nil {
		return fmt.Errorf("writing a CRL: %w", err)
	}
	return nil
}

// derHeader is tag and length of a DER element.
func derHeader(tag cbasn1.Tag, size int64) []byte {
	if size < 128 {
		return []byte{byte(tag), byte(size)} // #nosec G115 -- below 128
	}
	n := big.NewInt(size).Bytes()
	return append([]byte{byte(tag), 0x80 | byte(len(n))}, n...) // #nosec G115 -- at most 8 octets
}

// encode makes everything before and after the entries. Without entries there is no revokedCertificates field at all
// (RFC 5280 5.1.2.6).
func (p CRLParams) encode(s *signing, entriesLen int64) (head, tail []byte, err error) {
	if err := p.check(entriesLen); err != nil {
		return nil, nil, err
	}
	if tail, err = p.encodeExtensions(); err != nil {
		return nil, nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1Int64(1) // v2
	s.addIdentifier(&b)
	b.AddBytes(p.Issuer)
	addTime(&b, p.ThisUpdate)
	addTime(&b, p.NextUpdate)
	if entriesLen > 0 {
		b.AddBytes(derHeader(cbasn1.SEQUENCE, entriesLen))
	}
	fields, err := b.Bytes()
	if err != nil {
		return nil, nil, fmt.Errorf("encoding a CRL: %w", err)
	}
	size := int64(len(fields)) + entriesLen + int64(len(tail))
	return append(derHeader(cbasn1.SEQUENCE, size), fields...), tail, nil
}

func (p CRLParams) check(entriesLen int64) error {
	var name pkix.RDNSequence
	switch rest, err := asn1.Unmarshal(p.Issuer, &name); {
	case err != nil || len(rest) > 0 || len(name) == 0:
		return errors.New("encoding a CRL: the issuer's name is missing or malformed")
	case len(p.AKI) == 0:
		return errors.New("encoding a CRL: the authority key identifier is missing")
	case p.Number == nil || p.Number.Sign() <= 0 || p.Number.BitLen() > 159:
		return errors.New("encoding a CRL: the number is not positive and of at most 20 octets")
	case !p.NextUpdate.After(p.ThisUpdate):
		return errors.New("encoding a CRL: the next update is not after this update")
	case entriesLen < 0:
		return errEntriesLen
	}
	return nil
}

func (p CRLParams) encodeExtensions() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addExtension(b, oidAKI, false, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(p.AKI) })
				})
			})
			addExtension(b, oidCRLNumber, false, func(b *cryptobyte.Builder) { b.AddASN1BigInt(p.Number) })
			if p.IDP != nil {
				addExtension(b, oidIDP, true, p.IDP.add)
			}
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding a CRL's extensions: %w", err)
	}
	return der, nil
}

func (d *IDP) add(b *cryptobyte.Builder) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		if d.URI != "" {
			b.AddASN1(cbasn1.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { // distributionPoint
				b.AddASN1(cbasn1.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { // fullName
					b.AddASN1(cbasn1.Tag(6).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(d.URI)) })
				})
			})
		}
		if d.OnlyUserCerts {
			b.AddASN1(cbasn1.Tag(1).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddUint8(0xff) })
		}
	})
}
