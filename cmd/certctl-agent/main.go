// Command certctl-agent runs on the hosts that serve certificates. It asks the server for work, makes private keys and
// requests on the host, puts certificates in place, proves that they are served, and reports.
//
// It is one static binary without a database driver. What it does is in shared/agentrun; this file reads the configuration.
// Variables: CERTCTL_URL, CERTCTL_ENROLL_TOKEN, CERTCTL_AGENT_DIR, CERTCTL_AGENT_NAME, CERTCTL_CA_FILE, CERTCTL_AGENT_COMMANDS,
// CERTCTL_AGENT_COMMANDS_FILE, CERTCTL_AGENT_PATHS, CERTCTL_AGENT_COMMAND_TIMEOUT; a flag of the same name wins.
// CERTCTL_ENROLL_TOKEN_FILE names a file with the token, which keeps it out of the process list and the environment.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"certctl/shared/agentrun"
	"certctl/shared/target"
	"certctl/shared/target/files"
	"certctl/shared/target/nginx"
)

// version is set by the build (-ldflags "-X main.version=…").
var version = ""

// drivers are the target types of this program.
var drivers = target.Registry{"nginx": nginx.Open, "files": files.Open}

// errUnwell is the doctor's exit with problems; they are in its table.
var errUnwell = errors.New("there are problems")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		if !errors.Is(err, errUnwell) {
			fmt.Fprintln(os.Stderr, "certctl-agent:", err)
		}
		os.Exit(1)
	}
}

// settings are the flags; what is not given comes from the environment.
type settings struct {
	url, token, tokenFile, dir, name, caFile string
	commands, commandsFile, paths, timeout   string
	once                                     bool
}

func command() *cobra.Command {
	var s settings
	root := &cobra.Command{
		Use: "certctl-agent", Short: "Deploys certificates on this host and proves that they are served",
		SilenceUsage: true, SilenceErrors: true, Args: cobra.NoArgs,
	}
	f := root.PersistentFlags()
	f.StringVar(&s.url, "url", os.Getenv("CERTCTL_URL"), "URL of the server (CERTCTL_URL); plain http only to this machine")
	f.StringVar(&s.dir, "agent-dir", os.Getenv("CERTCTL_AGENT_DIR"), "the agent's own folder, private keys in it (CERTCTL_AGENT_DIR)")
	f.StringVar(&s.token, "enroll-token", "", "enrollment token (CERTCTL_ENROLL_TOKEN); others can see it in the process list, so better use the file")
	f.StringVar(&s.tokenFile, "enroll-token-file", os.Getenv("CERTCTL_ENROLL_TOKEN_FILE"), "file with the enrollment token (CERTCTL_ENROLL_TOKEN_FILE)")
	f.StringVar(&s.name, "agent-name", os.Getenv("CERTCTL_AGENT_NAME"), "name shown to people (CERTCTL_AGENT_NAME); the host name if empty")
	f.StringVar(&s.caFile, "ca-file", os.Getenv("CERTCTL_CA_FILE"), "PEM roots for the server's certificate (CERTCTL_CA_FILE)")
	f.StringVar(&s.commands, "agent-commands", os.Getenv("CERTCTL_AGENT_COMMANDS"), "commands that targets may run here: any, listed or none (CERTCTL_AGENT_COMMANDS)")
	f.StringVar(&s.commandsFile, "agent-commands-file", os.Getenv("CERTCTL_AGENT_COMMANDS_FILE"), "the listed commands, one a line (CERTCTL_AGENT_COMMANDS_FILE)")
	f.StringVar(&s.paths, "agent-paths", os.Getenv("CERTCTL_AGENT_PATHS"), "folders that targets may use here, with colons between (CERTCTL_AGENT_PATHS); any if empty")
	f.StringVar(&s.timeout, "agent-command-timeout", os.Getenv("CERTCTL_AGENT_COMMAND_TIMEOUT"), "time limit of one command, e.g. 60s (CERTCTL_AGENT_COMMAND_TIMEOUT)")
	root.AddCommand(runCommand(&s), doctorCommand(&s), rotateCommand(&s), versionCommand())
	return root
}

func runCommand(s *settings) *cobra.Command {
	c := &cobra.Command{
		Use: "run", Short: "Enroll if necessary, then work until stopped", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withAgent(s, func(a *agentrun.Agent) error {
				if s.once {
					return a.Once(cmd.Context())
				}
				return a.Run(cmd.Context())
			})
		},
	}
	c.Flags().BoolVar(&s.once, "once", false, "ask for work a single time, do it and end")
	return c
}

func rotateCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "rotate", Short: "Replace the agent's credential (stop the running agent first)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withAgent(s, func(a *agentrun.Agent) error { return a.Rotate(cmd.Context()) })
		},
	}
}

func doctorCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Check folder, server, clock, credential, paths and commands; exit 1 on problems", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := s.config()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			return printChecks(cmd.OutOrStdout(), agentrun.Doctor(ctx, cfg))
		},
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), programVersion())
			return err
		},
	}
}

func withAgent(s *settings, do func(*agentrun.Agent) error) error {
	cfg, err := s.config()
	if err != nil {
		return err
	}
	a, err := agentrun.Open(cfg)
	if err != nil {
		return err
	}
	defer a.Close()
	return do(a)
}

func (s *settings) config() (agentrun.Config, error) {
	host, err := agentrun.HostConfig(s.commands, s.commandsFile, s.paths)
	if err != nil {
		return agentrun.Config{}, err
	}
	if s.timeout != "" {
		if host.Timeout, err = time.ParseDuration(s.timeout); err != nil || host.Timeout <= 0 {
			return agentrun.Config{}, errors.New("CERTCTL_AGENT_COMMAND_TIMEOUT must be a duration such as 60s")
		}
	}
	token, err := s.readToken()
	if err != nil {
		return agentrun.Config{}, err
	}
	return agentrun.Config{
		URL: s.url, Token: token, Dir: s.dir, Name: s.name, CAFile: s.caFile, Version: programVersion(), Host: host, Drivers: drivers,
		Hook: target.CrashHook(), Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}, nil
}

// readToken takes the token from the flag, the file, or the environment, in this order.
func (s *settings) readToken() (string, error) {
	if s.token != "" || s.tokenFile == "" {
		if s.token == "" {
			return os.Getenv("CERTCTL_ENROLL_TOKEN"), nil
		}
		return s.token, nil
	}
	text, err := os.ReadFile(s.tokenFile)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil // an enrolled agent needs none, and whoever made the file may have removed it
	}
	if err != nil {
		return "", fmt.Errorf("reading CERTCTL_ENROLL_TOKEN_FILE: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

func printChecks(w io.Writer, checks []agentrun.Check) error {
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	well := true
	for _, c := range checks {
		word := "ok"
		if !c.OK {
			word, well = "PROBLEM", false
		}
		if _, err := fmt.Fprintf(table, "%s\t%s\t%s\n", word, c.Name, c.Detail); err != nil {
			return err
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if !well {
		return errUnwell
	}
	return nil
}

func programVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
