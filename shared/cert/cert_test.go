package cert_test

import (
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"certctl/shared/cert"
	"certctl/shared/db"
	"certctl/shared/dbtest"
	"certctl/shared/fault"
	"certctl/shared/id"
	"certctl/shared/page"
	"certctl/shared/pki"
	"certctl/shared/span"
)

func exec(t testing.TB, q db.Querier, sql string, args ...any) {
	t.Helper()
	if _, err := q.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// references are what a certificate needs.
type references struct {
	issuer     id.Issuer
	generation id.Generation
	profile    cert.Profile
	policy     cert.RenewalPolicy
}

func makeReferences(t testing.TB, q db.Querier) (r references) {
	t.Helper()
	r.issuer, r.generation = id.New[id.Issuer](), id.New[id.Generation]()
	exec(t, q, `INSERT INTO issuers (id, name, type) VALUES ($1, $2, 'local')`, r.issuer, r.issuer.String())
	exec(t, q, `INSERT INTO ca_generations (id, issuer_id, number, certificate, key_uri, name_sha1, key_sha1, name_sha256, key_sha256, not_before, not_after)
		VALUES ($1, $2, 1, 'x', 'file:x', 'x', 'x', 'x', 'x', now(), now())`, r.generation, r.issuer)
	var err error
	r.profile, err = cert.InsertProfile(t.Context(), q, cert.Profile{ID: id.New[id.Profile](), Name: id.New[id.Profile]().String(), KeyAlgorithms: []string{"ecdsa-p256"}, MaxTTL: span.Of(48 * time.Hour), EKUs: []string{"serverAuth"}})
	must(t, err)
	r.policy, err = cert.InsertRenewalPolicy(t.Context(), q, cert.RenewalPolicy{ID: id.New[id.RenewalPolicy](), Name: id.New[id.RenewalPolicy]().String(), RenewAtFraction: 0.5, AutoRenew: true})
	must(t, err)
	return r
}

func (r references) insert(t testing.TB, q db.Querier, change func(*cert.Certificate)) cert.Certificate {
	t.Helper()
	c := cert.Certificate{ID: id.New[id.Certificate](), Name: "web", CommonName: "web.example.com", SANs: []string{"web.example.com"}, IssuerID: r.issuer, ProfileID: r.profile.ID,
		RenewalPolicyID: r.policy.ID, KeyCustody: cert.ServerCustody, AutoRenew: true, CreatedBy: "alice"}
	if change != nil {
		change(&c)
	}
	c, err := cert.Insert(t.Context(), q, c)
	must(t, err)
	return c
}

func (r references) job(t testing.TB, q db.Querier, c id.Certificate) id.Job {
	t.Helper()
	j := id.New[id.Job]()
	exec(t, q, `INSERT INTO jobs (id, type, runner, status, certificate_id, requested_by, requested_role, completed_at) VALUES ($1, 'Issuance', 'worker', 'Completed', $2, 'x', 'x', now())`, j, c)
	return j
}

// leaf is a self-signed certificate.
func leaf(t testing.TB, life time.Duration, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	key, err := pki.Generate(pki.ECDSAP256)
	must(t, err)
	start := time.Now().Truncate(time.Second)
	tmpl := &x509.Certificate{SerialNumber: pki.NewSerial(), NotBefore: start, NotAfter: start.Add(life), DNSNames: []string{"web.example.com"}}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	c, err := x509.ParseCertificate(der)
	must(t, err)
	return c
}

func (r references) store(t testing.TB, q db.Querier, c id.Certificate, l *x509.Certificate) cert.Version {
	t.Helper()
	v, err := cert.Store(t.Context(), q, cert.NewVersion{ID: id.New[id.Version](), CertificateID: c, IssuerID: r.issuer, GenerationID: r.generation, JobID: r.job(t, q, c),
		Chain: []*x509.Certificate{l}, CSR: []byte{1}, SealedKey: []byte("sealed"), RenewAt: l.NotBefore.Add(time.Hour), RenewReason: "planned"})
	must(t, err)
	return v
}

func TestFiltersNarrowAndCombine(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r, other := makeReferences(t, tx), makeReferences(t, tx)
	owner, team, agent, target := id.New[id.Owner](), id.New[id.Team](), id.New[id.Agent](), id.New[id.Target]()
	exec(t, tx, `INSERT INTO teams (id, name) VALUES ($1, $2)`, team, team.String())
	exec(t, tx, `INSERT INTO owners (id, name) VALUES ($1, $2)`, owner, owner.String())
	exec(t, tx, `INSERT INTO agents (id, name, credential_hash) VALUES ($1, $2, sha256('x'))`, agent, agent.String())
	exec(t, tx, `INSERT INTO targets (id, name, type) VALUES ($1, $2, 'files')`, target, target.String())
	prod := "prod"
	full := r.insert(t, tx, func(c *cert.Certificate) {
		c.Name, c.SANs, c.OwnerID, c.TeamID, c.Environment, c.Tags = "full", []string{"full.example.com", "10.0.0.1"}, owner, team, &prod, map[string]string{"app": "shop", "tier": "1"}
		c.KeyCustody, c.AgentID = cert.AgentCustody, agent
	})
	exec(t, tx, `INSERT INTO deployments (id, certificate_id, target_id) VALUES ($1, $2, $3)`, id.New[id.Deployment](), full.ID, target)
	plain := other.insert(t, tx, nil)
	gone := r.insert(t, tx, func(c *cert.Certificate) { c.Name = "gone" })
	_, err := cert.Archive(t.Context(), tx, gone.ID)
	must(t, err)

	tag := cert.Filter{}
	must(t, tag.SetTag("app:shop"))
	for name, c := range map[string]struct {
		filter cert.Filter
		want   []id.Certificate
	}{
		"nothing":          {cert.Filter{}, []id.Certificate{full.ID, plain.ID}},
		"status":           {cert.Filter{Status: cert.Pending}, []id.Certificate{full.ID, plain.ID}},
		"no such status":   {cert.Filter{Status: cert.Active}, nil},
		"archived":         {cert.Filter{Status: cert.Archived}, []id.Certificate{gone.ID}},
		"name":             {cert.Filter{Name: "full"}, []id.Certificate{full.ID}},
		"SAN in any case":  {cert.Filter{SAN: "FULL.example.com"}, []id.Certificate{full.ID}},
		"part of a SAN":    {cert.Filter{SAN: "example.com"}, nil},
		"issuer":           {cert.Filter{IssuerID: other.issuer}, []id.Certificate{plain.ID}},
		"profile":          {cert.Filter{ProfileID: r.profile.ID}, []id.Certificate{full.ID}},
		"policy":           {cert.Filter{RenewalPolicyID: r.policy.ID}, []id.Certificate{full.ID}},
		"owner":            {cert.Filter{OwnerID: owner}, []id.Certificate{full.ID}},
		"team":             {cert.Filter{TeamID: team}, []id.Certificate{full.ID}},
		"agent":            {cert.Filter{AgentID: agent}, []id.Certificate{full.ID}},
		"target":           {cert.Filter{TargetID: target}, []id.Certificate{full.ID}},
		"environment":      {cert.Filter{Environment: "prod"}, []id.Certificate{full.ID}},
		"tag":              {tag, []id.Certificate{full.ID}},
		"tag, other value": {cert.Filter{Tags: map[string]string{"app": "x"}}, nil},
		"two that differ":  {cert.Filter{OwnerID: owner, IssuerID: other.issuer}, nil},
		"hostile text":     {cert.Filter{Name: `' OR true --`}, nil},
	} {
		got, err := cert.Matching(t.Context(), tx, c.filter, 10)
		must(t, err)
		slices.SortFunc(got, func(a, b id.Certificate) int { return strings.Compare(a.UUID(), b.UUID()) })
		slices.SortFunc(c.want, func(a, b id.Certificate) int { return strings.Compare(a.UUID(), b.UUID()) })
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %d certificates, want %d", name, len(got), len(c.want))
		}
		list, err := cert.List(t.Context(), tx, c.filter, page.Request{Total: true})
		if err != nil || *list.Total != int64(len(c.want)) || len(list.Rows) != len(c.want) {
			t.Errorf("%s: the list has %d rows of %v, %v", name, len(list.Rows), list.Total, err)
		}
	}
	if err := tag.SetTag("app"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a tag without a value: %v", err)
	}
}

