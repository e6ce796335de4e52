// Package targettest is the conformance suite of target drivers: what every driver must do with fresh and present files, bad
// pairs, failing commands, a wrong certificate served, and a process killed at each step. It makes the comment of
// target.Deployment executable, against a real server that the driver's own test starts.
package targettest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/target"
	"certctl/shared/wire"
)

// The files of every case, in its folder.
const (
	CertFile  = "cert.pem"
	KeyFile   = "key.pem"
	ChainFile = "chain.pem"
)

// Subject is one driver under test.
type Subject struct {
	Kind   string
	Driver target.Driver
	// Config names CertFile, KeyFile and, if chain is set, ChainFile in dir, and the two commands. A driver without a validate
	// command runs both as one.
	Config func(dir string, chain bool, validate, reload string) map[string]any
	// Serve starts a server for files that lie in dir already, until the test ends.
	Serve func(t *testing.T, dir string) Server
}

// Server is a running server.
type Server struct {
	Address          string
	Validate, Reload string // commands that work
}

// Run runs the suite. The test's TestMain must be Main.
func Run(t *testing.T, s Subject) {
	t.Run("a fresh deployment makes both files with safe modes", s.fresh)
	t.Run("a second deployment touches nothing and runs nothing", s.idempotent)
	t.Run("right files that are not served get one reload", s.notReloaded)
	t.Run("a renewal is served and keeps owner and mode", s.renewal)
	t.Run("links are followed and stay links", s.links)
	t.Run("a mismatched pair is refused before a file changes", s.mismatch)
	t.Run("what the host forbids is refused before a file changes", s.forbidden)
	t.Run("a failing validate command rolls back", func(t *testing.T) { s.failing(t, true) })
	t.Run("a failing reload command rolls back", func(t *testing.T) { s.failing(t, false) })
	t.Run("a wrong certificate served rolls back", s.servedWrong)
	t.Run("a cancelled context before the swap leaves nothing", s.cancelled)
	t.Run("unknown config fields are named", s.unknownField)
	t.Run("killed at each point", s.killed)
}

// bench is one case: a folder with files, an engine with its own folder, a target.
type bench struct {
	t      *testing.T
	s      Subject
	dir    string
	ca     *CA
	engine *target.Engine
	target wire.Target
}

func (s Subject) bench(t *testing.T) *bench {
	t.Helper()
	t.Parallel()
	base := t.TempDir()
	dir := filepath.Join(base, "files")
	if err := os.Mkdir(dir, 0o755); err != nil { // #nosec G301 -- a folder of a test
		t.Fatal(err)
	}
	b := &bench{t: t, s: s, dir: dir, ca: NewCA(t)}
	b.engine = engine(s, filepath.Join(base, "agent"))
	b.target = wire.Target{ID: id.New[id.Target](), Type: s.Kind, VersionID: id.New[id.Version]()}
	b.configure(false, "true", "true")
	return b
}

func engine(s Subject, dir string) *target.Engine {
	return &target.Engine{Dir: dir, Drivers: target.Registry{s.Kind: s.Driver}, Patience: 20 * time.Second}
}

func (b *bench) configure(chain bool, validate, reload string) {
	text, err := json.Marshal(b.s.Config(b.dir, chain, validate, reload))
	if err != nil {
		b.t.Fatal(err)
	}
	b.target.Config = text
}

// serving deploys a first version, starts the server on it and configures its commands and a probe.
func (b *bench) serving(chain bool, bundle *target.Bundle) Server {
	b.t.Helper()
	b.configure(chain, "true", "true")
	b.deploy(bundle)
	server := b.s.Serve(b.t, b.dir)
	b.configure(chain, server.Validate, server.Reload)
	b.target.Verify = &wire.Verify{Address: server.Address}
	b.serves(server.Address, bundle)
	return server
}

