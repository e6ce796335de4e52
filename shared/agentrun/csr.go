package agentrun

import (
	"context"
	"fmt"
	"net/http"

	"certctl/shared/pki"
	"certctl/shared/target"
	"certctl/shared/wire"
)

// answerCSR makes the key of a job, or finds the one made before, and posts its certificate request. The key is on disk
// before the request leaves, so an answer that is lost is asked for again with the same key and gets the same answer.
func (a *Agent) answerCSR(ctx context.Context, j wire.Job) error {
	a.point(PointStoreKey, target.Before)
	key, err := a.keys.forJob(j)
	if err != nil {
		return err
	}
	a.point(PointStoreKey, target.After)
	names, err := pki.ParseNames(j.CSR.CommonName, j.CSR.SANs)
	if err != nil {
		return fmt.Errorf("reading the names to ask for: %w", err)
	}
	der, err := pki.NewCSR(key, names)
	if err != nil {
		return err
	}
	a.point(PointPostCSR, target.Before)
	var taken wire.CSRAccepted
	if err := a.client.agentCall(ctx, http.MethodPost, "/csr", wire.PostCSR{JobID: j.ID, CSRPEM: string(pki.EncodeCSR(der))}, &taken); err != nil {
		return fmt.Errorf("posting the certificate request: %w", err)
	}
	a.point(PointPostCSR, target.After)
	a.log.Info("certificate request taken", "job", j.ID, "certificate", j.CertificateID, "status", taken.Status)
	return nil
}
