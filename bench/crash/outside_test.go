//go:build crashtest

package crash

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"maps"

	"certctl/shared/cert"

	"github.com/jackc/pgx/v5"
	"golang.org/x/crypto/ocsp"
)

// judge asks tables and outside; nothing may be broken.
func (h *house) judge() (broken []string) {
	h.Helper()
	broken, err := Broken(context.Background(), h.db, true)
	if err != nil {
		h.Fatal(err)
	}
	p := h.serve()
	defer p.stop(h)
	if h.key == "" {
		h.readKey()
	}
	for _, f := range []func() []string{h.statistics, h.lists, h.answers, h.chains} {
		broken = append(broken, f()...)
	}
	return broken
}

func (h *house) counts(sql string) map[string]float64 {
	rows, err := h.db.Query(context.Background(), sql)
	if err != nil {
		h.Fatal(err)
	}
	out := map[string]float64{}
	var name string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&name, &n}, func() error { out[name] = float64(n); return nil }); err != nil {
		h.Fatal(err)
	}
	return out
}

func (h *house) statistics() (broken []string) {
	s := h.call("GET", "/api/v1/stats/summary", nil)
	for what, sql := range map[string]string{"certificates": `SELECT ` + cert.StatusSQL + `, count(*) FROM certificates GROUP BY 1`, "jobs": `SELECT status, count(*) FROM jobs GROUP BY 1`} {
		want, got := h.counts(sql), map[string]float64{}
		for k, v := range s[what].(map[string]any)["by_status"].(map[string]any) {
			if v.(float64) > 0 {
				got[k] = v.(float64)
			}
		}
		if !maps.Equal(want, got) {
			broken = append(broken, fmt.Sprintf("statistics of %s are %v, counted %v", what, got, want))
		}
	}
	return broken
}

type issued struct {
	Issuer, Certificate, Serial string
	Revoked, Current            bool
	Fingerprint                 []byte
}

func (h *house) issued() []issued {
	rows, err := h.db.Query(context.Background(), `SELECT type_id('iss', v.issuer_id) AS issuer, type_id('crt', c.id) AS certificate, ltrim(encode(v.serial, 'hex'), '0') AS serial, v.revoked_at IS NOT NULL AS revoked,
		c.current_version_id = v.id AS current, v.fingerprint FROM versions v JOIN certificates c ON c.id = v.certificate_id ORDER BY random() LIMIT 600`)
	if err != nil {
		h.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowToStructByName[issued])
	if err != nil {
		h.Fatal(err)
	}
	return out
}

func (h *house) authority(issuer string) *x509.Certificate {
	_, _, raw, err := h.try("GET", "/.well-known/pki/ca/"+issuer, nil)
	if err != nil {
		h.Fatal(err)
	}
	ca, err := x509.ParseCertificate(raw)
	if err != nil {
		h.Fatalf("the CA certificate: %v", err)
	}
	return ca
}

// answers asks OCSP for every serial.
func (h *house) answers() (broken []string) {
	var ca *x509.Certificate
	for _, v := range h.issued() {
		if ca == nil {
			ca = h.authority(v.Issuer)
		}
		_, _, raw, err := h.try("GET", "/.well-known/pki/ocsp/"+v.Issuer+"/"+v.Serial, nil)
		if err != nil {
			h.Fatal(err)
		}
		r, err := ocsp.ParseResponse(raw, ca)
		want := map[bool]int{false: ocsp.Good, true: ocsp.Revoked}[v.Revoked]
		if err != nil || r.Status != want {
			broken = append(broken, fmt.Sprintf("OCSP of %s: %v, want status %d: %v", v.Serial, r, want, err))
		}
	}
	return broken
}

// lists holds the served CRL against the record.
func (h *house) lists() (broken []string) {
	id := h.call("GET", "/api/v1/issuers", nil)["data"].([]any)[0].(map[string]any)["id"].(string)
	_, _, raw, err := h.try("GET", "/.well-known/pki/crl/"+id, nil)
	if err != nil {
		h.Fatal(err)
	}
	l, err := x509.ParseRevocationList(raw)
	if err != nil {
		return []string{fmt.Sprintf("the served CRL: %v", err)}
	}
	if err := l.CheckSignatureFrom(h.authority(id)); err != nil {
		broken = append(broken, fmt.Sprintf("the served CRL: %v", err))
	}
	if n := h.number(`SELECT count(*) FROM versions WHERE revoked_at IS NOT NULL`); n != len(l.RevokedCertificateEntries) {
		broken = append(broken, fmt.Sprintf("the served CRL has %d entries, %d versions are revoked", len(l.RevokedCertificateEntries), n))
	}
	if n := h.number(`SELECT current_number FROM crl_state`); l.Number.Int64() != int64(n) {
		broken = append(broken, fmt.Sprintf("the served CRL is %v, the record says %d", l.Number, n))
	}
	return broken
}

// chains holds the PEM that clients get against the record.
func (h *house) chains() (broken []string) {
	for _, v := range h.issued() {
		if !v.Current {
			continue
		}
		_, _, raw, err := h.try("GET", "/api/v1/certificates/"+v.Certificate+"/pem", nil)
		if err != nil {
			h.Fatal(err)
		}
		block, _ := pem.Decode(raw)
		if block == nil {
			broken = append(broken, v.Certificate+" has no PEM: "+string(raw))
			continue
		}
		if sum := sha256.Sum256(block.Bytes); !bytes.Equal(sum[:], v.Fingerprint) {
			broken = append(broken, v.Certificate+" is answered as "+hex.EncodeToString(sum[:]))
		}
	}
	return broken
}
