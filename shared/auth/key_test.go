package auth_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"
)

func exec(t testing.TB, q db.Querier, sql string, args ...any) {
	t.Helper()
	if _, err := q.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func as(t testing.TB, principal string) context.Context {
	return auth.WithActor(t.Context(), auth.Actor{Principal: principal, Role: auth.Admin})
}

func create(t testing.TB, q db.Querier, n auth.NewKey) (auth.Key, string) {
	t.Helper()
	k, secret, err := auth.Create(as(t, "alice"), q, n)
	if err != nil {
		t.Fatal(err)
	}
	return k, secret
}

// failures records what Authenticate tells of failures.
type failures []string

func (f *failures) tell(_ context.Context, keyID, address, why string) error {
	*f = append(*f, keyID+" "+address+" "+why)
	return nil
}

func authenticate(t testing.TB, q db.Querier, header string, f *failures) (auth.Actor, error) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.RemoteAddr = "192.0.2.1:999"
	if header != "" {
		r.Header.Set("Authorization", header)
	}
	return auth.Authenticate(t.Context(), q, r, f.tell)
}

func TestAuthenticateAcceptsTheSecretAndNothingElse(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	k, secret := create(t, tx, auth.NewKey{Name: "k", Principal: "Bob@Example.com", Role: auth.Operator})
	_, otherSecret := create(t, tx, auth.NewKey{Name: "other", Principal: "carol", Role: auth.Viewer})
	disabled, disabledSecret := create(t, tx, auth.NewKey{Name: "x", Principal: "x", Role: auth.Viewer})
	expired, expiredSecret := create(t, tx, auth.NewKey{Name: "x", Principal: "x", Role: auth.Viewer})
	if _, err := auth.Disable(t.Context(), tx, disabled.ID); err != nil {
		t.Fatal(err)
	}
	exec(t, tx, `UPDATE api_keys SET expires_at = now() WHERE id = $1`, expired.ID)
	unknown, _ := auth.NewSecret()
	for name, c := range map[string]struct {
		header string
		told   string // "": accepted
	}{
		"good":                 {"Bearer " + secret, ""},
		"good in another case": {"bEARER  " + secret, ""},
		"another's secret":     {"Bearer " + secret[:len(secret)-43] + otherSecret[len(otherSecret)-43:], k.ID.String() + " 192.0.2.1 wrong secret"},
		"disabled":             {"Bearer " + disabledSecret, disabled.ID.String() + " 192.0.2.1 disabled"},
		"expired":              {"Bearer " + expiredSecret, expired.ID.String() + " 192.0.2.1 expired"},
		"unknown key":          {"Bearer " + auth.Secret(id.New[id.Key](), unknown), "unknown 192.0.2.1 unknown key"},
		"malformed":            {"Bearer x", "unknown 192.0.2.1 malformed"},
		"another scheme":       {"Basic " + secret, "unknown 192.0.2.1 malformed"},
		"a letter more":        {"Bearer " + secret + "A", "unknown 192.0.2.1 malformed"},
		"a quote":              {"Bearer certctl_" + strings.Repeat("'", 26) + "_" + strings.Repeat("'", 43), "unknown 192.0.2.1 malformed"},
		"no token":             {"Bearer", "unknown 192.0.2.1 malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			exec(t, tx, `DELETE FROM auth_failures`)
			var f failures
			a, err := authenticate(t, tx, c.header, &f)
			if c.told == "" {
				if err != nil || a != (auth.Actor{Principal: "bob@example.com", Role: auth.Operator, KeyID: k.ID}) || len(f) > 0 {
					t.Errorf("%+v, %v, %v", a, err, f)
				}
				return
			}
			if !fault.Is(err, fault.Unauthenticated) || a != auth.Anonymous || !slices.Equal(f, failures{c.told}) {
				t.Errorf("%+v, %v, told %q, want %q", a, err, f, c.told)
			}
		})
	}
	var f failures
	if a, err := authenticate(t, tx, "", &f); err != nil || a != auth.Anonymous || len(f) > 0 {
		t.Errorf("no credential: %+v, %v", a, err)
	}
}

