package dial

import "net/netip"

// kind is how an address is treated.
type kind int

const (
	public   kind = iota
	private       // this organisation's own networks, and the carrier's
	loopback      // this machine
	never         // refused for every purpose
)

// ranges come from the IANA special-purpose registries (RFC 6890). The first that contains the address decides, so
// metadata services stand before the private ranges they lie in. What an address embeds is taken out before.
var ranges = []struct {
	kind   kind
	prefix netip.Prefix
}{
	// Metadata services.
	{never, netip.MustParsePrefix("169.254.0.0/16")},     // link-local: most clouds' metadata, ECS credentials, time
	{never, netip.MustParsePrefix("100.100.100.200/32")}, // Alibaba
	{never, netip.MustParsePrefix("192.0.0.192/32")},     // Oracle
	{never, netip.MustParsePrefix("168.63.129.16/32")},   // Azure's wire server
	{never, netip.MustParsePrefix("fd00:ec2::/32")},      // AWS
	{never, netip.MustParsePrefix("fd20:ce::254/128")},   // Google
	{never, netip.MustParsePrefix("fe80::/10")},          // link-local
	{never, netip.MustParsePrefix("fec0::/10")},          // site-local, deprecated

	{loopback, netip.MustParsePrefix("127.0.0.0/8")},
	{loopback, netip.MustParsePrefix("::1/128")},
	{loopback, netip.MustParsePrefix("0.0.0.0/32")}, // Linux connects "any address" to this machine
	{loopback, netip.MustParsePrefix("::/128")},

	{private, netip.MustParsePrefix("10.0.0.0/8")},
	{private, netip.MustParsePrefix("172.16.0.0/12")},
	{private, netip.MustParsePrefix("192.168.0.0/16")},
	{private, netip.MustParsePrefix("100.64.0.0/10")}, // carrier-grade NAT
	{private, netip.MustParsePrefix("198.18.0.0/15")}, // benchmarking
	{private, netip.MustParsePrefix("fc00::/7")},      // unique local

	{never, netip.MustParsePrefix("0.0.0.0/8")},
	{never, netip.MustParsePrefix("192.0.0.0/24")},    // protocol assignments
	{never, netip.MustParsePrefix("192.0.2.0/24")},    // documentation
	{never, netip.MustParsePrefix("198.51.100.0/24")}, // documentation
	{never, netip.MustParsePrefix("203.0.113.0/24")},  // documentation
	{never, netip.MustParsePrefix("192.88.99.0/24")},  // 6to4 relays
	{never, netip.MustParsePrefix("224.0.0.0/4")},     // multicast
	{never, netip.MustParsePrefix("240.0.0.0/4")},     // reserved, broadcast
	{never, netip.MustParsePrefix("2001:db8::/32")},   // documentation
	{never, netip.MustParsePrefix("3fff::/20")},       // documentation
	{never, netip.MustParsePrefix("ff00::/8")},        // multicast
	{public, netip.MustParsePrefix("0.0.0.0/0")},
	{public, netip.MustParsePrefix("2000::/3")}, // the only global unicast there is
}

// classify takes the most cautious view: of an IPv6 address that embeds an IPv4 address, the stricter of both.
func classify(a netip.Addr) kind {
	a = a.Unmap() // a zone stays: no range contains it, so it is refused
	inner, ok := embedded(a)
	switch {
	case nat64.Contains(a): // a translator's prefix, which says nothing of its own
		return lookUp(inner)
	case ok:
		return max(lookUp(a), lookUp(inner))
	}
	return lookUp(a)
}

func lookUp(a netip.Addr) kind {
	for _, r := range ranges {
		if r.prefix.Contains(a) {
			return r.kind
		}
	}
	return never
}

var (
	nat64     = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052; other translation prefixes are outside 2000::/3 and refused
	sixToFour = netip.MustParsePrefix("2002::/16")    // RFC 3056
	teredo    = netip.MustParsePrefix("2001::/32")    // RFC 4380
)

// embedded takes the IPv4 address out of an IPv6 transition address.
func embedded(a netip.Addr) (inner netip.Addr, ok bool) {
	if !a.Is6() {
		return inner, false
	}
	b := a.As16()
	switch {
	case sixToFour.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	case teredo.Contains(a): // the client's address, inverted
		return netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}), true
	case nat64.Contains(a), isatap(b):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	}
	return inner, false
}

// isatap sees the interface identifier of RFC 5214.
func isatap(b [16]byte) bool {
	return b[8]&0xfd == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}