func TestPagesAreCompleteWithoutDuplicatesWhenKeysAreEqual(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t) // one transaction: every created_at is the same
	r := makeReferences(t, tx)
	want := map[id.Certificate]bool{}
	for n := range 53 {
		c := r.insert(t, tx, func(c *cert.Certificate) { c.Name = fmt.Sprint("n", n%3) })
		want[c.ID] = true
		if n%2 == 0 {
			r.store(t, tx, c.ID, leaf(t, 24*time.Hour, nil))
		}
	}
	for _, sort := range []string{"created_at", "-created_at", "name", "-name", "not_after", "-not_after"} {
		for _, limit := range []int{1, 7, 53, 200} {
			seen := map[id.Certificate]bool{}
			req := page.Request{Limit: limit, Sort: page.ParseSort(sort)}
			for pages := 0; ; pages++ {
				res, err := cert.List(t.Context(), tx, cert.Filter{}, req)
				must(t, err)
				for _, c := range res.Rows {
					if seen[c.ID] {
						t.Fatalf("%s, limit %d: %s twice", sort, limit, c.ID)
					}
					seen[c.ID] = true
				}
				if res.Next == nil {
					break
				}
				if len(res.Rows) != limit || pages > 60 {
					t.Fatalf("%s: page %d has %d rows", sort, pages, len(res.Rows))
				}
				req.After = res.Next
			}
			if len(seen) != len(want) {
				t.Errorf("%s, limit %d: %d of %d certificates", sort, limit, len(seen), len(want))
			}
		}
	}
}

