package fat

import (
	"encoding/binary"
	"fmt"
	"io"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/internal/dos"
	"vmkit/fsmap/mapfile"
)

// Driver is the row of the table of file systems.
var Driver = fsmap.Driver{Name: "fat", Probe: probe, Open: open}

const (
	cachePage  = 16 << 10
	cacheBytes = 2 << 20 // tables and directories
)

// rootID is the root directory's number. Others' is their entry's position in the volume, in units of an entry; this
// one lies in the boot sector.
const rootID = 1

// volume is an opened FAT.
type volume struct {
	*boot
	dos.Heap
	inf fsmap.Info
}

func open(r io.ReaderAt, size int64, _ fsmap.Options) (fsmap.FS, error) {
	head, err := ondisk.Read(r, 0, bootLen, "fat boot sector")
	if err != nil {
		return nil, err
	}
	b, err := parse(r, head)
	if err != nil {
		return nil, err
	}
	v := &volume{boot: b}
	v.Meta = ondisk.NewCache(r, size, cachePage, cacheBytes)
	v.Table = b.table + b.active*b.tableLen
	if b.mirrored && b.tables > 1 {
		v.Spare = b.table + b.tableLen
	}
	v.Bits, v.Data, v.Shift, v.Last = b.bits(), b.data, b.shift, b.last
	if !ondisk.Within(v.Table, b.tableLen, size) {
		return nil, ondisk.Truncated("fat", "table", v.Table, b.tableLen)
	}
	if v.Spare != 0 && !ondisk.Within(v.Spare, b.tableLen, size) {
		v.Spare = 0
	}
	v.inf = fsmap.Info{Type: "vfat", BlockSize: v.Cluster(), Size: b.size, Used: mapfile.None, Journal: "none",
		Root: fsmap.Ref{ID: rootID}, Extra: map[string]any{"version": fmt.Sprintf("FAT%d", b.width), "times": "local, zone unknown"}}
	if b.ext.Signature == extended || b.ext.Signature == extendedLabel {
		v.inf.UUID = fmt.Sprintf("%04X-%04X", b.ext.Serial>>16, b.ext.Serial&0xFFFF)
	}
	if label := labelText(b.ext.Label[:]); b.ext.Signature == extendedLabel && label != "" && label != "NO NAME" {
		v.inf.Extra["boot_label"] = label
	}
	if b.size > size {
		v.inf.Notes = append(v.inf.Notes, fmt.Sprintf("it has %d bytes of the %d that its boot sector says", size, b.size))
	}
	if b.version != 0 {
		v.inf.Notes = append(v.inf.Notes, fmt.Sprintf("its FAT32 version is %d.%d, read as 0.0", b.version>>8, b.version&0xFF))
	}
	if !b.mirrored {
		v.inf.Notes = append(v.inf.Notes, fmt.Sprintf("its tables are not mirrored: number %d is used", b.active))
	}
	if err := v.scan(); err != nil {
		v.inf.Problems = append(v.inf.Problems, err)
	}
	v.readLabel()
	return v, nil
}

// readLabel takes the volume's label from the root directory. What it can't read there ReadDir will tell.
func (v *volume) readLabel() {
	_ = v.slots(rootID, v.rootCluster, func(b []byte, _ int64) bool {
		for ; len(b) >= dos.SlotLen; b = b[dos.SlotLen:] {
			attr := b[entAttr]
			switch {
			case b[0] == nameEnd:
				return false
			case b[0] == nameDeleted, attr&attrMask == attrLong, attr&(attrVolume|dos.AttrDirectory) != attrVolume:
			default:
				v.inf.Label = labelText(b[:11])
				return false
			}
		}
		return true
	})
}

// Info implements fsmap.FS.
func (v *volume) Info() *fsmap.Info { return &v.inf }

// inode is what a Node carries in Priv.
type inode struct{ start uint32 }

// Node implements fsmap.FS.
func (v *volume) Node(e fsmap.Entry, n *fsmap.Node) error {
	n.Ref, n.Aux, n.Inode = e.Ref, e.Aux, e.Ref.ID
	p, ok := n.Priv.(*inode)
	if !ok {
		p = new(inode)
		n.Priv = p
	}
	if e.Ref.ID == rootID {
		n.Kind, p.start = mapfile.Directory, v.rootCluster
		return nil
	}
	pos := int64(e.Ref.ID) * dos.SlotLen
	b, err := v.Meta.Slice(pos, dos.SlotLen)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	attr := b[entAttr]
	n.Kind, n.Size = mapfile.Regular, int64(le.Uint32(b[entSize:]))
	if attr&dos.AttrDirectory != 0 {
		n.Kind, n.Size = mapfile.Directory, 0
	}
	p.start = uint32(le.Uint16(b[entStartLow:]))
	if v.width == 32 {
		p.start |= uint32(le.Uint16(b[entStartHigh:])) << 16
	}
	n.MTime = dos.Time(le.Uint16(b[entMDate:]), le.Uint16(b[entMTime:]), 0)
	n.ATime = dos.Time(le.Uint16(b[entADate:]), 0, 0)
	n.BTime = dos.Time(le.Uint16(b[entBDate:]), le.Uint16(b[entBTime:]), b[entBTimeCent])
	n.Attrs = dos.AppendAttrs(n.Attrs, uint16(attr))
	return nil
}

// Runs implements fsmap.FS.
func (v *volume) Runs(n *fsmap.Node, _ *fsmap.Stream, r *fsmap.Runs) error {
	p, ok := n.Priv.(*inode)
	if !ok || n.Kind != mapfile.Regular {
		return nil
	}
	return v.Chain(p.start, r.Size(), r)
}
