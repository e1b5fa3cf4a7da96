package iso9660

import (
	"encoding/binary"
	"fmt"
	"io"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// stored is a file's bytes as they lie on the volume.
type stored struct {
	v        *volume
	sections []section
}

func (s stored) size() (n int64) {
	for _, x := range s.sections {
		n += int64(x.size)
	}
	return n
}

// parts gives where n bytes of the file from off on lie.
func (s stored) parts(off, n int64) ([]fsmap.Run, error) {
	var parts []fsmap.Run
	for _, x := range s.sections {
		if off >= int64(x.size) {
			off -= int64(x.size)
			continue
		}
		pos, k := int64(x.extent)*s.v.block+off, min(n, int64(x.size)-off)
		if !ondisk.Within(pos, k, s.v.size) {
			return nil, ondisk.Truncated("zisofs file", "block", pos, nil)
		}
		parts = append(parts, fsmap.Run{Len: k, Kind: mapfile.Data, Off: pos})
		if n, off = n-k, 0; n == 0 {
			break
		}
	}
	return parts, nil
}

// ReadAt implements io.ReaderAt.
func (s stored) ReadAt(p []byte, off int64) (int, error) {
	if !ondisk.Within(off, int64(len(p)), s.size()) {
		return 0, io.EOF
	}
	parts, err := s.parts(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	done := 0
	for _, x := range parts {
		n, err := s.v.meta.ReadAt(p[done:done+int(x.Len)], x.Off)
		if done += n; err != nil {
			return done, err
		}
	}
	return done, nil
}

// unpacked appends the runs of a zisofs file: packed blocks, and those that hold nothing but zeros.
func (v *volume) unpacked(p *inode, r *fsmap.Runs) error {
	const what = "zisofs file"
	a, s := &p.attrs, stored{v, p.sections}
	if r.Size() == 0 {
		return nil
	}
	wide := a.zAlgorithm == "PZ"
	if a.zAlgorithm != "pz" && !wide {
		return ondisk.Unsupported("zisofs entry", "algorithm", a.zPos, fmt.Sprintf("%q", a.zAlgorithm))
	}
	if a.zLog < minBlockLog || a.zLog > maxBlockLog {
		return ondisk.Unsupported("zisofs entry", "log2 of the block size", a.zPos, a.zLog)
	}
	var head [16]byte
	if err := ondisk.ReadFull(s, head[:], 0, what); err != nil {
		return err
	}
	magic, width := zisofsMagic1, int64(4)
	if wide {
		magic, width = zisofsMagic2, 8
		if head[10] != zisofsZlib {
			return ondisk.Unsupported(what, "algorithm", -1, head[10])
		}
	}
	if string(head[:8]) != magic {
		return ondisk.Corrupt(what, "magic", -1, fmt.Sprintf("%x", head[:8]))
	}
	block := int64(1) << a.zLog
	blocks := r.Size() >> a.zLog
	if r.Size()&(block-1) != 0 {
		blocks++
	}
	table, size := int64(a.zHeader)*4, s.size()
	if blocks >= size/width || !ondisk.Within(table, (blocks+1)*width, size) {
		return ondisk.Truncated(what, fmt.Sprintf("table of %d blocks in a file of %d bytes", blocks, size), -1, nil)
	}
	pointer := func(b []byte) int64 {
		if wide {
			return int64(binary.LittleEndian.Uint64(b) & (1<<63 - 1))
		}
		return int64(binary.LittleEndian.Uint32(b))
	}
	most := block + (block+7)>>3 + (block+63)>>6 + 11 // of compressed bytes, as zlib bounds it
	buf := make([]byte, min(64<<10, (blocks+1)*width))
	for i := int64(0); i < blocks; {
		// The last pointer of a piece is the first of the next.
		piece := buf[:min(int64(len(buf)), (blocks+1-i)*width)]
		if err := ondisk.ReadFull(s, piece, table+i*width, what); err != nil {
			return err
		}
		from := pointer(piece)
		for piece = piece[width:]; len(piece) > 0; piece = piece[width:] {
			to, at := pointer(piece), i*block
			full := min(block, r.Size()-at)
			if to < from || to > size || to-from > most {
				return ondisk.Corrupt(what, fmt.Sprintf("block %d from byte %d to", i, from), -1, to)
			}
			if to == from {
				if err := r.Append(fsmap.Run{At: at, Len: full, Kind: mapfile.Hole}); err != nil {
					return err
				}
			} else {
				parts, err := s.parts(from, to-from)
				if err != nil {
					return err
				}
				pack := &fsmap.Pack{Spec: codec.Spec{Codec: codec.Zlib, Full: full}, Parts: parts}
				if err := r.Packed(at, full, 0, pack); err != nil {
					return err
				}
			}
			from = to
			i++
		}
	}
	return nil
}
