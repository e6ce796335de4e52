// Package secret seals what the database keeps secret, and makes signers of sealed keys and key files.
//
// Sealing is by purpose: each has a key-encryption key of its own, so that a program can be given one and not another. A
// sealed value is bound to its row: moved to another row, column or purpose it does not open. The package knows no
// database; it is given bytes and a Binding.
package secret

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Purpose says what a sealed value is for.
type Purpose string

// The purposes.
const (
	CA     Purpose = "ca"     // keys of certificate authorities
	OCSP   Purpose = "ocsp"   // keys of delegated responders
	Leaf   Purpose = "leaf"   // keys of certificates in server custody
	Config Purpose = "config" // write-only settings of issuers and targets
	Audit  Purpose = "audit"  // the audit trail's signing key
	Canary Purpose = "canary" // nothing: proves that the key-encryption keys are the right ones
)

// Binding is where a sealed value lies. It is authenticated, not stored.
type Binding struct {
	Table, Column string
	Row           string // the row's id as text; the same at sealing and at opening
}

// Keys wraps data keys under one key-encryption key per purpose: a Master, or a KMS in a package of its own.
type Keys interface {
	// Current names the key-encryption key that Wrap uses, in at most 255 octets. It is stored in clear.
	Current(p Purpose) string
	// Wrap encrypts a data key of 32 octets.
	Wrap(ctx context.Context, p Purpose, dek []byte) (wrapped []byte, err error)
	// Unwrap reverses Wrap under the key-encryption key named, which may be older than the current one. ErrUnknownKey if
	// there is none of that name, ErrNotOpened if the wrapped key was altered or is another purpose's.
	Unwrap(ctx context.Context, p Purpose, kekID string, wrapped []byte) (dek []byte, err error)
}

// What a caller tells apart. A KMS that is away answers with errors of its own.
var (
	ErrNotOpened  = errors.New("the sealed value does not open here: it was altered, or belongs to another row or purpose")
	ErrUnknownKey = errors.New("the sealed value was sealed under another key than those given to this program")
	ErrForbidden  = errors.New("this program is not given secrets of this purpose")
)

// Box seals and opens. It is safe for concurrent use.
type Box struct {
	keys       Keys
	open, seal map[Purpose]bool
}

// New makes a box for all purposes.
func New(keys Keys) *Box {
	all := setOf([]Purpose{CA, OCSP, Leaf, Config, Audit, Canary})
	return &Box{keys: keys, open: all, seal: all}
}

// Limit answers a box that opens and seals these purposes only, as far as b may. The canary can always be opened.
func (b *Box) Limit(open, seal []Purpose) *Box {
	return &Box{keys: b.keys, open: common(b.open, append(slices.Clone(open), Canary)), seal: common(b.seal, seal)}
}

func setOf(ps []Purpose) map[Purpose]bool {
	m := map[Purpose]bool{}
	for _, p := range ps {
		m[p] = true
	}
	return m
}

func common(have map[Purpose]bool, want []Purpose) map[Purpose]bool {
	m := setOf(want)
	maps.DeleteFunc(m, func(p Purpose, _ bool) bool { return !have[p] })
	return m
}

// Seal encrypts plain for one row under a fresh data key.
func (b *Box) Seal(ctx context.Context, p Purpose, at Binding, plain []byte) ([]byte, error) {
	if !b.seal[p] {
		return nil, fmt.Errorf("sealing (%s): %w", p, ErrForbidden)
	}
	dek := make([]byte, 32)
	defer clear(dek)
	e := envelope{kekID: b.keys.Current(p), nonce: make([]byte, nonceSize)}
	_, _ = rand.Read(dek) // never fails since Go 1.24
	_, _ = rand.Read(e.nonce)
	var err error
	if e.wrapped, err = b.keys.Wrap(ctx, p, dek); err != nil {
		return nil, fmt.Errorf("sealing (%s): %w", p, err)
	}
	aead, err := gcm(dek)
	if err != nil {
		return nil, err
	}
	e.ciphertext = aead.Seal(nil, e.nonce, plain, additional(p, at))
	return e.encode()
}

// Open decrypts what Seal made for the same purpose and row.
func (b *Box) Open(ctx context.Context, p Purpose, at Binding, sealed []byte) ([]byte, error) {
	if !b.open[p] {
		return nil, fmt.Errorf("opening (%s): %w", p, ErrForbidden)
	}
	e, err := decode(sealed)
	if err != nil {
		return nil, fmt.Errorf("opening (%s): %w", p, err)
	}
	dek, err := b.keys.Unwrap(ctx, p, e.kekID, e.wrapped)
	if err != nil {
		return nil, fmt.Errorf("opening (%s): %w", p, err)
	}
	defer clear(dek)
	aead, err := gcm(dek)
	if err != nil {
		return nil, fmt.Errorf("opening (%s): %w", p, ErrNotOpened)
	}
	plain, err := aead.Open(nil, e.nonce, e.ciphertext, additional(p, at))
	if err != nil {
		return nil, fmt.Errorf("opening (%s): %w", p, ErrNotOpened)
	}
	return plain, nil
}

// Reseal seals a value under the current key-encryption key, for `certctl secrets rotate`. changed is false, and the value
// the same, if it is sealed under that key already.
func (b *Box) Reseal(ctx context.Context, p Purpose, at Binding, sealed []byte) (fresh []byte, changed bool, err error) {
	e, err := decode(sealed)
	if err != nil {
		return nil, false, fmt.Errorf("opening (%s): %w", p, err)
	}
	if e.kekID == b.keys.Current(p) {
		return sealed, false, nil
	}
	plain, err := b.Open(ctx, p, at, sealed)
	if err != nil {
		return nil, false, err
	}
	defer clear(plain)
	fresh, err = b.Seal(ctx, p, at, plain)
	return fresh, err == nil, err
}

var canary = []byte("certctl canary")

// SealCanary makes the value that proves the master key at later starts.
func (b *Box) SealCanary(ctx context.Context, at Binding) ([]byte, error) {
	return b.Seal(ctx, Canary, at, canary)
}

// CheckCanary opens a canary. An error says that the key-encryption keys are not the database's, or that a KMS is away.
func (b *Box) CheckCanary(ctx context.Context, at Binding, sealed []byte) error {
	plain, err := b.Open(ctx, Canary, at, sealed)
	switch {
	case errors.Is(err, ErrUnknownKey), errors.Is(err, ErrNotOpened), err == nil && string(plain) != string(canary):
		return errors.New("this database was sealed under another master key: set CERTCTL_MASTER_KEY to the key it was made with")
	case err != nil:
		return fmt.Errorf("proving the master key: %w", err)
	}
	return nil
}

// additional is what is authenticated beside the value: each part with its length before it, so that no two bindings
// agree.
func additional(p Purpose, at Binding) []byte {
	var b []byte
	for _, part := range []string{"certctl sealed value v1", string(p), at.Table, at.Column, at.Row} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part))) // #nosec G115 -- names and ids are short
		b = append(b, part...)
	}
	return b
}

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
