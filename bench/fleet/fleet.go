// Package fleet fills a migrated and started database with certificates of realistic shape: versions with small blobs,
// finished jobs with their attempts, deployments left out, and revocations whose CRL entries are real DER. Rows are made by
// INSERT … SELECT inside the server, with secondary indexes dropped and made again around them, because a million rows that
// go through a client measure the client.
//
// It is for benchmarks and for trying things by hand: it switches triggers and foreign keys off while it loads, so it needs a
// superuser, and it must never be pointed at a database that somebody needs.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Size is how much is made. What is due is spread evenly over the fleet.
type Size struct {
	Certificates int
	Due          int  // certificates whose renewal is due now
	Revoked      int  // current versions that are revoked, with their CRL entries
	Finished     int  // completed jobs that belong to no certificate, beside one per version
	Narrow       bool // only certificates, without versions and jobs: for the sweep's index at 10 million rows
	Blob         int  // bytes of each stored chain and request; 0: 64
}

// Load makes the rows. Say is told of each step that is done.
func Load(ctx context.Context, c *pgx.Conn, s Size, say func(string, time.Duration)) error {
	if s.Due+s.Revoked > s.Certificates {
		return errors.New("more certificates are due and revoked than there are")
	}
	if _, err := c.Exec(ctx, `SET session_replication_role = replica; SET synchronous_commit = off; SET maintenance_work_mem = '512MB'`); err != nil {
		return fmt.Errorf("switching triggers off, which takes a superuser: %w", err)
	}
	defer func() { _, _ = c.Exec(context.WithoutCancel(ctx), `RESET ALL`) }()
	restore, err := dropIndexes(ctx, c, s.Narrow)
	if err != nil {
		return err
	}
	for _, st := range s.steps() {
		began := time.Now()
		if _, err := c.Exec(ctx, st.sql, st.args); err != nil {
			return fmt.Errorf("loading %s: %w", st.name, err)
		}
		say(st.name, time.Since(began))
	}
	began := time.Now()
	for _, sql := range append(restore, `RESET ALL`, `ANALYZE`, `CHECKPOINT`) {
		if _, err := c.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	say("indexes and statistics", time.Since(began))
	return nil
}

type step struct {
	name, sql string
	args      pgx.NamedArgs
}

// uuidOf makes the UUIDv7 of row i of a kind, time-ordered as real ones are, over the year before now.
func uuidOf(kind string) string {
	return `(lpad(to_hex(floor(extract(epoch FROM now() - interval '365 days') * 1000)::bigint + i * 31536000000 / @n), 12, '0') || '7' || substr(md5('` + kind + `' || i), 1, 3) || '8' || substr(md5('` + kind + `' || i), 4, 15))::uuid`
}

// serialOf is 16 octets, the first of them 1 to 127, so that the DER integer has 16 octets too.
const serialOf = `set_byte(substring(sha256(('s' || i)::bytea) FROM 1 FOR 16), 0, 1 + (i % 127)::int)`

// kindOf splits the fleet: every due-th certificate is due, the ones behind them are revoked, and of the rest one in fifty is
// archived.
const kindOf = `CASE WHEN @due > 0 AND i % greatest(@n / greatest(@due, 1), 1) = 0 AND i / greatest(@n / greatest(@due, 1), 1) < @due THEN 'due'
	WHEN @revoked > 0 AND i % greatest(@n / greatest(@revoked, 1), 1) = 1 % greatest(@n / greatest(@revoked, 1), 1) AND i / greatest(@n / greatest(@revoked, 1), 1) < @revoked THEN 'revoked'
	WHEN i % 50 = 7 THEN 'archived' ELSE 'live' END`

func (s Size) steps() []step {
	args := pgx.NamedArgs{"n": s.Certificates, "due": s.Due, "revoked": s.Revoked, "narrow": s.Narrow, "blob": max(s.Blob, 64), "finished": s.Finished}
	all := []step{{"certificates", certificates, args}}
	if !s.Narrow {
		all = append(all, step{"jobs", jobs, args}, step{"attempts", attempts, args}, step{"versions", versions, args}, step{"blobs", blobs, args})
	}
	if s.Revoked > 0 && !s.Narrow {
		all = append(all, step{"revocations", revocations, args})
	}
	if s.Finished > 0 {
		all = append(all, step{"finished jobs", finished, args})
	}
	return all
}

var certificates = `INSERT INTO certificates (id, name, common_name, sans, issuer_id, profile_id, renewal_policy_id, environment, tags, key_custody,
		current_version_id, not_after, revoked_at, renew_at, renew_reason, created_by, created_at, archived_at)
	SELECT ` + uuidOf("c") + `, host, left(host, 64), CASE WHEN i % 10 = 3 THEN ARRAY[host, 'www.' || host, 'api.' || host] ELSE ARRAY[host] END, iss.id, prf.id, rpl.id,
		(ARRAY['production','staging','test'])[1 + i % 3], jsonb_build_object('team', 'team-' || i % 200, 'app', 'svc-' || i % 5000), 'server',
		CASE WHEN NOT @narrow THEN ` + uuidOf("v") + ` END, CASE WHEN NOT @narrow THEN CASE kind WHEN 'due' THEN now() + interval '15 days' ELSE now() + interval '20 days' + (i % 2300) * interval '17 minutes' END END,
		CASE kind WHEN 'revoked' THEN date_trunc('second', now()) - interval '1 day' END,
		CASE kind WHEN 'due' THEN now() - (i % 3600) * interval '1 second' WHEN 'revoked' THEN NULL ELSE now() + interval '1 day' + (i % 43200) * interval '1 minute' END,
		'two thirds of the lifetime', 'bench', now() - interval '365 days' + (i::float8 / @n) * interval '365 days', CASE kind WHEN 'archived' THEN now() END
	FROM (SELECT i, 'svc-' || i || '.team-' || i % 200 || '.example.com' AS host, ` + kindOf + ` AS kind FROM generate_series(0::bigint, @n::bigint - 1) AS i) x,
		(SELECT id FROM issuers ORDER BY created_at LIMIT 1) iss, (SELECT id FROM profiles ORDER BY created_at LIMIT 1) prf, (SELECT id FROM renewal_policies ORDER BY created_at LIMIT 1) rpl`

var jobs = `INSERT INTO jobs (id, type, runner, status, certificate_id, issuer_id, lease_no, lease_run, requested_by, requested_role, created_at, started_at, completed_at, result)
	SELECT ` + uuidOf("j") + `, 'Renewal', 'worker', 'Completed', ` + uuidOf("c") + `, iss.id, 1, 'bench', 'system:sweep', 'system', at, at, at, jsonb_build_object('serial', i)
	FROM (SELECT i, now() - interval '365 days' + (i::float8 / @n) * interval '365 days' AS at FROM generate_series(0::bigint, @n::bigint - 1) AS i) x, (SELECT id FROM issuers ORDER BY created_at LIMIT 1) iss`

var attempts = `INSERT INTO job_attempts (job_id, lease_no, claimant, started_at, ended_at, outcome)
	SELECT ` + uuidOf("j") + `, 1, 'bench', now() - interval '1 day', now() - interval '1 day', 'completed' FROM generate_series(0::bigint, @n::bigint - 1) AS i`

var versions = `INSERT INTO versions (id, certificate_id, issuer_id, generation_id, job_id, serial, not_before, not_after, fingerprint, spki_sha256, key_algorithm, revoked_at, revocation_reason, status_changed_at, created_at)
	SELECT ` + uuidOf("v") + `, ` + uuidOf("c") + `, g.issuer_id, g.id, ` + uuidOf("j") + `, ` + serialOf + `, now() - interval '27 days', now() + interval '20 days', sha256(('f' || i)::bytea), sha256(('k' || i)::bytea), 'ecdsa-p256',
		CASE kind WHEN 'revoked' THEN date_trunc('second', now()) - interval '1 day' END, CASE kind WHEN 'revoked' THEN 0 END, CASE kind WHEN 'revoked' THEN now() - interval '1 day' END,
		now() - interval '365 days' + (i::float8 / @n) * interval '365 days'
	FROM (SELECT i, ` + kindOf + ` AS kind FROM generate_series(0::bigint, @n::bigint - 1) AS i) x, (SELECT id, issuer_id FROM ca_generations ORDER BY created_at LIMIT 1) g`

var blobs = `INSERT INTO version_blobs (version_id, chain, csr) SELECT ` + uuidOf("v") + `, ARRAY[convert_to(rpad(md5(i::text), @blob, md5(i::text)), 'UTF8')], convert_to(rpad(md5('r' || i), @blob, md5('r' || i)), 'UTF8')
	FROM generate_series(0::bigint, @n::bigint - 1) AS i`

// SEQUENCE { INTEGER of 16 octets, UTCTime }
var revocations = `INSERT INTO revocations (generation_id, shard, serial, reason, revoked_at, entry, expires_at, version_id)
	SELECT generation_id, 0, serial, 0, revoked_at, '\x30210210'::bytea || serial || '\x170d'::bytea || convert_to(to_char(revoked_at AT TIME ZONE 'UTC', 'YYMMDDHH24MISS') || 'Z', 'UTF8'), not_after, id
	FROM versions WHERE revoked_at IS NOT NULL ON CONFLICT DO NOTHING`

var finished = `INSERT INTO jobs (id, type, runner, status, requested_by, requested_role, lease_no, created_at, started_at, completed_at)
	SELECT gen_random_uuid(), 'IssuerTest', 'worker', 'Completed', 'bench', 'system', 1, at, at, at FROM (SELECT now() - i * interval '1 second' AS at FROM generate_series(1::bigint, @finished::bigint) AS i) x`

// kept are the indexes that a narrow fleet has: what the sweep and the claims use.
var kept = map[string]bool{"certificates_due": true, "jobs_claim_worker": true, "jobs_lease": true, "jobs_one_open_issuance": true}

// dropIndexes drops the secondary indexes of the loaded tables and answers the statements that make them again.
func dropIndexes(ctx context.Context, c *pgx.Conn, narrow bool) (restore []string, err error) {
	rows, err := c.Query(ctx, `SELECT i.relname, pg_get_indexdef(x.indexrelid) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
		WHERE t.relname IN ('certificates','jobs','versions','revocations') AND NOT EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conindid = x.indexrelid) ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	type index struct{ Name, Def string }
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[index])
	if err != nil {
		return nil, err
	}
	for _, x := range found {
		if _, err := c.Exec(ctx, `DROP INDEX `+pgx.Identifier{x.Name}.Sanitize()); err != nil {
			return nil, err
		}
		if !narrow || kept[x.Name] || strings.HasPrefix(x.Name, "versions_") {
			restore = append(restore, x.Def)
		}
	}
	return restore, nil
}
