package target

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"certctl/shared/fault"
)

// Commands says which commands the host lets a deployment run.
type Commands string

// The host's choices (SPEC AGT-4).
const (
	CommandsAny    Commands = "any"
	CommandsListed Commands = "listed"
	CommandsNone   Commands = "none"
)

// Host is the host's own word on deployments: it is configured on the host, and no target's config overrules it.
// The zero value allows every command and every path.
type Host struct {
	Commands Commands      // "" is any
	Listed   []string      // with CommandsListed: the commands allowed, compared as whole texts
	Paths    []string      // roots that files may lie under; empty: any
	Timeout  time.Duration // of one command; 0 is one minute
}

// AllowCommand refuses (fault Denied) a command that the host does not permit. "" is no command and always allowed.
func (h *Host) AllowCommand(field, command string) error {
	switch {
	case command == "" || h.Commands == "" || h.Commands == CommandsAny:
		return nil
	case h.Commands == CommandsListed:
		for _, allowed := range h.Listed {
			if command == allowed {
				return nil
			}
		}
		return fault.New(fault.Denied, "This host does not allow the command in config.%s: add it to CERTCTL_AGENT_COMMANDS_FILE on the host.", field)
	default:
		return fault.New(fault.Denied, "This host allows no commands (CERTCTL_AGENT_COMMANDS=none), but config.%s is set.", field)
	}
}

// Resolve follows the symbolic links of a configured path and returns the file that will be replaced. It refuses a path whose
// folder is missing, a link that leads nowhere, something that is not a regular file, and (fault Denied) a path that lies,
// as written or as resolved, outside the host's allowed roots.
func (h *Host) Resolve(field, path string) (string, error) {
	if err := CleanPath(field, path); err != nil {
		return "", err
	}
	if !h.within(path, false) && !h.within(path, true) { // before looking: what lies outside is not told
		return "", h.outside(field)
	}
	real, err := resolve(path)
	if err != nil {
		return "", fault.Wrap(err, fault.Invalid, "config.%s cannot be used on this host: %s.", field, reason(err))
	}
	if !h.within(real, true) {
		return "", h.outside(field)
	}
	return real, nil
}

func (h *Host) outside(field string) error {
	return fault.New(fault.Denied, "config.%s leads outside the folders that this host allows (CERTCTL_AGENT_PATHS).", field)
}

func (h *Host) within(path string, resolved bool) bool {
	if len(h.Paths) == 0 {
		return true
	}
	for _, root := range h.Paths {
		if resolved {
			if real, err := filepath.EvalSymlinks(root); err == nil {
				root = real
			}
		}
		rel, err := filepath.Rel(root, path)
		if err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
			return true
		}
	}
	return false
}

// resolve answers the real path of a file that may not exist yet, in a folder that must.
func resolve(path string) (string, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return resolveNew(path)
	} else if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", errDangling
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", errNotFile
	}
	return real, nil
}

func resolveNew(path string) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", errNotFolder
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

var (
	errNotFolder = errors.New("its parent is not a folder")
	errDangling  = errors.New("it is a symbolic link to a file that does not exist")
	errNotFile   = errors.New("it is not a regular file")
)

func reason(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "its folder does not exist"
	case errors.Is(err, fs.ErrPermission):
		return "the agent may not look into its folder"
	case errors.Is(err, errNotFolder), errors.Is(err, errDangling), errors.Is(err, errNotFile):
		return err.Error()
	}
	return "its folder cannot be read"
}

// CleanPath refuses (fault Invalid) a path that is not absolute and clean. It looks at the text only.
func CleanPath(field, path string) error {
	switch {
	case path == "":
		return fault.BadField("config."+field, "is required")
	case !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" || strings.ContainsAny(path, "\x00\n"):
		return fault.BadField("config."+field, "must be an absolute path of a file without dot segments, doubled or trailing slashes")
	}
	return nil
}
