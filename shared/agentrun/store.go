package agentrun

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"certctl/shared/id"
)

// Names in the agent's folder. The engine adds journal/ and previous/.
const (
	agentFile      = "agent.json"          // who we are, where the server is
	credentialFile = "credential"          // the bearer secret
	encryptionFile = "encryption-key.json" // JWK, EC P-256
	rootFile       = "root.pem"            // the server's root, once the token's pin has proved it
	lockFile       = "lock"
	keysDir        = "keys"
	workDir        = "work"    // jobs in hand
	reportsDir     = "reports" // reports not yet acknowledged
)

// store is the agent's folder. Every file is written beside its name, synced, and renamed.
type store struct {
	dir      string
	lock     *os.File
	readOnly bool // the doctor's
}

// identity is agent.json.
type identity struct {
	AgentID id.Agent `json:"agent_id"`
	Name    string   `json:"name"`
	URL     string   `json:"url"`
}

func openStore(dir string) (*store, error) {
	if dir == "" {
		return nil, errors.New("the agent's folder is not set: give CERTCTL_AGENT_DIR or --agent-dir")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("finding the agent's folder: %w", err)
	}
	for _, sub := range []string{"", keysDir, workDir, reportsDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("making the agent's folder: %w", err)
		}
	}
	if err := privateFolder(dir); err != nil {
		return nil, err
	}
	s := &store{dir: dir}
	s.lock, err = os.OpenFile(s.path(lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock of the agent's folder: %w", err)
	}
	if err := syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil { // #nosec G115 -- a descriptor
		s.close()
		return nil, fmt.Errorf("another certctl-agent runs on %s: stop it or use another folder", dir)
	}
	return s, nil
}

// privateFolder refuses a folder in which others could put files.
func privateFolder(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("looking at the agent's folder: %w", err)
	}
	if info.Mode()&0o022 != 0 {
		return fmt.Errorf("the agent's folder %s is writable by others: chmod 700 it, or use a folder of the agent's own", dir)
	}
	return nil
}

func (s *store) close() {
	if s.lock != nil {
		_ = syscall.Flock(int(s.lock.Fd()), syscall.LOCK_UN) // #nosec G115 -- a descriptor; a child being forked may share it for a moment
		_ = s.lock.Close()
	}
}

func (s *store) path(name ...string) string {
	return filepath.Join(append([]string{s.dir}, name...)...)
}

// put writes a file with mode 0600 so that after a crash it is the old or the new one, whole.
func (s *store) put(content []byte, name ...string) error {
	path := s.path(name...)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) // #nosec G304 -- the agent's own folder
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

func (s *store) putJSON(v any, name ...string) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.put(text, name...)
}

// get reads a file; nil if there is none.
func (s *store) get(name ...string) ([]byte, error) {
	text, err := os.ReadFile(s.path(name...))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return text, err
}

func (s *store) getJSON(into any, name ...string) (found bool, err error) {
	text, err := s.get(name...)
	if text == nil || err != nil {
		return false, err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return false, fmt.Errorf("reading %s: %w", filepath.Join(name...), err)
	}
	return true, nil
}

func (s *store) drop(name ...string) error {
	path := s.path(name...)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// list names the JSON files of a sub-folder, oldest job first, since job ids sort by time.
func (s *store) list(dir string) ([]string, error) {
	entries, err := os.ReadDir(s.path(dir))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".json") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func syncFolder(dir string) error {
	d, err := os.Open(dir) // #nosec G304 -- the agent's own folder
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}
