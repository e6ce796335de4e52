package agentrun_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"certctl/shared/agentrun"
	"certctl/shared/id"
	"certctl/shared/target"
	"certctl/shared/target/files"
	"certctl/shared/wire"
)

func config(s *server, dir string) agentrun.Config {
	return agentrun.Config{
		URL: s.URL, Token: s.token, Dir: dir, Name: "host-1", Version: "test", Patience: 20 * time.Second,
		Drivers: target.Registry{"files": files.Open}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// once starts an agent on a folder, lets it work a single time and stops it.
func once(t *testing.T, cfg agentrun.Config) error {
	t.Helper()
	a, err := agentrun.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	return a.Once(t.Context())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func filesConfig(dir string, extra map[string]any) json.RawMessage {
	c := map[string]any{"cert_path": filepath.Join(dir, "cert.pem"), "key_path": filepath.Join(dir, "key.pem")}
	for k, v := range extra {
		c[k] = v
	}
	text, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return text
}

// serveFiles is a TLS server that reads the pair at every handshake.
func serveFiles(t *testing.T, dir string) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
		return &pair, err
	}})
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				if c, ok := conn.(*tls.Conn); ok {
					_ = c.Handshake()
				}
				_ = conn.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func holds(t *testing.T, dir string, v wire.Pickup) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil || target.Fingerprint(pair.Leaf) != v.FingerprintSHA256 {
		t.Errorf("the files do not hold version %s: %v", v.VersionID, err)
	}
}

func keyFiles(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "keys", "*"))
	must(t, err)
	for _, n := range names {
		if info, err := os.Stat(n); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: mode %v, %v", n, info.Mode(), err)
		}
	}
	return names
}

func empty(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, n := range names {
		if left, _ := filepath.Glob(filepath.Join(dir, n, "*")); len(left) > 0 {
			t.Errorf("%s is left", left)
		}
	}
}

// The whole life on one host: enroll, key and request, version, deployment, proof, report.
func TestIssueDeployAndProve(t *testing.T) {
	t.Parallel()
	s, dir, www := newServer(t), t.TempDir(), t.TempDir()
	address := serveFiles(t, www)
	certificate := id.New[id.Certificate]()
	s.awaitCSR(certificate, "a.example.com", "b.example.com")
	must(t, once(t, config(s, dir)))
	if n := len(keyFiles(t, dir)); n != 1 {
		t.Fatalf("%d keys", n)
	}
	j := s.deployment(certificate, s.latest().VersionID, wire.Target{Type: "files", Config: filesConfig(www, nil), Verify: &wire.Verify{Address: address}})
	must(t, once(t, config(s, dir)))
	if status, detail := s.end(j); status != "Completed" {
		t.Errorf("%s %s", status, detail)
	}
	holds(t, www, s.latest())
	empty(t, dir, "work", "reports", "journal")
	if s.calls["enroll"] != 1 || len(s.runs) != 2 {
		t.Errorf("%d enrollments, %d runs", s.calls["enroll"], len(s.runs))
	}
}

// A poll that raced with the lost answer hands the job out again: the same key must be posted.
func TestKeyOfAJobIsPostedAgain(t *testing.T) {
	t.Parallel()
	s, dir := newServer(t), t.TempDir()
	j := s.awaitCSR(id.New[id.Certificate](), "a.example.com")
	for range 2 {
		s.look(func() { j.Status, j.ended = "AwaitingCSR", nil })
		must(t, once(t, config(s, dir)))
	}
	if n := len(keyFiles(t, dir)); n != 1 || s.calls["csr"] != 2 {
		t.Errorf("%d keys, %d requests", n, s.calls["csr"])
	}
}

