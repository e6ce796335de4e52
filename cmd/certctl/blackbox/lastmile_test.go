package blackbox

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"certctl/shared/pki"
)

// web is a real nginx on a port of its own that serves a certificate of before.
type web struct {
	dir, conf, address string
	command            string // nginx with its configuration
}

func nginxProgram(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"nginx", "/usr/sbin/nginx"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatal("nginx is not installed: make setup, or apt-get install nginx-light")
	return ""
}

func startNginx(t testing.TB) *web {
	t.Helper()
	nginx := nginxProgram(t)
	w := &web{dir: folder(t)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = l.Addr().String()
	_ = l.Close()
	w.selfSigned(t)
	w.conf = filepath.Join(w.dir, "nginx.conf")
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	text := fmt.Sprintf(`%s pid %[2]s/nginx.pid; error_log %[2]s/error.log; worker_processes 1; daemon off; events {}
http { access_log off; client_body_temp_path %[2]s/t1; proxy_temp_path %[2]s/t2; fastcgi_temp_path %[2]s/t3; uwsgi_temp_path %[2]s/t4; scgi_temp_path %[2]s/t5;
  server { listen %[3]s ssl; ssl_certificate %[2]s/cert.pem; ssl_certificate_key %[2]s/key.pem; location / { return 200 ok; } } }`, user, w.dir, w.address)
	if err := os.WriteFile(w.conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w.command = nginx + " -c " + w.conf
	begin(t, nil, nginx, "-c", w.conf)
	eventually(t, 10*time.Second, "nginx answers", func() bool { _, err := w.served(); return err == nil })
	return w
}

func (w *web) selfSigned(t testing.TB) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "before"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := pki.MarshalKeyPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"cert.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), "key.pem": text} {
		if err := os.WriteFile(filepath.Join(w.dir, name), content, 0o640); err != nil {
			t.Fatal(err)
		}
	}
}

// served is the leaf that a completed handshake shows.
func (w *web) served() (*x509.Certificate, error) {
	c, err := tls.Dial("tcp", w.address, &tls.Config{InsecureSkipVerify: true, ServerName: "www.example.test"}) // #nosec G402 -- the test looks at what is served
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	return c.ConnectionState().PeerCertificates[0], nil
}

func (w *web) serial(t testing.TB) string {
	t.Helper()
	c, err := w.served()
	if err != nil {
		t.Fatal(err)
	}
	return pki.FormatSerial(c.SerialNumber)
}

