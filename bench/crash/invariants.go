// Package crash proves that nothing is lost and nothing is done twice. Its tests, run by make crash-test, kill the built
// programs at every recorded step, cut their connections and end their database, and then ask this file.
//
// Invariants holds the promises as SQL over the tables, each a query for rows that break it; Broken runs them and reads the
// published CRLs back. Other tests may call Broken on any database at any moment: only the invariants marked Settled wait
// until no work is open.
package crash

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Invariant is a promise about the tables. SQL answers one text for each thing that breaks it.
type Invariant struct {
	Name    string
	Settled bool // true only once all work has ended
	SQL     string
}

const (
	open     = `('Pending','AwaitingApproval','AwaitingCSR','Running')`
	ended    = `('Completed','Failed','Cancelled')`
	issuance = `('Issuance','Renewal')`
)

// told asks for exactly one audit event of an action for each row of a query (resource, key, value): its resource, and
// details->>key = value unless key is ”.
func told(action, rows string) string {
	return `SELECT r.resource || ' has ' || count(e.id) || ' events ` + action + ` of ' || r.value FROM (` + rows + `) AS r(resource, key, value)
		LEFT JOIN audit_events e ON e.action = '` + action + `' AND e.resource_id = r.resource AND (r.key = '' OR e.details->>r.key = r.value)
		GROUP BY r.resource, r.key, r.value HAVING count(e.id) <> 1`
}

