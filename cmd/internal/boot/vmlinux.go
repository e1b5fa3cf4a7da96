package boot

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// The setup header of an x86 kernel; see Documentation/arch/x86/boot.rst.
const (
	bzSectors = 0x1f1 // u8: sectors of the setup code behind the first
	bzMagic   = 0x202 // "HdrS"
	bzVersion = 0x206 // u16
	bzPayload = 0x248 // u32: where the packed kernel begins, from the end of the setup code
	bzLength  = 0x24c // u32
	bzHeader  = 0x250
)

// maxKernel bounds an unpacked kernel's size.
const maxKernel = 1 << 30

// pvhEntry is the type of the note, of Xen's, that names where a kernel begins when it is loaded as it is.
const pvhEntry = 18

// unpack gives an x86 kernel unpacked, in memory: an emulated processor takes seconds for what takes this one no time. It
// gives nil where that can't be done; the kernel then unpacks itself.
func unpack(image string) *os.File {
	b, err := os.ReadFile(image)
	if err != nil {
		return nil
	}
	plain := payload(b)
	if plain == nil || !startsPlain(plain) {
		return nil
	}
	f, err := memory("kernel")
	if err != nil {
		return nil
	}
	if _, err := f.Write(plain); err != nil {
		f.Close()
		return nil
	}
	return f
}

// memory makes a file that lies in memory only.
func memory(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// payload gives what is packed in an x86 kernel, or nil.
func payload(b []byte) []byte {
	le := binary.LittleEndian
	if len(b) < bzHeader || string(b[bzMagic:bzMagic+4]) != "HdrS" || le.Uint16(b[bzVersion:]) < 0x208 {
		return nil
	}
	sectors := int64(b[bzSectors])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + int64(le.Uint32(b[bzPayload:]))
	n := int64(le.Uint32(b[bzLength:]))
	if start+n > int64(len(b)) || n < 8 {
		return nil
	}
	b = b[start : start+n]
	var r io.Reader
	switch {
	case bytes.HasPrefix(b, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil
		}
		z.Multistream(false) // its length follows
		r = z
	case bytes.HasPrefix(b, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(bytes.NewReader(b[:n-4]))
		if err != nil {
			return nil
		}
		defer z.Close()
		r = z
	case bytes.HasPrefix(b, []byte("\xfd7zXZ\x00")):
		c := exec.Command("xz", "-dc", "--single-stream")
		c.Stdin = bytes.NewReader(b)
		out, err := c.Output()
		if err != nil {
			return nil
		}
		r = bytes.NewReader(out)
	default:
		return nil
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxKernel))
	if err != nil || len(plain) == maxKernel {
		return nil
	}
	return plain
}

// startsPlain tells whether QEMU can start an unpacked kernel.
func startsPlain(b []byte) bool {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil || f.Machine != elf.EM_X86_64 {
		return false
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil {
			return false
		}
		if pvhNote(notes) {
			return true
		}
	}
	return false
}

// pvhNote looks for that note: each has the lengths of its name and its data, its type, then both, filled up to 4 bytes.
func pvhNote(b []byte) bool {
	le := binary.LittleEndian
	for len(b) >= 12 {
		name, data, typ := int64(le.Uint32(b)), int64(le.Uint32(b[4:])), le.Uint32(b[8:])
		end := 12 + (name+3)&^3 + (data+3)&^3
		if end > int64(len(b)) {
			return false
		}
		if typ == pvhEntry && string(b[12:12+name]) == "Xen\x00" {
			return true
		}
		b = b[end:]
	}
	return false
}
