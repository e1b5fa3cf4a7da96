package mapfile

import "testing"

// sampleFile is what most records of a Linux disk look like.
func sampleFile() *File {
	return &File{Volume: 2, Path: "/usr/share/doc/libc6/changelog.Debian.gz", Inode: 262147, Kind: Regular, Size: 17230,
		Mode: 0o644, UID: 0, GID: 0, Links: 1,
		MTime: Time{1763801999, 123456789, true}, ATime: Time{1763801999, 0, true},
		CTime: Time{1763801999, 5, true}, BTime: Time{1763801999, 120000000, true},
		Extents: []Extent{{At: 0, Len: 17230, Kind: Data, Disk: 6442452992, Image: None, File: 0, Off: 91234304}}}
}

func BenchmarkAppendFile(b *testing.B) {
	f, buf := sampleFile(), make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = AppendFile(buf[:0], f)
	}
}

func BenchmarkAppendManyExtents(b *testing.B) {
	f := sampleFile()
	f.Extents = nil
	for i := range int64(8192) {
		f.Extents = append(f.Extents, Extent{At: i * 4096, Len: 4096, Kind: Data, Disk: 6442452992 + i*8192, Image: None, Off: 91234304 + i*8192})
	}
	f.Size = 8192 * 4096
	buf := make([]byte, 0, 2<<20)
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = AppendFile(buf[:0], f)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/8192, "ns/extent")
}
