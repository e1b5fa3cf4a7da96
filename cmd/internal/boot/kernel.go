package boot

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// kernel is a kernel image and the folder of its modules.
type kernel struct {
	image   string
	modules string
}

// chooseKernel takes the kernel that is named, or the host's newest that has its modules.
func chooseKernel(image, modules string) (*kernel, error) {
	if image == "" {
		if modules != "" {
			return nil, errors.New("--modules without --kernel")
		}
		return hostKernel("/boot", "/lib/modules")
	}
	k := &kernel{image, modules}
	if modules == "" {
		var err error
		if k.modules, err = modulesOf(image, "/lib/modules"); err != nil {
			return nil, err
		}
	}
	return k, k.readable()
}

// hostKernel takes the newest kernel in boot.
func hostKernel(boot, modules string) (*kernel, error) {
	images, err := filepath.Glob(filepath.Join(boot, "vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	slices.SortFunc(images, func(a, b string) int { return compareVersions(b, a) })
	var first error
	for _, image := range images {
		dir, err := modulesOf(image, modules)
		if err == nil {
			k := &kernel{image, dir}
			if err = k.readable(); err == nil {
				return k, nil
			}
		}
		first = cmp.Or(first, err)
	}
	if first != nil {
		return nil, first
	}
	return nil, fmt.Errorf("no kernel in %s: name one with --kernel (and its /lib/modules/VERSION with --modules)", boot)
}

// readable checks that the kernel can be read. Some distributions let only root do so.
func (k *kernel) readable() error {
	f, err := os.Open(k.image)
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("the kernel %s can be read by root only: name a copy that you may read with --kernel", k.image)
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// modulesOf finds the modules of a kernel that is called vmlinuz-VERSION: beside its own folder, as in a package that
// was unpacked, or in lib.
func modulesOf(image, lib string) (string, error) {
	_, version, ok := strings.Cut(filepath.Base(image), "-")
	if !ok {
		return "", fmt.Errorf("%s is not called vmlinuz-VERSION: name its modules with --modules", image)
	}
	for _, dir := range []string{filepath.Join(filepath.Dir(image), "../lib/modules", version), filepath.Join(lib, version)} {
		if st, err := os.Stat(filepath.Join(dir, "kernel")); err == nil && st.IsDir() {
			return dir, nil
		}
	}
	return "", fmt.Errorf("the modules of %s are not in %s: name them with --modules", image, filepath.Join(lib, version))
}

// compareVersions orders texts by the numbers and words in them.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		x, y := leading(a), leading(b)
		n, e1 := strconv.ParseUint(x, 10, 64)
		m, e2 := strconv.ParseUint(y, 10, 64)
		c := strings.Compare(x, y)
		if e1 == nil && e2 == nil {
			c = cmp.Compare(n, m)
		}
		if c != 0 {
			return c
		}
		a, b = a[len(x):], b[len(y):]
	}
	return cmp.Compare(len(a), len(b))
}

// leading gives the digits, or what is none, that s begins with.
func leading(s string) string {
	digit := func(c byte) bool { return c >= '0' && c <= '9' }
	i := 1
	for i < len(s) && digit(s[i]) == digit(s[0]) {
		i++
	}
	return s[:i]
}

// module is a kernel module, ready to be loaded.
type module struct {
	name string
	data []byte
}

// basic are the modules that every machine needs.
var basic = []string{"virtio_pci", "virtio_blk", "virtio_console", "dm_mod"}

// asked are the modules that a file system's driver asks user space for while it works, by the driver's name. Those that
// are built in, or that a kernel hasn't, are left out.
var asked = map[string][]string{
	"btrfs": {"crc32c_generic", "xxhash_generic", "blake2b_generic", "sha256_generic"},
	"exfat": {"nls_utf8"}, "ext4": {"crc32c_generic"}, "f2fs": {"crc32_generic", "crc32c_generic"}, "hfs": {"nls_utf8"},
	"hfsplus": {"nls_utf8"}, "isofs": {"nls_utf8"}, "jfs": {"nls_utf8"}, "nilfs2": {"crc32c_generic"}, "ntfs3": {"nls_utf8"},
	"udf": {"nls_utf8"}, "vfat": {"nls_cp437", "nls_ascii", "nls_iso8859-1"}, "xfs": {"crc32c_generic"},
}

// load gathers the modules of the given names with all that these depend on, each behind what it depends on. A name
// that there is no module for is passed over: it may be built in.
func (k *kernel) load(names []string) ([]module, error) {
	files := map[string]string{}
	err := filepath.WalkDir(k.modules, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			if name, _, ok := strings.Cut(e.Name(), ".ko"); ok {
				files[plain(name)] = path
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	var list []module
	done := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		name = plain(name)
		if path, ok := files[name]; ok && !done[name] {
			done[name] = true
			data, err := readModule(path)
			if err != nil {
				return fmt.Errorf("kernel module %s: %w", path, err)
			}
			depends, err := dependencies(data)
			if err != nil {
				return fmt.Errorf("kernel module %s: %w", path, err)
			}
			for _, d := range depends {
				if err := add(d); err != nil {
					return err
				}
			}
			list = append(list, module{name, data})
		}
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// plain writes a module's name as the kernel does.
func plain(name string) string { return strings.ReplaceAll(name, "-", "_") }

// maxModule bounds a module's size.
const maxModule = 64 << 20

// readModule reads a module, which may be compressed.
func readModule(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	switch filepath.Ext(path) {
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".zst":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(f); err == nil {
			defer z.Close()
			r = z
		}
	case ".xz":
		c := exec.Command("xz", "-dc")
		c.Stdin = f
		b, err := c.Output()
		if err != nil {
			return nil, fmt.Errorf("xz: %w", err)
		}
		r = bytes.NewReader(b)
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(b) > maxModule {
		err = fmt.Errorf("more than %d bytes", maxModule)
	}
	return b, err
}

// dependencies gives what a module says that has to be loaded before it.
func dependencies(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("it has no section .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	var list []string
	for field := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch key {
		case "depends":
			list = append(list, strings.FieldsFunc(value, func(r rune) bool { return r == ',' })...)
		case "softdep":
			if pre, ok := strings.CutPrefix(value, "pre:"); ok {
				pre, _, _ = strings.Cut(pre, "post:")
				list = append(list, strings.Fields(pre)...)
			}
		}
	}
	return list, nil
}
