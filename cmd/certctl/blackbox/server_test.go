package blackbox

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"certctl/shared/dbtest"

	"github.com/jackc/pgx/v5/pgxpool"
)

// server is a running `certctl serve` and an admin's client of it.
type server struct {
	*process
	client
	dir   string        // its data folder
	took  time.Duration // from the start of the process to "ready"
	env   []string      // what it was started with, and what other programs on its database need
	ready string        // the address in its "ready" line
}

func masterKey() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return base64.StdEncoding.EncodeToString(b[:])
}

// launch starts serve on a data folder and waits until it says that it is ready.
func launch(t testing.TB, dir string, env ...string) *server {
	t.Helper()
	s := &server{dir: dir, env: env}
	start := time.Now()
	// What env sets wins: the last of two equal names counts.
	s.process = begin(t, append([]string{"CERTCTL_LISTEN=127.0.0.1:0", "CERTCTL_DATA_DIR=" + dir}, env...), certctl(t), "serve")
	for s.ready == "" {
		if line, _, whole := strings.Cut(s.out.String(), "\n"); whole {
			s.ready = strings.TrimPrefix(line, "ready ")
		}
		if !s.running() || time.Since(start) > time.Minute {
			t.Fatalf("serve is not ready after %s:\n%s%s", time.Since(start), s.out, s.log)
		}
		time.Sleep(time.Millisecond)
	}
	s.took = time.Since(start)
	s.client = client{base: s.ready}
	if b, err := os.ReadFile(filepath.Join(dir, "admin.key")); err == nil {
		s.key = strings.TrimSpace(string(b))
	}
	return s
}

// serveOn starts serve on a database of the tests' server.
func serveOn(t testing.TB, database string, env ...string) *server {
	t.Helper()
	return launch(t, folder(t), append([]string{"CERTCTL_DATABASE_URL=" + database, "CERTCTL_MASTER_KEY=" + masterKey()}, env...)...)
}

// house is a server on a database of the test's own, and that database.
func house(t testing.TB, env ...string) (*server, *pgxpool.Pool) {
	t.Helper()
	url := dbtest.URL(t)
	pool := database(t, url)
	return serveOn(t, url, env...), pool
}

