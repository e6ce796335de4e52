package blackbox

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"certctl/shared/dbtest"
	"certctl/shared/pglocal"
)

// facts are what a restart must not change.
func (s *server) facts(t *testing.T) map[string]string {
	t.Helper()
	issuer := s.issuer(t)
	out := map[string]string{"ca": string(s.authority(t, issuer).Raw)}
	for _, list := range []string{"issuers", "issuers/" + issuer + "/generations", "profiles", "renewal-policies", "keys", "certificates"} {
		for _, row := range s.must(t, 200, "GET", "/api/v1/"+list, nil).list() {
			delete(row, "last_used_at")
			delete(row, "crl_url") // carries the port, which is another one at each start
			delete(row, "ocsp_url")
			delete(row, "ca_url")
			out[list+" "+row["id"].(string)] = fmt.Sprint(row)
		}
	}
	for _, name := range []string{"admin.key", "master.key"} {
		b, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(b)
	}
	return out
}

func same(t *testing.T, before, after map[string]string) {
	t.Helper()
	for _, k := range slices.Sorted(maps.Keys(after)) {
		if before[k] != after[k] {
			t.Errorf("%s: %q before, %q after", k, before[k], after[k])
		}
	}
	if len(before) != len(after) {
		t.Errorf("%d facts before, %d after", len(before), len(after))
	}
}

// approvalProfile makes a profile whose issuances wait for a person.
func (c client) approvalProfile(t testing.TB) string {
	t.Helper()
	return c.must(t, 201, "POST", "/api/v1/profiles", object{"name": "careful", "key_algorithms": []string{"ecdsa-p256"}, "max_ttl": "30d", "requires_approval": true}).text("id")
}

func TestServeMakesItsHouseOnceAndFindsItAgain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(folder(t), "data")
	s := launch(t, dir)
	t.Logf("from nothing to ready: %s", s.took.Round(time.Millisecond))
	if st, err := os.Stat(filepath.Join(dir, "admin.key")); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("admin.key: %v, %v; want mode 0600", st, err)
	}
	if me := s.must(t, 200, "GET", "/api/v1/auth/me", nil); me.text("role") != "admin" || me.text("principal") != "admin" {
		t.Errorf("the first key is %s", me)
	}
	open := s.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{"open.example.org"}, "profile_id": s.approvalProfile(t)}).text("open_job_id")
	s.issued(t, object{"sans": []string{"done.example.org"}})
	before := s.facts(t)
	if code := s.stop(t); code != 0 {
		t.Errorf("serve ended with %d after SIGTERM", code)
	}
	if left := below(dir); left != nil {
		t.Errorf("after the stop there are %v", left)
	}

	again := launch(t, dir)
	t.Logf("from an existing folder to ready: %s", again.took.Round(time.Millisecond))
	if out := again.out.String(); out != "ready "+again.ready+"\n" {
		t.Errorf("a second start printed %q", out)
	}
	if strings.Contains(s.out.String()+s.log.String()+again.out.String()+again.log.String(), s.key) {
		t.Error("the admin key was printed")
	}
	same(t, before, again.facts(t))
	if got := again.must(t, 200, "GET", "/api/v1/jobs/"+open, nil); got.text("status") != "AwaitingApproval" {
		t.Errorf("the open job is %s", got)
	}
}

// socket is the URL of the Postgres that serve owns, read from its folder.
func (s *server) socket(t *testing.T) string {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(s.dir, "postgres", "pg*", "password"))
	if len(found) != 1 {
		t.Fatalf("%d databases in %s", len(found), s.dir)
	}
	password, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword("certctl", string(password)), Path: "/postgres",
		RawQuery: url.Values{"host": {filepath.Join(filepath.Dir(found[0]), "socket")}, "port": {"5432"}}.Encode()}
	return u.String()
}

