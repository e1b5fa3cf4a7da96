package mapfile

import (
	"strconv"
)

// AppendMap appends a map record.
func AppendMap(dst []byte, m *Map) []byte {
	dst = append(dst, `{"type":"map","version":`...)
	dst = strconv.AppendInt(dst, int64(m.Version), 10)
	dst = appendNotEmpty(dst, "tool", m.Tool)
	dst = appendTimeField(dst, "created", Time{m.Created.Sec, m.Created.Nsec, true})
	dst = appendAny(dst, "options", m.Options)
	return append(append(dst, m.Rest...), '}', '\n')
}

// AppendImage appends an image record.
func AppendImage(dst []byte, m *Image) []byte {
	dst = append(dst, `{"type":"image","id":`...)
	dst = strconv.AppendInt(dst, int64(m.ID), 10)
	dst = appendName(dst, "name", m.Name)
	dst = appendName(dst, "format", m.Format)
	dst = appendInt(dst, "size", m.Size)
	dst = appendNotEmpty(dst, "state", m.State)
	dst = appendNotEmpty(dst, "encryption", m.Encryption)
	dst = append(dst, `,"files":[`...)
	for i := range m.Files {
		f := &m.Files[i]
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = strconv.AppendInt(append(dst, `{"id":`...), int64(f.ID), 10)
		dst = appendName(dst, "path", f.Path)
		dst = appendNotEmpty(dst, "role", f.Role)
		dst = appendInt(dst, "size", f.Size)
		dst = append(appendTimeField(dst, "mtime", f.MTime), '}')
	}
	dst = append(dst, ']')
	if x := m.Identity; x != nil {
		dst, _ = appendText(append(dst, `,"identity":{"table":`...), x.Table)
		dst = appendNotEmpty(dst, "id", x.ID)
		dst = appendNotEmpty(dst, "marks", x.Marks)
		dst = append(appendNotEmpty(dst, "serial", x.Serial), '}')
	}
	for i := range m.Snapshots {
		s := &m.Snapshots[i]
		dst = appendListSep(dst, "snapshots", i)
		dst, _ = appendText(append(dst, `{"id":`...), s.ID)
		dst = appendName(dst, "name", s.Name)
		dst = appendNotNone(dst, "size", s.Size)
		dst = appendTimeField(dst, "date", s.Date)
		if s.VMState != 0 {
			dst = appendInt(dst, "vm_state", s.VMState)
		}
		dst = append(dst, '}')
	}
	dst = appendListEnd(dst, len(m.Snapshots))
	for i := range m.Bitmaps {
		b := &m.Bitmaps[i]
		dst = appendListSep(dst, "bitmaps", i)
		dst, _ = appendText(append(dst, `{"name":`...), b.Name)
		dst = appendInt(dst, "granularity", b.Granularity)
		dst = appendNotEmpty(dst, "state", b.State)
		if b.Auto {
			dst = append(dst, `,"auto":true`...)
		}
		dst = append(dst, '}')
	}
	dst = appendListEnd(dst, len(m.Bitmaps))
	dst = appendTexts(dst, "notes", m.Notes)
	if len(m.Clone) > 0 {
		dst = append(appendKey(dst, "clone"), m.Clone...)
	}
	return append(append(dst, m.Rest...), '}', '\n')
}

// appendListSep begins element i of the list key.
func appendListSep(dst []byte, key string, i int) []byte {
	if i == 0 {
		return append(appendKey(dst, key), '[')
	}
	return append(dst, ',')
}

// appendListEnd ends a list of n elements; one of none was never begun.
func appendListEnd(dst []byte, n int) []byte {
	if n == 0 {
		return dst
	}
	return append(dst, ']')
}

