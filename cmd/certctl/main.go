// Command certctl is the command line, the server in one process, and the upkeep of its database.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"certctl/shared/cli"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	root := &cobra.Command{Use: "certctl", Short: "The whole life of TLS certificates", SilenceUsage: true, SilenceErrors: true, Version: version}
	root.AddGroup(&cobra.Group{ID: "server", Title: "Server commands:"})
	for _, c := range []*cobra.Command{serveCommand(), workCommand(), sweepCommand(), migrateCommand(), bootstrapCommand(), backupCommand(), restoreCommand(), openapiCommand(), routesCommand()} {
		c.GroupID = "server"
		root.AddCommand(c)
	}
	(&cli.App{Version: version, Direct: createKeyDirectly}).Attach(root)
	code := cli.Main(ctx, root)
	stop()
	os.Exit(code)
}
