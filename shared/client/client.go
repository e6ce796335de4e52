// Package client is the Go client of certctl's REST API: typed, over net/http, and linked with nothing of the server, so that
// the command line and other programs stay small. It decides nothing and keeps nothing.
//
// The surprising rule: one call is one action. Every POST carries an Idempotency-Key that is made once per call, so the
// client may send it again after a lost answer, and the server carries it out once.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Config of a Client.
type Config struct {
	URL       string            // of the server, without /api/v1
	Key       string            // sent as a bearer; "" asks only what is public
	Transport http.RoundTripper // nil: http.DefaultTransport
	UserAgent string            // "" is "certctl-client"
	// Pause waits between two tries of one action; nil waits in real time. It answers the context's error when that ends.
	Pause func(ctx context.Context, d time.Duration) error
}

// Client calls one server. It is safe for concurrent use.
type Client struct {
	base, key, agent string
	http             *http.Client
	pause            func(ctx context.Context, d time.Duration) error

	Certificates    Certificates
	Jobs            Jobs
	Issuers         Issuers
	Profiles        Profiles
	RenewalPolicies RenewalPolicies
	Targets         Targets
	Agents          Agents
	Keys            Keys
	Teams           Teams
	Owners          Owners
	Audit           Audit
}

// New makes a client. The URL must be absolute, http or https, and without credentials, query and fragment.
func New(c Config) (*Client, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("the server's URL must look like https://certctl.example.com")
	}
	if strings.ContainsFunc(c.Key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("the API key has characters that no key has")
	}
	if c.Transport == nil {
		c.Transport = http.DefaultTransport
	}
	if c.UserAgent == "" {
		c.UserAgent = "certctl-client"
	}
	if c.Pause == nil {
		c.Pause = pause
	}
	cl := &Client{base: strings.TrimRight(c.URL, "/") + "/api/v1", key: c.Key, agent: c.UserAgent, pause: c.Pause,
		// A redirect would carry the key to whom it names; the API never redirects.
		http: &http.Client{Transport: c.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	cl.collections()
	return cl, nil
}

func (c *Client) collections() {
	c.Certificates = Certificates{Collection[Certificate, NewCertificate]{c, "/certificates"}}
	c.Jobs = Jobs{reader[Job]{c, "/jobs"}}
	c.Issuers = Issuers{Collection[Issuer, NewIssuer]{c, "/issuers"}}
	c.Profiles = Profiles{Collection[Profile, ProfileFields]{c, "/profiles"}}
	c.RenewalPolicies = RenewalPolicies{Collection[RenewalPolicy, RenewalPolicyFields]{c, "/renewal-policies"}}
	c.Targets = Targets{Collection[Target, NewTarget]{c, "/targets"}}
	c.Agents = Agents{reader[Agent]{c, "/agents"}}
	c.Keys = Keys{reader[Key]{c, "/keys"}}
	c.Teams = Teams{Collection[Team, NewTeam]{c, "/teams"}}
	c.Owners = Owners{Collection[Owner, NewOwner]{c, "/owners"}}
	c.Audit = Audit{reader[AuditEvent]{c, "/audit"}}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tries bounds how often one action is sent; maxPause is the longest Retry-After that is waited for.
const (
	tries    = 4
	maxPause = 30 * time.Second
)

// action is one logical call, which may be sent several times.
type action struct {
	method, path string
	query        url.Values
	body         []byte
	key          string // Idempotency-Key of a POST
	accept       string
}

// send sends the action until there is an answer below 400, which the caller closes. Busy and lost answers are tried again:
// reads and PUT, PATCH, DELETE are idempotent by themselves, a POST by its key.
func (c *Client) send(ctx context.Context, a action) (*http.Response, error) {
	if a.method == http.MethodPost {
		a.key = rand.Text()
	}
	lost := false
	for n := 1; ; n++ {
		res, err := c.once(ctx, a)
		if err == nil {
			return res, nil
		}
		var p *Problem
		isProblem := errors.As(err, &p)
		if isProblem && p.Status == http.StatusNotFound && lost && a.method == http.MethodDelete {
			return &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody}, nil // the lost answer was the deletion's
		}
		wait, again := backoff(err, n)
		if !again || n == tries || ctx.Err() != nil {
			return nil, err
		}
		lost = lost || !isProblem
		if c.pause(ctx, wait) != nil {
			return nil, err
		}
	}
}

func (c *Client) once(ctx context.Context, a action) (*http.Response, error) {
	at := c.base + a.path
	if len(a.query) > 0 {
		at += "?" + a.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, a.method, at, bytes.NewReader(a.body))
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	req.Header.Set("User-Agent", c.agent)
	req.Header.Set("Accept", a.accept)
	if a.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if a.key != "" {
		req.Header.Set("Idempotency-Key", a.key)
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	if res.StatusCode >= 300 {
		defer func() { _ = res.Body.Close() }()
		return nil, readProblem(res)
	}
	return res, nil
}

// maxAnswer bounds what is read of an answer that is not streamed.
const maxAnswer = 64 << 20

// call sends an action with in as its JSON body (nil: none) and decodes the answer into out (nil: it is dropped). An answer
// that broke off is a lost one; it is not asked for again here, because only the caller knows what the action was.
func (c *Client) call(ctx context.Context, method, path string, q url.Values, in, out any) (*http.Response, error) {
	a := action{method: method, path: path, query: q, accept: "application/json"}
	if in != nil {
		var err error
		if a.body, err = json.Marshal(in); err != nil {
			return nil, fmt.Errorf("encoding the request: %w", err)
		}
	}
	res, err := c.send(ctx, a)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	if out == nil || len(b) == 0 {
		return res, nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return nil, fmt.Errorf("the answer of %s %s is not what certctl's API says; is this a certctl server? %w", method, path, err)
	}
	return res, nil
}

// text sends an action that answers with text.
func (c *Client) text(ctx context.Context, a action) ([]byte, error) {
	res, err := c.send(ctx, a)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	return b, nil
}
