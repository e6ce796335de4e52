package cli_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"certctl/shared/cli"
	"certctl/shared/client"
	"certctl/shared/id"

	"github.com/spf13/cobra"
)

const exampleJob = "job_01kb4h4yqxe0rv8m0n3q5s6t7v"

// furnish gives the stand-in what the examples speak of, but not what they make.
func (h *house) furnish(path string) {
	creates := func(noun string) bool { return strings.HasPrefix(path, "certctl "+noun+" create") }
	seen := at(time.Minute)
	h.agents = []*client.Agent{{ID: id.New[id.Agent]().String(), Name: "web1", Status: "online", Hostname: "web1.example.com", LastSeenAt: &seen}}
	if !creates("team") {
		h.teams = []*client.Team{{ID: id.New[id.Team]().String(), Name: "web"}}
	}
	if !creates("owner") {
		h.owners = []*client.Owner{{ID: id.New[id.Owner]().String(), Name: "alice"}}
	}
	if !creates("profile") {
		h.profiles = append(h.profiles, &client.Profile{ID: id.New[id.Profile]().String(), Name: "web", KeyAlgorithms: []string{"rsa-2048"}, MaxTTL: "47d", EKUs: []string{}, NamePatterns: []string{}})
	}
	if !creates("policy") {
		h.policies = append(h.policies, &client.RenewalPolicy{ID: id.New[id.RenewalPolicy]().String(), Name: "early", RenewAtFraction: 0.5, AlertFractions: []float64{}})
	}
	if !creates("target") {
		for _, n := range []string{"web1", "web1-nginx", "drop"} {
			h.targets = append(h.targets, &client.Target{ID: id.New[id.Target]().String(), Name: n, Type: "files", Config: []byte(`{"cert_path":"/x"}`)})
		}
	}
	if !creates("key") {
		h.keys = []*client.Key{{ID: id.New[id.Key]().String(), Name: "ci", Principal: "ci", Role: "operator"}}
	}
	if !creates("issuer") {
		for _, n := range []string{"staging", "sub", "old-ca"} {
			h.issuers = append(h.issuers, &client.Issuer{ID: id.New[id.Issuer]().String(), Name: n, Type: "local", Config: []byte(`{}`)})
		}
	}
	h.furnishWork(path)
}

func (h *house) furnishWork(path string) {
	state := client.Pending
	if strings.HasSuffix(path, "approve") || strings.HasSuffix(path, "reject") {
		state = client.AwaitingApproval
	}
	h.enqueue("Issuance", "alice", func(j *client.Job) { j.ID, j.Status = exampleJob, state })
	for _, n := range []string{"www.example.com", "old.example.com", "a.example.com", "b.example.com"} {
		x := &client.Certificate{ID: id.New[id.Certificate]().String(), Name: n, SANs: []string{n}, Tags: map[string]string{}, TargetIDs: []string{}, Deployments: []client.Deployment{}, Can: []string{}, KeyCustody: "server", AutoRenew: true,
			IssuerID: client.Ref(h.issuers[0].ID), ProfileID: client.Ref(h.profiles[0].ID), RenewalPolicyID: client.Ref(h.policies[0].ID)}
		h.certs = append(h.certs, x)
		h.issued(x, &client.Job{ID: exampleJob})
		if strings.HasSuffix(path, "unhold") {
			why := "certificateHold"
			x.CurrentVersion.RevokedAt, x.CurrentVersion.RevocationReason = at0(), &why
		}
	}
}

func at0() *time.Time { t := at(0); return &t }

// TestEveryExampleRuns runs each line of each command's examples, as a shell would, against the stand-in.
func TestEveryExampleRuns(t *testing.T) {
	t.Parallel()
	var walk func(c *cobra.Command)
	n := 0
	walk = func(c *cobra.Command) {
		if c.Runnable() && !c.HasSubCommands() && c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for _, line := range strings.Split(strings.ReplaceAll(c.Example, "\\\n", " "), "\n") {
			if line = strings.TrimSpace(line); line != "" {
				n++
				t.Run(line, func(t *testing.T) {
					t.Parallel()
					runExample(t, c.CommandPath(), line)
				})
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	root := &cobra.Command{Use: "certctl"}
	for _, c := range (&cli.App{}).Commands() {
		root.AddCommand(c)
		walk(c)
	}
	if n < 70 {
		t.Errorf("only %d examples were found", n)
	}
}

func runExample(t *testing.T, path, line string) {
	h := newHouse()
	h.furnish(path)
	url := h.serve(t).URL
	home := t.TempDir()
	for name, content := range map[string]string{
		"key.txt": adminKey, ".certctl.key": adminKey, "pass.txt": "secret", "config/certctl/config.yaml": "contexts:\n- {name: prod, url: '" + url + "', key: " + adminKey + "}\ncurrent: prod\n",
	} {
		file := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	line, _, _ = strings.Cut(line, " | ")
	line = strings.ReplaceAll(line, "https://certctl.example.com", url)
	cmd := exec.CommandContext(t.Context(), "sh", "-c", line) // #nosec G204 -- the command's own example
	cmd.Dir = home
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_CONFIG_HOME=" + filepath.Join(home, "config")}
	out, err := cmd.CombinedOutput()
	if err != nil && !strings.Contains(line, "--watch --timeout") { // being timed out is how a watch of the examples ends
		t.Errorf("%v\n%s", err, out)
	}
}
