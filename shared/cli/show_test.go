package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"certctl/shared/client"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write the golden files")

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time   { return now.Add(-d) }
func agoP(d time.Duration) *time.Time { t := ago(d); return &t }
func ptr[T any](v T) *T               { return &v }

const day = 24 * time.Hour

func testPrinter(form string) (*printer, *bytes.Buffer) {
	var b bytes.Buffer
	return &printer{out: &b, err: &b, form: form, now: func() time.Time { return now }}, &b
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", name, d)
	}
}

func exampleCerts() []client.Certificate {
	v := &client.Version{ID: "ver_2", Serial: "abc", NotBefore: ago(2 * day), NotAfter: ago(-45*day - time.Hour), CreatedAt: ago(2 * day)}
	return []client.Certificate{
		{ID: "crt_1", Name: "www.example.com", Status: "active", CurrentVersion: v, RenewAt: agoP(-30*day - time.Hour), Deployments: []client.Deployment{{ServedVersionID: "ver_2"}, {ServedVersionID: "ver_1"}}},
		{ID: "crt_2", Name: "münchen.example.com", Status: "pending"},
		{ID: "crt_3", Name: "evil\x1b[2J\nname", Status: "expired", CurrentVersion: &client.Version{NotAfter: ago(3 * time.Hour)}, RenewAt: agoP(20 * day)},
	}
}

func TestTablesAreAligned(t *testing.T) {
	t.Parallel()
	p, b := testPrinter("table")
	if err := list(p, certView, exampleCerts()); err != nil {
		t.Fatal(err)
	}
	p.noHeaders = true
	if err := list(p, certView, exampleCerts()[:1]); err != nil {
		t.Fatal(err)
	}
	golden(t, "certificates.txt", b.String())
}

