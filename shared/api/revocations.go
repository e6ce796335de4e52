package api

import (
	"context"
	"net/http"

	"certctl/shared/auth"
	"certctl/shared/cert"
	"certctl/shared/endpoint"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/lifecycle"
	"certctl/shared/pki"

	"github.com/jackc/pgx/v5"
)

type revokeInput struct {
	ID   id.Certificate `path:"id"`
	Body struct {
		Reason    string     `json:"reason" doc:"RFC 5280: unspecified, keyCompromise, cACompromise, affiliationChanged, superseded, cessationOfOperation, certificateHold, privilegeWithdrawn, aACompromise"`
		VersionID id.Version `json:"version_id,omitzero" doc:"default: the current version"`
	}
}

// RevokedCertificate is the certificate, and under keyCompromise the other live versions that use the key.
type RevokedCertificate struct {
	Certificate
	SharedKeyVersions []Version `json:"shared_key_versions"`
}

type revokeOutput struct {
	Status   int
	Location string `header:"Location"`
	Body     any
}

type unholdInput struct {
	ID   id.Certificate `path:"id"`
	Body struct {
		VersionID id.Version `json:"version_id,omitzero" doc:"default: the current version"`
	}
}

type bulkInput struct {
	Body struct {
		Reason         string      `json:"reason"`
		CertificateIDs []string    `json:"certificate_ids,omitempty" maxItems:"10000"`
		Filter         *BulkFilter `json:"filter,omitempty"`
		DryRun         bool        `json:"dry_run,omitempty"`
	}
}

// BulkFilter chooses certificates; at least one field must be given.
type BulkFilter struct {
	Status          string           `json:"status,omitempty" enum:"renewing,pending,expired,failed,expiring,active"`
	Name            string           `json:"name,omitempty" maxLength:"300"`
	SAN             string           `json:"san,omitempty" maxLength:"300"`
	IssuerID        id.Issuer        `json:"issuer_id,omitzero"`
	ProfileID       id.Profile       `json:"profile_id,omitzero"`
	RenewalPolicyID id.RenewalPolicy `json:"renewal_policy_id,omitzero"`
	OwnerID         id.Owner         `json:"owner_id,omitzero"`
	TeamID          id.Team          `json:"team_id,omitzero"`
	AgentID         id.Agent         `json:"agent_id,omitzero"`
	TargetID        id.Target        `json:"target_id,omitzero"`
	Environment     string           `json:"environment,omitempty" maxLength:"100"`
	Tag             string           `json:"tag,omitempty" maxLength:"401"`
}

type bulkOutput struct {
	Status   int
	Location string `header:"Location"`
	Body     any
}

func (a *API) revocations() {
	endpoint.Write(a.rt, "POST /api/v1/certificates/{id}/revoke", auth.CertWrite, endpoint.Doc{ID: "revokeCertificate", Tag: "Certificates", Summary: "Revoke a version", Status: http.StatusOK,
		Answers: map[int]any{http.StatusOK: RevokedCertificate{}, http.StatusAccepted: Job{}}, Errors: []fault.Kind{fault.AlreadyRevoked},
		Description: "200 with the certificate when it is done, 202 with a job when the CA must be asked. keyCompromise blocks the key everywhere."}, a.revoke)
	endpoint.Write(a.rt, "POST /api/v1/certificates/{id}/unhold", auth.CertWrite, endpoint.Doc{ID: "unholdCertificate", Tag: "Certificates", Summary: "Lift a hold"}, a.unhold)
	endpoint.Write(a.rt, "POST /api/v1/certificates/bulk-revoke", auth.Administer, endpoint.Doc{ID: "bulkRevoke", Tag: "Certificates", Summary: "Revoke many certificates", Status: http.StatusOK,
		Answers:     map[int]any{http.StatusOK: lifecycle.Totals{}, http.StatusAccepted: Job{}},
		Description: "By ids or by filter. More than 1,000 matches become a job with the same totals as its result."}, a.bulkRevoke)
}

