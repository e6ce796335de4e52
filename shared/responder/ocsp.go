package responder

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"time"

	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/pki"
	"certctl/shared/revocation"
	"certctl/shared/secret"
)

// Answers are good for validity and are the same bytes on every instance within a window: thisUpdate is the window's start,
// or the last change of the certificate if that is later. Nothing is stored.
const (
	window   = 15 * time.Minute
	validity = 12 * time.Hour
)

const ocspMedia = "application/ocsp-response"

func (h *Handler) ocspGet(w http.ResponseWriter, r *http.Request, i id.Issuer, tail string) {
	if tail[0] != 'M' { // a DER request always starts with SEQUENCE, so its base64 with M
		h.ocspSerial(w, r, i, tail)
		return
	}
	der, err := pki.DecodeOCSPGet(tail)
	if err != nil {
		h.ocspError(w, r, pki.OCSPMalformed)
		return
	}
	h.ocsp(w, r, i, der)
}

func (h *Handler) ocspPost(w http.ResponseWriter, r *http.Request, i id.Issuer) {
	der, err := io.ReadAll(http.MaxBytesReader(w, r.Body, pki.MaxOCSPRequest))
	if err != nil {
		h.ocspError(w, r, pki.OCSPMalformed)
		return
	}
	h.ocsp(w, r, i, der)
}

// ocspError sends an unsigned error: HTTP 200 and never cached (RFC 9919, 3.2.1).
func (h *Handler) ocspError(w http.ResponseWriter, r *http.Request, s pki.OCSPErrorStatus) {
	w.Header().Set("Cache-Control", "no-store")
	write(w, r, ocspMedia, pki.OCSPError(s))
}

func (h *Handler) ocsp(w http.ResponseWriter, r *http.Request, i id.Issuer, der []byte) {
	req, err := pki.ParseOCSPRequest(der)
	if err != nil {
		h.ocspError(w, r, pki.OCSPMalformed)
		return
	}
	answers := make([]revocation.Answer, len(req.CertIDs))
	for k, c := range req.CertIDs {
		if answers[k], err = revocation.Ask(r.Context(), h.DB, i, revocation.Question{Hash: c.Hash, KeyHash: c.IssuerKeyHash, Serial: serialOctets(c.Serial)}); err != nil {
			h.ocspFailed(w, r, err)
			return
		}
	}
	h.reply(w, r, i, req, answers)
}

// serialOctets are the octets under which a serial is stored; none for one that was never issued by anybody.
func serialOctets(n *big.Int) []byte {
	if n.Sign() <= 0 {
		return []byte{}
	}
	return n.Bytes()
}

// ocspSerial answers the short form with a bare serial, as if a SHA-1 CertID had been sent.
func (h *Handler) ocspSerial(w http.ResponseWriter, r *http.Request, i id.Issuer, tail string) {
	n, err := pki.ParseSerial(tail)
	if err != nil {
		h.missing(w, r)
		return
	}
	a, err := revocation.AskSerial(r.Context(), h.DB, i, serialOctets(n))
	if err != nil {
		h.ocspFailed(w, r, err)
		return
	}
	if a.Authority == nil {
		h.missing(w, r)
		return
	}
	certID, err := asn1.Marshal(struct {
		Algorithm         pkix.AlgorithmIdentifier
		NameHash, KeyHash []byte
		Serial            *big.Int
	}{pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}, Parameters: asn1.NullRawValue}, a.Authority.Hashes.NameSHA1[:], a.Authority.Hashes.KeySHA1[:], n})
	if err != nil {
		h.ocspFailed(w, r, err)
		return
	}
	hashes := a.Authority.Hashes
	c := pki.CertID{Raw: certID, Hash: crypto.SHA1, IssuerNameHash: hashes.NameSHA1[:], IssuerKeyHash: hashes.KeySHA1[:], Serial: n}
	h.reply(w, r, i, &pki.OCSPRequest{CertIDs: []pki.CertID{c}}, []revocation.Answer{a})
}

// ocspFailed says "try later" when the database is away, else "internal error"; the cause stays in the log.
func (h *Handler) ocspFailed(w http.ResponseWriter, r *http.Request, err error) {
	if fault.Is(err, fault.Unavailable) || errors.Is(err, context.DeadlineExceeded) {
		h.Log.WarnContext(r.Context(), "an OCSP request waits for the database", "err", err)
		h.ocspError(w, r, pki.OCSPTryLater)
		return
	}
	h.Log.ErrorContext(r.Context(), "an OCSP request failed", "err", err)
	h.ocspError(w, r, pki.OCSPInternal)
}

