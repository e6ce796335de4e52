package blackbox

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// marker stands in submitted values: no answer may repeat it (SPEC R5).
const marker = "zqxmarkerzqx"

// nothing is the suffix of identifiers that name nothing.
const nothing = "01h455vb4pex5vsknk084sn02q"

// refused asserts a problem document of the status that names the fields and repeats nothing that was sent.
func refused(t *testing.T, a answer, status int, fields ...string) {
	t.Helper()
	if a.status != status || !a.problem() {
		t.Errorf("%s, want a problem document of %d", a, status)
	}
	if strings.Contains(string(a.body), marker) || strings.Contains(fmt.Sprint(a.header), marker) {
		t.Errorf("a submitted value is repeated: %s", a)
	}
	for _, f := range fields {
		named := func(got string) bool { return got == f || strings.HasPrefix(got, f+"[") } // sans, or one of them: sans[0]
		if !slices.ContainsFunc(a.fields(), named) {
			t.Errorf("%s, want %s named", a, f)
		}
	}
}

func TestBadBodiesAreRefusedWithTheFieldsName(t *testing.T) {
	t.Parallel()
	s, db := house(t)
	good := object{"sans": []string{"good.example.org"}}
	with := func(more object) object {
		o := maps.Clone(good)
		maps.Copy(o, more)
		return o
	}
	names := func(n ...string) object { return object{"sans": n} }
	many := make([]string, 101)
	for i := range many {
		many[i] = fmt.Sprintf("n%d.example.org", i)
	}
	for name, c := range map[string]struct {
		path  string
		body  any
		field string
	}{
		"unknown issuer":          {"certificates", with(object{"issuer_id": "iss_" + nothing}), "issuer_id"},
		"unknown profile":         {"certificates", with(object{"profile_id": "prf_" + nothing}), "profile_id"},
		"unknown policy":          {"certificates", with(object{"renewal_policy_id": "rpl_" + nothing}), "renewal_policy_id"},
		"unknown owner":           {"certificates", with(object{"owner_id": "own_" + nothing}), "owner_id"},
		"unknown team":            {"certificates", with(object{"team_id": "team_" + nothing}), "team_id"},
		"unknown target":          {"certificates", with(object{"target_ids": []string{"tgt_" + nothing}}), "target_ids"},
		"id of another noun":      {"certificates", with(object{"issuer_id": "crt_" + nothing}), "issuer_id"},
		"malformed id":            {"certificates", with(object{"issuer_id": marker}), "issuer_id"},
		"unknown agent of target": {"targets", object{"name": "n", "type": "files", "agent_id": "agt_" + nothing, "config": object{"cert_path": "/c", "key_path": "/k"}}, "agent_id"},
		"unknown team of owner":   {"owners", object{"name": "n", "team_id": "team_" + nothing}, "team_id"},
		"no names":                {"certificates", names(), "sans"},
		"names missing":           {"certificates", object{}, "sans"},
		"101 names":               {"certificates", names(many...), "sans"},
		"space in a name":         {"certificates", names("a " + marker), "sans"},
		"empty name":              {"certificates", names(""), "sans"},
		"underscore at the end":   {"certificates", names("a..example.org"), "sans"},
		"label too long":          {"certificates", names(strings.Repeat("a", 64) + ".example.org"), "sans"},
		"name too long":           {"certificates", names(strings.Repeat("abcdefg.", 40) + "org"), "sans"},
		"U-label":                 {"certificates", names("bücher.example.org"), "sans"},
		"wildcard in the middle":  {"certificates", names("a.*.example.org"), "sans"},
		"common name too long":    {"certificates", with(object{"common_name": strings.Repeat("a", 65)}), "common_name"},
		"wrong type":              {"certificates", object{"sans": marker}, "sans"},
		"number as a name":        {"certificates", object{"sans": []int{1}}, ""},
		"null for a list":         {"certificates", object{"sans": nil}, "sans"},
		"unknown field":           {"certificates", with(object{"surprise": marker}), "surprise"},
		"case variant":            {"certificates", object{"SANs": []string{"a.example.org"}}, "SANs"},
		"unknown nested field":    {"targets", object{"name": "n", "type": "files", "config": object{"cert_path": "/c", "key_path": "/k"}, "verify": object{"address": "a:1", "surprise": marker}}, "verify.surprise"},
		"unknown target type":     {"targets", object{"name": "n", "type": marker, "config": object{}}, "type"},
		"unknown setting":         {"targets", object{"name": "n", "type": "files", "config": object{"cert_path": "/c", "key_path": "/k", "surprise": marker}}, ""},
		"bad verify address":      {"targets", object{"name": "n", "type": "files", "config": object{"cert_path": "/c", "key_path": "/k"}, "verify": object{"address": marker}}, "verify.address"},
		"unknown issuer type":     {"issuers", object{"name": "n", "type": marker, "config": object{}}, "type"},
		"role of no key":          {"keys", object{"name": "n", "principal": "p@example.org", "role": "agent"}, "role"},
		"unknown role":            {"keys", object{"name": "n", "principal": "p@example.org", "role": marker}, "role"},
		"principal with a colon":  {"keys", object{"name": "n", "principal": "system:" + marker, "role": "viewer"}, "principal"},
		"key from the past":       {"keys", object{"name": "n", "principal": "p@example.org", "role": "viewer", "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"},
		"no time":                 {"keys", object{"name": "n", "principal": "p@example.org", "role": "viewer", "expires_at": marker}, "expires_at"},
		"unknown algorithm":       {"profiles", object{"name": "n", "key_algorithms": []string{marker}, "max_ttl": "1d"}, "key_algorithms"},
		"no duration":             {"profiles", object{"name": "n", "key_algorithms": []string{"ecdsa-p256"}, "max_ttl": "1w" + marker}, "max_ttl"},
		"fraction over 1":         {"renewal-policies", object{"name": "n", "renew_at_fraction": 1.5, "jitter": 0, "auto_renew": true, "alert_fractions": []float64{}}, "renew_at_fraction"},
		"token for a year":        {"agents/tokens", object{"ttl": "365d"}, "ttl"},
		"unknown reason, in bulk": {"certificates/bulk-revoke", object{"reason": marker, "certificate_ids": []string{"crt_" + nothing}}, "reason"},
		"everything, in bulk":     {"certificates/bulk-revoke", object{"reason": "superseded"}, "filter"},
		"empty filter, in bulk":   {"certificates/bulk-revoke", object{"reason": "superseded", "filter": object{}}, "filter"},
		"bad tag, in bulk":        {"certificates/bulk-revoke", object{"reason": "superseded", "filter": object{"tag": marker}}, "filter.tag"},
	} {
		t.Run(name, func(t *testing.T) {
			a := s.ask(t, "POST", "/api/v1/"+c.path, c.body)
			if c.field == "" {
				refused(t, a, 400)
				return
			}
			refused(t, a, 400, c.field)
		})
	}
	if n := number(t, db, `SELECT count(*) FROM certificates`) + number(t, db, `SELECT count(*) FROM targets`) + number(t, db, `SELECT count(*) FROM jobs WHERE type = 'Issuance'`); n != 0 {
		t.Errorf("refused requests left %d rows", n)
	}
}

func TestBrokenBodiesAreRefused(t *testing.T) {
	t.Parallel()
	s, _ := house(t)
	const path = "/api/v1/certificates"
	good := `{"sans":["a.example.org"],"issue":false}`
	for name, c := range map[string]struct {
		body, media string
		status      int
	}{
		"broken JSON":               {`{"sans":["` + marker, "application/json", 400},
		"not JSON":                  {marker, "application/json", 400},
		"an array":                  {`[]`, "application/json", 400},
		"null":                      {`null`, "application/json", 400},
		"trailing data":             {good + `{"x":"` + marker + `"}`, "application/json", 400},
		"trailing bracket":          {good + `]`, "application/json", 400},
		"duplicate member":          {`{"sans":["a.example.org"],"sans":["` + marker + `.example.org"]}`, "application/json", 400},
		"duplicate but for case":    {`{"sans":["a.example.org"],"Sans":["` + marker + `.example.org"]}`, "application/json", 400},
		"deep nesting":              {`{"tags":` + strings.Repeat(`{"a":`, 10000) + `1` + strings.Repeat(`}`, 10000) + `}`, "application/json", 400},
		"deep arrays":               {strings.Repeat(`[`, 200000), "application/json", 400},
		"NUL in a string":           {`{"sans":["a.example.org"],"name":"a\u0000b"}`, "application/json", 400},
		"not UTF-8":                 {"{\"sans\":[\"a.example.org\"],\"name\":\"\xff\"}", "application/json", 400},
		"two megabytes":             {`{"sans":["a.example.org"],"name":"` + strings.Repeat("a", 2<<20) + `"}`, "application/json", 413},
		"a form":                    {"sans=" + marker, "application/x-www-form-urlencoded", 415},
		"another charset":           {good, "application/json; charset=utf-16", 415},
		"text":                      {good, "text/plain", 415},
		"a media type of nonsense":  {good, ";;", 415},
		"a problem's own type":      {good, "application/problem+json", 415},
		"good, with charset":        {good, "application/json; charset=UTF-8", 201},
		"good":                      {good, "application/json", 201},
		"body of an action":         {`{"surprise":1}`, "application/json", 400},
		"array body of an action":   {`[]`, "application/json", 400},
		"an action without a body":  {``, "application/json", 404},
		"an action with empty body": {`{}`, "application/json", 404},
	} {
		t.Run(name, func(t *testing.T) {
			at := path
			if strings.Contains(name, "action") {
				at = path + "/crt_" + nothing + "/renew"
			}
			a, err := s.try("POST", at, c.body, "Content-Type", c.media)
			for range 5 { // a server that refuses a body unread may close before a slow client has heard why
				if err != nil && c.status == 413 {
					a, err = s.try("POST", at, c.body, "Content-Type", c.media)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.status == 201 {
				if a.status != 201 {
					t.Errorf("%s", a)
				}
				return
			}
			refused(t, a, c.status)
		})
	}
	chunked := "POST " + path + " HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer " + s.key + "\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
	big := strings.Repeat("a", 1<<20)
	refused(t, s.wire(t, "POST", chunked+fmt.Sprintf("%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", len(big), big, len(big), big)), 413)
	refused(t, s.ask(t, "POST", path, good, "Content-Encoding", "gzip"), 415)
}

func TestBadQueriesAreRefused(t *testing.T) {
	t.Parallel()
	s, _ := house(t)
	for i := range 3 {
		s.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{fmt.Sprintf("q%d.example.org", i)}})
	}
	cursor := func(path string) string { return s.must(t, 200, "GET", path, nil).text("next_cursor") }
	mine, jobs := cursor("/api/v1/certificates?limit=1"), cursor("/api/v1/jobs?limit=1")
	s.must(t, 200, "GET", "/api/v1/certificates?limit=1&cursor="+mine, nil)
	forged := base64.RawURLEncoding.EncodeToString([]byte(`{"s":"-created_at","v":"` + marker + `","i":"x","f":""}`))
	for query, field := range map[string]string{
		"limit=0": "limit", "limit=201": "limit", "limit=-1": "limit", "limit=abc" + marker: "limit", "limit=1e2": "limit", "limit=99999999999999999999": "limit",
		"cursor=" + marker: "cursor", "cursor=" + forged: "cursor", "cursor=" + jobs: "cursor", "cursor=" + mine + "&name=other": "cursor",
		"cursor=" + mine + "&sort=name": "cursor", "cursor=" + mine[:len(mine)-2]: "cursor", "cursor=" + strings.Repeat("a", 5000): "cursor",
		"sort=" + marker: "sort", "sort=-": "sort", "sort=id;drop": "", "status=" + marker: "status", "status=Active": "status", "surprise=" + marker: "surprise",
		"Limit=5": "Limit", "limit=5&limit=6": "limit", "limit=": "limit", "issuer_id=" + marker: "issuer_id", "issuer_id=crt_" + nothing: "issuer_id",
		"total=maybe": "total", "tag=" + marker: "tag", "name=%ff": "name", "name=%00": "name", "name=%zz": "", "a%20" + marker + "=1": "",
	} {
		t.Run(fmt.Sprintf("%.60s", query), func(t *testing.T) {
			a := s.ask(t, "GET", "/api/v1/certificates?"+query, nil)
			if field == "" {
				refused(t, a, 400)
				return
			}
			refused(t, a, 400, field)
		})
	}
	s.must(t, 200, "GET", "/api/v1/certificates?limit=200", nil)
	refused(t, s.ask(t, "GET", "/api/v1/jobs/job_"+nothing+"?wait="+marker, nil), 400, "wait")
	refused(t, s.ask(t, "GET", "/api/v1/audit?since="+marker, nil), 400, "since")
	refused(t, s.ask(t, "GET", "/api/v1/audit/export?since="+marker, nil), 400, "since")
	refused(t, s.ask(t, "GET", "/api/v1/audit/export?surprise="+marker, nil), 400, "query")
	refused(t, s.ask(t, "GET", "/api/v1/audit/export?since=2026-01-01T00:00:00Z&since=2026-01-01T00:00:00Z", nil), 400, "query")
	s.must(t, 200, "GET", "/api/v1/audit/export?since=2026-01-01T00:00:00Z&until=2027-01-01T00:00:00%2B01:00", nil)
}

func TestBadIdentifiersAreNotFound(t *testing.T) {
	t.Parallel()
	s, _ := house(t)
	nouns := map[string]string{"certificates": "crt", "jobs": "job", "issuers": "iss", "profiles": "prf", "renewal-policies": "rpl", "targets": "tgt", "agents": "agt", "teams": "team", "owners": "own", "keys": "key", "audit": "evt"}
	for noun, prefix := range nouns {
		foreign := "ver_"
		for _, id := range []string{prefix + "_" + nothing, foreign + nothing, marker, prefix, prefix + "_", prefix + "_" + nothing + "x", prefix + "_" + strings.ToUpper(nothing), prefix + "_" + strings.Repeat("z", 26),
			"1", "%00", "%ff", "'", strings.Repeat("a", 3000), "00000000-0000-0000-0000-000000000000", prefix + "_" + nothing[:25] + "%6a" + "%2e"} {
			a := s.ask(t, "GET", "/api/v1/"+noun+"/"+id, nil)
			refused(t, a, 404)
			if t.Failed() {
				t.Fatalf("at %s/%.100s", noun, id)
			}
		}
	}
	for _, action := range []string{"renew", "deploy", "archive"} {
		refused(t, s.ask(t, "POST", "/api/v1/certificates/crt_"+nothing+"/"+action, nil), 404)
		refused(t, s.ask(t, "POST", "/api/v1/certificates/"+marker+"/"+action, nil), 404)
	}
	refused(t, s.ask(t, "POST", "/api/v1/certificates/crt_"+nothing+"/revoke", object{"reason": "superseded"}), 404)
	for _, action := range []string{"cancel", "approve", "reject"} {
		refused(t, s.ask(t, "POST", "/api/v1/jobs/job_"+nothing+"/"+action, nil), 404)
	}
}

func TestHostilePathsAreNeverRedirected(t *testing.T) {
	t.Parallel()
	s, _ := house(t)
	for _, path := range []string{
		"/api/v1/../v1/certificates", "/api/v1/./certificates", "/api/v1/%2e%2e/v1/certificates", "/api/v1/%2e/certificates", "/api/v1/certificates/..", "/api/v1/certificates/%2E%2E",
		"//api/v1/certificates", "/api//v1/certificates", "/api/v1//certificates", "/api/v1/certificates/", "/api/v1/certificates//", "/api/v1/certificates%2f", "/api/v1/", "/api", "/api/",
		"/api/v2/certificates", "/api/v1/nothing", "/API/v1/certificates", "/api/v1/certificates/crt_" + nothing + "/nothing", "/api/v1/certificates/crt_" + nothing + "/pem/",
		"/.well-known", "/.well-known/", "/.well-known/pki", "/.well-known/pki/../pki/crl", "/.well-known/est/", "/.well-known/est/../pki/", "/scep/", "/scep/a/b", "/scep/../api/v1/keys",
		"/.well-known/acme-challenge/x", "/api/v1/certificates/%00", "/nothing", "/..", "/%2e%2e/etc/passwd", "/api/v1\\certificates",
	} {
		for _, key := range []string{"", s.key} {
			a := s.as(key).rawGet(t, path)
			if a.status >= 300 && a.status < 400 || a.header.Get("Location") != "" {
				t.Errorf("GET %s: %s, Location %q", path, a, a.header.Get("Location"))
			}
			if a.status != 404 || !a.problem() {
				t.Errorf("GET %s: %s, want the problem document 404", path, a)
			}
		}
	}
	for _, path := range []string{"/api/v1/crl", "/api/v1/crl/", "/api/v1/crl/iss_" + nothing, "/api/v1/crls", "/api/v1/ocsp/", "/api/v1/ocsp/iss_" + nothing, "/api/v1/ocsp/iss_" + nothing + "/01"} {
		for _, key := range []string{"", "certctl_garbage", s.key} {
			for _, method := range []string{"GET", "POST"} {
				if a := s.as(key).ask(t, method, path, nil); a.status != 404 || !a.problem() {
					t.Errorf("%s %s: %s, want 404", method, path, a)
				}
			}
		}
	}
	for path, methods := range map[string][]string{"/.well-known/est/cacerts": {"GET"}, "/.well-known/est/web/cacerts": {"GET"}, "/.well-known/est/simpleenroll": {"POST"}, "/.well-known/est/web/simplereenroll": {"POST"},
		"/.well-known/est/csrattrs": {"GET"}, "/.well-known/est/serverkeygen": {"POST"}, "/scep?operation=GetCACaps": {"GET", "POST"}, "/scep/web?operation=GetCACert": {"GET", "POST"}} {
		for _, method := range methods {
			for _, key := range []string{"", "certctl_garbage", s.key} {
				if a := s.as(key).ask(t, method, path, nil); a.status != 501 && a.status != 404 {
					t.Errorf("%s %s: %s, want 501 or 404 and never 401", method, path, a)
				}
			}
		}
	}
}

func TestWrongMethodsNameTheRightOnes(t *testing.T) {
	t.Parallel()
	s, _ := house(t)
	for path, allow := range map[string]string{
		"/api/v1/certificates": "GET, HEAD, POST", "/api/v1/certificates/crt_" + nothing: "GET, HEAD, PATCH", "/api/v1/certificates/crt_" + nothing + "/renew": "POST",
		"/api/v1/profiles/prf_" + nothing: "DELETE, GET, HEAD, PUT", "/api/v1/jobs": "GET, HEAD", "/api/v1/auth/me": "GET, HEAD", "/openapi.json": "GET, HEAD", "/health": "GET, HEAD", "/ready": "GET, HEAD",
		"/.well-known/est/cacerts": "GET, HEAD", "/scep": "GET, HEAD, POST",
	} {
		for _, method := range []string{"TRACE", "OPTIONS", "BREW", "DELETE", "PUT"} {
			if strings.Contains(allow, method) {
				continue
			}
			for _, key := range []string{"", s.key} {
				a := s.as(key).ask(t, method, path, nil)
				if a.status != 405 || !a.problem() || a.header.Get("Allow") != allow {
					t.Errorf("%s %s: %s, Allow %q, want %q", method, path, a, a.header.Get("Allow"), allow)
				}
			}
		}
	}
	for _, path := range []string{"/api/v1/certificates", "/api/v1/auth/info", "/openapi.json"} {
		if a := s.must(t, 200, "HEAD", path, nil); len(a.body) != 0 {
			t.Errorf("HEAD %s has a body", path)
		}
	}
}

// csr makes a PKCS #10 request.
func csr(t *testing.T, key any, cn string, names ...string) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}, DNSNames: names}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func TestAnAgentsRequestForOtherNamesIsRefusedAndNothingIsSigned(t *testing.T) {
	t.Parallel()
	s, db := house(t)
	agent, credential := s.enroll(t, "host1")
	as := s.as(credential)
	own := "/api/v1/agents/" + agent
	target := s.must(t, 201, "POST", "/api/v1/targets", object{"name": "web", "type": "files", "agent_id": agent, "config": object{"cert_path": "/tmp/c.pem", "key_path": "/tmp/k.pem"}}).text("id")
	made := s.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{"real.example.org", "also.example.org"}, "target_ids": []string{target}})
	if made.text("key_custody") != "agent" || made.text("agent_id") != agent || fmt.Sprint(made.get("target_ids")) != "["+target+"]" {
		t.Errorf("custody: %s", made)
	}
	job := made.text("open_job_id")
	work := as.must(t, 200, "GET", own+"/work", nil)
	jobs, _ := work.get("jobs").([]any)
	if len(jobs) != 1 || jobs[0].(map[string]any)["id"] != job || jobs[0].(map[string]any)["status"] != "AwaitingCSR" {
		t.Fatalf("work: %s", work)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024) // #nosec G403 -- to be refused
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	right := csr(t, key, "real.example.org", "real.example.org", "also.example.org")
	signed, _ := pem.Decode([]byte(right))
	broken := slices.Clone(signed.Bytes)
	broken[len(broken)-1] ^= 1
	for name, text := range map[string]string{
		"another name":    csr(t, key, "real.example.org", "real.example.org", marker+".example.org"),
		"one more":        csr(t, key, "real.example.org", "real.example.org", "also.example.org", marker+".example.org"),
		"one less":        csr(t, key, "real.example.org", "real.example.org"),
		"other CN":        csr(t, key, marker+".example.org", "real.example.org", "also.example.org"),
		"weak key":        csr(t, weak, "real.example.org", "real.example.org", "also.example.org"),
		"no profile key":  csr(t, p521, "real.example.org", "real.example.org", "also.example.org"),
		"bad signature":   string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: broken})),
		"two requests":    right + right,
		"something else":  marker,
		"empty":           "",
		"a private key":   "-----BEGIN PRIVATE KEY-----\n" + marker + "\n-----END PRIVATE KEY-----\n",
		"more than 64 KB": right + strings.Repeat("\n", 65<<10),
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, as.ask(t, "POST", own+"/csr", object{"job_id": job, "csr_pem": text}), 400, "csr_pem")
		})
	}
	refused(t, as.ask(t, "POST", own+"/csr", object{"job_id": "job_" + nothing, "csr_pem": right}), 404)
	if n := number(t, db, `SELECT count(*) FROM versions`) + number(t, db, `SELECT count(*) FROM jobs WHERE csr IS NOT NULL`) + number(t, db, `SELECT count(*) FROM jobs WHERE type = 'Issuance' AND status <> 'AwaitingCSR'`); n != 0 {
		t.Errorf("refused requests left %d rows", n)
	}
	stranger, other := s.enroll(t, "host2")
	refused(t, s.as(other).ask(t, "POST", "/api/v1/agents/"+stranger+"/csr", object{"job_id": job, "csr_pem": right}), 404)
	refused(t, s.as(other).ask(t, "POST", own+"/csr", object{"job_id": job, "csr_pem": right}), 403)

	as.must(t, 202, "POST", own+"/csr", object{"job_id": job, "csr_pem": right})
	as.must(t, 202, "POST", own+"/csr", object{"job_id": job, "csr_pem": csr(t, key, "", "also.example.org", "real.example.org")}) // same key: same answer
	another, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	refused(t, as.ask(t, "POST", own+"/csr", object{"job_id": job, "csr_pem": csr(t, another, "real.example.org", "real.example.org", "also.example.org")}), 409)
	if got := s.job(t, job); got.text("status") != "Completed" {
		t.Fatalf("%s", got)
	}
	leaf := s.leaf(t, made.text("id"))
	if !key.PublicKey.Equal(leaf.PublicKey) {
		t.Error("the certificate is not of the agent's key")
	}
	if n := number(t, db, `SELECT count(*) FROM version_keys`); n != 0 {
		t.Error("the server holds a key under agent custody")
	}
	deploy := as.must(t, 200, "GET", own+"/work", nil, "Certctl-Agent-Run", "r1")
	jobs, _ = deploy.get("jobs").([]any)
	if len(jobs) != 1 {
		t.Fatalf("work after issuance: %s", deploy)
	}
	d := jobs[0].(map[string]any)
	at := own + "/jobs/" + d["id"].(string) + "/status"
	refused(t, as.ask(t, "POST", at, object{"lease": d["lease"], "status": marker}), 400, "status")
	refused(t, as.ask(t, "POST", at, object{"lease": 77, "status": "Running"}), 409)
	refused(t, s.as(other).ask(t, "POST", "/api/v1/agents/"+stranger+"/jobs/"+d["id"].(string)+"/status", object{"lease": d["lease"], "status": "Running"}), 404)
	as.must(t, 200, "POST", at, object{"lease": d["lease"], "status": "Running"})
}

