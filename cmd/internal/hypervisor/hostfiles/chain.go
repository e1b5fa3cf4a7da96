// Package hostfiles is what drivers have in common about a machine's files on this host: the chains of its disks, the
// lock that keeps a machine off while it is copied, and copies of the small files that a running machine changes.
package hostfiles

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmkit/formats"
	"vmkit/formats/all"
	"vmkit/fsmap/mapfile"
)

// Anywhere allows a chain to be followed wherever it leads, as the hypervisor does that runs the machine.
var Anywhere = []string{"/"}

// Chain finds the files that a disk consists of: its image, extents, backing files. format is what the machine's
// configuration says, or empty. Names in the images are followed into the folders of allow, besides each image's own.
// notes say what is odd, and what is missing.
func Chain(path, format, disk string, allow []string) (files []mapfile.VMFile, notes []string, err error) {
	src := &formats.OSSource{AllowDirs: allow, ForceShare: true}
	defer src.Close()
	o := &formats.Opener{Formats: all.Formats, Source: src, AllowMissing: true, Format: format}
	if format != "" && !slices.ContainsFunc(all.Formats, func(f formats.Format) bool { return f.Name == format }) {
		// What vmkit can't read is one file for all it knows.
		st, err := os.Stat(path)
		if err != nil {
			return nil, nil, err
		}
		return []mapfile.VMFile{{Path: path, Role: mapfile.RoleDisk, Format: format, Disk: disk, Size: st.Size()}},
			[]string{fmt.Sprintf("%s is of the format %s, whose chain can't be followed", path, format)}, nil
	}
	img, err := o.Open(path)
	if err != nil {
		return nil, nil, friendly(err)
	}
	for _, p := range img.Problems {
		notes = append(notes, fmt.Sprintf("%s: %v", path, friendly(p)))
	}
	for i, f := range img.Files {
		v := mapfile.VMFile{Path: f.Path, Role: mapfile.RoleBacking, Disk: disk, Size: f.Size}
		if i == 0 {
			v = mapfile.VMFile{Path: path, Role: mapfile.RoleDisk, Format: img.Format, Disk: disk, Size: img.Size()}
		}
		if !slices.ContainsFunc(files, func(o mapfile.VMFile) bool { return o.Path == v.Path }) {
			files = append(files, v)
		}
	}
	return files, notes, nil
}

// friendly takes the mention of options that only vmmap has out of an error.
func friendly(err error) error {
	text := err.Error()
	if i := strings.Index(text, "; allow it with --allow-dir"); i >= 0 {
		return errors.New(text[:i] + "; name it, too: files:IMAGE,OTHER")
	}
	return err
}

// Paths gives the paths of those files of a machine that roles names; none names all.
func Paths(vm *mapfile.VM, roles ...string) (paths []string) {
	for _, f := range vm.Files {
		if len(roles) == 0 || slices.Contains(roles, f.Role) {
			paths = append(paths, f.Path)
		}
	}
	return paths
}

// Add appends a file of a role to a machine's, if it exists and isn't there yet, and tells whether it exists.
func Add(vm *mapfile.VM, path, role string) bool {
	st, err := os.Stat(path)
	if err != nil || st.IsDir() {
		return false
	}
	if !slices.Contains(Paths(vm), path) {
		vm.Files = append(vm.Files, mapfile.VMFile{Path: path, Role: role, Size: st.Size()})
	}
	return true
}

// AddDisk appends a disk with its chain to a machine's files, and what there is to say of it to its notes. A file that
// is there already, as a layer that two disks share, is not added again.
func AddDisk(vm *mapfile.VM, path, format, disk string, allow []string) error {
	files, notes, err := Chain(path, format, disk, allow)
	if err != nil {
		return err
	}
	Merge(vm, files)
	vm.Notes = append(vm.Notes, notes...)
	return nil
}

// Merge appends files to a machine's that it hasn't yet.
func Merge(vm *mapfile.VM, files []mapfile.VMFile) {
	for _, f := range files {
		if i := slices.IndexFunc(vm.Files, func(o mapfile.VMFile) bool { return o.Path == f.Path }); i < 0 {
			vm.Files = append(vm.Files, f)
		} else if f.Role == mapfile.RoleDisk && vm.Files[i].Role == mapfile.RoleBacking {
			vm.Files[i] = f // one of a machine's disks may well stand on another
		}
	}
}

// WorkDir gives the folder in which a driver may keep files: the one that was asked for, or that of the first disk.
func WorkDir(vm *mapfile.VM, work string) string {
	if work != "" {
		return work
	}
	for _, f := range vm.Files {
		if st, err := os.Stat(f.Path); f.Role == mapfile.RoleDisk && err == nil && st.Mode().IsRegular() {
			return filepath.Dir(f.Path)
		}
	}
	return os.TempDir()
}
