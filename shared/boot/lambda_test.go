package boot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"certctl/shared/boot/lambdatest"
)

func invoke(t *testing.T, r *lambdatest.Runtime, event []byte, timeout time.Duration) lambdatest.Result {
	t.Helper()
	res, err := r.Invoke(t.Context(), event, timeout)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

type httpAnswer struct {
	StatusCode      int
	Headers         map[string]string
	Body            string
	IsBase64Encoded bool
}

type echoed struct {
	Method, Path, Escaped, Host, Etag, From, Request string
	Query                                            map[string][]string
	Cookies                                          int
	Body                                             []byte
	PortOK                                           bool  `json:"port_ok"`
	LeftMs                                           int64 `json:"left_ms"`
}

func TestServeAnswersLambdaHTTPEvents(t *testing.T) {
	t.Parallel()
	r := lambdatest.Start(t, program(t, "serve"))
	want := map[string]echoed{
		"http-api":                {Method: "POST", Path: "/api/v1/certificates", Escaped: "/api/v1/certificates", Etag: `"a,b"`, Cookies: 2, From: "192.0.2.10:0", Host: "abcdefghij.execute-api.eu-central-1.amazonaws.com", Body: []byte(`{"name":"a.example"}`)},
		"function-url":            {Method: "GET", Path: "/agents/agt_01/work/x", Escaped: "/agents/agt_01/work%2Fx", From: "[2001:db8::7]:0", Host: "abcdefghijklmnopqrstuvwxyz012345.lambda-url.eu-central-1.on.aws"},
		"cloudfront-function-url": {Method: "POST", Path: "/.well-known/pki/ocsp/iss_01/MEs//A+b==", Escaped: "/.well-known/pki/ocsp/iss_01/MEs//A%2Bb%3D%3D", From: "198.51.100.9:0", Host: "abcdefghijklmnopqrstuvwxyz012345.lambda-url.eu-central-1.on.aws", Body: []byte{0x30, 0x82, 0xff, 0, 1}},
	}
	for name, w := range want {
		res := invoke(t, r, golden(t, name), 10*time.Second)
		if res.Error != nil {
			t.Fatalf("%s: %+v", name, res.Error)
		}
		var a httpAnswer
		var got echoed
		if json.Unmarshal(res.Body, &a) != nil || a.StatusCode != 200 || a.IsBase64Encoded || json.Unmarshal([]byte(a.Body), &got) != nil {
			t.Fatalf("%s: %s", name, res.Body)
		}
		if got.Method != w.Method || got.Path != w.Path || got.Escaped != w.Escaped || got.Host != w.Host || got.Etag != w.Etag || got.From != w.From ||
			got.Cookies != w.Cookies || !bytes.Equal(got.Body, w.Body) || !got.PortOK {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, w)
		}
		if got.Request != res.ID {
			t.Errorf("%s: request id %q, invocation %q", name, got.Request, res.ID)
		}
		if got.LeftMs > 9600 || got.LeftMs < 8000 {
			t.Errorf("%s: %d ms left of 10 s less the reserve", name, got.LeftMs)
		}
	}
}

func TestServeRefusesForeignEventsAndLivesOn(t *testing.T) {
	t.Parallel()
	r := lambdatest.Start(t, program(t, "serve"))
	for name := range ticks {
		if res := invoke(t, r, golden(t, name), 5*time.Second); res.Error == nil || !strings.Contains(res.Error.Message, "not an HTTP event") {
			t.Errorf("%s: answered %s, error %+v", name, res.Body, res.Error)
		}
	}
	panicking := bytes.ReplaceAll(golden(t, "http-api"), []byte("/api/v1/certificates"), []byte("/panic"))
	var a httpAnswer
	if res := invoke(t, r, panicking, 5*time.Second); json.Unmarshal(res.Body, &a) != nil || a.StatusCode != 500 || strings.Contains(a.Body, "boom") {
		t.Errorf("panic: %s %+v", res.Body, res.Error)
	}
	if res := invoke(t, r, golden(t, "function-url"), 5*time.Second); res.Error != nil {
		t.Errorf("after the panic: %+v", res.Error)
	}
}