func TestUnknownReferencesNameTheirField(t *testing.T) {
	t.Parallel()
	for field, spoil := range map[string]func(*cert.Certificate){
		"issuer_id":         func(c *cert.Certificate) { c.IssuerID = id.New[id.Issuer]() },
		"profile_id":        func(c *cert.Certificate) { c.ProfileID = id.New[id.Profile]() },
		"renewal_policy_id": func(c *cert.Certificate) { c.RenewalPolicyID = id.New[id.RenewalPolicy]() },
		"owner_id":          func(c *cert.Certificate) { c.OwnerID = id.New[id.Owner]() },
		"team_id":           func(c *cert.Certificate) { c.TeamID = id.New[id.Team]() },
	} {
		t.Run(field, func(t *testing.T) {
			t.Parallel()
			tx := dbtest.Tx(t)
			r := makeReferences(t, tx)
			c := cert.Certificate{ID: id.New[id.Certificate](), Name: "x", SANs: []string{"x"}, IssuerID: r.issuer, ProfileID: r.profile.ID, RenewalPolicyID: r.policy.ID, KeyCustody: cert.ServerCustody}
			spoil(&c)
			if _, err := cert.Insert(t.Context(), tx, c); !fault.Is(err, fault.Invalid) || fault.As(err).Fields[0].Field != field {
				t.Error(err)
			}
		})
	}
}

func TestUpdateChangesOnlyWhatIsGiven(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeReferences(t, tx)
	owner := id.New[id.Owner]()
	exec(t, tx, `INSERT INTO owners (id, name) VALUES ($1, $2)`, owner, owner.String())
	c := r.insert(t, tx, func(c *cert.Certificate) { c.OwnerID, c.Tags = owner, map[string]string{"a": "b"} })
	name, off := "new", false
	got, err := cert.Update(t.Context(), tx, c.ID, cert.Change{Name: &name, AutoRenew: &off})
	if err != nil || got.Name != "new" || got.AutoRenew || got.OwnerID != owner || got.Tags["a"] != "b" {
		t.Errorf("%+v, %v", got, err)
	}
	none := id.Owner{}
	if got, err = cert.Update(t.Context(), tx, c.ID, cert.Change{OwnerID: &none, Tags: map[string]string{}}); err != nil || !got.OwnerID.IsZero() || len(got.Tags) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = cert.Archive(t.Context(), tx, c.ID)
	must(t, err)
	if _, err := cert.Update(t.Context(), tx, c.ID, cert.Change{Name: &name}); !fault.Is(err, fault.NotFound) {
		t.Errorf("an archived certificate was changed: %v", err)
	}
}

