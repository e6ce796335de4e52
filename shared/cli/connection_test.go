package cli_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// seen is a server that notes the credentials that it is shown.
func seen(t *testing.T) (string, *[]string) {
	var got []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Get("Authorization"))
		_, _ = w.Write([]byte(`{"data":[]}`))
	}))
	t.Cleanup(s.Close)
	return s.URL, &got
}

func write(t *testing.T, path, content string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func config(t *testing.T, mode os.FileMode, content string) map[string]string {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "certctl", "config.yaml"), content, mode)
	return map[string]string{"XDG_CONFIG_HOME": dir, "HOME": dir}
}

func TestTheKeyComesFromTheNearestPlace(t *testing.T) {
	t.Parallel()
	url, got := seen(t)
	env := config(t, 0o600, fmt.Sprintf("current: a\ncontexts:\n- {name: a, url: %s, key: of-the-context}\n", url))
	dir := t.TempDir()
	with := func(more ...string) map[string]string {
		out := map[string]string{}
		for k, v := range env {
			out[k] = v
		}
		for i := 0; i < len(more); i += 2 {
			out[more[i]] = more[i+1]
		}
		return out
	}
	file := write(t, filepath.Join(dir, "k"), "of-the-file\n", 0o600)
	flag := write(t, filepath.Join(dir, "f"), "of-the-flag\n", 0o600)
	for want, c := range map[string]struct {
		env  map[string]string
		args []string
	}{
		"of-the-context":  {with(), nil},
		"of-the-file":     {with("CERTCTL_KEY_FILE", file), nil},
		"of-the-variable": {with("CERTCTL_KEY_FILE", file, "CERTCTL_KEY", "of-the-variable"), nil},
		"of-the-flag":     {with("CERTCTL_KEY", "of-the-variable"), []string{"--key-file", flag}},
	} {
		*got = nil
		code, _, errs := run(t, c.env, "", append([]string{"team", "list"}, c.args...)...)
		if code != 0 || len(*got) != 1 || (*got)[0] != "Bearer "+want {
			t.Errorf("want %s: exit %d, sent %q, %s", want, code, *got, errs)
		}
	}
}

func TestAContextsKeyIsNotSentToAnotherServer(t *testing.T) {
	t.Parallel()
	url, got := seen(t)
	env := config(t, 0o600, "current: a\ncontexts:\n- {name: a, url: https://certctl.example.com, key: of-the-context}\n")
	env["CERTCTL_DATA_DIR"] = t.TempDir()
	if code, _, errs := run(t, env, "", "team", "list", "--url", url); code != 0 {
		t.Fatal(errs)
	}
	if (*got)[0] != "" {
		t.Errorf("sent %q", *got)
	}
}

func TestThisHostsAdminKeyIsUsedWhenNothingIsConfigured(t *testing.T) {
	t.Parallel()
	url, got := seen(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "admin.key"), "of-the-folder\n", 0o600)
	env := map[string]string{"XDG_CONFIG_HOME": t.TempDir(), "CERTCTL_DATA_DIR": dir, "CERTCTL_URL": url}
	if code, _, errs := run(t, env, "", "team", "list"); code != 0 || (*got)[0] != "Bearer of-the-folder" {
		t.Errorf("exit %d, sent %q, %s", code, *got, errs)
	}
	_, out, _ := run(t, map[string]string{"XDG_CONFIG_HOME": t.TempDir(), "CERTCTL_DATA_DIR": dir}, "", "open", "--print")
	if out != "http://127.0.0.1:8080\n" {
		t.Errorf("the default is %q", out)
	}
}

