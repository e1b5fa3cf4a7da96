package mapfile

func (r *Reader) decodeMap() *Map {
	s, m := &r.s, new(Map)
	for s.begin('{'); s.field(); {
		switch string(s.key) {
		case "type":
			s.raw()
		case "version":
			m.Version = s.id()
		case "tool":
			m.Tool = s.text()
		case "created":
			m.Created = s.time()
		case "options":
			m.Options = s.object()
		default:
			m.Rest = s.rest(m.Rest)
		}
	}
	if s.err == nil && m.Version != Version {
		s.fail("map of version %d; this program reads version %d", m.Version, Version)
	}
	return m
}

func (r *Reader) decodeImage() *Image {
	s, m := &r.s, &Image{ID: None, Size: None}
	for s.begin('{'); s.field(); {
		switch string(s.key) {
		case "type":
			s.raw()
		case "id":
			m.ID = s.id()
		case "name":
			m.Name = s.text()
		case "name_base64":
			m.Name = string(s.base64())
		case "format":
			m.Format = s.text()
		case "size":
			m.Size = s.size()
		case "state":
			m.State = s.text()
		case "encryption":
			m.Encryption = s.text()
		case "files":
			for s.begin('['); s.more(']'); {
				m.Files = append(m.Files, s.hostFile())
			}
		case "identity":
			m.Identity = s.identity()
		case "snapshots":
			for s.begin('['); s.more(']'); {
				m.Snapshots = append(m.Snapshots, s.snapshot())
			}
		case "bitmaps":
			for s.begin('['); s.more(']'); {
				m.Bitmaps = append(m.Bitmaps, s.bitmap())
			}
		case "notes":
			m.Notes = s.texts()
		case "clone":
			m.Clone = s.value()
		default:
			m.Rest = s.rest(m.Rest)
		}
	}
	if m.ID == None || m.Size == None {
		s.fail("image record without its id and size")
	}
	return m
}

func (s *scan) hostFile() HostFile {
	h := HostFile{ID: None, Size: None}
	var path64 bool
	for s.begin('{'); s.field(); {
		switch string(s.key) {
		case "id":
			h.ID = s.id()
		case "path":
			s.bytesUnless(&h.Path, path64)
		case "path_base64":
			h.Path, path64 = string(s.base64()), true
		case "role":
			h.Role = s.name()
		case "size":
			h.Size = s.size()
		case "mtime":
			h.MTime = s.time()
		default:
			s.skip()
		}
	}
	if h.ID == None || h.Path == "" || h.Size == None {
		s.fail("host file without its id, path and size")
	}
	return h
}

func (s *scan) identity() *Identity {
	x := new(Identity)
	for s.begin('{'); s.field(); {
		switch string(s.key) {
		case "serial":
			x.Serial = s.text()
		case "table":
			x.Table = s.text()
		case "id":
			x.ID = s.text()
		case "marks":
			x.Marks = s.text()
		default:
			s.skip()
		}
	}
	return x
}

func (s *scan) snapshot() Snapshot {
	x := Snapshot{Size: None}
	for s.begin('{'); s.field(); {
		switch string(s.key) {
		case "id":
			x.ID = s.text()
		case "name":
			x.Name = s.text()
		case "name_base64":
			x.Name = string(s.base64())
		case "size":
			x.Size = s.size()
		case "date":
			x.Date = s.time()
		case "vm_state":
			x.VMState = s.size()
		default:
			s.skip()
		}
	}
	return x
}

func (s *scan) bitmap() Bitmap {
	var x Bitmap
	for s.begin('{'); s.field(); {
		switch string(s.key) {
		case "name":
			x.Name = s.text()
		case "granularity":
			x.Granularity = s.size()
		case "state":
			x.State = s.text()
		case "auto":
			x.Auto = s.bool()
		default:
			s.skip()
		}
	}
	return x
}

