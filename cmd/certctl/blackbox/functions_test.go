package blackbox

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"certctl/shared/boot/lambdatest"
	"certctl/shared/dbtest"
)

const tickToken = "a-token-of-the-tests-0123456789"

// function starts one of functions/* as a container platform does: on $PORT.
func function(t testing.TB, name string, env []string) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	s := &server{env: env, client: client{base: fmt.Sprintf("http://127.0.0.1:%d", port)}}
	start := time.Now()
	s.process = begin(t, append(env, fmt.Sprintf("PORT=%d", port), "CERTCTL_TICK_TOKEN="+tickToken), program(t, "functions/"+name))
	eventually(t, 20*time.Second, name+" listening", func() bool {
		if !s.running() {
			t.Fatalf("%s ended:\n%s", name, s.log)
		}
		a, err := s.try("GET", "/health", nil)
		return err == nil && a.status == 200
	})
	s.took = time.Since(start)
	return s
}

func masterKeyOf(env []string) string {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "CERTCTL_MASTER_KEY="); ok {
			return v
		}
	}
	return ""
}

// nightHouse is a database with a stopped server on it, so that only the functions under test work.
func nightHouse(t testing.TB) (*server, []string) {
	t.Helper()
	s, _ := house(t)
	env := s.beside()
	return s, env
}

func TestFunctionsServeAsContainers(t *testing.T) {
	t.Parallel()
	s, env := nightHouse(t)
	h := issuedHouse(t, s)
	agent, credential := s.enroll(t, "container-agent")
	if code := s.stop(t); code != 0 {
		t.Fatalf("serve ended with %d", code)
	}
	fs := map[string]*server{}
	for _, name := range []string{"api", "sweep", "worker", "responder", "agentpoll"} {
		f := function(t, name, env)
		fs[name] = f
		f.must(t, 200, "GET", "/health", nil)
		if a := f.must(t, 200, "GET", "/ready", nil); a.text("checks.database") != "ok" {
			t.Errorf("%s: %s", name, a)
		}
		if a := f.must(t, 404, "GET", "/nothing", nil); !a.problem() {
			t.Errorf("%s: %s", name, a)
		}
		if a := f.must(t, 405, "DELETE", "/health", nil); !a.problem() || a.header.Get("Allow") == "" {
			t.Errorf("%s: %s", name, a)
		}
	}
	api := fs["api"].as(s.key)
	made := api.must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{"container.example.org"}})
	if got := api.must(t, 200, "GET", "/api/v1/jobs/"+made.text("open_job_id"), nil); got.text("status") != "Pending" {
		t.Errorf("before any worker: %s", got)
	}
	for _, name := range []string{"sweep", "worker"} {
		path := map[string]string{"sweep": "/events/sweep", "worker": "/events/work"}[name]
		if a := fs[name].must(t, 401, "POST", "/", nil); !a.problem() || a.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s without a token: %s", name, a)
		}
		fs[name].as("another-token-0123456789").must(t, 401, "POST", path, nil)
		fs[name].as(tickToken).must(t, 405, "GET", path, nil)
		fs[name].as(tickToken).must(t, 200, "POST", path, nil)
		event := object{"specversion": "1.0", "id": "1", "source": "/cron", "type": "tick"}
		fs[name].as(tickToken).must(t, 200, "POST", "/", event, "Content-Type", "application/cloudevents+json")
	}
	if got := api.must(t, 200, "GET", "/api/v1/jobs/"+made.text("open_job_id"), nil); got.text("status") != "Completed" {
		t.Errorf("after the worker's tick: %s", got)
	}
	if a := fs["responder"].askOCSP(t, h.iss, request{ca: h.ca}.der(t, h.cert.SerialNumber)); status(t, a, h.cert.SerialNumber, h.ca).Status != 0 {
		t.Errorf("responder: %s", a)
	}
	if a := fs["agentpoll"].as(credential).must(t, 200, "GET", "/api/v1/agents/"+agent+"/work", nil); a.get("jobs") == nil {
		t.Errorf("agentpoll: %s", a)
	}
	fs["agentpoll"].as(s.key).must(t, 401, "GET", "/api/v1/agents/"+agent+"/work", nil)
	for name, f := range fs {
		if code := f.stop(t); code != 0 {
			t.Errorf("%s ended with %d after SIGTERM", name, code)
		}
	}
}

