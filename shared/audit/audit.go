// Package audit owns the append-only trail. An event is written in the transaction of the change it describes, by Record or
// inside a set-based statement; the database computes the canonical bytes and the leaf hash (migrations, audit_seal), so that
// every writer gives the same bytes. Nothing here updates or deletes.
package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/id"
	"certctl/shared/page"

	"github.com/jackc/pgx/v5"
)

// Entry is what a caller says of a change; who did it and under which request comes from the context.
type Entry struct {
	Action       string         // noun.verb in the past, e.g. "certificate.created"
	ResourceType string         // a noun, e.g. "certificate"
	ResourceID   string         // its TypeID
	Details      map[string]any // what an auditor needs; never key material or secrets
}

// Record appends an event.
func Record(ctx context.Context, q db.Querier, e Entry) error {
	return RecordAs(ctx, q, auth.ActorOf(ctx), e)
}

// RecordAs is Record for another actor than the one on the context, e.g. without the principal of a disabled key.
func RecordAs(ctx context.Context, q db.Querier, a auth.Actor, e Entry) error {
	return record(ctx, q, a, []Entry{e})
}

// RecordAll appends events in one statement.
func RecordAll(ctx context.Context, q db.Querier, entries []Entry) error {
	if len(entries) == 0 {
		return nil
	}
	return record(ctx, q, auth.ActorOf(ctx), entries)
}

func record(ctx context.Context, q db.Querier, a auth.Actor, entries []Entry) error {
	n := len(entries)
	actions, types, ids, details := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	for i, e := range entries {
		actions[i], types[i], ids[i], details[i] = e.Action, e.ResourceType, e.ResourceID, "{}"
		if len(e.Details) == 0 {
			continue
		}
		d, err := json.Marshal(e.Details)
		if err != nil {
			return fmt.Errorf("encoding the details of %s: %w", e.Action, err)
		}
		details[i] = string(d)
	}
	_, err := db.Exec(ctx, q, `INSERT INTO audit_events (principal, role, key_id, action, resource_type, resource_id, details, request_id)
		SELECT @principal, @role, @key::uuid, action, type, nullif(id, ''), details::jsonb, nullif(@request, '')
		FROM unnest(@actions::text[], @types::text[], @ids::text[], @details::text[]) AS e(action, type, id, details)`,
		pgx.NamedArgs{"principal": a.Principal, "role": a.Role, "key": a.KeyID, "request": auth.RequestIDOf(ctx),
			"actions": actions, "types": types, "ids": ids, "details": details})
	return err
}

// Event is a stored entry.
type Event struct {
	ID           id.Event
	At           time.Time
	Principal    string
	Role         string
	KeyID        id.Key
	Action       string
	ResourceType string
	ResourceID   *string
	Details      map[string]any
	RequestID    *string
}

const columns = `id, at, principal, role, key_id, action, resource_type, resource_id, details, request_id`

// Filter narrows a list; empty fields do not.
type Filter struct {
	Principal, Action, ResourceType, ResourceID, RequestID string
	Since, Until                                           time.Time
}

func (f Filter) where(args pgx.NamedArgs) string {
	var w []string
	text := func(column, value string) {
		if value != "" {
			w = append(w, column+" = @"+column)
			args[column] = value
		}
	}
	text("principal", f.Principal)
	text("action", f.Action)
	text("resource_type", f.ResourceType)
	text("resource_id", f.ResourceID)
	text("request_id", f.RequestID)
	if !f.Since.IsZero() {
		w, args["since"] = append(w, "at >= @since"), f.Since
	}
	if !f.Until.IsZero() {
		w, args["until"] = append(w, "at < @until"), f.Until
	}
	if len(w) == 0 {
		return "true"
	}
	return strings.Join(w, " AND ")
}

var keys = page.Keys[Event]{
	ID: "id", IDOf: func(e Event) string { return e.ID.UUID() },
	By: map[string]page.Key[Event]{"created_at": {SQL: "at", Type: page.Time, Of: func(e Event) string { return page.TimeText(e.At) }}},
}

// List answers a page of events.
func List(ctx context.Context, q db.Querier, f Filter, p page.Request) (page.Result[Event], error) {
	args := pgx.NamedArgs{}
	return db.List(ctx, q, keys, p, db.Source{Columns: columns, From: "audit_events", Where: f.where(args)}, args)
}

// Get answers one event.
func Get(ctx context.Context, q db.Querier, i id.Event) (Event, error) {
	return db.One[Event](ctx, q, "audit event", `SELECT `+columns+` FROM audit_events WHERE id = @id`, pgx.NamedArgs{"id": i})
}

// Sealed is an event as a verifier needs it.
type Sealed struct {
	ID        id.Event
	Canonical []byte
	LeafHash  []byte
}

// Export streams the canonical bytes and leaf hashes of matching events in order of time.
func Export(ctx context.Context, q db.Querier, f Filter, each func(Sealed) error) error {
	args := pgx.NamedArgs{}
	rows, err := q.Query(ctx, `SELECT id, canonical, leaf_hash FROM audit_events WHERE `+f.where(args)+` ORDER BY at, id`, args)
	if err != nil {
		return db.Fault(err)
	}
	defer rows.Close()
	for rows.Next() {
		var s Sealed
		if err := rows.Scan(&s.ID, &s.Canonical, &s.LeafHash); err != nil {
			return db.Fault(err)
		}
		if err := each(s); err != nil {
			return err
		}
	}
	return db.Fault(rows.Err())
}