func (r *Reader) decodeVolume() *Volume {
	s, v := &r.s, &Volume{ID: None, Start: None, Size: None, Image: None, In: None, Used: None}
	for s.begin('{'); s.field(); {
		switch string(s.key) {
		case "type":
			s.raw()
		case "id":
			v.ID = s.id()
		case "name":
			v.Name = s.text()
		case "name_base64":
			v.Name = string(s.base64())
		case "kind":
			v.Kind = s.text()
		case "scheme":
			v.Scheme = s.text()
		case "number":
			v.Number = s.id()
		case "start":
			v.Start = s.size()
		case "size":
			v.Size = s.size()
		case "image":
			v.Image = s.id()
		case "in":
			v.In = s.id()
		case "segments":
			for s.begin('['); s.more(']'); {
				v.Segments = append(v.Segments, s.segment())
			}
		case "type_id":
			v.TypeID = s.text()
		case "type_name":
			v.Type = s.text()
		case "part_uuid":
			v.PartUUID = s.text()
		case "part_name":
			v.PartName = s.text()
		case "attrs":
			v.Attrs = s.texts()
		case "fs":
			v.FS = s.text()
		case "uuid":
			v.UUID = s.text()
		case "label":
			v.Label = s.text()
		case "label_base64":
			v.Label = string(s.base64())
		case "journal":
			v.Journal = s.text()
		case "block_size":
			v.BlockSize = s.size()
		case "used":
			v.Used = s.size()
		case "snapshots":
			v.Snapshots = s.texts()
		case "extra":
			v.Extra = s.object()
		case "notes":
			v.Notes = s.texts()
		default:
			v.Rest = s.rest(v.Rest)
		}
	}
	if v.ID == None || v.Name == "" || v.Size == None {
		s.fail("volume record without its id, name and size")
	}
	return v
}

func (s *scan) segment() Segment {
	var x Segment
	for s.begin('{'); s.field(); {
		switch string(s.key) {
		case "at":
			x.At = s.size()
		case "len":
			x.Len = s.size()
		case "kind":
			x.Kind = s.name()
		case "volumes":
			for s.begin('['); s.more(']'); {
				x.Volumes = append(x.Volumes, s.id())
			}
		case "starts":
			for s.begin('['); s.more(']'); {
				x.Starts = append(x.Starts, s.size())
			}
		case "stripe":
			x.Stripe = s.size()
		default:
			s.skip()
		}
	}
	return x
}

func (r *Reader) decodeFinding() *Finding {
	s, f := &r.s, &Finding{Volume: None}
	text := func(v *string) { *v = string(s.base64()) }
	for s.begin('{'); s.field(); {
		switch string(s.key) {
		case "type":
			s.raw()
		case "what":
			f.What = s.text()
		case "volume":
			f.Volume = s.id()
		case "path":
			f.Path = s.text()
		case "path_base64":
			text(&f.Path)
		case "stream":
			f.Stream = s.text()
		case "stream_base64":
			text(&f.Stream)
		case "expected":
			f.Expected = s.text()
		case "expected_base64":
			text(&f.Expected)
		case "found":
			f.Found = s.text()
		case "found_base64":
			text(&f.Found)
		case "reader":
			f.Reader = s.text()
		default:
			f.Rest = s.rest(f.Rest)
		}
	}
	return f
}

func (r *Reader) decodeEnd() *End {
	s, e := &r.s, new(End)
	for s.begin('{'); s.field(); {
		switch string(s.key) {
		case "type":
			s.raw()
		case "files":
			e.Files = s.size()
		case "bytes":
			e.Bytes = s.size()
		case "problems":
			e.Problems = s.size()
		case "ok":
			e.OK, e.Kind = s.size(), EndOfResults
		case "partial":
			e.Partial = s.size()
		case "failed":
			e.Failed = s.size()
		case "skipped":
			e.Skipped = s.size()
		case "checked":
			e.Checked, e.Kind = s.size(), EndOfFindings
		case "differences":
			e.Differences = s.size()
		case "vms":
			e.VMs, e.Kind = s.size(), EndOfVMs
		case "clones":
			e.Clones, e.Kind = s.size(), EndOfClones
		default:
			e.Rest = s.rest(e.Rest)
		}
	}
	return e
}