func (b *bench) deploy(bundle *target.Bundle) wire.Receipt {
	b.t.Helper()
	receipt, err := b.engine.Deploy(b.t.Context(), b.target, bundle)
	if err != nil {
		b.t.Fatalf("deploying: %v (steps %+v)", err, receipt.Steps)
	}
	return receipt
}

// serves probes without the names and the chain: only who is served counts.
func (b *bench) serves(address string, bundle *target.Bundle) {
	b.t.Helper()
	if _, err := probe(b.t.Context(), address, bundle); err != nil {
		b.t.Fatalf("the wanted version is not served: %v", err)
	}
}

func (b *bench) files() map[string]string { return Snapshot(b.t, b.dir) }

// Snapshot describes every file in a folder: name → mode, owner and content. Links are not followed.
func Snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if !info.Mode().IsRegular() || serverFile(e.Name()) {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name())) // #nosec G304 -- a folder of a test
		if err != nil {
			t.Fatal(err)
		}
		st, _ := info.Sys().(*syscall.Stat_t)
		out[e.Name()] = fmt.Sprintf("%s %d:%d\n%s", info.Mode(), st.Uid, st.Gid, content)
	}
	return out
}

// serverFile tells the servers' own files from the deployment's.
func serverFile(name string) bool { return strings.HasPrefix(name, "server-") }

func (b *bench) unchanged(before map[string]string) {
	b.t.Helper()
	after := b.files()
	for name := range after {
		if before[name] != after[name] {
			b.t.Errorf("%s changed or is new", name)
		}
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			b.t.Errorf("%s is gone", name)
		}
	}
	b.closed()
}

// closed checks that no journal is open.
func (b *bench) closed() {
	b.t.Helper()
	left, err := filepath.Glob(filepath.Join(b.engine.Dir, "journal", "*"))
	if err != nil || len(left) > 0 {
		b.t.Errorf("the journal is still open: %v %v", left, err)
	}
}

func (s Subject) fresh(t *testing.T) {
	b := s.bench(t)
	bundle := b.ca.Issue(t, "a.example.com")
	receipt := b.deploy(bundle)
	if !receipt.Changed || receipt.RolledBack || receipt.PreviousFingerprint != "" {
		t.Errorf("receipt %+v", receipt)
	}
	key, err := bundle.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	b.holds(CertFile, bundle.FullChainPEM(), 0o644)
	b.holds(KeyFile, key, 0o600)
	if got := b.files(); len(got) != 2 {
		t.Errorf("%d files instead of two", len(got))
	}
	b.closed()
}