func TestNoKeyGoesOverPlainHTTPToAnotherHost(t *testing.T) {
	t.Parallel()
	env := map[string]string{"CERTCTL_KEY": "k", "XDG_CONFIG_HOME": t.TempDir()}
	for url, want := range map[string]int{"http://certctl.invalid": 4, "HTTP://certctl.invalid": 4, "http://192.0.2.1": 4, "http://localhost.certctl.invalid": 4, "http://127.0.0.1:1": 7, "http://[::1]:1": 7} {
		if code, _, errs := run(t, env, "", "team", "list", "--url", url, "--timeout", "20s"); code != want {
			t.Errorf("%s: exit %d, want %d: %s", url, code, want, errs)
		}
	}
	if code, _, errs := run(t, env, "", "team", "list", "--url", "http://certctl.invalid", "--insecure-http"); code != 7 {
		t.Errorf("--insecure-http: exit %d: %s", code, errs)
	}
}

func TestAnOpenConfigFileIsWarnedAbout(t *testing.T) {
	t.Parallel()
	url, _ := seen(t)
	for mode, warned := range map[os.FileMode]bool{0o600: false, 0o644: true} {
		_, _, errs := run(t, config(t, mode, fmt.Sprintf("current: a\ncontexts:\n- {name: a, url: %s, key: k}\n", url)), "", "team", "list")
		if strings.Contains(errs, "chmod 600") != warned {
			t.Errorf("mode %o: %q", mode, errs)
		}
	}
}

func TestAnotherURLDropsAContextsKey(t *testing.T) {
	t.Parallel()
	env := config(t, 0o600, "current: a\ncontexts:\n- {name: a, url: https://one.example.com, key: old-key}\n")
	if code, _, errs := run(t, env, "", "context", "set", "a", "--url", "https://two.example.com"); code != 0 {
		t.Fatal(errs)
	}
	b, err := os.ReadFile(filepath.Join(env["XDG_CONFIG_HOME"], "certctl", "config.yaml"))
	if err != nil || strings.Contains(string(b), "old-key") || !strings.Contains(string(b), "two.example.com") {
		t.Errorf("%v: %s", err, b)
	}
}

// answering is a server that gives one answer to everything.
func answering(t *testing.T, status int, media, body string) map[string]string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", media)
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(s.Close)
	return map[string]string{"CERTCTL_URL": s.URL, "CERTCTL_KEY": "k", "XDG_CONFIG_HOME": t.TempDir()}
}

func TestExitCodesFollowTheAnswer(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]int{400: 2, 401: 4, 403: 4, 404: 3, 405: 1, 409: 6, 413: 1, 500: 1, 501: 1, 301: 1} {
		body, _ := json.Marshal(map[string]any{"type": "https://certctl.dev/problems/x", "title": "T", "status": status, "detail": "It is so.", "instance": "req-7"})
		code, out, errs := run(t, answering(t, status, "application/problem+json", string(body)), "", "cert", "renew", "crt_01h455vb4pex5vsknk084sn02q")
		if code != want || out != "" || !strings.Contains(errs, "certctl: It is so.\n  request: req-7\n") {
			t.Errorf("%d: exit %d, want %d; stdout %q, stderr %q", status, code, want, out, errs)
		}
	}
}

func TestAFaultIsShownWithItsFieldsAndTheWayOut(t *testing.T) {
	t.Parallel()
	_, _, errs := run(t, answering(t, 409, "application/problem+json", `{"type":"https://certctl.dev/problems/open-job","title":"T","status":409,"detail":"The certificate has an open job.","instance":"req-7","open_job_id":"job_1","errors":[{"field":"sans[0]","detail":"is bad\u001b[31m"}]}`),
		"", "cert", "renew", "crt_01h455vb4pex5vsknk084sn02q")
	want := "certctl: The certificate has an open job.\n  sans[0]: is bad?[31m\n  request: req-7\n  try: certctl job wait job_1, or certctl job cancel job_1\n"
	if errs != want {
		t.Errorf("got  %q\nwant %q", errs, want)
	}
}

