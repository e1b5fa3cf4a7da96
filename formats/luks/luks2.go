package luks

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"vmkit/formats/ondisk"
)

// metadata is LUKS2's JSON area: specification 3. Numbers of 64 bits are strings there.
type metadata struct {
	Keyslots map[string]struct {
		Type     string
		KeySize  int `json:"key_size"`
		Priority *int
		AF       struct {
			Type, Hash string
			Stripes    int
		}
		Area struct {
			Type, Offset, Size, Encryption string
			KeySize                        int `json:"key_size"`
		}
		KDF kdf2
	}
	Segments map[string]struct {
		Type, Offset, Size, Encryption string
		IVTweak                        string `json:"iv_tweak"`
		SectorSize                     int    `json:"sector_size"`
		Integrity                      *json.RawMessage
		Flags                          []string
	}
	Digests map[string]struct {
		kdf2
		Keyslots, Segments []string
		Digest             string
	}
	Config struct {
		Requirements struct{ Mandatory []string }
	}
}

type kdf2 struct {
	Type, Hash, Salt   string
	Iterations         int64
	Time, Memory, CPUs int64
}

// read2 reads whichever of the two headers is sound and newer. It gives nil without an error when there is none.
func read2(r io.ReaderAt, size int64) (*Header, error) {
	primary, err := load2(r, size, 0)
	at := []int64{}
	if primary != nil {
		at = append(at, int64(primary.Size)) // bounded by load2
	} else {
		for n := int64(minHeader2); n <= maxHeader2; n *= 2 {
			at = append(at, n)
		}
	}
	var second *loaded
	var err2 error
	for _, off := range at {
		if second, err2 = load2(r, size, off); second != nil {
			break
		}
	}
	use := primary
	var notes []string
	switch {
	case primary == nil && second == nil:
		return nil, err
	case primary == nil:
		use = second
		notes = append(notes, fmt.Sprintf("the secondary LUKS2 header at byte %d is used: %v", second.Offset, or(err, "there is no primary one")))
	case second == nil:
		notes = append(notes, fmt.Sprintf("the secondary LUKS2 header is not usable: %v", or(err2, "there is none")))
	case second.Sequence > primary.Sequence:
		use = second
		notes = append(notes, fmt.Sprintf("the secondary LUKS2 header is newer than the primary one (%d, %d) and is used", second.Sequence, primary.Sequence))
	case second.Sequence < primary.Sequence:
		notes = append(notes, fmt.Sprintf("the secondary LUKS2 header is older than the primary one (%d, %d)", second.Sequence, primary.Sequence))
	}
	h, err := use.parse()
	if h != nil {
		h.Notes = append(notes, h.Notes...)
	}
	return h, err
}

func or(err error, s string) any {
	if err != nil {
		return err
	}
	return s
}

type loaded struct {
	header2
	json []byte
}

// load2 reads and checks the header at off; nil without an error: there is none.
func load2(r io.ReaderAt, size, off int64) (*loaded, error) {
	what := "luks2 header"
	want := magic1
	if off > 0 {
		what, want = "secondary luks2 header", magic2
	}
	if !ondisk.Within(off, header2Len, size) {
		return nil, nil
	}
	b, err := ondisk.Read(r, off, header2Len, what)
	if err != nil {
		return nil, err
	}
	l := new(loaded)
	if _, err := binary.Decode(b, binary.BigEndian, &l.header2); err != nil {
		return nil, err
	}
	if string(l.Magic[:]) != want || l.Version != 2 {
		return nil, nil
	}
	n := l.Size
	if n < minHeader2 || n > maxHeader2 || n&(n-1) != 0 {
		return nil, ondisk.Corrupt(what, "size", off+8, n)
	}
	if l.Offset != uint64(off) {
		return nil, ondisk.Corrupt(what, "own position", off+256, l.Offset)
	}
	if b, err = ondisk.Read(r, off, int64(n), what); err != nil {
		return nil, err
	}
	alg := text(l.ChecksumAlg[:])
	newHash := hashes[alg]
	if newHash == nil {
		return nil, ondisk.Unsupported(what, "checksum algorithm", off+72, alg)
	}
	sum := newHash()
	clear(b[checksum2Off : checksum2Off+64])
	sum.Write(b)
	if s := sum.Sum(nil); !bytes.Equal(s, l.Checksum[:len(s)]) {
		return nil, ondisk.Corrupt(what, "checksum", off+checksum2Off, nil)
	}
	l.json, _, _ = bytes.Cut(b[header2Len:], []byte{0})
	return l, nil
}

