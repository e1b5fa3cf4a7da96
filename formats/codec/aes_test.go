package codec

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
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
	for _, codec := range []string{AESXTS, AESCBC} {
		keys := func(string) ([]byte, bool) { return []byte("short"), true }
		if err := Decode(make([]byte, 512), Spec{Codec: codec, Full: 512, Sector: 512, Key: "k"}, keys, make([]byte, 512)); err == nil {
			t.Errorf("%s decoded with a key of 5 bytes", codec)
		}
	}
}

// TestAESCBC decrypts sectors that are encrypted one by one, in place.
func TestAESCBC(t *testing.T) {
	key, plain, coded := []byte("0123456789abcdef"), make([]byte, 2048), make([]byte, 2048)
	for i := range plain {
		plain[i] = byte(i * i >> 3)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(plain); i += 512 {
		iv := make([]byte, 16)
		iv[0], iv[7] = byte(250+i/512), 1
		cipher.NewCBCEncrypter(block, iv).CryptBlocks(coded[i:i+512], plain[i:i+512])
	}
	s := Spec{Codec: AESCBC, Full: 2048, Sector: 512, IV: 1<<56 + 250, Key: "k"}
	keys := func(id string) ([]byte, bool) { return key, id == "k" }
	if err := Decode(coded, s, keys, coded); err != nil || !bytes.Equal(coded, plain) {
		t.Error(err)
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
