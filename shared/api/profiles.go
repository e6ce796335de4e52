package api

import (
	"context"
	"net/http"
	"time"

	"certctl/shared/audit"
	"certctl/shared/auth"
	"certctl/shared/cert"
	"certctl/shared/db"
	"certctl/shared/endpoint"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/span"

	"github.com/jackc/pgx/v5"
)

// ProfileFields are what a profile is made from.
type ProfileFields struct {
	Name             string        `json:"name" minLength:"1" maxLength:"200"`
	KeyAlgorithms    []string      `json:"key_algorithms" minItems:"1" maxItems:"20" doc:"the first is used for new keys"`
	MaxTTL           span.Duration `json:"max_ttl" doc:"longest lifetime; under 1h is short-lived"`
	EKUs             []string      `json:"ekus,omitempty" maxItems:"20" doc:"default: serverAuth, clientAuth"`
	NamePatterns     []string      `json:"name_patterns,omitempty" maxItems:"200" doc:"*.example.com (one label), **.example.com (any depth), a name, or *; none: any name"`
	MustStaple       bool          `json:"must_staple,omitempty"`
	PublicTLS        bool          `json:"public_tls,omitempty" doc:"lint with the CA/Browser Forum's rules too"`
	RequiresApproval bool          `json:"requires_approval,omitempty" doc:"another person must approve each issuance"`
	KeyCustody       *string       `json:"key_custody,omitempty" enum:"agent,server" doc:"default: decided by the targets"`
}

// Profile is a profile as people read it.
type Profile struct {
	ID               id.Profile    `json:"id"`
	Name             string        `json:"name"`
	KeyAlgorithms    []string      `json:"key_algorithms"`
	MaxTTL           span.Duration `json:"max_ttl"`
	EKUs             []string      `json:"ekus"`
	NamePatterns     []string      `json:"name_patterns"`
	MustStaple       bool          `json:"must_staple"`
	PublicTLS        bool          `json:"public_tls"`
	RequiresApproval bool          `json:"requires_approval"`
	KeyCustody       *string       `json:"key_custody" enum:"agent,server"`
	ShortLived       bool          `json:"short_lived"`
	CreatedAt        time.Time     `json:"created_at"`
	UpdatedAt        time.Time     `json:"updated_at"`
}

func profileView(p cert.Profile) Profile {
	return Profile{p.ID, p.Name, p.KeyAlgorithms, p.MaxTTL, p.EKUs, p.NamePatterns, p.MustStaple, p.PublicTLS, p.RequiresApproval, (*string)(p.KeyCustody), p.ShortLived(), p.CreatedAt, p.UpdatedAt}
}

func (f ProfileFields) profile(i id.Profile) cert.Profile {
	if len(f.EKUs) == 0 {
		f.EKUs = []string{"serverAuth", "clientAuth"}
	}
	return cert.Profile{ID: i, Name: f.Name, KeyAlgorithms: f.KeyAlgorithms, MaxTTL: f.MaxTTL, EKUs: f.EKUs, NamePatterns: f.NamePatterns, MustStaple: f.MustStaple, PublicTLS: f.PublicTLS,
		RequiresApproval: f.RequiresApproval, KeyCustody: (*cert.Custody)(f.KeyCustody)}
}

// RenewalPolicyFields are what a renewal policy is made from.
type RenewalPolicyFields struct {
	Name            string    `json:"name" minLength:"1" maxLength:"200"`
	RenewAtFraction float64   `json:"renew_at_fraction" doc:"of the lifetime, 0.05 to 0.95"`
	Jitter          float64   `json:"jitter,omitempty" doc:"of the lifetime: the renewal comes up to this much earlier"`
	AutoRenew       *bool     `json:"auto_renew,omitempty" doc:"default true"`
	AlertFractions  []float64 `json:"alert_fractions,omitempty" maxItems:"20"`
}

// RenewalPolicy is a renewal policy as people read it.
type RenewalPolicy struct {
	ID              id.RenewalPolicy `json:"id"`
	Name            string           `json:"name"`
	RenewAtFraction float64          `json:"renew_at_fraction"`
	Jitter          float64          `json:"jitter"`
	AutoRenew       bool             `json:"auto_renew"`
	AlertFractions  []float64        `json:"alert_fractions"`
	CreatedAt       time.Time        `json:"created_at"`
	UpdatedAt       time.Time        `json:"updated_at"`
}

