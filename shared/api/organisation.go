package api

import (
	"context"
	"net/http"
	"time"

	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/endpoint"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/org"

	"github.com/jackc/pgx/v5"
)

// Team is a group of people.
type Team struct {
	ID        id.Team   `json:"id"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
}

// Owner is who answers for certificates.
type Owner struct {
	ID        id.Owner  `json:"id"`
	Name      string    `json:"name"`
	Email     *string   `json:"email"`
	TeamID    id.Team   `json:"team_id"`
	CreatedAt time.Time `json:"created_at"`
}

type (
	teamInput struct {
		ID id.Team `path:"id"`
	}
	teamCreate struct {
		Body struct {
			Name string `json:"name" minLength:"1" maxLength:"200"`
		}
	}
	teamOutput  struct{ Body Team }
	teamCreated struct {
		Location string `header:"Location"`
		Body     Team
	}
	ownerInput struct {
		ID id.Owner `path:"id"`
	}
	ownerCreate struct {
		Body struct {
			Name   string  `json:"name" minLength:"1" maxLength:"200"`
			Email  *string `json:"email,omitempty" maxLength:"320"`
			TeamID id.Team `json:"team_id,omitzero"`
		}
	}
	ownerOutput  struct{ Body Owner }
	ownerCreated struct {
		Location string `header:"Location"`
		Body     Owner
	}
)

func (a *API) organisation() {
	tag, conflict := "Organisation", []fault.Kind{fault.Conflict}
	endpoint.Write(a.rt, "POST /api/v1/teams", auth.Administer, endpoint.Doc{ID: "createTeam", Tag: tag, Summary: "Create a team", Status: http.StatusCreated, Errors: conflict},
		func(ctx context.Context, tx pgx.Tx, in *teamCreate) (*teamCreated, error) {
			t, err := org.InsertTeam(ctx, tx, in.Body.Name)
			if err != nil {
				return nil, taken(err, "teams_name", "team")
			}
			return &teamCreated{"/api/v1/teams/" + t.ID.String(), Team(t)}, told(ctx, tx, "team.created", "team", t.ID.String(), t.Name)
		})
	endpoint.Read(a.rt, "GET /api/v1/teams", auth.Read, endpoint.Doc{ID: "listTeams", Tag: tag, Summary: "List teams"},
		func(ctx context.Context, q db.Querier, in *endpoint.ListInput) (*endpoint.List[Team], error) {
			res, err := org.ListTeams(ctx, q, in.Request())
			if err != nil {
				return nil, err
			}
			return endpoint.ListOf(in, res, func(t org.Team) Team { return Team(t) }), nil
		})
	endpoint.Read(a.rt, "GET /api/v1/teams/{id}", auth.Read, endpoint.Doc{ID: "getTeam", Tag: tag, Summary: "Get a team"},
		func(ctx context.Context, q db.Querier, in *teamInput) (*teamOutput, error) {
			t, err := org.GetTeam(ctx, q, in.ID)
			return &teamOutput{Team(t)}, err
		})
	endpoint.Write(a.rt, "POST /api/v1/owners", auth.Administer, endpoint.Doc{ID: "createOwner", Tag: tag, Summary: "Create an owner", Status: http.StatusCreated, Errors: conflict},
		func(ctx context.Context, tx pgx.Tx, in *ownerCreate) (*ownerCreated, error) {
			o, err := org.InsertOwner(ctx, tx, org.Owner{Name: in.Body.Name, Email: in.Body.Email, TeamID: in.Body.TeamID})
			if err != nil {
				return nil, taken(err, "owners_name", "owner")
			}
			return &ownerCreated{"/api/v1/owners/" + o.ID.String(), Owner(o)}, told(ctx, tx, "owner.created", "owner", o.ID.String(), o.Name)
		})
	endpoint.Read(a.rt, "GET /api/v1/owners", auth.Read, endpoint.Doc{ID: "listOwners", Tag: tag, Summary: "List owners"},
		func(ctx context.Context, q db.Querier, in *endpoint.ListInput) (*endpoint.List[Owner], error) {
			res, err := org.ListOwners(ctx, q, in.Request())
			if err != nil {
				return nil, err
			}
			return endpoint.ListOf(in, res, func(o org.Owner) Owner { return Owner(o) }), nil
		})
	endpoint.Read(a.rt, "GET /api/v1/owners/{id}", auth.Read, endpoint.Doc{ID: "getOwner", Tag: tag, Summary: "Get an owner"},
		func(ctx context.Context, q db.Querier, in *ownerInput) (*ownerOutput, error) {
			o, err := org.GetOwner(ctx, q, in.ID)
			return &ownerOutput{Owner(o)}, err
		})
}
