package secret

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
)

// MasterKey is the 32 octets that all key-encryption keys of an installation are derived from. It prints as ***.
type MasterKey struct{ s *string } // as in Text; fmt follows pointers to arrays under a wrong verb, to strings never

// GenerateMasterKey makes a random one.
func GenerateMasterKey() MasterKey {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return masterKey(b)
}

func masterKey(b []byte) MasterKey {
	s := string(b)
	return MasterKey{&s}
}

// Encode is the form that ParseMasterKey reads, for the file it is kept in.
func (k MasterKey) Encode() string { return base64.StdEncoding.EncodeToString([]byte(*k.s)) }

// Format implements fmt.Formatter and prints ***.
func (MasterKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// LogValue implements slog.LogValuer.
func (MasterKey) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText implements encoding.TextMarshaler, for JSON.
func (MasterKey) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// ParseMasterKey reads 32 octets in base64 (either alphabet, padded or not, spaces around it) and refuses what nobody
// draws at random. Its errors name CERTCTL_MASTER_KEY and what to set, and hold nothing of the value.
func ParseMasterKey(s string) (MasterKey, error) {
	s = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(strings.TrimSpace(s), "="))
	b, err := base64.RawStdEncoding.DecodeString(s)
	var fault string
	switch {
	case s == "":
		fault = "is not set"
	case err != nil:
		fault = "is not base64"
	case len(b) != 32:
		fault = fmt.Sprintf("holds %d octets, not 32", len(b))
	case regular(b), printable(b):
		fault = "is a placeholder, not 32 random octets"
	default:
		return masterKey(b), nil
	}
	return MasterKey{}, fmt.Errorf("CERTCTL_MASTER_KEY %s: set it to the output of `openssl rand -base64 32`", fault)
}

// regular finds repetitions and sequences: 32 random octets have about 30 different ones, and more than 16 different steps
// from one to the next, but for one in 10^15.
func regular(b []byte) bool {
	values, steps := map[byte]bool{}, map[byte]bool{}
	for i := range b {
		values[b[i]] = true
		steps[b[i]-b[(i+1)%len(b)]] = true
	}
	return len(values) < 16 || len(steps) < 16
}

// printable finds texts, encoded once more: random octets are one in 10^13 times.
func printable(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// Master is the Keys of an installation that has a master key.
type Master struct {
	current MasterKey
	all     []MasterKey
}

// NewMaster wraps under the current key and unwraps under any of them: during a rotation the previous one is given too.
func NewMaster(current MasterKey, previous ...MasterKey) *Master {
	return &Master{current, append([]MasterKey{current}, previous...)}
}

// Current implements Keys. The id is derived from the key and tells nothing about it.
func (m *Master) Current(p Purpose) string { return m.current.id(p) }

// Wrap implements Keys: nonce, then AES-256-GCM with the purpose as additional data.
func (m *Master) Wrap(_ context.Context, p Purpose, dek []byte) ([]byte, error) {
	aead, err := gcm(m.current.kek(p))
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, nonceSize, nonceSize+len(dek)+tagSize)
	_, _ = rand.Read(nonce) // never fails since Go 1.24
	return aead.Seal(nonce, nonce, dek, []byte(p)), nil
}

// Unwrap implements Keys.
func (m *Master) Unwrap(_ context.Context, p Purpose, kekID string, wrapped []byte) ([]byte, error) {
	for _, k := range m.all {
		if k.id(p) != kekID {
			continue
		}
		aead, err := gcm(k.kek(p))
		if err != nil {
			return nil, err
		}
		if len(wrapped) < nonceSize {
			return nil, ErrNotOpened
		}
		dek, err := aead.Open(nil, wrapped[:nonceSize], wrapped[nonceSize:], []byte(p))
		if err != nil {
			return nil, ErrNotOpened
		}
		return dek, nil
	}
	return nil, ErrUnknownKey
}

func (k MasterKey) kek(p Purpose) []byte { return k.derive("certctl kek v1 "+string(p), 32) }

func (k MasterKey) id(p Purpose) string {
	return "master:" + hex.EncodeToString(k.derive("certctl kek id v1 "+string(p), 8))
}

// derive is HKDF-SHA-256 (RFC 5869) without salt: the master key is uniform already.
func (k MasterKey) derive(info string, n int) []byte {
	out, err := hkdf.Key(sha256.New, []byte(*k.s), nil, info, n)
	if err != nil {
		panic(err) // only for lengths beyond 255 hashes
	}
	return out
}
