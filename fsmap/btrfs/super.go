package btrfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
)

// Driver is the row of the table.
var Driver = fsmap.Driver{Name: "btrfs", Probe: probe, Open: open, MemberOf: memberOf, OpenSet: openSet}

func probe(_ io.ReaderAt, _ int64, head []byte) (string, bool) {
	return "btrfs", len(head) >= superPos+superSize && string(head[superPos+sbMagic:superPos+sbMagic+8]) == magic
}

// fs is an opened btrfs. It is immutable but for its caches, which lock.
type fs struct {
	members  []fsmap.Member
	csum     csumType
	metaUUID [16]byte
	nodeSize int
	sector   int64
	chunks   chunkMap
	nodes    nodeCache
	rootTree *tree
	info     fsmap.Info

	mu     sync.Mutex
	trees  map[uint64]*tree
	over   map[uint64]*overlay // what the log changes, by subvolume
	noted  map[string]bool
	opened bool
}

// readSuper reads the super block of one device, or the newest sound copy of it.
func readSuper(r io.ReaderAt, size int64) (b []byte, note string, err error) {
	var first error
	for i, pos := range [superMirrors]int64{superPos, superMirror1, superMirror2} {
		if i > 0 && b != nil {
			break // copies are looked at only where the first is bad: mkfs of another file system leaves them behind
		}
		if !ondisk.Within(pos, superSize, size) {
			break
		}
		c, err := ondisk.Read(r, pos, superSize, "btrfs super block")
		if err == nil {
			err = checkSuper(c, pos)
		}
		if err == nil {
			b = c
			if i > 0 {
				note = fmt.Sprintf("super block copy at byte %#x was used: %v", pos, first)
			}
		} else if first == nil {
			first = err
			if errors.Is(err, ondisk.ErrNot) || errors.Is(err, ondisk.ErrUnsupported) {
				break
			}
		}
	}
	if b == nil {
		if first == nil {
			first = &ondisk.Error{What: "btrfs super block", Off: superPos, Err: ondisk.ErrNot}
		}
		return nil, "", first
	}
	return b, note, nil
}

func checkSuper(b []byte, pos int64) error {
	if string(b[sbMagic:sbMagic+8]) != magic {
		return &ondisk.Error{What: "btrfs super block", Field: "magic", Off: pos + sbMagic, Err: ondisk.ErrNot}
	}
	if err := csumType(le.Uint16(b[sbCsumType:])).check(b, "btrfs super block", pos); err != nil {
		return err
	}
	if at := int64(le.Uint64(b[sbBytenr:])); at != pos {
		return ondisk.Corrupt("btrfs super block", "its own position", pos+sbBytenr, at)
	}
	inc := le.Uint64(b[sbIncompat:])
	rest := inc
	for _, x := range incompat {
		if rest&x.bit != 0 && x.known {
			rest &^= x.bit
		}
	}
	if rest != 0 {
		name := ""
		for _, x := range incompat {
			if rest&x.bit != 0 {
				name += " " + x.name
			}
		}
		return ondisk.Unsupported("btrfs super block", "incompatible features"+name, pos+sbIncompat, fmt.Sprintf("%#x", rest))
	}
	if fl := le.Uint64(b[sbFlags:]); fl&flMetadump != 0 {
		return ondisk.Unsupported("btrfs super block", "flags: a metadata dump, without file content", pos+sbFlags, fmt.Sprintf("%#x", fl))
	}
	bad := func(field string, off int64, got any) error {
		return ondisk.Corrupt("btrfs super block", field, pos+off, got)
	}
	node, sector := le.Uint32(b[sbNodeSize:]), le.Uint32(b[sbSectorSize:])
	switch {
	case node < minNode || node > maxNode || node&(node-1) != 0:
		return bad("node size", sbNodeSize, node)
	case sector < 512 || sector > maxNode || sector&(sector-1) != 0:
		return bad("sector size", sbSectorSize, sector)
	case b[sbRootLevel] > maxLevel || b[sbChunkLevel] > maxLevel || b[sbLogLevel] > maxLevel:
		return bad("level of a tree", sbRootLevel, b[sbRootLevel])
	case le.Uint32(b[sbArraySize:]) > sbArrayMax:
		return bad("size of the chunk array", sbArraySize, le.Uint32(b[sbArraySize:]))
	}
	if n := le.Uint64(b[sbDevices:]); n == 0 || n > maxDevices {
		return bad("number of devices", sbDevices, n)
	}
	return nil
}

// memberOf tells a device's file system and number.
func memberOf(r io.ReaderAt, size int64) (string, uint64, error) {
	b, _, err := readSuper(r, size)
	if err != nil {
		return "", 0, err
	}
	return fmt.Sprintf("%x", b[sbFSID:sbFSID+16]), le.Uint64(b[sbDevID:]), nil
}

func open(r io.ReaderAt, size int64, o fsmap.Options) (fsmap.FS, error) {
	return openSet([]fsmap.Member{{R: r, Size: size}}, o)
}

