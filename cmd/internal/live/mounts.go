package live

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

// mount is a line of /proc/self/mountinfo.
type mount struct {
	id     int
	dev    string // "8:1"
	root   string // path in the file system that is mounted
	point  string
	fs     string
	source string
	ro     bool // the file system, not only the mount
}

// anonymous tells whether the device number stands for no block device.
func (m *mount) anonymous() bool { return strings.HasPrefix(m.dev, "0:") }

// onDisk tells whether the file system lies on block devices.
func (m *mount) onDisk() bool { return !m.anonymous() || m.fs == "btrfs" }

func readMounts() ([]mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<20))
	if err != nil {
		return nil, err
	}
	return parseMounts(string(b))
}

// parseMounts reads mountinfo; see proc(5).
func parseMounts(text string) ([]mount, error) {
	var list []mount
	for line := range strings.Lines(text) {
		head, tail, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		f, g := strings.Split(head, " "), strings.Split(tail, " ")
		if !ok || len(f) < 6 || len(g) < 3 {
			return nil, fmt.Errorf("mountinfo: a line of another form: %q", line)
		}
		id, err := strconv.Atoi(f[0])
		if err != nil {
			return nil, fmt.Errorf("mountinfo: %q is no number of a mount", f[0])
		}
		list = append(list, mount{id: id, dev: f[2], root: unescape(f[3]), point: unescape(f[4]), fs: g[0], source: unescape(g[1]), ro: g[2] == "ro" || strings.HasPrefix(g[2], "ro,")})
	}
	return list, nil
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b = append(b, byte(n))
				i += 3
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

// system is a file system that is mounted, and what of it is asked for.
type system struct {
	mounts []mount // of it, one that can be seen first
	paths  []string
}

// find gives the file systems on disks that paths lie on and that are mounted below them, in the order in which they
// are met, with the paths inside them. What lies on no disk is passed over, unless it was asked for itself.
func find(all []mount, paths []string, holds func(path string) (int, error)) ([]*system, error) {
	var list []*system
	byDev := map[string]*system{}
	add := func(m mount, path string) {
		s := byDev[m.dev]
		if s == nil {
			s = &system{mounts: []mount{m}}
			for _, o := range all {
				if o.dev == m.dev && o.id != m.id {
					s.mounts = append(s.mounts, o)
				}
			}
			byDev[m.dev] = s
			list = append(list, s)
		}
		s.paths = append(s.paths, path)
	}
	for _, path := range paths {
		id, err := holds(path)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(all, func(m mount) bool { return m.id == id })
		if i < 0 {
			return nil, fmt.Errorf("%s: its mount is not among those of this process", path)
		}
		m := all[i]
		if m.onDisk() {
			rest, err := filepath.Rel(m.point, path)
			if err != nil || rest == ".." || strings.HasPrefix(rest, "../") {
				return nil, fmt.Errorf("%s: it doesn't lie below its mount, %s", path, m.point)
			}
			add(m, filepath.Join(m.root, rest))
		}
		below := false
		for _, o := range all {
			if o.id == m.id || !o.onDisk() || !under(o.point, path) {
				continue
			}
			if id, err := holds(o.point); err != nil || id != o.id {
				continue // another mount hides it
			}
			below = true
			add(o, o.root)
		}
		if !m.onDisk() && !below {
			return nil, fmt.Errorf("%s lies on no disk: it is on %s", path, m.fs)
		}
	}
	return list, nil
}

// under tells whether path is dir or lies below it.
func under(path, dir string) bool {
	return dir == "/" || path == dir || strings.HasPrefix(path, dir+"/")
}

// mountOf gives the number of the mount that a path lies on.
func mountOf(path string) (int, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, fmt.Errorf("%s: the kernel tells no mounts by number: Linux 5.8 or later is needed", path)
	}
	return int(st.Mnt_id), nil
}

// patterns selects the paths that were asked for.
func (s *system) patterns() (*mapfile.Patterns, error) {
	p, err := mapfile.ParsePatterns(literals(s.paths))
	return &p, err
}

// literals makes patterns that match the paths themselves.
func literals(paths []string) []string {
	var texts []string
	for _, p := range paths {
		texts = append(texts, strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(p))
	}
	return texts
}

// open gives a descriptor of the file system's root. Nothing that is mounted on it hides anything, and reading through
// it changes no times. It is the caller's to close.
func (s *system) open() (int, error) {
	var errs []error
	attrs := unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOATIME | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC
	for i := range s.mounts {
		m := &s.mounts[i]
		if m.root != "/" {
			continue
		}
		if id, err := mountOf(m.point); err != nil || id != m.id {
			errs = append(errs, fmt.Errorf("%s: another mount lies on it", m.point))
			continue
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.point, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: open_tree: %w", m.point, err))
			continue
		}
		// Linux before 5.12 has no mount_setattr; files are then still opened without changing their times.
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: uint64(attrs), Attr_clr: unix.MOUNT_ATTR__ATIME})
		if err != nil && !errors.Is(err, unix.ENOSYS) {
			unix.Close(fd)
			return -1, fmt.Errorf("%s: mount_setattr: %w", m.point, err)
		}
		return fd, nil
	}
	if m := &s.mounts[0]; m.fs == "btrfs" {
		return openTop(m, attrs)
	}
	if errs == nil {
		errs = append(errs, fmt.Errorf("only folders of it are mounted, at %s", s.mounts[0].point))
	}
	return -1, errors.Join(errs...)
}

// openTop mounts the top of a btrfs, of which only subvolumes are mounted, where nobody else sees it.
func openTop(m *mount, attrs int) (int, error) {
	fs, err := unix.Fsopen("btrfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	if m.ro {
		err = unix.FsconfigSetFlag(fs, "ro")
	}
	for _, set := range [][2]string{{"source", m.source}, {"subvolid", "5"}} {
		if err == nil {
			err = unix.FsconfigSetString(fs, set[0], set[1])
		}
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return -1, fmt.Errorf("mounting the top of %s: %w", m.source, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", err)
	}
	return fd, nil
}

func devName(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }
