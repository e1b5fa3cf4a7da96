package ext4

import (
	"bytes"
	"testing"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/fsmaptest"
)

// FuzzOpen opens and walks hostile volumes.
func FuzzOpen(f *testing.F) {
	fsmaptest.Fuzz(f, Driver, loaded(f, "ext4-tiny", "ext4"), loaded(f, "ext4-tiny", "ext2"))
}

// FuzzJournal replays hostile journals.
func FuzzJournal(f *testing.F) {
	b := loaded(f, "ext4-tiny", "journal")
	v := &fsys{size: int64(len(b))}
	var err error
	if v.geometry, _, _, err = primary(bytes.NewReader(b), v.size); err != nil {
		f.Fatal(err)
	}
	v.attach(bytes.NewReader(b))
	j, err := v.openJournal()
	if err != nil {
		f.Fatal(err)
	}
	fsmaptest.FuzzPart(f, Driver, b, int(j.off), 24<<10)
}

// FuzzFastCommit replays hostile records of fast commits.
func FuzzFastCommit(f *testing.F) {
	volume := loaded(f, "ext4-journal", "fast")
	sound := &fsys{size: int64(len(volume))}
	var err error
	if sound.geometry, _, _, err = primary(bytes.NewReader(volume), sound.size); err != nil {
		f.Fatal(err)
	}
	sound.attach(bytes.NewReader(volume))
	log, err := sound.openJournal()
	if err != nil {
		f.Fatal(err)
	}
	area, err := log.read(log.last + 1)
	if err != nil {
		f.Fatal(err)
	}
	bs := int(sound.blockSize)
	for at := int(area); le.Uint16(volume[at:]) != 0; at += bs {
		f.Add(volume[at : at+bs])
	}
	f.Fuzz(func(t *testing.T, records []byte) {
		v := &fsys{geometry: sound.geometry, size: sound.size}
		v.attach(bytes.NewReader(volume))
		var tags []fastTag
		for b := records; len(b) >= fcTagLen; {
			tag, n := le.Uint16(b), int(le.Uint16(b[2:]))
			if b = b[fcTagLen:]; n > len(b) || !v.fastOK(tag, n) {
				break
			}
			tags, b = append(tags, fastTag{tag, b[:n]}), b[n:]
		}
		v.fastReplay(tags)
		for _, ino := range []uint32{inoRoot, 12, 13} {
			v.names(ino, func(e fsmap.Entry) {
				var n fsmap.Node
				n.Reset()
				if v.Node(e, &n) != nil {
					return
				}
				var r fsmap.Runs
				r.Reset(n.Size)
				v.Runs(&n, nil, &r)
				at := int64(0)
				for _, x := range r.List {
					if x.At != at || x.Kind == 1 && !ondisk.Within(x.Off, x.Len, v.size) {
						t.Fatalf("run %+v behind %d", x, at)
					}
					at += x.Len
				}
			})
		}
	})
}