func TestOnlyTheKeyBeforeTheDeployedOneIsKept(t *testing.T) {
	t.Parallel()
	s, dir, www := newServer(t), t.TempDir(), t.TempDir()
	certificate, where := id.New[id.Certificate](), wire.Target{ID: id.New[id.Target](), Type: "files", Config: filesConfig(www, nil)}
	for range 3 {
		time.Sleep(2 * time.Millisecond) // job ids sort by millisecond
		s.awaitCSR(certificate, "a.example.com")
		must(t, once(t, config(s, dir)))
		s.deployment(certificate, s.latest().VersionID, where)
		must(t, once(t, config(s, dir)))
	}
	time.Sleep(2 * time.Millisecond)
	s.awaitCSR(certificate, "a.example.com") // a renewal under way
	must(t, once(t, config(s, dir)))
	if n := len(keyFiles(t, dir)); n != 3 {
		t.Errorf("%d keys are kept, want the last two and the one under way", n)
	}
}

func TestServerCustodyKeyIsOpened(t *testing.T) {
	t.Parallel()
	s, dir, www := newServer(t), t.TempDir(), t.TempDir()
	must(t, once(t, config(s, dir)))
	bundle := s.ca.Issue(t, "a.example.com")
	version := s.keepVersion(bundle)
	for name, c := range map[string]struct {
		key   string
		wants string
	}{
		"ECDH-ES+A256KW":  {s.seal(t, bundle.Key, jose.ECDH_ES_A256KW, jose.A256GCM), "Completed"},
		"ECDH-ES":         {s.seal(t, bundle.Key, jose.ECDH_ES, jose.A256GCM), "Completed"},
		"another content": {s.seal(t, bundle.Key, jose.ECDH_ES, jose.A128CBC_HS256), "Failed"},
		"another wrap":    {s.seal(t, bundle.Key, jose.ECDH_ES_A128KW, jose.A256GCM), "Failed"},
		"another key":     {s.seal(t, s.ca.Issue(t, "a.example.com").Key, jose.ECDH_ES, jose.A256GCM), "Failed"},
		"no JWE":          {"junk", "Failed"},
		"not here at all": {"", "Failed"},
	} {
		j := s.deployment(id.New[id.Certificate](), version, wire.Target{Type: "files", Config: filesConfig(www, nil), Key: c.key})
		must(t, once(t, config(s, dir)))
		if status, detail := s.end(j); status != c.wants {
			t.Errorf("%s: %s %s", name, status, detail)
		}
	}
	holds(t, www, s.latest())
	empty(t, dir, "keys")
}

// An answer that is lost after the server did its work must change nothing in the end, whichever it is.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"enroll", "work", "csr", "version", "status"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, dir, www := newServer(t), t.TempDir(), t.TempDir()
			certificate := id.New[id.Certificate]()
			s.awaitCSR(certificate, "a.example.com")
			s.look(func() { s.lose[name] = 1 })
			a, err := agentrun.Open(config(s, dir))
			must(t, err)
			defer a.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- a.Run(ctx) }()
			wait(t, func() bool { return s.latest().Serial != "" })
			j := s.deployment(certificate, s.latest().VersionID, wire.Target{Type: "files", Config: filesConfig(www, nil)})
			wait(t, func() bool { status, _ := s.end(j); return status == "Completed" })
			wait(t, func() bool {
				left, _ := filepath.Glob(filepath.Join(dir, "reports", "*"))
				return len(left) == 0
			})
			cancel()
			must(t, <-ended)
			holds(t, www, s.latest())
			empty(t, dir, "work", "reports")
			s.look(func() {
				if s.lose[name] != 0 {
					t.Error("no answer was lost")
				}
				if len(s.versions) != 1 {
					t.Errorf("%d versions", len(s.versions))
				}
			})
		})
	}
}

