package endpoint_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/endpoint"
	"certctl/shared/fault"

	"github.com/jackc/pgx/v5"
)

const (
	allThings = `SELECT count(*) FROM things`
	allKeys   = `SELECT count(*) FROM idempotency_keys`
)

func TestWriteCommitsWithItsAnswerAndRollsBackWithAnError(t *testing.T) {
	t.Parallel()
	pool := withTable(t)
	rt := house(pool)
	w := request{token: "operator", method: "POST", path: "/api/v1/things", body: `{"name":"a"}`, key: "k1"}.do(t, rt)
	if w.Code != 201 || !strings.HasPrefix(w.Header().Get("Location"), "/api/v1/things/crt_") || count(t, pool, allThings) != 1 {
		t.Fatalf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	w = request{token: "operator", method: "POST", path: "/api/v1/things", body: `{"name":"fail"}`, key: "k2"}.do(t, rt)
	p := problemOf(t, w, 409)
	if kindOf(p) != fault.OpenJob || p["open_job_id"] != "job_1" {
		t.Errorf("extension members: %s", w.Body)
	}
	if count(t, pool, allThings) != 1 || count(t, pool, allKeys) != 1 {
		t.Error("an error left an effect or a key")
	}
	if w = (request{token: "operator", method: "DELETE", path: aThing}).do(t, rt); w.Code != 204 || w.Body.Len() != 0 {
		t.Errorf("DELETE: %d %s", w.Code, w.Body)
	}
}

func TestActionsTakeNoBodyOrAnEmptyObject(t *testing.T) {
	t.Parallel()
	rt := house(withTable(t))
	for body, want := range map[string]int{"": 200, "{}": 200, " { } ": 200, "[]": 400, `{"a":1}`: 400, "null": 400, "x": 400} {
		if w := (request{token: "operator", method: "POST", path: aThing + "/poke", body: body}).do(t, rt); w.Code != want {
			t.Errorf("%q: %d %s", body, w.Code, w.Body)
		}
	}
}

func TestTheSameKeyGivesTheFirstAnswerAgain(t *testing.T) {
	t.Parallel()
	pool := withTable(t)
	rt := house(pool)
	q := request{token: "operator", method: "POST", path: "/api/v1/things", body: `{"name":"a"}`, key: "k"}
	first := q.do(t, rt)
	again := q.do(t, rt)
	if again.Code != 201 || again.Body.String() != first.Body.String() || again.Header().Get("Location") != first.Header().Get("Location") ||
		again.Header().Get("Content-Type") != first.Header().Get("Content-Type") || again.Header().Get("Idempotency-Replayed") != "true" || first.Header().Get("Idempotency-Replayed") != "" {
		t.Errorf("first %d %v %s\nagain %d %v %s", first.Code, first.Header(), first.Body, again.Code, again.Header(), again.Body)
	}
	q.body = `{"name":"b"}`
	if p := problemOf(t, q.do(t, rt), 409); kindOf(p) != fault.KeyReused {
		t.Errorf("another body: %v", p)
	}
	if n := count(t, pool, allThings); n != 1 {
		t.Errorf("%d effects", n)
	}
	q.token = "other"
	if w := q.do(t, rt); w.Code != 201 {
		t.Errorf("another principal's key: %d %s", w.Code, w.Body)
	}
}

func TestAKeyBelongsToOnePath(t *testing.T) {
	t.Parallel()
	pool := withTable(t)
	rt := house(pool)
	for _, path := range []string{aThing, "/api/v1/things/crt_01h455vb4pex5vsknk084sn02r"} {
		if w := (request{token: "operator", method: "POST", path: path + "/poke", key: "k"}).do(t, rt); w.Code != 200 || w.Header().Get("Idempotency-Replayed") != "" {
			t.Errorf("%s: %d %v", path, w.Code, w.Header())
		}
	}
	if n := count(t, pool, allThings); n != 2 {
		t.Errorf("%d effects", n)
	}
}

func TestAKeyOlderThanADayIsFree(t *testing.T) {
	t.Parallel()
	pool := withTable(t)
	rt := house(pool)
	q := request{token: "operator", method: "POST", path: "/api/v1/things", body: `{"name":"a"}`, key: "k"}
	q.do(t, rt)
	for _, c := range []struct {
		age, body string
		effects   int
	}{{"23 hours 59 minutes", `{"name":"a"}`, 1}, {"24 hours 1 minute", `{"name":"b"}`, 2}, {"0 seconds", `{"name":"b"}`, 2}} {
		if _, err := pool.Exec(t.Context(), `UPDATE idempotency_keys SET created_at = created_at - $1::interval`, c.age); err != nil {
			t.Fatal(err)
		}
		q.body = c.body
		if w := q.do(t, rt); w.Code != 201 || count(t, pool, allThings) != c.effects {
			t.Errorf("%s: %d %s, %d effects", c.age, w.Code, w.Body, count(t, pool, allThings))
		}
	}
}

func TestConcurrentRequestsWithOneKeyHaveOneEffect(t *testing.T) {
	t.Parallel()
	pool := withTable(t)
	rt := house(pool, func(rt *endpoint.Router) {
		endpoint.Write(rt, "POST /api/v1/slow", auth.CertWrite, doc("slow"), func(ctx context.Context, tx pgx.Tx, _ *struct{}) (*struct{}, error) {
			_, err := tx.Exec(ctx, `INSERT INTO things (id, name) SELECT gen_random_uuid(), 'slow' FROM pg_sleep(0.1)`)
			return nil, err
		})
	})
	var wg sync.WaitGroup
	answers := make([]*httptest.ResponseRecorder, 8)
	for i := range answers {
		wg.Go(func() {
			answers[i] = request{token: "operator", method: "POST", path: "/api/v1/slow", key: "k"}.do(t, rt)
		})
	}
	wg.Wait()
	replayed := 0
	for _, w := range answers {
		if w.Code != 204 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if w.Header().Get("Idempotency-Replayed") == "true" {
			replayed++
		}
	}
	if n := count(t, pool, allThings); n != 1 || replayed != len(answers)-1 {
		t.Errorf("%d effects, %d replays", n, replayed)
	}
}

func TestASecretAnswerIsNeverStored(t *testing.T) {
	t.Parallel()
	pool := withTable(t)
	rt := house(pool)
	q := request{token: "admin", method: "POST", path: "/api/v1/secrets", key: "k"}
	first := q.do(t, rt)
	if first.Code != 201 || !strings.Contains(first.Body.String(), "hush-hush") {
		t.Fatalf("%d %s", first.Code, first.Body)
	}
	w := q.do(t, rt)
	p := problemOf(t, w, 409)
	key, _ := p["id"].(string)
	if kindOf(p) != fault.KeyReused || !strings.HasPrefix(key, "key_") || !strings.Contains(first.Body.String(), key) || strings.Contains(w.Body.String(), "hush") {
		t.Errorf("%s", w.Body)
	}
	if count(t, pool, `SELECT count(*) FROM idempotency_keys k WHERE k::text LIKE '%'||encode('hush','hex')||'%' OR body IS NOT NULL OR headers IS NOT NULL`) != 0 {
		t.Error("the secret is in the table")
	}
}

func TestALostCommitIs503AndNothingIsStored(t *testing.T) {
	t.Parallel()
	pool := withTable(t)
	rung := false
	rt := house(pool, func(rt *endpoint.Router) {
		endpoint.Write(rt, "POST /api/v1/lost", auth.CertWrite, doc("lost"), func(ctx context.Context, tx pgx.Tx, _ *struct{}) (*createdOutput, error) {
			endpoint.AfterCommit(ctx, func(context.Context) { rung = true })
			pid, err := db.Scalar[int](ctx, tx, `INSERT INTO things (id, name) VALUES (gen_random_uuid(), 'lost') RETURNING pg_backend_pid()`)
			if err != nil {
				return nil, err
			}
			_, err = pool.Exec(ctx, `SELECT pg_terminate_backend($1, 5000)`, pid)
			return &createdOutput{Location: "/never"}, err
		})
	})
	w := request{token: "operator", method: "POST", path: "/api/v1/lost", key: "k"}.do(t, rt)
	p := problemOf(t, w, 503)
	if p["retryable"] != true || w.Header().Get("Retry-After") == "" || w.Header().Get("Location") != "" || rung {
		t.Errorf("%v %s rung %v", w.Header(), w.Body, rung)
	}
	if count(t, pool, allThings)+count(t, pool, allKeys) != 0 {
		t.Error("something was stored")
	}
}

func TestACommitThatFailsIsNotAnsweredWithSuccess(t *testing.T) {
	t.Parallel()
	pool := withTable(t)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)`); err != nil {
		t.Fatal(err)
	}
	rt := house(pool, func(rt *endpoint.Router) {
		endpoint.Write(rt, "POST /api/v1/late", auth.CertWrite, doc("late"), func(ctx context.Context, tx pgx.Tx, _ *struct{}) (*thingOutput, error) {
			_, err := tx.Exec(ctx, `INSERT INTO late VALUES (1), (1)`)
			return &thingOutput{}, err
		})
		endpoint.Write(rt, "POST /api/v1/swallowed", auth.CertWrite, doc("swallowed"), func(ctx context.Context, tx pgx.Tx, _ *struct{}) (*thingOutput, error) {
			_, _ = tx.Exec(ctx, `SELECT 1/0`)
			return &thingOutput{}, nil
		})
	})
	problemOf(t, request{token: "operator", method: "POST", path: "/api/v1/late", key: "k"}.do(t, rt), 409)
	problemOf(t, request{token: "operator", method: "POST", path: "/api/v1/swallowed"}.do(t, rt), 500)
	if count(t, pool, allKeys) != 0 {
		t.Error("the key of a failed commit was kept")
	}
}

func TestAPanicRollsBackAndFreesTheConnection(t *testing.T) {
	t.Parallel()
	pool := withTable(t)
	rt := house(pool, func(rt *endpoint.Router) {
		endpoint.Write(rt, "POST /api/v1/panics", auth.CertWrite, doc("panics"), func(ctx context.Context, tx pgx.Tx, _ *struct{}) (*struct{}, error) {
			_, _ = tx.Exec(ctx, `INSERT INTO things (id, name) VALUES (gen_random_uuid(), 'p')`)
			panic(errors.New("boom"))
		})
	})
	for range 12 { // more than the pool has connections
		problemOf(t, request{token: "operator", method: "POST", path: "/api/v1/panics"}.do(t, rt), 500)
	}
	if count(t, pool, allThings) != 0 {
		t.Error("the effect stayed")
	}
}

func TestAnswersOf400AndMoreRollBack(t *testing.T) {
	t.Parallel()
	pool := withTable(t)
	type out struct {
		Status int
		Body   thing
	}
	rt := house(pool, func(rt *endpoint.Router) {
		endpoint.Write(rt, "POST /api/v1/refuses", auth.CertWrite, doc("refuses"), func(ctx context.Context, tx pgx.Tx, _ *struct{}) (*out, error) {
			_, err := tx.Exec(ctx, `INSERT INTO things (id, name) VALUES (gen_random_uuid(), 'p')`)
			return &out{Status: 409}, err
		})
	})
	if w := (request{token: "operator", method: "POST", path: "/api/v1/refuses", key: "k"}).do(t, rt); w.Code != 409 {
		t.Errorf("%d", w.Code)
	}
	if count(t, pool, allThings)+count(t, pool, allKeys) != 0 {
		t.Error("an effect or a key stayed")
	}
}

func TestAfterCommitSeesTheEffect(t *testing.T) {
	t.Parallel()
	pool := withTable(t)
	seen := -1
	rt := house(pool, func(rt *endpoint.Router) {
		endpoint.Write(rt, "POST /api/v1/rings", auth.CertWrite, doc("rings"), func(ctx context.Context, tx pgx.Tx, _ *struct{}) (*struct{}, error) {
			endpoint.AfterCommit(ctx, func(context.Context) { seen = count(t, pool, allThings) })
			_, err := tx.Exec(ctx, `INSERT INTO things (id, name) VALUES (gen_random_uuid(), 'p')`)
			return nil, err
		})
	})
	request{token: "operator", method: "POST", path: "/api/v1/rings"}.do(t, rt)
	if seen != 1 {
		t.Errorf("the hook saw %d rows", seen)
	}
}

func TestListsPageThroughEverythingOnceInEveryOrder(t *testing.T) {
	t.Parallel()
	pool := withTable(t)
	rt := house(pool)
	if _, err := pool.Exec(t.Context(), `INSERT INTO things (id, name, created_at) SELECT gen_random_uuid(), 'n<' || i / 3, now() - interval '1 microsecond' * (i / 4) FROM generate_series(1, 53) i`); err != nil {
		t.Fatal(err)
	}
	for _, sort := range []string{"", "created_at", "-created_at", "name", "-name"} {
		seen := map[string]bool{}
		cursor, pages := "", 0
		for {
			path := "/api/v1/things?limit=10"
			if sort != "" {
				path += "&sort=" + sort
			}
			if cursor != "" {
				path += "&cursor=" + cursor
			}
			w := request{token: "viewer", method: "GET", path: path}.do(t, rt)
			var got struct {
				Data       []thing
				NextCursor *string `json:"next_cursor"`
			}
			if w.Code != 200 || w.Header().Get("ETag") != "" {
				t.Fatalf("%s: %d %v %s", path, w.Code, w.Header(), w.Body)
			}
			decode(t, w, &got)
			for _, d := range got.Data {
				if seen[d.ID.String()] {
					t.Fatalf("sort %q: a row came twice", sort)
				}
				seen[d.ID.String()] = true
			}
			if pages++; got.NextCursor == nil {
				break
			}
			cursor = *got.NextCursor
		}
		if len(seen) != 53 || pages != 6 {
			t.Errorf("sort %q: %d rows on %d pages", sort, len(seen), pages)
		}
		if cursor == "" {
			continue
		}
		for _, other := range []string{"sort=name&name=x", "sort=created_at&limit=3&name=y", "sort=-nope"} {
			w := request{token: "viewer", method: "GET", path: "/api/v1/things?" + other + "&cursor=" + cursor}.do(t, rt)
			if fields := fieldsOf(problemOf(t, w, 400)); fields["cursor"] == "" {
				t.Errorf("%s: %v", other, fields)
			}
		}
	}
	if fields := fieldsOf(problemOf(t, request{token: "viewer", method: "GET", path: "/api/v1/things?sort=id"}.do(t, rt), 400)); fields["sort"] == "" {
		t.Errorf("unknown sort: %v", fields)
	}
	w := request{token: "viewer", method: "GET", path: "/api/v1/things?name=none"}.do(t, rt)
	if w.Body.String() != "{\"data\":[]}\n" {
		t.Errorf("an empty list: %s", w.Body)
	}
}

func TestADatabaseThatIsAwayIs503(t *testing.T) {
	t.Parallel()
	pool, err := db.Open(t.Context(), db.Config{URL: "postgres://nobody@127.0.0.1:1/none"})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	rt := house(pool)
	for _, q := range []request{
		{token: "operator", method: "POST", path: "/api/v1/things", body: `{"name":"a"}`}, {token: "viewer", method: "GET", path: "/api/v1/things"},
	} {
		if p := problemOf(t, q.do(t, rt), 503); kindOf(p) != fault.Unavailable {
			t.Errorf("%v", p)
		}
	}
}

func TestAClientThatLeavesRollsBack(t *testing.T) {
	t.Parallel()
	pool := withTable(t)
	ctx, leave := context.WithCancel(t.Context())
	rt := house(pool, func(rt *endpoint.Router) {
		endpoint.Write(rt, "POST /api/v1/left", auth.CertWrite, doc("left"), func(ctx context.Context, tx pgx.Tx, _ *struct{}) (*struct{}, error) {
			_, err := tx.Exec(ctx, `INSERT INTO things (id, name) VALUES (gen_random_uuid(), 'p')`)
			leave()
			return nil, err
		})
	})
	r := httptest.NewRequestWithContext(ctx, "POST", "/api/v1/left", http.NoBody)
	r.Header.Set("Authorization", "Bearer operator")
	w := httptest.NewRecorder()
	rt.ServeHTTP(w, r)
	if w.Code != 503 || count(t, pool, allThings) != 0 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestOverARealServer(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(house(withTable(t)))
	defer srv.Close()
	client := &http.Client{Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("redirected") }}
	for _, c := range []struct {
		method, path, body string
		want               int
	}{
		{"GET", "/api/v1/things?limit=1", "", 200}, {"HEAD", aThing, "", 200}, {"POST", "/api/v1/things", `{"name":"a"}`, 201},
		{"GET", "/api/v1/a/../things", "", 404}, {"GET", "/api//v1/things", "", 404}, {"OPTIONS", "/api/v1/things", "", 405},
		{"POST", "/api/v1/things", `{"name":"` + strings.Repeat("x", 1<<20) + `"}`, 413},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, srv.URL, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Opaque = "//" + r.URL.Host + c.path // sent as written
		r.Header.Set("Authorization", "Bearer operator")
		r.Header.Set("Content-Type", "application/json")
		a, err := client.Do(r)
		if err != nil {
			t.Fatalf("%s %s: %v", c.method, c.path, err)
		}
		_ = a.Body.Close()
		if a.StatusCode != c.want {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, a.StatusCode, c.want)
		}
	}
}

func ExampleListInput() {
	in := &endpoint.ListInput{Limit: 10, Sort: "-name"}
	fmt.Println(in.Request().Limit, in.Request().Sort.Field, in.Request().Sort.Desc)
	// Output: 10 name true
}
