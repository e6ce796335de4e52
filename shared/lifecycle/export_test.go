package lifecycle

import (
	"crypto"

	"certctl/shared/id"
)

// SetSigner puts a signer in the place of a generation's own.
func (h *House) SetSigner(g id.Generation, s crypto.Signer) { h.signers.Store(g, s) }