func (b *bench) holds(name string, content []byte, mode fs.FileMode) {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	got, err := os.ReadFile(path) // #nosec G304 -- a folder of a test
	if err != nil || !bytes.Equal(got, content) {
		b.t.Errorf("%s does not hold the version (%v)", name, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != mode {
		b.t.Errorf("%s has mode %v, want %v (%v)", name, info.Mode(), mode, err)
	}
}

func (s Subject) idempotent(t *testing.T) {
	b := s.bench(t)
	bundle := b.ca.Issue(t, "a.example.com")
	b.serving(false, bundle)
	ran := filepath.Join(b.dir, "server-ran")
	b.configure(false, "touch "+ran, "touch "+ran)
	before := b.files()
	receipt := b.deploy(bundle)
	if receipt.Changed || receipt.ServedFingerprint != target.Fingerprint(bundle.Chain[0]) {
		t.Errorf("receipt %+v", receipt)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("a command ran although nothing changed")
	}
	b.unchanged(before)
}

func (s Subject) notReloaded(t *testing.T) {
	b := s.bench(t)
	server := b.serving(false, b.ca.Issue(t, "a.example.com"))
	next := b.ca.Issue(t, "a.example.com")
	verify := b.target.Verify
	b.target.Verify = nil
	b.configure(false, "true", "true")
	b.deploy(next)
	b.target.Verify = verify
	b.configure(false, server.Validate, server.Reload)
	if receipt := b.deploy(next); receipt.Changed || receipt.ServedSerial != next.Chain[0].SerialNumber.Text(16) {
		t.Errorf("receipt %+v", receipt)
	}
}

func (s Subject) renewal(t *testing.T) {
	b := s.bench(t)
	old := b.ca.Issue(t, "a.example.com")
	server := b.serving(false, old)
	key := filepath.Join(b.dir, KeyFile)
	if err := os.Chmod(key, 0o640); err != nil { // #nosec G302 -- the mode that must be kept
		t.Fatal(err)
	}
	uid, gid := os.Geteuid(), os.Getegid()
	if uid == 0 {
		uid, gid = 65534, 65534
		if err := os.Chown(key, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	next := b.ca.Issue(t, "a.example.com", "b.example.com")
	receipt := b.deploy(next)
	if !receipt.Changed || receipt.PreviousFingerprint != target.Fingerprint(old.Chain[0]) || receipt.ServedFingerprint != target.Fingerprint(next.Chain[0]) {
		t.Errorf("receipt %+v", receipt)
	}
	if got, want := b.files()[KeyFile], fmt.Sprintf("-rw-r----- %d:%d\n", uid, gid); !strings.HasPrefix(got, want) {
		t.Error("the key's owner or mode was not kept")
	}
	b.serves(server.Address, next)
	b.closed()
	kept, err := os.ReadFile(filepath.Join(b.engine.Dir, "previous", b.target.ID.String(), target.RoleCert)) // #nosec G304 -- a folder of a test
	if err != nil || !bytes.Equal(kept, old.FullChainPEM()) {
		t.Errorf("the previous version is not kept (%v)", err)
	}
}

func (s Subject) links(t *testing.T) {
	b := s.bench(t)
	inner := filepath.Join(filepath.Dir(b.dir), "elsewhere")
	if err := os.Mkdir(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	real, link := filepath.Join(inner, "real.pem"), filepath.Join(b.dir, CertFile)
	if err := os.WriteFile(real, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	bundle := b.ca.Issue(t, "a.example.com")
	before := b.files()
	b.engine.Host.Paths = []string{b.dir}
	if _, err := b.engine.Deploy(t.Context(), b.target, bundle); !fault.Is(err, fault.Denied) {
		t.Errorf("a link that leads out of the allowed folders: %v", err)
	}
	b.unchanged(before)
	b.engine.Host.Paths = []string{b.dir, inner}
	b.deploy(bundle)
	if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link was replaced (%v)", err)
	}
	if got, err := os.ReadFile(real); err != nil || !bytes.Equal(got, bundle.FullChainPEM()) { // #nosec G304 -- a folder of a test
		t.Errorf("the linked file does not hold the version (%v)", err)
	}
}

func (s Subject) mismatch(t *testing.T) {
	b := s.bench(t)
	old := b.ca.Issue(t, "a.example.com")
	server := b.serving(false, old)
	before := b.files()
	other, next := b.ca.Issue(t, "a.example.com"), b.ca.Issue(t, "a.example.com")
	for name, bad := range map[string]*target.Bundle{
		"another key":     {Chain: next.Chain, Key: other.Key},
		"a foreign chain": {Chain: append(next.Chain[:1:1], NewCA(t).Intermediate), Key: next.Key},
		"no key":          {Chain: next.Chain},
	} {
		if _, err := b.engine.Deploy(t.Context(), b.target, bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		b.unchanged(before)
	}
	b.serves(server.Address, old)
}

func (s Subject) forbidden(t *testing.T) {
	b := s.bench(t)
	bundle := b.ca.Issue(t, "a.example.com")
	before := b.files()
	for name, host := range map[string]target.Host{
		"no commands":      {Commands: target.CommandsNone},
		"unlisted command": {Commands: target.CommandsListed, Listed: []string{"systemctl reload nginx"}},
		"other folder":     {Paths: []string{filepath.Join(b.dir, "sub")}},
		"folder's prefix":  {Paths: []string{b.dir[:len(b.dir)-1]}},
	} {
		b.engine.Host = host
		if _, err := b.engine.Deploy(t.Context(), b.target, bundle); !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v", name, err)
		}
		b.unchanged(before)
	}
	b.engine.Host = target.Host{Commands: target.CommandsListed, Listed: []string{"true"}, Paths: []string{b.dir}}
	b.deploy(bundle)
}

func (s Subject) failing(t *testing.T, inValidate bool) {
	b := s.bench(t)
	old := b.ca.Issue(t, "a.example.com")
	server := b.serving(false, old)
	before := b.files()
	once := failOnce(b.dir)
	validate, reload := server.Validate, once+server.Reload
	if inValidate {
		validate, reload = once+orTrue(server.Validate), server.Reload
	}
	b.configure(false, validate, reload)
	receipt, err := b.engine.Deploy(t.Context(), b.target, b.ca.Issue(t, "a.example.com"))
	if err == nil || !strings.Contains(err.Error(), failingWords) || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("the error lacks the command's words: %v", err)
	}
	if !receipt.RolledBack || receipt.Changed {
		t.Errorf("receipt %+v", receipt)
	}
	b.unchanged(before)
	b.serves(server.Address, old)
}

func orTrue(command string) string {
	if command == "" {
		return "true"
	}
	return command
}

const failingWords = "the words of the failing command"

// failOnce is a command prefix that fails the first time it runs.
func failOnce(dir string) string {
	mark := filepath.Join(dir, "server-failed")
	return fmt.Sprintf("test -e %[1]s || { touch %[1]s; echo %[2]s >&2; exit 7; }; ", mark, failingWords)
}

func (s Subject) servedWrong(t *testing.T) {
	b := s.bench(t)
	old := b.ca.Issue(t, "a.example.com")
	server := b.serving(false, old)
	before := b.files()
	b.engine.Patience = 2 * time.Second
	b.configure(false, "true", "true") // a reload that answers success and does nothing
	receipt, err := b.engine.Deploy(t.Context(), b.target, b.ca.Issue(t, "a.example.com"))
	if err == nil || !strings.Contains(err.Error(), "another certificate") {
		t.Errorf("error %v", err)
	}
	if !receipt.RolledBack || receipt.ServedFingerprint != target.Fingerprint(old.Chain[0]) {
		t.Errorf("receipt %+v", receipt)
	}
	b.unchanged(before)
	b.serves(server.Address, old)
}

func (s Subject) cancelled(t *testing.T) {
	b := s.bench(t)
	b.deploy(b.ca.Issue(t, "a.example.com"))
	before := b.files()
	for _, at := range []string{target.StepCheck, target.StepBackup, target.StepJournal, target.StepStage} {
		ctx, cancel := context.WithCancel(t.Context())
		b.engine.Hook = func(point string, w target.Moment) {
			if point == at && w == target.After {
				cancel()
			}
		}
		if _, err := b.engine.Deploy(ctx, b.target, b.ca.Issue(t, "a.example.com")); err == nil {
			t.Errorf("cancelled after %s: no error", at)
		}
		b.unchanged(before)
	}
}

func (s Subject) unknownField(t *testing.T) {
	b := s.bench(t)
	config := s.Config(b.dir, false, "true", "true")
	config["reload_comand"] = "true"
	config["key_path"] = 7
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Driver(text)
	f := fault.As(err)
	if f == nil || len(f.Fields) != 2 || f.Fields[0].Field != "config.key_path" || f.Fields[1].Field != "config.reload_comand" {
		t.Errorf("fault %v", err)
	}
	for _, path := range []string{"", "relative.pem", "/a/../b.pem", "/a//b.pem", "/a/", "/"} {
		config := s.Config(b.dir, false, "true", "true")
		config["cert_path"] = path
		text, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Driver(text); !fault.Is(err, fault.Invalid) || fault.As(err).Fields[0].Field != "config.cert_path" {
			t.Errorf("path %q: %v", path, err)
		}
	}
}
