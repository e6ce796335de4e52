// Command scale fills a database with a fleet, for benchmarks and for trying things by hand. The database must be migrated and
// started (certctl migrate, certctl bootstrap), and the login a superuser.
//
//	go run ./bench/scale -database "$URL" -certificates 1000000 -due 1000 -revoked 10000
//	go run ./bench/scale -database "$URL" -certificates 10000000 -due 1000 -narrow
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"certctl/bench/fleet"

	"github.com/jackc/pgx/v5"
)

func main() {
	var s fleet.Size
	database := flag.String("database", "", "the database's URL, as a superuser")
	flag.IntVar(&s.Certificates, "certificates", 10_000, "how many certificates")
	flag.IntVar(&s.Due, "due", 0, "how many of them are due")
	flag.IntVar(&s.Revoked, "revoked", 0, "how many of them are revoked")
	flag.IntVar(&s.Finished, "finished", 0, "how many finished jobs beside one per certificate")
	flag.IntVar(&s.Blob, "blob", 64, "bytes of each stored chain and request")
	flag.BoolVar(&s.Narrow, "narrow", false, "certificates only, with the indexes of the sweep and the claims only")
	flag.Parse()
	if err := run(*database, s); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(database string, s fleet.Size) error {
	ctx := context.Background()
	c, err := pgx.Connect(ctx, database)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(ctx) }()
	return fleet.Load(ctx, c, s, func(step string, took time.Duration) { fmt.Printf("%-24s %6.1f s\n", step, took.Seconds()) })
}
