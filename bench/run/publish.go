package main

import (
	"context"
	"fmt"
	"time"

	"certctl/shared/db"
	"certctl/shared/issuer/localca/certlint"
	"certctl/shared/lifecycle"
	"certctl/shared/secret"
)

// childPublish runs what is due in a process of its own, so that its peak memory is that of the job.
func childPublish(url, key string) (m measured, err error) {
	ctx := context.Background()
	master, err := secret.ParseMasterKey(key)
	if err != nil {
		return m, err
	}
	pool, err := db.Open(ctx, db.Config{URL: url, MaxConns: 2})
	if err != nil {
		return m, err
	}
	defer pool.Close()
	w := &lifecycle.Worker{House: &lifecycle.House{Pool: pool, Box: secret.New(secret.NewMaster(master)), URLs: lifecycle.URLs{Public: "http://127.0.0.1", PKI: "http://127.0.0.1"}, Lint: certlint.Check, Log: quiet}}
	began := time.Now()
	did, err := w.Tick(ctx)
	if err == nil && did.Done != 1 {
		err = fmt.Errorf("the worker did %+v", did)
	}
	return measured{MS: time.Since(began).Seconds() * 1000}, err
}
