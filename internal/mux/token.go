package mux

import (
	"bufio"
	"bytes"
	"crypto/rand"
)

// Tokens of the handshake. The first byte is zero, with which no frame begins.
const (
	tokenPrefix = "\x00arcbox-mux1-"
	kindHello   = "helo"
	kindAck     = "ack."
	kindGo      = "go.."
	kindSize    = 4
	nonceSize   = 16
	tokenSize   = len(tokenPrefix) + kindSize + nonceSize
)

type nonce [nonceSize]byte

func newNonce() nonce {
	var n nonce
	rand.Read(n[:])
	return n
}

func token(kind string, n nonce) []byte {
	b := make([]byte, 0, tokenSize)
	b = append(b, tokenPrefix...)
	b = append(b, kind...)
	return append(b, n[:]...)
}

// scan reads until it has come to a token, and returns its kind, which may be one that does not exist, and its nonce. It
// has then read the prefix only: what looks like the rest may be the begin of a token that somebody wrote after half of
// another. take reads the rest. An error of the reader leaves what may be the begin of a token in r, so that scan can be
// called again.
func scan(r *bufio.Reader) (kind string, n nonce, err error) {
	for {
		b, err := r.Peek(tokenSize)
		if len(b) == tokenSize && bytes.HasPrefix(b, []byte(tokenPrefix)) {
			kind = string(b[len(tokenPrefix):][:kindSize])
			copy(n[:], b[len(tokenPrefix)+kindSize:])
			_, err := r.Discard(len(tokenPrefix))
			return kind, n, err
		}
		// Skip to the next place at which a token can begin, over all that is buffered.
		b, _ = r.Peek(r.Buffered())
		r.Discard(noToken(b))
		if err != nil {
			return "", n, err
		}
	}
}

// take reads the rest of the token that scan has come to.
func take(r *bufio.Reader) error {
	_, err := r.Discard(kindSize + nonceSize)
	return err
}

// noToken returns how many bytes at the begin of b are surely not the begin of a token.
func noToken(b []byte) int {
	for i := range b {
		rest := b[i:]
		if len(rest) > len(tokenPrefix) {
			rest = rest[:len(tokenPrefix)]
		}
		if bytes.HasPrefix([]byte(tokenPrefix), rest) {
			return i
		}
	}
	return len(b)
}

// scanFor reads until it has read the token of that kind and nonce.
func scanFor(r *bufio.Reader, kind string, n nonce) error {
	for {
		k, got, err := scan(r)
		if err != nil {
			return err
		}
		if k == kind && got == n {
			return take(r)
		}
	}
}
