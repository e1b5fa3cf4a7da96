package formats

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"vmkit/formats/ondisk"
)

// OSSource opens files of this host, read-only. Names that come from an image are confined to the folder of the image
// that names them and to AllowDirs; symbolic links are followed as long as they end there. It is safe for concurrent
// use.
type OSSource struct {
	// AllowDirs are folders, besides the naming image's own, that companions may lie in.
	AllowDirs []string
	// Images, where set, is the one folder that every host file is looked up in, by its base name.
	Images string
	// ForceShare opens files that another process is writing to; otherwise they are an error.
	ForceShare bool

	mu   sync.Mutex
	open []*os.File
}

// Sparse is what the reader of a File may offer besides: where the holes of the host file are.
type Sparse interface {
	// Region tells whether off lies in a hole, which reads as zeros, and where the hole or the data ends. Where it
	// can't be told, all is data.
	Region(off int64) (hole bool, end int64)
}

// Open opens an image that the user named: a regular file or a block device.
func (s *OSSource) Open(name string) (*File, error) {
	if s.Images != "" {
		return s.inImages(name)
	}
	st, err := os.Stat(name)
	if err != nil {
		return nil, fileError(name, err)
	}
	if !st.Mode().IsRegular() && !isBlock(st) {
		return nil, fmt.Errorf("%s is %s, not a file or a block device", name, describe(st.Mode()))
	}
	h, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileError(name, err)
	}
	return s.keep(h, name)
}

// Companion opens a file that the image file of names.
func (s *OSSource) Companion(of *File, name string, role Role) (*File, error) {
	f, err := s.companion(of, name)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", roleNames[role], name, err)
	}
	return f, nil
}

var roleNames = map[Role]string{RoleTop: "image", RoleBacking: "backing file", RoleExtent: "extent file", RoleData: "data file"}

func (s *OSSource) companion(of *File, name string) (*File, error) {
	path, err := s.localName(name)
	if err != nil {
		return nil, err
	}
	if s.Images != "" {
		return s.inImages(path)
	}
	host, _ := of.Host(0)
	folder := filepath.Dir(host.Path)
	if !filepath.IsAbs(path) {
		path = filepath.Join(folder, path)
	}
	// An image that the user named by a symbolic link lies in two folders; what is beside either is beside it.
	folders := []string{folder}
	if real, err := filepath.EvalSymlinks(host.Path); err == nil {
		folders = append(folders, filepath.Dir(real))
	}
	return s.confined(path, append(folders, s.AllowDirs...))
}

// localName gives the path in a name that an image stores, which QEMU and its kin also use for URLs and the like.
func (s *OSSource) localName(name string) (string, error) {
	if rest, ok := strings.CutPrefix(name, "file:"); ok {
		name = strings.TrimPrefix(rest, "//")
	}
	if name == "" || strings.ContainsRune(name, 0) {
		return "", ondisk.Corrupt("image", "file name", -1, fmt.Sprintf("%q", name))
	}
	switch i := strings.IndexAny(name, ":/\\"); {
	case i < 1 || name[i] != ':':
	case i > 1:
		return "", fmt.Errorf("a name that begins with %q is not followed, only files are", name[:i+1])
	case s.Images == "": // C:\disk.vmdk
		return "", errors.New("a path of another system is not followed; gather the files in one folder and name it with --images")
	}
	return name, nil
}

// inImages opens a host file by its base name in the Images folder.
func (s *OSSource) inImages(name string) (*File, error) {
	f, err := s.confined(filepath.Join(s.Images, filepath.Base(name)), append([]string{s.Images}, s.AllowDirs...))
	if i := strings.LastIndexByte(name, '\\'); i >= 0 && errors.Is(err, fs.ErrNotExist) {
		return s.inImages(name[i+1:])
	}
	return f, err
}

// confined opens path when it lies, with all symbolic links followed, in one of the folders.
func (s *OSSource) confined(path string, folders []string) (*File, error) {
	// What lies outside is not even looked for: whether it is there is nobody's business.
	dir := resolve(filepath.Dir(path))
	if _, _, ok := under(dir, folders); !ok {
		return nil, outside(path, dir)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fileError(path, err)
	}
	folder, rel, ok := under(real, folders)
	if !ok {
		return nil, outside(path, filepath.Dir(real))
	}
	// The links were followed; should one appear in between, os.Root keeps it inside.
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, fileError(path, err)
	}
	defer root.Close()
	st, err := root.Stat(rel)
	if err != nil {
		return nil, fileError(path, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is %s, not a file", path, describe(st.Mode()))
	}
	h, err := root.OpenFile(rel, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileError(path, err)
	}
	return s.keep(h, path)
}