func TestColourDoesNotMoveColumns(t *testing.T) {
	t.Parallel()
	plain, a := testPrinter("table")
	coloured, b := testPrinter("table")
	coloured.colour = true
	for _, p := range []*printer{plain, coloured} {
		if err := list(p, certView, exampleCerts()); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(b.String(), "\x1b[32mactive\x1b[0m") {
		t.Errorf("no colour: %q", b.String())
	}
	stripped := b.String()
	for _, c := range []string{"32", "36", "31"} {
		stripped = strings.ReplaceAll(stripped, "\x1b["+c+"m", "")
	}
	if stripped = strings.ReplaceAll(stripped, "\x1b[0m", ""); stripped != a.String() {
		t.Errorf("with colour:\n%s\nwithout:\n%s", stripped, a.String())
	}
}

func TestJSONAndYAMLKeepWhatTheAPISaid(t *testing.T) {
	t.Parallel()
	row := client.Certificate{ID: "crt_1", Name: "no", SANs: []string{"<a>&b", "*.example.com", "1e3", "a: b"}, Tags: map[string]string{"on": "yes"}, CreatedAt: now}
	j, jb := testPrinter("json")
	y, yb := testPrinter("yaml")
	for _, p := range []*printer{j, y} {
		if err := one(p, certView, row); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "certificate.json", jb.String())
	golden(t, "certificate.yaml", yb.String())
	empty, eb := testPrinter("json")
	if err := list(empty, certView, nil); err != nil || eb.String() != "[]\n" {
		t.Errorf("an empty list: %q, %v", eb.String(), err)
	}
}

func TestSpansAreInTheUnitThatPeopleUse(t *testing.T) {
	t.Parallel()
	for want, d := range map[string]time.Duration{"0s": -time.Hour, "119s": 119 * time.Second, "2m": 2 * time.Minute, "119m": 119 * time.Minute, "47h": 47 * time.Hour, "2d": 48 * time.Hour, "729d": 729 * day, "2y": 800 * day} {
		if got := span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func TestTimesAreReadInEveryForm(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]time.Time{"2026-01-31": time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC), "2026-01-31T10:00:00Z": time.Date(2026, 1, 31, 10, 0, 0, 0, time.UTC), "24h": ago(day), "90d": ago(90 * day)} {
		if got, err := timeOf(s, now, -1); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "d", "-1d", "1w", "1.5h", "yesterday", "99999999999d"} {
		if got, err := timeOf(s, now, 1); err == nil {
			t.Errorf("%q is taken as %v", s, got)
		}
	}
}

// explained are the situations in which people ask why.
func explained() map[string]facts {
	cert := func(set func(*client.Certificate)) client.Certificate {
		c := exampleCerts()[0]
		c.Deployments, c.AutoRenew, c.RenewReason = nil, true, ptr(`renews at 67 % of its lifetime (policy "default")`)
		if set != nil {
			set(&c)
		}
		return c
	}
	job := func(status string, set func(*client.Job)) *client.Job {
		j := &client.Job{ID: "job_1", Type: "Renewal", Status: status, Runner: "worker", MaxAttempts: 6, RequestedBy: "alice", CreatedAt: ago(5 * time.Minute), ScheduledAt: ago(5 * time.Minute)}
		if set != nil {
			set(j)
		}
		return j
	}
	open := func(status string) client.Certificate {
		return cert(func(c *client.Certificate) {
			c.Status, c.OpenJobID, c.RenewReason = status, "job_1", ptr("asked for by alice")
		})
	}
	away := map[string]client.Agent{"agt_1": {ID: "agt_1", Name: "web1", Hostname: "web1.example.com", Status: "offline", LastSeenAt: agoP(3 * time.Hour)}}
	return map[string]facts{
		"planned": {cert: cert(nil)},
		"not-issued": {cert: cert(func(c *client.Certificate) {
			c.Status, c.CurrentVersion, c.RenewAt, c.RenewReason = "pending", nil, nil, nil
		})},
		"no-auto":  {cert: cert(func(c *client.Certificate) { c.AutoRenew = false })},
		"archived": {cert: cert(func(c *client.Certificate) { c.Status, c.ArchivedAt = "archived", agoP(day) })},
		"on-hold": {cert: cert(func(c *client.Certificate) {
			v := *c.CurrentVersion
			v.RevokedAt, v.RevocationReason = agoP(time.Hour), ptr("certificateHold")
			c.Status, c.CurrentVersion = "revoked", &v
		})},
		"failing": {cert: cert(func(c *client.Certificate) {
			c.Status, c.Failures, c.RenewAt, c.NextTryAt = "failed", 3, agoP(2*day), agoP(-40*time.Minute)
		}), last: job(client.Failed, func(j *client.Job) { j.CompletedAt, j.LastError = agoP(time.Minute), ptr("The CA refused the name.") })},
		"no-sweep": {cert: cert(func(c *client.Certificate) { c.Status, c.RenewAt = "expiring", agoP(2*day) })},
		"approval": {cert: open("renewing"), open: job(client.AwaitingApproval, func(j *client.Job) { j.ApproveBy = agoP(-6*day - time.Hour) })},
		"retrying": {cert: open("renewing"), open: job(client.Pending, func(j *client.Job) {
			j.ScheduledAt, j.Attempts, j.LastError = ago(-10*time.Minute), 2, ptr("The CA is away.")
		})},
		"no-worker": {cert: open("renewing"), open: job(client.Pending, nil)},
		"running":   {cert: open("renewing"), open: job(client.Running, func(j *client.Job) { j.LeasedUntil = agoP(-time.Minute) })},
		"waits-for-agent": {cert: func() client.Certificate { c := open("pending"); c.KeyCustody, c.AgentID = "agent", "agt_1"; return c }(),
			open: job(client.AwaitingCSR, func(j *client.Job) { j.CSRDeadline = agoP(-50 * time.Minute) }), agents: away},
		"not-served": {cert: cert(func(c *client.Certificate) {
			c.Deployments = []client.Deployment{
				{TargetID: "tgt_1", DesiredVersionID: "ver_2", ServedVersionID: "ver_1", LastError: ptr("nginx -t: unexpected end of file"), UpdatedAt: ago(4 * time.Minute)},
				{TargetID: "tgt_2", DesiredVersionID: "ver_2", InstalledVersionID: "ver_2", ServedVersionID: "ver_2", TimeToServedSeconds: ptr(3.25)},
				{TargetID: "tgt_3", DesiredVersionID: "ver_2", InstalledVersionID: "ver_2"},
			}
		}), targets: map[string]client.Target{"tgt_1": {Name: "web1-nginx", AgentID: "agt_1", Verify: &client.TargetVerify{}}, "tgt_2": {Name: "web2", Verify: &client.TargetVerify{}}, "tgt_3": {Name: "drop"}},
			agents: away, deploy: map[string]client.Job{"tgt_1": *job(client.Failed, func(j *client.Job) {
				j.CompletedAt, j.LastError = agoP(4*time.Minute), ptr("nginx -t: unexpected end of file")
			})}},
	}
}

func TestExplanationsSayWhyAndWhatHelps(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	var names []string
	situations := explained()
	for name := range situations {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		p, b := testPrinter("table")
		if err := p.showExplanation(explain(situations[name], p)); err != nil {
			t.Fatal(err)
		}
		all.WriteString("== " + name + "\n" + b.String() + "\n")
	}
	golden(t, "explain.txt", all.String())
}

func TestAnExplanationInJSONHasNoNull(t *testing.T) {
	t.Parallel()
	for name, f := range explained() {
		p, _ := testPrinter("json")
		b, err := json.Marshal(explain(f, p))
		if err != nil || strings.Contains(string(b), "null") {
			t.Errorf("%s: %s, %v", name, b, err)
		}
	}
}

func TestWatchPrintsOnlyChangesAndEndsQuietlyWhenInterrupted(t *testing.T) {
	t.Parallel()
	p, b := testPrinter("name")
	ctx, interrupt := context.WithCancel(t.Context())
	cmd := &cobra.Command{}
	cmd.SetContext(ctx)
	s := &session{printer: p, ctx: ctx, cmd: cmd}
	looks := 0
	err := watch(s, watching{ptr(true), ptr(time.Millisecond)}, func() (string, error) {
		looks++
		switch looks {
		case 3:
			return "", fail(codeUnavailable, "", "away")
		case 6:
			interrupt()
		}
		return map[bool]string{true: "a", false: "b"}[looks < 4], nil
	}, func(v string) error { b.WriteString(v + ";"); return nil })
	if err != nil || b.String() != "a;away\nb;" {
		t.Errorf("%q after %d looks, %v", b.String(), looks, err)
	}
}

func TestSettingsTakeJSONAndKeepSecretsOffTheCommandLine(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	x := settings{set: []string{"a=1", "b=true", "c=[\"x\"]", "d=nginx -t", "e=", "f=null", "g=a=b"}, big: []string{"key_pem=" + file}}
	got, err := x.over(nil, map[string]any{"a": "old", "z": "kept"})
	want := map[string]any{"a": 1.0, "b": true, "c": []any{"x"}, "d": "nginx -t", "e": "", "f": "null", "g": "a=b", "key_pem": "s3cret", "z": "kept"}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v\n%s", err, d)
	}
	for _, name := range []string{"password", "api_token", "client_secret", "key_pem", "hmac_key", "Credentials"} {
		if _, err := (settings{set: []string{name + "=hunter2"}}).over(nil, nil); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"cert_path=/x", "key_path=/x", "key_algorithm=rsa-2048", "key_mode=0640"} {
		if _, err := (settings{set: []string{name}}).over(nil, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
