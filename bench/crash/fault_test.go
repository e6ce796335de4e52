//go:build crashtest

package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	steps "certctl/shared/crash"
	"certctl/shared/pglocal"
)

// want asks for n certificates by the API; their jobs wait.
func (h *house) want(n int) {
	h.Helper()
	h.whileAPI(func() {
		next := make(chan int)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for i := range next {
					if status, _, raw, err := h.try("POST", "/api/v1/certificates", object{"sans": []string{fmt.Sprintf("n%d.example.com", i)}}, "Idempotency-Key", fmt.Sprint("n", i)); err != nil || status != 201 {
						h.Errorf("%d %s %v", status, raw, err)
					}
				}
			})
		}
		for i := range n {
			next <- i
		}
		close(next)
		all.Wait()
	})
}

func (h *house) left() int {
	return h.number(`SELECT count(*) FROM jobs WHERE status NOT IN ` + ended)
}

// whole demands that n wanted certificates were issued, each once, and that nothing else is broken.
func (h *house) whole(n int) {
	h.Helper()
	for what, sql := range map[string]string{
		"issuances Completed":     `SELECT count(*) FROM jobs WHERE type = 'Issuance' AND status = 'Completed'`,
		"versions":                `SELECT count(*) FROM versions`,
		"certificates issued":     `SELECT count(DISTINCT certificate_id) FROM versions`,
		"serials":                 `SELECT count(DISTINCT serial) FROM versions`,
		"keys":                    `SELECT count(DISTINCT spki_sha256) FROM versions`,
		"events of an issuance":   `SELECT count(*) FROM audit_events WHERE action = 'certificate.issued'`,
		"certificates in record":  `SELECT count(*) FROM certificates`,
		"jobs that did not fail ": `SELECT count(*) FROM jobs WHERE type = 'Issuance' AND status <> 'Failed'`,
	} {
		if got := h.number(sql); got != n {
			h.Errorf("%d %s, want %d", got, what, n)
		}
	}
	for _, b := range h.judge() {
		h.Error(b)
	}
}

