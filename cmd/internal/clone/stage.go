package clone

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// RecordName is the file of a clone that holds its record, as vmclone writes it to stdout: it says that vmclone made
// the folder, and vmmap reads it.
const RecordName = "clone.json"

// tempPrefix begins the names of the folders in which clones are built.
const tempPrefix = ".vmclone-"

// stage is a clone that is being built. Its record's file is locked until it is whole, or given up.
type stage struct {
	dir, name string
	temp      string // path of its folder
	record    *os.File
}

// stageTries bounds how often a folder is made anew that another run took for one left over.
const stageTries = 20

// newStage begins a clone called name in dir, which is made if it isn't there. What a killed run left of the same clone
// is removed.
func newStage(dir, name string) (*stage, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(name))
	s := &stage{dir: dir, name: name, temp: filepath.Join(dir, tempPrefix+hex.EncodeToString(sum[:8]))}
	if _, err := os.Lstat(s.final()); err == nil {
		return nil, fmt.Errorf("%s: %w; nothing is ever overwritten: give another --name", s.final(), fs.ErrExist)
	}
	if err := sweepFolder(s.temp); err != nil {
		return nil, err
	}
	for range stageTries {
		if err := os.Mkdir(s.temp, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		f, err := os.OpenFile(s.path(RecordName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		switch {
		case errors.Is(err, fs.ErrExist):
			return nil, fmt.Errorf("%s: another vmclone is just making it", s.final())
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && still(f, s.path(RecordName)) {
			s.record = f
			return s, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			removeFolder(s.temp)
			return nil, fmt.Errorf("%s: lock: %w", s.temp, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, fmt.Errorf("%s: other runs keep removing it", s.temp)
}

// final is the path that the clone will have.
func (s *stage) final() string { return filepath.Join(s.dir, s.name) }

// path is where a file of the clone lies while it is being built.
func (s *stage) path(name string) string { return filepath.Join(s.temp, name) }

// commit writes the record and gives the clone its name. All other files are on the disk already.
func (s *stage) commit(record []byte) error {
	_, err := s.record.Write(record)
	err = errors.Join(err, s.record.Sync(), s.open(), syncDir(s.temp))
	if err == nil {
		err = renameNew(s.temp, s.final())
	}
	if err != nil {
		s.discard()
		return err
	}
	s.record.Close()
	return syncDir(s.dir)
}

// open makes the folder, which was its owner's only, what the umask says.
func (s *stage) open() error {
	st, err := s.record.Stat()
	if err != nil {
		return err
	}
	mode := st.Mode().Perm() // 0666 without the umask
	return os.Chmod(s.temp, mode|mode>>2&0o111)
}

// discard removes what was built.
func (s *stage) discard() {
	removeFolder(s.temp)
	s.record.Close()
}

// renameNew renames a folder to what must not exist.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS): // a file system that lacks this kind of rename
		if _, err := os.Lstat(to); err == nil {
			return fmt.Errorf("%s: %w", to, fs.ErrExist)
		}
		return os.Rename(from, to) // which replaces an empty folder at most
	case err != nil:
		return fmt.Errorf("%s: %w", to, err)
	}
	return nil
}

// Sweep removes the clones that killed runs left half-built in dir. It may take its time, which no machine should have
// to wait for.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if len(e.Name()) == len(tempPrefix)+16 && e.Name()[:len(tempPrefix)] == tempPrefix && e.IsDir() {
			if err := sweepFolder(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepFolder removes a folder in which a clone was being built, if no run does that any more.
func sweepFolder(path string) error {
	f, err := os.OpenFile(filepath.Join(path, RecordName), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		os.Remove(path) // which another run may just have made: it tries again
		return nil
	}
	if err != nil {
		return nil // not ours
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil || !still(f, f.Name()) {
		return nil
	}
	return removeFolder(path)
}

// removeFolder removes a folder of files, the record last: without it nobody would know what the folder is. Another run
// may be doing the same.
func removeFolder(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		if e.Name() != RecordName {
			names = append(names, e.Name())
		}
	}
	for _, name := range append(names, RecordName, "") {
		if err := os.Remove(filepath.Join(path, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// still tells whether path is the file f.
func still(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// syncDir makes what happened in a folder last.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
