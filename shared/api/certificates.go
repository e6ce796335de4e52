package api

import (
	"context"
	"encoding/hex"
	"net/http"
	"time"

	"certctl/shared/auth"
	"certctl/shared/cert"
	"certctl/shared/db"
	"certctl/shared/deployment"
	"certctl/shared/endpoint"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/lifecycle"
	"certctl/shared/pki"

	"github.com/jackc/pgx/v5"
)

// Version is an issued certificate as people read it.
type Version struct {
	ID                id.Version     `json:"id"`
	CertificateID     id.Certificate `json:"certificate_id"`
	Serial            string         `json:"serial" doc:"lower-case hex without leading zeros"`
	NotBefore         time.Time      `json:"not_before"`
	NotAfter          time.Time      `json:"not_after"`
	FingerprintSHA256 string         `json:"fingerprint_sha256"`
	SPKISHA256        string         `json:"spki_sha256"`
	KeyAlgorithm      string         `json:"key_algorithm"`
	IssuerID          id.Issuer      `json:"issuer_id"`
	JobID             id.Job         `json:"job_id"`
	RevocationExempt  bool           `json:"revocation_exempt" doc:"short-lived: left out of CRL and OCSP"`
	RevokedAt         *time.Time     `json:"revoked_at"`
	RevocationReason  *string        `json:"revocation_reason"`
	CreatedAt         time.Time      `json:"created_at"`
}

func versionView(v cert.Version) Version {
	out := Version{ID: v.ID, CertificateID: v.CertificateID, Serial: v.SerialText(), NotBefore: v.NotBefore, NotAfter: v.NotAfter,
		FingerprintSHA256: hex.EncodeToString(v.Fingerprint), SPKISHA256: hex.EncodeToString(v.SPKISHA256), KeyAlgorithm: v.KeyAlgorithm, IssuerID: v.IssuerID,
		JobID: v.JobID, RevocationExempt: v.RevocationExempt, RevokedAt: v.RevokedAt, CreatedAt: v.CreatedAt}
	if r, ok := v.Reason(); ok {
		s := r.String()
		out.RevocationReason = &s
	}
	return out
}

// Deployment is the state of a certificate on a target.
type Deployment struct {
	ID                  id.Deployment `json:"id"`
	TargetID            id.Target     `json:"target_id"`
	DesiredVersionID    id.Version    `json:"desired_version_id"`
	InstalledVersionID  id.Version    `json:"installed_version_id"`
	ServedVersionID     id.Version    `json:"served_version_id" doc:"seen in a completed handshake"`
	ServedAt            *time.Time    `json:"served_at"`
	TimeToServedSeconds *float64      `json:"time_to_served_seconds" doc:"from issuance to the handshake that saw the version"`
	LastError           *string       `json:"last_error"`
	UpdatedAt           time.Time     `json:"updated_at"`
}

func deploymentView(d deployment.Deployment) Deployment {
	out := Deployment{ID: d.ID, TargetID: d.TargetID, DesiredVersionID: d.DesiredVersionID, InstalledVersionID: d.InstalledVersionID, ServedVersionID: d.ServedVersionID,
		ServedAt: d.ServedAt, LastError: d.LastError, UpdatedAt: d.UpdatedAt}
	if d.TimeToServedMS != nil {
		s := float64(*d.TimeToServedMS) / 1000
		out.TimeToServedSeconds = &s
	}
	return out
}