func TestAKilledServerFindsItsWorkAgain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(folder(t), "data")
	s := launch(t, dir, "CERTCTL_WORKER_CONCURRENCY=2")
	facts := s.facts(t)
	var acknowledged atomic.Int64
	var senders sync.WaitGroup
	for w := range 6 {
		senders.Go(func() {
			for i := range 200 {
				a, err := s.try("POST", "/api/v1/certificates", object{"sans": []string{fmt.Sprintf("n%d-%d.example.org", w, i)}})
				if err != nil {
					return // the server is gone
				}
				if a.status == 201 {
					acknowledged.Add(1)
				}
			}
		})
	}
	eventually(t, 30*time.Second, "under way", func() bool { return acknowledged.Load() >= 60 })
	s.kill()
	senders.Wait()
	eventually(t, 10*time.Second, "without a postgres after the kill", func() bool { return below(dir) == nil })

	again := launch(t, dir)
	t.Logf("from a killed folder to ready: %s", again.took.Round(time.Millisecond))
	after := again.facts(t)
	for k, v := range facts {
		if after[k] != v {
			t.Errorf("%s: %q before, %q after", k, v, after[k])
		}
	}
	db := database(t, again.socket(t))
	wanted := number(t, db, `SELECT count(*) FROM certificates`)
	if int64(wanted) < acknowledged.Load() {
		t.Errorf("%d certificates were acknowledged and %d are there", acknowledged.Load(), wanted)
	}
	t.Logf("%d acknowledged, %d stored, %d of them open after the kill", acknowledged.Load(), wanted, number(t, db, `SELECT count(*) FROM certificates WHERE open_job_id IS NOT NULL`))
	execute(t, db, `UPDATE jobs SET leased_until = now() - interval '1 second' WHERE status = 'Running'`) // as if two minutes had passed
	eventually(t, 60*time.Second, "all jobs finished", func() bool {
		return number(t, db, `SELECT count(*) FROM jobs WHERE status NOT IN ('Completed')`) == 0
	})
	if n := number(t, db, `SELECT count(*) FROM versions`); n != wanted {
		t.Errorf("%d versions for %d certificates", n, wanted)
	}
	if n := number(t, db, `SELECT count(*) FROM certificates c WHERE (SELECT count(*) FROM versions v WHERE v.certificate_id = c.id) <> 1`); n != 0 {
		t.Errorf("%d certificates have not exactly one version", n)
	}
}

func TestTwoFirstStartsOnOneDatabaseMakeOneHouse(t *testing.T) {
	t.Parallel()
	url, key := dbtest.EmptyURL(t), masterKey()
	servers := make([]*server, 2)
	var starts sync.WaitGroup
	for i := range servers {
		dir := folder(t)
		starts.Go(func() {
			servers[i] = launch(t, dir, "CERTCTL_DATABASE_URL="+url, "CERTCTL_MASTER_KEY="+key)
		})
	}
	starts.Wait()
	if servers[0] == nil || servers[1] == nil {
		t.FailNow()
	}
	db := database(t, url)
	for _, table := range []string{"instance", "issuers", "ca_generations", "api_keys", "profiles", "renewal_policies"} {
		if n := number(t, db, `SELECT count(*) FROM `+table); n != 1 {
			t.Errorf("%d rows in %s", n, table)
		}
	}
	if (servers[0].key == "") == (servers[1].key == "") {
		t.Fatalf("admin.key: %t and %t, want it in one folder", servers[0].key != "", servers[1].key != "")
	}
	admin := servers[0].key + servers[1].key
	issuer := servers[0].client.as(admin).issuer(t)
	for _, s := range servers {
		if c := s.as(admin); c.must(t, 200, "GET", "/api/v1/auth/me", nil).text("role") != "admin" || c.issuer(t) != issuer {
			t.Error("the instances differ")
		}
	}
	if a, b := servers[0].authority(t, issuer), servers[1].authority(t, issuer); !a.Equal(b) {
		t.Error("two instances show two CAs")
	}
	secret := servers[0].as(admin).keyOf(t, "viewer")
	servers[1].as(secret).must(t, 200, "GET", "/api/v1/auth/me", nil)
	k := servers[1].as(secret).must(t, 200, "GET", "/api/v1/auth/me", nil).text("key_id")
	servers[0].as(admin).must(t, 200, "POST", "/api/v1/keys/"+k+"/disable", nil)
	servers[1].as(secret).must(t, 401, "GET", "/api/v1/auth/me", nil)
}

func TestAWrongMissingOrCopiedSecretStopsTheStart(t *testing.T) {
	t.Parallel()
	url := dbtest.URL(t)
	right := serveOn(t, url)
	right.stop(t)
	wrong := masterKey()
	for name, c := range map[string]struct{ key, variable string }{
		"wrong":       {wrong, "CERTCTL_MASTER_KEY"},
		"missing":     {"", "CERTCTL_MASTER_KEY"},
		"placeholder": {"changeme", "CERTCTL_MASTER_KEY"},
		"short":       {"c2hvcnQtYnV0LXNlY3JldA==", "CERTCTL_MASTER_KEY"},
	} {
		for _, command := range []string{"serve", "work"} {
			t.Run(name+"/"+command, func(t *testing.T) {
				t.Parallel()
				env := []string{"CERTCTL_LISTEN=127.0.0.1:0", "CERTCTL_DATA_DIR=" + folder(t), "CERTCTL_DATABASE_URL=" + url, "CERTCTL_PKI_URL=http://127.0.0.1:1", "CERTCTL_MASTER_KEY=" + c.key}
				code, out, log := run(t, env, certctl(t), command)
				if code == 0 || !strings.Contains(log, c.variable) {
					t.Errorf("exit %d, without naming %s:\n%s%s", code, c.variable, out, log)
				}
				if c.key != "" && strings.Contains(out+log, c.key) {
					t.Errorf("the value is repeated:\n%s%s", out, log)
				}
				if strings.Contains(out, "ready") {
					t.Errorf("it was ready: %s", out)
				}
			})
		}
	}
}

