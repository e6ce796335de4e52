package client

import (
	"encoding/json"
	"time"
)

// Ref is an identifier that may be none: "" in Go, null in JSON.
type Ref string

// MarshalJSON writes the identifier, null for none.
func (r Ref) MarshalJSON() ([]byte, error) {
	if r == "" {
		return []byte("null"), nil
	}
	return json.Marshal(string(r))
}

// Version is an issued certificate. Serial and hashes are lower-case hex.
type Version struct {
	ID                string     `json:"id"`
	CertificateID     string     `json:"certificate_id"`
	Serial            string     `json:"serial"`
	NotBefore         time.Time  `json:"not_before"`
	NotAfter          time.Time  `json:"not_after"`
	FingerprintSHA256 string     `json:"fingerprint_sha256"`
	SPKISHA256        string     `json:"spki_sha256"`
	KeyAlgorithm      string     `json:"key_algorithm"`
	IssuerID          Ref        `json:"issuer_id"`
	JobID             Ref        `json:"job_id"`
	RevocationExempt  bool       `json:"revocation_exempt"` // short-lived: left out of CRL and OCSP
	RevokedAt         *time.Time `json:"revoked_at"`
	RevocationReason  *string    `json:"revocation_reason"`
	CreatedAt         time.Time  `json:"created_at"`
}

// Deployment is the state of a certificate on a target: which version it should serve, has installed, and was seen to serve.
type Deployment struct {
	ID                  string     `json:"id"`
	TargetID            string     `json:"target_id"`
	DesiredVersionID    Ref        `json:"desired_version_id"`
	InstalledVersionID  Ref        `json:"installed_version_id"`
	ServedVersionID     Ref        `json:"served_version_id"`
	ServedAt            *time.Time `json:"served_at"`
	TimeToServedSeconds *float64   `json:"time_to_served_seconds"`
	LastError           *string    `json:"last_error"`
	UpdatedAt           time.Time  `json:"updated_at"`
}

// Certificate is a managed certificate.
type Certificate struct {
	ID              string            `json:"id"`
	Name            string            `json:"name"`
	Status          string            `json:"status"`
	CommonName      string            `json:"common_name"`
	SANs            []string          `json:"sans"`
	IssuerID        Ref               `json:"issuer_id"`
	ProfileID       Ref               `json:"profile_id"`
	RenewalPolicyID Ref               `json:"renewal_policy_id"`
	OwnerID         Ref               `json:"owner_id"`
	TeamID          Ref               `json:"team_id"`
	Environment     *string           `json:"environment"`
	Tags            map[string]string `json:"tags"`
	TargetIDs       []string          `json:"target_ids"`
	Deployments     []Deployment      `json:"deployments"`
	AutoRenew       bool              `json:"auto_renew"`
	KeyCustody      string            `json:"key_custody"` // agent or server
	AgentID         Ref               `json:"agent_id"`
	CurrentVersion  *Version          `json:"current_version"`
	OpenJobID       Ref               `json:"open_job_id"`
	RenewAt         *time.Time        `json:"renew_at"`
	NextTryAt       *time.Time        `json:"next_try_at"`
	RenewReason     *string           `json:"renew_reason"`
	Failures        int               `json:"failures"`
	CreatedBy       string            `json:"created_by"`
	CreatedAt       time.Time         `json:"created_at"`
	UpdatedAt       time.Time         `json:"updated_at"`
	ArchivedAt      *time.Time        `json:"archived_at"`
	Can             []string          `json:"can"`
}

