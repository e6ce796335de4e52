package config

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
)

type exampleForms struct{ word, brackets, dsnPassword *regexp.Regexp }

// isExamplePassword judges the password of a database URL, where "password" and "secret" are the weak but real choice of
// many a development server.
func (f exampleForms) isExamplePassword(p string) bool {
	return f.word.MatchString(p) && p != "password" && p != "secret"
}

// forms are compiled when the first secret is judged: package init is paid at every cold start.
var forms = sync.OnceValue(func() (f exampleForms) {
	f.word = regexp.MustCompile(`(?i)change[-_ ]?me|replace[-_ ]?me|placeholder|^(your|my)[-_]|^\s*(todo|fixme|xxx+|secret|password|example)\s*$|^example[-_]|[-_]example$`)
	f.brackets = regexp.MustCompile(`<[^<>]*>|\$\{[^}]*\}|\{\{[^}]*\}\}`)
	f.dsnPassword = regexp.MustCompile(`(?:^|\s)password\s*=\s*'?([^\s']+)`)
	return f
})

// Placeholder reports whether a secret was copied from an example instead of made: a word such as changeme or example,
// text in angle brackets or an unexpanded variable, one character repeated, or a key of zero bytes. Of a database URL it
// judges the password only.
func Placeholder(s string) bool {
	f := forms()
	if f.brackets.MatchString(s) {
		return true
	}
	if u, err := url.Parse(s); err == nil && u.Host != "" {
		password, _ := u.User.Password()
		return f.isExamplePassword(password)
	}
	if m := f.dsnPassword.FindStringSubmatch(s); m != nil {
		return f.isExamplePassword(m[1])
	}
	return f.word.MatchString(s) || repeats(s) || zeros(s)
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