// AppendVolume appends a volume record.
func AppendVolume(dst []byte, v *Volume) []byte {
	dst = append(dst, `{"type":"volume","id":`...)
	dst = strconv.AppendInt(dst, int64(v.ID), 10)
	dst = appendName(dst, "name", v.Name)
	dst = appendName(dst, "kind", v.Kind)
	dst = appendNotEmpty(dst, "scheme", v.Scheme)
	if v.Number != 0 {
		dst = appendInt(dst, "number", int64(v.Number))
	}
	dst = appendNotNone(dst, "start", v.Start)
	dst = appendInt(dst, "size", v.Size)
	dst = appendNotNone(dst, "image", int64(v.Image))
	dst = appendNotNone(dst, "in", int64(v.In))
	for i := range v.Segments {
		s := &v.Segments[i]
		dst = appendListSep(dst, "segments", i)
		dst = strconv.AppendInt(append(dst, `{"at":`...), s.At, 10)
		dst = appendInt(dst, "len", s.Len)
		dst = appendNotEmpty(dst, "kind", s.Kind)
		for j, id := range s.Volumes {
			dst = strconv.AppendInt(appendListSep(dst, "volumes", j), int64(id), 10)
		}
		dst = appendListEnd(dst, len(s.Volumes))
		for j, at := range s.Starts {
			dst = strconv.AppendInt(appendListSep(dst, "starts", j), at, 10)
		}
		dst = appendListEnd(dst, len(s.Starts))
		if s.Stripe != 0 {
			dst = appendInt(dst, "stripe", s.Stripe)
		}
		dst = append(dst, '}')
	}
	dst = appendListEnd(dst, len(v.Segments))
	dst = appendNotEmpty(dst, "type_id", v.TypeID)
	dst = appendNotEmpty(dst, "type_name", v.Type)
	dst = appendNotEmpty(dst, "part_uuid", v.PartUUID)
	dst = appendNotEmpty(dst, "part_name", v.PartName)
	dst = appendTexts(dst, "attrs", v.Attrs)
	dst = appendNotEmpty(dst, "fs", v.FS)
	dst = appendNotEmpty(dst, "uuid", v.UUID)
	dst = appendNotEmpty(dst, "label", v.Label)
	dst = appendNotEmpty(dst, "journal", v.Journal)
	if v.BlockSize != 0 {
		dst = appendInt(dst, "block_size", v.BlockSize)
	}
	dst = appendNotNone(dst, "used", v.Used)
	dst = appendTexts(dst, "snapshots", v.Snapshots)
	dst = appendAny(dst, "extra", v.Extra)
	dst = appendTexts(dst, "notes", v.Notes)
	return append(append(dst, v.Rest...), '}', '\n')
}

// AppendFinding appends a finding record.
func AppendFinding(dst []byte, f *Finding) []byte {
	dst, _ = appendText(append(dst, `{"type":"finding","what":`...), f.What)
	dst = appendNotNone(dst, "volume", int64(f.Volume))
	dst = appendNotEmpty(dst, "path", f.Path)
	dst = appendNotEmpty(dst, "stream", f.Stream)
	dst = appendName(dst, "expected", f.Expected)
	dst = appendName(dst, "found", f.Found)
	dst = appendNotEmpty(dst, "reader", f.Reader)
	return append(append(dst, f.Rest...), '}', '\n')
}

// AppendEnd appends an end record with the counts of its kind of stream.
func AppendEnd(dst []byte, e *End) []byte {
	dst = append(dst, `{"type":"end"`...)
	switch e.Kind {
	case EndOfMap:
		dst = appendInt(dst, "files", e.Files)
		dst = appendInt(dst, "bytes", e.Bytes)
	case EndOfResults:
		dst = appendInt(dst, "ok", e.OK)
		dst = appendInt(dst, "partial", e.Partial)
		dst = appendInt(dst, "failed", e.Failed)
		dst = appendInt(dst, "skipped", e.Skipped)
		dst = appendInt(dst, "bytes", e.Bytes)
	case EndOfFindings:
		dst = appendInt(dst, "checked", e.Checked)
		dst = appendInt(dst, "differences", e.Differences)
	case EndOfVMs:
		dst = appendInt(dst, "vms", e.VMs)
	case EndOfClones:
		dst = appendInt(dst, "clones", e.Clones)
	}
	dst = appendInt(dst, "problems", e.Problems)
	return append(append(dst, e.Rest...), '}', '\n')
}
