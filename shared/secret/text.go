package secret

import (
	"crypto/subtle"
	"fmt"
	"log/slog"
)

const hidden = "***"

// Text is a password, token or URL that holds one. It prints as *** under fmt, slog and JSON ("" when empty); Reveal is the
// only way to it, and easy to search for. It reads from JSON and from the environment like a string.
type Text struct{ s *string } // a pointer: fmt prints unexported fields of structs without asking their methods

// NewText hides s.
func NewText(s string) Text { return Text{&s} }

// Reveal is the text itself.
func (t Text) Reveal() string {
	if t.s == nil {
		return ""
	}
	return *t.s
}

// IsZero reports whether the text is empty.
func (t Text) IsZero() bool { return t.Reveal() == "" }

// Equal compares in constant time.
func (t Text) Equal(o Text) bool {
	return subtle.ConstantTimeCompare([]byte(t.Reveal()), []byte(o.Reveal())) == 1
}

// String is *** or "".
func (t Text) String() string {
	if t.IsZero() {
		return ""
	}
	return hidden
}

// Format implements fmt.Formatter: every verb prints String, %q and %x too.
func (t Text) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(t.String())) }

// LogValue implements slog.LogValuer.
func (t Text) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText implements encoding.TextMarshaler.
func (t Text) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Text) UnmarshalText(b []byte) error {
	*t = NewText(string(b))
	return nil
}
