-- +goose Up

-- One role per function, without login: an installation grants each to the login that its function uses
-- (GRANT certctl_worker TO my_worker_login). Roles belong to the cluster, so another database may have made them already.
-- +goose StatementBegin
DO $$
DECLARE r text;
BEGIN
  FOREACH r IN ARRAY ARRAY['certctl_api','certctl_sweep','certctl_worker','certctl_responder','certctl_agentpoll'] LOOP
    BEGIN
      EXECUTE format('CREATE ROLE %I NOLOGIN', r);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
    END;
  END LOOP;
END $$;
-- +goose StatementEnd

-- UUIDv7 (RFC 9562) for rows that are made inside SQL; rows made in Go bring their own.
-- +goose StatementBegin
CREATE FUNCTION uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
  SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
    PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid
$$;
-- +goose StatementEnd

-- A TypeID from a uuid: prefix, underscore, 26 digits of Crockford's base32 (TypeID v0.3), as shared/id writes it. The first
-- octet makes two digits, then each five octets make eight. In Postgres shifts and & | bind alike, hence the parentheses.
-- +goose StatementBegin
CREATE FUNCTION type_id(prefix text, u uuid) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
  d CONSTANT text := '0123456789abcdefghjkmnpqrstvwxyz';
  b CONSTANT bytea := uuid_send(u);
  n bigint;
  s text := prefix || '_' || substr(d, 1 + (get_byte(b, 0) >> 5), 1) || substr(d, 1 + (get_byte(b, 0) & 31), 1);
BEGIN
  FOR i IN 1..11 BY 5 LOOP
    n := (get_byte(b, i)::bigint << 32) | (get_byte(b, i + 1)::bigint << 24) | (get_byte(b, i + 2) << 16) | (get_byte(b, i + 3) << 8) | get_byte(b, i + 4);
    s := s || substr(d, 1 + (n >> 35)::int, 1) || substr(d, 1 + ((n >> 30) & 31)::int, 1) || substr(d, 1 + ((n >> 25) & 31)::int, 1) || substr(d, 1 + ((n >> 20) & 31)::int, 1)
      || substr(d, 1 + ((n >> 15) & 31)::int, 1) || substr(d, 1 + ((n >> 10) & 31)::int, 1) || substr(d, 1 + ((n >> 5) & 31)::int, 1) || substr(d, 1 + (n & 31)::int, 1);
  END LOOP;
  RETURN s;
END $$;
-- +goose StatementEnd

-- The instance: exists once the first start has committed. canary is a sealed constant that proves the master key.
CREATE TABLE instance (
  one        boolean PRIMARY KEY DEFAULT true CHECK (one),
  id         uuid NOT NULL DEFAULT gen_random_uuid(), -- binds the canary
  canary     bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);

-- ── people and credentials ──────────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE api_keys (
  id           uuid PRIMARY KEY,
  name         text NOT NULL CHECK (name <> '' AND length(name) <= 200),
  hash         bytea NOT NULL CHECK (length(hash) = 32), -- SHA-256 of the secret part
  principal    text NOT NULL CHECK (principal = lower(principal) AND principal <> '' AND length(principal) <= 200),
  role         text NOT NULL CHECK (role IN ('viewer','auditor','operator','admin')),
  created_by   text NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT now(),
  last_used_at timestamptz,
  expires_at   timestamptz,
  disabled_at  timestamptz
);
CREATE INDEX api_keys_created ON api_keys (created_at, id);
CREATE INDEX api_keys_principal ON api_keys (principal);

-- Failed authentications, one row per known key (or 'unknown'), address and minute; the first of a minute is audited.
CREATE TABLE auth_failures (
  key_id  text NOT NULL,
  address text NOT NULL,
  minute  timestamptz NOT NULL,
  count   integer NOT NULL DEFAULT 1,
  PRIMARY KEY (key_id, address, minute)
);

