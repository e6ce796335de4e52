package lifecycle

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"net/netip"
	"time"

	"certctl/shared/audit"
	"certctl/shared/db"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/issuer"
	"certctl/shared/issuer/localca"
	"certctl/shared/job"
	"certctl/shared/pki"
	"certctl/shared/secret"
	"certctl/shared/span"

	"github.com/jackc/pgx/v5"
)

// LocalConfig are the settings of a local CA. Without a certificate a root is generated; with Certificate and Key one is
// imported; with Request a sub-CA's request is made, to be answered with FulfilRequest.
type LocalConfig struct {
	CommonName   string        `json:"common_name,omitempty" maxLength:"64" doc:"subject of a new CA; default: the issuer's name"`
	Organization string        `json:"organization,omitempty" maxLength:"64"`
	Country      string        `json:"country,omitempty" pattern:"^[A-Z]{2}$"`
	KeyAlgorithm string        `json:"key_algorithm,omitempty" doc:"ecdsa-p256 (default), ecdsa-p384, rsa-2048, rsa-3072, rsa-4096"`
	TTL          span.Duration `json:"ttl,omitzero" doc:"lifetime of a new root; default 3650d"`
	PathLength   *int          `json:"path_length,omitempty" minimum:"-1" maximum:"10" doc:"CA certificates that may follow; 0 (default): it signs leaves only; -1: any number"`
	PermittedDNS []string      `json:"permitted_dns,omitempty" maxItems:"100" doc:"name constraints of a new root"`
	ExcludedDNS  []string      `json:"excluded_dns,omitempty" maxItems:"100"`
	PermittedIPs []string      `json:"permitted_ips,omitempty" maxItems:"100" doc:"CIDR prefixes"`
	ExcludedIPs  []string      `json:"excluded_ips,omitempty" maxItems:"100"`
	Request      bool          `json:"request,omitempty" doc:"make a certificate request for a CA above instead of a root"`
	KeyFile      string        `json:"key_file,omitempty" maxLength:"1000" doc:"path of the CA key on the workers' hosts, with certificate_pem"`
	Certificate  string        `json:"certificate_pem,omitempty" maxLength:"65536" doc:"import: the CA certificate, followed by its parents"`
	Key          string        `json:"key_pem,omitempty" maxLength:"16384" doc:"import: the CA key; write-only"`
}

const defaultRootTTL = 3650 * 24 * time.Hour

// AddLocalCA makes the first generation of a local issuer, or its request to a CA above.
func AddLocalCA(ctx context.Context, tx pgx.Tx, box *secret.Box, i issuer.Configured, c LocalConfig) error {
	switch {
	case c.Request:
		return requestSubCA(ctx, tx, box, i, c)
	case c.Certificate != "":
		return importCA(ctx, tx, box, i, c)
	case c.Key != "" || c.KeyFile != "":
		return fault.BadField("config.certificate_pem", "is needed with a key")
	}
	a, err := c.authority(i.Name)
	if err != nil {
		return err
	}
	root, key, err := localca.NewRoot(a, time.Now())
	if err != nil {
		return inConfig(err)
	}
	return addGeneration(ctx, tx, box, i.ID, localca.Generation{Cert: root, Signer: key})
}

func (c LocalConfig) subject(name string) pkix.Name {
	n := pkix.Name{CommonName: c.CommonName}
	if n.CommonName == "" {
		n.CommonName = name
	}
	if len(n.CommonName) > 64 {
		n.CommonName = n.CommonName[:64]
	}
	if c.Organization != "" {
		n.Organization = []string{c.Organization}
	}
	if c.Country != "" {
		n.Country = []string{c.Country}
	}
	return n
}

func (c LocalConfig) authority(name string) (localca.Authority, error) {
	a := localca.Authority{Subject: c.subject(name), Algorithm: pki.KeyAlgorithm(c.KeyAlgorithm), TTL: c.TTL.Std(), PermittedDNS: c.PermittedDNS, ExcludedDNS: c.ExcludedDNS}
	if a.TTL == 0 {
		a.TTL = defaultRootTTL
	}
	if c.PathLength != nil {
		a.PathLen = *c.PathLength
	}
	if c.KeyAlgorithm != "" {
		if _, err := pki.ParseKeyAlgorithm(c.KeyAlgorithm); err != nil {
			return a, inConfig(err)
		}
	}
	var err error
	if a.PermittedIPs, err = prefixes("config.permitted_ips", c.PermittedIPs); err != nil {
		return a, err
	}
	a.ExcludedIPs, err = prefixes("config.excluded_ips", c.ExcludedIPs)
	return a, err
}

