package audit_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"certctl/shared/audit"
	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"

	"github.com/jackc/pgx/v5"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func alice(t testing.TB) context.Context {
	ctx := auth.WithActor(t.Context(), auth.Actor{Principal: "alice", Role: auth.Operator, KeyID: id.New[id.Key]()})
	return auth.WithRequestID(ctx, "req-1")
}

// canonical writes a value as PostgreSQL's jsonb does: keys by length and then by octets, ", " and ": " between.
func canonical(b *bytes.Buffer, v any) {
	switch v := v.(type) {
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.SortFunc(keys, func(a, b string) int {
			if len(a) != len(b) {
				return len(a) - len(b)
			}
			return strings.Compare(a, b)
		})
		b.WriteByte('{')
		for i, k := range keys {
			if i > 0 {
				b.WriteString(", ")
			}
			canonical(b, k)
			b.WriteString(": ")
			canonical(b, v[k])
		}
		b.WriteByte('}')
	case []any:
		b.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				b.WriteString(", ")
			}
			canonical(b, e)
		}
		b.WriteByte(']')
	case string:
		b.WriteByte('"')
		for _, r := range v {
			switch {
			case r == '"' || r == '\\':
				b.WriteString(`\` + string(r))
			case strings.ContainsRune("\b\f\n\r\t", r):
				b.WriteString(map[rune]string{'\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`}[r])
			case r < ' ':
				fmt.Fprintf(b, `\u%04x`, r)
			default:
				b.WriteRune(r)
			}
		}
		b.WriteByte('"')
	default:
		text, _ := json.Marshal(v)
		b.Write(text)
	}
}

// verify recomputes an event's canonical bytes and leaf hash (RFC 9162, 2.1.1) from what people read.
func verify(t testing.TB, e audit.Event, s audit.Sealed) {
	t.Helper()
	var key any
	if !e.KeyID.IsZero() {
		key = e.KeyID.UUID()
	}
	orNil := func(p *string) any {
		if p == nil {
			return nil
		}
		return *p
	}
	var b bytes.Buffer
	canonical(&b, map[string]any{"v": 1, "id": e.ID.UUID(), "at": e.At.UTC().Format("2006-01-02T15:04:05.000000Z"), "principal": e.Principal, "role": e.Role, "key_id": key,
		"action": e.Action, "resource_type": e.ResourceType, "resource_id": orNil(e.ResourceID), "details": map[string]any(e.Details), "request_id": orNil(e.RequestID)})
	if !bytes.Equal(b.Bytes(), s.Canonical) {
		t.Errorf("canonical bytes\nin Go:  %s\nstored: %s", b.Bytes(), s.Canonical)
	}
	if leaf := sha256.Sum256(append([]byte{0}, b.Bytes()...)); !bytes.Equal(leaf[:], s.LeafHash) {
		t.Errorf("leaf hash %x, stored %x", leaf, s.LeafHash)
	}
}

func export(t testing.TB, q db.Querier, f audit.Filter) map[id.Event]audit.Sealed {
	t.Helper()
	out := map[id.Event]audit.Sealed{}
	must(t, audit.Export(t.Context(), q, f, func(s audit.Sealed) error {
		out[s.ID] = s
		return nil
	}))
	return out
}

func TestCanonicalBytesAndLeafHashCanBeRecomputed(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	for _, e := range []audit.Entry{
		{Action: "certificate.created", ResourceType: "certificate", ResourceID: "crt_1", Details: map[string]any{"b": 1, "a": "x", "long_name": []string{"é", "日本"}, "nested": map[string]any{"z": nil, "y": true}}},
		{Action: "quotes", ResourceType: "x", Details: map[string]any{"q": "a \"b\" \\ <&> \u2028 \t\n\r\b\f\x01 ' 😀", "n": 1.5, "big": 12345678901}},
		{Action: "empty", ResourceType: "x"},
	} {
		must(t, audit.Record(alice(t), tx, e))
		must(t, audit.Record(t.Context(), tx, e))
	}
	list, err := audit.List(t.Context(), tx, audit.Filter{}, page.Request{})
	must(t, err)
	sealed := export(t, tx, audit.Filter{})
	if len(list.Rows) != 6 || len(sealed) != 6 {
		t.Fatalf("%d events, %d exported", len(list.Rows), len(sealed))
	}
	for _, e := range list.Rows {
		verify(t, e, sealed[e.ID])
	}
}

func TestTheWriterCannotChooseBytesOrHash(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	_, err := tx.Exec(t.Context(), `INSERT INTO audit_events (principal, role, action, resource_type, canonical, leaf_hash, xid) VALUES ('x', 'x', 'forged', 'x', 'x', 'x', '1')`)
	must(t, err)
	list, err := audit.List(t.Context(), tx, audit.Filter{Action: "forged"}, page.Request{})
	must(t, err)
	verify(t, list.Rows[0], export(t, tx, audit.Filter{})[list.Rows[0].ID])
	if same, err := db.Scalar[bool](t.Context(), tx, `SELECT xid = pg_current_xact_id() FROM audit_events`); err != nil || !same {
		t.Errorf("%v, %v", same, err)
	}
}