// NewCertificate is what a managed certificate is made from. Empty references mean the server's defaults.
type NewCertificate struct {
	Name            string            `json:"name,omitempty"`
	CommonName      string            `json:"common_name,omitempty"`
	SANs            []string          `json:"sans"`
	IssuerID        string            `json:"issuer_id,omitempty"`
	ProfileID       string            `json:"profile_id,omitempty"`
	RenewalPolicyID string            `json:"renewal_policy_id,omitempty"`
	OwnerID         string            `json:"owner_id,omitempty"`
	TeamID          string            `json:"team_id,omitempty"`
	Environment     *string           `json:"environment,omitempty"`
	Tags            map[string]string `json:"tags,omitempty"`
	TargetIDs       []string          `json:"target_ids,omitempty"`
	AutoRenew       *bool             `json:"auto_renew,omitempty"` // nil: as the renewal policy says
	Issue           *bool             `json:"issue,omitempty"`      // false: no first issuance
}

// CertificateChange changes a certificate's record: nil fields stay. An owner or team of "" is removed; tags and targets are
// replaced as a whole.
type CertificateChange struct {
	Name            *string            `json:"name,omitempty"`
	OwnerID         *string            `json:"owner_id,omitempty"`
	TeamID          *string            `json:"team_id,omitempty"`
	Environment     *string            `json:"environment,omitempty"`
	Tags            *map[string]string `json:"tags,omitempty"`
	RenewalPolicyID *string            `json:"renewal_policy_id,omitempty"`
	AutoRenew       *bool              `json:"auto_renew,omitempty"`
	TargetIDs       *[]string          `json:"target_ids,omitempty"`
}

// Revoked is a certificate after its revocation; under keyCompromise with the other live versions that use the key.
type Revoked struct {
	Certificate
	SharedKeyVersions []Version `json:"shared_key_versions"`
}

// BulkFilter chooses certificates; at least one field must be given.
type BulkFilter struct {
	Status          string `json:"status,omitempty"`
	Name            string `json:"name,omitempty"`
	SAN             string `json:"san,omitempty"`
	IssuerID        string `json:"issuer_id,omitempty"`
	ProfileID       string `json:"profile_id,omitempty"`
	RenewalPolicyID string `json:"renewal_policy_id,omitempty"`
	OwnerID         string `json:"owner_id,omitempty"`
	TeamID          string `json:"team_id,omitempty"`
	AgentID         string `json:"agent_id,omitempty"`
	TargetID        string `json:"target_id,omitempty"`
	Environment     string `json:"environment,omitempty"`
	Tag             string `json:"tag,omitempty"` // name:value
}

// Bulk revokes many certificates, by ids or by filter.
type Bulk struct {
	Reason         string      `json:"reason"`
	CertificateIDs []string    `json:"certificate_ids,omitempty"`
	Filter         *BulkFilter `json:"filter,omitempty"`
	DryRun         bool        `json:"dry_run,omitempty"`
}

// BulkOutcome is what became of one certificate of a bulk.
type BulkOutcome struct {
	CertificateID string `json:"certificate_id"`
	Outcome       string `json:"outcome"` // revoked, skipped, failed, would-revoke, requested
	Detail        string `json:"detail"`
}

// BulkTotals are the counts of a bulk revocation.
type BulkTotals struct {
	Matched int           `json:"matched"`
	Revoked int           `json:"revoked"`
	Skipped int           `json:"skipped"`
	Failed  int           `json:"failed"`
	Results []BulkOutcome `json:"results"`
}

// Export asks for a certificate with its key.
type Export struct {
	Format   string `json:"format"` // pem, pkcs12, pkcs12-legacy
	Password string `json:"password,omitempty"`
}

// JobEvent is one thing that happened to a job.
type JobEvent struct {
	At     time.Time `json:"at"`
	Event  string    `json:"event"`
	Lease  *int64    `json:"lease"`
	Detail *string   `json:"detail"`
	Actor  *string   `json:"actor"`
}

// The states of a job. Completed, Failed and Cancelled are final.
const (
	Pending          = "Pending"
	AwaitingApproval = "AwaitingApproval"
	AwaitingCSR      = "AwaitingCSR"
	Running          = "Running"
	Completed        = "Completed"
	Failed           = "Failed"
	Cancelled        = "Cancelled"
)