// Invariants are all promises over the tables.
var Invariants = []Invariant{
	{Name: "no job is lost", SQL: `SELECT type_id('job', id) || ' ' || type || ' ' || status || ' waits for nobody' FROM jobs WHERE
		status = 'Running' AND leased_until > now() + interval '1 hour' OR status = 'Pending' AND scheduled_at > now() + interval '1 day' OR status = 'AwaitingCSR' AND csr_deadline > now() + interval '1 day'`},
	{Name: "all work has ended", Settled: true, SQL: `SELECT type_id('job', id) || ' ' || type || ' is ' || status FROM jobs WHERE status IN ` + open},
	{Name: "leases are on running jobs only", SQL: `SELECT type_id('job', id) || ' ' || status FROM jobs WHERE (leased_until IS NOT NULL) <> (status = 'Running')`},
	{Name: "each claim has its own lease", SQL: `SELECT type_id('job', j.id) || ' has lease ' || j.lease_no || ' after ' || count(a.job_id) || ' claims' FROM jobs j LEFT JOIN job_attempts a ON a.job_id = j.id
		GROUP BY j.id HAVING j.lease_no <> count(a.job_id) OR j.lease_no <> coalesce(max(a.lease_no), 0)`},
	{Name: "one claim at a time", SQL: `SELECT type_id('job', a.job_id) || ' leases ' || a.lease_no || ' and ' || b.lease_no FROM job_attempts a JOIN job_attempts b ON a.job_id = b.job_id AND a.lease_no < b.lease_no
		AND (a.ended_at IS NULL OR a.ended_at > b.started_at)`},
	{Name: "a claim is open while its job runs", SQL: `SELECT type_id('job', a.job_id) || ' lease ' || a.lease_no || ', job ' || j.status FROM job_attempts a JOIN jobs j ON j.id = a.job_id
		WHERE (a.ended_at IS NULL) <> (j.status = 'Running' AND j.lease_no = a.lease_no) OR (a.ended_at IS NULL) <> (a.outcome IS NULL)`},
	{Name: "a job completes once", SQL: `SELECT type_id('job', j.id) || ' ' || j.status || ' completed ' || count(a.job_id) || ' times' FROM jobs j LEFT JOIN job_attempts a ON a.job_id = j.id AND a.outcome = 'completed'
		GROUP BY j.id HAVING count(a.job_id) <> CASE j.status WHEN 'Completed' THEN 1 ELSE 0 END`},
	{Name: "one open issuance per certificate", SQL: `SELECT type_id('crt', certificate_id) || ' has ' || count(*) FROM jobs WHERE type IN ` + issuance + ` AND status IN ` + open + ` GROUP BY certificate_id HAVING count(*) > 1`},
	{Name: "the open job is the certificate's", SQL: `SELECT type_id('crt', c.id) || ' names ' || coalesce(type_id('job', j.id), 'a job that is not there') FROM certificates c LEFT JOIN jobs j ON j.id = c.open_job_id
			WHERE c.open_job_id IS NOT NULL AND (j.id IS NULL OR j.certificate_id <> c.id OR j.type NOT IN ` + issuance + ` OR j.status IN ` + ended + `)
		UNION ALL SELECT type_id('job', j.id) || ' is open and its certificate does not know' FROM jobs j JOIN certificates c ON c.id = j.certificate_id
			WHERE j.type IN ` + issuance + ` AND j.status IN ` + open + ` AND c.open_job_id IS DISTINCT FROM j.id`},
	{Name: "one version per completed issuance", SQL: `SELECT type_id('job', j.id) || ' ' || j.status || ' has ' || count(v.id) || ' versions' FROM jobs j LEFT JOIN versions v ON v.job_id = j.id AND v.certificate_id = j.certificate_id
		GROUP BY j.id HAVING count(v.id) <> CASE WHEN j.status = 'Completed' AND j.type IN ` + issuance + ` THEN 1 ELSE 0 END`},
	{Name: "the job's result is its version", SQL: `SELECT type_id('job', j.id) || ' says ' || coalesce(j.result::text, 'nothing') FROM jobs j JOIN versions v ON v.job_id = j.id
		WHERE j.result->>'version_id' IS DISTINCT FROM type_id('ver', v.id) OR j.result->>'serial' IS DISTINCT FROM ltrim(encode(v.serial, 'hex'), '0')`},
	{Name: "a version is what was recorded before it was signed", SQL: `SELECT type_id('ver', v.id) FROM versions v JOIN jobs j ON j.id = v.job_id WHERE v.generation_id IS NOT NULL
		AND convert_from(decode(j.checkpoint->>'driver', 'base64'), 'UTF8')::jsonb->>'serial' IS DISTINCT FROM ltrim(encode(v.serial, 'hex'), '0')`},
	{Name: "a serial is given once", SQL: `SELECT encode(serial, 'hex') || ' has ' || count(*) FROM versions GROUP BY coalesce(generation_id, issuer_id), serial HAVING count(*) > 1`},
	{Name: "a version is whole", SQL: `SELECT type_id('ver', v.id) FROM versions v JOIN certificates c ON c.id = v.certificate_id LEFT JOIN version_blobs b ON b.version_id = v.id LEFT JOIN version_keys k ON k.version_id = v.id
		WHERE b.chain IS NULL OR sha256(b.chain[1]) <> v.fingerprint OR (k.sealed IS NOT NULL) <> (c.key_custody = 'server')`},
	{Name: "the current version is the newest", SQL: `SELECT type_id('crt', c.id) FROM certificates c LEFT JOIN versions v ON v.id = c.current_version_id
		WHERE c.current_version_id IS DISTINCT FROM (SELECT n.id FROM versions n WHERE n.certificate_id = c.id ORDER BY n.created_at DESC, n.id DESC LIMIT 1)
			OR c.not_after IS DISTINCT FROM v.not_after OR c.revoked_at IS DISTINCT FROM v.revoked_at`},
	{Name: "every target wants the current version", SQL: `SELECT type_id('dep', d.id) FROM deployments d JOIN certificates c ON c.id = d.certificate_id WHERE d.removed_at IS NULL AND c.archived_at IS NULL AND d.desired_version_id IS DISTINCT FROM c.current_version_id`},
	{Name: "what is wanted is installed", Settled: true, SQL: `SELECT type_id('dep', d.id) || ' ' || coalesce(d.last_error, '') FROM deployments d JOIN targets t ON t.id = d.target_id WHERE d.removed_at IS NULL
		AND (d.installed_version_id IS DISTINCT FROM d.desired_version_id OR t.verify IS NOT NULL AND d.served_version_id IS DISTINCT FROM d.desired_version_id)`},
	{Name: "one deployment per version and target", SQL: `SELECT type_id('crt', certificate_id) || ' deployed ' || count(*) || ' times: ' || (result->>'version_id') FROM jobs j WHERE type = 'Deployment' AND status = 'Completed'
		AND NOT EXISTS (SELECT 1 FROM audit_events e WHERE e.action = 'certificate.deployment_requested' AND e.resource_id = type_id('crt', j.certificate_id))
		GROUP BY certificate_id, target_id, result->>'version_id' HAVING count(*) > 1`},
	{Name: "CRL numbers grow", SQL: `SELECT s.generation_id || ' ' || s.current_number || ' of ' || s.next_number FROM crl_state s WHERE s.current_number >= s.next_number
			OR s.current_number <> coalesce((SELECT max(number) FROM crls c WHERE c.generation_id = s.generation_id AND c.shard = s.shard), 0) OR s.published_gen > s.dirty_gen
		UNION ALL SELECT a.generation_id || ' ' || a.number || ' is not older than ' || b.number FROM crls a JOIN crls b ON a.generation_id = b.generation_id AND a.shard = b.shard AND a.number < b.number AND a.this_update > b.this_update
		UNION ALL SELECT generation_id || ' number ' || (result->>'number') || ' was given twice' FROM jobs WHERE type = 'CRL' AND status = 'Completed' GROUP BY generation_id, crl_shard, result->>'number' HAVING count(*) > 1
		UNION ALL SELECT s.generation_id || ' fell back behind ' || max((j.result->>'number')::bigint) FROM crl_state s JOIN jobs j ON j.type = 'CRL' AND j.status = 'Completed' AND j.generation_id = s.generation_id AND j.crl_shard = s.shard
			GROUP BY s.generation_id, s.shard HAVING s.current_number < max((j.result->>'number')::bigint)`},
	{Name: "what is revoked is published", Settled: true, SQL: `SELECT generation_id || ' is dirty: ' || dirty_gen || ' > ' || published_gen FROM crl_state WHERE dirty_gen > published_gen`},
	{Name: "the entries are the revoked versions", SQL: `SELECT 'serial ' || encode(coalesce(v.serial, r.serial), 'hex') FROM (SELECT * FROM versions WHERE revoked_at IS NOT NULL AND generation_id IS NOT NULL AND NOT revocation_exempt) v
		FULL JOIN revocations r ON r.version_id = v.id WHERE v.id IS NULL OR r.version_id IS NULL OR v.serial <> r.serial OR v.revocation_reason <> r.reason OR v.revoked_at <> r.revoked_at`},
	{Name: "one responder certificate per job", SQL: `SELECT g.id || ' has ' || (SELECT count(*) FROM ocsp_responders r WHERE r.generation_id = g.id) || ' responders of ' || (SELECT count(*) FROM jobs j WHERE j.type = 'Responder' AND j.status = 'Completed' AND j.result IS NOT NULL AND j.generation_id = g.id) || ' jobs'
		FROM ca_generations g WHERE (SELECT count(*) FROM ocsp_responders r WHERE r.generation_id = g.id) <> (SELECT count(*) FROM jobs j WHERE j.type = 'Responder' AND j.status = 'Completed' AND j.result IS NOT NULL AND j.generation_id = g.id)`},
	{Name: "a CA can answer", Settled: true, SQL: `SELECT g.id::text FROM ca_generations g WHERE NOT EXISTS (SELECT 1 FROM ocsp_responders r WHERE r.generation_id = g.id AND r.not_after > now())`},
	{Name: "one first start", SQL: `SELECT n || ' ' || what FROM (SELECT count(*) n, 'instances' AS what FROM instance UNION ALL SELECT count(*), 'issuers local' FROM issuers WHERE name = 'local' UNION ALL SELECT count(*), 'profiles default' FROM profiles WHERE name = 'default'
		UNION ALL SELECT count(*), 'policies default' FROM renewal_policies WHERE name = 'default') x WHERE n <> 1 UNION ALL SELECT count(*) || ' first admin keys' FROM api_keys WHERE created_by = 'system:first-start' HAVING count(*) > 1`},
	{Name: "an idempotency key has its answer", SQL: `SELECT route FROM idempotency_keys WHERE status IS NULL`},
	{Name: "an enrollment token makes one agent", SQL: `SELECT type_id('agt', a.id) || ' of ' || count(t.id) || ' tokens' FROM agents a LEFT JOIN agent_tokens t ON t.agent_id = a.id GROUP BY a.id HAVING count(t.id) <> 1`},
	{Name: "what has ended holds no key", SQL: `SELECT type_id('job', id) FROM jobs WHERE status IN ` + ended + ` AND (checkpoint ? 'sealed_key' OR checkpoint ? 'key')`},

	{Name: "audited: certificates", SQL: told("certificate.created", `SELECT type_id('crt', id), '', '' FROM certificates WHERE id IN (SELECT certificate_id FROM jobs WHERE requested_by <> 'test')`)},
	{Name: "audited: versions", SQL: told("certificate.issued", `SELECT type_id('crt', certificate_id), 'version_id', type_id('ver', id) FROM versions`)},
	{Name: "audited: only what was issued", SQL: `SELECT e.resource_id FROM audit_events e WHERE e.action = 'certificate.issued' AND NOT EXISTS (SELECT 1 FROM versions v WHERE type_id('ver', v.id) = e.details->>'version_id')`},
	{Name: "audited: failed issuances", SQL: told("certificate.issuance_failed", `SELECT type_id('crt', certificate_id), 'job_id', type_id('job', id) FROM jobs WHERE type IN `+issuance+` AND status = 'Failed'`)},
	{Name: "audited: renewals", SQL: told("certificate.renewal_requested", `SELECT type_id('crt', certificate_id), 'job_id', type_id('job', id) FROM jobs WHERE type = 'Renewal' AND requested_by <> 'test'`)},
	{Name: "audited: revocations", SQL: told("certificate.revoked", `SELECT type_id('crt', certificate_id), 'version_id', type_id('ver', id) FROM versions WHERE revoked_at IS NOT NULL`)},
	{Name: "audited: certificate requests", SQL: told("certificate.csr_accepted", `SELECT type_id('crt', certificate_id), 'job_id', type_id('job', id) FROM jobs WHERE csr IS NOT NULL`)},
	{Name: "audited: deployments", SQL: told("deployment.completed", `SELECT type_id('crt', certificate_id), 'job_id', type_id('job', id) FROM jobs WHERE type = 'Deployment' AND status = 'Completed'`)},
	{Name: "audited: failed deployments", SQL: told("deployment.failed", `SELECT type_id('crt', certificate_id), 'job_id', type_id('job', id) FROM jobs WHERE type = 'Deployment' AND status = 'Failed'`)},
	{Name: "audited: generations", SQL: told("issuer.generation_added", `SELECT type_id('iss', issuer_id), 'generation', number::text FROM ca_generations`)},
	{Name: "audited: keys", SQL: told("key.created", `SELECT type_id('key', id), '', '' FROM api_keys`)},
	// A repeated enrollment, whose first answer was lost, makes a new credential and says so too.
	{Name: "audited: agents", SQL: `SELECT type_id('agt', id) FROM agents a WHERE NOT EXISTS (SELECT 1 FROM audit_events e WHERE e.action = 'agent.enrolled' AND e.resource_id = type_id('agt', a.id))`},
	{Name: "the trail is sealed", SQL: `SELECT type_id('evt', id) FROM audit_events WHERE leaf_hash <> sha256('\x00'::bytea || canonical)`},
}