func openSet(members []fsmap.Member, o fsmap.Options) (fsmap.FS, error) {
	f := &fs{
		nodes: nodeCache{nodes: map[int64][]byte{}}, trees: map[uint64]*tree{}, over: map[uint64]*overlay{}, noted: map[string]bool{},
		chunks: chunkMap{byID: map[uint64]int{}},
	}
	// The newest super block is the one that counts: a device that dropped out is stale.
	var sb []byte
	var gens []uint64
	for _, m := range members {
		b, note, err := readSuper(m.R, m.Size)
		if err != nil {
			return nil, err
		}
		id, gen := le.Uint64(b[sbDevID:]), le.Uint64(b[sbGeneration:])
		if i, ok := f.chunks.byID[id]; ok {
			f.note(fmt.Sprintf("device %d is there twice; the newer one is used", id))
			if gens[i] >= gen {
				continue
			}
			f.members[i], gens[i], f.chunks.sizes[i] = m, gen, m.Size
		} else {
			f.chunks.byID[id] = len(f.members)
			f.members, gens, f.chunks.sizes = append(f.members, m), append(gens, gen), append(f.chunks.sizes, m.Size)
		}
		if note != "" {
			f.note(note)
		}
		if sb == nil || gen > le.Uint64(sb[sbGeneration:]) {
			sb = b
		}
	}
	for i, g := range gens {
		if newest := le.Uint64(sb[sbGeneration:]); g < newest {
			f.note(fmt.Sprintf("a device's super block is of generation %d, the newest is %d: it is not read", g, newest))
			f.chunks.sizes[i] = 0 // nothing lies within it any more
		}
	}
	f.csum, f.nodeSize = csumType(le.Uint16(sb[sbCsumType:])), int(le.Uint32(sb[sbNodeSize:]))
	f.sector = int64(le.Uint32(sb[sbSectorSize:]))
	copy(f.metaUUID[:], sb[sbFSID:])
	if le.Uint64(sb[sbIncompat:])&incMetadataUUID != 0 {
		copy(f.metaUUID[:], sb[sbMetaUUID:])
	}
	label, _, _ := bytes.Cut(sb[sbLabel:sbLabel+256], []byte{0})
	f.info = fsmap.Info{
		Type: "btrfs", UUID: uuid(sb[sbFSID:]), Label: string(label), BlockSize: f.sector,
		Size: int64(le.Uint64(sb[sbTotal:]) & (1<<62 - 1)), Used: int64(le.Uint64(sb[sbUsed:]) & (1<<62 - 1)),
		Journal: "none", Root: fsmap.Ref{Tree: idFS, ID: firstFreeID}, Notes: f.info.Notes,
		Extra: map[string]any{"devices": le.Uint64(sb[sbDevices:]), "generation": le.Uint64(sb[sbGeneration:])},
	}
	if err := f.readChunks(sb); err != nil {
		return nil, err
	}
	f.countDevices(int(le.Uint64(sb[sbDevices:])))
	f.rootTree = &tree{fs: f, id: idRoot, root: int64(le.Uint64(sb[sbRoot:])), level: int(sb[sbRootLevel]), gen: le.Uint64(sb[sbGeneration:])}
	if _, err := f.node(f.rootTree.root, f.rootTree.level, f.rootTree.gen); err != nil {
		return nil, fmt.Errorf("btrfs root tree: %w", err)
	}
	if err := f.replay(sb, o.Journal); err != nil {
		return nil, err
	}
	if _, err := f.tree(idFS); err != nil {
		return nil, err
	}
	f.listSubvolumes()
	f.mu.Lock()
	f.opened = true
	f.mu.Unlock()
	return f, nil
}

// readChunks takes the system chunks from the super block, and through them the chunk tree.
func (f *fs) readChunks(sb []byte) error {
	for b := sb[sbArray : sbArray+int(le.Uint32(sb[sbArraySize:]))]; len(b) > 0; {
		if len(b) < keySize+ckHead+stripeSize {
			return ondisk.Truncated("btrfs super block", "chunk array", superPos+sbArray, nil)
		}
		k := parseKey(b)
		n := keySize + ckHead + stripeSize*int(le.Uint16(b[keySize+ckStripes:]))
		if k.typ != tChunkItem || n > len(b) {
			return ondisk.Corrupt("btrfs super block", "chunk array: key", superPos+sbArray, k.typ)
		}
		if err := f.chunks.add(k.off, b[keySize:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	t := &tree{fs: f, id: idChunk, root: int64(le.Uint64(sb[sbChunkRoot:])), level: int(sb[sbChunkLevel]), gen: le.Uint64(sb[sbChunkGen:])}
	var bad error
	err := t.scan(key{idChunkObj, tChunkItem, 0}, key{idChunkObj, tChunkItem, maxOff}, func(x item) bool {
		bad = f.chunks.add(x.off, x.data)
		return bad == nil
	})
	if err = errors.Join(err, bad); err != nil {
		return fmt.Errorf("btrfs chunk tree: %w", err)
	}
	return nil
}

// countDevices says what the absence of devices means: a note where every chunk has what it needs without them.
func (f *fs) countDevices(n int) {
	if n <= len(f.members) {
		return
	}
	lost := 0
	for i := range f.chunks.chunks {
		if !f.chunks.complete(&f.chunks.chunks[i]) {
			lost++
		}
	}
	if lost == 0 {
		f.note(fmt.Sprintf("%d of %d devices are absent; what the others hold is enough", n-len(f.members), n))
		return
	}
	f.problem(ondisk.Truncated("btrfs", fmt.Sprintf("%d of %d devices are absent, and with them %d of %d chunks; name all of the machine's images together", n-len(f.members), n, lost, len(f.chunks.chunks)), -1, nil))
}

func (f *fs) problem(err error) { f.info.Problems = append(f.info.Problems, err) }
func (f *fs) note(text string)  { f.info.Notes = append(f.info.Notes, text) }
func (f *fs) Info() *fsmap.Info { return &f.info }

// noteOnce keeps a note that comes while the file system is opened. Later ones come when Info was given away.
func (f *fs) noteOnce(text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	const maxNotes = 16
	if !f.opened && !f.noted[text] && len(f.noted) < maxNotes {
		f.noted[text] = true
		f.note(text)
	}
}

func uuid(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
