package cli

import (
	"iter"
	"net/url"

	"certctl/shared/client"

	"github.com/spf13/cobra"
)

var teamView = view[client.Team]{
	id: func(t client.Team) string { return t.ID },
	columns: []column[client.Team]{
		{"NAME", func(_ *printer, t client.Team) string { return t.Name }},
		{"AGE", func(p *printer, t client.Team) string { return p.ago(t.CreatedAt) }},
		{"ID", func(_ *printer, t client.Team) string { return t.ID }},
	},
}

func (a *App) teamCommand() *cobra.Command {
	list := listVerb(a, lister[client.Team]{noun: "teams", view: teamView, example: "  certctl team list",
		all: func(s *session, q url.Values) iter.Seq2[client.Team, error] { return s.c.Teams.All(s.ctx, q) }})
	get := getVerb(a, teams, teamView, "  certctl team get web", func(s *session, id string) (client.Team, error) { return s.c.Teams.Get(s.ctx, id) }, nil)
	create := &cobra.Command{Use: "create NAME", Short: "Create a team", Args: between(1, 1), Example: "  certctl team create web",
		RunE: a.run(func(s *session, args []string) error {
			t, err := s.c.Teams.Create(s.ctx, client.NewTeam{Name: args[0]})
			if err != nil {
				return err
			}
			return one(s.printer, teamView, t)
		})}
	return group("team", "Teams", []string{"teams"}, list, get, create)
}

var ownerView = view[client.Owner]{
	id: func(o client.Owner) string { return o.ID },
	columns: []column[client.Owner]{
		{"NAME", func(_ *printer, o client.Owner) string { return o.Name }},
		{"EMAIL", func(_ *printer, o client.Owner) string { return text(o.Email) }},
		{"TEAM", func(_ *printer, o client.Owner) string { return orDash(string(o.TeamID)) }},
		{"ID", func(_ *printer, o client.Owner) string { return o.ID }},
	},
}

func (a *App) ownerCommand() *cobra.Command {
	list := listVerb(a, lister[client.Owner]{noun: "owners", view: ownerView, example: "  certctl owner list",
		all: func(s *session, q url.Values) iter.Seq2[client.Owner, error] { return s.c.Owners.All(s.ctx, q) }})
	get := getVerb(a, owners, ownerView, "  certctl owner get alice", func(s *session, id string) (client.Owner, error) { return s.c.Owners.Get(s.ctx, id) }, nil)
	return group("owner", "Owners: who answers for certificates", []string{"owners"}, list, get, a.ownerCreate())
}

func (a *App) ownerCreate() *cobra.Command {
	c := &cobra.Command{Use: "create NAME", Short: "Create an owner", Args: between(1, 1), Example: "  certctl owner create alice --email alice@example.com --team web"}
	email := c.Flags().String("email", "", "e-mail address")
	team := c.Flags().String("team", "", "team (name or id)")
	teams.completeFlag(a, c, "team")
	c.RunE = a.run(func(s *session, args []string) error {
		in := client.NewOwner{Name: args[0]}
		if *email != "" {
			in.Email = email
		}
		if err := teams.into(s, *team, &in.TeamID); err != nil {
			return err
		}
		o, err := s.c.Owners.Create(s.ctx, in)
		if err != nil {
			return err
		}
		return one(s.printer, ownerView, o)
	})
	return c
}
