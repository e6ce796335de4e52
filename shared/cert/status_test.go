package cert_test

import (
	"fmt"
	"testing"
	"time"

	"certctl/shared/cert"
	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/id"
)

// combinations are all that the facts can be at a moment, also those that constraints exclude.
func combinations(now time.Time) []cert.Facts {
	past, future := now.Add(-time.Hour), now.Add(time.Hour)
	maybe := []*time.Time{nil, &past, &now, &future}
	var out []cert.Facts
	for _, archived := range maybe[:2] {
		for _, revoked := range maybe[:2] {
			for _, open := range []bool{false, true} {
				for _, version := range []bool{false, true} {
					for _, notAfter := range maybe {
						for _, renewAt := range maybe {
							for _, failures := range []int{0, 1, 7} {
								out = append(out, cert.Facts{ArchivedAt: archived, RevokedAt: revoked, OpenJob: open, HasVersion: version, NotAfter: notAfter, RenewAt: renewAt, Failures: failures})
							}
						}
					}
				}
			}
		}
	}
	return out
}

func TestStatusIsTheSameInGoAndInSQL(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	now, err := db.Scalar[time.Time](t.Context(), tx, `SELECT now()`)
	if err != nil {
		t.Fatal(err)
	}
	facts := combinations(now)
	var archived, revoked, notAfter, renewAt []*time.Time
	var open, version []*string
	var failures []int
	some := id.New[id.Job]().UUID()
	mark := func(b bool) *string {
		if b {
			return &some
		}
		return nil
	}
	for _, f := range facts {
		archived, revoked, notAfter, renewAt = append(archived, f.ArchivedAt), append(revoked, f.RevokedAt), append(notAfter, f.NotAfter), append(renewAt, f.RenewAt)
		open, version, failures = append(open, mark(f.OpenJob)), append(version, mark(f.HasVersion)), append(failures, f.Failures)
	}
	rows, err := db.Many[struct{ Status cert.Status }](t.Context(), tx, `SELECT `+cert.StatusSQL+` AS status
		FROM unnest($1::timestamptz[], $2::timestamptz[], $3::uuid[], $4::uuid[], $5::timestamptz[], $6::timestamptz[], $7::int[]) WITH ORDINALITY
			AS c(archived_at, revoked_at, open_job_id, current_version_id, not_after, renew_at, failures, n) ORDER BY n`,
		archived, revoked, open, version, notAfter, renewAt, failures)
	if err != nil || len(rows) != len(facts) {
		t.Fatalf("%d rows for %d combinations, %v", len(rows), len(facts), err)
	}
	seen := map[cert.Status]int{}
	for i, f := range facts {
		seen[rows[i].Status]++
		if got := f.Status(now); got != rows[i].Status {
			t.Errorf("%s: Go says %s, SQL says %s", describe(f), got, rows[i].Status)
		}
	}
	for _, s := range cert.Statuses {
		if seen[s] == 0 {
			t.Errorf("no combination is %s", s)
		}
	}
}

func describe(f cert.Facts) string {
	return fmt.Sprintf("archived %v, revoked %v, open %v, version %v, not after %v, renew at %v, failures %d", f.ArchivedAt, f.RevokedAt, f.OpenJob, f.HasVersion, f.NotAfter, f.RenewAt, f.Failures)
}

// The words of SPEC CERT-3, one example each.
func TestStatusIsTheFirstThatFits(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	past, future := now.Add(-time.Second), now.Add(time.Second)
	for name, c := range map[string]struct {
		facts cert.Facts
		want  cert.Status
	}{
		"archived before all":          {cert.Facts{ArchivedAt: &past, RevokedAt: &past, OpenJob: true}, cert.Archived},
		"revoked before renewing":      {cert.Facts{RevokedAt: &past, OpenJob: true, HasVersion: true}, cert.Revoked},
		"renewing though expired":      {cert.Facts{OpenJob: true, HasVersion: true, NotAfter: &past}, cert.Renewing},
		"first issuance":               {cert.Facts{OpenJob: true, Failures: 3}, cert.Pending},
		"never tried":                  {cert.Facts{}, cert.Pending},
		"expired before failed":        {cert.Facts{HasVersion: true, NotAfter: &past, RenewAt: &past, Failures: 2}, cert.Expired},
		"first issuance failed":        {cert.Facts{Failures: 1}, cert.Failed},
		"renewal failed and overdue":   {cert.Facts{HasVersion: true, NotAfter: &future, RenewAt: &past, Failures: 1}, cert.Failed},
		"renewal by hand failed early": {cert.Facts{HasVersion: true, NotAfter: &future, RenewAt: &future, Failures: 1}, cert.Active},
		"due":                          {cert.Facts{HasVersion: true, NotAfter: &future, RenewAt: &now}, cert.Expiring},
		"good":                         {cert.Facts{HasVersion: true, NotAfter: &future, RenewAt: &future}, cert.Active},
		"good without a plan":          {cert.Facts{HasVersion: true, NotAfter: &future}, cert.Active},
	} {
		if got := c.facts.Status(now); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
