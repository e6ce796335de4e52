package span

import (
	"encoding/json"
	"errors"
	"testing"
	"time"
)

func TestParseTakesTheDocumentedFormOnly(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]time.Duration{
		"0s": 0, "1s": time.Second, "90m": 90 * time.Minute, "024h": 24 * time.Hour, "47d": 47 * 24 * time.Hour, "36500d": Max,
	} {
		if d, err := Parse(s); err != nil || d.Std() != want {
			t.Errorf("%s: %v %v", s, d, err)
		}
	}
	for _, s := range []string{"", "s", "5", "-1s", "+1s", "1.5h", "1h30m", "1 h", "1w", "1ms", "1S", "36501d", "99999999999d", "9223372036854775807s", "1\u0661s", "٣s"} {
		if d, err := Parse(s); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q was read as %s", s, d)
		}
	}
}

func TestTextIsShortAndComesBack(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0s", 86400 * time.Second: "1d", 5400 * time.Second: "90m", 3601 * time.Second: "3601s", 1500 * time.Millisecond: "1s", -time.Hour: "0s", 1 << 62: "36500d",
	} {
		got := Of(d)
		back, err := Parse(got.String())
		if got.String() != want || err != nil || back != got {
			t.Errorf("%s: %s, back %s %v", d, got, back, err)
		}
	}
}

func TestJSONAndSQL(t *testing.T) {
	t.Parallel()
	var v struct {
		TTL Duration `json:"ttl"`
	}
	if err := json.Unmarshal([]byte(`{"ttl":"2h"}`), &v); err != nil || v.TTL != Of(2*time.Hour) {
		t.Error(v, err)
	}
	if b, err := json.Marshal(v); err != nil || string(b) != `{"ttl":"2h"}` {
		t.Errorf("%s %v", b, err)
	}
	if json.Unmarshal([]byte(`{"ttl":7200}`), &v) == nil {
		t.Error("a number was taken")
	}
	n, err := v.TTL.Value()
	var back Duration
	if err != nil || n != int64(7200) || back.Scan(n) != nil || back != v.TTL {
		t.Error(n, err, back)
	}
	for _, bad := range []any{int64(-1), int64(1) << 62, "2h", nil} {
		if back.Scan(bad) == nil {
			t.Errorf("%v was scanned", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("47d")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := Parse(s)
		if err != nil {
			return
		}
		if back, err := Parse(d.String()); err != nil || back != d || d.Std() < 0 || d.Std() > Max {
			t.Fatalf("%q: %s %v", s, d, err)
		}
	})
}
