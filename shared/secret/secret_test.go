package secret_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"certctl/shared/secret"
)

var (
	ctx = context.Background()
	at  = secret.Binding{Table: "ca_generations", Column: "sealed_key", Row: "row-1"}
)

// The golden value was made by Python's cryptography package from the description of the envelope, not by this package.
const (
	goldenMaster = "NzhEM/DkrZmmRVZT4YNucLwihnlfTmpOs2CgEcHcqNQ="
	goldenSealed = "01176d61737465723a63343536363365376335646364643530003c000102030405060708090a0bcbabebbaf7cd91cb1967592ab945634c" +
		"9d8132afc4baa92065d09aa131c0b0f90042dae684c79ee9ffcb2dd6bebf6a606465666768696a6b6c6d6e6f23a02e0c18a3ee24c14cd3d9d78d184" +
		"11e0aa403c03bacc399de"
)

func TestAValueSealedElsewhereByTheDescriptionOpens(t *testing.T) {
	k, err := secret.ParseMasterKey(goldenMaster)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := hex.DecodeString(goldenSealed)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := secret.New(secret.NewMaster(k)).Open(ctx, secret.CA, at, sealed)
	if err != nil || string(plain) != "plain text" {
		t.Fatalf("opened %q, %v", plain, err)
	}
}

func TestSealedValuesOpenAndNoTwoAreAlike(t *testing.T) {
	b := box()
	for _, plain := range [][]byte{nil, {0}, bytes.Repeat([]byte("x"), 100_000)} {
		one, two := seal(t, b, plain), seal(t, b, plain)
		if bytes.Equal(one, two) {
			t.Error("two seals of one value are equal")
		}
		got, err := b.Open(ctx, secret.CA, at, one)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d octets opened to %d, %v", len(plain), len(got), err)
		}
	}
}

func TestEveryFlippedOctetAndEveryCutIsRefused(t *testing.T) {
	b := box()
	sealed := seal(t, b, []byte("plain"))
	for i := range sealed {
		for _, bit := range []byte{1, 0x80} {
			bad := bytes.Clone(sealed)
			bad[i] ^= bit
			if _, err := b.Open(ctx, secret.CA, at, bad); !errors.Is(err, secret.ErrNotOpened) && !errors.Is(err, secret.ErrUnknownKey) {
				t.Errorf("octet %d flipped: %v", i, err)
			}
		}
		if _, err := b.Open(ctx, secret.CA, at, sealed[:i]); err == nil {
			t.Errorf("cut to %d octets it opened", i)
		}
	}
	if _, err := b.Open(ctx, secret.CA, at, append(sealed, 0)); err == nil {
		t.Error("with an octet more it opened")
	}
}

