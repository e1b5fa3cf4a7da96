package btrfs

import (
	"fmt"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// Items takes items of a mounted btrfs as its kernel gives them (BTRFS_IOC_TREE_SEARCH), for whoever can't read the
// trees from the disk while they are being written. After its chunks were added it is safe for concurrent use.
type Items struct{ f fs }

// NewItems makes Items of a file system on devices of the given ids and sizes; a Run's Dev is the index in these.
func NewItems(ids []uint64, sizes []int64) *Items {
	x := &Items{fs{chunks: chunkMap{sizes: sizes, byID: map[uint64]int{}}}}
	for i, id := range ids {
		x.f.chunks.byID[id] = i
	}
	return x
}

// Chunk adds the chunk item of a logical address.
func (x *Items) Chunk(logical uint64, data []byte) error { return x.f.chunks.add(logical, data) }

// Extent appends what the extent item of file position at says. Inline bytes have no place then: they are carried.
func (x *Items) Extent(at uint64, data []byte, r *fsmap.Runs) error {
	if len(data) < feInline || data[feType] != feKindInline {
		return x.f.extent(item{key: key{typ: tExtentData, off: at}, data: data, at: -1}, r)
	}
	full, comp, b := le.Uint64(data[feRAM:]), int(data[feCompression]), data[feInline:]
	switch {
	case at != 0 || full == 0 || full > codec.MaxFull || data[feEncryption] != 0 || comp >= len(codecs):
		return ondisk.Corrupt("btrfs extent item", "inline extent", -1, fmt.Sprintf("%d bytes at %d, compression %d", full, at, comp))
	case len(b) == 0 || r.Size() == 0:
		return nil
	case comp == 0:
		return r.Inline(0, append([]byte(nil), b[:min(uint64(len(b)), full)]...))
	}
	full = min(full, uint64(r.Size()))
	part := fsmap.Run{Len: int64(len(b)), Kind: mapfile.Inline, Bytes: append([]byte(nil), b...)}
	return r.Packed(0, int64(full), 0, &fsmap.Pack{Spec: codec.Spec{Codec: codecs[comp], Full: int64(full)}, Parts: []fsmap.Run{part}})
}

// Number gives the number that maps have for an inode of a subvolume.
func Number(subvolume, inode uint64) uint64 {
	return number(fsmap.Ref{Tree: subvolume, ID: inode})
}
