package qcow2

import (
	"bytes"
	"fmt"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"vmkit/formats/codec"
)

// Packer compresses clusters for a Writer. One goroutine uses it.
type Packer struct {
	zstd  *zstd.Encoder
	flate *flate.Writer
	out   bytes.Buffer
}

// inflateWindow is what QEMU gives its decoder (inflateInit2 with -12): nothing may refer further back.
const inflateWindow = 1 << 12

// NewPacker makes one for codec.Zstd or codec.Deflate.
func NewPacker(name string) (*Packer, error) {
	p := &Packer{}
	var err error
	switch name {
	case codec.Zstd:
		// Without a checksum: the decoder of QEMU wants the frame to end with the cluster.
		p.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
			zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithLowerEncoderMem(true))
	case codec.Deflate:
		p.flate, err = flate.NewWriterWindow(nil, inflateWindow)
	default:
		err = fmt.Errorf("compression %q", name)
	}
	return p, err
}

// Pack appends the compressed cluster to dst, or gives nil where that would save less than a sector of 512 bytes.
func (p *Packer) Pack(dst, cluster []byte) []byte {
	start := len(dst)
	if p.zstd != nil {
		dst = p.zstd.EncodeAll(cluster, dst)
	} else {
		p.out.Reset()
		p.flate.Reset(&p.out)
		p.flate.Write(cluster) // a Buffer takes everything
		p.flate.Close()
		dst = append(dst, p.out.Bytes()...)
	}
	if len(dst)-start > len(cluster)-512 {
		return nil
	}
	return dst
}
