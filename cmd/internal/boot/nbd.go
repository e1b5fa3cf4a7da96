package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// NBD as https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md has it: fixed newstyle handshake, simple
// replies; reads, writes and flushes.
const (
	nbdMagic      = 0x4e42444d41474943 // NBDMAGIC
	nbdOptMagic   = 0x49484156454f5054 // IHAVEOPT
	nbdReplyMagic = 0x3e889045565a9
	nbdRequest    = 0x25609513
	nbdSimple     = 0x67446698

	nbdFixedNewstyle = 1
	nbdNoZeroes      = 2

	nbdOptExport = 1
	nbdOptAbort  = 2
	nbdOptInfo   = 6
	nbdOptGo     = 7
	nbdAck       = 1
	nbdInfo      = 3
	nbdUnknown   = 1<<31 + 1

	nbdHasFlags  = 1
	nbdSendFlush = 4

	nbdRead  = 0
	nbdWrite = 1
	nbdClose = 2
	nbdFlush = 3

	nbdEIO    = 5
	nbdEINVAL = 22
	nbdENOSPC = 28

	nbdMaxOption  = 64 << 10 // bytes of an option
	nbdMaxPayload = 32 << 20 // bytes of a read or a write
	nbdMaxOptions = 100
)

// errNBD says that a client doesn't keep to the protocol.
var errNBD = errors.New("nbd: the client breaks the protocol")

// serve serves a disk to one client, until that leaves (any error but errNBD) or breaks the protocol.
func serve(c io.ReadWriter, d *overlay) error {
	ok, err := greet(c, d.size)
	if err != nil || !ok {
		return err
	}
	head, buf := make([]byte, 28), []byte(nil)
	for {
		if _, err := io.ReadFull(c, head); err != nil {
			return err
		}
		be := binary.BigEndian
		kind, off, n := be.Uint16(head[6:]), be.Uint64(head[16:]), be.Uint32(head[24:])
		if be.Uint32(head) != nbdRequest || n > nbdMaxPayload {
			return fmt.Errorf("%w: request %#x of %d bytes", errNBD, be.Uint32(head), n)
		}
		if int(n)+16 > len(buf) {
			buf = make([]byte, n+16)
		}
		data, status := buf[16:16+n], uint32(0)
		if kind == nbdWrite {
			if _, err := io.ReadFull(c, data); err != nil {
				return err
			}
		}
		within := off <= uint64(d.size) && uint64(n) <= uint64(d.size)-off
		switch {
		case kind == nbdClose:
			return nil
		case kind == nbdFlush:
			data = nil
		case !within || kind != nbdRead && kind != nbdWrite:
			status = nbdEINVAL
		case kind == nbdRead:
			err = d.read(data, int64(off))
		default:
			err = d.write(data, int64(off))
		}
		switch {
		case errors.Is(err, errFull):
			status = nbdENOSPC
		case err != nil:
			status = nbdEIO
		}
		err = nil
		if kind != nbdRead || status != 0 {
			data = nil
		}
		reply := buf[:16+len(data)]
		be.PutUint32(reply, nbdSimple)
		be.PutUint32(reply[4:], status)
		copy(reply[8:16], head[8:16])
		if _, err := c.Write(reply); err != nil {
			return err
		}
	}
}

// greet agrees with the client on the one disk that there is. ok is false where it only asked.
func greet(c io.ReadWriter, size int64) (ok bool, err error) {
	be := binary.BigEndian
	hello := be.AppendUint64(nil, nbdMagic)
	hello = be.AppendUint64(hello, nbdOptMagic)
	hello = be.AppendUint16(hello, nbdFixedNewstyle|nbdNoZeroes)
	if _, err := c.Write(hello); err != nil {
		return false, err
	}
	flags := make([]byte, 4)
	if _, err := io.ReadFull(c, flags); err != nil {
		return false, err
	}
	export := be.AppendUint64(nil, uint64(size))
	export = be.AppendUint16(export, nbdHasFlags|nbdSendFlush)
	for range nbdMaxOptions {
		head := make([]byte, 16)
		if _, err := io.ReadFull(c, head); err != nil {
			return false, err
		}
		opt, n := be.Uint32(head[8:]), be.Uint32(head[12:])
		if be.Uint64(head) != nbdOptMagic || n > nbdMaxOption {
			return false, fmt.Errorf("%w: option %d of %d bytes", errNBD, opt, n)
		}
		if _, err := io.CopyN(io.Discard, c, int64(n)); err != nil {
			return false, err
		}
		reply := func(kind uint32, data []byte) []byte {
			b := be.AppendUint64(nil, nbdReplyMagic)
			b = be.AppendUint32(b, opt)
			b = be.AppendUint32(b, kind)
			b = be.AppendUint32(b, uint32(len(data)))
			return append(b, data...)
		}
		var answer []byte
		switch opt {
		case nbdOptExport:
			answer = export
			if flags[3]&nbdNoZeroes == 0 {
				answer = append(answer, make([]byte, 124)...)
			}
		case nbdOptGo, nbdOptInfo:
			answer = append(reply(nbdInfo, append([]byte{0, 0}, export...)), reply(nbdAck, nil)...)
		case nbdOptAbort:
			answer = reply(nbdAck, nil)
		default:
			answer = reply(nbdUnknown, nil)
		}
		if _, err := c.Write(answer); err != nil {
			return false, err
		}
		switch opt {
		case nbdOptExport, nbdOptGo:
			return true, nil
		case nbdOptAbort:
			return false, nil
		}
	}
	return false, fmt.Errorf("%w: options without an end", errNBD)
}