// state is bytes, mode and owner of the target's files.
func (w *web) state(t testing.TB) string {
	t.Helper()
	var out []string
	for _, name := range []string{"cert.pem", "key.pem"} {
		path := filepath.Join(w.dir, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		out = append(out, fmt.Sprintf("%s %x %v %d:%d", name, sha256.Sum256(b), info.Mode(), st.Uid, st.Gid))
	}
	return strings.Join(out, "\n")
}

// host is an agent's program on a folder.
type host struct {
	*process
	dir, id string
	env     []string
}

// agentOn starts certctl-agent, enrolled with a fresh token on the server's TLS listener when there is one.
func agentOn(t testing.TB, s *server, url string, more ...string) *host {
	t.Helper()
	h := &host{dir: filepath.Join(folder(t), "agent")}
	token := s.must(t, 201, "POST", "/api/v1/agents/tokens", object{}).text("token")
	h.env = append([]string{"CERTCTL_URL=" + url, "CERTCTL_ENROLL_TOKEN=" + token, "CERTCTL_AGENT_DIR=" + h.dir}, more...)
	before := len(s.must(t, 200, "GET", "/api/v1/agents?limit=200", nil).list())
	h.process = begin(t, h.env, program(t, "cmd/certctl-agent"), "run")
	eventually(t, 15*time.Second, "the agent enrolls", func() bool {
		rows := s.must(t, 200, "GET", "/api/v1/agents?limit=200", nil).list()
		if len(rows) == before {
			return false
		}
		h.id = rows[0]["id"].(string)
		return true
	})
	return h
}

func (s *server) nginxTarget(t testing.TB, name string, w *web, agent string, more object) string {
	t.Helper()
	body := object{"name": name, "type": "nginx", "agent_id": agent, "config": object{"cert_path": filepath.Join(w.dir, "cert.pem"), "key_path": filepath.Join(w.dir, "key.pem"),
		"validate_command": w.command + " -t -q", "reload_command": w.command + " -s reload"}, "verify": object{"address": w.address, "server_name": "www.example.test"}}
	for k, v := range more {
		body[k] = v
	}
	return s.must(t, 201, "POST", "/api/v1/targets", body).text("id")
}

// deployment waits until the newest deployment of a certificate has ended and answers its job.
func (s *server) deployment(t testing.TB, certificate string) answer {
	t.Helper()
	var got answer
	eventually(t, 60*time.Second, "the deployment ends", func() bool {
		rows := s.must(t, 200, "GET", "/api/v1/jobs?type=Deployment&limit=1&certificate_id="+certificate, nil).list()
		if len(rows) == 0 {
			return false
		}
		got = s.must(t, 200, "GET", "/api/v1/jobs/"+rows[0]["id"].(string)+"?wait=5s", nil)
		return slices.Contains([]string{"Completed", "Failed", "Cancelled"}, got.text("status"))
	})
	return got
}

func TestACertificateIsSeenServedByNginxAndRenewed(t *testing.T) {
	t.Parallel()
	s, _ := house(t, "CERTCTL_POLL_INTERVAL=1s")
	w := startNginx(t)
	a := agentOn(t, s, s.base)
	target := s.nginxTarget(t, "web", w, a.id, nil)
	c := s.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{"www.example.test"}, "target_ids": []string{target}})
	if c.text("key_custody") != "agent" || c.text("agent_id") != a.id || c.get("target_ids.0") != target {
		t.Fatalf("custody and targets: %s", c)
	}
	id := c.text("id")
	if j := s.deployment(t, id); j.text("status") != "Completed" {
		t.Fatalf("deployment: %s", j)
	}
	got := s.must(t, 200, "GET", "/api/v1/certificates/"+id, nil)
	if got.text("current_version.serial") != w.serial(t) || got.text("deployments.0.served_version_id") != got.text("current_version.id") {
		t.Fatalf("served %s, record %s", w.serial(t), got)
	}
	if _, ok := got.get("deployments.0.time_to_served_seconds").(float64); !ok {
		t.Errorf("no time to served: %s", got)
	}
	first, firstKey := got.text("current_version.serial"), got.text("current_version.spki_sha256")
	s.must(t, 202, "POST", "/api/v1/certificates/"+id+"/renew", nil)
	eventually(t, 30*time.Second, "the new version is served", func() bool { return w.serial(t) != first })
	eventually(t, 10*time.Second, "the record says so", func() bool {
		got = s.must(t, 200, "GET", "/api/v1/certificates/"+id, nil)
		return got.text("deployments.0.served_version_id") == got.text("current_version.id") && got.text("current_version.serial") == w.serial(t)
	})
	if got.text("current_version.spki_sha256") == firstKey {
		t.Error("the renewal reused the key")
	}
}

