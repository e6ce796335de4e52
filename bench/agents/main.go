// Command agents plays many agents against a running server: each enrolls, polls, makes keys, posts requests, picks
// certificates up and reports them deployed. It counts what arrived: nothing may be lost and nothing may come twice. Then it
// polls idle and says how many transactions the database needed per poll.
//
//	bin/certctl serve &
//	go run ./bench/agents -url http://127.0.0.1:8080 -key-file DIR/admin.key -database "$(…)" -agents 100 -each 10
package main

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"certctl/shared/id"
	"certctl/shared/pki"
	"certctl/shared/wire"

	"github.com/jackc/pgx/v5"
)

var (
	url      = flag.String("url", "http://127.0.0.1:8080", "the server")
	keyFile  = flag.String("key-file", "", "file with an admin key")
	database = flag.String("database", "", "the database's URL, to count transactions; optional")
	agents   = flag.Int("agents", 100, "how many agents")
	each     = flag.Int("each", 10, "certificates, with a target each, per agent")
	within   = flag.Duration("within", 5*time.Minute, "give up after this time")
)

func main() {
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), *within)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "agents:", err)
		os.Exit(1)
	}
}

type api struct{ bearer, run string }

var client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 256}}

// call sends JSON and reads JSON. An answer other than 2xx is an error with the problem document.
func (a api) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, *url+path, body)
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	if a.bearer != "" {
		r.Header.Set("Authorization", "Bearer "+a.bearer)
	}
	if a.run != "" {
		r.Header.Set(wire.RunHeader, a.run)
	}
	res, err := client.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %d %s", method, path, res.StatusCode, b)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// tally is what all agents saw together.
type tally struct {
	mu       sync.Mutex
	leases   map[string]int // job and lease → how often it was handed out as new work
	deployed map[id.Job]int
	polls    int
}

func run(ctx context.Context) error {
	key, err := os.ReadFile(*keyFile)
	if err != nil {
		return err
	}
	admin := api{bearer: strings.TrimSpace(string(key))}
	seen := &tally{leases: map[string]int{}, deployed: map[id.Job]int{}}
	fleet := make([]*agent, *agents)
	if err := every(fleet, func(i int) (err error) {
		fleet[i], err = enroll(ctx, admin, i, seen)
		return err
	}); err != nil {
		return err
	}
	began := time.Now()
	if err := every(fleet, func(i int) error { return fleet[i].order(ctx, admin) }); err != nil {
		return err
	}
	fmt.Printf("%d agents enrolled, %d certificates ordered in %.1f s\n", len(fleet), *agents**each, time.Since(began).Seconds())
	if err := every(fleet, func(i int) error { return fleet[i].work(ctx) }); err != nil {
		return err
	}
	took := time.Since(began)
	if err := seen.judge(ctx, admin, took); err != nil {
		return err
	}
	return idle(ctx, fleet)
}

