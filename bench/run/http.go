package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"certctl/bench/fleet"
	"certctl/shared/agent"
	"certctl/shared/auth"
	"certctl/shared/db"
	"certctl/shared/id"
	"certctl/shared/lifecycle"
	"certctl/shared/pki"
	"certctl/shared/wire"

	"github.com/jackc/pgx/v5"
	"golang.org/x/crypto/ocsp"
)

// contender is one of several that take turns.
type contender struct {
	name        string
	shot        shot
	connections int
	cpu         func() time.Duration
}

// contest lets all contenders take turns. Each figure is a series: rate, cpu (of the server), db (CPU of Postgres), per answer.
func (b *bench) contest(all []contender) (rate, cpus, dbs series, err error) {
	rate, cpus, dbs = series{}, series{}, series{}
	d := pick(b, 4*time.Second, time.Second)
	for range b.rounds() {
		for _, c := range all {
			x, err := b.burst(c.shot, c.connections, d, c.cpu)
			if err != nil {
				return rate, cpus, dbs, fmt.Errorf("%s: %w", c.name, err)
			}
			rate.add(c.name, x.rate)
			cpus.add(c.name, x.micros())
			dbs.add(c.name, x.dbMicros())
		}
	}
	b.report.dump("answers/s", rate)
	b.report.dump("us", cpus)
	b.report.dump("Postgres us", dbs)
	return rate, cpus, dbs, nil
}

// oneCore is the environment of a server that is measured per core.
func oneCore(h *house) []string { return append(h.env(), "GOMAXPROCS=1") }

// signing is what one P-256 signature costs here and now.
func signing() (float64, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return 0, err
	}
	digest := sha256.Sum256(nil)
	var rounds []float64
	for range 5 {
		const n = 500
		used := cpu(os.Getpid())
		began := time.Now()
		for range n {
			if _, err := ecdsa.SignASN1(rand.Reader, key, digest[:]); err != nil {
				return 0, err
			}
		}
		_ = used
		rounds = append(rounds, float64(time.Since(began).Microseconds())/n)
	}
	return min(rounds[0], median(rounds)), nil
}

func (b *bench) ocsp(ctx context.Context) error {
	h, err := b.house(ctx, "ocsp")
	if err != nil {
		return err
	}
	defer h.close(ctx)
	n := pick(b, 100_000, 10_000)
	if err := h.fleet(ctx, fleet.Size{Certificates: n, Revoked: n / 100}); err != nil {
		return err
	}
	issuer, requests, err := h.ocspRequests(ctx, n)
	if err != nil {
		return err
	}
	p, _, err := b.serve("responder", oneCore(h))
	if err != nil {
		return err
	}
	defer p.stop()
	path := "/.well-known/pki/ocsp/" + issuer.String()
	post := shot{addr: p.addr, want: 200, raw: func(i int64) []byte {
		return request("POST", path, requests[int(i)%len(requests)], []string{"Content-Type: application/ocsp-request"})
	}}
	byGet := shot{addr: p.addr, want: 200, raw: func(i int64) []byte {
		return request("GET", path+"/"+url.PathEscape(base64.StdEncoding.EncodeToString(requests[int(i)%len(requests)])), nil, nil)
	}}
	freshPost, freshHello := post, get(p.addr, "/health", "Connection: close")
	freshPost.fresh, freshHello.fresh = true, true
	crl := get(p.addr, "/.well-known/pki/crl/"+issuer.String())
	all := []contender{{"hello", get(p.addr, "/health"), 16, p.cpu}, {"POST", post, 16, p.cpu}, {"GET", byGet, 16, p.cpu}, {"hello, new connection", freshHello, 4, p.cpu},
		{"POST, new connection", freshPost, 4, p.cpu}, {"CRL", crl, 4, p.cpu}}
	tag, err := etag(p.addr, "/.well-known/pki/crl/"+issuer.String())
	if err != nil {
		return err
	}
	unchanged := get(p.addr, "/.well-known/pki/crl/"+issuer.String(), "If-None-Match: "+tag)
	unchanged.want = 304
	all = append(all, contender{"CRL unchanged", unchanged, 16, p.cpu})
	peer, err := b.opensslOCSP(ctx, n)
	if err != nil {
		return err
	}
	defer peer.stop()
	all = append(all, contender{"openssl, new connection", peer.shot, 1, peer.cpu})
	rate, cpus, dbs, err := b.contest(all)
	if err != nil {
		return err
	}
	sign, err := signing()
	if err != nil {
		return err
	}
	b.ocspFigures(rate, cpus, dbs, sign)
	return nil
}