// Certificate is a managed certificate as people read it.
type Certificate struct {
	ID              id.Certificate    `json:"id"`
	Name            string            `json:"name"`
	Status          string            `json:"status" enum:"archived,revoked,renewing,pending,expired,failed,expiring,active"`
	CommonName      string            `json:"common_name"`
	SANs            []string          `json:"sans"`
	IssuerID        id.Issuer         `json:"issuer_id"`
	ProfileID       id.Profile        `json:"profile_id"`
	RenewalPolicyID id.RenewalPolicy  `json:"renewal_policy_id"`
	OwnerID         id.Owner          `json:"owner_id"`
	TeamID          id.Team           `json:"team_id"`
	Environment     *string           `json:"environment"`
	Tags            map[string]string `json:"tags"`
	TargetIDs       []id.Target       `json:"target_ids"`
	Deployments     []Deployment      `json:"deployments"`
	AutoRenew       bool              `json:"auto_renew"`
	KeyCustody      string            `json:"key_custody" enum:"agent,server"`
	AgentID         id.Agent          `json:"agent_id" doc:"who holds the key under agent custody"`
	CurrentVersion  *Version          `json:"current_version"`
	OpenJobID       id.Job            `json:"open_job_id"`
	RenewAt         *time.Time        `json:"renew_at"`
	NextTryAt       *time.Time        `json:"next_try_at"`
	RenewReason     *string           `json:"renew_reason"`
	Failures        int               `json:"failures" doc:"issuances that failed since the last success"`
	CreatedBy       string            `json:"created_by"`
	CreatedAt       time.Time         `json:"created_at"`
	UpdatedAt       time.Time         `json:"updated_at"`
	ArchivedAt      *time.Time        `json:"archived_at"`
	Can             []string          `json:"can" doc:"the actions that the state allows"`
}

func certificateView(c cert.Certificate, v *cert.Version, deps []deployment.Deployment, now time.Time) Certificate {
	out := Certificate{ID: c.ID, Name: c.Name, Status: string(c.Status(now)), CommonName: c.CommonName, SANs: c.SANs, IssuerID: c.IssuerID, ProfileID: c.ProfileID,
		RenewalPolicyID: c.RenewalPolicyID, OwnerID: c.OwnerID, TeamID: c.TeamID, Environment: c.Environment, Tags: c.Tags, TargetIDs: []id.Target{}, Deployments: []Deployment{},
		AutoRenew: c.AutoRenew, KeyCustody: string(c.KeyCustody), AgentID: c.AgentID, OpenJobID: c.OpenJobID, RenewAt: c.RenewAt, NextTryAt: c.NextTryAt, RenewReason: c.RenewReason,
		Failures: c.Failures, CreatedBy: c.CreatedBy, CreatedAt: c.CreatedAt, UpdatedAt: c.UpdatedAt, ArchivedAt: c.ArchivedAt, Can: c.Can(now, isHeld(v))}
	if v != nil {
		view := versionView(*v)
		out.CurrentVersion = &view
	}
	for _, d := range deps {
		out.TargetIDs = append(out.TargetIDs, d.TargetID)
		out.Deployments = append(out.Deployments, deploymentView(d))
	}
	return out
}

func isHeld(v *cert.Version) bool {
	if v == nil {
		return false
	}
	r, revoked := v.Reason()
	return revoked && r == pki.CertificateHold
}

// certificateViews joins what a page of certificates shows: their current versions and deployments, one read each.
func certificateViews(ctx context.Context, q db.Querier, certs []cert.Certificate) (func(cert.Certificate) Certificate, error) {
	ids, versions := make([]id.Certificate, len(certs)), make([]id.Version, len(certs))
	for i, c := range certs {
		ids[i], versions[i] = c.ID, c.CurrentVersionID
	}
	byID, err := cert.Versions(ctx, q, versions...)
	if err != nil {
		return nil, err
	}
	deps := map[id.Certificate][]deployment.Deployment{}
	if len(ids) > 0 {
		all, err := deployment.Of(ctx, q, ids...)
		if err != nil {
			return nil, err
		}
		for _, d := range all {
			deps[d.CertificateID] = append(deps[d.CertificateID], d)
		}
	}
	now := time.Now()
	return func(c cert.Certificate) Certificate {
		var v *cert.Version
		if found, ok := byID[c.CurrentVersionID]; ok {
			v = &found
		}
		return certificateView(c, v, deps[c.ID], now)
	}, nil
}

