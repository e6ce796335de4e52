package agentrun

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	jose "github.com/go-jose/go-jose/v4"

	"certctl/shared/pki"
	"certctl/shared/target"
	"certctl/shared/wire"
)

// deployAll runs deployments one after the other, since they may share a server, and keeps all their leases alive meanwhile.
// Each is on disk first, so that a crash ends it right after the next start.
func (a *Agent) deployAll(ctx context.Context, jobs []wire.Job) {
	if len(jobs) == 0 {
		return
	}
	a.point(PointStoreWork, target.Before)
	for _, j := range jobs {
		if err := a.store.putJSON(j, workDir, j.ID.String()+".json"); err != nil {
			a.log.Error("a job cannot be stored; it comes again", "job", j.ID, "error", err)
			return
		}
	}
	a.point(PointStoreWork, target.After)
	held := a.keepLeases(ctx, jobs)
	defer held.release()
	for _, j := range jobs {
		if ctx.Err() != nil {
			return
		}
		if err := a.deployJob(held.context(j), j); err != nil {
			a.log.Error("a deployment waits", "job", j.ID, "target", j.Target.ID, "error", err)
		}
		held.done(j)
	}
}

// resume goes on with jobs that an earlier run had in hand. Running is reported first: it takes the lease again if it is
// still ours, and 409 says that the job has gone elsewhere, perhaps with a newer version.
func (a *Agent) resume(ctx context.Context) error {
	names, err := a.store.list(workDir)
	if err != nil {
		return fmt.Errorf("looking for jobs in hand: %w", err)
	}
	var ours []wire.Job
	for _, name := range names {
		var j wire.Job
		if _, err := a.store.getJSON(&j, workDir, name); err != nil || j.Target == nil || j.ID.String()+".json" != name {
			a.log.Error("a job in hand cannot be read and is dropped", "file", name, "error", err)
			err = a.store.drop(workDir, name)
			if err != nil {
				return err
			}
			continue
		}
		_, err := a.extend(ctx, j)
		switch {
		case err == nil:
			ours = append(ours, j)
		case permanent(err):
			a.log.Warn("a job of an earlier run is not ours any more", "job", j.ID, "error", err)
			if err := a.store.drop(workDir, name); err != nil {
				return err
			}
		default:
			return fmt.Errorf("taking up job %s again: %w", j.ID, err)
		}
	}
	a.deployAll(ctx, ours)
	return nil
}

// deployJob does one deployment and stores its report. An error means that there is no result yet: the job stays in hand.
func (a *Agent) deployJob(ctx context.Context, j wire.Job) error {
	bundle, err := a.bundle(ctx, j)
	if err != nil {
		if ctx.Err() != nil || !permanent(err) && !errors.Is(err, errUndeployable) {
			return a.interrupted(ctx, j, err)
		}
		return a.storeReport(j, wire.Report{Lease: j.Lease, Status: "Failed", Detail: shorten(err.Error())})
	}
	a.point(PointDeploy, target.Before)
	receipt, err := a.engine.Deploy(ctx, *j.Target, bundle)
	a.point(PointDeploy, target.After)
	report := wire.Report{Lease: j.Lease, Status: "Completed", Receipt: &receipt}
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return a.interrupted(ctx, j, err)
		}
		report.Status, report.Detail = "Failed", shorten(err.Error())
		a.log.Error("deployment failed", "job", j.ID, "target", j.Target.ID, "rolled_back", receipt.RolledBack, "error", err)
	} else {
		a.log.Info("deployed", "job", j.ID, "target", j.Target.ID, "changed", receipt.Changed, "served", receipt.ServedSerial)
		if err := a.keys.deployed(j.CertificateID, spkiHex(bundle.Key.Public())); err != nil {
			a.log.Warn("superseded keys stay", "error", err)
		}
	}
	return a.storeReport(j, report)
}

// interrupted handles a deployment that changed nothing: with the lease lost it is forgotten, else it stays in hand.
func (a *Agent) interrupted(ctx context.Context, j wire.Job, err error) error {
	if errors.Is(context.Cause(ctx), errLeaseLost) {
		a.log.Warn("the lease was lost before anything changed", "job", j.ID)
		return a.store.drop(workDir, j.ID.String()+".json")
	}
	return err
}

// errUndeployable marks a version that cannot be deployed here however often it is tried.
var errUndeployable = errors.New("this version cannot be deployed by this agent")

// bundle fetches the version of a job and finds its key. What arrives is held against what was promised.
func (a *Agent) bundle(ctx context.Context, j wire.Job) (*target.Bundle, error) {
	a.point(PointFetch, target.Before)
	var v wire.Pickup
	query := url.Values{"version_id": {j.Target.VersionID.String()}}
	if err := a.client.agentCall(ctx, http.MethodGet, "/certificates/"+j.CertificateID.String()+"?"+query.Encode(), nil, &v); err != nil {
		return nil, fmt.Errorf("fetching the certificate: %w", err)
	}
	a.point(PointFetch, target.After)
	chain, err := pki.ParseBundle([]byte(v.ChainPEM))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUndeployable, err)
	}
	spki := spkiHex(chain[0].PublicKey)
	if target.Fingerprint(chain[0]) != v.FingerprintSHA256 || spki != v.SPKISHA256 || v.VersionID != j.Target.VersionID {
		return nil, fmt.Errorf("%w: the certificate is not the one that the server describes", errUndeployable)
	}
	key, err := a.keyFor(j, spki)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUndeployable, err)
	}
	return &target.Bundle{Chain: chain, Key: key}, nil
}

// keyFor answers the key kept here, or opens the one that came sealed to this agent.
func (a *Agent) keyFor(j wire.Job, spki string) (crypto.Signer, error) {
	if j.Target.Key != "" {
		return a.openSealed(j.Target.Key)
	}
	key, err := a.keys.forSPKI(spki)
	if err == nil && key == nil {
		err = errors.New("its private key is not on this host; renew the certificate, so that a key is made here")
	}
	return key, err
}

// openSealed opens a compact JWE (RFC 7516) of a PKCS #8 key. The accepted algorithms are fixed here: the header's word is
// not taken for them.
func (a *Agent) openSealed(compact string) (crypto.Signer, error) {
	own, err := a.store.encryptionKey()
	if err != nil {
		return nil, err
	}
	jwe, err := jose.ParseEncryptedCompact(compact, []jose.KeyAlgorithm{jose.ECDH_ES, jose.ECDH_ES_A256KW}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		return nil, errors.New("the sealed key is malformed or uses an algorithm that is not accepted")
	}
	plain, err := jwe.Decrypt(own.Key)
	if err != nil {
		return nil, errors.New("the sealed key does not open with this agent's encryption key")
	}
	return pki.ParseKey(plain)
}

// shorten fits a text into a report, keeping its end, where a command's last words are.
func shorten(text string) string {
	const most = 3900
	if len(text) <= most {
		return text
	}
	cut := len(text) - most + 1000
	return validText(text[:1000]) + " … " + validText(text[cut:])
}