-- Answers kept for Idempotency-Key. A row is made, and its answer stored, in the transaction of the effect.
CREATE TABLE idempotency_keys (
  principal   text NOT NULL,
  route       text NOT NULL,
  key         text NOT NULL,
  body_hash   bytea NOT NULL,
  resource_id text,
  secret      boolean NOT NULL DEFAULT false,
  status      integer,
  headers     jsonb,
  body        bytea,
  created_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (principal, route, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

CREATE TABLE teams (
  id          uuid PRIMARY KEY,
  name        text NOT NULL CHECK (name <> '' AND length(name) <= 200),
  created_at  timestamptz NOT NULL DEFAULT now(),
  archived_at timestamptz
);
CREATE UNIQUE INDEX teams_name ON teams (lower(name)) WHERE archived_at IS NULL;
CREATE INDEX teams_created ON teams (created_at, id);

CREATE TABLE owners (
  id          uuid PRIMARY KEY,
  name        text NOT NULL CHECK (name <> '' AND length(name) <= 200),
  email       text CHECK (length(email) <= 320),
  team_id     uuid REFERENCES teams,
  created_at  timestamptz NOT NULL DEFAULT now(),
  archived_at timestamptz
);
CREATE UNIQUE INDEX owners_name ON owners (lower(name)) WHERE archived_at IS NULL;
CREATE INDEX owners_created ON owners (created_at, id);

-- ── issuers, profiles, policies ─────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE issuers (
  id            uuid PRIMARY KEY,
  name          text NOT NULL CHECK (name <> '' AND length(name) <= 200),
  type          text NOT NULL CHECK (type <> ''),
  config        jsonb NOT NULL DEFAULT '{}', -- what may be read back
  sealed_config bytea,                       -- what is write-only, sealed for purpose config
  last_test     jsonb,                       -- {at, ok, detail} of the newest connection test
  created_at    timestamptz NOT NULL DEFAULT now(),
  updated_at    timestamptz NOT NULL DEFAULT now(),
  archived_at   timestamptz
);
CREATE UNIQUE INDEX issuers_name ON issuers (lower(name)) WHERE archived_at IS NULL;
CREATE INDEX issuers_created ON issuers (created_at, id);

-- A local CA's generations: re-key and renewal add one and keep the issuer. Exactly one key source is set.
CREATE TABLE ca_generations (
  id            uuid PRIMARY KEY,
  issuer_id     uuid NOT NULL REFERENCES issuers,
  number        integer NOT NULL CHECK (number >= 1),
  certificate   bytea NOT NULL,              -- DER
  parents       bytea[] NOT NULL DEFAULT '{}', -- DER, issuing CA first, the root left out; empty for a root
  sealed_key    bytea,                       -- PKCS#8, sealed for purpose ca
  key_uri       text,                        -- file:, awskms:, pkcs11: …
  name_sha1     bytea NOT NULL, key_sha1   bytea NOT NULL, -- CertID hashes (RFC 6960, 4.1.1)
  name_sha256   bytea NOT NULL, key_sha256 bytea NOT NULL,
  crl_shards    smallint NOT NULL DEFAULT 1 CHECK (crl_shards BETWEEN 1 AND 1024),
  not_before    timestamptz NOT NULL,
  not_after     timestamptz NOT NULL,
  created_at    timestamptz NOT NULL DEFAULT now(),
  UNIQUE (issuer_id, number),
  CHECK (num_nonnulls(sealed_key, key_uri) = 1)
);
CREATE INDEX ca_generations_key_sha1 ON ca_generations (key_sha1);
CREATE INDEX ca_generations_key_sha256 ON ca_generations (key_sha256);

-- A key of ours that waits for its certificate from a CA above (a sub-CA's request). It becomes the generation of the same id.
CREATE TABLE ca_requests (
  id          uuid PRIMARY KEY,
  issuer_id   uuid NOT NULL REFERENCES issuers,
  csr         bytea NOT NULL,
  sealed_key  bytea NOT NULL,              -- bound to ca_generations and this id
  created_at  timestamptz NOT NULL DEFAULT now(),
  fulfilled_at timestamptz
);
CREATE UNIQUE INDEX ca_requests_open ON ca_requests (issuer_id) WHERE fulfilled_at IS NULL;

-- The key of a request moves on to its generation here, so that the function that brings the certificate need not read it.
-- +goose StatementBegin
CREATE FUNCTION generation_key() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
  NEW.sealed_key := (SELECT sealed_key FROM ca_requests WHERE id = NEW.id AND issuer_id = NEW.issuer_id);
  RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER generation_key BEFORE INSERT ON ca_generations FOR EACH ROW
  WHEN (num_nonnulls(NEW.sealed_key, NEW.key_uri) = 0) EXECUTE FUNCTION generation_key();

CREATE TABLE profiles (
  id                uuid PRIMARY KEY,
  name              text NOT NULL CHECK (name <> '' AND length(name) <= 200),
  key_algorithms    text[] NOT NULL CHECK (cardinality(key_algorithms) >= 1),
  max_ttl_seconds   bigint NOT NULL CHECK (max_ttl_seconds >= 60),
  ekus              text[] NOT NULL CHECK (cardinality(ekus) >= 1),
  name_patterns     text[] NOT NULL DEFAULT '{}', -- empty: any name
  must_staple       boolean NOT NULL DEFAULT false,
  public_tls        boolean NOT NULL DEFAULT false, -- lint with the CA/Browser Forum's sources too
  requires_approval boolean NOT NULL DEFAULT false,
  key_custody       text CHECK (key_custody IN ('agent','server')),
  created_at        timestamptz NOT NULL DEFAULT now(),
  updated_at        timestamptz NOT NULL DEFAULT now(),
  archived_at       timestamptz
);
CREATE UNIQUE INDEX profiles_name ON profiles (lower(name)) WHERE archived_at IS NULL;
CREATE INDEX profiles_created ON profiles (created_at, id);

CREATE TABLE renewal_policies (
  id                uuid PRIMARY KEY,
  name              text NOT NULL CHECK (name <> '' AND length(name) <= 200),
  renew_at_fraction double precision NOT NULL CHECK (renew_at_fraction > 0 AND renew_at_fraction < 1),
  jitter            double precision NOT NULL CHECK (jitter >= 0 AND jitter <= 0.5),
  auto_renew        boolean NOT NULL DEFAULT true,
  alert_fractions   double precision[] NOT NULL DEFAULT '{}',
  created_at        timestamptz NOT NULL DEFAULT now(),
  updated_at        timestamptz NOT NULL DEFAULT now(),
  archived_at       timestamptz
);
CREATE UNIQUE INDEX renewal_policies_name ON renewal_policies (lower(name)) WHERE archived_at IS NULL;
CREATE INDEX renewal_policies_created ON renewal_policies (created_at, id);

-- ── agents and targets ──────────────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE agents (
  id                       uuid PRIMARY KEY,
  name                     text NOT NULL CHECK (name <> '' AND length(name) <= 200),
  hostname                 text NOT NULL DEFAULT '',
  os                       text NOT NULL DEFAULT '',
  arch                     text NOT NULL DEFAULT '',
  version                  text NOT NULL DEFAULT '',
  public_key               text,                     -- JWK, EC P-256
  credential_hash          bytea NOT NULL CHECK (length(credential_hash) = 32),
  previous_credential_hash bytea,                    -- accepted until the new one was used once: an answer may be lost
  poll_seconds             integer NOT NULL DEFAULT 300, -- promised with the last answer
  last_seen_at             timestamptz,
  offline_since            timestamptz,              -- written by the sweep
  created_at               timestamptz NOT NULL DEFAULT now(),
  retired_at               timestamptz
);
CREATE UNIQUE INDEX agents_name ON agents (lower(name)) WHERE retired_at IS NULL;
CREATE UNIQUE INDEX agents_public_key ON agents (md5(public_key)) WHERE retired_at IS NULL AND public_key IS NOT NULL;
CREATE INDEX agents_created ON agents (created_at, id);
CREATE INDEX agents_seen ON agents (last_seen_at) WHERE retired_at IS NULL AND offline_since IS NULL;

CREATE TABLE agent_tokens (
  id         uuid PRIMARY KEY,
  name       text,
  hash       bytea NOT NULL UNIQUE CHECK (length(hash) = 32),
  created_by text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz NOT NULL,
  used_at    timestamptz,
  agent_id   uuid REFERENCES agents
);

CREATE TABLE targets (
  id            uuid PRIMARY KEY,
  name          text NOT NULL CHECK (name <> '' AND length(name) <= 200),
  type          text NOT NULL CHECK (type <> ''),
  agent_id      uuid REFERENCES agents,
  config        jsonb NOT NULL DEFAULT '{}',
  sealed_config bytea,
  verify        jsonb,                       -- {address, server_name, from}
  last_test     jsonb,
  created_at    timestamptz NOT NULL DEFAULT now(),
  updated_at    timestamptz NOT NULL DEFAULT now(),
  archived_at   timestamptz
);
CREATE UNIQUE INDEX targets_name ON targets (lower(name)) WHERE archived_at IS NULL;
CREATE INDEX targets_created ON targets (created_at, id);
CREATE INDEX targets_agent ON targets (agent_id) WHERE agent_id IS NOT NULL;

-- ── certificates and versions ───────────────────────────────────────────────────────────────────────────────────────

-- Narrow and listable. not_after and revoked_at are facts of the current version, copied in the statement that changes
-- them, so that lists and the status filter need no join.
CREATE TABLE certificates (
  id                 uuid PRIMARY KEY,
  name               text NOT NULL CHECK (name <> '' AND length(name) <= 300),
  common_name        text NOT NULL DEFAULT '',
  sans               text[] NOT NULL,
  issuer_id          uuid NOT NULL REFERENCES issuers,
  profile_id         uuid NOT NULL REFERENCES profiles,
  renewal_policy_id  uuid NOT NULL REFERENCES renewal_policies,
  owner_id           uuid REFERENCES owners,
  team_id            uuid REFERENCES teams,
  environment        text CHECK (length(environment) <= 100),
  tags               jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(tags) = 'object'),
  key_custody        text NOT NULL CHECK (key_custody IN ('agent','server')),
  agent_id           uuid REFERENCES agents,  -- the key holder under agent custody
  current_version_id uuid,
  not_after          timestamptz,
  revoked_at         timestamptz,
  open_job_id        uuid,                    -- the open issuance
  renew_at           timestamptz,
  next_try_at        timestamptz,
  renew_reason       text,
  failures           integer NOT NULL DEFAULT 0,
  ari_check_at       timestamptz,
  auto_renew         boolean NOT NULL DEFAULT true,
  created_by         text NOT NULL,
  created_at         timestamptz NOT NULL DEFAULT now(),
  updated_at         timestamptz NOT NULL DEFAULT now(),
  archived_at        timestamptz,
  CHECK ((key_custody = 'agent') = (agent_id IS NOT NULL)),
  CHECK (num_nonnulls(current_version_id, not_after) <> 1)
);
CREATE INDEX certificates_due ON certificates (greatest(renew_at, next_try_at))
  WHERE open_job_id IS NULL AND auto_renew AND archived_at IS NULL;
CREATE INDEX certificates_created ON certificates (created_at, id);
CREATE INDEX certificates_name ON certificates (name, id);
CREATE INDEX certificates_not_after ON certificates (coalesce(not_after, 'infinity'), id);
CREATE INDEX certificates_tags ON certificates USING gin (tags jsonb_path_ops);
CREATE INDEX certificates_issuer ON certificates (issuer_id);
CREATE INDEX certificates_agent ON certificates (agent_id) WHERE agent_id IS NOT NULL;

CREATE TABLE versions (
  id                uuid PRIMARY KEY,
  certificate_id    uuid NOT NULL REFERENCES certificates,
  issuer_id         uuid NOT NULL REFERENCES issuers,
  generation_id     uuid REFERENCES ca_generations, -- null for foreign CAs
  job_id            uuid NOT NULL,
  serial            bytea NOT NULL CHECK (length(serial) BETWEEN 1 AND 20 AND get_byte(serial, 0) <> 0), -- big endian, no leading zero octets
  not_before        timestamptz NOT NULL,
  not_after         timestamptz NOT NULL,
  fingerprint       bytea NOT NULL UNIQUE CHECK (length(fingerprint) = 32),
  spki_sha256       bytea NOT NULL CHECK (length(spki_sha256) = 32),
  key_algorithm     text NOT NULL,
  crl_shard         smallint NOT NULL DEFAULT 0,
  revocation_exempt boolean NOT NULL DEFAULT false, -- short-lived: no CRL, no OCSP
  revoked_at        timestamptz,
  revocation_reason smallint,
  status_changed_at timestamptz,                    -- last revocation or un-hold: OCSP answers may not go back behind it
  created_at        timestamptz NOT NULL DEFAULT now(),
  CHECK ((revoked_at IS NULL) = (revocation_reason IS NULL))
);
CREATE UNIQUE INDEX versions_serial_local ON versions (generation_id, serial) WHERE generation_id IS NOT NULL;
CREATE UNIQUE INDEX versions_serial_foreign ON versions (issuer_id, serial) WHERE generation_id IS NULL;
CREATE UNIQUE INDEX versions_job ON versions (job_id);
CREATE INDEX versions_certificate ON versions (certificate_id, created_at, id);
CREATE INDEX versions_spki ON versions (spki_sha256);
ALTER TABLE certificates ADD CONSTRAINT certificates_current_version FOREIGN KEY (current_version_id) REFERENCES versions;

CREATE TABLE version_blobs (
  version_id uuid PRIMARY KEY REFERENCES versions,
  chain      bytea[] NOT NULL, -- DER: leaf, intermediates, no root
  csr        bytea NOT NULL    -- DER
);

CREATE TABLE version_keys (
  version_id uuid PRIMARY KEY REFERENCES versions,
  sealed     bytea NOT NULL    -- PKCS#8, sealed for purpose leaf
);

-- Keys that may never be certified again (keyCompromise).
CREATE TABLE blocked_keys (
  spki_sha256 bytea PRIMARY KEY CHECK (length(spki_sha256) = 32),
  version_id  uuid REFERENCES versions,
  created_by  text NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now()
);

-- ── jobs ────────────────────────────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE jobs (
  id             uuid PRIMARY KEY,
  shard          smallint NOT NULL DEFAULT floor(random() * 16)::smallint CHECK (shard BETWEEN 0 AND 15),
  type           text NOT NULL CHECK (type IN ('Issuance','Renewal','Deployment','Revocation','BulkRevocation','CRL','Responder','ARI','Notification','Discovery','IssuerTest','TargetTest','Export','CARenewal')),
  runner         text NOT NULL CHECK (runner IN ('worker','agent')),
  agent_id       uuid REFERENCES agents,
  status         text NOT NULL CHECK (status IN ('Pending','AwaitingApproval','AwaitingCSR','Running','Completed','Failed','Cancelled')),
  priority       smallint NOT NULL DEFAULT 100,
  certificate_id uuid REFERENCES certificates,
  version_id     uuid REFERENCES versions,
  target_id      uuid REFERENCES targets,
  issuer_id      uuid REFERENCES issuers,
  generation_id  uuid REFERENCES ca_generations,
  crl_shard      smallint,
  scheduled_at   timestamptz NOT NULL DEFAULT now(),
  give_up_at     timestamptz,
  approve_by     timestamptz,
  csr_deadline   timestamptz,
  csr            bytea,                      -- DER, admitted
  lease_no       bigint NOT NULL DEFAULT 0,
  leased_until   timestamptz,
  lease_run      text,                       -- the run of the claimant: an agent's own work is handed out again to the same run
  attempts       integer NOT NULL DEFAULT 0,
  max_attempts   integer NOT NULL DEFAULT 5 CHECK (max_attempts >= 1),
  input          jsonb NOT NULL DEFAULT '{}', -- what the requester said (a reason, a filter)
  checkpoint     jsonb NOT NULL DEFAULT '{}', -- recorded steps
  result         jsonb,
  requested_by   text NOT NULL,
  requested_role text NOT NULL,
  requested_key  uuid REFERENCES api_keys,
  approved_by    text,
  approved_at    timestamptz,
  last_error     text,
  cancel_reason  text CHECK (cancel_reason IN ('cancelled','rejected','approval_expired','superseded')),
  created_at     timestamptz NOT NULL DEFAULT now(),
  started_at     timestamptz,
  completed_at   timestamptz,
  CHECK ((completed_at IS NOT NULL) = (status IN ('Completed','Failed','Cancelled'))),
  CHECK ((leased_until IS NOT NULL) = (status = 'Running')),
  CHECK ((cancel_reason IS NOT NULL) = (status = 'Cancelled')),
  CHECK (runner = 'worker' OR agent_id IS NOT NULL),
  CHECK (status <> 'AwaitingCSR' OR (agent_id IS NOT NULL AND csr_deadline IS NOT NULL)),
  CHECK (status <> 'AwaitingApproval' OR approve_by IS NOT NULL),
  CHECK (type NOT IN ('Issuance','Renewal','Deployment') OR certificate_id IS NOT NULL),
  CHECK (type <> 'Deployment' OR target_id IS NOT NULL)
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.01, autovacuum_analyze_scale_factor = 0.02);
ALTER TABLE certificates ADD CONSTRAINT certificates_open_job FOREIGN KEY (open_job_id) REFERENCES jobs;
ALTER TABLE versions ADD CONSTRAINT versions_job_id FOREIGN KEY (job_id) REFERENCES jobs;

CREATE INDEX jobs_claim_worker ON jobs (shard, priority, scheduled_at, id) WHERE status = 'Pending' AND runner = 'worker';
CREATE INDEX jobs_open_agent ON jobs (agent_id, runner, status) WHERE agent_id IS NOT NULL AND status IN ('Pending','AwaitingCSR','AwaitingApproval','Running');
CREATE INDEX jobs_csr_deadline ON jobs (csr_deadline) WHERE status = 'AwaitingCSR';
CREATE INDEX jobs_approve_by ON jobs (approve_by) WHERE status = 'AwaitingApproval';
CREATE INDEX jobs_lease ON jobs (leased_until) WHERE status = 'Running';
CREATE INDEX jobs_give_up ON jobs (give_up_at) WHERE status = 'Pending' AND give_up_at IS NOT NULL;
CREATE UNIQUE INDEX jobs_one_open_issuance ON jobs (certificate_id)
  WHERE type IN ('Issuance','Renewal') AND status IN ('Pending','AwaitingApproval','AwaitingCSR','Running');
CREATE UNIQUE INDEX jobs_one_running_deployment ON jobs (target_id) WHERE type = 'Deployment' AND status = 'Running';
CREATE UNIQUE INDEX jobs_one_pending_deployment ON jobs (certificate_id, target_id) WHERE type = 'Deployment' AND status = 'Pending';
CREATE UNIQUE INDEX jobs_one_pending_crl ON jobs (generation_id, crl_shard) WHERE type = 'CRL' AND status = 'Pending';
CREATE UNIQUE INDEX jobs_one_open_responder ON jobs (generation_id) WHERE type = 'Responder' AND status IN ('Pending','Running');
CREATE UNIQUE INDEX jobs_one_open_revocation ON jobs (version_id) WHERE type = 'Revocation' AND status IN ('Pending','Running');
CREATE INDEX jobs_created ON jobs (created_at, id);
CREATE INDEX jobs_certificate ON jobs (certificate_id, created_at, id);

-- One row per claim: the record that tests and people read.
CREATE TABLE job_attempts (
  job_id     uuid NOT NULL REFERENCES jobs,
  lease_no   bigint NOT NULL,
  claimant   text NOT NULL,               -- the run that claimed
  started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  ended_at   timestamptz,
  outcome    text CHECK (outcome IN ('completed','retried','postponed','released','failed','expired','cancelled')),
  error      text,
  PRIMARY KEY (job_id, lease_no)
);

-- Whatever statement ends an issuance, the certificate hears of it in the same transaction: the open job is cleared, a
-- failure backs off (5 min × 2ⁿ to 24 h), a refused approval waits a day, and a revoked certificate is not tried again.
-- +goose StatementBegin
CREATE FUNCTION issuance_closed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
  UPDATE certificates c SET
    open_job_id = NULL,
    failures = CASE NEW.status WHEN 'Completed' THEN 0 WHEN 'Failed' THEN c.failures + 1 ELSE c.failures END,
    next_try_at = CASE
      WHEN NEW.status = 'Completed' OR c.revoked_at IS NOT NULL THEN NULL
      WHEN NEW.status = 'Failed' THEN now() + least(interval '24 hours', interval '5 minutes' * (2 ^ least(c.failures, 12)))
      WHEN NEW.cancel_reason IN ('rejected','approval_expired') THEN now() + interval '24 hours'
      WHEN c.current_version_id IS NULL THEN NULL
      ELSE c.next_try_at END,
    updated_at = now()
  WHERE c.id = NEW.certificate_id AND c.open_job_id = NEW.id;
  RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER issuance_closed AFTER UPDATE OF status ON jobs FOR EACH ROW
  WHEN (NEW.type IN ('Issuance','Renewal') AND NEW.status IN ('Completed','Failed','Cancelled') AND OLD.status IS DISTINCT FROM NEW.status)
  EXECUTE FUNCTION issuance_closed();

-- What leaves Running or ends. A job that would be Pending again while a newer one of its scope waits there is superseded:
-- beside it, it would violate the indexes above, and one such row would stop every reap. Keys, sealed or encrypted to an
-- agent, do not outlive the work that they were kept for.
-- +goose StatementBegin
CREATE FUNCTION job_left() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
  IF OLD.status = 'Running' AND NEW.status = 'Pending' AND (
    NEW.type = 'Deployment' AND EXISTS (SELECT 1 FROM jobs WHERE type = 'Deployment' AND status = 'Pending' AND certificate_id = NEW.certificate_id AND target_id = NEW.target_id)
    OR NEW.type = 'CRL' AND EXISTS (SELECT 1 FROM jobs WHERE type = 'CRL' AND status = 'Pending' AND generation_id = NEW.generation_id AND crl_shard = NEW.crl_shard)) THEN
    NEW.status := 'Cancelled';
    NEW.cancel_reason := 'superseded';
    NEW.completed_at := now();
  END IF;
  IF NEW.status IN ('Completed','Failed','Cancelled') AND jsonb_typeof(NEW.checkpoint) = 'object' THEN
    NEW.checkpoint := NEW.checkpoint - '{sealed_key,key}'::text[];
  END IF;
  RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER job_left BEFORE UPDATE OF status ON jobs FOR EACH ROW
  WHEN (OLD.status IS DISTINCT FROM NEW.status AND NEW.status <> 'Running') EXECUTE FUNCTION job_left();

-- ── deployments ─────────────────────────────────────────────────────────────────────────────────────────────────────

-- Desired state: which version a target should serve and which one was seen served. It is also the mapping of certificates
-- to targets.
CREATE TABLE deployments (
  id                 uuid PRIMARY KEY,
  certificate_id     uuid NOT NULL REFERENCES certificates,
  target_id          uuid NOT NULL REFERENCES targets,
  desired_version_id uuid REFERENCES versions,
  desired_at         timestamptz,
  installed_version_id uuid REFERENCES versions, -- reported by the driver
  served_version_id  uuid REFERENCES versions,   -- seen in a completed handshake
  served_at          timestamptz,
  time_to_served_ms  bigint,                     -- from the version's issuance to the handshake that saw it
  receipt            jsonb,
  last_error         text,
  created_at         timestamptz NOT NULL DEFAULT now(),
  updated_at         timestamptz NOT NULL DEFAULT now(),
  removed_at         timestamptz,
  UNIQUE (certificate_id, target_id)
);
CREATE INDEX deployments_target ON deployments (target_id);

-- ── revocation material ─────────────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE revocations (
  generation_id uuid NOT NULL REFERENCES ca_generations,
  shard         smallint NOT NULL,
  serial        bytea NOT NULL,
  reason        smallint NOT NULL CHECK (reason BETWEEN 0 AND 10 AND reason NOT IN (7, 8)),
  revoked_at    timestamptz NOT NULL,
  entry         bytea NOT NULL,          -- DER of the CRL entry
  expires_at    timestamptz NOT NULL,    -- the certificate's notAfter
  version_id    uuid NOT NULL REFERENCES versions,
  listed_at     timestamptz,             -- first CRL published after expires_at that carried it: it may leave then
  PRIMARY KEY (generation_id, serial)
);
CREATE INDEX revocations_shard ON revocations (generation_id, shard, serial);

CREATE TABLE crl_state (
  generation_id  uuid NOT NULL REFERENCES ca_generations,
  shard          smallint NOT NULL,
  next_number    bigint NOT NULL DEFAULT 1,
  dirty_gen      bigint NOT NULL DEFAULT 1, -- starts dirty: a CA without revocations has a CRL too
  published_gen  bigint NOT NULL DEFAULT 0,
  current_number bigint NOT NULL DEFAULT 0,
  refresh_at     timestamptz NOT NULL DEFAULT now(), -- when a new CRL is due without any revocation
  PRIMARY KEY (generation_id, shard)
);
CREATE INDEX crl_state_refresh ON crl_state (refresh_at);

CREATE TABLE crls (
  generation_id uuid NOT NULL REFERENCES ca_generations,
  shard         smallint NOT NULL,
  number        bigint NOT NULL,
  der           bytea NOT NULL,
  sha256        bytea NOT NULL,
  this_update   timestamptz NOT NULL,
  next_update   timestamptz NOT NULL,
  entries       bigint NOT NULL,
  created_at    timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (generation_id, shard, number)
);
ALTER TABLE crls ALTER COLUMN der SET STORAGE EXTERNAL; -- signed random-looking bytes: compressing them is wasted time

CREATE TABLE ocsp_responders (
  id            uuid PRIMARY KEY,
  generation_id uuid NOT NULL REFERENCES ca_generations,
  certificate   bytea NOT NULL,
  sealed_key    bytea NOT NULL,           -- PKCS#8, sealed for purpose ocsp
  not_before    timestamptz NOT NULL,
  not_after     timestamptz NOT NULL,
  renew_at      timestamptz NOT NULL,
  created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ocsp_responders_generation ON ocsp_responders (generation_id, not_before DESC);

-- ── audit ───────────────────────────────────────────────────────────────────────────────────────────────────────────

-- Append-only. canonical is the text that a verifier hashes; leaf_hash is RFC 9162's leaf hash of it; xid lets a sequencer
-- append only rows that are older than every running transaction.
CREATE TABLE audit_events (
  id            uuid NOT NULL DEFAULT uuid7(),
  at            timestamptz NOT NULL DEFAULT clock_timestamp(),
  principal     text NOT NULL,
  role          text NOT NULL,
  key_id        uuid,
  action        text NOT NULL,
  resource_type text NOT NULL,
  resource_id   text,
  details       jsonb NOT NULL DEFAULT '{}',
  request_id    text,
  canonical     bytea NOT NULL,
  leaf_hash     bytea NOT NULL,
  xid           xid8 NOT NULL DEFAULT pg_current_xact_id(),
  PRIMARY KEY (id, at)
) PARTITION BY RANGE (at);
CREATE INDEX audit_events_at ON audit_events (at, id);
CREATE INDEX audit_events_resource ON audit_events (resource_type, resource_id, at);
CREATE INDEX audit_events_principal ON audit_events (principal, at);
CREATE TABLE audit_events_default PARTITION OF audit_events DEFAULT;

-- +goose StatementBegin
CREATE FUNCTION audit_seal() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
  NEW.canonical := convert_to(jsonb_build_object(
    'v', 1, 'id', NEW.id, 'at', to_char(NEW.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'principal', NEW.principal, 'role', NEW.role, 'key_id', NEW.key_id, 'action', NEW.action,
    'resource_type', NEW.resource_type, 'resource_id', NEW.resource_id, 'details', NEW.details,
    'request_id', NEW.request_id)::text, 'UTF8');
  NEW.leaf_hash := sha256('\x00'::bytea || NEW.canonical);
  NEW.xid := pg_current_xact_id();
  RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER audit_seal BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION audit_seal();

-- +goose StatementBegin
CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'audit_events is append-only' USING ERRCODE = 'insufficient_privilege';
END $$;
-- +goose StatementEnd
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit_events FOR EACH ROW EXECUTE FUNCTION audit_append_only();
-- A statement trigger is not inherited: every partition has its own.
CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit_events FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only();
CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit_events_default FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only();

-- Makes the partitions of this month and the next three. The sweep calls it; functions have no DDL rights of their own. A
-- month that began without its partition (the sweep rested for long) stays in the default partition: rows never move.
-- +goose StatementBegin
CREATE FUNCTION audit_make_partitions() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE m timestamptz; next timestamptz; part text; made integer := 0;
BEGIN
  FOR m IN SELECT generate_series(date_trunc('month', now() AT TIME ZONE 'UTC'), date_trunc('month', now() AT TIME ZONE 'UTC') + interval '3 months', interval '1 month') AT TIME ZONE 'UTC' LOOP
    part := 'audit_events_' || to_char(m AT TIME ZONE 'UTC', 'YYYYMM');
    next := (m AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC';
    CONTINUE WHEN to_regclass(part) IS NOT NULL;
    PERFORM pg_advisory_xact_lock(hashtext('audit_make_partitions'));
    CONTINUE WHEN to_regclass(part) IS NOT NULL OR EXISTS (SELECT 1 FROM audit_events_default WHERE at >= m AND at < next);
    EXECUTE format('CREATE TABLE %I PARTITION OF audit_events FOR VALUES FROM (%L) TO (%L)', part, m, next);
    EXECUTE format('CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()', part);
    made := made + 1;
  END LOOP;
  RETURN made;
END $$;
-- +goose StatementEnd
SELECT audit_make_partitions();

-- ── grants: exactly what each function needs ────────────────────────────────────────────────────────────────────────

GRANT USAGE ON SCHEMA public TO certctl_api, certctl_sweep, certctl_worker, certctl_responder, certctl_agentpoll;
REVOKE ALL ON FUNCTION audit_make_partitions() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_make_partitions() TO certctl_sweep;

-- Everybody who changes something appends to the audit trail, cannot choose an event's time, and reads back nothing but the id.
GRANT INSERT (principal, role, key_id, action, resource_type, resource_id, details, request_id), SELECT (id, at) ON audit_events TO certctl_api, certctl_sweep, certctl_worker, certctl_agentpoll;
GRANT SELECT ON goose_db_version TO certctl_api, certctl_sweep, certctl_worker, certctl_responder, certctl_agentpoll;
GRANT SELECT ON instance TO certctl_api, certctl_sweep, certctl_worker, certctl_responder, certctl_agentpoll;

-- api: reads and writes records; seals, and reads no sealed column.
GRANT SELECT ON audit_events TO certctl_api;
GRANT SELECT, INSERT, UPDATE ON api_keys, teams, owners, profiles, renewal_policies, certificates, deployments, blocked_keys, agents, agent_tokens, crl_state TO certctl_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON auth_failures, idempotency_keys, revocations TO certctl_api;
GRANT SELECT, INSERT, UPDATE ON jobs, job_attempts TO certctl_api;
GRANT SELECT (id, name, type, config, last_test, created_at, updated_at, archived_at), INSERT, UPDATE ON issuers TO certctl_api;
GRANT SELECT (id, name, type, agent_id, config, verify, last_test, created_at, updated_at, archived_at), INSERT, UPDATE ON targets TO certctl_api;
GRANT SELECT (id, issuer_id, number, certificate, parents, key_uri, name_sha1, key_sha1, name_sha256, key_sha256, crl_shards, not_before, not_after, created_at), INSERT ON ca_generations TO certctl_api;
GRANT SELECT ON versions, version_blobs, crls TO certctl_api;
GRANT SELECT (id, issuer_id, csr, created_at, fulfilled_at), INSERT, UPDATE (fulfilled_at) ON ca_requests TO certctl_api;
GRANT UPDATE (revoked_at, revocation_reason, status_changed_at) ON versions TO certctl_api;
GRANT SELECT (id, generation_id, certificate, not_before, not_after, renew_at, created_at) ON ocsp_responders TO certctl_api;

-- sweep: finds what is due and enqueues; holds no secret at all.
GRANT SELECT, UPDATE ON certificates, agents TO certctl_sweep;
GRANT SELECT, INSERT, UPDATE ON jobs, job_attempts TO certctl_sweep;
GRANT SELECT ON profiles, renewal_policies, crl_state, deployments TO certctl_sweep;
GRANT SELECT, DELETE ON idempotency_keys, auth_failures TO certctl_sweep;
GRANT SELECT (id, type, archived_at) ON issuers TO certctl_sweep;
GRANT SELECT (id, issuer_id, number, crl_shards, not_before, not_after) ON ca_generations TO certctl_sweep;
GRANT SELECT (id, generation_id, not_before, not_after, renew_at) ON ocsp_responders TO certctl_sweep;

-- worker: runs jobs, so it opens what they need.
GRANT SELECT, INSERT, UPDATE ON jobs, job_attempts, certificates, versions, version_blobs, version_keys, deployments, crl_state, ocsp_responders, blocked_keys TO certctl_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON revocations, crls TO certctl_worker;
GRANT SELECT ON issuers, targets, ca_generations, profiles, renewal_policies, agents, owners, teams TO certctl_worker;
GRANT UPDATE (last_test) ON issuers, targets TO certctl_worker;
GRANT INSERT ON ca_generations TO certctl_worker; -- renews a CA with the key that it opens

-- responder: revocation state and its own sealed keys.
GRANT SELECT (id, type, archived_at) ON issuers TO certctl_responder;
GRANT SELECT (id, issuer_id, number, certificate, parents, name_sha1, key_sha1, name_sha256, key_sha256, crl_shards, not_before, not_after) ON ca_generations TO certctl_responder;
GRANT SELECT (generation_id, serial, not_after, revocation_exempt, revoked_at, revocation_reason, status_changed_at) ON versions TO certctl_responder;
GRANT SELECT ON crls, crl_state, ocsp_responders TO certctl_responder;

-- agentpoll: agents' own rows, their jobs, what they deploy. It opens no leaf or CA key.
GRANT SELECT, INSERT, UPDATE ON agents TO certctl_agentpoll;
GRANT SELECT, UPDATE ON agent_tokens, deployments TO certctl_agentpoll;
GRANT SELECT, INSERT, UPDATE ON jobs, job_attempts TO certctl_agentpoll;
GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency_keys, auth_failures TO certctl_agentpoll;
GRANT SELECT, UPDATE (updated_at) ON certificates TO certctl_agentpoll;
GRANT SELECT ON profiles, versions, version_blobs, blocked_keys TO certctl_agentpoll;
GRANT SELECT (id, name, type, agent_id, config, verify, last_test, created_at, updated_at, archived_at) ON targets TO certctl_agentpoll;
