package boot

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"certctl/shared/auth"
	"certctl/shared/secret"
)

func TestARecordCarriesTheRequestItBelongsTo(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	ctx := auth.WithRequestID(context.Background(), "req-1")
	newLogger(&b, slog.LevelInfo, false).With("job", "job_1").InfoContext(ctx, "claimed", "at", time.Unix(0, 0).In(time.FixedZone("x", 3600)))
	var rec map[string]any
	if err := json.Unmarshal(b.Bytes(), &rec); err != nil {
		t.Fatalf("%v: %s", err, &b)
	}
	if rec["request"] != "req-1" || rec["job"] != "job_1" || rec["msg"] != "claimed" || rec["at"] != "1970-01-01T00:00:00Z" {
		t.Errorf("record %v", rec)
	}
	b.Reset()
	newLogger(&b, slog.LevelInfo, false).InfoContext(ctx, "said twice", "request", "req-1")
	if strings.Count(b.String(), "req-1") != 1 {
		t.Errorf("a record that names its request itself: %s", &b)
	}
	b.Reset()
	newLogger(&b, slog.LevelInfo, false).Info("no request")
	if strings.Contains(b.String(), `"request"`) {
		t.Errorf("a record outside of a request: %s", &b)
	}
}

func TestNoSecretReachesTheLog(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	const leak = "hunter2"
	u, _ := url.Parse("postgres://u:" + leak + "@h/d")
	attrs := []any{
		"key", key, "cfg", Common{MasterKey: secret.NewText(leak)}, "one", secret.NewText(leak), "url", u, "Authorization", leak, "token", leak,
		"header", http.Header{"Authorization": {"Bearer " + leak}, "Cookie": {leak}, "Accept": {"x"}},
		slog.Group("g", "password", leak),
	}
	for _, text := range []bool{true, false} {
		var b bytes.Buffer
		newLogger(&b, slog.LevelInfo, text).Info("all", attrs...)
		if strings.Contains(b.String(), leak) || strings.Contains(b.String(), new(big.Int).SetBytes(d).String()) {
			t.Errorf("a secret shows: %s", &b)
		}
		if !strings.Contains(b.String(), "Accept") {
			t.Errorf("harmless headers are gone: %s", &b)
		}
	}
}

func TestLevelAndFormatComeFromTheEnvironment(t *testing.T) {
	t.Parallel()
	c, err := Load[Common]([]string{"CERTCTL_LOG_LEVEL=warn", "CERTCTL_LOG_FORMAT=text", "CERTCTL_NOBODY=1"})
	if err != nil {
		t.Fatal(err)
	}
	if c.LogLevel != slog.LevelWarn || c.LogFormat != "text" || len(c.unknown) != 1 {
		t.Errorf("%+v", c)
	}
	if Logger(c).Enabled(context.Background(), slog.LevelInfo) {
		t.Error("info is written at level warn")
	}
	for _, kv := range []string{"CERTCTL_LOG_LEVEL=loud", "CERTCTL_LOG_FORMAT=xml"} {
		if _, err := Load[Common]([]string{kv}); err == nil {
			t.Errorf("%s is accepted", kv)
		}
	}
}

func TestCommonIsChecked(t *testing.T) {
	t.Parallel()
	good := "CERTCTL_MASTER_KEY=3q2+7wABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhs="
	c, err := Load[Common]([]string{good, "CERTCTL_PUBLIC_URL=https://certctl.example/", "CERTCTL_ALLOW_PRIVATE=issuers, scan"})
	if err != nil {
		t.Fatal(err)
	}
	if c.PKIURL != "https://certctl.example" || len(c.AllowPrivate) != 2 || c.AllowPrivate[1] != "scan" {
		t.Errorf("%+v", c)
	}
	for _, kv := range []string{
		"CERTCTL_MASTER_KEY=dG9vc2hvcnQ=", "CERTCTL_PUBLIC_URL=certctl.example", "CERTCTL_PKI_URL=ftp://x", "CERTCTL_PUBLIC_URL=https://u:p@x",
		"CERTCTL_ALLOW_PRIVATE=everything", "CERTCTL_POOL_SIZE=-1", "CERTCTL_POOL_SIZE=99999999999", "CERTCTL_TICK_TOKEN=tiny0",
	} {
		name, value, _ := strings.Cut(kv, "=")
		_, err := Load[Common]([]string{kv})
		if err == nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), value) {
			t.Errorf("%s: %v", kv, err)
		}
	}
}

func TestAPoolIsSmallOnLambdaAndOpensNoConnection(t *testing.T) {
	c, err := Load[Common]([]string{"CERTCTL_DATABASE_URL=postgres://u@127.0.0.1:1/d"})
	if err != nil {
		t.Fatal(err)
	}
	size := func() int32 {
		t.Helper()
		p, err := c.Pool(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if n := p.Stat().TotalConns(); n != 0 {
			t.Errorf("%d connections", n)
		}
		return p.Config().MaxConns
	}
	if n := size(); n < 3 {
		t.Errorf("%d connections at most", n)
	}
	t.Setenv("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1")
	if n := size(); n != 2 {
		t.Errorf("%d connections at most on Lambda", n)
	}
	c.PoolSize = 5
	if n := size(); n != 5 {
		t.Errorf("%d connections at most, 5 configured", n)
	}
}
