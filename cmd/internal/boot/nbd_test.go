package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
)

func layer(t testing.TB, base []byte) *overlay {
	t.Helper()
	o, err := newOverlay(bytes.NewReader(base), int64(len(base)), 512)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return o
}

// TestOverlay holds random reads and writes against a copy in memory, and asks what was changed.
func TestOverlay(t *testing.T) {
	const size = 300_123
	base := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(base)
	now := append(bytes.Clone(base), make([]byte, 512-size%512)...)
	o := layer(t, base)
	if o.size != int64(len(now)) {
		t.Fatalf("size %d, want %d", o.size, len(now))
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		off := r.IntN(len(now)/512) * 512
		n := min(r.IntN(30)*512, len(now)-off)
		p := make([]byte, n)
		if r.IntN(3) > 0 {
			if err := o.read(p, int64(off)); err != nil || !bytes.Equal(p, now[off:off+n]) {
				t.Fatalf("%d bytes at %d are others: %v", n, off, err)
			}
			continue
		}
		if off > size/2 { // the first half stays
			for i := range p {
				p[i] = byte(r.Uint32())
			}
			copy(now[off:], p)
			if err := o.write(p, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Written, and the same as before: no change.
	if err := o.write(base[4096:8192], 4096); err != nil {
		t.Fatal(err)
	}
	got := bytes.Clone(base)
	for off := int64(0); off < size; {
		at, b := o.changes(off, size-off)
		if b == nil {
			break
		}
		if at < off || at+int64(len(b)) > size || len(b) > maxChange+blockSize {
			t.Fatalf("%d bytes at %d, asked from %d on", len(b), at, off)
		}
		copy(got[at:], b)
		off = at + int64(len(b))
	}
	if !bytes.Equal(got, now[:size]) {
		t.Error("the changes don't make the one of the other")
	}
	if _, b := o.changes(0, size/2); b != nil {
		t.Errorf("%d bytes of what stayed are changed", len(b))
	}
}

// TestNBD has QEMU's tools read and write a served disk.
func TestNBD(t *testing.T) {
	if _, err := exec.LookPath("qemu-io"); err != nil {
		t.Skip("qemu-io is not installed")
	}
	base := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	o := layer(t, base)
	path := filepath.Join(t.TempDir(), "nbd")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = serve(c, o)
			c.Close()
		}
		served <- err
	}()
	out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write -P 7 4096 1024", "-c", "read -P 7 4096 1024", "-c", "flush", "-c", "read -P 48 8192 1",
		"-c", "write 1048575 2", "nbd+unix:///?socket="+path).CombinedOutput()
	t.Logf("%s", out)
	if err != nil && !bytes.Contains(out, []byte("1024/1024 bytes at offset 4096")) || bytes.Contains(out, []byte("verification failed")) {
		t.Errorf("%v", err)
	}
	if err := <-served; errors.Is(err, errNBD) {
		t.Error(err)
	}
	if at, b := o.changes(0, o.size); at != 4096 || len(b) != 4096 || !bytes.Equal(b[:1024], bytes.Repeat([]byte{7}, 1024)) || !bytes.Equal(b[1024:], base[5120:8192]) {
		t.Errorf("%d bytes at %d were changed", len(b), at)
	}
}

// wire is a client that sends what it was made with.
type wire struct {
	io.Reader
	out bytes.Buffer
}

func (w *wire) Write(p []byte) (int, error) {
	if w.out.Len() > 1<<20 {
		return 0, io.ErrShortWrite
	}
	return w.out.Write(p)
}

// said makes what a client sends: flags, the option to go, requests.
func said(requests ...[]byte) []byte {
	be := binary.BigEndian
	b := []byte{0, 0, 0, 3}
	b = be.AppendUint64(b, nbdOptMagic)
	b = be.AppendUint32(b, nbdOptGo)
	b = be.AppendUint32(b, 0)
	return append(b, bytes.Join(requests, nil)...)
}

func request(kind uint16, off uint64, n uint32) []byte {
	be := binary.BigEndian
	b := be.AppendUint32(nil, nbdRequest)
	b = be.AppendUint16(append(b, 0, 0), kind)
	b = be.AppendUint64(b, 77)
	b = be.AppendUint64(b, off)
	return be.AppendUint32(b, n)
}

func TestNBDRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		say    []byte
		broken bool
		status uint32 // of the last reply
	}{
		"past the end":   {said(request(nbdRead, 1<<20, 1)), false, nbdEINVAL},
		"over the end":   {said(request(nbdRead, 1<<64-1, 512)), false, nbdEINVAL},
		"unknown":        {said(request(9, 0, 1)), false, nbdEINVAL},
		"a long write":   {said(request(nbdWrite, 0, nbdMaxPayload+1)), true, 0},
		"no magic":       {said(make([]byte, 28)), true, 0},
		"no option":      {append([]byte{0, 0, 0, 3}, make([]byte, 16)...), true, 0},
		"left":           {said(), false, 0},
		"only a flush":   {said(request(nbdFlush, 0, 0), request(nbdClose, 0, 0)), false, 0},
		"a cut write":    {said(request(nbdWrite, 0, 512)), false, 0},
		"a long option":  {binary.BigEndian.AppendUint64([]byte{0, 0, 0, 3}, nbdOptMagic), false, 0},
		"a long request": {said(request(nbdRead, 0, nbdMaxPayload+1)), true, 0},
	} {
		w := &wire{Reader: bytes.NewReader(tt.say)}
		err := serve(w, layer(t, make([]byte, 1<<20)))
		if errors.Is(err, errNBD) != tt.broken {
			t.Errorf("%s: %v", name, err)
		}
		if b := w.out.Bytes(); tt.status != 0 && binary.BigEndian.Uint32(b[len(b)-12:]) != tt.status {
			t.Errorf("%s: status %d, want %d", name, binary.BigEndian.Uint32(b[len(b)-12:]), tt.status)
		}
	}
}

func FuzzServe(f *testing.F) {
	f.Add(said(request(nbdRead, 0, 512), append(request(nbdWrite, 512, 4), "abcd"...), request(nbdFlush, 0, 0), request(nbdClose, 0, 0)))
	f.Fuzz(func(t *testing.T, say []byte) {
		serve(&wire{Reader: bytes.NewReader(say)}, layer(t, make([]byte, 64<<10)))
	})
}
