package clone

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"vmkit/fsmap/mapfile"
)

// maxName is how long a name may be on the file systems of Linux, in bytes.
const maxName = 255

// The files of a clone that vmclone makes besides the machine's own.
const (
	sumsName = "SHA256SUMS"
	runName  = "run.sh"

	roleSums    = "sums"
	roleCommand = "command"
)

// DefaultName is what a clone is called: the machine's name and the instant that its files show.
func DefaultName(vm *mapfile.VM, now time.Time) string {
	if vm.FrozenAt != nil {
		now = *vm.FrozenAt
	}
	return fit(vm.Name, now.UTC().Format("-20060102T150405Z"))
}

// fit makes a file's name of a text and an ending that is kept.
func fit(text, end string) string {
	text = strings.Map(func(r rune) rune {
		if r == '/' || r == 0 {
			return '_'
		}
		return r
	}, text)
	for len(text)+len(end) > maxName {
		_, n := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-n]
	}
	// A name with a dot in front is hidden, or stands for a folder.
	if text+end == "" || strings.HasPrefix(text+end, ".") {
		return fit("_"+strings.TrimLeft(text, "."), end)
	}
	return text + end
}

// CheckName tells whether a name that the user gave can be a folder's.
func CheckName(name string) error {
	if fit(name, "") != name {
		return fmt.Errorf("%q can't be the name of a clone: no slash, no dot in front, at most %d bytes", name, maxName)
	}
	return nil
}

// names gives names to the files of a clone.
type names struct {
	stems []string // what the names of the machine's files begin with
	stem  string   // what takes its place; empty: they keep their names
	taken []string // in lower case: the clone may be moved to where case doesn't count
}

// newNames is for a machine that gets a new name, or keeps its own where to is "".
func newNames(vm *mapfile.VM, to string) *names {
	n := &names{stem: to, taken: []string{RecordName, strings.ToLower(sumsName), runName}}
	if to == "" {
		return n
	}
	n.stems = append(n.stems, fit(vm.Name, ""))
	for _, f := range vm.Files {
		if f.Role == mapfile.RoleConfig {
			base := filepath.Base(f.Path)
			n.stems = append(n.stems, strings.TrimSuffix(base, path.Ext(base)))
		}
	}
	// The longest that fits is what is replaced.
	slices.SortStableFunc(n.stems, func(a, b string) int { return len(b) - len(a) })
	return n
}

// name gives the name in the clone of the file at path; no two files get the same.
func (n *names) name(f mapfile.VMFile) string {
	base := n.rename(filepath.Base(f.Path))
	if strings.EqualFold(path.Ext(base), ".vmdk") {
		// Its descriptor can't hold these.
		base = strings.NewReplacer(`"`, "_", "\n", "_", "\r", "_").Replace(base)
	}
	ext := path.Ext(base)
	stem := strings.TrimSuffix(base, ext)
	for i := 1; ; i++ {
		if i > 1 {
			base = fit(stem, fmt.Sprintf("-%d%s", i, ext))
		}
		if lower := strings.ToLower(base); !slices.Contains(n.taken, lower) {
			n.taken = append(n.taken, lower)
			return base
		}
	}
}

// rename replaces the machine's name at the beginning of a file's. "Virtual 01" is not the beginning of
// "Virtual 011.vmdk".
func (n *names) rename(base string) string {
	for _, stem := range n.stems {
		rest, ok := strings.CutPrefix(base, stem)
		if next, _ := utf8.DecodeRuneInString(rest); ok && (rest == "" || !unicode.IsLetter(next) && !unicode.IsDigit(next)) {
			return fit(n.stem, rest)
		}
	}
	return base
}

// lastName gives the last part of a path in the manner of any system.
func lastName(name string) string { return path.Base(strings.ReplaceAll(name, `\`, "/")) }
