// Package cert owns managed certificates, their versions, profiles and renewal policies: types, rules and tables. It does not
// know how a certificate is obtained or where it is served.
//
// The surprising rule: a certificate's status is stored nowhere. It is decided from facts, in Go and in SQL alike.
package cert

import (
	"context"
	"fmt"
	"strings"
	"time"

	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"
	"certctl/shared/pki"

	"github.com/jackc/pgx/v5"
)

// Custody says who makes and holds the private key. It is decided once (SPEC CERT-8).
type Custody string

// The custodies.
const (
	AgentCustody  Custody = "agent"  // one agent holds the key; it never leaves that host
	ServerCustody Custody = "server" // the worker makes the key and seals it
)

// Certificate is a managed certificate.
type Certificate struct {
	ID               id.Certificate
	Name             string
	CommonName       string
	SANs             []string
	IssuerID         id.Issuer
	ProfileID        id.Profile
	RenewalPolicyID  id.RenewalPolicy
	OwnerID          id.Owner
	TeamID           id.Team
	Environment      *string
	Tags             map[string]string
	KeyCustody       Custody
	AgentID          id.Agent
	CurrentVersionID id.Version
	NotAfter         *time.Time
	RevokedAt        *time.Time
	OpenJobID        id.Job
	RenewAt          *time.Time
	NextTryAt        *time.Time
	RenewReason      *string
	Failures         int
	AutoRenew        bool
	CreatedBy        string
	CreatedAt        time.Time
	UpdatedAt        time.Time
	ArchivedAt       *time.Time
}

const columns = `id, name, common_name, sans, issuer_id, profile_id, renewal_policy_id, owner_id, team_id, environment, tags, key_custody, agent_id,
	current_version_id, not_after, revoked_at, open_job_id, renew_at, next_try_at, renew_reason, failures, auto_renew, created_by, created_at, updated_at, archived_at`

// Facts are the facts that decide the status.
func (c Certificate) Facts() Facts {
	return Facts{ArchivedAt: c.ArchivedAt, RevokedAt: c.RevokedAt, OpenJob: !c.OpenJobID.IsZero(), HasVersion: !c.CurrentVersionID.IsZero(),
		NotAfter: c.NotAfter, RenewAt: c.RenewAt, Failures: c.Failures}
}

// Status is Facts().Status(now).
func (c Certificate) Status(now time.Time) Status { return c.Facts().Status(now) }

// Can names the actions that the certificate's state allows; who asks is judged elsewhere. held says that the current version
// is revoked by a hold, which can be lifted or made final.
func (c Certificate) Can(now time.Time, held bool) []string {
	can := []string{}
	s := c.Status(now)
	if s == Archived {
		return can
	}
	if c.OpenJobID.IsZero() {
		can = append(can, "renew", "archive")
	}
	if !c.CurrentVersionID.IsZero() {
		can = append(can, "deploy", "export")
		if (s != Revoked || held) && c.NotAfter != nil && c.NotAfter.After(now) {
			can = append(can, "revoke")
		}
		if held {
			can = append(can, "unhold")
		}
	}
	return append(can, "update")
}

// Names are the names that every version of the certificate carries.
func (c Certificate) Names() (pki.Names, error) {
	n, err := pki.ParseNames(c.CommonName, c.SANs)
	if err != nil {
		return n, fmt.Errorf("the stored names of %s do not parse: %w", c.ID, err)
	}
	return n, nil
}

// Filter narrows a list; empty fields do not. Archived certificates are listed only when Status asks for them.
type Filter struct {
	Status          Status
	Name            string
	SAN             string
	IssuerID        id.Issuer
	ProfileID       id.Profile
	RenewalPolicyID id.RenewalPolicy
	OwnerID         id.Owner
	TeamID          id.Team
	AgentID         id.Agent
	TargetID        id.Target
	Environment     string
	Tags            map[string]string
}

