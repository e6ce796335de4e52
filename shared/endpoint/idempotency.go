package endpoint

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"certctl/shared/auth"
	"certctl/shared/fault"

	"github.com/jackc/pgx/v5"
)

// maxKey bounds an Idempotency-Key.
const maxKey = 255

// readKey takes the Idempotency-Key of a POST. Other methods are idempotent by themselves.
func (c *call) readKey() error {
	values := c.r.Header.Values("Idempotency-Key")
	if c.r.Method != http.MethodPost || len(values) == 0 {
		return nil
	}
	visible := func(r rune) bool { return r > ' ' && r < 0x7f }
	c.key = values[0]
	if len(values) > 1 || c.key == "" || len(c.key) > maxKey || strings.ContainsFunc(c.key, func(r rune) bool { return !visible(r) }) {
		return fault.BadField("Idempotency-Key", "expected one header of 1 to %d visible ASCII characters", maxKey)
	}
	return nil
}

// stored is the recorded answer of an earlier request with the same key.
type stored struct {
	Hash     []byte            `db:"body_hash"`
	Secret   bool              `db:"secret"`
	Resource *string           `db:"resource_id"`
	Status   *int              `db:"status"`
	Headers  map[string]string `db:"headers"`
	Body     []byte            `db:"body"`
}

// A key is taken in the effect's transaction: whoever holds the same key blocks this statement until it commits (then
// there is a conflict) or rolls back (then the key is free). One that is older than a day is taken over.
const takeKeySQL = `
INSERT INTO idempotency_keys AS k (principal, route, key, body_hash, secret)
VALUES (@principal, @route, @key, @hash, @secret)
ON CONFLICT (principal, route, key) DO UPDATE
SET body_hash = excluded.body_hash, secret = excluded.secret, created_at = now(),
    resource_id = NULL, status = NULL, headers = NULL, body = NULL
WHERE k.created_at < now() - interval '24 hours'`

const findKeySQL = `
SELECT body_hash, secret, resource_id, status, headers, body FROM idempotency_keys
WHERE principal = @principal AND route = @route AND key = @key`

const storeAnswerSQL = `
UPDATE idempotency_keys SET status = @status, resource_id = @resource, headers = @headers, body = @body
WHERE principal = @principal AND route = @route AND key = @key`

func (c *call) keyArgs() pgx.NamedArgs {
	sum := sha256.New()
	sum.Write([]byte(c.r.URL.RawQuery + "\n"))
	sum.Write(c.body)
	return pgx.NamedArgs{
		"principal": auth.ActorOf(c.r.Context()).Principal, "route": c.o.route.Pattern + " " + c.r.URL.Path, "key": c.key,
		"hash": sum.Sum(nil), "secret": c.o.doc.Secret,
	}
}

// takeKey takes the key for this request. It gives the answer to replay if the key was used for the same request.
func (c *call) takeKey(ctx context.Context) (*stored, error) {
	args := c.keyArgs()
	tag, err := c.tx.Exec(ctx, takeKeySQL, args)
	if err != nil || tag.RowsAffected() == 1 {
		return nil, err
	}
	rows, _ := c.tx.Query(ctx, findKeySQL, args)
	s, err := pgx.CollectOneRow(rows, pgx.RowToStructByName[stored])
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, fault.New(fault.Unavailable, "The idempotency key was just given up; try again.")
	case err != nil:
		return nil, err
	case !bytes.Equal(s.Hash, args["hash"].([]byte)):
		return nil, fault.New(fault.KeyReused, "This Idempotency-Key was used with another request. Use a new key.")
	case s.Secret || s.Status == nil:
		f := fault.New(fault.KeyReused, "This request was carried out before. Its answer held a secret and was not kept.")
		if s.Resource != nil {
			f = f.With("id", *s.Resource)
		}
		return nil, f
	}
	return &s, nil
}

// storeAnswer keeps the encoded answer with the key, in the same transaction; of a secret one only whom it was about.
func (c *call) storeAnswer(ctx context.Context) error {
	args := c.keyArgs()
	args["status"], args["resource"] = c.rec.code(), c.resource()
	args["headers"], args["body"] = nil, nil
	if !c.o.doc.Secret {
		headers := map[string]string{}
		for _, name := range []string{"Location", "Content-Type"} {
			if v := c.rec.header.Get(name); v != "" {
				headers[name] = v
			}
		}
		args["headers"], args["body"] = headers, c.rec.buf.Bytes()
	}
	_, err := c.tx.Exec(ctx, storeAnswerSQL, args)
	return err
}

// resource is the id of what the answer is about: its own "id" or "agent_id", else the end of its Location, else the id
// in the path; nil if there is none.
func (c *call) resource() *string {
	var body struct {
		ID      string `json:"id"`
		AgentID string `json:"agent_id"`
	}
	_ = json.Unmarshal(c.rec.buf.Bytes(), &body) // a body of another form has no id
	location := c.rec.header.Get("Location")
	for _, s := range []string{body.ID, body.AgentID, location[strings.LastIndex(location, "/")+1:], c.r.PathValue("id")} {
		if s != "" {
			return &s
		}
	}
	return nil
}

// answer gives the stored answer again.
func (s *stored) answer(w *recorder) {
	clear(w.header)
	for name, v := range s.Headers {
		w.header.Set(name, v)
	}
	w.header.Set("Idempotency-Replayed", "true")
	w.buf.Reset()
	w.status = *s.Status
	w.buf.Write(s.Body)
}