func TestTickAnswersLambdaTriggers(t *testing.T) {
	t.Parallel()
	r := lambdatest.Start(t, program(t, "tick"))
	for name, shape := range ticks {
		res := invoke(t, r, golden(t, name), 10*time.Second)
		if res.Error != nil {
			t.Fatalf("%s: %+v", name, res.Error)
		}
		if shape == shapeSQS {
			if string(res.Body) != `{"batchItemFailures":[]}` {
				t.Errorf("SQS: %s", res.Body)
			}
			continue
		}
		var report struct {
			Run     int
			LeftMs  int64 `json:"left_ms"`
			Request string
		}
		if json.Unmarshal(res.Body, &report) != nil || report.Run == 0 || report.Request != res.ID || report.LeftMs > 8000 || report.LeftMs < 6000 {
			t.Errorf("%s: %s", name, res.Body)
		}
	}
	for _, name := range foreign {
		if res := invoke(t, r, golden(t, name), 5*time.Second); res.Error == nil || !strings.Contains(res.Error.Message, "does not answer to such an event") {
			t.Errorf("%s: answered %s, error %+v", name, res.Body, res.Error)
		}
	}
}

func TestATickThatFailsIsAFunctionError(t *testing.T) {
	t.Parallel()
	for mode, text := range map[string]string{"fail": "the database is away", "panic": "the tick panicked"} {
		r := lambdatest.Start(t, program(t, "tick", "BOOT_TEST_TICK="+mode))
		for _, name := range []string{"sqs", "scheduler"} { // twice: the instance must live on
			if res := invoke(t, r, golden(t, name), 5*time.Second); res.Error == nil || !strings.Contains(res.Error.Message, text) {
				t.Errorf("%s, %s: answered %s, error %+v", mode, name, res.Body, res.Error)
			}
		}
	}
}

func TestATickEndsBeforeItsDeadline(t *testing.T) {
	t.Parallel()
	r := lambdatest.Start(t, program(t, "tick", "BOOT_TEST_TICK=wait"))
	start := time.Now()
	res := invoke(t, r, golden(t, "direct"), 2*time.Second)
	if took := time.Since(start); res.Error != nil || took > 1900*time.Millisecond {
		t.Errorf("took %s of 2 s: %s %+v", took, res.Body, res.Error)
	}
}

func TestAFunctionEndsAtSIGTERMAndAnswersFirst(t *testing.T) {
	t.Parallel()
	cmd := program(t, "tick", "BOOT_TEST_TICK=wait")
	r := lambdatest.Start(t, cmd)
	answer := make(chan lambdatest.Result, 1)
	go func() {
		res, err := r.Invoke(t.Context(), []byte("{}"), 30*time.Second)
		if err != nil {
			t.Error(err)
		}
		answer <- res
	}()
	time.Sleep(500 * time.Millisecond)
	stopChild(t, cmd)
	if res := <-answer; res.Error != nil || len(res.Body) == 0 {
		t.Errorf("%s %+v", res.Body, res.Error)
	}
	select {
	case <-r.Exited():
	case <-time.After(5 * time.Second):
		t.Error("the process goes on")
	}
}

func stopChild(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

func TestAFunctionIsReadySoon(t *testing.T) {
	r := lambdatest.Start(t, program(t, "serve"))
	start := time.Now()
	invoke(t, r, golden(t, "function-url"), 5*time.Second)
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("first answer after %s", took)
	}
}

// Package init runs at every cold start. The bound is for a loaded machine; an idle one needs a hundredth.
func TestBootIsLightToInitialise(t *testing.T) {
	out, _ := program(t, "serve", "GODEBUG=inittrace=1", "CERTCTL_POOL_SIZE=wrong").CombinedOutput() // ends with a configuration error
	seen := false
	for line := range strings.Lines(string(out)) {
		var name string
		var at, took float64
		if _, err := fmt.Sscanf(line, "init %s @%f ms, %f ms clock", &name, &at, &took); err != nil || !strings.HasPrefix(name, "certctl/shared/boot") {
			continue
		}
		seen = true
		if took > 1 {
			t.Errorf("%s", line)
		}
	}
	if !seen {
		t.Errorf("no trace: %s", out)
	}
}
