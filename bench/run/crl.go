package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"certctl/bench/fleet"
	"certctl/shared/issuer/localca"
	"certctl/shared/pki"

	"github.com/jackc/pgx/v5"
)

// measured is what a child process tells: memory is only comparable between processes that did one thing.
type measured struct {
	MS    float64 `json:"ms"`
	Bytes int64   `json:"bytes"`
	Peak  int64   `json:"peak"`
}

// crl measures one signed CRL: the product's writer, the standard library, openssl, the hash alone, and the product's job
// from the database.
func (b *bench) crl(ctx context.Context) error {
	sizes := pick(b, []int{1000, 10_000, 100_000, 1_000_000}, []int{1000, 100_000})
	for _, n := range sizes {
		ms, peaks := series{}, series{}
		for range b.rounds() {
			for _, kind := range []string{"stream", "sha", "std", "openssl"} {
				m, err := b.crlOnce(ctx, kind, n)
				if err != nil {
					return err
				}
				ms.add(kind, m.MS)
				peaks.add(kind, float64(m.Peak))
			}
		}
		b.report.dump(fmt.Sprintf("%d entries, ms", n), ms)
		b.report.dump(fmt.Sprintf("%d entries, peak", n), peaks)
		b.crlFigures(n, ms, peaks)
	}
	return b.publish(ctx, sizes[len(sizes)-1])
}

func (b *bench) crlFigures(n int, ms, peaks series) {
	show := func(kind string) string {
		return fmt.Sprintf("%.1f ms, %s", ms.median(kind), mega(int64(peaks.median(kind))))
	}
	name := func(what string) string { return fmt.Sprintf("CRL of %d entries %s", n, what) }
	var faster, hash, small goal
	if n == 1_000_000 {
		faster, hash, small = atLeast(20), atLeast(0.25), atMost(1)
	}
	b.report.add(figure{what: name("as x509.CreateRevocationList"), value: show("stream"), against: show("std"), ratio: ms.median("std") / ms.median("stream"), goal: faster})
	b.report.add(figure{what: name("as openssl ca -gencrl"), value: show("stream"), against: show("openssl"), ratio: ms.median("openssl") / ms.median("stream")})
	b.report.add(figure{what: name("as SHA-256 of its bytes"), value: show("stream"), against: show("sha"), ratio: ms.median("sha") / ms.median("stream"), goal: hash,
		why: "two passes over the entries: the length of the signature stands before them"})
	b.report.add(figure{what: name("peak memory"), value: mega(int64(peaks.median("stream"))), against: "32 MB", ratio: peaks.median("stream") / (32 << 20), goal: small})
}

func (b *bench) crlOnce(ctx context.Context, kind string, n int) (measured, error) {
	if kind == "openssl" {
		return b.opensslCRL(ctx, n)
	}
	return b.child(ctx, "crl", kind, strconv.Itoa(n))
}

// child runs this program again for one measurement.
func (b *bench) child(ctx context.Context, args ...string) (m measured, err error) {
	self, err := os.Executable()
	if err != nil {
		return m, err
	}
	c := exec.CommandContext(ctx, self, append([]string{"child"}, args...)...) // #nosec G204 -- ourselves
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		return m, fmt.Errorf("child %s: %w", args[1], err)
	}
	return m, json.Unmarshal(out, &m)
}

func child(args []string) {
	m, err := childRun(args)
	m.Peak = peak(os.Getpid()) // a parent's rusage would count what the fork began with
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(m)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
}

func childRun(args []string) (measured, error) {
	if args[0] == "publish" {
		return childPublish(args[1], args[2])
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return measured{}, err
	}
	ca, key, err := localca.NewRoot(localca.Authority{Subject: pkix.Name{CommonName: "bench"}, TTL: time.Hour}, time.Now())
	if err != nil {
		return measured{}, err
	}
	switch args[1] {
	case "stream":
		return streamCRL(ca, key, n)
	case "std":
		return standardCRL(ca, key, n)
	case "sha":
		return hashOnly(n)
	}
	return measured{}, errors.New("no such kind")
}

