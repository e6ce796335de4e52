package secret

import (
	"encoding/binary"
	"errors"
)

// envelope is the stored form:
//
//	1 octet   version, 1
//	1 octet   length of the key-encryption key's id, and the id
//	2 octets  length of the wrapped data key (big endian), and the wrapped key
//	12 octets nonce
//	rest      AES-256-GCM ciphertext with its tag of 16 octets
//
// Every part is authenticated: the id and the wrapped key by unwrapping, the rest by the data key.
type envelope struct {
	kekID      string
	wrapped    []byte
	nonce      []byte
	ciphertext []byte
}

const (
	version   = 1
	nonceSize = 12
	tagSize   = 16
)

func (e envelope) encode() ([]byte, error) {
	if len(e.kekID) > 0xff || len(e.wrapped) > 0xffff {
		return nil, errors.New("sealing: the key-encryption key's id or the wrapped key is too long")
	}
	b := make([]byte, 0, 4+len(e.kekID)+len(e.wrapped)+len(e.nonce)+len(e.ciphertext))
	b = append(b, version, byte(len(e.kekID))) // #nosec G115 -- checked above
	b = append(b, e.kekID...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.wrapped))) // #nosec G115 -- checked above
	b = append(b, e.wrapped...)
	b = append(b, e.nonce...)
	return append(b, e.ciphertext...), nil
}

func decode(b []byte) (e envelope, err error) {
	if len(b) < 2 || b[0] != version {
		return e, ErrNotOpened
	}
	id, b, ok := cut(b[2:], int(b[1]))
	if !ok || len(b) < 2 {
		return e, ErrNotOpened
	}
	wrapped, b, ok := cut(b[2:], int(binary.BigEndian.Uint16(b)))
	if !ok || len(b) < nonceSize+tagSize {
		return e, ErrNotOpened
	}
	return envelope{string(id), wrapped, b[:nonceSize], b[nonceSize:]}, nil
}

func cut(b []byte, n int) (head, tail []byte, ok bool) {
	if len(b) < n {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}
