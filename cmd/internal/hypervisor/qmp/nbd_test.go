package qmp

import (
	"bytes"
	"encoding/binary"
	"net"
	"slices"
	"strings"
	"testing"
)

// canned is a connection to a server that says what it says whatever it is asked.
type canned struct {
	net.Conn
	*bytes.Reader
}

func (c canned) Read(b []byte) (int, error)  { return c.Reader.Read(b) }
func (c canned) Write(b []byte) (int, error) { return len(b), nil }

// says gives the conversation of a server that exports size bytes, of which it tells states one reply a pair of length and
// state, with the bitmap's name.
func says(size int64, name string, replies ...[]uint32) []byte {
	var b []byte
	num := func(v ...any) {
		for _, x := range v {
			b, _ = binary.Append(b, binary.BigEndian, x)
		}
	}
	option := func(option, kind uint32, data string) {
		num(uint64(nbdOptionReply), option, kind, uint32(len(data)), []byte(data))
	}
	num(uint64(nbdMagic), uint64(nbdOption), uint16(3))
	option(optStructured, repAck, "")
	option(optSetMetaContext, repMetaContext, "\x00\x00\x00\x01qemu:dirty-bitmap:"+name)
	option(optSetMetaContext, repAck, "")
	option(optGo, repInfo, "\x00\x00"+string(binary.BigEndian.AppendUint64(nil, uint64(size)))+"\x00\x01")
	option(optGo, repAck, "")
	off := uint64(0)
	for _, r := range replies {
		num(uint32(nbdStructured), uint16(chunkDone), uint16(chunkBlockStatus), off, uint32(4+4*len(r)), uint32(1), r)
		for i := 0; i < len(r); i += 2 {
			off += uint64(r[i])
		}
	}
	return b
}

func read(b []byte, name string) ([][2]int64, error) {
	ours, theirs := net.Pipe()
	theirs.Close()
	return dirty(canned{ours, bytes.NewReader(b)}, "x", name)
}

func TestDirty(t *testing.T) {
	got, err := read(says(100, "b", []uint32{10, 0, 20, 1}, []uint32{30, 1, 40, 0}), "b")
	if err != nil || !slices.Equal(got, [][2]int64{{10, 20}, {30, 30}}) {
		t.Errorf("%v %v", got, err)
	}
	if got, err := read(says(0, "b"), "b"); err != nil || got != nil {
		t.Errorf("%v %v", got, err)
	}
	whole := says(100, "b", []uint32{100, 1})
	swap := func(old, new string) []byte { return bytes.Replace(bytes.Clone(whole), []byte(old), []byte(new), 1) }
	for name, tt := range map[string]struct {
		b    []byte
		want string
	}{
		"another bitmap": {says(100, "c"), "does not know"},
		"no NBD":         {[]byte("SSH-2.0-OpenSSH_9.2p1 Debian"), "handshake"},
		"huge reply":     {swap("\x00\x00\x00\x0c\x00\x00\x00\x01", "\xff\xff\xff\xff\x00\x00\x00\x01"), "a reply of"},
		"refused":        {swap("\x00\x00\x00\x08\x00\x00\x00\x01", "\x00\x00\x00\x08\x80\x00\x00\x01"), "refuses option 8"},
		"empty status":   {says(100, "b", nil), "empty block status"},
		"bad cookie":     {says(100, "b", []uint32{50, 1}, []uint32{}), "empty block status"},
		"error chunk":    {swap("\x00\x01\x00\x05", "\x00\x01\x80\x01"), "refuses block status"},
		"odd chunk":      {swap("\x00\x01\x00\x05", "\x00\x01\x00\x01"), "unexpected chunk"},
		"another magic":  {swap("\x66\x8e\x33\xef", "\x66\x8e\x33\xee"), "something else"},
	} {
		if _, err := read(tt.b, "b"); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range whole {
		if _, err := read(whole[:n], "b"); err == nil {
			t.Fatalf("cut at byte %d, and no error", n)
		}
	}
	// More than was asked about is of no use.
	if got, err := read(says(100, "b", []uint32{1 << 31, 1}), "b"); err != nil || !slices.Equal(got, [][2]int64{{0, 100}}) {
		t.Errorf("%v %v", got, err)
	}
}

func FuzzDirty(f *testing.F) {
	f.Add(says(100, "b", []uint32{10, 0, 20, 1}, []uint32{30, 1, 40, 0}))
	f.Add(says(1<<40, "b", []uint32{1 << 31, 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		ranges, err := read(b, "b")
		end := int64(0)
		for _, r := range ranges {
			if r[0] < end || r[1] < 0 {
				t.Fatalf("%v %v", ranges, err)
			}
			end = r[0] + r[1]
		}
	})
}
