package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"
)

// Page is one page of a list.
type Page[T any] struct {
	Data       []T    `json:"data"`
	NextCursor string `json:"next_cursor"` // "" on the last page
	Total      *int64 `json:"total"`       // only when total=true was asked for
}

// MaxLimit is the longest page that the server gives.
const MaxLimit = 200

// reader reads one noun.
type reader[T any] struct {
	c    *Client
	path string
}

func (r reader[T]) at(id string) string { return r.path + "/" + url.PathEscape(id) }

// Get answers one; an unknown id is a Problem of status 404.
func (r reader[T]) Get(ctx context.Context, id string) (out T, err error) {
	_, err = r.c.call(ctx, http.MethodGet, r.at(id), nil, nil, &out)
	return out, err
}

// Page answers one page. The query holds filters, sort, limit and cursor as the API names them; empty values must be left out.
func (r reader[T]) Page(ctx context.Context, q url.Values) (out Page[T], err error) {
	_, err = r.c.call(ctx, http.MethodGet, r.path, q, nil, &out)
	return out, err
}

// All goes through a list, page by page as far as it is read. After an error it ends.
func (r reader[T]) All(ctx context.Context, q url.Values) iter.Seq2[T, error] {
	return all(ctx, q, r.Page)
}

func all[T any](ctx context.Context, q url.Values, next func(context.Context, url.Values) (Page[T], error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		query := url.Values{"limit": {strconv.Itoa(MaxLimit)}}
		for name, values := range q {
			query[name] = values
		}
		for {
			p, err := next(ctx, query)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, v := range p.Data {
				if !yield(v, nil) {
					return
				}
			}
			if p.NextCursor == "" {
				return
			}
			query.Set("cursor", p.NextCursor)
		}
	}
}

// post acts on one: POST …/{id}/{verb}. A nil body sends none.
func (r reader[T]) post(ctx context.Context, id, verb string, in, out any) (*http.Response, error) {
	return r.c.call(ctx, http.MethodPost, r.at(id)+"/"+verb, nil, in, out)
}

// Collection reads a noun and makes new ones from New.
type Collection[T, New any] struct {
	c    *Client
	path string
}

func (r Collection[T, New]) reader() reader[T] { return reader[T](r) }

// Get answers one; an unknown id is a Problem of status 404.
func (r Collection[T, New]) Get(ctx context.Context, id string) (T, error) {
	return r.reader().Get(ctx, id)
}

// Page answers one page. The query holds filters, sort, limit and cursor as the API names them; empty values must be left out.
func (r Collection[T, New]) Page(ctx context.Context, q url.Values) (Page[T], error) {
	return r.reader().Page(ctx, q)
}

// All goes through a list, page by page as far as it is read. After an error it ends.
func (r Collection[T, New]) All(ctx context.Context, q url.Values) iter.Seq2[T, error] {
	return r.reader().All(ctx, q)
}

// Create makes one.
func (r Collection[T, New]) Create(ctx context.Context, in New) (out T, err error) {
	_, err = r.c.call(ctx, http.MethodPost, r.path, nil, in, &out)
	return out, err
}

func (r Collection[T, New]) change(ctx context.Context, method, id string, in any) (out T, err error) {
	_, err = r.c.call(ctx, method, r.reader().at(id), nil, in, &out)
	return out, err
}

func (r Collection[T, New]) remove(ctx context.Context, id string) error {
	_, err := r.c.call(ctx, http.MethodDelete, r.reader().at(id), nil, nil, nil)
	return err
}
