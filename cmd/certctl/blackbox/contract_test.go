package blackbox

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
	"golang.org/x/crypto/ocsp"
)

// document is the served OpenAPI document.
type document struct {
	Components struct {
		Schemas map[string]struct {
			Properties map[string]json.RawMessage
		}
	}
}

// whole asserts that every documented field stands in an object (SPEC §11: null when unset) and nothing else does.
func (d document) whole(t *testing.T, schema string, got any) {
	t.Helper()
	object, ok := got.(map[string]any)
	if !ok {
		t.Errorf("no %s: %v", schema, got)
		return
	}
	properties := d.Components.Schemas[schema].Properties
	if len(properties) == 0 {
		t.Fatalf("the document knows no %s", schema)
	}
	for name := range properties {
		if _, there := object[name]; !there {
			t.Errorf("%s: %s is documented and not there", schema, name)
		}
	}
	for name := range object {
		if _, known := properties[name]; !known {
			t.Errorf("%s: %s is there and not documented", schema, name)
		}
	}
}

func (a answer) whole(t *testing.T, d document, schema string) {
	t.Helper()
	var got any
	if err := json.Unmarshal(a.body, &got); err != nil {
		t.Errorf("%s: %s", schema, a)
		return
	}
	d.whole(t, schema, got)
}

func TestEveryDocumentedFieldIsPresent(t *testing.T) {
	t.Parallel()
	s, _ := house(t)
	var d document
	if err := json.Unmarshal(s.as("").must(t, 200, "GET", "/openapi.json", nil).body, &d); err != nil {
		t.Fatal(err)
	}
	never := s.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{"Unset.Example.org", "unset.example.org"}, "issue": false})
	never.whole(t, d, "Certificate")
	for _, field := range []string{"current_version", "open_job_id", "owner_id", "team_id", "environment", "renew_at", "next_try_at", "renew_reason", "archived_at", "agent_id"} {
		if v := never.get(field); v != nil {
			t.Errorf("%s of a new record is %v, want null", field, v)
		}
	}
	if got := fmt.Sprint(never.get("name"), never.get("common_name"), never.get("sans"), never.text("status"), never.get("target_ids"), never.get("tags")); got != "unset.example.orgunset.example.org[unset.example.org]pending[] map[]" {
		t.Errorf("defaults: %s", got)
	}
	if never.header.Get("Location") != "/api/v1/certificates/"+never.text("id") {
		t.Errorf("Location %q", never.header.Get("Location"))
	}
	made := s.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{"whole.example.org", "10.1.2.3", "mailto@example.org"}, "environment": "prod", "tags": object{"a": "b"}})
	if made.text("open_job_id") == "" || made.text("status") != "pending" {
		t.Errorf("right after creation: %s", made)
	}
	s.job(t, made.text("open_job_id")).whole(t, d, "Job")
	path := "/api/v1/certificates/" + made.text("id")
	got := s.must(t, 200, "GET", path, nil)
	got.whole(t, d, "Certificate")
	d.whole(t, "Version", got.get("current_version"))
	if got.text("status") != "active" || got.get("open_job_id") != nil || got.text("renew_at") == "" || got.text("renew_reason") == "" || got.text("key_custody") != "server" {
		t.Errorf("issued: %s", got)
	}
	leaf := s.leaf(t, got.text("id"))
	if got.text("current_version.serial") != leaf.SerialNumber.Text(16) {
		t.Errorf("serial %s, in the certificate %x", got.text("current_version.serial"), leaf.SerialNumber)
	}
	for _, name := range []string{"not_before", "not_after"} {
		if _, err := time.Parse(time.RFC3339, got.text("current_version."+name)); err != nil || !strings.HasSuffix(got.text("current_version."+name), "Z") {
			t.Errorf("%s is %q", name, got.text("current_version."+name))
		}
	}
	renewed := s.must(t, 202, "POST", path+"/renew", nil)
	renewed.whole(t, d, "Job")
	if renewed.header.Get("Location") != "/api/v1/jobs/"+renewed.text("id") || renewed.text("type") != "Renewal" {
		t.Errorf("renew: %s, Location %q", renewed, renewed.header.Get("Location"))
	}
	s.job(t, renewed.text("id"))
	if n := len(s.must(t, 200, "GET", path+"/versions", nil).list()); n != 2 {
		t.Errorf("%d versions after a renewal", n)
	}
	s.must(t, 200, "POST", path+"/revoke", object{"reason": "keyCompromise"}).whole(t, d, "RevokedCertificate")
	if a := s.must(t, 409, "POST", path+"/revoke", object{"reason": "superseded"}); !strings.HasSuffix(a.text("type"), "/already-revoked") {
		t.Errorf("revoked twice: %s", a)
	}
	s.enroll(t, "fields")
	s.must(t, 201, "POST", "/api/v1/keys", object{"name": "n", "principal": "P@example.org", "role": "viewer"}).whole(t, d, "KeyWithSecret")
	team := s.must(t, 201, "POST", "/api/v1/teams", object{"name": "n"})
	team.whole(t, d, "Team")
	s.must(t, 201, "POST", "/api/v1/owners", object{"name": "n"}).whole(t, d, "Owner")
	s.must(t, 201, "POST", "/api/v1/targets", object{"name": "n", "type": "files", "config": object{"cert_path": "/tmp/c", "key_path": "/tmp/k"}}).whole(t, d, "Target")
	for list, schema := range map[string]string{"certificates": "Certificate", "jobs": "Job", "issuers": "Issuer", "profiles": "Profile", "renewal-policies": "RenewalPolicy", "keys": "Key", "agents": "Agent", "audit": "AuditEvent"} {
		a := s.must(t, 200, "GET", "/api/v1/"+list+"?total=true", nil)
		rows := a.list()
		if len(rows) == 0 {
			t.Fatalf("no %s", list)
		}
		for _, row := range rows {
			d.whole(t, schema, row)
		}
		if total, _ := a.get("total").(float64); int(total) != len(rows) {
			t.Errorf("%s: total %v of %d", list, a.get("total"), len(rows))
		}
	}
	empty := s.must(t, 200, "GET", "/api/v1/certificates?name=none", nil)
	if string(empty.body) != "{\"data\":[]}\n" && string(empty.body) != `{"data":[]}` {
		t.Errorf("an empty list is %s", empty)
	}
}