func TestEveryRefusalReadsTheSame(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	k, secret := create(t, tx, auth.NewKey{Name: "k", Principal: "bob", Role: auth.Viewer})
	texts := map[string]bool{}
	refuse := func(header string) {
		var f failures
		_, err := authenticate(t, tx, header, &f)
		if e := fault.As(err); e != nil {
			texts[e.Detail] = true
		} else {
			t.Errorf("answered %v", err)
		}
	}
	refuse("Bearer x")
	refuse("Bearer " + secret[:len(secret)-1] + "A")
	random, _ := auth.NewSecret()
	refuse("Bearer " + auth.Secret(id.New[id.Key](), random))
	if _, err := auth.Disable(t.Context(), tx, k.ID); err != nil {
		t.Fatal(err)
	}
	refuse("Bearer " + secret)
	if len(texts) != 1 {
		t.Errorf("refusals tell apart: %v", texts)
	}
}

func TestUseIsStampedAtMostOnceAMinuteAndOnlyForTheRightSecret(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	k, secret := create(t, tx, auth.NewKey{Name: "k", Principal: "bob", Role: auth.Viewer})
	used := func() *time.Time {
		got, err := auth.GetKey(t.Context(), tx, k.ID)
		if err != nil {
			t.Fatal(err)
		}
		return got.LastUsedAt
	}
	var f failures
	if _, err := authenticate(t, tx, "Bearer "+secret[:len(secret)-2]+"AA", &f); err == nil || used() != nil {
		t.Error("a wrong secret stamped the key")
	}
	for _, c := range []struct {
		last  string
		moved bool
	}{{"NULL", true}, {"now() - interval '59 s'", false}, {"now() - interval '61 s'", true}} {
		exec(t, tx, `UPDATE api_keys SET last_used_at = `+c.last+` WHERE id = $1`, k.ID)
		before := used()
		if _, err := authenticate(t, tx, "Bearer "+secret, &f); err != nil {
			t.Fatal(err)
		}
		after := used()
		if moved := before == nil && after != nil || before != nil && !after.Equal(*before); moved != c.moved {
			t.Errorf("last used %s: stamped %v", c.last, moved)
		}
	}
}

func TestFailuresAreCountedAndToldOncePerKeyAddressAndMinute(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t) // now() stands still: all of it is one minute
	k, secret := create(t, tx, auth.NewKey{Name: "k", Principal: "bob", Role: auth.Viewer})
	var f failures
	for range 5 {
		_, _ = authenticate(t, tx, "Bearer "+secret[:len(secret)-2]+"AA", &f)
		_, _ = authenticate(t, tx, "Bearer x", &f)
	}
	if len(f) != 2 {
		t.Errorf("told %q", f)
	}
	n, err := db.Scalar[int](t.Context(), tx, `SELECT count FROM auth_failures WHERE key_id = $1 AND address = '192.0.2.1'`, k.ID.String())
	if err != nil || n != 5 {
		t.Errorf("counted %d, %v", n, err)
	}
	exec(t, tx, `UPDATE auth_failures SET minute = minute - interval '1 minute'`)
	if _, _ = authenticate(t, tx, "Bearer x", &f); len(f) != 3 {
		t.Error("the next minute's first failure was not told")
	}
}

func TestAFailureThatCannotBeRecordedIsStillARefusal(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer x")
	lost := errors.New("the trail is away")
	_, err := auth.Authenticate(t.Context(), tx, r, func(context.Context, string, string, string) error { return lost })
	if !fault.Is(err, fault.Unauthenticated) || !errors.Is(err, lost) {
		t.Error(err)
	}
}

