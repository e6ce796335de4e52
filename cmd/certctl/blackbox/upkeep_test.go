package blackbox

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"certctl/shared/dbtest"
)

func TestMigrateAndBootstrapPrepareASharedDatabaseOnce(t *testing.T) {
	t.Parallel()
	url, key := dbtest.EmptyURL(t), masterKey()
	env := []string{"CERTCTL_DATABASE_URL_FILE=" + file(t, "url", []byte(url+"\n")), "CERTCTL_MASTER_KEY_FILE=" + file(t, "key", []byte(key+"\n"))}
	if code, _, log := run(t, env, certctl(t), "bootstrap"); code == 0 {
		t.Errorf("bootstrap without the schema: %s", log)
	}
	two := []*process{begin(t, env, certctl(t), "migrate"), begin(t, env, certctl(t), "migrate")}
	for _, p := range two {
		if code := p.wait(t, time.Minute); code != 0 {
			t.Fatalf("migrate: exit %d: %s", code, p.log)
		}
	}
	if code, out, log := run(t, env, certctl(t), "bootstrap"); code != 0 || strings.TrimSpace(out) != "started" {
		t.Fatalf("bootstrap: exit %d: %s%s", code, out, log)
	}
	if code, out, log := run(t, env, certctl(t), "bootstrap"); code != 0 || strings.TrimSpace(out) != "was started before" {
		t.Errorf("bootstrap again: exit %d: %s%s", code, out, log)
	}
	db := database(t, url)
	if n := number(t, db, `SELECT count(*) FROM ca_generations`); n != 1 {
		t.Errorf("%d CAs", n)
	}
	if n := number(t, db, `SELECT count(*) FROM api_keys`); n != 0 {
		t.Errorf("bootstrap made %d keys", n)
	}
}

func TestOnlyOneServerOwnsADataFolder(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(folder(t), "data")
	s := launch(t, dir)
	code, out, log := run(t, []string{"CERTCTL_LISTEN=127.0.0.1:0", "CERTCTL_DATA_DIR=" + dir}, certctl(t), "serve")
	if code == 0 || out != "" || !strings.Contains(log, "another process") {
		t.Errorf("a second server on the folder: exit %d, %q, %s", code, out, log)
	}
	s.must(t, 200, "GET", "/ready", nil)
	taken, out, log := run(t, []string{"CERTCTL_LISTEN=" + s.host(), "CERTCTL_DATA_DIR=" + filepath.Join(folder(t), "data")}, certctl(t), "serve")
	if taken == 0 || out != "" || !strings.Contains(log, "CERTCTL_LISTEN") {
		t.Errorf("a second server on the port: exit %d, %q, %s", taken, out, log)
	}
	for _, name := range below(dir) { // the server's own postgres dies
		if comm, pid, _ := strings.Cut(name, " "); comm == "postgres" {
			n, _ := strconv.Atoi(pid)
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}
	if code := s.wait(t, 20*time.Second); code == 0 || !strings.Contains(s.log.String(), "postgres") {
		t.Errorf("without its database the server ended with %d: %s", code, tail(s.log.String(), 300))
	}
}

func TestTheTLSListenerHasACertificateOfTheOwnCA(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	s, db := house(t, "CERTCTL_TLS_LISTEN="+address, "CERTCTL_TLS_NAMES=pki.example.org")
	ca := s.authority(t, s.issuer(t))
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	secure := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "pki.example.org"}}}
	req, _ := http.NewRequest("GET", "https://"+address+"/api/v1/auth/me", nil)
	req.Header.Set("Authorization", "Bearer "+s.key)
	res, err := secure.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if res.StatusCode != 200 || !strings.Contains(string(b), `"role":"admin"`) {
		t.Errorf("%d %s", res.StatusCode, b)
	}
	sum := sha256.Sum256(ca.Raw)
	if token := s.must(t, 201, "POST", "/api/v1/agents/tokens", nil).text("token"); !strings.HasSuffix(token, "."+base64.RawURLEncoding.EncodeToString(sum[:])) {
		t.Error("the enrollment token does not carry the root's fingerprint")
	}
	if n := number(t, db, `SELECT count(*) FROM certificates WHERE current_version_id IS NOT NULL`); n != 1 {
		t.Errorf("%d certificates, want the server's own", n)
	}
}
