package dial_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"certctl/shared/dial"
	"certctl/shared/fault"
)

func TestAddressesAreJudgedByWhatTheyReach(t *testing.T) {
	strict := dial.Policy{}
	allowed := dial.Policy{AllowPrivate: map[dial.Purpose]bool{dial.Scan: true}}
	lambda := dial.Policy{AllowPrivate: dial.AllowAll(), Lambda: true}
	for _, group := range []struct {
		name                    string
		strict, allowed, lambda bool
		addresses               string
	}{
		{"public", true, true, true, `1.1.1.1 8.8.8.8 100.63.255.255 100.128.0.0 172.15.255.255 172.32.0.0 2606:4700::1111 2a00:1450::1
			::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1 2001::f7f7:f7f7`},
		{"private", false, true, true, `10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.127.255.255 198.18.0.1 fc00::1 fd12:3456::1
			::ffff:10.0.0.1 64:ff9b::10.0.0.1 2002:a00:1::1 2001::f5ff:fffe 2a00:1450::5efe:10.0.0.1 fd00::5efe:8.8.8.8`},
		{"loopback", false, true, false, `127.0.0.1 127.255.255.254 ::1 0.0.0.0 :: ::ffff:127.0.0.1 ::ffff:0.0.0.0 64:ff9b::127.0.0.1
			2002:7f00:1::1 2001::80ff:fffe`},
		{"never", false, false, false, `169.254.169.254 169.254.170.2 169.254.0.1 100.100.100.200 168.63.129.16 192.0.0.192 fd00:ec2::254 fd20:ce::254
			fe80::1 fe80::1%eth0 fe80::5efe:8.8.8.8 fec0::1 ::ffff:169.254.169.254 64:ff9b::169.254.169.254 64:ff9b::6464:64c8 2002:a9fe:a9fe::1
			2001::5601:5601 2a00:1450::5efe:169.254.169.254 2a00:1450::200:5efe:169.254.169.254
			64:ff9b:1::169.254.169.254 64:ff9b:1::8.8.8.8 ::169.254.169.254 ::127.0.0.1 ::ffff:0:127.0.0.1
			224.0.0.1 239.255.255.255 255.255.255.255 240.0.0.1 0.1.2.3 192.0.2.1 198.51.100.1 203.0.113.1 ff02::1 2001:db8::1 100::1 5f00::1 4000::1`},
	} {
		for _, s := range strings.Fields(group.addresses) {
			a, err := netip.ParseAddr(s)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				name string
				p    dial.Policy
				want bool
			}{{"strict", strict, group.strict}, {"allowed", allowed, group.allowed}, {"lambda", lambda, group.lambda}} {
				if err := c.p.Check(dial.Scan, a); (err == nil) != c.want {
					t.Errorf("%s address %s under the %s policy: %v", group.name, s, c.name, err)
				}
			}
		}
	}
	if err := allowed.Check(dial.Webhooks, netip.MustParseAddr("10.0.0.1")); err == nil {
		t.Error("what one purpose may, another may too")
	}
	if err := allowed.Check(dial.Scan, netip.Addr{}); err == nil {
		t.Error("no address at all is accepted")
	}
}

func TestARefusalSaysWhatToSetAndNotWhatWasAsked(t *testing.T) {
	err := dial.Policy{}.Check(dial.Webhooks, netip.MustParseAddr("10.1.2.3"))
	if !fault.Is(err, fault.Denied) || !errors.Is(err, dial.ErrForbiddenAddress) {
		t.Fatalf("got %v", err)
	}
	detail := fault.As(err).Detail
	if !strings.Contains(detail, "webhooks") || !strings.Contains(detail, dial.Variable) || strings.Contains(detail, "10.1.2.3") {
		t.Errorf("detail is %q", detail)
	}
}