// entry is a CRL entry as the database keeps them; the serial is patched into it.
func entry() ([]byte, error) {
	serial := new(big.Int).SetBytes(bytes.Repeat([]byte{0x11}, 16))
	return pki.EncodeCRLEntry(serial, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), pki.Unspecified)
}

func entries(n int) (iter.Seq2[[]byte, error], int64, error) {
	e, err := entry()
	if err != nil {
		return nil, 0, err
	}
	return func(yield func([]byte, error) bool) {
		for i := range n {
			e[12], e[13], e[14] = byte(i>>16), byte(i>>8), byte(i) // #nosec G115 -- the low octets of the serial
			if !yield(e, nil) {
				return
			}
		}
	}, int64(n) * int64(len(e)), nil
}

func streamCRL(ca *x509.Certificate, key crypto.Signer, n int) (m measured, err error) {
	all, size, err := entries(n)
	if err != nil {
		return m, err
	}
	var c counter
	began := time.Now()
	err = pki.WriteCRL(&c, pki.CRLParams{Issuer: ca.RawSubject, AKI: ca.SubjectKeyId, Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, size, all, key)
	return measured{MS: time.Since(began).Seconds() * 1000, Bytes: c.n}, err
}

func standardCRL(ca *x509.Certificate, key crypto.Signer, n int) (m measured, err error) {
	list := make([]x509.RevocationListEntry, n)
	for i := range list {
		s := bytes.Repeat([]byte{0x11}, 16)
		s[8], s[9], s[10] = byte(i>>16), byte(i>>8), byte(i) // #nosec G115 -- as above
		list[i] = x509.RevocationListEntry{SerialNumber: new(big.Int).SetBytes(s), RevocationTime: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	}
	began := time.Now()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour), RevokedCertificateEntries: list}, ca, key)
	return measured{MS: time.Since(began).Seconds() * 1000, Bytes: int64(len(der))}, err
}

func hashOnly(n int) (measured, error) {
	e, err := entry()
	if err != nil {
		return measured{}, err
	}
	block := make([]byte, 1<<20)
	size := int64(n) * int64(len(e))
	began := time.Now()
	h := sha256.New()
	for left := size; left > 0; left -= int64(len(block)) {
		h.Write(block[:min(left, int64(len(block)))])
	}
	h.Sum(nil)
	return measured{MS: time.Since(began).Seconds() * 1000, Bytes: size}, nil
}

const opensslConfig = `[ca]
default_ca = bench
[bench]
database = index.txt
crlnumber = crlnumber
certificate = ca.pem
private_key = ca.key
default_md = sha256
default_crl_days = 1
`