// every runs f for all agents at once and returns the first error.
func every(fleet []*agent, f func(i int) error) error {
	errs := make(chan error, len(fleet))
	for i := range fleet {
		go func() { errs <- f(i) }()
	}
	var all []error
	for range fleet {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

type agent struct {
	api
	id   id.Agent
	name string
	seen *tally
	keys map[id.Job]crypto.Signer
	done int
}

func enroll(ctx context.Context, admin api, i int, seen *tally) (*agent, error) {
	var token struct {
		Token string `json:"token"`
	}
	if err := admin.call(ctx, "POST", "/api/v1/agents/tokens", struct{}{}, &token); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("bench-%d-%d", os.Getpid(), i)
	var e wire.Enrolled
	if err := (api{}).call(ctx, "POST", "/api/v1/agents/enroll", wire.Enroll{Token: token.Token, Name: name, Hostname: name, OS: "linux", Arch: "amd64", Version: "bench"}, &e); err != nil {
		return nil, err
	}
	return &agent{api: api{bearer: e.Credential, run: name}, id: e.AgentID, name: name, seen: seen, keys: map[id.Job]crypto.Signer{}}, nil
}

// order makes the agent's targets and certificates.
func (a *agent) order(ctx context.Context, admin api) error {
	for i := range *each {
		var t struct {
			ID id.Target `json:"id"`
		}
		name := fmt.Sprintf("%s-%d", a.name, i)
		if err := admin.call(ctx, "POST", "/api/v1/targets", map[string]any{"name": name, "type": "files", "agent_id": a.id,
			"config": map[string]any{"cert_path": "/srv/" + name + ".pem", "key_path": "/srv/" + name + ".key"}}, &t); err != nil {
			return err
		}
		if err := admin.call(ctx, "POST", "/api/v1/certificates", map[string]any{"sans": []string{name + ".bench.test"}, "target_ids": []id.Target{t.ID}}, nil); err != nil {
			return err
		}
	}
	return nil
}

// work polls until all of the agent's certificates are deployed.
func (a *agent) work(ctx context.Context) error {
	for a.done < *each {
		w, err := a.poll(ctx)
		if err != nil {
			return err
		}
		for _, j := range w.Jobs {
			if err := a.do(ctx, j); err != nil {
				return err
			}
		}
		if len(w.Jobs) == 0 {
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s: %d of %d deployed: %w", a.name, a.done, *each, ctx.Err())
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	return nil
}

func (a *agent) poll(ctx context.Context) (w wire.Work, err error) {
	err = a.call(ctx, "GET", "/api/v1/agents/"+a.id.String()+"/work", nil, &w)
	a.seen.mu.Lock()
	a.seen.polls++
	a.seen.mu.Unlock()
	return w, err
}

func (a *agent) do(ctx context.Context, j wire.Job) error {
	base := "/api/v1/agents/" + a.id.String()
	if j.CSR != nil {
		return a.request(ctx, base, j)
	}
	a.seen.mu.Lock()
	a.seen.leases[fmt.Sprintf("%s/%d", j.ID, j.Lease)]++
	a.seen.mu.Unlock()
	var v wire.Pickup
	if err := a.call(ctx, "GET", base+"/certificates/"+j.CertificateID.String()+"?version_id="+j.Target.VersionID.String(), nil, &v); err != nil {
		return err
	}
	report := wire.Report{Lease: j.Lease, Status: "Completed", Receipt: &wire.Receipt{VersionID: v.VersionID, Changed: true, ServedFingerprint: v.FingerprintSHA256, Steps: []wire.Step{}}}
	if err := a.call(ctx, "POST", base+"/jobs/"+j.ID.String()+"/status", report, nil); err != nil {
		return err
	}
	a.seen.mu.Lock()
	a.seen.deployed[j.ID]++
	a.seen.mu.Unlock()
	a.done++
	return nil
}

func (a *agent) request(ctx context.Context, base string, j wire.Job) error {
	key, ok := a.keys[j.ID]
	if !ok {
		var err error
		if key, err = pki.Generate(pki.KeyAlgorithm(j.CSR.KeyAlgorithm)); err != nil {
			return err
		}
		a.keys[j.ID] = key
	}
	names, err := pki.ParseNames(j.CSR.CommonName, j.CSR.SANs)
	if err != nil {
		return err
	}
	der, err := pki.NewCSR(key, names)
	if err != nil {
		return err
	}
	return a.call(ctx, "POST", base+"/csr", wire.PostCSR{JobID: j.ID, CSRPEM: string(pki.EncodeCSR(der))}, nil)
}

// judge compares what the agents did with what the server says.
func (t *tally) judge(ctx context.Context, admin api, took time.Duration) error {
	want := *agents * *each
	twice := 0
	for _, n := range t.leases {
		if n > 1 {
			twice++
		}
	}
	for _, n := range t.deployed {
		if n > 1 {
			twice++
		}
	}
	var stats struct {
		TimeToServed struct {
			Count      int     `json:"count"`
			P50Seconds float64 `json:"p50_seconds"`
			P95Seconds float64 `json:"p95_seconds"`
		} `json:"time_to_served"`
	}
	if err := admin.call(ctx, "GET", "/api/v1/stats/summary", nil, &stats); err != nil {
		return err
	}
	fmt.Printf("deployments %d of %d, twice %d, polls %d, in %.1f s; time to served p50 %.2f s, p95 %.2f s\n", len(t.deployed), want, twice, t.polls, took.Seconds(),
		stats.TimeToServed.P50Seconds, stats.TimeToServed.P95Seconds)
	if len(t.deployed) != want || twice > 0 {
		return errors.New("deployments were lost or came twice")
	}
	return nil
}

// idle polls with nothing to do and counts the database's transactions: each statement outside a transaction is one.
func idle(ctx context.Context, fleet []*agent) error {
	time.Sleep(2 * time.Second)
	before, err := transactions(ctx)
	if err != nil {
		return err
	}
	const rounds = 20
	var mu sync.Mutex
	var times []time.Duration
	began := time.Now()
	err = every(fleet, func(i int) error {
		for range rounds {
			start := time.Now()
			if _, err := fleet[i].poll(ctx); err != nil {
				return err
			}
			mu.Lock()
			times = append(times, time.Since(start))
			mu.Unlock()
		}
		return nil
	})
	if err != nil {
		return err
	}
	after, err := transactions(ctx)
	if err != nil {
		return err
	}
	sort.Slice(times, func(i, k int) bool { return times[i] < times[k] })
	fmt.Printf("idle polls %d in %.1f s, p50 %v, p95 %v", len(times), time.Since(began).Seconds(), times[len(times)/2], times[len(times)*95/100])
	if *database != "" {
		fmt.Printf("; transactions per poll %.2f", float64(after-before)/float64(len(times)))
	}
	fmt.Println()
	return nil
}

func transactions(ctx context.Context) (n int64, err error) {
	if *database == "" {
		return 0, nil
	}
	c, err := pgx.Connect(ctx, *database)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close(ctx) }()
	time.Sleep(11 * time.Second) // an idle backend reports its counts after ten seconds at the latest
	err = c.QueryRow(ctx, `SELECT sum(xact_commit + xact_rollback) FROM pg_stat_database`).Scan(&n)
	return n, err
}
