// Package pki owns what certificates, requests, CRLs and OCSP answers look like on the wire, and the rules that they must
// obey before certctl makes, accepts or stores one: names, key policy, serials, revocation reasons, chains.
//
// Everything here is a pure function of its arguments (randomness for keys and serials apart): no clock, no network, no
// database, no state. The surprising rule: whatever is signed here is signed deterministically where the key allows it
// (RFC 6979 for ECDSA, PKCS #1 v1.5 for RSA), so that a repeated step gives the same bytes.
package pki
