package cert_test

import (
	"testing"
	"time"

	"certctl/shared/cert"
	"certctl/shared/dbtest"
	"certctl/shared/fault"
	"certctl/shared/id"
)

func TestRenewalLiesInsideTheLifeAndJitterOnlyMakesItEarlier(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, fraction := range []float64{0.05, 0.2, 0.5, 0.67, 0.95} {
		for _, jitter := range []float64{0, 0.05, 0.5} {
			for _, life := range []time.Duration{10 * time.Minute, 6 * 24 * time.Hour, 47 * 24 * time.Hour, 3650 * 24 * time.Hour} {
				p := cert.RenewalPolicy{RenewAtFraction: fraction, Jitter: jitter}
				plain, _ := cert.RenewalPolicy{RenewAtFraction: fraction}.RenewAt(id.New[id.Version](), start, start.Add(life))
				for range 40 {
					v := id.New[id.Version]()
					at, why := p.RenewAt(v, start, start.Add(life))
					if !at.After(start) || !at.Before(start.Add(life)) || at.After(plain) || plain.Sub(at) > time.Duration(jitter*float64(life))+time.Second || why == "" {
						t.Fatalf("fraction %v, jitter %v, life %v: %v (%s)", fraction, jitter, life, at, why)
					}
					if again, _ := p.RenewAt(v, start, start.Add(life)); !again.Equal(at) {
						t.Fatal("two answers for one version")
					}
				}
			}
		}
	}
}

func TestJitterSpreadsVersions(t *testing.T) {
	t.Parallel()
	start := time.Now()
	p := cert.RenewalPolicy{RenewAtFraction: 0.67, Jitter: 0.1}
	buckets := map[int]int{}
	for range 1000 {
		at, _ := p.RenewAt(id.New[id.Version](), start, start.Add(1000*time.Hour))
		buckets[int((at.Sub(start).Hours()-570)/10)]++
	}
	for k := range 10 {
		if buckets[k] < 50 {
			t.Errorf("of 1000 versions %d renew in tenth %d of the jitter", buckets[k], k)
		}
	}
}

func TestASixDayCertificateIsRenewedOncePerLife(t *testing.T) {
	t.Parallel()
	const life = 6 * 24 * time.Hour
	p := cert.RenewalPolicy{RenewAtFraction: 0.5, Jitter: 0.5} // the widest that is allowed
	start := time.Now()
	end, renewals := start.Add(10*life), 0
	for at := start; at.Before(end); renewals++ {
		next, _ := p.RenewAt(id.New[id.Version](), at, at.Add(life))
		if next.Sub(at) < life/4 {
			t.Fatalf("renewed after %v of %v", next.Sub(at), life)
		}
		at = next
	}
	if renewals > 40 {
		t.Errorf("%d renewals in ten lives", renewals)
	}
}

func TestPolicyRefusesWhatCannotBeKept(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	good := cert.RenewalPolicy{ID: id.New[id.RenewalPolicy](), Name: "p" + id.New[id.Key]().String(), RenewAtFraction: 0.67, Jitter: 0.05, AlertFractions: []float64{0.8}}
	for field, spoil := range map[string]func(*cert.RenewalPolicy){
		"name":               func(p *cert.RenewalPolicy) { p.Name = "" },
		"renew_at_fraction":  func(p *cert.RenewalPolicy) { p.RenewAtFraction = 0.99 },
		"jitter":             func(p *cert.RenewalPolicy) { p.Jitter = -0.1 },
		"alert_fractions[0]": func(p *cert.RenewalPolicy) { p.AlertFractions = []float64{1.1} },
	} {
		p := good
		spoil(&p)
		if _, err := cert.InsertRenewalPolicy(t.Context(), tx, p); !fault.Is(err, fault.Invalid) || fault.As(err).Fields[0].Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	made, err := cert.InsertRenewalPolicy(t.Context(), tx, good)
	if err != nil || made.RenewAtFraction != 0.67 || made.AlertFractions[0] != 0.8 {
		t.Errorf("%+v, %v", made, err)
	}
}
