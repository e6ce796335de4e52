package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"unicode/utf8"

	"certctl/shared/audit"
	"certctl/shared/auth"
	"certctl/shared/cert"
	"certctl/shared/db"
	"certctl/shared/deployment"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/issuer"
	"certctl/shared/job"
	"certctl/shared/pki"

	"github.com/jackc/pgx/v5"
)

// The names of what the first start makes; they serve requests that name nothing else.
const (
	DefaultIssuer  = "local"
	DefaultProfile = "default"
	DefaultPolicy  = "default"
)

// Wanted is a request for a managed certificate. Zero references mean the defaults.
type Wanted struct {
	Name            string
	CommonName      string
	SANs            []string
	IssuerID        id.Issuer
	ProfileID       id.Profile
	RenewalPolicyID id.RenewalPolicy
	OwnerID         id.Owner
	TeamID          id.Team
	Environment     *string
	Tags            map[string]string
	TargetIDs       []id.Target
	AutoRenew       *bool // nil: as the policy says
	Issue           bool  // enqueue the first issuance
}

// MaxNames bounds how many names one certificate may have, MaxTargets on how many targets it may be.
const (
	MaxNames   = 100
	MaxTargets = 100
)

// Request stores a certificate, maps it to its targets and enqueues its first issuance.
func Request(ctx context.Context, tx pgx.Tx, w Wanted) (cert.Certificate, error) {
	names, err := pki.ParseNames(w.CommonName, w.SANs)
	if err != nil {
		return cert.Certificate{}, err
	}
	refs, err := resolve(ctx, tx, w)
	if err != nil {
		return cert.Certificate{}, err
	}
	if err := refs.profile.Permits(names); err != nil {
		return cert.Certificate{}, err
	}
	targets, err := deployment.Targets(ctx, tx, w.TargetIDs)
	if err != nil {
		return cert.Certificate{}, err
	}
	custody, agent, err := decideCustody(refs.profile, targets)
	if err != nil {
		return cert.Certificate{}, err
	}
	c := cert.Certificate{ID: id.New[id.Certificate](), Name: w.Name, CommonName: names.CommonName, SANs: names.SANs(), IssuerID: refs.issuer.ID, ProfileID: refs.profile.ID,
		RenewalPolicyID: refs.policy.ID, OwnerID: w.OwnerID, TeamID: w.TeamID, Environment: w.Environment, Tags: w.Tags, KeyCustody: custody, AgentID: agent,
		AutoRenew: refs.policy.AutoRenew, CreatedBy: auth.ActorOf(ctx).Principal}
	if w.AutoRenew != nil {
		c.AutoRenew = *w.AutoRenew
	}
	if c.Name == "" {
		c.Name = firstOf(append([]string{names.CommonName}, c.SANs...))
	}
	if err := checkLabels(c); err != nil {
		return c, err
	}
	if c, err = cert.Insert(ctx, tx, c); err != nil {
		return c, err
	}
	if err := deployment.Attach(ctx, tx, c.ID, w.TargetIDs); err != nil {
		return c, err
	}
	if err := audit.Record(ctx, tx, audit.Entry{Action: "certificate.created", ResourceType: "certificate", ResourceID: c.ID.String(),
		Details: map[string]any{"name": c.Name, "sans": c.SANs, "issuer_id": c.IssuerID, "profile_id": c.ProfileID, "target_ids": w.TargetIDs, "key_custody": c.KeyCustody}}); err != nil {
		return c, err
	}
	if w.Issue {
		if _, err := enqueueIssuance(ctx, tx, &c, refs.profile, "requested"); err != nil {
			return c, err
		}
	}
	return c, nil
}

func firstOf(s []string) string {
	i := slices.IndexFunc(s, func(v string) bool { return v != "" })
	if i < 0 {
		return ""
	}
	return s[i]
}

func checkLabels(c cert.Certificate) error {
	var bad []fault.Field
	if n := utf8.RuneCountInString(c.Name); n == 0 || n > 300 {
		bad = append(bad, fault.Field{Field: "name", Detail: "must have 1 to 300 characters"})
	}
	if c.Environment != nil && utf8.RuneCountInString(*c.Environment) > 100 {
		bad = append(bad, fault.Field{Field: "environment", Detail: "must have at most 100 characters"})
	}
	if len(c.Tags) > 50 {
		bad = append(bad, fault.Field{Field: "tags", Detail: "must be at most 50"})
	}
	for k, v := range c.Tags {
		if k == "" || len(k) > 100 || len(v) > 300 {
			bad = append(bad, fault.Field{Field: "tags", Detail: "names must have 1 to 100 octets and values at most 300"})
			break
		}
	}
	if len(bad) > 0 {
		return fault.BadFields(bad...)
	}
	return nil
}

type references struct {
	issuer  issuer.Configured
	profile cert.Profile
	policy  cert.RenewalPolicy
}

