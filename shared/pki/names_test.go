package pki

import (
	"slices"
	"strings"
	"testing"

	"certctl/shared/fault"
)

func TestParseNamesRecognisesAndNormalises(t *testing.T) {
	t.Parallel()
	n := mustNames(t, "WWW.Example.COM", "api.example.com", "www.example.com", "API.EXAMPLE.COM", "*.Example.com",
		"192.0.2.1", "2001:DB8::0001", "::ffff:192.0.2.1", "Ops@Example.com", "SPIFFE://Example.org/Ns/A", "urn:uuid:1", "localhost", "xn--mller-kva.example")
	want := []string{"www.example.com", "api.example.com", "*.example.com", "localhost", "xn--mller-kva.example",
		"192.0.2.1", "2001:db8::1", "ops@example.com", "spiffe://example.org/Ns/A", "urn:uuid:1"}
	if n.CommonName != "www.example.com" || !slices.Equal(n.SANs(), want) {
		t.Errorf("common name %q, SANs %v", n.CommonName, n.SANs())
	}
	again := mustNames(t, n.CommonName, n.SANs()...)
	if !again.Equal(n) {
		t.Error("canonical names are not read back as the same")
	}
}

func TestCommonNameAndSANsGoTogether(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 63) + ".example.com"
	for _, tt := range []struct {
		cn   string
		sans []string
		want string
		list []string
	}{
		{"a.example.com", nil, "a.example.com", []string{"a.example.com"}},
		{"a.example.com", []string{"b.example.com"}, "a.example.com", []string{"a.example.com", "b.example.com"}},
		{"", []string{"B.example.com", "c.example.com"}, "b.example.com", []string{"b.example.com", "c.example.com"}},
		{"", []string{long, "c.example.com"}, "", []string{long, "c.example.com"}},
		{"10.0.0.1", nil, "10.0.0.1", []string{"10.0.0.1"}},
		{"Build server 7", []string{"b.example.com"}, "Build server 7", []string{"b.example.com"}},
		{"Müller & Söhne", nil, "Müller & Söhne", nil},
		{"db1", nil, "db1", []string{"db1"}},
	} {
		n, err := ParseNames(tt.cn, tt.sans)
		if err != nil || n.CommonName != tt.want || !slices.Equal(n.SANs(), tt.list) {
			t.Errorf("%q %v: %q %v, %v", tt.cn, tt.sans, n.CommonName, n.SANs(), err)
		}
	}
}

func TestParseNamesRefusesBadNamesByField(t *testing.T) {
	t.Parallel()
	bad := []string{
		"", " ", "a b", "müller.example.com", "a..b", ".example.com", "example.com.", "*.com", "*", "*.*.example.com", "a.*.com",
		"w*.example.com", "-a.example.com", "a-.example.com", "_dmarc.example.com", "a_b.example.com", "ab--cd.example.com",
		strings.Repeat("a", 64) + ".com", strings.Repeat("a.", 127) + "com", "1.2.3", "256.1.1.1", "example.com:443", "DNS:example.com",
		"fe80::1%eth0", "user@", "@example.com", "Jo <jo@example.com>", "jo@exämple.com", "a@*.example.com", "http://", "https://u:p@example.com/",
		"://x", "http://exa mple.com", "a\x00b.example.com", "a\nb", "10.0.0.0/8", "http://" + strings.Repeat("a", 2048),
	}
	for _, s := range bad {
		_, err := ParseNames("ok.example.com", []string{"fine.example.com", s})
		f := fault.As(err)
		if f == nil || f.Kind != fault.Invalid || len(f.Fields) != 1 || f.Fields[0].Field != "sans[1]" {
			t.Errorf("%q: %v", s, err)
			continue
		}
		if len(s) > 6 && strings.Contains(err.Error(), s) {
			t.Errorf("%q is echoed: %v", s, err)
		}
	}
}

func TestParseNamesTellsAllFaultsAtOnce(t *testing.T) {
	t.Parallel()
	_, err := ParseNames(strings.Repeat("x", 65), []string{"ok.example.com", "a..b", "*.com"})
	f := fault.As(err)
	if f == nil {
		t.Fatal(err)
	}
	var fields []string
	for _, x := range f.Fields {
		fields = append(fields, x.Field)
	}
	if !slices.Equal(fields, []string{"common_name", "sans[1]", "sans[2]"}) {
		t.Errorf("fields %v", fields)
	}
}

