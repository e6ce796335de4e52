package cli

import (
	"fmt"
	"iter"
	"net/url"

	"certctl/shared/client"

	"github.com/spf13/cobra"
)

var targetView = view[client.Target]{
	id: func(t client.Target) string { return t.ID },
	columns: []column[client.Target]{
		{"NAME", func(_ *printer, t client.Target) string { return t.Name }},
		{"TYPE", func(_ *printer, t client.Target) string { return t.Type }},
		{"RUN-BY", func(_ *printer, t client.Target) string { return first(string(t.AgentID), "worker") }},
		{"VERIFY", func(_ *printer, t client.Target) string {
			if t.Verify == nil {
				return "-"
			}
			return t.Verify.Address
		}},
		{"ID", func(_ *printer, t client.Target) string { return t.ID }},
	},
}

func (a *App) targetCommand() *cobra.Command {
	list := listVerb(a, lister[client.Target]{noun: "targets", view: targetView, filters: []filter{ref(agents, "agent", "agent_id")}, example: "  certctl target list\n  certctl target list --agent web1",
		all: func(s *session, q url.Values) iter.Seq2[client.Target, error] { return s.c.Targets.All(s.ctx, q) }})
	agents.completeFlag(a, list, "agent")
	get := getVerb(a, targets, targetView, "  certctl target get web1-nginx", func(s *session, id string) (client.Target, error) { return s.c.Targets.Get(s.ctx, id) },
		func(s *session, t client.Target) []detail {
			d := []detail{{"agent", nameOf(s, t.AgentID, s.c.Agents.Get, agents.name)}, {"config", string(t.Config)}, {"last test", string(t.LastTest)}}
			if t.Verify != nil {
				d = append(d, detail{"server name", text(t.Verify.ServerName)}, detail{"verified by", t.Verify.From})
			}
			return d
		})
	archive := archiveVerb(a, targets, "  certctl target archive web1-nginx --yes", func(s *session, id string) error { return s.c.Targets.Archive(s.ctx, id) })
	archive.Long = "Archives targets: nothing is deployed there any more. What they serve stays as it is."
	return group("target", "Targets: where certificates are served", []string{"targets"}, list, get, a.targetCreate(), a.targetUpdate(), archive)
}

// verifyFlags put what was given over how a target is verified.
func verifyFlags(c *cobra.Command) func(old *client.Verify) (*client.Verify, error) {
	f := c.Flags()
	address := f.String("verify", "", "host:port to complete a TLS handshake with after a deployment; \"\" for none")
	name := f.String("server-name", "", "name for SNI and for the check (default: the first DNS name)")
	from := f.String("verify-from", "", "who looks: agent (default) or worker")
	return func(old *client.Verify) (*client.Verify, error) {
		v := client.Verify{}
		if old != nil {
			v = *old
		}
		over(c, "verify", *address, &v.Address)
		over(c, "server-name", *name, &v.ServerName)
		over(c, "verify-from", *from, &v.From)
		if v.Address == "" && (f.Changed("server-name") || f.Changed("verify-from")) {
			return nil, usage("--server-name and --verify-from belong to --verify")
		}
		if v.Address == "" {
			return nil, nil
		}
		return &v, nil
	}
}

func (a *App) targetCreate() *cobra.Command {
	var x settings
	c := &cobra.Command{Use: "create NAME", Short: "Create a target", Args: between(1, 1),
		Long: `Creates a place where certificates are served. With --agent that agent deploys, else the server's worker does. Settings come
from --config, --set and --set-file:

  nginx  cert_path, key_path, reload_command; chain_path and validate_command if wanted
  files  cert_path, key_path; chain_path, fullchain, cert_mode, key_mode, owner and hook if wanted`,
		Example: "  certctl target create web1-nginx --type nginx --agent web1 --set cert_path=/etc/nginx/tls/www.crt --set key_path=/etc/nginx/tls/www.key \\\n" +
			"    --set \"validate_command=nginx -t\" --set \"reload_command=nginx -s reload\" --verify 127.0.0.1:443\n" +
			"  certctl target create drop --type files --set cert_path=/srv/tls/www.crt --set key_path=/srv/tls/www.key"}
	x.flags(c)
	kind := c.Flags().String("type", "", "the kind of server: nginx, files")
	agent := c.Flags().String("agent", "", "agent that deploys (name or id; default: the worker)")
	_ = c.MarkFlagRequired("type")
	agents.completeFlag(a, c, "agent")
	verify := verifyFlags(c)
	c.RunE = a.run(func(s *session, args []string) error {
		in := client.NewTarget{Name: args[0], Type: *kind}
		var err error
		if in.Config, err = x.over(s, nil); err != nil {
			return err
		}
		if in.Verify, err = verify(nil); err != nil {
			return err
		}
		if err := agents.into(s, *agent, &in.AgentID); err != nil {
			return err
		}
		t, err := s.c.Targets.Create(s.ctx, in)
		if err != nil {
			return err
		}
		return one(s.printer, targetView, t)
	})
	return c
}

