package boot

import (
	"context"
	"errors"
	"sync"

	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/secret"
)

// DatabaseChecks are the checks of /ready that every function has: the database answers, and its schema is the one that
// this program was built for. want is migrations.Latest().
func DatabaseChecks(q db.Querier, want int64) []Check {
	return []Check{{Name: "database", Run: func(ctx context.Context) error {
		got, err := db.SchemaVersion(ctx, q)
		switch {
		case err != nil:
			return fault.Wrap(err, fault.Unavailable, "the database is away")
		case got < want:
			return fault.New(fault.Unavailable, "the schema is at version %d and this program needs %d: run certctl migrate", got, want)
		}
		return nil // a newer schema is fine: migrations are safe under the old code
	}}}
}

// Box makes the secrets of the program from CERTCTL_MASTER_KEY, limited to what it may open and seal.
func (c *Common) Box(open, seal []secret.Purpose) (*secret.Box, error) {
	if c.MasterKey.IsZero() {
		return nil, errors.New("CERTCTL_MASTER_KEY is not set: set it, or CERTCTL_MASTER_KEY_FILE, to the key with which this database was started (32 bytes in base64)")
	}
	key, err := secret.ParseMasterKey(c.MasterKey.Reveal())
	if err != nil {
		return nil, err
	}
	return secret.New(secret.NewMaster(key)).Limit(open, seal), nil
}

// Once runs a check at most until it succeeded; later calls cost nothing.
func Once(check func(ctx context.Context) error) func(ctx context.Context) error {
	var mu sync.Mutex
	done := false
	return func(ctx context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if done {
			return nil
		}
		err := check(ctx)
		done = err == nil
		return err
	}
}
