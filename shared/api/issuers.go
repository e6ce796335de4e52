package api

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"time"

	"certctl/shared/audit"
	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/endpoint"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/issuer"
	"certctl/shared/job"
	"certctl/shared/lifecycle"
	"certctl/shared/pki"
	"certctl/shared/revocation"

	"github.com/jackc/pgx/v5"
)

// Issuer is a configured CA as people read it; what is secret in its settings is never shown.
type Issuer struct {
	ID         id.Issuer       `json:"id"`
	Name       string          `json:"name"`
	Type       string          `json:"type"`
	Config     json.RawMessage `json:"config"`
	LastTest   json.RawMessage `json:"last_test" doc:"{at, ok, detail} of the newest connection test, or null"`
	CRLURL     *string         `json:"crl_url"`
	OCSPURL    *string         `json:"ocsp_url"`
	CAURL      *string         `json:"ca_url"`
	CreatedAt  time.Time       `json:"created_at"`
	UpdatedAt  time.Time       `json:"updated_at"`
	ArchivedAt *time.Time      `json:"archived_at"`
}

func (a *API) issuerView(i issuer.Configured) Issuer {
	out := Issuer{ID: i.ID, Name: i.Name, Type: i.Type, Config: orNull(i.Config), LastTest: orNull(i.LastTest), CreatedAt: i.CreatedAt, UpdatedAt: i.UpdatedAt, ArchivedAt: i.ArchivedAt}
	if i.Type == lifecycle.LocalType {
		base := a.URLs.PKI + "/.well-known/pki/"
		crl, ocsp, ca := base+"crl/"+i.ID.String(), a.URLs.OCSP(i.ID), base+"ca/"+i.ID.String()
		out.CRLURL, out.OCSPURL, out.CAURL = &crl, &ocsp, &ca
	}
	return out
}

func orNull(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 {
		return json.RawMessage("null")
	}
	return raw
}

// Generation is one key and certificate of a local CA.
type Generation struct {
	ID             id.Generation `json:"id"`
	Number         int           `json:"number"`
	CertificatePEM string        `json:"certificate_pem"`
	Subject        string        `json:"subject"`
	Serial         string        `json:"serial"`
	KeyAlgorithm   string        `json:"key_algorithm"`
	KeySource      string        `json:"key_source" enum:"sealed,file,elsewhere"`
	NotBefore      time.Time     `json:"not_before"`
	NotAfter       time.Time     `json:"not_after"`
	CRLURL         string        `json:"crl_url"`
	CRLNumber      *int64        `json:"crl_number"`
	CRLEntries     *int64        `json:"crl_entries"`
	CRLNextUpdate  *time.Time    `json:"crl_next_update"`
	CreatedAt      time.Time     `json:"created_at"`
}

func (a *API) generationView(g issuer.Generation, states []revocation.State) (Generation, error) {
	c, err := g.X509()
	if err != nil {
		return Generation{}, err
	}
	alg, err := pki.AlgorithmOf(c.PublicKey)
	if err != nil {
		return Generation{}, err
	}
	out := Generation{ID: g.ID, Number: g.Number, CertificatePEM: string(pki.EncodeBundle(c)), Subject: c.Subject.String(), Serial: pki.FormatSerial(c.SerialNumber), KeyAlgorithm: string(alg),
		KeySource: "sealed", NotBefore: g.NotBefore, NotAfter: g.NotAfter, CRLURL: a.URLs.CRL(g.IssuerID, g.Number, 0, g.CRLShards), CreatedAt: g.CreatedAt}
	if g.KeyURI != nil {
		out.KeySource = "elsewhere"
		if len(*g.KeyURI) > 5 && (*g.KeyURI)[:5] == "file:" {
			out.KeySource = "file"
		}
	}
	for _, s := range states {
		if s.GenerationID == g.ID && s.Shard == 0 && s.CurrentNumber > 0 {
			n := s.CurrentNumber
			out.CRLNumber, out.CRLEntries, out.CRLNextUpdate = &n, s.Entries, s.NextUpdate
		}
	}
	return out, nil
}

type issuerInput struct {
	ID id.Issuer `path:"id"`
}

type issuerOutput struct{ Body Issuer }

type issuerCreate struct {
	Body struct {
		Name   string          `json:"name" minLength:"1" maxLength:"200"`
		Type   string          `json:"type" minLength:"1" maxLength:"50" doc:"local"`
		Config json.RawMessage `json:"config,omitempty" doc:"settings of the type; secrets in them are write-only"`
	}
}

