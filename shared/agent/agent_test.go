package agent_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"certctl/shared/agent"
	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"
	"certctl/shared/wire"

	"github.com/jackc/pgx/v5"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func exec(t testing.TB, q db.Querier, sql string, args ...any) {
	t.Helper()
	_, err := q.Exec(t.Context(), sql, args...)
	must(t, err)
}

func token(t testing.TB, q db.Querier, ttl time.Duration) string {
	t.Helper()
	_, text, err := agent.NewToken(t.Context(), q, nil, ttl, nil)
	must(t, err)
	return text
}

func enroll(t testing.TB, tx pgx.Tx, name string) (agent.Agent, string) {
	t.Helper()
	a, credential, err := agent.Enroll(t.Context(), tx, wire.Enroll{Token: token(t, tx, time.Hour), Name: name})
	must(t, err)
	return a, credential
}

func authenticate(t testing.TB, q db.Querier, credential string) (auth.Actor, error) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	if credential != "" {
		r.Header.Set("Authorization", "Bearer "+credential)
	}
	return agent.Authenticate(t.Context(), q, r)
}

func refused(t testing.TB, what string, err error, k fault.Kind) {
	t.Helper()
	if !fault.Is(err, k) {
		t.Errorf("%s: %v, want %s", what, err, k)
	}
}

func unique() string { return id.New[id.Agent]().String() }

func TestATokenEnrollsOneAgent(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	key, other := `{"kty":"EC","n":"`+unique()+`"}`, `{"kty":"EC"}`
	text := token(t, tx, time.Hour)
	e := wire.Enroll{Token: text, Name: unique(), Hostname: "web-1", OS: "linux", Arch: "amd64", Version: "1", PublicKey: &key}
	a, first, err := agent.Enroll(t.Context(), tx, e)
	must(t, err)
	if got, err := authenticate(t, tx, first); err != nil || got.AgentID != a.ID || got.Role != auth.AgentRole || got.Principal != "agent:"+a.ID.String() {
		t.Errorf("%+v, %v", got, err)
	}
	again, second, err := agent.Enroll(t.Context(), tx, e) // the first answer was lost
	if err != nil || again.ID != a.ID || second == first {
		t.Errorf("%s, %v", again.ID, err)
	}
	_, err = authenticate(t, tx, first)
	refused(t, "the credential that was lost", err, fault.Unauthenticated)
	for name, k := range map[string]*string{"another key": &other, "no key": nil} {
		e.PublicKey = k
		_, _, err := agent.Enroll(t.Context(), tx, e)
		refused(t, name, err, fault.Unauthenticated)
	}
	e.PublicKey = &key
	exec(t, tx, `UPDATE agents SET created_at = now() - interval '2 h' WHERE id = $1`, a.ID)
	_, _, err = agent.Enroll(t.Context(), tx, e)
	refused(t, "the same key two hours later", err, fault.Unauthenticated)
	for name, bad := range map[string]string{"expired": token(t, tx, -time.Second), "unknown": agent.TokenPrefix + strings.Repeat("A", 43), "malformed": "x", "empty": ""} {
		_, _, err := agent.Enroll(t.Context(), tx, wire.Enroll{Token: bad, Name: unique()})
		refused(t, name, err, fault.Unauthenticated)
	}
}

func TestNamesAndKeysOfLiveAgentsAreUnique(t *testing.T) {
	t.Parallel()
	name, key := unique(), `{"n":"`+unique()+`"}`
	for what, e := range map[string]wire.Enroll{"name": {Name: strings.ToUpper(name)}, "key": {Name: unique(), PublicKey: &key}} {
		t.Run(what, func(t *testing.T) {
			tx := dbtest.Tx(t)
			first, _, err := agent.Enroll(t.Context(), tx, wire.Enroll{Token: token(t, tx, time.Hour), Name: name, PublicKey: &key})
			must(t, err)
			e.Token = token(t, tx, time.Hour)
			sp, err := tx.Begin(t.Context())
			must(t, err)
			_, _, err = agent.Enroll(t.Context(), sp, e)
			refused(t, what, err, fault.Conflict)
			must(t, sp.Rollback(t.Context()))
			_, err = agent.Retire(t.Context(), tx, first.ID)
			must(t, err)
			_, _, err = agent.Enroll(t.Context(), tx, e)
			must(t, err)
		})
	}
}

func TestTheOldCredentialLivesUntilTheNewOneIsUsed(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	a, old := enroll(t, tx, unique())
	fresh, err := agent.RotateCredential(t.Context(), tx, a.ID)
	must(t, err)
	for _, c := range []string{old, fresh} {
		if _, err := authenticate(t, tx, c); err != nil {
			t.Error(err)
		}
	}
	_, err = authenticate(t, tx, old)
	refused(t, "the old credential after the new one was used", err, fault.Unauthenticated)
	_, err = agent.Retire(t.Context(), tx, a.ID)
	must(t, err)
	_, err = authenticate(t, tx, fresh)
	refused(t, "a retired agent", err, fault.Unauthenticated)
	_, err = agent.RotateCredential(t.Context(), tx, a.ID)
	refused(t, "rotating a retired agent's", err, fault.Unauthenticated)
}

func TestOnlyTheExactCredentialIsAccepted(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	_, mine := enroll(t, tx, unique())
	_, others := enroll(t, tx, unique())
	secret := len(mine) - 43
	for name, c := range map[string]string{"another's secret": mine[:secret] + others[secret:], "a letter more": mine + "A", "a letter less": mine[:len(mine)-1], "an API key's form": "certctl_" + mine[len("certctl_agent_"):]} {
		_, err := authenticate(t, tx, c)
		refused(t, name, err, fault.Unauthenticated)
	}
	if got, err := authenticate(t, tx, ""); err != nil || got != auth.Anonymous {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestStateIsTheSameInGoAndInSQL(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	a, _ := enroll(t, tx, unique())
	for _, c := range []struct {
		seen string
		poll int
		want agent.State
	}{{"NULL", 300, agent.Offline}, {"now()", 300, agent.Online}, {"now() - interval '959 s'", 300, agent.Online}, {"now() - interval '961 s'", 300, agent.Offline},
		{"now() - interval '119 s'", 1, agent.Online}, {"now() - interval '121 s'", 1, agent.Offline}} {
		exec(t, tx, `UPDATE agents SET last_seen_at = `+c.seen+`, poll_seconds = $2, offline_since = NULL WHERE id = $1`, a.ID, c.poll)
		got, err := agent.Get(t.Context(), tx, a.ID)
		must(t, err)
		now, err := db.Scalar[time.Time](t.Context(), tx, `SELECT now()`)
		must(t, err)
		total, online, err := agent.Counts(t.Context(), tx)
		if err != nil || got.State(now) != c.want || (online == 1) != (c.want == agent.Online) || total != 1 {
			t.Errorf("seen %s, polls every %d s: %s, %d online, %v; want %s", c.seen, c.poll, got.State(now), online, err, c.want)
		}
		if n, err := agent.MarkOffline(t.Context(), tx); err != nil || (n == 1) != (c.want == agent.Offline && c.seen != "NULL") {
			t.Errorf("seen %s: %d marked, %v", c.seen, n, err)
		}
	}
	_, err := agent.Retire(t.Context(), tx, a.ID)
	must(t, err)
	for retired, want := range map[bool]int{true: 1, false: 0} {
		if l, err := agent.List(t.Context(), tx, retired, page.Request{}); err != nil || len(l.Rows) != want {
			t.Errorf("retired %v: %d agents, %v", retired, len(l.Rows), err)
		}
	}
}
