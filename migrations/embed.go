// Package migrations holds the schema as goose migrations, embedded. Each file runs under the old and the new code alike:
// add, fill, switch, remove; forward only.
package migrations

import (
	"embed"
	"io/fs"
	"strconv"
	"strings"
)

// FS holds the files NNNN_name.sql.
//
//go:embed *.sql
var FS embed.FS

// Latest is the highest number among the files: what db.SchemaVersion says of a database that is up to date. A function
// compares the two without linking the migrator.
func Latest() (latest int64) {
	names, _ := fs.Glob(FS, "*.sql")
	for _, name := range names {
		number, _, _ := strings.Cut(name, "_")
		if v, err := strconv.ParseInt(number, 10, 64); err == nil {
			latest = max(latest, v)
		}
	}
	return latest
}
