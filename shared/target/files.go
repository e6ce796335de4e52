package target

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"certctl/shared/fault"
	"certctl/shared/pki"
)

// The roles that a file can have. They name the rename points and the kept previous files.
const (
	RoleChain = "chain"
	RoleCert  = "certificate"
	RoleKey   = "key"
)

// File is one file of a bundle.
type File struct {
	Role    string
	Field   string // the config field that names it, without "config."
	Path    string // absolute and clean
	Content []byte
	Mode    fs.FileMode // forced on the file; 0 keeps an existing file's, and gives a new one 0600 for keys, else 0644
	Owner   string      // "user", "user:group" or ":group", names or numbers; "" keeps an existing file's
}

// Command is a command of a target's config.
type Command struct {
	Field string // the config field that holds it, without "config."
	Text  string // for sh -c; "" is none
}

// Files is a Target whose bundle is a set of files and two commands. Drivers for servers that read files return one.
type Files struct {
	Layout   func(b *Bundle) ([]File, error) // what the bundle looks like; files are swapped in this order
	Validate Command
	Reload   Command
}

// Begin implements Target.
func (f Files) Begin(b *Bundle, p Place) Deployment {
	return &fileset{layout: f.Layout, validate: f.Validate, reload: f.Reload, bundle: b, place: p}
}

// fileset is the Deployment of Files.
type fileset struct {
	layout           func(b *Bundle) ([]File, error)
	validate, reload Command
	bundle           *Bundle
	place            Place
	files            []placed
	journal          journal
}

// placed is a file on this host.
type placed struct {
	File
	real string // where the path leads
	now  *state // nil: nothing is there
	want attrs
}

type state struct {
	content []byte
	attrs   attrs
}

// attrs is what a swap must keep.
type attrs struct {
	Mode fs.FileMode `json:"mode"`
	UID  int         `json:"uid"`
	GID  int         `json:"gid"`
}

func (d *fileset) Check(context.Context) (bool, error) {
	for _, c := range []Command{d.validate, d.reload} {
		if err := d.place.Host.AllowCommand(c.Field, c.Text); err != nil {
			return false, err
		}
	}
	layout, err := d.layout(d.bundle)
	if err != nil {
		return false, err
	}
	d.files = nil
	held, seen := true, map[string]bool{}
	for _, f := range layout {
		p, err := d.locate(f)
		if err != nil {
			return false, err
		}
		if seen[p.real] {
			return false, fault.BadField("config."+f.Field, "leads to the same file as another path of this target")
		}
		seen[p.real] = true
		d.files = append(d.files, p)
		held = held && p.now != nil && bytes.Equal(p.now.content, f.Content) && p.now.attrs == p.want
	}
	return held, nil
}

func (d *fileset) locate(f File) (placed, error) {
	real, err := d.place.Host.Resolve(f.Field, f.Path)
	if err != nil {
		return placed{}, err
	}
	now, err := look(real)
	if err != nil {
		return placed{}, fmt.Errorf("reading the file in config.%s: %w", f.Field, err)
	}
	if err := syscall.Access(filepath.Dir(real), 2|1); err != nil { // W_OK|X_OK
		return placed{}, fault.Wrap(err, fault.Denied, "The agent may not write into the folder of config.%s.", f.Field)
	}
	want, err := wanted(f, now)
	return placed{File: f, real: real, now: now, want: want}, err
}

// wanted decides mode and owner: the config's, else those of the file that is there, else the safe default.
func wanted(f File, now *state) (attrs, error) {
	a := attrs{Mode: 0o644, UID: os.Geteuid(), GID: os.Getegid()}
	if f.Role == RoleKey {
		a.Mode = 0o600
	}
	if now != nil {
		a = now.attrs
	}
	if f.Mode != 0 {
		a.Mode = f.Mode
	}
	var err error
	if f.Owner != "" {
		a.UID, a.GID, err = lookupOwner(f.Owner, a.UID, a.GID)
	}
	return a, err
}

