package cli

import (
	"fmt"
	"net/url"
	"path/filepath"
	"slices"

	"certctl/shared/client"

	"github.com/spf13/cobra"
)

func (a *App) loginCommand() *cobra.Command {
	c := &cobra.Command{Use: "login", Short: "Store a server and a key as a context", Args: between(0, 0),
		Long: `Asks the server who the key belongs to, and stores both as a context, which becomes the current one. The key is asked for
without an echo, or read from stdin, or stays in the file named by --key-file; it is never an argument. The contexts are in
certctl/config.yaml of the XDG config folder, readable by their owner only.`,
		Example: "  certctl login --url https://certctl.example.com --name prod < key.txt\n  certctl login --url https://certctl.example.com --key-file ~/.certctl.key"}
	name := c.Flags().String("name", "", "name of the context (default: the server's host)")
	c.RunE = a.offline(func(s *session, _ []string) error {
		at := first(a.flags.url, a.Getenv("CERTCTL_URL"), localURL)
		u, err := url.Parse(at)
		if err != nil || u.Host == "" {
			return usage("--url must look like https://certctl.example.com")
		}
		x := storedContext{Name: first(*name, u.Hostname()), URL: at, InsecureHTTP: a.flags.insecureHTTP}
		conn := connection{url: at, insecureHTTP: x.InsecureHTTP}
		if x.CAFile, err = absolute(first(a.flags.caFile, a.Getenv("CERTCTL_CA_FILE"))); err != nil {
			return err
		}
		if x.KeyFile, err = absolute(a.flags.keyFile); err != nil {
			return err
		}
		conn.caFile = x.CAFile
		if conn.key, err = s.loginKey(x); err != nil {
			return err
		}
		if x.KeyFile == "" {
			x.Key = conn.key
		}
		return s.store(conn, x)
	})
	return c
}

// absolute keeps a path good from other folders; "" stays.
func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	return filepath.Abs(path)
}

// loginKey is the key of a new context: from its file, from a person, or from stdin.
func (s *session) loginKey(x storedContext) (string, error) {
	if x.KeyFile != "" {
		return readKey(x.KeyFile)
	}
	var key string
	var err error
	if isTerminal(s.cmd.InOrStdin()) {
		key, err = s.askSecret("API key for " + x.URL)
	} else {
		key, err = readLine(s.cmd.InOrStdin())
	}
	if err != nil || key == "" {
		return "", usage("no key was given: type it, or send it to stdin, or name its file with --key-file")
	}
	return key, nil
}

// store keeps a context whose key the server accepts.
func (s *session) store(conn connection, x storedContext) error {
	c, err := conn.client(s.app.Version)
	if err != nil {
		return err
	}
	me, err := c.Me(s.ctx)
	if err != nil {
		return err
	}
	file, err := s.app.loadContexts()
	if err != nil {
		return err
	}
	if old := file.find(x.Name); old != nil {
		*old = x
	} else {
		file.Contexts = append(file.Contexts, x)
	}
	file.Current = x.Name
	if err := file.save(); err != nil {
		return err
	}
	s.note("Logged in to %s as %s (%s). Context %s is the current one.", x.URL, clean(me.Principal), clean(me.Role), x.Name)
	return nil
}

var contextView = view[storedContext]{
	id: func(c storedContext) string { return c.Name },
	columns: []column[storedContext]{
		{"CURRENT", func(_ *printer, c storedContext) string {
			if c.Current {
				return "*"
			}
			return ""
		}},
		{"NAME", func(_ *printer, c storedContext) string { return c.Name }},
		{"URL", func(_ *printer, c storedContext) string { return c.URL }},
		{"KEY", func(_ *printer, c storedContext) string {
			switch {
			case c.KeyFile != "":
				return c.KeyFile
			case c.Key != "":
				return "stored"
			}
			return "-"
		}},
	},
}

func (a *App) contextCommand() *cobra.Command {
	return group("context", "Contexts: servers that are known by a name", []string{"contexts", "ctx"}, a.contextList(), a.contextCurrent(), a.contextUse(), a.contextSet(), a.contextDelete())
}

