package inuse

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// identity is what a file is, whatever its name.
type identity struct{ dev, ino, rdev uint64 }

// identify gives the identity of a file; for a device, whichever of its nodes it is, that of the device.
func identify(path string) (identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return identity{}, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		return identity{rdev: st.Rdev}, nil
	case unix.S_IFREG:
		return identity{dev: st.Dev, ino: st.Ino}, nil
	}
	return identity{}, errors.ErrUnsupported
}

// Writers finds the processes other than this one, and the loop devices, that have files of paths open for writing.
// unseen is how many processes could not be looked into, which only root can.
func Writers(paths []string) (writers []Holder, unseen int, err error) {
	files := map[identity]string{}
	for _, path := range paths {
		id, err := identify(path)
		if err == nil {
			files[id] = path
		}
	}
	if len(files) == 0 {
		return nil, 0, nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, 0, fmt.Errorf("the table of processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		found, err := writes(pid, files)
		if errors.Is(err, fs.ErrPermission) {
			unseen++
		}
		for path := range found {
			writers = append(writers, Holder{pid, program(pid), path})
		}
	}
	return append(writers, loops(files)...), unseen, nil
}

// writes finds which files a process may write to: those it has open, and those it has mapped and closed.
func writes(pid int, files map[identity]string) (map[string]bool, error) {
	found := map[string]bool{}
	proc := fmt.Sprintf("/proc/%d", pid)
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return nil, err
	}
	for _, fd := range fds {
		link := proc + "/fd/" + fd.Name()
		// Pipes and sockets need no further look, and other people's may be many.
		if to, err := os.Readlink(link); err != nil || !strings.HasPrefix(to, "/") {
			continue
		}
		id, err := identify(link)
		if err != nil {
			continue
		}
		if path, ok := files[id]; ok && openForWriting(proc+"/fdinfo/"+fd.Name()) {
			found[path] = true
		}
	}
	return found, mapped(proc+"/maps", files, found)
}

// openForWriting reads the flags line of an fdinfo.
func openForWriting(info string) bool {
	b, err := os.ReadFile(info)
	if err != nil {
		return false
	}
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte("flags:")); ok {
			flags, err := strconv.ParseUint(string(bytes.TrimSpace(v)), 8, 64)
			return err == nil && flags&unix.O_PATH == 0 && flags&unix.O_ACCMODE != unix.O_RDONLY
		}
	}
	return false
}

// mapped finds shared writable mappings: "7f…-7f… rw-s 00000000 fe:00 1234   /path".
func mapped(maps string, files map[identity]string, found map[string]bool) error {
	f, err := os.Open(maps)
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		if !strings.Contains(s.Text(), " rw-s ") && !strings.Contains(s.Text(), " rwxs ") {
			continue
		}
		fields := strings.Fields(s.Text())
		if len(fields) < 6 {
			continue
		}
		ino, err := strconv.ParseUint(fields[4], 10, 64)
		if err != nil || ino == 0 {
			continue
		}
		for id, path := range files {
			// btrfs shows another device here than stat does, but no other number.
			if id.ino == ino && (device(fields[3]) == id.dev || strings.HasSuffix(s.Text(), " "+path)) {
				found[path] = true
			}
		}
	}
	return s.Err()
}

// device reads a number like "fe:00".
func device(s string) uint64 {
	major, minor, _ := strings.Cut(s, ":")
	a, err1 := strconv.ParseUint(major, 16, 32)
	b, err2 := strconv.ParseUint(minor, 16, 32)
	if err1 != nil || err2 != nil {
		return 0
	}
	return unix.Mkdev(uint32(a), uint32(b))
}

// loops finds the loop devices that write to files: the kernel has those open, no process.
func loops(files map[identity]string) (holders []Holder) {
	names, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is sound
	for _, name := range names {
		backing, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		block := filepath.Dir(filepath.Dir(name))
		id, err := identify(strings.TrimSuffix(string(backing), "\n"))
		if err != nil {
			continue
		}
		if ro, err := os.ReadFile(block + "/ro"); err != nil || strings.TrimSpace(string(ro)) != "0" {
			continue
		}
		if path, ok := files[id]; ok {
			holders = append(holders, Holder{0, "the kernel, as /dev/" + filepath.Base(block) + ",", path})
		}
	}
	return holders
}