func (a *API) revoke(ctx context.Context, tx pgx.Tx, in *revokeInput) (*revokeOutput, error) {
	reason, err := pki.ParseReason(in.Body.Reason)
	if err != nil {
		return nil, err
	}
	r, err := lifecycle.Revoke(ctx, tx, in.ID, in.Body.VersionID, reason)
	if err != nil {
		return nil, err
	}
	a.ring(ctx)
	if r.Job != nil {
		return &revokeOutput{http.StatusAccepted, "/api/v1/jobs/" + r.Job.ID.String(), jobView(*r.Job, nil)}, nil
	}
	view, err := oneCertificate(ctx, tx, r.Certificate)
	body := RevokedCertificate{Certificate: view, SharedKeyVersions: []Version{}}
	for _, v := range r.SharedKey {
		body.SharedKeyVersions = append(body.SharedKeyVersions, versionView(v))
	}
	return &revokeOutput{Status: http.StatusOK, Body: body}, err
}

func (a *API) unhold(ctx context.Context, tx pgx.Tx, in *unholdInput) (*certificateOutput, error) {
	c, err := lifecycle.Unhold(ctx, tx, in.ID, in.Body.VersionID)
	if err != nil {
		return nil, err
	}
	a.ring(ctx)
	view, err := oneCertificate(ctx, tx, c)
	return &certificateOutput{view}, err
}

func (a *API) bulkRevoke(ctx context.Context, tx pgx.Tx, in *bulkInput) (*bulkOutput, error) {
	reason, err := pki.ParseReason(in.Body.Reason)
	if err != nil {
		return nil, err
	}
	ids, unknown, err := bulkMatches(ctx, tx, in)
	if err != nil {
		return nil, err
	}
	bulk := lifecycle.Bulk{Reason: reason, CertificateIDs: ids, DryRun: in.Body.DryRun}
	a.ring(ctx)
	if len(ids) > lifecycle.BulkLimit && !bulk.DryRun {
		j, err := lifecycle.EnqueueBulk(ctx, tx, bulk)
		return &bulkOutput{http.StatusAccepted, "/api/v1/jobs/" + j.ID.String(), jobView(j, nil)}, err
	}
	t, err := lifecycle.RevokeAll(ctx, tx, bulk)
	t.Matched, t.Failed, t.Results = t.Matched+len(unknown), t.Failed+len(unknown), append(t.Results, unknown...)
	return &bulkOutput{Status: http.StatusOK, Body: t}, err
}

// bulkMatches answers the certificates that are meant, and the ids that are none as failed outcomes.
func bulkMatches(ctx context.Context, tx pgx.Tx, in *bulkInput) (ids []id.Certificate, unknown []lifecycle.Outcome, err error) {
	f := in.Body.Filter
	switch {
	case len(in.Body.CertificateIDs) > 0 && f != nil:
		return nil, nil, fault.BadField("filter", "give certificate_ids or filter, not both")
	case len(in.Body.CertificateIDs) > 0:
		seen := map[string]bool{}
		for _, s := range in.Body.CertificateIDs {
			if seen[s] {
				continue
			}
			seen[s] = true
			c, err := id.Parse[id.Certificate](s)
			if err != nil {
				unknown = append(unknown, lifecycle.Outcome{CertificateID: s, Outcome: "failed", Detail: "There is no such certificate."})
				continue
			}
			ids = append(ids, c)
		}
		return ids, unknown, nil
	case f == nil || *f == BulkFilter{}:
		return nil, nil, fault.BadField("filter", "give certificate_ids or at least one filter field: everything is never meant")
	}
	filter := cert.Filter{Status: cert.Status(f.Status), Name: f.Name, SAN: f.SAN, IssuerID: f.IssuerID, ProfileID: f.ProfileID, RenewalPolicyID: f.RenewalPolicyID,
		OwnerID: f.OwnerID, TeamID: f.TeamID, AgentID: f.AgentID, TargetID: f.TargetID, Environment: f.Environment}
	if err := filter.SetTag(f.Tag); err != nil {
		return nil, nil, fault.BadField("filter.tag", "must be name:value")
	}
	ids, err = cert.Matching(ctx, tx, filter, 1_000_000)
	return ids, nil, err
}
