package secret

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"certctl/shared/fault"
	"certctl/shared/pki"
)

// Source makes a signer of a key that lies elsewhere. rest is the key's URI without its scheme.
type Source func(ctx context.Context, rest string) (crypto.Signer, error)

// Sources maps schemes of key URIs ("file", and what KMS and PKCS#11 packages bring) to sources. Each program lists its
// own, so that it links only what it uses.
type Sources map[string]Source

// Signer opens the key that uri names. A scheme that the program lacks is a NotImplemented fault.
func (s Sources) Signer(ctx context.Context, uri string) (crypto.Signer, error) {
	scheme, rest, _ := strings.Cut(uri, ":")
	open, ok := s[scheme]
	if !ok {
		return nil, fault.New(fault.NotImplemented, "This program has no key source for this kind of key URI.")
	}
	return open(ctx, rest)
}

// Files is the source of file:/path/to/key.pem.
func Files(_ context.Context, path string) (crypto.Signer, error) { return FileSigner(path) }

// FileSigner reads an unencrypted private key in PEM or DER (pki.ParseKey).
func FileSigner(path string) (crypto.Signer, error) {
	f, err := os.Open(path) // #nosec G304 -- an administrator names the file
	if err != nil {
		return nil, fmt.Errorf("opening a key file: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("reading a key file: %w", err)
	}
	defer clear(data)
	key, err := pki.ParseKey(data)
	if err != nil {
		return nil, fmt.Errorf("reading the key file %s: %w", path, err)
	}
	return key, nil
}

// SealedSigner signs with a sealed PKCS #8 key that is opened at the first signature and then kept. pub is the key that the
// certificate names; another one inside is an error.
func SealedSigner(b *Box, p Purpose, at Binding, sealed []byte, pub crypto.PublicKey) crypto.Signer {
	return &sealedSigner{box: b, purpose: p, at: at, sealed: sealed, pub: pub}
}

type sealedSigner struct {
	box     *Box
	purpose Purpose
	at      Binding
	sealed  []byte
	pub     crypto.PublicKey

	mu  sync.Mutex
	key crypto.Signer // nil until opened; a failure is tried again, since a KMS may have been away
}

func (s *sealedSigner) Public() crypto.PublicKey { return s.pub }

func (s *sealedSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	key, err := s.opened()
	if err != nil {
		return nil, err
	}
	return key.Sign(random, digest, opts)
}

func (s *sealedSigner) opened() (crypto.Signer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.key != nil {
		return s.key, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // crypto.Signer brings none
	defer cancel()
	der, err := s.box.Open(ctx, s.purpose, s.at, s.sealed)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	key, err := pki.ParseKey(der)
	if err != nil {
		return nil, fmt.Errorf("reading a sealed key: %w", err)
	}
	if !pki.SameKey(key.Public(), s.pub) {
		return nil, errors.New("a sealed key is not the one that its certificate names")
	}
	s.key = key
	return key, nil
}
