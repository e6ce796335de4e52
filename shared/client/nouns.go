package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"
)

// Certificates are the managed certificates.
type Certificates struct {
	Collection[Certificate, NewCertificate]
}

// Update changes a record.
func (r Certificates) Update(ctx context.Context, id string, ch CertificateChange) (Certificate, error) {
	return r.change(ctx, http.MethodPatch, id, ch)
}

// Archive ends the management of a certificate.
func (r Certificates) Archive(ctx context.Context, id string) (out Certificate, err error) {
	_, err = r.reader().post(ctx, id, "archive", nil, &out)
	return out, err
}

// Versions go through a certificate's versions, newest first.
func (r Certificates) Versions(ctx context.Context, id string) iter.Seq2[Version, error] {
	return reader[Version]{r.c, r.reader().at(id) + "/versions"}.All(ctx, nil)
}

// PEM answers leaf and intermediates, without the root; of the current version when version is "".
func (r Certificates) PEM(ctx context.Context, id, version string) ([]byte, error) {
	q := url.Values{}
	if version != "" {
		q.Set("version_id", version)
	}
	return r.c.text(ctx, action{method: http.MethodGet, path: r.reader().at(id) + "/pem", query: q, accept: "application/pem-certificate-chain"})
}

// Export answers a certificate with its key, in the bytes of the format.
func (r Certificates) Export(ctx context.Context, id string, e Export) ([]byte, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encoding the request: %w", err)
	}
	return r.c.text(ctx, action{method: http.MethodPost, path: r.reader().at(id) + "/export", body: body, accept: "*/*"})
}

// Renew makes the job that obtains a new version. While one is open the Problem has the member open_job_id.
func (r Certificates) Renew(ctx context.Context, id string) (out Job, err error) {
	_, err = r.reader().post(ctx, id, "renew", nil, &out)
	return out, err
}

// Deploy makes one job per target and answers their ids.
func (r Certificates) Deploy(ctx context.Context, id string) ([]string, error) {
	var out struct {
		JobIDs []string `json:"job_ids"`
	}
	_, err := r.reader().post(ctx, id, "deploy", nil, &out)
	return out.JobIDs, err
}

// Revoke revokes a version, the current one when version is "". It answers the certificate when that is done, or the job
// that asks the CA.
func (r Certificates) Revoke(ctx context.Context, id, reason, version string) (*Revoked, *Job, error) {
	in := struct {
		Reason    string `json:"reason"`
		VersionID string `json:"version_id,omitempty"`
	}{reason, version}
	return either[Revoked](ctx, r.c, r.reader().at(id)+"/revoke", in)
}

// Unhold lifts a hold of a version, the current one when version is "".
func (r Certificates) Unhold(ctx context.Context, id, version string) (out Certificate, err error) {
	in := struct {
		VersionID string `json:"version_id,omitempty"`
	}{version}
	_, err = r.reader().post(ctx, id, "unhold", in, &out)
	return out, err
}

// BulkRevoke revokes many. It answers the totals, or the job that carries them when there are too many for one request.
func (r Certificates) BulkRevoke(ctx context.Context, b Bulk) (*BulkTotals, *Job, error) {
	return either[BulkTotals](ctx, r.c, r.path+"/bulk-revoke", b)
}

// either posts what is done at once (200) or becomes a job (202).
func either[T any](ctx context.Context, c *Client, path string, in any) (*T, *Job, error) {
	var raw json.RawMessage
	res, err := c.call(ctx, http.MethodPost, path, nil, in, &raw)
	if err != nil {
		return nil, nil, err
	}
	done, job := new(T), new(Job)
	if res.StatusCode == http.StatusAccepted {
		err, done = json.Unmarshal(raw, job), nil
	} else {
		err, job = json.Unmarshal(raw, done), nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading the answer of %s: %w", path, err)
	}
	return done, job, nil
}

// Jobs are the work.
type Jobs struct{ reader[Job] }