// Job is a piece of work.
type Job struct {
	ID            string          `json:"id"`
	Type          string          `json:"type"`
	Status        string          `json:"status"`
	Runner        string          `json:"runner"` // worker or agent
	AgentID       Ref             `json:"agent_id"`
	CertificateID Ref             `json:"certificate_id"`
	VersionID     Ref             `json:"version_id"`
	TargetID      Ref             `json:"target_id"`
	IssuerID      Ref             `json:"issuer_id"`
	Attempts      int             `json:"attempts"`
	MaxAttempts   int             `json:"max_attempts"`
	LeaseNo       int64           `json:"lease_no"`
	LeasedUntil   *time.Time      `json:"leased_until"`
	ScheduledAt   time.Time       `json:"scheduled_at"`
	StartedAt     *time.Time      `json:"started_at"`
	CompletedAt   *time.Time      `json:"completed_at"`
	GiveUpAt      *time.Time      `json:"give_up_at"`
	ApproveBy     *time.Time      `json:"approve_by"`
	CSRDeadline   *time.Time      `json:"csr_deadline"`
	RequestedBy   string          `json:"requested_by"`
	ApprovedBy    *string         `json:"approved_by"`
	LastError     *string         `json:"last_error"`
	CancelReason  *string         `json:"cancel_reason"`
	Result        json.RawMessage `json:"result"`
	Events        []JobEvent      `json:"events"`
	CreatedAt     time.Time       `json:"created_at"`
	Can           []string        `json:"can"`
}

// Final reports whether nothing happens to the job any more.
func (j Job) Final() bool {
	return j.Status == Completed || j.Status == Failed || j.Status == Cancelled
}

// Issuer is a configured CA; what is secret in its settings is never shown.
type Issuer struct {
	ID         string          `json:"id"`
	Name       string          `json:"name"`
	Type       string          `json:"type"`
	Config     json.RawMessage `json:"config"`
	LastTest   json.RawMessage `json:"last_test"` // {at, ok, detail} or null
	CRLURL     *string         `json:"crl_url"`
	OCSPURL    *string         `json:"ocsp_url"`
	CAURL      *string         `json:"ca_url"`
	CreatedAt  time.Time       `json:"created_at"`
	UpdatedAt  time.Time       `json:"updated_at"`
	ArchivedAt *time.Time      `json:"archived_at"`
}

// NewIssuer is what an issuer is made from.
type NewIssuer struct {
	Name   string         `json:"name"`
	Type   string         `json:"type"`
	Config map[string]any `json:"config,omitempty"`
}

// Generation is one key and certificate of a local CA.
type Generation struct {
	ID             string     `json:"id"`
	Number         int        `json:"number"`
	CertificatePEM string     `json:"certificate_pem"`
	Subject        string     `json:"subject"`
	Serial         string     `json:"serial"`
	KeyAlgorithm   string     `json:"key_algorithm"`
	KeySource      string     `json:"key_source"` // sealed, file, elsewhere
	NotBefore      time.Time  `json:"not_before"`
	NotAfter       time.Time  `json:"not_after"`
	CRLURL         string     `json:"crl_url"`
	CRLNumber      *int64     `json:"crl_number"`
	CRLEntries     *int64     `json:"crl_entries"`
	CRLNextUpdate  *time.Time `json:"crl_next_update"`
	CreatedAt      time.Time  `json:"created_at"`
}

// ProfileFields are what a profile is made from. Durations are a number and one of s, m, h, d.
type ProfileFields struct {
	Name             string   `json:"name"`
	KeyAlgorithms    []string `json:"key_algorithms"`
	MaxTTL           string   `json:"max_ttl"`
	EKUs             []string `json:"ekus,omitempty"`
	NamePatterns     []string `json:"name_patterns,omitempty"`
	MustStaple       bool     `json:"must_staple,omitempty"`
	PublicTLS        bool     `json:"public_tls,omitempty"`
	RequiresApproval bool     `json:"requires_approval,omitempty"`
	KeyCustody       *string  `json:"key_custody,omitempty"`
}