func TestCountsByStatusAreCounts(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeReferences(t, tx)
	for n := range 4 {
		c := r.insert(t, tx, nil)
		if n > 0 {
			r.store(t, tx, c.ID, leaf(t, 24*time.Hour, nil))
		}
		if n > 1 {
			exec(t, tx, `UPDATE certificates SET renew_at = now() WHERE id = $1`, c.ID)
		}
	}
	got, err := cert.CountByStatus(t.Context(), tx)
	must(t, err)
	for s, want := range map[cert.Status]int64{cert.Pending: 1, cert.Active: 1, cert.Expiring: 2, cert.Expired: 0, cert.Revoked: 0} {
		n := len(matching(t, tx, s))
		if got[s] != want || int64(n) != want {
			t.Errorf("%s: counted %d, listed %d, want %d", s, got[s], n, want)
		}
	}
	if len(got) != len(cert.Statuses) {
		t.Errorf("%d statuses", len(got))
	}
}

func matching(t *testing.T, q db.Querier, s cert.Status) []id.Certificate {
	t.Helper()
	got, err := cert.Matching(t.Context(), q, cert.Filter{Status: s}, 100)
	must(t, err)
	return got
}

func TestAStoredVersionIsCurrentWithWhatItsBytesSay(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeReferences(t, tx)
	c := r.insert(t, tx, nil)
	exec(t, tx, `UPDATE certificates SET failures = 3, revoked_at = now(), next_try_at = now() WHERE id = $1`, c.ID)
	l := leaf(t, 24*time.Hour, func(x *x509.Certificate) { x.SerialNumber = big.NewInt(0x80) })
	v := r.store(t, tx, c.ID, l)
	got, err := cert.Get(t.Context(), tx, c.ID)
	must(t, err)
	if got.CurrentVersionID != v.ID || !got.NotAfter.Equal(l.NotAfter) || got.Failures != 0 || got.RevokedAt != nil || got.NextTryAt != nil || !got.RenewAt.Equal(l.NotBefore.Add(time.Hour)) || *got.RenewReason != "planned" {
		t.Errorf("%+v", got)
	}
	if v.SerialText() != "80" || v.KeyAlgorithm != "ecdsa-p256" || v.RevocationExempt || len(v.Fingerprint) != 32 {
		t.Errorf("%+v", v)
	}
	chain, err := cert.Chain(t.Context(), tx, v.ID)
	if err != nil || len(chain) != 1 || !chain[0].Equal(l) {
		t.Errorf("%v, %v", chain, err)
	}
	if sealed, err := cert.SealedKey(t.Context(), tx, v.ID); err != nil || string(sealed) != "sealed" {
		t.Errorf("%q, %v", sealed, err)
	}
	second := r.store(t, tx, c.ID, leaf(t, 24*time.Hour, nil))
	if got, err = cert.Get(t.Context(), tx, c.ID); err != nil || got.CurrentVersionID != second.ID {
		t.Errorf("the newer version is not current: %v", err)
	}
	if list, err := cert.ListVersions(t.Context(), tx, c.ID, page.Request{}); err != nil || len(list.Rows) != 2 {
		t.Errorf("%d versions, %v", len(list.Rows), err)
	}
}

func TestASerialIsUniqueInItsGeneration(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeReferences(t, tx)
	c := r.insert(t, tx, nil)
	same := func(x *x509.Certificate) { x.SerialNumber = big.NewInt(77) }
	r.store(t, tx, c.ID, leaf(t, 24*time.Hour, same))
	l := leaf(t, 24*time.Hour, same)
	_, err := cert.Store(t.Context(), tx, cert.NewVersion{ID: id.New[id.Version](), CertificateID: c.ID, IssuerID: r.issuer, GenerationID: r.generation, JobID: r.job(t, tx, c.ID), Chain: []*x509.Certificate{l}, CSR: []byte{1}})
	if db.Constraint(err) != "versions_serial_local" {
		t.Error(err)
	}
}

// Short-lived is under an hour (SPEC CERT-6). A certificate that says noRevAvail is, however its lifetime is counted.
func TestExemptionFollowsTheCertificate(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeReferences(t, tx)
	noRevAvail := func(x *x509.Certificate) { x.ExtraExtensions = append(x.ExtraExtensions, pki.NoRevAvail()) }
	for name, c := range map[string]struct {
		leaf *x509.Certificate
		want bool
	}{
		"half an hour":                   {leaf(t, 30*time.Minute, nil), true},
		"a second less, says so":         {leaf(t, time.Hour-time.Second, noRevAvail), true},
		"an hour counted with both ends": {leaf(t, time.Hour-time.Second, nil), false},
		"two seconds less, says nothing": {leaf(t, time.Hour-2*time.Second, nil), true},
		"an hour":                        {leaf(t, time.Hour, nil), false},
		"a day":                          {leaf(t, 24*time.Hour, nil), false},
	} {
		if v := r.store(t, tx, r.insert(t, tx, nil).ID, c.leaf); v.RevocationExempt != c.want {
			t.Errorf("%s: exempt is %v", name, v.RevocationExempt)
		}
	}
}

