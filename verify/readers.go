package verify

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	diskext4 "github.com/diskfs/go-diskfs/filesystem/ext4"
	"github.com/diskfs/go-diskfs/filesystem/fat12"
	"github.com/diskfs/go-diskfs/filesystem/fat16"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"github.com/diskfs/go-diskfs/filesystem/squashfs"
	"github.com/lima-vm/go-qcow2reader"
	"github.com/masahiro331/go-ext4-filesystem/ext4"
	"github.com/masahiro331/go-xfs-filesystem/xfs"
	"www.velocidex.com/golang/go-ntfs/parser"
)

// The second readers, as findings name them.
const (
	goExt4   = "go-ext4-filesystem"
	goXFS    = "go-xfs-filesystem"
	goNTFS   = "go-ntfs"
	goDiskfs = "go-diskfs"
	goQcow2  = "go-qcow2reader"
)

// readersOf tells which libraries read a file system.
func readersOf(fs string) []string {
	switch fs {
	case "ext2", "ext3":
		return []string{goExt4}
	case "ext4":
		return []string{goExt4, goDiskfs}
	case "xfs":
		return []string{goXFS}
	case "ntfs":
		return []string{goNTFS}
	case "vfat", "iso9660", "squashfs":
		return []string{goDiskfs}
	}
	return nil
}

// guest is a file system as another library reads it. Paths have no slash at their ends; the top is "".
type guest interface {
	list(dir string) ([]guestEntry, error)
	open(path, id string) (io.ReadCloser, error)
	target(path string) (string, error)
}

type guestEntry struct {
	name string
	mode fs.FileMode
	size int64
	id   string // the library's own
}

var errNoTargets = errors.New("this library reads no symlinks")

// openDisk opens an image's virtual disk.
func openDisk(path, format string) (io.ReaderAt, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	switch format {
	case "raw":
		return f, nil
	case "qcow2":
		img, err := qcow2reader.Open(f)
		if err != nil {
			return nil, err
		}
		return img, img.Readable()
	}
	return nil, fmt.Errorf("no second reader for %s", format)
}

// openGuest opens a file system with a library.
func openGuest(reader, fsType string, disk io.ReaderAt, start, size int64) (guest, error) {
	section := io.NewSectionReader(disk, start, size)
	switch reader {
	case goExt4:
		g, err := ext4.NewFS(*section, nil)
		return ioGuest{g, false}, err
	case goXFS:
		g, err := xfs.NewFS(*section, nil)
		return ioGuest{g, false}, err
	case goNTFS:
		g, err := parser.GetNTFSContext(section, 0)
		return ntfsGuest{g}, err
	}
	store := file.New(&sectionFile{section}, true)
	switch fsType {
	case "ext4":
		g, err := diskext4.Read(store, size, 0, 512)
		return ioGuest{g, true}, err
	case "iso9660":
		g, err := iso9660.Read(store, size, 0, 2048)
		return ioGuest{g, true}, err
	case "squashfs":
		g, err := squashfs.Read(store, size, 0, 0)
		return ioGuest{g, true}, err
	}
	g32, err := fat32.Read(store, size, 0, 512)
	if err == nil && isFAT32(section) {
		return ioGuest{g32, true}, nil
	}
	if g, err := fat16.Read(store, size, 0, 512); err == nil {
		return ioGuest{g, true}, nil
	}
	g12, err := fat12.Read(store, size, 0, 512)
	return ioGuest{g12, true}, err
}

// isFAT32 looks for the mark that only FAT32 has: no sectors for a FAT of the old kind.
func isFAT32(r io.ReaderAt) bool {
	b := make([]byte, 2)
	_, err := r.ReadAt(b, 22)
	return err == nil && b[0] == 0 && b[1] == 0
}

// sectionFile makes a part of a disk the file that go-diskfs wants.
type sectionFile struct{ *io.SectionReader }

func (f *sectionFile) Stat() (fs.FileInfo, error) { return sectionInfo{f.SectionReader.Size()}, nil }
func (f *sectionFile) Close() error               { return nil }

type sectionInfo struct{ size int64 }

func (i sectionInfo) Name() string     { return "volume" }
func (i sectionInfo) Size() int64      { return i.size }
func (sectionInfo) Mode() fs.FileMode  { return 0o400 }
func (sectionInfo) ModTime() time.Time { return time.Time{} }
func (sectionInfo) IsDir() bool        { return false }
func (sectionInfo) Sys() any           { return nil }

// ioGuest is a library with the methods of io/fs.
type ioGuest struct {
	fs interface {
		fs.FS
		fs.ReadDirFS
	}
	dot bool // the top is "."
}

func (g ioGuest) list(dir string) ([]guestEntry, error) {
	if dir == "" {
		dir = "/"
		if g.dot {
			dir = "."
		}
	}
	entries, err := g.fs.ReadDir(dir)
	var list []guestEntry
	for _, e := range entries {
		if n := e.Name(); n == "" || n == "." || n == ".." {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return list, err
		}
		mode := info.Mode()
		if e.IsDir() {
			mode = fs.ModeDir // go-diskfs tells it of FAT here only
		}
		list = append(list, guestEntry{name: e.Name(), mode: mode, size: info.Size()})
	}
	return list, err
}

func (g ioGuest) open(path, _ string) (io.ReadCloser, error) { return g.fs.Open(path) }

func (g ioGuest) target(path string) (string, error) {
	l, ok := g.fs.(interface{ ReadLink(string) (string, error) })
	if !ok {
		return "", errNoTargets
	}
	return l.ReadLink(path)
}

// ntfsGuest is go-ntfs.
type ntfsGuest struct{ ctx *parser.NTFSContext }

func (g ntfsGuest) list(dir string) ([]guestEntry, error) {
	root, err := g.ctx.GetMFT(5)
	if err != nil {
		return nil, err
	}
	if dir != "" {
		if root, err = root.Open(g.ctx, dir); err != nil {
			return nil, err
		}
	}
	seen := map[string]bool{}
	var list []guestEntry
	for _, node := range root.Dir(g.ctx) {
		name, id := node.File().Name(), int64(node.MftReference())
		if node.File().NameType().Name == "DOS" || seen[name] || name == "." || dir == "" && id < firstUserFile {
			continue
		}
		seen[name] = true
		e := guestEntry{name: name}
		if entry, err := g.ctx.GetMFT(id); err == nil {
			for _, info := range parser.Stat(g.ctx, entry) {
				if info.IsDir {
					e.mode = fs.ModeDir
				} else if !strings.Contains(info.Name, ":") {
					e.size, e.id = info.Size, info.MFTId
				}
			}
		}
		list = append(list, e)
	}
	return list, nil
}

// firstUserFile is the number of the first MFT record that isn't reserved for NTFS's own files.
const firstUserFile = 24

func (g ntfsGuest) open(_, file string) (io.ReadCloser, error) {
	id, kind, attr, stream, err := parser.ParseMFTId(file)
	if err != nil {
		return nil, err
	}
	entry, err := g.ctx.GetMFT(id)
	if err != nil {
		return nil, err
	}
	if kind != 128 {
		return io.NopCloser(bytes.NewReader(nil)), nil // no data at all
	}
	r, err := parser.OpenStream(g.ctx, entry, uint64(kind), uint16(attr), stream)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(io.NewSectionReader(r, 0, parser.RangeSize(r))), nil
}

func (g ntfsGuest) target(string) (string, error) { return "", errNoTargets }