func TestPagesOfAListAreDisjointAndWhole(t *testing.T) {
	t.Parallel()
	s, _ := house(t)
	for i := range 7 {
		s.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{fmt.Sprintf("p%d.example.org", i)}, "issue": false})
	}
	for _, sort := range []string{"-created_at", "created_at", "name", "-name", "not_after"} {
		seen, cursor := map[string]bool{}, ""
		for pages := 1; ; pages++ {
			a := s.must(t, 200, "GET", "/api/v1/certificates?limit=3&sort="+sort+cursor, nil)
			for _, row := range a.list() {
				seen[row["id"].(string)] = true
			}
			next := a.text("next_cursor")
			if next == "" {
				if pages != 3 || len(seen) != 7 {
					t.Errorf("%s: %d certificates on %d pages", sort, len(seen), pages)
				}
				break
			}
			cursor = "&cursor=" + next
		}
	}
}

// forumOnly are lints of the CA/Browser Forum that a private CA with private names cannot meet, with the reason of each.
var forumOnly = map[string]string{
	"e_sub_cert_certificate_policies_missing": "a private CA has no policy of the forum that it could state",
	"e_sub_cert_cert_policy_empty":            "as above",
	"e_ca_country_name_missing":               "the first start does not know where it is run",
	"e_ca_organization_name_missing":          "the first start does not know who runs it",
	"e_dnsname_not_valid_tld":                 "a private CA names hosts below private top-level domains",
	"e_ext_san_contains_reserved_ip":          "a private CA names hosts in private networks",
}

