package lifecycle_test

import (
	"bytes"
	"context"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/fault"
	"certctl/shared/issuer"
	"certctl/shared/issuer/localca"
	"certctl/shared/lifecycle"
	"certctl/shared/pki"
	"certctl/shared/secret"

	"github.com/jackc/pgx/v5"
)

func TestManyFirstStartsMakeOneCAAndOneKey(t *testing.T) {
	t.Parallel()
	pool := dbtest.Pool(t)
	box := secret.New(secret.NewMaster(secret.GenerateMasterKey()))
	var mu sync.Mutex
	var keys []string
	firsts := 0
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			first, err := lifecycle.Start(t.Context(), pool, lifecycle.First{Box: box, KeepAdminKey: func(s string) error {
				mu.Lock()
				defer mu.Unlock()
				keys = append(keys, s)
				return nil
			}})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			if first {
				firsts++
			}
		})
	}
	wg.Wait()
	if firsts != 1 || len(keys) != 1 {
		t.Errorf("%d first starts, %d keys", firsts, len(keys))
	}
	for _, table := range []string{"instance", "issuers", "ca_generations", "profiles", "renewal_policies", "api_keys"} {
		if n := count(t, pool, table); n != 1 {
			t.Errorf("%d rows in %s", n, table)
		}
	}
	k, _, ok := auth.Split(keys[0])
	got, err := auth.GetKey(t.Context(), pool, k)
	if !ok || err != nil || got.Role != auth.Admin || got.Principal != "admin" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestAFirstStartWhoseKeyCannotBeKeptMakesNothing(t *testing.T) {
	t.Parallel()
	pool := dbtest.Pool(t)
	box := secret.New(secret.NewMaster(secret.GenerateMasterKey()))
	full := errors.New("no space left on device")
	if _, err := lifecycle.Start(t.Context(), pool, lifecycle.First{Box: box, KeepAdminKey: func(string) error { return full }}); !errors.Is(err, full) {
		t.Error(err)
	}
	if n := count(t, pool, `instance`) + count(t, pool, `api_keys`) + count(t, pool, `issuers`); n != 0 {
		t.Errorf("%d rows were left", n)
	}
	if err := lifecycle.CheckMasterKey(t.Context(), pool, box); err != lifecycle.ErrNotStarted {
		t.Error(err)
	}
	if first, err := lifecycle.Start(t.Context(), pool, lifecycle.First{Box: box}); err != nil || !first {
		t.Errorf("%v, %v", first, err)
	}
}

func TestAnotherMasterKeyIsRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	other := secret.New(secret.NewMaster(secret.GenerateMasterKey()))
	if _, err := lifecycle.Start(t.Context(), h.pool, lifecycle.First{Box: other}); err == nil {
		t.Error("started")
	}
	if err := lifecycle.CheckMasterKey(t.Context(), h.pool, other); err == nil {
		t.Error("accepted")
	}
	must(t, lifecycle.CheckMasterKey(t.Context(), h.pool, h.box))
	if first, err := lifecycle.Start(t.Context(), h.pool, lifecycle.First{Box: h.box}); err != nil || first {
		t.Errorf("a second start: %v, %v", first, err)
	}
}

func (h *house) createIssuer(t testing.TB, c lifecycle.LocalConfig) (issuer.Configured, error) {
	t.Helper()
	config, err := json.Marshal(c)
	must(t, err)
	return inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (issuer.Configured, error) {
		return lifecycle.CreateIssuer(ctx, tx, h.box, lifecycle.NewIssuer{Name: fmt.Sprint("ca-", time.Now().UnixNano()), Type: "local", Config: config})
	})
}

func TestASubCAIssuesOnceItsRequestIsAnswered(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	i, err := h.createIssuer(t, lifecycle.LocalConfig{CommonName: "sub", Request: true})
	must(t, err)
	der, err := lifecycle.OpenRequest(t.Context(), h.pool, i.ID)
	must(t, err)
	root, key := enterprise(t)
	fulfil := func(bundle []byte) (issuer.Generation, error) {
		return inTx(t, h.pool, func(ctx context.Context, tx pgx.Tx) (issuer.Generation, error) {
			return lifecycle.FulfilRequest(ctx, tx, i.ID, string(bundle))
		})
	}
	_, err = fulfil(pki.EncodeBundle(root))
	wantFault(t, err, fault.Invalid)
	sub := signSubCA(t, der, root, key)
	g, err := fulfil(pki.EncodeBundle(sub, root))
	if err != nil || g.Number != 1 || !bytes.Equal(g.Certificate, sub.Raw) {
		t.Fatalf("%+v, %v", g, err)
	}
	_, err = fulfil(pki.EncodeBundle(sub, root))
	wantFault(t, err, fault.NotFound)
	v := h.version(t, h.issued(t, lifecycle.Wanted{IssuerID: i.ID}).CurrentVersionID)
	if v.GenerationID != g.ID {
		t.Error("issued by another generation")
	}
}

func TestAnImportedCAKeepsItsKeyOutOfItsSettings(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a := localca.Authority{Subject: pkix.Name{CommonName: "imported"}, TTL: 24 * 365 * time.Hour}
	root, key, err := localca.NewRoot(a, time.Now())
	must(t, err)
	pem, err := pki.MarshalKeyPEM(key)
	must(t, err)
	i, err := h.createIssuer(t, lifecycle.LocalConfig{Certificate: string(pki.EncodeBundle(root)), Key: string(pem)})
	must(t, err)
	got, err := issuer.Get(t.Context(), h.pool, i.ID)
	if err != nil || bytes.Contains(got.Config, []byte("PRIVATE")) {
		t.Errorf("%s, %v", got.Config, err)
	}
	if n := count(t, h.pool, `audit_events WHERE details::text LIKE '%PRIVATE%'`); n != 0 {
		t.Error("the trail holds a key")
	}
	h.issued(t, lifecycle.Wanted{IssuerID: i.ID})
	_, err = h.createIssuer(t, lifecycle.LocalConfig{Certificate: string(pki.EncodeBundle(root)), Key: string(pem[:len(pem)/2])})
	wantFault(t, err, fault.Invalid, "config.key_pem")
}

func TestARenewedCAKeepsItsKey(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.work(t)
	i, old := h.local(t)
	must(t, db.InTx(t.Context(), h.pool, func(tx pgx.Tx) error { _, err := lifecycle.RequestCARenewal(as(t, "alice"), tx, i.ID); return err }))
	h.work(t)
	_, g := h.local(t)
	before, err := old.X509()
	must(t, err)
	after, err := g.X509()
	must(t, err)
	if g.Number != 2 || !pki.SameKey(before.PublicKey, after.PublicKey) {
		t.Errorf("generation %d", g.Number)
	}
	v := h.version(t, h.issued(t, lifecycle.Wanted{}).CurrentVersionID)
	if v.GenerationID != g.ID {
		t.Error("issued by the old generation")
	}
	h.answersOCSP(t, v, true)
}
