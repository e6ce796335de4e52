package org_test

import (
	"strings"
	"testing"

	"certctl/shared/dbtest"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/org"
	"certctl/shared/page"
)

func TestTeamsAndOwnersAreStoredListedAndUnique(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	name, mail := id.New[id.Team]().String(), "o@example.com"
	team, err := org.InsertTeam(t.Context(), tx, name)
	if err != nil {
		t.Fatal(err)
	}
	owner, err := org.InsertOwner(t.Context(), tx, org.Owner{Name: name, Email: &mail, TeamID: team.ID})
	if err != nil || owner.TeamID != team.ID || *owner.Email != mail {
		t.Fatalf("%+v, %v", owner, err)
	}
	if got, err := org.GetTeam(t.Context(), tx, team.ID); err != nil || got != team {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := org.GetOwner(t.Context(), tx, owner.ID); err != nil || got.ID != owner.ID {
		t.Errorf("%+v, %v", got, err)
	}
	teams, err := org.ListTeams(t.Context(), tx, page.Request{})
	if err != nil || len(teams.Rows) != 1 {
		t.Errorf("%d teams, %v", len(teams.Rows), err)
	}
	owners, err := org.ListOwners(t.Context(), tx, page.Request{})
	if err != nil || len(owners.Rows) != 1 {
		t.Errorf("%d owners, %v", len(owners.Rows), err)
	}
	if _, err := org.GetTeam(t.Context(), tx, id.New[id.Team]()); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if _, err := org.InsertTeam(t.Context(), tx, strings.ToUpper(name)); !fault.Is(err, fault.Conflict) {
		t.Errorf("the same name in another case: %v", err)
	}
}

func TestOwnersNameWhatIsWrong(t *testing.T) {
	t.Parallel()
	for field, o := range map[string]org.Owner{
		"name": {}, "email": {Name: "x", Email: new("Some Body <a@b.c>")}, "team_id": {Name: id.New[id.Owner]().String(), TeamID: id.New[id.Team]()},
	} {
		_, err := org.InsertOwner(t.Context(), dbtest.Tx(t), o)
		if f := fault.As(err); f == nil || f.Kind != fault.Invalid || f.Fields[0].Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}
