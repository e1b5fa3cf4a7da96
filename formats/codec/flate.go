package codec

import (
	"bytes"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

func init() {
	decoders[Deflate] = inflate
	decoders[Zlib] = unzlib
	decoders[Zstd] = unzstd
}

// full reads into dst until it is full or r ends; the end is no error, unless its input was cut off.
func full(dst []byte, r io.Reader) (n int, err error) {
	for n < len(dst) && err == nil {
		var k int
		k, err = r.Read(dst[n:])
		n += k
	}
	if n == len(dst) || err == io.EOF {
		return n, nil
	}
	return n, err
}

type flateReader struct {
	src bytes.Reader
	r   io.ReadCloser
}

var flateReaders = sync.Pool{New: func() any {
	f := new(flateReader)
	f.r = flate.NewReader(&f.src)
	return f
}}

func inflate(dst, in []byte) (int, error) {
	f := flateReaders.Get().(*flateReader)
	defer flateReaders.Put(f)
	f.src.Reset(in)
	if err := f.r.(flate.Resetter).Reset(&f.src, nil); err != nil {
		return 0, err
	}
	return full(dst, f.r)
}

var zlibReaders sync.Pool

func unzlib(dst, in []byte) (int, error) {
	src := bytes.NewReader(in)
	if r, ok := zlibReaders.Get().(io.ReadCloser); ok {
		if err := r.(zlib.Resetter).Reset(src, nil); err != nil {
			return 0, err
		}
		defer zlibReaders.Put(r)
		return full(dst, r)
	}
	r, err := zlib.NewReader(src)
	if err != nil {
		return 0, err
	}
	defer zlibReaders.Put(r)
	return full(dst, r)
}

// zstdWindow bounds the memory that a frame may ask for. btrfs frames are at most 128 KiB, QCOW2 ones a cluster.
const zstdWindow = 8 << 20

var zstdReaders = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(zstdWindow), zstd.IgnoreChecksum(false))
	if err != nil {
		panic(err) // the options are constant
	}
	return d
}}

// unzstd decodes one frame as a stream: what lies behind it, a cluster's slack for example, is not looked at.
func unzstd(dst, in []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(in); err == nil && h.HasFCS && h.FrameContentSize < uint64(len(dst)) {
		dst = dst[:h.FrameContentSize]
	}
	d := zstdReaders.Get().(*zstd.Decoder)
	defer zstdReaders.Put(d)
	if err := d.Reset(bytes.NewReader(in)); err != nil {
		return 0, err
	}
	return full(dst, d)
}
