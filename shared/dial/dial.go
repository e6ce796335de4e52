// Package dial owns the way out: every connection to an address that a user, a CA or a scan supplied is made here.
//
// The check is on the resolved address, in the hook between resolution and connect: each address that is tried is checked,
// so that neither a name that resolves anew, nor a redirect, nor an address written in another form gets around it.
// Metadata and link-local addresses are always refused; loopback and private ones unless their purpose is allowed.
package dial

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"certctl/shared/fault"
)

// Purpose says what a connection is for.
type Purpose string

// The purposes.
const (
	Issuers  Purpose = "issuers"  // certificate authorities and what they need (DNS providers, keys)
	Webhooks Purpose = "webhooks" // notifications
	Scan     Purpose = "scan"     // discovery of certificates on the network
	Verify   Purpose = "verify"   // probes after a deployment
)

// Purposes are all of them.
var Purposes = []Purpose{Issuers, Webhooks, Scan, Verify}

// Variable names what an operator sets to allow private addresses.
const Variable = "CERTCTL_ALLOW_PRIVATE"

// Policy says where connections may go. The zero value allows public addresses only.
type Policy struct {
	AllowPrivate map[Purpose]bool // may reach loopback and private addresses
	Lambda       bool             // loopback, which is the function's own runtime there, is refused for all
}

// ParseAllowPrivate reads a list such as "issuers,verify". An unknown word is an error that names the variable and the words.
func ParseAllowPrivate(list string) (map[Purpose]bool, error) {
	allowed := map[Purpose]bool{}
	for _, word := range strings.Split(list, ",") {
		p := Purpose(strings.TrimSpace(word))
		switch {
		case p == "":
		case !slices.Contains(Purposes, p):
			return nil, fmt.Errorf("%s is a list of issuers, webhooks, scan and verify, separated by commas", Variable)
		default:
			allowed[p] = true
		}
	}
	return allowed, nil
}

// AllowAll is what serve on a loopback listener starts with.
func AllowAll() map[Purpose]bool {
	allowed := map[Purpose]bool{}
	for _, p := range Purposes {
		allowed[p] = true
	}
	return allowed
}

// ErrForbiddenAddress is in the chain of every refusal, below a fault of kind Denied that names the purpose and what to set.
var ErrForbiddenAddress = errors.New("forbidden address")

// Check refuses an address for a purpose with a Denied fault. The fault does not repeat the address: it may be what a name
// resolved to, which the caller must not learn.
func (p Policy) Check(purpose Purpose, addr netip.Addr) error {
	switch k := classify(addr); {
	case k == public:
		return nil
	case k == never:
		return fault.Wrap(ErrForbiddenAddress, fault.Denied,
			"The address is refused for %s as for every purpose: it is a metadata, link-local, multicast or reserved one.", purpose)
	case k == loopback && p.Lambda:
		return fault.Wrap(ErrForbiddenAddress, fault.Denied, "The address is a loopback address, which a function never connects to.")
	case !p.AllowPrivate[purpose]:
		return fault.Wrap(ErrForbiddenAddress, fault.Denied,
			"The address is a private or loopback address. To allow those for %[1]s, add %[1]s to %[2]s.", purpose, Variable)
	}
	return nil
}

// DialContext is the shape of net.Dialer.DialContext.
type DialContext = func(ctx context.Context, network, address string) (net.Conn, error)

// Dialer connects over TCP and UDP for a purpose, with a limit of 10 s. Errors of refused addresses hold
// ErrForbiddenAddress and are Denied faults; those of the network are net's own.
func (p Policy) Dialer(purpose Purpose) DialContext {
	d := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second, ControlContext: p.control(purpose)}
	return d.DialContext
}

// control runs for each resolved address before its connect. It is told IP and port, so a Unix socket, too, ends here.
func (p Policy) control(purpose Purpose) func(context.Context, string, string, syscall.RawConn) error {
	return func(_ context.Context, network, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil || !strings.HasPrefix(network, "tcp") && !strings.HasPrefix(network, "udp") {
			return fault.Wrap(ErrForbiddenAddress, fault.Denied, "Only TCP and UDP addresses are connected to.")
		}
		return p.Check(purpose, at.Addr())
	}
}

// HTTPClient calls over the purpose's dialer. It follows up to 5 redirects, each connection checked anew, never from https
// to http; it takes no proxy from the environment, which would connect in its place. A request ends after 30 s. tlsConfig
// may be nil. The client's errors repeat the URL (*url.Error): where that holds a token, take Unwrap.
func (p Policy) HTTPClient(purpose Purpose, tlsConfig *tls.Config) *http.Client {
	return &http.Client{
		Timeout:       30 * time.Second,
		CheckRedirect: checkRedirect,
		Transport: &http.Transport{
			DialContext:            p.Dialer(purpose),
			TLSClientConfig:        tlsConfig,
			TLSHandshakeTimeout:    10 * time.Second,
			ResponseHeaderTimeout:  20 * time.Second,
			IdleConnTimeout:        60 * time.Second,
			MaxIdleConnsPerHost:    4,
			MaxResponseHeaderBytes: 64 << 10,
			ForceAttemptHTTP2:      true,
		},
	}
}

const maxRedirects = 5

func checkRedirect(next *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if next.URL.Scheme != "https" && via[len(via)-1].URL.Scheme == "https" {
		return errors.New("a redirect leads from https to another scheme")
	}
	return nil
}