// reply signs what the record says. One authority answers: that of the first certificate; certificates of others in the same
// message are unknown to it. Without an authority, or for a short-lived certificate, there is no authoritative answer.
func (h *Handler) reply(w http.ResponseWriter, r *http.Request, i id.Issuer, req *pki.OCSPRequest, answers []revocation.Answer) {
	auth := answers[0].Authority
	if auth == nil || !auth.Hashes.Match(req.CertIDs[0]) || answers[0].Status.Exempt {
		h.ocspError(w, r, pki.OCSPUnauthorized)
		return
	}
	if auth.Responder.ID.IsZero() {
		w.Header().Set("Retry-After", "1")
		h.ocspError(w, r, pki.OCSPTryLater)
		return
	}
	s, err := h.signer(r.Context(), auth.Responder)
	if err != nil {
		h.ocspFailed(w, r, err)
		return
	}
	start := answers[0].Now.UTC().Truncate(window)
	next := earliest(start.Add(validity), s.cert.NotAfter, auth.NotAfter)
	resp := pki.OCSPResponse{Nonce: req.Nonce}
	for k, c := range req.CertIDs {
		one := single(c, answers[k], auth, start, next)
		resp.Singles = append(resp.Singles, one)
		resp.ProducedAt = latest(resp.ProducedAt, one.ThisUpdate)
	}
	der, err := pki.SignOCSP(resp, s.key, s.cert)
	if err != nil {
		h.ocspFailed(w, r, fmt.Errorf("signing for issuer %s: %w", i, err))
		return
	}
	h.sendOCSP(w, r, req, resp, answers[0].Now, der)
}

func single(c pki.CertID, a revocation.Answer, auth *revocation.Authority, start, next time.Time) pki.OCSPSingle {
	one := pki.OCSPSingle{CertID: c.Raw, Status: pki.OCSPUnknown, ThisUpdate: start, NextUpdate: next}
	if a.Authority == nil || a.Authority.GenerationID != auth.GenerationID || !auth.Hashes.Match(c) || !a.Status.Known || a.Status.Exempt {
		return one
	}
	one.Status = pki.OCSPGood
	if a.Status.ChangedAt != nil {
		one.ThisUpdate = latest(start, a.Status.ChangedAt.UTC().Truncate(time.Second))
	}
	if a.Status.RevokedAt != nil {
		one.Status, one.RevokedAt, one.Reason = pki.OCSPRevoked, *a.Status.RevokedAt, a.Status.Reason
	}
	return one
}

func earliest(t time.Time, more ...time.Time) time.Time {
	for _, m := range more {
		if m.Before(t) {
			t = m
		}
	}
	return t
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// unknownAge bounds how long caches keep "unknown": the certificate may be on its way into the record.
const unknownAge = 30 * time.Second

func (h *Handler) sendOCSP(w http.ResponseWriter, r *http.Request, req *pki.OCSPRequest, resp pki.OCSPResponse, now time.Time, der []byte) {
	if req.Nonce != nil {
		w.Header().Set("Cache-Control", "no-store")
		write(w, r, ocspMedia, der)
		return
	}
	sum := sha256.Sum256(der)
	next := resp.Singles[0].NextUpdate
	age := now.UTC().Truncate(window).Add(window).Sub(now)
	for _, one := range resp.Singles {
		if one.Status == pki.OCSPUnknown {
			age = min(age, unknownAge)
		}
		next = earliest(next, one.NextUpdate)
	}
	age = max(0, min(age, next.Sub(now)-time.Second))
	send(w, r, answer{body: der, sum: sum[:], media: ocspMedia, modified: resp.ProducedAt, expires: next, maxAge: age})
}

// signer is an opened responder key with its certificate. Responders are immutable, so each is opened once per process.
type signer struct {
	key  crypto.Signer
	cert *x509.Certificate
}

func (h *Handler) signer(ctx context.Context, r revocation.Responder) (*signer, error) {
	if s, ok := h.signers.Load(r.ID); ok {
		return s.(*signer), nil
	}
	c, err := x509.ParseCertificate(r.Certificate)
	if err != nil {
		return nil, err
	}
	der, err := h.Box.Open(ctx, secret.OCSP, secret.Binding{Table: "ocsp_responders", Column: "sealed_key", Row: r.ID.UUID()}, r.SealedKey)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	key, err := pki.ParseKey(der)
	if err != nil {
		return nil, err
	}
	s := &signer{key, c}
	h.signers.Store(r.ID, s)
	return s, nil
}