func (f Filter) where(args pgx.NamedArgs) string {
	w := []string{"archived_at IS NULL"}
	switch f.Status {
	case "":
	case Archived:
		w = []string{"archived_at IS NOT NULL"}
	default:
		w, args["status"] = append(w, "("+StatusSQL+") = @status"), f.Status
	}
	equal := func(column string, none bool, value any) {
		if !none {
			w = append(w, column+" = @"+column)
			args[column] = value
		}
	}
	equal("name", f.Name == "", f.Name)
	equal("issuer_id", f.IssuerID.IsZero(), f.IssuerID)
	equal("profile_id", f.ProfileID.IsZero(), f.ProfileID)
	equal("renewal_policy_id", f.RenewalPolicyID.IsZero(), f.RenewalPolicyID)
	equal("owner_id", f.OwnerID.IsZero(), f.OwnerID)
	equal("team_id", f.TeamID.IsZero(), f.TeamID)
	equal("agent_id", f.AgentID.IsZero(), f.AgentID)
	equal("environment", f.Environment == "", f.Environment)
	if f.SAN != "" {
		w, args["san"] = append(w, "@san = ANY(sans)"), strings.ToLower(f.SAN)
	}
	if !f.TargetID.IsZero() {
		w, args["target"] = append(w, "id IN (SELECT certificate_id FROM deployments WHERE target_id = @target AND removed_at IS NULL)"), f.TargetID
	}
	if len(f.Tags) > 0 {
		w, args["tags"] = append(w, "tags @> @tags"), f.Tags
	}
	return strings.Join(w, " AND ")
}

var keys = page.Keys[Certificate]{
	ID: "id", IDOf: func(c Certificate) string { return c.ID.UUID() },
	By: map[string]page.Key[Certificate]{
		"created_at": {SQL: "created_at", Type: page.Time, Of: func(c Certificate) string { return page.TimeText(c.CreatedAt) }},
		"name":       {SQL: "name", Type: page.Text, Of: func(c Certificate) string { return c.Name }},
		"not_after":  {SQL: "coalesce(not_after, 'infinity')", Type: page.Time, Of: func(c Certificate) string { return page.TimeOrLast(c.NotAfter) }},
	},
}

// List answers a page of certificates.
func List(ctx context.Context, q db.Querier, f Filter, p page.Request) (page.Result[Certificate], error) {
	args := pgx.NamedArgs{}
	return db.List(ctx, q, keys, p, db.Source{Columns: columns, From: "certificates", Where: f.where(args)}, args)
}

