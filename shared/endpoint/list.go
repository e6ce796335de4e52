package endpoint

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"

	"certctl/shared/page"
)

// ListInput is embedded in the input of a list: the four query names that every list has. Filters stand beside it.
type ListInput struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"how many to return at most"`
	Cursor string `query:"cursor" maxLength:"4096" doc:"next_cursor of the page before; belongs to the same sort and filters"`
	Sort   string `query:"sort" default:"-created_at" maxLength:"64" doc:"the order: a field, with - before it for descending"`
	Total  bool   `query:"total" doc:"also count what matches, up to a cap"`

	filters string
	after   *page.Position
}

// bind reads the cursor, which belongs to this path, sort and filters only.
func (l *ListInput) bind(r *http.Request) (err error) {
	q := r.URL.Query()
	for _, name := range []string{"limit", "cursor", "sort", "total"} {
		q.Del(name)
	}
	sum := sha256.Sum256([]byte(r.URL.Path + "?" + q.Encode()))
	l.filters = hex.EncodeToString(sum[:8])
	if l.Cursor == "" {
		return nil
	}
	l.after, err = DecodeCursor(l.Cursor, page.ParseSort(l.Sort), l.filters)
	return err
}

// Request is the page that is asked for.
func (l *ListInput) Request() page.Request {
	return page.Request{Limit: l.Limit, Sort: page.ParseSort(l.Sort), After: l.after, Total: l.Total}
}

// Page is the body of a list.
type Page[T any] struct {
	Data       []T    `json:"data"`
	NextCursor string `json:"next_cursor,omitempty" doc:"send as cursor to get the next page; absent on the last page"`
	Total      *int64 `json:"total,omitempty" doc:"how many match, up to a cap; only when asked for"`
}

func (Page[T]) isPage() {}

// List is the output of a list operation.
type List[T any] struct{ Body Page[T] }

// ListOf makes the output of a page of rows; view gives a row's JSON form.
func ListOf[R, T any](in *ListInput, res page.Result[R], view func(R) T) *List[T] {
	p := Page[T]{Data: make([]T, len(res.Rows)), Total: res.Total}
	for i, row := range res.Rows {
		p.Data[i] = view(row)
	}
	if res.Next != nil {
		p.NextCursor = EncodeCursor(page.ParseSort(in.Sort), *res.Next, in.filters)
	}
	return &List[T]{Body: p}
}

type cursor struct {
	Sort    string `json:"s"`
	Value   string `json:"v"`
	ID      string `json:"i"`
	Filters string `json:"f"`
}

// maxCursor bounds a cursor's length: a name of 200 characters of any script fits.
const maxCursor = 4096

// EncodeCursor makes the opaque text of a position. It is not secret and not signed: everything in it is checked when it
// comes back, and it holds nothing but a row that its holder was shown.
func EncodeCursor(s page.Sort, at page.Position, filters string) string {
	b, err := json.Marshal(cursor{s.String(), at.Value, at.ID, filters})
	if err != nil {
		return "" // strings always encode
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// DecodeCursor reads the text of EncodeCursor. Anything else, another sort or other filters are a fault about the cursor.
func DecodeCursor(text string, s page.Sort, filters string) (*page.Position, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	var c cursor
	if len(text) > maxCursor || err != nil || strictJSON(b) != nil || json.Unmarshal(b, &c) != nil {
		return nil, page.BadCursor()
	}
	if c.Sort != s.String() || c.Filters != filters || c.ID == "" {
		return nil, page.BadCursor()
	}
	return &page.Position{Value: c.Value, ID: c.ID}, nil
}
