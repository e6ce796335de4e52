package localca

import (
	"bytes"
	"certctl/shared/issuer/localca/certlint"
	"crypto/x509"
	"crypto/x509/pkix"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"certctl/shared/fault"
	"certctl/shared/pki"
)

func TestRootsPassTheRFCLintsAndOpenSSL(t *testing.T) {
	t.Parallel()
	for _, a := range []Authority{
		{}, {Algorithm: pki.ECDSAP384, PathLen: 1}, {Algorithm: pki.RSA2048, PathLen: -1}, {Algorithm: pki.RSA4096, PermittedDNS: []string{"example.com"}},
	} {
		gen := newGeneration(t, a)
		c := gen.Cert
		if !pki.SelfSigned(c) || !c.IsCA || c.MaxPathLen != a.PathLen || len(c.SubjectKeyId) != 20 || c.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
			t.Errorf("%+v: path length %d, usage %b", a, c.MaxPathLen, c.KeyUsage)
		}
		if a.PermittedDNS != nil && !c.PermittedDNSDomainsCritical {
			t.Error("the name constraints are not critical")
		}
		z, err := zx509.ParseCertificate(c.Raw)
		if err != nil {
			t.Fatal(err)
		}
		registry, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: certlint.RFCSources})
		if err != nil {
			t.Fatal(err)
		}
		for name, r := range zlint.LintCertificateEx(z, registry).Results {
			if r.Status >= lint.Warn {
				t.Errorf("%+v: %s %v %s", a, name, r.Status, r.Details)
			}
		}
		root := write(t, "root.pem", pki.EncodeBundle(c))
		if out, ok := openssl(t, "verify", "-x509_strict", "-check_ss_sig", "-CAfile", root, root); !ok {
			t.Error(out)
		}
	}
}

