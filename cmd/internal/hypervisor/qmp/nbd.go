package qmp

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// What is needed of NBD to ask for a dirty bitmap: fixed newstyle handshake, structured replies, one metadata context,
// block status. (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, QEMU's docs/interop/nbd.txt)
const (
	nbdMagic       = 0x4e42444d41474943 // NBDMAGIC
	nbdOption      = 0x49484156454f5054 // IHAVEOPT
	nbdOptionReply = 0x3e889045565a9
	nbdRequest     = 0x25609513
	nbdStructured  = 0x668e33ef

	optGo             = 7
	optStructured     = 8
	optSetMetaContext = 10

	repAck         = 1
	repInfo        = 3
	repMetaContext = 4
	repError       = 1 << 31

	infoExport = 0

	cmdDisconnect  = 2
	cmdBlockStatus = 7

	chunkDone        = 1 << 0 // a flag
	chunkNone        = 0
	chunkBlockStatus = 5
	chunkError       = 1 << 15

	stateDirty = 1 << 0
)

const (
	// maxNBD bounds a reply: QEMU answers at most 1 MiB worth of extents.
	maxNBD = 4 << 20
	// maxStatus is how much is asked for at once; a multiple of any granularity.
	maxStatus = 1 << 31
	// nbdPatience bounds the whole of a bitmap's reading.
	nbdPatience = 30 * time.Second
)

// nbdClient reads one bitmap of one export.
type nbdClient struct {
	conn net.Conn
	in   *bufio.Reader
	size int64
}

// dirty gives the stretches that a bitmap marks, which an NBD server at the other end of conn exports.
func dirty(conn net.Conn, export, bitmap string) (ranges [][2]int64, err error) {
	conn.SetDeadline(time.Now().Add(nbdPatience))
	c := &nbdClient{conn: conn, in: bufio.NewReader(conn)}
	if err := c.negotiate(export, "qemu:dirty-bitmap:"+bitmap); err != nil {
		return nil, fmt.Errorf("bitmap %s: %w", bitmap, err)
	}
	for off := int64(0); off < c.size; {
		n, err := c.status(off, min(c.size-off, maxStatus), func(at, n int64) { ranges = append(ranges, [2]int64{at, n}) })
		if err != nil {
			return nil, fmt.Errorf("bitmap %s: %w", bitmap, err)
		}
		off += n
	}
	return ranges, c.send(nbdRequest, uint16(0), uint16(cmdDisconnect), uint64(0), uint64(0), uint32(0))
}

// send writes numbers in big-endian order.
func (c *nbdClient) send(magic uint32, rest ...any) error {
	b := binary.BigEndian.AppendUint32(nil, magic)
	for _, v := range rest {
		b, _ = binary.Append(b, binary.BigEndian, v)
	}
	_, err := c.conn.Write(b)
	return err
}

func (c *nbdClient) read(v any) error { return binary.Read(c.in, binary.BigEndian, v) }

// payload reads n bytes.
func (c *nbdClient) payload(n uint32) ([]byte, error) {
	if n > maxNBD {
		return nil, fmt.Errorf("NBD: a reply of %d bytes", n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(c.in, b)
	return b, err
}

func (c *nbdClient) negotiate(export, context string) error {
	var hello struct {
		Magic, Option uint64
		Flags         uint16
	}
	if err := c.read(&hello); err != nil {
		return err
	}
	if hello.Magic != nbdMagic || hello.Option != nbdOption || hello.Flags&1 == 0 {
		return errors.New("NBD: no fixed newstyle handshake")
	}
	if err := c.send(uint32(hello.Flags & 3)); err != nil { // fixed newstyle, no zeroes: as offered
		return err
	}
	ignore := func(uint32, []byte) error { return nil }
	if err := c.option(optStructured, nil, ignore); err != nil {
		return err
	}
	name := append(binary.BigEndian.AppendUint32(nil, uint32(len(export))), export...)
	query := binary.BigEndian.AppendUint32(bytes.Clone(name), 1)
	query = append(binary.BigEndian.AppendUint32(query, uint32(len(context))), context...)
	known := false
	err := c.option(optSetMetaContext, query, func(kind uint32, b []byte) error {
		known = known || kind == repMetaContext && len(b) > 4 && string(b[4:]) == context
		return nil
	})
	if err != nil {
		return err
	}
	if !known {
		return fmt.Errorf("NBD: the server does not know %s", context)
	}
	c.size = -1
	err = c.option(optGo, binary.BigEndian.AppendUint16(name, 0), func(kind uint32, b []byte) error {
		if kind == repInfo && len(b) >= 10 && binary.BigEndian.Uint16(b) == infoExport {
			c.size = int64(binary.BigEndian.Uint64(b[2:]))
		}
		return nil
	})
	if err == nil && c.size < 0 {
		err = errors.New("NBD: the server does not tell the size")
	}
	return err
}

// option negotiates one option. each gets the replies before the acknowledgement.
func (c *nbdClient) option(option uint32, data []byte, each func(kind uint32, b []byte) error) error {
	head := binary.BigEndian.AppendUint64(nil, nbdOption)
	head = binary.BigEndian.AppendUint32(head, option)
	head = binary.BigEndian.AppendUint32(head, uint32(len(data)))
	if _, err := c.conn.Write(append(head, data...)); err != nil {
		return err
	}
	for {
		var r struct {
			Magic                uint64
			Option, Kind, Length uint32
		}
		if err := c.read(&r); err != nil {
			return err
		}
		b, err := c.payload(r.Length)
		switch {
		case err != nil:
			return err
		case r.Magic != nbdOptionReply || r.Option != option:
			return errors.New("NBD: the reply is to something else")
		case r.Kind == repAck:
			return nil
		case r.Kind&repError != 0:
			return fmt.Errorf("NBD: the server refuses option %d: %#x %q", option, r.Kind, b)
		}
		if err := each(r.Kind, b); err != nil {
			return err
		}
	}
}

// status asks about n bytes from off, and gives how many of them the answer is about.
func (c *nbdClient) status(off, n int64, mark func(at, n int64)) (told int64, err error) {
	if err := c.send(nbdRequest, uint16(0), uint16(cmdBlockStatus), uint64(off), uint64(off), uint32(n)); err != nil {
		return 0, err
	}
	for {
		var r struct {
			Magic       uint32
			Flags, Kind uint16
			Cookie      uint64
			Length      uint32
		}
		if err := c.read(&r); err != nil {
			return 0, err
		}
		b, err := c.payload(r.Length)
		switch {
		case err != nil:
			return 0, err
		case r.Magic != nbdStructured || r.Cookie != uint64(off):
			return 0, errors.New("NBD: the reply is to something else")
		case r.Kind&chunkError != 0:
			return 0, fmt.Errorf("NBD: the server refuses block status: %q", b)
		case r.Kind == chunkBlockStatus && len(b) >= 4:
			// After the context's number, pairs of length and state.
			for b = b[4:]; len(b) >= 8 && told < n; b = b[8:] {
				length := min(int64(binary.BigEndian.Uint32(b)), n-told)
				if binary.BigEndian.Uint32(b[4:])&stateDirty != 0 {
					mark(off+told, length)
				}
				told += length
			}
		case r.Kind != chunkNone:
			return 0, fmt.Errorf("NBD: an unexpected chunk of kind %d", r.Kind)
		}
		if r.Flags&chunkDone != 0 {
			if told == 0 {
				return 0, errors.New("NBD: an empty block status")
			}
			return told, nil
		}
	}
}
