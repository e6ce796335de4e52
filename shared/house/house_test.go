// Package house holds the rules of the house that no compiler knows: which way imports point, and how large programs may be.
package house

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func list(t *testing.T, args ...string) map[string]pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, args...)...)
	cmd.Dir = "../.."
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	all := map[string]pkg{}
	for d := json.NewDecoder(out); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return all
}

// layers, lowest first. A package may import lower layers, and of its own only what allowed names.
var layers = [][]string{
	{"fault", "id", "span", "page", "pki", "secret", "wire", "dial", "crash"},
	{"db", "pglocal", "pglocal/pgfetch", "dbtest", "migrate", "backup"},
	{"auth", "audit", "cert", "job", "revocation", "issuer", "issuer/issuertest", "issuer/localca", "issuer/localca/certlint", "target", "target/files", "target/nginx", "target/targettest", "deployment", "agent", "org"},
	{"lifecycle"},
	{"boot/config", "boot", "boot/lambdahttp", "boot/lambdatest", "endpoint/problem", "endpoint", "responder", "agentrun", "client", "enrollment"},
	{"api/openapi", "api", "agentapi", "cli"},
}

// allowed are imports within a layer: a plug-in imports its parent, everybody may know the actor and write the trail.
var allowed = map[string][]string{
	"page": {"fault"}, "pki": {"fault"}, "secret": {"fault", "pki"}, "wire": {"id"}, "dial": {"fault"},
	"pglocal/pgfetch": {"pglocal"}, "dbtest": {"db", "pglocal", "pglocal/pgfetch", "migrate"}, "migrate": {"db"},
	"audit": {"auth"}, "job": {"auth"}, "agent": {"auth"},
	"issuer/issuertest": {"issuer"}, "issuer/localca": {"issuer"}, "issuer/localca/certlint": {},
	"target/files": {"target"}, "target/nginx": {"target"}, "target/targettest": {"target"},
	"boot": {"boot/config", "boot/lambdahttp", "endpoint/problem"}, "boot/lambdahttp": {"endpoint/problem"}, "endpoint": {"endpoint/problem", "boot"}, "responder": {"endpoint/problem"},
	"enrollment": {"endpoint"}, "agentrun": {"boot/config"}, "client": {},
	"api": {"api/openapi"},
}

func place(t *testing.T, name string) int {
	t.Helper()
	for i, l := range layers {
		if slices.Contains(l, name) {
			return i
		}
	}
	t.Errorf("package %s has no place in the house: add it to a layer", name)
	return len(layers)
}

func TestImportsPointDownTheLayers(t *testing.T) {
	const ours = "certctl/shared/"
	for path, p := range list(t, "./shared/...") {
		name, ok := strings.CutPrefix(path, ours)
		if !ok || name == "house" {
			continue
		}
		at := place(t, name)
		for _, i := range p.Imports {
			other, ok := strings.CutPrefix(i, ours)
			if !ok {
				continue
			}
			to := place(t, other)
			if to > at || to == at && !slices.Contains(allowed[name], other) {
				t.Errorf("%s imports %s, which stands beside or above it", name, other)
			}
		}
	}
}

func TestProgramsLinkOnlyWhatTheyUse(t *testing.T) {
	forbidden := map[string][]string{
		"certctl/functions/responder": {"certctl/shared/lifecycle", "certctl/shared/issuer", "certctl/shared/target", "certctl/shared/endpoint", "github.com/zmap/zlint/v3", "github.com/danielgtaylor/huma/v2"},
		"certctl/functions/api":       {"github.com/zmap/zlint/v3", "github.com/pressly/goose/v3", "github.com/fergusstrange/embedded-postgres"},
		"certctl/functions/agentpoll": {"github.com/zmap/zlint/v3", "github.com/pressly/goose/v3", "certctl/shared/api"},
		"certctl/functions/sweep":     {"github.com/zmap/zlint/v3", "github.com/danielgtaylor/huma/v2", "github.com/pressly/goose/v3"},
		"certctl/functions/worker":    {"github.com/danielgtaylor/huma/v2", "github.com/pressly/goose/v3", "certctl/shared/api"},
		"certctl/cmd/certctl-agent":   {"github.com/jackc/pgx/v5", "certctl/shared/db", "certctl/shared/lifecycle", "github.com/danielgtaylor/huma/v2", "github.com/aws/aws-lambda-go/lambda"},
	}
	for program, p := range list(t, "./functions/...", "./cmd/certctl-agent") {
		for _, f := range forbidden[program] {
			if slices.Contains(p.Deps, f) {
				t.Errorf("%s links %s", program, f)
			}
		}
	}
}

// Stripped sizes in MB (10⁶ octets). The worker carries zlint, which alone is over 3 MB.
var sizes = map[string]int64{"functions/api": 25, "functions/sweep": 15, "functions/worker": 17, "functions/responder": 15, "functions/agentpoll": 15, "cmd/certctl-agent": 15}

func TestProgramsStaySmall(t *testing.T) {
	for program, limit := range sizes {
		out := filepath.Join(t.TempDir(), "bootstrap")
		cmd := exec.Command("go", "build", "-trimpath", "-tags", "lambda.norpc", "-ldflags", "-s -w", "-o", out, "./"+program)
		cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", program, err, b)
		}
		info, err := os.Stat(out)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %.1f MB of %d", program, float64(info.Size())/1e6, limit)
		if info.Size() > limit*1_000_000 {
			t.Errorf("%s is larger than %d MB", program, limit)
		}
	}
}
