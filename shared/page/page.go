// Package page owns keyset paging: which page is asked for, and the SQL that answers it at the same cost on the last page
// as on the first.
//
// A noun declares its Keys once: the allowed sorts, each with a constant SQL expression and the Go function that gives a
// row's value of it. Only those constants enter SQL; everything that a caller sent is a bound argument, and is checked
// against the expression's type first, so that a forged position is a fault of the caller and never an error of the server.
//
//	var byKeys = page.Keys[Certificate]{
//		ID: "c.id", IDOf: func(c Certificate) string { return c.ID.UUID() },
//		By: map[string]page.Key[Certificate]{
//			"created_at": {SQL: "c.created_at", Type: page.Time, Of: func(c Certificate) string { return page.TimeText(c.CreatedAt) }},
//			"name":       {SQL: "c.name", Type: page.Text, Of: func(c Certificate) string { return c.Name }},
//		},
//	}
//
//	func List(ctx context.Context, q db.Querier, f Filter, r page.Request) (page.Result[Certificate], error) {
//		args := pgx.NamedArgs{"status": f.Status}
//		where, tail, err := byKeys.SQL(r, args)
//		if err != nil { … }
//		rows, err := db.Many[Certificate](ctx, q, `SELECT … FROM certificates c WHERE … AND `+where+tail, args)
//		if err != nil { … }
//		return byKeys.Cut(r, rows), nil
//	}
package page

import (
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"certctl/shared/fault"
)

// MaxLimit is the longest page (SPEC R6); DefaultLimit is used when none is asked for.
const (
	MaxLimit     = 200
	DefaultLimit = 50
)

// Request is one page of a list.
type Request struct {
	Limit int       // 1 to MaxLimit; zero is DefaultLimit
	Sort  Sort      // zero: newest first
	After *Position // the last row of the page before; nil: the first page
	Total bool      // the caller wants to know how many rows match
}

// Sort names one of a noun's keys and the direction.
type Sort struct {
	Field string
	Desc  bool
}

// Newest is the default order.
var Newest = Sort{Field: "created_at", Desc: true}

// ParseSort reads "name" or "-name"; "" is Newest. Whether the noun has such a key is found out by Keys.SQL.
func ParseSort(s string) Sort {
	if s == "" {
		return Newest
	}
	field, desc := strings.CutPrefix(s, "-")
	return Sort{Field: field, Desc: desc}
}

// String is the form that ParseSort reads.
func (s Sort) String() string {
	if s.Desc {
		return "-" + s.Field
	}
	return s.Field
}

// Position is a row's place in an order: its value of the sort key and, to make that unique, its uuid.
type Position struct {
	Value string
	ID    string
}

// Result is one page of rows.
type Result[T any] struct {
	Rows  []T
	Next  *Position // nil on the last page
	Total *int64    // set by the noun when it was asked for
}

// Type is the SQL type of a key. The types are closed, because each needs a check of the text that a caller sends back.
type Type string

// The key types.
const (
	Time Type = "timestamptz"
	Text Type = "text"
	Int  Type = "bigint"
)

// Key is one allowed order.
type Key[T any] struct {
	SQL  string         // a constant expression that is never NULL: coalesce(c.renew_at, 'infinity')
	Type Type           // its type
	Of   func(T) string // the row's value as text; see TimeText and IntText
}

// Keys are the orders of one list.
type Keys[T any] struct {
	ID   string // the expression of the primary key, a uuid
	IDOf func(T) string
	By   map[string]Key[T]
}

// SQL gives a condition (to be joined with AND) and the ORDER BY … LIMIT tail for the page. It puts its arguments into args
// under names that start with "page_". One row more than the page is asked for, so that Cut can tell whether there is more.
func (k Keys[T]) SQL(r Request, args map[string]any) (where, tail string, err error) {
	r = r.complete()
	key, ok := k.By[r.Sort.Field]
	if !ok {
		return "", "", fault.BadField("sort", "expected one of %s, with - before it for the reverse order", strings.Join(slices.Sorted(maps.Keys(k.By)), ", "))
	}
	if r.Limit < 1 || r.Limit > MaxLimit {
		return "", "", fault.BadField("limit", "expected 1 to %d", MaxLimit)
	}
	dir, op := "ASC", ">"
	if r.Sort.Desc {
		dir, op = "DESC", "<"
	}
	args["page_limit"] = r.Limit + 1
	tail = " ORDER BY " + key.SQL + " " + dir + ", " + k.ID + " " + dir + " LIMIT @page_limit"
	if r.After == nil {
		return "true", tail, nil
	}
	if !key.Type.accepts(r.After.Value) || !isUUID(r.After.ID) {
		return "", "", BadCursor()
	}
	args["page_value"], args["page_id"] = r.After.Value, r.After.ID
	// The double cast sends text whatever the type, so that the driver needs no knowledge of it.
	return "(" + key.SQL + ", " + k.ID + ") " + op + " (@page_value::text::" + string(key.Type) + ", @page_id::text::uuid)", tail, nil
}

// Cut drops the row that SQL asked for too much and gives the position where the next page starts.
func (k Keys[T]) Cut(r Request, rows []T) Result[T] {
	r = r.complete()
	if len(rows) <= r.Limit {
		return Result[T]{Rows: rows}
	}
	rows = rows[:r.Limit]
	last := rows[len(rows)-1]
	return Result[T]{Rows: rows, Next: &Position{Value: k.By[r.Sort.Field].Of(last), ID: k.IDOf(last)}}
}

func (r Request) complete() Request {
	if r.Limit == 0 {
		r.Limit = DefaultLimit
	}
	if r.Sort == (Sort{}) {
		r.Sort = Newest
	}
	return r
}

// BadCursor is the fault of a cursor that was not made for this list, order and filters.
func BadCursor() *fault.Error {
	return fault.BadField("cursor", "this cursor does not belong to this list, sort and filters; start again without one")
}

// accepts reports whether Postgres will take the text as a value of the type.
func (t Type) accepts(s string) bool {
	switch t {
	case Time:
		at, err := time.Parse(time.RFC3339Nano, s)
		return s == "infinity" || err == nil && at.Year() > 0
	case Int:
		_, err := strconv.ParseInt(s, 10, 64)
		return err == nil
	case Text:
		return utf8.ValidString(s) && !strings.Contains(s, "\x00")
	}
	return false
}

func isUUID(s string) bool {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return false
	}
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	return err == nil && len(b) == 16
}

// TimeText is a time as a key's text, to the microsecond that Postgres keeps.
func TimeText(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.999999Z07:00") }

// TimeOrLast is TimeText for the key coalesce(column, 'infinity').
func TimeOrLast(t *time.Time) string {
	if t == nil {
		return "infinity"
	}
	return TimeText(*t)
}

// IntText is a number as a key's text.
func IntText[N ~int | ~int16 | ~int32 | ~int64](n N) string { return strconv.FormatInt(int64(n), 10) }

// Count caps what a total costs: a noun counts at most so many rows, and says the cap when there are more.
const Count = 10_000
