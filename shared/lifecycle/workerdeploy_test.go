package lifecycle_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"certctl/shared/deployment"
	"certctl/shared/id"
	"certctl/shared/job"
	"certctl/shared/lifecycle"
	"certctl/shared/target"
	"certctl/shared/target/files"
)

// A worker that has no drivers (a function, or work --once beside serve) must leave the work to one that has.
func TestAWorkerWithoutDriversLeavesTheDeploymentToOneThatHasThem(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	dir := t.TempDir()
	config, err := json.Marshal(map[string]string{"cert_path": filepath.Join(dir, "cert.pem"), "key_path": filepath.Join(dir, "key.pem")})
	must(t, err)
	target1, err := deployment.InsertTarget(t.Context(), h.pool, deployment.Target{ID: id.New[id.Target](), Name: "here", Type: "files", Config: config}, nil)
	must(t, err)
	c := h.issued(t, lifecycle.Wanted{TargetIDs: []id.Target{target1.ID}})
	j, err := job.Get(t.Context(), h.pool, deploymentOf(t, h, c.ID))
	must(t, err)
	if j.Status != job.Pending || j.Attempts != 0 || j.GiveUpAt == nil || j.LastError == nil || !strings.Contains(*j.LastError, "agent_id") {
		t.Fatalf("without drivers: %s, %d attempts, gives up %v, %v", j.Status, j.Attempts, j.GiveUpAt, j.LastError)
	}
	h.Targets = &target.Engine{Dir: t.TempDir(), Drivers: target.Registry{"files": files.Open}}
	exec(t, h.pool, `UPDATE jobs SET scheduled_at = now() WHERE id = $1`, j.ID)
	h.work(t)
	if j, err = job.Get(t.Context(), h.pool, j.ID); err != nil || j.Status != job.Completed {
		t.Fatalf("with drivers: %s %v %v", j.Status, j.LastError, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "cert.pem")); err != nil || !strings.Contains(string(b), "BEGIN CERTIFICATE") {
		t.Errorf("nothing was deployed: %v", err)
	}
}

func deploymentOf(t testing.TB, h *house, c id.Certificate) (j id.Job) {
	t.Helper()
	must(t, h.pool.QueryRow(t.Context(), `SELECT id FROM jobs WHERE certificate_id = $1 AND type = 'Deployment' ORDER BY created_at DESC, id DESC LIMIT 1`, c).Scan(&j))
	return j
}