func TestRevocationIsCopiedToTheCertificateOfTheCurrentVersionOnly(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeReferences(t, tx)
	c := r.insert(t, tx, nil)
	old := r.store(t, tx, c.ID, leaf(t, 24*time.Hour, nil))
	current := r.store(t, tx, c.ID, leaf(t, 24*time.Hour, nil))
	if v, changed, err := cert.MarkRevoked(t.Context(), tx, old.ID, pki.Superseded); err != nil || !changed || v.RevokedAt == nil || v.StatusChangedAt == nil {
		t.Fatalf("%+v, %v, %v", v, changed, err)
	}
	if got, _ := cert.Get(t.Context(), tx, c.ID); got.RevokedAt != nil || got.RenewAt == nil {
		t.Error("an old version's revocation reached the certificate")
	}
	if _, changed, err := cert.MarkRevoked(t.Context(), tx, current.ID, pki.KeyCompromise); err != nil || !changed {
		t.Fatal(changed, err)
	}
	if got, _ := cert.Get(t.Context(), tx, c.ID); got.RevokedAt == nil || got.RenewAt != nil || got.NextTryAt != nil {
		t.Errorf("%+v", got)
	}
	if v, changed, err := cert.MarkRevoked(t.Context(), tx, current.ID, pki.Superseded); err != nil || changed || *v.RevocationReason != int16(pki.KeyCompromise) {
		t.Errorf("revoked twice: %v, %v, %v", v.RevocationReason, changed, err)
	}
}

func TestAHoldIsLiftedOrBecomesFinal(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeReferences(t, tx)
	c := r.insert(t, tx, nil)
	v := r.store(t, tx, c.ID, leaf(t, 24*time.Hour, nil))
	_, _, err := cert.MarkRevoked(t.Context(), tx, v.ID, pki.CertificateHold)
	must(t, err)
	again := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	if ok, err := cert.Unhold(t.Context(), tx, v.ID, again); err != nil || !ok {
		t.Fatal(ok, err)
	}
	got, _ := cert.Get(t.Context(), tx, c.ID)
	if now, _ := cert.VersionByID(t.Context(), tx, v.ID); now.RevokedAt != nil || now.StatusChangedAt == nil || got.RevokedAt != nil || !got.RenewAt.Equal(again) {
		t.Errorf("%+v %+v", now, got)
	}
	if ok, err := cert.Unhold(t.Context(), tx, v.ID, again); err != nil || ok {
		t.Errorf("lifted twice: %v, %v", ok, err)
	}
	held, _, err := cert.MarkRevoked(t.Context(), tx, v.ID, pki.CertificateHold)
	must(t, err)
	final, changed, err := cert.MarkRevoked(t.Context(), tx, v.ID, pki.KeyCompromise)
	if err != nil || !changed || !final.RevokedAt.Equal(*held.RevokedAt) || *final.RevocationReason != int16(pki.KeyCompromise) {
		t.Errorf("%+v, %v, %v", final, changed, err)
	}
	if ok, _ := cert.Unhold(t.Context(), tx, v.ID, again); ok {
		t.Error("a compromised key was unheld")
	}
	if _, changed, _ := cert.MarkRevoked(t.Context(), tx, v.ID, pki.CertificateHold); changed {
		t.Error("a final revocation became a hold")
	}
}

