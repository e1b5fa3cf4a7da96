package verify

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

// job is what a child is to read: a volume, with one library.
type job struct {
	Reader string
	Path   string // of the image
	Format string
	FS     string
	Start  int64
	Size   int64
}

// request asks a child for one thing, reply is its answer.
type request struct {
	What string // "list", "read", "target"
	Path []byte // without slashes at its ends
	ID   string // the library's own, from the list
}

type reply struct {
	Entries []replyEntry
	Size    int64
	Sum     string
	Target  []byte
	Error   string
	Unknown bool // the library can't tell
}

type replyEntry struct {
	Name []byte
	Kind mapfile.FileKind
	Size int64
	ID   string
}

// Limits of a child.
const (
	childMemory = 4 << 30 // address space
	childHeap   = 1 << 30
	childCPU    = 3600 // seconds
)

// SecondReaderChild is the child that SecondReader starts: it reads a volume with a library that may panic, loop or take
// all memory, as requests on in ask, and answers on out.
func SecondReaderChild(in io.Reader, out io.Writer) error {
	for what, limit := range map[int]uint64{unix.RLIMIT_AS: childMemory, unix.RLIMIT_CPU: childCPU, unix.RLIMIT_CORE: 0} {
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("limits: %w", err)
		}
	}
	debug.SetMemoryLimit(childHeap)
	requests := json.NewDecoder(bufio.NewReader(in))
	w := bufio.NewWriter(out)
	answers := json.NewEncoder(w)
	var j job
	if err := requests.Decode(&j); err != nil {
		return err
	}
	say := func(r reply) error { return errors.Join(answers.Encode(&r), w.Flush()) }
	g, err := open(&j)
	if err != nil {
		return say(reply{Error: err.Error()})
	}
	err = say(reply{})
	for err == nil {
		var q request
		if requests.Decode(&q) != nil {
			return nil // it is over
		}
		err = say(answer(g, &q))
	}
	return err
}

// caught turns a panic of the library into an error.
func caught(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("panic: %v", p)
	}
}

func open(j *job) (g guest, err error) {
	defer caught(&err)
	disk, err := openDisk(j.Path, j.Format)
	if err != nil {
		return nil, err
	}
	return openGuest(j.Reader, j.FS, disk, j.Start, j.Size)
}

func answer(g guest, q *request) (r reply) {
	var err error
	switch q.What {
	case "list":
		r.Entries, err = list(g, string(q.Path))
	case "read":
		r.Sum, r.Size, err = sumOf(g, string(q.Path), q.ID)
	case "target":
		var target string
		target, err = readTarget(g, string(q.Path))
		r.Target, r.Unknown = []byte(target), err == errNoTargets
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

func list(g guest, dir string) (out []replyEntry, err error) {
	defer caught(&err)
	entries, err := g.list(dir)
	for _, e := range entries {
		out = append(out, replyEntry{[]byte(e.name), kindOfMode(e.mode), e.size, e.id})
	}
	return out, err
}

func kindOfMode(m fs.FileMode) mapfile.FileKind {
	return mapfile.ParseFileKind(kindOf(m))
}

func readTarget(g guest, path string) (s string, err error) {
	defer caught(&err)
	return g.target(path)
}

func sumOf(g guest, path, id string) (sum string, n int64, err error) {
	defer caught(&err)
	f, err := g.open(path, id)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 64<<10))
	return hex.EncodeToString(h.Sum(nil)), n, err
}
