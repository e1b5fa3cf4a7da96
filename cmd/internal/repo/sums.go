package repo

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"path"
	"strconv"

	"vmkit/formats/ondisk"
)

// A .sums file is text. It tells the SHA-256 of every cluster that the point's own image holds, in order, in lines like
// those of sha256sum, whose file names are byte positions in the disk; clusters of nothing but zeros are told by
// stretches. A last cluster that the disk's end cuts counts as filled up with zeros.
//
//	# vmkit sums 1 disk 17179869184 cluster 65536
//	c7be1ed902fb8dd4d48997c6452f5d7e509fbcdbe2808b16bcf4edce4c07d14e  1048576
//	# zero 1114112 655360
//	# root 2e7d2c03a9507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc6
//
// So one who splits a disk into files that are named by their positions can have them checked by sha256sum -c. The root
// stands for the whole disk as the chain holds it: the SHA-256 of the clusters, those that nothing holds standing as 32
// zero bytes, are joined by groups of 1024 and hashed, and the hashes of the groups are joined and hashed.

// Sum is the SHA-256 of a cluster; the zero value stands for one that no image holds.
type Sum [sha256.Size]byte

// Run is a stretch of clusters of one kind.
type Run struct {
	First, N int64 // in clusters
	Sum      Sum   // of each; N is 1 unless it is that of zeros, or of nothing
	Zero     bool
}

// Held tells whether an image holds the clusters.
func (r *Run) Held() bool { return r.Sum != Sum{} }

// ZeroSum gives the sum of a cluster of zeros.
func ZeroSum(cluster int64) Sum { return sha256.Sum256(make([]byte, cluster)) }

const treeGroup = 1024

// Tree computes a root from all clusters of a disk, in order.
type Tree struct {
	group, root hash.Hash
	n           int // leaves in the group
	same        map[Sum]Sum
}

// NewTree makes an empty one.
func NewTree() *Tree { return &Tree{group: sha256.New(), root: sha256.New(), same: map[Sum]Sum{}} }

// Add takes the sum of each of the next n clusters.
func (t *Tree) Add(leaf Sum, n int64) {
	for n > 0 {
		if t.n == 0 && n >= treeGroup {
			g, ok := t.same[leaf]
			if !ok {
				g = sha256.Sum256(bytes.Repeat(leaf[:], treeGroup))
				t.same[leaf] = g
			}
			t.root.Write(g[:])
			n -= treeGroup
			continue
		}
		t.group.Write(leaf[:])
		n--
		if t.n++; t.n == treeGroup {
			t.end()
		}
	}
}

func (t *Tree) end() {
	t.root.Write(t.group.Sum(nil))
	t.group.Reset()
	t.n = 0
}

// Root gives the root of all that was added.
func (t *Tree) Root() string {
	if t.n > 0 {
		t.end()
	}
	return hex.EncodeToString(t.root.Sum(nil))
}

// SumsWriter writes a .sums file. The first error sticks.
type SumsWriter struct {
	w             io.Writer
	size, cluster int64
	zero          Run // that goes on
	buf           []byte
	err           error
}

// NewSumsWriter begins one.
func NewSumsWriter(w io.Writer, size, cluster int64) *SumsWriter {
	return &SumsWriter{w: w, size: size, cluster: cluster, buf: fmt.Appendf(nil, "# vmkit sums 1 disk %d cluster %d\n", size, cluster)}
}

// Add tells of clusters that the image holds, which lie behind those before.
func (s *SumsWriter) Add(r Run) {
	if r.Zero && s.zero.N > 0 && s.zero.First+s.zero.N == r.First {
		s.zero.N += r.N
		return
	}
	s.endZero()
	if r.Zero {
		s.zero = r
		return
	}
	s.buf = hex.AppendEncode(s.buf, r.Sum[:])
	s.buf = append(strconv.AppendInt(append(s.buf, "  "...), r.First*s.cluster, 10), '\n')
	if len(s.buf) >= 64<<10 {
		s.flush()
	}
}

func (s *SumsWriter) endZero() {
	if s.zero.N > 0 {
		off := s.zero.First * s.cluster
		s.buf = fmt.Appendf(s.buf, "# zero %d %d\n", off, min(s.zero.N*s.cluster, s.size-off))
		s.zero = Run{}
	}
}

func (s *SumsWriter) flush() {
	if s.err == nil {
		_, s.err = s.w.Write(s.buf)
	}
	s.buf = s.buf[:0]
}

// End writes the root.
func (s *SumsWriter) End(root string) error {
	s.endZero()
	s.buf = fmt.Appendf(s.buf, "# root %s\n", root)
	s.flush()
	return s.err
}

// SumsReader reads a .sums file.
type SumsReader struct {
	what          string
	r             *bufio.Reader
	o             Object
	hash          hash.Hash
	want          StoredFile
	size, cluster int64
	zero          Sum
	next          int64
	root          string
}

// OpenSums opens the .sums file of disk n of a point. The caller closes it.
func OpenSums(ctx context.Context, s Store, p *Point, n int) (*SumsReader, error) {
	d := &p.Disks[n]
	name := path.Join(p.Machine, d.Sums.Name)
	o, err := s.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	r := &SumsReader{what: Path(s, name), o: o, hash: sha256.New(), want: d.Sums, size: d.Size, cluster: d.Cluster, zero: ZeroSum(d.Cluster)}
	r.r = bufio.NewReaderSize(io.TeeReader(io.NewSectionReader(o, 0, o.Size()), r.hash), 256<<10)
	line, err := r.line()
	if want := fmt.Sprintf("# vmkit sums 1 disk %d cluster %d", d.Size, d.Cluster); err == nil && string(line) != want {
		err = r.corrupt("first line", line)
	}
	if err != nil {
		o.Close()
		return nil, err
	}
	return r, nil
}

