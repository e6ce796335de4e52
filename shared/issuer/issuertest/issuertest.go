// Package issuertest is the conformance suite of issuer drivers: what the comments on issuer.Issuer promise, made executable.
//
// A driver's test hands over a Harness that talks to a real CA (our own, Pebble, step-ca …). The suite plays the job engine:
// it keeps checkpoints as the database does, kills the driver around each Save, and starts it anew from what was kept.
package issuertest

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"testing"
	"time"

	"certctl/shared/fault"
	"certctl/shared/issuer"
	"certctl/shared/pki"
)

// Harness is one CA and the way to drive it.
type Harness struct {
	// New makes a driver over the same CA, with nothing remembered: a process that has just started.
	New func(t *testing.T) issuer.Issuer

	Roots    *x509.CertPool   // trusted; the issued chain must lead here
	Names    pki.Names        // names that this CA issues for; zero: a DNS name and its wildcard-free sibling
	Key      pki.KeyAlgorithm // of the subject; "": ecdsa-p256
	TTL      time.Duration    // asked for; 0: the CA's own
	Patience time.Duration    // how long a Pending certificate is polled for; 0: one minute

	// Made counts the certificates that the CA has really made so far. Nil where the CA cannot be asked; the suite then only
	// compares what the driver gives back.
	Made func(t *testing.T) int

	// MayOrphan permits a second certificate after a kill between the CA's act and the Save that records it, for CAs where a
	// request cannot be found again (SPEC R1).
	MayOrphan bool

	// StopsBeforeSave says that nothing is made while Save fails. It is true for drivers whose first Save comes before the CA
	// acts; every driver of certctl should be one.
	StopsBeforeSave bool
}

// Run holds a driver against the contract. make is called once per subtest.
func Run(t *testing.T, make func(t *testing.T) Harness) {
	tests := []struct {
		name string
		run  func(t *testing.T, h Harness)
	}{
		{"IssuesWhatWasAskedFor", issuesWhatWasAskedFor},
		{"EveryRequestHasASerialOfItsOwn", everyRequestHasASerialOfItsOwn},
		{"KilledAroundEachSaveIssuesOnce", killedAroundEachSaveIssuesOnce},
		{"ALostAnswerIsGivenAgain", aLostAnswerIsGivenAgain},
		{"AFailingSaveStopsBeforeSigning", aFailingSaveStopsBeforeSigning},
		{"AGarbageCheckpointIsAnError", aGarbageCheckpointIsAnError},
		{"ACheckpointOfAnotherRequestIsAnError", aForeignCheckpointIsAnError},
		{"AMalformedCSRIsRefusedForGood", aMalformedCSRIsRefused},
		{"ACancelledContextIsHonoured", aCancelledContextIsHonoured},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.run(t, make(t).withDefaults(t))
		})
	}
}

func (h Harness) withDefaults(t *testing.T) Harness {
	t.Helper()
	if h.Key == "" {
		h.Key = pki.ECDSAP256
	}
	if h.Patience == 0 {
		h.Patience = time.Minute
	}
	if len(h.Names.SANs()) == 0 {
		n, err := pki.ParseNames("www.example.com", []string{"www.example.com", "api.example.com"})
		if err != nil {
			t.Fatal(err)
		}
		h.Names = n
	}
	return h
}

// errKilled is what the driver sees of a process that ends: the call does not come back with anything it could use.
var errKilled = errors.New("issuertest: the process was killed")

// run is one request and what the database holds of it.
type run struct {
	h      Harness
	req    issuer.Request
	pub    crypto.PublicKey
	kept   []byte
	handle []byte
	saves  int
	kill   func(save int) (keep, die bool) // nil: never
}

func newRun(t *testing.T, h Harness) *run {
	t.Helper()
	key, err := pki.Generate(h.Key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key, h.Names)
	if err != nil {
		t.Fatal(err)
	}
	return &run{h: h, pub: key.Public(), req: issuer.Request{Key: fmt.Sprintf("%x", pki.SPKIHash(key.Public())), CSR: csr, Names: h.Names, TTL: h.TTL}}
}

// save is the database: it keeps the checkpoint or not, and the process lives on or not.
func (r *run) save(ctx context.Context, checkpoint []byte) error {
	r.saves++
	if err := ctx.Err(); err != nil {
		return err
	}
	keep, die := true, false
	if r.kill != nil {
		keep, die = r.kill(r.saves)
	}
	if keep {
		r.kept = append([]byte(nil), checkpoint...)
	}
	if die {
		return errKilled
	}
	return nil
}

// once starts a new process and makes one call, as one claim of the job does.
func (r *run) once(ctx context.Context, t *testing.T) (issuer.Result, error) {
	t.Helper()
	drv := r.h.New(t)
	req := r.req
	req.Checkpoint, req.Save = r.kept, r.save
	if r.handle == nil {
		return drv.Submit(ctx, req)
	}
	p, ok := drv.(issuer.Poller)
	if !ok {
		t.Fatal("the driver answered Pending and is no issuer.Poller")
	}
	return p.Poll(ctx, req, r.handle)
}

// finish goes on with the request until it is issued.
func (r *run) finish(t *testing.T) []*x509.Certificate {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), r.h.Patience)
	defer cancel()
	for {
		res, err := r.once(ctx, t)
		if err != nil {
			t.Fatalf("submitting: %v", err)
		}
		switch res := res.(type) {
		case issuer.Issued:
			return res.Chain
		case issuer.Pending:
			r.handle = res.Handle
			select {
			case <-time.After(min(res.After, time.Second)):
			case <-ctx.Done():
				t.Fatal("the certificate stayed pending")
			}
		default:
			t.Fatalf("the driver answered %T", res)
		}
	}
}

