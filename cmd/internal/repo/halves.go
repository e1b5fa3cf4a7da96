package repo

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
)

// An image's head is known last, and SHA-256 takes bytes in order. So an image has two hashes: of its first Head bytes,
// and of the rest. `head -c 8388608 FILE | sha256sum` and `tail -c +8388609 FILE | sha256sum` give them too.

// halvesWriter takes the two hashes of what is written.
type halvesWriter struct {
	Writer
	head []byte
	tail hash.Hash
}

func newHalvesWriter(w Writer) *halvesWriter { return &halvesWriter{Writer: w, tail: sha256.New()} }

func (h *halvesWriter) Write(p []byte) (int, error) {
	n := min(Head-len(h.head), len(p))
	h.head = append(h.head, p[:n]...)
	h.tail.Write(p[n:])
	return h.Writer.Write(p)
}

func (h *halvesWriter) WriteHead(p []byte, off int64) error {
	if err := h.Writer.WriteHead(p, off); err != nil {
		return err
	}
	copy(h.head[off:], p)
	return nil
}

// sums gives the hashes, once all is written.
func (h *halvesWriter) sums() []string {
	head := sha256.Sum256(h.head)
	return []string{hex.EncodeToString(head[:]), hex.EncodeToString(h.tail.Sum(nil))}
}