func TestABlockedKeyIsRefusedAndItsOtherUsesAreNamed(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeReferences(t, tx)
	v := r.store(t, tx, r.insert(t, tx, nil).ID, leaf(t, 24*time.Hour, nil))
	shared := r.store(t, tx, r.insert(t, tx, nil).ID, leaf(t, 24*time.Hour, nil))
	over := r.store(t, tx, r.insert(t, tx, nil).ID, leaf(t, 24*time.Hour, nil))
	unrelated := r.store(t, tx, r.insert(t, tx, nil).ID, leaf(t, 24*time.Hour, nil))
	exec(t, tx, `UPDATE versions SET spki_sha256 = $1 WHERE id IN ($2, $3)`, v.SPKISHA256, shared.ID, over.ID)
	exec(t, tx, `UPDATE versions SET not_after = now() WHERE id = $1`, over.ID)
	for range 2 {
		got, err := cert.BlockKey(t.Context(), tx, v, "alice")
		if err != nil || len(got) != 1 || got[0].ID != shared.ID {
			t.Errorf("%d versions, %v; want the one that lives", len(got), err)
		}
	}
	for _, c := range []struct {
		spki []byte
		want bool
	}{{v.SPKISHA256, true}, {unrelated.SPKISHA256, false}} {
		if got, err := cert.KeyBlocked(t.Context(), tx, c.spki); err != nil || got != c.want {
			t.Errorf("blocked: %v, %v; want %v", got, err, c.want)
		}
	}
}

func TestAProfileInUseIsNotArchived(t *testing.T) {
	t.Parallel()
	tx := dbtest.Tx(t)
	r := makeReferences(t, tx)
	c := r.insert(t, tx, nil)
	if err := cert.ArchiveProfile(t.Context(), tx, r.profile.ID); !fault.Is(err, fault.Conflict) {
		t.Errorf("in use: %v", err)
	}
	_, err := cert.Archive(t.Context(), tx, c.ID)
	must(t, err)
	must(t, cert.ArchiveProfile(t.Context(), tx, r.profile.ID))
	must(t, cert.ArchiveRenewalPolicy(t.Context(), tx, r.policy.ID))
	if err := cert.ArchiveProfile(t.Context(), tx, r.profile.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("archived twice: %v", err)
	}
	if _, err := cert.ProfileByName(t.Context(), tx, r.profile.Name); !fault.Is(err, fault.NotFound) {
		t.Errorf("an archived profile has a name: %v", err)
	}
}

func TestAProfileSaysWhichFieldsAreWrong(t *testing.T) {
	t.Parallel()
	bad := cert.Custody("nobody")
	p := cert.Profile{KeyAlgorithms: []string{"md5"}, EKUs: []string{"everything"}, NamePatterns: []string{"*.*"}, KeyCustody: &bad}
	err := p.Check()
	var fields []string
	for _, f := range fault.As(err).Fields {
		fields = append(fields, f.Field)
	}
	if want := []string{"name", "key_algorithms[0]", "max_ttl", "ekus[0]", "name_patterns[0]", "key_custody"}; !slices.Equal(fields, want) {
		t.Errorf("%v, want %v", fields, want)
	}
	p = cert.Profile{NamePatterns: []string{"*.example.com"}}
	names, err := pki.ParseNames("", []string{"a.example.com", "a.b.example.com", "evil.org"})
	must(t, err)
	f := fault.As(p.Permits(names))
	if f == nil || len(f.Fields) != 2 || f.Fields[0].Field != "sans[1]" || f.Fields[1].Field != "sans[2]" {
		t.Errorf("%v", f)
	}
}

func TestCanOffersWhatTheStatePermits(t *testing.T) {
	t.Parallel()
	now := time.Now()
	past, future := now.Add(-time.Hour), now.Add(time.Hour)
	for name, c := range map[string]struct {
		cert cert.Certificate
		want string
		held bool
	}{
		"archived": {cert: cert.Certificate{ArchivedAt: &past}},
		"new":      {cert: cert.Certificate{OpenJobID: id.New[id.Job]()}, want: "update"},
		"active":   {cert: cert.Certificate{CurrentVersionID: id.New[id.Version](), NotAfter: &future}, want: "renew archive deploy export revoke update"},
		"expired":  {cert: cert.Certificate{CurrentVersionID: id.New[id.Version](), NotAfter: &past}, want: "renew archive deploy export update"},
		"revoked":  {cert: cert.Certificate{CurrentVersionID: id.New[id.Version](), NotAfter: &future, RevokedAt: &past}, want: "renew archive deploy export update"},
		"held":     {cert: cert.Certificate{CurrentVersionID: id.New[id.Version](), NotAfter: &future, RevokedAt: &past}, held: true, want: "renew archive deploy export revoke unhold update"},
		"renewing": {cert: cert.Certificate{CurrentVersionID: id.New[id.Version](), NotAfter: &future, OpenJobID: id.New[id.Job]()}, want: "deploy export revoke update"},
	} {
		if got := strings.Join(c.cert.Can(now, c.held), " "); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