func TestAServerHeldKeyReachesTheAgentSealed(t *testing.T) {
	t.Parallel()
	s, db := house(t, "CERTCTL_POLL_INTERVAL=1s")
	w := startNginx(t)
	a := agentOn(t, s, s.base)
	target := s.nginxTarget(t, "web", w, a.id, nil)
	profile := s.must(t, 201, "POST", "/api/v1/profiles", object{"name": "held", "key_algorithms": []string{"ecdsa-p256"}, "max_ttl": "30d", "key_custody": "server"}).text("id")
	c := s.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{"www.example.test"}, "target_ids": []string{target}, "profile_id": profile})
	if c.text("key_custody") != "server" {
		t.Fatalf("custody: %s", c)
	}
	if j := s.deployment(t, c.text("id")); j.text("status") != "Completed" {
		t.Fatalf("deployment: %s", j)
	}
	got := s.must(t, 200, "GET", "/api/v1/certificates/"+c.text("id"), nil)
	if got.text("current_version.serial") != w.serial(t) {
		t.Fatalf("served %s, record %s", w.serial(t), got)
	}
	key, err := os.ReadFile(filepath.Join(w.dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	p, _ := pem.Decode(key)
	var dump string
	if err := db.QueryRow(t.Context(), `SELECT string_agg(j::text, ' ') FROM jobs j`).Scan(&dump); err != nil {
		t.Fatal(err)
	}
	if p == nil || strings.Contains(dump, fmt.Sprintf("%x", p.Bytes)) || strings.Contains(dump, "PRIVATE KEY") || strings.Contains(s.log.String(), "PRIVATE KEY") {
		t.Error("key material in the job table or the log")
	}
}

func TestAFailingCommandLeavesEverythingAsItWas(t *testing.T) {
	t.Parallel()
	s, _ := house(t, "CERTCTL_POLL_INTERVAL=1s")
	w := startNginx(t)
	a := agentOn(t, s, s.base)
	for name, broken := range map[string]object{
		"validate": {"validate_command": "echo validate says no >&2; exit 3", "reload_command": w.command + " -s reload"},
		"reload":   {"validate_command": w.command + " -t -q", "reload_command": "echo reload says no >&2; exit 4"},
	} {
		broken["cert_path"], broken["key_path"] = filepath.Join(w.dir, "cert.pem"), filepath.Join(w.dir, "key.pem")
		before, serial := w.state(t), w.serial(t)
		target := s.nginxTarget(t, name, w, a.id, object{"config": broken})
		c := s.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{"www.example.test"}, "target_ids": []string{target}}).text("id")
		j := s.deployment(t, c)
		if j.text("status") != "Failed" || !strings.Contains(j.text("last_error"), name+" says no") {
			t.Errorf("%s: the job does not say what the command said: %s", name, j)
		}
		if after := w.state(t); after != before {
			t.Errorf("%s: the files changed:\n%s\n%s", name, before, after)
		}
		if w.serial(t) != serial {
			t.Errorf("%s: another certificate is served", name)
		}
		got := s.must(t, 200, "GET", "/api/v1/certificates/"+c, nil)
		if !strings.Contains(got.text("deployments.0.last_error"), name+" says no") || got.get("deployments.0.served_version_id") != nil {
			t.Errorf("%s: the deployment's state: %s", name, got)
		}
		t.Logf("%s: before and after\n%s", name, before)
	}
}

func TestWhatTheHostForbidsIsRefusedAndReported(t *testing.T) {
	t.Parallel()
	s, _ := house(t, "CERTCTL_POLL_INTERVAL=1s")
	w := startNginx(t)
	before := w.state(t)
	a := agentOn(t, s, s.base, "CERTCTL_AGENT_COMMANDS=none")
	target := s.nginxTarget(t, "web", w, a.id, nil)
	c := s.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{"www.example.test"}, "target_ids": []string{target}}).text("id")
	if j := s.deployment(t, c); j.text("status") != "Failed" || !strings.Contains(j.text("last_error"), "allows no commands") || w.state(t) != before {
		t.Errorf("a forbidden command: %s", j)
	}
}

func TestTheWorkerProbesWhatAnAgentInstalled(t *testing.T) {
	t.Parallel()
	s, _ := house(t, "CERTCTL_POLL_INTERVAL=1s")
	w := startNginx(t)
	a := agentOn(t, s, s.base)
	target := s.nginxTarget(t, "web", w, a.id, object{"verify": object{"address": w.address, "server_name": "www.example.test", "from": "worker"}})
	c := s.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{"www.example.test"}, "target_ids": []string{target}}).text("id")
	if j := s.deployment(t, c); j.text("status") != "Completed" {
		t.Fatalf("deployment: %s", j)
	}
	got := s.must(t, 200, "GET", "/api/v1/certificates/"+c, nil)
	if got.text("deployments.0.served_version_id") != got.text("current_version.id") || w.serial(t) != got.text("current_version.serial") {
		t.Errorf("not seen served: %s", got)
	}
	if j := s.must(t, 202, "POST", "/api/v1/targets/"+target+"/test", object{}); s.job(t, j.text("id")).text("status") != "Completed" {
		t.Errorf("the target's test: %s", s.job(t, j.text("id")))
	}
}

