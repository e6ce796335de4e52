// Package cli owns the client side of the certctl command line: noun then verb, over the REST API and nothing else. It knows
// how things are named, shown and waited for; what is allowed and what happens is the server's to say.
//
// The surprising rule: stdout carries only the result, so that it can be piped. Progress, warnings, hints and errors go to
// stderr, and the exit code says how it ended (see exitCodes).
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"certctl/shared/client"

	"github.com/spf13/cobra"
)

// App makes the commands.
type App struct {
	Version string
	// Direct makes an API key in the database named by CERTCTL_DATABASE_URL, without a server; nil: not offered.
	Direct func(ctx context.Context, name, principal, role string) (secret string, err error)
	// Getenv reads the environment; nil is os.Getenv.
	Getenv func(string) string

	flags flags
}

// flags are what every command takes.
type flags struct {
	context, url, keyFile, caFile, output string
	insecureHTTP, noHeaders               bool
	timeout                               time.Duration
}

// Group is the id of the commands' group in the root's help; Title is its heading.
const (
	Group = "client"
	Title = "Commands:"
)

// Attach puts all commands and help topics of this package under a root command.
func (a *App) Attach(root *cobra.Command) {
	if !root.ContainsGroup(Group) {
		root.AddGroup(&cobra.Group{ID: Group, Title: Title})
	}
	for _, c := range a.Commands() {
		c.GroupID = Group
		root.AddCommand(c)
	}
	root.AddCommand(exitCodesTopic(), environmentTopic())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage("%s", err) })
}

// Commands are the commands, one for each noun and a few that stand alone.
func (a *App) Commands() []*cobra.Command {
	if a.Getenv == nil {
		a.Getenv = os.Getenv
	}
	all := []*cobra.Command{a.certCommand(), a.jobCommand(), a.issuerCommand(), a.profileCommand(), a.policyCommand(), a.targetCommand(), a.agentCommand(),
		a.keyCommand(), a.teamCommand(), a.ownerCommand(), a.auditCommand(), a.statsCommand(), a.contextCommand(), a.loginCommand(), a.whoamiCommand(), a.openCommand()}
	for _, c := range all {
		a.common(c)
	}
	return all
}

func (a *App) common(c *cobra.Command) {
	f := c.PersistentFlags()
	f.StringVar(&a.flags.context, "context", "", "the context to use (CERTCTL_CONTEXT)")
	f.StringVar(&a.flags.url, "url", "", "the server's URL (CERTCTL_URL)")
	f.StringVar(&a.flags.keyFile, "key-file", "", "file with the API key (CERTCTL_KEY_FILE, or the key in CERTCTL_KEY)")
	f.StringVar(&a.flags.caFile, "ca-file", "", "PEM file with the CA that the server's certificate is checked against (CERTCTL_CA_FILE)")
	f.BoolVar(&a.flags.insecureHTTP, "insecure-http", false, "send the key over plain HTTP to a host that is not this one")
	f.StringVarP(&a.flags.output, "output", "o", "table", "table, json, yaml or name")
	f.BoolVar(&a.flags.noHeaders, "no-headers", false, "tables without the line of headings")
	f.DurationVar(&a.flags.timeout, "timeout", 0, "give up after this time, e.g. 90s (default: never)")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage("%s", err) })
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml", "name"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("context", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		file, err := a.loadContexts()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return file.names(), cobra.ShellCompDirectiveNoFileComp
	})
}

// session is one run of a command.
type session struct {
	*printer
	app  *App
	ctx  context.Context
	cmd  *cobra.Command
	c    *client.Client
	conn connection
}

// run makes a RunE of a function that talks to the server.
func (a *App) run(f func(s *session, args []string) error) func(*cobra.Command, []string) error {
	return a.offline(func(s *session, args []string) error {
		conn, err := a.connection()
		if err != nil {
			return err
		}
		if conn.warning != "" {
			s.note("%s", conn.warning)
		}
		s.conn = conn
		if s.c, err = conn.client(a.Version); err != nil {
			return err
		}
		return f(s, args)
	})
}

// offline makes a RunE of a function that needs no server.
func (a *App) offline(f func(s *session, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		p, err := a.printer(cmd)
		if err != nil {
			return err
		}
		ctx := cmd.Context()
		if a.flags.timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, a.flags.timeout)
			defer cancel()
		}
		return f(&session{printer: p, app: a, ctx: ctx, cmd: cmd}, args)
	}
}

// group is a noun: its verbs, and help when it is called alone.
func group(use, short string, aliases []string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Aliases: aliases, Args: cobra.ArbitraryArgs, RunE: func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return usage("unknown verb %q: %s knows %s", args[0], cmd.CommandPath(), strings.Join(verbNames(cmd), ", "))
	}}
	c.AddCommand(verbs...)
	return c
}

func verbNames(c *cobra.Command) []string {
	var out []string
	for _, v := range c.Commands() {
		if v.IsAvailableCommand() {
			out = append(out, v.Name())
		}
	}
	return out
}

// between is cobra.RangeArgs with an error that is the caller's own; most < 0 is without bound.
func between(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		return usage("%s: got %d arguments; usage: %s", cmd.CommandPath(), len(args), cmd.UseLine())
	}
}

// Main runs a root command that has the commands of this package attached, prints how it failed, and answers the exit code.
func Main(ctx context.Context, root *cobra.Command) int {
	root.SilenceErrors, root.SilenceUsage = true, true
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return codeOK
	}
	if strings.HasPrefix(err.Error(), "unknown command ") || strings.HasPrefix(err.Error(), "required flag") { // cobra has no types for these
		err = usage("%s", err)
	}
	report(root.ErrOrStderr(), cmd, err)
	return code(err)
}

// ask puts a question to a person; without one (stdin is no terminal, or --yes) the answer is yes.
func (s *session) ask(question string) error {
	if yes, err := s.cmd.Flags().GetBool("yes"); err == nil && yes || !isTerminal(s.cmd.InOrStdin()) {
		return nil
	}
	fmt.Fprintf(s.err, "%s Type yes to go on: ", question)
	line, err := readLine(s.cmd.InOrStdin())
	if err != nil || !slices.Contains([]string{"yes", "y"}, strings.ToLower(line)) {
		return errors.New("nothing was done")
	}
	return nil
}

func yesFlag(c *cobra.Command) *cobra.Command {
	c.Flags().BoolP("yes", "y", false, "do not ask")
	return c
}

// readLine reads to the end of a line, octet by octet so that nothing behind it is lost.
func readLine(r io.Reader) (string, error) {
	var line []byte
	b := make([]byte, 1)
	for len(line) < 4096 {
		n, err := r.Read(b)
		if n == 1 && b[0] == '\n' {
			break
		}
		line = append(line, b[:n]...)
		if err == io.EOF && len(line) > 0 {
			break
		}
		if err != nil {
			return "", err
		}
	}
	return strings.TrimSuffix(string(line), "\r"), nil
}