// resolve follows the symbolic links of a folder as far as it exists.
func resolve(dir string) string {
	real, err := filepath.EvalSymlinks(dir)
	if parent := filepath.Dir(dir); err != nil && parent != dir {
		return filepath.Join(resolve(parent), filepath.Base(dir))
	}
	if err != nil {
		return dir
	}
	return real
}

// under finds the folder that path, whose links are resolved, lies in or is.
func under(path string, folders []string) (folder, rel string, ok bool) {
	for _, f := range folders {
		real, err := filepath.EvalSymlinks(f)
		if err != nil {
			continue
		}
		if filepath.IsAbs(real) != filepath.IsAbs(path) {
			if real, err = filepath.Abs(real); err != nil {
				continue
			}
			if path, err = filepath.Abs(path); err != nil {
				continue
			}
		}
		if rel, err := filepath.Rel(real, path); err == nil && filepath.IsLocal(rel) {
			return real, rel, true
		}
	}
	return "", "", false
}

func outside(path, dir string) error {
	return fmt.Errorf("%s lies outside the image's folder; allow it with --allow-dir %s, or gather the files in one folder and name it with --images", path, dir)
}

// fileError says which file was looked for, once.
func fileError(path string, err error) error {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		err = e.Err
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is not there: %w", path, err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

func isBlock(st fs.FileInfo) bool {
	return st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
}

func describe(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a folder"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeCharDevice != 0:
		return "a character device"
	case m&fs.ModeDevice != 0:
		return "a block device"
	}
	return "no regular file"
}

// keep makes a File of an open one, which Close will close.
func (s *OSSource) keep(h *os.File, path string) (*File, error) {
	f, err := s.file(h, path)
	if err != nil {
		h.Close()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = append(s.open, h)
	return f, nil
}

func (s *OSSource) file(h *os.File, path string) (*File, error) {
	st, err := h.Stat()
	if err != nil {
		return nil, fileError(path, err)
	}
	f := &File{ReaderAt: osFile{h}, Path: path, Size: st.Size(), MTime: st.ModTime()}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("%s: the host tells no inode", path)
	}
	f.Key = fmt.Sprintf("%d:%d", sys.Dev, sys.Ino)
	switch {
	case st.Mode().IsRegular():
	case isBlock(st):
		f.Key = fmt.Sprintf("block:%d", sys.Rdev)
		if f.Size, err = h.Seek(0, io.SeekEnd); err != nil {
			return nil, fileError(path, err)
		}
	default: // it was replaced while it was opened
		return nil, fmt.Errorf("%s is %s, not a file", path, describe(st.Mode()))
	}
	f.InUse = WriterHolds(h)
	if f.InUse && !s.ForceShare {
		return nil, fmt.Errorf("%s is in use: another process has it open for writing; freeze the machine or shut it down, or read it as it is with --force-share", path)
	}
	if lock := VMwareLock(path); lock != "" {
		f.Notes = append(f.Notes, fmt.Sprintf("%s is there: VMware may have %s open", lock, filepath.Base(path)))
	}
	return f, nil
}

// Close closes every file that was opened.
func (s *OSSource) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, h := range s.open {
		errs = append(errs, h.Close())
	}
	s.open = nil
	return errors.Join(errs...)
}

// osFile is a File's reader.
type osFile struct{ *os.File }

// Region implements Sparse.
func (f osFile) Region(off int64) (hole bool, end int64) { return Region(f.File, off) }

// Region tells by SEEK_DATA and SEEK_HOLE what [Sparse] tells. It moves the file's position.
func Region(f *os.File, off int64) (hole bool, end int64) {
	data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // a hole up to the end of the file
		return true, maxOffset
	case err != nil:
		return false, maxOffset
	case data > off:
		return true, data
	}
	if end, err = unix.Seek(int(f.Fd()), off, unix.SEEK_HOLE); err != nil || end <= off {
		return false, maxOffset
	}
	return false, end
}

const maxOffset = 1<<63 - 1