// Matching answers the ids of at most limit certificates that match, oldest first.
func Matching(ctx context.Context, q db.Querier, f Filter, limit int) ([]id.Certificate, error) {
	args := pgx.NamedArgs{"n": limit}
	rows, err := q.Query(ctx, `SELECT id FROM certificates WHERE `+f.where(args)+` ORDER BY created_at, id LIMIT @n`, args)
	if err != nil {
		return nil, db.Fault(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[id.Certificate])
	return out, db.Fault(err)
}

// Get answers one certificate.
func Get(ctx context.Context, q db.Querier, c id.Certificate) (Certificate, error) {
	return db.One[Certificate](ctx, q, "certificate", `SELECT `+columns+` FROM certificates WHERE id = @id`, pgx.NamedArgs{"id": c})
}

// Lock is Get with the row locked until the transaction ends.
func Lock(ctx context.Context, tx pgx.Tx, c id.Certificate) (Certificate, error) {
	return db.One[Certificate](ctx, tx, "certificate", `SELECT `+columns+` FROM certificates WHERE id = @id FOR UPDATE`, pgx.NamedArgs{"id": c})
}

// Insert stores a new certificate. References that do not exist are faults naming the field.
func Insert(ctx context.Context, q db.Querier, c Certificate) (Certificate, error) {
	out, err := db.One[Certificate](ctx, q, "certificate", `INSERT INTO certificates (id, name, common_name, sans, issuer_id, profile_id, renewal_policy_id,
			owner_id, team_id, environment, tags, key_custody, agent_id, auto_renew, created_by)
		VALUES (@id, @name, @cn, @sans, @issuer, @profile, @policy, @owner, @team, @environment, @tags, @custody, @agent, @auto, @by) RETURNING `+columns,
		pgx.NamedArgs{"id": c.ID, "name": c.Name, "cn": c.CommonName, "sans": c.SANs, "issuer": c.IssuerID, "profile": c.ProfileID, "policy": c.RenewalPolicyID,
			"owner": c.OwnerID, "team": c.TeamID, "environment": c.Environment, "tags": tagsOrEmpty(c.Tags), "custody": c.KeyCustody, "agent": c.AgentID,
			"auto": c.AutoRenew, "by": c.CreatedBy})
	return out, Reference(err)
}

func tagsOrEmpty(t map[string]string) map[string]string {
	if t == nil {
		return map[string]string{}
	}
	return t
}

// Reference turns a violated foreign key of certificates into a fault that names the field.
func Reference(err error) error {
	field := map[string]string{
		"certificates_issuer_id_fkey": "issuer_id", "certificates_profile_id_fkey": "profile_id", "certificates_renewal_policy_id_fkey": "renewal_policy_id",
		"certificates_owner_id_fkey": "owner_id", "certificates_team_id_fkey": "team_id",
	}[db.Constraint(err)]
	if field == "" {
		return err
	}
	return fault.BadField(field, "names something that does not exist")
}

// SetOpenJob marks the open issuance and why it was made. It answers false when another issuance is open.
func SetOpenJob(ctx context.Context, q db.Querier, c id.Certificate, j id.Job, reason string) (bool, error) {
	n, err := db.Exec(ctx, q, `UPDATE certificates SET open_job_id = @job, renew_reason = @reason, updated_at = now() WHERE id = @id AND open_job_id IS NULL AND archived_at IS NULL`,
		pgx.NamedArgs{"id": c, "job": j, "reason": reason})
	return n == 1, err
}

// Archive ends the management of a certificate that has no open issuance. Archiving twice changes nothing.
func Archive(ctx context.Context, q db.Querier, c id.Certificate) (Certificate, error) {
	return db.One[Certificate](ctx, q, "certificate", `UPDATE certificates SET archived_at = coalesce(archived_at, now()), updated_at = now() WHERE id = @id AND open_job_id IS NULL RETURNING `+columns, pgx.NamedArgs{"id": c})
}

// Change is an update of what may change; nil fields stay.
type Change struct {
	Name            *string
	OwnerID         *id.Owner
	TeamID          *id.Team
	Environment     *string
	Tags            map[string]string
	RenewalPolicyID *id.RenewalPolicy
	AutoRenew       *bool
	RenewAt         *time.Time // recomputed by the caller when the policy changes
}

// Update applies a change.
func Update(ctx context.Context, q db.Querier, c id.Certificate, ch Change) (Certificate, error) {
	out, err := db.One[Certificate](ctx, q, "certificate", `UPDATE certificates SET name = coalesce(@name, name),
			owner_id = CASE WHEN @set_owner THEN @owner::uuid ELSE owner_id END, team_id = CASE WHEN @set_team THEN @team::uuid ELSE team_id END,
			environment = coalesce(@environment, environment), tags = coalesce(@tags, tags), renewal_policy_id = coalesce(@policy, renewal_policy_id),
			auto_renew = coalesce(@auto, auto_renew), renew_at = coalesce(@renew_at, renew_at), updated_at = now()
		WHERE id = @id AND archived_at IS NULL RETURNING `+columns,
		pgx.NamedArgs{"id": c, "name": ch.Name, "set_owner": ch.OwnerID != nil, "owner": ch.OwnerID, "set_team": ch.TeamID != nil, "team": ch.TeamID,
			"environment": ch.Environment, "tags": ch.Tags, "policy": ch.RenewalPolicyID, "auto": ch.AutoRenew, "renew_at": ch.RenewAt})
	return out, Reference(err)
}

// CountByStatus answers how many certificates have each status, in one pass; statuses without certificates are 0.
func CountByStatus(ctx context.Context, q db.Querier) (map[Status]int64, error) {
	type row struct {
		Status Status
		N      int64
	}
	rows, err := db.Many[row](ctx, q, `SELECT `+StatusSQL+` AS status, count(*) AS n FROM certificates GROUP BY 1`)
	out := make(map[Status]int64, len(Statuses))
	for _, s := range Statuses {
		out[s] = 0
	}
	for _, r := range rows {
		out[r.Status] = r.N
	}
	return out, err
}

// SetTag narrows the filter to certificates with a tag, given as name:value; "" does not narrow.
func (f *Filter) SetTag(s string) error {
	if s == "" {
		return nil
	}
	name, value, ok := strings.Cut(s, ":")
	if !ok || name == "" {
		return fault.BadField("tag", "must be name:value")
	}
	f.Tags = map[string]string{name: value}
	return nil
}