func TestWritersInParallelLoseAndDoubleNothing(t *testing.T) {
	t.Parallel()
	pool := dbtest.Pool(t)
	const writers, each = 32, 25
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				err := db.InTx(t.Context(), pool, func(tx pgx.Tx) error {
					e := audit.Entry{Action: "written", ResourceType: "x", ResourceID: fmt.Sprint(w, "-", n)}
					if err := audit.Record(alice(t), tx, e); err != nil || n%5 != 0 {
						return err
					}
					return errors.New("rolled back")
				})
				if (err != nil) != (n%5 == 0) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	const want = writers * each * 4 / 5
	sealed := export(t, pool, audit.Filter{})
	seen := map[string]bool{}
	req := page.Request{Limit: 200}
	for {
		list, err := audit.List(t.Context(), pool, audit.Filter{Action: "written"}, req)
		must(t, err)
		for _, e := range list.Rows {
			verify(t, e, sealed[e.ID])
			seen[*e.ResourceID] = true
		}
		if req.After = list.Next; req.After == nil {
			break
		}
	}
	if len(sealed) != want || len(seen) != want {
		t.Errorf("%d exported, %d different, want %d", len(sealed), len(seen), want)
	}
}

func TestAnEventSaysWhoAndUnderWhichRequest(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	ctx := alice(t)
	must(t, audit.Record(ctx, tx, audit.Entry{Action: "a", ResourceType: "x", ResourceID: "1", Details: map[string]any{"k": "v"}}))
	must(t, audit.RecordAs(ctx, tx, auth.Anonymous, audit.Entry{Action: "b", ResourceType: "x"}))
	must(t, audit.RecordAll(ctx, tx, []audit.Entry{{Action: "c", ResourceType: "x", ResourceID: "2"}, {Action: "d", ResourceType: "y", Details: map[string]any{"n": 1}}}))
	must(t, audit.RecordAll(ctx, tx, nil))
	for action, want := range map[string]struct {
		principal string
		resource  string
		details   int
	}{"a": {"alice", "1", 1}, "b": {"anonymous", "", 0}, "c": {"alice", "2", 0}, "d": {"alice", "", 1}} {
		list, err := audit.List(t.Context(), tx, audit.Filter{Action: action}, page.Request{Total: true})
		if err != nil || len(list.Rows) != 1 || *list.Total != 1 {
			t.Fatalf("%s: %d events, %v", action, len(list.Rows), err)
		}
		e := list.Rows[0]
		if e.Principal != want.principal || *e.RequestID != "req-1" || len(e.Details) != want.details || (e.ResourceID == nil) != (want.resource == "") || e.KeyID.IsZero() != (action == "b") {
			t.Errorf("%s: %+v", action, e)
		}
		if got, err := audit.Get(t.Context(), tx, e.ID); err != nil || got.ID != e.ID {
			t.Errorf("%v", err)
		}
	}
	if _, err := audit.Get(t.Context(), tx, id.New[id.Event]()); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func TestFiltersOfTheTrail(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	must(t, audit.Record(alice(t), tx, audit.Entry{Action: "certificate.created", ResourceType: "certificate", ResourceID: "crt_1"}))
	must(t, audit.Record(t.Context(), tx, audit.Entry{Action: "key.created", ResourceType: "key", ResourceID: "key_1"}))
	now := time.Now()
	for name, c := range map[string]struct {
		f    audit.Filter
		want int
	}{
		"all": {audit.Filter{}, 2}, "principal": {audit.Filter{Principal: "alice"}, 1}, "action": {audit.Filter{Action: "key.created"}, 1},
		"type": {audit.Filter{ResourceType: "certificate"}, 1}, "resource": {audit.Filter{ResourceID: "crt_1"}, 1}, "request": {audit.Filter{RequestID: "req-1"}, 1},
		"since": {audit.Filter{Since: now.Add(-time.Minute)}, 2}, "until": {audit.Filter{Until: now.Add(-time.Minute)}, 0}, "two that differ": {audit.Filter{Principal: "alice", Action: "key.created"}, 0},
	} {
		list, err := audit.List(t.Context(), tx, c.f, page.Request{})
		if err != nil || len(list.Rows) != c.want || len(export(t, tx, c.f)) != c.want {
			t.Errorf("%s: %d events, %v", name, len(list.Rows), err)
		}
	}
}

func TestExportIsInOrderOfTimeAndStopsWhenTheReaderDoes(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	for range 20 {
		must(t, audit.Record(t.Context(), tx, audit.Entry{Action: "x", ResourceType: "x"}))
	}
	var last time.Time
	must(t, audit.Export(t.Context(), tx, audit.Filter{}, func(s audit.Sealed) error {
		var e struct{ At time.Time }
		err := json.Unmarshal(s.Canonical, &e)
		if e.At.Before(last) {
			t.Errorf("%v after %v", e.At, last)
		}
		last = e.At
		return err
	}))
	gone, n := errors.New("the client went away"), 0
	err := audit.Export(t.Context(), tx, audit.Filter{}, func(audit.Sealed) error { n++; return gone })
	if !errors.Is(err, gone) || n != 1 {
		t.Errorf("%v after %d", err, n)
	}
}