func TestAValueOpensOnlyAtItsOwnPlaceAndForItsPurpose(t *testing.T) {
	b := box()
	sealed := seal(t, b, []byte("plain"))
	for name, other := range map[string]secret.Binding{
		"other table":   {Table: "issuers", Column: at.Column, Row: at.Row},
		"other column":  {Table: at.Table, Column: "certificate", Row: at.Row},
		"other row":     {Table: at.Table, Column: at.Column, Row: "row-2"},
		"shifted parts": {Table: at.Table + at.Column, Column: "", Row: at.Row},
	} {
		if _, err := b.Open(ctx, secret.CA, other, sealed); !errors.Is(err, secret.ErrNotOpened) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := b.Open(ctx, secret.Leaf, at, sealed); err == nil {
		t.Error("another purpose opened it")
	}
}

// sameKey wraps every purpose under one key, so that only the sealed value itself tells purposes apart.
type sameKey struct{ secret.Keys }

func (k sameKey) Current(secret.Purpose) string { return k.Keys.Current(secret.CA) }
func (k sameKey) Wrap(ctx context.Context, _ secret.Purpose, dek []byte) ([]byte, error) {
	return k.Keys.Wrap(ctx, secret.CA, dek)
}
func (k sameKey) Unwrap(ctx context.Context, _ secret.Purpose, id string, w []byte) ([]byte, error) {
	return k.Keys.Unwrap(ctx, secret.CA, id, w)
}

func TestPurposesStayApartUnderOneKey(t *testing.T) {
	b := secret.New(sameKey{secret.NewMaster(secret.GenerateMasterKey())})
	if _, err := b.Open(ctx, secret.Leaf, at, seal(t, b, []byte("plain"))); !errors.Is(err, secret.ErrNotOpened) {
		t.Errorf("got %v", err)
	}
}

func TestALimitedBoxDoesWhatItIsGivenOnly(t *testing.T) {
	full := box()
	limited := full.Limit([]secret.Purpose{secret.OCSP}, []secret.Purpose{secret.CA})
	sealed := seal(t, limited, []byte("plain"))
	if _, err := limited.Open(ctx, secret.CA, at, sealed); !errors.Is(err, secret.ErrForbidden) {
		t.Errorf("opening what may be sealed only: %v", err)
	}
	if _, err := limited.Seal(ctx, secret.OCSP, at, nil); !errors.Is(err, secret.ErrForbidden) {
		t.Errorf("sealing what may be opened only: %v", err)
	}
	if _, err := limited.Limit([]secret.Purpose{secret.CA}, nil).Open(ctx, secret.CA, at, sealed); !errors.Is(err, secret.ErrForbidden) {
		t.Errorf("a limit was widened: %v", err)
	}
	if _, err := full.Open(ctx, secret.CA, at, sealed); err != nil {
		t.Errorf("the full box lost something: %v", err)
	}
}

func TestTheCanaryProvesTheMasterKey(t *testing.T) {
	b := box()
	sealed, err := b.SealCanary(ctx, at)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Limit(nil, nil).CheckCanary(ctx, at, sealed); err != nil {
		t.Errorf("a box without purposes cannot check: %v", err)
	}
	if err := box().CheckCanary(ctx, at, sealed); err == nil || !strings.Contains(err.Error(), "CERTCTL_MASTER_KEY") {
		t.Errorf("another master key got %v", err)
	}
	other, err := b.Seal(ctx, secret.Canary, at, []byte("something else"))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.CheckCanary(ctx, at, other); err == nil {
		t.Error("another value passed for the canary")
	}
}

func TestRotationReopensUnderTheNewKey(t *testing.T) {
	before, after := secret.GenerateMasterKey(), secret.GenerateMasterKey()
	sealed := seal(t, secret.New(secret.NewMaster(before)), []byte("plain"))
	both := secret.New(secret.NewMaster(after, before))

	fresh, changed, err := both.Reseal(ctx, secret.CA, at, sealed)
	if err != nil || !changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
	if plain, err := secret.New(secret.NewMaster(after)).Open(ctx, secret.CA, at, fresh); err != nil || string(plain) != "plain" {
		t.Errorf("under the new key alone: %q, %v", plain, err)
	}
	if again, changed, err := both.Reseal(ctx, secret.CA, at, fresh); err != nil || changed || !bytes.Equal(again, fresh) {
		t.Errorf("a second rotation changed it: %v, %v", changed, err)
	}
	if _, err := secret.New(secret.NewMaster(after)).Open(ctx, secret.CA, at, sealed); !errors.Is(err, secret.ErrUnknownKey) {
		t.Errorf("the old value under the new key alone: %v", err)
	}
}

func box() *secret.Box { return secret.New(secret.NewMaster(secret.GenerateMasterKey())) }

func seal(t *testing.T, b *secret.Box, plain []byte) []byte {
	t.Helper()
	sealed, err := b.Seal(ctx, secret.CA, at, plain)
	if err != nil {
		t.Fatal(err)
	}
	if len(plain) > 4 && bytes.Contains(sealed, plain) {
		t.Fatal("the value lies open in its envelope")
	}
	return sealed
}
