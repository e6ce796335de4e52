// Package backup owns the archive of an installation: every table of the schema in one consistent snapshot, and the master
// key, without which the sealed columns are worth nothing. It is a tar file of PostgreSQL COPY texts, so it needs no server
// tools and can be restored into another major version of Postgres.
package backup

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Manifest is the first entry of an archive.
type Manifest struct {
	Format        int       `json:"format"`
	SchemaVersion int64     `json:"schema_version"`
	MadeAt        time.Time `json:"made_at"`
	Tables        []Table   `json:"tables"`
	HasMasterKey  bool      `json:"has_master_key"`
}

// Table is a table in the archive.
type Table struct {
	Name    string   `json:"name"`
	Columns []string `json:"columns"`
	Rows    int64    `json:"rows"`
}

const (
	format       = 1
	manifestName = "manifest.json"
	keyName      = "master.key"
	// maxSmall bounds the manifest and the key when they are read back.
	maxSmall = 1 << 20
)

// tables are the archive's tables: all but the migrations' own, partitions by their parent.
const tables = `SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
	WHERE n.nspname = current_schema() AND c.relkind IN ('r','p') AND NOT c.relispartition AND c.relname <> 'goose_db_version' GROUP BY c.relname ORDER BY c.relname`

// Write makes an archive. masterKey is "" when it is kept elsewhere.
func Write(ctx context.Context, c *pgx.Conn, out io.Writer, masterKey string) (Manifest, error) {
	m := Manifest{Format: format, MadeAt: time.Now().UTC(), HasMasterKey: masterKey != ""}
	tx, err := c.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return m, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if err := tx.QueryRow(ctx, `SELECT max(version_id) FROM goose_db_version WHERE is_applied`).Scan(&m.SchemaVersion); err != nil {
		return m, fmt.Errorf("reading the schema version: %w", err)
	}
	rows, err := tx.Query(ctx, tables)
	if err != nil {
		return m, err
	}
	m.Tables, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (t Table, err error) {
		return t, r.Scan(&t.Name, &t.Columns)
	})
	if err != nil {
		return m, fmt.Errorf("listing the tables: %w", err)
	}
	w := tar.NewWriter(out)
	for i := range m.Tables {
		if m.Tables[i].Rows, err = writeTable(ctx, tx, w, m.Tables[i], m.MadeAt); err != nil {
			return m, fmt.Errorf("copying %s: %w", m.Tables[i].Name, err)
		}
	}
	if masterKey != "" {
		if err := writeEntry(w, keyName, []byte(masterKey+"\n"), m.MadeAt); err != nil {
			return m, err
		}
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return m, err
	}
	// The manifest comes last: an archive without it was not finished.
	return m, errors.Join(writeEntry(w, manifestName, text, m.MadeAt), w.Close())
}

func writeEntry(w *tar.Writer, name string, content []byte, at time.Time) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(content)), ModTime: at}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// writeTable spools a table to a file first, since tar wants its size before its content.
func writeTable(ctx context.Context, tx pgx.Tx, w *tar.Writer, t Table, at time.Time) (int64, error) {
	spool, err := os.CreateTemp("", "certctl-backup-*") // made with mode 0600
	if err != nil {
		return 0, err
	}
	defer func() { _ = spool.Close(); _ = os.Remove(spool.Name()) }()
	tag, err := tx.Conn().PgConn().CopyTo(ctx, spool, "COPY (SELECT "+quoted(t.Columns)+" FROM "+pgx.Identifier{t.Name}.Sanitize()+") TO STDOUT")
	if err != nil {
		return 0, err
	}
	size, err := spool.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	if err := w.WriteHeader(&tar.Header{Name: "tables/" + t.Name, Mode: 0o600, Size: size, ModTime: at}); err != nil {
		return 0, err
	}
	_, err = io.Copy(w, spool)
	return tag.RowsAffected(), err
}

func quoted(columns []string) string {
	out := make([]string, len(columns))
	for i, c := range columns {
		out[i] = pgx.Identifier{c}.Sanitize()
	}
	return strings.Join(out, ", ")
}

