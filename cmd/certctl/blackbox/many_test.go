package blackbox

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// loaded is a house with n certificates made by SQL from one real one, each with an open issuance; its server is stopped.
func loaded(t *testing.T, n int) (*server, *pgxpool.Pool) {
	t.Helper()
	s, db := house(t)
	s.issued(t, object{"sans": []string{"seed.example.org"}})
	s.stop(t)
	execute(t, db, `CREATE TABLE loaded AS SELECT uuid7() AS certificate, uuid7() AS job, i FROM generate_series(1, $1::int) AS i`, n)
	execute(t, db, `INSERT INTO certificates (id, name, common_name, sans, issuer_id, profile_id, renewal_policy_id, key_custody, created_by)
		SELECT l.certificate, 'n' || i, 'n' || i || '.example.org', ARRAY['n' || i || '.example.org'], c.issuer_id, c.profile_id, c.renewal_policy_id, c.key_custody, 'test'
		FROM certificates c, loaded l WHERE c.name = 'seed.example.org'`)
	execute(t, db, `INSERT INTO jobs (id, type, runner, status, certificate_id, issuer_id, max_attempts, requested_by, requested_role)
		SELECT l.job, 'Issuance', 'worker', 'Pending', l.certificate, c.issuer_id, 100, 'test', 'admin' FROM loaded l JOIN certificates c ON c.id = l.certificate`)
	execute(t, db, `UPDATE certificates c SET open_job_id = l.job FROM loaded l WHERE l.certificate = c.id`)
	execute(t, db, `ANALYZE`)
	return s, db
}

// once asserts that each loaded job was finished once and made one version.
func once(t *testing.T, db *pgxpool.Pool, n int) {
	t.Helper()
	for what, sql := range map[string]string{
		"jobs Completed":                     `SELECT count(*) FROM jobs JOIN loaded ON job = id WHERE status = 'Completed'`,
		"claims that completed":              `SELECT count(*) FROM job_attempts JOIN loaded ON job = job_id WHERE outcome = 'completed'`,
		"jobs with one claim that completed": `SELECT count(*) FROM (SELECT job_id FROM job_attempts JOIN loaded ON job = job_id WHERE outcome = 'completed' GROUP BY job_id HAVING count(*) = 1) x`,
		"versions":                           `SELECT count(*) FROM versions JOIN loaded ON certificate = certificate_id`,
		"certificates with a version":        `SELECT count(DISTINCT certificate_id) FROM versions JOIN loaded ON certificate = certificate_id`,
		"serials":                            `SELECT count(DISTINCT serial) FROM versions JOIN loaded ON certificate = certificate_id`,
		"keys":                               `SELECT count(DISTINCT spki_sha256) FROM versions JOIN loaded ON certificate = certificate_id`,
		"audit events of issuance":           `SELECT count(*) FROM audit_events JOIN loaded ON resource_id = type_id('crt', certificate) WHERE action = 'certificate.issued'`,
		"certificates without an open job":   `SELECT count(*) FROM certificates JOIN loaded ON certificate = id WHERE open_job_id IS NULL`,
	} {
		if got := number(t, db, sql); got != n {
			t.Errorf("%d %s, want %d", got, what, n)
		}
	}
	if got := number(t, db, `SELECT count(*) FROM (SELECT 1 FROM job_attempts GROUP BY job_id, lease_no HAVING count(*) > 1) x`); got != 0 {
		t.Errorf("%d (job, lease) pairs were claimed twice", got)
	}
	if got := number(t, db, `SELECT count(*) FROM job_attempts a JOIN job_attempts b ON a.job_id = b.job_id AND a.lease_no < b.lease_no AND a.ended_at > b.started_at`); got != 0 {
		t.Errorf("%d claims began before the one before had ended", got)
	}
}

func TestEightWorkersShareTheJobs(t *testing.T) {
	t.Parallel()
	loads := []int{40, 2000}
	if *long {
		loads = append(loads, 10000)
	}
	for _, n := range loads {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s, db := loaded(t, n)
			start := time.Now()
			var workers [8]*process
			for i := range workers {
				workers[i] = begin(t, s.beside("CERTCTL_POOL_SIZE=5", "CERTCTL_LOG_LEVEL=warn"), certctl(t), "work", "--once")
			}
			var took []int64
			var sum int64
			for _, w := range workers {
				code := w.wait(t, 10*time.Minute)
				var r struct{ Requeued, Claimed, Done, Errors, Released int64 }
				if err := json.Unmarshal([]byte(w.out.String()), &r); code != 0 || err != nil || r.Done != r.Claimed || r.Errors+r.Released+r.Requeued != 0 {
					t.Errorf("exit %d: %q %s", code, w.out, tail(w.log.String(), 500))
				}
				took, sum = append(took, r.Done), sum+r.Done
			}
			rate := float64(n) / time.Since(start).Seconds()
			slices.Sort(took)
			t.Logf("%d jobs in %s (%.0f a second), each process took %v", n, time.Since(start).Round(time.Millisecond), rate, took)
			if sum != int64(n) {
				t.Errorf("the processes say that they did %d jobs of %d", sum, n)
			}
			once(t, db, n)
			if got := number(t, db, `SELECT count(*) FROM job_attempts JOIN loaded ON job = job_id`); got != n {
				t.Errorf("%d claims for %d jobs", got, n)
			}
			if shared := number(t, db, `SELECT count(DISTINCT claimant) FROM job_attempts JOIN loaded ON job = job_id`); n > 1000 && shared != 8 {
				t.Errorf("%d of 8 processes worked", shared)
			}
		})
	}
}