// Profile limits what may be issued.
type Profile struct {
	ID               string    `json:"id"`
	Name             string    `json:"name"`
	KeyAlgorithms    []string  `json:"key_algorithms"`
	MaxTTL           string    `json:"max_ttl"`
	EKUs             []string  `json:"ekus"`
	NamePatterns     []string  `json:"name_patterns"`
	MustStaple       bool      `json:"must_staple"`
	PublicTLS        bool      `json:"public_tls"`
	RequiresApproval bool      `json:"requires_approval"`
	KeyCustody       *string   `json:"key_custody"`
	ShortLived       bool      `json:"short_lived"`
	CreatedAt        time.Time `json:"created_at"`
	UpdatedAt        time.Time `json:"updated_at"`
}

// Fields are what the profile would be made from again.
func (p Profile) Fields() ProfileFields {
	return ProfileFields{p.Name, p.KeyAlgorithms, p.MaxTTL, p.EKUs, p.NamePatterns, p.MustStaple, p.PublicTLS, p.RequiresApproval, p.KeyCustody}
}

// RenewalPolicyFields are what a renewal policy is made from. Fractions are of the lifetime.
type RenewalPolicyFields struct {
	Name            string    `json:"name"`
	RenewAtFraction float64   `json:"renew_at_fraction"`
	Jitter          float64   `json:"jitter,omitempty"`
	AutoRenew       *bool     `json:"auto_renew,omitempty"`
	AlertFractions  []float64 `json:"alert_fractions,omitempty"`
}

// RenewalPolicy says when to renew.
type RenewalPolicy struct {
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	RenewAtFraction float64   `json:"renew_at_fraction"`
	Jitter          float64   `json:"jitter"`
	AutoRenew       bool      `json:"auto_renew"`
	AlertFractions  []float64 `json:"alert_fractions"`
	CreatedAt       time.Time `json:"created_at"`
	UpdatedAt       time.Time `json:"updated_at"`
}

// Fields are what the policy would be made from again.
func (p RenewalPolicy) Fields() RenewalPolicyFields {
	return RenewalPolicyFields{p.Name, p.RenewAtFraction, p.Jitter, &p.AutoRenew, p.AlertFractions}
}

// Verify asks how to prove that a certificate is served; TargetVerify is how it is proved.
type Verify struct {
	Address    string `json:"address"` // host:port
	ServerName string `json:"server_name,omitempty"`
	From       string `json:"from,omitempty"` // agent or worker
}

// TargetVerify is how a target proves that a certificate is served.
type TargetVerify struct {
	Address    string  `json:"address"` // host:port
	ServerName *string `json:"server_name"`
	From       string  `json:"from"` // agent or worker
}

// Fields are what it would be asked for with again; nil for none.
func (v *TargetVerify) Fields() *Verify {
	if v == nil {
		return nil
	}
	out := &Verify{Address: v.Address, From: v.From}
	if v.ServerName != nil {
		out.ServerName = *v.ServerName
	}
	return out
}

// Target is a place where certificates are served.
type Target struct {
	ID         string          `json:"id"`
	Name       string          `json:"name"`
	Type       string          `json:"type"`
	AgentID    Ref             `json:"agent_id"`
	Config     json.RawMessage `json:"config"`
	Verify     *TargetVerify   `json:"verify"`
	LastTest   json.RawMessage `json:"last_test"`
	CreatedAt  time.Time       `json:"created_at"`
	UpdatedAt  time.Time       `json:"updated_at"`
	ArchivedAt *time.Time      `json:"archived_at"`
}

// NewTarget is what a target is made from.
type NewTarget struct {
	Name    string         `json:"name"`
	Type    string         `json:"type"`
	AgentID string         `json:"agent_id,omitempty"` // "": the worker deploys
	Config  map[string]any `json:"config"`
	Verify  *Verify        `json:"verify,omitempty"`
}

