package api

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"time"

	"certctl/shared/agent"
	"certctl/shared/audit"
	"certctl/shared/auth"
	"certctl/shared/cert"
	"certctl/shared/db"
	"certctl/shared/deployment"
	"certctl/shared/endpoint"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/job"
)

// Actor is who did something.
type Actor struct {
	Principal string `json:"principal"`
	Role      string `json:"role"`
	KeyID     id.Key `json:"key_id"`
}

// AuditEvent is an entry of the trail.
type AuditEvent struct {
	ID           id.Event       `json:"id"`
	At           time.Time      `json:"at"`
	Actor        Actor          `json:"actor"`
	Action       string         `json:"action"`
	ResourceType string         `json:"resource_type"`
	ResourceID   *string        `json:"resource_id"`
	Details      map[string]any `json:"details"`
	RequestID    *string        `json:"request_id"`
}

func eventView(e audit.Event) AuditEvent {
	return AuditEvent{e.ID, e.At, Actor{e.Principal, e.Role, e.KeyID}, e.Action, e.ResourceType, e.ResourceID, e.Details, e.RequestID}
}

// AuditFilter are the query names that narrow a list of audit events.
type AuditFilter struct {
	Principal    string    `query:"principal" maxLength:"200"`
	Action       string    `query:"action" maxLength:"200"`
	ResourceType string    `query:"resource_type" maxLength:"100"`
	ResourceID   string    `query:"resource_id" maxLength:"200"`
	RequestID    string    `query:"request_id" maxLength:"200"`
	Since        time.Time `query:"since"`
	Until        time.Time `query:"until"`
}

func (f AuditFilter) filter() audit.Filter { return audit.Filter(f) }

type auditList struct {
	endpoint.ListInput
	AuditFilter
}

type auditInput struct {
	ID id.Event `path:"id"`
}

type auditOutput struct{ Body AuditEvent }

func (a *API) trail() {
	endpoint.Read(a.rt, "GET /api/v1/audit", auth.AuditRead, endpoint.Doc{ID: "listAudit", Tag: "Audit", Summary: "List audit events"},
		func(ctx context.Context, q db.Querier, in *auditList) (*endpoint.List[AuditEvent], error) {
			res, err := audit.List(ctx, q, in.filter(), in.Request())
			if err != nil {
				return nil, err
			}
			return endpoint.ListOf(&in.ListInput, res, eventView), nil
		})
	endpoint.Read(a.rt, "GET /api/v1/audit/{id}", auth.AuditRead, endpoint.Doc{ID: "getAudit", Tag: "Audit", Summary: "Get an audit event"},
		func(ctx context.Context, q db.Querier, in *auditInput) (*auditOutput, error) {
			e, err := audit.Get(ctx, q, in.ID)
			return &auditOutput{eventView(e)}, err
		})
	endpoint.Raw(a.rt, "GET /api/v1/audit/export", auth.AuditRead, "api", http.HandlerFunc(a.exportAudit))
}

// exportAudit streams one JSON object a line: the id, the canonical bytes that were hashed, and their leaf hash. since and
// until narrow it.
func (a *API) exportAudit(w http.ResponseWriter, r *http.Request) {
	f, err := exportFilter(r.URL.RawQuery)
	if err != nil {
		endpoint.WriteProblem(w, r, err)
		return
	}
	started := false
	enc := json.NewEncoder(w)
	err = audit.Export(r.Context(), a.Pool, f, func(s audit.Sealed) error {
		if !started {
			started = true
			exportHead(w)
		}
		return enc.Encode(struct {
			ID        id.Event `json:"id"`
			Canonical string   `json:"canonical_base64"`
			LeafHash  string   `json:"leaf_hash"`
		}{s.ID, base64.StdEncoding.EncodeToString(s.Canonical), hex.EncodeToString(s.LeafHash)})
	})
	switch {
	case err != nil && !started:
		endpoint.WriteProblem(w, r, err)
	case err != nil:
		a.Log.ErrorContext(r.Context(), "an audit export broke off", "err", err)
		panic(http.ErrAbortHandler) // a cut connection is seen; a short answer is not
	case !started:
		exportHead(w)
	}
}

// exportFilter reads the query of an export, which stands outside the machinery of operations.
func exportFilter(query string) (f audit.Filter, err error) {
	q, err := url.ParseQuery(query)
	if err != nil {
		return f, fault.New(fault.Invalid, "The query string is malformed.")
	}
	for name, values := range q {
		at, err := time.Parse(time.RFC3339, values[0])
		switch {
		case name != "since" && name != "until" || len(values) > 1:
			return f, fault.BadField("query", "this path takes since and until, once each")
		case err != nil:
			return f, badTime(name)
		case name == "since":
			f.Since = at
		default:
			f.Until = at
		}
	}
	return f, nil
}

func exportHead(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
}

// Summary are the statistics.
type Summary struct {
	Certificates struct {
		Total    int64            `json:"total" doc:"without archived ones"`
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

type summaryOutput struct{ Body Summary }

func (a *API) statistics() {
	endpoint.Read(a.rt, "GET /api/v1/stats/summary", auth.Read, endpoint.Doc{ID: "getSummary", Tag: "Statistics", Summary: "Count certificates, jobs and agents",
		Description: "Exact counts of the moment."}, summary)
}

func summary(ctx context.Context, q db.Querier, _ *none) (*summaryOutput, error) {
	out := &summaryOutput{}
	s := &out.Body
	certs, err := cert.CountByStatus(ctx, q)
	if err != nil {
		return nil, err
	}
	s.Certificates.ByStatus = map[string]int64{}
	for status, n := range certs {
		s.Certificates.ByStatus[string(status)] = n
		if status != cert.Archived {
			s.Certificates.Total += n
		}
	}
	jobs, err := job.CountByStatus(ctx, q)
	if err != nil {
		return nil, err
	}
	s.Jobs.ByStatus = map[string]int64{}
	for state, n := range jobs {
		s.Jobs.ByStatus[string(state)] = n
	}
	if s.Agents.Total, s.Agents.Online, err = agent.Counts(ctx, q); err != nil {
		return nil, err
	}
	t, err := deployment.TimeToServed(ctx, q)
	s.TimeToServed.Count, s.TimeToServed.P50Seconds, s.TimeToServed.P95Seconds = t.Count, t.P50, t.P95
	return out, err
}