func TestZlintFindsNoErrorInWhatIsIssued(t *testing.T) {
	t.Parallel()
	s, _ := house(t)
	h := issuedHouse(t, s)
	h.must(t, 200, "POST", "/api/v1/certificates/"+h.id+"/revoke", object{"reason": "keyCompromise"})
	eventually(t, 10*time.Second, "in the CRL", func() bool { return listed(h.crl(t), h.cert.SerialNumber) })
	answered := h.askOCSP(t, h.iss, request{ca: h.ca}.der(t, h.cert.SerialNumber))
	r := status(t, answered, h.cert.SerialNumber, h.ca)
	if r.Certificate == nil {
		t.Fatal("the OCSP answer carries no responder certificate")
	}
	seen := map[string]bool{}
	judge := func(what string, set *zlint.ResultSet) {
		t.Helper()
		for name, result := range set.Results {
			if result.Status < lint.Error {
				continue
			}
			seen[name] = true
			l := lint.GlobalRegistry().CertificateLints().ByName(name)
			switch {
			case forumOnly[name] == "":
				t.Errorf("%s: %s: %s", what, name, result.Details)
			case l != nil && strings.HasPrefix(string(l.Source), "RFC"):
				t.Errorf("%s: %s is of %s, which binds everybody", what, name, l.Source)
			}
		}
		if len(set.Results) == 0 {
			t.Errorf("%s: nothing was linted", what)
		}
	}
	private := h.leaf(t, h.issued(t, object{"sans": []string{"host.corp.internal", "10.1.2.3"}}).text("id"))
	for what, der := range map[string][]byte{"leaf": h.cert.Raw, "leaf of private names": private.Raw, "CA": h.ca.Raw, "responder": r.Certificate.Raw} {
		c, err := zx509.ParseCertificate(der)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		judge(what, zlint.LintCertificate(c))
	}
	crl, err := zx509.ParseRevocationList(h.crl(t).Raw)
	if err != nil {
		t.Fatal(err)
	}
	judge("CRL", zlint.LintRevocationList(crl))
	parsed, err := ocsp.ParseResponse(answered.body, h.ca)
	if err != nil {
		t.Fatal(err)
	}
	judge("OCSP", zlint.LintOcspResponse(parsed))
	for name := range forumOnly {
		if !seen[name] {
			t.Errorf("%s is met: take it off the list", name)
		}
	}
}

func TestAnIdempotencyKeyHasOneEffect(t *testing.T) {
	t.Parallel()
	s, db := house(t)
	const key = "Idempotency-Key"
	body := object{"sans": []string{"once.example.org"}}
	var answers [8]answer
	var senders sync.WaitGroup
	for i := range answers {
		senders.Go(func() {
			answers[i], _ = s.try("POST", "/api/v1/certificates", body, key, "k1")
		})
	}
	senders.Wait()
	replayed := 0
	for _, a := range answers {
		if a.status != 201 || string(a.body) != string(answers[0].body) || a.header.Get("Location") != answers[0].header.Get("Location") {
			t.Errorf("%s\nand\n%s", a, answers[0])
		}
		if a.header.Get("Idempotency-Replayed") == "true" {
			replayed++
		}
	}
	if n := number(t, db, `SELECT count(*) FROM certificates`); n != 1 || replayed != 7 {
		t.Errorf("%d certificates, %d answers replayed", n, replayed)
	}
	if a := s.must(t, 409, "POST", "/api/v1/certificates", object{"sans": []string{"other.example.org"}}, key, "k1"); !a.problem() {
		t.Errorf("another body: %s", a)
	}
	s.must(t, 400, "POST", "/api/v1/certificates", object{"sans": []string{"not a name"}}, key, "k2") // a refusal does not use the key up
	s.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{"good.example.org"}, "issue": false}, key, "k2")
	made := s.must(t, 201, "POST", "/api/v1/keys", object{"name": "n", "principal": "p@example.org", "role": "viewer"}, key, "k3")
	again := s.must(t, 409, "POST", "/api/v1/keys", object{"name": "n", "principal": "p@example.org", "role": "viewer"}, key, "k3")
	if again.text("id") != made.text("id") || strings.Contains(string(again.body), made.text("secret")) {
		t.Errorf("a replayed key creation: %s, want the id %s", again, made.text("id"))
	}
	if n := number(t, db, `SELECT count(*) FROM api_keys WHERE name = 'n'`); n != 1 {
		t.Errorf("%d keys", n)
	}
	operator := s.as(s.keyOf(t, "operator"))
	operator.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{"mine.example.org"}, "issue": false}, key, "k1") // another principal's k1
	if n := number(t, db, `SELECT count(*) FROM idempotency_keys WHERE convert_from(coalesce(body, ''), 'UTF8') LIKE '%certctl\_%'`); n != 0 {
		t.Errorf("%d stored answers hold a secret", n)
	}
	for _, bad := range []string{strings.Repeat("k", 256), "with space"} {
		if a := s.must(t, 400, "POST", "/api/v1/certificates", body, key, bad); !slices.Contains(a.fields(), key) {
			t.Errorf("key %.20q: %s", bad, a)
		}
	}
}
