package extract

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

const (
	aclDefault = "system.posix_acl_default" // what files in a folder inherit: set when they are there
	capability = "security.capability"      // as good as a set-id bit
	setID      = unix.S_ISUID | unix.S_ISGID
)

// mode gives which bits of a mode are set on a copy.
func (d *dirSink) mode(mode int64) uint32 {
	m := uint32(mode) & 0o7777
	if !d.Special {
		m &^= setID
	}
	return m
}

// asMade tells whether a file that is made with mode m has it, so that nothing is left to set.
func (d *dirSink) asMade(m uint32, f *mapfile.File, in *folder) bool {
	return m&^0o777 == 0 && m&d.umask == 0 && len(f.Xattrs) == 0 && !in.acl
}

// restore sets on fd, a file in the folder in or that folder itself, what the map says of it, and notes in res what was
// set. What the host doesn't take it returns as a remark.
func (d *dirSink) restore(in *folder, fd int, f *mapfile.File, res *mapfile.Result) string {
	var notes []string
	isDir := f.Kind == mapfile.Directory
	if d.Owner && f.UID != mapfile.None {
		if err := chown(f, func(uid, gid int) error { return unix.Fchown(fd, uid, gid) }); err != nil {
			notes = append(notes, fmt.Sprintf("owner %d:%d not set: %v", f.UID, f.GID, err))
		} else {
			res.UID, res.GID = f.UID, f.GID
		}
	}
	for _, x := range f.Xattrs {
		switch {
		case x.Name == capability && !d.Special:
			notes = append(notes, "file capabilities left out (--special sets them)")
			continue
		case x.Name == aclDefault:
			continue
		}
		if err := unix.Fsetxattr(fd, x.Name, x.Value, 0); err != nil {
			notes = append(notes, fmt.Sprintf("xattr %s not set: %v", x.Name, err))
		} else {
			res.Xattrs = append(res.Xattrs, x)
		}
	}
	if f.Mode != mapfile.None {
		m := d.mode(f.Mode)
		if f.Mode&setID != 0 && !d.Special {
			notes = append(notes, "set-id bits left out (--special sets them)")
		}
		if res.Mode = int64(m); !isDir && !d.asMade(m, f, in) {
			if err := unix.Fchmod(fd, m); err != nil {
				notes = append(notes, fmt.Sprintf("mode %04o not set: %v", m, err))
				res.Mode = mapfile.None
			}
		}
	}
	if f.MTime.Known {
		if res.MTime = f.MTime; !isDir {
			if err := setTimes(fd, "", f); err != nil {
				notes = append(notes, fmt.Sprintf("time not set: %v", err))
				res.MTime = mapfile.Time{}
			} else if f.MTime.Sec < 0 || f.MTime.Sec > math.MaxInt32 {
				notes = append(notes, d.taken(fd, "", res)...)
			}
		}
	}
	return strings.Join(notes, "; ")
}

// restoreAt is restore for what can't be opened: symlinks and nodes.
func (d *dirSink) restoreAt(it *item) string {
	var notes []string
	dir, f, res := it.folder.fd, &it.file, &it.res
	if d.Owner && f.UID != mapfile.None {
		if err := chown(f, func(uid, gid int) error { return unix.Fchownat(dir, it.name, uid, gid, unix.AT_SYMLINK_NOFOLLOW) }); err != nil {
			notes = append(notes, fmt.Sprintf("owner %d:%d not set: %v", f.UID, f.GID, err))
		} else {
			res.UID, res.GID = f.UID, f.GID
		}
	}
	for _, x := range f.Xattrs {
		if err := unix.Lsetxattr("/proc/self/fd/"+strconv.Itoa(dir)+"/"+it.name, x.Name, x.Value, 0); err != nil {
			notes = append(notes, fmt.Sprintf("xattr %s not set: %v", x.Name, err))
		} else {
			res.Xattrs = append(res.Xattrs, x)
		}
	}
	if f.Mode != mapfile.None && f.Kind != mapfile.Symlink {
		m := d.mode(f.Mode)
		if err := unix.Fchmodat(dir, it.name, m, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			notes = append(notes, fmt.Sprintf("mode %04o not set: %v", m, err))
		} else {
			res.Mode = int64(m)
		}
	}
	if f.MTime.Known {
		if err := setTimes(dir, it.name, f); err != nil {
			notes = append(notes, fmt.Sprintf("time not set: %v", err))
		} else {
			res.MTime = f.MTime
			if f.MTime.Sec < 0 || f.MTime.Sec > math.MaxInt32 {
				notes = append(notes, d.taken(dir, it.name, res)...)
			}
		}
	}
	return strings.Join(notes, "; ")
}

// chown sets the owner with set, unless an id is one that the host doesn't have.
func chown(f *mapfile.File, set func(uid, gid int) error) error {
	gid := f.GID
	if gid == mapfile.None {
		gid = f.UID
	}
	if f.UID >= math.MaxUint32 || gid >= math.MaxUint32 { // the highest one stands for "leave as it is"
		return errors.New("no such id on this host")
	}
	return set(int(f.UID), int(gid))
}

// setTimes sets the times of what fd is open on, or of name in that folder.
func setTimes(fd int, name string, f *mapfile.File) error {
	spec := func(t mapfile.Time) unix.Timespec {
		if !t.Known {
			return unix.Timespec{Nsec: unix.UTIME_OMIT}
		}
		return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}
	}
	ts := [2]unix.Timespec{spec(f.ATime), spec(f.MTime)}
	if name == "" {
		err := unix.UtimesNanoAt(fd, "", ts[:], unix.AT_EMPTY_PATH)
		if err == unix.EINVAL || err == unix.ENOENT { // before Linux 5.8
			err = unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), ts[:], 0)
		}
		return err
	}
	return unix.UtimesNanoAt(fd, name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

// taken asks the host which time it set: file systems can't keep every one.
func (d *dirSink) taken(fd int, name string, res *mapfile.Result) []string {
	var st unix.Stat_t
	var err error
	if name == "" {
		err = unix.Fstat(fd, &st)
	} else {
		err = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	got := mapfile.Time{Sec: st.Mtim.Sec, Nsec: int32(st.Mtim.Nsec), Known: true}
	if err != nil || got == res.MTime {
		return nil
	}
	note := fmt.Sprintf("time %s is beyond this file system", res.MTime)
	res.MTime = got
	return []string{note}
}

// umask reads the process's file mode creation mask, without changing it for a moment as umask(2) would.
func umask() uint32 {
	b, err := os.ReadFile("/proc/self/status")
	if err == nil {
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "Umask:"); ok {
				if m, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32); err == nil {
					return uint32(m)
				}
			}
		}
	}
	return 0o7777 // every bit is set again
}