func TestAnAnswerThatIsNotOursIsNamedAsSuch(t *testing.T) {
	t.Parallel()
	code, _, errs := run(t, answering(t, 200, "text/html", "<html>"), "", "team", "list")
	if code != 1 || !strings.Contains(errs, "is this a certctl server?") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestANameOfSeveralIsRefused(t *testing.T) {
	t.Parallel()
	h := newHouse()
	env := map[string]string{"CERTCTL_URL": h.serve(t).URL, "CERTCTL_KEY": adminKey, "XDG_CONFIG_HOME": t.TempDir()}
	for range 2 {
		if code, _, errs := run(t, env, "", "cert", "create", "same.example.com", "--no-issue"); code != 0 {
			t.Fatal(errs)
		}
	}
	code, _, errs := run(t, env, "", "cert", "archive", "same.example.com", "--yes")
	if code != 2 || !strings.Contains(errs, "2 certificates are called") || len(h.certs) != 2 {
		t.Errorf("exit %d, %d left: %s", code, len(h.certs), errs)
	}
}

func TestAFailedJobAndADownServerHaveCodesOfTheirOwn(t *testing.T) {
	t.Parallel()
	h := newHouse()
	env := map[string]string{"CERTCTL_URL": h.serve(t).URL, "CERTCTL_KEY": adminKey, "XDG_CONFIG_HOME": t.TempDir()}
	code, out, errs := run(t, env, "", "cert", "create", "fail.example.com", "--wait")
	if code != 9 || out != "" || !strings.Contains(errs, "The CA refused the name.") || !strings.Contains(errs, "certctl cert explain crt_") {
		t.Errorf("exit %d, stdout %q: %s", code, out, errs)
	}
	_, out, _ = run(t, env, "", "cert", "explain", "fail.example.com")
	if !strings.Contains(out, "Issuing it failed once; job_") || !strings.Contains(out, "The CA refused the name.") {
		t.Errorf("explain: %s", out)
	}
	h.down = 2
	if code, _, errs := run(t, env, "", "team", "create", "web"); code != 0 || len(h.teams) != 1 {
		t.Errorf("two refusals must be survived: exit %d, %d teams: %s", code, len(h.teams), errs)
	}
	h.down = 100
	if code, _, errs := run(t, env, "", "team", "list"); code != 7 {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestSeveralThingsAreAllTriedAndTheFirstFailureDecides(t *testing.T) {
	t.Parallel()
	h := newHouse()
	env := map[string]string{"CERTCTL_URL": h.serve(t).URL, "CERTCTL_KEY": adminKey, "XDG_CONFIG_HOME": t.TempDir()}
	for _, n := range []string{"a.example.com", "b.example.com"} {
		run(t, env, "", "cert", "create", n, "--wait")
	}
	code, out, errs := run(t, env, "", "cert", "renew", "a.example.com", "nothing.example.com", "b.example.com", "a.example.com", "-o", "name")
	if code != 3 || strings.Count(out, "job_") != 2 || !strings.Contains(errs, "not all of 4 succeeded") {
		t.Errorf("exit %d, stdout %q: %s", code, out, errs)
	}
}

func TestCompletionKnowsLiveNamesAndIDs(t *testing.T) {
	t.Parallel()
	h := newHouse()
	h.furnish("")
	env := map[string]string{"CERTCTL_URL": h.serve(t).URL, "CERTCTL_KEY": adminKey, "XDG_CONFIG_HOME": t.TempDir()}
	for _, c := range []struct{ words, want string }{
		{"cert get ww", "www.example.com\tcrt_"}, {"cert get crt_", "crt_"}, {"job get ", exampleJob + "\tIssuance Pending"},
		{"cert create x --issuer lo", "local\tiss_"}, {"cert list --status exp", "expired"}, {"cert list --team ", "web\tteam_"}, {"cert revoke x --reason super", "superseded"},
	} {
		args := append([]string{"__complete"}, strings.Split(c.words, " ")...)
		if _, out, errs := run(t, env, "", args...); !strings.Contains(out, c.want) {
			t.Errorf("%q: %q %s", c.words, out, errs)
		}
	}
}
