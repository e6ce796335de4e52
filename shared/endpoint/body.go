package endpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"certctl/shared/fault"
)

// readQuery refuses what a query string can hold and no operation takes. Unknown names are huma's to refuse.
func (c *call) readQuery() error {
	if c.r.URL.RawQuery == "" {
		return nil
	}
	q, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return fault.New(fault.Invalid, "The query string is malformed.")
	}
	var fields []fault.Field
	for name, values := range q {
		switch v := values[0]; {
		case len(values) > 1:
			fields = append(fields, fault.Field{Field: shownPath(name), Detail: "given more than once"})
		case v == "":
			fields = append(fields, fault.Field{Field: shownPath(name), Detail: "has no value; leave the name out"})
		case !utf8.ValidString(v) || strings.Contains(v, "\x00"):
			fields = append(fields, fault.Field{Field: shownPath(name), Detail: "is not text"})
		}
	}
	if fields != nil {
		return fault.BadFields(sorted(fields)...)
	}
	return nil
}

// readBody reads the body within its bound and checks what huma does not. An empty body is {} to an operation that has
// one, so that the answer names the fields that are missing.
func (c *call) readBody(w http.ResponseWriter) error {
	given := c.r.Body
	c.r.Body = http.NoBody
	if c.r.Method == http.MethodGet || c.r.Method == http.MethodHead || given == nil {
		given = http.NoBody
	}
	b, err := readBounded(w, given, c.r.ContentLength, c.limit())
	if err != nil {
		return err
	}
	if len(b) == 0 {
		if !c.o.hasBody {
			return nil
		}
		b = []byte("{}")
	} else if err := c.checkBody(b); err != nil {
		return err
	}
	c.body = b
	if c.o.hasBody {
		c.r.Body = io.NopCloser(bytes.NewReader(b))
		c.r.Header = c.r.Header.Clone()
		c.r.Header.Set("Content-Type", "application/json")
	}
	return nil
}

func (c *call) limit() int64 {
	if c.o.doc.MaxBody > 0 {
		return c.o.doc.MaxBody
	}
	return c.o.rt.config.MaxBody
}

func readBounded(w http.ResponseWriter, r io.ReadCloser, length, limit int64) ([]byte, error) {
	tooLarge := fault.New(fault.TooLarge, "The body exceeds %d bytes.", limit)
	if r == http.NoBody {
		return nil, nil
	}
	if length > limit {
		return nil, tooLarge
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r, limit))
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return nil, tooLarge
	case err != nil:
		return nil, fault.Wrap(err, fault.Invalid, "The body could not be read.")
	}
	return b, nil
}

func (c *call) checkBody(b []byte) error {
	if enc := c.r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return fault.New(fault.BadMediaType, "A body with a content encoding is not read here.")
	}
	types := c.r.Header.Values("Content-Type")
	if len(types) != 1 || !isJSON(types[0]) {
		return fault.New(fault.BadMediaType, "The body must be JSON with Content-Type: application/json.")
	}
	if err := strictJSON(b); err != nil {
		return err
	}
	var empty bytes.Buffer
	if !c.o.hasBody && (json.Compact(&empty, b) != nil || empty.String() != "{}") {
		return fault.New(fault.Invalid, "This operation takes no body, or {}.")
	}
	return nil
}

func isJSON(contentType string) bool {
	t, params, err := mime.ParseMediaType(contentType)
	charset := params["charset"]
	return err == nil && t == "application/json" && (charset == "" || strings.EqualFold(charset, "utf-8"))
}

// maxDepth bounds the nesting of a body; no documented one comes near.
const maxDepth = 64

// strictJSON refuses what encoding/json lets pass: bytes that are not UTF-8, NUL in strings (Postgres text cannot hold it),
// and objects that name a member twice, or twice but for case. The latter would let a validated value be replaced by one
// that was not looked at.
func strictJSON(b []byte) error {
	if !utf8.Valid(b) || !json.Valid(b) {
		return fault.New(fault.Invalid, "The body is not one well-formed JSON value in UTF-8.")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var open []*level
	for {
		tok, err := dec.Token()
		if err != nil {
			return nil // the end: the body is known to be well-formed
		}
		if s, ok := tok.(string); ok && strings.Contains(s, "\x00") {
			return fault.New(fault.Invalid, "The body has a string with the character U+0000.")
		}
		if d, ok := tok.(json.Delim); ok && (d == '{' || d == '[') {
			if len(open) == maxDepth {
				return fault.New(fault.Invalid, "The body is nested deeper than %d levels.", maxDepth)
			}
			open = append(open, newLevel(d))
			continue
		} else if ok {
			open = open[:len(open)-1]
		}
		if len(open) > 0 && !open[len(open)-1].take(tok) {
			return fault.New(fault.Invalid, "The body has an object that names a member twice, or twice but for upper and lower case.")
		}
	}
}

// level is an open object or array of strictJSON.
type level struct {
	names map[string]bool // nil in an array
	name  bool            // the next token is a member's name
}

func newLevel(d json.Delim) *level {
	if d == '[' {
		return &level{}
	}
	return &level{names: map[string]bool{}, name: true}
}

// take is told of a name, or of the end of a value, and reports whether the name is new.
func (l *level) take(tok json.Token) bool {
	if l.names == nil {
		return true
	}
	wasName := l.name
	l.name = !l.name
	if s, ok := tok.(string); ok && wasName {
		s = strings.Map(fold, s)
		fresh := !l.names[s]
		l.names[s] = true
		return fresh
	}
	return true
}

// fold maps a rune to the smallest of those that equal it but for case, as encoding/json does when it looks for a field.
func fold(r rune) rune {
	for {
		next := unicode.SimpleFold(r)
		if next <= r {
			return next
		}
		r = next
	}
}
