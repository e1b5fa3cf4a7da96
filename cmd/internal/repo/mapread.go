package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/klauspost/compress/zstd"

	"vmkit/formats/ondisk"
)

// smallMap is up to which length a compressed map is kept in memory between being verified and being decoded.
const smallMap = 32 << 20

// OpenMap opens a map of a point, which disks may share, as text. Nothing is given out before all of
// the file was held against its hash: what a damaged map says of places would be believed.
func OpenMap(ctx context.Context, s Store, p *Point, f StoredFile) (io.ReadCloser, error) {
	name := path.Join(p.Machine, f.Name)
	o, err := s.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	m := &mapText{o: o}
	var in io.Reader
	var frames [][]byte
	h := sha256.New()
	if o.Size() <= smallMap {
		b := make([]byte, o.Size())
		_, err = io.ReadFull(io.NewSectionReader(o, 0, o.Size()), b)
		h.Write(b)
		in = bytes.NewReader(b)
		frames, _ = mapFrames(b)
	} else {
		_, err = io.CopyBuffer(struct{ io.Writer }{h}, io.NewSectionReader(o, 0, o.Size()), make([]byte, 1<<20))
		in = io.NewSectionReader(o, 0, o.Size())
	}
	switch {
	case err != nil:
		err = fmt.Errorf("%s: %w", Path(s, name), err)
	case o.Size() != f.Size || hex.EncodeToString(h.Sum(nil)) != f.SHA256:
		err = ondisk.Corrupt(Path(s, name), "sha256", -1, hex.EncodeToString(h.Sum(nil)))
	case len(frames) > 0:
		m.ReadCloser, err = newFrameReader(frames)
	default:
		var z *zstd.Decoder
		if z, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(256<<20)); err == nil {
			m.ReadCloser = z.IOReadCloser()
		}
	}
	if err != nil {
		o.Close()
		return nil, err
	}
	return m, nil
}

// mapText is the text of a map.
type mapText struct {
	io.ReadCloser
	o Object
}

func (m *mapText) Close() error { return errors.Join(m.ReadCloser.Close(), m.o.Close()) }
