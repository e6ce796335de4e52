// Package pgfetch downloads a Postgres server for machines that have none.
//
// It uses the embedded-postgres library as a downloader only: that library's own start loses data when versions change.
// It is a package of its own so that only `certctl serve` links it.
package pgfetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"certctl/shared/pglocal"

	embedded "github.com/fergusstrange/embedded-postgres"
)

var versions = map[int]embedded.PostgresVersion{
	0: embedded.V18, 14: embedded.V14, 15: embedded.V15, 16: embedded.V16, 17: embedded.V17, 18: embedded.V18,
}

// Into answers a fetcher that unpacks each version once into a folder below dir. mirror replaces Maven Central
// (https://repo1.maven.org/maven2) when it is not empty.
//
// As root, dir must lie where the account that runs Postgres may enter.
func Into(dir, mirror string) pglocal.Fetcher {
	return func(ctx context.Context, major int) (string, error) {
		version, ok := versions[major]
		if !ok {
			return "", fmt.Errorf("no Postgres %d is known to be fetched", major)
		}
		root := filepath.Join(dir, "pg-"+string(version))
		bin := filepath.Join(root, "bin")
		if _, err := os.Stat(bin); err == nil {
			return bin, nil
		}
		if err := makePublic(dir); err != nil {
			return "", fmt.Errorf("fetching postgres %s: %w", version, err)
		}
		done := make(chan error, 1)
		go func() { done <- fetch(dir, root, mirror, version) }()
		select {
		case err := <-done:
			return bin, err
		case <-ctx.Done(): // the library knows no context; what it goes on with is renamed when whole, or left aside
			return "", fmt.Errorf("fetching postgres %s: %w", version, ctx.Err())
		}
	}
}

// makePublic makes the folder enterable whatever the umask is: as root, another account runs what is in it.
func makePublic(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { // #nosec G301 -- public binaries
		return err
	}
	return os.Chmod(dir, 0o755) // #nosec G302 -- public binaries
}

// fetch unpacks beside root and renames when whole. The impossible locale makes the library's initdb fail at once, so
// that it starts no server: a server that initdb got that far with is whole.
func fetch(dir, root, mirror string, version embedded.PostgresVersion) error {
	work, err := os.MkdirTemp(dir, "fetch-")
	if err != nil {
		return fmt.Errorf("fetching postgres %s: %w", version, err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	tree := filepath.Join(work, "tree")
	c := embedded.DefaultConfig().Version(version).Port(0).CachePath(filepath.Join(work, "cache")).
		RuntimePath(filepath.Join(work, "run")).BinariesPath(tree).DataPath(filepath.Join(work, "none")).
		Locale("none").Logger(io.Discard)
	if mirror != "" {
		c = c.BinaryRepositoryURL(mirror)
	}
	err = embedded.NewDatabase(c).Start()
	if !whole(tree) {
		return fmt.Errorf("fetching postgres %s: %w", version, err)
	}
	if err := openToAll(tree); err != nil {
		return fmt.Errorf("fetching postgres %s: %w", version, err)
	}
	if err := os.Rename(tree, root); err != nil && !errors.Is(err, fs.ErrExist) { // another process may have been faster
		return fmt.Errorf("fetching postgres %s: %w", version, err)
	}
	return nil
}

// whole reports whether initdb was reached, which the library runs when all is unpacked: it leaves its runtime folder.
func whole(tree string) bool {
	_, err := os.Stat(filepath.Join(filepath.Dir(tree), "run"))
	_, err2 := os.Stat(filepath.Join(tree, "bin", "postgres"))
	return err == nil && err2 == nil
}

// openToAll lets the account that runs the server read and enter the tree, whatever the umask was.
func openToAll(tree string) error {
	root, err := os.OpenRoot(tree)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSymlink != 0 {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		mode := st.Mode().Perm() | 0o444
		if d.IsDir() || mode&0o100 != 0 {
			mode |= 0o111
		}
		return root.Chmod(path, mode)
	})
}