func oneCertificate(ctx context.Context, q db.Querier, c cert.Certificate) (Certificate, error) {
	view, err := certificateViews(ctx, q, []cert.Certificate{c})
	if err != nil {
		return Certificate{}, err
	}
	return view(c), nil
}

type certificateInput struct {
	ID id.Certificate `path:"id"`
}

type certificateOutput struct{ Body Certificate }

type certificateCreate struct {
	Body struct {
		Name            string            `json:"name,omitempty" maxLength:"300" doc:"default: the common name, else the first SAN; need not be unique"`
		CommonName      string            `json:"common_name,omitempty" maxLength:"64" doc:"default: the first SAN that fits"`
		SANs            []string          `json:"sans" minItems:"1" maxItems:"100" doc:"DNS names, IP addresses, e-mail addresses and URIs"`
		IssuerID        id.Issuer         `json:"issuer_id,omitzero" doc:"default: the issuer called local"`
		ProfileID       id.Profile        `json:"profile_id,omitzero" doc:"default: the profile called default"`
		RenewalPolicyID id.RenewalPolicy  `json:"renewal_policy_id,omitzero" doc:"default: the policy called default"`
		OwnerID         id.Owner          `json:"owner_id,omitzero"`
		TeamID          id.Team           `json:"team_id,omitzero"`
		Environment     *string           `json:"environment,omitempty" maxLength:"100"`
		Tags            map[string]string `json:"tags,omitempty"`
		TargetIDs       []id.Target       `json:"target_ids,omitempty" maxItems:"100"`
		AutoRenew       *bool             `json:"auto_renew,omitempty" doc:"default: as the renewal policy says"`
		Issue           *bool             `json:"issue,omitempty" doc:"false: do not enqueue the first issuance"`
	}
}

type certificateCreated struct {
	Location string `header:"Location"`
	Body     Certificate
}

type certificateUpdate struct {
	ID   id.Certificate `path:"id"`
	Body struct {
		Name            *string           `json:"name,omitempty" minLength:"1" maxLength:"300"`
		OwnerID         *id.Owner         `json:"owner_id,omitempty" doc:"null stays; an empty text removes"`
		TeamID          *id.Team          `json:"team_id,omitempty"`
		Environment     *string           `json:"environment,omitempty" maxLength:"100"`
		Tags            map[string]string `json:"tags,omitempty" doc:"replaces all tags"`
		RenewalPolicyID *id.RenewalPolicy `json:"renewal_policy_id,omitempty"`
		AutoRenew       *bool             `json:"auto_renew,omitempty"`
		TargetIDs       *[]id.Target      `json:"target_ids,omitempty" doc:"replaces all targets"`
	}
}

// CertificateFilter are the query names that narrow a list of certificates.
type CertificateFilter struct {
	Status          string           `query:"status" enum:"archived,revoked,renewing,pending,expired,failed,expiring,active"`
	Name            string           `query:"name" maxLength:"300" doc:"exactly this name"`
	SAN             string           `query:"san" maxLength:"300" doc:"has this name among its SANs"`
	IssuerID        id.Issuer        `query:"issuer_id"`
	ProfileID       id.Profile       `query:"profile_id"`
	RenewalPolicyID id.RenewalPolicy `query:"renewal_policy_id"`
	OwnerID         id.Owner         `query:"owner_id"`
	TeamID          id.Team          `query:"team_id"`
	AgentID         id.Agent         `query:"agent_id"`
	TargetID        id.Target        `query:"target_id"`
	Environment     string           `query:"environment" maxLength:"100"`
	Tag             string           `query:"tag" maxLength:"401" doc:"name:value"`
}

func (f CertificateFilter) filter() (cert.Filter, error) {
	out := cert.Filter{Status: cert.Status(f.Status), Name: f.Name, SAN: f.SAN, IssuerID: f.IssuerID, ProfileID: f.ProfileID, RenewalPolicyID: f.RenewalPolicyID,
		OwnerID: f.OwnerID, TeamID: f.TeamID, AgentID: f.AgentID, TargetID: f.TargetID, Environment: f.Environment}
	return out, out.SetTag(f.Tag)
}