// Querier reads.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// shown bounds how many violations of one invariant are told.
const shown = 5

// Broken answers what a database breaks, one line each; none when all holds. settled asks for the end state too: no work is
// open and what was asked for is in place.
func Broken(ctx context.Context, q Querier, settled bool) ([]string, error) {
	var out []string
	for _, i := range Invariants {
		if i.Settled && !settled {
			continue
		}
		rows, err := q.Query(ctx, `SELECT * FROM (`+i.SQL+`) AS x(what) LIMIT $1`, shown)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", i.Name, err)
		}
		found, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", i.Name, err)
		}
		for _, f := range found {
			out = append(out, i.Name+": "+f)
		}
	}
	lists, err := brokenCRLs(ctx, q, settled)
	return append(out, lists...), err
}

// brokenCRLs reads every stored CRL back: its number is its row's, and the current one of a clean shard holds exactly the
// entries.
func brokenCRLs(ctx context.Context, q Querier, settled bool) ([]string, error) {
	type list struct {
		Generation       string
		Number           int64
		DER              []byte
		Current, Settled bool
		Serials          []string
	}
	rows, err := q.Query(ctx, `SELECT c.generation_id::text AS generation, c.number, c.der, c.number = s.current_number AS current, s.dirty_gen = s.published_gen AS settled,
			ARRAY(SELECT ltrim(encode(r.serial, 'hex'), '0') FROM revocations r WHERE r.generation_id = c.generation_id AND r.shard = c.shard AND r.listed_at IS NULL ORDER BY 1) AS serials
		FROM crls c JOIN crl_state s USING (generation_id, shard)`)
	if err != nil {
		return nil, err
	}
	lists, err := pgx.CollectRows(rows, pgx.RowToStructByName[list])
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range lists {
		c, err := x509.ParseRevocationList(l.DER)
		if err != nil {
			out = append(out, fmt.Sprintf("the CRL %d of %s cannot be read: %v", l.Number, l.Generation, err))
			continue
		}
		if c.Number == nil || c.Number.Int64() != l.Number {
			out = append(out, fmt.Sprintf("the CRL %d of %s carries the number %v", l.Number, l.Generation, c.Number))
		}
		if got := serials(c); l.Current && l.Settled && !slices.Equal(got, l.Serials) {
			out = append(out, fmt.Sprintf("the CRL %d of %s holds %v, revoked are %v", l.Number, l.Generation, got, l.Serials))
		}
	}
	if settled && len(lists) == 0 {
		out = append(out, "no CRL is published")
	}
	return out, nil
}

func serials(c *x509.RevocationList) []string {
	out := make([]string, 0, len(c.RevokedCertificateEntries))
	for _, e := range c.RevokedCertificateEntries {
		out = append(out, strings.TrimLeft(hex.EncodeToString(e.SerialNumber.Bytes()), "0"))
	}
	slices.Sort(out)
	return out
}