func prefixes(field string, texts []string) (out []netip.Prefix, err error) {
	for i, s := range texts {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fault.BadField(field+"["+itoa(i)+"]", "must be a CIDR prefix")
		}
		out = append(out, p)
	}
	return out, nil
}

// inConfig puts the fields of a driver's fault under config.
func inConfig(err error) error {
	f := fault.As(err)
	if f == nil {
		return err
	}
	out := *f
	out.Fields = nil
	for _, field := range f.Fields {
		if field.Field == "key" {
			field.Field = "key_pem"
		}
		out.Fields = append(out.Fields, fault.Field{Field: "config." + field.Field, Detail: field.Detail})
	}
	return &out
}

func importCA(ctx context.Context, tx pgx.Tx, box *secret.Box, i issuer.Configured, c LocalConfig) error {
	if (c.Key == "") == (c.KeyFile == "") {
		return fault.BadField("config.key_pem", "give the CA's key, or key_file with its path on the workers' hosts")
	}
	if c.KeyFile != "" {
		return importWithKeyFile(ctx, tx, i, c)
	}
	key, err := pki.ParseKey([]byte(c.Key))
	if err != nil {
		return fault.BadField("config.key_pem", "is not a private key in PKCS#8, SEC1 or PKCS#1")
	}
	g, err := localca.Import([]byte(c.Certificate), key, time.Now())
	if err != nil {
		return inConfig(err)
	}
	return addGeneration(ctx, tx, box, i.ID, g)
}

// importWithKeyFile trusts that the file holds the key: the worker finds out at its first signature.
func importWithKeyFile(ctx context.Context, tx pgx.Tx, i issuer.Configured, c LocalConfig) error {
	certs, err := pki.ParseBundle([]byte(c.Certificate))
	if err != nil || len(certs) == 0 {
		return fault.BadField("config.certificate_pem", "is not a PEM bundle of certificates")
	}
	g, err := localca.Import([]byte(c.Certificate), elsewhere{certs[0].PublicKey}, time.Now())
	if err != nil {
		return inConfig(err)
	}
	return storeGeneration(ctx, tx, issuer.NewGeneration{ID: id.New[id.Generation](), IssuerID: i.ID, Cert: g.Cert, Parents: g.Chain, KeyURI: "file:" + c.KeyFile})
}

// elsewhere is a key that this program does not hold.
type elsewhere struct{ public crypto.PublicKey }

func (e elsewhere) Public() crypto.PublicKey { return e.public }

func (elsewhere) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("the key is held elsewhere")
}

func requestSubCA(ctx context.Context, tx pgx.Tx, box *secret.Box, i issuer.Configured, c LocalConfig) error {
	a, err := c.authority(i.Name)
	if err != nil {
		return err
	}
	if a.Algorithm == "" {
		a.Algorithm = pki.ECDSAP256
	}
	key, err := pki.Generate(a.Algorithm)
	if err != nil {
		return err
	}
	csr, err := localca.RequestSubCA(a.Subject, a.PathLen, key)
	if err != nil {
		return inConfig(err)
	}
	gen := id.New[id.Generation]()
	sealed, err := (&House{Box: box}).sealKey(ctx, secret.CA, "ca_generations", "sealed_key", gen.UUID(), key)
	if err != nil {
		return err
	}
	_, err = db.Exec(ctx, tx, `INSERT INTO ca_requests (id, issuer_id, csr, sealed_key) VALUES (@id, @issuer, @csr, @key)`,
		pgx.NamedArgs{"id": gen, "issuer": i.ID, "csr": csr, "key": sealed})
	if db.Constraint(err) == "ca_requests_open" {
		return fault.New(fault.Conflict, "The issuer has an open request already; answer it first.")
	}
	return err
}