func (b *bench) ocspFigures(rate, cpus, dbs series, sign float64) {
	show := func(k string) string {
		return fmt.Sprintf("%.0f/s, %.0f us CPU", rate.median(k), cpus.median(k))
	}
	const asked = "each answer asks the database (SPEC overrules stored answers): the query's client side costs as much as the signature"
	for _, k := range []string{"POST", "GET"} {
		b.report.add(figure{what: "OCSP " + k + ", and Postgres " + fmt.Sprintf("%.0f us", dbs.median(k)), value: show(k), against: fmt.Sprintf("one signature %.0f us", sign), ratio: sign / cpus.median(k), goal: atLeast(0.45), why: asked})
		b.report.add(figure{what: "OCSP " + k, value: show(k), against: "hello " + show("hello"), ratio: cpus.median("hello") / cpus.median(k)})
	}
	b.report.add(figure{what: "OCSP POST, CPU", value: show("POST"), against: "openssl " + show("openssl, new connection"), ratio: cpus.median("POST") / cpus.median("openssl, new connection"), goal: atMost(0.75), why: asked})
	b.report.add(figure{what: "OCSP POST, new connection, CPU", value: show("POST, new connection"), against: "openssl " + show("openssl, new connection"), ratio: cpus.median("POST, new connection") / cpus.median("openssl, new connection"), goal: atMost(1.2), why: asked})
	b.report.add(figure{what: "CRL unchanged (304), CPU", value: show("CRL unchanged"), against: "hello " + show("hello"), ratio: cpus.median("CRL unchanged") / cpus.median("hello"), goal: atMost(1.4),
		why: "the current CRL is read from the database to know its tag; a CDN stands before it"})
	b.report.add(figure{what: "CRL in full", value: show("CRL"), against: "hello " + show("hello"), ratio: cpus.median("CRL") / cpus.median("hello")})
}

func (h *house) ocspRequests(ctx context.Context, n int) (issuer id.Issuer, requests [][]byte, err error) {
	var der []byte
	if err := h.pool.QueryRow(ctx, `SELECT issuer_id, certificate FROM ca_generations`).Scan(&issuer, &der); err != nil {
		return issuer, nil, err
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return issuer, nil, err
	}
	hashes := pki.HashIssuer(ca)
	for i := range min(n, 2000) {
		r := ocsp.Request{HashAlgorithm: crypto.SHA1, IssuerNameHash: hashes.NameSHA1[:], IssuerKeyHash: hashes.KeySHA1[:], SerialNumber: new(big.Int).SetBytes(fleetSerial(i * (n / min(n, 2000))))}
		der, err := r.Marshal()
		if err != nil {
			return issuer, nil, err
		}
		requests = append(requests, der)
	}
	return issuer, requests, nil
}

// peer is a server that is not ours.
type peer struct {
	program
	shot shot
}