type issuerCreated struct {
	Location string `header:"Location"`
	Body     Issuer
}

type issuerUpdate struct {
	ID   id.Issuer `path:"id"`
	Body struct {
		Name string `json:"name" minLength:"1" maxLength:"200"`
	}
}

type generationList struct {
	Body struct {
		Data []Generation `json:"data"`
	}
}

type generationOutput struct{ Body Generation }

type requestOutput struct{ Body []byte }

type fulfilInput struct {
	ID   id.Issuer `path:"id"`
	Body struct {
		CertificatePEM string `json:"certificate_pem" minLength:"1" maxLength:"65536" doc:"the signed CA certificate, followed by its parents"`
	}
}

func (a *API) issuers() {
	tag := "Issuers"
	endpoint.Write(a.rt, "POST /api/v1/issuers", auth.Administer, endpoint.Doc{ID: "createIssuer", Tag: tag, Summary: "Configure an issuer", Status: http.StatusCreated, Errors: []fault.Kind{fault.Conflict},
		Description: "Usable on every instance at once. A local issuer gets its CA here: generated, imported, or as a request to a CA above."}, a.createIssuer)
	endpoint.Read(a.rt, "GET /api/v1/issuers", auth.Read, endpoint.Doc{ID: "listIssuers", Tag: tag, Summary: "List issuers"},
		func(ctx context.Context, q db.Querier, in *endpoint.ListInput) (*endpoint.List[Issuer], error) {
			res, err := issuer.List(ctx, q, in.Request())
			if err != nil {
				return nil, err
			}
			return endpoint.ListOf(in, res, a.issuerView), nil
		})
	endpoint.Read(a.rt, "GET /api/v1/issuers/{id}", auth.Read, endpoint.Doc{ID: "getIssuer", Tag: tag, Summary: "Get an issuer"},
		func(ctx context.Context, q db.Querier, in *issuerInput) (*issuerOutput, error) {
			i, err := issuer.Get(ctx, q, in.ID)
			return &issuerOutput{a.issuerView(i)}, err
		})
	endpoint.Write(a.rt, "PATCH /api/v1/issuers/{id}", auth.Administer, endpoint.Doc{ID: "updateIssuer", Tag: tag, Summary: "Rename an issuer", Errors: []fault.Kind{fault.Conflict}}, a.renameIssuer)
	endpoint.Write(a.rt, "DELETE /api/v1/issuers/{id}", auth.Administer, endpoint.Doc{ID: "archiveIssuer", Tag: tag, Summary: "Archive an issuer", Errors: []fault.Kind{fault.Conflict},
		Description: "Only when no live certificate uses it. Its CRL and OCSP go on."},
		func(ctx context.Context, tx pgx.Tx, in *issuerInput) (*none, error) {
			if err := issuer.Archive(ctx, tx, in.ID); err != nil {
				return nil, err
			}
			return nil, audit.Record(ctx, tx, audit.Entry{Action: "issuer.archived", ResourceType: "issuer", ResourceID: in.ID.String()})
		})
	endpoint.Write(a.rt, "POST /api/v1/issuers/{id}/test", auth.Administer, endpoint.Doc{ID: "testIssuer", Tag: tag, Summary: "Test an issuer", Status: http.StatusAccepted,
		Description: "Run by the worker; the outcome is the job's and is shown as last_test."}, a.testIssuer)
	endpoint.Read(a.rt, "GET /api/v1/issuers/{id}/generations", auth.Read, endpoint.Doc{ID: "listGenerations", Tag: tag, Summary: "List a local CA's generations"}, a.listGenerations)
	endpoint.Write(a.rt, "POST /api/v1/issuers/{id}/rekey", auth.Administer, endpoint.Doc{ID: "rekeyIssuer", Tag: tag, Summary: "Give a local CA a new key", Status: http.StatusCreated,
		Description: "Adds a generation; new certificates are signed by it. Certificates of older generations keep their CRL and responder."},
		func(ctx context.Context, tx pgx.Tx, in *issuerInput) (*generationOutput, error) {
			g, err := lifecycle.Rekey(ctx, tx, a.Box, in.ID)
			return a.generationAdded(ctx, g, err)
		})
	endpoint.Write(a.rt, "POST /api/v1/issuers/{id}/renew", auth.Administer, endpoint.Doc{ID: "renewIssuer", Tag: tag, Summary: "Renew a local CA with the same key", Status: http.StatusAccepted}, a.renewIssuer)
	endpoint.Read(a.rt, "GET /api/v1/issuers/{id}/request", auth.Read, endpoint.Doc{ID: "getIssuerRequest", Tag: tag, Summary: "Get a sub-CA's open certificate request", Produces: "application/pkcs10"},
		func(ctx context.Context, q db.Querier, in *issuerInput) (*requestOutput, error) {
			der, err := lifecycle.OpenRequest(ctx, q, in.ID)
			return &requestOutput{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}, err
		})
	endpoint.Write(a.rt, "POST /api/v1/issuers/{id}/request", auth.Administer, endpoint.Doc{ID: "fulfilIssuerRequest", Tag: tag, Summary: "Answer a sub-CA's certificate request", Status: http.StatusCreated},
		func(ctx context.Context, tx pgx.Tx, in *fulfilInput) (*generationOutput, error) {
			g, err := lifecycle.FulfilRequest(ctx, tx, in.ID, in.Body.CertificatePEM)
			return a.generationAdded(ctx, g, err)
		})
}

