package blackbox

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

func TestAHoldIsSeenAndLifted(t *testing.T) {
	t.Parallel()
	s, _ := house(t)
	h := issuedHouse(t, s)
	path := "/api/v1/certificates/" + h.id
	for _, reason := range []string{"removeFromCRL", "Superseded", "", marker} {
		refused(t, h.ask(t, "POST", path+"/revoke", object{"reason": reason}), 400, "reason")
	}
	refused(t, h.ask(t, "POST", path+"/unhold", nil), 409)
	if a := h.must(t, 200, "POST", path+"/revoke", object{"reason": "certificateHold"}); a.text("status") != "revoked" {
		t.Errorf("%s", a)
	}
	q := request{ca: h.ca}.der(t, h.cert.SerialNumber)
	if r := status(t, h.askOCSP(t, h.iss, q), h.cert.SerialNumber, h.ca); r.Status != ocsp.Revoked || r.RevocationReason != ocsp.CertificateHold {
		t.Errorf("held: status %d, reason %d", r.Status, r.RevocationReason)
	}
	eventually(t, 10*time.Second, "in the CRL", func() bool { return listed(h.crl(t), h.cert.SerialNumber) })
	number := h.crl(t).Number
	h.must(t, 200, "POST", path+"/unhold", nil)
	if r := status(t, h.askOCSP(t, h.iss, q), h.cert.SerialNumber, h.ca); r.Status != ocsp.Good {
		t.Errorf("lifted: status %d", r.Status)
	}
	eventually(t, 10*time.Second, "out of the CRL", func() bool { return !listed(h.crl(t), h.cert.SerialNumber) })
	if h.crl(t).Number.Cmp(number) <= 0 {
		t.Error("the CRL's number did not grow")
	}
}

func TestBulkRevocationCountsEveryOutcome(t *testing.T) {
	t.Parallel()
	s, db := house(t)
	live, revoked := s.issued(t, object{"sans": []string{"live.example.org"}, "tags": object{"set": "a"}}).text("id"), s.issued(t, object{"sans": []string{"gone.example.org"}}).text("id")
	s.must(t, 200, "POST", "/api/v1/certificates/"+revoked+"/revoke", object{"reason": "superseded"})
	body := object{"reason": "superseded", "certificate_ids": []string{live, revoked, live, "crt_" + nothing, "nonsense"}, "dry_run": true}
	counts := func(a answer) string {
		return fmt.Sprint(a.get("matched"), a.get("revoked"), a.get("skipped"), a.get("failed"), len(a.get("results").([]any)))
	}
	if got := counts(s.must(t, 200, "POST", "/api/v1/certificates/bulk-revoke", body)); got != "4 1 1 2 4" {
		t.Errorf("tried: %s", got)
	}
	if n := number(t, db, `SELECT count(*) FROM revocations`); n != 1 {
		t.Errorf("a trial revoked: %d entries", n)
	}
	body["dry_run"] = false
	a := s.must(t, 200, "POST", "/api/v1/certificates/bulk-revoke", body)
	if got := counts(a); got != "4 1 1 2 4" {
		t.Errorf("done: %s", got)
	}
	for _, r := range a.get("results").([]any) {
		if m := r.(map[string]any); m["outcome"] == "failed" && m["detail"] == "" {
			t.Errorf("a failure without a reason: %v", m)
		}
	}
	if a := s.must(t, 200, "POST", "/api/v1/certificates/bulk-revoke", object{"reason": "superseded", "filter": object{"tag": "set:a"}}); counts(a) != "1 0 1 0 1" {
		t.Errorf("again by tag: %s", a)
	}
}

func TestAShortLivedCertificateIsLeftOutOfCRLAndOCSP(t *testing.T) {
	t.Parallel()
	s, _ := house(t)
	h := issuedHouse(t, s)
	profile := s.must(t, 201, "POST", "/api/v1/profiles", object{"name": "short", "key_algorithms": []string{"ecdsa-p256"}, "max_ttl": "30m"})
	if profile.get("short_lived") != true {
		t.Errorf("%s", profile)
	}
	c := s.issued(t, object{"sans": []string{"short.example.org"}, "profile_id": profile.text("id")})
	leaf := s.leaf(t, c.text("id"))
	if c.get("current_version.revocation_exempt") != true || len(leaf.CRLDistributionPoints)+len(leaf.OCSPServer) != 0 {
		t.Errorf("exempt %v, CDP %v, OCSP %v", c.get("current_version.revocation_exempt"), leaf.CRLDistributionPoints, leaf.OCSPServer)
	}
	noRevAvail := false
	for _, e := range leaf.Extensions {
		noRevAvail = noRevAvail || e.Id.String() == "2.5.29.56"
	}
	if !noRevAvail {
		t.Error("no noRevAvail (RFC 9608)")
	}
	if a := h.askOCSP(t, h.iss, request{ca: h.ca}.der(t, leaf.SerialNumber)); !bytes.Equal(a.body, ocspUnauthorized) {
		t.Errorf("OCSP: %x, want unauthorized", a.body)
	}
}

func TestACompromisedKeyIsBlocked(t *testing.T) {
	t.Parallel()
	s, db := house(t)
	c := s.issued(t, object{"sans": []string{"leaked.example.org"}})
	a := s.must(t, 200, "POST", "/api/v1/certificates/"+c.text("id")+"/revoke", object{"reason": "keyCompromise"})
	if a.text("status") != "revoked" || a.get("shared_key_versions") == nil {
		t.Errorf("%s", a)
	}
	if n := number(t, db, `SELECT count(*) FROM blocked_keys WHERE encode(spki_sha256, 'hex') = $1`, c.text("current_version.spki_sha256")); n != 1 {
		t.Error("the key is not blocked")
	}
	renewed := s.job(t, s.must(t, 202, "POST", "/api/v1/certificates/"+c.text("id")+"/renew", nil).text("id"))
	if renewed.text("status") != "Completed" {
		t.Fatalf("%s", renewed)
	}
	after := s.must(t, 200, "GET", "/api/v1/certificates/"+c.text("id"), nil)
	if after.text("status") != "active" || after.text("current_version.spki_sha256") == c.text("current_version.spki_sha256") {
		t.Errorf("%s", after)
	}
	if strings.Contains(string(a.body)+string(after.body), "PRIVATE KEY") {
		t.Error("key material in an answer")
	}
}
