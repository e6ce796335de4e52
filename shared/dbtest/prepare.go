package dbtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"certctl/migrations"
	"certctl/shared/migrate"

	"github.com/jackc/pgx/v5"
)

// names of databases carry a hash of the migrations: a changed schema is never taken for an old one.
type names struct{ hash, template, tx string }

func nameAll() names {
	h := sha256.New()
	files, _ := fs.Glob(migrations.FS, "*.sql")
	for _, f := range files {
		b, _ := fs.ReadFile(migrations.FS, f)
		fmt.Fprintf(h, "%s %d\n%s", f, len(b), b)
	}
	hash := hex.EncodeToString(h.Sum(nil)[:6])
	return names{hash, "certctl_test_template_" + hash, "certctl_test_tx_" + hash}
}

const prepareLock = 0x63657274_74657374 // "certtest"

// prepare makes the template and the database for transactions unless they are there. Test binaries that share a server
// wait for each other. The template has its final name only once it is migrated, so that a killed run leaves nothing that
// looks ready.
func prepare(ctx context.Context, root string, n names) error {
	c, err := pgx.Connect(ctx, root)
	if err != nil {
		return fmt.Errorf("connecting to the tests' server: %w", err)
	}
	defer func() { _ = c.Close(ctx) }()
	if _, err := c.Exec(ctx, `SELECT pg_advisory_lock($1)`, int64(prepareLock)); err != nil {
		return fmt.Errorf("locking the tests' server: %w", err)
	}
	if there, err := exists(ctx, c, n.tx); there || err != nil {
		return err
	}
	if err := makeTemplate(ctx, c, root, n.template); err != nil {
		return fmt.Errorf("making the template database: %w", err)
	}
	_, err = c.Exec(ctx, "CREATE DATABASE "+n.tx+" TEMPLATE "+n.template)
	return err
}

func makeTemplate(ctx context.Context, c *pgx.Conn, root, name string) error {
	if there, err := exists(ctx, c, name); there || err != nil {
		return err
	}
	fresh := name + "_new"
	_, err := c.Exec(ctx, "DROP DATABASE IF EXISTS "+fresh+" WITH (FORCE)")
	if err == nil {
		_, err = c.Exec(ctx, "CREATE DATABASE "+fresh+" TEMPLATE template0")
	}
	if err == nil {
		err = migrate.Up(ctx, withDatabase(root, fresh), nil)
	}
	if err == nil {
		_, err = c.Exec(ctx, "ALTER DATABASE "+fresh+" RENAME TO "+name)
	}
	return err
}

func exists(ctx context.Context, c *pgx.Conn, name string) (bool, error) {
	var one int
	err := c.QueryRow(ctx, `SELECT 1 FROM pg_database WHERE datname = $1`, name).Scan(&one)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}
