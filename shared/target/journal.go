package target

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Folders below Engine.Dir.
const (
	journalDir  = "journal"
	previousDir = "previous"
)

// journal says how to undo a deployment of files. It is on disk from before the first change until the end of the deployment
// or of its roll back.
type journal struct {
	Target   string        `json:"target"`
	Swapping bool          `json:"swapping"` // renames may have begun, so the server may have read the new files
	Files    []journalFile `json:"files"`
	Validate Command       `json:"validate"`
	Reload   Command       `json:"reload"`
}

type journalFile struct {
	Role   string `json:"role"`
	Path   string `json:"path"`   // links followed
	Staged string `json:"staged"` // the new content before the rename
	Kept   string `json:"kept"`   // the old content; "" if there was no file
	Old    string `json:"old_sha256"`
	New    string `json:"new_sha256"`
	Was    attrs  `json:"was"`
	Want   attrs  `json:"want"`
}

// Recovered is one interrupted deployment that Recover ended.
type Recovered struct {
	Target   string // id of the target
	Restored bool   // files were put back
	Warning  string // what did not work, for people: a foreign file that was left alone, a server that did not reload
}

// Recover ends every deployment that a killed process left open: the previous files come back and the server is told. Call it
// at start, before anything else deploys. A journal that cannot be undone stays and is an error.
func (e *Engine) Recover(ctx context.Context) ([]Recovered, error) {
	entries, err := os.ReadDir(filepath.Join(e.Dir, journalDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for interrupted deployments: %w", err)
	}
	var done []Recovered
	var failed []error
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".json") {
			continue
		}
		r, err := e.recoverOne(ctx, filepath.Join(e.Dir, journalDir, entry.Name()))
		if err != nil {
			failed = append(failed, fmt.Errorf("undoing the deployment to %s: %w", strings.TrimSuffix(entry.Name(), ".json"), err))
		} else if r != nil {
			done = append(done, *r)
		}
	}
	return done, errors.Join(failed...)
}

// recoverOne undoes the journal in path; nil if there is none.
func (e *Engine) recoverOne(ctx context.Context, path string) (*Recovered, error) {
	text, err := os.ReadFile(path) // #nosec G304 -- below the engine's own folder
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var j journal
	if err := json.Unmarshal(text, &j); err != nil {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	for _, f := range j.Files { // the host's word may have changed, and a journal is no way around it
		if !e.Host.within(f.Path, true) {
			return nil, e.Host.outside(f.Role)
		}
	}
	warning, err := j.restore()
	if err != nil {
		return nil, err
	}
	if j.Swapping {
		warning = strings.Trim(warning+"; "+e.wake(ctx, j), "; ")
	}
	return &Recovered{Target: j.Target, Restored: j.Swapping, Warning: warning}, j.close(e.Dir)
}

// wake lets the server read the restored files and answers what went wrong.
func (e *Engine) wake(ctx context.Context, j journal) string {
	for _, c := range []Command{j.Validate, j.Reload} {
		if c.Text == "" {
			continue
		}
		if err := e.Host.AllowCommand(c.Field, c.Text); err != nil {
			return err.Error()
		}
		if err := e.Host.Run(ctx, c.Text); err != nil {
			return fmt.Sprintf("the command in config.%s failed: %v", c.Field, err)
		}
	}
	return ""
}

// restore puts the previous files back where the new ones are and drops what was staged. It can be repeated. A file that is
// neither the old nor the new one was changed by somebody else: it is left and named in warning.
func (j *journal) restore() (warning string, err error) {
	for _, f := range j.Files {
		if err := os.Remove(f.Staged); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		now, err := look(f.Path)
		if err != nil {
			return "", err
		}
		switch {
		case now == nil && f.Kept == "", now != nil && f.Kept != "" && sum(now.content) == f.Old && now.attrs == f.Was:
			continue
		case now != nil && sum(now.content) != f.New && (f.Kept == "" || sum(now.content) != f.Old):
			warning = "the " + f.Role + " file was changed by somebody else and is left as it is"
			continue
		}
		if err := f.putBack(); err != nil {
			return "", err
		}
	}
	return warning, nil
}

func (f *journalFile) putBack() error {
	if f.Kept == "" {
		if err := os.Remove(f.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return syncDir(filepath.Dir(f.Path))
	}
	old, err := os.ReadFile(f.Kept)
	if err != nil {
		return fmt.Errorf("reading the kept %s: %w", f.Role, err)
	}
	if sum(old) != f.Old {
		return fmt.Errorf("the kept %s in %s is damaged", f.Role, f.Kept)
	}
	return writeFile(f.Path, old, f.Was)
}

func (j *journal) save(dir string) error {
	text, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the journal: %w", err)
	}
	dir = filepath.Join(dir, journalDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the journal's folder: %w", err)
	}
	return writeFile(filepath.Join(dir, j.Target+".json"), text, attrs{Mode: 0o600, UID: os.Geteuid(), GID: os.Getegid()})
}

func (j *journal) close(dir string) error {
	dir = filepath.Join(dir, journalDir)
	if err := os.Remove(filepath.Join(dir, j.Target+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("closing the journal: %w", err)
	}
	return syncDir(dir)
}

// look reads a file and what a swap must keep; nil if there is none.
func look(path string) (*state, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errNotFile
	}
	content, err := os.ReadFile(path) // #nosec G304 -- resolved and permitted by the host, or from our journal
	if err != nil {
		return nil, err
	}
	a := attrs{Mode: info.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		a.UID, a.GID = int(st.Uid), int(st.Gid)
	}
	return &state{content: content, attrs: a}, nil
}

// writeFile replaces path by one rename and syncs file and folder.
func writeFile(path string, content []byte, a attrs) error {
	staged := besides(path, "put")
	if err := stageFile(staged, content, a); err != nil {
		return err
	}
	if err := os.Rename(staged, path); err != nil {
		_ = os.Remove(staged)
		return err
	}
	return syncDir(filepath.Dir(path))
}

// stageFile makes a fresh, synced file with owner and mode. A left-over of the same name is dropped, never followed.
func stageFile(path string, content []byte, a attrs) (err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600) // #nosec G304 -- beside a permitted file
	if err != nil {
		return err
	}
	defer func() {
		if closing := f.Close(); err == nil {
			err = closing
		}
		if err != nil {
			_ = os.Remove(path)
		}
	}()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if a.UID != os.Geteuid() || a.GID != os.Getegid() {
		if err := f.Chown(a.UID, a.GID); err != nil {
			return fmt.Errorf("keeping the file's owner: %w", err)
		}
	}
	if err := f.Chmod(a.Mode); err != nil {
		return err
	}
	return f.Sync()
}

// besides names a hidden neighbour of a file: on the same file system, and skipped by servers that load whole folders.
func besides(path, what string) string {
	return filepath.Join(filepath.Dir(path), ".certctl-"+filepath.Base(path)+"."+what)
}

func syncDir(dir string) error {
	d, err := os.Open(dir) // #nosec G304 -- folder of a permitted file
	if err != nil {
		return fmt.Errorf("opening a folder to sync it: %w", err)
	}
	defer func() { _ = d.Close() }()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("syncing a folder: %w", err)
	}
	return nil
}

func sum(content []byte) string {
	s := sha256.Sum256(content)
	return hex.EncodeToString(s[:])
}
