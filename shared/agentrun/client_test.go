package agentrun

import (
	"net/http"
	"testing"
	"time"
)

func TestRetryAfterCountsFromTheServersClock(t *testing.T) {
	t.Parallel()
	date := "Wed, 25 Nov 2026 03:00:00 GMT" // far from this host's clock, which must not matter
	for value, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-1": 0, "999999": time.Hour, "soon": 0,
		"Wed, 25 Nov 2026 03:00:30 GMT": 30 * time.Second, "Wed, 25 Nov 2026 02:59:00 GMT": 0,
	} {
		if got := parseRetryAfter(http.Header{"Retry-After": {value}, "Date": {date}}); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
}

func TestBackOffGrowsToItsBoundAndObeysTheServer(t *testing.T) {
	t.Parallel()
	for failures, most := range map[int]time.Duration{1: time.Second, 3: 4 * time.Second, 9: 256 * time.Second, 50: backOffMax} {
		for range 100 {
			if got := backOff(failures, 0); got < most/2 || got > most {
				t.Fatalf("after %d failures: %s", failures, got)
			}
		}
	}
	if got := backOff(1, time.Minute); got < time.Minute {
		t.Errorf("the server's minute became %s", got)
	}
	if got := jitter(time.Minute); got < time.Minute || got > 66*time.Second {
		t.Errorf("a minute became %s", got)
	}
}