func wait(t *testing.T, until func() bool) {
	t.Helper()
	for range 2000 {
		if until() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("waited too long")
}

func TestRefusedReportIsKeptAndSentAtTheNextStart(t *testing.T) {
	t.Parallel()
	s, dir, www := newServer(t), t.TempDir(), t.TempDir()
	must(t, once(t, config(s, dir)))
	bundle := s.ca.Issue(t, "a.example.com")
	j := s.deployment(id.New[id.Certificate](), s.keepVersion(bundle), wire.Target{Type: "files", Config: filesConfig(www, nil), Key: s.seal(t, bundle.Key, jose.ECDH_ES, jose.A256GCM)})
	s.look(func() { s.refuse["status"] = 1 })
	var status *agentrun.StatusError
	if err := once(t, config(s, dir)); !errors.As(err, &status) || status.Status != 503 || status.RetryAfter != time.Second {
		t.Fatalf("%v", err)
	}
	if got, _ := s.end(j); got != "" {
		t.Fatal("the report arrived")
	}
	s.look(func() { s.refuse["work"] = 1 }) // the report goes before work is asked for
	_ = once(t, config(s, dir))
	if got, _ := s.end(j); got != "Completed" {
		t.Errorf("%q", got)
	}
	empty(t, dir, "reports", "work")
}

func TestStaleLeaseIsDropped(t *testing.T) {
	t.Parallel()
	s, dir, www := newServer(t), t.TempDir(), t.TempDir()
	must(t, once(t, config(s, dir)))
	bundle := s.ca.Issue(t, "a.example.com")
	j := s.deployment(id.New[id.Certificate](), s.keepVersion(bundle), wire.Target{Type: "files", Config: filesConfig(www, nil), Key: s.seal(t, bundle.Key, jose.ECDH_ES, jose.A256GCM)})
	s.look(func() { s.refuse["status"] = 1 })
	_ = once(t, config(s, dir))
	s.look(func() { j.Lease++; j.run = "another run" }) // reaped and claimed by another run meanwhile
	must(t, once(t, config(s, dir)))
	if got, _ := s.end(j); got != "" {
		t.Errorf("a stale report ended the job: %q", got)
	}
	empty(t, dir, "reports", "work")
}

// A job in hand whose lease went elsewhere is not deployed: a newer version may be there.
func TestJobInHandIsDroppedWhenItsLeaseIsStale(t *testing.T) {
	t.Parallel()
	s, dir, www := newServer(t), t.TempDir(), t.TempDir()
	must(t, once(t, config(s, dir)))
	bundle := s.ca.Issue(t, "a.example.com")
	j := s.deployment(id.New[id.Certificate](), s.keepVersion(bundle), wire.Target{Type: "files", Config: filesConfig(www, nil), Key: s.seal(t, bundle.Key, jose.ECDH_ES, jose.A256GCM)})
	s.look(func() { s.refuse["version"] = 1 })
	must(t, once(t, config(s, dir))) // the version cannot be fetched: the job stays in hand
	s.look(func() { j.Lease++; j.run = "another run" })
	must(t, once(t, config(s, dir)))
	if left, _ := filepath.Glob(filepath.Join(www, "*")); len(left) > 0 {
		t.Errorf("the stale job was deployed: %v", left)
	}
	empty(t, dir, "work")
}

func TestLeaseIsExtendedWhileACommandRuns(t *testing.T) {
	t.Parallel()
	s, dir, www := newServer(t), t.TempDir(), t.TempDir()
	must(t, once(t, config(s, dir)))
	bundle := s.ca.Issue(t, "a.example.com")
	j := s.deployment(id.New[id.Certificate](), s.keepVersion(bundle), wire.Target{
		Type: "files", Config: filesConfig(www, map[string]any{"hook": "sleep 2"}), Key: s.seal(t, bundle.Key, jose.ECDH_ES, jose.A256GCM),
	})
	s.look(func() { j.LeaseSeconds = 1 })
	must(t, once(t, config(s, dir)))
	s.look(func() {
		if j.running < 3 {
			t.Errorf("the lease of a second was extended %d times in two seconds", j.running)
		}
	})
}

func TestHostsWordIsReported(t *testing.T) {
	t.Parallel()
	s, dir, www := newServer(t), t.TempDir(), t.TempDir()
	must(t, once(t, config(s, dir)))
	bundle := s.ca.Issue(t, "a.example.com")
	key := s.seal(t, bundle.Key, jose.ECDH_ES, jose.A256GCM)
	j := s.deployment(id.New[id.Certificate](), s.keepVersion(bundle), wire.Target{Type: "files", Config: filesConfig(www, map[string]any{"hook": "true"}), Key: key})
	cfg := config(s, dir)
	cfg.Host = target.Host{Commands: target.CommandsNone}
	must(t, once(t, cfg))
	if status, detail := s.end(j); status != "Failed" || !strings.Contains(detail, "config.hook") || !strings.Contains(detail, "CERTCTL_AGENT_COMMANDS") {
		t.Errorf("%s %s", status, detail)
	}
	cfg.Host = target.Host{Paths: []string{dir}}
	j = s.deployment(id.New[id.Certificate](), s.latest().VersionID, wire.Target{Type: "files", Config: filesConfig(www, nil), Key: key})
	must(t, once(t, cfg))
	if status, detail := s.end(j); status != "Failed" || !strings.Contains(detail, "CERTCTL_AGENT_PATHS") {
		t.Errorf("%s %s", status, detail)
	}
	empty(t, www, ".")
}

func TestFailingHookReportsItsWords(t *testing.T) {
	t.Parallel()
	s, dir, www := newServer(t), t.TempDir(), t.TempDir()
	must(t, once(t, config(s, dir)))
	bundle := s.ca.Issue(t, "a.example.com")
	j := s.deployment(id.New[id.Certificate](), s.keepVersion(bundle), wire.Target{
		Type: "files", Config: filesConfig(www, map[string]any{"hook": "i=0; while [ $i -lt 1500 ]; do echo äöü $i; i=$((i+1)); done; echo last words; exit 4"}),
		Key: s.seal(t, bundle.Key, jose.ECDH_ES, jose.A256GCM),
	})
	must(t, once(t, config(s, dir)))
	status, detail := s.end(j)
	if status != "Failed" || !strings.Contains(detail, "exit status 4") || !strings.Contains(detail, "last words") {
		t.Errorf("%s %s", status, detail)
	}
	s.look(func() {
		if r := j.ended[0].Receipt; r == nil || !r.RolledBack {
			t.Errorf("receipt %+v", r)
		}
	})
	empty(t, www, ".")
}

func TestRefusedTokenIsAClearMessage(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(s, t.TempDir())
	cfg.Token = "cet1_" + strings.Repeat("b", 43)
	if err := once(t, cfg); !errors.Is(err, agentrun.ErrToken) {
		t.Errorf("%v", err)
	}
	cfg.Token = ""
	if err := once(t, cfg); !errors.Is(err, agentrun.ErrNoToken) {
		t.Errorf("%v", err)
	}
}

func TestRotatedCredentialIsStored(t *testing.T) {
	t.Parallel()
	s, dir := newServer(t), t.TempDir()
	must(t, once(t, config(s, dir)))
	a, err := agentrun.Open(config(s, dir))
	must(t, err)
	must(t, a.Rotate(t.Context()))
	a.Close()
	must(t, once(t, config(s, dir)))
	if text, err := os.ReadFile(filepath.Join(dir, "credential")); err != nil || string(text) != s.bearer { // #nosec G304 -- the test's own
		t.Errorf("%v", err)
	}
}

func TestOneAgentPerFolder(t *testing.T) {
	t.Parallel()
	s, dir := newServer(t), t.TempDir()
	a, err := agentrun.Open(config(s, dir))
	must(t, err)
	if _, err := agentrun.Open(config(s, dir)); err == nil || !strings.Contains(err.Error(), "another certctl-agent") {
		t.Errorf("%v", err)
	}
	a.Close()
	must(t, once(t, config(s, dir)))
}

func TestPlainHTTPGoesToThisMachineOnly(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cfg := config(s, t.TempDir())
	cfg.URL = "http://192.0.2.1:1" // TEST-NET-1: a connection would hang, a refusal is at once
	start := time.Now()
	if err := once(t, cfg); err == nil || !strings.Contains(err.Error(), "plain http") || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
	for _, bad := range []string{"", "ftp://x", "localhost:8080", "https://u:p@x", "https://x?y=1"} {
		cfg.URL = bad
		if _, err := agentrun.Open(cfg); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// tlsServer serves the fake over TLS with a chain: leaf, intermediate and, if asked, the root.
func tlsServer(t *testing.T, s *server, notBefore time.Time, withRoot bool) string {
	t.Helper()
	b := s.ca.IssueAt(t, notBefore, "127.0.0.1")
	pair := tls.Certificate{PrivateKey: b.Key, Certificate: [][]byte{b.Chain[0].Raw, b.Chain[1].Raw}}
	if withRoot {
		pair.Certificate = append(pair.Certificate, s.ca.Root.Raw)
	}
	ts := httptest.NewUnstartedServer(s.Config.Handler)
	ts.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	ts.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelInfo)
	ts.StartTLS()
	t.Cleanup(ts.Close)
	return ts.URL
}

func TestTokenPinsTheServersRoot(t *testing.T) {
	t.Parallel()
	s, dir := newServer(t), t.TempDir()
	sum := sha256.Sum256(s.ca.Root.Raw)
	s.token += "." + b64(sum[:])
	cfg := config(s, dir)

	cfg.URL = tlsServer(t, s, time.Now().Add(-time.Minute), false)
	if err := once(t, cfg); err == nil || !strings.Contains(err.Error(), "does not hold the root") {
		t.Errorf("a chain without the pinned root: %v", err)
	}
	other := newServer(t)
	cfg.URL = tlsServer(t, other, time.Now().Add(-time.Minute), true)
	if err := once(t, cfg); err == nil || !strings.Contains(err.Error(), "does not hold the root") {
		t.Errorf("another root: %v", err)
	}
	other.look(func() {
		if len(other.calls) > 0 {
			t.Error("something was sent to a server that is not the pinned one")
		}
	})
	cfg.URL = tlsServer(t, s, time.Now().Add(time.Hour), true) // this host's clock is an hour slow
	must(t, once(t, cfg))
	cfg.Token = ""
	cfg.URL = tlsServer(t, s, time.Now().Add(-13*time.Hour), false) // and an hour fast, with the stored root
	must(t, once(t, cfg))
	cfg.URL = tlsServer(t, s, time.Now().Add(-24*time.Hour), false)
	if err := once(t, cfg); err == nil {
		t.Error("a server certificate that ended half a day ago was taken")
	}
}

func TestCAFileIsTrusted(t *testing.T) {
	t.Parallel()
	s, dir := newServer(t), t.TempDir()
	cfg := config(s, dir)
	cfg.URL = tlsServer(t, s, time.Now().Add(-time.Minute), false)
	if err := once(t, cfg); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("without a CA file: %v", err)
	}
	cfg.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(cfg.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.Root.Raw}), 0o600))
	must(t, once(t, cfg))
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	s, dir := newServer(t), t.TempDir()
	must(t, once(t, config(s, dir)))
	got := make(chan string, 1)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header.Get("Authorization") }))
	t.Cleanup(elsewhere.Close)
	away := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	t.Cleanup(away.Close)
	cfg := config(s, dir)
	cfg.URL = away.URL
	if err := once(t, cfg); err == nil {
		t.Error("a redirect was taken for work")
	}
	if len(got) > 0 {
		t.Error("the credential went elsewhere")
	}
}

