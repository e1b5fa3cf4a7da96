package fsmap

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"

	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/fsmap/mapfile"
)

// reader reads files by their runs, to hash them. One goroutine uses it.
type reader struct {
	disks []formats.Disk // by Run.Dev
	keys  codec.Keys
	hash  hash.Hash
	runs  Runs
	err   error
	buf   []byte
	// data and zeros are how many bytes of either were hashed.
	data, zeros int64
	// pack was decoded last.
	pack  *Pack
	plain []byte
}

func newReader(disks []formats.Disk, env *formats.Env) *reader {
	r := &reader{disks: disks, hash: sha256.New(), buf: make([]byte, 256<<10)}
	if env != nil {
		r.keys = env.Keys()
	}
	r.runs.spill = r.take
	return r
}

// A guest can make holes of any length for nothing: a file whose zeros are more than maxZeros, and more than zerosPerData
// times what it holds besides, gets no hash. The limits are those of package extract.
const (
	maxZeros     = 8 << 30
	zerosPerData = 16
)

var errHoles = errors.New("nearly all holes")

// sum gives the SHA-256 of a file's content; none, without an error, for a file that is nearly all holes.
func (r *reader) sum(fs FS, n *Node, s *Stream, size int64) (string, error) {
	r.begin(size)
	if err := fs.Runs(n, s, &r.runs); err != nil {
		return "", err
	}
	r.runs.Fill(mapfile.Hole)
	r.take(r.runs.List)
	return r.end()
}

// begin starts on a file; its runs are then taken.
func (r *reader) begin(size int64) {
	r.hash.Reset()
	r.err, r.data, r.zeros = nil, 0, 0
	r.runs.Reset(size)
}

// end gives the hash of what was taken.
func (r *reader) end() (string, error) {
	if errors.Is(r.err, errHoles) {
		return "", nil
	}
	if r.err != nil {
		return "", r.err
	}
	return hex.EncodeToString(r.hash.Sum(nil)), nil
}

func (r *reader) take(list []Run) {
	for i := range list {
		if r.err == nil {
			r.err = r.run(&list[i])
		}
	}
}

func (r *reader) run(x *Run) error {
	switch x.Kind {
	case mapfile.Hole, mapfile.Unwritten, mapfile.Zero:
		if r.zeros += x.Len; r.zeros > maxZeros && r.zeros/zerosPerData > r.data {
			return errHoles
		}
	default:
		r.data += x.Len
	}
	switch x.Kind {
	case mapfile.Data:
		return r.copy(x.Len, func(p []byte, at int64) error { return r.read(x.Dev, p, x.Off+at) })
	case mapfile.Inline:
		r.hash.Write(x.Bytes)
	case mapfile.Packed:
		if r.pack != x.Pack {
			plain, err := r.unpack(x.Pack, 0)
			if err != nil {
				return err
			}
			r.pack, r.plain = x.Pack, plain
		}
		if !ondisk.Within(x.Skip, x.Len, int64(len(r.plain))) {
			return ondisk.Corrupt("packed run", "length", -1, x.Len)
		}
		r.hash.Write(r.plain[x.Skip : x.Skip+x.Len])
	case mapfile.Missing:
		return formats.ErrMissing
	case mapfile.Encrypted:
		return formats.ErrEncrypted
	default:
		return r.copy(x.Len, func(p []byte, _ int64) error { clear(p); return nil })
	}
	return nil
}

func (r *reader) read(dev int, p []byte, off int64) error {
	if dev < 0 || dev >= len(r.disks) {
		return ondisk.Corrupt("run", "number of the volume", -1, dev)
	}
	return ondisk.ReadFull(r.disks[dev], p, off, "volume")
}

// copy hashes n bytes that read gives.
func (r *reader) copy(n int64, read func(p []byte, at int64) error) error {
	for at := int64(0); at < n; at += int64(len(r.buf)) {
		p := r.buf[:min(n-at, int64(len(r.buf)))]
		if err := read(p, at); err != nil {
			return err
		}
		r.hash.Write(p)
	}
	return nil
}

// unpack decodes a pack of the volume.
func (r *reader) unpack(p *Pack, depth int) ([]byte, error) {
	if p.Full <= 0 || p.Full > codec.MaxFull || depth > mapfile.MaxDepth {
		return nil, ondisk.Corrupt("packed run", "decoded length", -1, p.Full)
	}
	parts := make([][]byte, 0, len(p.Parts))
	var total int64
	for i := range p.Parts {
		x := &p.Parts[i]
		if total += x.Len; x.Len < 0 || total > 2*codec.MaxFull {
			return nil, ondisk.Corrupt("packed run", "coded length", -1, total)
		}
		b := make([]byte, x.Len)
		switch x.Kind {
		case mapfile.Data:
			if err := r.read(x.Dev, b, x.Off); err != nil {
				return nil, err
			}
		case mapfile.Inline:
			copy(b, x.Bytes)
		case mapfile.Packed:
			plain, err := r.unpack(x.Pack, depth+1)
			if err != nil {
				return nil, err
			}
			if !ondisk.Within(x.Skip, x.Len, int64(len(plain))) {
				return nil, ondisk.Corrupt("packed run", "length of a part", -1, x.Len)
			}
			copy(b, plain[x.Skip:])
		case mapfile.Missing:
			return nil, formats.ErrMissing
		case mapfile.Encrypted:
			return nil, formats.ErrEncrypted
		}
		parts = append(parts, b)
	}
	plain := make([]byte, p.Full)
	return plain, codec.Decode(plain, p.Spec, r.keys, parts...)
}
