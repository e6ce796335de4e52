package config

import (
	"encoding/base64"
	"encoding/hex"
	"log/slog"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Secret is a value of the environment that prints as ***: in messages, logs and JSON alike. The text is behind a pointer,
// so that even %#v of a struct that holds one shows an address.
type Secret struct{ text *string }

// NewSecret makes a Secret of s; "" is the zero Secret.
func NewSecret(s string) Secret {
	if s == "" {
		return Secret{}
	}
	return Secret{&s}
}

// Reveal is the text itself.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// Set reports whether there is a text.
func (s Secret) Set() bool { return s.text != nil }

func (s Secret) String() string {
	if s.text == nil {
		return ""
	}
	return "***"
}

// GoString prints as String does.
func (s Secret) GoString() string { return s.String() }

// LogValue prints as String does.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText prints as String does, so that JSON and YAML never hold the text.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes the text from the environment.
func (s *Secret) UnmarshalText(b []byte) error {
	*s = NewSecret(string(b))
	return nil
}

var (
	exampleWord = regexp.MustCompile(`(?i)change[-_ ]?me|replace[-_ ]?me|placeholder|^(your|my)[-_]|^\s*(todo|fixme|xxx+|secret|password|example)\s*$|^example[-_]|[-_]example$`)
	brackets    = regexp.MustCompile(`<[^<>]*>|\$\{[^}]*\}|\{\{[^}]*\}\}`)
	dsnPassword = regexp.MustCompile(`(?:^|\s)password\s*=\s*'?([^\s']+)`)
)

// Placeholder reports whether a secret was copied from an example instead of made: a word such as changeme or example,
// text in angle brackets or an unexpanded variable, one character repeated, or a key of zero bytes. Of a database URL it
// judges the password only.
func Placeholder(s string) bool {
	if brackets.MatchString(s) {
		return true
	}
	if u, err := url.Parse(s); err == nil && u.Host != "" {
		password, _ := u.User.Password()
		return password != "" && exampleWord.MatchString(password) && password != "password" && password != "secret"
	}
	if m := dsnPassword.FindStringSubmatch(s); m != nil {
		return exampleWord.MatchString(m[1]) && m[1] != "password" && m[1] != "secret"
	}
	return exampleWord.MatchString(s) || repeats(s) || zeros(s)
}

// repeats reports whether s is one character over and over, base64 padding aside.
func repeats(s string) bool {
	s = strings.TrimRight(s, "=")
	return s != "" && strings.Trim(s, s[:1]) == ""
}

// zeros reports whether s encodes nothing but zero bytes.
func zeros(s string) bool {
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		raw, err = hex.DecodeString(s)
	}
	return err == nil && len(raw) > 0 && !slices.ContainsFunc(raw, func(b byte) bool { return b != 0 })
}
