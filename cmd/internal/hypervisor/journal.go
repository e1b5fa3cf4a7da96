package hypervisor

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

// Journal is what is known of one freeze: enough for any process to take it back at any time. Its file is replaced as
// a whole before each step, so that it is never half a journal.
type Journal struct {
	Version int         `json:"version"` // 1
	Tool    string      `json:"tool"`
	VM      *mapfile.VM `json:"vm"`
	Steps   []Step      `json:"steps"`
	Owner   Process     `json:"owner"`
	Guard   *Process    `json:"guard,omitempty"`
	Begun   time.Time   `json:"begun"`
	// Deadline is when the machine is let go whatever its reader does.
	Deadline *time.Time        `json:"deadline,omitempty"`
	Released *mapfile.Released `json:"released,omitempty"`
	// Ended says that nothing is left to take back.
	Ended bool `json:"ended"`

	path string
	wait chan error // a write that is under way
}

// keepJournals is how long the journals of freezes that ended are kept.
const keepJournals = 7 * 24 * time.Hour

// lockPatience is how long somebody else may hold a machine before that counts.
const lockPatience = time.Second

// JournalDir gives the folder of the journals, which outlives a reboot: $VMKIT_JOURNAL, /var/lib/vmkit/journal for
// root, $XDG_STATE_HOME/vmkit for others.
func JournalDir() (string, error) {
	if dir := os.Getenv("VMKIT_JOURNAL"); dir != "" {
		return filepath.Abs(dir)
	}
	if os.Geteuid() == 0 {
		return "/var/lib/vmkit/journal", nil
	}
	state := os.Getenv("XDG_STATE_HOME")
	if state == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("no place for the journal: %w; set XDG_STATE_HOME", err)
		}
		state = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(state, "vmkit"), nil
}

// Path is where the journal lies.
func (j *Journal) Path() string { return j.path }

// stands tells whether a step that holds the machine up is left.
func (j *Journal) stands() bool {
	return slices.ContainsFunc(j.Steps, func(s Step) bool { return s.Holds && s.State != "" && s.State != "undone" })
}

// write puts the journal where a crash of the host can't take it away any more.
func (j *Journal) write() error {
	if j.wait != nil {
		<-j.wait // whether it worked does not matter any more
		j.wait = nil
	}
	b, err := json.MarshalIndent(j, "", " ")
	if err != nil {
		return err
	}
	if err := writeDurably(j.path, append(b, '\n')); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

func writeDurably(path string, b []byte) error {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if e := f.Sync(); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// loadJournal reads a journal.
func loadJournal(path string) (*Journal, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	j := &Journal{path: path}
	if err := json.Unmarshal(b, j); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if j.Version != 1 || j.VM == nil {
		return nil, fmt.Errorf("%s: a journal of version %d, which this vmkit does not know", path, j.Version)
	}
	return j, nil
}

// ReadJournal tells what happened at the release of a machine, from the journal that its vm record names. It is nil
// as long as the release is not over.
func ReadJournal(path string) (*mapfile.Released, error) {
	j, err := loadJournal(path)
	if err != nil {
		return nil, err
	}
	if !j.Ended && (j.Released == nil || j.Released.Error == "") {
		return nil, nil
	}
	return j.Released, nil
}

// key gives the name that all journals of a machine begin with.
func key(vm *mapfile.VM) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r) {
			return r
		}
		return '_'
	}, vm.Name)
	sum := sha256.Sum256([]byte(vm.Target))
	return strings.TrimLeft(name[:min(len(name), 40)], ".") + "-" + hex.EncodeToString(sum[:6])
}

// lockMachine excludes all others that use the same folder of journals from the machine. The lock is that of the open
// file: whoever inherits it holds the lock too.
func lockMachine(dir string, vm *mapfile.VM) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	path := filepath.Join(dir, key(vm)+".lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	// A process that was killed gives its lock up a moment after it is gone for others.
	for until := time.Now().Add(lockPatience); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(until):
			continue
		}
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w: another vmfreeze holds it", vm.Target, ErrBusy)
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
}

// Journals gives the journals of a folder, the oldest first. What can't be read is told in errs.
func Journals(dir string) (list []*Journal, errs []error) {
	names, err := filepath.Glob(filepath.Join(escapeGlob(dir), "*.json"))
	if err != nil {
		return nil, []error{err}
	}
	for _, name := range names {
		j, err := loadJournal(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("journal: %w", err))
			continue
		}
		list = append(list, j)
	}
	slices.SortFunc(list, func(a, b *Journal) int { return cmp.Or(a.Begun.Compare(b.Begun), cmp.Compare(a.path, b.path)) })
	return list, errs
}

func escapeGlob(s string) string {
	var b bytes.Buffer
	for _, c := range []byte(s) {
		if strings.IndexByte(`*?[\`, c) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	return b.String()
}

// prune removes journals that ended long ago.
func prune(list []*Journal) {
	for _, j := range list {
		if j.Ended && time.Since(j.Begun) > keepJournals {
			os.Remove(j.path)
		}
	}
}
