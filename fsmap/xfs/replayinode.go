package xfs

import (
	"encoding/binary"
	"fmt"

	"vmkit/formats/ondisk"
)

// inode replays an inode: its core and what was logged of its forks.
func (p *replay) inode(it *item, ord binary.ByteOrder) error {
	h := it.regions[0]
	switch len(h) {
	case ilfBytes:
	case ilfBytes32:
		h = append(append(append(make([]byte, 0, ilfBytes), h[:12]...), 0, 0, 0, 0), h[12:]...)
	default:
		return ondisk.Corrupt("xfs log inode item", "length of its description", -1, len(h))
	}
	bad := func(field string, got any) error {
		return ondisk.Corrupt(fmt.Sprintf("xfs log inode item of inode %d", ord.Uint64(h[ilfIno:])), field, -1, got)
	}
	n := ord.Uint32(h[ilfLen:])
	if n == 0 || n > 1<<16-1 {
		return bad("length of its buffer", n)
	}
	key := bufKey{int64(ord.Uint64(h[ilfBlkNo:])), uint16(n)}
	if p.cancelled[key] > 0 {
		return nil
	}
	off, err := p.bound(key)
	if err != nil {
		return err
	}
	at := uint64(ord.Uint32(h[ilfBOffset:]))
	if at+uint64(p.inodeSize) > uint64(n)*sector {
		return bad("position in its buffer", at)
	}
	off += int64(at)
	d, err := p.over.Bytes(off, p.inodeSize)
	if err != nil {
		return err
	}
	if len(it.regions) < 2 || len(it.regions) != it.total {
		return bad("regions", len(it.regions))
	}
	core := it.regions[1]
	want := logCoreV2
	if p.v5 {
		want = logCoreV3
	}
	if m := be.Uint16(d); m != inodeMagic {
		return bad("magic on disk", fmt.Sprintf("%#04x", m))
	}
	if len(core) < want || len(core) > p.inodeSize || ord.Uint16(core) != inodeMagic || (core[diVersion] == 3) != p.v5 {
		return bad("core", len(core))
	}
	fields, ino := ord.Uint32(h[ilfFields:]), ord.Uint64(h[ilfIno:])
	if fields&(ilogDOwner|ilogAOwner) != 0 {
		p.reowned[ino] = true // even where the inode itself is newer
	}
	if p.older(d, core, ord) {
		return nil
	}
	p.core(d, core, ord)
	fork := int(core[diForkOff]) * 8
	room := p.inodeSize - p.coreLen
	if fork > room {
		return bad("attribute fork's position", fork)
	}
	data, attr := d[p.coreLen:], []byte(nil)
	if fork > 0 {
		data, attr = d[p.coreLen:p.coreLen+fork], d[p.coreLen+fork:]
	}
	if fields&ilogDev != 0 {
		be.PutUint32(data, ord.Uint32(h[ilfRdev:]))
	}
	rest := it.regions[2:]
	for _, x := range []struct {
		on, plain, root uint32
		fork            []byte
	}{{fields & ilogDFork, ilogDData | ilogDExt, ilogDBRoot, data}, {fields & ilogAFork, ilogAData | ilogAExt, ilogABRoot, attr}} {
		if x.on == 0 {
			continue
		}
		if len(rest) == 0 {
			if it.total == 2 {
				break // an empty fork has no region
			}
			return bad("regions", it.total)
		}
		switch {
		case x.on == x.root:
			if !p.broot(x.fork, rest[0]) {
				return bad("block map root", len(rest[0]))
			}
		case x.on&x.root == 0 && len(rest[0]) <= len(x.fork):
			copy(x.fork, rest[0])
		default:
			return bad("bytes of a fork", len(rest[0]))
		}
		rest = rest[1:]
	}
	if p.v5 {
		binary.LittleEndian.PutUint32(d[diCRC:], checksum(d, diCRC))
	}
	return p.over.Write(off, d)
}

// older reports whether the logged core is older than the inode d on disk.
func (p *replay) older(d, core []byte, ord binary.ByteOrder) bool {
	if d[diVersion] >= 3 {
		lsn := be.Uint64(d[diLSN:])
		return lsn != 0 && lsn != ^uint64(0) && lsn > p.lsn
	}
	if p.v5 {
		return false
	}
	disk, logged := be.Uint16(d[diFlushIter:]), ord.Uint16(core[diFlushIter:])
	return logged < disk && (disk != maxFlushIter || logged >= maxFlushIter>>1)
}

// core turns a logged core, which is in the writer's byte order, into the one on disk. The two have the same places.
func (p *replay) core(d, core []byte, ord binary.ByteOrder) {
	u16 := func(at int) { be.PutUint16(d[at:], ord.Uint16(core[at:])) }
	u32 := func(at int) { be.PutUint32(d[at:], ord.Uint32(core[at:])) }
	u64 := func(at int) { be.PutUint64(d[at:], ord.Uint64(core[at:])) }
	v3 := core[diVersion] == 3
	flags2 := uint64(0)
	if v3 {
		flags2 = ord.Uint64(core[diFlags2:])
	}
	stamp := func(at int) {
		if flags2&flag2BigTime != 0 {
			u64(at)
			return
		}
		u32(at)
		u32(at + 4)
	}
	u16(0)
	u16(diMode)
	d[diVersion], d[diFormat] = core[diVersion], core[diFormat]
	be.PutUint16(d[diOnLink:], 0)
	for _, at := range []int{diUID, diGID, diNLink} {
		u32(at)
	}
	u16(diProjIDLo)
	u16(diProjIDHi)
	if flags2&flag2NRExt64 != 0 {
		u64(diBigNExtents)
	} else {
		clear(d[diBigNExtents : diBigNExtents+8])
	}
	stamp(diATime)
	stamp(diMTime)
	stamp(diCTime)
	u64(diSize)
	u64(diNBlocks)
	u32(diExtSize)
	u32(diNExtents) // or the attribute fork's extents
	u16(diANExtents)
	d[diForkOff], d[diAFormat] = core[diForkOff], core[diAFormat]
	u32(diDMEvMask)
	u16(diDMState)
	u16(diFlags)
	u32(diGen)
	if !v3 {
		return
	}
	u64(diChangeCount)
	stamp(diCRTime)
	be.PutUint64(d[diFlags2:], flags2)
	u32(diCowExtSize)
	clear(d[diPad2 : diPad2+12])
	u64(diIno)
	be.PutUint64(d[diLSN:], p.lsn)
	copy(d[diUUID:], core[diUUID:inodeLenV3])
}

// broot turns a block map root as it is in memory, with the header of a block, into the one in the inode.
func (p *replay) broot(fork, root []byte) bool {
	hdr := btLongLen
	if p.v5 {
		hdr = btLongCRCLen
	}
	if len(fork) < bmdrLen || len(root) < hdr {
		return false
	}
	n, from, to := int(be.Uint16(root[6:])), (len(root)-hdr)/16, (len(fork)-bmdrLen)/16
	if n > from || n > to {
		return false
	}
	copy(fork[:bmdrLen], root[4:8])
	copy(fork[bmdrLen:], root[hdr:][:n*8])
	copy(fork[bmdrLen+to*8:], root[hdr+from*8:][:n*8])
	return true
}