func TestFunctionsAreNotReadyOnADatabaseWithoutTheSchema(t *testing.T) {
	t.Parallel()
	url := dbtest.EmptyURL(t)
	for _, name := range []string{"api", "sweep", "worker", "responder", "agentpoll"} {
		f := function(t, name, []string{"CERTCTL_DATABASE_URL=" + url, "CERTCTL_MASTER_KEY=" + masterKey(), "CERTCTL_PUBLIC_URL=http://127.0.0.1:1", "CERTCTL_PKI_URL=http://127.0.0.1:1"})
		if a := f.must(t, 503, "GET", "/ready", nil); !a.problem() || !strings.Contains(a.text("checks.database"), "certctl migrate") {
			t.Errorf("%s: %s", name, a)
		}
	}
	if n := number(t, database(t, url), `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`); n != 0 {
		t.Errorf("functions made %d tables", n)
	}
}

func TestSweepAndWorkerRunOnce(t *testing.T) {
	t.Parallel()
	s, env := nightHouse(t)
	s.stop(t)
	api := function(t, "api", env)
	job := api.as(s.key).must(t, 201, "POST", "/api/v1/certificates", object{"sans": []string{"once.example.org"}}).text("open_job_id")
	for _, name := range []string{"sweep", "worker"} {
		code, out, log := run(t, env, program(t, "functions/"+name), "--once")
		var report map[string]any
		if err := json.Unmarshal([]byte(out), &report); code != 0 || err != nil {
			t.Fatalf("%s --once: exit %d, %q, %s", name, code, out, log)
		}
		if done, _ := report["done"].(float64); name == "worker" && done < 1 {
			t.Errorf("worker --once did %v", report)
		}
	}
	if got := api.as(s.key).must(t, 200, "GET", "/api/v1/jobs/"+job, nil); got.text("status") != "Completed" {
		t.Errorf("the job is %s", got)
	}
}

// event is one of the golden Lambda events, changed for the request that is meant.
func event(t testing.TB, name string, change func(e map[string]any)) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "shared", "boot", "testdata", "events", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var e map[string]any
	if err := json.Unmarshal(b, &e); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(e)
	}
	b, err = json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// get makes an HTTP event a GET of a path with a credential.
func get(path, credential string) func(map[string]any) {
	return func(e map[string]any) {
		e["rawPath"], e["rawQueryString"], e["body"], e["isBase64Encoded"], e["cookies"] = path, "", "", false, nil
		e["headers"] = map[string]any{"host": "f.example.org", "authorization": "Bearer " + credential}
		delete(e, "queryStringParameters")
		http := e["requestContext"].(map[string]any)["http"].(map[string]any)
		http["method"], http["path"] = "GET", path
	}
}

func TestEachFunctionAnswersItsLambdaEvent(t *testing.T) {
	t.Parallel()
	s, env := nightHouse(t)
	h := issuedHouse(t, s)
	agent, credential := s.enroll(t, "lambda-agent")
	s.stop(t)
	for name, c := range map[string]struct {
		event []byte
		want  string // in the answer
	}{
		"api":       {event(t, "http-api", get("/api/v1/auth/me", s.key)), `\"role\":\"admin\"`},
		"sweep":     {event(t, "scheduler", nil), `"renewals":0`},
		"worker":    {event(t, "sqs", nil), `"batchItemFailures":[]`},
		"responder": {event(t, "cloudfront-function-url", get("/.well-known/pki/crl/"+h.iss, "")), "application/pkix-crl"},
		"agentpoll": {event(t, "function-url", get("/api/v1/agents/"+agent+"/work", credential)), `\"jobs\":[]`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(program(t, "functions/"+name))
			cmd.Env = clean(env...)
			r := lambdatest.Start(t, cmd)
			start := time.Now()
			res, err := r.Invoke(t.Context(), c.event, 20*time.Second)
			if err != nil || res.Error != nil || !strings.Contains(string(res.Body), c.want) {
				t.Errorf("%s %+v %v, want %s in it", res.Body, res.Error, err, c.want)
			}
			t.Logf("first answer after %s", time.Since(start).Round(time.Millisecond))
		})
	}
}
