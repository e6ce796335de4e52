package api

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"time"

	"certctl/shared/auth"
	"certctl/shared/boot"
	"certctl/shared/cert"
	"certctl/shared/db"
	"certctl/shared/endpoint"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/job"
	"certctl/shared/lifecycle"
	"certctl/shared/pki"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/jackc/pgx/v5"
	"software.sslmate.com/src/go-pkcs12"
)

type exportInput struct {
	ID   id.Certificate `path:"id"`
	Body struct {
		Format   string `json:"format" enum:"pem,pkcs12,pkcs12-legacy" doc:"pem: chain and key; pkcs12: AES-256 (RFC 9579's defaults); pkcs12-legacy: 3DES, for Windows Server 2016 and Java 8"`
		Password string `json:"password,omitempty" maxLength:"1000" doc:"of the PKCS#12 file"`
	}
}

type exportOutput struct {
	ContentType string `header:"Content-Type"`
	Disposition string `header:"Content-Disposition"`
	Body        []byte
}

func (a *API) exports() {
	endpoint.Act(a.rt, "POST /api/v1/certificates/{id}/export", auth.Administer, endpoint.Doc{ID: "exportCertificate", Tag: "Certificates", Summary: "Export the chain with its server-held key",
		Description: "For admins, and audited. Only keys that the server holds: the worker opens the key and encrypts it to this one request.",
		Produces:    "application/octet-stream", Secret: true, Errors: []fault.Kind{fault.Conflict, fault.Unavailable}}, a.export)
}

// exportWait is how long the worker may take.
const exportWait = 20 * time.Second

func (a *API) export(ctx context.Context, b db.Beginner, in *exportInput) (*exportOutput, error) {
	if in.Body.Format == "pem" && in.Body.Password != "" {
		return nil, fault.BadField("password", "is for PKCS#12; a PEM export is not encrypted")
	}
	if in.Body.Format != "pem" && in.Body.Password == "" {
		return nil, fault.BadField("password", "is needed for PKCS#12")
	}
	mine, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	j, err := a.requestExport(ctx, b, in.ID, mine)
	if err != nil {
		return nil, err
	}
	if j, err = await(ctx, b, j.ID); err != nil {
		return nil, err
	}
	if err := lifecycle.ForgetExport(ctx, b, j.ID); err != nil {
		return nil, err
	}
	key, err := openExport(lifecycle.ExportedKey(j), mine)
	if err != nil {
		return nil, err
	}
	chain, err := cert.Chain(ctx, b, j.VersionID)
	if err != nil {
		return nil, err
	}
	return encodeExport(in.Body.Format, in.Body.Password, chain, key)
}

func (a *API) requestExport(ctx context.Context, b db.Beginner, c id.Certificate, mine *ecdsa.PrivateKey) (j job.Job, err error) {
	jwk, err := (&jose.JSONWebKey{Key: &mine.PublicKey}).MarshalJSON()
	if err != nil {
		return j, err
	}
	err = db.InTx(ctx, b, func(tx pgx.Tx) error {
		j, err = lifecycle.RequestExport(ctx, tx, c, string(jwk))
		return err
	})
	if err == nil && a.Ring != nil {
		a.Ring(ctx)
	}
	return j, err
}

// await looks at the job until it has ended.
func await(ctx context.Context, q db.Querier, j id.Job) (job.Job, error) {
	ctx, cancel := context.WithTimeout(ctx, min(exportWait, max(time.Second, boot.Remaining(ctx)-2*time.Second)))
	defer cancel()
	for {
		got, err := job.Get(ctx, q, j)
		switch {
		case err != nil && ctx.Err() == nil:
			return got, err
		case err == nil && got.Status == job.Completed:
			return got, nil
		case err == nil && got.Status.Final():
			return got, fault.New(fault.Conflict, "The key could not be opened; the job says why.").With("job_id", j)
		}
		select {
		case <-ctx.Done():
			return got, fault.New(fault.Unavailable, "No worker has answered in time; try again.").After(10*time.Second).With("job_id", j)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func openExport(jwe string, mine *ecdsa.PrivateKey) (crypto.Signer, error) {
	e, err := jose.ParseEncryptedCompact(jwe, []jose.KeyAlgorithm{jose.ECDH_ES}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		return nil, errors.New("the worker's answer is no JWE")
	}
	der, err := e.Decrypt(mine)
	if err != nil {
		return nil, errors.New("the worker's answer is for another key")
	}
	defer clear(der)
	return pki.ParseKey(der)
}

func encodeExport(format, password string, chain []*x509.Certificate, key crypto.Signer) (*exportOutput, error) {
	if format == "pem" {
		text, err := pki.MarshalKeyPEM(key)
		return &exportOutput{"application/x-pem-file", `attachment; filename="certificate.pem"`, append(bytes.Clone(pki.EncodeBundle(chain...)), text...)}, err
	}
	encoder := pkcs12.Modern2023
	if format == "pkcs12-legacy" {
		encoder = pkcs12.LegacyDES
	}
	p12, err := encoder.Encode(key, chain[0], chain[1:], password)
	return &exportOutput{"application/x-pkcs12", `attachment; filename="certificate.p12"`, p12}, err
}