func database(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// beside is the environment of another program on the server's database.
func (s *server) beside(more ...string) []string {
	return append(append(slices.Clone(s.env), "CERTCTL_PUBLIC_URL="+s.ready, "CERTCTL_PKI_URL="+s.ready), more...)
}

// number reads one number.
func number(t testing.TB, db *pgxpool.Pool, sql string, args ...any) int {
	t.Helper()
	var n int
	if err := db.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func execute(t testing.TB, db *pgxpool.Pool, sql string, args ...any) int64 {
	t.Helper()
	tag, err := db.Exec(t.Context(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return tag.RowsAffected()
}

// client speaks to one server with one credential; "" is none.
type client struct{ base, key string }

func (c client) as(key string) client { c.key = key; return c }

func (c client) host() string { _, host, _ := strings.Cut(c.base, "://"); return host }

// answer is an HTTP answer, whole.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) String() string {
	return fmt.Sprintf("%d %s %s", a.status, a.header.Get("Content-Type"), tail(string(a.body), 1500))
}

// get reads a member of the JSON body by a dotted path, with a number for an element of a list; nil if it is null or not there.
func (a answer) get(path string) any {
	var v any
	_ = json.Unmarshal(a.body, &v)
	for name := range strings.SplitSeq(path, ".") {
		if list, ok := v.([]any); ok {
			i, err := strconv.Atoi(name)
			if err != nil || i < 0 || i >= len(list) {
				return nil
			}
			v = list[i]
			continue
		}
		m, _ := v.(map[string]any)
		v = m[name]
	}
	return v
}

func (a answer) text(path string) string { s, _ := a.get(path).(string); return s }

// list is the "data" of a list.
func (a answer) list() (rows []map[string]any) {
	data, _ := a.get("data").([]any)
	for _, row := range data {
		m, _ := row.(map[string]any)
		rows = append(rows, m)
	}
	return rows
}

// problem reports whether the answer is a whole problem document of its status.
func (a answer) problem() bool {
	status, _ := a.get("status").(float64)
	return a.header.Get("Content-Type") == "application/problem+json" && int(status) == a.status && a.text("type") != "" && a.text("title") != "" &&
		a.text("detail") != "" && a.text("instance") != ""
}

// fields are the names in the problem's errors.
func (a answer) fields() (names []string) {
	errs, _ := a.get("errors").([]any)
	for _, e := range errs {
		m, _ := e.(map[string]any)
		name, _ := m["field"].(string)
		names = append(names, name)
	}
	return names
}

// browser follows no redirect and keeps no connection open over a test's end.
var browser = &http.Client{
	Timeout:       time.Minute,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
}

// ask sends a request. body may be nil, text or bytes as they are, or a value that is sent as JSON; header is pairs.
func (c client) ask(t testing.TB, method, path string, body any, header ...string) answer {
	t.Helper()
	a, err := c.try(method, path, body, header...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

func (c client) try(method, path string, body any, header ...string) (answer, error) {
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	case []byte:
		r = bytes.NewReader(b)
	default:
		j, err := json.Marshal(b)
		if err != nil {
			return answer{}, err
		}
		r = bytes.NewReader(j)
	}
	req, err := http.NewRequest(method, c.base+path, r)
	if err != nil {
		return answer{}, err
	}
	if r != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := browser.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, b}, err
}

// must is ask for an answer of one status.
func (c client) must(t testing.TB, status int, method, path string, body any, header ...string) answer {
	t.Helper()
	a := c.ask(t, method, path, body, header...)
	if a.status != status {
		t.Fatalf("%s %s: %s, want %d", method, path, a, status)
	}
	return a
}

// wire sends bytes as they are and reads one answer: for what an HTTP client would tidy up.
func (c client) wire(t testing.TB, method, request string) answer {
	t.Helper()
	conn, err := net.DialTimeout("tcp", c.host(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write([]byte(request)); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q: %v", tail(request, 300), err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, b}
}

// rawGet asks for a path exactly as it is written.
func (c client) rawGet(t testing.TB, path string) answer {
	t.Helper()
	auth := ""
	if c.key != "" {
		auth = "Authorization: Bearer " + c.key + "\r\n"
	}
	return c.wire(t, "GET", "GET "+path+" HTTP/1.1\r\nHost: "+c.host()+"\r\n"+auth+"Connection: close\r\n\r\n")
}

// object is a JSON body.
type object map[string]any

// issued creates a certificate and waits until it is issued.
func (s *server) issued(t testing.TB, body object) answer {
	t.Helper()
	made := s.must(t, 201, "POST", "/api/v1/certificates", body)
	if got := s.job(t, made.text("open_job_id")); got.text("status") != "Completed" {
		t.Fatalf("the issuance ended so: %s", got)
	}
	return s.must(t, 200, "GET", "/api/v1/certificates/"+made.text("id"), nil)
}

// job waits for a job's end.
func (c client) job(t testing.TB, id string) answer {
	t.Helper()
	return c.must(t, 200, "GET", "/api/v1/jobs/"+id+"?wait=30s", nil)
}

// issuer is the id of the first start's issuer.
func (c client) issuer(t testing.TB) string {
	t.Helper()
	rows := c.must(t, 200, "GET", "/api/v1/issuers", nil).list()
	if len(rows) != 1 {
		t.Fatalf("%d issuers, want the one of the first start", len(rows))
	}
	return rows[0]["id"].(string)
}

// authority is the CA certificate as relying parties get it.
func (c client) authority(t testing.TB, issuer string) *x509.Certificate {
	t.Helper()
	a := c.must(t, 200, "GET", "/.well-known/pki/ca/"+issuer, nil)
	ca, err := x509.ParseCertificate(a.body)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// leaf is a certificate's current version, read from its PEM.
func (c client) leaf(t testing.TB, certificate string) *x509.Certificate {
	t.Helper()
	a := c.must(t, 200, "GET", "/api/v1/certificates/"+certificate+"/pem", nil)
	block, _ := pem.Decode(a.body)
	if block == nil {
		t.Fatalf("no PEM: %s", a)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func pemOf(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.Bytes()
}

// keyOf makes an API key of a role and answers its secret.
func (c client) keyOf(t testing.TB, role string) string {
	t.Helper()
	return c.must(t, 201, "POST", "/api/v1/keys", object{"name": role, "principal": role + "@example.org", "role": role}).text("secret")
}

// enroll makes an agent by the protocol and answers its id and credential.
func (c client) enroll(t testing.TB, name string) (id, credential string) {
	t.Helper()
	token := c.must(t, 201, "POST", "/api/v1/agents/tokens", object{"name": name}).text("token")
	a := c.as("").must(t, 201, "POST", "/api/v1/agents/enroll", object{"token": token, "name": name, "hostname": "h", "os": "linux", "arch": "amd64", "version": "1"})
	return a.text("agent_id"), a.text("credential")
}