func (a *App) targetUpdate() *cobra.Command {
	var x settings
	c := &cobra.Command{Use: "update REF", Short: "Change a target's settings", Args: between(1, 1), ValidArgsFunction: targets.complete(a, false),
		Long: "Changes what is given and leaves the rest. Type and agent are fixed: they decided who holds keys.", Example: "  certctl target update drop --set cert_mode=0644 --verify 127.0.0.1:8443"}
	x.flags(c)
	name := c.Flags().String("name", "", "another name")
	unset := c.Flags().StringArray("unset", nil, "take this setting off; may be repeated")
	verify := verifyFlags(c)
	c.RunE = a.run(func(s *session, args []string) error {
		id, err := targets.idOf(s, args[0])
		if err != nil {
			return err
		}
		old, err := s.c.Targets.Get(s.ctx, id)
		if err != nil {
			return err
		}
		in := client.TargetSettings{Name: old.Name}
		over(c, "name", *name, &in.Name)
		base, err := object(old.Config)
		if err != nil {
			return err
		}
		for _, k := range *unset {
			delete(base, k)
		}
		if in.Config, err = x.over(s, base); err != nil {
			return err
		}
		if in.Verify, err = verify(old.Verify.Fields()); err != nil {
			return err
		}
		t, err := s.c.Targets.Replace(s.ctx, id, in)
		if err != nil {
			return err
		}
		return one(s.printer, targetView, t)
	})
	return c
}

var agentView = view[client.Agent]{
	id: func(v client.Agent) string { return v.ID },
	columns: []column[client.Agent]{
		{"NAME", func(_ *printer, v client.Agent) string { return v.Name }},
		{"STATUS", func(_ *printer, v client.Agent) string { return v.Status }},
		{"HOST", func(_ *printer, v client.Agent) string { return v.Hostname }},
		{"SEEN", func(p *printer, v client.Agent) string { return p.when(v.LastSeenAt) }},
		{"VERSION", func(_ *printer, v client.Agent) string { return orDash(v.Version) }},
		{"ID", func(_ *printer, v client.Agent) string { return v.ID }},
	},
}

func (a *App) agentCommand() *cobra.Command {
	list := listVerb(a, lister[client.Agent]{noun: "agents", view: agentView, filters: []filter{{flag: "retired", query: "retired", help: "list retired agents instead", yes: true}}, example: "  certctl agent list\n  certctl agent list --retired",
		all: func(s *session, q url.Values) iter.Seq2[client.Agent, error] { return s.c.Agents.All(s.ctx, q) }})
	get := getVerb(a, agents, agentView, "  certctl agent get web1", func(s *session, id string) (client.Agent, error) { return s.c.Agents.Get(s.ctx, id) },
		func(s *session, v client.Agent) []detail {
			return []detail{{"platform", v.OS + "/" + v.Arch}, {"polls every", fmt.Sprintf("%ds", v.PollSeconds)}, {"offline since", s.moment(v.OfflineSince)}, {"enrolled", s.moment(&v.CreatedAt)}, {"retired", s.moment(v.RetiredAt)}}
		})
	return group("agent", "Agents on hosts: enrollment tokens, state, retirement", []string{"agents"}, list, get, a.agentToken(), a.agentRetire())
}

func (a *App) agentToken() *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "Make an enrollment token", Args: between(0, 0),
		Long:    "Makes a single-use token with which one agent enrolls. It is printed once, on stdout.",
		Example: "  certctl agent token --name web1 --ttl 15m\n  certctl agent token --secret-file enroll.token"}
	name := c.Flags().String("name", "", "what it is for")
	ttl := c.Flags().String("ttl", "", "how long it can be used, e.g. 15m (default 1h, at most 7d)")
	file := secretFileFlag(c)
	c.RunE = a.run(func(s *session, _ []string) error {
		t, err := s.c.Agents.Token(s.ctx, client.NewToken{Name: *name, TTL: *ttl})
		if err != nil {
			return err
		}
		s.note("It can be used once, until %s. On the host: CERTCTL_URL=%s CERTCTL_ENROLL_TOKEN=<token> certctl-agent run", t.ExpiresAt.UTC().Format("2006-01-02 15:04 UTC"), s.conn.url)
		return s.showSecret(t, t.ID, t.Token, *file)
	})
	return c
}

func (a *App) agentRetire() *cobra.Command {
	return yesFlag(&cobra.Command{Use: "retire REF…", Short: "Retire agents", Args: between(1, -1), ValidArgsFunction: agents.complete(a, true),
		Long: "Ends agents at once: their credentials are refused on every instance. It cannot be taken back; the host can enroll again as a new agent.", Example: "  certctl agent retire web1 --yes",
		RunE: a.run(func(s *session, args []string) error {
			ids, err := agents.idsOf(s, args)
			if err != nil {
				return err
			}
			if err := s.ask("This retires the agents for good."); err != nil {
				return err
			}
			return s.each(ids, func(id string) error {
				v, err := s.c.Agents.Retire(s.ctx, id)
				if err != nil {
					return err
				}
				return one(s.printer, agentView, v)
			})
		})})
}
