package issuer_test

import (
	"crypto/x509/pkix"
	"testing"
	"time"

	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/issuer"
	"certctl/shared/issuer/localca"
	"certctl/shared/page"

	"github.com/jackc/pgx/v5"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func insert(t testing.TB, q db.Querier) issuer.Configured {
	t.Helper()
	i := id.New[id.Issuer]()
	c, err := issuer.Insert(t.Context(), q, issuer.Configured{ID: i, Name: i.String(), Type: "local", Config: []byte(`{"a": 1}`)}, []byte("sealed"))
	must(t, err)
	return c
}

func generation(t testing.TB, i id.Issuer) issuer.NewGeneration {
	t.Helper()
	root, _, err := localca.NewRoot(localca.Authority{Subject: pkix.Name{CommonName: "x"}, TTL: time.Hour}, time.Now())
	must(t, err)
	return issuer.NewGeneration{ID: id.New[id.Generation](), IssuerID: i, Cert: root, SealedKey: []byte("key")}
}

func TestIssuersAreNamedOnceAndArchivedWhenUnused(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	c := insert(t, tx)
	if sealed, err := issuer.SealedConfig(t.Context(), tx, c.ID); err != nil || string(sealed) != "sealed" {
		t.Errorf("%q, %v", sealed, err)
	}
	renamed, err := issuer.Rename(t.Context(), tx, c.ID, c.Name+"-x")
	if err != nil || renamed.Name != c.Name+"-x" {
		t.Errorf("%+v, %v", renamed, err)
	}
	if got, err := issuer.ByName(t.Context(), tx, c.Name+"-X"); err != nil || got.ID != c.ID {
		t.Errorf("%+v, %v", got, err)
	}
	must(t, issuer.RecordTest(t.Context(), tx, c.ID, false, "no route"))
	if got, err := issuer.Get(t.Context(), tx, c.ID); err != nil || got.LastTest == nil {
		t.Errorf("%+v, %v", got, err)
	}
	must(t, issuer.Archive(t.Context(), tx, c.ID))
	for _, i := range []id.Issuer{c.ID, id.New[id.Issuer]()} {
		if err := issuer.Archive(t.Context(), tx, i); !fault.Is(err, fault.NotFound) {
			t.Error(err)
		}
	}
	if l, err := issuer.List(t.Context(), tx, page.Request{}); err != nil || len(l.Rows) != 0 {
		t.Errorf("%d issuers, %v", len(l.Rows), err)
	}
	if _, err := issuer.ByName(t.Context(), tx, renamed.Name); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func TestGenerationsAreNumberedAndHaveACRLState(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	c := insert(t, tx)
	if _, err := issuer.LatestGeneration(t.Context(), tx, c.ID); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	for n := 1; n <= 3; n++ {
		g, err := issuer.AddGeneration(t.Context(), tx, generation(t, c.ID))
		if err != nil || g.Number != n {
			t.Fatalf("%+v, %v", g, err)
		}
		if latest, err := issuer.LatestGeneration(t.Context(), tx, c.ID); err != nil || latest.ID != g.ID {
			t.Errorf("%+v, %v", latest, err)
		}
		if byNumber, err := issuer.GenerationByNumber(t.Context(), tx, c.ID, n); err != nil || byNumber.ID != g.ID {
			t.Errorf("%+v, %v", byNumber, err)
		}
		if shards, err := db.Scalar[int](t.Context(), tx, `SELECT count(*)::int FROM crl_state WHERE generation_id = $1 AND dirty_gen > published_gen`, g.ID); err != nil || shards != 1 {
			t.Errorf("%d shards wait for their first CRL, %v", shards, err)
		}
	}
	if all, err := issuer.Generations(t.Context(), tx, c.ID); err != nil || len(all) != 3 || all[0].Number != 3 {
		t.Errorf("%d, %v", len(all), err)
	}
}

func TestAGenerationHasExactlyOneKey(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*issuer.NewGeneration){
		"none": func(n *issuer.NewGeneration) { n.SealedKey = nil },
		"two":  func(n *issuer.NewGeneration) { n.KeyURI = "file:/x" },
	} {
		tx := dbtest.Tx(t)
		n := generation(t, insert(t, tx).ID)
		spoil(&n)
		if _, err := issuer.AddGeneration(t.Context(), tx, n); db.Constraint(err) != "ca_generations_check" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnAnsweredRequestsKeyMovesOnByItself(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	c, other := insert(t, tx), insert(t, tx)
	n := generation(t, c.ID)
	n.SealedKey = nil
	_, err := tx.Exec(t.Context(), `INSERT INTO ca_requests (id, issuer_id, csr, sealed_key) VALUES ($1, $2, 'x', 'moved')`, n.ID, c.ID)
	must(t, err)
	foreign := n
	foreign.IssuerID = other.ID
	must(t, inSavepoint(t, tx, func(tx pgx.Tx) {
		if _, err := issuer.AddGeneration(t.Context(), tx, foreign); err == nil {
			t.Error("the key of another issuer's request was taken")
		}
	}))
	_, err = issuer.AddGeneration(t.Context(), tx, n)
	must(t, err)
	if key, err := issuer.SealedKey(t.Context(), tx, n.ID); err != nil || string(key) != "moved" {
		t.Errorf("%q, %v", key, err)
	}
}

func inSavepoint(t testing.TB, tx pgx.Tx, fn func(pgx.Tx)) error {
	t.Helper()
	sp, err := tx.Begin(t.Context())
	if err != nil {
		return err
	}
	fn(sp)
	return sp.Rollback(t.Context())
}