func lookupOwner(owner string, uid, gid int) (int, int, error) {
	name, group, _ := strings.Cut(owner, ":")
	if name != "" {
		n, err := strconv.Atoi(name)
		if err != nil {
			u, lookErr := user.Lookup(name)
			if lookErr != nil {
				return 0, 0, fault.Wrap(lookErr, fault.Invalid, "The user in config.owner does not exist on this host.")
			}
			n, _ = strconv.Atoi(u.Uid)
		}
		uid = n
	}
	if group != "" {
		n, err := strconv.Atoi(group)
		if err != nil {
			g, lookErr := user.LookupGroup(group)
			if lookErr != nil {
				return 0, 0, fault.Wrap(lookErr, fault.Invalid, "The group in config.owner does not exist on this host.")
			}
			n, _ = strconv.Atoi(g.Gid)
		}
		gid = n
	}
	return uid, gid, nil
}

func (d *fileset) Backup(context.Context) (string, error) {
	dir := filepath.Join(d.place.Dir, previousDir, d.place.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making the folder for the previous version: %w", err)
	}
	d.journal = journal{Target: d.place.Name, Validate: d.validate, Reload: d.reload}
	previous := ""
	for _, p := range d.files {
		entry := journalFile{Role: p.Role, Path: p.real, Staged: besides(p.real, "new"), New: sum(p.Content), Want: p.want}
		kept := filepath.Join(dir, p.Role)
		if p.now == nil {
			if err := os.Remove(kept); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", fmt.Errorf("dropping an older previous version: %w", err)
			}
		} else {
			if err := writeFile(kept, p.now.content, attrs{Mode: 0o600, UID: os.Geteuid(), GID: os.Getegid()}); err != nil {
				return "", fmt.Errorf("keeping the previous version: %w", err)
			}
			entry.Kept, entry.Old, entry.Was = kept, sum(p.now.content), p.now.attrs
		}
		if p.Role == RoleCert && p.now != nil {
			previous = firstFingerprint(p.now.content)
		}
		d.journal.Files = append(d.journal.Files, entry)
	}
	return previous, syncDir(dir)
}

func firstFingerprint(text []byte) string {
	if chain, err := pki.ParseBundle(text); err == nil {
		return Fingerprint(chain[0])
	}
	return ""
}

func (d *fileset) Journal(context.Context) error { return d.journal.save(d.place.Dir) }

func (d *fileset) Stage(context.Context) error {
	for i, p := range d.files {
		if err := stageFile(d.journal.Files[i].Staged, p.Content, p.want); err != nil {
			return fmt.Errorf("writing beside config.%s: %w", p.Field, err)
		}
	}
	return nil
}

func (d *fileset) Swap(context.Context) error {
	d.journal.Swapping = true
	if err := d.journal.save(d.place.Dir); err != nil {
		return err
	}
	for i, p := range d.files {
		point := "rename-" + p.Role
		d.place.Point(point, Before)
		if err := os.Rename(d.journal.Files[i].Staged, p.real); err != nil {
			return fmt.Errorf("putting config.%s in place: %w", p.Field, err)
		}
		d.place.Point(point, After)
	}
	for _, p := range d.files {
		if err := syncDir(filepath.Dir(p.real)); err != nil {
			return err
		}
	}
	return nil
}

func (d *fileset) Validate(ctx context.Context) error { return d.command(ctx, d.validate) }

func (d *fileset) Reload(ctx context.Context) error { return d.command(ctx, d.reload) }

func (d *fileset) command(ctx context.Context, c Command) error {
	if c.Text == "" {
		return nil
	}
	if err := d.place.Host.Run(ctx, c.Text); err != nil {
		return fmt.Errorf("the command in config.%s failed: %w", c.Field, err)
	}
	return nil
}

func (d *fileset) RollBack(context.Context) error {
	_, err := d.journal.restore()
	return err
}

func (d *fileset) Commit(context.Context) error { return d.journal.close(d.place.Dir) }