func TestParseNamesRefusesCommonNames(t *testing.T) {
	t.Parallel()
	for _, cn := range []string{
		strings.Repeat("a", 65), "a\x00.example.com", "müller.example.com", "evil_x.example.com", "example。com", "*.com",
		" x", "x ", "tab\there", "\xff", "1.2.3", "a@b@c",
	} {
		if n, err := ParseNames(cn, []string{"ok.example.com"}); err == nil {
			t.Errorf("%q was accepted: %+v", cn, n)
		}
	}
	if _, err := ParseNames("", nil); err == nil {
		t.Error("no name at all was accepted")
	}
	if _, err := ParseNames("", slices.Repeat([]string{"a.example.com"}, MaxSANs+1)); err == nil {
		t.Error("too many SANs were accepted")
	}
}

func TestEqualComparesSetsAndKinds(t *testing.T) {
	t.Parallel()
	a := mustNames(t, "a.example.com", "b.example.com", "10.0.0.1")
	if !a.Equal(mustNames(t, "a.example.com", "10.0.0.1", "b.example.com")) {
		t.Error("the order counts")
	}
	for _, other := range []Names{
		mustNames(t, "b.example.com", "a.example.com", "10.0.0.1"),
		mustNames(t, "a.example.com", "b.example.com"),
		mustNames(t, "a.example.com", "b.example.com", "10.0.0.1", "c.example.com"),
		{CommonName: a.CommonName, DNS: []string{"a.example.com", "b.example.com", "10.0.0.1"}},
	} {
		if a.Equal(other) {
			t.Errorf("equal to %+v", other)
		}
	}
}

func TestMatchPattern(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pattern string
		yes, no []string
	}{
		{"*", []string{"a.example.com", "10.0.0.1", "spiffe://x/y", "a@example.com"}, []string{""}},
		{"www.Example.com", []string{"www.example.com"}, []string{"a.www.example.com", "wwwxexample.com", "example.com"}},
		{"*.example.com", []string{"a.example.com", "*.example.com"}, []string{"example.com", "a.b.example.com", ".example.com", "aexample.com", "x@a.example.com", "http://a.example.com", "*.a.example.com"}},
		{"**.example.com", []string{"a.example.com", "a.b.example.com", "*.a.example.com"}, []string{"example.com", "badexample.com", "x@a.example.com", "https://a.example.com"}},
		{".example.com", []string{"a.b.example.com"}, []string{"example.com"}},
		{"10.0.0.0/8", []string{"10.1.2.3"}, []string{"11.0.0.1", "a.example.com", "::1"}},
		{"10.0.0.1", []string{"10.0.0.1"}, []string{"10.0.0.2"}},
		{"*@example.com", []string{"a@example.com"}, []string{"a@b.example.com", "example.com"}},
		{"*.corp", []string{"db.corp"}, []string{"corp", "a.db.corp"}},
		{"spiffe://x/ns/*", []string{"spiffe://x/ns/a"}, []string{"spiffe://x/ns/a/b", "spiffe://x/ns/", "spiffe://y/ns/a"}},
		{"spiffe://x/**", []string{"spiffe://x/a/b"}, []string{"spiffe://x/", "spiffe://x.evil/a"}},
		{"", nil, []string{"", "a.example.com"}},
		{"a.*.com", nil, []string{"a.b.com"}},
		{"*example.com", nil, []string{"badexample.com"}},
		{"spiffe://x*", nil, []string{"spiffe://x.evil/a"}},
		{"*.", nil, []string{"a."}},
		{"***.example.com", nil, []string{"a.example.com"}},
	} {
		for _, name := range tt.yes {
			if !MatchPattern(tt.pattern, name) {
				t.Errorf("%q does not permit %q", tt.pattern, name)
			}
		}
		for _, name := range tt.no {
			if MatchPattern(tt.pattern, name) {
				t.Errorf("%q permits %q", tt.pattern, name)
			}
		}
		if err := CheckPattern(tt.pattern); (err == nil) != (len(tt.yes) > 0) {
			t.Errorf("CheckPattern(%q) = %v", tt.pattern, err)
		}
	}
}

func TestUnpermittedNamesTheCommonNameToo(t *testing.T) {
	t.Parallel()
	n := mustNames(t, "Build server 7", "a.example.com", "a.example.org")
	got := Unpermitted([]string{"*.example.com"}, n)
	if !slices.Equal(got, []string{"Build server 7", "a.example.org"}) {
		t.Errorf("refused %v", got)
	}
	if len(Unpermitted([]string{"*"}, n)) != 0 || len(Unpermitted(nil, n)) != 3 {
		t.Error("* does not permit everything, or no pattern permits something")
	}
}
