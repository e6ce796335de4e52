package migrations_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"certctl/shared/dbtest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

var roles = []string{"certctl_api", "certctl_sweep", "certctl_worker", "certctl_responder", "certctl_agentpoll"}

// try runs a statement with a role's rights in a savepoint and answers the SQLSTATE, "" when it was carried out.
func try(t *testing.T, tx pgx.Tx, role, sql string) string {
	t.Helper()
	sp, err := tx.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sp.Rollback(t.Context()) }()
	if role != "" {
		if _, err := sp.Exec(t.Context(), `SET LOCAL ROLE `+role); err != nil {
			t.Fatal(err)
		}
	}
	_, err = sp.Exec(t.Context(), sql)
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.Code
	}
	if err != nil {
		t.Fatal(err)
	}
	return ""
}

const refused = "42501" // insufficient_privilege

func TestRolesAreRefusedWhatTheyDoNotNeed(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	forbidden := map[string][]string{
		"certctl_responder": {
			`SELECT sealed_key FROM ca_generations`, `SELECT key_uri FROM ca_generations`, `SELECT * FROM version_keys`, `SELECT * FROM version_blobs`, `SELECT sealed_config FROM issuers`,
			`SELECT config FROM issuers`, `SELECT * FROM certificates`, `SELECT * FROM jobs`, `SELECT * FROM api_keys`, `SELECT * FROM agents`, `SELECT * FROM audit_events`,
			`SELECT * FROM ca_requests`, `SELECT serial FROM revocations`, `INSERT INTO crls DEFAULT VALUES`, `UPDATE versions SET revoked_at = NULL`, `DELETE FROM crls`, `UPDATE crl_state SET next_number = 1`,
			`UPDATE ocsp_responders SET renew_at = now()`, `INSERT INTO audit_events (principal, role, action, resource_type) VALUES ('x', 'x', 'x', 'x')`, `SELECT audit_make_partitions()`,
		},
		"certctl_api": {
			`SELECT sealed_key FROM ca_generations`, `SELECT sealed_key FROM ca_requests`, `SELECT * FROM version_keys`, `SELECT sealed FROM version_keys`, `SELECT sealed_config FROM issuers`,
			`SELECT sealed_config FROM targets`, `SELECT sealed_key FROM ocsp_responders`, `UPDATE ca_generations SET sealed_key = 'x'`, `UPDATE ca_requests SET sealed_key = 'x'`, `DELETE FROM ca_generations`,
			`UPDATE versions SET not_after = now()`, `UPDATE versions SET serial = 'x'`, `INSERT INTO versions DEFAULT VALUES`, `UPDATE version_blobs SET chain = '{}'`, `DELETE FROM certificates`, `DELETE FROM jobs`,
			`DELETE FROM api_keys`, `INSERT INTO crls DEFAULT VALUES`, `UPDATE instance SET canary = 'x'`, `SELECT audit_make_partitions()`, `DELETE FROM blocked_keys`,
		},
		"certctl_sweep": {
			`SELECT * FROM api_keys`, `SELECT hash FROM api_keys`, `SELECT * FROM version_keys`, `SELECT * FROM versions`, `SELECT sealed_key FROM ca_generations`, `SELECT certificate FROM ca_generations`,
			`SELECT config FROM issuers`, `SELECT sealed_config FROM issuers`, `SELECT * FROM targets`, `SELECT sealed_key FROM ocsp_responders`, `SELECT hash FROM agent_tokens`, `SELECT * FROM crls`,
			`SELECT details FROM audit_events`, `UPDATE profiles SET requires_approval = false`, `UPDATE renewal_policies SET auto_renew = true`, `DELETE FROM certificates`, `INSERT INTO certificates DEFAULT VALUES`,
			`UPDATE crl_state SET next_number = 1`, `SELECT * FROM ca_requests`,
		},
		"certctl_worker": {
			`SELECT * FROM api_keys`, `SELECT hash FROM agent_tokens`, `SELECT sealed_key FROM ca_requests`, `SELECT details FROM audit_events`, `UPDATE profiles SET requires_approval = false`,
			`UPDATE agents SET credential_hash = 'x'`, `UPDATE ca_generations SET certificate = 'x'`, `DELETE FROM ca_generations`, `DELETE FROM certificates`, `DELETE FROM versions`, `DELETE FROM version_keys`,
			`UPDATE issuers SET config = '{}'`, `UPDATE targets SET config = '{}'`, `DELETE FROM blocked_keys`, `INSERT INTO api_keys DEFAULT VALUES`, `UPDATE instance SET canary = 'x'`, `SELECT audit_make_partitions()`,
		},
		"certctl_agentpoll": {
			`SELECT * FROM version_keys`, `SELECT sealed FROM version_keys`, `SELECT sealed_key FROM ca_generations`, `SELECT * FROM ca_generations`, `SELECT * FROM issuers`, `SELECT sealed_config FROM targets`,
			`SELECT * FROM api_keys`, `SELECT sealed_key FROM ocsp_responders`, `SELECT * FROM ca_requests`, `SELECT details FROM audit_events`, `INSERT INTO certificates DEFAULT VALUES`,
			`UPDATE certificates SET auto_renew = false`, `UPDATE certificates SET sans = '{}'`, `INSERT INTO agent_tokens DEFAULT VALUES`, `DELETE FROM agents`, `UPDATE versions SET revoked_at = now()`,
			`DELETE FROM blocked_keys`, `INSERT INTO blocked_keys DEFAULT VALUES`, `UPDATE targets SET config = '{}'`, `UPDATE profiles SET name = 'x'`,
		},
	}
	for _, role := range roles {
		if len(forbidden[role]) == 0 {
			t.Errorf("nothing is tried as %s", role)
		}
		for _, sql := range forbidden[role] {
			if code := try(t, tx, role, sql); code != refused {
				t.Errorf("%s: %s: %q, want it refused", role, sql, code)
			}
		}
	}
}

