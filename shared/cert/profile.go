package cert

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"
	"certctl/shared/pki"
	"certctl/shared/span"

	"github.com/jackc/pgx/v5"
)

// Profile limits what may be issued.
type Profile struct {
	ID               id.Profile
	Name             string
	KeyAlgorithms    []string      // the first is used for new keys
	MaxTTL           span.Duration `db:"max_ttl_seconds"`
	EKUs             []string
	NamePatterns     []string // empty: any name
	MustStaple       bool
	PublicTLS        bool
	RequiresApproval bool
	KeyCustody       *Custody // nil: decided by the targets
	CreatedAt        time.Time
	UpdatedAt        time.Time
	ArchivedAt       *time.Time
}

const profileColumns = `id, name, key_algorithms, max_ttl_seconds, ekus, name_patterns, must_staple, public_tls, requires_approval, key_custody, created_at, updated_at, archived_at`

// ShortLived reports whether every certificate of the profile is short-lived.
func (p Profile) ShortLived() bool { return p.MaxTTL.Std() < ShortLived }

// Algorithms are the allowed key algorithms.
func (p Profile) Algorithms() []pki.KeyAlgorithm {
	out := make([]pki.KeyAlgorithm, len(p.KeyAlgorithms))
	for i, a := range p.KeyAlgorithms {
		out[i] = pki.KeyAlgorithm(a)
	}
	return out
}

// Permits answers every name that no pattern of the profile matches, as faults that name the field.
func (p Profile) Permits(n pki.Names) error {
	if len(p.NamePatterns) == 0 {
		return nil
	}
	refused := pki.Unpermitted(p.NamePatterns, n)
	var bad []fault.Field
	if slices.Contains(refused, n.CommonName) && !slices.Contains(n.SANs(), n.CommonName) {
		bad = append(bad, fault.Field{Field: "common_name", Detail: "the profile does not permit this name"})
	}
	for i, name := range n.SANs() {
		if slices.Contains(refused, name) {
			bad = append(bad, fault.Field{Field: fmt.Sprintf("sans[%d]", i), Detail: "the profile does not permit this name"})
		}
	}
	if len(bad) > 0 {
		return fault.BadFields(bad...)
	}
	return nil
}

// Check answers every field that is not acceptable.
func (p Profile) Check() error {
	var bad []fault.Field
	add := func(field, detail string) { bad = append(bad, fault.Field{Field: field, Detail: detail}) }
	if p.Name == "" || utf8.RuneCountInString(p.Name) > 200 {
		add("name", "must have 1 to 200 characters")
	}
	if len(p.KeyAlgorithms) == 0 {
		add("key_algorithms", "must name at least one algorithm")
	}
	for i, a := range p.KeyAlgorithms {
		if _, err := pki.ParseKeyAlgorithm(a); err != nil {
			add(fmt.Sprintf("key_algorithms[%d]", i), "is not one of "+join(pki.KeyAlgorithms()))
		}
	}
	if p.MaxTTL.Std() < time.Minute {
		add("max_ttl", "must be at least 60s")
	}
	if len(p.EKUs) == 0 {
		add("ekus", "must name at least one usage")
	}
	for i, e := range p.EKUs {
		if _, err := pki.ParseEKUs([]string{e}); err != nil {
			add(fmt.Sprintf("ekus[%d]", i), "is not a usage that is offered, e.g. serverAuth or clientAuth")
		}
	}
	for i, s := range p.NamePatterns {
		if pki.CheckPattern(s) != nil {
			add(fmt.Sprintf("name_patterns[%d]", i), "must be a name, *.name (one label), **.name (any depth) or *")
		}
	}
	if p.KeyCustody != nil && *p.KeyCustody != AgentCustody && *p.KeyCustody != ServerCustody {
		add("key_custody", "must be agent, server or null")
	}
	if len(bad) > 0 {
		return fault.BadFields(bad...)
	}
	return nil
}

func join[T ~string](s []T) string {
	var b strings.Builder
	for i, v := range s {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(v))
	}
	return b.String()
}