// Inspect reads an archive's manifest and its master key ("" when it has none).
func Inspect(in io.Reader) (m Manifest, masterKey string, err error) {
	found := false
	r := tar.NewReader(in)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return m, "", fmt.Errorf("reading the archive: %w", err)
		}
		switch h.Name {
		case manifestName:
			b, err := io.ReadAll(io.LimitReader(r, maxSmall))
			if err == nil {
				err = json.Unmarshal(b, &m)
			}
			if err != nil {
				return m, "", fmt.Errorf("reading the archive's manifest: %w", err)
			}
			found = true
		case keyName:
			b, err := io.ReadAll(io.LimitReader(r, maxSmall))
			if err != nil {
				return m, "", err
			}
			masterKey = strings.TrimSpace(string(b))
		}
	}
	switch {
	case !found:
		return m, "", errors.New("the archive is not whole: it has no manifest")
	case m.Format != format:
		return m, "", fmt.Errorf("the archive has format %d; this program reads %d", m.Format, format)
	}
	return m, masterKey, nil
}

// Restore fills a migrated and otherwise empty database from an archive, in one transaction. Triggers and foreign keys rest
// meanwhile: the archive is a consistent snapshot, and the audit trail's bytes must come back as they were. The role needs
// the right to set session_replication_role.
func Restore(ctx context.Context, c *pgx.Conn, in io.Reader, m Manifest) error {
	tx, err := c.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if err := ready(ctx, tx, m); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `SET LOCAL session_replication_role = replica`); err != nil {
		return fmt.Errorf("resting triggers and foreign keys: %w", err)
	}
	r := tar.NewReader(in)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the archive: %w", err)
		}
		name, ok := strings.CutPrefix(h.Name, "tables/")
		if !ok {
			continue
		}
		if err := restoreTable(ctx, tx, r, m, name); err != nil {
			return fmt.Errorf("restoring %s: %w", name, err)
		}
	}
	// Transaction ids belong to the old cluster; a restored event is older than everything that runs here.
	if _, err := tx.Exec(ctx, `UPDATE audit_events SET xid = '3'`); err != nil {
		return fmt.Errorf("renumbering the audit trail's transactions: %w", err)
	}
	// CRLs may have been published after the backup; numbers must go on growing for whoever saw them (RFC 5280, 5.2.3).
	if _, err := tx.Exec(ctx, `UPDATE crl_state SET next_number = next_number + 1000000, refresh_at = now()`); err != nil {
		return fmt.Errorf("stepping over CRL numbers: %w", err)
	}
	return tx.Commit(ctx)
}

// ready refuses a database of another schema, or one that holds an instance.
func ready(ctx context.Context, tx pgx.Tx, m Manifest) error {
	var version int64
	var used bool
	if err := tx.QueryRow(ctx, `SELECT (SELECT max(version_id) FROM goose_db_version WHERE is_applied), EXISTS (SELECT 1 FROM instance)`).Scan(&version, &used); err != nil {
		return err
	}
	switch {
	case used:
		return errors.New("the database holds an installation already: restore into an empty one")
	case version != m.SchemaVersion:
		return fmt.Errorf("the archive has schema version %d and the database %d: restore with the program that made the archive, then upgrade", m.SchemaVersion, version)
	}
	return nil
}

func restoreTable(ctx context.Context, tx pgx.Tx, r io.Reader, m Manifest, name string) error {
	i := slices.IndexFunc(m.Tables, func(t Table) bool { return t.Name == name })
	if i < 0 {
		return errors.New("the manifest does not know this table")
	}
	t := m.Tables[i]
	tag, err := tx.Conn().PgConn().CopyFrom(ctx, r, "COPY "+pgx.Identifier{t.Name}.Sanitize()+" ("+quoted(t.Columns)+") FROM STDIN")
	if err != nil {
		return err
	}
	if tag.RowsAffected() != t.Rows {
		return fmt.Errorf("%d rows came back of %d", tag.RowsAffected(), t.Rows)
	}
	return nil
}