func TestAUsedOrUnknownEnrollmentTokenIsRefused(t *testing.T) {
	t.Parallel()
	s, db := house(t)
	token := s.must(t, 201, "POST", "/api/v1/agents/tokens", nil).text("token")
	body := func(token, name string) object {
		return object{"token": token, "name": name, "hostname": "h", "os": "linux", "arch": "amd64", "version": "1"}
	}
	s.as("").must(t, 201, "POST", "/api/v1/agents/enroll", body(token, "a"))
	refused(t, s.as("").ask(t, "POST", "/api/v1/agents/enroll", body(token, "b")), 401)
	refused(t, s.as("").ask(t, "POST", "/api/v1/agents/enroll", body("cet1_"+marker, "b")), 401)
	refused(t, s.as("").ask(t, "POST", "/api/v1/agents/enroll", body(marker, "b")), 401)
	expired := s.must(t, 201, "POST", "/api/v1/agents/tokens", object{"ttl": "1m"}).text("token")
	execute(t, db, `UPDATE agent_tokens SET expires_at = now() WHERE used_at IS NULL`)
	refused(t, s.as("").ask(t, "POST", "/api/v1/agents/enroll", body(expired, "b")), 401)
	taken := s.must(t, 201, "POST", "/api/v1/agents/tokens", nil).text("token")
	refused(t, s.as("").ask(t, "POST", "/api/v1/agents/enroll", body(taken, "A")), 409)
}

