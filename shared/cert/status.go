package cert

import "time"

// Status is what a certificate is at a moment. Nobody stores it: it follows from facts.
type Status string

// The statuses, in the order in which they are decided: the first that fits is the answer (SPEC CERT-3).
const (
	Archived Status = "archived"
	Revoked  Status = "revoked"  // the current version is revoked or on hold
	Renewing Status = "renewing" // an issuance is open and a version exists
	Pending  Status = "pending"  // an issuance is open, or it was never tried
	Expired  Status = "expired"
	Failed   Status = "failed"   // the last issuance failed and the renewal is overdue
	Expiring Status = "expiring" // the time to renew has come
	Active   Status = "active"
)

// Statuses are all statuses in that order.
var Statuses = []Status{Archived, Revoked, Renewing, Pending, Expired, Failed, Expiring, Active}

// Facts are what the status follows from.
type Facts struct {
	ArchivedAt *time.Time
	RevokedAt  *time.Time // of the current version
	OpenJob    bool       // an issuance is open
	HasVersion bool
	NotAfter   *time.Time // of the current version
	RenewAt    *time.Time
	Failures   int // issuances failed since the last success
}

// Status decides. StatusSQL is the same switch; a table test holds the two together.
func (f Facts) Status(now time.Time) Status {
	due := f.RenewAt != nil && !f.RenewAt.After(now)
	switch {
	case f.ArchivedAt != nil:
		return Archived
	case f.RevokedAt != nil:
		return Revoked
	case f.OpenJob && f.HasVersion:
		return Renewing
	case f.OpenJob, !f.HasVersion && f.Failures == 0:
		return Pending
	case f.NotAfter != nil && !f.NotAfter.After(now):
		return Expired
	case f.Failures > 0 && (!f.HasVersion || due):
		return Failed
	case due:
		return Expiring
	}
	return Active
}

// StatusSQL is Facts.Status over the columns of certificates.
const StatusSQL = `CASE
	WHEN archived_at IS NOT NULL THEN 'archived'
	WHEN revoked_at IS NOT NULL THEN 'revoked'
	WHEN open_job_id IS NOT NULL AND current_version_id IS NOT NULL THEN 'renewing'
	WHEN open_job_id IS NOT NULL OR (current_version_id IS NULL AND failures = 0) THEN 'pending'
	WHEN not_after <= now() THEN 'expired'
	WHEN failures > 0 AND (current_version_id IS NULL OR renew_at <= now()) THEN 'failed'
	WHEN renew_at <= now() THEN 'expiring'
	ELSE 'active' END`