func TestTheServerOutlivesItsDatabase(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	start := func() *pglocal.Server {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		pg, err := pglocal.Start(ctx, pglocal.Options{Dir: dir, Volatile: true})
		if err != nil {
			t.Fatal(err)
		}
		return pg
	}
	pg := start()
	t.Cleanup(func() { _ = pg.Stop() })
	s := serveOn(t, pg.URL)
	issuer := s.issuer(t)
	leaf, ca := s.leaf(t, s.issued(t, object{"sans": []string{"before.example.org"}}).text("id")), s.authority(t, issuer)

	if err := pg.Stop(); err != nil {
		t.Fatal(err)
	}
	gone := time.Now()
	for _, path := range []string{"/ready", "/api/v1/certificates", "/api/v1/stats/summary"} {
		begun := time.Now()
		a := s.must(t, 503, "GET", path, nil)
		if !a.problem() || a.header.Get("Retry-After") == "" || a.get("retryable") != true {
			t.Errorf("%s: %s, Retry-After %q", path, a, a.header.Get("Retry-After"))
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("%s: answered after %s", path, took)
		}
	}
	if a := s.ask(t, "POST", "/api/v1/certificates", object{"sans": []string{"during.example.org"}}); a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("a write meanwhile: %s", a)
	}
	if a := s.must(t, 503, "GET", "/.well-known/pki/crl/"+issuer, nil); a.header.Get("Retry-After") == "" || a.header.Get("Cache-Control") != "no-store" {
		t.Errorf("CRL meanwhile: %s %v", a, a.header)
	}
	if a := s.askOCSP(t, issuer, request{ca: ca}.der(t, leaf.SerialNumber)); string(a.body) != string(ocspTryLater) || a.header.Get("Cache-Control") != "no-store" {
		t.Errorf("OCSP meanwhile: %s", a)
	}
	s.must(t, 200, "GET", "/health", nil)
	time.Sleep(time.Until(gone.Add(5 * time.Second)))

	pg = start()
	took := eventually(t, 15*time.Second, "ready", func() bool { return s.ask(t, "GET", "/ready", nil).status == 200 })
	t.Logf("ready %s after the database came back", took.Round(time.Millisecond))
	s.issued(t, object{"sans": []string{"after.example.org"}})
	if !s.running() {
		t.Error("the process ended")
	}
}

func TestAPlainListenerThatOthersReachServesOnlyPKI(t *testing.T) {
	t.Parallel()
	for _, allowed := range []bool{false, true} {
		t.Run(fmt.Sprintf("CERTCTL_ALLOW_HTTP=%t", allowed), func(t *testing.T) {
			t.Parallel()
			s, db := house(t, "CERTCTL_LISTEN=0.0.0.0:0", fmt.Sprintf("CERTCTL_ALLOW_HTTP=%t", allowed))
			s.base = "http://127.0.0.1:" + s.ready[strings.LastIndex(s.ready, ":")+1:]
			var issuer string
			if err := db.QueryRow(t.Context(), `SELECT type_id('iss', id) FROM issuers`).Scan(&issuer); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{"/.well-known/pki/ca/" + issuer, "/.well-known/pki/crl/" + issuer, "/health", "/ready"} {
				s.must(t, 200, "GET", path, nil)
			}
			for _, path := range []string{"/api/v1/auth/info", "/api/v1/certificates", "/openapi.json", "/", "/.well-known/pki", "/.well-known/est/cacerts", "/scep"} {
				a := s.ask(t, "GET", path, nil)
				if refused := a.status == 403; refused == allowed || refused && !a.problem() {
					t.Errorf("%s: %s", path, a)
				}
			}
			if a := s.rawGet(t, "/.well-known/pki/../../api/v1/keys"); a.status == 200 {
				t.Errorf("a way around: %s", a)
			}
		})
	}
}