// resolve reads what the request refers to; what does not exist or is archived is a fault that names the field.
func resolve(ctx context.Context, q db.Querier, w Wanted) (r references, err error) {
	if w.IssuerID.IsZero() {
		r.issuer, err = issuer.ByName(ctx, q, DefaultIssuer)
	} else {
		r.issuer, err = issuer.Get(ctx, q, w.IssuerID)
	}
	if err := missing("issuer_id", err, r.issuer.ArchivedAt != nil); err != nil {
		return r, err
	}
	if w.ProfileID.IsZero() {
		r.profile, err = cert.ProfileByName(ctx, q, DefaultProfile)
	} else {
		r.profile, err = cert.GetProfile(ctx, q, w.ProfileID)
	}
	if err := missing("profile_id", err, r.profile.ArchivedAt != nil); err != nil {
		return r, err
	}
	if w.RenewalPolicyID.IsZero() {
		r.policy, err = cert.RenewalPolicyByName(ctx, q, DefaultPolicy)
	} else {
		r.policy, err = cert.GetRenewalPolicy(ctx, q, w.RenewalPolicyID)
	}
	return r, missing("renewal_policy_id", err, r.policy.ArchivedAt != nil)
}

func missing(field string, err error, archived bool) error {
	if archived || fault.Is(err, fault.NotFound) {
		return fault.BadField(field, "names something that does not exist; the default of this name may have been archived")
	}
	return err
}

// decideCustody settles once who makes and holds the key (SPEC CERT-8): an agent if any target has one, else the server, and
// the profile's word first. Under agent custody one agent holds the key, so every target must be that agent's.
func decideCustody(p cert.Profile, targets []deployment.Target) (cert.Custody, id.Agent, error) {
	var agents []id.Agent
	agentless := false
	for _, t := range targets {
		switch {
		case t.AgentID.IsZero():
			agentless = true
		case !slices.Contains(agents, t.AgentID):
			agents = append(agents, t.AgentID)
		}
	}
	switch {
	case p.KeyCustody != nil && *p.KeyCustody == cert.ServerCustody, p.KeyCustody == nil && len(agents) == 0:
		return cert.ServerCustody, id.Agent{}, nil
	case len(agents) == 0:
		return "", id.Agent{}, fault.BadField("target_ids", "the profile wants the key on an agent: name a target that has an agent, or use a profile with key_custody server")
	case len(agents) > 1:
		return "", id.Agent{}, fault.BadField("target_ids", "one agent holds the key and never gives it away, so the targets must belong to one agent: make one certificate per host, or use a profile with key_custody server")
	case agentless:
		return "", id.Agent{}, fault.BadField("target_ids", "an agent holds the key, so a target without an agent cannot get it: give every target that agent, or use a profile with key_custody server")
	}
	return cert.AgentCustody, agents[0], nil
}

// enqueueIssuance makes the job that obtains a version and marks it as the open one of the certificate (SPEC JOB-5).
func enqueueIssuance(ctx context.Context, tx pgx.Tx, c *cert.Certificate, p cert.Profile, reason string) (job.Job, error) {
	n := job.New{Type: job.Issuance, CertificateID: c.ID, IssuerID: c.IssuerID, AgentID: c.AgentID, Priority: job.Interactive, MaxAttempts: 6}
	if !c.CurrentVersionID.IsZero() {
		n.Type = job.Renewal
	}
	switch {
	case p.RequiresApproval:
		n.Status, n.ApproveWithin = job.AwaitingApproval, job.ApproveWithin
	case c.KeyCustody == cert.AgentCustody:
		n.Status, n.CSRWithin = job.AwaitingCSR, job.CSRWithin
	}
	j, err := job.Enqueue(ctx, tx, n)
	if db.Constraint(err) == "jobs_one_open_issuance" {
		return j, fault.New(fault.Conflict, "The certificate has an open job; wait for it or cancel it.")
	}
	if err != nil {
		return j, err
	}
	ok, err := cert.SetOpenJob(ctx, tx, c.ID, j.ID, reason)
	if err == nil && !ok {
		err = fault.New(fault.Conflict, "The certificate is archived or has an open job.")
	}
	c.OpenJobID, c.RenewReason = j.ID, &reason
	return j, err
}