func TestKilledWorkersLoseAndDoubleNothing(t *testing.T) {
	t.Parallel()
	const n = 200
	s, db := loaded(t, n)
	kills := 0
	for deadline := time.Now().Add(90 * time.Second); number(t, db, `SELECT count(*) FROM jobs WHERE status <> 'Completed'`) > 0; kills += 3 {
		if time.Now().After(deadline) {
			t.Fatalf("after %d kills jobs are still open", kills)
		}
		var workers [3]*process
		for i := range workers {
			workers[i] = begin(t, s.beside("CERTCTL_POOL_SIZE=5", "CERTCTL_LOG_LEVEL=warn"), certctl(t), "work", "--once")
		}
		time.Sleep(time.Duration(150+rand.IntN(350)) * time.Millisecond) // #nosec G404 -- when to kill needs no secret
		for _, w := range workers {
			w.kill()
		}
		execute(t, db, `UPDATE jobs SET leased_until = now() - interval '1 second' WHERE status = 'Running'`) // as if two minutes had passed
	}
	expired := number(t, db, `SELECT count(*) FROM job_attempts WHERE outcome = 'expired'`)
	t.Logf("%d kills left %d leases that expired", kills, expired)
	if expired == 0 {
		t.Error("no kill hit a running job: the test proves nothing")
	}
	once(t, db, n)
}

func TestTwoSweepsShareWhatIsDue(t *testing.T) {
	t.Parallel()
	const n = 10000
	s, db := house(t)
	seed := s.issued(t, object{"sans": []string{"seed.example.org"}})
	s.stop(t)
	execute(t, db, `INSERT INTO certificates (id, name, common_name, sans, issuer_id, profile_id, renewal_policy_id, key_custody, created_by, current_version_id, not_after, renew_at, renew_reason)
		SELECT uuid7(), 'n' || i, common_name, sans, issuer_id, profile_id, renewal_policy_id, key_custody, 'test', current_version_id, not_after, now() - i * interval '1 second', renew_reason
		FROM certificates, generate_series(1, $1::int) AS i WHERE name = 'seed.example.org'`, n)
	execute(t, db, `ANALYZE`)
	start := time.Now()
	var sweeps [2]*process
	for i := range sweeps {
		sweeps[i] = begin(t, s.beside(), certctl(t), "sweep", "--once")
	}
	sum, shares := 0, []int{}
	for _, p := range sweeps {
		code := p.wait(t, time.Minute)
		var r struct {
			Renewals int
			Left     bool
		}
		if err := json.Unmarshal([]byte(p.out.String()), &r); code != 0 || err != nil || r.Left {
			t.Errorf("exit %d: %q %s", code, p.out, p.log)
		}
		sum, shares = sum+r.Renewals, append(shares, r.Renewals)
	}
	t.Logf("10,000 due certificates in %s, shares %v", time.Since(start).Round(time.Millisecond), shares)
	for what, sql := range map[string]string{
		"renewal jobs":                  `SELECT count(*) FROM jobs WHERE type = 'Renewal' AND requested_by = 'system:sweep'`,
		"certificates with one":         `SELECT count(DISTINCT certificate_id) FROM jobs WHERE type = 'Renewal'`,
		"certificates that name it":     `SELECT count(*) FROM certificates c JOIN jobs j ON j.id = c.open_job_id AND j.certificate_id = c.id`,
		"audit events":                  `SELECT count(DISTINCT resource_id) FROM audit_events WHERE action = 'certificate.renewal_requested' AND principal = 'system:sweep'`,
		"stored reasons why they renew": `SELECT count(*) FROM certificates WHERE open_job_id IS NOT NULL AND renew_reason <> ''`,
	} {
		if got := number(t, db, sql); got != n {
			t.Errorf("%d %s, want %d", got, what, n)
		}
	}
	if sum != n {
		t.Errorf("the sweeps say that they made %d jobs", sum)
	}
	if got := number(t, db, `SELECT count(*) FROM jobs WHERE certificate_id = (SELECT id FROM certificates WHERE name = 'seed.example.org') AND type = 'Renewal'`); got != 0 {
		t.Errorf("%s, which is not due, was renewed", seed.text("id"))
	}
	again := begin(t, s.beside(), certctl(t), "sweep", "--once")
	var r struct{ Renewals int }
	if code := again.wait(t, time.Minute); code != 0 || json.Unmarshal([]byte(again.out.String()), &r) != nil || r.Renewals != 0 {
		t.Errorf("a third sweep: exit %d, %s", code, again.out)
	}
}
