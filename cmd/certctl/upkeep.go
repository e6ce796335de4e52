package main

import (
	"context"
	"fmt"
	"log/slog"

	"certctl/shared/boot"
	"certctl/shared/lifecycle"

	"github.com/spf13/cobra"
)

const (
	databaseVariable = "CERTCTL_DATABASE_URL"
	masterVariable   = "CERTCTL_MASTER_KEY"
)

func workCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "work --once", Short: "Run due jobs once and exit", Args: cobra.NoArgs,
		Long: "Claims due jobs and runs them until none is left, prints a report as JSON and exits. For schedulers other than Lambda, and to run more workers beside certctl serve.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load(cmd.Context(), databaseVariable, masterVariable, "CERTCTL_PKI_URL")
			if err != nil {
				return err
			}
			defer s.pool.Close()
			if err := lifecycle.CheckMasterKey(cmd.Context(), s.pool, s.box); err != nil {
				return err
			}
			h, err := s.house("")
			if err != nil {
				return err
			}
			w := &lifecycle.Worker{House: h, Concurrency: s.Concurrency, Lease: s.Lease}
			return boot.Tick(cmd.Context(), func(ctx context.Context) (any, error) { return w.Tick(ctx) }, boot.TickOptions{Kind: "work", Log: s.log, Once: true, Stdout: cmd.OutOrStdout()})
		}}
	cmd.Flags().Bool("once", true, "run once; the only way")
	return cmd
}

func sweepCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "sweep --once", Short: "Find what is due once and exit", Args: cobra.NoArgs,
		Long: "Gives expired leases back, enqueues due renewals, CRLs and responder certificates, prints a report as JSON and exits. Two at once share the work.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load(cmd.Context(), databaseVariable)
			if err != nil {
				return err
			}
			defer s.pool.Close()
			return boot.Tick(cmd.Context(), func(ctx context.Context) (any, error) { return lifecycle.Sweep(ctx, s.pool) }, boot.TickOptions{Kind: "sweep", Log: s.log, Once: true, Stdout: cmd.OutOrStdout()})
		}}
	cmd.Flags().Bool("once", true, "run once; the only way")
	return cmd
}

func migrateCommand() *cobra.Command {
	return &cobra.Command{Use: "migrate", Short: "Bring a shared database's schema up to date", Args: cobra.NoArgs,
		Long: "Applies the embedded migrations to CERTCTL_MIGRATE_DATABASE_URL, by default CERTCTL_DATABASE_URL. Forward only; two at once are safe.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load(cmd.Context(), databaseVariable)
			if err != nil {
				return err
			}
			defer s.pool.Close()
			return s.migrate(cmd.Context())
		}}
}

func bootstrapCommand() *cobra.Command {
	return &cobra.Command{Use: "bootstrap", Short: "Make what an empty shared database needs", Args: cobra.NoArgs,
		Long: "Makes the local CA, the default profile and the default renewal policy in a migrated database, once. Admin keys are made with certctl keys create --direct --role admin.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load(cmd.Context(), databaseVariable, masterVariable)
			if err != nil {
				return err
			}
			defer s.pool.Close()
			first, err := lifecycle.Start(cmd.Context(), s.pool, lifecycle.First{Box: s.box})
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), map[bool]string{true: "started", false: "was started before"}[first])
			}
			return err
		}}
}

func openapiCommand() *cobra.Command {
	return &cobra.Command{Use: "openapi", Short: "Print the OpenAPI document of this build", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := &server{log: slog.New(slog.DiscardHandler)}
			doc, err := s.router(nil, nil).OpenAPI()
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(doc)
			return err
		}}
}

func routesCommand() *cobra.Command {
	return &cobra.Command{Use: "routes", Short: "Print every route of this build", Args: cobra.NoArgs, Hidden: true,
		Long: "Prints pattern, class and permission of every route of certctl serve, separated by tabs. A pattern without a method is a prefix that is served ahead of routing.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := &server{log: slog.New(slog.DiscardHandler)}
			for _, r := range s.router(nil, nil).Routes() {
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\t%s\t%s\n", r.Pattern, r.Class, r.Permission); err != nil {
					return err
				}
			}
			return nil
		}}
}