func (r *run) check(t *testing.T, chain []*x509.Certificate) {
	t.Helper()
	err := pki.CheckIssued(chain, pki.Expected{
		Names: r.h.Names, PublicKey: r.pub, Now: time.Now(), MaxTTL: r.h.TTL, Backdate: time.Hour, Roots: r.h.Roots,
	})
	if err != nil {
		t.Error(err)
	}
	for _, c := range chain[1:] {
		if pki.SelfSigned(c) {
			t.Error("the chain holds the root")
		}
	}
}

// made counts the CA's certificates, or says that it cannot.
func (h Harness) made(t *testing.T) (n int, counted bool) {
	if h.Made == nil {
		return 0, false
	}
	return h.Made(t), true
}

func issuesWhatWasAskedFor(t *testing.T, h Harness) {
	r := newRun(t, h)
	r.check(t, r.finish(t))
	if r.saves == 0 {
		t.Error("nothing was recorded before the CA was asked")
	}
}

func everyRequestHasASerialOfItsOwn(t *testing.T, h Harness) {
	a, b := newRun(t, h).finish(t), newRun(t, h).finish(t)
	if a[0].SerialNumber.Cmp(b[0].SerialNumber) == 0 {
		t.Error("two requests got the same serial")
	}
}

// killedAroundEachSaveIssuesOnce kills at each Save, once before the checkpoint is kept and once after, and goes on.
func killedAroundEachSaveIssuesOnce(t *testing.T, h Harness) {
	probe := newRun(t, h)
	probe.finish(t)
	for at := 1; at <= probe.saves; at++ {
		for _, kept := range []bool{false, true} {
			t.Run(fmt.Sprintf("save%d/kept=%v", at, kept), func(t *testing.T) { killedOnce(t, h, at, kept) })
		}
	}
}

func killedOnce(t *testing.T, h Harness, at int, kept bool) {
	before, counted := h.made(t)
	r := newRun(t, h)
	r.kill = func(save int) (bool, bool) { return save != at || kept, save == at }
	died := false
	for range 100 {
		res, err := r.once(t.Context(), t)
		if errors.Is(err, errKilled) {
			died = true
			break
		}
		if err != nil {
			t.Fatalf("the driver hid the failed Save: %v", err)
		}
		p, pending := res.(issuer.Pending)
		if !pending {
			break
		}
		r.handle = p.Handle
		time.Sleep(min(p.After, time.Second))
	}
	if !died {
		t.Fatal("the driver went on although Save failed")
	}
	first := r.finish(t)
	r.check(t, first)
	if after, _ := h.made(t); counted && after-before != 1 && !h.MayOrphan {
		t.Errorf("the CA made %d certificates for one request", after-before)
	}
	r.sameAgain(t, first)
}

// sameAgain submits a finished request once more, as after an answer that was lost before the version was stored.
func (r *run) sameAgain(t *testing.T, first []*x509.Certificate) {
	t.Helper()
	r.kill = nil
	if again := r.finish(t); !again[0].Equal(first[0]) {
		t.Errorf("the same request gave another certificate (serials %s and %s)",
			pki.FormatSerial(first[0].SerialNumber), pki.FormatSerial(again[0].SerialNumber))
	}
}

func aLostAnswerIsGivenAgain(t *testing.T, h Harness) {
	before, counted := h.made(t)
	r := newRun(t, h)
	r.sameAgain(t, r.finish(t))
	if after, _ := h.made(t); counted && after-before != 1 {
		t.Errorf("the CA made %d certificates for one request", after-before)
	}
}

func aFailingSaveStopsBeforeSigning(t *testing.T, h Harness) {
	before, counted := h.made(t)
	r := newRun(t, h)
	r.kill = func(int) (bool, bool) { return false, true }
	if _, err := r.once(t.Context(), t); !errors.Is(err, errKilled) {
		t.Fatalf("the driver does not report the error of Save: %v", err)
	}
	if after, _ := h.made(t); counted && h.StopsBeforeSave && after != before {
		t.Error("the CA made a certificate that is recorded nowhere")
	}
}

func aGarbageCheckpointIsAnError(t *testing.T, h Harness) {
	before, counted := h.made(t)
	for _, garbage := range []string{"x", "{}", "[]", "null", `{"serial":"1","tbs":"MAA="}`, "\x00\xff"} {
		r := newRun(t, h)
		r.kept = []byte(garbage)
		if _, err := r.once(t.Context(), t); err == nil {
			t.Errorf("checkpoint %q was accepted", garbage)
		}
	}
	if after, _ := h.made(t); counted && after != before {
		t.Error("the CA made a certificate from a garbage checkpoint")
	}
}

func aForeignCheckpointIsAnError(t *testing.T, h Harness) {
	other := newRun(t, h)
	other.finish(t)
	r := newRun(t, h)
	r.kept = other.kept
	if res, err := r.once(t.Context(), t); err == nil {
		t.Errorf("the checkpoint of another key's request was accepted: %T", res)
	}
}

func aMalformedCSRIsRefused(t *testing.T, h Harness) {
	r := newRun(t, h)
	r.req.CSR = r.req.CSR[:len(r.req.CSR)-1]
	_, err := r.once(t.Context(), t)
	if !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Denied) {
		t.Errorf("a malformed CSR is not refused for good: %v", err)
	}
}

func aCancelledContextIsHonoured(t *testing.T, h Harness) {
	before, counted := h.made(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := newRun(t, h)
	if _, err := r.once(ctx, t); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled call ended with %v", err)
	}
	if after, _ := h.made(t); counted && after != before || r.saves > 0 {
		t.Error("a cancelled call made a certificate or recorded a step")
	}
}
