package repo

import (
	"io"

	"github.com/klauspost/compress/zstd"
)

// A map is written as Zstandard frames of some MiB of text each, which is a .zst file like any other: they can be
// decoded side by side.
const mapFrame = 2 << 20

// mapWriter compresses a map.
type mapWriter struct {
	w   io.Writer
	z   *zstd.Encoder
	buf []byte
	out []byte
}

func newMapWriter(w io.Writer) (*mapWriter, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithSingleSegment(true)) // which tells its length
	return &mapWriter{w: w, z: z, buf: make([]byte, 0, mapFrame)}, err
}

func (m *mapWriter) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(cap(m.buf)-len(m.buf), len(p)-done)
		m.buf = append(m.buf, p[done:done+n]...)
		done += n
		if len(m.buf) == cap(m.buf) {
			if err := m.frame(); err != nil {
				return done, err
			}
		}
	}
	return len(p), nil
}

// Close writes what is left.
func (m *mapWriter) Close() error { return m.frame() }

func (m *mapWriter) frame() error {
	if len(m.buf) == 0 {
		return nil
	}
	m.out = m.z.EncodeAll(m.buf, m.out[:0])
	m.buf = m.buf[:0]
	_, err := m.w.Write(m.out)
	return err
}

// mapFrames cuts a compressed map into its frames. ok is false where they aren't those of a mapWriter.
func mapFrames(b []byte) (frames [][]byte, ok bool) {
	for len(b) > 0 {
		n, ok := frameLen(b)
		if !ok {
			return nil, false
		}
		frames, b = append(frames, b[:n]), b[n:]
	}
	return frames, true
}

// frameLen gives the length of the frame that b begins with. (RFC 8878, 3.1.1)
func frameLen(b []byte) (int, bool) {
	var h zstd.Header
	if h.Decode(b) != nil || h.Skippable || !h.HasFCS || h.FrameContentSize > mapFrame {
		return 0, false
	}
	for at := h.HeaderSize; at+3 <= len(b); {
		block := int(b[at]) | int(b[at+1])<<8 | int(b[at+2])<<16
		n := block >> 3
		if block>>1&3 == 1 { // RLE
			n = 1
		}
		if at += 3 + n; block&1 == 0 {
			continue
		}
		if h.HasCheckSum {
			at += 4
		}
		return at, at <= len(b)
	}
	return 0, false
}

// frameReader decodes frames side by side, some ahead of the reader.
type frameReader struct {
	z    *zstd.Decoder
	todo chan chan decoded
	stop chan struct{}
	now  []byte
	err  error
}

type decoded struct {
	text []byte
	err  error
}

// framesAhead is how many frames are decoded, or wait for the reader.
const framesAhead = 4

func newFrameReader(frames [][]byte) (*frameReader, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(2*mapFrame),
		zstd.IgnoreChecksum(true)) // the file was held against its SHA-256
	if err != nil {
		return nil, err
	}
	r := &frameReader{z: z, todo: make(chan chan decoded, framesAhead), stop: make(chan struct{})}
	go func() {
		defer close(r.todo)
		for _, f := range frames {
			done := make(chan decoded, 1)
			select {
			case r.todo <- done:
			case <-r.stop:
				return
			}
			go func() {
				text, err := z.DecodeAll(f, nil)
				done <- decoded{text, err}
			}()
		}
	}()
	return r, nil
}

func (r *frameReader) Read(p []byte) (int, error) {
	for len(r.now) == 0 && r.err == nil {
		done, ok := <-r.todo
		if !ok {
			r.err = io.EOF
			break
		}
		d := <-done
		r.now, r.err = d.text, d.err
	}
	if len(r.now) == 0 {
		return 0, r.err
	}
	n := copy(p, r.now)
	r.now = r.now[n:]
	return n, nil
}

// Close ends what is decoded ahead.
func (r *frameReader) Close() error {
	close(r.stop)
	for done := range r.todo {
		<-done
	}
	r.z.Close()
	return nil
}