func policyView(p cert.RenewalPolicy) RenewalPolicy {
	return RenewalPolicy{p.ID, p.Name, p.RenewAtFraction, p.Jitter, p.AutoRenew, p.AlertFractions, p.CreatedAt, p.UpdatedAt}
}

func (f RenewalPolicyFields) policy(i id.RenewalPolicy) cert.RenewalPolicy {
	return cert.RenewalPolicy{ID: i, Name: f.Name, RenewAtFraction: f.RenewAtFraction, Jitter: f.Jitter, AutoRenew: f.AutoRenew == nil || *f.AutoRenew, AlertFractions: f.AlertFractions}
}

type (
	profileInput struct {
		ID id.Profile `path:"id"`
	}
	profileCreate struct{ Body ProfileFields }
	profileUpdate struct {
		ID   id.Profile `path:"id"`
		Body ProfileFields
	}
	profileOutput  struct{ Body Profile }
	profileCreated struct {
		Location string `header:"Location"`
		Body     Profile
	}
	policyInput struct {
		ID id.RenewalPolicy `path:"id"`
	}
	policyCreate struct{ Body RenewalPolicyFields }
	policyUpdate struct {
		ID   id.RenewalPolicy `path:"id"`
		Body RenewalPolicyFields
	}
	policyOutput  struct{ Body RenewalPolicy }
	policyCreated struct {
		Location string `header:"Location"`
		Body     RenewalPolicy
	}
)

func (a *API) profiles() {
	a.mountProfiles()
	a.mountPolicies()
}

func (a *API) mountProfiles() {
	tag, conflict := "Profiles", []fault.Kind{fault.Conflict}
	endpoint.Write(a.rt, "POST /api/v1/profiles", auth.Administer, endpoint.Doc{ID: "createProfile", Tag: tag, Summary: "Create a profile", Status: http.StatusCreated, Errors: conflict},
		func(ctx context.Context, tx pgx.Tx, in *profileCreate) (*profileCreated, error) {
			p, err := cert.InsertProfile(ctx, tx, in.Body.profile(id.New[id.Profile]()))
			if err != nil {
				return nil, taken(err, "profiles_name", "profile")
			}
			return &profileCreated{"/api/v1/profiles/" + p.ID.String(), profileView(p)}, told(ctx, tx, "profile.created", "profile", p.ID.String(), p.Name)
		})
	endpoint.Read(a.rt, "GET /api/v1/profiles", auth.Read, endpoint.Doc{ID: "listProfiles", Tag: tag, Summary: "List profiles"},
		func(ctx context.Context, q db.Querier, in *endpoint.ListInput) (*endpoint.List[Profile], error) {
			res, err := cert.ListProfiles(ctx, q, in.Request())
			if err != nil {
				return nil, err
			}
			return endpoint.ListOf(in, res, profileView), nil
		})
	endpoint.Read(a.rt, "GET /api/v1/profiles/{id}", auth.Read, endpoint.Doc{ID: "getProfile", Tag: tag, Summary: "Get a profile"},
		func(ctx context.Context, q db.Querier, in *profileInput) (*profileOutput, error) {
			p, err := cert.GetProfile(ctx, q, in.ID)
			return &profileOutput{profileView(p)}, err
		})
	endpoint.Write(a.rt, "PUT /api/v1/profiles/{id}", auth.Administer, endpoint.Doc{ID: "updateProfile", Tag: tag, Summary: "Replace a profile", Errors: conflict},
		func(ctx context.Context, tx pgx.Tx, in *profileUpdate) (*profileOutput, error) {
			p, err := cert.UpdateProfile(ctx, tx, in.Body.profile(in.ID))
			if err != nil {
				return nil, taken(err, "profiles_name", "profile")
			}
			return &profileOutput{profileView(p)}, told(ctx, tx, "profile.updated", "profile", p.ID.String(), p.Name)
		})
	endpoint.Write(a.rt, "DELETE /api/v1/profiles/{id}", auth.Administer, endpoint.Doc{ID: "archiveProfile", Tag: tag, Summary: "Archive a profile", Errors: conflict, Description: "Only when no live certificate uses it."},
		func(ctx context.Context, tx pgx.Tx, in *profileInput) (*none, error) {
			if err := cert.ArchiveProfile(ctx, tx, in.ID); err != nil {
				return nil, err
			}
			return nil, told(ctx, tx, "profile.archived", "profile", in.ID.String(), "")
		})
}

