package lifecycle

import (
	"context"
	"crypto"
	"fmt"
	"strconv"
	"strings"

	"certctl/shared/fault"
	"certctl/shared/issuer"
	"certctl/shared/issuer/localca"
	"certctl/shared/secret"
)

// LocalType is the type of issuers whose CA certctl runs itself.
const LocalType = "local"

func itoa(n int) string { return strconv.Itoa(n) }

// driver makes the issuer of a piece of work. A local CA signs with the generation that its checkpoint names, so that a
// retry after a re-key signs what was kept.
func (h *House) driver(ctx context.Context, w *work) (issuer.Issuer, error) {
	if w.issuer.Type != LocalType {
		return h.configured(ctx, w.issuer)
	}
	g, err := h.pinnedGeneration(ctx, w)
	if err != nil {
		return nil, err
	}
	return h.localCA(ctx, g)
}

// configured makes an issuer of another type from its settings.
func (h *House) configured(ctx context.Context, c issuer.Configured) (issuer.Issuer, error) {
	make, ok := h.Drivers[c.Type]
	if !ok {
		return nil, fault.New(fault.NotImplemented, "This worker has no driver for issuers of type %s.", c.Type)
	}
	sealed, err := issuer.SealedConfig(ctx, h.Pool, c.ID)
	if err != nil {
		return nil, err
	}
	if sealed != nil {
		if sealed, err = h.Box.Open(ctx, secret.Config, secret.Binding{Table: "issuers", Column: "sealed_config", Row: c.ID.UUID()}, sealed); err != nil {
			return nil, err
		}
		defer clear(sealed)
	}
	return make(ctx, c, sealed)
}

func (h *House) pinnedGeneration(ctx context.Context, w *work) (issuer.Generation, error) {
	if !w.steps.Generation.IsZero() {
		return issuer.GetGeneration(ctx, h.Pool, w.steps.Generation)
	}
	g, err := issuer.LatestGeneration(ctx, h.Pool, w.issuer.ID)
	if err == nil {
		w.steps.Generation = g.ID // stored with the driver's first Save, before anything is signed
	}
	return g, err
}

// localCA is the driver over one generation.
func (h *House) localCA(ctx context.Context, g issuer.Generation) (*localca.CA, error) {
	gen, err := h.openGeneration(ctx, g)
	if err != nil {
		return nil, err
	}
	return localca.New(localca.Config{Generation: gen, Lint: h.Lint, URLs: localca.URLs{
		CRL:  func(shard int16) string { return h.URLs.CRL(g.IssuerID, g.Number, shard, g.CRLShards) },
		OCSP: h.URLs.OCSP(g.IssuerID), CAIssuers: h.URLs.CA(g.IssuerID, g.Number)}})
}

func (h *House) openGeneration(ctx context.Context, g issuer.Generation) (localca.Generation, error) {
	c, err := g.X509()
	if err != nil {
		return localca.Generation{}, err
	}
	chain, err := g.Chain()
	if err != nil {
		return localca.Generation{}, err
	}
	signer, err := h.signer(ctx, g)
	return localca.Generation{Cert: c, Chain: chain, Signer: signer}, err
}

// signer opens a generation's key. The key of a generation never changes, so it is opened once per process.
func (h *House) signer(ctx context.Context, g issuer.Generation) (crypto.Signer, error) {
	if s, ok := h.signers.Load(g.ID); ok {
		return s.(crypto.Signer), nil
	}
	s, err := h.openSigner(ctx, g)
	if err != nil {
		return nil, fmt.Errorf("opening the key of generation %d of %s: %w", g.Number, g.IssuerID, err)
	}
	h.signers.Store(g.ID, s)
	return s, nil
}

func (h *House) openSigner(ctx context.Context, g issuer.Generation) (crypto.Signer, error) {
	if g.KeyURI == nil {
		sealed, err := issuer.SealedKey(ctx, h.Pool, g.ID)
		if err != nil {
			return nil, err
		}
		return h.openKey(ctx, secret.CA, "ca_generations", "sealed_key", g.ID.UUID(), sealed)
	}
	path, ok := strings.CutPrefix(*g.KeyURI, "file:")
	if !ok {
		return nil, fault.New(fault.NotImplemented, "This program has no key source for this kind of key URI.")
	}
	return secret.FileSigner(path)
}
