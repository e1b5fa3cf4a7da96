package codec

import (
	"bytes"
	"crypto/aes"
	"math/rand/v2"
	"testing"

	"golang.org/x/crypto/xts"
)

// TestAESXTS decrypts units of every size, with both lengths of key.
func TestAESXTS(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, keyLen := range []int{32, 64} {
		for _, sector := range []int{512, 1024, 4096} {
			for _, iv := range []uint64{0, 1, 8, 1<<32 - 1, 1<<63 + 5} {
				key, plain := make([]byte, keyLen), make([]byte, 3*sector)
				for _, b := range [][]byte{key, plain} {
					for i := range b {
						b[i] = byte(r.Uint32())
					}
				}
				c, err := xts.NewCipher(aes.NewCipher, key)
				if err != nil {
					t.Fatal(err)
				}
				coded := make([]byte, len(plain))
				for i := 0; i < len(plain); i += sector {
					c.Encrypt(coded[i:i+sector], plain[i:i+sector], iv+uint64(i/512))
				}
				s := Spec{Codec: AESXTS, Full: int64(len(plain)), Sector: sector, IV: iv, Key: "k"}
				got := make([]byte, len(plain))
				keys := func(id string) ([]byte, bool) { return key, id == "k" }
				if err := Decode(got, s, keys, coded[:100], coded[100:]); err != nil || !bytes.Equal(got, plain) {
					t.Errorf("key of %d bytes, sectors of %d, IV %d: %v", keyLen, sector, iv, err)
				}
				s.Key = "other"
				if err := Decode(got, s, keys, coded); err == nil {
					t.Error("decoded without a key")
				}
			}
		}
	}
	if err := Decode(make([]byte, 512), Spec{Codec: AESXTS, Full: 512, Sector: 512, Key: "k"}, func(string) ([]byte, bool) { return []byte("short"), true }, make([]byte, 512)); err == nil {
		t.Error("decoded with a key of 5 bytes")
	}
}

func BenchmarkAESXTS(b *testing.B) {
	key, in, out := bytes.Repeat([]byte{7}, 64), make([]byte, 64<<10), make([]byte, 64<<10)
	keys := func(string) ([]byte, bool) { return key, true }
	s := Spec{Codec: AESXTS, Full: int64(len(out)), Sector: 512, Key: "k"}
	b.SetBytes(s.Full)
	for b.Loop() {
		if err := Decode(out, s, keys, in); err != nil {
			b.Fatal(err)
		}
	}
}
