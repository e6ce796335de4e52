package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"certctl/shared/audit"
	"certctl/shared/auth"
	"certctl/shared/backup"
	"certctl/shared/boot"
	"certctl/shared/db"
	"certctl/shared/lifecycle"
	"certctl/shared/pglocal"
	"certctl/shared/secret"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
)

// local opens the database that serve uses with the same environment: CERTCTL_DATABASE_URL, else the one in the data folder,
// whether serve runs on it or not. end stops what was started for it.
func local(ctx context.Context) (s *server, dir string, end func(), err error) {
	c, err := boot.Load[config](os.Environ())
	if err != nil {
		return nil, "", nil, err
	}
	s = &server{config: c, log: boot.Logger(c.Common)}
	if dir, err = prepareDataDir(c); err != nil {
		return nil, "", nil, err
	}
	end = func() {}
	if s.DatabaseURL.IsZero() {
		if url, ok := pglocal.Running(filepath.Join(dir, "postgres")); ok {
			s.DatabaseURL = secret.NewText(url)
			if err := s.ownMasterKey(dir); err != nil {
				return nil, "", nil, err
			}
		} else if end, _, err = s.database(ctx, dir); err != nil {
			return nil, "", nil, err
		}
	}
	if err := s.open(ctx); err != nil {
		end()
		return nil, "", nil, err
	}
	stop := end
	return s, dir, func() { s.pool.Close(); stop() }, nil
}

// ownMasterKey takes the data folder's key when none is given.
func (s *server) ownMasterKey(dir string) error {
	if !s.MasterKey.IsZero() {
		return nil
	}
	key, err := masterKey(dir)
	if err == nil {
		s.MasterKey = secret.NewText(key.Encode())
	}
	return err
}

func backupCommand() *cobra.Command {
	var withoutKey bool
	cmd := &cobra.Command{Use: "backup FILE", Short: "Write the database and the master key to one file", Args: cobra.ExactArgs(1),
		Long: `Writes every table, in one consistent snapshot, and the master key to a tar file with mode 0600. It may run beside serve.

The file opens everything: keep it as you would keep the CA's key. With --without-key the master key is left out.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, _, end, err := local(cmd.Context())
			if err != nil {
				return err
			}
			defer end()
			return s.backup(cmd, args[0], withoutKey)
		}}
	cmd.Flags().BoolVar(&withoutKey, "without-key", false, "leave the master key out")
	return cmd
}

func (s *server) backup(cmd *cobra.Command, path string, withoutKey bool) error {
	ctx := cmd.Context()
	if s.box == nil {
		return errors.New("CERTCTL_MASTER_KEY is not set: set it so that the backup can be proved to open, or it is worth nothing")
	}
	if err := lifecycle.CheckMasterKey(ctx, s.pool, s.box); err != nil {
		return err
	}
	key := s.MasterKey.Reveal()
	if withoutKey {
		key = ""
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".certctl-backup-*") // made with mode 0600; renamed when whole
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	conn, err := pgx.Connect(ctx, s.DatabaseURL.Reveal())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	m, err := backup.Write(ctx, conn, f, key)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	var rows int64
	for _, t := range m.Tables {
		rows += t.Rows
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %d tables, %d rows, schema %d, master key: %v\n", path, len(m.Tables), rows, m.SchemaVersion, m.HasMasterKey)
	return nil
}

func restoreCommand() *cobra.Command {
	return &cobra.Command{Use: "restore FILE", Short: "Fill an empty installation from a backup", Args: cobra.ExactArgs(1),
		Long: `Restores a backup into an empty data folder (CERTCTL_DATA_DIR), or into an empty database (CERTCTL_DATABASE_URL), in one
transaction. The master key of the backup is put into the data folder; if the backup has none, set CERTCTL_MASTER_KEY.`,
		RunE: func(cmd *cobra.Command, args []string) error { return restore(cmd, args[0]) }}
}

func restore(cmd *cobra.Command, path string) error {
	ctx := cmd.Context()
	f, err := os.Open(path) // #nosec G304 -- the operator names it
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	m, key, err := backup.Inspect(f)
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := placeKey(key); err != nil {
		return err
	}
	s, _, end, err := local(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := s.migrate(ctx); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, s.DatabaseURL.Reveal())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := backup.Restore(ctx, conn, f, m); err != nil {
		return err
	}
	if s.box != nil {
		if err := lifecycle.CheckMasterKey(ctx, s.pool, s.box); err != nil {
			return fmt.Errorf("everything is restored, but %w", err)
		}
	}
	fmt.Fprintf(cmd.OutOrStdout(), "restored %d tables of %s\n", len(m.Tables), m.MadeAt.Format("2006-01-02 15:04:05 MST"))
	return nil
}

// placeKey puts a backup's master key where serve looks for it. Another key that lies there is not overwritten.
func placeKey(key string) error {
	c, err := boot.Load[config](os.Environ())
	if err != nil || key == "" || !c.MasterKey.IsZero() || !c.DatabaseURL.IsZero() {
		return err
	}
	dir, err := prepareDataDir(c)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "master.key")
	have, err := os.ReadFile(path) // #nosec G304 -- the data folder is the operator's
	switch {
	case errors.Is(err, os.ErrNotExist):
		return keep(path, key)
	case err != nil:
		return err
	case string(trimmed(have)) != key:
		return fmt.Errorf("%s holds another master key than the backup: restore into an empty data folder", path)
	}
	return nil
}

// createKeyDirectly makes an API key in the database, without a server: the way to the first key of a shared database.
func createKeyDirectly(ctx context.Context, name, principal, role string) (text string, err error) {
	s, _, end, err := local(ctx)
	if err != nil {
		return "", err
	}
	defer end()
	ctx = auth.WithActor(ctx, auth.SystemActor("cli"))
	err = db.InTx(ctx, s.pool, func(tx pgx.Tx) error {
		key, secret, err := auth.Create(ctx, tx, auth.NewKey{Name: name, Principal: principal, Role: auth.Role(role)})
		if err != nil {
			return err
		}
		text = secret
		return audit.Record(ctx, tx, audit.Entry{Action: "key.created", ResourceType: "key", ResourceID: key.ID.String(),
			Details: map[string]any{"name": key.Name, "principal": key.Principal, "role": key.Role}})
	})
	return text, err
}
