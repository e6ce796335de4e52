package agentrun

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"certctl/shared/id"
	"certctl/shared/wire"
)

const (
	requestTime = 30 * time.Second
	answerMax   = 4 << 20
)

// StatusError is an answer other than success.
type StatusError struct {
	Status     int
	Detail     string // the problem document's, for people
	RetryAfter time.Duration
}

func (e *StatusError) Error() string {
	if e.Detail == "" {
		return fmt.Sprintf("the server answers %d %s", e.Status, http.StatusText(e.Status))
	}
	return fmt.Sprintf("the server answers %d: %s", e.Status, e.Detail)
}

// permanent reports an answer that the same request will get again.
func permanent(err error) bool {
	var s *StatusError
	if !errors.As(err, &s) {
		return false
	}
	switch s.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false // a credential can be mended, the others say "later"
	}
	return s.Status >= 400 && s.Status < 500
}

func hasStatus(err error, codes ...int) bool {
	var s *StatusError
	if !errors.As(err, &s) {
		return false
	}
	for _, c := range codes {
		if s.Status == c {
			return true
		}
	}
	return false
}

// client speaks the agent protocol.
type client struct {
	base       string
	http       *http.Client
	run        string // Certctl-Agent-Run
	program    string // User-Agent
	agent      id.Agent
	credential string
}

func newClient(cfg Config, st *store) (*client, error) {
	base, err := ServerURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	transport, err := newTransport(cfg, st, base)
	if err != nil {
		return nil, err
	}
	return &client{
		base: strings.TrimSuffix(base.String(), "/"), run: id.New[id.Job]().Suffix(), program: "certctl-agent/" + cfg.Version,
		http: &http.Client{
			Transport: transport, Timeout: requestTime,
			// A redirect would carry the credential to somewhere that nobody vouched for.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// ServerURL reads the server's URL: http or https, without user, query and fragment.
func ServerURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case text == "":
		return nil, errors.New("the server is not set: give CERTCTL_URL or --url")
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.User != nil, u.RawQuery != "", u.Fragment != "":
		return nil, errors.New("CERTCTL_URL must look like https://certctl.example.com")
	}
	return u, nil
}

// agentCall is call below the agent's own path.
func (c *client) agentCall(ctx context.Context, method, path string, body, into any) error {
	return c.call(ctx, method, "/api/v1/agents/"+c.agent.String()+path, body, into)
}

// call sends a JSON request and reads a JSON answer. Errors are *StatusError for answers, anything else for the way there.
func (c *client) call(ctx context.Context, method, path string, body, into any) error {
	var payload io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encoding the request: %w", err)
		}
		payload = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, payload)
	if err != nil {
		return fmt.Errorf("making the request: %w", err)
	}
	req.Header.Set("User-Agent", c.program)
	req.Header.Set("Accept", "application/json")
	req.Header.Set(wire.RunHeader, c.run)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.credential != "" {
		req.Header.Set("Authorization", "Bearer "+c.credential)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, answerMax))
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return statusError(resp, text)
	}
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("reading the answer of %s: it is not the expected JSON", path)
	}
	return nil
}

func statusError(resp *http.Response, text []byte) *StatusError {
	e := &StatusError{Status: resp.StatusCode}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind == "application/problem+json" {
		var problem struct {
			Detail string `json:"detail"`
			Errors []struct{ Field, Detail string }
		}
		if json.Unmarshal(text, &problem) == nil {
			e.Detail = problem.Detail
			for _, f := range problem.Errors {
				e.Detail += "; " + f.Field + ": " + f.Detail
			}
		}
	}
	e.RetryAfter = parseRetryAfter(resp.Header)
	return e
}

// parseRetryAfter reads seconds or a date (RFC 9110, section 10.2.3). A date counts from the server's own Date, so that this
// host's clock does not matter.
func parseRetryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if n, err := strconv.Atoi(value); err == nil && n >= 0 {
		return time.Duration(min(n, 3600)) * time.Second
	}
	at, err := http.ParseTime(value)
	now, err2 := http.ParseTime(h.Get("Date"))
	if err != nil || err2 != nil {
		return 0
	}
	return max(0, min(at.Sub(now), time.Hour))
}