// Three workers are killed at random moments, fifty times, until 500 jobs have ended.
func TestFiftyKillsLoseAndDoubleNothing(t *testing.T) {
	const n, rounds = 500, 50
	h := newHouse(t)
	h.want(n)
	start := time.Now()
	kills, hit := 0, 0
	for round := range rounds {
		var workers [3]*process
		before := h.number(`SELECT count(*) FROM job_attempts`)
		for i := range workers {
			workers[i] = begin(t, h.env(), "certctl", "work", "--once")
		}
		// On a loaded machine a worker takes long to its first claim: a round that kills before it proves nothing.
		for end := time.Now().Add(10 * time.Second); h.left() > 0 && time.Now().Before(end) && h.number(`SELECT count(*) FROM job_attempts`) == before; {
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
		for _, w := range workers {
			w.kill()
			if !w.cmd.ProcessState.Success() {
				kills++
			}
		}
		if round%10 == 9 {
			time.Sleep(2 * time.Second) // leases expire
		}
	}
	hit = h.number(`SELECT count(*) FROM job_attempts WHERE ended_at IS NULL OR outcome = 'expired'`)
	t.Logf("%d kills in %d rounds met %d running jobs; %d jobs were left", kills, rounds, hit, h.left())
	h.await(func() bool { h.once("work"); return h.left() == 0 })
	t.Logf("%d jobs ended after %s, at most %d attempts for one", n, time.Since(start).Round(time.Millisecond), h.number(`SELECT max(attempts) FROM jobs`))
	if hit == 0 {
		t.Error("no kill met a running job: the test proves nothing")
	}
	h.whole(n)
}

// A client whose answers are lost repeats with the same key; the doorbell and the sweep come twice.
func TestRepeatedRequestsAndEventsDoNothingTwice(t *testing.T) {
	t.Parallel()
	const n = 30
	h := newHouse(t)
	p := h.api()
	for i := range n {
		body := object{"sans": []string{fmt.Sprintf("r%d.example.com", i)}}
		key := []string{"Idempotency-Key", fmt.Sprint("r", i)}
		h.halfAsk("/api/v1/certificates", fmt.Sprintf(`{"sans":["r%d.example.com"]}`, i), key[1])
		ids := make(chan any, 3)
		for range 3 { // all at once, while the first may still be under way
			go func() { _, o, _, _ := h.try("POST", "/api/v1/certificates", body, key...); ids <- o["id"] }()
		}
		if a, b, c := <-ids, <-ids, <-ids; a == nil || a != b || b != c {
			t.Errorf("one key answered %v, %v and %v", a, b, c)
		}
	}
	twice(h, "work", "work") // a doubled doorbell
	h.exec(`UPDATE certificates SET renew_at = now()`)
	twice(h, "sweep", "sweep")
	if got := h.number(`SELECT count(*) FROM jobs WHERE type = 'Renewal'`); got != n {
		t.Errorf("two sweeps made %d renewals of %d certificates", got, n)
	}
	twice(h, "work", "sweep")
	twice(h, "work", "work")
	p.stop(h)
	if got := h.number(`SELECT count(*) FROM versions`); got != 2*n {
		t.Errorf("%d versions, want %d", got, 2*n)
	}
	if got := h.number(`SELECT count(*) FROM certificates`); got != n {
		t.Errorf("%d certificates, want %d", got, n)
	}
	for _, b := range h.judge() {
		t.Error(b)
	}
}

// halfAsk sends a whole request and goes away without waiting for the answer.
func (h *house) halfAsk(path, body, key string) {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", h.port))
	if err != nil {
		h.Fatal(err)
	}
	req, err := http.NewRequest("POST", "http://127.0.0.1"+path, strings.NewReader(body))
	if err != nil {
		h.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+h.key)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", key)
	_ = req.Write(c)
	time.Sleep(time.Duration(rand.IntN(12)) * time.Millisecond)
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

func twice(h *house, what ...string) {
	h.Helper()
	var all []*process
	for _, w := range what {
		all = append(all, begin(h, h.env(), "certctl", w, "--once"))
	}
	for i, p := range all {
		if _, code := p.wait(h, time.Minute); code != 0 {
			h.Errorf("%s ended with %d", what[i], code)
		}
	}
}

// Between a worker and its database lies a way on which everything goes wrong.
func TestABrokenWayToTheDatabaseLosesNothing(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(p *proxy){
		"latency": func(p *proxy) { p.latency.Store(int64(15 * time.Millisecond)) },
		"reset": func(p *proxy) {
			for range 12 {
				time.Sleep(150 * time.Millisecond)
				p.reset()
			}
		},
		"lost commit answer": func(p *proxy) { p.cuts.Store(25) },
		"black hole": func(p *proxy) {
			time.Sleep(300 * time.Millisecond)
			p.hole.Store(true)
			time.Sleep(4 * time.Second) // longer than a lease
			p.hole.Store(false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const n = 60
			h := newHouse(t)
			h.want(n)
			straight, way := h.url, door(t, h.url)
			h.url = way.url
			go harm(way)
			start := time.Now()
			for range 4 {
				h.once("work")
			}
			if name == "lost commit answer" && way.cut.Load() == 0 {
				t.Error("no commit's answer was cut off: the test proves nothing")
			}
			way.latency.Store(0)
			h.await(func() bool { h.once("sweep"); h.once("work"); return h.left() == 0 })
			t.Logf("%d jobs in %s; %d commits unanswered; leases that expired: %d, retried: %d", n, time.Since(start).Round(time.Millisecond), way.cut.Load(),
				h.number(`SELECT count(*) FROM job_attempts WHERE outcome = 'expired'`), h.number(`SELECT count(*) FROM job_attempts WHERE outcome = 'retried'`))
			h.url = straight
			h.whole(n)
		})
	}
}

// A request whose commit's answer was cut off is repeated with the same key and finds its own effect.
func TestALostCommitAnswerIsFoundByItsKey(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	straight, way := h.url, door(t, h.url)
	h.url = way.url
	p := h.api()
	const n = 10
	lost := 0
	for i := range n {
		way.cuts.Store(1)
		body, key := object{"sans": []string{fmt.Sprintf("l%d.example.com", i)}}, fmt.Sprint("l", i)
		status, o, raw, err := h.try("POST", "/api/v1/certificates", body, "Idempotency-Key", key)
		if err != nil {
			t.Fatal(err)
		}
		if status == 503 {
			lost++
		} else {
			t.Errorf("%d %s, want 503", status, raw)
		}
		if o["retryable"] != true {
			t.Errorf("the problem does not say that it may be tried again: %s", raw)
		}
		way.cuts.Store(0)
		if again := h.call("POST", "/api/v1/certificates", body, "Idempotency-Key", key); again["id"] == nil {
			t.Errorf("the repeated request answered %v", again)
		}
	}
	p.stop(h)
	h.url = straight
	t.Logf("%d of %d answers were lost", lost, n)
	h.await(func() bool { h.once("work"); return h.left() == 0 })
	h.whole(n)
}

// Postgres is killed and starts again, three times, under three workers.
func TestAKilledPostgresLosesNothing(t *testing.T) {
	const n = 300
	dir, err := os.MkdirTemp("", "crash-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil { // as root, Postgres runs as another account
		t.Fatal(err)
	}
	pg := postgres(t, dir)
	h := at(t, pg.URL)
	h.serve().stop(h)
	h.readKey()
	h.want(n)
	stop := make(chan struct{})
	var loops sync.WaitGroup
	for range 3 {
		loops.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					<-begin(h, h.env(), "certctl", "work", "--once").ended
					time.Sleep(100 * time.Millisecond)
				}
			}
		})
	}
	start := time.Now()
	for range 3 {
		time.Sleep(600 * time.Millisecond)
		killPostmaster(t, dir)
		<-pg.Done()
		_ = pg.Stop()
		time.Sleep(300 * time.Millisecond)
		pg = postgres(t, dir)
	}
	h.await(func() bool {
		var left int
		err := h.db.QueryRow(context.Background(), `SELECT count(*) FROM jobs WHERE status NOT IN `+ended).Scan(&left)
		return err == nil && left == 0
	})
	close(stop)
	loops.Wait()
	t.Logf("3 kills, %d jobs ended after %s; leases that expired: %d, retried: %d", n, time.Since(start).Round(time.Millisecond),
		h.number(`SELECT count(*) FROM job_attempts WHERE outcome = 'expired'`), h.number(`SELECT count(*) FROM job_attempts WHERE outcome = 'retried'`))
	h.whole(n)
}