func TestStopDuringADeploymentFinishesIt(t *testing.T) {
	t.Parallel()
	s, dir, www := newServer(t), t.TempDir(), t.TempDir()
	must(t, once(t, config(s, dir)))
	bundle := s.ca.Issue(t, "a.example.com")
	j := s.deployment(id.New[id.Certificate](), s.keepVersion(bundle), wire.Target{
		Type: "files", Config: filesConfig(www, map[string]any{"hook": "sleep 1"}), Key: s.seal(t, bundle.Key, jose.ECDH_ES, jose.A256GCM),
	})
	ctx, cancel := context.WithCancel(t.Context())
	cfg := config(s, dir)
	cfg.Hook = func(point string, w target.Moment) {
		if point == target.StepReload && w == target.Before {
			cancel()
		}
	}
	a, err := agentrun.Open(cfg)
	must(t, err)
	defer a.Close()
	must(t, a.Run(ctx))
	if status, detail := s.end(j); status != "Completed" {
		t.Errorf("%s %s", status, detail)
	}
	holds(t, www, s.latest())
}

func TestLogsHoldNoSecrets(t *testing.T) {
	t.Parallel()
	s, dir, www := newServer(t), t.TempDir(), t.TempDir()
	var log bytes.Buffer
	cfg := config(s, dir)
	cfg.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	certificate := id.New[id.Certificate]()
	s.awaitCSR(certificate, "a.example.com")
	must(t, once(t, cfg))
	s.deployment(certificate, s.latest().VersionID, wire.Target{Type: "files", Config: filesConfig(www, nil)})
	must(t, once(t, cfg))
	for _, secret := range []string{s.bearer, s.token[5:], "PRIVATE KEY"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log holds a secret of %d bytes", len(secret))
		}
	}
	if !strings.Contains(log.String(), "deployed") {
		t.Error("the log says nothing")
	}
}