// OpenRequest answers the open certificate request of a sub-CA, DER.
func OpenRequest(ctx context.Context, q db.Querier, i id.Issuer) ([]byte, error) {
	type row struct{ CSR []byte }
	r, err := db.One[row](ctx, q, "open request of this issuer", `SELECT csr FROM ca_requests WHERE issuer_id = @i AND fulfilled_at IS NULL`, pgx.NamedArgs{"i": i})
	return r.CSR, err
}

// FulfilRequest makes the signed answer of the CA above the next generation. The database moves the sealed key on; nobody
// reads it here.
func FulfilRequest(ctx context.Context, tx pgx.Tx, i id.Issuer, bundle string) (issuer.Generation, error) {
	type row struct {
		ID  id.Generation
		CSR []byte
	}
	r, err := db.One[row](ctx, tx, "open request of this issuer", `UPDATE ca_requests SET fulfilled_at = now() WHERE issuer_id = @i AND fulfilled_at IS NULL RETURNING id, csr`, pgx.NamedArgs{"i": i})
	if err != nil {
		return issuer.Generation{}, err
	}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		return issuer.Generation{}, err
	}
	g, err := localca.Import([]byte(bundle), elsewhere{csr.PublicKey}, time.Now())
	if err != nil {
		return issuer.Generation{}, err
	}
	n := issuer.NewGeneration{ID: r.ID, IssuerID: i, Cert: g.Cert, Parents: g.Chain}
	if err := storeGeneration(ctx, tx, n); err != nil {
		return issuer.Generation{}, err
	}
	return issuer.GetGeneration(ctx, tx, r.ID)
}

// Rekey adds a generation with a new key. The old generation's certificates stay with it: its CRL and responder go on.
func Rekey(ctx context.Context, tx pgx.Tx, box *secret.Box, i id.Issuer) (issuer.Generation, error) {
	conf, err := issuer.Get(ctx, tx, i)
	if err != nil {
		return issuer.Generation{}, err
	}
	if conf.Type != LocalType || conf.ArchivedAt != nil {
		return issuer.Generation{}, fault.New(fault.Conflict, "Only a live local issuer has generations.")
	}
	old, err := issuer.LatestGeneration(ctx, tx, i)
	if err != nil {
		return old, err
	}
	c, err := old.X509()
	if err != nil {
		return old, err
	}
	alg, err := pki.AlgorithmOf(c.PublicKey)
	if err != nil {
		return old, err
	}
	g, err := localca.Rekey(localca.Generation{Cert: c}, alg, old.NotAfter.Sub(old.NotBefore), time.Now())
	if err != nil {
		return old, err
	}
	if err := addGeneration(ctx, tx, box, i, g); err != nil {
		return old, err
	}
	return issuer.LatestGeneration(ctx, tx, i)
}

func addGeneration(ctx context.Context, tx pgx.Tx, box *secret.Box, i id.Issuer, g localca.Generation) error {
	gen := id.New[id.Generation]()
	sealed, err := (&House{Box: box}).sealKey(ctx, secret.CA, "ca_generations", "sealed_key", gen.UUID(), g.Signer)
	if err != nil {
		return err
	}
	return storeGeneration(ctx, tx, issuer.NewGeneration{ID: gen, IssuerID: i, Cert: g.Cert, Parents: g.Chain, SealedKey: sealed})
}

// storeGeneration stores a generation and asks for what relying parties need of it: a first CRL and a responder certificate.
func storeGeneration(ctx context.Context, tx pgx.Tx, n issuer.NewGeneration) error {
	g, err := issuer.AddGeneration(ctx, tx, n)
	if err != nil {
		return err
	}
	for shard := range g.CRLShards {
		if err := enqueueCRL(ctx, tx, g.IssuerID, g.ID, shard); err != nil {
			return err
		}
	}
	if _, err := job.Enqueue(ctx, tx, job.New{Type: job.Responder, IssuerID: g.IssuerID, GenerationID: g.ID, Priority: job.Urgent, MaxAttempts: 20}); err != nil {
		return err
	}
	return audit.Record(ctx, tx, audit.Entry{Action: "issuer.generation_added", ResourceType: "issuer", ResourceID: g.IssuerID.String(),
		Details: map[string]any{"generation": g.Number, "not_after": g.NotAfter, "subject": n.Cert.Subject.String(), "serial": pki.FormatSerial(n.Cert.SerialNumber)}})
}