func (l *loaded) parse() (*Header, error) {
	h := &Header{Version: 2, UUID: text(l.UUID[:]), Label: text(l.Label[:]), PayloadLen: -1}
	bad := func(field string, got any) error {
		return ondisk.Corrupt("luks2 metadata", field, int64(l.Offset)+header2Len, got)
	}
	var m metadata
	if err := json.Unmarshal(l.json, &m); err != nil {
		return h, bad("JSON text", err)
	}
	if req := m.Config.Requirements.Mandatory; len(req) > 0 {
		return h, ondisk.Unsupported("luks2 metadata", "requirements: "+strings.Join(req, ", "), -1, nil)
	}
	if len(m.Segments) != 1 {
		return h, ondisk.Unsupported("luks2 metadata", "number of segments", -1, len(m.Segments))
	}
	for id, s := range m.Segments { // the one
		h.Cipher, h.SectorSize = s.Encryption, s.SectorSize
		if s.Type != "crypt" {
			return h, ondisk.Unsupported("luks2 metadata", fmt.Sprintf("segment type %q", s.Type), -1, nil)
		}
		if s.Integrity != nil {
			return h, ondisk.Unsupported("luks2 metadata", "authenticated encryption "+string(*s.Integrity), -1, nil)
		}
		var err error
		if h.PayloadOff, err = number(s.Offset); err != nil {
			return h, bad("offset of the segment", s.Offset)
		}
		if s.Size != "dynamic" {
			if h.PayloadLen, err = number(s.Size); err != nil || h.PayloadLen == 0 {
				return h, bad("size of the segment", s.Size)
			}
		}
		if h.IVStart, err = strconv.ParseUint(s.IVTweak, 10, 64); err != nil {
			return h, bad("iv_tweak of the segment", s.IVTweak)
		}
		for _, d := range m.Digests {
			if !slices.Contains(d.Segments, id) {
				continue
			}
			if err := h.addDigest(d.kdf2, d.Keyslots, d.Digest); err != nil {
				return h, bad("digest", err)
			}
		}
	}
	if len(m.Keyslots) > maxSlots || len(m.Digests) > maxSlots {
		return h, bad("number of key slots", len(m.Keyslots))
	}
	for _, name := range numericOrder(m.Keyslots) {
		k := m.Keyslots[name]
		n, err := strconv.Atoi(name)
		if err != nil || n < 0 {
			return h, bad("key slot", name)
		}
		h.KeyBytes = max(h.KeyBytes, k.KeySize)
		off, err1 := number(k.Area.Offset)
		length, err2 := number(k.Area.Size)
		salt, err3 := base64.StdEncoding.DecodeString(k.KDF.Salt)
		leave := ""
		switch {
		case k.Type != "luks2" || k.Area.Type != "raw" || k.AF.Type != "luks1":
			leave = fmt.Sprintf("type %q, area %q, splitter %q", k.Type, k.Area.Type, k.AF.Type)
		case k.Priority != nil && *k.Priority == 0:
			leave = "it is marked to be ignored"
		case err1 != nil || err2 != nil || err3 != nil || len(salt) > maxSalt:
			leave = "its numbers make no sense"
		case k.AF.Stripes < 1 || k.AF.Stripes > maxStripes || k.KeySize < 1 || k.KeySize > maxKeyBytes || int64(k.KeySize)*int64(k.AF.Stripes) > length:
			leave = fmt.Sprintf("%d stripes of %d bytes in an area of %d", k.AF.Stripes, k.KeySize, length)
		}
		if leave != "" {
			h.Notes = append(h.Notes, fmt.Sprintf("key slot %d is left out: %s", n, leave))
			continue
		}
		h.slots = append(h.slots, slot{
			number: n, hash: k.AF.Hash, stripes: k.AF.Stripes, off: off, len: int64(k.KeySize) * int64(k.AF.Stripes),
			cipher: k.Area.Encryption, keyBytes: k.Area.KeySize, volume: k.KeySize, kdf: k.KDF.kdf(salt),
		})
	}
	return h, h.check()
}

func (h *Header) addDigest(k kdf2, slots []string, sum string) error {
	salt, err := base64.StdEncoding.DecodeString(k.Salt)
	if err != nil {
		return err
	}
	d := digest{kdf: k.kdf(salt), slots: make(map[int]bool)}
	if d.digest, err = base64.StdEncoding.DecodeString(sum); err != nil || len(d.digest) > maxDigest || len(salt) > maxSalt {
		return ondisk.Corrupt("luks2 metadata", "length of a digest", -1, len(d.digest))
	}
	for _, s := range slots {
		n, err := strconv.Atoi(s)
		if err != nil {
			return err
		}
		d.slots[n] = true
	}
	h.digests = append(h.digests, d)
	return nil
}

func (k kdf2) kdf(salt []byte) kdf {
	t := k.Time
	if k.Type == "pbkdf2" {
		t = k.Iterations
	}
	return kdf{name: k.Type, hash: k.Hash, time: t, memory: k.Memory, lanes: k.CPUs, salt: salt}
}

func number(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }

// numericOrder sorts slot names as numbers.
func numericOrder[T any](m map[string]T) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return names
}
