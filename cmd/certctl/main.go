// Command certctl is the command line, the server in one process, and the upkeep of its database.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{Use: "certctl", Short: "The whole life of TLS certificates", SilenceUsage: true, SilenceErrors: true, Version: version}
	root.AddGroup(&cobra.Group{ID: "server", Title: "Server commands:"})
	for _, c := range []*cobra.Command{serveCommand(), workCommand(), sweepCommand(), migrateCommand(), bootstrapCommand(), backupCommand(), restoreCommand(), openapiCommand(), routesCommand()} {
		c.GroupID = "server"
		root.AddCommand(c)
	}
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "certctl:", err)
		os.Exit(1)
	}
}