// withContexts makes a RunE of a function over the file.
func (a *App) withContexts(f func(s *session, file *contexts, args []string) error) func(*cobra.Command, []string) error {
	return a.offline(func(s *session, args []string) error {
		file, err := a.loadContexts()
		if err != nil {
			return err
		}
		return f(s, file, args)
	})
}

func (a *App) completeContexts() cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		file, err := a.loadContexts()
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return file.names(), cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *App) contextList() *cobra.Command {
	return &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List contexts", Args: between(0, 0), Example: "  certctl context list", RunE: a.withContexts(func(s *session, file *contexts, _ []string) error {
		rows := slices.Clone(file.Contexts)
		for i := range rows {
			rows[i].Current = rows[i].Name == file.Current
		}
		return list(s.printer, contextView, rows)
	})}
}

func (a *App) contextCurrent() *cobra.Command {
	return &cobra.Command{Use: "current", Short: "Print the current context's name", Args: between(0, 0), Example: "  certctl context current", RunE: a.withContexts(func(s *session, file *contexts, _ []string) error {
		if file.find(file.Current) == nil {
			return fail(codeNotFound, "certctl login", "there is no current context")
		}
		_, err := fmt.Fprintln(s.out, file.Current)
		return err
	})}
}

func (a *App) contextUse() *cobra.Command {
	return &cobra.Command{Use: "use NAME", Short: "Make a context the current one", Args: between(1, 1), ValidArgsFunction: a.completeContexts(), Example: "  certctl context use prod",
		RunE: a.withContexts(func(_ *session, file *contexts, args []string) error {
			if _, err := file.mustFind(args[0]); err != nil {
				return err
			}
			file.Current = args[0]
			return file.save()
		})}
}

func (a *App) contextSet() *cobra.Command {
	return &cobra.Command{Use: "set NAME", Short: "Make or change a context without asking its server", Args: between(1, 1), ValidArgsFunction: a.completeContexts(),
		Long:    "Stores what --url, --key-file, --ca-file and --insecure-http say. To store a key itself use “certctl login”.",
		Example: "  certctl context set prod --url https://certctl.example.com --key-file ~/.certctl.key",
		RunE: a.withContexts(func(s *session, file *contexts, args []string) error {
			x := storedContext{Name: args[0]}
			old := file.find(args[0])
			if old != nil {
				x = *old
			}
			if err := a.overContext(s.cmd, &x); err != nil {
				return err
			}
			if x.URL == "" {
				return usage("a new context needs --url")
			}
			if old != nil {
				*old = x
			} else {
				file.Contexts = append(file.Contexts, x)
			}
			file.Current = first(file.Current, x.Name)
			return file.save()
		})}
}

// overContext puts the flags over a context. A key belongs to the server that it was stored for, so another server drops it.
func (a *App) overContext(c *cobra.Command, x *storedContext) (err error) {
	if c.Flags().Changed("url") {
		if _, err := client.New(client.Config{URL: a.flags.url}); err != nil {
			return usage("%s", err)
		}
		if !sameOrigin(a.flags.url, x.URL) {
			x.Key, x.KeyFile = "", ""
		}
		x.URL = a.flags.url
	}
	if c.Flags().Changed("key-file") {
		x.Key = ""
		if x.KeyFile, err = absolute(a.flags.keyFile); err != nil {
			return err
		}
	}
	if c.Flags().Changed("ca-file") {
		if x.CAFile, err = absolute(a.flags.caFile); err != nil {
			return err
		}
	}
	over(c, "insecure-http", a.flags.insecureHTTP, &x.InsecureHTTP)
	return nil
}

func (a *App) contextDelete() *cobra.Command {
	return &cobra.Command{Use: "delete NAME", Aliases: []string{"rm"}, Short: "Forget a context and its key", Args: between(1, 1), ValidArgsFunction: a.completeContexts(), Example: "  certctl context delete prod",
		RunE: a.withContexts(func(_ *session, file *contexts, args []string) error {
			if _, err := file.mustFind(args[0]); err != nil {
				return err
			}
			file.Contexts = slices.DeleteFunc(file.Contexts, func(x storedContext) bool { return x.Name == args[0] })
			if file.Current == args[0] {
				file.Current = ""
			}
			return file.save()
		})}
}
