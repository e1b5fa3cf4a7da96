package repotest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"path"
	"testing"
	"time"

	"vmkit/cmd/internal/repo"
	"vmkit/formats/codec"
	"vmkit/formats/qcow2"
)

// Cluster is the length of the clusters of made points.
const Cluster = 4096

// Made is a point that was made without a backup, and what its disk holds.
type Made struct {
	*repo.Point
	Disk [][]byte // by cluster; nil where no point holds it
}

// Bytes gives the disk, what no point holds as zeros.
func (m *Made) Bytes() []byte {
	var b bytes.Buffer
	for _, c := range m.Disk {
		if c == nil {
			c = make([]byte, Cluster)
		}
		b.Write(c)
	}
	return b.Bytes()
}

// Make makes a point of one disk whose own image holds the given clusters over the parent's; nil is a full one of n
// clusters. Every third cluster is stored as it is, the others compressed.
func Make(t testing.TB, s repo.Store, machine string, at time.Time, parent *Made, n int, clusters map[int][]byte) *Made {
	t.Helper()
	name := at.UTC().Format("20060102T150405Z")
	m := &Made{Disk: make([][]byte, n)}
	m.Point = &repo.Point{Version: repo.PointVersion, Machine: machine, Name: name, At: at, Made: at, Tool: "test", Disks: []repo.Disk{{
		Name: "vda", Format: "raw", Size: int64(n) * Cluster, Cluster: Cluster, Changes: "full",
	}}}
	d := &m.Disks[0]
	o := qcow2.Layout{Size: d.Size, Cluster: Cluster, Codec: codec.Zstd, Head: repo.Head}
	if parent != nil {
		copy(m.Disk, parent.Disk)
		m.Parent, o.Backing, o.BackingFormat = parent.Name, parent.Disks[0].Image.Name, "qcow2"
		d.Changes = "reread"
	}
	d.Image = write(t, s, machine, name+".disk0.qcow2", func(w repo.Writer) { image(t, w, o, clusters, m) })
	d.Sums = write(t, s, machine, name+".disk0.sums", func(w repo.Writer) { sums(t, w, d, clusters, m) })
	if err := repo.WritePoint(t.Context(), s, m.Point, true); err != nil {
		t.Fatal(err)
	}
	return m
}

func image(t testing.TB, w repo.Writer, o qcow2.Layout, clusters map[int][]byte, m *Made) {
	q, err := qcow2.NewWriter(w, o)
	if err != nil {
		t.Fatal(err)
	}
	pack, err := qcow2.NewPacker(o.Codec)
	if err != nil {
		t.Fatal(err)
	}
	for i := range m.Disk {
		b, ok := clusters[i]
		if !ok {
			continue
		}
		m.Disk[i] = b
		packed := pack.Pack(nil, b)
		switch {
		case zero(b):
			err = q.Zero(int64(i), 1)
		case i%3 == 0 || packed == nil:
			err = q.Data(int64(i), b)
		default:
			err = q.Packed(int64(i), packed)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
}

func sums(t testing.TB, w repo.Writer, d *repo.Disk, clusters map[int][]byte, m *Made) {
	out, tree := repo.NewSumsWriter(w, d.Size, Cluster), repo.NewTree()
	for i, b := range m.Disk {
		var sum repo.Sum
		if b != nil {
			sum = sha256.Sum256(b)
		}
		tree.Add(sum, 1)
		if _, ok := clusters[i]; ok {
			out.Add(repo.Run{First: int64(i), N: 1, Sum: sum, Zero: zero(b)})
		}
	}
	d.Root = tree.Root()
	if err := out.End(d.Root); err != nil {
		t.Fatal(err)
	}
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// write writes a file of a point.
func write(t testing.TB, s repo.Store, machine, name string, fill func(repo.Writer)) repo.StoredFile {
	t.Helper()
	w, err := s.Create(t.Context(), path.Join(machine, name), false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	fill(w)
	info, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := repo.ReadFile(t.Context(), s, info.Name, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	f := repo.StoredFile{Name: name, Size: info.Size, SHA256: hex.EncodeToString(sum[:])}
	if path.Ext(name) == ".qcow2" { // as a backup has it
		head, tail := sha256.Sum256(b[:min(len(b), repo.Head)]), sha256.Sum256(b[min(len(b), repo.Head):])
		f.SHA256, f.Halves = "", []string{hex.EncodeToString(head[:]), hex.EncodeToString(tail[:])}
	}
	return f
}
