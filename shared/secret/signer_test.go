package secret_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"certctl/shared/fault"
	"certctl/shared/pki"
	"certctl/shared/secret"
)

func newKey(t *testing.T) (key crypto.Signer, der []byte) {
	t.Helper()
	key, err := pki.Generate(pki.KeyAlgorithms()[0])
	if err == nil {
		der, err = pki.MarshalKey(key)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}

// away is a KMS that fails until told otherwise, and counts.
type away struct {
	secret.Keys
	down  bool
	calls int
}

func (a *away) Unwrap(ctx context.Context, p secret.Purpose, id string, w []byte) ([]byte, error) {
	a.calls++
	if a.down {
		return nil, errors.New("away")
	}
	return a.Keys.Unwrap(ctx, p, id, w)
}

func TestASealedSignerOpensItsKeyOnceAndAtTheFirstSignature(t *testing.T) {
	key, der := newKey(t)
	keys := &away{Keys: secret.NewMaster(secret.GenerateMasterKey()), down: true}
	b := secret.New(keys)
	s := secret.SealedSigner(b, secret.CA, at, seal(t, b, der), key.Public())
	if keys.calls != 0 || !pki.SameKey(s.Public(), key.Public()) {
		t.Errorf("opened %d times before a signature", keys.calls)
	}
	digest := sha256.Sum256([]byte("x"))
	if _, err := s.Sign(rand.Reader, digest[:], crypto.SHA256); err == nil {
		t.Error("signed without its key")
	}
	keys.down = false
	for range 2 {
		checkSignature(t, s, key.Public())
	}
	if keys.calls != 2 { // the failure and one success
		t.Errorf("unwrapped %d times, want 2", keys.calls)
	}
}

func TestASealedSignerRefusesAnotherKey(t *testing.T) {
	_, der := newKey(t)
	other, _ := newKey(t)
	b := box()
	s := secret.SealedSigner(b, secret.CA, at, seal(t, b, der), other.Public())
	digest := sha256.Sum256([]byte("x"))
	if _, err := s.Sign(rand.Reader, digest[:], crypto.SHA256); err == nil {
		t.Error("signed with a key that is not the certificate's")
	}
}

func TestKeyFilesAreSigners(t *testing.T) {
	key, _ := newKey(t)
	pem, err := pki.MarshalKeyPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.key")
	if err := os.WriteFile(path, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	sources := secret.Sources{"file": secret.Files}
	s, err := sources.Signer(ctx, "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	checkSignature(t, s, key.Public())

	if _, err := sources.Signer(ctx, "file:"+path+".none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := sources.Signer(ctx, "awskms:key"); !fault.Is(err, fault.NotImplemented) {
		t.Errorf("an unknown scheme: %v", err)
	}
	if err := os.WriteFile(path, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := secret.FileSigner(path); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a file without a key: %v", err)
	}
}

func checkSignature(t *testing.T, s crypto.Signer, pub crypto.PublicKey) {
	t.Helper()
	digest := sha256.Sum256([]byte("x"))
	sig, err := s.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(pub.(*ecdsa.PublicKey), digest[:], sig) {
		t.Error("the signature does not verify")
	}
}
