package qcow2

import (
	"encoding/binary"
	"fmt"
	"time"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// snapshot is an internal snapshot with the place of its L1 table.
type snapshot struct {
	formats.Snapshot
	l1      uint64
	l1Size  uint32
	at, end int64 // where its entry lies
}

// readSnapshots reads the snapshot table. With an error come those that could be read. (Snapshots)
func readSnapshots(f *formats.File, h *info) ([]snapshot, error) {
	const what = "qcow2 snapshot table"
	if h.NbSnapshots == 0 {
		return nil, nil
	}
	if h.NbSnapshots > maxSnapshots {
		return nil, ondisk.Unsupported("qcow2 header", "number of snapshots", 60, h.NbSnapshots)
	}
	if h.SnapshotsOffset&uint64(h.clusterSize()-1) != 0 || h.SnapshotsOffset > 1<<56 {
		return nil, ondisk.Corrupt("qcow2 header", "snapshot table's offset", 64, h.SnapshotsOffset)
	}
	var list []snapshot
	start := int64(h.SnapshotsOffset)
	at := start
	for range h.NbSnapshots {
		var e snapshotEntry
		fixed := int64(binary.Size(e))
		buf, err := ondisk.Read(f, at, fixed, what)
		if err != nil {
			return list, err
		}
		binary.Decode(buf, binary.BigEndian, &e)
		n := int64(e.ExtraLen) + int64(e.IDLen) + int64(e.NameLen)
		if e.ExtraLen > maxSnapshotExtra {
			return list, ondisk.Unsupported(what, "length of extra data", at+36, e.ExtraLen)
		}
		if at+fixed+n-start > maxSnapshotTable {
			return list, ondisk.Corrupt(what, "length", at, nil)
		}
		rest, err := ondisk.Read(f, at+fixed, n, what)
		if err != nil {
			return list, err
		}
		s := snapshot{l1: e.L1TableOffset, l1Size: e.L1Size, at: at, end: at + fixed + n}
		s.Date = time.Unix(int64(e.Seconds), int64(e.Nanoseconds)).UTC()
		x := snapshotExtra{VMStateSize: uint64(e.VMStateSize), DiskSize: h.Size}
		c := ondisk.NewCursor(rest[:e.ExtraLen], binary.BigEndian, at+fixed, what)
		if c.Len() >= 8 {
			x.VMStateSize = c.U64()
		}
		if c.Len() >= 8 {
			x.DiskSize = c.U64()
		}
		if x.DiskSize > 1<<63-1-uint64(h.span()) || x.VMStateSize > 1<<63-1 {
			return list, ondisk.Corrupt(what, "size", at+fixed, x.DiskSize)
		}
		s.VMState, s.Size = int64(x.VMStateSize), int64(x.DiskSize)
		s.ID = string(rest[e.ExtraLen:][:e.IDLen])
		s.Name = string(rest[int64(e.ExtraLen)+int64(e.IDLen):])
		list = append(list, s)
		at = (s.end + 7) &^ 7
	}
	return list, nil
}

// use makes m the state of the snapshot with that ID or, where no ID is the same, that name.
func (m *mapper) use(list []snapshot, want string) error {
	var hits []snapshot
	for _, s := range list {
		if s.ID == want {
			hits = []snapshot{s}
			break
		}
		if s.Name == want {
			hits = append(hits, s)
		}
	}
	switch len(hits) {
	case 0:
		return fmt.Errorf("there is no internal snapshot %q among %d", want, len(list))
	case 1:
	default:
		return fmt.Errorf("%d internal snapshots are named %q; name one by its ID (%q, %q, …)", len(hits), want, hits[0].ID, hits[1].ID)
	}
	s := hits[0]
	if err := m.h.checkL1(s.l1, s.l1Size, s.Size, "qcow2 snapshot table", s.at+8); err != nil {
		return err
	}
	m.l1, m.size = int64(s.l1), s.Size
	return nil
}
