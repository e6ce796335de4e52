package pglocal

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is who the server runs as: ourselves (no credential), or as root another account, since Postgres refuses root.
type account struct {
	credential *syscall.Credential
	name       string
}

// accountFor answers the owner of an existing home, so that a database stays readable however root came to be; else the
// first that exists of SUDO_USER, postgres and nobody. initdb needs an entry in the passwd file: a bare uid does not do.
func accountFor(home string) (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	var try []*user.User
	if st, err := os.Stat(home); err == nil {
		if u, err := user.LookupId(strconv.Itoa(int(owner(st)))); err == nil {
			try = append(try, u)
		}
	}
	for _, name := range []string{os.Getenv("SUDO_USER"), "postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			try = append(try, u)
		}
	}
	for _, u := range try {
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil && uid != 0 {
			return account{&syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, u.Username}, nil
		}
	}
	return account{}, errors.New("running as root, which Postgres refuses, and there is no account postgres or nobody to run it as: run certctl as another user")
}

// makeRoot makes the data folder, which stays ours. As root the server's account must be able to pass through it.
func (a account) makeRoot(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	if a.credential == nil || a.passes(st) || owner(st) != 0 {
		return nil
	}
	return os.Chmod(dir, st.Mode().Perm()|0o011) // #nosec G302 -- passing only, not reading
}

func (a account) uid() uint32 {
	if a.credential != nil {
		return a.credential.Uid
	}
	return uint32(os.Geteuid()) // #nosec G115 -- a uid is not negative
}

func (a account) own(path string) error {
	if a.credential == nil {
		return nil
	}
	return os.Chown(path, int(a.credential.Uid), int(a.credential.Gid))
}

// ownFolder makes a folder of mode 0700 that belongs to the account. One that is there and belongs to somebody else is
// refused: in /tmp it may be a trap.
func (a account) ownFolder(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		return a.own(dir)
	}
	if !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("making a folder for Postgres: %w", err)
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("making a folder for Postgres: %w", err)
	}
	if !st.IsDir() {
		return fmt.Errorf("%s is in the way: Postgres needs a folder of that name", dir)
	}
	if owner(st) == 0 && os.Geteuid() == 0 { // killed between making the folder and giving it away
		return a.own(dir)
	}
	if owner(st) != a.uid() {
		return fmt.Errorf("%s belongs to another user: remove it or choose another CERTCTL_DATA_DIR", dir)
	}
	return os.Chmod(dir, 0o700) // #nosec G302 -- a folder needs x
}

// mayEnter checks every folder on the way to dir, for a clearer answer than exec's "permission denied".
func (a account) mayEnter(dir string) error {
	if a.credential == nil {
		return nil
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("entering the folders of Postgres: %w", err)
	}
	for at := dir; ; at = filepath.Dir(at) {
		st, err := os.Stat(at)
		if err != nil {
			return fmt.Errorf("entering the folders of Postgres: %w", err)
		}
		if !a.passes(st) {
			return fmt.Errorf("as root Postgres runs as the account %s, which may not enter %s: choose a data folder "+
				"(CERTCTL_DATA_DIR, CERTCTL_POSTGRES_BIN) outside it, or chmod a+x it", a.name, at)
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}

func (a account) passes(st os.FileInfo) bool {
	mode, sys := st.Mode().Perm(), st.Sys().(*syscall.Stat_t)
	switch {
	case sys.Uid == a.credential.Uid:
		return mode&0o100 != 0
	case sys.Gid == a.credential.Gid:
		return mode&0o010 != 0
	}
	return mode&0o001 != 0
}

func owner(st os.FileInfo) uint32 { return st.Sys().(*syscall.Stat_t).Uid }
