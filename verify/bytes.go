package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/fsmap/mapfile"
)

// bytesOf turns extents into bytes, plainly: seek, read, decode.
type bytesOf struct {
	keys  codec.Keys
	hosts map[int]ondisk.HostFile

	mu   sync.Mutex
	keep []decoded // the last ones, oldest first
}

type decoded struct {
	key string
	b   []byte
}

const (
	keepPacks = 64
	maxNested = 256 << 20 // bytes that decoding one extent may take
	chunk     = 256 << 10
)

var (
	errMissing   = errors.New("missing")
	errEncrypted = errors.New("encrypted, and no key was given")
	errNoPlace   = errors.New("the map has only its position in the virtual disk (vmmap --rebase completes it)")
)

func openHost(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

func (b *bytesOf) close() {
	for _, f := range b.hosts {
		f.Close()
	}
}

var zero [chunk]byte

// copy writes an extent's bytes to w.
func (b *bytesOf) copy(w io.Writer, e *mapfile.Extent) error {
	switch e.Kind {
	case mapfile.Zero, mapfile.Hole, mapfile.Unwritten:
		for n := e.Len; n > 0; n -= chunk {
			w.Write(zero[:min(n, chunk)])
		}
		return nil
	case mapfile.Data:
		if e.File == mapfile.None {
			return errNoPlace
		}
		f := b.hosts[e.File]
		if f == nil {
			return fmt.Errorf("host file %d can't be read", e.File)
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{io.NewSectionReader(f, e.Off, e.Len)}, make([]byte, min(e.Len, chunk)))
		if err == nil && n < e.Len {
			err = fmt.Errorf("%s ends at byte %d: %w", f.Name(), e.Off+n, io.ErrUnexpectedEOF)
		}
		return err
	case mapfile.Inline:
		w.Write(e.Bytes)
		return nil
	case mapfile.Packed:
		p, err := b.unpack(e.Pack, new(int64))
		if err == nil {
			w.Write(p[e.Skip : e.Skip+e.Len])
		}
		return err
	case mapfile.Encrypted:
		return errEncrypted
	}
	return errMissing
}

// unpack decodes a pack. used adds up the memory of those within one another.
func (b *bytesOf) unpack(p *mapfile.Pack, used *int64) ([]byte, error) {
	if *used += p.Full; p.Full > codec.MaxFull || *used > maxNested {
		return nil, fmt.Errorf("packed extent of %d bytes: too large", p.Full)
	}
	key, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	if out := b.kept(string(key)); out != nil {
		return out, nil
	}
	if codec.NeedsKey(p.Codec) {
		if b.keys == nil {
			return nil, errEncrypted
		}
		if _, ok := b.keys(p.Key); !ok {
			return nil, errEncrypted
		}
	}
	var parts [][]byte
	for i := range p.Parts {
		e := &p.Parts[i]
		if *used += e.Len; *used > maxNested {
			return nil, fmt.Errorf("packed extent with parts of %d bytes: too large", *used)
		}
		part := &buffer{b: make([]byte, 0, e.Len)}
		if e.Kind == mapfile.Packed {
			out, err := b.unpack(e.Pack, used)
			if err != nil {
				return nil, err
			}
			part.Write(out[e.Skip : e.Skip+e.Len])
		} else if err := b.copy(part, e); err != nil {
			return nil, err
		}
		parts = append(parts, part.b)
	}
	out := make([]byte, p.Full)
	if err := codec.Decode(out, codec.Spec{Codec: p.Codec, Full: p.Full, Sector: p.Sector, IV: p.IV, Key: p.Key, Factors: p.Factors, Pad: p.Pad}, b.keys, parts...); err != nil {
		return nil, err
	}
	b.put(string(key), out)
	return out, nil
}

type buffer struct{ b []byte }

func (b *buffer) Write(p []byte) (int, error) {
	b.b = append(b.b, p...)
	return len(p), nil
}

func (b *bytesOf) kept(key string) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.keep {
		if b.keep[i].key == key {
			return b.keep[i].b
		}
	}
	return nil
}

func (b *bytesOf) put(key string, out []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(out) > 2<<20 {
		return
	}
	if len(b.keep) == keepPacks {
		b.keep = append(b.keep[:0], b.keep[1:]...)
	}
	b.keep = append(b.keep, decoded{key, out})
}