func TestTheWorkerDeploysToATargetWithoutAnAgent(t *testing.T) {
	t.Parallel()
	s, _ := house(t)
	w := startNginx(t)
	target := s.nginxTarget(t, "web", w, "", object{"agent_id": nil})
	c := s.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{"www.example.test"}, "target_ids": []string{target}})
	if c.text("key_custody") != "server" {
		t.Fatalf("custody: %s", c)
	}
	if j := s.deployment(t, c.text("id")); j.text("status") != "Completed" {
		t.Fatalf("deployment: %s", j)
	}
	if got := s.must(t, 200, "GET", "/api/v1/certificates/"+c.text("id"), nil); got.text("current_version.serial") != w.serial(t) {
		t.Errorf("served %s, record %s", w.serial(t), got)
	}
}

func TestAnAgentEnrollsOverTheServersOwnTLS(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	s, _ := house(t, "CERTCTL_POLL_INTERVAL=1s", "CERTCTL_TLS_LISTEN="+address)
	a := agentOn(t, s, "https://"+address)
	s.must(t, 200, "POST", "/api/v1/agents/"+a.id+"/retire", nil)
	if got := s.must(t, 200, "GET", "/api/v1/agents/"+a.id, nil); got.text("status") != "retired" {
		t.Errorf("retired: %s", got)
	}
	// A server with another root is refused by the token's pin before anything is sent.
	token := s.must(t, 201, "POST", "/api/v1/agents/tokens", object{}).text("token")
	cert, key := selfSignedPair(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	heard := make(chan []byte, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		b := make([]byte, 64)
		n, _ := c.Read(b)
		heard <- b[:n]
	}()
	code, _, log := run(t, []string{"CERTCTL_URL=https://" + ln.Addr().String(), "CERTCTL_ENROLL_TOKEN=" + token, "CERTCTL_AGENT_DIR=" + filepath.Join(folder(t), "a")}, program(t, "cmd/certctl-agent"), "run", "--once")
	if code == 0 {
		t.Errorf("the agent trusted a stranger: %s", log)
	}
	select {
	case b := <-heard:
		if bytes.Contains(b, []byte("POST")) {
			t.Errorf("the agent spoke to a stranger: %q", b)
		}
	case <-time.After(time.Second):
	}
}

// selfSignedPair is a self-signed certificate of nobody.
func selfSignedPair(t testing.TB) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: "127.0.0.1"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

func TestABackupComesBack(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	s := launch(t, dir)
	c := s.issued(t, object{"sans": []string{"www.example.test"}}).text("id")
	ca := s.authority(t, s.issuer(t))
	archive := filepath.Join(folder(t), "backup.tar")
	if code, out, log := run(t, []string{"CERTCTL_DATA_DIR=" + dir}, certctl(t), "backup", archive); code != 0 {
		t.Fatalf("backup: %d %s%s", code, out, log)
	}
	if info, err := os.Stat(archive); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the archive: %v %v", info, err)
	}
	key := s.key
	s.stop(t)
	fresh := folder(t)
	if code, out, log := run(t, []string{"CERTCTL_DATA_DIR=" + fresh}, certctl(t), "restore", archive); code != 0 {
		t.Fatalf("restore: %d %s%s", code, out, log)
	}
	again := launch(t, fresh)
	again.client = again.as(key)
	if got := again.authority(t, again.issuer(t)); !got.Equal(ca) {
		t.Error("another CA came back")
	}
	before := again.must(t, 200, "GET", "/api/v1/certificates/"+c, nil).text("current_version.serial")
	j := again.must(t, 202, "POST", "/api/v1/certificates/"+c+"/renew", nil)
	if got := again.job(t, j.text("id")); got.text("status") != "Completed" {
		t.Fatalf("the renewal after the restore: %s", got)
	}
	if after := again.must(t, 200, "GET", "/api/v1/certificates/"+c, nil).text("current_version.serial"); after == before {
		t.Error("not renewed")
	}
	if code, _, log := run(t, []string{"CERTCTL_DATA_DIR=" + fresh}, certctl(t), "restore", archive); code == 0 || !strings.Contains(log, "already") {
		t.Errorf("a second restore: %d %s", code, log)
	}
}
