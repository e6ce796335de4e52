// Package id owns identifiers: TypeIDs (a noun's prefix, an underscore, a UUIDv7 in 26 base32 digits), one Go type per noun.
//
// The database stores the bare uuid; people, URLs and JSON see the TypeID. The zero value means "none": it is NULL in SQL,
// null in JSON and "" as text.
package id

import (
	"crypto/rand"
	"database/sql/driver"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Noun ties a prefix to a Go type. Only this package has nouns.
type Noun interface{ prefix() string }

// ID is the identifier of one noun.
type ID[N Noun] [16]byte

type (
	crt  struct{}
	ver  struct{}
	job  struct{}
	iss  struct{}
	prf  struct{}
	rpl  struct{}
	pol  struct{}
	tgt  struct{}
	dep  struct{}
	agt  struct{}
	own  struct{}
	team struct{}
	key  struct{}
	evt  struct{}
	ntf  struct{}
	dsc  struct{}
	gen  struct{}
	ocr  struct{}
	tok  struct{}
)

func (crt) prefix() string  { return "crt" }
func (ver) prefix() string  { return "ver" }
func (job) prefix() string  { return "job" }
func (iss) prefix() string  { return "iss" }
func (prf) prefix() string  { return "prf" }
func (rpl) prefix() string  { return "rpl" }
func (pol) prefix() string  { return "pol" }
func (tgt) prefix() string  { return "tgt" }
func (dep) prefix() string  { return "dep" }
func (agt) prefix() string  { return "agt" }
func (own) prefix() string  { return "own" }
func (team) prefix() string { return "team" }
func (key) prefix() string  { return "key" }
func (evt) prefix() string  { return "evt" }
func (ntf) prefix() string  { return "ntf" }
func (dsc) prefix() string  { return "dsc" }
func (gen) prefix() string  { return "gen" }
func (ocr) prefix() string  { return "ocr" }
func (tok) prefix() string  { return "tok" }

// The identifiers of the nouns.
type (
	Certificate     = ID[crt]
	Version         = ID[ver]
	Job             = ID[job]
	Issuer          = ID[iss]
	Profile         = ID[prf]
	RenewalPolicy   = ID[rpl]
	Policy          = ID[pol]
	Target          = ID[tgt]
	Deployment      = ID[dep]
	Agent           = ID[agt]
	Owner           = ID[own]
	Team            = ID[team]
	Key             = ID[key]
	Event           = ID[evt]
	Notification    = ID[ntf]
	Discovery       = ID[dsc]
	Generation      = ID[gen]
	Responder       = ID[ocr]
	EnrollmentToken = ID[tok]
)

// ErrMalformed is what Parse answers for a text that is no identifier of the noun.
var ErrMalformed = errors.New("malformed identifier")

// Crockford's alphabet in lower case, as the TypeID specification (v0.3) fixes it.
const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"

// New makes a fresh UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, then random bits. Call it as id.New[id.Job]().
func New[T ~[16]byte]() T {
	var i [16]byte
	_, _ = rand.Read(i[:]) // never fails since Go 1.24
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(time.Now().UnixMilli())) // #nosec G115 -- the clock is after 1970
	copy(i[:6], ms[2:])
	i[6] = i[6]&0x0f | 0x70
	i[8] = i[8]&0x3f | 0x80
	return T(i)
}

// Parse reads a TypeID: id.Parse[id.Job](s). It accepts the canonical lower-case form only, so that one thing has one name.
func Parse[T any, P interface {
	*T
	parse(s string) error
}](s string) (T, error) {
	var t T
	err := P(&t).parse(s)
	return t, err
}

// ParseSuffix reads the 26 digits behind the prefix.
func ParseSuffix[T any, P interface {
	*T
	parseSuffix(s string) error
}](s string) (T, error) {
	var t T
	err := P(&t).parseSuffix(s)
	return t, err
}

func (i *ID[N]) parse(s string) error {
	var n N
	tail, ok := strings.CutPrefix(s, n.prefix()+"_")
	if !ok {
		return ErrMalformed
	}
	return i.parseSuffix(tail)
}

func (i *ID[N]) parseSuffix(tail string) error {
	if len(tail) != 26 || tail[0] > '7' {
		return ErrMalformed
	}
	var out ID[N]
	var acc uint64
	bits, at := 0, 0
	for k := range len(tail) {
		v := strings.IndexByte(alphabet, tail[k])
		if v < 0 {
			return ErrMalformed
		}
		acc, bits = acc<<5|uint64(v), bits+5 // #nosec G115 -- v is a digit
		if k == 0 {                          // 26 digits hold 130 bits: the first carries three
			bits = 3
		}
		for bits >= 8 {
			bits -= 8
			out[at] = byte(acc >> bits) // #nosec G115 -- the low octet is what is wanted
			at++
		}
	}
	*i = out
	return nil
}

// IsZero reports whether the identifier is "none".
func (i ID[N]) IsZero() bool { return i == ID[N]{} }

// String is the TypeID, or "" for none.
func (i ID[N]) String() string {
	if i.IsZero() {
		return ""
	}
	var n N
	return n.prefix() + "_" + i.Suffix()
}

// Suffix is the TypeID without its prefix: 26 digits.
func (i ID[N]) Suffix() string {
	var b [26]byte
	hi, lo := binary.BigEndian.Uint64(i[:8]), binary.BigEndian.Uint64(i[8:])
	for k := 25; k >= 0; k-- {
		b[k] = alphabet[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return string(b[:])
}

// UUID is the form that SQL and psql show.
func (i ID[N]) UUID() string {
	h := hex.EncodeToString(i[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// MarshalJSON writes the TypeID, null for none.
func (i ID[N]) MarshalJSON() ([]byte, error) {
	if i.IsZero() {
		return []byte("null"), nil
	}
	return []byte(`"` + i.String() + `"`), nil
}

// UnmarshalJSON reads a TypeID or null.
func (i *ID[N]) UnmarshalJSON(b []byte) error {
	s := string(b)
	if s == "null" {
		*i = ID[N]{}
		return nil
	}
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return ErrMalformed
	}
	return i.UnmarshalText(b[1 : len(b)-1])
}

// MarshalText writes the TypeID.
func (i ID[N]) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText reads a TypeID; "" is none.
func (i *ID[N]) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*i = ID[N]{}
		return nil
	}
	return i.parse(string(b))
}

// Value is the uuid for SQL, NULL for none.
func (i ID[N]) Value() (driver.Value, error) {
	if i.IsZero() {
		return nil, nil
	}
	return i.UUID(), nil
}

// Scan reads a uuid from SQL, NULL as none.
func (i *ID[N]) Scan(v any) error {
	switch t := v.(type) {
	case nil:
		*i = ID[N]{}
		return nil
	case [16]byte:
		*i = t
		return nil
	case []byte:
		if len(t) == 16 {
			copy(i[:], t)
			return nil
		}
		return i.Scan(string(t))
	case string:
		b, err := hex.DecodeString(strings.ReplaceAll(t, "-", ""))
		if err != nil || len(b) != 16 {
			return ErrMalformed
		}
		copy(i[:], b)
		return nil
	}
	return fmt.Errorf("scanning %T as an identifier: %w", v, ErrMalformed)
}
