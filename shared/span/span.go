// Package span owns the durations that people write: a number and one unit, "90s", "15m", "12h", "47d" (a day is 24 hours).
//
// The zero Duration is "0s". In JSON and in query strings a Duration is that text, in SQL a bigint of seconds. Anything
// finer than a second, negative, or longer than Max has no text and cannot be made.
package span

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Pattern is the regular expression of the text form.
const Pattern = `^[0-9]+[smhd]$`

// Max is the longest Duration, a hundred years.
const Max = 36500 * 24 * time.Hour

// ErrMalformed is what Parse answers for any other text. It does not repeat the text.
var ErrMalformed = errors.New("expected a number and one of s, m, h, d, at most 36500d")

// Duration is a span of whole seconds.
type Duration struct{ d time.Duration }

// Of makes a Duration from a time.Duration: rounded down to a second, and held within zero and Max.
func Of(d time.Duration) Duration {
	return Duration{max(0, min(d, Max)).Truncate(time.Second)}
}

// Parse reads the text form.
func Parse(s string) (Duration, error) {
	if len(s) < 2 || len(s) > 12 || s[0] < '0' || s[0] > '9' { // ParseInt takes a sign, the pattern does not
		return Duration{}, ErrMalformed
	}
	n, err := strconv.ParseInt(s[:len(s)-1], 10, 64)
	unit := unitOf(s[len(s)-1])
	if err != nil || unit == 0 || n > int64(Max/unit) {
		return Duration{}, ErrMalformed
	}
	return Duration{time.Duration(n) * unit}, nil
}

func unitOf(c byte) time.Duration {
	switch c {
	case 's':
		return time.Second
	case 'm':
		return time.Minute
	case 'h':
		return time.Hour
	case 'd':
		return 24 * time.Hour
	}
	return 0
}

// Std is the time.Duration.
func (d Duration) Std() time.Duration { return d.d }

// IsZero reports whether the span is empty.
func (d Duration) IsZero() bool { return d.d == 0 }

// String is the text form in the largest unit that divides the span: 86400 s are "1d", 5400 s are "90m".
func (d Duration) String() string {
	for _, c := range "dhms" {
		if u := unitOf(byte(c)); d.d != 0 && d.d%u == 0 { // #nosec G115 -- an ASCII letter
			return strconv.FormatInt(int64(d.d/u), 10) + string(c)
		}
	}
	return "0s"
}

// MarshalText writes the text form.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads the text form.
func (d *Duration) UnmarshalText(b []byte) (err error) {
	*d, err = Parse(string(b))
	return err
}

// Value is the number of seconds for SQL.
func (d Duration) Value() (driver.Value, error) { return int64(d.d / time.Second), nil }

// Scan reads a number of seconds from SQL.
func (d *Duration) Scan(v any) error {
	n, ok := v.(int64)
	if !ok || n < 0 || n > int64(Max/time.Second) {
		return fmt.Errorf("scanning %T as a duration: %w", v, ErrMalformed)
	}
	d.d = time.Duration(n) * time.Second
	return nil
}