// postgres starts a durable server on a folder; it ends with the test.
func postgres(t *testing.T, dir string) *pglocal.Server {
	t.Helper()
	pg, err := pglocal.Start(context.Background(), pglocal.Options{Dir: dir, Bin: os.Getenv("CERTCTL_POSTGRES_BIN")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pg.Stop() })
	return pg
}

func killPostmaster(t *testing.T, dir string) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "pg*", "data", "postmaster.pid"))
	if len(files) != 1 {
		t.Fatalf("%v", files)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		t.Fatal(err)
	}
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A worker freezes until its leases have passed to another one, and comes back: it may not touch what is not its own any more.
func TestAFrozenWorkerChangesNothingLater(t *testing.T) {
	t.Parallel()
	const n = 4
	h := newHouse(t)
	h.want(n)
	straight, way := h.url, door(t, h.url)
	way.latency.Store(int64(20 * time.Millisecond)) // a job takes long enough to freeze in its middle
	h.url = way.url
	frozen := begin(t, h.env(), "certctl", "work", "--once")
	h.url = straight
	h.await(func() bool {
		return h.number(`SELECT count(*) FROM jobs WHERE status = 'Running' AND checkpoint <> '{}'`) == n
	})
	if err := frozen.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2200 * time.Millisecond)
	if !h.once("work", steps.Variable+"="+string(steps.Claim)+":after") {
		t.Fatal("the second worker did not die with the leases in hand")
	}
	const held = `SELECT count(*) FROM jobs WHERE status = 'Running' AND lease_no = 2`
	if got := h.number(held); got != n {
		t.Fatalf("the second worker holds %d leases, want %d", got, n)
	}
	if err := frozen.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	frozen.wait(t, time.Minute)
	if got := h.number(held); got != n {
		t.Errorf("the frozen worker ended %d jobs of another lease", n-got)
	}
	if !strings.Contains(frozen.out.String(), "the lease was lost") {
		t.Errorf("the frozen worker does not say that it lost its leases: %s", frozen.out)
	}
	h.await(func() bool { h.once("work"); return h.left() == 0 })
	h.whole(n)
}