func (a *API) mountPolicies() {
	tag, conflict := "Profiles", []fault.Kind{fault.Conflict}
	endpoint.Write(a.rt, "POST /api/v1/renewal-policies", auth.Administer, endpoint.Doc{ID: "createRenewalPolicy", Tag: tag, Summary: "Create a renewal policy", Status: http.StatusCreated, Errors: conflict},
		func(ctx context.Context, tx pgx.Tx, in *policyCreate) (*policyCreated, error) {
			p, err := cert.InsertRenewalPolicy(ctx, tx, in.Body.policy(id.New[id.RenewalPolicy]()))
			if err != nil {
				return nil, taken(err, "renewal_policies_name", "renewal policy")
			}
			return &policyCreated{"/api/v1/renewal-policies/" + p.ID.String(), policyView(p)}, told(ctx, tx, "renewal_policy.created", "renewal_policy", p.ID.String(), p.Name)
		})
	endpoint.Read(a.rt, "GET /api/v1/renewal-policies", auth.Read, endpoint.Doc{ID: "listRenewalPolicies", Tag: tag, Summary: "List renewal policies"},
		func(ctx context.Context, q db.Querier, in *endpoint.ListInput) (*endpoint.List[RenewalPolicy], error) {
			res, err := cert.ListRenewalPolicies(ctx, q, in.Request())
			if err != nil {
				return nil, err
			}
			return endpoint.ListOf(in, res, policyView), nil
		})
	endpoint.Read(a.rt, "GET /api/v1/renewal-policies/{id}", auth.Read, endpoint.Doc{ID: "getRenewalPolicy", Tag: tag, Summary: "Get a renewal policy"},
		func(ctx context.Context, q db.Querier, in *policyInput) (*policyOutput, error) {
			p, err := cert.GetRenewalPolicy(ctx, q, in.ID)
			return &policyOutput{policyView(p)}, err
		})
	endpoint.Write(a.rt, "PUT /api/v1/renewal-policies/{id}", auth.Administer, endpoint.Doc{ID: "updateRenewalPolicy", Tag: tag, Summary: "Replace a renewal policy", Errors: conflict},
		func(ctx context.Context, tx pgx.Tx, in *policyUpdate) (*policyOutput, error) {
			p, err := cert.UpdateRenewalPolicy(ctx, tx, in.Body.policy(in.ID))
			if err != nil {
				return nil, taken(err, "renewal_policies_name", "renewal policy")
			}
			return &policyOutput{policyView(p)}, told(ctx, tx, "renewal_policy.updated", "renewal_policy", p.ID.String(), p.Name)
		})
	endpoint.Write(a.rt, "DELETE /api/v1/renewal-policies/{id}", auth.Administer, endpoint.Doc{ID: "archiveRenewalPolicy", Tag: tag, Summary: "Archive a renewal policy", Errors: conflict},
		func(ctx context.Context, tx pgx.Tx, in *policyInput) (*none, error) {
			if err := cert.ArchiveRenewalPolicy(ctx, tx, in.ID); err != nil {
				return nil, err
			}
			return nil, told(ctx, tx, "renewal_policy.archived", "renewal_policy", in.ID.String(), "")
		})
}

// taken gives a violated unique name its own text.
func taken(err error, constraint, what string) error {
	if db.Constraint(err) == constraint {
		return fault.New(fault.Conflict, "A %s of this name exists.", what)
	}
	return err
}

// told records a change of a plain noun.
func told(ctx context.Context, tx pgx.Tx, action, kind, resource, name string) error {
	var details map[string]any
	if name != "" {
		details = map[string]any{"name": name}
	}
	return audit.Record(ctx, tx, audit.Entry{Action: action, ResourceType: kind, ResourceID: resource, Details: details})
}
