package endpoint

import (
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"certctl/shared/endpoint/problem"
	"certctl/shared/fault"

	"github.com/danielgtaylor/huma/v2"
)

// huma is configured by package variables. They are set once, here, before anything is registered.
func init() {
	huma.ValidateStrictCasing = true // else {"name": …, "NAME": …} is validated by the one and decoded from the other
	huma.DefaultArrayNullable = false
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError { return &problem.Document{Status: status} }
	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		if c := callOf(ctx.Context()); c != nil && c.err == nil {
			c.err = refusal(status, msg, errs)
		}
		return refused(status) // recorded by huma, and dropped because the call has an error
	}
}

type refused int

func (r refused) Error() string  { return http.StatusText(int(r)) }
func (r refused) GetStatus() int { return int(r) }

// refusal is the fault in what huma found. A path whose names do not parse names nothing, so it is not found.
func refusal(status int, msg string, errs []error) error {
	switch {
	case status == http.StatusRequestEntityTooLarge:
		return fault.New(fault.TooLarge, "The body is too large.")
	case status == http.StatusUnsupportedMediaType:
		return fault.New(fault.BadMediaType, "The body must be JSON with Content-Type: application/json.")
	case status >= http.StatusInternalServerError || status == http.StatusNotAcceptable:
		return errors.Join(append(errs, errors.New(msg))...)
	}
	var fields []fault.Field
	for _, err := range errs {
		if f := fault.As(err); f != nil {
			fields = append(fields, f.Fields...)
			continue
		}
		d, ok := err.(huma.ErrorDetailer)
		if !ok {
			return errors.Join(err, errors.New(msg))
		}
		location := d.ErrorDetail().Location
		if strings.HasPrefix(location, "path.") {
			return nothing()
		}
		fields = append(fields, field(location, d.ErrorDetail().Message))
	}
	return fault.BadFields(sorted(fields)...)
}

// field turns a location and a message of huma into a field of ours: the path as the caller wrote it, and a text without
// anything that was sent.
func field(location, message string) fault.Field {
	if name, ok := requiredName(message); ok {
		return fault.Field{Field: shownPath(join(location, name)), Detail: "is required"}
	}
	if path, detail, ok := strings.Cut(message, unitSeparator); ok {
		location, message = join(location, path), detail
	}
	return fault.Field{Field: shownPath(location), Detail: harmless(message)}
}

func requiredName(message string) (string, bool) {
	s, ok := strings.CutPrefix(message, "expected required property ")
	name, found := strings.CutSuffix(s, " to be present")
	return name, ok && found
}

func join(location, name string) string {
	if name == "" {
		return location
	}
	return location + "." + name
}

// These messages of huma go on with the error of a parser, which may repeat its input.
var tails = []string{
	"expected string to be RFC 5322 email", "expected string to be RFC 3986 uri", "expected string to be RFC 4122 uuid",
	"expected string to be regex", "expected duration",
}

func harmless(message string) string {
	for _, t := range tails {
		if strings.HasPrefix(message, t) {
			return t
		}
	}
	switch {
	case strings.HasPrefix(message, "invalid value"):
		return "is malformed"
	case strings.HasPrefix(message, "invalid date/time"):
		return "expected an RFC 3339 time"
	case message == "unexpected property":
		return "unknown field"
	}
	return message
}

var (
	places   = regexp.MustCompile(`^(body|query|header)\.`)
	ordinary = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,31}(\[[0-9]+\])*$`)
)

// shownPath is a field's path without the place that huma puts before it. Names that the caller made up are shown only if
// they look like names: a misspelling is worth showing, and a secret that landed in the wrong place is not.
func shownPath(location string) string {
	path := places.ReplaceAllString(location, "")
	var shown []string
	for s := range strings.SplitSeq(path, ".") {
		if !ordinary.MatchString(s) || len(shown) == 8 {
			return strings.Join(append(shown, "?"), ".")
		}
		shown = append(shown, s)
	}
	return strings.Join(shown, ".")
}

func sorted(fields []fault.Field) []fault.Field {
	slices.SortStableFunc(fields, func(a, b fault.Field) int { return strings.Compare(a.Field, b.Field) })
	return slices.Compact(fields)
}

// unitSeparator stands between the path and the text in the error of unmarshal, which huma passes on as a message.
const unitSeparator = "\x1f"

// unmarshal decodes a validated body. What the schema cannot see (an integer out of range, a time of no calendar) ends
// here, and encoding/json would repeat it.
func unmarshal(b []byte, v any) error {
	err := json.Unmarshal(b, v)
	var wrong *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &wrong):
		return errors.New(wrong.Field + unitSeparator + "has a value of another type or out of range")
	}
	return errors.New("has a value that cannot be read as documented")
}
