// Package org owns teams and owners: whom a certificate belongs to. They are plain references.
package org

import (
	"context"
	"net/mail"
	"time"
	"unicode/utf8"

	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"

	"github.com/jackc/pgx/v5"
)

// Team is a group of people.
type Team struct {
	ID        id.Team
	Name      string
	CreatedAt time.Time
}

// Owner is who answers for certificates.
type Owner struct {
	ID        id.Owner
	Name      string
	Email     *string
	TeamID    id.Team
	CreatedAt time.Time
}

func checkName(name string) error {
	if name == "" || utf8.RuneCountInString(name) > 200 {
		return fault.BadField("name", "must have 1 to 200 characters")
	}
	return nil
}

// InsertTeam stores a team.
func InsertTeam(ctx context.Context, q db.Querier, name string) (Team, error) {
	if err := checkName(name); err != nil {
		return Team{}, err
	}
	return db.One[Team](ctx, q, "team", `INSERT INTO teams (id, name) VALUES (@id, @name) RETURNING id, name, created_at`, pgx.NamedArgs{"id": id.New[id.Team](), "name": name})
}

// GetTeam answers one team.
func GetTeam(ctx context.Context, q db.Querier, t id.Team) (Team, error) {
	return db.One[Team](ctx, q, "team", `SELECT id, name, created_at FROM teams WHERE id = @id`, pgx.NamedArgs{"id": t})
}

var teamKeys = page.Keys[Team]{
	ID: "id", IDOf: func(t Team) string { return t.ID.UUID() },
	By: map[string]page.Key[Team]{"created_at": {SQL: "created_at", Type: page.Time, Of: func(t Team) string { return page.TimeText(t.CreatedAt) }}},
}

// ListTeams answers a page of teams.
func ListTeams(ctx context.Context, q db.Querier, p page.Request) (page.Result[Team], error) {
	return db.List(ctx, q, teamKeys, p, db.Source{Columns: "id, name, created_at", From: "teams", Where: "archived_at IS NULL"}, pgx.NamedArgs{})
}

const ownerColumns = `id, name, email, team_id, created_at`

// InsertOwner stores an owner.
func InsertOwner(ctx context.Context, q db.Querier, o Owner) (Owner, error) {
	if err := checkName(o.Name); err != nil {
		return o, err
	}
	if o.Email != nil {
		if a, err := mail.ParseAddress(*o.Email); err != nil || a.Address != *o.Email {
			return o, fault.BadField("email", "must be a plain e-mail address")
		}
	}
	out, err := db.One[Owner](ctx, q, "owner", `INSERT INTO owners (id, name, email, team_id) VALUES (@id, @name, @email, @team) RETURNING `+ownerColumns,
		pgx.NamedArgs{"id": id.New[id.Owner](), "name": o.Name, "email": o.Email, "team": o.TeamID})
	if db.Constraint(err) == "owners_team_id_fkey" {
		return out, fault.BadField("team_id", "names something that does not exist")
	}
	return out, err
}

// GetOwner answers one owner.
func GetOwner(ctx context.Context, q db.Querier, o id.Owner) (Owner, error) {
	return db.One[Owner](ctx, q, "owner", `SELECT `+ownerColumns+` FROM owners WHERE id = @id`, pgx.NamedArgs{"id": o})
}

var ownerKeys = page.Keys[Owner]{
	ID: "id", IDOf: func(o Owner) string { return o.ID.UUID() },
	By: map[string]page.Key[Owner]{"created_at": {SQL: "created_at", Type: page.Time, Of: func(o Owner) string { return page.TimeText(o.CreatedAt) }}},
}

// ListOwners answers a page of owners.
func ListOwners(ctx context.Context, q db.Querier, p page.Request) (page.Result[Owner], error) {
	return db.List(ctx, q, ownerKeys, p, db.Source{Columns: ownerColumns, From: "owners", Where: "archived_at IS NULL"}, pgx.NamedArgs{})
}