// opensslOCSP starts openssl's responder over an index of n certificates. It closes each connection and serves one at a time.
func (b *bench) opensslOCSP(ctx context.Context, n int) (*peer, error) {
	dir, err := b.opensslFiles(n)
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	c := exec.Command("openssl", "ocsp", "-index", "index.txt", "-port", port, "-rsigner", "ca.pem", "-rkey", "ca.key", "-CA", "ca.pem", "-ndays", "1", "-timeout", "5") // #nosec G204 -- a benchmark
	c.Dir = dir
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		return nil, err
	}
	p := &peer{program: program{cmd: c, addr: "127.0.0.1:" + port}}
	pem, err := os.ReadFile(filepath.Join(dir, "ca.pem")) // #nosec G304 -- ours
	if err != nil {
		return p, err
	}
	certs, err := pki.ParseBundle(pem)
	if err != nil {
		return p, err
	}
	hashes := pki.HashIssuer(certs[0])
	r := ocsp.Request{HashAlgorithm: crypto.SHA1, IssuerNameHash: hashes.NameSHA1[:], IssuerKeyHash: hashes.KeySHA1[:], SerialNumber: new(big.Int).SetBytes(fleetSerial(3))}
	der, err := r.Marshal()
	if err != nil {
		return p, err
	}
	raw := request("POST", "/", der, []string{"Content-Type: application/ocsp-request"})
	p.shot = shot{addr: p.addr, want: 200, fresh: true, raw: func(int64) []byte { return raw }}
	// A connection without a request would occupy it: it is asked until it answers.
	for range 100 {
		if err = shootOnce(p.shot); err == nil {
			return p, ctx.Err()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return p, fmt.Errorf("openssl ocsp does not answer: %w", err)
}

// poll measures an agent's empty poll.
func (b *bench) poll(ctx context.Context) error {
	h, err := b.house(ctx, "poll")
	if err != nil {
		return err
	}
	defer h.close(ctx)
	if err := h.fleet(ctx, fleet.Size{Certificates: 10_000}); err != nil {
		return err
	}
	agents, err := h.enroll(ctx, 100)
	if err != nil {
		return err
	}
	p, _, err := b.serve("agentpoll", oneCore(h))
	if err != nil {
		return err
	}
	defer p.stop()
	poll := shot{addr: p.addr, want: 200, raw: func(i int64) []byte {
		a := agents[int(i)%len(agents)]
		return request("GET", "/api/v1/agents/"+a.AgentID.String()+"/work", nil, []string{"Authorization: Bearer " + a.Credential, wire.RunHeader + ": run"})
	}}
	var statements [2]int64
	if err := h.transactions(ctx, &statements[0]); err != nil {
		return err
	}
	rate, cpus, dbs, err := b.contest([]contender{{"hello", get(p.addr, "/health"), 16, p.cpu}, {"poll", poll, 16, p.cpu}})
	if err != nil {
		return err
	}
	if err := b.createDatabase(ctx, "selects"); err != nil {
		return err
	}
	_, _ = b.pg.pgbench(ctx, "selects", "-i", "-s", "5", "-q")
	if err := b.pollStatements(ctx, h, agents, rate); err != nil {
		return err
	}
	b.report.dump("answers/s", rate)
	b.report.add(figure{what: "poll, the statement alone, 8 clients", value: fmt.Sprintf("%.0f/s", rate.median("statement")), against: fmt.Sprintf("pgbench -S %.0f/s", rate.median("pgbench -S")),
		ratio: rate.median("statement") / rate.median("pgbench -S"), goal: atLeast(0.75), why: "the statement authenticates, stamps the heartbeat and looks for work; its client is Go and pgbench's is C"})
	b.report.add(figure{what: fmt.Sprintf("poll over HTTP, and Postgres %.0f us", dbs.median("poll")), value: fmt.Sprintf("%.0f/s, %.0f us CPU", rate.median("poll"), cpus.median("poll")),
		against: fmt.Sprintf("hello %.0f/s, %.0f us CPU", rate.median("hello"), cpus.median("hello")), ratio: cpus.median("poll") / cpus.median("hello")})
	return nil
}

func (h *house) enroll(ctx context.Context, n int) (out []wire.Enrolled, err error) {
	ctx = auth.WithActor(ctx, auth.SystemActor("bench"))
	for i := range n {
		err := db.InTx(ctx, h.pool, func(tx pgx.Tx) error {
			_, token, err := agent.NewToken(ctx, tx, nil, time.Hour, nil)
			if err != nil {
				return err
			}
			e, err := lifecycle.Enroll(ctx, tx, wire.Enroll{Token: token, Name: fmt.Sprintf("host-%d", i), Hostname: "h", OS: "linux", Arch: "amd64", Version: "1"})
			out = append(out, e)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (h *house) transactions(ctx context.Context, n *int64) error {
	return h.pool.QueryRow(ctx, `SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()`).Scan(n)
}

// pollStatements runs the poll's statement without HTTP, in turns with pgbench's select.
func (b *bench) pollStatements(ctx context.Context, h *house, agents []wire.Enrolled, rate series) error {
	d := pick(b, 4*time.Second, 2*time.Second)
	for range b.rounds() {
		var n atomic.Int64
		var g sync.WaitGroup
		errs := make(chan error, 8)
		end := time.Now().Add(d)
		for range 8 {
			g.Go(func() {
				for time.Now().Before(end) {
					a := agents[int(n.Add(1))%len(agents)]
					if _, err := lifecycle.Work(ctx, h.pool, lifecycle.Poll{Credential: a.Credential, Path: a.AgentID, Run: "run", Idle: 5 * time.Minute}); err != nil {
						errs <- err
						return
					}
				}
			})
		}
		g.Wait()
		select {
		case err := <-errs:
			return err
		default:
		}
		rate.add("statement", float64(n.Load())/d.Seconds())
		tps, err := b.pg.pgbench(ctx, "selects", "-S", "-n", "-c", "8", "-j", "2", "-T", fmt.Sprint(int(d.Seconds())), "-M", "prepared")
		if err != nil {
			return err
		}
		rate.add("pgbench -S", tps)
	}
	return nil
}

// api measures a read and a write of the REST API.
func (b *bench) api(ctx context.Context) error {
	h, err := b.house(ctx, "api")
	if err != nil {
		return err
	}
	defer h.close(ctx)
	if err := h.fleet(ctx, fleet.Size{Certificates: 10_000}); err != nil {
		return err
	}
	p, _, err := b.serve("api", oneCore(h))
	if err != nil {
		return err
	}
	defer p.stop()
	var c id.Certificate
	if err := h.pool.QueryRow(ctx, `SELECT id FROM certificates WHERE archived_at IS NULL LIMIT 1`).Scan(&c); err != nil {
		return err
	}
	bearer := "Authorization: Bearer " + h.adm
	post := func(body string) shot {
		return shot{addr: p.addr, want: 201, raw: func(i int64) []byte {
			return request("POST", "/api/v1/certificates", fmt.Appendf(nil, body, time.Now().UnixNano(), i), []string{bearer, "Content-Type: application/json"})
		}}
	}
	rate, cpus, dbs, err := b.contest([]contender{{"hello", get(p.addr, "/health"), 16, p.cpu}, {"GET", get(p.addr, "/api/v1/certificates/"+c.String(), bearer), 16, p.cpu},
		{"list", get(p.addr, "/api/v1/certificates", bearer), 16, p.cpu}, {"POST", post(`{"sans":["x%d-%d.example.com"],"issue":false}`), 16, p.cpu},
		{"POST with its job", post(`{"sans":["y%d-%d.example.com"]}`), 16, p.cpu}})
	if err != nil {
		return err
	}
	for _, k := range []string{"GET", "list", "POST", "POST with its job"} {
		b.report.add(figure{what: fmt.Sprintf("%s /certificates, and Postgres %.0f us", k, dbs.median(k)), value: fmt.Sprintf("%.0f/s, %.0f us CPU", rate.median(k), cpus.median(k)),
			against: fmt.Sprintf("hello %.0f/s, %.0f us CPU", rate.median("hello"), cpus.median("hello")), ratio: cpus.median(k) / cpus.median("hello")})
	}
	return nil
}

// issue measures issuance as a whole: jobs of server custody through certctl work --once, stored and audited.
func (b *bench) issue(ctx context.Context) error {
	h, err := b.house(ctx, "issue")
	if err != nil {
		return err
	}
	defer h.close(ctx)
	n := pick(b, 1000, 200)
	figures := series{}
	for range b.rounds() {
		if err := h.order(ctx, n); err != nil {
			return err
		}
		used := b.pg.cpu()
		began := time.Now()
		c := exec.CommandContext(ctx, b.bins["certctl"], "work", "--once") // #nosec G204 -- built above
		c.Env = h.env()
		out, err := c.CombinedOutput()
		if err != nil {
			return fmt.Errorf("certctl work --once: %w: %s", err, out)
		}
		took := time.Since(began)
		figures.add("jobs/s", float64(n)/took.Seconds())
		figures.add("function us", float64((c.ProcessState.UserTime()+c.ProcessState.SystemTime()).Microseconds())/float64(n))
		figures.add("Postgres us", float64((b.pg.cpu()-used).Microseconds())/float64(n))
		limit, err := signLimit(300)
		if err != nil {
			return err
		}
		figures.add("limit us", limit)
	}
	var done int
	if err := h.pool.QueryRow(ctx, `SELECT count(*) FROM versions v JOIN audit_events a ON a.action = 'certificate.issued' AND a.details->>'version_id' = type_id('ver', v.id)`).Scan(&done); err != nil || done != n*b.rounds() {
		return fmt.Errorf("%d of %d versions are stored and audited (%v)", done, n*b.rounds(), err)
	}
	b.report.dump("issuance", figures)
	whole, limit := figures.median("function us")+figures.median("Postgres us"), figures.median("limit us")
	b.report.add(figure{what: "issuance, stored and audited", value: fmt.Sprintf("%.0f jobs/s; %.0f us CPU + %.0f us Postgres each", figures.median("jobs/s"), figures.median("function us"), figures.median("Postgres us")),
		against: fmt.Sprintf("key + request + x509.CreateCertificate %.0f us", limit), ratio: limit / whole, goal: atLeast(0.5),
		why: "a job is claimed, keeps key, request and TBS before it signs (four transactions), and lints a draft signed beforehand"})
	return nil
}

func (h *house) order(ctx context.Context, n int) error {
	ctx = auth.WithActor(ctx, auth.SystemActor("bench"))
	return db.InTx(ctx, h.pool, func(tx pgx.Tx) error {
		for i := range n {
			if _, err := lifecycle.Request(ctx, tx, lifecycle.Wanted{SANs: []string{fmt.Sprintf("h%d-%d.example.com", time.Now().UnixNano(), i)}, Issue: true}); err != nil {
				return err
			}
		}
		return nil
	})
}

// signLimit is what issuing costs without product: key, request with its check, certificate. CPU time of this process per piece.
func signLimit(n int) (float64, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return 0, err
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "limit"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	names, err := pki.ParseNames("", []string{"limit.example.com"})
	if err != nil {
		return 0, err
	}
	used := cpu(os.Getpid())
	for range n {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return 0, err
		}
		der, err := pki.NewCSR(key, names)
		if err != nil {
			return 0, err
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			return 0, err
		}
		if err := csr.CheckSignature(); err != nil {
			return 0, err
		}
		t := &x509.Certificate{SerialNumber: pki.NewSerial(), DNSNames: csr.DNSNames, NotAfter: time.Now().Add(time.Hour)}
		if _, err := x509.CreateCertificate(rand.Reader, t, ca, csr.PublicKey, caKey); err != nil {
			return 0, err
		}
	}
	return float64((cpu(os.Getpid()) - used).Microseconds()) / float64(n), nil
}