// Cancel ends a job that does not run yet.
func (r Jobs) Cancel(ctx context.Context, id string) (out Job, err error) {
	_, err = r.post(ctx, id, "cancel", nil, &out)
	return out, err
}

// Approve lets a job go on. The requester's own word does not count.
func (r Jobs) Approve(ctx context.Context, id string) (out Job, err error) {
	_, err = r.post(ctx, id, "approve", nil, &out)
	return out, err
}

// Reject ends a job that waits for approval.
func (r Jobs) Reject(ctx context.Context, id, reason string) (out Job, err error) {
	in := struct {
		Reason string `json:"reason,omitempty"`
	}{reason}
	_, err = r.post(ctx, id, "reject", in, &out)
	return out, err
}

// WaitJob waits until a job is final. seen, which may be nil, is told of every look, and ends the waiting by answering false.
// With the context's end the job as it was last seen comes with the error.
func (c *Client) WaitJob(ctx context.Context, id string, seen func(Job) bool) (Job, error) {
	// The server answers when the job ends; with somebody looking on, moves in between are worth a look as well.
	wait := "30s"
	if seen != nil {
		wait = "1s"
	}
	var last Job
	var q url.Values // the first look answers at once
	for {
		var j Job
		_, err := c.call(ctx, http.MethodGet, c.Jobs.at(id), q, nil, &j)
		if err != nil {
			return last, err
		}
		last, q = j, url.Values{"wait": {wait}}
		if seen != nil && !seen(j) || j.Final() {
			return j, nil
		}
		if err := c.pause(ctx, 50*time.Millisecond); err != nil {
			return j, err
		}
	}
}

// Issuers are the configured CAs.
type Issuers struct{ Collection[Issuer, NewIssuer] }

// Rename gives an issuer another name.
func (r Issuers) Rename(ctx context.Context, id, name string) (Issuer, error) {
	return r.change(ctx, http.MethodPatch, id, NewTeam{name})
}

// Archive retires an issuer that no live certificate uses.
func (r Issuers) Archive(ctx context.Context, id string) error { return r.remove(ctx, id) }

// Test makes the job that tests the connection.
func (r Issuers) Test(ctx context.Context, id string) (out Job, err error) {
	_, err = r.reader().post(ctx, id, "test", nil, &out)
	return out, err
}

// Generations answers a local CA's keys and certificates, newest first.
func (r Issuers) Generations(ctx context.Context, id string) ([]Generation, error) {
	var out Page[Generation]
	_, err := r.c.call(ctx, http.MethodGet, r.reader().at(id)+"/generations", nil, nil, &out)
	return out.Data, err
}

// Rekey gives a local CA a new key.
func (r Issuers) Rekey(ctx context.Context, id string) (out Generation, err error) {
	_, err = r.reader().post(ctx, id, "rekey", nil, &out)
	return out, err
}

// Renew makes the job that renews a local CA's certificate with the same key.
func (r Issuers) Renew(ctx context.Context, id string) (out Job, err error) {
	_, err = r.reader().post(ctx, id, "renew", nil, &out)
	return out, err
}

// Request answers a sub-CA's open certificate request as PEM.
func (r Issuers) Request(ctx context.Context, id string) ([]byte, error) {
	return r.c.text(ctx, action{method: http.MethodGet, path: r.reader().at(id) + "/request", accept: "application/pkcs10"})
}

// Fulfil gives a sub-CA the certificate that answers its request, followed by its parents, as PEM.
func (r Issuers) Fulfil(ctx context.Context, id, chain string) (out Generation, err error) {
	in := struct {
		CertificatePEM string `json:"certificate_pem"`
	}{chain}
	_, err = r.reader().post(ctx, id, "request", in, &out)
	return out, err
}

// Profiles limit what may be issued.
type Profiles struct {
	Collection[Profile, ProfileFields]
}

// Replace replaces a profile's settings.
func (r Profiles) Replace(ctx context.Context, id string, f ProfileFields) (Profile, error) {
	return r.change(ctx, http.MethodPut, id, f)
}