func TestRotationKeepsWhatTheKeyMayAndWhoMadeIt(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	end := time.Now().Add(90 * 24 * time.Hour)
	old, oldSecret := create(t, tx, auth.NewKey{Name: "ci", Principal: "bot", Role: auth.Operator, ExpiresAt: &end})
	fresh, secret, err := auth.Rotate(as(t, "carol"), tx, old.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if fresh.ID == old.ID || fresh.Principal != "bot" || fresh.Role != auth.Operator || fresh.Name != "ci" || fresh.CreatedBy != "alice" {
		t.Errorf("%+v", fresh)
	}
	if fresh.ExpiresAt == nil || fresh.ExpiresAt.Sub(end).Abs() > time.Minute {
		t.Errorf("a key of 90 days became one until %v", fresh.ExpiresAt)
	}
	var f failures
	for _, s := range []string{oldSecret, secret} {
		if a, err := authenticate(t, tx, "Bearer "+s, &f); err != nil || a.Principal != "bot" {
			t.Errorf("%+v, %v", a, err)
		}
	}
	now, err := auth.GetKey(t.Context(), tx, old.ID)
	if err != nil || now.ExpiresAt == nil || time.Until(*now.ExpiresAt) > time.Hour {
		t.Errorf("the old key lives until %v, %v", now.ExpiresAt, err)
	}
	if _, err := auth.Disable(t.Context(), tx, old.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := auth.Rotate(as(t, "carol"), tx, old.ID, time.Hour); !fault.Is(err, fault.Conflict) {
		t.Errorf("a disabled key was rotated: %v", err)
	}
}

func TestASecretIsStoredNowhere(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	k, secret := create(t, tx, auth.NewKey{Name: "k", Principal: "bob", Role: auth.Viewer})
	got, _, ok := auth.Split(secret)
	if !ok || got != k.ID || len(secret) != len("certctl_")+26+1+43 {
		t.Errorf("%d characters", len(secret))
	}
	n, err := db.Scalar[int](t.Context(), tx, `SELECT count(*)::int FROM api_keys WHERE row_to_json(api_keys)::text LIKE '%' || $1 || '%'`, secret[len(secret)-43:])
	if err != nil || n != 0 {
		t.Errorf("%d rows hold the secret, %v", n, err)
	}
}

func TestNewKeysAreChecked(t *testing.T) {
	t.Parallel()
	past := time.Now().Add(-time.Second)
	good := auth.NewKey{Name: "k", Principal: "bob", Role: auth.Viewer}
	for field, spoil := range map[string]func(*auth.NewKey){
		"name": func(n *auth.NewKey) { n.Name = "" }, "role": func(n *auth.NewKey) { n.Role = auth.System }, "expires_at": func(n *auth.NewKey) { n.ExpiresAt = &past },
	} {
		n := good
		spoil(&n)
		if f := fault.As(n.Check(time.Now())); f == nil || f.Fields[0].Field != field {
			t.Errorf("%s: %v", field, f)
		}
	}
	for _, p := range []string{"", "anonymous", "Anonymous", "system:sweep", "agent:x", "a b", "bücher", strings.Repeat("a", 201)} {
		n := good
		n.Principal = p
		if n.Check(time.Now()) == nil {
			t.Errorf("the principal %q was accepted", p)
		}
	}
}

func TestKeysAreListedByPrincipalInAnyCase(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	create(t, tx, auth.NewKey{Name: "1", Principal: "bob", Role: auth.Viewer})
	create(t, tx, auth.NewKey{Name: "2", Principal: "BOB", Role: auth.Viewer})
	create(t, tx, auth.NewKey{Name: "3", Principal: "carol", Role: auth.Viewer})
	for principal, want := range map[string]int{"": 3, "Bob": 2, "dave": 0} {
		if got, err := auth.ListKeys(t.Context(), tx, principal, page.Request{}); err != nil || len(got.Rows) != want {
			t.Errorf("%q: %d keys, %v", principal, len(got.Rows), err)
		}
	}
}

func TestRolesMayWhatTheTableSays(t *testing.T) {
	t.Parallel()
	all := []auth.Permission{auth.Read, auth.AuditRead, auth.CertWrite, auth.Approve, auth.Administer, auth.AgentOnly, auth.EnrollAgents}
	for role, want := range map[auth.Role][]auth.Permission{
		auth.Viewer: {auth.Read}, auth.Auditor: {auth.Read, auth.AuditRead}, auth.Operator: {auth.Read, auth.CertWrite, auth.Approve},
		auth.Admin: {auth.Read, auth.AuditRead, auth.CertWrite, auth.Approve, auth.Administer}, auth.AgentRole: {auth.AgentOnly}, auth.System: nil, auth.Nobody: nil, "": nil,
	} {
		for _, p := range all {
			if got := role.Allows(p); got != slices.Contains(want, p) {
				t.Errorf("%q and %s: %v", role, p, got)
			}
		}
		if !role.Allows(auth.Public) {
			t.Errorf("%q may not do what is public", role)
		}
	}
}