// Renew makes a job that obtains a new version. A revoked certificate may be renewed by hand.
func Renew(ctx context.Context, tx pgx.Tx, i id.Certificate) (job.Job, error) {
	c, err := cert.Lock(ctx, tx, i)
	if err != nil {
		return job.Job{}, err
	}
	if c.ArchivedAt != nil {
		return job.Job{}, fault.New(fault.Conflict, "The certificate is archived.")
	}
	if !c.OpenJobID.IsZero() {
		return job.Job{}, fault.New(fault.OpenJob, "The certificate has an open job; wait for it or cancel it.").With("open_job_id", c.OpenJobID)
	}
	p, err := cert.GetProfile(ctx, tx, c.ProfileID)
	if err != nil {
		return job.Job{}, err
	}
	j, err := enqueueIssuance(ctx, tx, &c, p, "asked for by "+auth.ActorOf(ctx).Principal)
	if err != nil {
		return j, err
	}
	return j, audit.Record(ctx, tx, audit.Entry{Action: "certificate.renewal_requested", ResourceType: "certificate", ResourceID: i.String(), Details: map[string]any{"job_id": j.ID}})
}

// Archive ends the management of a certificate.
func Archive(ctx context.Context, tx pgx.Tx, i id.Certificate) (cert.Certificate, error) {
	c, err := cert.Lock(ctx, tx, i)
	if err != nil {
		return c, err
	}
	if !c.OpenJobID.IsZero() {
		return c, fault.New(fault.OpenJob, "The certificate has an open job; wait for it or cancel it.").With("open_job_id", c.OpenJobID)
	}
	if c.ArchivedAt != nil {
		return c, nil
	}
	if c, err = cert.Archive(ctx, tx, i); err != nil {
		return c, err
	}
	if err := cancelDeployments(ctx, tx, i); err != nil {
		return c, err
	}
	return c, audit.Record(ctx, tx, audit.Entry{Action: "certificate.archived", ResourceType: "certificate", ResourceID: i.String()})
}

// Update is a change of a certificate's record; nil fields stay. The names, the issuer, the profile and the custody are fixed.
type Update struct {
	cert.Change
	TargetIDs *[]id.Target
}

// Change applies an update. Targets that are added get the current version.
func Change(ctx context.Context, tx pgx.Tx, i id.Certificate, u Update) (cert.Certificate, error) {
	c, err := cert.Lock(ctx, tx, i)
	if err != nil {
		return c, err
	}
	if c.ArchivedAt != nil {
		return c, fault.New(fault.Conflict, "The certificate is archived.")
	}
	if u.RenewalPolicyID != nil {
		if err := replan(ctx, tx, c, &u.Change); err != nil {
			return c, err
		}
	}
	updated, err := cert.Update(ctx, tx, i, u.Change)
	if err != nil {
		return c, err
	}
	if err := checkLabels(updated); err != nil {
		return c, err
	}
	if u.TargetIDs != nil {
		if err := retarget(ctx, tx, updated, *u.TargetIDs); err != nil {
			return c, err
		}
	}
	return updated, audit.Record(ctx, tx, audit.Entry{Action: "certificate.updated", ResourceType: "certificate", ResourceID: i.String(), Details: changed(u)})
}

func changed(u Update) map[string]any {
	d := map[string]any{}
	for name, set := range map[string]bool{"name": u.Name != nil, "owner_id": u.OwnerID != nil, "team_id": u.TeamID != nil, "environment": u.Environment != nil,
		"tags": u.Tags != nil, "renewal_policy_id": u.RenewalPolicyID != nil, "auto_renew": u.AutoRenew != nil, "target_ids": u.TargetIDs != nil} {
		if set {
			d[name] = true
		}
	}
	return map[string]any{"fields": d}
}

// replan moves the planned renewal to what another policy says.
func replan(ctx context.Context, q db.Querier, c cert.Certificate, ch *cert.Change) error {
	p, err := cert.GetRenewalPolicy(ctx, q, *ch.RenewalPolicyID)
	if err := missing("renewal_policy_id", err, p.ArchivedAt != nil); err != nil {
		return err
	}
	if c.CurrentVersionID.IsZero() || c.RevokedAt != nil {
		return nil
	}
	v, err := cert.VersionByID(ctx, q, c.CurrentVersionID)
	if err != nil {
		return err
	}
	at, _ := p.RenewAt(v.ID, v.NotBefore, v.NotAfter)
	ch.RenewAt = &at
	return nil
}

// retarget replaces the targets of a certificate within its custody.
func retarget(ctx context.Context, tx pgx.Tx, c cert.Certificate, ids []id.Target) error {
	targets, err := deployment.Targets(ctx, tx, ids)
	if err != nil {
		return err
	}
	for i, t := range targets {
		if c.KeyCustody == cert.AgentCustody && t.AgentID != c.AgentID {
			return fault.BadField(fmt.Sprintf("target_ids[%d]", i), "the key is held by another agent and never leaves it: make one certificate per host, or use a profile with key_custody server")
		}
	}
	if err := deployment.Attach(ctx, tx, c.ID, ids); err != nil {
		return err
	}
	if err := deployment.Detach(ctx, tx, c.ID, ids); err != nil {
		return err
	}
	if c.CurrentVersionID.IsZero() {
		return nil
	}
	_, err = desire(ctx, tx, c.ID, c.CurrentVersionID)
	return err
}