// TargetSettings replace a target's; type and agent stay.
type TargetSettings struct {
	Name   string         `json:"name"`
	Config map[string]any `json:"config"`
	Verify *Verify        `json:"verify,omitempty"`
}

// Agent is an agent on a host.
type Agent struct {
	ID           string     `json:"id"`
	Name         string     `json:"name"`
	Status       string     `json:"status"` // online, offline, retired
	Hostname     string     `json:"hostname"`
	OS           string     `json:"os"`
	Arch         string     `json:"arch"`
	Version      string     `json:"version"`
	PollSeconds  int        `json:"poll_seconds"`
	LastSeenAt   *time.Time `json:"last_seen_at"`
	OfflineSince *time.Time `json:"offline_since"`
	CreatedAt    time.Time  `json:"created_at"`
	RetiredAt    *time.Time `json:"retired_at"`
}

// NewToken is what an enrollment token is made from; an empty TTL is the server's default.
type NewToken struct {
	Name string `json:"name,omitempty"`
	TTL  string `json:"ttl,omitempty"`
}

// EnrollmentToken is shown once.
type EnrollmentToken struct {
	ID        string    `json:"id"`
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Key is an API key without its secret.
type Key struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	Principal  string     `json:"principal"`
	Role       string     `json:"role"`
	CreatedBy  string     `json:"created_by"`
	CreatedAt  time.Time  `json:"created_at"`
	LastUsedAt *time.Time `json:"last_used_at"`
	ExpiresAt  *time.Time `json:"expires_at"`
	DisabledAt *time.Time `json:"disabled_at"`
}

// KeyWithSecret shows a secret, once.
type KeyWithSecret struct {
	Key
	Secret string `json:"secret"`
}

// NewKey is what a key is made from.
type NewKey struct {
	Name      string     `json:"name"`
	Principal string     `json:"principal"`
	Role      string     `json:"role"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
}

// Me is who the caller is.
type Me struct {
	Principal   string   `json:"principal"`
	Role        string   `json:"role"`
	KeyID       Ref      `json:"key_id"`
	Permissions []string `json:"permissions"`
}

// Team is a group of people.
type Team struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
}

// NewTeam is what a team is made from.
type NewTeam struct {
	Name string `json:"name"`
}

// Owner is who answers for certificates.
type Owner struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Email     *string   `json:"email"`
	TeamID    Ref       `json:"team_id"`
	CreatedAt time.Time `json:"created_at"`
}

// NewOwner is what an owner is made from.
type NewOwner struct {
	Name   string  `json:"name"`
	Email  *string `json:"email,omitempty"`
	TeamID string  `json:"team_id,omitempty"`
}

// Actor is who did something.
type Actor struct {
	Principal string `json:"principal"`
	Role      string `json:"role"`
	KeyID     Ref    `json:"key_id"`
}

// AuditEvent is an entry of the trail.
type AuditEvent struct {
	ID           string         `json:"id"`
	At           time.Time      `json:"at"`
	Actor        Actor          `json:"actor"`
	Action       string         `json:"action"`
	ResourceType string         `json:"resource_type"`
	ResourceID   *string        `json:"resource_id"`
	Details      map[string]any `json:"details"`
	RequestID    *string        `json:"request_id"`
}

// Summary are the statistics.
type Summary struct {
	Certificates struct {
		Total    int64            `json:"total"` // without archived ones
		ByStatus map[string]int64 `json:"by_status"`
	} `json:"certificates"`
	Jobs struct {
		ByStatus map[string]int64 `json:"by_status"`
	} `json:"jobs"`
	Agents struct {
		Total  int64 `json:"total"`
		Online int64 `json:"online"`
	} `json:"agents"`
	TimeToServed struct {
		Count      int64    `json:"count"`
		P50Seconds *float64 `json:"p50_seconds"`
		P95Seconds *float64 `json:"p95_seconds"`
	} `json:"time_to_served"`
}