func (p Profile) args() pgx.NamedArgs {
	return pgx.NamedArgs{"id": p.ID, "name": p.Name, "algs": p.KeyAlgorithms, "ttl": p.MaxTTL, "ekus": p.EKUs, "patterns": orEmpty(p.NamePatterns), "staple": p.MustStaple,
		"public": p.PublicTLS, "approval": p.RequiresApproval, "custody": p.KeyCustody}
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// InsertProfile stores a profile.
func InsertProfile(ctx context.Context, q db.Querier, p Profile) (Profile, error) {
	if err := p.Check(); err != nil {
		return p, err
	}
	return db.One[Profile](ctx, q, "profile", `INSERT INTO profiles (id, name, key_algorithms, max_ttl_seconds, ekus, name_patterns, must_staple, public_tls, requires_approval, key_custody)
		VALUES (@id, @name, @algs, @ttl, @ekus, @patterns, @staple, @public, @approval, @custody) RETURNING `+profileColumns, p.args())
}

// UpdateProfile replaces a profile's settings. What was issued stays as it is.
func UpdateProfile(ctx context.Context, q db.Querier, p Profile) (Profile, error) {
	if err := p.Check(); err != nil {
		return p, err
	}
	return db.One[Profile](ctx, q, "profile", `UPDATE profiles SET name = @name, key_algorithms = @algs, max_ttl_seconds = @ttl, ekus = @ekus, name_patterns = @patterns,
		must_staple = @staple, public_tls = @public, requires_approval = @approval, key_custody = @custody, updated_at = now() WHERE id = @id AND archived_at IS NULL RETURNING `+profileColumns, p.args())
}

// GetProfile answers one profile.
func GetProfile(ctx context.Context, q db.Querier, p id.Profile) (Profile, error) {
	return db.One[Profile](ctx, q, "profile", `SELECT `+profileColumns+` FROM profiles WHERE id = @id`, pgx.NamedArgs{"id": p})
}

// ProfileByName answers the live profile of a name.
func ProfileByName(ctx context.Context, q db.Querier, name string) (Profile, error) {
	return db.One[Profile](ctx, q, "profile", `SELECT `+profileColumns+` FROM profiles WHERE lower(name) = lower(@name) AND archived_at IS NULL`, pgx.NamedArgs{"name": name})
}

var profileKeys = page.Keys[Profile]{
	ID: "id", IDOf: func(p Profile) string { return p.ID.UUID() },
	By: map[string]page.Key[Profile]{"created_at": {SQL: "created_at", Type: page.Time, Of: func(p Profile) string { return page.TimeText(p.CreatedAt) }}},
}

// ListProfiles answers a page of live profiles.
func ListProfiles(ctx context.Context, q db.Querier, p page.Request) (page.Result[Profile], error) {
	return db.List(ctx, q, profileKeys, p, db.Source{Columns: profileColumns, From: "profiles", Where: "archived_at IS NULL"}, pgx.NamedArgs{})
}

// ArchiveProfile retires a profile that no live certificate uses.
func ArchiveProfile(ctx context.Context, q db.Querier, p id.Profile) error {
	return archive(ctx, q, "profile", "profiles", "profile_id", p)
}

// archive retires a row that no live certificate refers to. The table and column are constants of this package.
func archive(ctx context.Context, q db.Querier, what, table, column string, i any) error {
	n, err := db.Exec(ctx, q, `UPDATE `+table+` SET archived_at = now() WHERE id = @id AND archived_at IS NULL
		AND NOT EXISTS (SELECT 1 FROM certificates WHERE `+column+` = @id AND archived_at IS NULL)`, pgx.NamedArgs{"id": i})
	if err != nil || n == 1 {
		return err
	}
	exists, err := db.Scalar[bool](ctx, q, `SELECT EXISTS (SELECT 1 FROM `+table+` WHERE id = $1 AND archived_at IS NULL)`, i)
	if err != nil {
		return err
	}
	if !exists {
		return fault.New(fault.NotFound, "There is no such %s.", what)
	}
	return fault.New(fault.Conflict, "Certificates still use this %s; move or archive them first.", what)
}