type certificateList struct {
	endpoint.ListInput
	CertificateFilter
}

type versionList struct {
	endpoint.ListInput
	ID id.Certificate `path:"id"`
}

func (a *API) certificates() {
	tag := "Certificates"
	endpoint.Write(a.rt, "POST /api/v1/certificates", auth.CertWrite, endpoint.Doc{ID: "createCertificate", Tag: tag, Summary: "Create a managed certificate", Status: http.StatusCreated,
		Description: "Stores the certificate and enqueues its first issuance in the same transaction. Names come from this record, never from a certificate request."}, a.createCertificate)
	endpoint.Read(a.rt, "GET /api/v1/certificates", auth.Read, endpoint.Doc{ID: "listCertificates", Tag: tag, Summary: "List certificates",
		Description: "Sorts: created_at, name, not_after. Archived certificates are listed only with status=archived."}, listCertificates)
	endpoint.Read(a.rt, "GET /api/v1/certificates/{id}", auth.Read, endpoint.Doc{ID: "getCertificate", Tag: tag, Summary: "Get a certificate"},
		func(ctx context.Context, q db.Querier, in *certificateInput) (*certificateOutput, error) {
			c, err := cert.Get(ctx, q, in.ID)
			if err != nil {
				return nil, err
			}
			view, err := oneCertificate(ctx, q, c)
			return &certificateOutput{view}, err
		})
	endpoint.Write(a.rt, "PATCH /api/v1/certificates/{id}", auth.CertWrite, endpoint.Doc{ID: "updateCertificate", Tag: tag, Summary: "Update a certificate's record",
		Description: "Fields that are absent stay. Names, issuer, profile and key custody are fixed."}, a.updateCertificate)
	endpoint.Write(a.rt, "POST /api/v1/certificates/{id}/archive", auth.CertWrite, endpoint.Doc{ID: "archiveCertificate", Tag: tag, Summary: "Archive a certificate", Errors: []fault.Kind{fault.OpenJob},
		Description: "Ends its management: it is not renewed or deployed any more. Versions stay known to CRL and OCSP."},
		func(ctx context.Context, tx pgx.Tx, in *certificateInput) (*certificateOutput, error) {
			c, err := lifecycle.Archive(ctx, tx, in.ID)
			if err != nil {
				return nil, err
			}
			view, err := oneCertificate(ctx, tx, c)
			return &certificateOutput{view}, err
		})
	endpoint.Read(a.rt, "GET /api/v1/certificates/{id}/versions", auth.Read, endpoint.Doc{ID: "listVersions", Tag: tag, Summary: "List a certificate's versions"},
		func(ctx context.Context, q db.Querier, in *versionList) (*endpoint.List[Version], error) {
			if _, err := cert.Get(ctx, q, in.ID); err != nil {
				return nil, err
			}
			res, err := cert.ListVersions(ctx, q, in.ID, in.Request())
			if err != nil {
				return nil, err
			}
			return endpoint.ListOf(&in.ListInput, res, versionView), nil
		})
	endpoint.Read(a.rt, "GET /api/v1/certificates/{id}/pem", auth.Read, endpoint.Doc{ID: "getPEM", Tag: tag, Summary: "Get the chain as PEM", Produces: "application/pem-certificate-chain",
		Description: "Leaf, then intermediates, without the root."}, getPEM)
	endpoint.Write(a.rt, "POST /api/v1/certificates/{id}/renew", auth.CertWrite, endpoint.Doc{ID: "renewCertificate", Tag: tag, Summary: "Renew a certificate", Status: http.StatusAccepted,
		Errors: []fault.Kind{fault.OpenJob}, Description: "Makes a job that obtains a new version. While one is open: 409 with open_job_id."}, a.renew)
	endpoint.Write(a.rt, "POST /api/v1/certificates/{id}/deploy", auth.CertWrite, endpoint.Doc{ID: "deployCertificate", Tag: tag, Summary: "Deploy the current version again", Status: http.StatusAccepted,
		Description: "Makes one job per target."}, a.deploy)
}