func TestDoctorNamesWhatIsWrongAndClaimsNothing(t *testing.T) {
	t.Parallel()
	s, dir, www := newServer(t), t.TempDir(), t.TempDir()
	must(t, once(t, config(s, dir)))
	must(t, os.Chmod(dir, 0o700)) // #nosec G302 -- a folder
	var skew time.Duration
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			w.Header().Set("Date", time.Now().Add(skew).UTC().Format(http.TimeFormat))
			return
		}
		s.Config.Handler.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	cfg := config(s, dir)
	cfg.URL = front.URL
	cfg.Host = target.Host{Commands: target.CommandsListed, Listed: []string{"true"}, Paths: []string{www}}
	problems := func() (names []string) {
		for _, c := range agentrun.Doctor(t.Context(), cfg) {
			if !c.OK {
				names = append(names, c.Name)
			}
		}
		return names
	}
	if got := problems(); len(got) > 0 {
		t.Errorf("a well host has problems: %v", got)
	}
	s.look(func() { s.bearer = "another"; s.calls["work"] = 0 })
	skew = -time.Hour
	cfg.Host.Paths = append(cfg.Host.Paths, filepath.Join(www, "missing"))
	must(t, os.Chmod(dir, 0o777))                              // #nosec G302 -- the problem to be found
	must(t, os.Chmod(filepath.Join(dir, "credential"), 0o644)) // #nosec G302 -- the problem to be found
	want := []string{"agent folder", "enrolled", "clock", "credential", "path " + filepath.Join(www, "missing")}
	if got := problems(); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("problems %v, want %v", got, want)
	}
	if s.calls["work"] != 0 {
		t.Error("the doctor claimed work")
	}
}

func TestHostConfig(t *testing.T) {
	t.Parallel()
	list := filepath.Join(t.TempDir(), "commands")
	must(t, os.WriteFile(list, []byte("# reloads\nsystemctl reload nginx\n\n  nginx -t  \n"), 0o600))
	h, err := agentrun.HostConfig("listed", list, "/etc/nginx/certs:/srv/tls/")
	must(t, err)
	if strings.Join(h.Listed, "|") != "systemctl reload nginx|nginx -t" || strings.Join(h.Paths, "|") != "/etc/nginx/certs|/srv/tls" {
		t.Errorf("%+v", h)
	}
	must(t, os.Chmod(list, 0o666)) // #nosec G302 -- the problem to be found
	for _, bad := range [][3]string{{"listed", list, ""}, {"listed", "", ""}, {"some", "", ""}, {"any", "", "relative"}, {"listed", "/nonexistent", ""}} {
		if _, err := agentrun.HostConfig(bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}