// Archive retires a profile that no live certificate uses.
func (r Profiles) Archive(ctx context.Context, id string) error { return r.remove(ctx, id) }

// RenewalPolicies say when to renew.
type RenewalPolicies struct {
	Collection[RenewalPolicy, RenewalPolicyFields]
}

// Replace replaces a policy's settings.
func (r RenewalPolicies) Replace(ctx context.Context, id string, f RenewalPolicyFields) (RenewalPolicy, error) {
	return r.change(ctx, http.MethodPut, id, f)
}

// Archive retires a policy that no live certificate uses.
func (r RenewalPolicies) Archive(ctx context.Context, id string) error { return r.remove(ctx, id) }

// Targets are where certificates are served.
type Targets struct{ Collection[Target, NewTarget] }

// Replace replaces a target's settings; type and agent stay.
func (r Targets) Replace(ctx context.Context, id string, s TargetSettings) (Target, error) {
	return r.change(ctx, http.MethodPut, id, s)
}

// Archive retires a target.
func (r Targets) Archive(ctx context.Context, id string) error { return r.remove(ctx, id) }

// Agents are the agents on hosts.
type Agents struct{ reader[Agent] }

// Token makes an enrollment token, which is shown once.
func (r Agents) Token(ctx context.Context, n NewToken) (out EnrollmentToken, err error) {
	_, err = r.c.call(ctx, http.MethodPost, r.path+"/tokens", nil, n, &out)
	return out, err
}

// Retire ends an agent; its credential is refused at once.
func (r Agents) Retire(ctx context.Context, id string) (out Agent, err error) {
	_, err = r.post(ctx, id, "retire", nil, &out)
	return out, err
}

// Keys are the API keys.
type Keys struct{ reader[Key] }

// Create makes a key. The secret is in this answer and nowhere else.
func (r Keys) Create(ctx context.Context, n NewKey) (out KeyWithSecret, err error) {
	_, err = r.c.call(ctx, http.MethodPost, r.path, nil, n, &out)
	return out, err
}

// Disable ends a key at once.
func (r Keys) Disable(ctx context.Context, id string) (out Key, err error) {
	_, err = r.post(ctx, id, "disable", nil, &out)
	return out, err
}

// Rotate makes a new key for the same principal; the old one ends after the grace, a duration such as 24h ("": the default).
func (r Keys) Rotate(ctx context.Context, id, grace string) (out KeyWithSecret, err error) {
	in := struct {
		Grace string `json:"grace,omitempty"`
	}{grace}
	_, err = r.post(ctx, id, "rotate", in, &out)
	return out, err
}

// Teams are groups of people.
type Teams struct{ Collection[Team, NewTeam] }

// Owners answer for certificates.
type Owners struct{ Collection[Owner, NewOwner] }

// Audit is the trail.
type Audit struct{ reader[AuditEvent] }

// Export streams the trail between two times (zero: without bound) to w, one JSON object a line. An answer that broke off is
// an error, with what had come already written.
func (r Audit) Export(ctx context.Context, since, until time.Time, w io.Writer) (int64, error) {
	q := url.Values{}
	for name, t := range map[string]time.Time{"since": since, "until": until} {
		if !t.IsZero() {
			q.Set(name, t.UTC().Format(time.RFC3339))
		}
	}
	res, err := r.c.send(ctx, action{method: http.MethodGet, path: r.path + "/export", query: q, accept: "application/x-ndjson"})
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }()
	n, err := io.Copy(w, res.Body)
	if err != nil {
		return n, fmt.Errorf("the export broke off after %d bytes: %w", n, err)
	}
	return n, nil
}

// Me answers who the caller is.
func (c *Client) Me(ctx context.Context) (out Me, err error) {
	_, err = c.call(ctx, http.MethodGet, "/auth/me", nil, nil, &out)
	return out, err
}

// Summary answers the statistics.
func (c *Client) Summary(ctx context.Context) (out Summary, err error) {
	_, err = c.call(ctx, http.MethodGet, "/stats/summary", nil, nil, &out)
	return out, err
}
