package cert

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"
	"unicode/utf8"

	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"

	"github.com/jackc/pgx/v5"
)

// RenewalPolicy says when to renew.
type RenewalPolicy struct {
	ID              id.RenewalPolicy
	Name            string
	RenewAtFraction float64 // of the lifetime, e.g. 0.67
	Jitter          float64 // of the lifetime: the renewal comes up to this much earlier
	AutoRenew       bool
	AlertFractions  []float64
	CreatedAt       time.Time
	UpdatedAt       time.Time
	ArchivedAt      *time.Time
}

const policyColumns = `id, name, renew_at_fraction, jitter, auto_renew, alert_fractions, created_at, updated_at, archived_at`

// RenewAt plans the renewal of a version: a fraction of its lifetime, minus a share of the jitter that is the version's own,
// so that certificates issued together do not renew together and every instance computes the same moment. A quarter of the
// lifetime always passes first, so a six-day certificate is renewed once per life.
func (p RenewalPolicy) RenewAt(v id.Version, notBefore, notAfter time.Time) (time.Time, string) {
	life := notAfter.Sub(notBefore)
	h := sha256.Sum256(v[:])
	share := float64(binary.BigEndian.Uint32(h[:4])) / (1 << 32)
	f := max(p.RenewAtFraction-share*p.Jitter, 0.25, 0)
	f = min(f, p.RenewAtFraction)
	return notBefore.Add(time.Duration(f * float64(life))), fmt.Sprintf("renews at %.0f %% of its lifetime (policy %q: %.0f %%, up to %.0f %% earlier)", f*100, p.Name, p.RenewAtFraction*100, p.Jitter*100)
}

// Check answers every field that is not acceptable.
func (p RenewalPolicy) Check() error {
	var bad []fault.Field
	if p.Name == "" || utf8.RuneCountInString(p.Name) > 200 {
		bad = append(bad, fault.Field{Field: "name", Detail: "must have 1 to 200 characters"})
	}
	if p.RenewAtFraction < 0.05 || p.RenewAtFraction > 0.95 {
		bad = append(bad, fault.Field{Field: "renew_at_fraction", Detail: "must be between 0.05 and 0.95 of the lifetime"})
	}
	if p.Jitter < 0 || p.Jitter > 0.5 {
		bad = append(bad, fault.Field{Field: "jitter", Detail: "must be between 0 and 0.5 of the lifetime"})
	}
	for i, f := range p.AlertFractions {
		if f <= 0 || f > 1 {
			bad = append(bad, fault.Field{Field: fmt.Sprintf("alert_fractions[%d]", i), Detail: "must be above 0 and at most 1"})
		}
	}
	if len(bad) > 0 {
		return fault.BadFields(bad...)
	}
	return nil
}

func (p RenewalPolicy) args() pgx.NamedArgs {
	return pgx.NamedArgs{"id": p.ID, "name": p.Name, "fraction": p.RenewAtFraction, "jitter": p.Jitter, "auto": p.AutoRenew, "alerts": orEmpty(p.AlertFractions)}
}

// InsertRenewalPolicy stores a policy.
func InsertRenewalPolicy(ctx context.Context, q db.Querier, p RenewalPolicy) (RenewalPolicy, error) {
	if err := p.Check(); err != nil {
		return p, err
	}
	return db.One[RenewalPolicy](ctx, q, "renewal policy", `INSERT INTO renewal_policies (id, name, renew_at_fraction, jitter, auto_renew, alert_fractions)
		VALUES (@id, @name, @fraction, @jitter, @auto, @alerts) RETURNING `+policyColumns, p.args())
}

// UpdateRenewalPolicy replaces a policy's settings. Planned renewals stay until the next issuance.
func UpdateRenewalPolicy(ctx context.Context, q db.Querier, p RenewalPolicy) (RenewalPolicy, error) {
	if err := p.Check(); err != nil {
		return p, err
	}
	return db.One[RenewalPolicy](ctx, q, "renewal policy", `UPDATE renewal_policies SET name = @name, renew_at_fraction = @fraction, jitter = @jitter, auto_renew = @auto,
		alert_fractions = @alerts, updated_at = now() WHERE id = @id AND archived_at IS NULL RETURNING `+policyColumns, p.args())
}

// GetRenewalPolicy answers one policy.
func GetRenewalPolicy(ctx context.Context, q db.Querier, p id.RenewalPolicy) (RenewalPolicy, error) {
	return db.One[RenewalPolicy](ctx, q, "renewal policy", `SELECT `+policyColumns+` FROM renewal_policies WHERE id = @id`, pgx.NamedArgs{"id": p})
}

// RenewalPolicyByName answers the live policy of a name.
func RenewalPolicyByName(ctx context.Context, q db.Querier, name string) (RenewalPolicy, error) {
	return db.One[RenewalPolicy](ctx, q, "renewal policy", `SELECT `+policyColumns+` FROM renewal_policies WHERE lower(name) = lower(@name) AND archived_at IS NULL`, pgx.NamedArgs{"name": name})
}

var policyKeys = page.Keys[RenewalPolicy]{
	ID: "id", IDOf: func(p RenewalPolicy) string { return p.ID.UUID() },
	By: map[string]page.Key[RenewalPolicy]{"created_at": {SQL: "created_at", Type: page.Time, Of: func(p RenewalPolicy) string { return page.TimeText(p.CreatedAt) }}},
}

// ListRenewalPolicies answers a page of live policies.
func ListRenewalPolicies(ctx context.Context, q db.Querier, p page.Request) (page.Result[RenewalPolicy], error) {
	return db.List(ctx, q, policyKeys, p, db.Source{Columns: policyColumns, From: "renewal_policies", Where: "archived_at IS NULL"}, pgx.NamedArgs{})
}

// ArchiveRenewalPolicy retires a policy that no live certificate uses.
func ArchiveRenewalPolicy(ctx context.Context, q db.Querier, p id.RenewalPolicy) error {
	return archive(ctx, q, "renewal policy", "renewal_policies", "renewal_policy_id", p)
}
