package db

import (
	"context"

	"certctl/shared/page"

	"github.com/jackc/pgx/v5"
)

// Source is the constant SQL of a list: SELECT Columns FROM From WHERE Where.
type Source struct {
	Columns, From, Where string
}

// List answers one page of rows, and their number (at most page.Count + 1) when it was asked for.
func List[T any](ctx context.Context, q Querier, keys page.Keys[T], r page.Request, s Source, args pgx.NamedArgs) (page.Result[T], error) {
	where, tail, err := keys.SQL(r, args)
	if err != nil {
		return page.Result[T]{}, err
	}
	rows, err := Many[T](ctx, q, "SELECT "+s.Columns+" FROM "+s.From+" WHERE "+s.Where+" AND "+where+tail, args)
	if err != nil {
		return page.Result[T]{}, err
	}
	out := keys.Cut(r, rows)
	if !r.Total {
		return out, nil
	}
	args["page_count"] = page.Count + 1
	n, err := Scalar[int64](ctx, q, "SELECT count(*) FROM (SELECT 1 FROM "+s.From+" WHERE "+s.Where+" LIMIT @page_count) counted", args)
	out.Total = &n
	return out, err
}