func (a *API) createCertificate(ctx context.Context, tx pgx.Tx, in *certificateCreate) (*certificateCreated, error) {
	b := in.Body
	c, err := lifecycle.Request(ctx, tx, lifecycle.Wanted{Name: b.Name, CommonName: b.CommonName, SANs: b.SANs, IssuerID: b.IssuerID, ProfileID: b.ProfileID, RenewalPolicyID: b.RenewalPolicyID,
		OwnerID: b.OwnerID, TeamID: b.TeamID, Environment: b.Environment, Tags: b.Tags, TargetIDs: b.TargetIDs, AutoRenew: b.AutoRenew, Issue: b.Issue == nil || *b.Issue})
	if err != nil {
		return nil, err
	}
	a.ring(ctx)
	view, err := oneCertificate(ctx, tx, c)
	return &certificateCreated{"/api/v1/certificates/" + c.ID.String(), view}, err
}

func listCertificates(ctx context.Context, q db.Querier, in *certificateList) (*endpoint.List[Certificate], error) {
	f, err := in.filter()
	if err != nil {
		return nil, err
	}
	res, err := cert.List(ctx, q, f, in.Request())
	if err != nil {
		return nil, err
	}
	view, err := certificateViews(ctx, q, res.Rows)
	if err != nil {
		return nil, err
	}
	return endpoint.ListOf(&in.ListInput, res, view), nil
}

func (a *API) updateCertificate(ctx context.Context, tx pgx.Tx, in *certificateUpdate) (*certificateOutput, error) {
	b := in.Body
	c, err := lifecycle.Change(ctx, tx, in.ID, lifecycle.Update{TargetIDs: b.TargetIDs, Change: cert.Change{Name: b.Name, OwnerID: b.OwnerID, TeamID: b.TeamID,
		Environment: b.Environment, Tags: b.Tags, RenewalPolicyID: b.RenewalPolicyID, AutoRenew: b.AutoRenew}})
	if err != nil {
		return nil, err
	}
	a.ring(ctx)
	view, err := oneCertificate(ctx, tx, c)
	return &certificateOutput{view}, err
}

type pemInput struct {
	ID        id.Certificate `path:"id"`
	VersionID id.Version     `query:"version_id" doc:"default: the current version"`
}

type pemOutput struct{ Body []byte }

func getPEM(ctx context.Context, q db.Querier, in *pemInput) (*pemOutput, error) {
	c, err := cert.Get(ctx, q, in.ID)
	if err != nil {
		return nil, err
	}
	v := in.VersionID
	if v.IsZero() {
		v = c.CurrentVersionID
	}
	if v.IsZero() {
		return nil, fault.New(fault.NotFound, "The certificate has no version yet.")
	}
	if _, err := cert.GetVersion(ctx, q, in.ID, v); err != nil {
		return nil, err
	}
	chain, err := cert.Chain(ctx, q, v)
	return &pemOutput{pki.EncodeBundle(chain...)}, err
}

type jobAccepted struct {
	Location string `header:"Location"`
	Body     Job
}

func (a *API) renew(ctx context.Context, tx pgx.Tx, in *certificateInput) (*jobAccepted, error) {
	j, err := lifecycle.Renew(ctx, tx, in.ID)
	if err != nil {
		return nil, err
	}
	a.ring(ctx)
	return &jobAccepted{"/api/v1/jobs/" + j.ID.String(), jobView(j, nil)}, nil
}

type deployAccepted struct {
	Body struct {
		JobIDs []id.Job `json:"job_ids"`
	}
}

func (a *API) deploy(ctx context.Context, tx pgx.Tx, in *certificateInput) (*deployAccepted, error) {
	jobs, err := lifecycle.Deploy(ctx, tx, in.ID)
	if err != nil {
		return nil, err
	}
	a.ring(ctx)
	out := &deployAccepted{}
	out.Body.JobIDs = jobs
	return out, nil
}