// Close closes the file.
func (r *SumsReader) Close() error { return r.o.Close() }

// Root gives the root, once Next has given io.EOF.
func (r *SumsReader) Root() string { return r.root }

func (r *SumsReader) corrupt(field string, got []byte) error {
	return ondisk.Corrupt(r.what, field, -1, fmt.Sprintf("%.100q", got))
}

func (r *SumsReader) line() ([]byte, error) {
	b, err := r.r.ReadSlice('\n')
	switch {
	case err == io.EOF:
		return nil, ondisk.Truncated(r.what, "it ends without a root", -1, nil)
	case err == bufio.ErrBufferFull:
		return nil, r.corrupt("line", b)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", r.what, err)
	}
	return b[:len(b)-1], nil
}

// Next gives the next clusters that the image holds. After the last ones it gives io.EOF, once the file's own hash is
// found to be right.
func (r *SumsReader) Next() (Run, error) {
	if r.root != "" {
		return Run{}, io.EOF
	}
	line, err := r.line()
	if err != nil {
		return Run{}, err
	}
	if bytes.HasPrefix(line, rootLine) {
		return Run{}, r.end(line)
	}
	x, ok := parseRun(line, r.size, r.cluster, r.zero)
	if !ok {
		return Run{}, r.corrupt("line", line)
	}
	if x.First < r.next {
		return Run{}, r.corrupt("position in line", line)
	}
	r.next = x.First + x.N
	return x, nil
}

var (
	zeroLine = []byte("# zero ")
	rootLine = []byte("# root ")
)

// parseRun takes a line about clusters apart.
func parseRun(line []byte, size, cluster int64, zero Sum) (x Run, ok bool) {
	x.N = 1
	var off []byte
	if rest, found := bytes.CutPrefix(line, zeroLine); found {
		var length []byte
		off, length, _ = bytes.Cut(rest, []byte(" "))
		n, err := strconv.ParseInt(string(length), 10, 64)
		if err != nil || n <= 0 || n > size {
			return x, false
		}
		x.N, x.Zero, x.Sum = (n+cluster-1)/cluster, true, zero
	} else {
		const n = 2 * sha256.Size
		if len(line) < n+3 || line[n] != ' ' || line[n+1] != ' ' {
			return x, false
		}
		if _, err := hex.Decode(x.Sum[:], line[:n]); err != nil || !x.Held() {
			return x, false
		}
		off = line[n+2:]
		x.Zero = x.Sum == zero
	}
	at, err := strconv.ParseInt(string(off), 10, 64)
	x.First = at / cluster
	return x, err == nil && at >= 0 && at%cluster == 0 && x.N <= (size+cluster-1)/cluster-x.First
}

func (r *SumsReader) end(line []byte) error {
	r.root = string(line[len(rootLine):])
	if _, err := r.r.ReadByte(); err != io.EOF {
		return r.corrupt("what follows", line)
	}
	if got := hex.EncodeToString(r.hash.Sum(nil)); got != r.want.SHA256 {
		return ondisk.Corrupt(r.what, "sha256", -1, got)
	}
	return io.EOF
}

// Account tells of each cluster of a disk what a chain of points holds, from their .sums files. It is asked in ascending
// order.
type Account struct {
	layers []*accountLayer // the newest first
	end    int64
}

type accountLayer struct {
	*SumsReader
	run Run // the next one, or the one that the last answer lies in
	eof bool
}

// OpenAccount opens the account of disk n of the last of the points, which form a chain.
func OpenAccount(ctx context.Context, s Store, chain []*Point, n int) (*Account, error) {
	a := &Account{}
	for i := len(chain) - 1; i >= 0; i-- {
		r, err := OpenSums(ctx, s, chain[i], n)
		if err != nil {
			a.Close()
			return nil, err
		}
		a.end = max(a.end, (r.size+r.cluster-1)/r.cluster)
		a.layers = append(a.layers, &accountLayer{SumsReader: r})
	}
	return a, nil
}

// Close closes the files.
func (a *Account) Close() {
	for _, l := range a.layers {
		l.Close()
	}
}

// At tells of cluster i, and of those behind it that are of the same kind: at most max.
func (a *Account) At(i, max int64) (Run, error) {
	r := Run{First: i, N: min(max, a.end-i)}
	for _, l := range a.layers {
		for !l.eof && l.run.First+l.run.N <= i {
			run, err := l.Next()
			if l.eof = err == io.EOF; err != nil && !l.eof {
				return Run{}, err
			}
			l.run = run
		}
		switch {
		case l.eof:
		case l.run.First > i:
			r.N = min(r.N, l.run.First-i)
		default:
			r.N = min(r.N, l.run.First+l.run.N-i)
			r.Sum, r.Zero = l.run.Sum, l.run.Zero
			return r, nil
		}
	}
	return r, nil
}

// Finish reads what is left, so that every file was found to be whole.
func (a *Account) Finish() error {
	_, err := a.At(a.end, 0)
	return err
}