func TestNewRootRefusesWhatNoCAMayBe(t *testing.T) {
	t.Parallel()
	subject := pkix.Name{CommonName: "x"}
	for name, a := range map[string]Authority{
		"no subject":  {TTL: time.Hour},
		"no lifetime": {Subject: subject},
		"Ed25519":     {Subject: subject, TTL: time.Hour, Algorithm: pki.Ed25519},
		"path length": {Subject: subject, TTL: time.Hour, PathLen: -2},
	} {
		if _, _, err := NewRoot(a, time.Now()); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// enterprise is a root made by OpenSSL, with its key and certificate in files.
func enterprise(t *testing.T, newkey ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	args := append([]string{"req", "-x509", "-nodes", "-days", "30", "-subj", "/O=Example/CN=Enterprise root", "-keyout", dir + "/root.key", "-out", dir + "/root.pem",
		"-addext", "keyUsage=critical,keyCertSign,cRLSign"}, newkey...)
	if out, ok := openssl(t, args...); !ok {
		t.Fatal(out)
	}
	return dir
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestSubCAUnderAnEnterpriseRootIssuesVerifiableChains(t *testing.T) {
	t.Parallel()
	dir := enterprise(t, "-newkey", "rsa:2048")
	key, err := pki.Generate(pki.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := RequestSubCA(pkix.Name{Organization: []string{"Example"}, CommonName: "certctl sub CA"}, 0, key)
	if err != nil {
		t.Fatal(err)
	}
	out, ok := openssl(t, "x509", "-req", "-in", write(t, "sub.csr", pki.EncodeCSR(csr)), "-CA", dir+"/root.pem", "-CAkey", dir+"/root.key",
		"-days", "10", "-copy_extensions", "copyall", "-out", dir+"/sub.pem", "-CAcreateserial", "-extfile", write(t, "ext", []byte("subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")))
	if !ok {
		t.Fatal(out)
	}
	gen, err := Import(append(read(t, dir+"/root.pem"), read(t, dir+"/sub.pem")...), key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if gen.Cert.Subject.CommonName != "certctl sub CA" || len(gen.Chain) != 0 || !gen.Cert.MaxPathLenZero {
		t.Errorf("%v with %d parents", gen.Cert.Subject, len(gen.Chain))
	}
	chain := issue(t, newCA(t, Config{Lint: certlint.Check, Generation: gen}), request(t, pki.ECDSAP256, time.Hour, "a.example.com"))
	if len(chain) != 2 || !chain[1].Equal(gen.Cert) {
		t.Fatalf("a chain of %d", len(chain))
	}
	out, ok = openssl(t, "verify", "-x509_strict", "-CAfile", dir+"/root.pem", "-untrusted", write(t, "sub.pem", pki.EncodeBundle(chain[1])), write(t, "leaf.pem", pki.EncodeBundle(chain[0])))
	if !ok {
		t.Error(out)
	}
	if _, err := Renew(gen, time.Hour, time.Now()); !fault.Is(err, fault.Conflict) {
		t.Errorf("a sub-CA renewed itself: %v", err)
	}
}

func TestImportedRootIssues(t *testing.T) {
	t.Parallel()
	dir := enterprise(t, "-newkey", "rsa:3072")
	key, err := pki.ParseKey(read(t, dir+"/root.key"))
	if err != nil {
		t.Fatal(err)
	}
	gen, err := Import(read(t, dir+"/root.pem"), key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	chain := issue(t, newCA(t, Config{Lint: certlint.Check, Generation: gen}), request(t, pki.ECDSAP256, time.Hour, "a.example.com"))
	if out, ok := openssl(t, "verify", "-CAfile", dir+"/root.pem", write(t, "leaf.pem", pki.EncodeBundle(chain[0]))); !ok || len(chain) != 1 {
		t.Error(len(chain), out)
	}
}

func TestImportRefuses(t *testing.T) {
	t.Parallel()
	dir := enterprise(t, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
	key, err := pki.ParseKey(read(t, dir+"/root.key"))
	if err != nil {
		t.Fatal(err)
	}
	good := read(t, dir+"/root.pem")
	gen := newGeneration(t, Authority{})
	leaf := request(t, pki.ECDSAP256, time.Hour, "a.example.com")
	leafCert := issue(t, newCA(t, Config{Lint: certlint.Check, Generation: gen}), leaf)[0]
	noCRL := filepath.Join(dir, "nocrl.pem")
	if out, ok := openssl(t, "req", "-x509", "-key", dir+"/root.key", "-subj", "/CN=x", "-days", "1", "-out", noCRL, "-addext", "keyUsage=critical,keyCertSign"); !ok {
		t.Fatal(out)
	}
	for name, tt := range map[string]struct {
		bundle []byte
		key    any
		at     time.Time
		field  string
	}{
		"another key":   {bundle: good, at: time.Now(), key: gen.Signer, field: "key"},
		"a leaf":        {bundle: pki.EncodeBundle(leafCert), at: time.Now(), field: "key"},
		"no cRLSign":    {bundle: read(t, noCRL), at: time.Now(), field: "certificate_pem"},
		"expired":       {bundle: good, at: time.Now().Add(31 * 24 * time.Hour), field: "certificate_pem"},
		"not yet valid": {bundle: good, at: time.Now().Add(-time.Hour), field: "certificate_pem"},
		"garbage":       {bundle: []byte("x"), at: time.Now(), field: "certificate_pem"},
		"two strangers": {bundle: append(pki.EncodeBundle(leafCert), issueOther(t)...), at: time.Now(), field: "certificate_pem"},
	} {
		k := key
		if tt.key != nil {
			k = gen.Signer
		}
		_, err := Import(tt.bundle, k, tt.at)
		if f := fault.As(err); f == nil || len(f.Fields) != 1 || f.Fields[0].Field != tt.field {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func issueOther(t *testing.T) []byte {
	t.Helper()
	return pki.EncodeBundle(issue(t, newCA(t, Config{Lint: certlint.Check, Generation: newGeneration(t, Authority{})}), request(t, pki.ECDSAP256, time.Hour, "b.example.com"))[0])
}

func TestRenewedRootVerifiesOldLeavesAndARekeyedOneItsOwn(t *testing.T) {
	t.Parallel()
	old := newGeneration(t, Authority{PermittedDNS: []string{"example.com"}, PathLen: 0})
	leaf := issue(t, newCA(t, Config{Lint: certlint.Check, Generation: old}), request(t, pki.ECDSAP256, time.Hour, "a.example.com"))[0]
	renewed, err := Renew(old, 48*time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := leaf.CheckSignatureFrom(renewed.Cert); err != nil || renewed.Cert.SerialNumber.Cmp(old.Cert.SerialNumber) == 0 {
		t.Error("the renewed root does not verify an old leaf", err)
	}
	rekeyed, err := Rekey(old, pki.RSA2048, 48*time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if leaf.CheckSignatureFrom(rekeyed.Cert) == nil || bytes.Equal(rekeyed.Cert.SubjectKeyId, old.Cert.SubjectKeyId) {
		t.Error("the new generation has the old key")
	}
	for _, g := range []Generation{renewed, rekeyed} {
		if !bytes.Equal(g.Cert.RawSubject, old.Cert.RawSubject) || strings.Join(g.Cert.PermittedDNSDomains, " ") != "example.com" || !g.Cert.MaxPathLenZero {
			t.Error("name or limits have changed")
		}
		issue(t, newCA(t, Config{Lint: certlint.Check, Generation: g, Older: []Generation{old}}), request(t, pki.ECDSAP256, time.Hour, "a.example.com"))
	}
}