// opensslFiles makes a CA folder whose index has n revoked lines.
func (b *bench) opensslFiles(n int) (dir string, err error) {
	dir = filepath.Join(b.dir, fmt.Sprintf("openssl-%d", n))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.Mkdir(dir, 0o755); err != nil { // #nosec G301 -- thrown away
		return "", err
	}
	ca, key, err := localca.NewRoot(localca.Authority{Subject: pkix.Name{CommonName: "bench"}, TTL: 24 * time.Hour}, time.Now())
	if err != nil {
		return "", err
	}
	keyPEM, err := pki.MarshalKeyPEM(key)
	if err != nil {
		return "", err
	}
	var index bytes.Buffer
	for i := range n {
		fmt.Fprintf(&index, "R\t351231235959Z\t260102030405Z\t%s\tunknown\t/CN=svc-%d.example.com\n", serialText(i), i)
	}
	for name, content := range map[string][]byte{"ca.pem": pki.EncodeBundle(ca), "ca.key": keyPEM, "index.txt": index.Bytes(), "crlnumber": []byte("01\n"), "openssl.cnf": []byte(opensslConfig)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// serialText is the serial of certificate i of a fleet, as openssl's index has it.
func serialText(i int) string {
	s := fleetSerial(i)
	return fmt.Sprintf("%X", s)
}

func fleetSerial(i int) []byte {
	sum := sha256.Sum256([]byte("s" + strconv.Itoa(i)))
	s := sum[:16]
	s[0] = byte(1 + i%127) // #nosec G115 -- below 128
	return s
}

func (b *bench) opensslCRL(ctx context.Context, n int) (m measured, err error) {
	dir, err := b.opensslFiles(n)
	if err != nil {
		return m, err
	}
	c := exec.CommandContext(ctx, "openssl", "ca", "-config", "openssl.cnf", "-gencrl", "-out", "crl.pem")
	c.Dir = dir
	var said bytes.Buffer
	c.Stderr = &said
	began := time.Now()
	if err := c.Start(); err != nil {
		return m, err
	}
	ended := make(chan struct{})
	go func() {
		for {
			m.Peak = max(m.Peak, peak(c.Process.Pid))
			select {
			case <-ended:
				ended <- struct{}{}
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	err = c.Wait()
	m.MS = time.Since(began).Seconds() * 1000
	ended <- struct{}{}
	<-ended
	if err != nil {
		return m, fmt.Errorf("openssl ca -gencrl: %w: %.500s", err, said.String())
	}
	return m, nil
}

// publish measures the product's CRL job: read from Postgres, sign, check, store.
func (b *bench) publish(ctx context.Context, n int) error {
	h, err := b.house(ctx, "crl")
	if err != nil {
		return err
	}
	defer h.close(ctx)
	if err := h.fleet(ctx, fleet.Size{Certificates: n, Revoked: n}); err != nil {
		return err
	}
	ms, peaks := series{}, series{}
	for range b.rounds() {
		if _, err := h.pool.Exec(ctx, `INSERT INTO jobs (id, type, runner, status, priority, issuer_id, generation_id, crl_shard, requested_by, requested_role)
			SELECT uuid7(), 'CRL', 'worker', 'Pending', 10, g.issuer_id, g.id, 0, 'bench', 'system' FROM ca_generations g`); err != nil {
			return err
		}
		m, err := b.child(ctx, "publish", h.url, h.key.Encode())
		if err != nil {
			return err
		}
		ms.add("publish", m.MS)
		peaks.add("publish", float64(m.Peak))
		s, err := b.crlOnce(ctx, "stream", n)
		if err != nil {
			return err
		}
		ms.add("stream", s.MS)
	}
	var got int64
	if err := h.pool.QueryRow(ctx, `SELECT c.entries FROM crls c JOIN crl_state s USING (generation_id, shard) WHERE c.number = s.current_number`).Scan(&got); err != nil || got != int64(n) {
		return fmt.Errorf("the published CRL has %d entries instead of %d (%v)", got, n, err)
	}
	b.report.dump("CRL job, ms", ms)
	b.report.dump("CRL job, peak", peaks)
	b.report.add(figure{what: fmt.Sprintf("CRL job of %d entries, Postgres to published", n), value: fmt.Sprintf("%.0f ms", ms.median("publish")), against: fmt.Sprintf("writer alone %.0f ms", ms.median("stream")),
		ratio: ms.median("publish") / ms.median("stream"), goal: atMost(5), why: "the rows are read one by one through the driver, the CRL is walked over and verified before it is published, and stored as one row of 35 MB"})
	b.report.add(figure{what: "its peak memory", value: mega(int64(peaks.median("publish"))), against: "256 MB", ratio: peaks.median("publish") / (256 << 20), goal: atMost(1)})
	return nil
}

// fleet loads a fleet into the house.
func (h *house) fleet(ctx context.Context, s fleet.Size) error {
	c, err := pgx.Connect(ctx, h.url)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(ctx) }()
	return fleet.Load(ctx, c, s, func(step string, took time.Duration) {
		h.b.report.say(fmt.Sprintf("loaded %s of %d", step, s.Certificates), fmt.Sprintf("%.1f s", took.Seconds()))
	})
}