func (a *API) createIssuer(ctx context.Context, tx pgx.Tx, in *issuerCreate) (*issuerCreated, error) {
	i, err := lifecycle.CreateIssuer(ctx, tx, a.Box, lifecycle.NewIssuer{Name: in.Body.Name, Type: in.Body.Type, Config: in.Body.Config})
	if err != nil {
		return nil, err
	}
	a.ring(ctx)
	return &issuerCreated{"/api/v1/issuers/" + i.ID.String(), a.issuerView(i)}, nil
}

func (a *API) renameIssuer(ctx context.Context, tx pgx.Tx, in *issuerUpdate) (*issuerOutput, error) {
	i, err := issuer.Rename(ctx, tx, in.ID, in.Body.Name)
	if db.Constraint(err) == "issuers_name" {
		return nil, fault.New(fault.Conflict, "An issuer of this name exists.")
	}
	if err != nil {
		return nil, err
	}
	return &issuerOutput{a.issuerView(i)}, audit.Record(ctx, tx, audit.Entry{Action: "issuer.updated", ResourceType: "issuer", ResourceID: i.ID.String(), Details: map[string]any{"name": i.Name}})
}

func (a *API) testIssuer(ctx context.Context, tx pgx.Tx, in *issuerInput) (*jobAccepted, error) {
	if _, err := issuer.Get(ctx, tx, in.ID); err != nil {
		return nil, err
	}
	j, err := job.Enqueue(ctx, tx, job.New{Type: job.IssuerTest, IssuerID: in.ID, Priority: job.Interactive, MaxAttempts: 1})
	if err != nil {
		return nil, err
	}
	a.ring(ctx)
	return accepted(j), audit.Record(ctx, tx, audit.Entry{Action: "issuer.test_requested", ResourceType: "issuer", ResourceID: in.ID.String(), Details: map[string]any{"job_id": j.ID}})
}

func accepted(j job.Job) *jobAccepted {
	return &jobAccepted{"/api/v1/jobs/" + j.ID.String(), jobView(j, nil)}
}

func (a *API) renewIssuer(ctx context.Context, tx pgx.Tx, in *issuerInput) (*jobAccepted, error) {
	j, err := lifecycle.RequestCARenewal(ctx, tx, in.ID)
	if err != nil {
		return nil, err
	}
	a.ring(ctx)
	return accepted(j), nil
}

func (a *API) listGenerations(ctx context.Context, q db.Querier, in *issuerInput) (*generationList, error) {
	if _, err := issuer.Get(ctx, q, in.ID); err != nil {
		return nil, err
	}
	gens, err := issuer.Generations(ctx, q, in.ID)
	if err != nil {
		return nil, err
	}
	states, err := revocation.States(ctx, q, in.ID)
	if err != nil {
		return nil, err
	}
	out := &generationList{}
	for _, g := range gens {
		view, err := a.generationView(g, states)
		if err != nil {
			return nil, err
		}
		out.Body.Data = append(out.Body.Data, view)
	}
	return out, nil
}

func (a *API) generationAdded(ctx context.Context, g issuer.Generation, err error) (*generationOutput, error) {
	if err != nil {
		return nil, err
	}
	a.ring(ctx)
	view, err := a.generationView(g, nil)
	return &generationOutput{view}, err
}
