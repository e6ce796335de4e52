package page_test

import (
	"strings"
	"testing"
	"time"

	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/fault"
	"certctl/shared/page"

	"github.com/jackc/pgx/v5"
)

type item struct {
	ID   string     `db:"id"`
	Name string     `db:"name"`
	N    int64      `db:"n"`
	At   *time.Time `db:"at"`
}

var keys = page.Keys[item]{
	ID: "i.id", IDOf: func(i item) string { return i.ID },
	By: map[string]page.Key[item]{
		"name": {SQL: "i.name", Type: page.Text, Of: func(i item) string { return i.Name }},
		"n":    {SQL: "i.n", Type: page.Int, Of: func(i item) string { return page.IntText(i.N) }},
		"at":   {SQL: "coalesce(i.at, 'infinity')", Type: page.Time, Of: func(i item) string { return page.TimeOrLast(i.At) }},
	},
}

func TestEveryOrderShowsEveryRowOnce(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	if _, err := tx.Exec(t.Context(), `CREATE TEMP TABLE items AS SELECT gen_random_uuid() AS id, chr(65 + i % 7) || '''é' AS name, (i % 5)::bigint AS n,
		CASE WHEN i % 3 > 0 THEN now() + interval '1 microsecond' * (i % 9) END AS at FROM generate_series(1, 40) i`); err != nil {
		t.Fatal(err)
	}
	for _, sort := range []string{"name", "-name", "n", "-n", "at", "-at"} {
		seen := map[string]bool{}
		r := page.Request{Limit: 7, Sort: page.ParseSort(sort)}
		for {
			args := pgx.NamedArgs{}
			where, tail, err := keys.SQL(r, args)
			if err != nil {
				t.Fatal(err)
			}
			rows, err := db.Many[item](t.Context(), tx, `SELECT i.id::text, i.name, i.n, i.at FROM items i WHERE `+where+tail, args)
			if err != nil {
				t.Fatal(err)
			}
			res := keys.Cut(r, rows)
			for _, i := range res.Rows {
				if seen[i.ID] {
					t.Fatalf("%s: a row came twice", sort)
				}
				seen[i.ID] = true
			}
			if r.After = res.Next; r.After == nil {
				break
			}
		}
		if len(seen) != 40 {
			t.Errorf("%s: %d rows", sort, len(seen))
		}
	}
}

func TestWhatACallerSendsNeverEntersSQL(t *testing.T) {
	t.Parallel()
	const id = "01890a5d-ac96-774b-bcce-b302099a8057"
	for name, r := range map[string]page.Request{
		"unknown sort":  {Sort: page.ParseSort("name; DROP TABLE items")},
		"limit":         {Limit: 201, Sort: page.Sort{Field: "n"}},
		"negative":      {Limit: -1, Sort: page.Sort{Field: "n"}},
		"not a number":  {Sort: page.Sort{Field: "n"}, After: &page.Position{Value: "1x", ID: id}},
		"not a time":    {Sort: page.Sort{Field: "at"}, After: &page.Position{Value: "yesterday", ID: id}},
		"year zero":     {Sort: page.Sort{Field: "at"}, After: &page.Position{Value: "0000-01-01T00:00:00Z", ID: id}},
		"NUL":           {Sort: page.Sort{Field: "name"}, After: &page.Position{Value: "a\x00", ID: id}},
		"not UTF-8":     {Sort: page.Sort{Field: "name"}, After: &page.Position{Value: "\xff", ID: id}},
		"not a uuid":    {Sort: page.Sort{Field: "name"}, After: &page.Position{Value: "a", ID: "x"}},
		"dashes astray": {Sort: page.Sort{Field: "name"}, After: &page.Position{Value: "a", ID: strings.ReplaceAll(id, "-", "") + "----"}},
	} {
		if where, tail, err := keys.SQL(r, map[string]any{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %q %q %v", name, where, tail, err)
		}
	}
	args := map[string]any{}
	where, tail, err := keys.SQL(page.Request{Sort: page.Sort{Field: "name", Desc: true}, After: &page.Position{Value: "x' OR 1=1", ID: id}}, args)
	if err != nil || strings.Contains(where+tail, "1=1") || args["page_value"] != "x' OR 1=1" || args["page_limit"] != page.DefaultLimit+1 {
		t.Errorf("%q %q %v %v", where, tail, args, err)
	}
}

func TestSortTextComesBack(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"": "-created_at", "name": "name", "-name": "-name"} {
		if got := page.ParseSort(in).String(); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}
