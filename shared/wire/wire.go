// Package wire owns the JSON of the agent protocol (SPEC §11, Agents), shared by the server's agent edge and the agent.
// It has types only; both sides link it, so it imports nothing but identifiers.
package wire

import (
	"encoding/json"

	"certctl/shared/id"
)

// RunHeader names one run of an agent's process: work leased to this run and not yet reported is handed out again.
const RunHeader = "Certctl-Agent-Run"

// Enroll is the body of POST /api/v1/agents/enroll.
type Enroll struct {
	Token     string  `json:"token" doc:"single-use enrollment token"`
	Name      string  `json:"name" minLength:"1" maxLength:"200"`
	Hostname  string  `json:"hostname" maxLength:"255"`
	OS        string  `json:"os" maxLength:"64"`
	Arch      string  `json:"arch" maxLength:"64"`
	Version   string  `json:"version" maxLength:"64"`
	PublicKey *string `json:"public_key,omitempty" maxLength:"2000" doc:"the agent's encryption key: a JWK of an EC P-256 public key"`
}

// Enrolled answers Enroll. Credential is shown once and is the bearer of everything that follows.
type Enrolled struct {
	AgentID    id.Agent `json:"agent_id"`
	Credential string   `json:"credential"`
}

// Work answers GET /api/v1/agents/{id}/work.
type Work struct {
	Jobs            []Job `json:"jobs"`
	NextPollSeconds int   `json:"next_poll_seconds"`
}

// Job is one thing to do. A job in status AwaitingCSR carries CSR and no lease; a deployment carries Target and a lease.
type Job struct {
	ID            id.Job         `json:"id"`
	Type          string         `json:"type"`   // Issuance, Renewal, Deployment
	Status        string         `json:"status"` // AwaitingCSR, Running
	Lease         int64          `json:"lease"`
	LeaseSeconds  int            `json:"lease_seconds"`
	CertificateID id.Certificate `json:"certificate_id"`
	CSR           *CSR           `json:"csr,omitempty"`
	Target        *Target        `json:"target,omitempty"`
}

// CSR says what the agent's certificate request must hold, exactly.
type CSR struct {
	CommonName   string   `json:"common_name"`
	SANs         []string `json:"sans"`
	KeyAlgorithm string   `json:"key_algorithm"` // a name of pki.KeyAlgorithm
}

// Target is where a version goes.
type Target struct {
	ID        id.Target       `json:"id"`
	Type      string          `json:"type"` // a driver's name: nginx, files …
	Config    json.RawMessage `json:"config"`
	Verify    *Verify         `json:"verify"`
	VersionID id.Version      `json:"version_id"`
	Key       string          `json:"key,omitempty"` // server custody: the PKCS#8 key as a compact JWE to the agent's public key
}

// Verify says how to prove that the new certificate is served.
type Verify struct {
	Address    string `json:"address"`               // host:port
	ServerName string `json:"server_name,omitempty"` // SNI; default the first DNS name
	From       string `json:"from,omitempty"`        // agent (default) or worker
}

// PostCSR is the body of POST /api/v1/agents/{id}/csr.
type PostCSR struct {
	JobID  id.Job `json:"job_id"`
	CSRPEM string `json:"csr_pem" maxLength:"65536"`
}

// CSRAccepted answers PostCSR.
type CSRAccepted struct {
	JobID  id.Job `json:"job_id"`
	Status string `json:"status"`
}

// Pickup answers GET /api/v1/agents/{id}/certificates/{certificate_id}?version_id=.
type Pickup struct {
	VersionID         id.Version `json:"version_id"`
	Serial            string     `json:"serial"`
	FingerprintSHA256 string     `json:"fingerprint_sha256"`
	SPKISHA256        string     `json:"spki_sha256"`
	ChainPEM          string     `json:"chain_pem"` // leaf, then intermediates
}

// Report is the body of POST /api/v1/agents/{id}/jobs/{job_id}/status.
type Report struct {
	Lease   int64    `json:"lease"`
	Status  string   `json:"status"` // Running (extends the lease), Completed, Failed
	Detail  string   `json:"detail,omitempty" maxLength:"4000"`
	Receipt *Receipt `json:"receipt,omitempty"`
}

// Reported answers Report.
type Reported struct {
	JobID        id.Job `json:"job_id"`
	Status       string `json:"status"`
	LeaseSeconds int    `json:"lease_seconds"`
}

// Receipt is what a deployment did and saw.
type Receipt struct {
	VersionID           id.Version `json:"version_id"`
	Changed             bool       `json:"changed"`                               // false: the files were right already
	ServedFingerprint   string     `json:"served_fingerprint_sha256"`             // lower-case hex of the leaf seen in a completed handshake; "" if not probed
	ServedSerial        string     `json:"served_serial,omitempty"`               // lower-case hex
	ProbedAddress       string     `json:"probed_address,omitempty"`              // host:port
	Steps               []Step     `json:"steps"`                                 // in order
	RolledBack          bool       `json:"rolled_back"`                           // the previous version was put back
	PreviousFingerprint string     `json:"previous_fingerprint_sha256,omitempty"` // what the files held before
}

// Step is one step of a deployment.
type Step struct {
	Name         string `json:"name"`
	Milliseconds int64  `json:"ms"`
	Detail       string `json:"detail,omitempty"`
}

// Rotated answers POST /api/v1/agents/{id}/credential/rotate. Credential is shown once; the old one stays good until this one
// is first used, so that a lost answer locks nobody out.
type Rotated struct {
	AgentID    id.Agent `json:"agent_id"`
	Credential string   `json:"credential"`
}