func TestNamesAndOtherFormsOfLoopbackAreRefusedWhenTheyConnect(t *testing.T) {
	port := listen(t)
	for _, host := range []string{"localhost", "127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1", "::"} {
		_, err := dial.Policy{}.Dialer(dial.Verify)(t.Context(), "tcp", net.JoinHostPort(host, port))
		if !errors.Is(err, dial.ErrForbiddenAddress) || !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v", host, err)
		}
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := open().Dialer(dial.Verify)(t.Context(), "unix", socket); !errors.Is(err, dial.ErrForbiddenAddress) {
		t.Errorf("a Unix socket: %v", err)
	}
	c, err := open().Dialer(dial.Verify)(t.Context(), "tcp", "localhost:"+port)
	if err != nil {
		t.Fatalf("an allowed purpose: %v", err)
	}
	_ = c.Close()
}

func TestARedirectToTheMetadataServiceIsRefused(t *testing.T) {
	for _, to := range []string{"http://169.254.169.254/latest/meta-data/", "http://[::ffff:169.254.169.254]/", "http://[fd00:ec2::254]/"} {
		s := httptest.NewServer(http.RedirectHandler(to, http.StatusFound))
		defer s.Close()
		_, err := get(open().HTTPClient(dial.Webhooks, nil), s.URL)
		if !errors.Is(err, dial.ErrForbiddenAddress) || !fault.Is(err, fault.Denied) {
			t.Errorf("to %s: %v", to, err)
		}
	}
}

func TestARedirectIsFollowedWhereItMayLead(t *testing.T) {
	end := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer end.Close()
	first := httptest.NewServer(http.RedirectHandler(end.URL, http.StatusFound))
	defer first.Close()
	roots := x509.NewCertPool()
	roots.AddCert(end.Certificate())
	config := &tls.Config{RootCAs: roots}

	if code, err := get(open().HTTPClient(dial.Issuers, config), first.URL); err != nil || code != 200 {
		t.Errorf("http to https: %d, %v", code, err)
	}

	plain := httptest.NewServer(end.Config.Handler)
	defer plain.Close()
	down := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusFound))
	defer down.Close()
	roots.AddCert(down.Certificate())
	if _, err := get(open().HTTPClient(dial.Issuers, config), down.URL); err == nil || !strings.Contains(err.Error(), "redirect") {
		t.Errorf("https to http: %v", err)
	}

	var hops atomic.Int32
	circle := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hops.Add(1)
		http.Redirect(w, r, "/", http.StatusFound)
	}))
	defer circle.Close()
	if _, err := get(open().HTTPClient(dial.Issuers, nil), circle.URL); err == nil || hops.Load() != 6 {
		t.Errorf("a circle was asked %d times, want 6: %v", hops.Load(), err)
	}
}

// net/http reads the environment once per process, so the setting is looked at instead of a request.
func TestTheEnvironmentsProxyIsNotUsed(t *testing.T) {
	if open().HTTPClient(dial.Issuers, nil).Transport.(*http.Transport).Proxy != nil {
		t.Error("a proxy would connect in the dialer's place")
	}
}

func TestTheListOfAllowedPurposesIsReadStrictly(t *testing.T) {
	got, err := dial.ParseAllowPrivate(" issuers, verify,")
	if err != nil || len(got) != 2 || !got[dial.Issuers] || !got[dial.Verify] {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := dial.ParseAllowPrivate(""); err != nil || len(got) != 0 {
		t.Errorf("of nothing: %v, %v", got, err)
	}
	for _, bad := range []string{"all", "Issuers", "issuers;verify", "true"} {
		if _, err := dial.ParseAllowPrivate(bad); err == nil || !strings.Contains(err.Error(), dial.Variable) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func open() dial.Policy { return dial.Policy{AllowPrivate: dial.AllowAll()} }

// listen answers an open loopback port.
func listen(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

func get(c *http.Client, url string) (int, error) {
	defer c.CloseIdleConnections()
	r, err := c.Get(url)
	if err != nil {
		return 0, err
	}
	return r.StatusCode, r.Body.Close()
}