func TestTheTrailIsAppendOnlyForEverybody(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	if code := try(t, tx, "", `INSERT INTO audit_events (principal, role, action, resource_type) VALUES ('x', 'x', 'x', 'x')`); code != "" {
		t.Fatal(code)
	}
	if _, err := tx.Exec(t.Context(), `INSERT INTO audit_events (principal, role, action, resource_type) VALUES ('x', 'x', 'x', 'x')`); err != nil {
		t.Fatal(err)
	}
	rows, err := tx.Query(t.Context(), `SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'audit_events'::regclass`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(tables) < 5 || !slices.Contains(tables, "audit_events_default") {
		t.Fatalf("partitions %v, %v", tables, err)
	}
	for _, table := range append(tables, "audit_events") {
		for _, role := range append(slices.Clone(roles), "") { // "": the owner, who is a superuser here
			for _, sql := range []string{`UPDATE %s SET principal = 'y'`, `DELETE FROM %s`, `TRUNCATE %s`, `INSERT INTO %s (principal, role, action, resource_type, at) VALUES ('x', 'x', 'x', 'x', '2020-01-01')`} {
				sql := fmt.Sprintf(sql, table)
				if role == "" && sql[:6] == "INSERT" {
					continue
				}
				if role == "" && sql[:6] != "TRUNCA" && !holdsRows(t, tx, table) {
					continue // a row trigger has nothing to refuse
				}
				if code := try(t, tx, role, sql); code != refused {
					t.Errorf("%q: %s: %q, want it refused", role, sql, code)
				}
			}
		}
	}
	for _, role := range roles {
		want := ""
		if role == "certctl_responder" {
			want = refused
		}
		if code := try(t, tx, role, `INSERT INTO audit_events (principal, role, action, resource_type) VALUES ('x', 'x', 'x', 'x')`); code != want {
			t.Errorf("%s: appending: %q, want %q", role, code, want)
		}
	}
}

func holdsRows(t *testing.T, tx pgx.Tx, table string) (holds bool) {
	t.Helper()
	if err := tx.QueryRow(t.Context(), `SELECT EXISTS (SELECT 1 FROM `+table+`)`).Scan(&holds); err != nil {
		t.Fatal(err)
	}
	return holds
}

func TestNoRoleOwnsOrMakesAnything(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	for _, role := range roles {
		for _, sql := range []string{`CREATE TABLE public.mine (i int)`, `ALTER TABLE jobs ADD COLUMN x int`, `DROP TABLE audit_events`, `ALTER TABLE audit_events DISABLE TRIGGER ALL`, `CREATE ROLE other`, `SET session_replication_role = replica`} {
			if code := try(t, tx, role, sql); code != refused {
				t.Errorf("%s: %s: %q, want it refused", role, sql, code)
			}
		}
	}
}

func TestTypeIDsAreWrittenInSQLAsInGo(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	for uuid, want := range map[string]string{
		"00000000-0000-0000-0000-000000000000": "job_00000000000000000000000000",
		"ffffffff-ffff-ffff-ffff-ffffffffffff": "job_7zzzzzzzzzzzzzzzzzzzzzzzzz",
		"0188bac7-4afa-78aa-bc3b-bd1eef28d881": "job_01h2xcejqtf2nbrexx3vqjhp41", // the example of the TypeID specification
	} {
		var got string
		if err := tx.QueryRow(t.Context(), `SELECT type_id('job', $1::text::uuid)`, uuid).Scan(&got); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", uuid, got, err, want)
		}
	}
}

func TestUUIDsMadeInSQLAreOfVersionSevenAndOfNow(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	var text string
	var age float64
	err := tx.QueryRow(t.Context(), `SELECT u::text, extract(epoch FROM clock_timestamp()) - ('x' || substr(replace(u::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0 FROM uuid7() u`).Scan(&text, &age)
	if err != nil || text[14] != '7' || !slices.Contains([]byte("89ab"), text[19]) || age < -1 || age > 5 {
		t.Errorf("%s, %v s old, %v", text, age, err)
	}
}
