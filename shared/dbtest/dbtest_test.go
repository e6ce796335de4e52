package dbtest_test

import (
	"testing"

	"certctl/migrations"
	"certctl/shared/db"
	"certctl/shared/dbtest"
)

func TestTxIsRolledBackAndSeesTheSchema(t *testing.T) {
	v, err := db.SchemaVersion(t.Context(), dbtest.Tx(t))
	if err != nil || v != migrations.Latest() || v == 0 {
		t.Fatalf("schema version %d, %v; want %d", v, err, migrations.Latest())
	}
	t.Run("first", func(t *testing.T) { makeTable(t) })
	t.Run("second finds nothing of the first", func(t *testing.T) { makeTable(t) })
}

func makeTable(t *testing.T) {
	t.Helper()
	if _, err := dbtest.Tx(t).Exec(t.Context(), `CREATE TABLE once (i int)`); err != nil {
		t.Fatal(err)
	}
}

func TestPoolIsADatabaseOfTheTestsOwn(t *testing.T) {
	for range 2 {
		t.Run("pool", func(t *testing.T) {
			t.Parallel()
			p := dbtest.Pool(t)
			if _, err := p.Exec(t.Context(), `CREATE TABLE once (i int)`); err != nil {
				t.Fatal(err)
			}
			if v, err := db.SchemaVersion(t.Context(), p); err != nil || v != migrations.Latest() {
				t.Errorf("schema version %d, %v; want %d", v, err, migrations.Latest())
			}
		})
	}
}