func TestTheTwoPersonRuleHolds(t *testing.T) {
	t.Parallel()
	s, db := house(t)
	one := s.as(s.must(t, 201, "POST", "/api/v1/keys", object{"name": "one", "principal": "one@example.org", "role": "operator"}).text("secret"))
	two := s.as(s.must(t, 201, "POST", "/api/v1/keys", object{"name": "two", "principal": "two@example.org", "role": "operator"}).text("secret"))
	profile := s.approvalProfile(t)
	ask := func(c client, name string) string {
		return c.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{name}, "profile_id": profile}).text("open_job_id")
	}
	job := ask(one, "one.example.org")
	begun := time.Now()
	if a := one.must(t, 200, "GET", "/api/v1/jobs/"+job+"?wait=1s", nil); a.text("status") != "AwaitingApproval" || time.Since(begun) < time.Second || time.Since(begun) > 5*time.Second {
		t.Errorf("after a wait of %s: %s", time.Since(begun), a)
	}
	refused(t, one.ask(t, "POST", "/api/v1/jobs/"+job+"/approve", nil), 403)
	refused(t, one.ask(t, "POST", "/api/v1/jobs/"+job+"/reject", object{"reason": "x"}), 403)
	if got := two.must(t, 200, "POST", "/api/v1/jobs/"+job+"/approve", nil); got.text("approved_by") != "two@example.org" {
		t.Errorf("%s", got)
	}
	if got := s.job(t, job); got.text("status") != "Completed" {
		t.Errorf("%s", got)
	}
	refused(t, two.ask(t, "POST", "/api/v1/jobs/"+job+"/approve", nil), 409)
	refused(t, two.ask(t, "POST", "/api/v1/jobs/"+job+"/cancel", nil), 409)
	admins := ask(s.client, "admin.example.org")
	refused(t, two.ask(t, "POST", "/api/v1/jobs/"+admins+"/approve", nil), 403) // admin, who asks, made two's key
	rejected := ask(one, "rejected.example.org")
	two.must(t, 200, "POST", "/api/v1/jobs/"+rejected+"/reject", object{"reason": "no"})
	if got := s.job(t, rejected); got.text("status") != "Cancelled" || got.text("cancel_reason") != "rejected" {
		t.Errorf("%s", got)
	}
	if n := number(t, db, `SELECT count(*) FROM versions`); n != 1 {
		t.Errorf("%d versions, want the approved one", n)
	}
	certificate := s.job(t, job).text("certificate_id")
	renewal := one.must(t, 202, "POST", "/api/v1/certificates/"+certificate+"/renew", nil).text("id")
	if a := one.ask(t, "POST", "/api/v1/certificates/"+certificate+"/renew", nil); a.status != 409 || a.text("open_job_id") != renewal {
		t.Errorf("a second renewal: %s", a)
	}
}
